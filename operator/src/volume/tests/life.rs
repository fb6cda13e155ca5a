//! A volume that fares well.

use super::*;

#[test]
fn a_volume_comes_up_with_few_writes_and_then_none() {
    let mut c = Cluster::new(json!({}));
    let d = c.settle();
    assert_eq!(d.again, Again::Long, "the agent acts now");
    assert_eq!((c.keys_made, c.status_writes, c.applies), (1, 2, 1));
    c.is(CREDENTIALS_VALID, "True", Reason::AsDesired);
    c.is(KEY_READY, "True", Reason::AsDesired);
    c.is(READY, "False", Reason::InProgress);
    c.is(PROGRESSING, "True", Reason::InProgress);
    let nv = c.nv().clone();
    assert_eq!(nv.metadata.name.as_deref(), Some("v.a"));
    assert_eq!(
        nv.spec.source.iscsi.as_ref().unwrap().portals,
        ["192.0.2.1:3260"]
    );
    assert_eq!(nv.spec.link, "/dev/cryptvol/t/v");
    assert_eq!(
        nv.metadata.finalizers.as_deref(),
        Some(&[names::NODE_VOLUME_FINALIZER.to_owned()][..])
    );
    assert_eq!(
        nv.metadata.owner_references.as_ref().unwrap()[0].uid,
        "uid-v"
    );
    assert!(nv.spec.format_permit.is_some());

    c.spends();
    c.settle();
    assert_eq!(c.status().format_permit.unwrap().state, PermitState::Spent);
    assert!(c.nv().spec.format_permit.is_none() && c.nv().spec.formatted_before);

    c.comes_up();
    c.settle();
    for type_ in [
        READY,
        ATTACHED,
        DEVICE_VERIFIED,
        HEADER_VERIFIED,
        KEY_READY,
        CREDENTIALS_VALID,
    ] {
        c.is(type_, "True", Reason::AsDesired);
    }
    c.is(PROGRESSING, "False", Reason::AsDesired);
    let s = c.status();
    assert_eq!(
        (s.size_bytes, s.wwid.as_deref(), s.usable_bytes),
        (Some(1 << 30), Some("w1"), Some((1 << 30) - (16 << 20)))
    );
    assert_eq!(s.format_permit.unwrap().state, PermitState::Void);
    assert_eq!(s.attachments[0].link.as_deref(), Some("/dev/cryptvol/t/v"));
    assert_eq!(
        c.nv().spec.wwid.as_deref(),
        Some("w1"),
        "pins go down to the node"
    );
    assert_eq!(c.nv().spec.header, s.header);
    assert_eq!(s.last_error, None);

    let writes = (c.status_writes, c.applies);
    c.report(|_| {});
    let d = c.settle();
    assert_eq!(
        (c.status_writes, c.applies),
        writes,
        "an idle volume writes nothing"
    );
    assert_eq!(d.again, Again::Seldom);
}

#[test]
fn peer_failure_10_moving_waits_for_the_old_node() {
    let mut c = Cluster::attached(json!({}));
    c.attach_to(&["b"]);
    c.settle();
    assert_eq!(
        (c.nv().spec.node_name.as_str(), c.nv().spec.desired),
        ("a", Desired::Detached)
    );
    c.is(READY, "False", Reason::InProgress);
    // An earlier report of Detached is not one about this generation.
    c.world.node_volumes[0].status.as_mut().unwrap().stage = Stage::Detached;
    c.world.node_volumes[0]
        .status
        .as_mut()
        .unwrap()
        .observed_generation = Some(1);
    c.settle();
    assert_eq!(c.nv().spec.node_name, "a");
    c.lets_go();
    c.settle();
    assert_eq!(
        (c.nv().spec.node_name.as_str(), c.nv().spec.desired),
        ("b", Desired::Attached)
    );
    assert!(
        c.nv().spec.format_permit.is_none() && c.nv().spec.formatted_before,
        "no permit on the second node"
    );
    assert!(c.nv().spec.header.is_some() && c.nv().spec.size_bytes.is_some());
    assert_eq!(c.keys_made, 1);
}

#[test]
fn detaching_and_attaching_again() {
    let mut c = Cluster::attached(json!({}));
    c.attach_to(&[]);
    c.settle();
    c.lets_go();
    c.settle();
    assert!(c.world.node_volumes.is_empty());
    for type_ in [READY, PROGRESSING, ATTACHED] {
        c.is(type_, "False", Reason::Detached);
    }
    c.attach_to(&["a"]);
    c.settle();
    assert!(c.nv().spec.format_permit.is_none());
}

