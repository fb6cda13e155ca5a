//! Each bad input that shows on a node: the reason of its own, not one byte written, and going on by itself once the cause
//! is mended.

use cryptvol_crds::{
    conditions::Reason,
    names,
    v1alpha1::{Desired, Stage},
};

use super::lab::*;
use crate::host::{Host, Lun, Source, TargetChap, sim::*};

/// Stops with the reason, writes nothing; mended, it attaches.
fn stops(what: &str, lab: &Lab, reason: Reason, mend: impl FnOnce(&Lab)) {
    let written = lab.world.borrow().bytes_written();
    let before = lab
        .world
        .borrow()
        .disks
        .iter()
        .map(|d| d.content.clone())
        .collect::<Vec<_>>();
    lab.settle(1);
    assert_eq!(
        lab.reason(1).as_deref(),
        Some(reason.as_str()),
        "{what}: {:?}",
        lab.status(1)
    );
    let message = lab.status(1).error.unwrap().message;
    assert!(message.ends_with(reason.next_step()), "{what}: {message}");
    assert_eq!(
        lab.world.borrow().bytes_written(),
        written,
        "{what}: bytes were written"
    );
    let after = lab
        .world
        .borrow()
        .disks
        .iter()
        .map(|d| d.content.clone())
        .collect::<Vec<_>>();
    assert_eq!(before, after, "{what}");
    assert!(
        lab.world
            .borrow()
            .kernel
            .mappings
            .iter()
            .all(|m| !m.mapping.uuid.starts_with(names::DM_UUID_PREFIX)),
        "{what}"
    );
    // Looked at again and again it stays the same, and the status is not written again.
    let writes = lab.status_writes.get();
    for _ in 0..5 {
        lab.run(1);
    }
    assert_eq!(
        lab.status_writes.get(),
        writes,
        "{what}: the status is written over and over"
    );
    mend(lab);
    lab.settle(1);
    assert_eq!(
        (lab.status(1).stage, lab.reason(1)),
        (Stage::Attached, None),
        "{what}, mended"
    );
}

#[test]
fn array_unreachable() {
    let lab = Lab::new(1);
    lab.target(|t| t.up = false);
    stops(
        "array unreachable",
        &lab,
        Reason::PortalUnreachable,
        |lab| lab.target(|t| t.up = true),
    );
}

#[test]
fn target_of_another_name() {
    let lab = Lab::new(1);
    let target = lab.world.borrow_mut().targets.remove(IQN).unwrap();
    lab.world
        .borrow_mut()
        .targets
        .insert("iqn.2026-11.com.example:other".into(), target.clone());
    stops("no such target", &lab, Reason::TargetNotFound, |lab| {
        lab.world.borrow_mut().targets.insert(IQN.into(), target);
    });
}

#[test]
fn wrong_chap_secret() {
    let lab = Lab::new(1);
    lab.change(1, |s| s.source.iscsi.as_mut().unwrap().chap = true);
    lab.target(|t| t.chap = Some((CHAP.0.into(), "another-secret".into())));
    stops("wrong CHAP", &lab, Reason::ChapRejected, |lab| {
        lab.target(|t| t.chap = Some((CHAP.0.into(), CHAP.1.into())));
    });
}

#[test]
fn target_that_does_not_prove_itself() {
    let proof = |secret: &str| ("array".to_owned(), secret.to_owned());
    for wrong in [None, Some(proof("another-proof"))] {
        let lab = Lab::new(1);
        lab.change(1, |s| s.source.iscsi.as_mut().unwrap().chap = true);
        *lab.target_chap.borrow_mut() = Some(TargetChap {
            username: "array".into(),
            password: "proof-of-array".into(),
        });
        lab.target(|t| t.own_chap = wrong);
        stops("false target", &lab, Reason::TargetNotAuthentic, |lab| {
            lab.target(|t| t.own_chap = Some(proof("proof-of-array")));
        });
    }
}

