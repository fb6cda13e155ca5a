//! Several sessions to one target.

use std::time::Duration;

use cryptvol_crds::{
    conditions::Reason,
    names,
    v1alpha1::{Desired, Provider},
};

use super::lab::*;
use crate::{
    host::{Portal, sim::*},
    volume::report::only_paths_changed,
};

/// Portals of the target, as a spec has them.
fn portals() -> Vec<String> {
    PORTALS.map(str::to_owned).to_vec()
}

/// A session to the target that somebody made through its second portal.
fn second_session(lab: &Lab) -> u32 {
    let mut world = lab.world.borrow_mut();
    world.kernel.next_sid += 1;
    let sid = world.kernel.next_sid;
    world.kernel.sessions.push(SimSession {
        sid,
        iqn: IQN.to_owned(),
        portal: Some(Portal {
            address: "2001:db8::2".to_owned(),
            port: 3260,
        }),
        state: "LOGGED_IN".to_owned(),
        foreign: false,
    });
    sid
}

/// Which session counts is told by the mapping. The state of the sessions would tell it otherwise as soon as one fails.
#[test]
fn a_mapping_waits_for_the_session_below_it_whatever_other_session_is_there() {
    let lab = Lab::new(1);
    lab.change(1, |s| s.source.iscsi.as_mut().unwrap().portals = portals());
    lab.settle(1);
    second_session(&lab);
    let state = |state: &str| {
        state.clone_into(&mut lab.world.borrow_mut().kernel.sessions[0].state);
        lab.settle(1);
    };
    for in_use in [false, true] {
        if in_use {
            lab.world.borrow_mut().guest_writes(&Lab::link(1)).unwrap();
        }
        let before = lab.world.borrow().kernel.mappings[0].mapping.clone();
        state("FAILED");
        assert_eq!(lab.reason(1).as_deref(), Some("PortalUnreachable"));
        assert_eq!(lab.status(1).portal.as_deref(), Some(PORTALS[0]));
        let world = lab.world.borrow().clone();
        assert_eq!(world.kernel.mappings[0].mapping, before);
        assert_eq!(world.kernel.devices.len(), 1, "no second disk");
        assert!(world.links.contains_key(&Lab::link(1)));
        state("LOGGED_IN");
        assert_eq!(lab.reason(1), None);
    }
}

/// Once the mapping is gone nothing tells which session it was.
#[test]
fn a_disk_in_a_session_that_failed_is_removed_and_the_neighbours_session_stays() {
    let lab = Lab::new(2);
    for n in [1, 2] {
        lab.change(n, |s| s.source.iscsi.as_mut().unwrap().portals = portals());
    }
    lab.settle(1);
    let second = second_session(&lab);
    "FAILED".clone_into(&mut lab.world.borrow_mut().kernel.sessions[0].state);
    lab.settle(2);
    assert_eq!(lab.status(2).portal.as_deref(), Some(PORTALS[1]));
    lab.want(1, Desired::Detached);
    lab.settle(1);
    {
        let kernel = &lab.world.borrow().kernel;
        let left: Vec<_> = kernel.devices.iter().map(|d| (d.sid, d.lun)).collect();
        assert_eq!(left, [(second, 2)]);
        let sessions: Vec<_> = kernel.sessions.iter().map(|s| s.sid).collect();
        assert_eq!(sessions, [second]);
        let name = names::mapping_name(&uid(1));
        assert!(kernel.mappings.iter().all(|m| m.mapping.name != name));
    }
    lab.want(2, Desired::Detached);
    lab.settle(2);
    assert!(lab.world.borrow().kernel.sessions.is_empty());
}

/// What the status says of the paths: which are up.
fn up(lab: &Lab) -> Vec<bool> {
    lab.status(1).paths.iter().map(|p| p.up).collect()
}

fn attached() -> Lab {
    let lab = Lab::paths(Provider::Luks2, 1);
    lab.settle(1);
    assert_eq!(lab.reason(1), None, "{:?}", lab.status(1));
    assert!(lab.world.borrow_mut().guest_writes(&Lab::link(1)).is_some());
    lab
}

fn cut(lab: &Lab, portal: usize) {
    lab.world.borrow_mut().cut(IQN, PORTALS[portal]);
}

fn mend(lab: &Lab, portal: usize) {
    lab.world.borrow_mut().mend(IQN, PORTALS[portal]);
}

