//! Many volumes at once.

use std::process::Command;

use anyhow::{Result, ensure};
use cryptvol_crds::EncryptedVolume;
use cryptvol_crds::conditions;
use cryptvol_e2e::array;
use cryptvol_e2e::process::{tail, wait_for};
use cryptvol_e2e::site::{AGENT_LOG, Site};
use cryptvol_e2e::volumes::{PATIENCE, Volume};
use serde_json::json;

use super::ground::SITE;

const NAME: &str = "crowd";
/// At once.
const VOLUMES: u16 = 50;
/// What the agent and its workers may take together, in MiB.
const MEMORY: u64 = 64;
const CGROUP: &str = "/sys/fs/cgroup/agent";

/// Fifty volumes that were formatted elsewhere, all of them to be unlocked at once. Key derivation of others adds up, and the kernel kills the agent.
/// Ours has a control group that gives it 64 MiB with all its workers, as the chart has it otherwise, and is killed for nothing.
#[tokio::test]
async fn peer_failure_12_fifty_unlocks_at_once_stay_within_the_memory() -> Result<()> {
    let mut site = SITE.take().await?;
    let tenant = site.tenant(NAME).await?;
    let secret = [12; 32];
    let key = site.keystone.store(&tenant, "crowd", &secret).await?;
    let volumes = formatted(&mut site, &hex::encode(secret), &key)?;

    // Born there, so that all it ever takes counts: of whoever starts processes on the node.
    site.kill_agent(0).await?;
    let enclose = format!(
        "set -e; mountpoint -q /sys/fs/cgroup || mount -t cgroup2 cgroup /sys/fs/cgroup
         echo +memory >/sys/fs/cgroup/cgroup.subtree_control; mkdir {CGROUP}
         echo {MEMORY}M >{CGROUP}/memory.max; echo $PPID >{CGROUP}/cgroup.procs"
    );
    site.node(0).sh(&enclose).await?.ok()?;
    site.launch_agent(0, &[]).await?;
    let leave = "echo $PPID >/sys/fs/cgroup/cgroup.procs";
    site.node(0).sh(leave).await?.ok()?;
    let mine = format!("grep -qx {} {CGROUP}/cgroup.procs", site.agent_pid(0)?);
    site.node(0).sh(&mine).await?.ok()?;
    let items: Vec<_> = volumes.iter().map(|v| &v.manifest).collect();
    let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
    site.plane.apply(&list.to_string()).await?;
    let ready = |v: &&EncryptedVolume| {
        let status = v.status.as_ref();
        status.is_some_and(|s| conditions::is_true(&s.conditions, conditions::READY))
    };
    wait_for(
        "all of the crowd to be attached",
        PATIENCE,
        || async {
            let count = volumes_of(&site).await?.iter().filter(ready).count();
            Ok((count == volumes.len()).then_some(()))
        },
        || tail(&site.node(0).log_path(AGENT_LOG), 25),
    )
    .await?;
    let read = format!("cat {CGROUP}/memory.peak; grep -w oom_kill {CGROUP}/memory.events");
    let took = site.node(0).sh(&read).await?.ok()?;
    ensure!(took.contains("oom_kill 0"), "a process was killed: {took}");
    println!("RAN: at most {} bytes", took.lines().next().unwrap_or("?"));

    let delete = [
        "delete",
        "encryptedvolumes",
        "--all",
        "-n",
        NAME,
        "--wait=false",
    ];
    site.plane.kubectl(&delete).await?;
    wait_for(
        "the crowd to be gone",
        PATIENCE,
        || async { Ok(volumes_of(&site).await?.is_empty().then_some(())) },
        || tail(&site.node(0).log_path(AGENT_LOG), 25),
    )
    .await?;
    site.nothing_left(0).await?;
    site.kill_agent(0).await?;
    let dissolve = format!("rmdir {CGROUP}");
    site.node(0).sh(&dissolve).await?.ok()?;
    site.start_agent(0).await?;
    site.passed()
}

async fn volumes_of(site: &Site) -> Result<Vec<EncryptedVolume>> {
    let api: kube::Api<EncryptedVolume> = kube::Api::namespaced(site.plane.client()?, NAME);
    Ok(api.list(&Default::default()).await?.items)
}

/// Disks with headers as cryptsetup makes them, and volumes that import them.
fn formatted(site: &mut Site, passphrase: &str, key: &str) -> Result<Vec<Volume>> {
    let iqn = array::iqn(NAME);
    site.array.create_target(&iqn)?;
    let mut volumes = Vec::new();
    let mut script = String::from("set -e\n");
    for number in 1..=VOLUMES {
        let lun = site.array.create_lun(&iqn, number, 24 << 20)?;
        script += &format!(
            "printf {passphrase} | cryptsetup luksFormat -q --type luks2 --sector-size 512 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 --key-file=- {}\n",
            lun.file.display()
        );
        let portal = site.array.portal();
        let volume = Volume::iscsi(NAME, &format!("vol-{number}"), &portal, &iqn, number, NAME)
            .with("format", json!("Never"))
            // A backup is made of a header that is on record, and is no unlock.
            .with("encryption", json!({"headerBackup": false}))
            .with("key", json!({"secretRef": key}))
            .with_iscsi("wwid", json!(lun.wwid()))
            .on("node-1");
        volumes.push(volume);
    }
    let made = Command::new("bash").args(["-c", &script]).output()?;
    ensure!(
        made.status.success(),
        "{}",
        String::from_utf8_lossy(&made.stderr)
    );
    Ok(volumes)
}