#[test]
fn of_several_portals_one_must_answer() {
    let lab = Lab::new(1);
    let portals = ["192.0.2.1:3260", "[2001:db8::2]:3260", "array.example:3261"];
    lab.change(1, |s| {
        s.source.iscsi.as_mut().unwrap().portals = portals.map(str::to_owned).to_vec();
    });
    lab.target(|t| t.portals_away = portals.map(str::to_owned).to_vec());
    stops("no portal", &lab, Reason::PortalUnreachable, |lab| {
        lab.target(|t| t.portals_away.truncate(1));
    });
    let portal = lab.world.borrow().kernel.sessions[0].portal.clone();
    assert_eq!(portal.unwrap().to_string(), portals[1]);
    assert_eq!(lab.status(1).portal.as_deref(), Some(portals[1]));
}

#[test]
fn lun_absent() {
    let lab = Lab::new(1);
    let disk = lab.target(|t| t.luns.remove(&1)).unwrap();
    stops("LUN absent", &lab, Reason::LunNotFound, |lab| {
        lab.target(|t| t.luns.insert(1, disk));
    });
}

#[test]
fn wwid_of_another_disk() {
    let lab = Lab::new(1);
    lab.disk(1, |d| d.wwid = Some(wwid(99)));
    stops("WWID of another disk", &lab, Reason::WwidMismatch, |lab| {
        lab.disk(1, |d| d.wwid = Some(wwid(1)));
    });
}

#[test]
fn disk_without_wwid_where_one_is_given() {
    let lab = Lab::new(1);
    lab.disk(1, |d| d.wwid = None);
    stops("no WWID", &lab, Reason::WwidMismatch, |lab| {
        lab.disk(1, |d| d.wwid = Some(wwid(1)))
    });
}

#[test]
fn disk_smaller_than_pinned() {
    let lab = Lab::new(1);
    lab.settle(1);
    lab.want(1, Desired::Detached);
    lab.settle(1);
    lab.want(1, Desired::Attached);
    lab.disk(1, |d| d.size = 1 << 29);
    stops("smaller", &lab, Reason::SizeMismatch, |lab| {
        lab.disk(1, |d| d.size = 1 << 30)
    });
}

#[test]
fn foreign_signatures() {
    for content in [
        Content::Foreign("ext4".into()),
        Content::Foreign("LVM2_member".into()),
        Content::Foreign("crypto_LUKS version 1".into()),
        Content::Luks(SimHeader::new(&luks_uuid(77), "other")),
    ] {
        let lab = Lab::new(1);
        lab.disk(1, |d| d.content = content.clone());
        stops(
            &format!("{content:?}"),
            &lab,
            Reason::ForeignSignature,
            |lab| {
                lab.disk(1, |d| d.content = Content::Blank);
            },
        );
    }
}

#[test]
fn bytes_without_meaning() {
    let lab = Lab::new(1);
    lab.disk(1, |d| d.content = Content::Garbage);
    stops("garbage", &lab, Reason::DeviceNotBlank, |lab| {
        lab.disk(1, |d| d.content = Content::Blank)
    });
}

#[test]
fn a_blank_disk_without_permit() {
    let lab = Lab::new(1);
    let permit = lab.volume(1).spec.format_permit;
    lab.change(1, |s| s.format_permit = None);
    stops("no permit", &lab, Reason::FormatNotPermitted, |lab| {
        lab.change(1, |s| s.format_permit = permit)
    });
}

#[test]
fn a_permit_for_another_uuid() {
    let lab = Lab::new(1);
    lab.change(1, |s| {
        s.format_permit.as_mut().unwrap().luks_uuid = luks_uuid(5)
    });
    stops(
        "permit of another UUID",
        &lab,
        Reason::FormatNotPermitted,
        |lab| {
            lab.change(1, |s| {
                s.format_permit.as_mut().unwrap().luks_uuid = luks_uuid(1)
            });
        },
    );
}

