//! Each of the ten invariants can fail: a state in which one does not hold is found, by its number. `Lab::check` asks them everywhere else.

use cryptvol_crds::{conditions::Reason, names, v1alpha1::Desired};

use super::{
    invariants::strange_mapping,
    lab::{INVARIANTS, *},
};
use crate::host::sim::*;

/// A state that breaks one invariant, told by a part of the message.
type Broken = (&'static str, fn(&Lab), &'static str);

fn mapping(lab: &Lab, change: impl FnOnce(&mut SimMapping)) {
    change(&mut lab.world.borrow_mut().kernel.mappings[0]);
}

fn status(lab: &Lab, change: impl FnOnce(&mut cryptvol_crds::v1alpha1::NodeVolumeStatus)) {
    let mut volumes = lab.volumes.borrow_mut();
    change(volumes.get_mut(&name(1)).unwrap().status.as_mut().unwrap());
    lab.ledger.borrow_mut().unread = true;
}

const BROKEN: &[Broken] = &[
    (
        "1",
        |lab| mapping(lab, |m| m.disk += 1),
        "mapped from another disk",
    ),
    (
        "1",
        |lab| lab.world.borrow_mut().disks[1].written = 1,
        "stranger's",
    ),
    (
        "1",
        |lab| lab.ledger.borrow_mut().unproven.push("x".into()),
        "x",
    ),
    (
        "2",
        |lab| lab.disk(1, |d| d.formats += 1),
        "formatted 2 times",
    ),
    (
        "2",
        |lab| {
            lab.disk(1, |d| d.formats += 1);
            let mut ledger = lab.ledger.borrow_mut();
            ledger
                .permits
                .get_mut(&name(1))
                .unwrap()
                .insert("forged".into());
        },
        "after it was opened",
    ),
    (
        "2",
        |lab| status(lab, |s| s.first_opened = None),
        "no record of its opening",
    ),
    (
        "3",
        |lab| {
            let to = SimLink::Ours("/dev/sda".into());
            lab.world.borrow_mut().links.insert(Lab::link(1), to);
        },
        "which is no mapping",
    ),
    (
        "3",
        |lab| {
            let other = strange_mapping("another", "LVM-x", "8:0");
            lab.world.borrow_mut().kernel.mappings.push(other);
            let to = SimLink::Ours("/dev/dm-7".into());
            lab.world.borrow_mut().links.insert(Lab::link(1), to);
        },
        "leads to the mapping another",
    ),
    (
        "3",
        |lab| {
            let names = &mut lab.world.borrow_mut().names;
            (names.kept, names.given) = Default::default();
        },
        "leads to /dev/sda",
    ),
    (
        "4",
        |lab| lab.world.borrow_mut().log.push(KEY.into()),
        "in the log",
    ),
    (
        "4",
        |lab| status(lab, |s| s.rescan = Some(format!("with {KEY}"))),
        "in the API",
    ),
    (
        "4",
        |lab| {
            lab.change(1, |s| s.suspended = true);
            let generation = lab.volume(1).metadata.generation;
            status(lab, |s| {
                (s.suspended, s.observed_generation) = (true, generation)
            });
        },
        "its key is in the kernel",
    ),
    (
        "5",
        |lab| lab.ledger.borrow_mut().unwanted_keys.push("y".into()),
        "y",
    ),
    (
        "6",
        |lab| assert!(lab.ledger.borrow_mut().others.sessions.insert(99)),
        "session 99",
    ),
    (
        "6",
        |lab| {
            let mut ledger = lab.ledger.borrow_mut();
            ledger.others.mappings.insert("LVM-y".into());
        },
        "LVM-y",
    ),
    (
        "6",
        |lab| assert!(lab.ledger.borrow_mut().others.links.insert(Lab::link(1))),
        "the link",
    ),
    (
        "6",
        |lab| {
            let mut ledger = lab.ledger.borrow_mut();
            ledger
                .others
                .names
                .insert(by_path(IQN, 1), "another".into());
        },
        "was taken from another",
    ),
    (
        "6",
        |lab| {
            let mut ledger = lab.ledger.borrow_mut();
            ledger.others.slots.insert(0, "theirs".into());
        },
        "a key slot of others",
    ),
    (
        "7",
        |lab| lab.disk(1, |d| d.content = Content::Garbage),
        "data of vol-1 lost",
    ),
    (
        "7",
        |lab| {
            *lab.operator.borrow_mut() = Err((Reason::KeyNotFound, "x".into()));
            lab.world.borrow_mut().power_cut();
            lab.run(1);
            status(lab, |s| {
                s.error.as_mut().unwrap().message.push_str(" Good luck.")
            });
        },
        "does not say what to do",
    ),
    (
        "8",
        |lab| {
            lab.stored.borrow_mut().insert(name(1), "another".into());
        },
        "does not open vol-1",
    ),
    (
        "8",
        |lab| {
            status(lab, |s| {
                s.header_backup.as_mut().unwrap().sealed = "z".into()
            })
        },
        "the backup of vol-1",
    ),
    (
        "9",
        |lab| {
            lab.world
                .borrow_mut()
                .guests_leave(&names::mapping_name(&uid(1)));
            let header = lab.disk(1, |d| d.content.clone());
            lab.want(1, Desired::Erased);
            lab.settle(1);
            lab.disk(1, |d| d.content = header);
        },
        "is not",
    ),
    (
        "10",
        |lab| {
            lab.ledger.borrow_mut().in_flight.insert(name(1), 2);
        },
        "2 calls of vol-1",
    ),
    (
        "10",
        |lab| {
            lab.busy_targets.borrow_mut().insert(IQN.into(), 2);
        },
        "2 volumes work",
    ),
    (
        "10",
        |lab| {
            let calls = &mut lab.ledger.borrow_mut().calls;
            calls.insert(name(1), MOST_CALLS + 1);
        },
        "a turn of vol-1",
    ),
];

