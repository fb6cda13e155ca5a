//! Something that a step needs does not answer, or has no room: it holds the volumes that need it, and says so.

use anyhow::{Result, ensure};
use cryptvol_crds::conditions::Reason;
use cryptvol_e2e::array;
use cryptvol_e2e::node::{Node, Spawned};
use cryptvol_e2e::process::wait_for;
use cryptvol_e2e::site::Site;
use cryptvol_e2e::volumes::{PATIENCE, Volume};
use serde_json::json;

use super::ground::{LocalDisk, SITE, all_go, attached_with, detach, has, stops, used};

const TEXT: &str = "goes on beside it";

/// A read that the kernel never ends takes the only place there is to work, and cannot be killed. Others report that the whole agent
/// hangs then. Ours holds that volume and says so; its neighbour goes on, and so does the volume once the read ends.
#[tokio::test]
async fn peer_failure_13_a_read_that_is_stuck_in_the_kernel_holds_one_volume() -> Result<()> {
    let mut site = SITE.take().await?;
    site.kill_agent(0).await?;
    site.launch_agent(0, &["--parallel-steps", "1"]).await?;
    let (_, _, neighbour) = site.volume("stuck").await?;
    let node = site.node(0);
    let disk = LocalDisk::make(node, "stuck-disk").await?;
    let stuck = disk.volume("stuck", node);
    node.sh("udevadm settle -t 50; dmsetup suspend stuck-disk")
        .await?
        .ok()?;
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
    neighbour.write(site.node(0), TEXT).await?;
    let said = stuck
        .wait_reason(&site.plane, Reason::DeadlineExceeded)
        .await?;
    ensure!(said.contains("hangs in the kernel"), "{said}");
    // The neighbour comes and goes as it likes meanwhile.
    detach(&site, &neighbour).await?;
    attached_with(&site, &neighbour, TEXT).await?;

    site.node(0).sh("dmsetup resume stuck-disk").await?.ok()?;
    stuck.wait_ready(&site.plane).await?;
    all_go(&site, &[&stuck, &neighbour]).await?;
    disk.remove(site.node(0)).await?;
    site.nothing_left(0).await?;
    site.kill_agent(0).await?;
    site.start_agent(0).await?;
    site.passed()
}

/// Volumes of one tenant around an iscsid that is stopped.
struct Around {
    /// Attached before, with a session.
    stays: Volume,
    /// On the same target as that.
    joins: Volume,
    /// Attached before, and to go, the last of its target.
    leaves: Volume,
    /// On a target without a session.
    comes: Volume,
}

impl Around {
    async fn make(site: &mut Site) -> Result<Self> {
        let (_, _, stays) = site.volume("stopped").await?;
        let iqn = array::iqn("stopped");
        site.array.create_lun(&iqn, 2, 32 << 20)?;
        let other = |name: &str, lun: u16, target: &str| {
            let (iqn, portal) = (array::iqn(target), site.array.portal());
            Volume::iscsi("stopped", name, &portal, &iqn, lun, "stopped").on("node-1")
        };
        let around = Self {
            joins: other("joins", 2, "stopped"),
            leaves: other("leaves", 1, "stopped-leaves"),
            comes: other("comes", 1, "stopped-comes"),
            stays,
        };
        for target in ["stopped-leaves", "stopped-comes"] {
            site.array.create_target(&array::iqn(target))?;
            site.array.create_lun(&array::iqn(target), 1, 32 << 20)?;
        }
        Ok(around)
    }
}

/// iscsid is stopped, and a disk answers later than anybody waits (dm-delay): who needs one of them says so in a sentence, with nothing half
/// done; who does not comes, stays and goes meanwhile. When they answer again everything goes on by itself.
#[tokio::test]
async fn peer_failure_13_a_stopped_iscsid_and_a_slow_disk_hold_only_who_needs_them() -> Result<()> {
    let mut site = SITE.take().await?;
    let around = Around::make(&mut site).await?;
    let Around {
        stays,
        joins,
        leaves,
        comes,
    } = &around;
    let node = site.node(0);
    let (slow, local) = (
        LocalDisk::make(node, "slow").await?,
        LocalDisk::make(node, "local").await?,
    );
    let (late, here) = (slow.volume("stopped", node), local.volume("stopped", node));
    for volume in [stays, leaves] {
        volume.apply(&site.plane).await?;
    }
    used(&site, &late, TEXT).await?;
    for volume in [stays, leaves] {
        volume.wait_ready(&site.plane).await?;
        volume.write(node, TEXT).await?;
    }
    let sum = slow.sum(node).await?;

    node.sh("kill -STOP $(pidof iscsid)").await?.ok()?;
    slow.becomes(node, &slow.all("delay", "600000")).await?;
    comes.apply(&site.plane).await?;
    leaves.clone().detached().apply(&site.plane).await?;
    late.apply(&site.plane).await?;
    for volume in [joins, &here] {
        volume.apply(&site.plane).await?;
        volume.wait_ready(&site.plane).await?;
        volume.write(node, TEXT).await?;
        detach(&site, volume).await?;
    }
    stays.write(node, TEXT).await?;

    let said = stops(&site, comes, Reason::DeadlineExceeded).await?;
    ensure!(said.contains("iscsid did not answer within"), "{said}");
    let said = stops(&site, leaves, Reason::DeadlineExceeded).await?;
    ensure!(said.contains("iscsid did not answer within"), "{said}");
    let said = stops(&site, &late, Reason::DeadlineExceeded).await?;
    // At once, and whenever it looks again.
    ensure!(
        said.contains("read the header") && said.contains("hangs in the kernel"),
        "{said}"
    );
    ensure!(slow.sum(node).await? == sum, "the slow disk was written");
    has(&site, stays, TEXT).await?;

    // Waiting reads end with the change of the table.
    slow.becomes(node, &slow.good()).await?;
    node.sh("kill -CONT $(pidof iscsid)").await?.ok()?;
    for volume in [comes, &late] {
        volume.wait_ready(&site.plane).await?;
    }
    has(&site, &late, TEXT).await?;
    leaves.wait_detached(&site.plane).await?;
    attached_with(&site, leaves, TEXT).await?;

    all_go(&site, &[stays, joins, leaves, comes, &late, &here]).await?;
    for disk in [slow, local] {
        disk.remove(site.node(0)).await?;
    }
    site.nothing_left(0).await?;
    site.passed()
}