#[test]
fn the_mapping_is_above_a_map_of_both_paths() {
    let lab = attached();
    assert_eq!(up(&lab), [true, true]);
    let status = lab.status(1);
    let kernel = &lab.world.borrow().kernel;
    let (map, mapping) = (&kernel.maps[0], &kernel.mappings[0].mapping);
    assert_eq!(mapping.deps, std::slice::from_ref(&map.dev));
    assert_eq!((map.members.len(), map.queues), (2, true));
    let device = status.device.unwrap();
    assert_eq!(
        (device.path, device.wwid),
        (map.path.clone(), Some(wwid(1)))
    );
    assert_eq!(kernel.sessions.len(), 2);
}

/// One that is away holds up nothing, and is added once it is there.
#[test]
fn one_path_is_enough_and_healing_adds_the_other() {
    for portal in [0, 1] {
        let lab = Lab::paths(Provider::Luks2, 1);
        cut(&lab, portal);
        lab.settle(1);
        assert_eq!(lab.reason(1), None);
        assert_eq!(up(&lab), [portal == 1, portal == 0]);
        let why = lab.status(1).paths[portal].why.clone().unwrap();
        assert!(why.starts_with("no session"), "{why}");
        mend(&lab, portal);
        lab.settle(1);
        assert_eq!(up(&lab), [true, true], "{:?}", lab.status(1));
    }
}

#[test]
fn a_path_that_failed_is_taken_back_when_it_works_and_io_goes_on_meanwhile() {
    let lab = attached();
    let before = lab.world.borrow().kernel.mappings[0].mapping.clone();
    for portal in [0, 1] {
        cut(&lab, portal);
        assert!(lab.world.borrow_mut().guest_writes(&Lab::link(1)).is_some());
        lab.settle(1);
        assert_eq!(
            (lab.reason(1), up(&lab)),
            (None, vec![portal == 1, portal == 0])
        );
        assert!(lab.status(1).paths[portal].why.is_some());
        mend(&lab, portal);
        // The kernel does not use it by itself.
        let map = lab.world.borrow().kernel.maps[0].clone();
        assert!(map.members.iter().any(|m| !m.active));
        lab.settle(1);
        assert_eq!(up(&lab), [true, true]);
    }
    let after = lab.world.borrow().kernel.mappings[0].mapping.clone();
    assert_eq!((after.uuid, after.path), (before.uuid, before.path));
}

#[test]
fn without_a_path_io_waits_and_fails_after_its_time() {
    let lab = attached();
    for portal in [0, 1] {
        cut(&lab, portal);
    }
    lab.settle(1);
    assert_eq!(lab.reason(1).as_deref(), Some("PortalUnreachable"));
    assert!(lab.world.borrow().kernel.maps[0].queues);
    let until = |lab: &Lab| lab.status(1).io_waits_until.map(|t| t.0);
    assert!(!lab.status(1).io_fails);
    assert_eq!(until(&lab), None, "it waits for ever");
    lab.no_path_timeout.set(Duration::from_secs(60));
    lab.settle(1);
    let said = until(&lab).expect("it is said until when I/O waits");
    let from_now = said.duration_since(lab.now()).as_secs();
    assert!((50..=60).contains(&from_now), "{from_now}");
    lab.settle(1);
    assert_eq!(until(&lab), Some(said), "written once");
    lab.give_up.set(true);
    lab.settle(1);
    assert!(!lab.world.borrow().kernel.maps[0].queues);
    assert!(lab.status(1).io_fails);
    assert_eq!(until(&lab), None, "it waits no more");
    assert_eq!(lab.reason(1).as_deref(), Some("PortalUnreachable"));
    mend(&lab, 1);
    lab.give_up.set(false);
    lab.settle(1);
    assert_eq!((lab.reason(1), up(&lab)), (None, vec![false, true]));
    assert!(lab.world.borrow().kernel.maps[0].queues, "waits again");
    assert!(!lab.status(1).io_fails);
    assert_eq!(until(&lab), None);
}

#[test]
fn a_portal_that_comes_and_goes_changes_nothing_but_paths_and_what_follows_them() {
    let lab = attached();
    for (portal, other) in [(0, 1), (1, 0)] {
        let before = lab.status(1);
        cut(&lab, portal);
        lab.settle(1);
        let after = lab.status(1);
        assert!(only_paths_changed(&before, &after), "{before:?} {after:?}");
        assert!(only_paths_changed(&after, &before));
        // Of the first the session that is shown goes with it.
        assert_eq!(after.portal, Some(PORTALS[other].to_owned()));
        mend(&lab, portal);
        lab.settle(1);
    }
    // Anything else is told at once.
    let before = lab.status(1);
    assert!(!only_paths_changed(&before, &before));
    for portal in [0, 1] {
        cut(&lab, portal);
    }
    lab.settle(1);
    assert!(
        !only_paths_changed(&before, &lab.status(1)),
        "no path works"
    );
    let mut longer = before.clone();
    longer.paths.clear();
    longer.device.as_mut().unwrap().size_bytes += 4096;
    assert!(!only_paths_changed(&before, &longer), "another size");
}

