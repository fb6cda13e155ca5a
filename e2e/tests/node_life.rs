//! The life of a volume on a real kernel: attach, use, power cuts, the agent killed before and after every step, detach, erase.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cryptvol_crds::conditions::Reason;
use cryptvol_crds::names;
use cryptvol_e2e::array::Lun;
use cryptvol_e2e::keystone::Tenant;
use cryptvol_e2e::node::Node;
use cryptvol_e2e::process::wait_for;
use cryptvol_e2e::search::{self, Needles};
use cryptvol_e2e::site::{AGENT_LOG, Site, SiteSpec};
use cryptvol_e2e::volumes::{Volume, node_volumes};
use cryptvol_e2e::workdir::WorkDir;
use serde_json::json;

const MIB: u64 = 1 << 20;

/// As [`Site::volume`], erased when it is deleted.
async fn prepare(site: &mut Site, name: &str) -> Result<(Tenant, Lun, Volume)> {
    let (tenant, lun, volume) = site.volume(name).await?;
    Ok((tenant, lun, volume.with("deletionPolicy", json!("Erase"))))
}

/// Writes down what udev's rules made of each event of a block device.
const MONITOR: &str = "setsid udevadm monitor --udev --property --subsystem-match=block >/run/events 2>&1 </dev/null &
    echo $! >/run/events.pid; for i in $(seq 300); do grep -q '^UDEV' /run/events && exit; sleep .1; done; exit 1";

/// udev left the mapping alone as its event says, and started no process to read that or to tell that nobody waits: the rules for both go
/// by the cookie. Who waits with a cookie of his own is still told.
async fn udev_was_told_without_a_process(node: &Node) -> Result<()> {
    let events = node
        .sh("udevadm settle -t 50; kill $(cat /run/events.pid); cat /run/events")
        .await?
        .ok()?;
    let ours: Vec<&str> = events
        .split("\n\n")
        .filter(|e| e.contains("\nACTION=change\n") && e.contains("\nDM_UUID=CRYPTVOL-"))
        .collect();
    ensure!(!ours.is_empty(), "no event of the mapping: {events}");
    for event in ours {
        for flag in ["SUBSYSTEM", "DISK", "OTHER"] {
            let flag = format!("\nDM_UDEV_DISABLE_{flag}_RULES_FLAG=1\n");
            ensure!(event.contains(&flag), "no{flag}in {event}");
        }
        ensure!(!event.contains("\nDM_COOKIE="), "with a cookie: {event}");
        ensure!(event.contains("/dev/mapper/cryptvol-"), "no name: {event}");
    }
    node.sh(
        "name=$(dmsetup ls | grep -o '^cryptvol-[^[:space:]]*'); timeout 60 dmsetup suspend $name && timeout 60 dmsetup resume $name
         rc=$?; udevadm settle -t 50; dmsetup udevcookies | grep 0x && exit 9; test -e /dev/mapper/$name && exit $rc",
    )
    .await?
    .ok()
    .context("suspended and resumed with a cookie of the tool's")?;
    Ok(())
}

