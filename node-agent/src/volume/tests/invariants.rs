//! The design's invariants as far as they concern a node, by number. `Lab::check` asserts most of them after every step of
//! every other test; here each is provoked.

use cryptvol_crds::{
    conditions::Reason,
    v1alpha1::{Desired, Stage},
};

use super::lab::*;
use crate::host::{CryptTable, Mapping, sim::*};

#[test]
fn invariant_01_identity_before_action() {
    // Another disk behind the LUN at any moment of the way up: nothing is written to it and it is never unlocked.
    let pauses = {
        let dry = Lab::new(1);
        dry.settle(1);
        dry.pauses.get()
    };
    for at in 0..pauses {
        let lab = Lab::new(1);
        lab.faults.borrow_mut().push((at, Fault::Kill));
        if lab.run(1).is_some() {
            continue;
        }
        let attached = !lab.world.borrow().kernel.mappings.is_empty();
        if attached {
            continue; // an array that swaps disks under a live mapping cannot be kept from it
        }
        let stranger = lab.add_disk(Disk::blank(&wwid(66)));
        lab.target(|t| t.luns.insert(1, stranger));
        lab.settle(1);
        assert_eq!(lab.reason(1).as_deref(), Some("WwidMismatch"), "pause {at}");
        let world = lab.world.borrow();
        assert_eq!(
            (world.disks[stranger].written, world.kernel.mappings.len()),
            (0, 0)
        );
    }
}

#[test]
fn invariant_02_no_format_without_a_permit() {
    // After a first opening no state of the disk and no permit leads to a write.
    for content in [
        Content::Blank,
        Content::Garbage,
        Content::Foreign("ext4".into()),
    ] {
        for formatted_before in [false, true] {
            let lab = Lab::new(1);
            lab.settle(1);
            lab.want(1, Desired::Detached);
            lab.settle(1);
            lab.operator_pins.set(false);
            lab.change(1, |s| {
                s.desired = Desired::Attached;
                s.formatted_before = formatted_before;
                s.header = None;
                s.format_permit = Some(cryptvol_crds::v1alpha1::FormatPermit {
                    id: "forged".into(),
                    luks_uuid: luks_uuid(1),
                });
            });
            lab.disk(1, |d| d.content = content.clone());
            let written = lab.world.borrow().bytes_written();
            lab.settle(1);
            assert!(lab.reason(1).is_some());
            assert_eq!(lab.world.borrow().bytes_written(), written);
        }
    }
}

#[test]
fn invariant_02_the_receipt_comes_before_the_first_byte() {
    let lab = Lab::new(1);
    lab.settle(1);
    let world = lab.world.borrow();
    let at = |what: &str| world.log.iter().position(|l| l.ends_with(what)).unwrap();
    assert!(
        at("key released") < at("status write"),
        "the key is in hand before the permit is spent"
    );
    assert!(at("status write") < at("format ok"));
    assert!(at("open ok") < at("link ok"));
    let writes: Vec<_> = world
        .log
        .iter()
        .enumerate()
        .filter(|(_, l)| l.ends_with("status write"))
        .map(|(i, _)| i)
        .collect();
    assert!(
        at("open ok") < writes[1] && writes[1] < at("link ok"),
        "first opening is recorded before the link"
    );
}

#[test]
fn invariant_03_the_link_never_leads_to_the_raw_device_or_another_mapping() {
    // dm numbers are used again at once: a link that outlived its mapping would show another volume's data.
    let lab = Lab::new(2);
    lab.settle(1);
    lab.vandalised.set(true);
    lab.world.borrow_mut().kernel.mappings.clear(); // dmsetup remove, by hand
    let key = lab
        .operator
        .replace(Err((Reason::KeyServiceUnavailable, "away".into())));
    lab.run(1);
    assert!(
        lab.world.borrow().links.is_empty(),
        "the link outlived its mapping"
    );
    *lab.operator.borrow_mut() = key;
    lab.settle(2);
    assert_eq!(
        lab.world.borrow().links[&Lab::link(2)],
        SimLink::Ours("/dev/dm-0".into()),
        "the number was used again"
    );
    lab.settle(1);
    lab.check();
    let world = lab.world.borrow();
    let (a, b) = (&world.links[&Lab::link(1)], &world.links[&Lab::link(2)]);
    assert_ne!(a, b);
}