#[test]
fn read_errors_before_and_after_the_permit_was_spent() {
    let lab = Lab::new(1);
    lab.disk(1, |d| d.unreadable = true);
    stops("read errors", &lab, Reason::DeviceUnreadable, |lab| {
        lab.disk(1, |d| d.unreadable = false)
    });
    lab.want(1, Desired::Detached);
    lab.settle(1);
    lab.want(1, Desired::Attached);
    lab.disk(1, |d| d.unreadable = true);
    stops("read errors later", &lab, Reason::DeviceUnreadable, |lab| {
        lab.disk(1, |d| d.unreadable = false)
    });
}

#[test]
fn zeros_after_the_volume_was_opened() {
    let lab = Lab::new(1);
    lab.settle(1);
    lab.want(1, Desired::Detached);
    lab.settle(1);
    lab.want(1, Desired::Attached);
    lab.disk(1, |d| d.zeros = true);
    stops("zeros", &lab, Reason::HeaderMissing, |lab| {
        lab.disk(1, |d| d.zeros = false)
    });
}

#[test]
fn zeros_after_the_permit_was_spent_and_the_record_of_opening_lost() {
    // The header was written, the agent died, and the back end gives zeros for a while: not a reason to format.
    let lab = Lab::new(1);
    let after_format = {
        let dry = Lab::new(1);
        dry.settle(1);
        dry.names
            .borrow()
            .iter()
            .position(|n| n == "after format")
            .unwrap()
    };
    lab.faults
        .borrow_mut()
        .push((after_format, Fault::PowerCut));
    assert!(lab.run(1).is_none());
    lab.disk(1, |d| d.zeros = true);
    stops(
        "zeros after format",
        &lab,
        Reason::FormatInterrupted,
        |lab| lab.disk(1, |d| d.zeros = false),
    );
}

#[test]
fn a_format_that_failed_in_the_middle_is_not_tried_again_with_its_permit() {
    // The worker was killed at its deadline; what it wrote nobody knows, and the back end gives zeros.
    let lab = Lab::new(1);
    let after_format = {
        let dry = Lab::new(1);
        dry.settle(1);
        let names = dry.names.borrow();
        names.iter().position(|n| n == "after format").unwrap()
    };
    let late = Fault::Fail(Reason::DeadlineExceeded);
    lab.faults.borrow_mut().push((after_format, late));
    assert!(lab.run(1).unwrap().end.is_err());
    lab.disk(1, |d| d.zeros = true);
    stops("format failed", &lab, Reason::FormatInterrupted, |lab| {
        lab.disk(1, |d| d.zeros = false)
    });
}

#[test]
fn a_permit_issued_by_mistake_for_a_volume_that_was_opened() {
    let lab = Lab::new(1);
    lab.settle(1);
    lab.want(1, Desired::Detached);
    lab.settle(1);
    lab.change(1, |s| {
        s.desired = Desired::Attached;
        s.formatted_before = false;
        s.format_permit = Some(cryptvol_crds::v1alpha1::FormatPermit {
            id: "permit-2".into(),
            luks_uuid: luks_uuid(1),
        });
    });
    lab.disk(1, |d| d.zeros = true);
    stops("void permit", &lab, Reason::HeaderMissing, |lab| {
        lab.disk(1, |d| d.zeros = false)
    });
}

#[test]
fn the_damaged_header_of_a_volume_in_use_is_no_reason_to_wipe_its_disk() {
    let lab = Lab::new(1);
    lab.settle(1);
    lab.want(1, Desired::Detached);
    lab.settle(1);
    lab.want(1, Desired::Attached);
    let good = lab.disk(1, |d| d.content.clone());
    lab.disk(1, |d| {
        d.content = Content::Foreign("crypto_LUKS version 2, damaged: wrong checksum".into());
    });
    stops("damaged", &lab, Reason::HeaderMismatch, |lab| {
        let message = lab.status(1).error.unwrap().message;
        assert!(
            message.contains("wrong checksum") && !message.contains("ipe it"),
            "{message}"
        );
        lab.disk(1, |d| d.content = good);
    });
}

