//! The agent killed, or the node without power, after every single step; every call failing once and twice: the volume
//! reaches what is wanted by itself, or stops in the condition that names what a person must do.

use cryptvol_crds::{
    conditions::Reason,
    v1alpha1::{Desired, Provider, Stage},
};

use super::lab::*;
use crate::host::sim::*;

/// A way that the agent goes, from a prepared laboratory to a desired state.
struct Way {
    name: &'static str,
    prepare: fn() -> Lab,
    desired: Desired,
    last: Stage,
    formats: bool,
}

fn first_attach() -> Lab {
    Lab::new(1)
}

fn first_attach_luks1() -> Lab {
    Lab::of(Provider::Luks, 1)
}

fn first_attach_plain() -> Lab {
    Lab::of(Provider::Plain, 1)
}

/// Attached once before, detached now.
fn reattach() -> Lab {
    let lab = Lab::new(1);
    lab.settle(1);
    lab.want(1, Desired::Detached);
    lab.settle(1);
    lab
}

fn attached_with_data() -> Lab {
    with_data(Provider::Luks2)
}

fn luks1_with_data() -> Lab {
    with_data(Provider::Luks)
}

fn plain_with_data() -> Lab {
    with_data(Provider::Plain)
}

fn with_data(provider: Provider) -> Lab {
    written(Lab::of(provider, 1))
}

fn local_with_data() -> Lab {
    written(Lab::local(Provider::Luks2, 1))
}

fn file_with_data() -> Lab {
    written(Lab::file(Provider::Luks2, 1))
}

fn paths_with_data() -> Lab {
    written(Lab::paths(Provider::Luks2, 1))
}

fn discovered_with_data() -> Lab {
    written(Lab::discovering(Provider::Luks2, 1))
}

/// Its session is there again, and the kernel uses the other path alone until we act.
fn path_is_back() -> Lab {
    let lab = paths_with_data();
    lab.world.borrow_mut().cut(IQN, PORTALS[1]);
    lab.settle(1);
    lab.world.borrow_mut().mend(IQN, PORTALS[1]);
    lab
}

fn no_path_left() -> Lab {
    let lab = paths_with_data();
    for portal in PORTALS {
        lab.world.borrow_mut().cut(IQN, portal);
    }
    lab
}

fn written(lab: Lab) -> Lab {
    lab.settle(1);
    assert!(lab.world.borrow_mut().guest_writes(&Lab::link(1)).is_some());
    lab.world
        .borrow_mut()
        .guests_leave(&cryptvol_crds::names::mapping_name(&uid(1)));
    lab
}

/// More of the file is wanted than there is.
fn longer(lab: Lab) -> Lab {
    lab.change(1, |s| s.source.file.as_mut().unwrap().size_bytes = 2 << 30);
    lab
}

fn powerless(lab: Lab) -> Lab {
    lab.world.borrow_mut().power_cut();
    lab
}

fn detached_with_data() -> Lab {
    detached(attached_with_data())
}

fn detached(lab: Lab) -> Lab {
    lab.want(1, Desired::Detached);
    lab.settle(1);
    lab
}

/// A plain disk that somebody else made, of which the user names the WWID.
fn import_plain() -> Lab {
    let lab = Lab::of(Provider::Plain, 1);
    lab.disk(1, |d| d.content = Content::Garbage);
    lab.change(1, |s| s.format_permit = None);
    lab
}

/// A disk that somebody else made, to be imported.
fn import() -> Lab {
    let lab = Lab::new(1);
    lab.disk(1, |d| {
        d.content = Content::Luks(SimHeader::new(&luks_uuid(42), KEY));
    });
    lab.change(1, |s| (s.luks_uuid, s.format_permit) = (None, None));
    lab
}

/// Detached with data, and somebody overwrote the header; a person ordered its restore.
fn header_restore_ordered() -> Lab {
    overwritten(detached_with_data(), Content::Garbage)
}

