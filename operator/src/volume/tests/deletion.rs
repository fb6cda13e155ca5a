//! Deletion, and what holds it.

use super::*;

fn receipt(c: &Cluster, verified: bool) -> EraseReceipt {
    EraseReceipt {
        luks_uuid: c.status().luks_uuid.unwrap(),
        key_slots_wiped: 1,
        verified,
        at: Time(at(200)),
        node_name: c.nv().spec.node_name.clone(),
    }
}

fn erases(c: &mut Cluster, verified: bool) {
    assert_eq!(c.nv().spec.desired, Desired::Erased);
    assert!(c.nv().spec.format_permit.is_none());
    let receipt = receipt(c, verified);
    c.report(|s| {
        s.stage = Stage::Erased;
        s.error = None;
        s.link = None;
        s.erased = Some(receipt);
    });
}

#[test]
fn retain_needs_no_key_service_and_keeps_the_key() {
    let mut c = Cluster::attached(json!({}));
    c.delete(DeletionPolicy::Retain);
    c.world.key_service = Err(problem(Reason::KeyServiceNotFound));
    c.world.encryption = Err(problem(Reason::EncryptionClassNotFound));
    c.settle();
    assert_eq!(c.nv().spec.desired, Desired::Detached);
    assert!(!c.gone);
    c.lets_go();
    c.settle();
    assert!(c.gone && c.keys.len() == 1);
}

#[test]
fn erase_wipes_then_destroys_the_key_then_goes() {
    let mut c = Cluster::attached(json!({}));
    c.delete(DeletionPolicy::Erase);
    c.settle();
    assert!(!c.gone && c.keys_deleted.is_empty());
    erases(&mut c, true);
    c.settle();
    assert!(c.gone && c.world.node_volumes.is_empty());
    assert!(
        c.status().erased.unwrap().verified,
        "the receipt is on record before the key goes"
    );
    assert_eq!(c.keys_deleted, [KEY]);
}

/// Without a header the disk opens for as long as the key is there. One that we did not make is not ours to destroy, and
/// "erased" would be a lie.
#[test]
fn erase_of_a_plain_volume_with_a_key_of_others_is_refused() {
    let mut c = Cluster::attached(json!({}));
    let mut status = c.status();
    status.header.as_mut().unwrap().provider = Provider::Plain;
    status.key.as_mut().unwrap().generated = false;
    c.world.volume.status = Some(status.clone());
    c.report(|s| s.header = status.header);
    c.delete(DeletionPolicy::Erase);
    c.settle();
    assert_eq!(c.nv().spec.desired, Desired::Detached);
    c.lets_go();
    c.settle();
    c.is(READY, "False", Reason::EraseBlocked);
    assert!(!c.gone && c.keys_deleted.is_empty());
    c.delete(DeletionPolicy::Retain);
    c.settle();
    assert!(c.gone && c.keys_deleted.is_empty());
}

#[test]
fn erase_of_a_detached_volume_uses_its_last_node() {
    let mut c = Cluster::attached(json!({}));
    c.attach_to(&[]);
    c.settle();
    c.lets_go();
    c.settle();
    c.delete(DeletionPolicy::Erase);
    c.settle();
    assert_eq!(
        (c.nv().spec.node_name.as_str(), c.nv().spec.desired),
        ("a", Desired::Erased)
    );
    erases(&mut c, true);
    c.settle();
    assert!(c.gone);
}

#[test]
fn without_proof_the_key_stays() {
    let mut c = Cluster::attached(json!({}));
    c.delete(DeletionPolicy::Erase);
    c.settle();
    erases(&mut c, false);
    c.settle();
    c.is(READY, "False", Reason::EraseBlocked);
    assert!(!c.gone && c.keys.len() == 1);
    // Another volume's receipt is no proof either.
    let mut foreign = receipt(&c, true);
    foreign.luks_uuid = "another".into();
    c.report(|s| s.erased = Some(foreign));
    c.settle();
    assert!(!c.gone && c.keys.len() == 1);
    let good = receipt(&c, true);
    c.report(|s| s.erased = Some(good));
    c.settle();
    assert!(c.gone && c.keys.is_empty());
}

#[test]
fn erase_that_cannot_go_on_says_so_and_retain_lets_it_go() {
    let mut c = Cluster::attached(json!({}));
    c.world.nodes.insert(
        "a".into(),
        NodeState {
            ready: false,
            ..node()
        },
    );
    c.delete(DeletionPolicy::Erase);
    c.settle();
    c.is(READY, "False", Reason::EraseBlocked);
    c.world.nodes.insert("a".into(), node());
    c.settle();
    c.fails(Stage::Detaching, Reason::DeviceBusy);
    c.settle();
    c.is(READY, "False", Reason::DeviceBusy);
    c.delete(DeletionPolicy::Retain);
    c.settle();
    assert_eq!(c.nv().spec.desired, Desired::Detached);
    c.lets_go();
    c.settle();
    assert!(c.gone && c.keys.len() == 1);
}

#[test]
fn erase_without_any_node_waits_for_the_user_to_name_one() {
    let mut c = Cluster::attached(json!({}));
    c.attach_to(&[]);
    c.settle();
    c.lets_go();
    c.settle();
    c.world.nodes.remove("a");
    c.delete(DeletionPolicy::Erase);
    c.settle();
    c.is(READY, "False", Reason::EraseBlocked);
    assert!(c.message().contains("no node a"), "{}", c.message());
    c.attach_to(&["b"]);
    c.settle();
    assert_eq!(c.nv().spec.node_name, "b");
    erases(&mut c, true);
    c.settle();
    assert!(c.gone);
}

