//! The agent killed, or the node without power, after every single step; every call failing once and twice: the volume
//! reaches what is wanted by itself, or stops in the condition that names what a person must do.

use cryptvol_crds::{
    conditions::Reason,
    v1alpha1::{Desired, Stage},
};

use self::{judge::*, ways::*};
use super::lab::*;
use crate::host::sim::*;

mod errors;
mod judge;
mod list;
mod ways;

#[test]
fn a_crash_after_every_step_converges_or_names_what_to_do() {
    for way in ways() {
        let mut stopped = 0;
        for fault in [Fault::Kill, Fault::PowerCut] {
            for at in 0..length(way) {
                let faults = [(at, fault)];
                let lab = with_faults(way, &faults);
                assert_eq!(lab.ledger.borrow().deaths, 1, "{} {faults:?}", way.name);
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
    for way in ways().filter(|w| w.desired == Desired::Erased) {
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
    for way in ways_of_their_own() {
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
    for way in ways() {
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
    let way = ways().find(|w| w.formats).unwrap();
    let at = {
        let dry = prepared(way);
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

/// The volume was detached meanwhile, so the node's own receipt of the first permit is gone with its NodeVolume.
#[test]
fn peer_failure_01_another_permit_is_for_the_rests_of_a_format_also_where_the_receipt_is_gone() {
    let lab = torn_key_slot();
    lab.want(1, Desired::Detached);
    lab.settle(1);
    lab.volumes.borrow_mut().get_mut("vol-1").unwrap().status = None;
    lab.hands.borrow_mut().clear();
    lab.change(1, |spec| {
        spec.desired = Desired::Attached;
        (spec.formatted_before, spec.format_permit) = (true, None);
    });
    let written = lab.world.borrow().bytes_written();
    lab.settle(1);
    assert_eq!(lab.reason(1).as_deref(), Some("FormatInterrupted"));
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
    *lab.operator.borrow_mut() = Ok(Some("0".repeat(64)));
    lab.want(1, Desired::Attached);
    let written = lab.world.borrow().bytes_written();
    lab.settle(1);
    assert_eq!(lab.reason(1).as_deref(), Some("KeyDoesNotOpen"));
    assert_eq!(lab.world.borrow().bytes_written(), written);
}
