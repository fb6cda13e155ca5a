//! A volume in use: its disk grows or shrinks; it is suspended and resumed.

use cryptvol_crds::{
    conditions::Reason,
    names,
    v1alpha1::{Desired, Provider, Stage},
};

use super::lab::*;
use crate::host::{Mapping, sim::*};

const GIB: u64 = 1 << 30;
const HEADER: u64 = 16 << 20;

fn attached() -> Lab {
    let lab = Lab::new(1);
    lab.settle(1);
    assert!(lab.world.borrow_mut().guest_writes(&Lab::link(1)).is_some());
    lab
}

fn mapping(lab: &Lab) -> Option<Mapping> {
    let world = lab.world.borrow();
    let name = names::mapping_name(&uid(1));
    let mut all = world.kernel.mappings.iter().map(|m| &m.mapping);
    all.find(|m| m.name == name).cloned()
}

fn at_rest(lab: &Lab, what: &dyn std::fmt::Debug) {
    assert_eq!(lab.reason(1), None, "{what:?}");
    assert_eq!(lab.status(1).stage, Stage::Attached, "{what:?}");
}

fn larger() -> Lab {
    let lab = attached();
    lab.disk(1, |d| d.size = 2 * GIB);
    lab.change(1, |s| s.rescan = Some("a look".into()));
    lab
}

#[test]
fn peer_failure_11_a_disk_that_grows_is_seen_and_the_mapping_grows_under_its_guest() {
    let lab = larger();
    lab.settle(1);
    at_rest(&lab, &"");
    let m = mapping(&lab).unwrap();
    assert_eq!((m.size_bytes, m.open_count), (2 * GIB - HEADER, 1));
    assert_eq!(
        lab.status(1).mapping.unwrap().size_bytes,
        i64::try_from(2 * GIB - HEADER).unwrap()
    );
    assert_eq!(lab.volume(1).spec.size_bytes, Some(2 << 30));
    // The look was made, once.
    let begin = lab.names.borrow().len();
    lab.settle(1);
    let names = lab.names.borrow()[begin..].to_vec();
    assert!(names.iter().all(|n| n.ends_with("observe")), "{names:?}");
}

#[test]
fn peer_failure_11_a_crash_anywhere_while_growing_converges() {
    let length = {
        let lab = larger();
        let begin = lab.pauses.get();
        lab.settle(1);
        lab.pauses.get() - begin
    };
    for fault in [
        Fault::Kill,
        Fault::PowerCut,
        Fault::Fail(Reason::StepFailed),
        Fault::Fail(Reason::KeyReleaseUnavailable),
    ] {
        for at in 0..length {
            let lab = larger();
            let begin = lab.pauses.get();
            lab.faults.borrow_mut().push((begin + at, fault));
            lab.settle(1);
            lab.settle(1);
            at_rest(&lab, &(at, fault));
            let size = mapping(&lab).unwrap().size_bytes;
            assert_eq!(size, 2 * GIB - HEADER, "{at} {fault:?}");
        }
    }
}

/// As `attached`, in a file of 1 GiB of which 2 are wanted now.
fn longer_file() -> Lab {
    let lab = Lab::file(Provider::Luks2, 1);
    lab.settle(1);
    assert!(lab.world.borrow_mut().guest_writes(&Lab::link(1)).is_some());
    want_file(&lab, 2 * GIB);
    lab
}

fn want_file(lab: &Lab, size: u64) {
    lab.change(1, |s| {
        s.source.file.as_mut().unwrap().size_bytes = size.try_into().unwrap();
    });
}

fn file_size(lab: &Lab) -> Option<u64> {
    lab.world.borrow().files[&file(1)].size
}

#[test]
fn a_file_is_made_longer_under_its_guest_and_never_shorter() {
    let lab = longer_file();
    let keys = lab.keys_released.get();
    lab.settle(1);
    at_rest(&lab, &"");
    let m = mapping(&lab).unwrap();
    assert_eq!((m.size_bytes, m.open_count), (2 * GIB - HEADER, 1));
    assert_eq!(file_size(&lab), Some(2 * GIB));
    assert_eq!(lab.keys_released.get(), keys + 1);
    assert_eq!(lab.volume(1).spec.size_bytes, Some(2 << 30), "pinned");
    want_file(&lab, GIB);
    lab.settle(1);
    at_rest(&lab, &"");
    assert_eq!(
        (file_size(&lab), mapping(&lab)),
        (Some(2 * GIB), Some(m)),
        "it was made shorter"
    );
}

