//! A node that is a container on its machine, as on kind: the agent has a network and a process namespace of its own, and the
//! kernel's iSCSI, iscsid and udev are outside of them.

use anyhow::{Context, Result, ensure};
use cryptvol_e2e::array::iqn;
use cryptvol_e2e::site::{Site, SiteSpec};
use cryptvol_e2e::workdir::WorkDir;
use serde_json::json;

const TEXT: &str = "written on the machine";

#[tokio::test]
async fn an_agent_in_a_container_attaches_through_the_machines_namespaces() -> Result<()> {
    let work = WorkDir::new("container")?;
    let mut site = Site::start(&work, SiteSpec::new(1)).await?;
    site.kill_agent(0).await?;
    site.put_agent_in_container(0).await?;
    site.start_agent(0).await?;

    let (tenant, lun, volume) = site.volume("boxed").await?;
    site.array
        .set_chap(&iqn("boxed"), "boxed", "a secret of 16 ch")?;
    let chap = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "chap", "namespace": "boxed"},
        "stringData": {"username": "boxed", "password": "a secret of 16 ch"},
    });
    site.plane.apply(&chap.to_string()).await?;
    let volume = volume
        .with("deletionPolicy", json!("Erase"))
        .with_iscsi("chapSecretRef", json!({"name": "chap"}));
    volume.apply(&site.plane).await?;
    let ready = volume.wait_ready(&site.plane).await?;
    let key = ready.status.and_then(|s| s.key).context("a key")?;

    volume.write(site.node(0), TEXT).await?;
    ensure!(!lun.contains(TEXT.as_bytes())?, "plaintext on the array");

    // The agent anew, and without the machine's procfs: what is open stays, and the check says what is missing.
    site.kill_agent(0).await?;
    site.start_agent(0).await?;
    volume.wait_ready(&site.plane).await?;
    let binary = cryptvol_e2e::identity_service::product_binary("cryptvol-node-agent")?;
    let check = format!(
        "ip netns exec container unshare --pid --fork --mount-proc {}",
        binary.display()
    );
    let blind = site.node(0).sh(&format!("{check} check")).await?;
    ensure!(
        blind.code == 1 && blind.stdout.contains("iscsid"),
        "without the machine's view: {blind:?}"
    );
    let seeing = site
        .node(0)
        .sh(&format!("{check} check --host-proc /run/machine-proc"))
        .await?;
    ensure!(seeing.code == 0, "with the machine's view: {seeing:?}");

    volume.delete(&site.plane).await?;
    volume.wait_gone(&site.plane).await?;
    let left = site
        .node(0)
        .sh("dmsetup ls | grep cryptvol-; ls /sys/class/iscsi_session; find /dev/cryptvol -type l; true")
        .await?
        .ok()?;
    ensure!(left.trim().is_empty(), "left behind: {left}");
    ensure!(
        !site.keystone.has_secret(&tenant, &key.id).await?,
        "the key is still there"
    );
    work.passed()
}
