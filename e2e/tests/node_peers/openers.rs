//! Somebody has a volume's raw disk open, past its mapping. The kernel would take the disk away from under them without a word.

use anyhow::{Result, ensure};
use cryptvol_crds::conditions::Reason;
use cryptvol_e2e::array::iqn;
use cryptvol_e2e::node::Node;
use cryptvol_e2e::volumes::Volume;
use serde_json::json;

use super::ground::{SITE, all_go, attached_with};

const TEXT: &str = "read by somebody";

/// The raw disk of an attached volume.
async fn raw_disk(node: &Node, volume: &Volume) -> Result<String> {
    let find = format!(
        "ls /sys/class/block/$(basename $(readlink -f {}))/slaves",
        volume.link()
    );
    Ok(format!("/dev/{}", node.sh(&find).await?.ok()?.trim()))
}

#[tokio::test]
async fn peer_failure_08_a_raw_disk_that_somebody_has_open_is_not_taken_away() -> Result<()> {
    let mut site = SITE.take().await?;
    let (_, _, volume) = site.volume("openers").await?;
    let name = format!(
        "/dev/disk/by-path/ip-{}-iscsi-{}-lun-1",
        site.array.portal(),
        iqn("openers")
    );
    let volume = volume.with("link", json!({"shadow": name}));
    volume.apply(&site.plane).await?;
    volume.wait_ready(&site.plane).await?;
    let node = site.node(0);
    volume.write(node, TEXT).await?;

    // A process that reads it, and a loop device over it, which no process has open.
    let reads = "setsid sleep 3600 <RAW >/dev/null 2>&1 & echo $!";
    let over = "losetup --find --show --read-only RAW";
    for (begin, end) in [(reads, "kill "), (over, "losetup -d ")] {
        let raw = raw_disk(node, &volume).await?;
        let begun = node.sh(&begin.replace("RAW", &raw)).await?.ok()?;
        let who = begun.trim();
        volume.clone().detached().apply(&site.plane).await?;
        let said = volume.wait_reason(&site.plane, Reason::DeviceBusy).await?;
        let named = match who.strip_prefix("/dev/") {
            Some(device) => format!("the loop device {device}"),
            None => format!("sleep (pid {who})"),
        };
        ensure!(said.contains(&named) && said.contains(&raw), "{said}");
        ensure!(said.contains(Reason::DeviceBusy.next_step()), "{said}");
        let there = format!(
            "udevadm settle -t 50; [ -b {raw} ] && [ ! -e {name} ] && [ ! -e {} ] && dd if={raw} of=/dev/null bs=4096 count=1 iflag=direct",
            volume.link()
        );
        node.sh(&there).await?.ok()?;
        node.sh(&format!("{end}{who}")).await?.ok()?;
        volume.wait_detached(&site.plane).await?;
        site.nothing_left(0).await?;
        attached_with(&site, &volume, TEXT).await?;
    }
    all_go(&site, &[&volume]).await?;
    site.nothing_left(0).await?;
    site.passed()
}