#[test]
fn invariant_04_secrets_do_not_show_in_debug() {
    let order = crate::host::OpenOrder {
        derivations: vec![],
        mapping_name: "m".into(),
        mapping_uuid: "u".into(),
        blank: false,
        random: false,
        activation: Default::default(),
        unlock_memory_kib: 0,
        expected: SimHeader::new(&luks_uuid(1), KEY).facts,
        passphrase: Some(crate::host::Passphrase(KEY.into())),
        record: None,
    };
    let chap = crate::host::Chap {
        username: "u".into(),
        password: CHAP.1.into(),
        target: Some(crate::host::TargetChap {
            username: "t".into(),
            password: "proof-of-target".into(),
        }),
    };
    let text = format!("{order:?} {chap:?} {:?}", chap.target);
    assert!(!text.contains(KEY) && !text.contains(CHAP.1) && !text.contains("proof"));
}

#[test]
fn invariant_05_no_key_is_asked_for_a_volume_that_is_not_wanted_here() {
    for desired in [Desired::Detached, Desired::Erased] {
        let lab = Lab::new(1);
        lab.settle(1);
        let keys = lab.keys_released.get();
        lab.want(1, desired);
        lab.settle(1);
        assert_eq!(lab.keys_released.get(), keys);
        assert!(
            !lab.names
                .borrow()
                .iter()
                .skip(lab.pauses.get())
                .any(|n| n.contains("key release"))
        );
    }
}

pub(super) fn strange_mapping(name: &str, uuid: &str, deps: &str) -> SimMapping {
    SimMapping {
        mapping: Mapping {
            name: name.into(),
            uuid: uuid.into(),
            path: "/dev/dm-7".into(),
            dev: "253:7".into(),
            deps: vec![deps.into()],
            table: Some(CryptTable {
                integrity: None,
                target_type: "crypt".into(),
                cipher: "aes-xts-plain64".into(),
                key_in_keyring: true,
                dev: deps.into(),
                data_offset: 16 << 20,
                sector_size: 512,
                options: vec![],
            }),
            suspended: false,
            open_count: 0,
            size_bytes: 1,
        },
        disk: 0,
    }
}

#[test]
fn invariant_06_what_is_not_ours_is_not_touched() {
    // A mapping of our name with a foreign UUID, up and down.
    let lab = Lab::new(1);
    let name = cryptvol_crds::names::mapping_name(&uid(1));
    lab.world
        .borrow_mut()
        .kernel
        .mappings
        .push(strange_mapping(&name, "CRYPT-LUKS2-x", "8:160"));
    lab.settle(1);
    assert_eq!(lab.reason(1).as_deref(), Some("NotOurs"));
    lab.want(1, Desired::Detached);
    lab.settle(1);
    assert_eq!(
        (lab.status(1).stage, lab.reason(1)),
        (Stage::Detached, None)
    );
    assert_eq!(lab.world.borrow().kernel.mappings.len(), 1);

    // A link and a file at our path.
    for strange in [SimLink::Foreign("/dev/sdq".into()), SimLink::File] {
        let lab = Lab::new(1);
        lab.world
            .borrow_mut()
            .links
            .insert(Lab::link(1), strange.clone());
        lab.settle(1);
        assert_eq!(lab.reason(1).as_deref(), Some("NotOurs"), "{strange:?}");
        assert_eq!(lab.world.borrow().links[&Lab::link(1)], strange);
    }

    // Somebody stacked something on the disk, or mounted it.
    let lab = Lab::new(1);
    lab.settle(1);
    lab.vandalised.set(true);
    lab.world.borrow_mut().kernel.mappings = vec![strange_mapping("vg-lv", "LVM-x", "8:0")];
    lab.settle(1);
    assert_eq!(lab.reason(1).as_deref(), Some("DeviceBusy"));
    lab.want(1, Desired::Detached);
    lab.settle(1);
    assert_eq!(lab.reason(1).as_deref(), Some("DeviceBusy"));
    assert_eq!(lab.world.borrow().kernel.devices.len(), 1);
}