#[tokio::test]
async fn peer_failure_10_a_volume_lives_through_power_cuts_moves_and_ends_erased() -> Result<()> {
    let work = WorkDir::new("life")?;
    let mut site = Site::start(
        &work,
        SiteSpec {
            operators: 2,
            ..SiteSpec::new(2)
        },
    )
    .await?;
    let (tenant, lun, volume) = prepare(&mut site, "life").await?;
    volume.apply(&site.plane).await?;
    let ready = volume.wait_ready(&site.plane).await?;
    let status = ready.status.context("a status")?;
    let key = status.key.context("a key")?;
    ensure!(
        status.usable_bytes == Some((48 * MIB) as i64),
        "usable size: {:?}",
        status.usable_bytes
    );

    volume.write(site.node(0), "written before the cut").await?;
    ensure!(
        !lun.contains(b"written before the cut")?,
        "plaintext on the array"
    );
    let passphrase = site.keystone.passphrase(&tenant, &key.id).await?;

    // A power cut: the volume is back by itself with the data.
    site.power_cycle(0).await?;
    let back = site
        .node(0)
        .sh(&format!(
            "for i in $(seq 600); do test -e {0} && exec head -c 22 {0}; sleep .1; done; exit 1",
            volume.link()
        ))
        .await?
        .ok()?;
    ensure!(
        back == "written before the cut",
        "after the power cut: {back}"
    );
    volume.wait_ready(&site.plane).await?;

    // The link leads to the mapping and to nothing else, whatever udev does.
    for _ in 0..20 {
        site.node(0)
            .sh("udevadm trigger --action=change --subsystem-match=block; udevadm settle -t 20")
            .await?
            .ok()?;
        let target = site
            .node(0)
            .sh(&format!("readlink {}", volume.link()))
            .await?
            .ok()?;
        ensure!(
            target.trim().starts_with("/dev/dm-"),
            "the link leads to {target}"
        );
    }

    let watch = search::watch_processes(site.node(1)).await?;
    site.node(1).sh(MONITOR).await?.ok()?;

    // A move: detached there, attached here, never both.
    volume.clone().on("node-2").apply(&site.plane).await?;
    volume
        .wait(&site.plane, "on node-2", |v| {
            v.status.as_ref().is_some_and(|s| {
                s.attachments
                    .iter()
                    .any(|a| a.node_name == "node-2" && a.link.is_some())
            })
        })
        .await?;
    volume.wait_ready(&site.plane).await?;
    site.nothing_left(0).await?;
    ensure!(
        volume.read(site.node(1), 22).await? == "written before the cut",
        "the data did not move"
    );

    udev_was_told_without_a_process(site.node(1)).await?;

    the_key_is_nowhere(&mut site, &lun, &passphrase).await?;
    volume.wait_ready(&site.plane).await?;

    volume.delete(&site.plane).await?;
    volume.wait_gone(&site.plane).await?;
    // From before the attachment to its end, on the node that had it.
    let seen = watch.stop().await?;
    ensure!(
        seen.lines().any(|word| word == "--parent"),
        "the watch saw no worker"
    );
    let mut needles = Needles::default();
    needles.add("passphrase", &hex::decode(&passphrase)?);
    let found = needles.found_in(seen.as_bytes());
    ensure!(
        found.is_empty(),
        "in a command line or environment: {found:?}"
    );
    site.nothing_left(1).await?;
    ensure!(
        node_volumes(&site.plane, "life").await?.is_empty(),
        "NodeVolumes are left"
    );
    ensure!(
        !site.keystone.has_secret(&tenant, &key.id).await?,
        "the key is still there"
    );
    ensure!(
        lun.read_at(0, 1 << 20)?.iter().all(|b| *b == 0),
        "the header area is not wiped"
    );
    work.passed()
}

