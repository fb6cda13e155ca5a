//! The continuous proof: what breaks is told of at the next one, and where failClosed is set the mapping is suspended.

use cryptvol_crds::{conditions::Reason, v1alpha1::Stage};

use super::lab::*;
use crate::host::{Mapping, sim::*};

fn attached(fail_closed: bool) -> Lab {
    let lab = Lab::new(1);
    lab.change(1, |s| s.fail_closed = fail_closed);
    lab.settle(1);
    assert!(lab.world.borrow_mut().guest_writes(&Lab::link(1)).is_some());
    lab.prove.set(true);
    lab
}

fn mapping(lab: &Lab) -> Mapping {
    lab.world.borrow().kernel.mappings[0].mapping.clone()
}

#[test]
fn a_proof_that_holds_is_written_once() {
    let lab = attached(true);
    lab.settle(1);
    let proof = lab.status(1).proof.unwrap();
    assert!(proof.holds && proof.error.is_none());
    let writes = lab.status_writes.get();
    let begin = lab.names.borrow().len();
    for _ in 0..10 {
        lab.run(1);
    }
    assert_eq!(lab.status_writes.get(), writes);
    // Asked anew each time, of kernel and disk.
    let names = lab.names.borrow()[begin..].to_vec();
    for call in ["after scan", "after read-header", "after sample"] {
        assert_eq!(names.iter().filter(|n| *n == call).count(), 10, "{call}");
    }
    assert_eq!(lab.keys_released.get(), 1, "a proof needs no key");
}

/// What breaks, how it is mended, and what is said of it.
struct Break {
    reason: Reason,
    happens: fn(&Lab),
    is_mended: fn(&Lab),
}

const BREAKS: &[Break] = &[
    Break {
        reason: Reason::WwidMismatch,
        happens: |lab| lab.disk(1, |d| d.wwid = Some(wwid(77))),
        is_mended: |lab| lab.disk(1, |d| d.wwid = Some(wwid(1))),
    },
    Break {
        reason: Reason::SizeMismatch,
        happens: |lab| lab.disk(1, |d| d.size /= 2),
        is_mended: |lab| lab.disk(1, |d| d.size *= 2),
    },
    Break {
        reason: Reason::HeaderMissing,
        happens: |lab| lab.disk(1, |d| d.zeros = true),
        is_mended: |lab| lab.disk(1, |d| d.zeros = false),
    },
    Break {
        reason: Reason::HeaderMismatch,
        happens: |lab| {
            lab.disk(1, |d| match &mut d.content {
                Content::Luks(h) => h.facts.digest = "another".into(),
                other => panic!("{other:?}"),
            });
        },
        is_mended: |lab| {
            lab.disk(1, |d| match &mut d.content {
                Content::Luks(h) => h.facts = SimHeader::new(&luks_uuid(1), KEY).facts,
                other => panic!("{other:?}"),
            });
        },
    },
    Break {
        reason: Reason::NotOurs,
        happens: |lab| link_to(lab, "/dev/sda"),
        is_mended: |lab| drop(lab.world.borrow_mut().links.remove(&Lab::link(1))),
    },
    Break {
        reason: Reason::PlaintextOnDisk,
        happens: |lab| lab.world.borrow_mut().bad_sample = Some(Reason::PlaintextOnDisk),
        is_mended: |lab| lab.world.borrow_mut().bad_sample = None,
    },
    Break {
        reason: Reason::IntegrityViolated,
        happens: |lab| lab.world.borrow_mut().bad_sample = Some(Reason::IntegrityViolated),
        is_mended: |lab| lab.world.borrow_mut().bad_sample = None,
    },
];

/// Somebody makes the volume's link lead elsewhere.
fn link_to(lab: &Lab, path: &str) {
    let mut world = lab.world.borrow_mut();
    world
        .links
        .insert(Lab::link(1), SimLink::Foreign(path.into()));
}

#[test]
fn each_break_shows_at_the_next_proof_and_passes_when_it_is_mended() {
    for Break {
        reason,
        happens,
        is_mended,
    } in BREAKS
    {
        let lab = attached(false);
        lab.settle(1);
        happens(&lab);
        lab.run(1);
        assert_eq!(lab.reason(1).as_deref(), Some(reason.as_str()));
        let proof = lab.status(1).proof.unwrap();
        assert!(!proof.holds, "{reason}");
        assert_eq!(proof.error.unwrap().reason, reason.as_str());
        assert!(!mapping(&lab).suspended, "{reason}: only told of");
        is_mended(&lab);
        lab.settle(1);
        assert_eq!(lab.reason(1), None, "{reason}");
        assert!(lab.status(1).proof.unwrap().holds);
    }
}

