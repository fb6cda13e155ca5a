//! What is told of a simulated node, and what is not.

use cryptvol_crds::v1alpha1::Desired;
use kube::api::DynamicObject;
use serde_json::json;

use super::{judge::*, *};
use crate::{
    host::{Host, sim::*},
    volume::tests::lab::*,
};

const NODE: &str = "node-1";

fn record_of(lab: &Lab, n: usize) -> Record {
    Record {
        node: NODE.to_owned(),
        ..record(&lab.volume(n))
    }
}

/// What a look finds that knows of these volumes.
fn belongings(world: &mut World, here: &[Record]) -> Belongings {
    let known: Vec<_> = here.iter().filter_map(|r| r.iqn.clone()).collect();
    world.belongings(&known).unwrap()
}

fn found(lab: &Lab, here: &[Record]) -> Vec<Suspect> {
    suspects(&belongings(&mut lab.world.borrow_mut(), here), here)
}

fn told(suspects: Vec<Suspect>, records: &[Record]) -> Vec<Orphan> {
    let tell = |s: Suspect| s.tell(records, NODE, "2026-11-29T08:00:00Z".to_owned());
    suspects.into_iter().filter_map(tell).collect()
}

fn kinds(suspects: &[Suspect]) -> Vec<OrphanKind> {
    suspects.iter().map(|s| s.kind).collect()
}

/// A volume that is attached and used, and another one beside it.
fn attached() -> Lab {
    let lab = Lab::new(2);
    lab.settle(1);
    lab.settle(2);
    lab
}

/// Whatever the agent died at, and whichever kind of source: what its volume has on the node is its volume's as long as the API has that,
/// and all of it is told once the API has it no more.
#[test]
fn all_that_a_killed_agent_left_is_told_when_the_volume_is_gone_and_nothing_while_it_is_there() {
    type Prepare = fn() -> Lab;
    let kinds: [(&str, Prepare); 4] = [
        ("iscsi", || Lab::new(1)),
        ("paths", || Lab::paths(Default::default(), 1)),
        ("local", || Lab::local(Default::default(), 1)),
        ("file", || Lab::file(Default::default(), 1)),
    ];
    for (kind, prepare) in kinds {
        let mut most = 0;
        for desired in [Desired::Attached, Desired::Detached] {
            for pause in 0.. {
                let lab = prepare();
                if desired == Desired::Detached {
                    lab.settle(1);
                    lab.want(1, Desired::Detached);
                }
                lab.pauses.set(0);
                lab.faults.borrow_mut().push((pause, Fault::Kill));
                if lab.run(1).is_some() {
                    break;
                }
                let here = [record_of(&lab, 1)];
                assert_eq!(found(&lab, &here), [], "{kind} {desired:?} {pause}");
                let suspects = found(&lab, &[]);
                let world = lab.world.borrow();
                let kernel = &world.kernel;
                let all = kernel.mappings.len()
                    + kernel.maps.len()
                    + world.links.len()
                    + kernel.sessions.len()
                    + kernel.devices.iter().filter(|d| d.file.is_some()).count();
                assert_eq!(
                    suspects.len(),
                    all,
                    "{kind} {desired:?} {pause}: {suspects:?}"
                );
                most = most.max(all);
            }
        }
        assert!(most >= 2, "{kind}: nothing was ever left");
    }
}

#[test]
fn what_is_of_others_is_never_told() {
    let lab = attached();
    let here = [record_of(&lab, 1), record_of(&lab, 2)];
    let mut world = lab.world.borrow_mut();
    // A mapping without our mark, under a name of ours too; a session of open-iscsi's own tools; one whose disk is mounted.
    let mut foreign = world.kernel.mappings[0].clone();
    foreign.mapping.uuid = "LVM-abc".to_owned();
    foreign.mapping.name = names::mapping_name(&uid(7));
    world.kernel.mappings.push(foreign);
    for (sid, foreign, mounted) in [(70, true, false), (71, false, true)] {
        world.kernel.sessions.push(SimSession {
            sid,
            iqn: "iqn.2026-11.com.example:other".to_owned(),
            portal: None,
            state: "LOGGED_IN".to_owned(),
            foreign,
        });
        let mut disk = world.kernel.devices[0].clone();
        (disk.sid, disk.in_use) = (sid, mounted);
        (disk.path, disk.dev) = (format!("/dev/sdx{sid}"), format!("65:{sid}"));
        world.kernel.devices.push(disk);
    }
    let found = belongings(&mut world, &here);
    assert_eq!(found.sessions.len(), 2);
    assert_eq!(suspects(&found, &here), []);
}

