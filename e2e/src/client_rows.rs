//! The walk of the official client through the table of its commands, `assets/client-rows.yaml`, in front of any identity service and
//! key manager: ours or the real ones.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::Value;

use crate::openstack_client::OpenStackClient;

/// Services that the client walks before.
#[derive(Debug)]
pub struct Services<'a> {
    /// The identity API: `…/v3`.
    pub auth_url: &'a str,
    /// The key manager's root.
    pub key_manager: &'a str,
    /// The authority of their certificates; `None` without TLS.
    pub ca: Option<&'a Path>,
    /// Password of the user admin.
    pub password: &'a str,
}

/// One command and how it went.
#[derive(Debug, Deserialize)]
pub struct Row {
    /// The step that it belongs to.
    pub step: String,
    /// The command, as in the table.
    pub run: String,
    /// What is not as the table says.
    pub wrong: Option<String>,
    /// Exit status.
    pub code: i32,
    /// What it printed, without what two services must differ in: ids, times, addresses, secrets. Lists are sorted.
    pub shown: Value,
}

/// Walks all of the table; files that commands read and write are put into `folder`.
///
/// # Errors
/// If the walk itself does not come to its end; a command that goes wrong is no error.
pub fn walk(client: &OpenStackClient, services: &Services<'_>, folder: &Path) -> Result<Vec<Row>> {
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets");
    let script = std::fs::read_to_string(assets.join("client_rows.py"))?;
    let answer = client.python(
        &script,
        &[
            &assets.join("client-rows.yaml").to_string_lossy(),
            services.auth_url,
            services.key_manager,
            &services.ca.unwrap_or(Path::new("")).to_string_lossy(),
            &folder.to_string_lossy(),
        ],
        services.password,
    )?;
    ensure!(
        answer.code == 0,
        "the walk ended with {}:\n{}",
        answer.code,
        answer.stderr
    );
    answer
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).with_context(|| line.to_owned()))
        .collect()
}
