//! Volumes whose key is random: made with the mapping, gone with it, and with it the data.

use cryptvol_crds::{
    conditions::Reason,
    names,
    v1alpha1::{Desired, NodeIscsi, NodeRotation, NodeVolumeSpec, Provider, Stage},
};

use super::lab::*;
use crate::{host::sim::*, volume::wanted::Wanted};

fn written(lab: &Lab) {
    lab.settle(1);
    assert_eq!(lab.status(1).stage, Stage::Attached, "{:?}", lab.status(1));
    assert!(lab.world.borrow_mut().guest_writes(&Lab::link(1)).is_some());
    lab.world
        .borrow_mut()
        .guests_leave(&names::mapping_name(&uid(1)));
}

fn file_size(lab: &Lab) -> Option<u64> {
    lab.world.borrow().files[&names::scratch_file(&uid(1))].size
}

#[test]
fn a_scratch_file_lives_as_long_as_its_attachment_and_nobody_is_asked_for_a_key() {
    let lab = Lab::scratch_file(1);
    *lab.operator.borrow_mut() = Err((Reason::KeyNotFound, "there is no key".to_owned()));
    for _ in 0..2 {
        written(&lab);
        assert_eq!(file_size(&lab), Some(1 << 30));
        let status = lab.status(1);
        assert!(status.key_made.is_some() && status.permit.is_none());
        let facts = status.header.unwrap();
        assert_eq!((facts.provider, facts.hash), (Provider::Plain, None));
        lab.want(1, Desired::Detached);
        lab.settle(1);
        let status = lab.status(1);
        assert_eq!((status.stage, status.error), (Stage::Detached, None));
        assert_eq!((file_size(&lab), status.key_made), (None, None));
        assert!(lab.world.borrow().kernel.devices.is_empty());
        lab.want(1, Desired::Attached);
    }
    // It was wanted so, twice.
    assert_eq!(lab.status(1).data_lost, None);
    assert_eq!(
        (lab.keys_released.get(), lab.world.borrow().bytes_written()),
        (0, 0)
    );
}

#[test]
fn a_power_cut_ends_the_data_and_is_told_once() {
    for lab in [Lab::scratch_file(1), Lab::scratch_device(1)] {
        written(&lab);
        let made = lab.status(1).key_made;
        lab.world.borrow_mut().power_cut();
        lab.settle(1);
        let status = lab.status(1);
        assert_eq!((status.stage, status.error), (Stage::Attached, None));
        assert!(status.data_lost.is_some() && status.key_made > made);
        // What is in a file of before is not carried on; a disk keeps its noise.
        let file = lab.volume(1).spec.source.file.is_some();
        assert_eq!(lab.disk(1, |d| d.data.is_none()), file);
        let lost = status.data_lost;
        let writes = lab.status_writes.get();
        lab.hands.borrow_mut().clear();
        lab.settle(1);
        assert_eq!(
            (lab.status(1).data_lost, lab.status_writes.get()),
            (lost, writes)
        );
    }
}

#[test]
fn an_agent_that_returns_finds_the_mapping_and_nothing_is_lost() {
    let lab = Lab::scratch_device(1);
    written(&lab);
    let before = lab.volume(1);
    lab.hands.borrow_mut().clear();
    lab.settle(1);
    assert_eq!(lab.volume(1).status, before.status);
    assert_eq!(lab.world.borrow().kernel.mappings.len(), 1);
}

#[test]
fn invariant_06_a_scratch_device_is_refused_while_it_is_anybody_elses() {
    let lab = Lab::scratch_device(1);
    lab.world.borrow_mut().kernel.devices[0].in_use = true;
    lab.stops(Reason::DeviceInUse);
    for (content, reason) in [
        (Content::Garbage, Reason::DeviceNotBlank),
        (Content::Foreign("ext4".into()), Reason::ForeignSignature),
        (
            Content::Luks(SimHeader::new(&luks_uuid(9), KEY)),
            Reason::ForeignSignature,
        ),
    ] {
        let lab = Lab::scratch_device(1);
        lab.disk(1, |d| d.content = content.clone());
        lab.stops(reason);
    }
    // Nothing says which disk it is.
    let lab = Lab::scratch_device(1);
    lab.disk(1, |d| d.wwid = None);
    lab.world.borrow_mut().kernel.devices[0].wwid = None;
    lab.stops(Reason::IdentityUnproven);
}

