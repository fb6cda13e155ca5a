//! How a way ends that is cut, and whether it may end so.

use std::{cell::RefCell, collections::BTreeMap};

use cryptvol_crds::{
    conditions::Reason,
    v1alpha1::{Desired, Provider, Stage},
};

use super::{
    super::lab::*,
    ways::{LARGER, Way},
};
use crate::{host::sim::*, volume::locks::TargetLocks};

thread_local! {
    static PREPARED: RefCell<BTreeMap<&'static str, Lab>> = RefCell::default();
}

/// The way's laboratory. It is prepared once a thread: most of what a way costs is to come to its beginning.
pub(super) fn prepared(way: &Way) -> Lab {
    if let Some(mut lab) = PREPARED.with_borrow(|all| all.get(way.name).cloned()) {
        lab.locks = TargetLocks::default();
        return lab;
    }
    let lab = (way.prepare)();
    PREPARED.with_borrow_mut(|all| all.insert(way.name, lab.clone()));
    lab
}

/// Pauses of the way without any fault, and the way's end checked.
pub(super) fn length(way: &Way) -> usize {
    let lab = prepared(way);
    let begin = lab.pauses.get();
    lab.want(1, way.desired);
    lab.settle(1);
    let pauses = lab.pauses.get() - begin;
    assert!(judge(way, &lab, &[]), "{}", way.name);
    pauses
}

pub(super) fn with_faults(way: &Way, faults: &[(usize, Fault)]) -> Lab {
    let lab = prepared(way);
    let begin = lab.pauses.get();
    lab.want(1, way.desired);
    *lab.faults.borrow_mut() = faults.iter().map(|(at, f)| (begin + at, *f)).collect();
    // A proof that could not be had leaves everything as it was.
    for _ in 0..if lab.prove.get() { faults.len() + 1 } else { 1 } {
        lab.settle(1);
    }
    lab
}

/// Converged, or stopped in the one condition that a way may stop in.
pub(super) fn judge(way: &Way, lab: &Lab, faults: &[(usize, Fault)]) -> bool {
    let what = || {
        let names = lab.names.borrow();
        format!(
            "{} with {faults:?}: {:?}\n{}",
            way.name,
            lab.status(1),
            names.join(", ")
        )
    };
    match lab.reason(1).as_deref() {
        reason if way.stops.is_some() => {
            assert_eq!(reason, way.stops.map(Reason::as_str), "{}", what());
            is_closed(way, lab, &what);
            true
        }
        None => {
            assert_eq!(lab.status(1).stage, way.last, "{}", what());
            nothing_left_if_down(way, lab);
            backed_up(lab, &what);
            as_long_as_wanted(lab, &what);
            as_ordered(lab, &what);
            true
        }
        Some("FormatInterrupted") if way.formats => {
            // Said only where a write was begun or could have been, and never with data on the disk.
            assert!(lab.status(1).permit.is_some(), "{}", what());
            assert!(lab.disk(1, |d| d.data.is_none()), "{}", what());
            false
        }
        Some(_) => panic!("{}", what()),
    }
}

/// There is a backup of each LUKS2 header that is open, unless it can never be made; and none of an erased one.
fn backed_up(lab: &Lab, what: &dyn Fn() -> String) {
    let status = lab.status(1);
    let luks2 = lab.volume(1).spec.encryption.provider == Provider::Luks2;
    match status.stage {
        Stage::Attached if luks2 => {
            let error = status.header_backup_error.map(|e| e.reason);
            let never = error.as_deref() == Some(Reason::HeaderBackupUnsupported.as_str());
            assert!(status.header_backup.is_some() || never, "{}", what());
        }
        Stage::Erased => assert!(status.header_backup.is_none(), "{}", what()),
        _ => {}
    }
}

/// The mapping rests without its key, and it is said that the proof does not hold.
fn is_closed(way: &Way, lab: &Lab, what: &dyn Fn() -> String) {
    let (status, world) = (lab.status(1), lab.world.borrow());
    let reason = status.proof.filter(|p| !p.holds).and_then(|p| p.error);
    let reason = reason.map(|e| e.reason);
    assert_eq!(
        reason.as_deref(),
        way.stops.map(Reason::as_str),
        "{}",
        what()
    );
    let mapping = world.kernel.mappings.first().map(|m| &m.mapping);
    let keyless = |m: &crate::host::Mapping| m.table.as_ref().is_some_and(|t| !t.key_in_keyring);
    assert!(
        mapping.is_none_or(|m| m.suspended && keyless(m)),
        "{}",
        what()
    );
}

