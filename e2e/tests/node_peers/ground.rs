//! What these tests share: the site, disks of the node that can be made to fail, and what the agent counts.

use anyhow::{Context, Result, ensure};
use cryptvol_crds::conditions::Reason;
use cryptvol_e2e::agent_metrics;
use cryptvol_e2e::node::Node;
use cryptvol_e2e::process::wait_for;
use cryptvol_e2e::shared_site::SharedSite;
use cryptvol_e2e::site::{AGENT_LOG, Site};
use cryptvol_e2e::volumes::{PATIENCE, Volume};
use serde_json::json;

pub static SITE: SharedSite = SharedSite::new("peers");

/// A disk of the node itself: a file, a loop device over it, and a device-mapper device, which is the volume's raw disk and becomes
/// whatever a test wants.
pub struct LocalDisk {
    name: String,
    loop_device: String,
    sectors: u64,
}

impl LocalDisk {
    /// A blank one.
    pub async fn make(node: &Node, name: &str) -> Result<Self> {
        const BYTES: u64 = 24 << 20;
        let image = format!("/cv/{name}.img");
        let attach = format!("truncate -s {BYTES} {image} && losetup --find --show {image}");
        let loop_device = node.sh(&attach).await?.ok()?.trim().to_owned();
        let disk = Self {
            name: name.to_owned(),
            loop_device,
            sectors: BYTES / 512,
        };
        let create = format!(
            "set -e; dmsetup create {name} --uuid LVM-cryptvol-{name} --table '{}'; [ -b {path} ] || dmsetup mknodes",
            disk.good(),
            path = disk.path(),
        );
        node.sh(&create).await?.ok()?;
        Ok(disk)
    }

    /// Where the node has it.
    pub fn path(&self) -> String {
        format!("/dev/mapper/{}", self.name)
    }

    /// A volume on it, attached to the node in its manifest, not applied yet; the tenant must be there.
    pub fn volume(&self, namespace: &str, node: &Node) -> Volume {
        Volume::iscsi(namespace, &self.name, "unused", "unused", 0, namespace)
            .with("source", json!({"device": {"path": self.path()}}))
            .on(node.name())
    }

    /// A part of the disk as a line of a table: from one sector to another, with a target and what that wants to be told behind the device and
    /// where the part begins on it.
    fn part(&self, from: u64, to: u64, target: &str, behind: &str) -> String {
        format!(
            "{from} {} {target} {} {from} {behind}",
            to - from,
            self.loop_device
        )
    }

    /// All of it with a target, and what that wants to be told behind device and offset.
    pub fn all(&self, target: &str, behind: &str) -> String {
        self.part(0, self.sectors, target, behind)
    }

    /// As a disk is that works.
    pub fn good(&self) -> String {
        self.all("linear", "")
    }

    /// With a target that has no device below it, as `zero` and `error`.
    pub fn nothing(&self, target: &str) -> String {
        format!("0 {} {target}", self.sectors)
    }

    /// Works up to this sector, and is otherwise from there on.
    pub fn good_up_to(&self, sector: u64, target: &str, behind: &str) -> String {
        let first = self.part(0, sector, "linear", "");
        let rest = self.part(sector, self.sectors, target, behind);
        format!("{first}\n{rest}")
    }

    /// Becomes what the table says. What waits for an answer is answered by what it was before.
    pub async fn becomes(&self, node: &Node, table: &str) -> Result<()> {
        let Self { name, .. } = self;
        let change = format!(
            "set -e; dmsetup load {name} --table '{table}'; dmsetup suspend {name}; dmsetup resume {name}"
        );
        node.sh(&change).await?.ok().map(drop)
    }

    /// What is on it, as the node has it, stored or not.
    pub async fn sum(&self, node: &Node) -> Result<String> {
        let sum = format!("sha256sum </cv/{}.img", self.name);
        node.sh(&sum).await?.ok()
    }

    /// Takes it from the node; nothing of a volume may be on it any more.
    pub async fn remove(self, node: &Node) -> Result<()> {
        let Self {
            name, loop_device, ..
        } = self;
        let remove = format!(
            "dmsetup remove --retry {name} && losetup -d {loop_device} && rm /cv/{name}.img"
        );
        node.sh(&remove).await?.ok().map(drop)
    }
}

/// The message of a volume that stops for this reason: it has the next step, and there is neither a link nor a mapping.
pub async fn stops(site: &Site, volume: &Volume, reason: Reason) -> Result<String> {
    let said = volume.wait_reason(&site.plane, reason).await?;
    ensure!(said.contains(reason.next_step()), "no next step: {said}");
    let uid = volume.get(&site.plane).await?;
    let uid = uid.and_then(|v| v.metadata.uid).context("a uid")?;
    let nothing = format!(
        "! test -e {} && ! dmsetup info {} 2>/dev/null",
        volume.link(),
        cryptvol_crds::names::mapping_name(&uid)
    );
    site.node(0).sh(&nothing).await?.ok()?;
    Ok(said)
}

/// Applies it, and waits until it is attached and has what was written.
pub async fn attached_with(site: &Site, volume: &Volume, text: &str) -> Result<()> {
    volume.apply(&site.plane).await?;
    volume.wait_ready(&site.plane).await?;
    has(site, volume, text).await
}

/// It reads as what was written.
pub async fn has(site: &Site, volume: &Volume, text: &str) -> Result<()> {
    let read = volume.read(site.node(0), text.len()).await?;
    ensure!(read == text, "{}: {read:?}", volume.name);
    Ok(())
}

/// Detaches it.
pub async fn detach(site: &Site, volume: &Volume) -> Result<()> {
    volume.clone().detached().apply(&site.plane).await?;
    volume.wait_detached(&site.plane).await.map(drop)
}

/// Formatted, opened, written to and detached again.
pub async fn used(site: &Site, volume: &Volume, text: &str) -> Result<()> {
    volume.apply(&site.plane).await?;
    volume.wait_ready(&site.plane).await?;
    volume.write(site.node(0), text).await?;
    detach(site, volume).await
}

/// Deletes them.
pub async fn all_go(site: &Site, volumes: &[&Volume]) -> Result<()> {
    for volume in volumes {
        volume.delete(&site.plane).await?;
    }
    for volume in volumes {
        volume.wait_gone(&site.plane).await?;
    }
    Ok(())
}

/// A counter of the agent: 0 where it has none of that name, with the labels, yet.
pub async fn counted(node: &Node, name: &str) -> Result<u64> {
    agent_metrics::count(&agent_metrics::text(node).await?, name)
}

/// Waits until a counter of the agent is so much more.
pub async fn counts(node: &Node, name: &str, more: u64) -> Result<()> {
    let before = counted(node, name).await?;
    wait_for(
        &format!("{name} {more} times"),
        PATIENCE,
        || async { Ok((counted(node, name).await? >= before + more).then_some(())) },
        || node.log(AGENT_LOG),
    )
    .await
}