#[test]
fn header_changed_by_the_array() {
    let change: [fn(&mut SimHeader); 5] = [
        |h| h.facts.cipher = "cipher_null-ecb".into(),
        |h| h.facts.digest = "another volume key".into(),
        |h| h.facts.data_offset = 4096,
        |h| h.facts.sector_size = 4096,
        |h| h.objections.push("keyslot 1 costs 4 GiB of memory".into()),
    ];
    for change in change {
        let lab = Lab::new(1);
        lab.settle(1);
        lab.want(1, Desired::Detached);
        lab.settle(1);
        lab.want(1, Desired::Attached);
        let good = lab.disk(1, |d| d.content.clone());
        let Content::Luks(mut header) = good.clone() else {
            panic!()
        };
        change(&mut header);
        lab.disk(1, |d| d.content = Content::Luks(header.clone()));
        let keys = lab.keys_released.get();
        stops("header changed", &lab, Reason::HeaderMismatch, |lab| {
            assert_eq!(lab.keys_released.get(), keys, "a key was asked for");
            lab.disk(1, |d| d.content = good.clone());
        });
    }
}

#[test]
fn refusals_of_the_operator_cost_no_permit() {
    for reason in [
        Reason::KeyServiceUnavailable,
        Reason::KeyNotFound,
        Reason::RoleMissing,
        Reason::CredentialsExpired,
        Reason::KeyReleaseUnavailable,
        Reason::KeyReleaseRefused,
    ] {
        let lab = Lab::new(1);
        *lab.operator.borrow_mut() = Err((reason, "refused".into()));
        stops(reason.as_str(), &lab, reason, |lab| {
            assert!(
                lab.status(1).permit.is_none(),
                "{reason}: the permit was spent"
            );
            *lab.operator.borrow_mut() = Ok(None);
        });
    }
}

#[test]
fn a_key_that_does_not_open() {
    let lab = Lab::new(1);
    lab.settle(1);
    lab.want(1, Desired::Detached);
    lab.settle(1);
    lab.want(1, Desired::Attached);
    *lab.operator.borrow_mut() = Ok(Some("0".repeat(64)));
    stops("wrong key", &lab, Reason::KeyDoesNotOpen, |lab| {
        *lab.operator.borrow_mut() = Ok(None)
    });
}

#[test]
fn the_lun_number_was_given_to_another_disk_while_the_kernel_keeps_the_old_one() {
    // The raw device of a volume that was detached elsewhere is still in the kernel, with the old WWID in sysfs.
    let lab = Lab::new(1);
    let world = &lab.world;
    world.borrow_mut().kernel.sessions.push(SimSession {
        sid: 7,
        iqn: IQN.into(),
        portal: None,
        state: "LOGGED_IN".into(),
        foreign: false,
    });
    world.borrow_mut().kernel.devices.push(SimDevice {
        path: "/dev/sda".into(),
        dev: "8:0".into(),
        sid: 7,
        lun: 1,
        disk: 0,
        wwid: Some(wwid(1)),
        size: 1 << 30,
        state: "running".into(),
        in_use: false,
        opened_by: None,
        file: None,
    });
    let stranger = lab.add_disk(Disk::blank(&wwid(66)));
    lab.target(|t| t.luns.insert(1, stranger));
    stops("LUN reused", &lab, Reason::WwidMismatch, |lab| {
        lab.target(|t| t.luns.insert(1, 0));
    });
    assert_eq!(world.borrow().disks[stranger].written, 0);
}

#[test]
fn a_dead_device_without_use_is_found_anew() {
    let lab = Lab::new(1);
    lab.settle(1);
    lab.want(1, Desired::Detached);
    lab.settle(1);
    lab.want(1, Desired::Attached);
    let open = {
        let dry = lab.names.borrow().len();
        lab.settle(1);
        let n = lab.names.borrow()[dry..]
            .iter()
            .position(|n| n == "before open")
            .unwrap();
        lab.want(1, Desired::Detached);
        lab.settle(1);
        n
    };
    lab.want(1, Desired::Attached);
    lab.faults
        .borrow_mut()
        .push((lab.pauses.get() + open, Fault::Kill));
    assert!(lab.run(1).is_none());
    lab.world.borrow_mut().kernel.devices[0].state = "offline".into();
    lab.settle(1);
    assert_eq!(
        (lab.status(1).stage, lab.reason(1)),
        (Stage::Attached, None)
    );
}

