//! Rotation of the passphrase: invariant 8, the stored key always opens the disk. `Lab::check` asserts it after every call.

use cryptvol_crds::{
    conditions::Reason,
    names,
    v1alpha1::{Desired, Stage},
};

use super::lab::*;
use crate::host::sim::*;

const NEW: &str = "0e77e7c0ffee0e77e7c0ffee0e77e7c0ffee0e77e7c0ffee0e77e7c0ffee0e77";

/// Attached, with data that a guest has open, and a rotation ordered.
fn ordered() -> Lab {
    let lab = Lab::new(1);
    lab.settle(1);
    assert!(lab.world.borrow_mut().guest_writes(&Lab::link(1)).is_some());
    lab.rotate(1, NEW);
    lab
}

fn slots(lab: &Lab) -> Vec<String> {
    lab.disk(1, |d| match &d.content {
        Content::Luks(h) => h.slots.clone(),
        other => panic!("{other:?}"),
    })
}

fn assert_rotated(lab: &Lab, what: &dyn std::fmt::Debug) {
    assert_eq!(lab.reason(1), None, "{what:?}");
    assert_eq!(lab.status(1).stage, Stage::Attached, "{what:?}");
    assert_eq!(lab.status(1).rotation, None, "{what:?}");
    assert_eq!(slots(lab), [NEW], "{what:?}");
    assert_eq!(lab.stored(&name(1)), NEW);
}

#[test]
fn invariant_08_the_new_key_opens_before_the_former_one_goes() {
    let lab = ordered();
    let mappings = lab.world.borrow().kernel.mappings.len();
    lab.settle(1);
    assert_rotated(&lab, &"");
    assert_eq!(lab.world.borrow().kernel.mappings.len(), mappings);
    // It opens from the new key alone.
    lab.world
        .borrow_mut()
        .guests_leave(&names::mapping_name(&uid(1)));
    lab.want(1, Desired::Detached);
    lab.settle(1);
    lab.want(1, Desired::Attached);
    lab.settle(1);
    assert_eq!(
        (lab.status(1).stage, lab.reason(1)),
        (Stage::Attached, None)
    );
    // At rest nothing is written.
    let writes = lab.status_writes.get();
    for _ in 0..10 {
        lab.run(1);
    }
    assert_eq!(lab.status_writes.get(), writes);
}

#[test]
fn invariant_08_a_crash_anywhere_in_a_rotation_converges() {
    let length = {
        let lab = ordered();
        let begin = lab.pauses.get();
        lab.settle(1);
        lab.pauses.get() - begin
    };
    assert!(length > 20, "{length}");
    for first in [Fault::Kill, Fault::PowerCut] {
        for at in 0..length {
            for second in [
                None,
                Some((at + 5, Fault::Kill)),
                Some((at + 9, Fault::PowerCut)),
            ] {
                let lab = ordered();
                let begin = lab.pauses.get();
                let mut faults = vec![(begin + at, first)];
                faults.extend(second.map(|(at, f)| (begin + at, f)));
                lab.faults.borrow_mut().clone_from(&faults);
                lab.settle(1);
                assert_rotated(&lab, &faults);
            }
        }
    }
}

#[test]
fn invariant_08_each_error_of_a_rotation_passes_and_the_volume_stays_attached() {
    for call in ["key release", "add-key-slot", "drop-key-slots"] {
        for side in ["before", "after"] {
            for reason in [
                Reason::KeyDoesNotOpen,
                Reason::HeaderMismatch,
                Reason::NoFreeKeySlot,
                Reason::DeviceUnreadable,
                Reason::KeyReleaseRefused,
                Reason::DeadlineExceeded,
                Reason::StepFailed,
            ] {
                for times in 1..=3 {
                    let lab = ordered();
                    let name = format!("{side} {call}");
                    *lab.next_faults.borrow_mut() =
                        vec![(name.clone(), Fault::Fail(reason)); times];
                    for _ in 0..40 {
                        lab.run(1);
                        // Told of, and nothing else is wrong.
                        assert_eq!(lab.reason(1), None, "{name} {reason}");
                        lab.operate(1);
                    }
                    lab.settle(1);
                    assert!(lab.next_faults.borrow().is_empty(), "{name} was not met");
                    assert_rotated(&lab, &(name, reason, times));
                }
            }
        }
    }
}

#[test]
fn an_error_of_a_rotation_shows_with_its_next_step_and_keeps_its_time() {
    let lab = ordered();
    *lab.next_faults.borrow_mut() = vec![
        (
            "before add-key-slot".into(),
            Fault::Fail(Reason::NoFreeKeySlot)
        );
        2
    ];
    lab.run(1);
    let error = lab.status(1).rotation.unwrap().error.unwrap();
    assert_eq!(error.reason, "NoFreeKeySlot");
    assert!(error.message.ends_with(Reason::NoFreeKeySlot.next_step()));
    let writes = lab.status_writes.get();
    lab.run(1);
    assert_eq!(
        lab.status_writes.get(),
        writes,
        "the same error is written once"
    );
}

#[test]
fn a_rotation_that_ends_on_another_way_leaves_a_volume_that_opens() {
    // Detached, erased or given up between the two halves.
    let length = {
        let lab = ordered();
        let begin = lab.pauses.get();
        lab.settle(1);
        lab.pauses.get() - begin
    };
    for at in 0..length {
        for then in [Desired::Detached, Desired::Erased] {
            let lab = ordered();
            let begin = lab.pauses.get();
            lab.faults.borrow_mut().push((begin + at, Fault::Kill));
            while lab.run(1).is_some() && lab.status(1).rotation.is_some() {
                lab.operate(1);
            }
            lab.world
                .borrow_mut()
                .guests_leave(&names::mapping_name(&uid(1)));
            lab.want(1, then);
            lab.settle(1);
            assert_eq!(lab.reason(1), None, "{at} {then:?}");
            if then == Desired::Detached {
                lab.want(1, Desired::Attached);
                lab.settle(1);
                assert_rotated(&lab, &at);
            } else {
                assert!(lab.status(1).erased.unwrap().verified);
                let header = lab.disk(1, |d| matches!(d.content, Content::Luks(_)));
                assert!(!header, "{at}: a header is left");
            }
        }
    }
}
