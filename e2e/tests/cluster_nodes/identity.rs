//! The embedded service as sites run it for years: two replicas on PostgreSQL, one on a claim, and both brought back from what was
//! kept elsewhere, by the commands of the documentation.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cryptvol_e2e::array::iqn;
use cryptvol_e2e::cluster::Cluster;
use cryptvol_e2e::documented::{block, run};
use cryptvol_e2e::keystone::{Keystone, Tenant};
use cryptvol_e2e::pki::Authority;
use cryptvol_e2e::postgres::Postgres;
use cryptvol_e2e::process::wait_for;
use cryptvol_e2e::release::{self, NAMESPACE};
use cryptvol_e2e::volumes::Volume;
use cryptvol_e2e::workdir::WorkDir;
use serde_json::{Value, json};

const SET: &str = "statefulset/cryptvol-identity";
/// As docs/postgresql.md names it.
const DATABASE_SECRET: &str = "cryptvol-identity-database";
/// Where the chart mounts it.
const CA: &str = "/etc/cryptvol/database/ca.crt";
const KEY: [u8; 32] = [7; 32];
const START_LIMIT: Duration = Duration::from_secs(240);

/// A replica's pod.
#[derive(Debug, Clone, PartialEq)]
struct Replica {
    name: String,
    uid: String,
    node: String,
    address: IpAddr,
}

/// The replicas that are ready, by name.
async fn ready(cluster: &Cluster) -> Result<Vec<Replica>> {
    let pods = ["get", "pods", "-n", NAMESPACE, "-o", "json", "-l"];
    let component = ["app.kubernetes.io/component=identity"];
    let pods = cluster
        .plane
        .kubectl(&[&pods[..], &component].concat())
        .await?;
    let pods: Value = serde_json::from_str(&pods)?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let is_ready = |pod: &&Value| {
        let conditions = pod["status"]["conditions"].as_array();
        pod["metadata"]["deletionTimestamp"].is_null()
            && conditions
                .into_iter()
                .flatten()
                .any(|c| c["type"] == "Ready" && c["status"] == "True")
    };
    let pods = pods["items"].as_array().context("no list of pods")?;
    pods.iter()
        .filter(is_ready)
        .map(|pod| {
            Ok(Replica {
                name: text(&pod["metadata"]["name"]),
                uid: text(&pod["metadata"]["uid"]),
                node: text(&pod["spec"]["nodeName"]),
                address: text(&pod["status"]["podIP"]).parse()?,
            })
        })
        .collect()
}

async fn wait_ready(cluster: &Cluster, count: usize) -> Result<Vec<Replica>> {
    wait_for(
        &format!("{count} replicas of the identity service to be ready"),
        START_LIMIT,
        || async { Ok(Some(ready(cluster).await?).filter(|there| there.len() == count)) },
        String::new,
    )
    .await
}

/// The Secret of docs/postgresql.md for a database, from files of the names that it gives them.
fn write_database_files(
    dir: &Path,
    server: &Postgres,
    authority: &Authority,
    name: &str,
) -> Result<()> {
    std::fs::write(dir.join("url"), server.url_for_pods(name, CA))?;
    std::fs::write(dir.join("ca.crt"), authority.certificate())?;
    Ok(())
}

/// The next install makes another kind of StatefulSet, which no upgrade may.
async fn forget_set(cluster: &Cluster) -> Result<()> {
    let delete = ["delete", SET, "-n", NAMESPACE, "--ignore-not-found"];
    cluster.plane.kubectl(&delete).await?;
    let gone = ["wait", "-n", NAMESPACE, "--for=delete", "pod", "-l"];
    let which = ["app.kubernetes.io/component=identity", "--timeout=2m"];
    let wait = [&gone[..], &which].concat();
    cluster.plane.kubectl(&wait).await.map(drop)
}

/// A namespace with the tenant's credentials, and a target with so many disks.
async fn prepare_volumes(
    cluster: &mut Cluster,
    tenant: &Tenant,
    disks: u16,
) -> Result<Vec<Volume>> {
    let namespace =
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": tenant.name}});
    cluster.plane.apply(&namespace.to_string()).await?;
    let secret = tenant.secret_manifest(&tenant.name, "keystone", &tenant.clouds_yaml());
    cluster.plane.apply(&secret.to_string()).await?;
    let iqn = iqn(&tenant.name);
    cluster.array.create_target(&iqn)?;
    let portal = cluster.array.portal();
    (1..=disks)
        .map(|lun| {
            cluster.array.create_lun(&iqn, lun, 64 << 20)?;
            let name = format!("vol-{lun}");
            let volume = Volume::iscsi(&tenant.name, &name, &portal, &iqn, lun, &tenant.name);
            Ok(volume.on("node-1"))
        })
        .collect()
}

