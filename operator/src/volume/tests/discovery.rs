//! Portals that the array tells of: what is said of them, and when.

use cryptvol_crds::{conditions::PORTALS_DISCOVERED, v1alpha1::DiscoveryStatus};

use super::*;
use crate::volume::transitions;

fn words(c: &mut Cluster, found: Option<DiscoveryStatus>) -> Vec<String> {
    let before = c.status();
    c.report(|s| s.discovery = found);
    c.settle();
    let notes = transitions::between(&before, &c.status());
    notes.into_iter().map(|n| n.reason).collect()
}

fn found(portals: &[&str], ignored: &[&str]) -> DiscoveryStatus {
    let texts = |list: &[&str]| list.iter().map(|t| (*t).to_owned()).collect();
    DiscoveryStatus {
        portals: texts(portals),
        ignored: texts(ignored),
        error: None,
    }
}

fn said(c: &Cluster) -> String {
    let status = c.status();
    get(&status.conditions, PORTALS_DISCOVERED)
        .unwrap()
        .message
        .clone()
}

#[test]
fn what_was_found_and_what_is_not_used_is_a_condition_and_one_event() {
    let mut c = Cluster::attached(json!({}));
    assert!(get(&c.status().conditions, PORTALS_DISCOVERED).is_none());
    let failed = |reason: Reason, what: &str| {
        let error = LastError {
            reason: reason.as_str().to_owned(),
            message: message(reason, what),
            time: Time(Timestamp::UNIX_EPOCH),
        };
        Some(DiscoveryStatus {
            error: Some(error),
            ..found(&["192.0.2.2:3260"], &[])
        })
    };
    let rejected = failed(Reason::DiscoveryRejected, "portal 192.0.2.1:3260 refuses");
    assert_eq!(words(&mut c, rejected.clone()), ["DiscoveryRejected"]);
    c.is(PORTALS_DISCOVERED, "False", Reason::DiscoveryRejected);
    c.is(READY, "True", Reason::AsDesired);
    let text = said(&c);
    assert!(text.contains("192.0.2.1:3260 refuses"), "{text}");
    assert_eq!(
        text.matches(Reason::DiscoveryRejected.next_step()).count(),
        1
    );
    assert!(words(&mut c, rejected).is_empty());
    let away = failed(Reason::DiscoveryFailed, "no TCP connection");
    assert_eq!(words(&mut c, away), ["DiscoveryFailed"]);

    let two = found(
        &["192.0.2.2:3260"],
        &["127.0.0.1:3260 (an address of the node itself)"],
    );
    assert_eq!(words(&mut c, Some(two.clone())), ["PortalsDiscovered"]);
    c.is(PORTALS_DISCOVERED, "True", Reason::AsDesired);
    let text = said(&c);
    for part in [
        "192.0.2.2:3260",
        "127.0.0.1:3260 (an address of the node itself)",
    ] {
        assert!(text.contains(part), "{text}");
    }
    assert!(words(&mut c, Some(two)).is_empty());
    let more = found(&["192.0.2.2:3260", "192.0.2.3:3260"], &[]);
    assert_eq!(words(&mut c, Some(more)), ["PortalsDiscovered"]);
    assert!(words(&mut c, None).is_empty());
    c.is(PORTALS_DISCOVERED, "Unknown", Reason::Waiting);
}
