//! A volume with several paths: what is told of those that do not work.

use cryptvol_crds::{conditions::PATHS_HEALTHY, v1alpha1::PathStatus};

use super::*;
use crate::volume::transitions::{self, Note};

/// What the agent says of each path: nothing where it is up, otherwise why not.
fn paths(why: [&str; 2]) -> Vec<PathStatus> {
    let path = |(n, why): (usize, &str)| PathStatus {
        portal: format!("192.0.2.{n}:3260"),
        up: why.is_empty(),
        why: (!why.is_empty()).then(|| why.to_owned()),
        ..PathStatus::default()
    };
    why.into_iter().enumerate().map(path).collect()
}

fn told(c: &mut Cluster, why: [&str; 2]) -> Vec<Note> {
    let before = c.status();
    c.report(|s| s.paths = paths(why));
    c.settle();
    transitions::between(&before, &c.status())
}

fn words(notes: &[Note]) -> Vec<&str> {
    notes.iter().map(|n| n.reason.as_str()).collect()
}

#[test]
fn a_path_that_goes_is_a_condition_and_one_event() {
    let mut c = Cluster::attached(json!({}));
    assert!(get(&c.status().conditions, PATHS_HEALTHY).is_none());
    assert!(told(&mut c, ["", ""]).is_empty(), "nothing happened");
    c.is(PATHS_HEALTHY, "True", Reason::AsDesired);

    let notes = told(&mut c, ["", "no session"]);
    assert_eq!(words(&notes), ["PathsDegraded"]);
    assert!(notes[0].warning);
    c.is(PATHS_HEALTHY, "False", Reason::PathsDegraded);
    c.is(READY, "True", Reason::AsDesired);
    let message = |c: &Cluster| {
        let status = c.status();
        get(&status.conditions, PATHS_HEALTHY)
            .unwrap()
            .message
            .clone()
    };
    let said = message(&c);
    assert!(
        said.contains("1 of 2 paths is down: 192.0.2.1:3260 (no session)"),
        "{said}"
    );
    assert!(said.ends_with(Reason::PathsDegraded.next_step()), "{said}");

    // It is the same path, whatever the look at it says this time.
    assert!(told(&mut c, ["", "no session: refused"]).is_empty());
    assert!(message(&c).contains("no session: refused"));

    // The other one instead, then both, then the first is back, then all.
    assert_eq!(
        words(&told(&mut c, ["its disk is gone", ""])),
        ["PathsDegraded"]
    );
    assert_eq!(
        words(&told(&mut c, ["no session", "no session"])),
        ["PathsLost"]
    );
    c.is(PATHS_HEALTHY, "False", Reason::PathsLost);

    // No path came back in time.
    c.report(|s| s.io_fails = true);
    let before = c.status();
    c.settle();
    c.is(PATHS_HEALTHY, "False", Reason::PathsFailing);
    let notes = transitions::between(&before, &c.status());
    assert_eq!(words(&notes), ["PathsFailing"]);
    c.report(|s| s.io_fails = false);
    assert_eq!(words(&told(&mut c, ["", "no session"])), ["PathsDegraded"]);
    let notes = told(&mut c, ["", ""]);
    assert_eq!(words(&notes), ["PathsHealthy"]);
    assert!(!notes[0].warning);
    c.is(PATHS_HEALTHY, "True", Reason::AsDesired);

    // Off the node nobody knows.
    c.attach_to(&[]);
    c.settle();
    c.lets_go();
    let before = c.status();
    c.settle();
    c.is(PATHS_HEALTHY, "Unknown", Reason::Waiting);
    assert_eq!(
        words(&transitions::between(&before, &c.status())),
        ["Detached"]
    );
}

#[test]
fn a_volume_that_was_attached_by_one_path_of_two_says_so_at_once() {
    let mut c = Cluster::attached(json!({}));
    assert_eq!(words(&told(&mut c, ["no session", ""])), ["PathsDegraded"]);
}
