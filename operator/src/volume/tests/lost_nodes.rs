//! Nodes that do not answer, or are gone.

use super::*;

fn moving_from(state: Option<NodeState>) -> Cluster {
    let mut c = Cluster::attached(json!({}));
    match state {
        Some(s) => c.world.nodes.insert("a".into(), s),
        None => c.world.nodes.remove("a"),
    };
    c.settle();
    c
}

#[test]
fn peer_failure_18_a_dead_node_with_the_volume_shows_and_keeps_it() {
    let mut c = moving_from(Some(NodeState {
        ready: false,
        ..node()
    }));
    c.is(READY, "Unknown", Reason::NodeNotReady);
    c.is(ATTACHED, "Unknown", Reason::NodeNotReady);
    c.attach_to(&["b"]);
    c.settle();
    c.is(READY, "False", Reason::NodeNotReady);
    assert_eq!(
        c.nv().spec.node_name,
        "a",
        "no double attachment, however long it takes"
    );
    c.world.nodes.insert("a".into(), node());
    c.lets_go();
    c.settle();
    assert_eq!(c.nv().spec.node_name, "b", "the node came back and let go");
}

#[test]
fn powered_off_by_word_of_a_person() {
    let mut c = moving_from(Some(NodeState {
        ready: false,
        out_of_service: true,
        ..node()
    }));
    assert_eq!(c.nv().spec.node_name, "a", "still wanted there");
    c.attach_to(&["b"]);
    c.settle();
    assert_eq!(c.nv().spec.node_name, "b");
    assert!(c.told.contains(&"ReleasedByHand"));
    // The taint alone is not enough: a node that is ready can answer.
    let mut c = moving_from(Some(NodeState {
        out_of_service: true,
        ..node()
    }));
    c.attach_to(&["b"]);
    c.settle();
    assert_eq!(c.nv().spec.node_name, "a");
}

#[test]
fn a_node_object_that_is_gone_proves_nothing() {
    let mut c = moving_from(None);
    c.is(READY, "Unknown", Reason::NodeGone);
    c.attach_to(&["b"]);
    c.annotate(names::NODE_GONE_ANNOTATION, "another");
    c.settle();
    assert_eq!(c.nv().spec.node_name, "a");
    c.is(READY, "False", Reason::NodeGone);
    c.annotate(names::NODE_GONE_ANNOTATION, "a");
    c.settle();
    assert_eq!(c.nv().spec.node_name, "b");
    assert!(
        c.world
            .volume
            .metadata
            .annotations
            .as_ref()
            .unwrap()
            .is_empty(),
        "acted upon, so removed"
    );
}
