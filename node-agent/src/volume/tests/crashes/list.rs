//! The list of ways is what it seems to be: none is lost, none takes nothing but looks, and each comes by what it is named after.

use std::collections::{BTreeMap, BTreeSet};

use cryptvol_crds::v1alpha1::Desired;

use super::{
    judge::prepared,
    ways::{Way, ways},
};

/// Steps with a middle in which the agent is killed as well.
const TORN: &[&str] = &[
    "format",
    "open",
    "gather",
    "lengthen-file",
    "suspend",
    "drop-key-slots",
    "restore-header",
    "erase",
    "clear-header",
];

/// The places, by name, at which a way can be cut, with how often it comes by each.
fn places(way: &Way) -> BTreeMap<String, usize> {
    let lab = prepared(way);
    let begin = lab.names.borrow().len();
    lab.want(1, way.desired);
    lab.settle(1);
    let mut places = BTreeMap::new();
    for name in &lab.names.borrow()[begin..] {
        *places.entry(name.clone()).or_default() += 1;
    }
    places
}

/// What a way of this name has to come by.
fn steps_of(way: &Way) -> Vec<&'static str> {
    let (name, has) = (way.name, |part: &str| way.name.contains(part));
    let plan = name.split(',').next().unwrap_or_default();
    let mut steps = match plan {
        "first attach" | "first attach by name" => vec!["open", "link"],
        "attach" | "attach anew" | "attach and grow" | "import" => vec!["open", "link"],
        "detach" | "detach suspended" | "detach closed" | "detach by name" => vec!["close"],
        "erase attached" | "erase suspended" | "erase by name" => vec!["close"],
        "suspend" => vec!["suspend"],
        "resume" => vec!["resume"],
        "grow" => vec!["grow"],
        "prove" => vec!["sample"],
        "close what is plaintext" => vec!["sample", "suspend"],
        "reopen what was closed" => vec!["resume", "sample"],
        "restore the header" => vec!["restore-header", "open"],
        "rotate" | "rotate suspended" if has("header apart") => vec!["header-record"],
        "rotate" | "rotate suspended" => vec!["add-key-slot", "drop-key-slots"],
        "begin anew after a power cut" => vec!["open", "link"],
        "make a zombie anew" | "find a disk anew that is off line" => vec!["close", "open"],
        "take a zombie down" => vec!["close"],
        "a path comes back" | "controllers change places" => vec!["gather"],
        "detach after a power cut" | "erase detached" => vec![],
        other => panic!("what is {other:?}?"),
    };
    let (up, from_nothing) = (
        way.desired == Desired::Attached,
        plan.starts_with("first attach") || plan.starts_with("attach"),
    );
    if way.formats {
        steps.push("format");
    }
    if up && from_nothing && has("paths") {
        steps.push("gather");
    }
    if up && from_nothing && has("discovered") {
        steps.extend(["discover", "gather"]);
    }
    if up && from_nothing && has("CHAP") {
        steps.extend(["login", "chap release"]);
    }
    if has("by name") {
        steps.push("name");
    }
    if plan == "first attach" && has("file") {
        steps.extend(["make-file", "attach-file"]);
    }
    if has("scratch file") && way.desired != Desired::Attached || has("erase") && has(", file") {
        steps.push("remove-file");
    }
    if plan == "attach and grow" || has("grow, file") {
        steps.push("lengthen-file");
    }
    if way.desired == Desired::Erased && way.slots() {
        steps.extend(["erase", "clear-header"]);
    }
    steps
}

#[test]
fn every_way_comes_by_what_it_is_named_after() {
    let names: BTreeSet<_> = ways().map(|w| w.name).collect();
    assert_eq!(names.len(), ways().count(), "two ways of one name");
    assert_eq!(names.len(), 193, "a way is lost, or the number is");
    let (mut all, mut missing) = (BTreeSet::new(), Vec::new());
    for way in ways() {
        let places = places(way);
        for step in steps_of(way) {
            let mut wanted = vec![format!("before {step}")];
            // A secret of a session is no step.
            if !step.ends_with("chap release") {
                wanted.push(format!("after {step}"));
            }
            if TORN.contains(&step) {
                wanted.extend(["Early", "Slot", "Late"].map(|part| format!("{step} {part}")));
            }
            wanted.retain(|place| !places.contains_key(place));
            missing.extend(wanted.into_iter().map(|place| (way.name, place)));
        }
        let acts = |n: &&String| n.starts_with("after ") && !n.ends_with("observe");
        if !places.keys().any(|n| acts(&n)) {
            missing.push((way.name, "an act".to_owned()));
        }
        all.extend(places.into_keys());
    }
    assert!(missing.is_empty(), "{missing:#?}");
    let parts = all.iter().filter(|n| n.ends_with(" Late")).count();
    assert_eq!(parts, TORN.len(), "{all:?}");
}
