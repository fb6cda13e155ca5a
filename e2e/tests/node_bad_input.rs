//! What goes wrong on the way up, on a real kernel and a real array: the volume stops in a condition with a reason of its own
//! and a next step, nothing is written to the disk, and the repair of the cause alone makes it go on.
//!
//! One site serves all; each test has a namespace, a target and disks of its own.

use anyhow::{Context, Result, ensure};
use cryptvol_crds::conditions::{self, Reason};
use cryptvol_crds::names;
use cryptvol_e2e::array::{Lun, iqn};
use cryptvol_e2e::keystone::Tenant;
use cryptvol_e2e::shared_site::SharedSite;
use cryptvol_e2e::site::Site;
use cryptvol_e2e::volumes::Volume;
use serde_json::json;

const MIB: u64 = 1 << 20;

static SITE: SharedSite = SharedSite::new("bad-input");

/// The volume stops for this reason with the next step, and what is on the disk stays as it was.
async fn stops(site: &Site, volume: &Volume, reason: Reason, lun: &Lun) -> Result<String> {
    let before = lun.sha256()?;
    let message = volume.wait_reason(&site.plane, reason).await?;
    ensure!(
        message.contains(reason.next_step()),
        "the message of {reason} lacks the next step: {message}"
    );
    ensure!(
        site.node(0)
            .sh(&format!("test -e {}", volume.link()))
            .await?
            .code
            != 0,
        "there is a link in spite of {reason}"
    );
    ensure!(
        lun.sha256()? == before,
        "the disk was written to in spite of {reason}"
    );
    Ok(message)
}

/// Ready, and what is written through the link is not what lies on the array; then everything goes again.
async fn works_and_goes(site: &Site, volume: &Volume, lun: &Lun) -> Result<()> {
    volume.wait_ready(&site.plane).await?;
    let text = format!("plaintext of {}", volume.namespace);
    volume.write(site.node(0), &text).await?;
    ensure!(!lun.contains(text.as_bytes())?, "plaintext on the array");
    volume.clone().detached().apply(&site.plane).await?;
    volume.wait_detached(&site.plane).await?;
    volume.delete(&site.plane).await?;
    volume.wait_gone(&site.plane).await
}

/// A volume that was formatted, opened and used, and is detached now.
async fn used(site: &mut Site, name: &str) -> Result<(Tenant, Lun, Volume)> {
    let (tenant, lun, volume) = site.volume(name).await?;
    volume.apply(&site.plane).await?;
    volume.wait_ready(&site.plane).await?;
    volume.write(site.node(0), "kept").await?;
    volume.clone().detached().apply(&site.plane).await?;
    volume.wait_detached(&site.plane).await?;
    Ok((tenant, lun, volume))
}

#[tokio::test]
async fn array_unreachable() -> Result<()> {
    let mut site = SITE.take().await?;
    let (_, lun, volume) = site.volume("unreachable").await?;
    site.array.power_off()?;
    volume.apply(&site.plane).await?;
    stops(&site, &volume, Reason::PortalUnreachable, &lun).await?;
    site.array.power_on().await?;
    works_and_goes(&site, &volume, &lun).await?;
    site.passed()
}

#[tokio::test]
async fn no_such_target() -> Result<()> {
    let mut site = SITE.take().await?;
    let (_, lun, volume) = site.volume("no-target").await?;
    site.array.remove_target(&iqn("no-target"))?;
    volume.apply(&site.plane).await?;
    stops(&site, &volume, Reason::TargetNotFound, &lun).await?;
    site.array.create_target(&iqn("no-target"))?;
    let lun = site.array.create_lun(&iqn("no-target"), 1, 64 * MIB)?;
    works_and_goes(&site, &volume, &lun).await?;
    site.passed()
}

#[tokio::test]
async fn peer_failure_20_wrong_chap_secret() -> Result<()> {
    let mut site = SITE.take().await?;
    let (_, lun, volume) = site.volume("chap").await?;
    site.array
        .set_chap(&iqn("chap"), "initiator", "right-secret-1")?;
    let volume = volume.with_iscsi("chapSecretRef", json!({"name": "chap"}));
    volume.apply(&site.plane).await?;
    stops(&site, &volume, Reason::ChapSecretInvalid, &lun).await?;
    let secret = |password: &str| {
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "chap", "namespace": "chap"},
            "stringData": {"username": "initiator", "password": password}})
        .to_string()
    };
    site.plane.apply(&secret("wrong-secret-1")).await?;
    let message = stops(&site, &volume, Reason::ChapRejected, &lun).await?;
    ensure!(
        !message.contains("wrong-secret"),
        "the message shows the secret"
    );
    site.plane.apply(&secret("right-secret-1")).await?;
    works_and_goes(&site, &volume, &lun).await?;
    for word in ["right-secret-1", "wrong-secret-1"] {
        ensure!(
            !site.node(0).log("node-agent").contains(word),
            "the agent's log shows the CHAP secret"
        );
        ensure!(
            !site.operator_log(0).contains(word),
            "the operator's log shows the CHAP secret"
        );
    }
    site.passed()
}