fn overwritten(lab: Lab, with: Content) -> Lab {
    lab.overwrite(1, with);
    lab.want(1, Desired::Attached);
    lab.settle(1);
    assert_eq!(lab.reason(1).as_deref(), Some("HeaderMissing"));
    lab.order_restore(1);
    lab
}

/// Attached, and the disk went from the kernel below the mapping.
fn zombie() -> Lab {
    let lab = attached_with_data();
    lab.world.borrow_mut().kernel.devices.clear();
    lab
}

/// Attached, and the kernel took the disk off line.
fn offline() -> Lab {
    let lab = attached_with_data();
    lab.world.borrow_mut().kernel.devices[0].state = "offline".into();
    lab
}

/// As `first_attach`, with a name of udev's that leads to the mapping.
fn first_attach_by_name() -> Lab {
    let lab = Lab::new(1);
    lab.change(1, |s| s.shadow = Some(by_path(IQN, 1)));
    lab
}

fn attached_by_name() -> Lab {
    let lab = first_attach_by_name();
    lab.settle(1);
    lab
}

/// The operator takes the name out of the spec when the volume is being deleted.
fn deleted_by_name() -> Lab {
    let lab = attached_by_name();
    lab.change(1, |s| s.shadow = None);
    lab
}

const WAYS: &[Way] = &[
    Way {
        name: "first attach, authenticated",
        prepare: || Lab::authenticated(1),
        desired: Desired::Attached,
        last: Stage::Attached,
        formats: true,
    },
    Way {
        name: "attach, authenticated",
        prepare: || detached(written(Lab::authenticated(1))),
        desired: Desired::Attached,
        last: Stage::Attached,
        formats: false,
    },
    Way {
        name: "erase attached, authenticated",
        prepare: || written(Lab::authenticated(1)),
        desired: Desired::Erased,
        last: Stage::Erased,
        formats: false,
    },
    Way {
        name: "first attach, two paths",
        prepare: || Lab::paths(Provider::Luks2, 1),
        desired: Desired::Attached,
        last: Stage::Attached,
        formats: true,
    },
    Way {
        name: "attach, two paths",
        prepare: || detached(paths_with_data()),
        desired: Desired::Attached,
        last: Stage::Attached,
        formats: false,
    },
    Way {
        name: "first attach, a portal discovered",
        prepare: || Lab::discovering(Provider::Luks2, 1),
        desired: Desired::Attached,
        last: Stage::Attached,
        formats: true,
    },
    Way {
        name: "attach, a portal discovered",
        prepare: || detached(discovered_with_data()),
        desired: Desired::Attached,
        last: Stage::Attached,
        formats: false,
    },
    Way {
        name: "detach, a portal discovered",
        prepare: discovered_with_data,
        desired: Desired::Detached,
        last: Stage::Detached,
        formats: false,
    },
    Way {
        name: "erase attached, a portal discovered",
        prepare: discovered_with_data,
        desired: Desired::Erased,
        last: Stage::Erased,
        formats: false,
    },
    Way {
        name: "a path comes back",
        prepare: path_is_back,
        desired: Desired::Attached,
        last: Stage::Attached,
        formats: false,
    },
    Way {
        name: "detach, two paths",
        prepare: paths_with_data,
        desired: Desired::Detached,
        last: Stage::Detached,
        formats: false,
    },
    Way {
        name: "detach, no path left",
        prepare: no_path_left,
        desired: Desired::Detached,
        last: Stage::Detached,
        formats: false,
    },
    Way {
        name: "erase attached, two paths",
        prepare: paths_with_data,
        desired: Desired::Erased,
        last: Stage::Erased,
        formats: false,
    },
    Way {
        name: "restore the header",
        prepare: header_restore_ordered,
        desired: Desired::Attached,
        last: Stage::Attached,
        formats: false,
    },
    Way {
        name: "restore the header, file",
        prepare: || overwritten(detached(file_with_data()), Content::Blank),
        desired: Desired::Attached,
        last: Stage::Attached,
        formats: false,
    },
    Way {
        name: "restore the header, local",
        prepare: || overwritten(detached(local_with_data()), Content::Blank),
        desired: Desired::Attached,
        last: Stage::Attached,
        formats: false,
    },
    Way {
        name: "first attach, scratch file",
        prepare: || Lab::scratch_file(1),
        desired: Desired::Attached,
        last: Stage::Attached,
        formats: false,
    },
    Way {
        name: "detach, scratch file",
        prepare: || written(Lab::scratch_file(1)),
        desired: Desired::Detached,
        last: Stage::Detached,
        formats: false,
    },
    Way {
        name: "attach anew, scratch file",
        prepare: || detached(written(Lab::scratch_file(1))),
        desired: Desired::Attached,
        last: Stage::Attached,
        formats: false,
    },
    Way {
        name: "begin anew after a power cut, scratch file",
        prepare: || powerless(written(Lab::scratch_file(1))),
        desired: Desired::Attached,
        last: Stage::Attached,
        formats: false,
    },
    Way {
        name: "first attach, scratch device",
        prepare: || Lab::scratch_device(1),
        desired: Desired::Attached,
        last: Stage::Attached,
        formats: false,
    },
    Way {
        name: "begin anew after a power cut, scratch device",
        prepare: || powerless(written(Lab::scratch_device(1))),
        desired: Desired::Attached,
        last: Stage::Attached,
        formats: false,
    },
    Way {
        name: "first attach, file",
        prepare: || Lab::file(Provider::Luks2, 1),
        desired: Desired::Attached,
        last: Stage::Attached,
        formats: true,
    },
    Way {
        name: "attach, file",
        prepare: || detached(file_with_data()),
        desired: Desired::Attached,
        last: Stage::Attached,
        formats: false,
    },
    Way {
        name: "grow, file",
        prepare: || longer(file_with_data()),
        desired: Desired::Attached,
        last: Stage::Attached,
        formats: false,
    },
    Way {
        name: "attach and grow, file",
        prepare: || longer(detached(file_with_data())),
        desired: Desired::Attached,
        last: Stage::Attached,
        formats: false,
    },
    Way {
        name: "detach, file",
        prepare: file_with_data,
        desired: Desired::Detached,
        last: Stage::Detached,
        formats: false,
    },
    Way {
        name: "erase attached, file",
        prepare: file_with_data,
        desired: Desired::Erased,
        last: Stage::Erased,
        formats: false,
    },
    Way {
        name: "erase detached, file",
        prepare: || detached(file_with_data()),
        desired: Desired::Erased,
        last: Stage::Erased,
        formats: false,
    },
    Way {
        name: "first attach, local",
        prepare: || Lab::local(Provider::Luks2, 1),
        desired: Desired::Attached,
        last: Stage::Attached,
        formats: true,
    },
    Way {
        name: "attach, local",
        prepare: || detached(local_with_data()),
        desired: Desired::Attached,
        last: Stage::Attached,
        formats: false,
    },
    Way {
        name: "detach, local",
        prepare: local_with_data,
        desired: Desired::Detached,
        last: Stage::Detached,
        formats: false,
    },
    Way {
        name: "erase attached, local",
        prepare: local_with_data,
        desired: Desired::Erased,
        last: Stage::Erased,
        formats: false,
    },
    Way {
        name: "erase detached, local",
        prepare: || detached(local_with_data()),
        desired: Desired::Erased,
        last: Stage::Erased,
        formats: false,
    },
    Way {
        name: "first attach, local and plain",
        prepare: || Lab::local(Provider::Plain, 1),
        desired: Desired::Attached,
        last: Stage::Attached,
        formats: false,
    },
    Way {
        name: "first attach, local, not encrypted",
        prepare: || Lab::local(Provider::PassThrough, 1),
        desired: Desired::Attached,
        last: Stage::Attached,
        formats: false,
    },
    Way {
        name: "attach, not encrypted",
        prepare: || detached(with_data(Provider::PassThrough)),
        desired: Desired::Attached,
        last: Stage::Attached,
        formats: false,
    },
    Way {
        name: "detach, not encrypted",
        prepare: || with_data(Provider::PassThrough),
        desired: Desired::Detached,
        last: Stage::Detached,
        formats: false,
    },
    Way {
        name: "first attach by name",
        prepare: first_attach_by_name,
        desired: Desired::Attached,
        last: Stage::Attached,
        formats: true,
    },
    Way {
        name: "detach by name",
        prepare: attached_by_name,
        desired: Desired::Detached,
        last: Stage::Detached,
        formats: false,
    },
    Way {
        name: "erase by name",
        prepare: deleted_by_name,
        desired: Desired::Erased,
        last: Stage::Erased,
        formats: false,
    },
    Way {
        name: "import",
        prepare: import,
        desired: Desired::Attached,
        last: Stage::Attached,
        formats: false,
    },
    Way {
        name: "make a zombie anew",
        prepare: zombie,
        desired: Desired::Attached,
        last: Stage::Attached,
        formats: false,
    },
    Way {
        name: "take a zombie down",
        prepare: zombie,
        desired: Desired::Detached,
        last: Stage::Detached,
        formats: false,
    },
    Way {
        name: "find a disk anew that is off line",
        prepare: offline,
        desired: Desired::Attached,
        last: Stage::Attached,
        formats: false,
    },
    Way {
        name: "first attach",
        prepare: first_attach,
        desired: Desired::Attached,
        last: Stage::Attached,
        formats: true,
    },
    Way {
        name: "attach",
        prepare: reattach,
        desired: Desired::Attached,
        last: Stage::Attached,
        formats: false,
    },
    Way {
        name: "detach",
        prepare: attached_with_data,
        desired: Desired::Detached,
        last: Stage::Detached,
        formats: false,
    },
    Way {
        name: "erase attached",
        prepare: attached_with_data,
        desired: Desired::Erased,
        last: Stage::Erased,
        formats: false,
    },
    Way {
        name: "erase detached",
        prepare: detached_with_data,
        desired: Desired::Erased,
        last: Stage::Erased,
        formats: false,
    },
    Way {
        name: "first attach, LUKS1",
        prepare: first_attach_luks1,
        desired: Desired::Attached,
        last: Stage::Attached,
        formats: true,
    },
    Way {
        name: "attach, LUKS1",
        prepare: || detached(luks1_with_data()),
        desired: Desired::Attached,
        last: Stage::Attached,
        formats: false,
    },
    Way {
        name: "detach, LUKS1",
        prepare: luks1_with_data,
        desired: Desired::Detached,
        last: Stage::Detached,
        formats: false,
    },
    Way {
        name: "erase attached, LUKS1",
        prepare: luks1_with_data,
        desired: Desired::Erased,
        last: Stage::Erased,
        formats: false,
    },
    Way {
        name: "erase detached, LUKS1",
        prepare: || detached(luks1_with_data()),
        desired: Desired::Erased,
        last: Stage::Erased,
        formats: false,
    },
    Way {
        name: "first attach, plain",
        prepare: first_attach_plain,
        desired: Desired::Attached,
        last: Stage::Attached,
        formats: false,
    },
    Way {
        name: "attach, plain",
        prepare: || detached(plain_with_data()),
        desired: Desired::Attached,
        last: Stage::Attached,
        formats: false,
    },
    Way {
        name: "detach, plain",
        prepare: plain_with_data,
        desired: Desired::Detached,
        last: Stage::Detached,
        formats: false,
    },
    Way {
        name: "erase attached, plain",
        prepare: plain_with_data,
        desired: Desired::Erased,
        last: Stage::Erased,
        formats: false,
    },
    Way {
        name: "erase detached, plain",
        prepare: || detached(plain_with_data()),
        desired: Desired::Erased,
        last: Stage::Erased,
        formats: false,
    },
    Way {
        name: "import, plain",
        prepare: import_plain,
        desired: Desired::Attached,
        last: Stage::Attached,
        formats: false,
    },
];

