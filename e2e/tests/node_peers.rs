//! Failures that users of other systems report, by their number in `docs/peer-failures.md`, that need a whole site.

use anyhow::{Result, ensure};
use cryptvol_crds::conditions::Reason;
use cryptvol_e2e::array;
use cryptvol_e2e::site::{Site, SiteSpec};
use cryptvol_e2e::volumes::Volume;
use cryptvol_e2e::workdir::WorkDir;
use serde_json::json;

/// Volumes, each on a target of its own.
const VOLUMES: usize = 4;

/// Logins burst at boot while the array is away, and others report that some sessions never come back. Ours are made by the agent,
/// each with a pace of its own, and an attempt that failed leaves nothing behind that tries for itself.
#[tokio::test]
async fn peer_failure_05_a_reboot_into_an_outage_ends_with_all_volumes_attached() -> Result<()> {
    let work = WorkDir::new("outage")?;
    let mut site = Site::start(&work, SiteSpec::new(1)).await?;
    let (_, _, first) = site.volume("outage").await?;
    let mut volumes = vec![first.clone()];
    for n in 1..VOLUMES {
        let iqn = array::iqn(&format!("outage-{n}"));
        site.array.create_target(&iqn)?;
        site.array.create_lun(&iqn, 1, 32 << 20)?;
        let mut volume = Volume {
            name: format!("vol-{n}"),
            ..first.clone()
        };
        volume.manifest["metadata"]["name"] = json!(volume.name);
        volumes.push(volume.with_iscsi("iqn", json!(iqn)));
    }
    for volume in &volumes {
        volume.apply(&site.plane).await?;
    }
    for volume in &volumes {
        volume.wait_ready(&site.plane).await?;
        volume.write(site.node(0), &volume.name).await?;
    }
    site.array.power_off()?;
    site.power_cycle(0).await?;
    for volume in &volumes {
        volume
            .wait_reason(&site.plane, Reason::PortalUnreachable)
            .await?;
    }
    site.array.power_on().await?;
    for volume in &volumes {
        volume.wait_ready(&site.plane).await?;
        let read = volume.read(site.node(0), volume.name.len()).await?;
        ensure!(read == volume.name, "{}: {read:?}", volume.name);
    }
    let states = site
        .node(0)
        .sh("cat /sys/class/iscsi_session/*/state")
        .await?
        .ok()?;
    ensure!(
        states.lines().count() == VOLUMES && states.lines().all(|s| s == "LOGGED_IN"),
        "sessions: {states}"
    );
    work.passed()
}
