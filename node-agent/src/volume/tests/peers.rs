//! Failures that users of other systems report, by their number in `docs/peer-failures.md`, as far as the state machine shows
//! them. What needs a real kernel is in `e2e/tests/`.

use cryptvol_crds::{
    conditions::Reason,
    names,
    v1alpha1::{Desired, Stage},
};

use super::lab::*;
use crate::host::sim::*;

fn at(lab: &Lab, n: usize) -> (Stage, Option<String>) {
    (lab.status(n).stage, lab.reason(n))
}

fn attached(lab: &Lab, n: usize) {
    assert_eq!(at(lab, n), (Stage::Attached, None), "{:?}", lab.status(n));
}

fn detach(lab: &Lab, n: usize) {
    lab.world
        .borrow_mut()
        .guests_leave(&names::mapping_name(&uid(n)));
    lab.want(n, Desired::Detached);
    lab.settle(n);
    assert_eq!(at(lab, n), (Stage::Detached, None), "{:?}", lab.status(n));
}

fn with_data() -> Lab {
    let lab = Lab::new(1);
    lab.settle(1);
    lab.world.borrow_mut().guest_writes(&Lab::link(1)).unwrap();
    lab
}

/// A volume with data is formatted anew because a probe saw nothing.
#[test]
fn peer_failure_01_a_disk_that_looks_blank_is_not_formatted() {
    let lab = with_data();
    detach(&lab, 1);
    // The laboratory itself asserts that a disk with data keeps it; here the disk is what loses it.
    let (good, data) = lab.disk(1, |d| (d.content.clone(), d.data.take()));
    let written = lab.world.borrow().bytes_written();
    type Spoil = fn(&mut Disk);
    let spoil: [(Spoil, Reason); 5] = [
        (|d| d.zeros = true, Reason::HeaderMissing),
        (|d| d.unreadable = true, Reason::DeviceUnreadable),
        (|d| d.content = Content::Blank, Reason::HeaderMissing),
        (|d| d.content = Content::Garbage, Reason::HeaderMissing),
        (|d| d.size = 1 << 20, Reason::SizeMismatch),
    ];
    for (spoil, reason) in spoil {
        lab.disk(1, spoil);
        lab.want(1, Desired::Attached);
        for _ in 0..20 {
            lab.settle(1);
        }
        assert_eq!(lab.reason(1).as_deref(), Some(reason.as_str()));
        assert_eq!(lab.world.borrow().bytes_written(), written, "{reason}");
        lab.disk(1, |d| {
            (d.zeros, d.unreadable, d.size) = (false, false, 1 << 30);
            d.content = good.clone();
        });
        lab.want(1, Desired::Detached);
        lab.settle(1);
    }
    lab.disk(1, |d| d.data = data);
    lab.want(1, Desired::Attached);
    lab.settle(1);
    attached(&lab, 1);
}

/// A mapping of an earlier attach has the right name and lies over a dead or another disk.
#[test]
fn peer_failure_02_a_zombie_mapping_is_not_used() {
    for over in ["nothing", "another device"] {
        let lab = with_data();
        lab.world
            .borrow_mut()
            .guests_leave(&names::mapping_name(&uid(1)));
        {
            let mut world = lab.world.borrow_mut();
            world.kernel.devices.clear();
            if over == "nothing" {
                world.kernel.sessions.clear();
            }
        }
        let keys = lab.keys_released.get();
        lab.settle(1);
        attached(&lab, 1);
        assert_eq!(
            lab.keys_released.get(),
            keys + 1,
            "over {over}: it was made anew"
        );
        let world = lab.world.borrow();
        let mapping = &world.kernel.mappings[0].mapping;
        assert!(
            world
                .kernel
                .devices
                .iter()
                .any(|d| mapping.deps == [d.dev.clone()])
        );
    }
}

/// Something is stacked on the mapping: detach does not turn in circles, it says who, and goes on when that is gone.
#[test]
fn peer_failure_03_a_detach_that_cannot_go_on_waits_without_a_loop() {
    let lab = with_data();
    lab.world.borrow_mut().power_cut();
    lab.settle(1);
    attached(&lab, 1);
    lab.world.borrow_mut().guest_writes(&Lab::link(1)).unwrap();
    lab.want(1, Desired::Detached);
    lab.settle(1);
    assert_eq!(lab.reason(1).as_deref(), Some("DeviceBusy"));
    let (writes, log) = (lab.status_writes.get(), lab.world.borrow().log.len());
    for _ in 0..100 {
        lab.run(1);
    }
    assert_eq!(
        lab.status_writes.get(),
        writes,
        "the status is written over and over"
    );
    let tries = lab.world.borrow().log.len() - log;
    assert!(
        tries <= 100,
        "{tries} steps in 100 looks: one try each at most"
    );
    detach(&lab, 1);
}