/// With the volume attached to the second node: neither the passphrase nor the volume key is anywhere but in the key manager and
/// in the kernel. Ends the second node's agent and starts it again.
async fn the_key_is_nowhere(site: &mut Site, lun: &Lun, passphrase: &str) -> Result<()> {
    let volume_key = volume_key(lun, passphrase)?;
    let secret = hex::decode(passphrase)?;
    let secrets = [("passphrase", &secret[..]), ("volume-key", &volume_key[..])];

    // The search finds what is there.
    let node = site.node(1);
    node.put("/run/planted", 0o600, passphrase.as_bytes())
        .await?;
    let script = "read -r key </run/planted; while :; do sleep 1000; done";
    let holder = node.spawn("holder", &["bash", "-c", script], &[]).await?;
    let planted = wait_for(
        "the search to find what was planted",
        Duration::from_secs(60),
        || async {
            let places = search::on_node(site.node(1), &secrets).await?;
            let memory = format!("memory of {}", holder.pid());
            Ok(places
                .iter()
                .any(|p| p.starts_with(&memory))
                .then_some(places))
        },
        String::new,
    )
    .await?;
    ensure!(
        planted.iter().any(|p| p.contains("/run/planted")),
        "{planted:?}"
    );
    holder.signal("SIGKILL").await?;
    holder.wait(Duration::from_secs(20)).await?;
    node.sh("rm /run/planted").await?.ok()?;

    for node in 0..2 {
        let places = search::on_node(site.node(node), &secrets).await?;
        ensure!(places.is_empty(), "found in: {places:#?}");
    }
    let table = "dmsetup table --showkeys";
    let table = site.node(1).sh(table).await?.ok()?;
    ensure!(table.contains("crypt"), "no mapping: {table}");
    let mut needles = Needles::default();
    for (name, secret) in secrets {
        needles.add(name, secret);
    }
    let nowhere = |place: &str, bytes: &[u8]| -> Result<()> {
        let found = needles.found_in(bytes);
        ensure!(found.is_empty(), "in {place}: {found:?}");
        Ok(())
    };
    nowhere("the mapping's table", table.as_bytes())?;
    for index in 0..2 {
        nowhere("an operator's log", site.operator_log(index).as_bytes())?;
        nowhere("an agent's log", site.node(index).log(AGENT_LOG).as_bytes())?;
    }
    let events = ["get", "events", "-A", "-o", "yaml"];
    let events = site.plane.kubectl(&events).await?;
    nowhere("an Event", events.as_bytes())?;
    nowhere("the array", &std::fs::read(&lun.file)?)?;
    for file in files_below(&site.plane.etcd_dir())? {
        nowhere("etcd", &std::fs::read(file)?)?;
    }

    // Killed in a way that dumps core, where core dumps are wanted: there is none.
    let pattern =
        "ulimit -c; mkdir -p /run/cores && echo /run/cores/core >/proc/sys/kernel/core_pattern";
    site.node(1).sh(pattern).await?.ok()?;
    let dumps = ["bash", "-c", "ulimit -c unlimited; kill -ABRT $$"];
    site.node(1).exec(&dumps).await?;
    let cores = "ls /run/cores; rm -f /run/cores/*";
    let cores_of_bash = site.node(1).sh(cores).await?.ok()?;
    ensure!(
        cores_of_bash.contains("core"),
        "this node makes no core dumps, so it shows nothing"
    );
    site.signal_agent(1, "SIGABRT").await?;
    let code = site.agent_exit(1).await?;
    ensure!(code == 128 + 6, "the agent ended with {code}");
    let left = site.node(1).sh(cores).await?.ok()?;
    ensure!(left.trim().is_empty(), "the agent left a core dump: {left}");
    site.start_agent(1).await
}

/// The key that encrypts the sectors, as cryptsetup takes it from the header on the array.
fn volume_key(lun: &Lun, passphrase: &str) -> Result<Vec<u8>> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("key");
    let mut child = Command::new("cryptsetup")
        .args(["luksDump", "-q", "--dump-volume-key", "--key-file=-"])
        .arg("--volume-key-file")
        .arg(&file)
        .arg(&lun.file)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()?;
    let mut input = child.stdin.take().context("standard input")?;
    input.write_all(passphrase.as_bytes())?;
    drop(input);
    ensure!(child.wait()?.success(), "cryptsetup cannot dump the key");
    let key = std::fs::read(&file)?;
    ensure!(key.len() == 64, "a volume key of {} bytes", key.len());
    Ok(key)
}

fn files_below(folder: &std::path::Path) -> Result<Vec<std::path::PathBuf>> {
    let mut files = vec![];
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(files_below(&path)?);
        } else {
            files.push(path);
        }
    }
    Ok(files)
}

