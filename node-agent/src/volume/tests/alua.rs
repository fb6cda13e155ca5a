//! Arrays that tell the paths to a disk apart (ALUA): which are used first, and how the agent follows when the array changes its mind.

use cryptvol_crds::{
    conditions::Reason,
    paths::PathsHealth,
    v1alpha1::{Desired, PathStatus, Provider},
};

use super::lab::*;
use crate::host::{Access, sim::*};

/// What the array says of its two ports from now on. Nobody has asked it yet.
pub(super) fn says(lab: &Lab, access: [Access; 2]) {
    let ports = PORTALS.iter().map(|p| (*p).to_owned());
    lab.target(|t| t.access = ports.zip(access).collect());
}

/// A volume on an array whose second controller owns the disk. It is not attached yet.
pub(super) fn two_controllers() -> Lab {
    let lab = Lab::paths(Provider::Luks2, 1);
    says(&lab, [Access::NonOptimized, Access::Optimized]);
    lab
}

/// As `two_controllers`, attached and written to.
pub(super) fn two_controllers_with_data() -> Lab {
    let lab = two_controllers();
    lab.settle(1);
    assert_eq!(lab.reason(1), None, "{:?}", lab.status(1));
    writes(&lab);
    let mapping = cryptvol_crds::names::mapping_name(&uid(1));
    lab.world.borrow_mut().guests_leave(&mapping);
    lab
}

/// The controllers changed places, and a guest's I/O let the kernel know.
pub(super) fn changed_places() -> Lab {
    let lab = two_controllers_with_data();
    says(&lab, [Access::Optimized, Access::NonOptimized]);
    writes(&lab);
    let mapping = cryptvol_crds::names::mapping_name(&uid(1));
    lab.world.borrow_mut().guests_leave(&mapping);
    lab
}

fn writes(lab: &Lab) {
    let written = lab.world.borrow_mut().guest_writes(&Lab::link(1));
    assert!(written.is_some(), "{:?}", lab.status(1));
}

fn cut(lab: &Lab, portal: usize) {
    lab.world.borrow_mut().cut(IQN, PORTALS[portal]);
}

fn mend(lab: &Lab, portal: usize) {
    lab.world.borrow_mut().mend(IQN, PORTALS[portal]);
}

fn paths(lab: &Lab) -> Vec<PathStatus> {
    lab.status(1).paths
}

fn up(lab: &Lab) -> Vec<bool> {
    paths(lab).iter().map(|p| p.up).collect()
}

/// Portals by group, as numbers, and the group that I/O goes to.
fn groups(lab: &Lab) -> (Vec<Vec<usize>>, u32) {
    let world = lab.world.borrow();
    let kernel = &world.kernel;
    let map = &kernel.maps[0];
    let portal = |dev: &str| {
        let disk = kernel.devices.iter().find(|d| d.dev == dev).unwrap();
        let session = kernel.sessions.iter().find(|s| s.sid == disk.sid).unwrap();
        let through = session.portal.as_ref().unwrap().to_string();
        PORTALS.iter().position(|p| *p == through).unwrap()
    };
    let last = map.members.iter().map(|m| m.group).max().unwrap_or(0);
    let group = |n| {
        let members = map.members.iter().filter(|m| m.group == n);
        let mut portals: Vec<_> = members.map(|m| portal(&m.dev)).collect();
        portals.sort_unstable();
        portals
    };
    ((1..=last).map(group).collect(), map.current)
}

#[test]
fn the_controller_that_owns_the_disk_is_used_and_the_other_waits_in_a_group_of_its_own() {
    let lab = two_controllers_with_data();
    assert_eq!(groups(&lab), (vec![vec![1], vec![0]], 1));
    assert_eq!(up(&lab), [true, true]);
    let said: Vec<_> = paths(&lab).into_iter().map(|p| p.access.unwrap()).collect();
    assert_eq!(said, ["active/non-optimized", "active/optimized"]);
}

#[test]
fn an_array_that_makes_no_difference_has_one_group_and_no_states() {
    let lab = Lab::paths(Provider::Luks2, 1);
    lab.settle(1);
    assert_eq!(groups(&lab), (vec![vec![0, 1]], 1));
    assert!(paths(&lab).iter().all(|p| p.access.is_none()));
}

