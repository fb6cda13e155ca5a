//! Names of udev's that volumes shadow. `Lab::check` asserts after every step of every test that a name leads to its volume's
//! mapping or nowhere.

use cryptvol_crds::v1alpha1::{Desired, Stage};

use super::lab::*;
use crate::host::sim::*;

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
