//! A virtual machine on a node: what it writes on its disk is on the node's device, and the other way round.

use std::time::{Duration, Instant};

use anyhow::Result;
use cryptvol_e2e::array::Array;
use cryptvol_e2e::guest::Guest;
use cryptvol_e2e::node::{Node, NodeSpec};
use cryptvol_e2e::workdir::WorkDir;

const IQN: &str = "iqn.2026-11.dev.cryptvol:guest-0";
const MIB: u64 = 1 << 20;
/// A guest takes half a minute on a busy machine.
const LIMIT: Duration = Duration::from_secs(300);

#[tokio::test]
async fn a_guest_writes_and_reads_a_device_of_its_node() -> Result<()> {
    let image = Guest::locate()?;
    let work = WorkDir::new("guest")?;
    let mut array = Array::start(&work.dir("array")?).await?;
    array.create_target(IQN)?;
    let lun = array.create_lun(IQN, 1, 64 * MIB)?;
    let mut spec = NodeSpec::bare("node-1");
    spec.memory_mib = 1024;
    let node = Node::boot(&work.dir("node")?, spec).await?;
    let portal = array.portal();
    node.sh(&format!(
        "set -e; iscsiadm -m node -T {IQN} -p {portal} -o new >/dev/null; iscsiadm -m node -T {IQN} -p {portal} --login >&2
         for h in /sys/class/iscsi_host/host*; do echo '0 0 1' >/sys/class/scsi_host/${{h##*/}}/scan; done; udevadm settle -t 20"
    ))
    .await?
    .ok()?;
    // A link, as a volume's path is one.
    let link = format!("/dev/disk/by-path/ip-{portal}-iscsi-{IQN}-lun-1");
    lun.write_at(2 * MIB, b"from the node's side")?;

    let start = Instant::now();
    let printed = Guest::run(
        &node,
        &image,
        &link,
        r#"set -e
           printf 'written by a %s guest' "$(uname -m)" | dd of=/dev/vda bs=4096 seek=256 conv=fsync 2>/dev/null
           echo 3 >/proc/sys/vm/drop_caches
           dd if=/dev/vda bs=4096 skip=256 count=1 2>/dev/null | tr -d '\0'; echo
           dd if=/dev/vda bs=4096 skip=512 count=1 2>/dev/null | tr -d '\0'; echo
           cat /sys/block/vda/size; cut -d' ' -f1 /proc/uptime"#,
        LIMIT,
    )
    .await?;
    let lines: Vec<&str> = printed.lines().collect();
    eprintln!(
        "boot, script and halt of a guest with {}: {:.1} s; {} s on its own clock at the script's end",
        image.version,
        start.elapsed().as_secs_f32(),
        lines.get(3).unwrap_or(&"?")
    );
    let text = "written by a x86_64 guest";
    assert_eq!(
        lines.get(..3),
        Some(&[text, "from the node's side", "131072"][..]),
        "{printed}"
    );
    let on_the_node = node
        .sh(&format!(
            "dd if={link} bs=4096 skip=256 count=1 iflag=direct 2>/dev/null | tr -d '\\0'"
        ))
        .await?
        .ok()?;
    assert_eq!(on_the_node, text);
    assert_eq!(lun.read_at(MIB, text.len())?, text.as_bytes());

    // Failures are errors that say why.
    let error = Guest::run(&node, &image, &link, "echo no luck; exit 3", LIMIT)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("ended with 3") && error.contains("no luck"),
        "{error}"
    );
    let error = Guest::run(&node, &image, "/dev/not-there", "true", LIMIT)
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("/dev/not-there"), "{error}");
    let error = Guest::run(&node, &image, &link, "true", Duration::from_secs(3))
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("stopped after 3s"), "{error}");
    // Nothing of a stopped guest holds on to the disk.
    assert_ne!(node.sh("pgrep qemu-system").await?.code, 0);
    work.passed()
}