#[test]
fn a_full_file_system_leaves_the_volume_as_it_is_and_it_goes_on_when_there_is_room() {
    let lab = longer_file();
    let before = mapping(&lab);
    lab.world.borrow_mut().file_room = Some(GIB - 1);
    lab.settle(1);
    assert_eq!(lab.reason(1).as_deref(), Some("FileSystemFull"));
    assert_eq!((file_size(&lab), mapping(&lab)), (Some(GIB), before));
    assert!(lab.world.borrow_mut().guest_writes(&Lab::link(1)).is_some());
    lab.world.borrow_mut().file_room = Some(GIB);
    lab.settle(1);
    at_rest(&lab, &"");
    assert_eq!(mapping(&lab).unwrap().size_bytes, 2 * GIB - HEADER);
}

#[test]
fn a_file_that_is_gone_or_half_a_copy_is_not_made_longer() {
    // Removed below its loop device, which has it to the end.
    let lab = longer_file();
    lab.world.borrow_mut().files.get_mut(&file(1)).unwrap().size = None;
    lab.settle(1);
    assert_eq!(lab.reason(1).as_deref(), Some("DeviceNotFound"));
    assert_eq!(file_size(&lab), None);
    // Cut short while it was off, and asked for longer.
    let lab = longer_file();
    lab.world
        .borrow_mut()
        .guests_leave(&names::mapping_name(&uid(1)));
    lab.want(1, Desired::Detached);
    lab.settle(1);
    lab.world.borrow_mut().files.get_mut(&file(1)).unwrap().size = Some(GIB / 2);
    lab.want(1, Desired::Attached);
    lab.settle(1);
    assert_eq!(lab.reason(1).as_deref(), Some("SizeMismatch"));
    assert_eq!(file_size(&lab), Some(GIB / 2));
    // To be imported, and shorter than is said.
    let lab = Lab::file(Provider::Luks2, 1);
    lab.change(1, |s| (s.luks_uuid, s.format_permit) = (None, None));
    lab.world.borrow_mut().files.get_mut(&file(1)).unwrap().size = Some(GIB / 2);
    lab.stops(Reason::FileNotUsable);
}

#[test]
fn a_file_that_was_made_before_more_was_asked_for_is_begun_and_made_longer() {
    let lab = Lab::file(Provider::Luks2, 1);
    *lab.operator.borrow_mut() = Err((Reason::KeyServiceUnavailable, "it is down".to_owned()));
    lab.settle(1);
    assert_eq!(file_size(&lab), Some(GIB));
    want_file(&lab, 2 * GIB);
    *lab.operator.borrow_mut() = Ok(None);
    lab.settle(1);
    at_rest(&lab, &"");
    assert_eq!(file_size(&lab), Some(2 * GIB));
    assert_eq!(mapping(&lab).unwrap().size_bytes, 2 * GIB - HEADER);
}

#[test]
fn a_disk_that_shrinks_is_refused_and_the_mapping_stays_as_it_is() {
    let lab = attached();
    lab.disk(1, |d| d.size = GIB / 2);
    let before = mapping(&lab);
    lab.change(1, |s| s.rescan = Some("a look".into()));
    lab.settle(1);
    assert_eq!(lab.reason(1).as_deref(), Some("SizeMismatch"));
    assert_eq!(mapping(&lab), before);
    assert_eq!(
        lab.volume(1).spec.size_bytes,
        Some(1 << 30),
        "the pin stays"
    );
    // The array gives it back.
    lab.disk(1, |d| d.size = GIB);
    lab.change(1, |s| s.rescan = Some("another look".into()));
    lab.settle(1);
    assert_eq!(mapping(&lab), before);
}

