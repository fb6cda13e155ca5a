//! Volumes whose header lies apart from their disk: the record is kept before anything is opened, and is the one thing that opens it.

use cryptvol_crds::{
    conditions::Reason,
    names,
    v1alpha1::{Desired, NodeVolumeSpec, NodeVolumeStatus, Provider, Stage},
};

use super::lab::*;
use crate::host::sim::*;

const NEXT: &str = "0e77e7c0ffee0e77e7c0ffee0e77e7c0ffee0e77e7c0ffee0e77e7c0ffee0e77";

impl Lab {
    /// The operator's part: the first header that a node reports is kept in both places, and only then handed over.
    pub(super) fn keep_record(&self, spec: &mut NodeVolumeSpec, status: &NodeVolumeStatus) {
        let made = status.header_backup.as_ref();
        if spec.encryption.detached_header && spec.header_record.is_none() && spec.header.is_none()
        {
            spec.header_record = made.cloned();
        }
    }

    /// What is on record is the header that the data was written by, and opens with the key on record.
    pub(super) fn record_opens(&self, spec: &NodeVolumeSpec) -> bool {
        let Some(record) = spec.header_record.as_ref() else {
            return !spec.encryption.detached_header;
        };
        let pinned = spec.header.as_ref();
        record.sealed == fingerprint(&self.stored(&spec.volume_ref.name))
            && pinned.is_none_or(|p| *p == record.header)
    }
}

fn new() -> Lab {
    let lab = Lab::new(1);
    lab.change(1, |s| s.encryption.detached_header = true);
    lab
}

fn attached() -> Lab {
    let lab = new();
    lab.settle(1);
    assert!(lab.world.borrow_mut().guest_writes(&Lab::link(1)).is_some());
    lab.world
        .borrow_mut()
        .guests_leave(&names::mapping_name(&uid(1)));
    lab
}

fn down(lab: Lab) -> Lab {
    lab.want(1, Desired::Detached);
    lab.settle(1);
    lab
}

fn is_up(lab: &Lab) {
    let status = lab.status(1);
    assert_eq!((status.stage, lab.reason(1)), (Stage::Attached, None));
}

#[test]
fn the_header_is_kept_before_the_disk_is_opened_and_the_disk_gets_none() {
    let lab = new();
    lab.run(1);
    let status = lab.status(1);
    assert_eq!((status.stage, lab.reason(1)), (Stage::Header, None));
    let record = status.header_backup.unwrap();
    assert_eq!(record.header.data_offset, 0);
    // Not pinned: the disk was not opened by it, and is still to be blank when it is.
    assert!(status.header.is_none() && status.mapping.is_none());
    assert!(lab.world.borrow().kernel.mappings.is_empty());
    // Again and again, as long as the operator has not kept it: the same.
    lab.run(1);
    lab.run(1);
    assert_eq!(lab.status(1).header_backup.as_ref(), Some(&record));
    lab.settle(1);
    is_up(&lab);
    let status = lab.status(1);
    assert_eq!(status.header.as_ref(), Some(&record.header));
    assert_eq!(status.mapping.unwrap().size_bytes, 1 << 30);
    assert_eq!(status.permit, None);
    assert_eq!(lab.world.borrow().bytes_written(), 0);
}

#[test]
fn invariant_02_a_disk_that_is_not_blank_is_not_taken_for_new() {
    let header = Content::Luks(SimHeader::new(&luks_uuid(1), KEY));
    for (content, reason) in [
        (Content::Garbage, Reason::DeviceNotBlank),
        (Content::Foreign("ext4".into()), Reason::ForeignSignature),
        (header, Reason::ForeignSignature),
    ] {
        let lab = new();
        lab.disk(1, |d| d.content = content.clone());
        lab.stops(reason);
        assert!(lab.status(1).header_backup.is_none());
        // Nor when the header was kept meanwhile.
        let lab = new();
        lab.run(1);
        lab.operate(1);
        assert!(lab.volume(1).spec.header_record.is_some());
        lab.disk(1, |d| d.content = content);
        lab.stops(reason);
    }
}

