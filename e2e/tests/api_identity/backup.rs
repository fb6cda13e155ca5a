//! A backup of the running service, restored over it and on a second machine.

use std::process::Command;

use anyhow::{Result, ensure};
use cryptvol_e2e::identity_service::product_binary;

use crate::ground::{Ground, text};

#[test]
fn a_backup_is_restored_here_and_on_a_second_machine() -> Result<()> {
    let mut ground = Ground::new("identity-backup")?;
    let store = |ground: &Ground, name: &str| -> Result<String> {
        let args = [
            "secret",
            "store",
            "--name",
            name,
            "--payload",
            name,
            "--payload-content-type",
            "text/plain",
        ];
        Ok(text(&ground.json(&args)?, "Secret href")?.to_owned())
    };
    let payload = |ground: &Ground, href: &str| -> Result<String> {
        let shown = ground.json(&["secret", "get", "--payload", href])?;
        Ok(text(&shown, "Payload")?.to_owned())
    };
    let before = store(&ground, "before")?;
    let file = ground.work.path().join("identity.backup");
    let (data, kek) = (
        ground.service.data_dir(),
        ground.service.secrets_dir().join("kek"),
    );
    // (how it ended, what was said)
    let run = |command: &str, kek: &std::path::Path, more: &[&str]| -> Result<(bool, String)> {
        let output = Command::new(product_binary("cryptvol-identity")?)
            .arg(command)
            .arg("--kek-file")
            .arg(kek)
            .args(more)
            .output()?;
        let said = [output.stdout, output.stderr].concat();
        Ok((
            output.status.success(),
            String::from_utf8_lossy(&said).into_owned(),
        ))
    };
    let (path, here) = (file.to_string_lossy(), data.to_string_lossy());
    let out = ["--data-dir", &here, "--out", &path];
    let (done, said) = run("backup", &kek, &out)?;
    ensure!(done, "{said}");
    let (done, said) = run("backup", &kek, &out)?;
    ensure!(!done && said.contains("never overwrites"), "{said}");
    let after = store(&ground, "after")?;

    // Not over a running service, and not over records without being told.
    let from = ["--data-dir", &*here, "--from", &*path];
    let replace = ["--data-dir", &*here, "--from", &*path, "--replace"];
    let (done, said) = run("restore", &kek, &from)?;
    ensure!(!done && said.contains("--replace"), "{said}");
    let (done, said) = run("restore", &kek, &replace)?;
    ensure!(!done && said.contains("still runs"), "{said}");
    assert_eq!(payload(&ground, &after)?, "after");

    // With another key it stays shut, on any machine.
    let other = ground.service.secrets_dir().join("other-kek");
    ground
        .service
        .command(&["kek", "generate", "--out", &other.to_string_lossy()])?;
    let second = ground.work.path().join("second");
    let there = second.to_string_lossy().into_owned();
    let from = ["--data-dir", &*there, "--from", &*path];
    let (done, said) = run("restore", &other, &from)?;
    ensure!(
        !done && said.contains("does not open this backup"),
        "{said}"
    );
    let (done, said) = run("restore", &kek, &from)?;
    ensure!(done, "{said}");
    ensure!(second.join("identity.sqlite").exists(), "{said}");

    ground.service.stop()?;
    let (done, said) = run("restore", &kek, &replace)?;
    ensure!(done && said.contains("all tokens have ended"), "{said}");
    ground.service.launch()?;
    assert_eq!(payload(&ground, &before)?, "before");
    ground.refused(&["secret", "get", "--payload", &after], "Not Found")?;
    ground.passed()
}
