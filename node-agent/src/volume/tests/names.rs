//! Names of udev's that volumes shadow. `Lab::check` asserts after every step of every test that a name leads to its volume's
//! mapping or nowhere.

use cryptvol_crds::{
    conditions::Reason,
    v1alpha1::{Desired, Stage},
};

use super::lab::*;
use crate::host::{Mapping, sim::*};

fn shadowed() -> Lab {
    let lab = Lab::new(1);
    lab.change(1, |s| s.shadow = Some(by_path(IQN, 1)));
    lab
}

fn leads(lab: &Lab) -> Option<String> {
    lab.world.borrow().name_leads(&by_path(IQN, 1))
}

#[test]
fn invariant_03_a_shadowed_name_leads_to_the_mapping_and_after_detach_nowhere() {
    let lab = shadowed();
    lab.settle(1);
    let mapping = lab.world.borrow().kernel.mappings[0].mapping.path.clone();
    assert_eq!(leads(&lab), Some(mapping));
    assert_eq!(lab.status(1).shadow, Some(by_path(IQN, 1)));
    // A mapping that is made anew has another number.
    lab.world.borrow_mut().kernel.devices.clear();
    lab.settle(1);
    assert_eq!(lab.status(1).stage, Stage::Attached);

    lab.want(1, Desired::Detached);
    lab.settle(1);
    assert_eq!(
        (lab.status(1).stage, lab.status(1).shadow),
        (Stage::Detached, None)
    );
    lab.neighbour_scans(0, wwid(1));
    assert_eq!(leads(&lab), None, "the raw disk got the name back");
    // Attached again over the neighbour's session, and deleted: then the name is udev's.
    lab.want(1, Desired::Attached);
    lab.settle(1);
    assert!(leads(&lab).is_some_and(|to| to.starts_with("/dev/dm-")));
    lab.change(1, |s| (s.desired, s.shadow) = (Desired::Detached, None));
    lab.settle(1);
    assert_eq!(lab.status(1).stage, Stage::Detached);
    assert!(lab.world.borrow().names.kept.is_empty());
}

/// `Lab::check` holds from the moment on in which the name is kept, so the first look at it is by hand.
#[test]
fn a_name_that_the_raw_disk_has_already_is_taken_before_anything_else() {
    let lab = shadowed();
    lab.neighbour_scans(0, wwid(1));
    assert_eq!(leads(&lab).as_deref(), Some("/dev/sdz"));
    lab.names_free_until_kept.set(true);
    lab.settle(1);
    let first = lab.world.borrow().log[0].clone();
    assert_eq!(first, "vol-1: name ok");
    assert!(leads(&lab).is_some_and(|to| to.starts_with("/dev/dm-")));
}

#[test]
fn a_name_by_id_is_taken_only_from_the_disk_that_was_identified() {
    let naa = wwid(1).trim_start_matches("naa.").to_owned();
    let name = format!("/dev/disk/by-id/wwn-0x{naa}");
    let lab = Lab::new(1);
    // The raw disk has it from its scan on until it was identified.
    lab.names_free_until_kept.set(true);
    lab.change(1, |s| s.shadow = Some(name.clone()));
    // Another disk at the LUN: the name stays with whom it belongs to.
    lab.disk(1, |d| d.wwid = Some(wwid(66)));
    lab.settle(1);
    assert_eq!(lab.reason(1).as_deref(), Some("WwidMismatch"));
    assert!(lab.world.borrow().names.kept.is_empty());
    lab.disk(1, |d| d.wwid = Some(wwid(1)));
    lab.settle(1);
    assert_eq!(lab.status(1).shadow, Some(name.clone()));
    // From then on it is kept before the disk is there.
    lab.world.borrow_mut().power_cut();
    lab.target(|t| t.up = false);
    lab.settle(1);
    assert!(lab.world.borrow().names.kept.contains_key(&name));
}

#[test]
fn a_name_of_another_volume_is_left_alone() {
    let lab = shadowed();
    let name = by_path(IQN, 1);
    lab.world
        .borrow_mut()
        .names
        .kept
        .insert(name.clone(), "cryptvol-other".into());
    lab.settle(1);
    assert_eq!(lab.reason(1).as_deref(), Some("NotOurs"));
    assert_eq!(lab.world.borrow().names.kept[&name], "cryptvol-other");
    assert!(lab.world.borrow().kernel.mappings.is_empty());
    lab.want(1, Desired::Detached);
    lab.settle(1);
    assert_eq!(lab.status(1).stage, Stage::Detached);
    assert_eq!(lab.world.borrow().names.kept[&name], "cryptvol-other");
}

