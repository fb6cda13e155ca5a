//! Names of udev's that a volume shadows, on a real kernel with a real udev: whatever comes, a name leads to the mapping or nowhere.

use anyhow::{Result, ensure};
use cryptvol_crds::conditions::Reason;
use cryptvol_e2e::array;
use cryptvol_e2e::node::Node;
use cryptvol_e2e::site::{Site, SiteSpec};
use cryptvol_e2e::workdir::WorkDir;
use serde_json::json;

/// Events on raw disk and mapping, in all.
const EVENTS: usize = 1000;

async fn sh(node: &Node, script: &str) -> Result<String> {
    Ok(node.sh(script).await?.ok()?.trim().to_owned())
}

/// Where a link leads, or `nowhere`. Waits until udev is done with what has happened.
async fn leads(node: &Node, name: &str) -> Result<String> {
    sh(
        node,
        &format!("udevadm settle -t 50; test -e {name} && readlink -f {name} || echo nowhere"),
    )
    .await
}

/// Looks at the links without pause, from within one process: each line that it writes is a moment in which one led astray.
async fn watch(node: &Node, name: &str, link: &str) -> Result<cryptvol_e2e::node::Spawned> {
    let script = format!(
        "rm -f /run/stop /run/pipe; mkfifo /run/pipe; exec 9<>/run/pipe; looks=0
         while [ ! -e /run/stop ]; do
           for raw in /dev/sd?; do
             [ {name} -ef $raw ] && echo \"the name leads to $raw\"
             [ {link} -ef $raw ] && echo \"the link leads to $raw\"
           done
           [ -e {link} ] || echo 'the link is gone'
           looks=$((looks+1)); read -rt 0.01 -u 9
         done
         echo looks $looks"
    );
    node.spawn("watch", &["bash", "-c", &script], &[]).await
}

/// What an upgrade of udev's package does: the daemon is told to end, ended by force if it does not within a time (as a service
/// manager would; what it was doing then stands in the node's console), and started anew.
async fn replace_udevd(node: &Node) -> Result<()> {
    let script = "timeout 30 udevadm control --exit || echo 'udevd did not answer' >/dev/console
         for _ in $(seq 300); do pidof systemd-udevd >/dev/null || break; sleep .1; done
         for pid in $(pidof systemd-udevd) $(pidof '(udev-worker)'); do
           { echo \"udevd did not end: $pid\"; grep -E '^(Name|State|PPid)' /proc/$pid/status; cat /proc/$pid/wchan /proc/$pid/stack
           } >/dev/console 2>&1; kill -KILL $pid; done
         set -e; $(command -v /usr/lib/systemd/systemd-udevd || command -v /lib/systemd/systemd-udevd) --daemon
         udevadm trigger --action=add --subsystem-match=block; udevadm settle -t 50";
    sh(node, script).await?;
    Ok(())
}