/// Takes all room in `/run`, and from then on whatever becomes free: udev, which keeps its database there, frees some with each device that
/// goes.
async fn fill_run(node: &Node) -> Result<Spawned> {
    let limit = "set -e; udevadm settle -t 50
                 mount -o remount,size=$(($(df --output=used -k /run | tail -n 1) + 4))k /run";
    node.sh(limit).await?.ok()?;
    let fill = "while :; do printf '%4096s' '' 2>/dev/null >>/run/filler || sleep 0.02; done";
    let filler = node.spawn("filler", &["bash", "-c", fill], &[]).await?;
    let full = "[ $(df --output=avail -k /run | tail -n 1) = 0 ]";
    wait_for(
        "a full /run",
        PATIENCE,
        || async { Ok((node.sh(full).await?.code == 0).then_some(())) },
        String::new,
    )
    .await?;
    Ok(filler)
}

async fn free_run(node: &Node, filler: &Spawned) -> Result<()> {
    filler.signal("SIGKILL").await?;
    filler.wait(PATIENCE).await?;
    let free = "rm /run/filler && mount -o remount,size=50% /run";
    node.sh(free).await?.ok().map(drop)
}

/// `/run` has no room: udev cannot be told a name, and who wants one says so with the cause. Nothing is half done, whoever wants no name goes on,
/// and with room again so does it.
#[tokio::test]
async fn peer_failure_13_a_full_run_holds_who_must_write_there() -> Result<()> {
    let mut site = SITE.take().await?;
    let (_, _, volume) = site.volume("full").await?;
    let iqn = array::iqn("full");
    site.array.create_lun(&iqn, 2, 32 << 20)?;
    let name = format!(
        "/dev/disk/by-path/ip-{}-iscsi-{iqn}-lun-1",
        site.array.portal()
    );
    let shadowing = volume.clone().with("link", json!({"shadow": name}));
    let mut plain = volume.with_iscsi("lun", json!(2));
    plain.name = "plain".into();
    plain.manifest["metadata"]["name"] = json!("plain");
    used(&site, &shadowing, TEXT).await?;

    let node = site.node(0);
    let filler = fill_run(node).await?;
    shadowing.apply(&site.plane).await?;
    let said = shadowing
        .wait_reason(&site.plane, Reason::StepFailed)
        .await?;
    ensure!(
        said.contains(&name) && said.contains("No space left on device"),
        "{said}"
    );
    ensure!(said.contains(Reason::StepFailed.next_step()), "{said}");
    plain.apply(&site.plane).await?;
    plain.wait_ready(&site.plane).await?;
    plain.write(node, TEXT).await?;
    detach(&site, &plain).await?;

    // Not the raw disk has the name, as long as nobody was told.
    let leads = format!("readlink -f {name} || true");
    let found = node.sh(&leads).await?.ok()?;
    ensure!(!found.contains("/dev/dm-"), "{name} leads to {found}");
    free_run(node, &filler).await?;
    shadowing.wait_ready(&site.plane).await?;
    has(&site, &shadowing, TEXT).await?;
    let found = node.sh(&leads).await?.ok()?;
    let mapping = node
        .sh(&format!("readlink -f {}", shadowing.link()))
        .await?
        .ok()?;
    ensure!(found == mapping, "{name} leads to {found}, not {mapping}");

    // Full again on the way down, which needs none of it.
    let filler = fill_run(node).await?;
    detach(&site, &shadowing).await?;
    let found = node.sh(&leads).await?.ok()?;
    ensure!(
        !found.contains("/dev/dm-") && !found.contains("/dev/sd"),
        "{name} leads to {found}"
    );
    free_run(node, &filler).await?;
    attached_with(&site, &shadowing, TEXT).await?;
    all_go(&site, &[&shadowing, &plain]).await?;
    site.nothing_left(0).await?;
    site.passed()
}