/// A healer logs a session out during an outage and takes the last path of a disk in use.
#[test]
fn peer_failure_04_an_outage_ends_no_session_that_has_disks() {
    let lab = with_data();
    lab.target(|t| t.up = false);
    for state in ["FAILED", "FREE"] {
        lab.world.borrow_mut().kernel.sessions[0].state = state.into();
        lab.world.borrow_mut().kernel.devices[0].state = "transport-offline".into();
        for _ in 0..50 {
            lab.settle(1);
        }
        assert_eq!(lab.reason(1).as_deref(), Some("PortalUnreachable"));
        let world = lab.world.borrow();
        assert_eq!(
            (world.kernel.sessions.len(), world.kernel.devices.len()),
            (1, 1)
        );
        assert!(!world.log.iter().any(|l| l.contains("logout")));
        assert!(world.links.contains_key(&Lab::link(1)), "the link stays");
    }
    lab.target(|t| t.up = true);
    lab.world.borrow_mut().kernel.sessions[0].state = "LOGGED_IN".into();
    lab.world.borrow_mut().kernel.devices[0].state = "running".into();
    lab.settle(1);
    attached(&lab, 1);
    assert!(
        lab.world.borrow_mut().guest_writes(&Lab::link(1)).is_some(),
        "the guest never lost its device"
    );
}

/// Sessions stay in recovery for ever after a reboot: one without disks is made anew, one at a time per target, and no volume waits
/// for another's.
#[test]
fn peer_failure_05_a_session_that_does_not_recover_is_made_anew() {
    let lab = Lab::new(8);
    for n in 1..=8 {
        lab.settle(n);
    }
    lab.world.borrow_mut().power_cut();
    lab.target(|t| t.up = false);
    for n in 1..=8 {
        lab.settle(n);
        assert_eq!(lab.reason(n).as_deref(), Some("PortalUnreachable"));
    }
    // The portal took the login and went away: iscsid tries for ever, each time later, with what it was told then.
    lab.world.borrow_mut().kernel.sessions.push(SimSession {
        sid: 99,
        iqn: IQN.into(),
        portal: None,
        state: "FAILED".into(),
        foreign: false,
    });
    lab.settle(1);
    lab.target(|t| t.up = true);
    for n in 1..=8 {
        lab.settle(n);
        attached(&lab, n);
    }
    let world = lab.world.borrow();
    assert_eq!(world.kernel.sessions.len(), 1);
    assert_ne!(world.kernel.sessions[0].sid, 99);
}

/// A LUN number is given to another tenant's disk.
#[test]
fn peer_failure_06_a_lun_number_that_was_given_to_another_disk() {
    for content in [
        Content::Blank,
        Content::Luks(SimHeader::new(&luks_uuid(1), KEY)),
        Content::Foreign("ext4".into()),
    ] {
        let lab = with_data();
        detach(&lab, 1);
        let stranger = lab.add_disk(Disk::blank(&wwid(66)).with(content.clone()));
        lab.target(|t| t.luns.insert(1, stranger));
        lab.want(1, Desired::Attached);
        let keys = lab.keys_released.get();
        lab.settle(1);
        assert_eq!(
            lab.reason(1).as_deref(),
            Some("WwidMismatch"),
            "{content:?}"
        );
        assert_eq!(
            lab.keys_released.get(),
            keys,
            "no key is asked for a stranger's disk"
        );
        assert_eq!(lab.world.borrow().disks[stranger].written, 0);
        assert!(lab.world.borrow().kernel.mappings.is_empty());
    }
}

/// Teardown that guesses from races: what is gone already is success, what is busy is tried again.
#[test]
fn peer_failure_07_whatever_is_gone_already_a_detach_ends() {
    let lose: [fn(&mut World); 5] = [
        |w| w.links.clear(),
        |w| w.kernel.devices.clear(),
        |w| (w.kernel.devices, w.kernel.sessions) = (vec![], vec![]),
        |w| (w.kernel.mappings, w.links) = (vec![], w.links.split_off("\u{10ffff}")),
        World::power_cut,
    ];
    for lose in lose {
        let lab = with_data();
        lose(&mut lab.world.borrow_mut());
        detach(&lab, 1);
        let world = lab.world.borrow();
        assert!(world.kernel.mappings.is_empty() && world.kernel.devices.is_empty());
        assert!(world.kernel.sessions.is_empty() && world.links.is_empty());
    }
}

/// Sessions pile up, or a logout takes the disks of neighbours.
#[test]
fn peer_failure_08_a_session_goes_with_its_last_disk_and_never_before() {
    let lab = Lab::new(3);
    for n in 1..=3 {
        lab.settle(n);
    }
    for round in 0..10 {
        for n in 1..=3 {
            detach(&lab, n);
            let left = lab.world.borrow().kernel.sessions.len();
            assert_eq!(left, usize::from(n < 3), "round {round}, after volume {n}");
        }
        // The agent's memory is no part of the count.
        lab.hands.borrow_mut().clear();
        for n in 1..=3 {
            lab.want(n, Desired::Attached);
            lab.settle(n);
            attached(&lab, n);
        }
        assert_eq!(lab.world.borrow().kernel.sessions.len(), 1);
    }
}