#[test]
fn fail_closed_suspends_and_goes_on_only_over_what_is_right_again() {
    for Break {
        reason,
        happens,
        is_mended,
    } in BREAKS
    {
        let lab = attached(true);
        lab.settle(1);
        let keys = lab.keys_released.get();
        happens(&lab);
        lab.run(1);
        assert_eq!(lab.reason(1).as_deref(), Some(reason.as_str()));
        let key = |m: Mapping| m.table.unwrap().key_in_keyring;
        assert!(mapping(&lab).suspended && !key(mapping(&lab)), "{reason}");
        assert_eq!(mapping(&lab).open_count, 1, "its guest waits");
        lab.settle(1);
        lab.hands.borrow_mut().clear(); // a new agent
        lab.settle(1);
        assert!(mapping(&lab).suspended && !key(mapping(&lab)), "{reason}");
        assert_eq!(lab.keys_released.get(), keys, "{reason}: no key for it");
        assert!(!lab.status(1).proof.unwrap().holds);
        is_mended(&lab);
        lab.settle(1);
        if matches!(reason, Reason::PlaintextOnDisk | Reason::IntegrityViolated) {
            // Nothing on the disk tells that it is over: a person says so. What the operator changes for reasons of its own says nothing.
            lab.change(1, |s| s.header_backed_up = !s.header_backed_up);
            lab.settle(1);
            assert!(mapping(&lab).suspended);
            lab.change(1, |s| s.suspended = true);
            lab.settle(1);
            lab.change(1, |s| s.suspended = false);
            lab.settle(1);
        }
        assert_eq!(
            (lab.status(1).stage, lab.reason(1)),
            (Stage::Attached, None),
            "{reason}"
        );
        assert!(!mapping(&lab).suspended && key(mapping(&lab)));
        lab.settle(1);
        assert!(lab.status(1).proof.unwrap().holds, "{reason}");
    }
}

#[test]
fn what_cannot_be_read_now_is_no_break() {
    let lab = attached(true);
    lab.settle(1);
    *lab.next_faults.borrow_mut() = vec![
        (
            "before sample".into(),
            Fault::Fail(Reason::DeviceUnreadable),
        ),
        (
            "before read-header".into(),
            Fault::Fail(Reason::DeadlineExceeded),
        ),
        ("before scan".into(), Fault::Fail(Reason::StepFailed)),
    ];
    for _ in 0..4 {
        lab.run(1);
        assert!(!mapping(&lab).suspended);
        assert!(lab.status(1).proof.unwrap().holds, "as last seen");
    }
    assert_eq!(lab.reason(1), None);
}

#[test]
fn a_crash_anywhere_in_a_proof_that_breaks_ends_suspended() {
    for Break {
        reason, happens, ..
    } in BREAKS
    {
        for at in 0..24 {
            let lab = attached(true);
            lab.settle(1);
            happens(&lab);
            let begin = lab.pauses.get();
            lab.faults.borrow_mut().push((begin + at, Fault::Kill));
            lab.settle(1);
            lab.settle(1);
            assert_eq!(lab.reason(1).as_deref(), Some(reason.as_str()), "{at}");
            let m = mapping(&lab);
            assert!(
                m.suspended && !m.table.unwrap().key_in_keyring,
                "{reason} {at}"
            );
        }
    }
}

#[test]
fn something_in_place_of_the_mapping_that_does_not_encrypt_is_suspended_and_made_anew_when_nobody_has_it()
 {
    let lab = attached(true);
    lab.settle(1);
    {
        let m = &mut lab.world.borrow_mut().kernel.mappings[0].mapping;
        let table = m.table.as_mut().unwrap();
        (table.target_type, table.key_in_keyring) = ("linear".into(), false);
        table.dev.clear();
    }
    lab.run(1);
    assert_eq!(lab.reason(1).as_deref(), Some("MappingReplaced"));
    assert!(!lab.status(1).proof.unwrap().holds);
    assert!(mapping(&lab).suspended);
    lab.settle(1);
    assert!(mapping(&lab).suspended);
    lab.world
        .borrow_mut()
        .guests_leave(&cryptvol_crds::names::mapping_name(&uid(1)));
    lab.settle(1);
    lab.settle(1);
    assert_eq!(lab.reason(1), None);
    let m = mapping(&lab);
    assert!(!m.suspended && m.table.unwrap().target_type == "crypt");
}
