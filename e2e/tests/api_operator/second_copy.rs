//! The second copy of a header that lies apart from its disk (ADR 54), in the real key manager: what goes from there is told and comes back,
//! and so does a record that was lost. The test is the node, and what it reports as sealed is looked for in the operator's log.

use anyhow::{Context, Result, ensure};
use base64::{Engine, engine::general_purpose::STANDARD};
use cryptvol_crds::conditions::{HEADER_BACKED_UP, READY, Reason, get, is_true};
use cryptvol_crds::names;
use cryptvol_crds::v1alpha1::{
    DeviceStatus, EncryptedVolumeStatus, HeaderBackup, HeaderFacts, Stage, VolumeKeyDigest,
};
use cryptvol_e2e::process::wait_for;
use cryptvol_e2e::system::{Operator, OperatorSpec};
use cryptvol_e2e::volumes::{PATIENCE, wait_told};
use kube::ResourceExt;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;
use sha2::Digest;

use crate::ground::{Ground, TEAM, now};

const VOLUME: &str = "apart";
/// Of the disk that the node finds.
pub const WWID: &str = "naa.6001405000000001";

/// A header as a node makes one, with what stands for its volume key.
pub fn record(luks_uuid: &str, sealed: &str) -> HeaderBackup {
    let (salt, digest) = ([7; 32], [9; 32]);
    HeaderBackup {
        header: HeaderFacts {
            luks_uuid: luks_uuid.into(),
            cipher: "aes-xts-plain64".into(),
            key_size: 512,
            sector_size: 512,
            data_offset: 0,
            digest: hex::encode(sha2::Sha256::digest([salt, digest].concat())),
            ..HeaderFacts::default()
        },
        digest: VolumeKeyDigest {
            hash: "sha256".into(),
            iterations: 1000,
            salt: STANDARD.encode(salt),
            digest: STANDARD.encode(digest),
        },
        sealed: STANDARD.encode(sealed),
    }
}

impl Ground {
    /// An operator that looks every second.
    async fn looks(&self) -> Result<Operator> {
        let mut spec = OperatorSpec::new("operator-0", "127.0.0.1")?;
        spec.arguments = ["--header-check-interval", "1"].map(Into::into).into();
        let dir = self.work.dir("operator-0")?;
        Operator::start(&self.plane, &dir, &spec).await
    }

    /// The node makes a header, is given it back, and opens the disk with it.
    pub async fn opens_with_a_header(&self, volume: &str) -> Result<HeaderBackup> {
        let nv = self
            .handed_over(volume, "node-1", |nv| nv.spec.format_permit.is_some())
            .await?;
        let made = record(nv.spec.luks_uuid.as_deref().context("a UUID")?, "one");
        self.report(&nv, |s| {
            s.stage = Stage::Header;
            s.header_backup = Some(made.clone());
        })
        .await?;
        self.opens_by(volume, &made).await?;
        Ok(made)
    }

    /// The node is given that header, and opens the disk with it.
    pub async fn opens_by(&self, volume: &str, made: &HeaderBackup) -> Result<()> {
        let nv = self
            .handed_over(volume, "node-1", |nv| nv.spec.header_record.is_some())
            .await?;
        ensure!(nv.spec.header_record.as_ref() == Some(made));
        self.report(&nv, |s| {
            s.stage = Stage::Attached;
            s.header_backup = None;
            s.device = Some(DeviceStatus {
                path: "/dev/sda".into(),
                wwid: Some(WWID.into()),
                size_bytes: 1 << 30,
            });
            s.header = Some(made.header.clone());
            s.link = Some(nv.spec.link.clone());
            s.first_opened = Some(now());
        })
        .await?;
        self.until(volume, "Ready", |s| is_true(&s.conditions, READY))
            .await
            .map(drop)
    }