#[test]
fn a_suspended_volume_has_no_key_in_the_kernel_and_gets_none() {
    let lab = attached();
    lab.change(1, |s| s.suspended = true);
    let keys = lab.keys_released.get();
    lab.settle(1);
    at_rest(&lab, &"");
    assert!(lab.status(1).suspended);
    let m = mapping(&lab).unwrap();
    assert!(m.suspended && !m.table.unwrap().key_in_keyring);
    assert_eq!(m.open_count, 1, "the guest keeps its device and waits");
    for _ in 0..5 {
        lab.run(1);
    }
    assert_eq!(lab.keys_released.get(), keys);
    // Going on asks for the key.
    lab.change(1, |s| s.suspended = false);
    lab.settle(1);
    at_rest(&lab, &"");
    assert!(!lab.status(1).suspended);
    let m = mapping(&lab).unwrap();
    assert!(!m.suspended && m.table.unwrap().key_in_keyring);
    assert_eq!((m.open_count, lab.keys_released.get()), (1, keys + 1));
}

/// The wish comes before the question whether the disk is still there: what is on its way ends with an error, and the key goes.
#[test]
fn the_key_goes_also_where_the_disk_went_below_a_guest() {
    for gone in [false, true] {
        let lab = attached();
        {
            let devices = &mut lab.world.borrow_mut().kernel.devices;
            match gone {
                true => devices.clear(),
                false => devices[0].state = "offline".into(),
            }
        }
        lab.change(1, |s| s.suspended = true);
        for _ in 0..3 {
            lab.run(1);
            assert_eq!(lab.reason(1), None, "{gone}");
            assert!(lab.status(1).suspended, "{gone}");
            let m = mapping(&lab).unwrap();
            assert!(m.is_closed() && m.open_count == 1, "{gone}: {m:?}");
        }
        // It cannot go on over a disk that is not there.
        lab.change(1, |s| s.suspended = false);
        lab.run(1);
        assert_eq!(lab.reason(1).as_deref(), Some("DeviceBusy"), "{gone}");
        assert!(mapping(&lab).unwrap().is_closed(), "{gone}");
    }
}

#[test]
fn a_crash_anywhere_while_suspending_or_resuming_converges() {
    let there_and_back = |faults: &[(usize, Fault)]| {
        let lab = attached();
        let begin = lab.pauses.get();
        *lab.faults.borrow_mut() = faults.iter().map(|(at, f)| (begin + at, *f)).collect();
        lab.change(1, |s| s.suspended = true);
        lab.settle(1);
        lab.settle(1);
        at_rest(&lab, &faults);
        assert!(lab.status(1).suspended, "{faults:?}");
        let key = |m: Mapping| m.table.unwrap().key_in_keyring;
        assert!(mapping(&lab).is_none_or(|m| m.suspended && !key(m)));
        lab.change(1, |s| s.suspended = false);
        lab.settle(1);
        lab.settle(1);
        at_rest(&lab, &faults);
        assert!(!lab.status(1).suspended, "{faults:?}");
        let m = mapping(&lab).unwrap();
        assert!(!m.suspended && key(m));
        lab.pauses.get() - begin
    };
    let length = there_and_back(&[]);
    for fault in [
        Fault::Kill,
        Fault::PowerCut,
        Fault::Fail(Reason::StepFailed),
        Fault::Fail(Reason::DeadlineExceeded),
    ] {
        for at in 0..length {
            there_and_back(&[(at, fault)]);
        }
    }
}

#[test]
fn a_mapping_that_was_suspended_half_way_goes_on_when_the_wish_is_taken_back() {
    let lab = attached();
    lab.world.borrow_mut().kernel.mappings[0].mapping.suspended = true;
    lab.settle(1);
    at_rest(&lab, &"");
    assert!(!mapping(&lab).unwrap().suspended);
}

#[test]
fn invariant_01_nothing_is_resumed_over_another_disk_or_header() {
    for (strange, reason) in [
        (Content::Blank, "HeaderMissing"),
        (
            Content::Luks(SimHeader::new(&luks_uuid(9), KEY)),
            "HeaderMissing",
        ),
    ] {
        let lab = attached();
        lab.change(1, |s| s.suspended = true);
        lab.settle(1);
        let keys = lab.keys_released.get();
        let right = lab.disk(1, |d| std::mem::replace(&mut d.content, strange));
        lab.disk(1, |d| d.data = None);
        lab.change(1, |s| s.suspended = false);
        lab.settle(1);
        assert_eq!(lab.reason(1).as_deref(), Some(reason));
        assert!(mapping(&lab).unwrap().suspended);
        assert_eq!(lab.keys_released.get(), keys);
        lab.disk(1, |d| d.content = right);
        lab.settle(1);
        at_rest(&lab, &"");
    }
}

