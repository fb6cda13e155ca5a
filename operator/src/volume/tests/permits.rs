//! The life of a format permit.

use super::*;

fn interrupted() -> Cluster {
    let mut c = Cluster::new(json!({}));
    c.settle();
    c.spends();
    c.settle();
    c.fails(Stage::Header, Reason::FormatInterrupted);
    c.settle();
    c.is(READY, "False", Reason::FormatInterrupted);
    c
}

#[test]
fn a_new_permit_for_the_same_uuid_on_request() {
    let mut c = interrupted();
    let (uuid, old) = (
        c.status().luks_uuid.unwrap(),
        c.status().format_permit.unwrap().id,
    );
    c.annotate(names::NEW_PERMIT_ANNOTATION, &uuid);
    c.settle();
    let permit = c.nv().spec.format_permit.clone().unwrap();
    assert_eq!(permit.luks_uuid, uuid);
    assert_ne!(permit.id, old);
    assert!(
        c.nv().spec.formatted_before,
        "a node that has not seen the first one must know that there may be rests of it"
    );
    assert!(
        c.world
            .volume
            .metadata
            .annotations
            .as_ref()
            .unwrap()
            .is_empty()
    );
    // The receipt of the old permit does not spend the new one.
    c.report(|s| {
        s.permit = Some(PermitReceipt {
            id: old,
            spent_at: None,
        })
    });
    c.settle();
    assert_eq!(c.status().format_permit.unwrap().state, PermitState::Issued);
}

#[test]
fn no_new_permit_with_a_wrong_value() {
    let mut c = interrupted();
    c.annotate(names::NEW_PERMIT_ANNOTATION, "yes");
    c.settle();
    assert_eq!(c.status().format_permit.unwrap().state, PermitState::Spent);
    assert_eq!(c.told, ["FormatPermitRefused"]);
    assert!(
        c.world
            .volume
            .metadata
            .annotations
            .as_ref()
            .unwrap()
            .is_empty()
    );
}

#[test]
fn never_a_permit_for_a_volume_that_was_opened() {
    let mut c = Cluster::attached(json!({}));
    let uuid = c.status().luks_uuid.unwrap();
    c.annotate(names::NEW_PERMIT_ANNOTATION, &uuid);
    c.settle();
    assert_eq!(c.status().format_permit.unwrap().state, PermitState::Void);
    assert!(c.nv().spec.format_permit.is_none());
    // Opened, but the record of it is only in the node's report yet.
    let mut c = interrupted();
    let uuid = c.status().luks_uuid.unwrap();
    c.comes_up();
    c.annotate(names::NEW_PERMIT_ANNOTATION, &uuid);
    c.settle();
    assert_eq!(c.status().format_permit.unwrap().state, PermitState::Void);
    assert!(c.nv().spec.format_permit.is_none());
}

#[test]
fn a_missing_header_after_a_spent_permit_is_an_interrupted_format_on_any_node() {
    let mut c = interrupted();
    c.fails(Stage::Header, Reason::HeaderMissing);
    c.settle();
    c.is(READY, "False", Reason::FormatInterrupted);
    let mut c = Cluster::attached(json!({}));
    c.fails(Stage::Header, Reason::HeaderMissing);
    c.settle();
    c.is(READY, "False", Reason::HeaderMissing);
}

#[test]
fn format_never_has_no_permit() {
    let mut c = Cluster::new(json!({"key": {"secretRef": KEY}}));
    c.world.volume.spec.format = FormatPolicy::Never;
    c.keys.push(key(KEY));
    c.settle();
    assert_eq!(
        (c.status().format_permit, c.nv().spec.format_permit.clone()),
        (None, None)
    );
}