/// What was ordered of a volume in use is done.
fn as_ordered(lab: &Lab, what: &dyn Fn() -> String) {
    let (spec, status, world) = (lab.volume(1).spec, lab.status(1), lab.world.borrow());
    if status.stage != Stage::Attached {
        return;
    }
    assert!(spec.rotation.is_none(), "{}", what());
    // Of a proof that is asked for there is a result.
    if lab.prove.get() && spec.encryption.provider.encrypts() && !spec.suspended {
        assert!(status.proof.is_some_and(|p| p.holds), "{}", what());
    }
    assert_eq!(status.suspended, spec.suspended, "{}", what());
    let mapping = world.kernel.mappings.first().map(|m| &m.mapping);
    let key = |m: &crate::host::Mapping| m.table.as_ref().is_some_and(|t| t.key_in_keyring);
    if spec.suspended {
        assert!(!mapping.is_some_and(key), "{}", what());
    }
    if spec.rescan.is_some() {
        let room = |m: &crate::host::Mapping| {
            let header = m.table.as_ref().map(|t| t.data_offset);
            Some(m.size_bytes + header?)
        };
        assert_eq!(mapping.and_then(room), Some(LARGER), "{}", what());
    }
}

/// File, loop device, mapping and report have what is wanted.
fn as_long_as_wanted(lab: &Lab, what: &dyn Fn() -> String) {
    let volume = lab.volume(1);
    let Some(file) = volume.spec.source.file.filter(|_| !volume.spec.ephemeral) else {
        return;
    };
    let (status, world) = (lab.status(1), lab.world.borrow());
    if status.stage != Stage::Attached {
        return;
    }
    let size = u64::try_from(file.size_bytes).unwrap();
    assert_eq!(world.files[&file.path].size, Some(size), "{}", what());
    assert_eq!(world.kernel.devices[0].size, size, "{}", what());
    let mapping = world.kernel.mappings[0].mapping.size_bytes;
    assert_eq!(mapping, size - (16 << 20), "{}", what());
    let reported = status.mapping.map(|m| m.size_bytes);
    assert_eq!(reported, i64::try_from(mapping).ok(), "{}", what());
}

fn nothing_left_if_down(way: &Way, lab: &Lab) {
    let world = lab.world.borrow();
    if way.desired != Desired::Attached {
        assert!(
            world.kernel.sessions.is_empty(),
            "{}: a session is left",
            way.name
        );
        assert!(
            world
                .kernel
                .devices
                .iter()
                .all(|d| d.sid == 0 && d.file.is_none()),
            "{}: a device is left",
            way.name
        );
        assert!(world.kernel.maps.is_empty(), "{}: a map is left", way.name);
        assert!(
            world.kernel.mappings.is_empty(),
            "{}: a mapping is left",
            way.name
        );
        assert!(world.links.is_empty(), "{}: a link is left", way.name);
        assert!(
            world.names.given.is_empty(),
            "{}: a name leads on",
            way.name
        );
    }
    if way.desired != Desired::Attached && lab.volume(1).spec.ephemeral {
        assert!(
            world.files.values().all(|f| f.size.is_none()),
            "{}: a scratch file is left",
            way.name
        );
    }
    if way.desired == Desired::Erased {
        assert!(world.names.kept.is_empty(), "{}: a name is kept", way.name);
        assert!(
            world.files.values().all(|f| f.size.is_none()),
            "{}: a file is left",
            way.name
        );
        // Without a header there is no key slot, and the data is as good as gone with the key.
        let plain = lab.volume(1).spec.encryption.provider == Provider::Plain;
        let keyless = |d: &Disk| match &d.content {
            Content::Luks(h) => h.slots.is_empty(),
            _ => !plain || d.written == 0,
        };
        assert!(lab.status(1).erased.is_some(), "{}: no receipt", way.name);
        assert!(
            world.disks.iter().all(keyless),
            "{}: key slots are left",
            way.name
        );
    }
}

/// A person reads FormatInterrupted, sees that the disk never held data, wipes it and asks for a new permit.
pub(super) fn allow_once_more(lab: &Lab) {
    lab.disk(1, |d| {
        if d.content == Content::Garbage {
            d.content = Content::Blank;
        }
    });
    lab.change(1, |spec| {
        spec.formatted_before = true;
        spec.format_permit = Some(cryptvol_crds::v1alpha1::FormatPermit {
            id: format!("permit-again-{}", lab.clock.get()),
            luks_uuid: luks_uuid(1),
        });
    });
    lab.operator_pins.set(false);
    lab.settle(1);
    lab.operate(1);
    lab.operator_pins.set(true);
    lab.settle(1);
}