/// Attached, in use by a guest and proven; and then somebody puts the raw disk in the place of the name, and udev does nothing any more.
fn stuck(fail_closed: bool) -> Lab {
    let lab = shadowed();
    lab.change(1, |s| s.fail_closed = fail_closed);
    lab.settle(1);
    assert!(lab.world.borrow_mut().guest_writes(&Lab::link(1)).is_some());
    lab.prove.set(true);
    lab.settle(1);
    assert!(lab.status(1).proof.unwrap().holds);
    {
        let names = &mut lab.world.borrow_mut().names;
        names.by_hand.insert(by_path(IQN, 1), "/dev/sda".into());
        names.stuck = true;
    }
    lab
}

fn mapping(lab: &Lab) -> Mapping {
    lab.world.borrow().kernel.mappings[0].mapping.clone()
}

/// udev works again.
fn unstick(lab: &Lab) {
    lab.world.borrow_mut().names.stuck = false;
}

/// What was done since the log had so many lines.
fn done(lab: &Lab, since: usize) -> Vec<String> {
    lab.world.borrow().log[since..].to_vec()
}

#[test]
fn a_name_that_udev_does_not_give_is_told_beside_a_proof_that_is_made() {
    let lab = stuck(true);
    let before = lab.status(1).proof;
    for _ in 0..3 {
        let since = lab.world.borrow().log.len();
        lab.run(1);
        assert_eq!(lab.reason(1).as_deref(), Some("DeadlineExceeded"));
        assert_eq!(lab.status(1).proof, before);
        let done = done(&lab, since);
        let count = |what: &str| done.iter().filter(|l| l.ends_with(what)).count();
        assert_eq!(
            (count("name failed"), count("sample ok")),
            (1, 1),
            "{done:?}"
        );
    }
    assert!(!mapping(&lab).suspended);
    assert!(lab.world.borrow().links.contains_key(&Lab::link(1)));
    unstick(&lab);
    lab.settle(1);
    assert_eq!(lab.reason(1), None);
    assert_eq!(leads(&lab), Some(mapping(&lab).path));
}

#[test]
fn fail_closed_does_not_wait_for_udev() {
    for (reason, happens) in [
        (
            Reason::WwidMismatch,
            (|lab| lab.disk(1, |d| d.wwid = Some(wwid(77)))) as fn(&Lab),
        ),
        (Reason::PlaintextOnDisk, |lab| {
            lab.world.borrow_mut().bad_sample = Some(Reason::PlaintextOnDisk);
        }),
        (Reason::MappingReplaced, |lab| {
            let mut world = lab.world.borrow_mut();
            let table = world.kernel.mappings[0].mapping.table.as_mut();
            table.unwrap().target_type = "linear".into();
        }),
    ] {
        for at in 0..20 {
            let lab = stuck(true);
            happens(&lab);
            let (begin, since) = (lab.pauses.get(), lab.world.borrow().log.len());
            lab.faults.borrow_mut().push((begin + at, Fault::Kill));
            if lab.run(1).is_none() {
                lab.run(1);
            }
            assert_eq!(lab.reason(1).as_deref(), Some(reason.as_str()), "{at}");
            assert!(mapping(&lab).is_closed(), "{reason} {at}");
            assert!(!lab.status(1).proof.unwrap().holds);
            // It is tried all the same.
            let tried = |l: &String| l.ends_with("name failed");
            assert!(done(&lab, since).iter().any(tried), "{reason} {at}");
            if reason == Reason::MappingReplaced {
                let first = done(&lab, since)[0].clone();
                assert_eq!(first, "vol-1: suspend ok");
            }
        }
    }
}

