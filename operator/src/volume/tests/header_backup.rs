//! The header's backup in the record, and the order to restore it.

use cryptvol_crds::{
    conditions::HEADER_BACKED_UP,
    v1alpha1::{EncryptedVolumeStatus, HeaderBackup, NodeRotationStatus, RotationPhase},
};

use super::*;
use crate::volume::transitions;

impl Cluster {
    fn backs_up(&mut self, sealed: &str) -> HeaderBackup {
        let backup = HeaderBackup {
            header: self.status().header.unwrap(),
            sealed: sealed.into(),
            ..HeaderBackup::default()
        };
        let made = backup.clone();
        self.report(|s| s.header_backup = Some(made));
        self.settle();
        backup
    }

    fn orders_restore(&mut self) {
        let uuid = self.status().luks_uuid.unwrap();
        self.annotate(names::RESTORE_HEADER_ANNOTATION, &uuid);
        self.settle();
    }
}

#[test]
fn a_backup_is_taken_and_a_restore_is_an_order_of_a_person() {
    let mut c = Cluster::attached(json!({}));
    assert!(get(&c.status().conditions, HEADER_BACKED_UP).is_none());
    let backup = c.backs_up("one");
    assert_eq!(c.status().header_backup, Some(backup.clone()));
    c.is(HEADER_BACKED_UP, "True", Reason::AsDesired);
    assert!(c.nv().spec.header_backed_up && c.nv().spec.header_restore.is_none());
    c.orders_restore();
    assert_eq!(c.told, ["HeaderRestoreRefused"], "it is up");
    c.fails(Stage::Header, Reason::HeaderMissing);
    c.settle();
    c.orders_restore();
    assert_eq!(c.told.len(), 2, "gone below its mapping");
    c.report(|s| s.mapping = None);
    c.settle();
    c.is(READY, "False", Reason::HeaderMissing);
    c.annotate(names::RESTORE_HEADER_ANNOTATION, "yes");
    c.settle();
    assert_eq!(c.told.len(), 3, "not the LUKS UUID");
    assert!(c.nv().spec.header_restore.is_none());
    c.orders_restore();
    let order = c.nv().spec.header_restore.clone().expect("an order");
    assert_eq!(order.backup, backup);
    c.report(|s| s.header_restored = Some("another order".into()));
    c.settle();
    assert!(c.status().header_restore.is_some());
    let before = c.status();
    c.report(|s| s.header_restored = Some(order.id));
    c.settle();
    let done = c.status();
    assert!(done.header_restore.is_none() && c.nv().spec.header_restore.is_none());
    assert!(done.header_restored.is_some());
    // After the record has it and for that change alone, however often the node repeats itself and whatever was written in vain before.
    let notes = |old: &EncryptedVolumeStatus, new: &EncryptedVolumeStatus| {
        let notes = transitions::between(old, new);
        notes
            .into_iter()
            .filter(|n| n.reason == "HeaderRestored")
            .count()
    };
    assert_eq!(notes(&before, &done), 1);
    assert_eq!(c.told.len(), 3, "told before it was recorded");
    c.report(|s| s.rescan = Some("later".into()));
    c.settle();
    assert_eq!(notes(&done, &c.status()), 0);
    // An order that is given up restores nothing.
    c.report(|s| s.mapping = None);
    c.settle();
    c.orders_restore();
    let before = c.status();
    assert!(before.header_restore.is_some());
    c.attach_to(&[]);
    c.settle();
    assert!(c.status().header_restore.is_none());
    assert_eq!(notes(&before, &c.status()), 0);
}

/// Nothing that the key opens is on record any more when the key is destroyed.
#[test]
fn invariant_09_an_erasure_takes_the_backup_out_of_the_record_before_the_key_goes() {
    let mut c = Cluster::attached(json!({}));
    c.backs_up("one");
    c.delete(DeletionPolicy::Erase);
    c.settle();
    assert!(c.status().header_backup.is_some() && c.keys_deleted.is_empty());
    let receipt = EraseReceipt {
        luks_uuid: c.status().luks_uuid.unwrap(),
        key_slots_wiped: 1,
        verified: true,
        at: Time(at(200)),
        node_name: c.nv().spec.node_name.clone(),
    };
    // The node's own copy, as one that was reported before the receipt.
    c.report(|s| {
        s.stage = Stage::Erased;
        s.erased = Some(receipt);
    });
    // The key manager is away, so that the record is seen between the receipt and the key's end.
    c.world.key_service = Err(problem(Reason::KeyServiceUnavailable));
    c.settle();
    let status = c.status();
    assert!(status.erased.is_some() && c.keys_deleted.is_empty() && !c.gone);
    assert!(status.header_backup.is_none(), "the backup is on record");
    assert!(get(&status.conditions, HEADER_BACKED_UP).is_none());
}

#[test]
fn a_backup_of_another_header_is_not_taken() {
    let mut c = Cluster::attached(json!({}));
    c.report(|s| s.header_backup = Some(HeaderBackup::default()));
    c.settle();
    assert!(c.status().header_backup.is_none());
}

#[test]
fn invariant_08_the_backup_changes_with_the_key_on_record() {
    let mut c = Cluster::attached(json!({}));
    let former = c.backs_up("one");
    c.annotate(names::ROTATE_KEY_ANNOTATION, "1");
    c.settle();
    let new = HeaderBackup {
        sealed: "two".into(),
        ..former.clone()
    };
    let reported = new.clone();
    c.report(|s| {
        s.header_backup = Some(reported.clone());
    });
    c.settle();
    assert_eq!(
        c.status().header_backup,
        Some(former),
        "the key is the former one"
    );
    c.report(|s| {
        s.rotation = Some(NodeRotationStatus {
            phase: RotationPhase::Adding,
            key_id: "key-2".into(),
            done: true,
            header_backup: Some(new.clone()),
            ..NodeRotationStatus::default()
        });
    });
    c.settle();
    assert_eq!(c.status().key.unwrap().id, "key-2");
    assert_eq!(c.status().header_backup.unwrap().sealed, "two");
}