#[test]
fn a_session_that_is_down_is_waited_for_and_never_logged_out() {
    let lab = Lab::new(1);
    lab.settle(1);
    lab.world.borrow_mut().guest_writes(&Lab::link(1)).unwrap();
    for state in ["blocked", "transport-offline"] {
        lab.world.borrow_mut().kernel.sessions[0].state = "FAILED".into();
        lab.world.borrow_mut().kernel.devices[0].state = state.into();
        lab.settle(1);
        assert_eq!(lab.reason(1).as_deref(), Some("PortalUnreachable"));
        assert_eq!(
            lab.status(1).link.as_deref(),
            Some(&*Lab::link(1)),
            "the link stays"
        );
        assert_eq!(lab.world.borrow().kernel.mappings.len(), 1);
        lab.world.borrow_mut().kernel.sessions[0].state = "LOGGED_IN".into();
        lab.world.borrow_mut().kernel.devices[0].state = "running".into();
        lab.settle(1);
        assert_eq!(
            (lab.status(1).stage, lab.reason(1)),
            (Stage::Attached, None)
        );
    }
}

#[test]
fn a_zombie_mapping_is_made_anew_once_nobody_has_it_open() {
    // Somebody logged the session out under the mapping, and in the second case in again: the disk is another device then.
    for logged_in_again in [false, true] {
        let lab = Lab::new(1);
        lab.settle(1);
        lab.world.borrow_mut().guest_writes(&Lab::link(1)).unwrap();
        {
            let mut world = lab.world.borrow_mut();
            world.kernel.sessions.clear();
            world.kernel.devices.clear();
            if logged_in_again {
                let query = crate::volume::wanted::Wanted::read(&lab.volume(1))
                    .unwrap()
                    .query;
                let Source::Iscsi(Lun { target, lun }) = query.source else {
                    panic!("another source");
                };
                world.login(&target, false, None).unwrap();
                world.scan(&target.iqn, 2, lun).unwrap();
                assert_eq!(world.kernel.devices[0].path, "/dev/sdb");
            }
        }
        lab.settle(1);
        assert_eq!(lab.reason(1).as_deref(), Some("DeviceBusy"));
        lab.world
            .borrow_mut()
            .guests_leave(&names::mapping_name(&uid(1)));
        lab.settle(1);
        assert_eq!(
            (lab.status(1).stage, lab.reason(1)),
            (Stage::Attached, None)
        );
        assert!(lab.world.borrow_mut().guest_writes(&Lab::link(1)).is_some());
    }
}

#[test]
fn a_suspended_mapping_or_one_with_an_open_key_is_made_anew() {
    let spoil: [fn(&mut crate::host::Mapping); 4] = [
        |m| m.suspended = true,
        |m| m.table = None,
        |m| m.table.as_mut().unwrap().key_in_keyring = false,
        |m| m.table.as_mut().unwrap().target_type = "linear".into(),
    ];
    for spoil in spoil {
        let lab = Lab::new(1);
        lab.settle(1);
        spoil(&mut lab.world.borrow_mut().kernel.mappings[0].mapping);
        lab.settle(1);
        assert_eq!(
            (lab.status(1).stage, lab.reason(1)),
            (Stage::Attached, None)
        );
        let world = lab.world.borrow();
        let m = &world.kernel.mappings[0].mapping;
        assert!(
            !m.suspended
                && m.table
                    .as_ref()
                    .is_some_and(|t| t.key_in_keyring && t.target_type == "crypt")
        );
    }
}

