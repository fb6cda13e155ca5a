//! What schedules found, each as a way of its own and by the seed that found it, so that it stays tried whatever becomes of the list of
//! seeds. A change to what a schedule's dice mean changes what a seed does; the way of its own stays.

use super::*;

#[test]
fn seed_8_of_several_paths_a_suspended_volume_whose_paths_come_back_is_not_said_to_have_none() {
    schedule(8, true, &mut Tally::default());
    for cut_first in [false, true] {
        let lab = Lab::paths(Provider::Luks2, 1);
        lab.settle(1);
        if cut_first {
            cut(&lab);
        }
        lab.change(1, |s| s.suspended = true);
        lab.settle(1);
        if !cut_first {
            cut(&lab);
        }
        for portal in PORTALS {
            lab.world.borrow_mut().mend(IQN, portal);
        }
        lab.settle(1);
        assert_eq!(lab.reason(1), None, "{cut_first}");
        assert!(lab.status(1).suspended);
        let world = lab.world.borrow();
        let table = world.kernel.mappings[0].mapping.table.as_ref().unwrap();
        assert!(!table.key_in_keyring, "the key is to be gone");
    }
}

/// Every path, and the agent has looked.
fn cut(lab: &Lab) {
    for portal in PORTALS {
        lab.world.borrow_mut().cut(IQN, portal);
    }
    lab.settle(1);
    assert_eq!(lab.reason(1).as_deref(), Some("PortalUnreachable"));
}

#[test]
fn seed_35_a_name_by_id_is_this_disks_through_whatever_session() {
    schedule(35, false, &mut Tally::default());
    let name = by_id(&wwid(1));
    // The neighbour's disk comes first, and has the name.
    let neighbour = |disk: usize, wwid: String| {
        let lab = Lab::new(1);
        lab.names_free_until_kept.set(true);
        lab.change(1, |s| s.shadow = Some(name.clone()));
        let other = lab.add_disk(Disk::blank(&wwid));
        lab.neighbour_scans([0, other][disk], wwid);
        let mut world = lab.world.borrow_mut();
        world.kernel.sessions.push(SimSession {
            sid: 78,
            iqn: IQN.into(),
            portal: Some(crate::host::Portal {
                address: "192.0.2.1".into(),
                port: 3260,
            }),
            state: "LOGGED_IN".into(),
            foreign: false,
        });
        drop(world);
        lab
    };
    let lab = neighbour(0, wwid(1));
    assert_eq!(
        lab.world.borrow().name_leads(&name).as_deref(),
        Some("/dev/sdz")
    );
    lab.settle(1);
    assert_eq!(
        (lab.status(1).stage, lab.reason(1)),
        (Stage::Attached, None)
    );
    assert_eq!(lab.status(1).shadow, Some(name.clone()));
    // To another disk, by whatever made the link, it is refused: whoever uses it would find this volume there.
    let lab = neighbour(1, wwid(2));
    let to = "/dev/sdz".to_owned();
    lab.world
        .borrow_mut()
        .names
        .by_hand
        .insert(name.clone(), to);
    lab.settle(1);
    assert_eq!(lab.reason(1).as_deref(), Some("NotOurs"));
    assert!(lab.world.borrow().names.kept.is_empty());
}

#[test]
fn seed_5785_the_size_of_another_disk_under_a_suspended_volume_is_not_pinned() {
    schedule(5785, false, &mut Tally::default());
    let lab = Lab::new(1);
    lab.settle(1);
    lab.change(1, |s| s.suspended = true);
    lab.settle(1);
    // The array shows a larger disk there, and somebody has the kernel look.
    let mut larger = Disk::blank(&wwid(66));
    larger.size = 2 << 30;
    let other = lab.add_disk(larger);
    lab.target(|t| t.luns.insert(1, other));
    super::udev::scan_known(&mut lab.world.borrow_mut());
    lab.settle(1);
    assert_eq!(lab.status(1).device, None, "nobody looked whose it is");
    assert_eq!(lab.volume(1).spec.size_bytes, Some(1 << 30));
    lab.change(1, |s| s.suspended = false);
    lab.settle(1);
    assert_eq!(lab.reason(1).as_deref(), Some("WwidMismatch"));
    lab.target(|t| t.luns.insert(1, 0));
    super::udev::scan_known(&mut lab.world.borrow_mut());
    lab.settle(1);
    assert_eq!(
        (lab.status(1).stage, lab.reason(1)),
        (Stage::Attached, None)
    );
}