#[test]
fn a_volume_that_is_gone_leaves_a_mapping_and_a_link_and_the_message_has_all_of_it() {
    let lab = attached();
    let here = [record_of(&lab, 2)];
    let orphans = told(found(&lab, &here), &here);
    let link = Lab::link(1);
    assert_eq!(orphans.len(), 2, "{orphans:?}");
    let mapping = text(&orphans[0]);
    for part in [
        &*names::mapping_name(&uid(1)),
        &names::mapping_uuid(&luks_uuid(1), &uid(1)),
        "/dev/dm-0",
        " of session 1 to ",
        IQN,
        " through ",
        PORTALS[0],
        "since 2026-11-29T08:00:00Z",
        &format!("the volume with UID {}", uid(1)),
        &format!("dmsetup remove {}", names::mapping_name(&uid(1))),
    ] {
        assert!(mapping.contains(part), "{part}: {mapping}");
    }
    assert!(mapping.len() < 900, "{mapping}");
    assert_eq!(orphans[0].volume_uid, Some(uid(1)));
    assert!(text(&orphans[1]).contains(&format!("Link {link} to /dev/dm-0, since")));
    assert!(orphans[1].next_step.ends_with(&format!("rm {link}")));
    // Nothing was removed by looking.
    assert_eq!(lab.world.borrow().kernel.mappings.len(), 2);
}

#[test]
fn a_session_that_is_left_tells_its_target_and_how_to_end_it() {
    let lab = Lab::new(1);
    lab.settle(1);
    let left = found(&lab, &[]);
    assert_eq!(
        kinds(&left),
        [OrphanKind::Mapping, OrphanKind::Link, OrphanKind::Session]
    );
    let orphans = told(left, &[]);
    let what = format!("session 1 to {IQN} through {}", PORTALS[0]);
    assert_eq!(orphans[2].what, what);
    assert!(
        orphans[2]
            .next_step
            .ends_with("iscsiadm -m session -r 1 -u")
    );
    // A volume of another node with the same target says nothing of this node's session, one of this node's does.
    let mut other = record_of(&lab, 1);
    other.uid = uid(9);
    other.link = "/dev/cryptvol/other/vol".to_owned();
    let here = [other.clone()];
    assert!(
        told(found(&lab, &[]), &here)
            .iter()
            .all(|o| o.kind != OrphanKind::Session)
    );
    other.node = "node-2".to_owned();
    assert_eq!(told(found(&lab, &[]), &[other]).len(), 3);
}

/// Never the file: a volume may be wanted again, and what nobody wants may be somebody's data.
#[test]
fn a_loop_device_that_is_left_tells_its_file_and_is_a_volumes_by_its_file_or_its_mapping() {
    let lab = Lab::file(Default::default(), 1);
    lab.settle(1);
    let here = [record_of(&lab, 1)];
    assert_eq!(found(&lab, &here), []);
    let left = found(&lab, &[]);
    assert_eq!(
        kinds(&left),
        [OrphanKind::Mapping, OrphanKind::Link, OrphanKind::Loop]
    );
    let file = here[0].file.clone().unwrap();
    let orphans = told(left, &[]);
    assert_eq!(
        orphans[2].what,
        format!("loop device /dev/loop0 over the file {file}, used by dm-0")
    );
    let step = &orphans[2].next_step;
    assert!(step.ends_with("losetup -d /dev/loop0 (the file stays)"));
    // Its record says another file by now: what is below its mapping is its all the same. Without the mapping it is nobody's.
    let mut other = here[0].clone();
    other.file = Some(format!("{}/other.img", names::FILE_DIR));
    assert_eq!(found(&lab, &[other.clone()]), []);
    lab.world.borrow_mut().kernel.mappings.clear();
    let left = told(found(&lab, &[other.clone()]), &[other]);
    assert!(
        left.iter()
            .any(|o| o.kind == OrphanKind::Loop && !o.what.contains("used"))
    );
    // A volume of another node has a file of its own.
    let elsewhere = Record {
        node: "node-2".to_owned(),
        ..here[0].clone()
    };
    let left = told(found(&lab, &[]), &[elsewhere]);
    let looped = left.iter().find(|o| o.kind == OrphanKind::Loop).unwrap();
    assert!(looped.whose.starts_with("No NodeVolume of this node"));
}