#[test]
fn invariant_08_a_wrong_key_resumes_nothing() {
    let lab = attached();
    lab.change(1, |s| s.suspended = true);
    lab.settle(1);
    let right = lab.disk(1, |d| {
        let Content::Luks(header) = &mut d.content else {
            panic!("no header");
        };
        d.data = None;
        std::mem::replace(&mut header.slots, vec!["of another key".into()])
    });
    lab.change(1, |s| s.suspended = false);
    lab.settle(1);
    assert_eq!(lab.reason(1).as_deref(), Some("KeyDoesNotOpen"));
    let m = mapping(&lab).unwrap();
    assert!(m.suspended && !m.table.unwrap().key_in_keyring);
    assert!(lab.status(1).suspended, "it says so, beside the error");
    lab.disk(1, |d| {
        if let Content::Luks(header) = &mut d.content {
            header.slots = right;
        }
    });
    lab.settle(1);
    at_rest(&lab, &"");
    assert!(!mapping(&lab).unwrap().suspended);
}

#[test]
fn a_key_leaves_the_kernel_whatever_else_is_wrong_with_the_volume() {
    let lab = attached();
    lab.disk(1, |d| d.size = GIB / 2);
    lab.change(1, |s| s.rescan = Some("a look".into()));
    lab.settle(1);
    assert_eq!(lab.reason(1).as_deref(), Some("SizeMismatch"));
    lab.change(1, |s| s.suspended = true);
    lab.settle(1);
    let m = mapping(&lab).unwrap();
    assert!(m.suspended && !m.table.unwrap().key_in_keyring);
}

#[test]
fn volumes_without_a_header_and_local_ones_grow_and_wait_as_others_do() {
    for prepare in [
        (|| Lab::of(Provider::Plain, 1)) as fn() -> Lab,
        || Lab::of(Provider::Luks, 1),
        || Lab::local(Provider::Luks2, 1),
    ] {
        let lab = prepare();
        lab.settle(1);
        let before = mapping(&lab).unwrap().size_bytes;
        lab.disk(1, |d| d.size += GIB);
        // The kernel knows the size of a disk of its own by itself.
        for device in &mut lab.world.borrow_mut().kernel.devices {
            if device.sid == 0 {
                device.size += GIB;
            }
        }
        lab.change(1, |s| {
            (s.rescan, s.suspended) = (Some("a look".into()), true);
        });
        lab.settle(1);
        at_rest(&lab, &"");
        let m = mapping(&lab).unwrap();
        assert!(m.suspended && !m.table.unwrap().key_in_keyring);
        lab.change(1, |s| s.suspended = false);
        lab.settle(1);
        at_rest(&lab, &"");
        let m = mapping(&lab).unwrap();
        assert!(!m.suspended && m.table.unwrap().key_in_keyring);
        assert_eq!(m.size_bytes, before + GIB);
        assert_eq!(lab.status(1).rescan.as_deref(), Some("a look"));
    }
}

#[test]
fn a_suspended_volume_is_detached_without_its_key() {
    let lab = attached();
    lab.change(1, |s| s.suspended = true);
    lab.settle(1);
    let keys = lab.keys_released.get();
    lab.world
        .borrow_mut()
        .guests_leave(&names::mapping_name(&uid(1)));
    lab.want(1, Desired::Detached);
    lab.settle(1);
    assert_eq!(
        (lab.status(1).stage, lab.reason(1)),
        (Stage::Detached, None)
    );
    assert!(mapping(&lab).is_none() && !lab.status(1).suspended);
    // Wanted again while it is still suspended: nothing is opened.
    lab.want(1, Desired::Attached);
    lab.settle(1);
    assert!(lab.status(1).suspended && mapping(&lab).is_none());
    assert_eq!(lab.keys_released.get(), keys);
}