#[test]
fn a_permit_that_was_not_spent_goes_with_the_volume_to_the_next_node() {
    let mut c = Cluster::new(json!({}));
    c.settle();
    let first = c.nv().spec.format_permit.clone();
    c.attach_to(&["b"]);
    c.settle();
    assert!(
        c.nv().spec.format_permit.is_none(),
        "taken back from the old node first"
    );
    c.lets_go();
    c.settle();
    assert_eq!(c.nv().spec.format_permit, first);
}

#[test]
fn an_existing_disk_is_imported_by_its_header() {
    let mut c = Cluster::new(json!({"format": "Never", "key": {"secretRef": KEY}}));
    c.keys.push(key(KEY));
    c.settle();
    assert_eq!(
        (&c.nv().spec.luks_uuid, &c.nv().spec.format_permit),
        (&None, &None)
    );
    assert!(!c.status().key.unwrap().generated);
    let header = HeaderFacts {
        luks_uuid: "theirs".into(),
        sector_size: 4096,
        ..c.header()
    };
    c.report(|s| {
        s.stage = Stage::Header;
        s.header = Some(header.clone());
        s.derivations = vec!["pbkdf2 sha512 2000000".into()];
        s.device = Some(DeviceStatus {
            path: "/dev/sda".into(),
            wwid: None,
            size_bytes: 7,
        });
    });
    c.settle();
    assert_eq!(c.nv().spec.luks_uuid.as_deref(), Some("theirs"));
    assert_eq!(c.nv().spec.header.as_ref(), Some(&header));
    assert_eq!(c.nv().spec.derivations, ["pbkdf2 sha512 2000000"]);
    // A header that is another one pins nothing; after a rotation the same one says what its slots are by now.
    let derives = |c: &mut Cluster, header: &HeaderFacts, ways: &[&str]| {
        c.report(|s| {
            s.header = Some(header.clone());
            s.derivations = ways.iter().map(|w| (*w).to_owned()).collect();
        });
        c.settle();
        c.nv().spec.derivations.clone()
    };
    let other = HeaderFacts {
        digest: "other".into(),
        ..header.clone()
    };
    let before = ["pbkdf2 sha512 2000000"];
    assert_eq!(derives(&mut c, &other, &["pbkdf2 sha1 1000"]), before);
    assert_eq!(derives(&mut c, &header, &[]), before);
    let rotated = ["pbkdf2 sha256 1000"];
    assert_eq!(derives(&mut c, &header, &rotated), rotated);
    assert_eq!(c.status().format_permit, None);
}

#[test]
fn a_disk_without_a_header_is_imported_under_a_uuid_of_the_record_and_without_a_permit() {
    let mut c = Cluster::new(json!({"format": "Never", "key": {"secretRef": KEY}}));
    c.world.encryption = Ok(Encryption {
        provider: Provider::Plain,
        hash: Some(PlainHash::Ripemd160),
        ..Encryption::default()
    });
    c.keys.push(key(KEY));
    c.settle();
    let spec = c.nv().spec.clone();
    assert!(spec.luks_uuid.is_some());
    assert_eq!(
        (&spec.luks_uuid, &spec.format_permit),
        (&c.status().luks_uuid, &None)
    );
    assert_eq!(c.status().format_permit, None);
    // What is pinned counts from then on, whatever becomes of the class.
    let facts = HeaderFacts {
        provider: Provider::Plain,
        hash: Some(PlainHash::Ripemd160),
        luks_uuid: spec.luks_uuid.clone().unwrap(),
        digest: String::new(),
        data_offset: 0,
        ..c.header()
    };
    c.report(|s| {
        s.stage = Stage::Mapping;
        s.header = Some(facts.clone());
        s.first_opened = Some(Time(at(1)));
    });
    c.world.encryption = Ok(Encryption::default());
    c.settle();
    assert_eq!(c.status().header.as_ref(), Some(&facts));
    let encryption = crate::volume::decide::encryption(&c.world, &c.status()).unwrap();
    assert_eq!(encryption.provider, Provider::Plain);
    assert_eq!(encryption.hash, Some(PlainHash::Ripemd160));
}

