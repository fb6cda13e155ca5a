//! Volumes whose header lies apart from their disk, on a real kernel: the array holds ciphertext and nothing else from the first byte to
//! the last, the header is in the record and in the key manager before the disk is opened, and either of the two is enough.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cryptvol_crds::conditions::{self, KEY_ROTATED, Reason};
use cryptvol_crds::v1alpha1::{EncryptedVolumeStatus, HeaderBackup};
use cryptvol_crds::{EncryptedVolume, names};
use cryptvol_e2e::array::{Lun, iqn};
use cryptvol_e2e::identity_service::product_binary;
use cryptvol_e2e::keystone::Tenant;
use cryptvol_e2e::site::{Site, SiteSpec};
use cryptvol_e2e::volumes::Volume;
use cryptvol_e2e::workdir::{WorkDir, workspace_root};
use serde_json::{Value, json};

const TEXT: &str = "what a guest wrote on a disk without a header";

/// A volume of `examples/detached-header`, with the names and addresses of this one in the place of its placeholders.
async fn example(site: &Site, file: &str, volume: &Volume) -> Result<Volume> {
    let folder = workspace_root().join("examples/detached-header");
    let class = std::fs::read_to_string(folder.join("encryptionclass.yaml"))?;
    site.plane.apply(&class).await?;
    let file = folder.join(file).to_string_lossy().into_owned();
    let args = ["create", "--dry-run=client", "-o", "json", "-f", &file];
    let mut manifest: Value = serde_json::from_str(&site.plane.kubectl(&args).await?)?;
    let own = &volume.manifest;
    manifest["metadata"] = own["metadata"].clone();
    let (spec, own) = (&mut manifest["spec"], &own["spec"]);
    for field in ["credentials", "attachments"] {
        spec[field] = own[field].clone();
    }
    for field in ["portals", "iqn", "lun"] {
        spec["source"]["iscsi"][field] = own["source"]["iscsi"][field].clone();
    }
    Ok(Volume {
        manifest,
        ..volume.clone()
    })
}

fn status(volume: EncryptedVolume) -> Result<EncryptedVolumeStatus> {
    volume.status.context("a status")
}

/// No copy of a header anywhere on the disk, nor what was written.
fn nothing_but_ciphertext(lun: &Lun) -> Result<()> {
    for magic in [
        &b"LUKS\xba\xbe"[..],
        b"SKUL\xba\xbe",
        b"keyslots",
        TEXT.as_bytes(),
    ] {
        ensure!(!lun.contains(magic)?, "{magic:?} is on the array");
    }
    Ok(())
}

/// Names of the volume's secrets, without what they have in common.
async fn secrets(site: &Site, tenant: &Tenant) -> Result<Vec<String>> {
    let all = site.keystone.secrets(tenant).await?;
    let rest = |name: &str| name.splitn(5, '/').nth(4).unwrap_or_default().to_owned();
    let mut names: Vec<_> = all.iter().map(|(name, _)| rest(name)).collect();
    names.sort();
    Ok(names)
}

async fn reads(site: &Site, volume: &Volume) -> Result<()> {
    let found = volume.read(site.node(0), TEXT.len()).await?;
    ensure!(found == TEXT, "read {found:?}");
    Ok(())
}

async fn down_and_up(site: &Site, volume: &Volume) -> Result<()> {
    volume.clone().detached().apply(&site.plane).await?;
    volume.wait_detached(&site.plane).await?;
    site.nothing_left(0).await?;
    volume.apply(&site.plane).await?;
    volume.wait_ready(&site.plane).await.map(drop)
}

/// The header as the agent's own command makes it, for cryptsetup.
async fn header_file(
    site: &Site,
    work: &WorkDir,
    name: &str,
    record: &HeaderBackup,
    passphrase: &str,
) -> Result<PathBuf> {
    let from = work.path().join(format!("{name}.json"));
    std::fs::write(&from, serde_json::to_vec(record)?)?;
    let out = work.path().join(format!("{name}.header"));
    let binary = product_binary("cryptvol-node-agent")?;
    let text = |path: &PathBuf| path.to_str().map(str::to_owned).context("a path");
    let (binary, from, to) = (text(&binary)?, text(&from)?, text(&out)?);
    let argv = [&*binary, "header", "--record", &from, "--out", &to];
    let input = format!("{passphrase}\n");
    let limit = Duration::from_secs(60);
    site.node(0)
        .exec_with(&argv, &[], input.as_bytes(), limit)
        .await?
        .ok()?;
    Ok(out)
}