#[tokio::test]
async fn peer_failure_03_the_agent_killed_before_and_after_every_step_goes_on() -> Result<()> {
    let work = WorkDir::new("killed")?;
    let mut site = Site::start(&work, SiteSpec::new(1)).await?;
    let up = [
        "login",
        "scan",
        "read-header",
        "spend-permit",
        "release-key",
        "format",
        "open",
        "record-first-opened",
        "link",
    ];
    let down = ["unlink", "close", "delete-device", "logout"];
    for (number, step) in up.iter().chain(&down).enumerate() {
        for when in ["before", "after"] {
            let what = format!("{step}:{when}:exit");
            let name = format!("kill-{number}-{when}");
            eprintln!("{what}");
            let (_, lun, volume) = prepare(&mut site, &name).await?;
            let going_down = down.contains(step);
            if going_down {
                volume.apply(&site.plane).await?;
                volume.wait_ready(&site.plane).await?;
                volume.write(site.node(0), "acknowledged").await?;
            }
            site.kill_agent(0).await?;
            if going_down {
                volume.clone().detached().apply(&site.plane).await?;
            } else {
                volume.apply(&site.plane).await?;
            }
            site.launch_agent(0, &["--failpoint", &what]).await?;
            ensure!(
                site.agent_exit(0).await? == 86,
                "{what}: the agent did not end there"
            );
            site.start_agent(0).await?;
            // Between the record of the spent permit and a whole header only a person may say that nothing was lost.
            let needs_a_person = what == "spend-permit:after:exit" || what == "format:before:exit";
            if needs_a_person {
                volume
                    .wait_reason(&site.plane, Reason::FormatInterrupted)
                    .await
                    .with_context(|| what.clone())?;
                let uuid = volume
                    .get(&site.plane)
                    .await?
                    .and_then(|v| v.status?.luks_uuid)
                    .context("a LUKS UUID")?;
                site.plane
                    .kubectl(&[
                        "annotate",
                        "encryptedvolume",
                        "-n",
                        &name,
                        "vol",
                        &format!("cryptvol.dev/new-format-permit={uuid}"),
                    ])
                    .await?;
            }
            if going_down {
                volume
                    .wait_detached(&site.plane)
                    .await
                    .with_context(|| what.clone())?;
                site.nothing_left(0).await.with_context(|| what.clone())?;
                volume.apply(&site.plane).await?;
                volume
                    .wait_ready(&site.plane)
                    .await
                    .with_context(|| what.clone())?;
                ensure!(
                    volume.read(site.node(0), 12).await? == "acknowledged",
                    "{what}: the data is gone"
                );
            } else {
                volume
                    .wait_ready(&site.plane)
                    .await
                    .with_context(|| what.clone())?;
                volume.write(site.node(0), "acknowledged").await?;
            }
            ensure!(
                !lun.contains(b"acknowledged")?,
                "{what}: plaintext on the array"
            );
            volume.delete(&site.plane).await?;
            volume
                .wait_gone(&site.plane)
                .await
                .with_context(|| what.clone())?;
            site.nothing_left(0).await.with_context(|| what.clone())?;
        }
    }
    for cut in FIRST_ATTACHMENT {
        cut.make(&mut site)
            .await
            .with_context(|| format!("the power cut {}", cut.at))?;
    }
    work.passed()
}

