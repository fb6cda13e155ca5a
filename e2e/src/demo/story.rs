//! What the demo does and shows, in order.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cryptvol_crds::EncryptedVolume;
use cryptvol_crds::conditions::{self, READY};
use serde_json::{Value, json};

use super::telling::{Clock, command, dump, fact, heading};
use crate::array::Lun;
use crate::capture::Capture;
use crate::cluster::Cluster;
use crate::guest::Guest;
use crate::keystone::{Keystone, Tenant};
use crate::release;
use crate::volumes::Volume;
use crate::workdir::workspace_root;

const NAMESPACE: &str = "demo";
const IQN: &str = "iqn.2026-11.dev.cryptvol:db-0";
const CHAP_USER: &str = "demo-initiator";
const CHAP_PASSWORD: &str = "demo-secret-16ch";
const TEXT: &[u8] = b"THE GUEST WROTE THIS: account 4711, balance 1,000,000\n";
/// Where the guest writes on its disk, in bytes.
const AT: u64 = 1 << 20;
const NODE: &str = "node-1";

/// The whole story.
pub(super) async fn tell(cluster: &mut Cluster) -> Result<()> {
    step(
        "Helm installs the charts: custom resources, operator (two replicas), identity service, node agents",
    );
    for words in release::helm(&release::VALUES) {
        command("helm", &words);
    }
    let clock = Clock::start();
    release::load_images(cluster).await?;
    release::install(cluster).await?;
    kubectl(
        cluster,
        &["get", "pods", "-n", release::NAMESPACE, "-o", "wide"],
    )
    .await?;
    kubectl(cluster, &["get", "nodes", "-o", "custom-columns=NODE:.metadata.name,CRYPTVOL:.status.conditions[?(@.type==\"CryptvolReady\")].message"]).await?;
    clock.tell("the installation");

    step(
        "A tenant: project, user and application credential in the identity service; a disk of 128 MiB on the array",
    );
    let clock = Clock::start();
    let keystone = release::keystone(cluster).await?;
    let tenant = keystone
        .tenant(&format!("demo-{}", std::process::id()), "member")
        .await?;
    let lun = disk(cluster)?;
    fact(&format!(
        "project {} ({}), application credential {}",
        tenant.name, tenant.project_id, tenant.credential_id
    ));
    fact(&format!(
        "target {IQN} LUN 1 on {}, one-way CHAP",
        cluster.array.portal()
    ));
    clock.tell("this");

    let mut capture = Capture::start(cluster.dir(), "demo", &cluster.array.interface()).await?;
    let volume = apply(cluster, &tenant).await?;
    let ready = attach(cluster, &volume).await?;
    let key = ready
        .status
        .and_then(|s| s.key)
        .context("the status names no key")?;

    write(cluster, &volume).await?;
    look_at_array(&lun)?;
    look_at_network(&mut capture).await?;
    look_at_audit(cluster).await?;
    power_cut(cluster, &volume).await?;
    delete(cluster, &volume, &keystone, &tenant, &key.id, &lun).await
}

fn step(text: &str) {
    heading(text);
}

/// Shows a command, runs it, and shows what it says.
async fn kubectl(cluster: &Cluster, words: &[&str]) -> Result<()> {
    command("kubectl", words);
    fact(&cluster.plane.kubectl(words).await?);
    Ok(())
}

/// A new disk behind a target of the name in the example.
fn disk(cluster: &mut Cluster) -> Result<Lun> {
    // Left by a demo that was broken off.
    let _ = cluster.array.remove_target(IQN);
    cluster.array.create_target(IQN)?;
    cluster.array.set_chap(IQN, CHAP_USER, CHAP_PASSWORD)?;
    cluster.array.create_lun(IQN, 1, 128 << 20)
}

/// Applies the files of `examples/`, with this array's address and real credentials in the place of their placeholders.
async fn apply(cluster: &Cluster, tenant: &Tenant) -> Result<Volume> {
    step("kubectl apply of examples/: namespace, credentials, class, CHAP secret, volume");
    let clock = Clock::start();
    let mut files: Vec<_> = std::fs::read_dir(workspace_root().join("examples"))?
        .filter_map(|e| Some(e.ok()?.path()))
        .filter(|p| p.extension().is_some_and(|e| e == "yaml"))
        .collect();
    files.sort();
    for file in files {
        let name = file
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let manifest = match name.as_str() {
            "10-credentials.yaml" => {
                let clouds = tenant.clouds_yaml().replace(&format!("\"{}\"", tenant.name), "\"demo\"");
                tenant.secret_manifest(NAMESPACE, "openstack-credentials", &clouds).to_string()
            }
            "30-chap.yaml" => json!({
                "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "array-chap", "namespace": NAMESPACE},
                "stringData": {"username": CHAP_USER, "password": CHAP_PASSWORD},
            })
            .to_string(),
            _ => std::fs::read_to_string(&file)?.replace("10.77.0.1:3260", &cluster.array.portal()),
        };
        command("kubectl", &["apply", "-f", &format!("examples/{name}")]);
        fact(
            cluster
                .plane
                .apply(&manifest)
                .await
                .with_context(|| name)?
                .trim(),
        );
    }
    clock.tell("this");
    Ok(Volume {
        namespace: NAMESPACE.into(),
        name: "db-0".into(),
        manifest: Value::Null,
    })
}

