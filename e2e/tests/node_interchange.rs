//! Volumes of OpenStack here, and ours there: what os-brick made opens with the same key and reads the same bytes, and the reverse,
//! on one kernel, for every encryptor that os-brick has.

use anyhow::{Context, Result, ensure};
use cryptvol_e2e::array::Lun;
use cryptvol_e2e::keystone::Tenant;
use cryptvol_e2e::os_brick::{BrickVolume, OsBrick, plain_hash};
use cryptvol_e2e::site::{Site, SiteSpec};
use cryptvol_e2e::volumes::Volume;
use cryptvol_e2e::workdir::WorkDir;
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 64 * MIB;
const IQN: &str = "iqn.2026-11.dev.cryptvol:interchange";
const NAMESPACE: &str = "interchange";

/// An encryptor, and what its header takes of the disk.
struct Kind {
    provider: &'static str,
    key_size: u32,
    header: u64,
    encryption: Value,
}

fn kinds() -> Result<Vec<Kind>> {
    let kind = |provider, key_size: u32, header, more: Option<(&str, Value)>| {
        let mut encryption = json!({"provider": provider, "keySize": key_size});
        if let Some((field, value)) = more {
            encryption[field] = value;
        }
        Kind {
            provider,
            key_size,
            header,
            encryption,
        }
    };
    Ok(vec![
        kind("luks", 512, 2 * MIB, None),
        kind("luks2", 512, 16 * MIB, None),
        kind("plain", 256, 0, Some(("hash", json!(plain_hash()?)))),
    ])
}

struct Ground {
    site: Site,
    tenant: Tenant,
    brick: OsBrick,
}

