//! What a project may have: over the limit nothing is made, and it goes on by itself when there is room.

use super::*;

fn over(limits: Limits, used: Usage, spec: serde_json::Value) -> Cluster {
    let mut c = Cluster::new(spec);
    c.limits = limits;
    c.world.used = used;
    let d = c.settle();
    c.is(READY, "False", Reason::QuotaExceeded);
    c.is(PROGRESSING, "False", Reason::QuotaExceeded);
    assert!(
        c.message().contains(Reason::QuotaExceeded.next_step()),
        "{}",
        c.message()
    );
    assert_eq!(d.again, Again::Backoff);
    c
}

fn three() -> (Limits, Usage) {
    let limits = Limits {
        volumes: Some(3),
        ..Limits::default()
    };
    let used = Usage {
        volumes: 3,
        ..Usage::default()
    };
    (limits, used)
}

#[test]
fn over_the_limit_nothing_is_made() {
    let (limits, used) = three();
    let keys = Limits {
        keys: Some(2),
        ..Limits::default()
    };
    let used_keys = Usage {
        keys: 2,
        ..Usage::default()
    };
    for (limits, used) in [(limits, used), (keys, used_keys)] {
        let mut c = over(limits, used, json!({}));
        c.is(KEY_READY, "False", Reason::QuotaExceeded);
        c.is(CREDENTIALS_VALID, "True", Reason::AsDesired);
        let status = c.status();
        assert!(
            status.luks_uuid.is_none() && status.key.is_none() && status.format_permit.is_none()
        );
        assert_eq!((c.keys_made, c.applies), (0, 0));
        let writes = c.status_writes;
        c.settle();
        assert_eq!(c.status_writes, writes, "the same refusal is written once");
        // Room was made, or the limit raised: it goes on.
        c.world.used = Usage::default();
        c.world.key = KeyState::NotAsked;
        c.settle();
        assert_eq!((c.keys_made, c.applies), (1, 1));
    }
}

#[test]
fn a_key_that_somebody_else_made_is_not_counted_and_its_volume_is() {
    let limits = Limits {
        keys: Some(0),
        ..Limits::default()
    };
    let spec = json!({"key": {"secretRef": KEY}});
    let mut c = Cluster::new(spec.clone());
    c.limits = limits;
    c.keys.push(key(KEY));
    c.settle();
    assert_eq!((c.keys_made, c.applies), (0, 1));
    let (limits, used) = three();
    let mut c = Cluster::new(spec);
    (c.limits, c.world.used) = (limits, used);
    c.keys.push(key(KEY));
    c.settle();
    c.is(READY, "False", Reason::QuotaExceeded);
    assert_eq!((c.applies, c.status().key), (0, None));
}

#[test]
fn what_is_up_stays_up_and_a_size_over_the_limit_is_not_handed_over_again() {
    let mut c = Cluster::attached(json!({}));
    // Lowered under a volume that is attached: nothing is taken away.
    c.limits.gibibytes = Some(1);
    c.limits.volumes = Some(0);
    c.world.used = Usage {
        volumes: 5,
        bytes: 1,
        keys: 5,
    };
    c.world.key = c.ask();
    c.settle();
    c.is(READY, "True", Reason::AsDesired);
    c.attach_to(&[]);
    c.settle();
    c.lets_go();
    c.settle();
    c.attach_to(&["b"]);
    let applies = c.applies;
    c.settle();
    c.is(READY, "False", Reason::QuotaExceeded);
    c.is(ATTACHED, "False", Reason::QuotaExceeded);
    c.is(KEY_READY, "True", Reason::AsDesired);
    assert_eq!(c.applies, applies, "nothing is handed over");
    c.world.used.bytes = 0;
    c.settle();
    assert_eq!(c.applies, applies + 1);
}

