//! The product as Helm installs it: what the demo tells, and what a person who runs it for long wants to know.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cryptvol_e2e::cluster::Cluster;
use cryptvol_e2e::volumes::Volume;
use cryptvol_e2e::{demo, release};
use serde_json::json;

const IQN: &str = "iqn.2026-11.dev.cryptvol:idle-0";
const ACCOUNTS: &str = "system:serviceaccount:cryptvol-system:";

#[tokio::test]
async fn what_the_demo_tells_is_true() -> Result<()> {
    let mut cluster = Cluster::shared(&release::image_archives()).await?;
    demo::tell(&mut cluster).await
}

#[tokio::test]
async fn an_idle_cluster_writes_nothing_and_stays_small() -> Result<()> {
    let mut cluster = Cluster::shared(&release::image_archives()).await?;
    release::install(&cluster).await?;
    let keystone = release::keystone(&cluster).await?;
    let tenant = keystone.tenant("idle", "member").await?;
    cluster
        .plane
        .kubectl(&["create", "namespace", "idle"])
        .await?;
    let secret = tenant.secret_manifest("idle", "keystone", &tenant.clouds_yaml());
    cluster.plane.apply(&secret.to_string()).await?;
    cluster.array.create_target(IQN)?;
    let lun = cluster.array.create_lun(IQN, 1, 64 << 20)?;
    let volume = Volume::iscsi("idle", "vol", &cluster.array.portal(), IQN, 1, "idle")
        .on("node-2")
        .with("deletionPolicy", json!("Erase"));
    volume.apply(&cluster.plane).await?;
    volume.wait_ready(&cluster.plane).await?;

    // What follows the attachment (Events, a first look at things) is over by then.
    tokio::time::sleep(Duration::from_secs(15)).await;
    let mark = cluster.plane.audit_log().mark()?;
    tokio::time::sleep(Duration::from_secs(60)).await;
    let writes: Vec<String> = cluster
        .plane
        .audit_log()
        .since(mark)?
        .iter()
        .filter(|e| e.user.username.starts_with(ACCOUNTS) && e.is_stored_write())
        .map(|e| format!("{} {} by {}", e.verb, e.resource(), e.user.username))
        .collect();
    // The lease of the leading replica is the one exception, see docs/adr/0008.
    let others: Vec<_> = writes.iter().filter(|w| !w.contains("leases")).collect();
    ensure!(others.is_empty(), "writes in an idle minute: {others:?}");
    ensure!(
        !writes.is_empty(),
        "not even the lease was renewed: is the audit log counted at all?"
    );

    for (program, limit_mib) in [
        ("cryptvol-operator", 40),
        ("cryptvol-node-agent", 30),
        ("cryptvol-identity", 30),
    ] {
        let mut seen = 0;
        for node in &cluster.nodes {
            for line in resident(node, program).await?.lines() {
                let kib: u64 = line.trim().parse().with_context(|| line.to_owned())?;
                eprintln!(
                    "{program} on {}: {:.1} MiB",
                    node.name(),
                    kib as f64 / 1024.0
                );
                ensure!(
                    kib < limit_mib * 1024,
                    "{program} on {} takes {kib} KiB, more than {limit_mib} MiB",
                    node.name()
                );
                seen += 1;
            }
        }
        ensure!(seen > 0, "{program} runs nowhere");
    }

    volume.delete(&cluster.plane).await?;
    volume.wait_gone(&cluster.plane).await?;
    ensure!(
        lun.read_at(0, 1 << 20)?.iter().all(|b| *b == 0),
        "the header area is not wiped"
    );
    Ok(())
}

/// Resident memory in KiB of each pod of a program on a node: the process and its workers together.
async fn resident(node: &cryptvol_e2e::node::Node, program: &str) -> Result<String> {
    node.sh(&format!(
        "for p in /proc/[0-9]*; do c=$(tr '\\0' ' ' <$p/cmdline 2>/dev/null); case \"$c\" in */{program}\\ *|{program}\\ *) \
           echo \"$(tail -1 $p/cgroup) $(awk '/^VmRSS/ {{print $2}}' $p/status)\";; esac; done | \
         awk '{{ sum[$1] += $2 }} END {{ for (pod in sum) print sum[pod] }}'"
    ))
    .await?
    .ok()
}
