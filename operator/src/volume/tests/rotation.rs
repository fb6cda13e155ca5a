//! Rotation of the passphrase: the key on record opens the disk at every moment.

use cryptvol_crds::{
    conditions::KEY_ROTATED,
    v1alpha1::{KeySlotRef, NodeRotationStatus, RotationPhase},
};

use super::*;

fn slots() -> Vec<KeySlotRef> {
    vec![KeySlotRef {
        number: 0,
        fingerprint: "f".into(),
    }]
}

impl Cluster {
    /// The agent does what the NodeVolume says of a rotation.
    pub(super) fn rotates(&mut self) -> RotationPhase {
        let order = self.nv().spec.rotation.clone().expect("an order");
        let (phase, key_id) = (order.phase, order.key_id);
        if phase == RotationPhase::Dropping {
            assert_eq!(order.former_slots, slots());
        }
        self.report(|s| {
            s.rotation = Some(NodeRotationStatus {
                phase,
                key_id,
                done: true,
                former_slots: if phase == RotationPhase::Adding {
                    slots()
                } else {
                    vec![]
                },
                header_backup: None,
                error: None,
            });
        });
        phase
    }

    fn asked() -> Self {
        let mut c = Self::attached(json!({}));
        c.annotate(names::ROTATE_KEY_ANNOTATION, "1");
        c
    }
}

#[test]
fn invariant_08_a_rotation_from_the_wish_to_the_former_keys_end() {
    let mut c = Cluster::asked();
    c.settle();
    assert_eq!(c.keys_made, 2);
    // The present key is on record until the new one was shown to open the disk.
    assert_eq!(c.status().key.unwrap().id, KEY);
    c.is(KEY_ROTATED, "False", Reason::InProgress);
    c.is(READY, "True", Reason::AsDesired);
    assert_eq!(c.rotates(), RotationPhase::Adding);
    c.settle();
    let key = c.status().key.unwrap();
    assert_eq!((key.id.as_str(), key.version), ("key-2", 2));
    assert!(c.keys_deleted.is_empty(), "its key slot may still be there");
    assert_eq!(c.rotates(), RotationPhase::Dropping);
    c.settle();
    assert_eq!(c.keys_deleted, [KEY]);
    c.is(KEY_ROTATED, "True", Reason::AsDesired);
    c.is(READY, "True", Reason::AsDesired);
    let status = c.status();
    assert!(status.rotation.is_none() && status.last_rotation.is_some());
    assert!(c.nv().spec.rotation.is_none());
    assert!(
        c.world
            .volume
            .metadata
            .annotations
            .as_ref()
            .unwrap()
            .is_empty()
    );
    // The same wish again speaks of a key that is gone.
    c.annotate(names::ROTATE_KEY_ANNOTATION, "1");
    c.settle();
    assert_eq!(c.told, ["KeyRotationRefused"]);
    assert_eq!((c.keys_made, c.status().rotation), (2, None));
}

#[test]
fn invariant_08_no_report_but_the_right_one_moves_a_rotation() {
    let mut c = Cluster::asked();
    c.settle();
    for (phase, key_id, done) in [
        (RotationPhase::Adding, "key-2", false),
        (RotationPhase::Adding, KEY, true),
        (RotationPhase::Dropping, "key-2", true),
    ] {
        c.report(|s| {
            s.rotation = Some(NodeRotationStatus {
                phase,
                key_id: key_id.into(),
                done,
                ..NodeRotationStatus::default()
            });
        });
        c.settle();
        assert_eq!(c.status().key.unwrap().id, KEY, "{phase:?} {key_id} {done}");
        assert!(c.keys_deleted.is_empty());
    }
}

#[test]
fn a_rotation_goes_on_where_the_operator_died_and_makes_no_second_key() {
    // The key was made, and its id not recorded.
    let mut c = Cluster::asked();
    while c.keys_made < 2 {
        c.round();
    }
    assert!(c.status().rotation.unwrap().key_id.is_none());
    c.world.rotation = RotationKeys::default();
    c.settle();
    assert_eq!(c.keys_made, 2);
    assert_eq!(
        c.status().rotation.unwrap().key_id.as_deref(),
        Some("key-2")
    );
    // The former one was destroyed, and that not recorded.
    c.rotates();
    c.settle();
    c.rotates();
    while c.keys_deleted.is_empty() {
        c.round();
    }
    assert!(c.status().rotation.is_some());
    c.world.rotation = RotationKeys::default();
    c.settle();
    assert!(c.status().rotation.is_none());
}

