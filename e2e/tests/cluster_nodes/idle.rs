//! What a person who runs the product for long wants to know: how often it writes when nothing happens, and how large it is.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cryptvol_crds::names;
use cryptvol_e2e::array::iqn;
use cryptvol_e2e::audit_log::AuditEvent;
use cryptvol_e2e::cluster::Cluster;
use cryptvol_e2e::node::Node;
use cryptvol_e2e::release;
use cryptvol_e2e::volumes::Volume;
use serde_json::json;

/// Programs with what each of their containers may take, in MiB.
const LIMITS: [(&str, u64); 3] = [
    ("cryptvol-operator", 40),
    ("cryptvol-node-agent", 30),
    ("cryptvol-identity", 30),
];

#[tokio::test]
async fn an_idle_cluster_writes_nothing_and_stays_small() -> Result<()> {
    let mut cluster = Cluster::shared(&release::image_archives()).await?;
    release::load_images(&cluster).await?;
    release::install(&cluster).await?;
    let keystone = release::keystone(&cluster).await?;
    // A kept cluster may have tenants of earlier runs.
    let tenant = keystone
        .tenant(&format!("idle-{}", std::process::id()), "member")
        .await?;
    let namespace = r#"{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "idle"}}"#;
    cluster.plane.apply(namespace).await?;
    let secret = tenant.secret_manifest("idle", "keystone", &tenant.clouds_yaml());
    cluster.plane.apply(&secret.to_string()).await?;
    let iqn = iqn("idle");
    cluster.array.create_target(&iqn)?;
    let lun = cluster.array.create_lun(&iqn, 1, 64 << 20)?;
    let portal = cluster.array.portal();
    let volume = Volume::iscsi("idle", "vol", &portal, &iqn, 1, &tenant.name)
        .on("node-2")
        .with("deletionPolicy", json!("Erase"));
    volume.apply(&cluster.plane).await?;
    volume.wait_ready(&cluster.plane).await?;

    let log = cluster.plane.audit_log();
    let mark = log
        .quiet(|e| is_ours(e) && e.is_stored_write() && !is_renewal(e))
        .await?;
    tokio::time::sleep(Duration::from_secs(60)).await;
    let (renewals, others): (Vec<_>, Vec<_>) = log
        .since(mark)?
        .into_iter()
        .filter(|e| is_ours(e) && e.is_stored_write())
        .partition(is_renewal);
    let others: Vec<_> = others
        .iter()
        .map(|e| format!("{} {} by {}", e.verb, e.request_uri, e.user.username))
        .collect();
    ensure!(others.is_empty(), "writes in an idle minute: {others:?}");
    // The one exception, see docs/adr/0008; without it nothing would show that the log is counted at all.
    ensure!(!renewals.is_empty(), "the lease was not renewed");
    eprintln!("idle minute: {} renewals of the lease", renewals.len());

    for (program, limit) in LIMITS {
        let mut seen = 0;
        for node in &cluster.nodes {
            for kib in memory(node, program).await? {
                eprintln!("{program} on {}: {kib} KiB", node.name());
                ensure!(kib < limit << 10, "{program} takes more than {limit} MiB");
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
    cluster.array.remove_target(&iqn)?;
    let delete = ["delete", "namespace", "idle", "--wait=false"];
    cluster.plane.kubectl(&delete).await.map(drop)
}

/// Whether one of our parts asked.
fn is_ours(event: &AuditEvent) -> bool {
    let accounts = format!("system:serviceaccount:{}:", release::NAMESPACE);
    event.user.username.starts_with(&accounts)
}

/// Whether it is the leading replica that stays it.
fn is_renewal(event: &AuditEvent) -> bool {
    event.object_ref.as_ref().is_some_and(|o| {
        event.verb == "update" && o.resource == "leases" && o.name == names::OPERATOR_LEASE
    })
}

/// Memory in KiB of each container of a program on a node: all its processes together, workers included; what they share counts
/// once (PSS, proc(5)).
async fn memory(node: &Node, program: &str) -> Result<Vec<u64>> {
    const LIST: &str = "for p in /proc/[0-9]*; do exe=$(readlink $p/exe) && \
        echo \"$(tail -1 $p/cgroup) $(awk '/^Pss:/ { print $2 }' $p/smaps_rollup) $exe\"; done; true";
    let mut containers = BTreeMap::<String, u64>::new();
    for line in node.sh(LIST).await?.ok()?.lines() {
        if let [group, kib, exe] = line.split_whitespace().collect::<Vec<_>>()[..]
            && exe.rsplit('/').next() == Some(program)
        {
            let kib: u64 = kib.parse().with_context(|| line.to_owned())?;
            *containers.entry(group.to_owned()).or_default() += kib;
        }
    }
    Ok(containers.into_values().collect())
}
