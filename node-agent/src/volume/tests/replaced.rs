//! Somebody loads another table under the name and UUID of what was made: one that leads the mapping to another disk, or one in place of the map
//! above several paths. It is a break like any other, and nothing of it keeps a volume from being suspended or detached.

use cryptvol_crds::{
    names,
    v1alpha1::{Desired, Provider, Stage},
};

use super::lab::*;
use crate::host::{Mapping, sim::*};

/// Number of the disk that a table leads to that is not ours.
const OTHER: &str = "252:99";

/// A volume, and what becomes of it.
struct Case {
    what: &'static str,
    volume: fn() -> Lab,
    happens: fn(&mut World),
}

const CASES: &[Case] = &[
    Case {
        what: "a table over another disk",
        volume: || Lab::new(1),
        happens: |world| world.lead_elsewhere(&mapping_name(), OTHER),
    },
    Case {
        what: "a table over another disk, in place of one over several paths",
        volume: || Lab::paths(Provider::Luks2, 1),
        happens: |world| world.lead_elsewhere(&mapping_name(), OTHER),
    },
    Case {
        what: "a linear table in place of the map",
        volume: || Lab::paths(Provider::Luks2, 1),
        happens: |world| world.replace_maps("linear"),
    },
    Case {
        what: "an error table in place of the map, of plain dm-crypt",
        volume: || Lab::paths(Provider::Plain, 1),
        happens: |world| world.replace_maps("error"),
    },
];

fn mapping_name() -> String {
    names::mapping_name(&uid(1))
}

fn mapping(lab: &Lab) -> Option<Mapping> {
    let world = lab.world.borrow();
    let mut all = world.kernel.mappings.iter().map(|m| &m.mapping);
    all.find(|m| m.name == mapping_name()).cloned()
}

impl Case {
    /// Attached, proven, and in use by a guest, on a node that has another disk.
    fn attached(&self, fail_closed: bool) -> Lab {
        let lab = (self.volume)();
        let disk = lab.add_disk(Disk::blank(&wwid(99)));
        lab.world.borrow_mut().kernel.devices.push(SimDevice {
            path: "/dev/other".into(),
            dev: OTHER.into(),
            sid: 0,
            lun: 0,
            disk,
            wwid: Some(wwid(99)),
            size: 1 << 30,
            state: "running".into(),
            in_use: false,
            opened_by: None,
            file: None,
        });
        lab.change(1, |s| s.fail_closed = fail_closed);
        lab.settle(1);
        assert!(lab.world.borrow_mut().guest_writes(&Lab::link(1)).is_some());
        lab.prove.set(true);
        lab.settle(1);
        assert!(lab.status(1).proof.unwrap().holds, "{}", self.what);
        lab
    }

    fn broken(&self, fail_closed: bool) -> Lab {
        let lab = self.attached(fail_closed);
        (self.happens)(&mut lab.world.borrow_mut());
        lab
    }

    /// It is told of, and the proof does not hold.
    fn is_told(&self, lab: &Lab) {
        let what = self.what;
        assert_eq!(lab.reason(1).as_deref(), Some("MappingReplaced"), "{what}");
        let proof = lab.status(1).proof.unwrap();
        assert!(!proof.holds, "{what}");
        assert_eq!(proof.error.unwrap().reason, "MappingReplaced", "{what}");
        assert!(!lab.status(1).io_fails, "{what}: nobody knows");
    }

    /// Nothing of the volume is left, and the other disk is as it was.
    fn is_off(&self, lab: &Lab) {
        let what = self.what;
        assert_eq!(
            (lab.status(1).stage, lab.reason(1)),
            (Stage::Detached, None),
            "{what}"
        );
        let world = lab.world.borrow();
        let kernel = &world.kernel;
        assert!(
            kernel.mappings.is_empty() && kernel.maps.is_empty(),
            "{what}"
        );
        assert!(
            kernel.sessions.is_empty() && world.links.is_empty(),
            "{what}"
        );
        let left: Vec<_> = kernel.devices.iter().map(|d| d.dev.as_str()).collect();
        assert_eq!(left, [OTHER], "{what}");
    }

    fn other_is_untouched(&self, lab: &Lab) {
        let world = lab.world.borrow();
        let other = world.kernel.devices.iter().find(|d| d.dev == OTHER);
        let other = &world.disks[other.unwrap().disk];
        assert_eq!(other.content, Content::Blank, "{}", self.what);
        assert_eq!(other.written, 0, "{}", self.what);
    }
}

#[test]
fn it_is_told_at_the_next_proof_and_the_mapping_is_made_anew_once_nobody_has_it() {
    for case in CASES {
        let lab = case.broken(false);
        let keys = lab.keys_released.get();
        lab.run(1);
        case.is_told(&lab);
        lab.settle(1);
        case.is_told(&lab);
        let m = mapping(&lab).unwrap();
        assert!(!m.suspended && m.has_key(), "{}: only told of", case.what);
        assert_eq!(lab.keys_released.get(), keys, "{}", case.what);
        lab.world.borrow_mut().guests_leave(&mapping_name());
        lab.settle(1);
        assert_eq!(lab.reason(1), None, "{}", case.what);
        assert!(lab.status(1).proof.unwrap().holds, "{}", case.what);
        assert!(lab.world.borrow_mut().guest_writes(&Lab::link(1)).is_some());
        case.other_is_untouched(&lab);
    }
}