#[test]
fn invariant_01_noise_is_its_own_on_its_own_disk_alone() {
    let lab = Lab::scratch_device(1);
    written(&lab);
    lab.want(1, Desired::Detached);
    lab.settle(1);
    assert_eq!(lab.disk(1, |d| d.content.clone()), Content::Garbage);
    lab.want(1, Desired::Attached);
    written(&lab);
    lab.want(1, Desired::Detached);
    lab.settle(1);
    // Somebody used the disk meanwhile.
    lab.disk(1, |d| d.content = Content::Foreign("xfs".into()));
    lab.want(1, Desired::Attached);
    lab.stops(Reason::ForeignSignature);
    // Another disk with noise at the path.
    lab.disk(1, |d| {
        d.content = Content::Garbage;
        d.wwid = Some(wwid(7));
    });
    lab.world.borrow_mut().kernel.devices[0].wwid = Some(wwid(7));
    lab.stops(Reason::WwidMismatch);
}

#[test]
fn what_was_suspended_by_hand_cannot_go_on_and_is_left_to_its_guest() {
    let lab = Lab::scratch_file(1);
    written(&lab);
    let mapping = |change: fn(&mut SimMapping)| {
        change(&mut lab.world.borrow_mut().kernel.mappings[0]);
    };
    mapping(|m| (m.mapping.suspended, m.mapping.open_count) = (true, 1));
    lab.settle(1);
    assert_eq!(lab.reason(1).as_deref(), Some("DeviceBusy"));
    assert!(lab.status(1).error.unwrap().message.contains("suspended"));
    mapping(|m| m.mapping.open_count = 0);
    lab.settle(1);
    let status = lab.status(1);
    assert_eq!((status.stage, status.error), (Stage::Attached, None));
    assert!(status.data_lost.is_some());
}

#[test]
fn what_cannot_be_is_refused_before_anything_is_done() {
    let refused = |change: fn(&mut NodeVolumeSpec)| {
        let lab = Lab::scratch_file(1);
        lab.change(1, change);
        Wanted::read(&lab.volume(1)).unwrap_err().field
    };
    assert_eq!(refused(|s| s.suspended = true), "suspended");
    assert_eq!(refused(|s| s.fail_closed = true), "failClosed");
    assert_eq!(refused(|s| s.desired = Desired::Erased), "desired");
    assert_eq!(
        refused(|s| s.rotation = Some(NodeRotation::default())),
        "rotation"
    );
    assert_eq!(
        refused(|s| s.encryption.provider = Provider::Luks2),
        "encryption.provider"
    );
    assert_eq!(
        refused(|s| {
            s.source.file = None;
            s.source.iscsi = Some(NodeIscsi {
                portals: vec!["192.0.2.1:3260".into()],
                iqn: IQN.into(),
                lun: 1,
                ..NodeIscsi::default()
            });
        }),
        "source.iscsi"
    );
    // Another volume's file, and a file of nobody's that is called like one.
    for path in [names::scratch_file(&uid(2)), file(1)] {
        let lab = Lab::scratch_file(1);
        lab.change(1, |s| {
            s.source.file.as_mut().unwrap().path.clone_from(&path)
        });
        let invalid = Wanted::read(&lab.volume(1)).unwrap_err();
        assert_eq!(invalid.field, "source.file.path", "{path}");
    }
    let lab = Lab::file(Provider::Luks2, 1);
    lab.change(1, |s| {
        s.source.file.as_mut().unwrap().path = names::scratch_file(&uid(1));
    });
    assert!(Wanted::read(&lab.volume(1)).is_err());
}
