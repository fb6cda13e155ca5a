//! Every command of the recorded contract (see `assets/client-rows.yaml`), run by the official client, all in one process; and
//! every command that the client has in its identity and key-manager families is in the table.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use cryptvol_e2e::client_rows::{Services, walk};
use cryptvol_e2e::identity_service::{IdentityService, Options};
use cryptvol_e2e::openstack_client::OpenStackClient;
use cryptvol_e2e::workdir::WorkDir;

/// Steps and commands that were recorded; the table has these and more.
const RECORDED_STEPS: usize = 185;
const RECORDED_COMMANDS: usize = 206;

#[test]
fn every_command_ends_and_shows_as_recorded() -> Result<()> {
    let client = OpenStackClient::ensure()?;
    let work = WorkDir::new("client-rows")?;
    let mut service = IdentityService::start(&work.dir("identity")?, Options::default())?;
    let services = Services {
        auth_url: &service.auth_url(),
        key_manager: &format!("{}/key-manager", service.base_url()),
        ca: Some(&service.ca_path()),
        password: service.password(),
    };
    let rows = walk(&client, &services, &work.dir("files")?)?;
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