#[tokio::test]
async fn a_target_that_does_not_prove_itself() -> Result<()> {
    let mut site = SITE.take().await?;
    let (_, lun, volume) = site.volume("mutual").await?;
    let (array, target) = (&mut site.array, iqn("mutual"));
    array.set_chap(&target, "mutual-node", "right-secret-2")?;
    array.set_own_chap(&target, "mutual-array", "right-proof-22")?;
    // One of the portals is away; the volume does not mind.
    let [first, second] = site.array.portals();
    let volume = volume
        .with_iscsi("chapSecretRef", json!({"name": "mutual"}))
        .with_iscsi("portals", json!([first.replace(":3260", ":3999"), second]));
    let secret = |proof: &str| {
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "mutual", "namespace": "mutual"},
            "type": "kubernetes.io/iscsi-chap",
            "stringData": {
                "node.session.auth.username": "mutual-node", "node.session.auth.password": "right-secret-2",
                "node.session.auth.username_in": "mutual-array", "node.session.auth.password_in": proof,
            }})
        .to_string()
    };
    site.plane.apply(&secret("wrong-proof-22")).await?;
    volume.apply(&site.plane).await?;
    stops(&site, &volume, Reason::TargetNotAuthentic, &lun).await?;
    site.plane.apply(&secret("right-proof-22")).await?;
    works_and_goes(&site, &volume, &lun).await?;
    for word in ["wrong-proof-22", "right-proof-22"] {
        for log in [site.node(0).log("node-agent"), site.operator_log(0)] {
            ensure!(!log.contains(word), "a log shows the target's secret");
        }
    }
    site.passed()
}

#[tokio::test]
async fn lun_absent() -> Result<()> {
    let mut site = SITE.take().await?;
    let (_, lun, volume) = site.volume("no-lun").await?;
    site.array.remove_lun(&iqn("no-lun"), 1)?;
    volume.apply(&site.plane).await?;
    stops(&site, &volume, Reason::LunNotFound, &lun).await?;
    let lun = site.array.create_lun(&iqn("no-lun"), 1, 64 * MIB)?;
    works_and_goes(&site, &volume, &lun).await?;
    site.passed()
}

#[tokio::test]
async fn peer_failure_06_wwid_of_another_disk() -> Result<()> {
    let mut site = SITE.take().await?;
    let (_, lun, volume) = used(&mut site, "wwid").await?;
    let other = site.array.spare(64 * MIB)?;
    site.array.swap_lun(&iqn("wwid"), 1, &other)?;
    volume.apply(&site.plane).await?;
    stops(&site, &volume, Reason::WwidMismatch, &other).await?;
    site.array.swap_lun(&iqn("wwid"), 1, &lun)?;
    volume.wait_ready(&site.plane).await?;
    ensure!(
        volume.read(site.node(0), 4).await? == "kept",
        "the data is gone"
    );
    works_and_goes(&site, &volume, &lun).await?;
    site.passed()
}

/// The label of an LVM2 physical volume, which lies in the second sector: its checksum is CRC-32 with LVM's own start value.
fn lvm_label() -> [u8; 512] {
    let mut label = [0; 512];
    label[..8].copy_from_slice(b"LABELONE");
    label[8] = 1; // number of this sector
    label[20] = 32; // where the header of the physical volume begins
    label[24..32].copy_from_slice(b"LVM2 001");
    label[32..64].copy_from_slice(b"0123456789abcdefghijklmnopqrstuv");
    let sum = label[20..].iter().fold(0xf597_a6cf_u32, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |s, _| {
            (s >> 1) ^ (0xedb8_8320 * (s & 1))
        })
    });
    label[16..20].copy_from_slice(&sum.to_le_bytes());
    label
}