/// Pauses of the way without any fault, and the way's end checked.
fn length(way: &Way) -> usize {
    let lab = (way.prepare)();
    let begin = lab.pauses.get();
    lab.want(1, way.desired);
    lab.settle(1);
    assert_eq!(lab.status(1).stage, way.last, "{}", way.name);
    assert_eq!(lab.reason(1), None, "{}", way.name);
    lab.pauses.get() - begin
}

fn with_faults(way: &Way, faults: &[(usize, Fault)]) -> Lab {
    let lab = (way.prepare)();
    let begin = lab.pauses.get();
    lab.want(1, way.desired);
    *lab.faults.borrow_mut() = faults.iter().map(|(at, f)| (begin + at, *f)).collect();
    lab.settle(1);
    lab
}

/// Converged, or stopped in the one condition that a way may stop in.
fn judge(way: &Way, lab: &Lab, faults: &[(usize, Fault)]) -> bool {
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
        None => {
            assert_eq!(lab.status(1).stage, way.last, "{}", what());
            nothing_left_if_down(way, lab);
            backed_up(lab, &what);
            as_long_as_wanted(lab, &what);
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
fn allow_once_more(lab: &Lab) {
    lab.disk(1, |d| {
        if d.content == Content::Garbage {
            d.content = Content::Blank;
        }
    });
    lab.change(1, |spec| {
        spec.formatted_before = false;
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

#[test]
fn a_crash_after_every_step_converges_or_names_what_to_do() {
    for way in WAYS {
        let mut stopped = 0;
        for fault in [Fault::Kill, Fault::PowerCut] {
            for at in 0..length(way) {
                let faults = [(at, fault)];
                let lab = with_faults(way, &faults);
                if !judge(way, &lab, &faults) {
                    stopped += 1;
                    allow_once_more(&lab);
                    assert_eq!(lab.reason(1), None, "{faults:?}");
                    assert_eq!(lab.status(1).stage, Stage::Attached);
                }
            }
        }
        // Only between the receipt and the header's last byte may a person be needed.
        assert_eq!(stopped > 0, way.formats, "{}", way.name);
        assert!(
            stopped <= 12,
            "{}: {stopped} places need a person",
            way.name
        );
    }
}

#[test]
fn invariant_09_an_erasure_that_dies_anywhere_ends_with_a_receipt_and_without_a_header() {
    for way in WAYS.iter().filter(|w| w.desired == Desired::Erased) {
        for fault in [Fault::Kill, Fault::PowerCut] {
            for at in 0..length(way) {
                let faults = [(at, fault)];
                let lab = with_faults(way, &faults);
                assert!(judge(way, &lab, &faults));
                assert!(lab.status(1).erased.unwrap().verified);
                let header = lab.disk(1, |d| matches!(d.content, Content::Luks(_)));
                assert!(!header, "{} with {faults:?}: a header is left", way.name);
            }
        }
    }
}

/// Erased and on record, and killed before the header goes.
fn erased_and_killed() -> Lab {
    let lab = attached_with_data();
    lab.want(1, Desired::Erased);
    *lab.next_faults.borrow_mut() = vec![("before clear-header".to_owned(), Fault::Kill)];
    assert_eq!(lab.run(1), None);
    assert!(lab.status(1).erased.is_some());
    lab
}

#[test]
fn once_erasure_is_on_record_nothing_waits_for_the_disk() {
    for change in [
        (|t| t.luns.clear()) as fn(&mut SimTarget),
        |t| t.up = false,
        |_| {},
    ] {
        let lab = erased_and_killed();
        lab.target(change);
        lab.world.borrow_mut().power_cut();
        lab.settle(1);
        assert_eq!((lab.status(1).stage, lab.reason(1)), (Stage::Erased, None));
        assert!(lab.world.borrow().kernel.sessions.is_empty());
    }
    // Another disk under the number by then: not ours to write.
    let lab = erased_and_killed();
    let other = lab.world.borrow().disks.len();
    let disk = Disk::blank(&wwid(2)).with(Content::Luks(SimHeader::new(&luks_uuid(1), KEY)));
    lab.world.borrow_mut().disks.push(disk);
    lab.target(|t| t.luns.insert(1, other));
    lab.world.borrow_mut().power_cut();
    lab.settle(1);
    assert_eq!((lab.status(1).stage, lab.reason(1)), (Stage::Erased, None));
    assert_eq!(lab.world.borrow().disks[other].written, 0);
}

#[test]
fn two_crashes_anywhere_converge_or_name_what_to_do() {
    for way in WAYS {
        let n = length(way);
        for first in 0..n {
            for second in first + 1..(first + n).min(first + 25) {
                let faults = [(first, Fault::Kill), (second, Fault::PowerCut)];
                judge(way, &with_faults(way, &faults), &faults);
            }
        }
    }
}

#[test]
fn every_error_once_and_twice_converges() {
    for way in WAYS {
        for reason in [
            Reason::StepFailed,
            Reason::DeadlineExceeded,
            Reason::DeviceUnreadable,
        ] {
            for at in 0..length(way) {
                for faults in [
                    vec![(at, Fault::Fail(reason))],
                    vec![(at, Fault::Fail(reason)), (at + 1, Fault::Fail(reason))],
                ] {
                    let lab = with_faults(way, &faults);
                    // An error is no crash: the process knows whether it wrote. Only a format that failed in an unknown
                    // way can leave a disk that needs a person; this one fails before or after, so none does.
                    if !judge(way, &lab, &faults) {
                        let names = lab.names.borrow();
                        assert!(
                            names.iter().any(|n| n == "before format"),
                            "{faults:?} needs a person and no header was begun"
                        );
                    }
                }
            }
        }
    }
}

/// What each call can fail with, as `host::Host` and the office say it, from the errno tables of the kernel, iscsid's codes
/// and the operator's answers.
fn errors_of(call: &str) -> &'static [Reason] {
    use Reason as R;
    match call {
        "observe" => &[R::StepFailed, R::DeadlineExceeded],
        "login" => &[
            R::PortalUnreachable,
            R::TargetNotFound,
            R::ChapRejected,
            R::DeadlineExceeded,
            R::StepFailed,
        ],
        "scan" => &[R::LunNotFound, R::DeadlineExceeded, R::StepFailed],
        "discover" => &[
            R::DiscoveryRejected,
            R::DiscoveryFailed,
            R::DeadlineExceeded,
            R::StepFailed,
        ],
        "gather" => &[
            R::WwidMismatch,
            R::SizeMismatch,
            R::DeviceBusy,
            R::NotOurs,
            R::MultipathUnsupported,
            R::KernelModuleMissing,
            R::DeadlineExceeded,
            R::StepFailed,
        ],
        "read-header" => &[
            R::DeviceUnreadable,
            R::WwidMismatch,
            R::SizeMismatch,
            R::DeadlineExceeded,
            R::StepFailed,
        ],
        "format" => &[
            R::DeviceNotBlank,
            R::ForeignSignature,
            R::HeaderMismatch,
            R::KeyDoesNotOpen,
            R::DeviceUnreadable,
            R::WwidMismatch,
            R::DeviceBusy,
            R::DeadlineExceeded,
            R::StepFailed,
        ],
        "open" => &[
            R::KeyDoesNotOpen,
            R::HeaderMismatch,
            R::WwidMismatch,
            R::DeviceUnreadable,
            R::NotOurs,
            R::DeadlineExceeded,
            R::StepFailed,
        ],
        "backup-header" => &[
            R::HeaderBackupUnsupported,
            R::HeaderMismatch,
            R::KeyDoesNotOpen,
            R::DeviceUnreadable,
            R::WwidMismatch,
            R::DeadlineExceeded,
            R::StepFailed,
        ],
        "restore-header" => &[
            R::HeaderBackupInvalid,
            R::HeaderBackupUnsupported,
            R::ForeignSignature,
            R::HeaderMismatch,
            R::DeviceBusy,
            R::SizeMismatch,
            R::WwidMismatch,
            R::DeviceUnreadable,
            R::DeadlineExceeded,
            R::StepFailed,
        ],
        "initialise" => &[
            R::DeviceBusy,
            R::DeviceUnreadable,
            R::DeadlineExceeded,
            R::StepFailed,
        ],
        "link" | "unlink" | "name" => &[R::NotOurs, R::DeadlineExceeded, R::StepFailed],
        "close" => &[
            R::DeviceBusy,
            R::NotOurs,
            R::DeadlineExceeded,
            R::StepFailed,
        ],
        "make-file" | "attach-file" | "remove-file" => {
            &[R::FileNotUsable, R::DeadlineExceeded, R::StepFailed]
        }
        "lengthen-file" => &[
            R::FileNotUsable,
            R::FileSystemFull,
            R::DeadlineExceeded,
            R::StepFailed,
        ],
        "grow" => &[
            R::KeyDoesNotOpen,
            R::HeaderMismatch,
            R::WwidMismatch,
            R::DeviceUnreadable,
            R::NotOurs,
            R::DeadlineExceeded,
            R::StepFailed,
        ],
        "delete-device" => &[R::DeviceBusy, R::DeadlineExceeded, R::StepFailed],
        "logout" => &[R::DeadlineExceeded, R::StepFailed],
        "erase" | "clear-header" => &[
            R::HeaderMismatch,
            R::DeviceUnreadable,
            R::WwidMismatch,
            R::DeviceBusy,
            R::DeadlineExceeded,
            R::StepFailed,
        ],
        "discovery chap release" => &[
            R::KeyReleaseUnavailable,
            R::KeyReleaseRefused,
            R::ChapSecretInvalid,
        ],
        "key release" => &[
            R::KeyReleaseUnavailable,
            R::KeyReleaseRefused,
            R::KeyServiceUnavailable,
            R::KeyNotFound,
            R::KeyUnusable,
            R::RoleMissing,
            R::CredentialsExpired,
        ],
        "status write" => &[R::StepFailed],
        other => panic!("no errors are known of {other:?}"),
    }
}

#[test]
fn each_call_failing_by_each_of_its_errors_once_and_twice_converges() {
    let mut tried = 0;
    for way in WAYS {
        let names = {
            let lab = (way.prepare)();
            let begin = lab.names.borrow().len();
            lab.want(1, way.desired);
            lab.settle(1);
            let mut names = lab.names.borrow()[begin..].to_vec();
            names.retain(|n| n.starts_with("before ") || n.starts_with("after "));
            names.sort();
            names.dedup();
            names
        };
        for name in &names {
            let call = name.split_once(' ').unwrap().1;
            for reason in errors_of(call) {
                for times in 1..=2 {
                    let lab = (way.prepare)();
                    *lab.next_faults.borrow_mut() =
                        vec![(name.clone(), Fault::Fail(*reason)); times];
                    lab.want(1, way.desired);
                    // A status that could not be written looks like rest.
                    for _ in 0..=times {
                        lab.settle(1);
                    }
                    for _ in 0..times {
                        if !judge(way, &lab, &[]) {
                            // Only a format of which nobody knows how far it got.
                            assert!(call == "format" || call == "open", "{name} {reason}");
                            allow_once_more(&lab);
                        }
                    }
                    assert_eq!(lab.reason(1), None, "{name} {reason}");
                    tried += 1;
                }
            }
        }
    }
    assert!(tried > 500, "{tried}");
}

#[test]
fn an_attach_costs_at_most_three_status_writes_and_one_key() {
    let lab = Lab::new(1);
    let cost = || (lab.status_writes.get(), lab.keys_released.get());
    lab.operator_pins.set(false);
    lab.settle(1);
    assert_eq!(
        cost(),
        (3, 1),
        "receipt of the permit, first opening, attached"
    );
    lab.operator_pins.set(true);
    lab.settle(1);
    assert_eq!(
        cost(),
        (4, 1),
        "the generation with the pins is acknowledged"
    );
    lab.want(1, Desired::Detached);
    lab.settle(1);
    assert_eq!(cost(), (5, 1));
    lab.want(1, Desired::Attached);
    lab.settle(1);
    assert_eq!(cost(), (6, 2));
    for _ in 0..60 {
        lab.run(1);
    }
    assert_eq!(cost(), (6, 2), "an idle volume writes");
}

#[test]
fn a_restarted_agent_adopts_a_live_mapping_without_key_or_read() {
    let lab = attached_with_data();
    let keys = lab.keys_released.get();
    let begin = lab.names.borrow().len();
    lab.hands.borrow_mut().clear();
    lab.settle(1);
    assert_eq!(lab.keys_released.get(), keys);
    assert!(
        lab.names.borrow()[begin..]
            .iter()
            .all(|n| n.ends_with("observe"))
    );
}

#[test]
fn an_api_server_outage_at_the_receipt_costs_no_permit() {
    let lab = Lab::new(1);
    lab.api_up.set(false);
    lab.run(1);
    assert_eq!(lab.world.borrow().bytes_written(), 0);
    lab.api_up.set(true);
    lab.settle(1);
    assert_eq!(lab.status(1).stage, Stage::Attached);
}

/// A power cut between the header's second copy and its key slot: the header is there, and no key opens it.
fn torn_key_slot() -> Lab {
    let way = WAYS.iter().find(|w| w.formats).unwrap();
    let at = {
        let dry = (way.prepare)();
        dry.settle(1);
        let names = dry.names.borrow();
        names.iter().position(|n| n == "format Slot").unwrap()
    };
    with_faults(way, &[(at, Fault::PowerCut)])
}

#[test]
fn a_key_slot_that_was_never_written_is_an_interrupted_format_and_not_a_wrong_key() {
    let lab = torn_key_slot();
    let error = lab.status(1).error.unwrap();
    assert_eq!(error.reason, "FormatInterrupted");
    assert!(
        error
            .message
            .ends_with(Reason::FormatInterrupted.next_step()),
        "{}",
        error.message
    );
    let written = lab.world.borrow().bytes_written();
    lab.settle(1);
    assert_eq!(lab.world.borrow().bytes_written(), written);
    allow_once_more(&lab);
    assert_eq!(
        (lab.status(1).stage, lab.reason(1)),
        (Stage::Attached, None)
    );
}

#[test]
fn a_first_permit_never_writes_over_a_header_that_the_key_does_not_open() {
    // The record is older than the disk, as after the cluster's data was restored, and the key is another one.
    let lab = Lab::new(1);
    lab.disk(1, |d| {
        d.content = Content::Luks(SimHeader::new(&luks_uuid(1), "another key"));
    });
    lab.settle(1);
    assert_eq!(lab.reason(1).as_deref(), Some("KeyDoesNotOpen"));
    assert_eq!(lab.world.borrow().bytes_written(), 0);
    assert!(lab.status(1).permit.is_none(), "the permit was spent");
}

#[test]
fn a_wrong_key_after_the_first_opening_is_a_wrong_key() {
    let lab = reattach();
    *lab.operator.borrow_mut() = Ok("0".repeat(64));
    lab.want(1, Desired::Attached);
    let written = lab.world.borrow().bytes_written();
    lab.settle(1);
    assert_eq!(lab.reason(1).as_deref(), Some("KeyDoesNotOpen"));
    assert_eq!(lab.world.borrow().bytes_written(), written);
}
