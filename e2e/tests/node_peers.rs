//! Failures that users of other systems report, by their number in `docs/peer-failures.md`, that need a whole site.

use anyhow::{Result, ensure};
use cryptvol_crds::conditions::Reason;
use cryptvol_e2e::array;
use cryptvol_e2e::process::wait_for;
use cryptvol_e2e::site::{Site, SiteSpec};
use cryptvol_e2e::volumes::{PATIENCE, Volume};
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

/// A read that the kernel never ends takes the only place there is to work, and cannot be killed. Others report that the whole agent
/// hangs then. Ours holds that volume and says so; its neighbour goes on, and so does the volume once the read ends.
#[tokio::test]
async fn peer_failure_13_a_read_that_is_stuck_in_the_kernel_holds_one_volume() -> Result<()> {
    let work = WorkDir::new("stuck")?;
    let mut site = Site::start(&work, SiteSpec::new(1)).await?;
    site.kill_agent(0).await?;
    site.launch_agent(0, &["--parallel-steps", "1"]).await?;
    let (_, _, neighbour) = site.volume("stuck").await?;
    let mut stuck = Volume {
        name: "stuck-disk".into(),
        ..neighbour.clone()
    };
    stuck.manifest["metadata"]["name"] = json!(stuck.name);
    let device = "/dev/mapper/vg-stuck";
    let stuck = stuck.with("source", json!({"device": {"path": device}}));
    let disk = format!(
        "set -e; truncate -s 64M /cv/stuck.img; dev=$(losetup --find --show /cv/stuck.img)
         dmsetup create vg-stuck --uuid LVM-cryptvol-stuck --table \"0 $(blockdev --getsz $dev) linear $dev 0\"
         [ -b {device} ] || dmsetup mknodes
         udevadm settle -t 50; dmsetup suspend vg-stuck"
    );
    site.node(0).sh(&disk).await?.ok()?;
    stuck.apply(&site.plane).await?;
    wait_for(
        "a worker that waits in the kernel",
        PATIENCE,
        || async {
            let find = "for s in /proc/[0-9]*/status; do grep -q '^State:.D' $s 2>/dev/null && \
                        tr '\\0' ' ' <${s%status}cmdline; done; true";
            let found = site.node(0).sh(find).await?.ok()?;
            Ok(found.contains(" worker ").then_some(()))
        },
        String::new,
    )
    .await?;
    neighbour.apply(&site.plane).await?;
    neighbour.wait_ready(&site.plane).await?;
    neighbour.write(site.node(0), "goes on").await?;
    let said = stuck
        .wait_reason(&site.plane, Reason::DeadlineExceeded)
        .await?;
    ensure!(said.contains("hangs in the kernel"), "{said}");
    // The neighbour comes and goes as it likes meanwhile.
    neighbour.clone().detached().apply(&site.plane).await?;
    neighbour.wait_detached(&site.plane).await?;
    neighbour.apply(&site.plane).await?;
    neighbour.wait_ready(&site.plane).await?;
    ensure!(neighbour.read(site.node(0), 7).await? == "goes on");

    site.node(0).sh("dmsetup resume vg-stuck").await?.ok()?;
    stuck.wait_ready(&site.plane).await?;
    for volume in [&stuck, &neighbour] {
        volume.delete(&site.plane).await?;
        volume.wait_gone(&site.plane).await?;
    }
    work.passed()
}
