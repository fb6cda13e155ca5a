//! A status that is lost after the volume's key was rotated, on the real key manager: it comes back where a node has the volume, and else the volume
//! says what to import, and the import opens the disk. The test is the node.

use anyhow::{Context, Result, ensure};
use cryptvol_crds::conditions::{READY, Reason, is_true, message};
use cryptvol_crds::names;
use cryptvol_crds::v1alpha1::{
    EncryptedVolumeStatus, HeaderBackup, LastError, NodeRotationStatus, RotationPhase, Stage,
};
use kube::api::DeleteParams;
use serde_json::json;

use crate::ground::{Ground, now};
use crate::second_copy::{WWID, record};

const VOLUME: &str = "rotated";
const IMPORT: &str = "imported";

impl Ground {
    /// The node does what a rotation asks of it, with a header that it sealed anew; the status afterwards.
    async fn rotates_a_header(&self, made: &HeaderBackup) -> Result<EncryptedVolumeStatus> {
        let wish = json!({"metadata": {"annotations": {names::ROTATE_KEY_ANNOTATION: "1"}}});
        self.patch(VOLUME, &wish).await?;
        for (phase, sealed) in [
            (RotationPhase::Adding, Some(made.clone())),
            (RotationPhase::Dropping, None),
        ] {
            let nv = self
                .handed_over(VOLUME, "node-1", |nv| {
                    nv.spec.rotation.as_ref().is_some_and(|r| r.phase == phase)
                })
                .await?;
            let key_id = nv
                .spec
                .rotation
                .as_ref()
                .context("an order")?
                .key_id
                .clone();
            self.report(&nv, |s| {
                s.rotation = Some(NodeRotationStatus {
                    phase,
                    key_id,
                    done: true,
                    header_backup: sealed,
                    ..NodeRotationStatus::default()
                });
            })
            .await?;
        }
        self.until(VOLUME, "rotated", |s| {
            s.rotation.is_none() && s.key.as_ref().is_some_and(|k| k.version == 2)
        })
        .await
    }
}

#[tokio::test]
async fn a_status_that_is_lost_after_a_rotation_comes_back_or_the_volume_says_what_to_import()
-> Result<()> {
    let ground = Ground::start("operator-lost-record").await?;
    let operator = ground.operator("operator-0").await?;
    let apart = json!({"provider": "luks2", "detachedHeader": true});
    ground
        .apply(&ground.volume(VOLUME, 1, &json!({"encryption": apart})))
        .await?;
    let first = ground.opens_with_a_header(VOLUME).await?;
    let made = record(&first.header.luks_uuid, "two");
    let before = ground.rotates_a_header(&made).await?;
    ensure!(before.header_backup.as_ref() == Some(&made), "not resealed");
    let key = before.key.clone().context("a key")?;
    let header = before.header_secret.clone().context("a second copy")?.id;
    let secrets = ground.keystone.secrets(&ground.tenant).await?;
    ensure!(secrets.len() == 2, "{secrets:?}");

    // A node has the volume: all of it comes back, and no other key is made.
    ground.loses_its_status(VOLUME).await?;
    let after = ground
        .until(VOLUME, "as before", |s| {
            is_true(&s.conditions, READY) && s.header_backup.is_some()
        })
        .await?;
    let found = after.key.context("a key")?;
    ensure!((found.id, found.version) == (key.id.clone(), 2));
    ensure!(after.header_backup == before.header_backup && after.wwid == before.wwid);
    ensure!(after.header_secret == before.header_secret);
    ensure!(ground.keystone.secrets(&ground.tenant).await?.len() == 2);

    // No node has, and the operator remembers nothing: it begins like a new volume, and stops at what is on the disk.
    ground.detaches(VOLUME).await?;
    drop(operator);
    ground.loses_its_status(VOLUME).await?;
    ground.attaches(VOLUME).await?;
    let _operator = ground.operator("operator-0").await?;
    let nv = ground.handed_over(VOLUME, "node-1", |_| true).await?;
    let reason = Reason::DeviceNotBlank;
    ground
        .report(&nv, |s| {
            s.stage = Stage::Header;
            s.error = Some(LastError {
                reason: reason.to_string(),
                message: message(
                    reason,
                    "/dev/sda is neither blank nor carries anything known",
                ),
                time: now(),
            });
        })
        .await?;
    let lost = Reason::RecordLost;
    let said = ground.stops(VOLUME, lost.as_str()).await?;
    for part in [&key.id, &header, lost.next_step()] {
        ensure!(said.contains(part), "{said}");
    }

    // What it says, done.
    ground
        .patch(VOLUME, &json!({"spec": {"deletionPolicy": "Retain"}}))
        .await?;
    ground
        .volumes()
        .delete(VOLUME, &DeleteParams::default())
        .await?;
    ground.is_off(VOLUME).await?;
    ground.gone(VOLUME).await?;
    for id in [&key.id, &header] {
        ensure!(ground.keystone.has_secret(&ground.tenant, id).await?);
    }
    let mut import = ground.volume(
        IMPORT,
        1,
        &json!({
            "encryption": apart,
            "format": "Never",
            "key": {"secretRef": key.id, "headerSecretRef": header},
        }),
    );
    import["spec"]["source"]["iscsi"]["wwid"] = json!(WWID);
    ground.apply(&import).await?;
    ground.opens_by(IMPORT, &made).await?;
    ground.work.passed()
}