/// One step hangs until its deadline: this volume says so, its neighbour on another target does not wait.
#[test]
fn peer_failure_13_a_step_that_hangs_holds_one_volume() {
    let lab = Lab::new(2);
    let other = "iqn.2026-11.com.example:second";
    lab.change(2, |s| s.source.iscsi.as_mut().unwrap().iqn = other.into());
    let disk = lab.target(|t| t.luns.remove(&2)).unwrap();
    let mut target = SimTarget {
        up: true,
        ..SimTarget::default()
    };
    target.luns.insert(2, disk);
    lab.world.borrow_mut().targets.insert(other.into(), target);
    let hangs = (
        "before open".to_owned(),
        Fault::Fail(Reason::DeadlineExceeded),
    );
    lab.next_faults.borrow_mut().push(hangs);
    assert!(lab.run(1).unwrap().end.is_err());
    assert_eq!(lab.reason(1).as_deref(), Some("DeadlineExceeded"));
    lab.settle(2);
    attached(&lab, 2);
    lab.settle(1);
    attached(&lab, 1);
}

/// The key or its namespace is gone first: erasing works without it.
#[test]
fn peer_failure_15_a_volume_goes_without_its_key() {
    for reason in [
        Reason::KeyNotFound,
        Reason::KeyServiceUnavailable,
        Reason::CredentialsExpired,
    ] {
        let lab = with_data();
        lab.world
            .borrow_mut()
            .guests_leave(&names::mapping_name(&uid(1)));
        *lab.operator.borrow_mut() = Err((reason, "gone".into()));
        lab.want(1, Desired::Erased);
        lab.settle(1);
        assert_eq!(at(&lab, 1), (Stage::Erased, None));
        assert!(lab.status(1).erased.unwrap().verified);
        assert!(lab.disk(1, |d| !matches!(d.content, Content::Luks(_))));
    }
}

/// A disk comes with other settings than the volume says: said before anything is unlocked, with both values.
#[test]
fn peer_failure_16_an_import_with_other_settings_says_which() {
    let lab = Lab::new(1);
    let mut header = SimHeader::new(&luks_uuid(42), KEY);
    header.facts.key_size = 256;
    lab.disk(1, |d| d.content = Content::Luks(header));
    lab.change(1, |s| {
        s.luks_uuid = None;
        s.format_permit = None;
    });
    lab.settle(1);
    let error = lab.status(1).error.unwrap();
    assert_eq!(error.reason, "HeaderMismatch");
    assert!(
        error.message.contains("256 in the header, 512 wanted"),
        "{}",
        error.message
    );
    assert_eq!(
        (lab.keys_released.get(), lab.world.borrow().bytes_written()),
        (0, 0)
    );
    lab.change(1, |s| s.encryption.key_size = 256);
    lab.settle(1);
    attached(&lab, 1);
}

/// The usable size is 16 MiB short of what was asked for, and nobody says so.
#[test]
fn peer_failure_17_the_usable_size_is_reported() {
    let lab = with_data();
    let status = lab.status(1);
    let header = status.header.unwrap().data_offset;
    assert_eq!(
        status.mapping.unwrap().size_bytes + header,
        status.device.unwrap().size_bytes
    );
}

/// The cause is in a log that nobody sees.
#[test]
fn peer_failure_19_every_error_shows_its_cause_and_one_next_step() {
    for call in [
        "login",
        "scan",
        "read-header",
        "key release",
        "format",
        "open",
        "link",
    ] {
        let lab = Lab::new(1);
        let fault = (format!("before {call}"), Fault::Fail(Reason::StepFailed));
        lab.next_faults.borrow_mut().push(fault);
        lab.run(1);
        let error = lab
            .status(1)
            .error
            .unwrap_or_else(|| panic!("{call}: no error in the status"));
        assert!(
            error.message.contains("injected"),
            "{call}: {}",
            error.message
        );
        let next = Reason::StepFailed.next_step();
        assert_eq!(
            error.message.matches(next).count(),
            1,
            "{call}: {}",
            error.message
        );
    }
}

/// Credentials changed on the array are used at the next login, and logins to one target go one by one.
#[test]
fn peer_failure_20_chap_secrets_are_read_before_each_login() {
    let lab = Lab::new(1);
    lab.change(1, |s| s.source.iscsi.as_mut().unwrap().chap = true);
    lab.target(|t| t.chap = Some((CHAP.0.into(), CHAP.1.into())));
    lab.settle(1);
    attached(&lab, 1);
    detach(&lab, 1);
    lab.target(|t| t.chap = Some((CHAP.0.into(), "another secret".into())));
    lab.want(1, Desired::Attached);
    lab.settle(1);
    assert_eq!(lab.reason(1).as_deref(), Some("ChapRejected"));
    *lab.chap.borrow_mut() = (CHAP.0.into(), "another secret".into());
    lab.settle(1);
    attached(&lab, 1);
}