/// cryptsetup opens the disk with a header in a file, on the node, by hand; gives back what it reads.
async fn cryptsetup_reads(
    site: &Site,
    work: &WorkDir,
    target: &str,
    header: &std::path::Path,
    passphrase: &str,
) -> Result<String> {
    let key = work.path().join("passphrase");
    std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&key)?
        .write_all(passphrase.as_bytes())?;
    let portal = site.array.portal();
    let script = format!(
        "set -e
         iscsiadm -m node -T {target} -p {portal} -o new >/dev/null
         iscsiadm -m node -T {target} -p {portal} --login >&2
         for h in /sys/class/iscsi_host/host*; do echo '0 0 1' >/sys/class/scsi_host/${{h##*/}}/scan; done
         disk=/dev/disk/by-path/ip-{portal}-iscsi-{target}-lun-1
         until [ -e $disk ]; do sleep 0.2; done
         cryptsetup open --type luks2 --header {} --key-file {} $disk by-hand >&2
         [ $(blockdev --getsize64 /dev/mapper/by-hand) = $(blockdev --getsize64 $disk) ]
         head -c {} /dev/mapper/by-hand
         cryptsetup close by-hand
         iscsiadm -m node -T {target} -p {portal} --logout >&2",
        header.display(),
        key.display(),
        TEXT.len(),
    );
    site.node(0).sh(&script).await?.ok()
}

#[tokio::test]
async fn peer_failure_17_a_disk_without_a_header_opens_by_its_record_or_by_its_secret_and_by_nothing_else()
-> Result<()> {
    let work = WorkDir::new("detached")?;
    let mut site = Site::start(&work, SiteSpec::new(1)).await?;
    let (tenant, lun, volume) = site.volume("detached").await?;
    let volume = example(&site, "encryptedvolume.yaml", &volume).await?;
    // The power goes when the mapping was made for the first time, and nothing says so yet.
    site.kill_agent(0).await?;
    site.launch_agent(0, &["--failpoint", "open:after:exit"])
        .await?;
    volume.apply(&site.plane).await?;
    ensure!(site.agent_exit(0).await? == 86, "not at the fail point");
    let before = status(volume.get(&site.plane).await?.context("it is there")?)?;
    ensure!(before.first_opened.is_none(), "{before:?}");
    let secret = before
        .header_secret
        .context("no second copy before the disk is opened")?;
    ensure!(site.keystone.has_secret(&tenant, &secret.id).await?);
    site.power_cycle(0).await?;
    let ready = status(volume.wait_ready(&site.plane).await?)?;
    let size = i64::try_from(lun.size()?)?;
    let header = ready.header.context("facts")?;
    ensure!(
        header.data_offset == 0 && ready.usable_bytes == Some(size),
        "{header:?}"
    );
    ensure!(
        ready.header_backup == before.header_backup,
        "another header"
    );
    ensure!(secrets(&site, &tenant).await? == ["", "header"]);
    ensure!(
        lun.sha256()? == {
            // Nothing was written on it until the guest does.
            use sha2::Digest;
            hex::encode(sha2::Sha256::digest(vec![0; lun.size()? as usize]))
        }
    );
    volume.write(site.node(0), TEXT).await?;
    nothing_but_ciphertext(&lun)?;
    down_and_up(&site, &volume).await?;
    reads(&site, &volume).await?;

    // Its key out of the kernel and back, its disk longer, under the same header.
    let suspended = volume.clone().with("suspended", json!(true));
    suspended.apply(&site.plane).await?;
    volume.wait_reason(&site.plane, Reason::Suspended).await?;
    volume.apply(&site.plane).await?;
    volume.wait_ready(&site.plane).await?;
    site.array.resize_lun(&iqn("detached"), 1, 96 << 20)?;
    volume
        .annotate(&site.plane, names::RESCAN_ANNOTATION, "longer")
        .await?;
    volume
        .wait(&site.plane, "longer", |v| {
            v.status
                .as_ref()
                .is_some_and(|s| s.usable_bytes == Some(96 << 20))
        })
        .await?;
    reads(&site, &volume).await?;

    // Rotated, the agent killed where the header is sealed anew and where it is shown to open.
    for (version, fail_point) in [
        (1, "add-key-slot:after:exit"),
        (2, "drop-key-slots:before:exit"),
    ] {
        let former = site.keystone.secrets(&tenant).await?;
        site.kill_agent(0).await?;
        volume
            .annotate(
                &site.plane,
                names::ROTATE_KEY_ANNOTATION,
                &version.to_string(),
            )
            .await?;
        site.launch_agent(0, &["--failpoint", fail_point]).await?;
        ensure!(site.agent_exit(0).await? == 86, "{fail_point}");
        site.power_cycle(0).await?;
        let rotated = volume
            .wait(&site.plane, "rotated", |v| {
                v.status.as_ref().is_some_and(|s| {
                    s.rotation.is_none()
                        && s.key.as_ref().is_some_and(|k| k.version == version + 1)
                        && conditions::is_true(&s.conditions, KEY_ROTATED)
                })
            })
            .await
            .context(fail_point)?;
        for (name, id) in former {
            ensure!(
                !site.keystone.has_secret(&tenant, &id).await?,
                "{name} is still there"
            );
        }
        let next = version + 1;
        ensure!(secrets(&site, &tenant).await? == [format!("{next}"), format!("{next}/header")]);
        let sealed = status(rotated)?.header_backup.context("a header")?;
        ensure!(
            Some(&sealed) != ready.header_backup.as_ref(),
            "sealed as before"
        );
        volume.wait_ready(&site.plane).await?;
        reads(&site, &volume).await?;
    }
    nothing_but_ciphertext(&lun)?;

    // What cryptsetup makes of it, from the record and from the key manager's copy.
    volume.clone().detached().apply(&site.plane).await?;
    let last = status(volume.wait_detached(&site.plane).await?)?;
    let (key, secret) = (
        last.key.context("a key")?,
        last.header_secret.context("a secret")?,
    );
    let passphrase = site.keystone.passphrase(&tenant, &key.id).await?;
    let record = last.header_backup.context("a header")?;
    let copy = site
        .keystone
        .payload(&tenant, &secret.id, "text/plain")
        .await?;
    ensure!(
        serde_json::from_slice::<HeaderBackup>(&copy)? == record,
        "two headers"
    );
    let file = header_file(&site, &work, "record", &record, &passphrase).await?;
    let found = cryptsetup_reads(&site, &work, &iqn("detached"), &file, &passphrase).await?;
    ensure!(found == TEXT, "cryptsetup reads {found:?}");
    let wrong = "0".repeat(64);
    let refused = header_file(&site, &work, "wrong", &record, &wrong).await;
    ensure!(refused.is_err() && !work.path().join("wrong.header").exists());

    // The record is lost: disk, key and second copy are enough.
    volume.delete(&site.plane).await?;
    volume.wait_gone(&site.plane).await?;
    let mut again = example(&site, "import.yaml", &volume)
        .await?
        .with(
            "key",
            json!({"secretRef": key.id, "headerSecretRef": secret.id}),
        )
        .with_iscsi("wwid", json!(lun.wwid()));
    again.name = "again".to_owned();
    again.manifest["metadata"]["name"] = json!("again");
    again.apply(&site.plane).await?;
    let imported = status(again.wait_ready(&site.plane).await?)?;
    ensure!(
        imported.header.as_ref() == Some(&header),
        "{:?}",
        imported.header
    );
    reads(&site, &again).await?;
    down_and_up(&site, &again).await?;
    reads(&site, &again).await?;
    work.passed()
}

#[tokio::test]
async fn what_is_a_strangers_is_not_taken_and_an_erasure_ends_key_and_header() -> Result<()> {
    let work = WorkDir::new("detached-erase")?;
    let mut site = Site::start(&work, SiteSpec::new(1)).await?;
    let (tenant, lun, volume) = site.volume("detached-erase").await?;
    let volume = example(&site, "encryptedvolume.yaml", &volume)
        .await?
        .with("deletionPolicy", json!("Erase"));
    lun.write_at(1 << 20, b"what a stranger wrote")?;
    let sum = lun.sha256()?;
    volume.apply(&site.plane).await?;
    volume
        .wait_reason(&site.plane, Reason::DeviceNotBlank)
        .await?;
    ensure!(lun.sha256()? == sum, "the disk was written to");
    ensure!(secrets(&site, &tenant).await? == [""], "a header for it");
    lun.write_at(1 << 20, &[0; 21])?;
    volume.wait_ready(&site.plane).await?;
    volume.write(site.node(0), TEXT).await?;
    ensure!(secrets(&site, &tenant).await? == ["", "header"]);
    volume.delete(&site.plane).await?;
    volume.wait_gone(&site.plane).await?;
    ensure!(
        secrets(&site, &tenant).await?.is_empty(),
        "secrets are left"
    );
    nothing_but_ciphertext(&lun)?;
    ensure!(lun.sha256()? != sum, "nothing was written at all");
    site.nothing_left(0).await?;
    work.passed()
}