#[test]
fn an_ordered_suspension_does_not_wait_for_udev_and_counts_as_one() {
    let lab = stuck(true);
    lab.world.borrow_mut().bad_sample = Some(Reason::PlaintextOnDisk);
    lab.settle(1);
    assert_eq!(lab.reason(1).as_deref(), Some("PlaintextOnDisk"));
    lab.world.borrow_mut().bad_sample = None;
    // A person says that it may go on, while udev is still stuck.
    for suspended in [true, false] {
        lab.change(1, |s| s.suspended = suspended);
        lab.settle(1);
        assert_eq!(lab.reason(1).as_deref(), Some("DeadlineExceeded"));
        assert_eq!(lab.status(1).suspended, suspended);
        assert_eq!(mapping(&lab).is_closed(), suspended);
    }
    assert!(lab.status(1).proof.unwrap().holds);
    let since = lab.world.borrow().log.len();
    lab.change(1, |s| s.suspended = true);
    lab.run(1);
    assert_eq!(done(&lab, since)[0], "vol-1: suspend ok");
    assert!(lab.status(1).suspended && mapping(&lab).is_closed());
    unstick(&lab);
    lab.settle(1);
    assert_eq!((lab.reason(1), lab.status(1).suspended), (None, true));
    assert_ne!(leads(&lab).as_deref(), Some("/dev/sda"));
    lab.change(1, |s| s.suspended = false);
    lab.settle(1);
    assert_eq!(lab.reason(1), None);
    assert_eq!(leads(&lab), Some(mapping(&lab).path));
}

/// Detaching, too: but a name that leads to the mapping could lead to another volume's once that gets its number.
#[test]
fn a_detach_takes_the_link_at_once_and_the_mapping_when_the_name_does_not_lead_there() {
    let lab = stuck(false);
    lab.world.borrow_mut().names.by_hand.clear();
    lab.world
        .borrow_mut()
        .guests_leave(&cryptvol_crds::names::mapping_name(&uid(1)));
    lab.want(1, Desired::Detached);
    lab.settle(1);
    assert_eq!(lab.reason(1).as_deref(), Some("DeadlineExceeded"));
    assert!(lab.world.borrow().links.is_empty());
    assert_eq!(leads(&lab), Some(mapping(&lab).path));
    unstick(&lab);
    lab.settle(1);
    assert_eq!(
        (lab.status(1).stage, lab.reason(1)),
        (Stage::Detached, None)
    );
    assert!(lab.world.borrow().kernel.mappings.is_empty());
}

#[test]
fn invariant_03_nothing_new_is_made_before_the_name_is_kept() {
    // No mapping.
    let lab = shadowed();
    lab.world.borrow_mut().names.stuck = true;
    lab.settle(1);
    assert_eq!(lab.reason(1).as_deref(), Some("DeadlineExceeded"));
    assert!(lab.world.borrow().kernel.mappings.is_empty());
    assert!(lab.world.borrow().kernel.devices.is_empty(), "nor its disk");
    unstick(&lab);
    lab.settle(1);
    assert_eq!(lab.reason(1), None);
    // No link to one that is there.
    let lab = stuck(false);
    lab.world.borrow_mut().links.clear();
    lab.settle(1);
    assert_eq!(lab.reason(1).as_deref(), Some("DeadlineExceeded"));
    assert!(lab.world.borrow().links.is_empty());
    // None is made anew in place of one that nobody can use.
    lab.world
        .borrow_mut()
        .guests_leave(&cryptvol_crds::names::mapping_name(&uid(1)));
    "offline".clone_into(&mut lab.world.borrow_mut().kernel.devices[0].state);
    let before = mapping(&lab);
    lab.settle(1);
    assert_eq!(mapping(&lab), before);
    unstick(&lab);
    lab.settle(1);
    assert_eq!(lab.reason(1), None);
    assert!(lab.world.borrow().links.contains_key(&Lab::link(1)));
    assert_eq!(leads(&lab), Some(mapping(&lab).path));
}

#[test]
fn a_name_that_another_volume_got_keeps_no_key_in_the_kernel() {
    let lab = stuck(true);
    let name = by_path(IQN, 1);
    {
        let names = &mut lab.world.borrow_mut().names;
        names.given.clear();
        names.kept.insert(name.clone(), "cryptvol-other".into());
    }
    lab.settle(1);
    assert_eq!(lab.reason(1).as_deref(), Some("NotOurs"));
    assert!(lab.status(1).proof.unwrap().holds, "it is no break");
    lab.disk(1, |d| d.wwid = Some(wwid(77)));
    lab.run(1);
    assert_eq!(lab.reason(1).as_deref(), Some("WwidMismatch"));
    assert!(mapping(&lab).is_closed());
    assert_eq!(lab.world.borrow().names.kept[&name], "cryptvol-other");
}