#[test]
fn invariant_01_without_wwid_or_with_another_the_disk_is_not_opened() {
    let lab = new();
    lab.disk(1, |d| d.wwid = None);
    lab.change(1, |s| s.wwid = None);
    let said = lab.stops(Reason::IdentityUnproven);
    assert!(said.contains("detachedHeader"), "{said}");

    let lab = down(attached());
    let other = lab.add_disk(Disk::blank(&wwid(2)).with(Content::Garbage));
    lab.target(|t| t.luns.insert(1, other));
    lab.want(1, Desired::Attached);
    lab.stops(Reason::WwidMismatch);
    let lab = Lab::file(Provider::Luks2, 1);
    lab.change(1, |s| s.encryption.detached_header = true);
    lab.stops(Reason::IdentityUnproven);
}

#[test]
fn a_header_that_was_lost_or_changed_opens_nothing_and_no_other_is_made() {
    let lost = |s: &mut NodeVolumeSpec| s.header_record = None;
    let changed = |s: &mut NodeVolumeSpec| s.header_record.as_mut().unwrap().sealed = "x".into();
    let other = |s: &mut NodeVolumeSpec| {
        s.header_record.as_mut().unwrap().header.digest = "another".into();
    };
    let weaker = |s: &mut NodeVolumeSpec| {
        s.header = None;
        s.header_record.as_mut().unwrap().header.cipher = "cipher_null-ecb".into();
    };
    let on_disk = |s: &mut NodeVolumeSpec| {
        s.header_record.as_mut().unwrap().header.data_offset = 16 << 20;
    };
    let changes: [&dyn Fn(&mut NodeVolumeSpec); 5] = [&lost, &changed, &other, &weaker, &on_disk];
    for (n, change) in changes.iter().enumerate() {
        let lab = down(attached());
        lab.operator_pins.set(false);
        let right = lab.volume(1).spec.header_record;
        lab.change(1, |s| {
            s.desired = Desired::Attached;
            change(s);
        });
        lab.run_unchecked(1);
        assert_eq!(
            lab.reason(1).as_deref(),
            Some("HeaderRecordUnusable"),
            "{n}"
        );
        let log = lab.world.borrow().log.join(" ");
        assert_eq!(log.matches("volume key made").count(), 1, "{n}");
        lab.change(1, |s| s.header_record = right);
        lab.settle(1);
        is_up(&lab);
    }
}

#[test]
fn an_import_has_its_header_its_disk_and_its_wwid() {
    let old = down(attached());
    let record = old.volume(1).spec.header_record;
    let import = || {
        let lab = new();
        lab.disk(1, |d| d.content = Content::Garbage);
        lab.change(1, |s| s.format_permit = None);
        lab
    };
    let lab = import();
    lab.stops(Reason::HeaderRecordUnusable);
    let lab = import();
    lab.change(1, |s| {
        (s.header_record, s.wwid) = (record.clone(), None);
    });
    lab.stops(Reason::IdentityUnproven);
    lab.change(1, |s| s.wwid = Some(wwid(1)));
    lab.settle(1);
    is_up(&lab);
    let lab = import();
    lab.disk(1, |d| d.content = Content::Blank);
    lab.change(1, |s| s.header_record = record);
    lab.stops(Reason::FormatNotPermitted);
}

