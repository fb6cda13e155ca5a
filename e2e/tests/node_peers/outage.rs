//! The way to the array is gone, or is bad.

use anyhow::{Result, ensure};
use cryptvol_crds::conditions::Reason;
use cryptvol_crds::names::RESCAN_ANNOTATION;
use cryptvol_e2e::array;
use cryptvol_e2e::node::Node;
use cryptvol_e2e::process::wait_for;
use cryptvol_e2e::site::{AGENT_LOG, Site};
use cryptvol_e2e::volumes::{PATIENCE, Volume};
use cryptvol_e2e::writing_guest::WritingGuest;
use serde_json::json;

use super::ground::{SITE, all_go, attached_with, counts, detach};

/// Volumes, each on a target of its own.
const VOLUMES: usize = 4;

/// Logins burst at boot while the array is away, and others report that some sessions never come back. Ours are made by the agent,
/// each with a pace of its own, and an attempt that failed leaves nothing behind that tries for itself.
#[tokio::test]
async fn peer_failure_05_a_reboot_into_an_outage_ends_with_all_volumes_attached() -> Result<()> {
    let mut site = SITE.take().await?;
    let (_, _, first) = site.volume("reboot").await?;
    let mut volumes = vec![first.clone()];
    for n in 1..VOLUMES {
        let iqn = array::iqn(&format!("reboot-{n}"));
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
    for volume in &volumes {
        volume.clone().detached().apply(&site.plane).await?;
    }
    for volume in &volumes {
        volume.wait_detached(&site.plane).await?;
    }
    all_go(&site, &volumes.iter().collect::<Vec<_>>()).await?;
    site.nothing_left(0).await?;
    site.passed()
}

/// What goes from the node to the array is treated by netem like this, and nothing else is.
async fn netem(site: &Site, how: &str) -> Result<()> {
    let array = site.array.ip();
    let add = format!(
        "set -e; modprobe -a sch_netem sch_prio cls_u32
         tc qdisc replace dev vec0 root handle 1: prio
         tc qdisc replace dev vec0 parent 1:3 handle 30: netem limit 10000 {how}
         tc filter replace dev vec0 parent 1: protocol ip prio 1 handle 800::1 u32 match ip dst {array}/32 flowid 1:3"
    );
    site.node(0).sh(&add).await?.ok().map(drop)
}

async fn no_netem(node: &Node) -> Result<()> {
    node.sh("tc qdisc del dev vec0 root").await?.ok().map(drop)
}

/// The sessions of the node and their disks, as those that they are: names and numbers come again, the inodes of sysfs do not.
async fn sessions_and_disks(node: &Node) -> Result<String> {
    node.sh("stat -Lc '%n %i' /sys/class/iscsi_session/* /sys/class/scsi_disk/*")
        .await?
        .ok()
}

async fn wait_session(node: &Node, state: &str) -> Result<()> {
    let is = format!("grep -qx {state} /sys/class/iscsi_session/*/state");
    wait_for(
        &format!("the session to be {state}"),
        PATIENCE,
        || async { Ok((node.sh(&is).await?.code == 0).then_some(())) },
        || node.log(AGENT_LOG),
    )
    .await
}

/// A portal vanishes under a guest. A healer of others ends the session, and with it the disk. Ours ends nothing however long it lasts: I/O waits
/// and goes on, and where the kernel has given up on it the same session comes back and the next guest goes on with all that was stored.
#[tokio::test]
async fn peer_failure_04_a_portal_that_vanishes_under_a_guest_ends_no_session() -> Result<()> {
    let mut site = SITE.take().await?;
    let (_, _, volume) = site.volume("vanishes").await?;
    volume.apply(&site.plane).await?;
    volume.wait_ready(&site.plane).await?;
    let node = site.node(0);
    let guest = WritingGuest::of(node, &volume);
    let writing = guest.start("guest-vanishes").await?;
    let there = sessions_and_disks(node).await?;

    netem(&site, "loss 100%").await?;
    wait_session(node, "FAILED").await?;
    // So that it looks now; afterwards it looks by itself, ever later.
    volume
        .annotate(&site.plane, RESCAN_ANNOTATION, "in-the-outage")
        .await?;
    let said = volume
        .wait_reason(&site.plane, Reason::PortalUnreachable)
        .await?;
    ensure!(
        said.contains(Reason::PortalUnreachable.next_step()),
        "{said}"
    );
    let written = guest.written().await?;
    let looks = "errors_total{reason=\"PortalUnreachable\"}";
    counts(node, looks, 3).await?;
    ensure!(
        sessions_and_disks(node).await? == there,
        "something was ended"
    );
    ensure!(
        guest.written().await? == written,
        "the guest wrote to nowhere"
    );
    no_netem(node).await?;
    guest.goes_on().await?;
    volume.wait_ready(&site.plane).await?;
    ensure!(
        sessions_and_disks(node).await? == there,
        "something was ended"
    );

    // Longer than the kernel has the guest wait, which is told to wait for 5 s only.
    node.sh("for s in /sys/class/iscsi_session/*; do echo 5 >$s/recovery_tmo; done")
        .await?
        .ok()?;
    netem(&site, "loss 100%").await?;
    writing.wait(PATIENCE).await?;
    ensure!(guest.has_failed().await?, "the guest got no error");
    let written = guest.written().await?;
    volume
        .annotate(&site.plane, RESCAN_ANNOTATION, "and-longer")
        .await?;
    volume
        .wait_reason(&site.plane, Reason::PortalUnreachable)
        .await?;
    counts(node, looks, 3).await?;
    ensure!(
        sessions_and_disks(node).await? == there,
        "something was ended"
    );
    no_netem(node).await?;
    volume.wait_ready(&site.plane).await?;
    ensure!(
        sessions_and_disks(node).await? == there,
        "something was ended"
    );
    let found = guest.read().await?;
    ensure!(found >= written, "{found} is older than {written}");
    let writing = guest.start("guest-again").await?;
    guest.goes_on().await?;
    writing.signal("SIGKILL").await?;
    writing.wait(PATIENCE).await?;

    detach(&site, &volume).await?;
    all_go(&site, &[&volume]).await?;
    site.nothing_left(0).await?;
    site.passed()
}

/// Packets to the array come late, out of order, twice, or not at all: everything takes longer and ends well.
#[tokio::test]
async fn peer_failure_04_a_bad_line_to_the_array_is_slow_and_nothing_else() -> Result<()> {
    let mut site = SITE.take().await?;
    let (_, lun, volume) = site.volume("bad-line").await?;
    netem(&site, "delay 40ms 20ms loss 3% duplicate 1%").await?;
    volume.apply(&site.plane).await?;
    volume.wait_ready(&site.plane).await?;
    volume.write(site.node(0), "over a bad line").await?;
    ensure!(!lun.contains(b"over a bad line")?, "plaintext on the array");
    detach(&site, &volume).await?;
    attached_with(&site, &volume, "over a bad line").await?;
    let sent = site.node(0).sh("tc -s qdisc show dev vec0").await?.ok()?;
    let dropped = |l: &&str| l.contains("dropped") && !l.contains("dropped 0,");
    ensure!(
        sent.lines()
            .skip_while(|l| !l.contains("netem"))
            .any(|l| dropped(&l)),
        "netem lost nothing, so it shows nothing: {sent}"
    );
    all_go(&site, &[&volume]).await?;
    site.nothing_left(0).await?;
    no_netem(site.node(0)).await?;
    site.passed()
}