impl Ground {
    /// os-brick at a disk, with a session that the hypervisor's own tools made and end.
    async fn brick(
        &self,
        lun: &Lun,
        kind: &Kind,
        key: &str,
        read: usize,
        write: Option<&str>,
    ) -> Result<String> {
        let node = self.site.node(0);
        let portal = self.site.array.portal();
        let device = format!(
            "/dev/disk/by-path/ip-{portal}-iscsi-{IQN}-lun-{}",
            lun.number
        );
        node.sh(&format!(
            "set -e; iscsiadm -m node -T {IQN} -p {portal} -o new >/dev/null
             iscsiadm -m node -T {IQN} -p {portal} --login >&2
             for h in /sys/class/iscsi_host/host*; do echo '0 0 {}' >/sys/class/scsi_host/${{h##*/}}/scan; done
             until [ -e {device} ]; do sleep 0.2; done",
            lun.number
        ))
        .await?
        .ok()?;
        let volume = BrickVolume {
            provider: kind.provider,
            key_size: kind.key_size,
            key: key.to_owned(),
        };
        let found = self
            .brick
            .visit(node, &device, &volume, read, write)
            .await
            .context("os-brick")?;
        ensure!(found.size == SIZE - kind.header, "{found:?}");
        node.sh(&format!(
            "iscsiadm -m node -T {IQN} -p {portal} --logout >&2"
        ))
        .await?
        .ok()?;
        Ok(found.text)
    }

    fn volume(&self, name: &str, lun: &Lun, kind: &Kind) -> Volume {
        let portal = self.site.array.portal();
        Volume::iscsi(NAMESPACE, name, &portal, IQN, lun.number, NAMESPACE)
            .with("encryption", kind.encryption.clone())
    }

    /// Attached, read, written to, detached.
    async fn visit(&self, volume: &Volume, kind: &Kind, read: &str, write: &str) -> Result<()> {
        let plane = &self.site.plane;
        let attached = volume.clone().on("node-1");
        attached.apply(plane).await?;
        let status = attached.wait_ready(plane).await?.status.unwrap_or_default();
        let usable = i64::try_from(SIZE - kind.header)?;
        ensure!(status.usable_bytes == Some(usable), "{status:?}");
        ensure!(
            status.size_bytes == Some(i64::try_from(SIZE)?),
            "{status:?}"
        );
        let node = self.site.node(0);
        let found = volume.read(node, read.len()).await?;
        ensure!(found == read, "read {found:?} and not {read:?}");
        volume.write(node, write).await?;
        volume.clone().detached().apply(plane).await?;
        volume.wait_detached(plane).await.map(drop)
    }
}

/// Texts of one length, each with who wrote it.
fn text(who: &str) -> String {
    format!("{who:.<40}")
}

async fn made_by_os_brick(ground: &mut Ground, kind: &Kind, number: u16) -> Result<()> {
    let lun = ground.site.array.create_lun(IQN, number, SIZE)?;
    let bytes: [u8; 32] = std::array::from_fn(|i| (i as u8).wrapping_mul(37) ^ number as u8);
    let key = hex::encode(bytes);
    let (theirs, ours) = (text("written by os-brick"), text("then by cryptvol"));
    ground.brick(&lun, kind, &key, 0, Some(&theirs)).await?;
    let raw = lun.sha256()?;
    let name = format!("theirs-{}", kind.provider);
    let id = ground
        .site
        .keystone
        .store(&ground.tenant, &name, &bytes)
        .await?;
    let volume = ground
        .volume(&name, &lun, kind)
        .with("format", json!("Never"))
        .with("key", json!({"secretRef": id}))
        .with_iscsi("wwid", json!(lun.wwid()));
    ground.visit(&volume, kind, &theirs, &ours).await?;
    ensure!(lun.sha256()? != raw, "nothing was written");
    let found = ground.brick(&lun, kind, &key, ours.len(), None).await?;
    ensure!(found == ours, "os-brick read {found:?}");
    ensure!(
        !lun.contains(b"written by os-brick")? && !lun.contains(b"then by cryptvol")?,
        "plaintext on the disk"
    );
    Ok(())
}

async fn made_by_cryptvol(ground: &mut Ground, kind: &Kind, number: u16) -> Result<()> {
    let lun = ground.site.array.create_lun(IQN, number, SIZE)?;
    let name = format!("ours-{}", kind.provider);
    let volume = ground.volume(&name, &lun, kind);
    let (ours, theirs) = (text("written by cryptvol"), text("then by os-brick"));
    ground.visit(&volume, kind, "", &ours).await?;
    let status = volume
        .get(&ground.site.plane)
        .await?
        .and_then(|v| v.status)
        .context("a status")?;
    let id = status.key.context("a key")?.id;
    let key = ground.site.keystone.passphrase(&ground.tenant, &id).await?;
    let found = ground
        .brick(&lun, kind, &key, ours.len(), Some(&theirs))
        .await?;
    ensure!(found == ours, "os-brick read {found:?}");
    ground
        .visit(&volume, kind, &theirs, &text("and again by cryptvol"))
        .await?;
    ensure!(!lun.contains(b"by os-brick")?, "plaintext on the disk");
    Ok(())
}

#[tokio::test]
async fn peer_failure_16_volumes_go_between_os_brick_and_cryptvol_both_ways() -> Result<()> {
    let brick = OsBrick::ensure()?;
    let work = WorkDir::new("interchange")?;
    let mut spec = SiteSpec::new(1);
    // os-brick's LUKS2 takes half of a machine's memory, once for it and once for us.
    spec.nodes[0].memory_mib = 768;
    let mut site = Site::start(&work, spec).await?;
    let tenant = site.tenant(NAMESPACE).await?;
    site.array.create_target(IQN)?;
    let mut ground = Ground {
        site,
        tenant,
        brick,
    };
    let mut number = 0;
    for kind in kinds()? {
        number += 1;
        made_by_os_brick(&mut ground, &kind, number)
            .await
            .with_context(|| format!("{}, made by os-brick", kind.provider))?;
        number += 1;
        made_by_cryptvol(&mut ground, &kind, number)
            .await
            .with_context(|| format!("{}, made by cryptvol", kind.provider))?;
    }
    work.passed()
}