/// The kernel keeps on with the group that it has as long as it works; the agent has the other used.
#[test]
fn controllers_that_change_places_are_followed_once_io_was_told_of_it() {
    let lab = two_controllers_with_data();
    let before = lab.world.borrow().kernel.mappings[0].mapping.clone();
    says(&lab, [Access::Optimized, Access::NonOptimized]);
    lab.settle(1);
    assert_eq!(groups(&lab).0, [[1], [0]], "nobody has heard of it");
    writes(&lab);
    lab.settle(1);
    assert_eq!(groups(&lab), (vec![vec![0], vec![1]], 1));
    assert_eq!((lab.reason(1), up(&lab)), (None, vec![true, true]));
    let after = lab.world.borrow().kernel.mappings[0].mapping.clone();
    assert_eq!((after.uuid, after.path), (before.uuid, before.path));
}

#[test]
fn when_the_better_path_is_back_io_goes_there_again() {
    let lab = two_controllers_with_data();
    cut(&lab, 1);
    writes(&lab);
    assert_eq!(groups(&lab).1, 2, "the kernel goes on by itself");
    lab.settle(1);
    assert_eq!(up(&lab), [true, false]);
    mend(&lab, 1);
    writes(&lab);
    assert_eq!(groups(&lab).1, 2, "and not back");
    lab.settle(1);
    assert_eq!(groups(&lab), (vec![vec![1], vec![0]], 1));
    assert_eq!(up(&lab), [true, true]);
}

/// Active and passive controllers. The one that stands by takes over: the kernel finds it in its map by itself, whether an agent runs or not.
#[test]
fn a_path_that_stands_by_is_in_the_map_and_is_used_when_the_array_says_so() {
    let lab = Lab::paths(Provider::Luks2, 1);
    says(&lab, [Access::Optimized, Access::Standby]);
    lab.settle(1);
    assert_eq!(lab.reason(1), None);
    assert_eq!(groups(&lab), (vec![vec![0], vec![1]], 1));
    assert_eq!(up(&lab), [true, false]);
    assert_eq!(paths(&lab)[1].why, None);
    let health = |lab: &Lab| PathsHealth::of(&paths(lab), lab.status(1).io_fails);
    assert_eq!(health(&lab), Some(PathsHealth::Healthy));
    // The array moves the disk before the way to the first controller ends: no agent looks meanwhile.
    says(&lab, [Access::Unavailable, Access::Optimized]);
    writes(&lab);
    assert_eq!(groups(&lab).1, 2);
    lab.settle(1);
    assert_eq!(groups(&lab), (vec![vec![1], vec![0]], 1));
    assert_eq!(up(&lab), [false, true]);
    let why = paths(&lab)[0].why.clone().unwrap();
    assert!(why.contains("unavailable"), "{why}");
    assert_eq!(health(&lab), Some(PathsHealth::Degraded));
    // And back.
    says(&lab, [Access::Optimized, Access::Standby]);
    writes_or_waits(&lab);
    lab.settle(1);
    lab.settle(1);
    assert_eq!(groups(&lab), (vec![vec![0], vec![1]], 1));
    assert_eq!(health(&lab), Some(PathsHealth::Healthy));
    writes(&lab);
}

fn writes_or_waits(lab: &Lab) {
    lab.world.borrow_mut().guest_writes(&Lab::link(1));
}

/// A path that only stands by is none: I/O waits for its time and then fails, however often the agent looks.
#[test]
fn a_path_that_stands_by_alone_is_no_path() {
    let lab = Lab::paths(Provider::Luks2, 1);
    says(&lab, [Access::Optimized, Access::Standby]);
    lab.settle(1);
    cut(&lab, 0);
    assert_eq!(
        lab.world.borrow_mut().guest_writes(&Lab::link(1)),
        None,
        "it waits"
    );
    lab.settle(1);
    assert_eq!(lab.reason(1).as_deref(), Some("PortalUnreachable"));
    let message = lab.status(1).error.unwrap().message;
    assert!(message.contains("its disk standby"), "{message}");
    let map = lab.world.borrow().kernel.maps[0].clone();
    assert!(map.members.iter().all(|m| !m.active), "nobody puts it in");
    lab.give_up.set(true);
    lab.settle(1);
    assert!(lab.status(1).io_fails);
    lab.give_up.set(false);
    // It takes over after all. Only who asks gets to know: the path has no I/O.
    says(&lab, [Access::Standby, Access::Optimized]);
    lab.settle(1);
    assert_eq!((lab.reason(1), up(&lab)), (None, vec![false, true]));
    assert!(lab.world.borrow().kernel.maps[0].queues);
    writes(&lab);
}

