//! Authenticated sectors: written once before the volume is used and never after, as the record says and not as the disk does.

use cryptvol_crds::{
    conditions::Reason,
    names,
    v1alpha1::{Desired, Integrity, IntegrityFacts, Stage},
};

use super::lab::*;
use crate::host::{Host, sim::*};

fn header(lab: &Lab, change: impl FnOnce(&mut SimHeader)) {
    lab.disk(1, |d| {
        let Content::Luks(header) = &mut d.content else {
            panic!("no header");
        };
        change(header);
    });
}

#[test]
fn a_new_volume_is_written_from_end_to_end_before_anything_leads_to_it() {
    let lab = Lab::authenticated(1);
    for _ in 0..2 {
        lab.run(1);
        assert_eq!(
            lab.reason(1).as_deref(),
            Some(Reason::Initialising.as_str())
        );
        let message = lab.status(1).error.unwrap().message;
        assert!(message.contains("of 900 MiB are written"), "{message}");
        assert!(lab.world.borrow().links.is_empty() && lab.status(1).first_opened.is_none());
        assert_eq!(lab.status(1).stage, Stage::Mapping);
    }
    lab.settle(1);
    assert_eq!(lab.status(1).stage, Stage::Attached);
    assert_eq!(lab.status(1).mapping.unwrap().size_bytes, 900 << 20);
    let integrity = lab.status(1).header.unwrap().integrity.unwrap();
    assert_eq!(integrity.kind, Integrity::HmacSha256);
    // Used, it is never written over again, be the record of its opening lost or not (the simulated host would panic).
    assert!(lab.world.borrow_mut().guest_writes(&Lab::link(1)).is_some());
    lab.world
        .borrow_mut()
        .guests_leave(&names::mapping_name(&uid(1)));
    lab.want(1, Desired::Detached);
    lab.settle(1);
    let written = lab.disk(1, |d| d.written);
    lab.change(1, |s| s.header = None);
    lab.volumes
        .borrow_mut()
        .get_mut(&name(1))
        .unwrap()
        .status
        .as_mut()
        .unwrap()
        .first_opened = None;
    lab.want(1, Desired::Attached);
    lab.settle(1);
    assert_eq!(lab.status(1).stage, Stage::Attached);
    assert_eq!(lab.disk(1, |d| d.written), written);
}

#[test]
fn a_volume_is_detached_and_suspended_while_it_is_initialised() {
    let lab = Lab::authenticated(1);
    lab.run(1);
    lab.change(1, |s| s.suspended = true);
    lab.settle(1);
    assert!(lab.status(1).suspended && lab.status(1).first_opened.is_none());
    lab.change(1, |s| s.suspended = false);
    lab.run(1);
    lab.want(1, Desired::Detached);
    lab.settle(1);
    assert_eq!(lab.status(1).stage, Stage::Detached);
    assert!(lab.world.borrow().kernel.mappings.is_empty());
    lab.want(1, Desired::Attached);
    lab.settle(1);
    assert_eq!(lab.status(1).stage, Stage::Attached);
    assert!(lab.world.borrow_mut().guest_writes(&Lab::link(1)).is_some());
}

#[test]
fn an_array_cannot_remove_or_add_authentication_or_shorten_the_volume() {
    let kind = Integrity::HmacSha256;
    let facts = |data_bytes| Some(IntegrityFacts { kind, data_bytes });
    for (authenticated, forged, said) in [
        (
            true,
            None,
            "integrity: none in the header, hmac-sha256 wanted",
        ),
        (
            true,
            facts(800 << 20),
            "room for data is not what was pinned",
        ),
        (
            false,
            facts(900 << 20),
            "integrity: hmac-sha256 in the header, none wanted",
        ),
    ] {
        let lab = match authenticated {
            true => Lab::authenticated(1),
            false => Lab::new(1),
        };
        lab.settle(1);
        lab.want(1, Desired::Detached);
        lab.settle(1);
        let mut true_facts = None;
        header(&lab, |h| {
            true_facts = std::mem::replace(&mut h.facts.integrity, forged.clone());
        });
        let keys = lab.keys_released.get();
        lab.want(1, Desired::Attached);
        lab.settle(1);
        assert_eq!(
            lab.reason(1).as_deref(),
            Some(Reason::HeaderMismatch.as_str())
        );
        let message = lab.status(1).error.unwrap().message;
        assert!(message.contains(said), "{message}");
        assert_eq!(lab.keys_released.get(), keys);
        assert!(lab.world.borrow().kernel.mappings.is_empty());
        header(&lab, |h| h.facts.integrity = true_facts);
        lab.settle(1);
        assert_eq!(lab.status(1).stage, Stage::Attached);
    }
}