#[test]
fn never_formatted_is_only_the_key() {
    let mut c = Cluster::new(json!({"attachments": []}));
    c.settle();
    assert_eq!(c.keys_made, 1);
    c.delete(DeletionPolicy::Erase);
    c.settle();
    assert!(c.gone);
    assert_eq!((c.keys_deleted.len(), c.applies), (1, 0));
}

#[test]
fn a_permit_that_is_spent_while_the_volume_goes_is_not_missed() {
    let mut c = Cluster::new(json!({}));
    c.settle();
    c.delete(DeletionPolicy::Erase);
    let before = c.nv().spec.format_permit.clone().unwrap();
    c.settle();
    assert_eq!(c.nv().spec.desired, Desired::Detached);
    assert!(c.nv().spec.format_permit.is_none(), "taken back");
    // Too late: the agent had begun.
    c.report(|s| {
        s.permit = Some(PermitReceipt {
            id: before.id,
            spent_at: None,
        })
    });
    c.lets_go();
    c.settle();
    erases(&mut c, true);
    c.settle();
    assert!(c.gone && c.keys.is_empty());
}

#[test]
fn an_imported_key_is_not_ours_to_destroy() {
    let mut c = Cluster::new(json!({"key": {"secretRef": KEY}}));
    c.keys.push(key(KEY));
    c.settle();
    c.spends();
    c.comes_up();
    c.settle();
    c.delete(DeletionPolicy::Erase);
    c.settle();
    erases(&mut c, true);
    c.settle();
    assert!(c.gone && c.keys.len() == 1 && c.keys_deleted.is_empty());
}

#[test]
fn credentials_that_are_gone_hold_only_an_erasure() {
    let mut c = Cluster::new(json!({"attachments": []}));
    c.settle();
    c.delete(DeletionPolicy::Erase);
    c.broken = Some((false, problem(Reason::CredentialsSecretNotFound)));
    let d = c.settle();
    assert!(!c.gone);
    c.is(READY, "False", Reason::CredentialsSecretNotFound);
    assert!(
        c.message().contains("deletionPolicy to Retain"),
        "{}",
        c.message()
    );
    assert_eq!(d.again, Again::Backoff);
    c.broken = None;
    c.world.key = KeyState::NotAsked;
    c.settle();
    assert!(c.gone && c.keys.is_empty());
}

#[test]
fn a_key_that_was_made_and_not_recorded_is_destroyed_too() {
    let mut c = Cluster::new(json!({"attachments": []}));
    // Finalizer, a look at the key manager, the claim; then the process dies right after the key was made.
    c.round();
    c.round();
    let d = decide(&c.world);
    assert!(d.then.contains(&Action::CreateKey));
    c.world.volume.status = Some(d.status);
    c.keys.push(key(KEY));
    c.delete(DeletionPolicy::Erase);
    c.settle();
    assert!(c.gone && c.keys.is_empty());
}

#[test]
fn what_never_had_a_key_goes_without_a_key_service() {
    let mut c = Cluster::new(json!({}));
    c.broken = Some((false, problem(Reason::CredentialsSecretNotFound)));
    c.settle();
    c.delete(DeletionPolicy::Erase);
    c.settle();
    assert!(c.gone);
}

#[test]
fn without_our_finalizer_nothing_is_done() {
    let mut c = Cluster::new(json!({}));
    c.delete(DeletionPolicy::Erase);
    let d = decide(&c.world);
    assert!(d.is_idle(&c.world.volume));
}

#[test]
fn a_namespace_that_goes_lets_a_node_erase_what_it_has() {
    let mut c = Cluster::attached(json!({}));
    // The namespace deletes the hand-over first, then the volume.
    c.world.namespace_goes = true;
    c.world.node_volumes[0].metadata.deletion_timestamp = Some(Time(at(100)));
    c.settle();
    assert_eq!(c.nv().spec.desired, Desired::Attached);
    c.delete(DeletionPolicy::Erase);
    c.settle();
    erases(&mut c, true);
    c.settle();
    assert!(c.gone && c.keys.is_empty());
}

#[test]
fn a_namespace_that_goes_says_what_it_keeps_from_an_erasure() {
    let mut c = Cluster::attached(json!({}));
    c.attach_to(&[]);
    c.settle();
    c.lets_go();
    c.settle();
    c.world.namespace_goes = true;
    c.delete(DeletionPolicy::Erase);
    let applies = c.applies;
    c.settle();
    c.is(READY, "False", Reason::NamespaceTerminating);
    assert!(c.message().contains("Retain"), "{}", c.message());
    assert_eq!(c.applies, applies, "nothing can be made there");
    c.delete(DeletionPolicy::Retain);
    c.settle();
    assert!(c.gone && c.keys.len() == 1);
}

#[test]
fn credentials_that_went_with_the_namespace_leave_the_key() {
    let mut c = Cluster::new(json!({"attachments": []}));
    c.settle();
    c.world.namespace_goes = true;
    c.delete(DeletionPolicy::Erase);
    c.broken = Some((false, problem(Reason::CredentialsSecretNotFound)));
    c.world.key = KeyState::NotAsked;
    c.settle();
    c.is(READY, "False", Reason::NamespaceTerminating);
    assert!(c.message().contains(KEY), "{}", c.message());
    // A key service that is away for a while is nothing to give up for.
    c.broken = Some((true, problem(Reason::KeyServiceUnavailable)));
    c.world.key = KeyState::NotAsked;
    c.settle();
    c.is(READY, "False", Reason::KeyServiceUnavailable);
    c.delete(DeletionPolicy::Retain);
    c.settle();
    assert!(c.gone && c.keys.len() == 1);
}
