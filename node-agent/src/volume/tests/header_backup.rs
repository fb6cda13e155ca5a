//! Backup of the header and its restore.

use cryptvol_crds::{
    conditions::Reason,
    names,
    v1alpha1::{Desired, Stage},
};

use super::lab::*;
use crate::host::sim::*;

/// Detached, with data, and a header that somebody overwrote; wanted again.
fn overwritten(with: Content) -> Lab {
    let lab = Lab::new(1);
    lab.settle(1);
    assert!(lab.status(1).header_backup.is_some());
    assert_eq!(lab.keys_released.get(), 1, "the key in hand seals it");
    lab.want(1, Desired::Detached);
    lab.settle(1);
    lab.overwrite(1, with);
    lab.want(1, Desired::Attached);
    lab.settle(1);
    lab
}

#[test]
fn a_header_is_written_anew_only_on_order() {
    for content in [Content::Blank, Content::Garbage] {
        let lab = overwritten(content.clone());
        assert_eq!(lab.reason(1).as_deref(), Some("HeaderMissing"));
        assert!(lab.disk(1, |d| d.content == content), "untouched");
        lab.order_restore(1);
        let id = lab.volume(1).spec.header_restore.map(|r| r.id);
        lab.settle(1);
        let status = lab.status(1);
        assert_eq!((status.stage, lab.reason(1)), (Stage::Attached, None));
        assert!(status.header_restored.is_none() || status.header_restored == id);
        assert!(
            lab.volume(1).spec.header_restore.is_none(),
            "the operator took it"
        );
    }
}

#[test]
fn invariant_01_no_restore_on_another_disk_or_from_another_backup() {
    let another_header = SimHeader::new("5a2a5f3a-0000-4000-8000-000000000000", KEY);
    let lab = overwritten(Content::Luks(another_header));
    lab.order_restore(1);
    let before = lab.world.borrow().bytes_written();
    lab.settle(1);
    assert_eq!(lab.reason(1).as_deref(), Some("ForeignSignature"));
    assert_eq!(lab.world.borrow().bytes_written(), before);

    let lab = overwritten(Content::Blank);
    lab.order_restore(1);
    lab.change(1, |s| {
        s.header_restore.as_mut().unwrap().backup.sealed = "x".into()
    });
    let before = lab.world.borrow().bytes_written();
    lab.settle(1);
    assert_eq!(lab.reason(1).as_deref(), Some("HeaderBackupInvalid"));
    assert_eq!(lab.world.borrow().bytes_written(), before);

    let lab = overwritten(Content::Blank);
    lab.order_restore(1);
    lab.disk(1, |d| d.wwid = Some(wwid(9)));
    let before = lab.world.borrow().bytes_written();
    lab.settle(1);
    assert_eq!(lab.reason(1).as_deref(), Some("WwidMismatch"));
    assert_eq!(lab.world.borrow().bytes_written(), before);
}

#[test]
fn without_a_wwid_on_record_only_a_file_of_ours_is_written() {
    let lab = overwritten(Content::Blank);
    lab.operator_pins.set(false);
    lab.disk(1, |d| d.wwid = None);
    lab.change(1, |s| s.wwid = None);
    // As a node that never had the volume: it knows no more than the record.
    lab.volumes
        .borrow_mut()
        .get_mut(&name(1))
        .unwrap()
        .status
        .as_mut()
        .unwrap()
        .device = None;
    lab.order_restore(1);
    let before = lab.world.borrow().bytes_written();
    lab.settle(1);
    assert_eq!(lab.reason(1).as_deref(), Some("IdentityUnproven"));
    assert_eq!(lab.world.borrow().bytes_written(), before);
}

#[test]
fn none_is_made_where_the_class_says_so() {
    const NEW: &str = "0e77e7c0ffee0e77e7c0ffee0e77e7c0ffee0e77e7c0ffee0e77e7c0ffee0e77";
    let lab = Lab::new(1);
    lab.change(1, |s| s.encryption.header_backup = false);
    lab.settle(1);
    lab.rotate(1, NEW);
    lab.settle(1);
    let status = lab.status(1);
    assert_eq!((status.stage, lab.reason(1)), (Stage::Attached, None));
    assert!(status.rotation.is_none() && status.header_backup.is_none());
    assert!(
        lab.names
            .borrow()
            .iter()
            .all(|n| !n.ends_with("backup-header"))
    );
}

#[test]
fn a_backup_that_fails_ends_nothing_and_is_made_later() {
    let lab = Lab::new(1);
    *lab.next_faults.borrow_mut() = vec![(
        "before backup-header".into(),
        Fault::Fail(Reason::StepFailed),
    )];
    lab.run(1);
    assert_eq!(
        (lab.status(1).stage, lab.reason(1)),
        (Stage::Attached, None)
    );
    assert!(lab.status(1).header_backup_error.is_some());
    lab.settle(1);
    assert!(lab.status(1).header_backup.is_some());
    assert!(lab.status(1).header_backup_error.is_none());
}

#[test]
fn a_rotation_leaves_a_backup_under_the_new_key() {
    const NEW: &str = "0e77e7c0ffee0e77e7c0ffee0e77e7c0ffee0e77e7c0ffee0e77e7c0ffee0e77";
    let lab = Lab::new(1);
    lab.settle(1);
    lab.rotate(1, NEW);
    lab.settle(1);
    let backup = lab.status(1).header_backup.unwrap();
    assert_eq!(backup.sealed, fingerprint(NEW));
    assert!(lab.world.borrow_mut().guest_writes(&Lab::link(1)).is_some());
    lab.world
        .borrow_mut()
        .guests_leave(&names::mapping_name(&uid(1)));
}