/// Invariant 1: the number of a LUN is not an identity, on no path.
#[test]
fn a_path_to_another_disk_is_refused_and_named() {
    let lab = attached();
    cut(&lab, 1);
    lab.settle(1);
    let stranger = lab.add_disk(Disk::blank(&wwid(7)));
    lab.target(|t| t.other_luns.insert(PORTALS[1].to_owned(), stranger));
    mend(&lab, 1);
    lab.settle(1);
    let status = lab.status(1);
    assert_eq!(up(&lab), [true, false], "{status:?}");
    let why = status.paths[1].why.clone().unwrap();
    assert!(why.contains(&wwid(7)), "{why}");
    assert_eq!(lab.world.borrow().kernel.maps[0].members.len(), 1);
    assert_eq!(lab.reason(1), None, "the other path is right");
    // The right one again.
    lab.target(|t| t.other_luns.clear());
    lab.settle(1);
    assert_eq!(up(&lab), [true, true]);
    // On both paths another one: the first is in use, and only a look shows it.
    cut(&lab, 1);
    lab.target(|t| t.luns.insert(1, stranger));
    mend(&lab, 1);
    lab.settle(1);
    assert_eq!(lab.reason(1).as_deref(), Some("WwidMismatch"));
    assert_eq!(lab.disk(1, |d| d.written), 16 << 20);
    assert_eq!(lab.world.borrow().disks[stranger].written, 0);
}

/// Invariant 1, below a guest: the array gives the LUN behind one portal to somebody else. The proof looks, and whichever path it is, no more
/// writes go there.
#[test]
fn a_path_in_use_that_becomes_another_disk_is_taken_out() {
    for fail_closed in [false, true] {
        for swapped in [0, 1] {
            let lab = attached();
            lab.change(1, |s| s.fail_closed = fail_closed);
            lab.prove.set(true);
            lab.settle(1);
            let stranger = lab.add_disk(Disk::blank(&wwid(7)));
            lab.target(|t| t.other_luns.insert(PORTALS[swapped].to_owned(), stranger));
            lab.run(1);
            let status = lab.status(1);
            let whole = swapped == 1;
            assert_eq!(up(&lab), [whole, !whole], "{status:?}");
            let why = status.paths[swapped].why.clone().unwrap();
            assert!(why.contains(&wwid(7)), "{why}");
            assert_eq!(lab.reason(1), None, "the other path is right");
            assert!(status.proof.unwrap().holds);
            {
                let world = lab.world.borrow();
                assert_eq!(world.kernel.maps[0].members.len(), 1);
                assert!(world.kernel.mappings.iter().all(|m| !m.mapping.suspended));
            }
            // The right one again.
            lab.target(|t| t.other_luns.clear());
            lab.settle(1);
            assert_eq!(up(&lab), [true, true]);
            // All of them: there is no right one to go on with.
            lab.target(|t| t.luns.insert(1, stranger));
            lab.run(1);
            assert_eq!(lab.reason(1).as_deref(), Some("WwidMismatch"));
            let world = lab.world.borrow();
            let suspended = world.kernel.mappings.iter().any(|m| m.mapping.suspended);
            assert_eq!(suspended, fail_closed);
            assert_eq!(world.disks[stranger].written, 0);
        }
    }
}

/// Before the first opening nobody knows which of two disks is meant.
#[test]
fn two_disks_on_two_paths_end_the_attachment() {
    let lab = Lab::paths(Provider::Luks2, 1);
    lab.change(1, |s| s.wwid = None);
    lab.settle(1);
    lab.want(1, Desired::Detached);
    lab.settle(1);
    let lab = Lab::paths(Provider::Luks2, 1);
    lab.change(1, |s| s.wwid = None);
    let stranger = lab.add_disk(Disk::blank(&wwid(7)));
    lab.target(|t| {
        t.other_luns.insert(PORTALS[1].to_owned(), stranger);
    });
    let message = lab.stops(Reason::WwidMismatch);
    assert!(
        message.contains("2001:db8::2") && message.contains(&wwid(7)),
        "{message}"
    );
    assert!(lab.world.borrow().kernel.maps.is_empty());
}