/// The power is cut in a volume's first attachment.
struct Cut {
    /// The fail point.
    at: &'static str,
    /// What is on the disk then.
    disk: OnDisk,
    /// What is said once the power is back and the disk reads as zeros. `None`: it is blank anyway.
    blank: Option<Reason>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum OnDisk {
    /// Nothing, and the permit is there.
    Blank,
    /// Nothing, and nobody can know whether that is so because nothing was written: a person has to say it.
    BlankButSpent,
    /// The whole header.
    Header,
}

/// Every place at which the right to format is used up, and what follows from it (ADR 4).
const FIRST_ATTACHMENT: &[Cut] = &[
    Cut {
        at: "spend-permit:before:hang",
        disk: OnDisk::Blank,
        blank: None,
    },
    Cut {
        at: "spend-permit:after:hang",
        disk: OnDisk::BlankButSpent,
        blank: None,
    },
    Cut {
        at: "format:before:hang",
        disk: OnDisk::BlankButSpent,
        blank: None,
    },
    Cut {
        at: "format:after:hang",
        disk: OnDisk::Header,
        blank: Some(Reason::FormatInterrupted),
    },
    Cut {
        at: "record-first-opened:before:hang",
        disk: OnDisk::Header,
        blank: Some(Reason::FormatInterrupted),
    },
    Cut {
        at: "record-first-opened:after:hang",
        disk: OnDisk::Header,
        blank: Some(Reason::HeaderMissing),
    },
];
/// Where a LUKS2 header has its UUID, in bytes.
const UUID_AT: u64 = 168;

impl Cut {
    /// Cuts the power there on a volume of its own; with the node back the volume is formatted once and never again.
    async fn make(&self, site: &mut Site) -> Result<()> {
        let name = format!("cut-{}", self.at.replace(':', "-"));
        eprintln!("{name}");
        let (_, lun, volume) = prepare(site, &name).await?;
        let header = || lun.read_at(0, 16 << 20);
        let blank = vec![0; 16 << 20];
        site.kill_agent(0).await?;
        volume.apply(&site.plane).await?;
        site.strike(0, self.at).await?;
        let written = header()?;
        ensure!(
            (written != blank) == (self.disk == OnDisk::Header),
            "the disk is not as it should be at this step"
        );
        match self.blank {
            None => site.power_cycle(0).await?,
            // With zeros in its place the array loses what was written: no reason to write it anew.
            Some(reason) => {
                let there = site.array.read_as_zeros(&lun.target, lun.number)?;
                site.power_cycle(0).await?;
                volume.wait_reason(&site.plane, reason).await?;
                let zeros = site.array.lun(&lun.target, lun.number)?;
                ensure!(zeros.read_at(0, 64 << 20)?.iter().all(|b| *b == 0));
                site.array.swap_lun(&lun.target, lun.number, &there)?;
            }
        }
        if self.disk == OnDisk::BlankButSpent {
            volume
                .wait_reason(&site.plane, Reason::FormatInterrupted)
                .await?;
            ensure!(header()? == blank, "formatted without a permit");
            let status = volume.get(&site.plane).await?.and_then(|v| v.status);
            let uuid = status.and_then(|s| s.luks_uuid).context("a LUKS UUID")?;
            volume
                .annotate(&site.plane, names::NEW_PERMIT_ANNOTATION, &uuid)
                .await?;
        }
        let ready = volume.wait_ready(&site.plane).await?;
        volume.wait_link(site.node(0)).await?;
        let once = header()?;
        let uuid = ready.status.and_then(|s| s.luks_uuid).unwrap_or_default();
        ensure!(
            lun.read_at(UUID_AT, uuid.len())? == uuid.as_bytes(),
            "the header has another UUID than the permit"
        );
        ensure!(
            self.disk != OnDisk::Header || once == written,
            "formatted a second time"
        );
        volume.write(site.node(0), "acknowledged").await?;
        ensure!(
            volume.read(site.node(0), 12).await? == "acknowledged" && header()? == once,
            "it was not left as it is"
        );
        ensure!(!lun.contains(b"acknowledged")?, "plaintext on the array");
        volume.delete(&site.plane).await?;
        volume.wait_gone(&site.plane).await?;
        site.nothing_left(0).await?;
        Ok(())
    }
}

#[tokio::test]
async fn an_unfit_node_says_what_it_lacks() -> Result<()> {
    use cryptvol_e2e::node::NodeSpec;
    let work = WorkDir::new("unfit")?;
    let nodes = vec![
        NodeSpec::bare("no-dm").without_device_mapper(),
        NodeSpec::bare("no-iscsi").without_iscsi(),
        NodeSpec::bare("no-udev").without_udev(),
    ];
    let mut site = Site::start(
        &work,
        SiteSpec {
            nodes,
            operators: 1,
        },
    )
    .await?;
    let (_, lun, volume) = prepare(&mut site, "unfit").await?;
    for (node, word) in [
        ("no-dm", "device-mapper"),
        ("no-iscsi", "iSCSI"),
        ("no-udev", "udev"),
    ] {
        let volume = Volume {
            name: format!("on-{node}"),
            ..volume.clone()
        };
        let mut manifest = volume.manifest.clone();
        manifest["metadata"]["name"] = json!(volume.name);
        let volume = Volume { manifest, ..volume }.on(node);
        let before = lun.sha256()?;
        volume.apply(&site.plane).await?;
        let message = volume.wait_reason(&site.plane, Reason::NodeUnfit).await?;
        ensure!(
            message.to_lowercase().contains(&word.to_lowercase()),
            "{node}: {message}"
        );
        let condition = site
            .plane
            .kubectl(&[
                "get",
                "node",
                node,
                "-o",
                "jsonpath={.status.conditions[?(@.type==\"CryptvolReady\")].message}",
            ])
            .await?;
        ensure!(
            condition.to_lowercase().contains(&word.to_lowercase()),
            "{node}: condition {condition}"
        );
        ensure!(lun.sha256()? == before, "the disk was written to");
        volume.delete(&site.plane).await?;
        volume.wait_gone(&site.plane).await?;
    }
    work.passed()
}