/// Attached under its name, with data.
fn attached() -> Lab {
    let lab = Lab::new(1);
    lab.add_disk(Disk::blank(&wwid(66)));
    lab.change(1, |s| s.shadow = Some(by_path(IQN, 1)));
    lab.settle(1);
    assert!(lab.world.borrow_mut().guest_writes(&Lab::link(1)).is_some());
    assert_eq!(lab.invariants(), Ok(()));
    lab
}

#[test]
fn each_invariant_is_found_broken_where_it_is() {
    for (number, happens, says) in BROKEN {
        let lab = attached();
        happens(&lab);
        let broken = lab.invariants().expect_err(says);
        assert!(
            broken.starts_with(&format!("{number}: ")) && broken.contains(says),
            "{number}, {says}: {broken}"
        );
    }
    for number in 1..=INVARIANTS.len() {
        let number = number.to_string();
        assert!(BROKEN.iter().any(|(n, ..)| *n == number), "{number}");
    }
}

#[test]
fn invariant_10_volumes_of_one_target_go_one_by_one_and_a_turn_ends() {
    use std::task::{Context, Waker};
    // Three at once, each a step at a time: what the target must have to itself is checked at each (`Lab::check`).
    let lab = Lab::new(3);
    lab.interleave.set(true);
    let mut turns: Vec<_> = (1..=3).map(|n| Some(Box::pin(lab.turn(n)))).collect();
    let mut cx = Context::from_waker(Waker::noop());
    let mut together = 0;
    for _ in 0..1000 {
        for turn in &mut turns {
            if let Some(running) = turn
                && running.as_mut().poll(&mut cx).is_ready()
            {
                *turn = None;
            }
        }
        let in_flight = lab.ledger.borrow().in_flight.values().sum();
        together = together.max(in_flight);
    }
    assert!(turns.iter().all(Option::is_none), "a turn without an end");
    assert!(together > 1, "volumes do not wait for each other");
    assert_eq!(lab.world.borrow().kernel.sessions.len(), 1);
    // Somebody makes the link anew whenever it is removed: the turn ends all the same, and says so.
    let lab = Lab::new(1);
    lab.stubborn_link.set(true);
    let to = SimLink::Ours("/dev/dm-0".into());
    lab.world.borrow_mut().links.insert(Lab::link(1), to);
    lab.vandalised.set(true);
    lab.unchecked.set(true);
    assert!(lab.run(1).is_some());
    assert_eq!(lab.reason(1).as_deref(), Some("StepFailed"));
    assert!(lab.ledger.borrow().calls[&name(1)] <= MOST_CALLS);
}
