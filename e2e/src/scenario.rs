//! A volume's life as a user sees it, written once for every ground that has Kubernetes: nodes with kernels of their own, and
//! kind on a machine whose kernel can do it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::array::{Array, Lun};
use crate::ground::Ground;
use crate::keystone::Keystone;
use crate::process::wait_for;
use crate::release;
use crate::volumes::PATIENCE;

const TEXT: &str = "written on the hypervisor through the link";
/// Where the text is written on the volume, in blocks of 4 KiB.
const AT: u64 = 256;

/// From an empty LUN to a mapping that survives its agent, and back to nothing: no session, no header, no key. `name` is that
/// of namespace and tenant.
pub async fn volume_life(
    ground: &impl Ground,
    keystone: &Keystone,
    array: &mut Array,
    node: &str,
    name: &str,
) -> Result<()> {
    let iqn = format!("iqn.2026-11.dev.cryptvol:{name}");
    array.create_target(&iqn)?;
    let lun = array.create_lun(&iqn, 1, 64 << 20)?;
    ground.kubectl(&["create", "namespace", name]).await?;
    let tenant = keystone.tenant(name, "member").await?;
    let credentials = tenant.secret_manifest(name, "keystone", &tenant.clouds_yaml());
    ground.apply(&credentials.to_string()).await?;
    let manifest = json!({
        "apiVersion": "cryptvol.dev/v1alpha1", "kind": "EncryptedVolume",
        "metadata": {"name": "vol", "namespace": name},
        "spec": {
            "source": {"iscsi": {"portals": [array.portal()], "iqn": iqn, "lun": 1, "wwid": lun.wwid()}},
            "credentials": {"secretName": "keystone", "cloudName": name},
            "attachments": [{"nodeName": node}],
            "deletionPolicy": "Erase",
        },
    });
    ground.apply(&manifest.to_string()).await?;

    let volume = until_ready(ground, name).await?;
    let key = volume["status"]["key"]["id"]
        .as_str()
        .context("the status names no key")?;
    let uid = volume["metadata"]["uid"].as_str().context("a UID")?;
    let mapping = cryptvol_crds::names::mapping_name(uid);
    let link = cryptvol_crds::names::link_path(name, "vol");
    write(ground, &link).await?;
    let text = read(ground, &link).await?;
    ensure!(text == TEXT, "the link gives back: {text}");
    ensure!(
        !lun.contains(TEXT.as_bytes())?,
        "the array holds the plaintext"
    );
    ensure!(
        lun.read_at(0, 6)? == b"LUKS\xba\xbe",
        "there is no LUKS header on the array"
    );

    // Another agent finds all as it is, and changes nothing.
    let before = lun.sha256()?;
    let agents = ["-n", release::NAMESPACE, "daemonset/cryptvol-node-agent"];
    ground
        .kubectl(&[&["rollout", "restart"][..], &agents].concat())
        .await?;
    ground
        .kubectl(&[&["rollout", "status", "--timeout=180s"][..], &agents].concat())
        .await?;
    until_ready(ground, name).await?;
    let text = read(ground, &link).await?;
    ensure!(text == TEXT, "after the agent's restart: {text}");
    ensure!(lun.sha256()? == before, "a new agent wrote to the disk");

    ensure!(
        keystone.has_secret(&tenant, key).await?,
        "the key is gone too early"
    );
    ground
        .kubectl(&["delete", "evol", "-n", name, "vol", "--timeout=120s"])
        .await?;
    nothing_left(ground, &[&link, &mapping, &iqn], &lun).await?;
    ensure!(
        !keystone.has_secret(&tenant, key).await?,
        "the key is still in the key manager"
    );
    ground.kubectl(&["delete", "namespace", name]).await?;
    array.remove_target(&iqn)
}

async fn until_ready(ground: &impl Ground, namespace: &str) -> Result<Value> {
    let get = ["get", "evol", "-n", namespace, "vol", "-o", "json"];
    let ready = wait_for(
        "the volume to be Ready",
        PATIENCE,
        || async {
            let volume: Value = serde_json::from_str(&ground.kubectl(&get).await?)?;
            let ready = volume["status"]["conditions"]
                .as_array()
                .into_iter()
                .flatten()
                .any(|c| c["type"] == "Ready" && c["status"] == "True");
            Ok(ready.then_some(volume))
        },
        String::new,
    )
    .await;
    match ready {
        Ok(volume) => Ok(volume),
        Err(error) => Err(error.context(ground.kubectl(&get).await?)),
    }
}

async fn write(ground: &impl Ground, link: &str) -> Result<()> {
    let script = format!(
        "printf '{TEXT}' | dd of={link} bs=4096 seek={AT} conv=sync,fsync oflag=direct iflag=fullblock status=none"
    );
    ground.on_hypervisor(&script).await.map(|_| ())
}

async fn read(ground: &impl Ground, link: &str) -> Result<String> {
    let script =
        format!("dd if={link} bs=4096 skip={AT} count=1 iflag=direct status=none | tr -d '\\0'");
    ground.on_hypervisor(&script).await
}

async fn nothing_left(
    ground: &impl Ground,
    [link, mapping, iqn]: &[&str; 3],
    lun: &Lun,
) -> Result<()> {
    let script = format!(
        "ls {link} 2>/dev/null; grep -h '^{mapping}$' /sys/block/dm-*/dm/name 2>/dev/null; \
         grep -h '^{iqn}$' /sys/class/iscsi_session/*/targetname 2>/dev/null; true"
    );
    wait_for(
        "nothing to be left on the hypervisor",
        Duration::from_secs(10),
        || async {
            let left = ground.on_hypervisor(&script).await?;
            Ok(left.trim().is_empty().then_some(()))
        },
        String::new,
    )
    .await?;
    ensure!(
        lun.read_at(0, 1 << 20)?.iter().all(|b| *b == 0),
        "the header area is not wiped"
    );
    Ok(())
}
