//! Kills, keys, certificates.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use cryptvol_e2e::identity_service::product_binary;
use cryptvol_e2e::openstack_client::Cloud;

use crate::ground::{Ground, text};

#[test]
fn what_was_acknowledged_outlives_a_kill_and_needs_its_key() -> Result<()> {
    let mut ground = Ground::new("identity-restart")?;
    let secret = ground.json(&[
        "secret",
        "store",
        "--payload-content-type",
        "text/plain",
        "--name",
        "kept",
        "--payload",
        "still here",
    ])?;
    let href = text(&secret, "Secret href")?.to_owned();
    ground.service.kill()?;
    ground.service.launch()?;
    let payload = ground.json(&["secret", "get", "--payload", &href])?;
    assert_eq!(text(&payload, "Payload")?, "still here");
    ground.service.stop()?;

    // Another key-encryption key is told apart from damage, and nothing is served.
    let kek = ground.service.secrets_dir().join("other-kek");
    ground
        .service
        .command(&["kek", "generate", "--out", &kek.to_string_lossy()])?;
    let data = ground.service.data_dir();
    let output = std::process::Command::new(product_binary("cryptvol-identity")?)
        .args([
            "serve",
            "--no-tls",
            "--listen",
            "127.0.0.1:0",
            "--admin-listen",
            "127.0.0.1:0",
        ])
        .arg("--data-dir")
        .arg(&data)
        .arg("--kek-file")
        .arg(&kek)
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        !output.status.success() && said.contains("does not belong to"),
        "{said}"
    );
    // In the clear only on a loopback address.
    let output = std::process::Command::new(product_binary("cryptvol-identity")?)
        .args([
            "serve",
            "--no-tls",
            "--listen",
            "0.0.0.0:0",
            "--admin-listen",
            "127.0.0.1:0",
        ])
        .arg("--data-dir")
        .arg(&data)
        .arg("--kek-file")
        .arg(ground.service.secrets_dir().join("kek"))
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        !output.status.success() && said.contains("loopback"),
        "{said}"
    );
    ground.work.passed()
}

#[test]
fn a_new_certificate_is_taken_over_without_a_restart() -> Result<()> {
    let ground = Ground::new("identity-certificate")?;
    ground.ok(&["token", "issue"])?;
    let old = ground.work.path().join("old-ca.crt");
    fs::copy(ground.service.ca_path(), &old)?;
    ground.service.renew_certificate()?;
    let start = Instant::now();
    while ground.client.run(&ground.admin, &["token", "issue"])?.code != 0 {
        ensure!(
            start.elapsed() < Duration::from_secs(40),
            "the new certificate is not served"
        );
        std::thread::sleep(Duration::from_secs(1));
    }
    let (url, password) = (ground.service.auth_url(), ground.service.password());
    let auth = [
        ("auth_url", url.as_str()),
        ("username", "admin"),
        ("password", password),
        ("user_domain_name", "Default"),
        ("project_name", "admin"),
        ("project_domain_name", "Default"),
    ];
    let stale = Cloud::write(ground.work.path(), "stale", "v3password", &auth, &old)?;
    ground
        .client
        .refused(&stale, &["token", "issue"], "certificate verify failed")?;
    let (status, metrics) = ground.service.admin("/metrics")?;
    ensure!(
        status == 200 && metrics.contains("cryptvol_identity_logins_total{outcome=\"success\"}"),
        "{metrics}"
    );
    assert_eq!(ground.service.admin("/livez")?.0, 200);
    ground.passed()
}
