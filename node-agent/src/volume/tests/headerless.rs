//! Volumes without a header: the disk's own WWID is all that says whose it is, and nothing is ever written to it by the agent.

use cryptvol_crds::{
    conditions::Reason,
    v1alpha1::{Desired, PlainHash, Provider, Stage},
};

use super::lab::*;
use crate::host::sim::*;

fn plain() -> Lab {
    Lab::of(Provider::Plain, 1)
}

#[test]
fn a_blank_disk_is_taken_without_a_permit_being_spent() {
    let lab = plain();
    lab.settle(1);
    let status = lab.status(1);
    assert_eq!(status.stage, Stage::Attached, "{status:?}");
    assert_eq!(status.permit, None);
    let facts = status.header.unwrap();
    assert_eq!((facts.provider, facts.data_offset), (Provider::Plain, 0));
    assert_eq!(facts.hash, Some(PlainHash::Sha256));
    assert_eq!(facts.luks_uuid, luks_uuid(1));
    // The whole disk is the guest's.
    assert_eq!(status.mapping.unwrap().size_bytes, 1 << 30);
    assert_eq!(lab.world.borrow().bytes_written(), 0);
}

#[test]
fn invariant_01_without_wwid_a_disk_without_a_header_is_not_opened() {
    let lab = plain();
    lab.disk(1, |d| d.wwid = None);
    lab.change(1, |s| s.wwid = None);
    let said = lab.stops(Reason::IdentityUnproven);
    assert!(said.contains("has no WWID"), "{said}");
}

#[test]
fn invariant_01_an_import_names_the_disk() {
    let lab = plain();
    lab.disk(1, |d| d.content = Content::Garbage);
    lab.change(1, |s| (s.format_permit, s.wwid) = (None, None));
    let said = lab.stops(Reason::IdentityUnproven);
    assert!(said.contains("is to be imported"), "{said}");
    lab.change(1, |s| s.wwid = Some(wwid(1)));
    lab.settle(1);
    assert_eq!(lab.status(1).stage, Stage::Attached);
}

#[test]
fn invariant_02_what_is_not_blank_is_not_taken_for_new() {
    for (content, reason) in [
        (Content::Garbage, Reason::DeviceNotBlank),
        (Content::Foreign("ext4".into()), Reason::ForeignSignature),
        (
            Content::Luks(SimHeader::new(&luks_uuid(1), KEY)),
            Reason::ForeignSignature,
        ),
    ] {
        let lab = plain();
        lab.disk(1, |d| d.content = content.clone());
        lab.stops(reason);
    }
}

#[test]
fn an_import_of_what_cannot_be_plain_stops() {
    for (content, reason) in [
        (Content::Blank, Reason::FormatNotPermitted),
        (Content::Foreign("xfs".into()), Reason::ForeignSignature),
        (
            Content::Luks(SimHeader::new(&luks_uuid(9), KEY)),
            Reason::ForeignSignature,
        ),
    ] {
        let lab = plain();
        lab.disk(1, |d| d.content = content.clone());
        lab.change(1, |s| s.format_permit = None);
        lab.stops(reason);
    }
}

#[test]
fn invariant_01_another_disk_at_the_lun_is_not_opened_for_a_volume_without_a_header() {
    let lab = plain();
    lab.settle(1);
    assert!(lab.world.borrow_mut().guest_writes(&Lab::link(1)).is_some());
    lab.world
        .borrow_mut()
        .guests_leave(&cryptvol_crds::names::mapping_name(&uid(1)));
    lab.want(1, Desired::Detached);
    lab.settle(1);
    // The array gives the LUN to a disk of somebody else.
    let other = lab.world.borrow().disks.len();
    lab.world.borrow_mut().disks.push(Disk::blank(&wwid(2)));
    lab.target(|t| t.luns.insert(1, other));
    lab.want(1, Desired::Attached);
    lab.stops(Reason::WwidMismatch);
}