#[test]
fn a_map_of_others_above_a_path_is_left_alone() {
    let lab = Lab::paths(Provider::Luks2, 1);
    lab.settle(1);
    let mut world = lab.world.borrow_mut();
    let mut foreign = world.kernel.maps[0].clone();
    (foreign.name, foreign.uuid) = ("mpatha".into(), "mpath-3600".into());
    (foreign.path, foreign.dev) = ("/dev/dm-9".into(), "253:9".into());
    world.kernel.maps.push(foreign);
    drop(world);
    lab.want(1, Desired::Detached);
    lab.settle(1);
    assert_eq!(lab.reason(1).as_deref(), Some("DeviceBusy"));
    lab.want(1, Desired::Attached);
    lab.settle(1);
    assert_eq!(lab.reason(1).as_deref(), Some("DeviceBusy"));
    let message = lab.status(1).error.unwrap().message;
    assert!(message.contains("dm-9"), "{message}");
    assert_eq!(lab.world.borrow().kernel.maps.len(), 1);
}

/// What a running multipathd makes over the disk of a volume in use. A path that failed is taken back all the same: to leave it out for
/// the other map would take the guest one path after the other.
#[test]
fn a_map_of_others_above_a_volume_in_use_keeps_no_path_of_it_out() {
    let lab = attached();
    {
        let mut world = lab.world.borrow_mut();
        let mut foreign = world.kernel.maps[0].clone();
        (foreign.name, foreign.uuid) = ("mpatha".into(), "mpath-3600".into());
        (foreign.path, foreign.dev) = ("/dev/dm-9".into(), "253:9".into());
        world.kernel.maps.push(foreign);
    }
    for portal in [0, 1] {
        cut(&lab, portal);
        assert!(lab.world.borrow_mut().guest_writes(&Lab::link(1)).is_some());
        lab.settle(1);
        mend(&lab, portal);
        lab.settle(1);
        assert_eq!(up(&lab), [true, true], "{:?}", lab.status(1));
        assert_eq!(lab.reason(1), None);
    }
    // One that was taken out of the map is a new one, and the status says whose it is.
    let gone = lab.world.borrow().kernel.maps[0].members[0].dev.clone();
    lab.world.borrow_mut().kernel.maps[0]
        .members
        .retain(|m| m.dev != gone);
    lab.settle(1);
    assert_eq!(up(&lab), [false, true]);
    let why = lab.status(1).paths[0].why.clone().unwrap();
    assert!(why.contains("held by dm-9"), "{why}");
    assert_eq!(lab.reason(1), None);
}

#[test]
fn a_disk_that_grew_grows_through_all_paths() {
    let lab = attached();
    lab.disk(1, |d| d.size *= 2);
    lab.change(1, |s| s.rescan = Some("look".into()));
    lab.settle(1);
    assert_eq!(lab.reason(1), None, "{:?}", lab.status(1));
    let kernel = &lab.world.borrow().kernel;
    assert_eq!(kernel.maps[0].size, 2 << 30);
    assert_eq!(
        kernel.mappings[0].mapping.size_bytes,
        (2 << 30) - (16 << 20)
    );
    assert_eq!(up(&lab), [true, true]);
}

/// The wish counts at the next attach: nobody exchanges what is below a guest.
#[test]
fn one_path_or_several_is_decided_when_the_volume_is_attached() {
    let several = |lab: &Lab, several: bool| {
        lab.change(1, |s| {
            let iscsi = s.source.iscsi.as_mut().unwrap();
            iscsi.portals = portals();
            iscsi.multipath = several;
        });
        lab.settle(1);
        assert_eq!(lab.reason(1), None, "{:?}", lab.status(1));
        lab.world.borrow().kernel.maps.len()
    };
    let lab = Lab::new(1);
    assert_eq!(several(&lab, false), 0);
    assert_eq!(several(&lab, true), 0);
    for (wish, maps) in [(true, 1), (false, 0)] {
        lab.want(1, Desired::Detached);
        several(&lab, wish);
        lab.want(1, Desired::Attached);
        assert_eq!(several(&lab, wish), maps);
        assert_eq!(several(&lab, !wish), maps);
    }
    lab.want(1, Desired::Detached);
    lab.settle(1);
    assert!(lab.world.borrow().kernel.sessions.is_empty());
}

/// A session belongs to all who have a disk in it.
#[test]
fn sessions_are_shared_with_a_volume_of_one_path() {
    let lab = Lab::paths(Provider::Luks2, 2);
    lab.change(2, |s| s.source.iscsi.as_mut().unwrap().multipath = false);
    lab.settle(1);
    lab.settle(2);
    assert_eq!(lab.world.borrow().kernel.sessions.len(), 2);
    lab.want(1, Desired::Detached);
    lab.settle(1);
    {
        let kernel = &lab.world.borrow().kernel;
        assert_eq!((kernel.sessions.len(), kernel.devices.len()), (1, 1));
        assert!(kernel.maps.is_empty());
    }
    assert_eq!(lab.reason(2), None);
    lab.want(2, Desired::Detached);
    lab.settle(2);
    assert!(lab.world.borrow().kernel.sessions.is_empty());
}