/// Watches the volume become Ready, telling each new state.
async fn attach(cluster: &Cluster, volume: &Volume) -> Result<EncryptedVolume> {
    step("The volume becomes Ready");
    let clock = Clock::start();
    let ready = follow(cluster, volume).await?;
    kubectl(
        cluster,
        &["get", "encryptedvolumes", "-n", NAMESPACE, "-o", "wide"],
    )
    .await?;
    clock.tell("from kubectl apply to Ready");
    Ok(ready)
}

async fn follow(cluster: &Cluster, volume: &Volume) -> Result<EncryptedVolume> {
    let start = Instant::now();
    let mut last = String::new();
    loop {
        let now = volume
            .get(&cluster.plane)
            .await?
            .context("the volume is gone")?;
        let conditions = now
            .status
            .as_ref()
            .map(|s| s.conditions.as_slice())
            .unwrap_or_default();
        let state: Vec<String> = conditions
            .iter()
            .filter(|c| c.type_ != READY && c.type_ != conditions::PROGRESSING)
            .map(|c| {
                format!(
                    "{}={}",
                    c.type_,
                    if c.status == "True" { "yes" } else { &c.reason }
                )
            })
            .collect();
        let state = state.join(" ");
        if state != last {
            fact(&format!(
                "{:>5.1} s  {state}",
                start.elapsed().as_secs_f32()
            ));
            last = state;
        }
        if conditions::is_true(conditions, READY) {
            return Ok(now);
        }
        ensure!(
            start.elapsed() < Duration::from_secs(240),
            "the volume is not Ready after 240 s:\n{}",
            cluster
                .plane
                .kubectl(&[
                    "get",
                    "encryptedvolumes,nodevolumes",
                    "-n",
                    NAMESPACE,
                    "-o",
                    "yaml"
                ])
                .await?
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// A virtual machine with the link as its disk writes.
async fn write(cluster: &Cluster, volume: &Volume) -> Result<()> {
    step(
        "A QEMU guest on node-1 gets the link as its disk and writes (its boot takes 15 to 25 s here, without KVM)",
    );
    let clock = Clock::start();
    let node = cluster.node(NODE)?;
    fact(
        node.sh(&format!(
            "ls -l --time-style=+ {}; dmsetup table --target crypt",
            volume.link()
        ))
        .await?
        .ok()?
        .trim(),
    );
    let text = String::from_utf8_lossy(TEXT);
    let block = AT / 4096;
    let script = format!(
        "printf '%s' '{text}' | dd of=/dev/vda bs=4096 seek={block} conv=notrunc 2>/dev/null; sync
         echo \"guest reads back: $(dd if=/dev/vda bs=4096 skip={block} count=1 2>/dev/null | head -c {length})\"",
        length = TEXT.len() - 1
    );
    let image = Guest::locate()?;
    let seen = Guest::run(
        node,
        &image,
        &[&volume.link()],
        &script,
        Duration::from_secs(240),
    )
    .await?;
    fact(seen.trim());
    let back = read(cluster, volume).await?;
    ensure!(
        back.as_bytes() == TEXT.trim_ascii_end(),
        "the node reads {back}"
    );
    fact(&format!("the node reads through the link: {back}"));
    clock.tell("this");
    Ok(())
}

async fn read(cluster: &Cluster, volume: &Volume) -> Result<String> {
    let script = format!(
        "dd if={} bs=4096 skip={AT} iflag=skip_bytes count=1 status=none | head -c {}",
        volume.link(),
        TEXT.len()
    );
    Ok(cluster
        .node(NODE)?
        .sh(&script)
        .await?
        .ok()?
        .trim_end()
        .to_owned())
}

/// What lies on the array: header and ciphertext.
fn look_at_array(lun: &Lun) -> Result<()> {
    step("The same place on the array");
    let clock = Clock::start();
    let offset = AT + (16 << 20);
    fact(&dump(offset, &lun.read_at(offset, 64)?));
    ensure!(!lun.contains(TEXT)?, "the plaintext lies on the array");
    fact("The text occurs nowhere on the whole disk. Its LUKS header:");
    let header = crate::process::run("cryptsetup", &["luksDump", &lun.file.display().to_string()])?;
    let wanted = [
        "UUID",
        "Cipher:",
        "cipher:",
        "sector:",
        "PBKDF:",
        "Iterations:",
        "offset:",
    ];
    fact(
        &header
            .lines()
            .filter(|l| wanted.iter().any(|w| l.contains(w)))
            .collect::<Vec<_>>()
            .join("\n"),
    );
    clock.tell("this");
    Ok(())
}

/// What went over the wire.
async fn look_at_network(capture: &mut Capture) -> Result<()> {
    step("The capture of all traffic between node and array");
    let clock = Clock::start();
    capture.stop().await?;
    let found = capture.search(TEXT)?;
    fact(&format!(
        "{} packets, {} bytes of payload, searched for the plaintext: {}",
        found.packets,
        found.bytes,
        if found.found { "FOUND" } else { "not found" }
    ));
    ensure!(
        found.bytes > 0 && found.gaps == 0,
        "the recording is incomplete, so it proves nothing"
    );
    ensure!(!found.found, "the plaintext went over the network");
    clock.tell("this");
    Ok(())
}

async fn look_at_audit(cluster: &Cluster) -> Result<()> {
    step(
        "Who got what, when: the operator's audit log (each line carries the hash of the one before)",
    );
    let clock = Clock::start();
    for record in release::audit(cluster).await? {
        let word = |name: &str| record[name].as_str().unwrap_or("-").to_owned();
        fact(&format!(
            "{} {} {} {}/{} to {} (pod {}): {} hash {}…",
            word("time"),
            word("purpose"),
            word("keyId"),
            word("namespace"),
            word("volume"),
            word("node"),
            word("pod"),
            word("result"),
            word("hash").get(..12).unwrap_or_default()
        ));
    }
    clock.tell("this");
    Ok(())
}

/// The node loses power and comes back.
async fn power_cut(cluster: &mut Cluster, volume: &Volume) -> Result<()> {
    step("Power cut: node-1 is killed, then switched on again; nobody touches the volume");
    let clock = Clock::start();
    cluster.node_mut(NODE)?.power_cut().await?;
    fact("the node's kernel is gone");
    cluster.start_node(NODE).await?;
    clock.tell("boot, kubelet and containerd");
    let clock = Clock::start();
    let link = volume.link();
    let script =
        format!("for i in $(seq 1200); do test -b {link} && exit 0; sleep .1; done; exit 1");
    cluster
        .node(NODE)?
        .exec_with(&["bash", "-c", &script], &[], b"", Duration::from_secs(180))
        .await?
        .ok()?;
    let text = read(cluster, volume).await?;
    ensure!(
        text.as_bytes() == TEXT.trim_ascii_end(),
        "after the power cut: {text}"
    );
    fact(&format!("read on {NODE} after the power cut: {text}"));
    follow(cluster, volume).await?;
    clock.tell("the volume's return");
    Ok(())
}

/// Deletion with `deletionPolicy: Erase`.
async fn delete(
    cluster: &Cluster,
    volume: &Volume,
    keystone: &Keystone,
    tenant: &Tenant,
    key: &str,
    lun: &Lun,
) -> Result<()> {
    step("kubectl delete, with deletionPolicy Erase");
    let clock = Clock::start();
    ensure!(
        keystone.has_secret(tenant, key).await?,
        "the key is gone too early"
    );
    kubectl(
        cluster,
        &[
            "delete",
            "encryptedvolume",
            "-n",
            NAMESPACE,
            &volume.name,
            "--wait=false",
        ],
    )
    .await?;
    volume.wait_gone(&cluster.plane).await?;
    let left = cluster
        .node(NODE)?
        .sh("echo mappings: $(dmsetup ls | grep -c cryptvol-); echo links: $(find /dev/cryptvol -type l 2>/dev/null | wc -l); \
             echo sessions: $(ls /sys/class/iscsi_session | wc -l); echo disks: $(ls -d /sys/block/sd* 2>/dev/null | wc -l)")
        .await?
        .ok()?;
    fact(&format!(
        "left on {NODE}: {}",
        left.trim().replace('\n', ", ")
    ));
    ensure!(
        left.lines().all(|l| l.ends_with(" 0")),
        "something is left on the node: {left}"
    );
    ensure!(
        lun.read_at(0, 1 << 20)?.iter().all(|b| *b == 0),
        "the header area is not wiped"
    );
    fact("header and key slots on the disk: wiped");
    ensure!(
        !keystone.has_secret(tenant, key).await?,
        "the key is still in the key manager"
    );
    fact(&format!("key {key} in the key manager: gone"));
    clock.tell("this");
    Ok(())
}