#[test]
fn a_removed_link_is_repaired() {
    let lab = Lab::new(1);
    lab.settle(1);
    let (writes, keys) = (lab.status_writes.get(), lab.keys_released.get());
    lab.world.borrow_mut().links.clear();
    lab.settle(1);
    assert!(lab.world.borrow_mut().guest_writes(&Lab::link(1)).is_some());
    assert_eq!(
        (lab.status_writes.get(), lab.keys_released.get()),
        (writes, keys)
    );
}

#[test]
fn import_waits_for_the_pin_and_never_writes() {
    let lab = Lab::new(1);
    lab.disk(1, |d| {
        d.content = Content::Luks(SimHeader::new(&luks_uuid(42), KEY))
    });
    lab.change(1, |s| {
        s.luks_uuid = None;
        s.format_permit = None;
    });
    lab.operator_pins.set(false);
    lab.settle(1);
    assert_eq!((lab.status(1).stage, lab.reason(1)), (Stage::Header, None));
    assert_eq!(lab.status(1).header.unwrap().luks_uuid, luks_uuid(42));
    assert_eq!(lab.keys_released.get(), 0);
    lab.operator_pins.set(true);
    lab.settle(1);
    assert_eq!(
        (lab.status(1).stage, lab.reason(1)),
        (Stage::Attached, None)
    );
    assert_eq!(lab.world.borrow().bytes_written(), 0);
}

#[test]
fn import_of_what_is_no_header_stops() {
    for (content, reason) in [
        (Content::Blank, Reason::FormatNotPermitted),
        (Content::Garbage, Reason::DeviceNotBlank),
        (Content::Foreign("xfs".into()), Reason::ForeignSignature),
    ] {
        let lab = Lab::new(1);
        lab.disk(1, |d| d.content = content.clone());
        lab.change(1, |s| {
            s.luks_uuid = None;
            s.format_permit = None;
        });
        stops(&format!("import of {content:?}"), &lab, reason, |lab| {
            lab.disk(1, |d| {
                d.content = Content::Luks(SimHeader::new(&luks_uuid(42), KEY))
            });
        });
    }
}

#[test]
fn erasing_a_volume_that_never_had_a_header_touches_nothing() {
    for content in [
        Content::Foreign("ext4".into()),
        Content::Blank,
        Content::Garbage,
    ] {
        let lab = Lab::new(1);
        lab.disk(1, |d| d.content = content.clone());
        lab.change(1, |s| s.format_permit = None);
        lab.settle(1);
        assert!(lab.reason(1).is_some());
        lab.want(1, Desired::Erased);
        lab.settle(1);
        assert_eq!((lab.status(1).stage, lab.reason(1)), (Stage::Erased, None));
        assert_eq!(
            lab.disk(1, |d| (d.content.clone(), d.written)),
            (content, 0)
        );
        assert!(lab.world.borrow().kernel.sessions.is_empty());
    }
}

#[test]
fn erasing_waits_for_the_right_disk() {
    let lab = Lab::new(1);
    lab.settle(1);
    lab.want(1, Desired::Erased);
    for (spoil, reason) in [
        (Content::Blank, Reason::HeaderMissing),
        (Content::Foreign("ext4".into()), Reason::ForeignSignature),
        (
            Content::Luks(SimHeader::new(&luks_uuid(9), "x")),
            Reason::ForeignSignature,
        ),
    ] {
        let good = lab.disk(1, |d| std::mem::replace(&mut d.content, spoil.clone()));
        let written = lab.world.borrow().bytes_written();
        lab.settle(1);
        assert_eq!(lab.reason(1).as_deref(), Some(reason.as_str()));
        assert_eq!(lab.world.borrow().bytes_written(), written);
        assert!(lab.status(1).erased.is_none());
        lab.disk(1, |d| d.content = good);
    }
    lab.settle(1);
    let receipt = lab.status(1).erased.unwrap();
    assert_eq!(
        (
            lab.status(1).stage,
            receipt.verified,
            receipt.key_slots_wiped
        ),
        (Stage::Erased, true, 1)
    );
}