#[test]
fn invariant_06_a_session_with_other_users_is_not_logged_out() {
    let lab = Lab::new(1);
    lab.world
        .borrow_mut()
        .kernel
        .sessions
        .push(SimSession::of_another(1, IQN));
    lab.settle(1);
    assert_eq!(lab.status(1).stage, Stage::Attached);
    lab.want(1, Desired::Detached);
    lab.settle(1);
    assert_eq!(
        (lab.status(1).stage, lab.reason(1)),
        (Stage::Detached, None)
    );
    assert_eq!(lab.world.borrow().kernel.sessions.len(), 1);

    // Two volumes share one: it goes with the last.
    let lab = Lab::new(2);
    lab.settle(1);
    lab.settle(2);
    assert_eq!(lab.world.borrow().kernel.sessions.len(), 1);
    lab.want(1, Desired::Detached);
    lab.settle(1);
    assert_eq!(lab.world.borrow().kernel.sessions.len(), 1);
    lab.settle(2);
    assert_eq!(
        (lab.status(2).stage, lab.reason(2)),
        (Stage::Attached, None)
    );
    lab.want(2, Desired::Detached);
    lab.settle(2);
    assert!(lab.world.borrow().kernel.sessions.is_empty());
}

#[test]
fn invariant_06_a_volume_on_its_way_down_leaves_the_disk_of_its_successor() {
    // The array gave the LUN of volume 1 to volume 2, both known on this node.
    let lab = Lab::new(2);
    lab.settle(1);
    lab.want(1, Desired::Detached);
    lab.settle(1);
    lab.change(2, |s| s.source.iscsi.as_mut().unwrap().lun = 1);
    lab.target(|t| t.luns.insert(1, 1));
    lab.settle(2);
    assert_eq!(
        (lab.status(2).stage, lab.reason(2)),
        (Stage::Attached, None)
    );
    lab.change(1, |s| s.size_bytes = None); // a new generation: looked at as if for the first time
    lab.settle(1);
    assert_eq!(
        (lab.status(1).stage, lab.reason(1)),
        (Stage::Detached, None)
    );
    assert!(lab.world.borrow_mut().guest_writes(&Lab::link(2)).is_some());
}

#[test]
fn invariant_07_a_guest_keeps_its_device_while_a_detach_waits() {
    let lab = Lab::new(1);
    lab.settle(1);
    lab.world.borrow_mut().guest_writes(&Lab::link(1)).unwrap();
    lab.want(1, Desired::Detached);
    lab.settle(1);
    assert_eq!(lab.reason(1).as_deref(), Some("DeviceBusy"));
    assert_eq!(lab.world.borrow().kernel.mappings.len(), 1);
    // Wanted again: the same mapping, no new key.
    let keys = lab.keys_released.get();
    lab.want(1, Desired::Attached);
    lab.settle(1);
    assert_eq!(
        (lab.status(1).stage, lab.reason(1), lab.keys_released.get()),
        (Stage::Attached, None, keys)
    );
    lab.want(1, Desired::Detached);
    lab.world
        .borrow_mut()
        .guests_leave(&cryptvol_crds::names::mapping_name(&uid(1)));
    lab.settle(1);
    assert_eq!(
        (lab.status(1).stage, lab.reason(1)),
        (Stage::Detached, None)
    );
}

#[test]
fn invariant_09_erasure_needs_no_key_and_follows_the_last_mapping() {
    let lab = Lab::new(1);
    lab.settle(1);
    lab.world.borrow_mut().guest_writes(&Lab::link(1)).unwrap();
    *lab.operator.borrow_mut() = Err((
        cryptvol_crds::conditions::Reason::KeyNotFound,
        "gone".into(),
    ));
    lab.want(1, Desired::Erased);
    lab.settle(1);
    assert_eq!(
        lab.reason(1).as_deref(),
        Some("DeviceBusy"),
        "not while a guest has it open"
    );
    assert!(lab.status(1).erased.is_none());
    lab.world
        .borrow_mut()
        .guests_leave(&cryptvol_crds::names::mapping_name(&uid(1)));
    lab.settle(1);
    assert_eq!((lab.status(1).stage, lab.reason(1)), (Stage::Erased, None));
    assert!(lab.status(1).erased.unwrap().verified);
}
