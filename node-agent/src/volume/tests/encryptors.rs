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