#[test]
fn fail_closed_wipes_the_key_and_it_stays_so_for_as_long_as_a_guest_has_it() {
    for case in CASES {
        let lab = case.broken(true);
        let keys = lab.keys_released.get();
        lab.run(1);
        case.is_told(&lab);
        assert!(mapping(&lab).unwrap().is_closed(), "{}", case.what);
        lab.hands.borrow_mut().clear(); // a new agent
        lab.settle(1);
        case.is_told(&lab);
        assert!(mapping(&lab).unwrap().is_closed(), "{}", case.what);
        assert_eq!(mapping(&lab).unwrap().open_count, 1, "{}", case.what);
        assert_eq!(lab.keys_released.get(), keys, "{}", case.what);
        lab.world.borrow_mut().guests_leave(&mapping_name());
        lab.settle(1);
        assert_eq!(lab.reason(1), None, "{}", case.what);
        assert!(!mapping(&lab).unwrap().suspended, "{}", case.what);
        case.other_is_untouched(&lab);
    }
}

#[test]
fn it_can_be_suspended_and_goes_on_over_nothing_but_what_was_made() {
    for case in CASES {
        let lab = case.broken(false);
        let keys = lab.keys_released.get();
        lab.change(1, |s| s.suspended = true);
        for _ in 0..3 {
            lab.run(1);
            assert_eq!(lab.reason(1), None, "{}", case.what);
            assert!(lab.status(1).suspended, "{}", case.what);
            let m = mapping(&lab).unwrap();
            assert!(m.is_closed() && m.open_count == 1, "{}: {m:?}", case.what);
        }
        lab.change(1, |s| s.suspended = false);
        lab.settle(1);
        case.is_told(&lab);
        assert!(mapping(&lab).unwrap().is_closed(), "{}", case.what);
        assert_eq!(lab.keys_released.get(), keys, "{}", case.what);
    }
}

#[test]
fn it_can_be_detached_and_what_it_led_to_stays() {
    for case in CASES {
        for fail_closed in [false, true] {
            let lab = case.broken(fail_closed);
            lab.run(1);
            lab.want(1, Desired::Detached);
            lab.settle(1);
            // Its link goes at once, the rest when its guest lets go.
            assert_eq!(
                lab.reason(1).as_deref(),
                Some("DeviceBusy"),
                "{}",
                case.what
            );
            assert!(lab.world.borrow().links.is_empty(), "{}", case.what);
            assert_eq!(mapping(&lab).unwrap().is_closed(), fail_closed);
            lab.world.borrow_mut().guests_leave(&mapping_name());
            lab.settle(1);
            case.is_off(&lab);
            case.other_is_untouched(&lab);
        }
    }
}

#[test]
fn a_crash_after_each_step_of_it_ends_as_it_would_have() {
    for case in CASES {
        for fault in [Fault::Kill, Fault::PowerCut] {
            for at in 0..30 {
                let lab = case.broken(true);
                let begin = lab.pauses.get();
                lab.faults.borrow_mut().push((begin + at, fault));
                lab.settle(1);
                lab.settle(1);
                match fault {
                    // The kernel has nothing of it any more.
                    Fault::PowerCut if lab.world.borrow().log.iter().any(|l| l == "power cut") => {
                        assert_eq!(lab.reason(1), None, "{} {at}", case.what);
                    }
                    _ => {
                        case.is_told(&lab);
                        assert!(mapping(&lab).unwrap().is_closed(), "{} {at}", case.what);
                    }
                }
                let begin = lab.pauses.get();
                lab.world.borrow_mut().guests_leave(&mapping_name());
                lab.want(1, Desired::Detached);
                lab.faults.borrow_mut().push((begin + at, fault));
                lab.settle(1);
                lab.settle(1);
                case.is_off(&lab);
                case.other_is_untouched(&lab);
            }
        }
    }
}

/// A map that somebody gave another table before anything was above it is made anew.
#[test]
fn a_map_with_another_table_that_nobody_uses_is_made_anew() {
    let lab = Lab::paths(Provider::Luks2, 1);
    lab.faults.borrow_mut().push((0, Fault::Kill));
    lab.settle(1);
    // Killed between the map and the mapping: only the map is there.
    lab.world.borrow_mut().kernel.mappings.clear();
    lab.world.borrow_mut().links.clear();
    lab.world.borrow_mut().replace_maps("zero");
    lab.settle(1);
    assert_eq!(lab.reason(1), None);
    let world = lab.world.borrow();
    assert_eq!(world.kernel.maps.len(), 1);
    assert_eq!(world.kernel.maps[0].replaced_by, None);
    assert_eq!(world.kernel.maps[0].members.len(), 2);
}

/// Its own disk through a session that is being taken away, which shows none of its disks any more: nothing of a guest's got to another disk.
#[test]
fn its_own_disk_on_a_way_that_is_none_of_its_own_is_no_break() {
    let case = &CASES[0];
    let lab = case.attached(true);
    {
        let mut world = lab.world.borrow_mut();
        let all = &mut world.kernel.devices;
        let own = all.iter().find(|d| d.dev != OTHER);
        let own = own.unwrap().wwid.clone();
        let other = all.iter_mut().find(|d| d.dev == OTHER).unwrap();
        assert!(own.is_some() && other.wwid != own);
        other.wwid = own;
    }
    (case.happens)(&mut lab.world.borrow_mut());
    let before = lab.status(1).proof;
    lab.settle(1);
    assert_eq!(lab.reason(1).as_deref(), Some("DeviceBusy"));
    assert_eq!(lab.status(1).proof, before);
    let m = mapping(&lab).unwrap();
    assert!(!m.suspended && m.has_key());
}