#[test]
fn a_record_that_the_watch_has_not_shown_yet_counts() {
    let lab = attached();
    let here = [record_of(&lab, 2)];
    let all = [record_of(&lab, 1), record_of(&lab, 2)];
    assert_eq!(told(found(&lab, &here), &all), []);
}

#[test]
fn a_volume_on_record_for_another_node_is_named_before_anything_is_removed() {
    let lab = attached();
    let here = [record_of(&lab, 2)];
    let moved = Record {
        node: "node-of-old".to_owned(),
        ..record_of(&lab, 1)
    };
    let orphans = told(found(&lab, &here), &[here[0].clone(), moved]);
    let mapping = text(&orphans[0]);
    assert!(
        mapping.contains("has its volume on node node-of-old now"),
        "{mapping}"
    );
    assert!(
        mapping.contains("two nodes may write to one disk"),
        "{mapping}"
    );
    assert!(!mapping.contains("no NodeVolume"), "{mapping}");
}

#[test]
fn a_mapping_under_another_name_is_to_be_renamed_and_not_removed() {
    let lab = attached();
    "mine".clone_into(&mut lab.world.borrow_mut().kernel.mappings[0].mapping.name);
    let here = [record_of(&lab, 1), record_of(&lab, 2)];
    let orphans = told(found(&lab, &here), &here);
    assert_eq!(orphans.len(), 1);
    let rename = format!("dmsetup rename mine {}", names::mapping_name(&uid(1)));
    assert!(orphans[0].next_step.ends_with(&rename), "{orphans:?}");
    assert!(!orphans[0].next_step.contains("remove"));
}

#[test]
fn a_mark_without_a_volume_is_told_too() {
    let lab = attached();
    "CRYPTVOL-by-hand".clone_into(&mut lab.world.borrow_mut().kernel.mappings[0].mapping.uuid);
    let here = [record_of(&lab, 1), record_of(&lab, 2)];
    let orphans = told(found(&lab, &here), &here);
    assert_eq!(orphans.len(), 1);
    assert_eq!(orphans[0].volume_uid, None);
    assert!(orphans[0].whose.contains("by hand"), "{orphans:?}");
}

#[test]
fn it_is_told_at_the_second_look_once_and_again_when_it_changes_and_when_it_is_gone() {
    let lab = attached();
    let here = [record_of(&lab, 2)];
    let mut sight = Sight {
        told: Some(Orphans::default()),
        ..Sight::default()
    };
    let look = |sight: &mut Sight, lab: &Lab| {
        let found = belongings(&mut lab.world.borrow_mut(), &here);
        let (suspects, fresh) = sight.confirm(&found, &here);
        let before = sight.told.clone().unwrap().orphans;
        let now = describe(suspects, &before, &here, NODE);
        let changes = changes(&before, &now);
        sight.told = Some(list(now));
        (changes, fresh)
    };
    assert_eq!(look(&mut sight, &lab), (vec![], true), "the first look");
    let (second, fresh) = look(&mut sight, &lab);
    assert!(!fresh);
    let [Change::Found(mapping), Change::Found(_)] = &second[..] else {
        panic!("{second:?}")
    };
    assert_eq!(look(&mut sight, &lab), (vec![], false), "told already");

    // An agent that starts anew reads from the Node what was told: no second look, no second Event.
    let mut anew = Sight {
        told: sight.told.clone(),
        ..Sight::default()
    };
    assert_eq!(look(&mut anew, &lab), (vec![], false));

    // The disk below it went: another thing to know, of the same age.
    lab.world.borrow_mut().kernel.devices.retain(|d| d.lun != 1);
    let (changed, _) = look(&mut anew, &lab);
    let [Change::Found(other)] = &changed[..] else {
        panic!("{changed:?}")
    };
    assert!(other.what.contains("gone"), "{other:?}");
    assert_eq!(other.since, mapping.since);

    lab.world.borrow_mut().kernel.mappings.remove(0);
    let (gone, _) = look(&mut anew, &lab);
    assert_eq!(gone, [Change::Gone(other.clone())]);
}