    /// Waits until the second copy is there, and is another secret than `former`.
    async fn copy_but(&self, former: &str, made: &HeaderBackup) -> Result<String> {
        let status = self
            .until(VOLUME, "with a second copy", |s| {
                is_true(&s.conditions, HEADER_BACKED_UP)
                    && s.header_secret.as_ref().is_some_and(|h| h.id != former)
            })
            .await?;
        let id = status.header_secret.context("a second copy")?.id;
        let payload = self
            .keystone
            .payload(&self.tenant, &id, "text/plain")
            .await?;
        ensure!(
            serde_json::from_slice::<HeaderBackup>(&payload)? == *made,
            "{id} is another header"
        );
        ensure!(
            status.header_backup.as_ref() == Some(made),
            "another record"
        );
        ensure!(is_true(&status.conditions, READY), "not in use any more");
        Ok(id)
    }

    /// Secrets that bear the name of the volume's header.
    async fn headers(&self) -> Result<Vec<String>> {
        let volume = self.volumes().get(VOLUME).await?;
        let name = names::header_version_name(TEAM, VOLUME, &volume.uid().unwrap_or_default(), 1);
        let all = self.keystone.secrets(&self.tenant).await?;
        let ours = all.into_iter().filter(|(n, _)| *n == name);
        Ok(ours.map(|(_, id)| id).collect())
    }

    /// Somebody writes another secret into the status.
    async fn points_to(&self, id: &str) -> Result<()> {
        let patch =
            Patch::Merge(json!({"status": {"headerSecret": {"id": id, "generated": true}}}));
        let (volumes, params) = (self.volumes(), PatchParams::default());
        volumes
            .patch_status(VOLUME, &params, &patch)
            .await
            .map(drop)?;
        Ok(())
    }

    /// Somebody wipes the status.
    pub async fn loses_its_status(&self, volume: &str) -> Result<EncryptedVolumeStatus> {
        let wiped = || async {
            let mut volume = self.volumes().get(volume).await?;
            let status = volume.status.take().context("a status")?;
            let (volumes, params) = (self.volumes(), PostParams::default());
            let name = volume.name_any();
            match volumes.replace_status(&name, &params, &volume).await {
                Ok(_) => Ok(Some(status)),
                Err(kube::Error::Api(e)) if e.code == 409 => Ok(None),
                Err(e) => Err(e.into()),
            }
        };
        wait_for("the status to be wiped", PATIENCE, wiped, String::new).await
    }

    async fn waits_told(&self, reason: &str, times: u64) -> Result<()> {
        wait_told(&self.plane, TEAM, VOLUME, reason, times).await
    }
}

/// Waits until the one volume is counted so, and for nothing else.
async fn counted(operator: &Operator, wanted: &str) -> Result<()> {
    let counted = || async {
        for state in ["unknown", "verified", "gone", "foreign", "differs"] {
            let name = format!("cryptvol_operator_header_copies{{state=\"{state}\"}}");
            if operator.metric(&name).await? != u64::from(state == wanted) {
                return Ok(None);
            }
        }
        Ok(Some(()))
    };
    wait_for(&format!("one {wanted}"), PATIENCE, counted, || {
        operator.log()
    })
    .await
}