#[test]
fn trouble_shows_in_its_own_condition_and_the_volume_stays_ready() {
    let mut c = Cluster::asked();
    c.broken = Some((true, problem(Reason::KeyQuotaExceeded)));
    c.settle();
    c.is(KEY_ROTATED, "False", Reason::KeyQuotaExceeded);
    c.is(READY, "True", Reason::AsDesired);
    c.broken = None;
    c.world.rotation = RotationKeys::default();
    c.settle();
    let key_id = c.nv().spec.rotation.clone().unwrap().key_id;
    c.report(|s| {
        s.rotation = Some(NodeRotationStatus {
            key_id,
            error: Some(LastError {
                reason: "NoFreeKeySlot".into(),
                message: message(Reason::NoFreeKeySlot, "full"),
                time: Time(at(1)),
            }),
            ..NodeRotationStatus::default()
        });
    });
    c.settle();
    c.is(KEY_ROTATED, "False", Reason::NoFreeKeySlot);
    c.is(READY, "True", Reason::AsDesired);
    let text = get(&c.status().conditions, KEY_ROTATED)
        .unwrap()
        .message
        .clone();
    assert_eq!(text, message(Reason::NoFreeKeySlot, "full"));
}

#[test]
fn an_interval_makes_a_rotation_due_and_a_detached_volume_waits() {
    let mut c = Cluster::attached(json!({"rotation": {"intervalDays": 1}}));
    c.settle();
    assert!(c.status().rotation.is_none());
    c.tick += 24 * 60 * 60;
    c.attach_to(&[]);
    c.settle();
    c.lets_go();
    c.settle();
    c.is(KEY_ROTATED, "False", Reason::Waiting);
    assert_eq!(c.keys_made, 1);
    c.attach_to(&["a"]);
    c.settle();
    c.comes_up();
    c.settle();
    assert_eq!(c.keys_made, 2);
    c.rotates();
    c.settle();
    c.rotates();
    c.settle();
    c.is(KEY_ROTATED, "True", Reason::AsDesired);
    for _ in 0..3 {
        c.settle();
    }
    assert_eq!(c.keys_made, 2, "not due again");
}

#[test]
fn what_cannot_be_rotated_is_refused_with_a_sentence() {
    let mut c = Cluster::attached(json!({"key": {"secretRef": KEY}}));
    c.annotate(names::ROTATE_KEY_ANNOTATION, "1");
    c.settle();
    assert_eq!(c.told, ["KeyRotationRefused"]);
    let mut c = Cluster::attached(json!({}));
    c.annotate(names::ROTATE_KEY_ANNOTATION, "yes");
    c.settle();
    assert_eq!(c.told, ["KeyRotationRefused"]);
    assert!(c.status().rotation.is_none());
}

#[test]
fn invariant_09_a_deletion_in_the_middle_destroys_both_keys() {
    for done in 0..=1 {
        let mut c = Cluster::asked();
        c.settle();
        for _ in 0..done {
            c.rotates();
            c.settle();
        }
        assert!(c.nv().spec.rotation.is_some());
        c.delete(DeletionPolicy::Erase);
        c.settle();
        assert!(c.nv().spec.rotation.is_none(), "erasing is no time for it");
        let uuid = c.status().luks_uuid.unwrap();
        c.report(|s| {
            s.stage = Stage::Erased;
            s.erased = Some(EraseReceipt {
                luks_uuid: uuid,
                key_slots_wiped: 2,
                verified: true,
                at: Time(at(3)),
                node_name: "a".into(),
            });
        });
        c.settle();
        assert!(c.gone);
        let mut gone = c.keys_deleted.clone();
        gone.sort();
        assert_eq!(gone, [KEY, "key-2"]);
    }
}
