//! A volume in use: its disk grows; it is suspended and resumed.

use cryptvol_crds::{conditions::ENCRYPTION_PROVEN, v1alpha1::ProofStatus};

use super::*;

#[test]
fn a_look_at_the_size_is_asked_for_and_what_has_grown_is_pinned_once_it_is_up() {
    let mut c = Cluster::attached(json!({}));
    c.annotate(names::RESCAN_ANNOTATION, "look-1");
    c.settle();
    assert_eq!(c.nv().spec.rescan.as_deref(), Some("look-1"));
    let grow = |s: &mut NodeVolumeStatus| {
        s.device.as_mut().unwrap().size_bytes = 2 << 30;
        s.mapping.as_mut().unwrap().size_bytes = (2 << 30) - (16 << 20);
    };
    // Not while something is wrong.
    c.report(grow);
    c.fails(Stage::Attached, Reason::KeyReleaseUnavailable);
    c.settle();
    assert_eq!(c.status().size_bytes, Some(1 << 30));
    c.comes_up();
    c.report(grow);
    c.settle();
    assert_eq!(c.status().size_bytes, Some(2 << 30));
    assert_eq!(c.status().usable_bytes, Some((2 << 30) - (16 << 20)));
    assert_eq!(c.nv().spec.size_bytes, Some(2 << 30));
    c.is(READY, "True", Reason::AsDesired);
    // A pin never shrinks.
    c.report(|s| s.device.as_mut().unwrap().size_bytes = 1 << 30);
    c.settle();
    assert_eq!(c.status().size_bytes, Some(2 << 30));
}

#[test]
fn a_suspended_volume_says_so_and_how_it_goes_on() {
    let mut c = Cluster::attached(json!({}));
    c.world.volume.spec.suspended = true;
    c.settle();
    assert!(c.nv().spec.suspended);
    c.report(|s| s.suspended = true);
    c.settle();
    c.is(READY, "False", Reason::Suspended);
    c.is(ATTACHED, "False", Reason::Suspended);
    c.is(PROGRESSING, "False", Reason::Suspended);
    c.is(HEADER_VERIFIED, "True", Reason::AsDesired);
    assert!(c.message().ends_with(Reason::Suspended.next_step()));
    c.world.volume.spec.suspended = false;
    c.settle();
    assert!(!c.nv().spec.suspended);
    c.report(|s| s.suspended = false);
    c.settle();
    c.is(READY, "True", Reason::AsDesired);
}

#[test]
fn a_proof_that_does_not_hold_is_a_condition_and_an_event() {
    let mut c = Cluster::attached(json!({"failClosed": true}));
    assert!(c.nv().spec.fail_closed);
    assert!(get(&c.status().conditions, ENCRYPTION_PROVEN).is_none());
    let since = Time(at(1));
    let holds = ProofStatus {
        holds: true,
        since: since.clone(),
        error: None,
    };
    c.report(|s| s.proof = Some(holds.clone()));
    c.settle();
    c.is(ENCRYPTION_PROVEN, "True", Reason::AsDesired);
    let before = c.status();
    c.report(|s| {
        s.proof = Some(ProofStatus {
            holds: false,
            since,
            error: Some(LastError {
                reason: "PlaintextOnDisk".into(),
                message: message(Reason::PlaintextOnDisk, "it is so"),
                time: Time(at(5)),
            }),
        });
    });
    c.fails(Stage::Mapping, Reason::PlaintextOnDisk);
    c.settle();
    c.is(ENCRYPTION_PROVEN, "False", Reason::PlaintextOnDisk);
    c.is(READY, "False", Reason::PlaintextOnDisk);
    let notes = super::super::transitions::between(&before, &c.status());
    assert!(
        notes
            .iter()
            .any(|n| n.warning && n.reason == "EncryptionNotProven"),
        "{notes:?}"
    );
    c.comes_up();
    c.report(|s| s.proof = Some(holds));
    c.settle();
    c.is(ENCRYPTION_PROVEN, "True", Reason::AsDesired);
    c.attach_to(&[]);
    c.settle();
    c.lets_go();
    c.settle();
    c.is(ENCRYPTION_PROVEN, "Unknown", Reason::Waiting);
}