/// While a path changes its state the map is left as it is.
#[test]
fn a_change_of_states_is_waited_for() {
    let lab = two_controllers_with_data();
    says(&lab, [Access::NonOptimized, Access::Transitioning]);
    writes(&lab);
    lab.settle(1);
    assert_eq!(groups(&lab), (vec![vec![1], vec![0]], 2));
    assert_eq!(up(&lab), [true, false]);
    says(&lab, [Access::Optimized, Access::NonOptimized]);
    writes(&lab);
    lab.settle(1);
    assert_eq!(groups(&lab), (vec![vec![0], vec![1]], 1));
    assert_eq!((lab.reason(1), up(&lab)), (None, vec![true, true]));
}

#[test]
fn a_volume_of_which_no_path_takes_io_waits_before_it_is_opened_and_says_what_the_array_says() {
    for held in [Access::Standby, Access::Transitioning] {
        let lab = Lab::paths(Provider::Luks2, 1);
        says(&lab, [held, held]);
        let message = lab.stops(Reason::PathsHeldBack);
        assert!(
            message.contains("2001:db8::2") && message.contains(held.as_str()),
            "{message}"
        );
        assert!(lab.world.borrow().kernel.mappings.is_empty());
        says(&lab, [Access::NonOptimized, Access::Optimized]);
        lab.settle(1);
        assert_eq!((lab.reason(1), up(&lab)), (None, vec![true, true]));
        assert_eq!(groups(&lab), (vec![vec![1], vec![0]], 1));
    }
}

/// A port that does not even tell the size of the disk keeps none of the others out, and is let in once it does.
#[test]
fn a_path_without_a_size_waits_outside() {
    let lab = Lab::paths(Provider::Luks2, 1);
    says(&lab, [Access::Optimized, Access::Unavailable]);
    lab.settle(1);
    assert_eq!((lab.reason(1), up(&lab)), (None, vec![true, false]));
    assert_eq!(groups(&lab).0, [[0]]);
    let disks = lab.world.borrow().kernel.devices.len();
    lab.settle(1);
    assert_eq!(lab.world.borrow().kernel.devices.len(), disks);
    says(&lab, [Access::Optimized, Access::NonOptimized]);
    lab.settle(1);
    assert_eq!(groups(&lab), (vec![vec![0], vec![1]], 1));
    assert_eq!(up(&lab), [true, true]);
}

/// The module is not loaded when the disks are found: the table loads it, and the states are known from then on.
#[test]
fn a_handler_that_comes_with_the_table_is_in_time() {
    let lab = two_controllers();
    lab.world.borrow_mut().handler = Handler::ByTable;
    lab.settle(1);
    lab.settle(1);
    assert_eq!((lab.reason(1), up(&lab)), (None, vec![true, true]));
    assert_eq!(groups(&lab), (vec![vec![1], vec![0]], 1));
}

#[test]
fn a_kernel_without_the_handler_is_told_before_anything_is_opened() {
    let lab = two_controllers();
    lab.world.borrow_mut().handler = Handler::Missing;
    lab.stops(Reason::KernelModuleMissing);
    assert!(lab.world.borrow().kernel.mappings.is_empty());
    lab.world.borrow_mut().handler = Handler::AtScan;
    lab.settle(1);
    assert_eq!(lab.reason(1), None);
}

/// Invariant 1: what the array prefers says nothing of whose disk it is.
#[test]
fn invariant_01_a_better_path_to_another_disk_is_not_used() {
    let lab = two_controllers_with_data();
    cut(&lab, 1);
    lab.settle(1);
    let stranger = lab.add_disk(Disk::blank(&wwid(7)));
    lab.target(|t| t.other_luns.insert(PORTALS[1].to_owned(), stranger));
    mend(&lab, 1);
    lab.settle(1);
    assert_eq!(up(&lab), [true, false]);
    assert_eq!(groups(&lab), (vec![vec![0]], 1));
    writes(&lab);
    assert_eq!(lab.world.borrow().disks[stranger].written, 0);
}

/// A map that an earlier agent made over an array whose paths were all alike then.
#[test]
fn paths_in_one_group_are_told_apart_when_the_array_begins_to() {
    let lab = Lab::paths(Provider::Luks2, 1);
    lab.settle(1);
    writes(&lab);
    says(&lab, [Access::NonOptimized, Access::Optimized]);
    writes(&lab);
    lab.settle(1);
    assert_eq!(groups(&lab), (vec![vec![1], vec![0]], 1));
    lab.want(1, Desired::Detached);
    let mapping = cryptvol_crds::names::mapping_name(&uid(1));
    lab.world.borrow_mut().guests_leave(&mapping);
    lab.settle(1);
    assert!(lab.world.borrow().kernel.maps.is_empty());
}