#[test]
fn invariant_08_a_rotation_seals_the_header_anew_and_proves_what_came_back() {
    let lab = attached();
    let before = lab.volume(1).spec.header_record.unwrap();
    lab.rotate(1, NEXT);
    lab.settle(1);
    is_up(&lab);
    let spec = lab.volume(1).spec;
    assert!(spec.rotation.is_none());
    let after = spec.header_record.unwrap();
    assert_eq!(after.header, before.header);
    assert_eq!(after.sealed, fingerprint(NEXT));
    let lab = down(lab);
    lab.want(1, Desired::Attached);
    lab.settle(1);
    is_up(&lab);

    // The operator kept something else: said before the former key goes.
    let lab = attached();
    lab.rotate(1, NEXT);
    lab.operator_pins.set(false);
    lab.run(1);
    lab.operate(1);
    let right = lab.volume(1).spec.header_record;
    lab.change(1, |s| s.header_record = Some(before));
    lab.run_unchecked(1);
    let rotation = lab.status(1).rotation.unwrap();
    assert!(!rotation.done && rotation.error.is_some(), "{rotation:?}");
    lab.change(1, |s| s.header_record = right);
    lab.operator_pins.set(true);
    lab.settle(1);
    assert!(lab.volume(1).spec.rotation.is_none());
}

#[test]
fn it_grows_is_suspended_resumed_and_proven() {
    let lab = attached();
    lab.disk(1, |d| d.size = 2 << 30);
    lab.change(1, |s| s.rescan = Some("now".into()));
    lab.settle(1);
    assert_eq!(lab.status(1).mapping.unwrap().size_bytes, 2 << 30);
    lab.change(1, |s| s.suspended = true);
    lab.settle(1);
    assert!(lab.status(1).suspended);
    lab.change(1, |s| s.suspended = false);
    lab.prove.set(true);
    lab.settle(1);
    is_up(&lab);
    assert!(lab.status(1).proof.unwrap().holds);
    assert_eq!(lab.world.borrow().bytes_written(), 0);
}

#[test]
fn erasing_is_the_end_of_key_and_header_and_touches_nothing() {
    for lab in [attached(), down(attached())] {
        lab.want(1, Desired::Erased);
        lab.settle(1);
        let status = lab.status(1);
        assert_eq!((status.stage, lab.reason(1)), (Stage::Erased, None));
        let receipt = status.erased.unwrap();
        assert!(receipt.verified && receipt.key_slots_wiped == 0);
        assert!(status.header_backup.is_none());
        assert_eq!(lab.world.borrow().bytes_written(), 0);
    }
}

/// A way from a prepared laboratory, with what is asked for at its beginning.
type Way = (&'static str, fn() -> Lab, fn(&Lab), Stage);

const WAYS: &[Way] = &[
    ("first attach", new, |_| {}, Stage::Attached),
    (
        "attach",
        || down(attached()),
        |lab| lab.want(1, Desired::Attached),
        Stage::Attached,
    ),
    (
        "detach",
        attached,
        |lab| lab.want(1, Desired::Detached),
        Stage::Detached,
    ),
    (
        "rotate",
        attached,
        |lab| lab.rotate(1, NEXT),
        Stage::Attached,
    ),
    (
        "erase",
        attached,
        |lab| lab.want(1, Desired::Erased),
        Stage::Erased,
    ),
];

#[test]
fn a_crash_after_every_step_converges() {
    for (name, prepare, begin, last) in WAYS {
        let way = |faults: &[(usize, Fault)]| {
            let lab = prepare();
            let from = lab.pauses.get();
            begin(&lab);
            *lab.faults.borrow_mut() = faults.iter().map(|(at, f)| (from + at, *f)).collect();
            lab.settle(1);
            let what = || format!("{name}, {faults:?}: {:?}", lab.status(1));
            assert_eq!(lab.reason(1), None, "{}", what());
            assert_eq!(lab.status(1).stage, *last, "{}", what());
            assert_eq!(lab.world.borrow().bytes_written(), 0);
            assert!(lab.volume(1).spec.rotation.is_none(), "{}", what());
            lab.pauses.get() - from
        };
        let length = way(&[]);
        assert!(length > 10);
        for at in 0..length {
            for fault in [
                Fault::Kill,
                Fault::PowerCut,
                Fault::Fail(Reason::StepFailed),
            ] {
                way(&[(at, fault)]);
            }
            for second in at + 1..length {
                way(&[(at, Fault::Kill), (second, Fault::PowerCut)]);
            }
        }
    }
}
