//! What lies in the files, and what is not to lie there.

use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};
use cryptvol_e2e::identity_service::IdentityService;
use serde_json::Value;

use crate::ground::{Ground, text};

/// Every file below `dir`.
fn files(dir: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files(&path)?);
        } else {
            found.push((path.display().to_string(), fs::read(&path)?));
        }
    }
    Ok(found)
}

fn holds(bytes: &[u8], needle: &str) -> bool {
    bytes
        .windows(needle.len())
        .any(|window| window == needle.as_bytes())
}

#[test]
fn nothing_readable_lies_in_the_files_or_the_log() -> Result<()> {
    let mut ground = Ground::new("identity-at-rest")?;
    let (payload, encoded) = (
        "plaintext-canary-payload-9431",
        "cGxhaW50ZXh0LWNhbmFyeS1wYXlsb2FkLTk0MzE",
    );
    let (kept, kept_encoded) = (
        "kept-canary-payload-5512",
        "a2VwdC1jYW5hcnktcGF5bG9hZC01NTEy",
    );
    let password = "canary-Passw0rd-7766";
    ground.ok(&["user", "create", "--password", password, "carol"])?;
    let made = ground.json(&["application", "credential", "create", "canary"])?;
    let token = ground.json(&["token", "issue"])?;
    let secret = ground.json(&[
        "secret",
        "store",
        "--payload-content-type",
        "text/plain",
        "--name",
        "deleted-canary-name",
        "--payload",
        payload,
    ])?;
    let href = text(&secret, "Secret href")?;
    ground.json(&[
        "secret",
        "store",
        "--payload-content-type",
        "text/plain",
        "--name",
        "kept",
        "--payload",
        kept,
    ])?;
    ground.json(&["secret", "get", "--payload", href])?;
    // The name is stored in the clear, so it shows that the search can find something.
    ensure!(
        files(&ground.service.data_dir())?
            .iter()
            .any(|(_, bytes)| holds(bytes, "deleted-canary-name"))
    );
    ground.ok(&["secret", "delete", href])?;
    let admin_password = ground.service.password().to_owned();
    let needles = [
        payload,
        encoded,
        kept,
        kept_encoded,
        password,
        &admin_password,
        text(&made, "Secret")?,
        text(&token, "id")?,
    ];
    let check = |service: &IdentityService, state: &str| -> Result<()> {
        for (path, bytes) in files(&service.data_dir())? {
            for needle in needles {
                ensure!(!holds(&bytes, needle), "{state}: {path} holds {needle:?}");
            }
            ensure!(
                !holds(&bytes, "deleted-canary-name"),
                "{state}: {path} still holds a deleted record"
            );
        }
        let log = service.log()?;
        for needle in needles {
            ensure!(!log.contains(needle), "{state}: the log holds {needle:?}");
        }
        Ok(())
    };
    check(&ground.service, "running")?;
    // The audit trail says who did what.
    let log = ground.service.log()?;
    for (action, kind) in [
        ("create", "data/security/secret"),
        ("read", "data/security/secret"),
        ("delete", "data/security/secret"),
    ] {
        let id = href.rsplit('/').next().unwrap_or_default();
        ensure!(
            log.lines()
                .filter_map(|line| serde_json::from_str::<Value>(line).ok())
                .any(|line| {
                    line["target"] == "audit"
                        && line["action"] == action
                        && line["target_type_uri"] == kind
                        && line["target_id"] == id
                        && line["outcome"] == "success"
                        && line["initiator_user_name"] == "admin"
                }),
            "no audit line for {action} of {id}"
        );
    }
    let memory = ground.service.resident_kib()?;
    eprintln!("resident memory: {memory} KiB");
    ground.service.kill()?;
    check_killed(&ground)?;
    ground.service.launch()?;
    ground.service.stop()?;
    check(&ground.service, "stopped")?;
    ground.work.passed()
}

/// After a kill the write-ahead log still lies there; even that holds no payload.
fn check_killed(ground: &Ground) -> Result<()> {
    for (path, bytes) in files(&ground.service.data_dir())? {
        ensure!(
            !holds(&bytes, "canary-payload"),
            "killed: {path} holds a payload"
        );
    }
    Ok(())
}
