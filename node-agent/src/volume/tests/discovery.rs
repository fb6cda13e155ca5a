//! Portals that an array tells of: they are added within bounds, and whatever the array says or does not say, the named ones work.

use cryptvol_crds::{
    conditions::Reason,
    v1alpha1::{Desired, DiscoveryStatus, Provider},
};

use super::lab::*;
use crate::host::sim::*;

fn discovered(lab: &Lab) -> DiscoveryStatus {
    lab.status(1).discovery.unwrap()
}

/// What the status says of the paths: portal, and whether it is up.
fn paths(lab: &Lab) -> Vec<(String, bool)> {
    let paths = lab.status(1).paths;
    paths.into_iter().map(|p| (p.portal, p.up)).collect()
}

fn both() -> Vec<(String, bool)> {
    PORTALS.map(|p| (p.to_owned(), true)).to_vec()
}

fn named_alone() -> Vec<(String, bool)> {
    vec![(PORTALS[0].to_owned(), true)]
}

fn settled(lab: Lab) -> Lab {
    lab.settle(1);
    assert_eq!(lab.reason(1), None, "{:?}", lab.status(1));
    lab
}

fn nothing_left(lab: &Lab) {
    let kernel = &lab.world.borrow().kernel;
    assert!(kernel.sessions.is_empty() && kernel.devices.is_empty() && kernel.maps.is_empty());
}

#[test]
fn a_portal_that_the_array_tells_of_is_a_path_and_goes_with_the_volume() {
    let lab = settled(Lab::discovering(Provider::Luks2, 1));
    assert_eq!(paths(&lab), both());
    let found = discovered(&lab);
    assert_eq!(found.portals, [PORTALS[1]]);
    assert_eq!((found.ignored, found.error), (vec![], None));
    assert_eq!(lab.world.borrow().kernel.maps[0].members.len(), 2);
    // Not told any more, while there is a session: nothing goes.
    lab.target(|t| t.tells.truncate(1));
    lab.settle(1);
    assert_eq!(paths(&lab), both());
    lab.want(1, Desired::Detached);
    lab.settle(1);
    nothing_left(&lab);
    assert_eq!(lab.status(1).discovery, None);
    // The next attachment believes what is told by then.
    lab.want(1, Desired::Attached);
    lab.settle(1);
    assert_eq!(paths(&lab), named_alone());
}

#[test]
fn an_idle_volume_that_is_asked_again_writes_nothing() {
    let lab = settled(Lab::discovering(Provider::Luks2, 1));
    let before = lab.status_writes.get();
    for _ in 0..3 {
        lab.run(1);
    }
    assert_eq!(lab.status_writes.get(), before);
}

#[test]
fn without_credentials_the_named_portal_works_and_new_ones_are_picked_up() {
    let lab = Lab::discovering(Provider::Luks2, 1);
    lab.target(|t| t.discovery_chap = Some(("node-1".into(), "changed-on-array".into())));
    let lab = settled(lab);
    assert_eq!(paths(&lab), named_alone());
    let error = discovered(&lab).error.unwrap();
    assert_eq!(error.reason, "DiscoveryRejected");
    assert!(
        error.message.contains("discoveryChapSecretRef"),
        "{error:?}"
    );
    assert!(lab.world.borrow_mut().guest_writes(&Lab::link(1)).is_some());
    // Not due: nobody asks.
    lab.discovery_chap.borrow_mut().1 = "changed-on-array".into();
    lab.discover.set(false);
    lab.settle(1);
    assert_eq!(paths(&lab), named_alone());
    lab.discover.set(true);
    lab.settle(1);
    assert_eq!(paths(&lab), both());
    assert_eq!(discovered(&lab).error, None);
    // Wrong again, or the array tells nothing at all: what is there stays.
    lab.discovery_chap.borrow_mut().1 = "wrong".into();
    lab.settle(1);
    assert_eq!(paths(&lab), both());
    assert_eq!(discovered(&lab).error.unwrap().reason, "DiscoveryRejected");
}

/// A discovery through a portal that is away fails, and the volume stops for its own reason.
#[test]
fn with_the_named_portal_away_what_was_found_before_is_used() {
    let lab = Lab::discovering(Provider::Luks2, 1);
    lab.world.borrow_mut().cut(IQN, PORTALS[0]);
    lab.settle(1);
    assert_eq!(lab.reason(1).as_deref(), Some("PortalUnreachable"));
    assert_eq!(discovered(&lab).error.unwrap().reason, "DiscoveryFailed");
    lab.world.borrow_mut().mend(IQN, PORTALS[0]);
    let lab = settled(lab);
    assert_eq!(paths(&lab), both());
    assert!(lab.world.borrow_mut().guest_writes(&Lab::link(1)).is_some());
    // The node loses power, and comes back while the named portal is away: the record names the other.
    lab.world.borrow_mut().power_cut();
    lab.hands.borrow_mut().clear();
    lab.world.borrow_mut().cut(IQN, PORTALS[0]);
    lab.settle(1);
    assert_eq!(lab.reason(1), None, "{:?}", lab.status(1));
    let up: Vec<_> = paths(&lab).into_iter().map(|(_, up)| up).collect();
    assert_eq!(up, [false, true]);
}

