//! The harness proved: nodes, array and capture do what their names say. Everything above stands on this.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use cryptvol_e2e::array::Array;
use cryptvol_e2e::capture::Capture;
use cryptvol_e2e::node::{Node, NodeSpec};
use cryptvol_e2e::process::wait_for;
use cryptvol_e2e::workdir::WorkDir;

const IQN: &str = "iqn.2026-11.dev.cryptvol:db-0";
const MIB: u64 = 1 << 20;

/// Logs in and scans LUN 1 exactly; the device's path.
async fn log_in(node: &Node, array: &Array) -> Result<String> {
    let portal = array.portal();
    node.sh(&format!(
        "set -e; iscsiadm -m node -T {IQN} -p {portal} -o new >/dev/null; iscsiadm -m node -T {IQN} -p {portal} --login >&2
         for h in /sys/class/iscsi_host/host*; do echo '0 0 1' >/sys/class/scsi_host/${{h##*/}}/scan; done; udevadm settle -t 20
         readlink -e /dev/disk/by-path/ip-{portal}-iscsi-{IQN}-lun-1"
    ))
    .await?
    .ok()
    .map(|path| path.trim().to_owned())
}

async fn read_first(node: &Node, device: &str) -> Result<String> {
    // Past the page cache, so that the array is asked.
    node.sh(&format!(
        "dd if={device} bs=4096 count=1 iflag=direct 2>/dev/null | tr -d '\\0' | head -c 64"
    ))
    .await?
    .ok()
}

#[tokio::test]
async fn a_power_cut_leaves_the_array_and_nothing_else() -> Result<()> {
    let work = WorkDir::new("power-cut")?;
    let mut array = Array::start(&work.dir("array")?).await?;
    array.create_target(IQN)?;
    let lun = array.create_lun(IQN, 1, 64 * MIB)?;
    let mut capture = Capture::start(work.path(), "iscsi", &array.interface()).await?;
    let start = Instant::now();
    let mut node = Node::boot(&work.dir("node")?, NodeSpec::bare("node-1")).await?;
    eprintln!("booted in {:.1} s", start.elapsed().as_secs_f32());

    let device = log_in(&node, &array).await?;
    assert_eq!(array.initiators(IQN)?, [node.initiator()]);
    let text = b"seen by whoever listens";
    node.exec_with(
        &["dd", &format!("of={device}"), "conv=fsync"],
        &[],
        text,
        Duration::from_secs(30),
    )
    .await?
    .ok()?;
    node.put("/etc/left-behind", 0o600, b"x").await?;
    let agent = node
        .spawn("agent", &["sh", "-c", "echo started; exec sleep 1000"], &[])
        .await?;
    assert_eq!(agent.exit_code().await?, None);
    wait_for(
        "the log",
        Duration::from_secs(10),
        || async { Ok((node.log("agent") == "started\n").then_some(())) },
        String::new,
    )
    .await?;
    agent.signal("SIGKILL").await?;
    assert_eq!(agent.wait(Duration::from_secs(10)).await?, 137);

    node.power_cut().await?;
    assert!(!node.is_running());
    assert!(node.sh("true").await.is_err());
    assert_eq!(lun.read_at(0, text.len())?, text);
    node.start().await?;
    assert_eq!(node.boots(), 2);
    assert_eq!(node.log("agent"), "started\n");
    assert_ne!(node.sh("test -e /etc/left-behind").await?.code, 0);
    assert_eq!(
        node.sh("iscsiadm -m session").await?.code,
        21,
        "no session comes back by itself"
    );
    let device = log_in(&node, &array).await?;
    assert_eq!(read_first(&node, &device).await?.as_bytes(), text);

    // The capture finds what went over the cable, and does not find what did not.
    capture.stop().await?;
    let search = capture.search(text)?;
    assert!(search.found, "{search:?}");
    assert!(!capture.search(b"never written anywhere")?.found);
    work.passed()
}

#[tokio::test]
async fn an_array_swaps_loses_and_fails_disks_and_asks_for_passwords() -> Result<()> {
    let work = WorkDir::new("array")?;
    let mut array = Array::start(&work.dir("array")?).await?;
    array.create_target(IQN)?;
    let lun = array.create_lun(IQN, 1, 64 * MIB)?;
    lun.write_at(0, b"disk a")?;
    let node = Node::boot(&work.dir("node")?, NodeSpec::bare("node-1")).await?;
    let device = log_in(&node, &array).await?;
    assert_eq!(read_first(&node, &device).await?, "disk a");
    let names = node
        .sh(&format!("cat /sys/block/{0}/device/wwid; udevadm info -q property --property ID_SCSI_SERIAL --value {device}", &device[5..]))
        .await?
        .ok()?;
    assert_eq!(
        names.lines().collect::<Vec<_>>(),
        [lun.wwid().as_str(), &lun.serial]
    );

    let other = array.spare(64 * MIB)?;
    other.write_at(0, b"disk b")?;
    array.swap_lun(IQN, 1, &other)?;
    assert_eq!(read_first(&node, &device).await?, "disk b");
    array.swap_lun(IQN, 1, &lun)?;
    let before = lun.sha256()?;

    let good = array.read_as_zeros(IQN, 1)?;
    assert_eq!(read_first(&node, &device).await?, "");
    array.swap_lun(IQN, 1, &good)?;
    assert_eq!(read_first(&node, &device).await?, "disk a");

    let good = array.fail_reads(IQN, 1)?;
    let failed = node
        .sh(&format!(
            "dd if={device} of=/dev/null bs=4096 count=1 iflag=direct"
        ))
        .await?;
    assert!(failed.stderr.contains("No data available"), "{failed:?}");
    array.swap_lun(IQN, 1, &good)?;
    assert_eq!(read_first(&node, &device).await?, "disk a");
    assert_eq!(lun.sha256()?, before);

    // A restart of the array keeps disks; the initiator comes back by itself.
    array.power_off()?;
    array.power_on().await?;
    assert_eq!(
        read_first(&node, &device)
            .await
            .context("after the array's restart")?,
        "disk a"
    );

    node.sh("iscsiadm -m node --logout").await?.ok()?;
    array.set_chap(IQN, "node", "correct horse 12")?;
    assert_ne!(
        node.sh("iscsiadm -m node --login").await?.code,
        0,
        "a login without the password"
    );
    let set = |key: &str, value: &str| {
        format!("iscsiadm -m node -T {IQN} -o update -n node.session.auth.{key} -v '{value}'")
    };
    node.sh(&[
        set("authmethod", "CHAP"),
        set("username", "node"),
        set("password", "correct horse 12"),
    ]
    .join(" && "))
        .await?
        .ok()?;
    node.sh("iscsiadm -m node --login").await?.ok()?;
    node.sh("iscsiadm -m node --logout").await?.ok()?;
    array.set_chap(IQN, "node", "another horse 34")?;
    assert_ne!(
        node.sh("iscsiadm -m node --login").await?.code,
        0,
        "a login with the former password"
    );
    work.passed()
}

#[tokio::test]
async fn an_array_that_hangs_or_is_cut_off_is_waited_for() -> Result<()> {
    let work = WorkDir::new("hang")?;
    let mut array = Array::start(&work.dir("array")?).await?;
    array.create_target(IQN)?;
    array.create_lun(IQN, 1, 64 * MIB)?;
    let node = Node::boot(&work.dir("node")?, NodeSpec::bare("node-1")).await?;
    let device = log_in(&node, &array).await?;
    let input = format!("if={device}");
    let read = [
        "dd",
        &input,
        "of=/dev/null",
        "bs=4096",
        "count=1",
        "iflag=direct",
    ];
    let begin = async || {
        let dd = node.spawn("dd", &read, &[]).await?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        anyhow::ensure!(dd.exit_code().await?.is_none(), "the read was answered");
        anyhow::Ok(dd)
    };
    let limit = Duration::from_secs(120);

    array.hang(true)?;
    let dd = begin().await?;
    array.hang(false)?;
    assert_eq!(
        dd.wait(limit).await?,
        0,
        "after the hang: {}",
        node.log("dd")
    );

    array.unplug(true)?;
    let dd = begin().await?;
    array.unplug(false)?;
    assert_eq!(
        dd.wait(limit).await?,
        0,
        "after the cable: {}",
        node.log("dd")
    );

    // With the node's own cable pulled not even the harness gets through.
    node.unplug(true)?;
    let cut = node
        .exec_with(&["true"], &[], b"", Duration::from_millis(10))
        .await;
    assert!(cut.is_err(), "{cut:?}");
    node.unplug(false)?;
    node.sh("true").await?.ok()?;

    // Both portals lead to the same target; without the target there is no login.
    for portal in array.portals() {
        let found = node
            .sh(&format!("iscsiadm -m discovery -t st -p {portal}"))
            .await?
            .ok()?;
        assert!(found.contains(IQN), "{found}");
    }
    array.remove_target(IQN)?;
    assert_eq!(
        node.sh(&format!(
            "iscsiadm -m discovery -t st -p {}",
            array.portal()
        ))
        .await?
        .stdout,
        ""
    );
    work.passed()
}

#[tokio::test]
async fn an_array_can_be_on_the_loopback() -> Result<()> {
    let work = WorkDir::new("loopback")?;
    let mut array = Array::start_on_loopback(&work.dir("array")?).await?;
    array.create_target(IQN)?;
    let lun = array.create_lun(IQN, 1, MIB)?;
    assert_eq!(lun.size()?, MIB);
    assert!(
        array.portal().starts_with("127.0.0.1:"),
        "{}",
        array.portal()
    );
    tokio::net::TcpStream::connect(array.portal()).await?;
    assert!(array.unplug(true).is_err());
    work.passed()
}

#[tokio::test]
async fn a_node_can_lack_what_a_hypervisor_needs() -> Result<()> {
    let work = WorkDir::new("unfit")?;
    let spec = NodeSpec::bare("unfit")
        .without_device_mapper()
        .without_iscsi()
        .without_udev();
    let node = Node::boot(&work.dir("node")?, spec).await?;
    let seen = node
        .sh("modprobe dm_crypt; modprobe iscsi_tcp; ls -d /sys/class/iscsi_transport/tcp /run/udev/control; grep device-mapper /proc/misc; true")
        .await?;
    assert_eq!(seen.stdout, "", "{seen:?}");
    work.passed()
}