#[test]
fn a_disk_that_grew_opens_as_long_as_it_was() {
    let lab = Lab::authenticated(1);
    lab.settle(1);
    lab.want(1, Desired::Detached);
    lab.settle(1);
    lab.disk(1, |d| d.size *= 2);
    // The kernel notes more room by itself.
    header(&lab, |h| {
        h.facts.integrity.as_mut().unwrap().data_bytes *= 2
    });
    lab.want(1, Desired::Attached);
    lab.settle(1);
    assert_eq!(lab.status(1).stage, Stage::Attached);
    assert_eq!(lab.status(1).mapping.unwrap().size_bytes, 900 << 20);
    let facts = lab.status(1).header.unwrap().integrity.unwrap();
    assert_eq!(facts.data_bytes, 900 << 20);
}

#[test]
fn a_volume_that_was_made_elsewhere_is_never_written_over() {
    let lab = Lab::authenticated(1);
    lab.settle(1);
    lab.want(1, Desired::Detached);
    lab.settle(1);
    // As an import is: a header, pinned, and no permit. Its maker left sectors that cannot be read.
    lab.disk(1, |d| d.initialised = 0);
    let facts = lab.status(1).header;
    lab.volumes.borrow_mut().get_mut(&name(1)).unwrap().status = None;
    lab.change(1, |s| {
        s.header = facts;
        s.format_permit = None;
    });
    let written = lab.disk(1, |d| d.written);
    lab.want(1, Desired::Attached);
    lab.settle(1);
    assert_eq!(lab.status(1).stage, Stage::Attached);
    assert_eq!(lab.disk(1, |d| (d.written, d.initialised)), (written, 0));
}

#[test]
fn discards_are_refused() {
    let lab = Lab::authenticated(1);
    lab.change(1, |s| s.activation.allow_discards = true);
    lab.settle(1);
    assert_eq!(
        lab.reason(1).as_deref(),
        Some(Reason::ActivationUnsupported.as_str())
    );
    assert_eq!(lab.world.borrow().bytes_written(), 0);
    lab.change(1, |s| s.activation.allow_discards = false);
    lab.settle(1);
    assert_eq!(lab.status(1).stage, Stage::Attached);
}

#[test]
fn a_layer_of_tags_that_is_left_alone_is_removed() {
    let lab = Lab::authenticated(1);
    lab.settle(1);
    // The agent died between the two layers.
    lab.world.borrow_mut().kernel.mappings[0].mapping.table = None;
    lab.settle(1);
    assert_eq!(lab.status(1).stage, Stage::Attached);
    lab.world.borrow_mut().kernel.mappings[0].mapping.table = None;
    lab.want(1, Desired::Detached);
    lab.settle(1);
    assert!(
        lab.world
            .borrow_mut()
            .belongings(&[])
            .unwrap()
            .mappings
            .is_empty()
    );
    assert_eq!(lab.status(1).stage, Stage::Detached);
}

#[test]
fn a_layer_that_the_kernel_stopped_is_made_anew_once_nobody_has_it_open() {
    let lab = Lab::authenticated(1);
    lab.settle(1);
    assert!(lab.world.borrow_mut().guest_writes(&Lab::link(1)).is_some());
    let (written, keys) = (lab.disk(1, |d| d.written), lab.keys_released.get());
    lab.world.borrow_mut().bad_sample = Some(Reason::IntegrityStopped);
    lab.prove.set(true);
    lab.settle(1);
    assert_eq!(
        lab.reason(1).as_deref(),
        Some(Reason::IntegrityStopped.as_str())
    );
    let before = lab.status(1).mapping.unwrap();
    assert_eq!(lab.keys_released.get(), keys);
    lab.world
        .borrow_mut()
        .guests_leave(&names::mapping_name(&uid(1)));
    lab.settle(1);
    assert_eq!(lab.status(1).stage, Stage::Attached);
    assert_eq!(lab.status(1).mapping.unwrap().size_bytes, before.size_bytes);
    assert_eq!(lab.keys_released.get(), keys + 1);
    assert_eq!(lab.disk(1, |d| d.written), written);
    assert!(lab.world.borrow_mut().guest_writes(&Lab::link(1)).is_some());
}
