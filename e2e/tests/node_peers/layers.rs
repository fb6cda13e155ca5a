//! Something of somebody's lies above a volume's mapping while the agent crashes.

use anyhow::{Result, ensure};
use cryptvol_crds::conditions::Reason;
use cryptvol_e2e::node::Node;
use cryptvol_e2e::site::Site;
use cryptvol_e2e::volumes::Volume;

use super::ground::{SITE, all_go, attached_with, counted, counts, detach, has};

const TEXT: &str = "below a layer of somebody's";
/// What would be done over and over by who turns in circles.
const ROUND: [&str; 6] = ["login", "scan", "open", "link", "unlink", "close"];

/// A device of somebody's over a volume's mapping.
async fn stack(node: &Node, volume: &Volume) -> Result<()> {
    let create = format!(
        "set -e; dev=$(readlink -f {}); dmsetup create theirs --uuid THEIRS-1 --table \"0 $(blockdev --getsz $dev) linear $dev 0\"
         [ -b /dev/mapper/theirs ] || dmsetup mknodes",
        volume.link()
    );
    node.sh(&create).await?.ok().map(drop)
}

fn step(name: &str) -> String {
    format!("step_seconds_count{{step=\"{name}\"}}")
}

async fn steps(node: &Node) -> Result<Vec<u64>> {
    let mut all = Vec::new();
    for name in ROUND {
        all.push(counted(node, &step(name)).await?);
    }
    Ok(all)
}

/// What the API server has of the volume on its node, with everything that was ever written there.
async fn version(site: &Site, volume: &Volume) -> Result<Option<String>> {
    let found = volume.on_node(&site.plane, site.node(0).name()).await?;
    Ok(found.and_then(|nv| nv.metadata.resource_version))
}

/// Others take the mapping for free after a crash, cannot close it, and attach and detach the volume thousands of times a day. Ours stays as it
/// is with the user named, may be attached again, and goes on by itself once the layer is gone.
#[tokio::test]
async fn peer_failure_03_a_layer_above_the_mapping_is_named_and_nothing_turns_in_circles()
-> Result<()> {
    let mut site = SITE.take().await?;
    let (_, _, volume) = site.volume("layers").await?;
    volume.apply(&site.plane).await?;
    volume.wait_ready(&site.plane).await?;
    volume.write(site.node(0), TEXT).await?;
    stack(site.node(0), &volume).await?;

    // Killed when it was about to close.
    site.kill_agent(0).await?;
    volume.clone().detached().apply(&site.plane).await?;
    site.strike(0, "close:before:kill").await?;
    site.start_agent(0).await?;
    let said = volume.wait_reason(&site.plane, Reason::DeviceBusy).await?;
    ensure!(
        said.contains("stacked on it: dm-") && said.contains("(theirs)"),
        "{said}"
    );
    ensure!(said.contains(Reason::DeviceBusy.next_step()), "{said}");
    let node = site.node(0);
    let (before, told) = (steps(node).await?, version(&site, &volume).await?);
    counts(node, &step("close"), 3).await?;
    let after = steps(node).await?;
    ensure!(
        before[..5] == after[..5],
        "{ROUND:?}: {before:?}, then {after:?}"
    );
    ensure!(
        version(&site, &volume).await? == told,
        "it is written over and over"
    );
    let above = node
        .sh(&format!("head -c {} /dev/mapper/theirs", TEXT.len()))
        .await?
        .ok()?;
    ensure!(above == TEXT, "through the layer: {above:?}");

    // Wanted again: what is there is taken, and nothing is made anew.
    attached_with(&site, &volume, TEXT).await?;
    let node = site.node(0);
    let opened = counted(node, &step("open")).await?;
    ensure!(opened == before[2], "opened anew below a layer");
    volume.clone().detached().apply(&site.plane).await?;
    volume.wait_reason(&site.plane, Reason::DeviceBusy).await?;
    node.sh("dmsetup remove --retry theirs").await?.ok()?;
    volume.wait_detached(&site.plane).await?;
    site.nothing_left(0).await?;

    // The disk goes from under both while no agent runs: the mapping is dead, and not taken away from below the layer.
    attached_with(&site, &volume, TEXT).await?;
    stack(site.node(0), &volume).await?;
    site.kill_agent(0).await?;
    let node = site.node(0);
    node.sh("for s in /sys/class/iscsi_session/session*; do iscsiadm -m session -r ${s##*session} --logout; done")
        .await?
        .ok()?;
    site.start_agent(0).await?;
    let said = volume.wait_reason(&site.plane, Reason::DeviceBusy).await?;
    ensure!(said.contains("is broken"), "{said}");
    let node = site.node(0);
    node.sh("dmsetup remove --retry theirs").await?.ok()?;
    volume.wait_ready(&site.plane).await?;
    has(&site, &volume, TEXT).await?;
    detach(&site, &volume).await?;
    all_go(&site, &[&volume]).await?;
    site.nothing_left(0).await?;
    site.passed()
}