#[test]
fn a_file_is_made_longer_as_far_as_there_is_room_and_is_told_when_not() {
    let file = |size: &str| json!({"file": {"path": "/var/lib/cryptvol/volumes/v", "size": size}});
    let mut c = Cluster::attached(json!({"source": file("1Gi")}));
    let told = |c: &Cluster| c.nv().spec.source.file.clone().unwrap().size_bytes;
    let raise = |c: &mut Cluster, size: &str| {
        c.world.volume.spec.source = serde_json::from_value(file(size)).unwrap();
        c.world.volume.metadata.generation = c.world.volume.metadata.generation.map(|g| g + 1);
        let before = c.status();
        let again = c.settle().again;
        let notes = crate::volume::transitions::between(&before, &c.status());
        let refused = notes.into_iter().find(|n| n.reason == "QuotaExceeded");
        (again, refused.map(|n| n.text))
    };
    assert_eq!(told(&c), 1 << 30);
    c.limits.gibibytes = Some(5);
    c.world.used.bytes = 2 << 30;
    c.world.key = c.ask();
    let (again, refused) = raise(&mut c, "4Gi");
    let refused = refused.unwrap();
    assert!(
        refused.contains("source.file.size cannot be raised")
            && refused
                .contains("may have 5 gibibytes, the other volumes have 2, and this one needs 4"),
        "{refused}"
    );
    assert_eq!((told(&c), again), (1 << 30, Again::Backoff));
    c.is(READY, "True", Reason::AsDesired);
    let writes = c.status_writes;
    c.settle();
    assert_eq!(c.status_writes, writes, "the same refusal is written once");
    // Nobody says what there is room for.
    c.world.used.bytes = 0;
    c.broken = Some((false, problem(Reason::KeyServiceUnavailable)));
    c.world.key = c.ask();
    c.settle();
    assert_eq!(told(&c), 1 << 30);
    // There is room; and what a node was told stays told, whatever comes.
    c.broken = None;
    c.world.key = c.ask();
    c.settle();
    assert_eq!(told(&c), 4 << 30);
    c.world.used.bytes = 5 << 30;
    c.settle();
    assert_eq!(told(&c), 4 << 30);
    c.is(READY, "True", Reason::AsDesired);
    c.report(|s| s.device.as_mut().unwrap().size_bytes = 4 << 30);
    c.settle();
    assert_eq!(c.status().size_bytes, Some(4 << 30));
    // Too much, and lowered again to what there is.
    let (_, refused) = raise(&mut c, "6Gi");
    assert!(refused.is_some());
    assert_eq!(told(&c), 4 << 30);
    c.world.used = Usage::default();
    raise(&mut c, "4Gi");
    assert_eq!(told(&c), 4 << 30);
}

#[test]
fn a_file_with_authenticated_sectors_stays_as_long_as_it_is_and_says_so() {
    let file = |size: &str| {
        let file = json!({"file": {"path": "/var/lib/cryptvol/volumes/v", "size": size}});
        serde_json::from_value(file).unwrap()
    };
    let mut c = Cluster::attached(json!({}));
    c.world.volume.spec.source = file("1Gi");
    c.settle();
    let status = c.world.volume.status.as_mut().unwrap();
    let facts = status.header.as_mut().unwrap();
    facts.integrity = Some(IntegrityFacts {
        kind: Integrity::HmacSha256,
        data_bytes: 900 << 20,
    });
    let facts = facts.clone();
    c.report(|s| s.header = Some(facts));
    c.world.volume.spec.source = file("2Gi");
    c.settle();
    c.is(READY, "True", Reason::AsDesired);
    let told = c.nv().spec.source.file.clone().unwrap().size_bytes;
    let error = c.status().last_error.unwrap();
    assert_eq!((told, error.reason.as_str()), (1 << 30, "GrowUnsupported"));
}

#[test]
fn a_disk_that_grew_below_authenticated_sectors_is_told_and_changes_nothing() {
    let mut c = Cluster::attached(json!({}));
    let facts = |c: &mut Cluster| {
        let facts = c.world.volume.status.as_mut().unwrap();
        let facts = facts.header.as_mut().unwrap();
        // As Linux 6.1 lays it out on 128 MiB.
        facts.integrity = Some(IntegrityFacts {
            kind: Integrity::HmacSha256,
            data_bytes: 213_008 * 512,
        });
        (facts.data_offset, facts.sector_size) = (16 << 20, 512);
        facts.clone()
    };
    let facts = facts(&mut c);
    c.world.volume.status.as_mut().unwrap().size_bytes = None;
    let size = |c: &mut Cluster, bytes: i64| {
        c.report(|s| {
            s.header = Some(facts.clone());
            s.device.as_mut().unwrap().size_bytes = bytes;
        });
        c.settle();
        assert_eq!(c.status().size_bytes, Some(bytes));
        c.is(READY, "True", Reason::AsDesired);
        let error = c.status().last_error;
        error.filter(|e| e.reason == "GrowUnsupported")
    };
    assert_eq!(size(&mut c, 128 << 20), None);
    let message = size(&mut c, 256 << 20).unwrap().message;
    assert!(message.contains("has 268435456 bytes"), "{message}");
    assert!(
        message.ends_with(Reason::GrowUnsupported.next_step()),
        "{message}"
    );
}

#[test]
fn deletion_asks_for_no_limit() {
    let (limits, used) = three();
    let mut c = over(limits, used, json!({}));
    c.delete(DeletionPolicy::Erase);
    c.settle();
    assert!(c.gone);
}
