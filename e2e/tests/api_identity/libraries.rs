//! The libraries that services use: castellan (Cinder and Nova), python-barbicanclient, keystonemiddleware.

use std::path::Path;

use anyhow::{Result, ensure};

use crate::ground::Ground;

/// Runs a story in the client's environment; the administrator's password is its input.
fn story(ground: &Ground, script: &str, args: &[&str]) -> Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("assets")
        .join(script);
    let answer = ground.client.python(
        &std::fs::read_to_string(path)?,
        args,
        ground.service.password(),
    )?;
    ensure!(
        answer.code == 0,
        "{script} ended with {}:\n{}{}",
        answer.code,
        answer.stdout,
        answer.stderr
    );
    Ok(())
}

#[test]
fn castellan_and_barbicanclient_make_read_and_delete_keys() -> Result<()> {
    let ground = Ground::new("identity-castellan")?;
    let key_manager = format!("{}/key-manager", ground.service.base_url());
    let ca = ground.service.ca_path();
    let args = [
        &ground.service.auth_url(),
        &key_manager,
        &*ca.to_string_lossy(),
    ];
    story(&ground, "castellan_story.py", &args)?;
    ground.passed()
}

#[test]
fn keystonemiddleware_lets_in_who_the_service_says_may_come_in() -> Result<()> {
    let ground = Ground::new("identity-middleware")?;
    let ca = ground.service.ca_path();
    let args = [&*ground.service.auth_url(), &*ca.to_string_lossy()];
    story(&ground, "middleware_story.py", &args)?;
    ground.passed()
}
