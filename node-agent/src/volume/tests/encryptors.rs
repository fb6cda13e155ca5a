//! What the encryptors have of their own, and the policy by which mappings are made.

use cryptvol_crds::{
    conditions::Reason,
    v1alpha1::{Activation, Desired, Provider, Stage},
};

use super::lab::*;
use crate::host::sim::*;

#[test]
fn a_header_of_the_other_version_is_refused() {
    for (wanted, other) in [
        (Provider::Luks, Provider::Luks2),
        (Provider::Luks2, Provider::Luks),
    ] {
        let lab = Lab::of(wanted, 1);
        lab.settle(1);
        lab.want(1, Desired::Detached);
        lab.settle(1);
        let before = lab.disk(1, |d| {
            let Content::Luks(header) = &mut d.content else {
                panic!("no header");
            };
            header.facts.provider = other;
            d.written
        });
        lab.want(1, Desired::Attached);
        lab.settle(1);
        assert_eq!(
            lab.reason(1).as_deref(),
            Some(Reason::HeaderMismatch.as_str())
        );
        let said = lab.status(1).error.unwrap().message;
        let (wanted, other) = (wanted.as_str(), other.as_str());
        assert!(
            said.contains(&format!("provider: {other} in the header, {wanted} wanted")),
            "{said}"
        );
        assert!(lab.world.borrow().kernel.mappings.is_empty());
        assert_eq!(lab.disk(1, |d| d.written), before);
    }
}

#[test]
fn peer_failure_12_memory_for_key_derivation_is_granted_or_the_key_is_not_asked_for() {
    let lab = Lab::new(1);
    let mut header = SimHeader::new(&luks_uuid(42), KEY);
    header.unlock_memory_kib = 256 << 10;
    lab.disk(1, |d| d.content = Content::Luks(header.clone()));
    lab.change(1, |s| {
        (s.luks_uuid, s.format_permit, s.header) =
            (Some(luks_uuid(42)), None, Some(header.facts.clone()));
    });
    lab.settle(1);
    assert_eq!(
        lab.reason(1).as_deref(),
        Some(Reason::UnlockNeedsMemory.as_str())
    );
    let said = lab.status(1).error.unwrap().message;
    assert!(
        said.contains("256 MiB") && said.contains("may take 64"),
        "{said}"
    );
    assert_eq!(lab.keys_released.get(), 0);
    lab.unlock_memory_kib.set(256 << 10);
    lab.settle(1);
    assert_eq!(lab.status(1).stage, Stage::Attached);
}

#[test]
fn how_keys_are_derived_is_pinned_and_no_key_is_asked_for_where_it_changed() {
    let lab = Lab::new(1);
    let of = |ways: &[&str]| ways.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
    let theirs = of(&["pbkdf2 sha512 2000000", "digest pbkdf2 sha512 200000"]);
    let shows = |ways: &[String]| {
        lab.disk(1, |d| {
            let Content::Luks(header) = &mut d.content else {
                panic!("no header");
            };
            header.derivations = ways.to_vec();
        });
    };
    let mut header = SimHeader::new(&luks_uuid(42), KEY);
    header.derivations.clone_from(&theirs);
    lab.disk(1, |d| d.content = Content::Luks(header));
    lab.change(1, |s| (s.luks_uuid, s.format_permit) = (None, None));
    // An import is pinned as it is found.
    lab.settle(1);
    assert_eq!(lab.status(1).stage, Stage::Attached);
    assert_eq!(lab.status(1).derivations, theirs);
    let attach_with = |ways: &[String]| {
        lab.want(1, Desired::Detached);
        lab.settle(1);
        shows(ways);
        let before = lab.keys_released.get();
        lab.want(1, Desired::Attached);
        lab.settle(1);
        (lab.reason(1), lab.keys_released.get() - before)
    };
    let refused = (Some(Reason::HeaderMismatch.as_str().to_owned()), 0);
    for changed in [
        &["pbkdf2 sha512 9000000", "digest pbkdf2 sha512 200000"][..],
        &["pbkdf2 sha512 2000000", "digest pbkdf2 sha512 9000000"],
        &["pbkdf2 sha1 2000000", "digest pbkdf2 sha512 200000"],
        &["argon2id time 4 memory 32 threads 1"],
    ] {
        assert_eq!(attach_with(&of(changed)), refused, "{changed:?}");
        let said = lab.status(1).error.unwrap().message;
        assert!(
            said.contains("which it did not when it was pinned"),
            "{said}"
        );
    }
    assert_eq!(attach_with(&theirs), (None, 1));
    // As a rotation leaves it; from then on what was before is strange.
    let rotated = of(&["digest pbkdf2 sha512 200000", "pbkdf2 sha256 1000"]);
    assert_eq!(attach_with(&rotated), (None, 1));
    assert_eq!(lab.status(1).derivations, rotated);
    assert_eq!(attach_with(&theirs), refused);
    // A record of a release that knew no such pin says nothing against it.
    lab.change(1, |s| s.derivations.clear());
    let known = lab.volumes.borrow_mut().get_mut(&name(1)).map(|v| {
        let status = v.status.as_mut().unwrap();
        std::mem::take(&mut status.derivations)
    });
    assert_eq!(known, Some(rotated));
    assert_eq!(attach_with(&theirs), (None, 1));
}

#[test]
fn the_sector_size_of_an_import_is_its_headers() {
    let lab = Lab::new(1);
    let mut header = SimHeader::new(&luks_uuid(42), KEY);
    header.facts.sector_size = 4096;
    lab.disk(1, |d| d.content = Content::Luks(header));
    lab.change(1, |s| (s.luks_uuid, s.format_permit) = (None, None));
    lab.settle(1);
    assert_eq!(lab.status(1).stage, Stage::Attached);
    assert_eq!(lab.status(1).header.unwrap().sector_size, 4096);
    // Pinned from then on.
    lab.want(1, Desired::Detached);
    lab.settle(1);
    lab.disk(1, |d| {
        let Content::Luks(header) = &mut d.content else {
            panic!("no header");
        };
        header.facts.sector_size = 512;
    });
    lab.want(1, Desired::Attached);
    lab.settle(1);
    assert_eq!(
        lab.reason(1).as_deref(),
        Some(Reason::HeaderMismatch.as_str())
    );
}

#[test]
fn activation_counts_from_the_next_mapping_on() {
    let lab = Lab::new(1);
    lab.settle(1);
    let options = || lab.status(1).mapping.unwrap().options;
    assert_eq!(options(), Vec::<String>::new());
    lab.change(1, |s| {
        s.activation = Activation {
            allow_discards: true,
            no_read_workqueue: true,
            ..Activation::default()
        };
    });
    lab.settle(1);
    // A guest has it open: what is mapped stays as it is.
    assert_eq!(options(), Vec::<String>::new());
    lab.want(1, Desired::Detached);
    lab.settle(1);
    lab.want(1, Desired::Attached);
    lab.settle(1);
    assert_eq!(lab.status(1).stage, Stage::Attached);
    assert_eq!(options(), ["allow_discards", "no_read_workqueue"]);
}