#[test]
fn another_cipher_or_hash_than_was_pinned_is_not_used() {
    let lab = plain();
    lab.settle(1);
    lab.want(1, Desired::Detached);
    lab.settle(1);
    lab.change(1, |s| {
        s.desired = Desired::Attached;
        s.encryption.hash = Some(PlainHash::Ripemd160);
    });
    let said = lab.stops(Reason::HeaderMismatch);
    assert!(said.contains("hash"), "{said}");
}

fn unencrypted() -> Lab {
    Lab::of(Provider::PassThrough, 1)
}

#[test]
fn a_volume_without_encryption_needs_no_key_and_its_disk_is_known_by_wwid() {
    let lab = unencrypted();
    *lab.operator.borrow_mut() = Err((Reason::KeyNotFound, "there is no key".to_owned()));
    lab.settle(1);
    let status = lab.status(1);
    assert_eq!(status.stage, Stage::Attached, "{status:?}");
    assert_eq!((lab.keys_released.get(), status.permit), (0, None));
    let facts = status.header.unwrap();
    assert_eq!(
        (facts.provider, facts.cipher.as_str(), facts.data_offset),
        (Provider::PassThrough, "", 0)
    );
    assert_eq!(lab.world.borrow().bytes_written(), 0);
    let table = lab.world.borrow().kernel.mappings[0].mapping.table.clone();
    assert_eq!(table.unwrap().target_type, "linear");

    let lab = unencrypted();
    lab.disk(1, |d| d.wwid = None);
    lab.change(1, |s| s.wwid = None);
    lab.stops(Reason::IdentityUnproven);
}

#[test]
fn without_encryption_a_new_volume_is_on_a_blank_disk_and_an_import_on_the_one_that_was_named() {
    for content in [
        Content::Garbage,
        Content::Foreign("ext4".into()),
        Content::Luks(SimHeader::new(&luks_uuid(9), KEY)),
    ] {
        let lab = unencrypted();
        lab.disk(1, |d| d.content = content.clone());
        lab.settle(1);
        assert!(lab.reason(1).is_some(), "{content:?} was taken for new");
        lab.change(1, |s| (s.format_permit, s.wwid) = (None, None));
        lab.stops(Reason::IdentityUnproven);
        lab.change(1, |s| s.wwid = Some(wwid(1)));
        lab.settle(1);
        assert_eq!(lab.status(1).stage, Stage::Attached, "{content:?}");
        assert_eq!(lab.world.borrow().bytes_written(), 0);
    }
}

#[test]
fn without_encryption_it_is_suspended_and_resumed_and_a_crypt_mapping_of_its_name_is_not_its_own() {
    let lab = unencrypted();
    lab.settle(1);
    lab.change(1, |s| s.suspended = true);
    lab.settle(1);
    assert!(lab.world.borrow().kernel.mappings[0].mapping.suspended);
    assert!(lab.status(1).suspended);
    lab.change(1, |s| s.suspended = false);
    lab.settle(1);
    assert_eq!(lab.status(1).stage, Stage::Attached);
    assert!(!lab.world.borrow().kernel.mappings[0].mapping.suspended);
    assert_eq!(lab.keys_released.get(), 0);

    let table = |target: &str| {
        let mut world = lab.world.borrow_mut();
        let table = world.kernel.mappings[0].mapping.table.as_mut().unwrap();
        table.target_type = target.to_owned();
    };
    table("crypt");
    lab.settle(1);
    let world = lab.world.borrow();
    let table = world.kernel.mappings[0].mapping.table.as_ref().unwrap();
    assert_eq!(table.target_type, "linear", "made anew");
}

#[test]
fn erasing_is_the_end_of_the_key_and_touches_nothing() {
    let lab = plain();
    lab.settle(1);
    lab.want(1, Desired::Erased);
    lab.settle(1);
    let status = lab.status(1);
    assert_eq!(status.stage, Stage::Erased, "{status:?}");
    let receipt = status.erased.unwrap();
    assert!(receipt.verified);
    assert_eq!(receipt.key_slots_wiped, 0);
    assert_eq!(receipt.luks_uuid, luks_uuid(1));
    assert_eq!(lab.world.borrow().bytes_written(), 0);
}