#[tokio::test]
async fn a_shadowed_name_leads_to_the_mapping_and_after_detach_nowhere() -> Result<()> {
    let work = WorkDir::new("names")?;
    let mut site = Site::start(&work, SiteSpec::new(1)).await?;
    let (_, lun, volume) = site.volume("names").await?;
    let iqn = array::iqn("names");
    let portal = site.array.portal();
    let name = format!("/dev/disk/by-path/ip-{portal}-iscsi-{iqn}-lun-1");
    let link = volume.link();

    // The name of another LUN of the same target is refused, by the agent at the latest.
    let other = volume
        .clone()
        .with("link", json!({"shadow": name.replace("-lun-1", "-lun-2")}));
    other.apply(&site.plane).await?;
    let message = other.wait_reason(&site.plane, Reason::StepFailed).await?;
    ensure!(message.contains("shadow"), "{message}");
    other.delete(&site.plane).await?;
    other.wait_gone(&site.plane).await?;

    let volume = volume.with("link", json!({"shadow": name}));
    volume.apply(&site.plane).await?;
    volume.wait_ready(&site.plane).await?;
    let node = site.node(0);
    let mapping = sh(node, &format!("readlink -f {link}")).await?;
    ensure!(
        mapping.starts_with("/dev/dm-"),
        "the link leads to {mapping}"
    );
    ensure!(
        leads(node, &name).await? == mapping,
        "the name does not lead to the mapping"
    );
    let raw = sh(
        node,
        &format!("ls /sys/class/block/{}/slaves", &mapping[5..]),
    )
    .await?;
    // No other name leads there either.
    let names = format!("find /dev/disk -lname '*/{raw}'");
    ensure!(
        sh(node, &names).await?.is_empty(),
        "{}",
        sh(node, &names).await?
    );
    sh(
        node,
        &format!("printf 'through the name' | dd of={name} conv=fsync status=none"),
    )
    .await?;
    ensure!(
        !lun.contains(b"through the name")?,
        "plaintext on the array"
    );

    // Events on disk and mapping.
    let watcher = watch(node, &name, &link).await?;
    for _ in 0..10 {
        sh(
            node,
            &format!(
                "for i in $(seq {}); do echo change >/sys/class/block/{raw}/uevent
                   echo change >/sys/class/block/{}/uevent; done; udevadm settle -t 50",
                EVENTS / 20,
                &mapping[5..]
            ),
        )
        .await?;
    }
    // What upgrades of packages do, udev's own included.
    sh(
        node,
        "udevadm control --reload; udevadm trigger --type=subsystems --action=add; udevadm trigger --type=devices --action=add \
         --subsystem-match=block; udevadm trigger --action=change; udevadm settle -t 50",
    )
    .await?;
    replace_udevd(node).await?;
    // The raw disk opened for writing and closed, a rescan, and a neighbour's login to another target and to ours.
    let neighbour = array::iqn("neighbour");
    site.array.create_target(&neighbour)?;
    site.array.create_lun(&neighbour, 1, 16 << 20)?;
    let second = site.array.portals()[1].clone();
    let node = site.node(0);
    sh(
        node,
        &format!(
            "set -e; : <>/dev/{raw}; iscsiadm -m session --rescan
             login() {{ iscsiadm -m node -T $1 -p $2 -o new; iscsiadm -m node -T $1 -p $2 --login; }}
             login {neighbour} {portal}; login {iqn} {second}
             iscsiadm -m session --rescan; udevadm settle -t 50"
        ),
    )
    .await?;
    ensure!(leads(node, &name).await? == mapping, "the name was lost");
    ensure!(sh(node, &format!("readlink {link}")).await? == mapping);
    sh(node, "touch /run/stop").await?;
    watcher.wait(std::time::Duration::from_secs(60)).await?;
    let seen = node.log("watch");
    ensure!(
        seen.lines().count() == 1 && seen.starts_with("looks "),
        "seen: {seen}"
    );
    // The neighbour leaves our target; the other one stays.
    sh(
        node,
        &format!("iscsiadm -m node -T {iqn} -p {second} --logout"),
    )
    .await?;

    // A mapping that is made anew by a restarted agent, and a power cut: the name is there again.
    site.power_cycle(0).await?;
    volume.wait_ready(&site.plane).await?;
    let node = site.node(0);
    let read = format!(
        "for i in $(seq 600); do test -e {name} && exec head -c 16 {name}; sleep .1; done; exit 1"
    );
    ensure!(
        sh(node, &read).await? == "through the name",
        "after the power cut"
    );

    // Detached: it leads nowhere, and a neighbour's scan that brings the raw disk does not change that.
    volume.clone().detached().apply(&site.plane).await?;
    volume.wait_detached(&site.plane).await?;
    let node = site.node(0);
    ensure!(leads(node, &name).await? == "nowhere", "after detach");
    let login = format!(
        "set -e; iscsiadm -m node -T {iqn} -p {portal} -o new; iscsiadm -m node -T {iqn} -p {portal} --login
         iscsiadm -m session --rescan; udevadm settle -t 50; ls /dev/sd?"
    );
    ensure!(
        !sh(node, &login).await?.is_empty(),
        "the neighbour has no disk"
    );
    sh(
        node,
        "udevadm trigger --action=change --subsystem-match=block",
    )
    .await?;
    ensure!(
        leads(node, &name).await? == "nowhere",
        "the raw disk has the name"
    );

    // Deleted while attached: the name is udev's again.
    volume.apply(&site.plane).await?;
    volume.wait_ready(&site.plane).await?;
    let node = site.node(0);
    ensure!(leads(node, &name).await?.starts_with("/dev/dm-"));
    volume.delete(&site.plane).await?;
    volume.wait_gone(&site.plane).await?;
    // The session went with its last disk.
    sh(
        node,
        &format!("iscsiadm -m node -T {iqn} -p {portal} --login && iscsiadm -m session --rescan"),
    )
    .await?;
    ensure!(
        leads(node, &name).await?.starts_with("/dev/sd"),
        "udev does not get the name back"
    );
    work.passed()
}