#[test]
fn there_is_room_for_so_many_and_the_rest_is_counted() {
    let orphan = Orphan {
        kind: OrphanKind::Link,
        name: "n".into(),
        what: "w".into(),
        volume_uid: None,
        whose: "x".into(),
        next_step: "y".into(),
        since: "z".into(),
    };
    let full = list(vec![orphan; Orphans::MOST + 3]);
    assert_eq!((full.orphans.len(), full.more), (Orphans::MOST, 3));
    let text = serde_json::to_string(&full).unwrap();
    assert_eq!(serde_json::from_str::<Orphans>(&text).unwrap(), full);
    assert_eq!(
        serde_json::to_string(&list(vec![])).unwrap(),
        r#"{"orphans":[]}"#
    );
}

#[test]
fn a_node_volume_of_a_later_version_is_read_as_far_as_it_goes() {
    let object: DynamicObject = serde_json::from_value(json!({
        "apiVersion": "cryptvol.dev/v1alpha1", "kind": "NodeVolume", "metadata": {"name": "db-0.node-1", "namespace": "shop"},
        "spec": {"nodeName": "node-1", "volumeRef": {"uid": "u"}, "source": {"tape": {}}, "desired": "Sideways"},
    }))
    .unwrap();
    let read = tell::record(&object);
    assert_eq!(
        (&*read.display, &*read.node, &*read.uid),
        ("shop/db-0.node-1", "node-1", "u")
    );
    assert_eq!((&*read.link, read.iqn), ("", None));
}

#[test]
fn an_event_is_the_same_for_the_same_thing_and_fits_whatever_it_tells() {
    let lab = attached();
    let orphans = told(found(&lab, &[record_of(&lab, 2)]), &[]);
    let node = |name: &str| {
        serde_json::from_value(json!({"metadata": {"name": name, "uid": "n"}})).unwrap()
    };
    let event = |reason, o: &Orphan| tell::event(&node("node-1"), reason, o, &text(o));
    let first = event(Reason::OrphanFound, &orphans[0]);
    assert_eq!(
        first.metadata.name,
        event(Reason::OrphanFound, &orphans[0]).metadata.name
    );
    let gone = event(Reason::OrphanGone, &orphans[0]);
    assert_eq!(
        (first.type_.as_deref(), gone.type_.as_deref()),
        (Some("Warning"), Some("Normal"))
    );
    let others = [&gone, &event(Reason::OrphanFound, &orphans[1])].map(|e| e.metadata.name.clone());
    assert!(!others.contains(&first.metadata.name));
    let regarding = first.regarding.unwrap();
    assert_eq!(
        (regarding.kind.as_deref(), regarding.name.as_deref()),
        (Some("Node"), Some("node-1"))
    );
    // Long names of everything: an Event takes 1024 bytes, its name 253.
    let long = Orphan {
        what: "w".repeat(2000),
        ..orphans[0].clone()
    };
    let event = tell::event(
        &node(&"n.".repeat(126)),
        Reason::OrphanFound,
        &long,
        &text(&long),
    );
    assert!(event.note.unwrap().len() <= 1024);
    assert!(event.metadata.name.unwrap().len() <= 253);
    assert!(event.reporting_instance.unwrap().len() <= 128);
}