#[test]
fn a_hostile_array_leads_nowhere_and_is_told_of() {
    let lab = Lab::discovering(Provider::Luks2, 1);
    lab.target(|t| {
        t.tells = vec![
            "127.0.0.1:10250,1".into(),
            "169.254.169.254:80,1".into(),
            "[ff02::1]:3260,1".into(),
            "evil.example:3260,1".into(),
        ];
        t.tells
            .extend((0..50).map(|n| format!("198.51.100.{n}:3260,1")));
        let away = (0..50).map(|n| format!("198.51.100.{n}:3260"));
        t.portals_away = away.collect();
    });
    let lab = settled(lab);
    let found = discovered(&lab);
    assert_eq!(found.portals.len(), 15);
    assert!(found.portals.iter().all(|p| p.starts_with("198.51.100.")));
    for what in [
        "127.0.0.1:10250",
        "169.254.169.254",
        "ff02::1",
        "evil.example",
    ] {
        assert!(
            found.ignored.iter().any(|i| i.contains(what)),
            "{what}: {found:?}"
        );
    }
    assert_eq!(paths(&lab).iter().filter(|(_, up)| *up).count(), 1);
    let kernel = &lab.world.borrow().kernel;
    assert_eq!(kernel.sessions.len(), 1);
}

/// Invariant 1: it is the WWID that says whether a path leads to the same disk, however the portal was found.
#[test]
fn another_disk_behind_a_portal_that_was_found_is_refused() {
    let attach = |wwid_known: bool| {
        let lab = Lab::discovering(Provider::Luks2, 1);
        if !wwid_known {
            lab.change(1, |s| s.wwid = None);
        }
        let stranger = lab.add_disk(Disk::blank(&wwid(7)));
        lab.target(|t| t.other_luns.insert(PORTALS[1].to_owned(), stranger));
        lab
    };
    for known in [true, false] {
        let message = attach(known).stops(Reason::WwidMismatch);
        assert!(message.contains(&wwid(7)), "{message}");
    }
    // In use: it stays out.
    let lab = Lab::discovering(Provider::Luks2, 1);
    lab.target(|t| t.tells.truncate(1));
    let lab = settled(lab);
    let stranger = lab.add_disk(Disk::blank(&wwid(7)));
    lab.target(|t| {
        t.tells = PORTALS.iter().map(|p| format!("{p},1")).collect();
        t.other_luns.insert(PORTALS[1].to_owned(), stranger);
    });
    lab.settle(1);
    assert_eq!(lab.reason(1), None);
    let status = lab.status(1);
    assert!(status.paths[0].up && !status.paths[1].up, "{status:?}");
    assert!(status.paths[1].why.as_ref().unwrap().contains(&wwid(7)));
    assert_eq!(lab.world.borrow().disks[stranger].written, 0);
}

/// Turned off while the volume is attached, what is in use stays and is let go of with the rest.
#[test]
fn turned_off_it_counts_from_the_next_attachment_on() {
    let lab = settled(Lab::discovering(Provider::Luks2, 1));
    lab.change(1, |s| {
        let iscsi = s.source.iscsi.as_mut().unwrap();
        (iscsi.discovery, iscsi.discovery_chap) = (false, false);
    });
    lab.settle(1);
    assert_eq!(paths(&lab), both());
    lab.want(1, Desired::Detached);
    lab.settle(1);
    nothing_left(&lab);
    lab.want(1, Desired::Attached);
    lab.settle(1);
    assert_eq!(paths(&lab), named_alone());
    assert_eq!(lab.status(1).discovery, None);
}

/// Between the record and the login, and after the login, the agent dies; somebody else's volume keeps its own session.
#[test]
fn killed_after_the_login_it_finds_the_session_of_the_discovered_portal_again() {
    for place in ["after status write", "after login"] {
        let lab = Lab::discovering(Provider::Luks2, 1);
        *lab.next_faults.borrow_mut() = vec![(place.to_owned(), Fault::Kill)];
        assert_eq!(lab.run(1), None, "{place}");
        assert_eq!(discovered(&lab).portals, [PORTALS[1]], "{place}");
        // It is not wanted any more when the agent is back, and the array is not asked.
        lab.want(1, Desired::Detached);
        lab.settle(1);
        nothing_left(&lab);
    }
}
