//! Several sessions to one target.

use cryptvol_crds::{names, v1alpha1::Desired};

use super::lab::*;
use crate::host::{Portal, sim::*};

/// Portals of the target, as a spec has them.
fn portals() -> Vec<String> {
    vec!["192.0.2.1:3260".to_owned(), "192.0.2.2:3260".to_owned()]
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
            address: "192.0.2.2".to_owned(),
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
        assert_eq!(lab.status(1).portal.as_deref(), Some("192.0.2.1:3260"));
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
    assert_eq!(lab.status(2).portal.as_deref(), Some("192.0.2.2:3260"));
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