#[test]
fn authenticated_sectors_are_wanted_for_good() {
    let mut c = Cluster::new(json!({}));
    let kind = Integrity::HmacSha256;
    c.world.encryption = Ok(Encryption {
        integrity: Some(kind),
        ..Encryption::default()
    });
    c.keys.push(key(KEY));
    c.settle();
    assert_eq!(c.nv().spec.encryption.integrity, Some(kind));
    let facts = HeaderFacts {
        integrity: Some(IntegrityFacts {
            kind,
            data_bytes: 900 << 20,
        }),
        ..c.header()
    };
    c.report(|s| {
        s.stage = Stage::Mapping;
        s.header = Some(facts.clone());
        s.first_opened = Some(Time(at(1)));
    });
    // Whatever becomes of the class.
    c.world.encryption = Ok(Encryption::default());
    c.settle();
    assert_eq!(c.status().header.as_ref(), Some(&facts));
    assert_eq!(c.nv().spec.encryption.integrity, Some(kind));
    assert_eq!(c.nv().spec.header.as_ref(), Some(&facts));
}

#[test]
fn without_encryption_nobody_is_asked_for_a_key_and_the_volume_says_what_it_is() {
    let mut c = Cluster::new(json!({}));
    c.world.encryption = Ok(Encryption {
        provider: Provider::PassThrough,
        ..Encryption::default()
    });
    c.world.key_service = Err(Problem::new(
        Reason::KeyServiceNotFound,
        "there is no KeyService",
    ));
    c.settle();
    assert_eq!((c.keys_made, c.status().key), (0, None));
    c.is(ENCRYPTED, "False", Reason::NotEncrypted);
    c.is(KEY_READY, "Unknown", Reason::NotEncrypted);
    let facts = HeaderFacts {
        provider: Provider::PassThrough,
        luks_uuid: c.status().luks_uuid.unwrap(),
        sector_size: 512,
        ..HeaderFacts::default()
    };
    c.comes_up();
    c.report(|s| s.header = Some(facts.clone()));
    c.settle();
    c.is(READY, "True", Reason::AsDesired);
    assert_eq!(c.status().header, Some(facts));
    // It stays what it is, whatever becomes of the class.
    c.world.encryption = Ok(Encryption::default());
    c.settle();
    c.is(ENCRYPTED, "False", Reason::NotEncrypted);
    assert_eq!(c.status().key, None);
    // Nothing closes what is on the disk.
    c.delete(DeletionPolicy::Erase);
    c.settle();
    c.lets_go();
    c.settle();
    c.is(READY, "False", Reason::EraseBlocked);
    c.delete(DeletionPolicy::Retain);
    c.settle();
    assert!(c.gone && c.keys_made == 0);
}

#[test]
fn erasure_of_what_is_not_encrypted_is_refused_before_the_disk_is_used() {
    let mut c = Cluster::new(json!({"deletionPolicy": "Erase"}));
    c.world.encryption = Ok(Encryption {
        provider: Provider::PassThrough,
        ..Encryption::default()
    });
    c.settle();
    c.is(READY, "False", Reason::EraseBlocked);
    assert!(c.world.node_volumes.is_empty());
    c.delete(DeletionPolicy::Erase);
    c.settle();
    assert!(c.gone);
}

#[test]
fn a_header_that_is_not_the_one_on_record_is_not_ready() {
    let mut c = Cluster::attached(json!({}));
    c.report(|s| s.header.as_mut().unwrap().digest = "another volume key".into());
    c.settle();
    c.is(READY, "False", Reason::HeaderMismatch);
    c.is(HEADER_VERIFIED, "False", Reason::HeaderMismatch);
    assert_eq!(c.status().header.unwrap().digest, "d", "the pin stays");
}

#[test]
fn a_wrong_disk_is_not_pinned() {
    let mut c = Cluster::new(json!({}));
    c.settle();
    c.report(|s| {
        s.device = Some(DeviceStatus {
            path: "/dev/sda".into(),
            wwid: Some("wrong".into()),
            size_bytes: 7,
        })
    });
    c.fails(Stage::Header, Reason::ForeignSignature);
    c.settle();
    c.is(READY, "False", Reason::ForeignSignature);
    assert_eq!((c.status().wwid, c.status().size_bytes), (None, None));
    c.spends();
    c.comes_up();
    c.settle();
    assert_eq!(c.status().wwid.as_deref(), Some("w1"));
    assert_eq!(
        c.status().last_error.unwrap().reason,
        "ForeignSignature",
        "the last error stays"
    );
}

#[test]
fn a_node_volume_that_somebody_deletes_is_taken_down_and_made_again() {
    let mut c = Cluster::attached(json!({}));
    c.world.node_volumes[0].metadata.deletion_timestamp = Some(Time(at(50)));
    c.settle();
    assert_eq!(c.nv().spec.desired, Desired::Detached);
    c.lets_go();
    c.settle();
    assert_eq!(c.nv().spec.desired, Desired::Attached);
    assert!(c.nv().status.is_none(), "a new object");
}