#[tokio::test]
async fn two_replicas_on_postgresql_go_on_without_one_and_come_back_from_a_dump() -> Result<()> {
    let work = WorkDir::new("cluster-postgresql")?;
    let mut cluster = Cluster::shared(&release::image_archives()).await?;
    release::load_images(&cluster).await?;
    let authority = Authority::open(&work.dir("authority")?)?;
    let server = Postgres::start_for_pods(&work.dir("postgres")?, &authority)?;
    server.new_database("identity")?;

    // From nothing to two replicas, on a database that is empty.
    forget_set(&cluster).await?;
    let namespace =
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}});
    cluster.plane.apply(&namespace.to_string()).await?;
    let here = work.dir("administrator")?;
    write_database_files(&here, &server, &authority, "identity")?;
    let secret = block("postgresql.md", "helm upgrade --install")?;
    let create = secret.lines().next().context("no first line")?;
    run(&cluster, &here, create).await?;
    let database = format!("identity.database.urlSecret={DATABASE_SECRET}");
    release::install_with(&cluster, &[&database, "identity.replicas=2"]).await?;
    let replicas = wait_ready(&cluster, 2).await?;
    ensure!(replicas[0].node != replicas[1].node, "{replicas:?}");
    let first = release::keystone_at(&cluster, replicas[0].address).await?;
    let second = release::keystone_at(&cluster, replicas[1].address).await?;
    let service = release::keystone(&cluster).await?;

    // What one has made the other one has.
    let tenant = format!("replicas-{}", std::process::id());
    let tenant = first.tenant(&tenant, "member").await?;
    let key = first.store(&tenant, "kept", &KEY).await?;
    ensure!(second.passphrase(&tenant, &key).await? == hex::encode(KEY));
    let token = first.tenant_token(&tenant).await?;
    ensure!(second.status_of(&token).await? == 200);
    let volumes = prepare_volumes(&mut cluster, &tenant, 2).await?;
    let plane = &cluster.plane;
    volumes[0].apply(plane).await?;
    volumes[0].wait_ready(plane).await?;

    // One goes. Nobody has to do anything, and nothing is refused meanwhile.
    let gone = &replicas[0];
    plane
        .kubectl(&["delete", "pod", "-n", NAMESPACE, &gone.name, "--wait=false"])
        .await?;
    volumes[1].apply(plane).await?;
    let mut asked = 0;
    loop {
        ensure!(second.passphrase(&tenant, &key).await? == hex::encode(KEY));
        ensure!(service.passphrase(&tenant, &key).await? == hex::encode(KEY));
        asked += 1;
        let there = ready(&cluster).await?;
        if there.len() == 2 && there.iter().all(|replica| replica.uid != gone.uid) {
            break;
        }
    }
    eprintln!("asked {asked} times until the replica was there again");
    volumes[1].wait_ready(plane).await?;
    let replicas = wait_ready(&cluster, 2).await?;
    let anew = release::keystone_at(&cluster, replicas[0].address).await?;
    ensure!(anew.passphrase(&tenant, &key).await? == hex::encode(KEY));
    ensure!(anew.status_of(&token).await? == 200);

    // The database is lost; its dump comes back in another one.
    let dump = work.path().join("identity.dump");
    server.dump("identity", &dump)?;
    let late = anew.store(&tenant, "after the dump", &KEY).await?;
    run(&cluster, &here, &block("postgresql.md", "--replicas=0\n")?).await?;
    server.sql("DROP DATABASE identity")?;
    server.new_database("restored")?;
    server.restore("restored", &dump)?;
    write_database_files(&here, &server, &authority, "restored")?;
    let restore = block("postgresql.md", "identity-end-tokens.yaml")?;
    run(&cluster, &here, &restore).await?;
    let replicas = wait_ready(&cluster, 2).await?;
    for replica in &replicas {
        let restored = release::keystone_at(&cluster, replica.address).await?;
        ensure!(restored.passphrase(&tenant, &key).await? == hex::encode(KEY));
        ensure!(!restored.has_secret(&tenant, &late).await?);
        ensure!(
            restored.status_of(&token).await? == 401,
            "a token of before"
        );
    }
    // The operator logs in anew by itself, and the keys of volumes are what they were.
    volumes[1].clone().detached().apply(plane).await?;
    volumes[1].wait_detached(plane).await?;
    volumes[1].apply(plane).await?;
    volumes[1].wait_ready(plane).await?;
    for volume in &volumes {
        volume.delete(plane).await?;
    }
    for volume in &volumes {
        volume.wait_gone(plane).await?;
    }
    cluster.array.remove_target(&iqn(&tenant.name))?;
    let delete = ["delete", "namespace", &tenant.name, "--wait=false"];
    cluster.plane.kubectl(&delete).await?;
    forget_set(&cluster).await?;
    let delete = ["delete", "secret", "-n", NAMESPACE, DATABASE_SECRET];
    cluster.plane.kubectl(&delete).await?;
    server.stop()?;
    work.passed()
}