#[tokio::test]
async fn a_disk_with_somebody_elses_data() -> Result<()> {
    let mut site = SITE.take().await?;
    for (name, make) in [
        ("ext4", "mkfs.ext4 -q -F"),
        ("lvm", ""),
        (
            "luks",
            "printf passphrase-of-others | cryptsetup luksFormat -q --type luks2 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 --key-file=-",
        ),
    ] {
        let (_, lun, volume) = site.volume(name).await?;
        if name == "lvm" {
            lun.write_at(512, &lvm_label())?;
        } else {
            let file = lun.file.display().to_string();
            let output = std::process::Command::new("bash")
                .args(["-c", &format!("{make} {file}")])
                .output()?;
            ensure!(
                output.status.success(),
                "{make}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        volume.apply(&site.plane).await?;
        stops(&site, &volume, Reason::ForeignSignature, &lun)
            .await
            .with_context(|| name.to_owned())?;
        let blank = site.array.spare(64 * MIB)?;
        site.array.swap_lun(&iqn(name), 1, &blank)?;
        works_and_goes(&site, &volume, &blank)
            .await
            .with_context(|| name.to_owned())?;
    }
    site.passed()
}

#[tokio::test]
async fn a_disk_that_is_not_blank() -> Result<()> {
    let mut site = SITE.take().await?;
    let (_, lun, volume) = site.volume("garbage").await?;
    lun.write_at(3 * MIB, b"somebody wrote here once")?;
    volume.apply(&site.plane).await?;
    stops(&site, &volume, Reason::DeviceNotBlank, &lun).await?;
    lun.write_at(3 * MIB, &[0; 24])?;
    works_and_goes(&site, &volume, &lun).await?;
    site.passed()
}

#[tokio::test]
async fn peer_failure_01_zeros_where_a_header_was() -> Result<()> {
    let mut site = SITE.take().await?;
    let (_, lun, volume) = used(&mut site, "zeros").await?;
    let before = site.array.read_as_zeros(&iqn("zeros"), 1)?;
    let zeros = site.array.lun(&iqn("zeros"), 1)?.clone();
    volume.apply(&site.plane).await?;
    stops(&site, &volume, Reason::HeaderMissing, &zeros).await?;
    site.array.swap_lun(&iqn("zeros"), 1, &before)?;
    volume.wait_ready(&site.plane).await?;
    ensure!(
        volume.read(site.node(0), 4).await? == "kept",
        "the data is gone"
    );
    works_and_goes(&site, &volume, &lun).await?;
    site.passed()
}

/// The volume's header is written anew from the backup in its record, only on order and only over what is not somebody else's header.
#[tokio::test]
async fn a_header_that_was_overwritten() -> Result<()> {
    let mut site = SITE.take().await?;
    let (_, lun, volume) = used(&mut site, "overwritten").await?;
    let seen = volume.get(&site.plane).await?.and_then(|v| v.status);
    let status = seen.context("a status")?;
    let uuid = status.luks_uuid.context("a LUKS UUID")?;
    ensure!(
        conditions::is_true(&status.conditions, conditions::HEADER_BACKED_UP),
        "no backup: {:?}",
        status.conditions
    );
    let backup = serde_json::to_string(&status.header_backup)?;
    ensure!(backup.len() < 1024, "{backup}");

    lun.write_at(0, &vec![0; 16 * MIB as usize])?;
    volume.apply(&site.plane).await?;
    let message = stops(&site, &volume, Reason::HeaderMissing, &lun).await?;
    ensure!(
        message.contains("kubectl cryptvol restore-header"),
        "{message}"
    );

    // A whole header of another volume is there: the order stands, and not a byte is written.
    let made = std::process::Command::new("bash")
        .args(["-c", &format!(
            "printf passphrase-of-others | cryptsetup luksFormat -q --type luks2 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 --key-file=- {}",
            lun.file.display()
        )])
        .output()?;
    ensure!(
        made.status.success(),
        "{}",
        String::from_utf8_lossy(&made.stderr)
    );
    let sum = lun.sha256()?;
    volume
        .annotate(&site.plane, names::RESTORE_HEADER_ANNOTATION, &uuid)
        .await?;
    volume
        .wait(&site.plane, "the order on record", |v| {
            v.status
                .as_ref()
                .is_some_and(|s| s.header_restore.is_some())
        })
        .await?;
    stops(&site, &volume, Reason::ForeignSignature, &lun).await?;
    ensure!(
        lun.sha256()? == sum,
        "another volume's header was written to"
    );

    // It goes, and the node writes the volume's own by itself.
    lun.write_at(0, &vec![0; 16 * MIB as usize])?;
    volume.wait_ready(&site.plane).await?;
    ensure!(
        volume.read(site.node(0), 4).await? == "kept",
        "the data is gone"
    );
    let after = volume
        .wait(&site.plane, "the restore is done", |v| {
            v.status
                .as_ref()
                .is_some_and(|s| s.header_restore.is_none())
        })
        .await?;
    let status = after.status.context("a status")?;
    ensure!(status.luks_uuid.as_ref() == Some(&uuid));
    let dump = std::process::Command::new("cryptsetup")
        .args(["luksDump", "--dump-json-metadata"])
        .arg(&lun.file)
        .output()?;
    ensure!(
        dump.status.success(),
        "cryptsetup does not know the header: {}",
        String::from_utf8_lossy(&dump.stderr)
    );
    works_and_goes(&site, &volume, &lun).await?;
    site.passed()
}

#[tokio::test]
async fn peer_failure_01_read_errors_where_a_header_was() -> Result<()> {
    let mut site = SITE.take().await?;
    let (_, lun, volume) = used(&mut site, "errors").await?;
    let before = site.array.fail_reads(&iqn("errors"), 1)?;
    volume.apply(&site.plane).await?;
    stops(&site, &volume, Reason::DeviceUnreadable, &lun).await?;
    site.array.swap_lun(&iqn("errors"), 1, &before)?;
    volume.wait_ready(&site.plane).await?;
    ensure!(
        volume.read(site.node(0), 4).await? == "kept",
        "the data is gone"
    );
    works_and_goes(&site, &volume, &lun).await?;
    site.passed()
}

#[tokio::test]
async fn the_wrong_key() -> Result<()> {
    let mut site = SITE.take().await?;
    let (tenant, lun, volume) = site.volume("wrong-key").await?;
    let right = site.keystone.store(&tenant, "right", &[7; 32]).await?;
    let wrong = site.keystone.store(&tenant, "wrong", &[8; 32]).await?;
    let with = |key: &str| volume.clone().with("key", json!({"secretRef": key}));
    with(&right).apply(&site.plane).await?;
    volume.wait_ready(&site.plane).await?;
    volume.write(site.node(0), "kept").await?;
    with(&right).detached().apply(&site.plane).await?;
    volume.wait_detached(&site.plane).await?;
    volume.delete(&site.plane).await?;
    volume.wait_gone(&site.plane).await?;

    let import = |key: &str| with(key).with("format", json!("Never"));
    import(&wrong).apply(&site.plane).await?;
    stops(&site, &volume, Reason::KeyDoesNotOpen, &lun).await?;
    volume.delete(&site.plane).await?;
    volume.wait_gone(&site.plane).await?;
    import(&right).apply(&site.plane).await?;
    volume.wait_ready(&site.plane).await?;
    ensure!(
        volume.read(site.node(0), 4).await? == "kept",
        "the data is gone"
    );
    import(&right).detached().apply(&site.plane).await?;
    volume.wait_detached(&site.plane).await?;
    volume.delete(&site.plane).await?;
    volume.wait_gone(&site.plane).await?;
    ensure!(
        site.keystone.has_secret(&tenant, &right).await?,
        "a key that the operator did not make is gone"
    );
    site.passed()
}

#[tokio::test]
async fn a_blank_disk_that_may_not_be_formatted() -> Result<()> {
    let mut site = SITE.take().await?;
    let (tenant, lun, volume) = site.volume("never").await?;
    let key = site.keystone.store(&tenant, "theirs", &[9; 32]).await?;
    let volume = volume.with("key", json!({"secretRef": key}));
    volume
        .clone()
        .with("format", json!("Never"))
        .apply(&site.plane)
        .await?;
    stops(&site, &volume, Reason::FormatNotPermitted, &lun).await?;
    volume
        .clone()
        .with("format", json!("IfPermitted"))
        .apply(&site.plane)
        .await?;
    works_and_goes(&site, &volume, &lun).await?;
    site.passed()
}

#[tokio::test]
async fn a_disk_that_two_volumes_want() -> Result<()> {
    let mut site = SITE.take().await?;
    let (_, lun, volume) = site.volume("twice").await?;
    volume.apply(&site.plane).await?;
    volume.wait_ready(&site.plane).await?;
    let second = Volume::iscsi(
        "twice",
        "second",
        &site.array.portal(),
        &iqn("twice"),
        1,
        "twice",
    )
    .on("node-1");
    second.apply(&site.plane).await?;
    second.wait_reason(&site.plane, Reason::SourceInUse).await?;
    second.delete(&site.plane).await?;
    second.wait_gone(&site.plane).await?;
    works_and_goes(&site, &volume, &lun).await?;
    site.passed()
}
