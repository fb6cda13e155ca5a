//! A guest's volume group on the decrypted device: the node's LVM is not shown it.

use super::*;

#[tokio::test]
async fn peer_failure_09_the_guests_volume_group_is_not_taken_by_the_node() -> Result<()> {
    let mut ground = Ground::new("host-lvm").await?;
    ground.array.create_lun(IQN, 2, 64 * MIB)?;
    let device = ground.device().await?;
    let header = ground.format(&device, 512).await?;
    let mapping = ground.done(ground.open_call(&device, &header)).await?;
    ground.done(json!({"Link": [LINK, mapping]})).await?;
    let node = mapping["path"].as_str().context("path")?;
    // As a guest makes it, and a disk of the node's own with a volume group beside it.
    ground.done(ground.scan(2).await?).await?;
    let raw = ground
        .sh("for d in /dev/sd?; do [ -e /sys/class/block/${d#/dev/}/holders/dm-0 ] || echo $d; done")
        .await?;
    let raw = raw.trim();
    ground
        .sh(&format!(
            "set -e; mkdir -p /run/lvm /run/lock/lvm
             for vg in guest:{node} node:{raw}; do
               pvcreate -qq -y ${{vg#*:}}; vgcreate -qq ${{vg%:*}} ${{vg#*:}}; lvcreate -qq -y -l 4 -n root ${{vg%:*}}
             done
             mkfs.ext4 -q -L guest-root /dev/guest/root; vgchange -qq -an guest node; udevadm settle -t 50"
        ))
        .await?;
    for action in ["add", "change"] {
        ground
            .sh(&format!(
                "udevadm control --reload; udevadm trigger --action={action} --subsystem-match=block; udevadm settle -t 50"
            ))
            .await?;
        // What udev knows is what starts LVM on a node.
        let theirs = ground
            .sh(&format!("udevadm info -q property {raw}"))
            .await?;
        ensure!(
            theirs.contains("ID_FS_TYPE=LVM2_member"),
            "the node's own disk: {theirs}"
        );
        let guests = ground
            .sh(&format!("udevadm info -q property {node}"))
            .await?;
        ensure!(
            !guests.contains("LVM") && !guests.contains("ID_FS_"),
            "{guests}"
        );
        let mappings = ground.sh("dmsetup ls").await?;
        ensure!(!mappings.contains("guest"), "{mappings}");
    }
    // The node's LVM has activated by itself what udev showed it, and nothing holds the guest's device.
    let mappings = ground.sh("dmsetup ls").await?;
    ensure!(
        mappings.contains("node-root"),
        "the node's LVM takes nothing by itself, so this shows nothing: {mappings}"
    );
    let holders = ground
        .sh(&format!("ls /sys/class/block/{}/holders", &node[5..]))
        .await?;
    ensure!(holders.is_empty(), "{holders}");
    let links = ground
        .sh(&format!("find /dev/disk -lname '*/{}'", &node[5..]))
        .await?;
    ensure!(links.is_empty(), "{links}");
    ground
        .sh(&format!(
            "set -e; udevadm settle -t 50; vgchange -qq -an node; vgremove -qq -ff -y node; pvremove -qq -ff -y {raw}; udevadm settle -t 50"
        ))
        .await?;
    ground.done(json!({"DeleteDevice": {
        "path": raw, "dev": ground.sh(&format!("cat /sys/class/block/{}/dev", &raw[5..])).await?.trim(),
        "kind": {"Lun": {"hctl": ground.sh(&format!("basename $(readlink -f /sys/class/block/{}/device)", &raw[5..])).await?.trim()}},
        "wwid": null, "size_bytes": 0,
    }})).await?;
    ground.detach(&device).await?;
    ground.work.passed()
}
