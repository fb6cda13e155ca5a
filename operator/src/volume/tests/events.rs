//! Events on transitions only, and NodeVolumes without a volume.

use cryptvol_crds::v1alpha1::HeaderBackup;

use super::*;
use crate::volume::{orphans, transitions};

/// The Events of everything that happens to a cluster while `change` runs.
fn told(c: &mut Cluster, change: impl FnOnce(&mut Cluster)) -> Vec<String> {
    let before = c.status();
    change(c);
    let notes = transitions::between(&before, &c.status());
    notes
        .into_iter()
        .map(|n| format!("{}{}", if n.warning { "!" } else { "" }, n.reason))
        .collect()
}

#[test]
fn an_event_tells_a_change_and_never_a_state() {
    let mut c = Cluster::new(json!({}));
    let up = |c: &mut Cluster| {
        c.comes_up();
        c.settle();
    };
    let settle = |c: &mut Cluster| {
        c.settle();
    };
    let lun = |c: &mut Cluster| {
        c.fails(Stage::Device, Reason::LunNotFound);
        c.settle();
    };
    assert_eq!(told(&mut c, settle), ["KeyReady"]);
    assert_eq!(told(&mut c, lun), ["!LunNotFound"]);
    assert!(told(&mut c, lun).is_empty(), "the same failure again");
    c.report(|s| s.error = None);
    c.spends();
    assert_eq!(told(&mut c, settle), ["Formatting"]);
    assert_eq!(told(&mut c, up), ["Attached"]);
    let backup = |sealed: &str, c: &Cluster| HeaderBackup {
        header: c.status().header.unwrap(),
        sealed: sealed.into(),
        ..HeaderBackup::default()
    };
    let one = backup("one", &c);
    c.report(|s| s.header_backup = Some(one));
    assert_eq!(told(&mut c, settle), ["HeaderBackedUp"]);
    assert!(told(&mut c, settle).is_empty());
    c.attach_to(&[]);
    c.settle();
    c.lets_go();
    assert_eq!(told(&mut c, settle), ["Detached"]);
}

#[test]
fn a_message_fits_an_event() {
    let mut c = Cluster::new(json!({}));
    c.settle();
    c.report(|s| {
        s.stage = Stage::Device;
        s.error = Some(LastError {
            reason: "StepFailed".into(),
            message: "x".repeat(5000),
            time: Time(at(1)),
        });
    });
    let before = c.status();
    c.settle();
    for note in transitions::between(&before, &c.status()) {
        assert!(note.text.len() <= 1024);
    }
}

#[test]
fn a_node_volume_without_a_volume_goes_only_when_its_node_let_go() {
    let mut c = Cluster::attached(json!({}));
    assert_eq!(orphans::decide(c.nv()), orphans::Step::Detach);
    c.world.node_volumes[0].spec.desired = Desired::Detached;
    c.world.node_volumes[0].metadata.generation = Some(99);
    assert_eq!(orphans::decide(c.nv()), orphans::Step::Wait);
    c.lets_go();
    assert_eq!(orphans::decide(c.nv()), orphans::Step::Release);
}