#[tokio::test]
async fn a_second_copy_that_goes_is_told_and_comes_back_and_so_does_the_record() -> Result<()> {
    let ground = Ground::start("operator-second-copy").await?;
    let operator = ground.looks().await?;
    let spec = json!({"encryption": {"provider": "luks2", "detachedHeader": true}});
    ground.apply(&ground.volume(VOLUME, 1, &spec)).await?;
    let made = ground.opens_with_a_header(VOLUME).await?;
    let first = ground.copy_but("", &made).await?;
    counted(&operator, "verified").await?;
    let checked = "cryptvol_operator_header_copies_checked_timestamp_seconds";
    let checked_at = operator.metric(checked).await?;
    ensure!(checked_at > 1_700_000_000, "{checked_at}");

    // Deleted in the key manager.
    ground
        .keystone
        .delete_secret(&ground.tenant, &first)
        .await?;
    let second = ground.copy_but(&first, &made).await?;
    ensure!(ground.headers().await? == std::slice::from_ref(&second));
    ground.waits_told("HeaderCopyMissing", 1).await?;
    ground.waits_told("HeaderCopyKept", 1).await?;

    // What is no header is not taken for one, and is left where it is; the right one is found by its name, and not made twice.
    let notes = ground
        .keystone
        .store(&ground.tenant, "notes", &[1; 32])
        .await?;
    ground.points_to(&notes).await?;
    ensure!(ground.copy_but(&notes, &made).await? == second);
    ensure!(ground.headers().await? == std::slice::from_ref(&second));
    ensure!(ground.keystone.has_secret(&ground.tenant, &notes).await?);

    // Sealed otherwise: which of them opens only the key could say, so a person is asked, and nothing is stored or deleted.
    let other = HeaderBackup {
        sealed: STANDARD.encode("two"),
        ..made.clone()
    };
    let bytes = serde_json::to_vec(&other)?;
    let other = ground
        .keystone
        .store(&ground.tenant, "other", &bytes)
        .await?;
    ground.points_to(&other).await?;
    let differs = ground
        .until(VOLUME, "different", |s| {
            get(&s.conditions, HEADER_BACKED_UP)
                .is_some_and(|c| c.reason == Reason::HeaderCopyDiffers.as_str())
        })
        .await?;
    let said = get(&differs.conditions, HEADER_BACKED_UP).context("said")?;
    ensure!(
        said.message.contains(&other) && said.message.contains("delete that secret"),
        "{said:?}"
    );
    ensure!(is_true(&differs.conditions, READY), "not in use any more");
    ground.waits_told("HeaderCopyDiffers", 1).await?;
    counted(&operator, "differs").await?;
    ensure!(ground.headers().await? == std::slice::from_ref(&second));
    ground
        .keystone
        .delete_secret(&ground.tenant, &other)
        .await?;
    ensure!(ground.copy_but(&other, &made).await? == second);
    counted(&operator, "verified").await?;

    // Deleted while no operator runs.
    let mut log = operator.log();
    drop(operator);
    ground
        .keystone
        .delete_secret(&ground.tenant, &second)
        .await?;
    let operator = ground.looks().await?;
    let third = ground.copy_but(&second, &made).await?;

    // The record is lost while a node has the volume.
    let before = ground.loses_its_status(VOLUME).await?;
    let after = ground
        .until(VOLUME, "as before", |s| {
            is_true(&s.conditions, HEADER_BACKED_UP) && s.header_backup.is_some()
        })
        .await?;
    ensure!(after.header_backup == before.header_backup && after.header == before.header);
    ensure!(after.header_secret.as_ref().is_some_and(|h| h.id == third));
    ensure!(after.wwid == before.wwid && after.luks_uuid == before.luks_uuid);
    let key = |s: &EncryptedVolumeStatus| s.key.clone().map(|k| k.id);
    ensure!(key(&after) == key(&before), "another key");
    ensure!(ground.headers().await? == std::slice::from_ref(&third));

    // And once no node has: nothing says any more which disk it was. The two secrets are named, and no node is given a disk to wipe.
    ground.detaches(VOLUME).await?;
    ground.loses_its_status(VOLUME).await?;
    ground.attaches(VOLUME).await?;
    let said = ground.refused(VOLUME, Reason::HeaderRecordUnusable).await?;
    let key = key(&after).context("a key")?;
    ensure!(said.contains(&third) && said.contains(&key), "{said}");

    // Neither was ever in a log.
    log += &operator.log();
    ensure!(log.contains("LookAtSecondCopy"), "nothing was logged");
    for word in ["one", "two"]
        .map(|s| STANDARD.encode(s))
        .iter()
        .chain([&made.digest.salt])
    {
        ensure!(!log.contains(&**word), "{word} is in the log");
    }
    ground.work.passed()
}
