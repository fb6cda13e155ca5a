//! Every command of the recorded contract (see `assets/client-rows.yaml`), run by the official client, all in one process; and
//! every command that the client has in its identity and key-manager families is in the table.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use cryptvol_e2e::identity_service::{IdentityService, Options};
use cryptvol_e2e::openstack_client::OpenStackClient;
use cryptvol_e2e::workdir::WorkDir;
use serde::Deserialize;

/// Steps and commands that were recorded; the table has these and more.
const RECORDED_STEPS: usize = 185;
const RECORDED_COMMANDS: usize = 206;

#[derive(Deserialize)]
struct Row {
    step: String,
    run: String,
    wrong: Option<String>,
}

#[test]
fn every_command_ends_and_shows_as_recorded() -> Result<()> {
    let client = OpenStackClient::ensure()?;
    let work = WorkDir::new("client-rows")?;
    let mut service = IdentityService::start(&work.dir("identity")?, Options::default())?;
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets");
    let script = std::fs::read_to_string(assets.join("client_rows.py"))?;
    let (table, folder) = (assets.join("client-rows.yaml"), work.dir("files")?);
    let answer = client.python(
        &script,
        &[
            &table.to_string_lossy(),
            &service.auth_url(),
            &format!("{}/key-manager", service.base_url()),
            &service.ca_path().to_string_lossy(),
            &folder.to_string_lossy(),
        ],
        service.password(),
    )?;
    ensure!(
        answer.code == 0,
        "the walk ended with {}:\n{}",
        answer.code,
        answer.stderr
    );
    let rows = answer
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).with_context(|| line.to_owned()))
        .collect::<Result<Vec<Row>>>()?;
    let wrong: Vec<String> = rows
        .iter()
        .filter_map(|row| {
            let wrong = row.wrong.as_ref()?;
            Some(format!("{}: openstack {}\n    {wrong}", row.step, row.run))
        })
        .collect();
    ensure!(
        wrong.is_empty(),
        "{} of {} rows:\n{}",
        wrong.len(),
        rows.len(),
        wrong.join("\n")
    );
    let steps: BTreeSet<&str> = rows.iter().map(|row| row.step.as_str()).collect();
    ensure!(steps.len() >= RECORDED_STEPS && rows.len() >= RECORDED_COMMANDS);
    service.stop()?;
    work.passed()
}