/// A disk of node-2 for the claim of the embedded service; `folder` is new.
async fn provide_disk(cluster: &Cluster, folder: &str) -> Result<()> {
    let path = format!("/var/lib/{folder}");
    let node = cluster.node("node-2")?;
    node.sh(&format!("mkdir -m 755 {path}")).await?.ok()?;
    let affinity = json!({"required": {"nodeSelectorTerms": [{"matchExpressions": [
        {"key": "kubernetes.io/hostname", "operator": "In", "values": ["node-2"]}]}]}});
    let volume = json!({
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": folder},
        "spec": {
            "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": "",
            "persistentVolumeReclaimPolicy": "Retain", "local": {"path": path}, "nodeAffinity": affinity,
        },
    });
    cluster.plane.apply(&volume.to_string()).await.map(drop)
}

/// The disk is gone, and with it the claim that had it.
async fn lose_disk(cluster: &Cluster, folder: &str) -> Result<()> {
    let claim = ["delete", "pvc", "-n", NAMESPACE, "data-cryptvol-identity-0"];
    cluster.plane.kubectl(&claim).await?;
    let disk = ["delete", "pv", folder];
    cluster.plane.kubectl(&disk).await?;
    let node = cluster.node("node-2")?;
    let remove = format!("rm -rf /var/lib/{folder}");
    node.sh(&remove).await?.ok().map(drop)
}

async fn alone(cluster: &Cluster) -> Result<Keystone> {
    let replicas = wait_ready(cluster, 1).await?;
    release::keystone_at(cluster, replicas[0].address).await
}

#[tokio::test]
async fn a_lost_disk_comes_back_from_its_backup() -> Result<()> {
    let work = WorkDir::new("cluster-backup")?;
    let cluster = Cluster::shared(&release::image_archives()).await?;
    release::load_images(&cluster).await?;
    let here = work.dir("administrator")?;
    forget_set(&cluster).await?;
    provide_disk(&cluster, "first-disk").await?;
    // The claim of the chart's default, without any storage class.
    release::install_with(&cluster, &[]).await?;
    let service = alone(&cluster).await?;
    let tenant = format!("backup-{}", std::process::id());
    let tenant = service.tenant(&tenant, "member").await?;
    let key = service.store(&tenant, "kept", &KEY).await?;
    let token = service.tenant_token(&tenant).await?;
    run(&cluster, &here, &block("backup.md", "kubectl exec")?).await?;
    let late = service.store(&tenant, "after the backup", &KEY).await?;

    // The disk is lost, and the service makes empty records on another one, as it does on a new cluster.
    let stop = block("backup.md", "--replicas=0\n")?;
    run(&cluster, &here, &stop).await?;
    lose_disk(&cluster, "first-disk").await?;
    provide_disk(&cluster, "second-disk").await?;
    let start = block("backup.md", "--replicas=1\n")?;
    run(&cluster, &here, &start).await?;
    let empty = alone(&cluster).await?;
    ensure!(empty.tenant_token(&tenant).await.is_err(), "not empty");

    run(&cluster, &here, &stop).await?;
    run(&cluster, &here, &block("backup.md", "kubectl attach")?).await?;
    run(&cluster, &here, &start).await?;
    let restored = alone(&cluster).await?;
    ensure!(restored.passphrase(&tenant, &key).await? == hex::encode(KEY));
    ensure!(!restored.has_secret(&tenant, &late).await?);
    ensure!(
        restored.status_of(&token).await? == 401,
        "a token of before"
    );
    forget_set(&cluster).await?;
    lose_disk(&cluster, "second-disk").await?;
    work.passed()
}
