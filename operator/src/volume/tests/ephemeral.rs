//! Volumes whose key is random: nobody is asked for one, and that data went is told once.

use super::*;

#[test]
fn nobody_is_asked_for_a_key_and_the_node_gets_a_scratch_file() {
    let mut c = Cluster::new(json!({"source": {"ephemeral": {"size": "1Gi"}}}));
    c.world.key_service = Err(Problem::new(
        Reason::KeyServiceNotFound,
        "there is no KeyService",
    ));
    c.settle();
    let spec = c.world.node_volumes[0].spec.clone();
    assert!(spec.ephemeral && spec.activation.allow_discards);
    assert_eq!(spec.encryption.provider, Provider::Plain);
    let file = spec.source.file.unwrap();
    assert_eq!(file.path, names::scratch_file("uid-v"));
    assert_eq!(file.size_bytes, 1 << 30);
    assert_eq!((c.keys_made, c.status().key), (0, None));
    c.is(KEY_READY, "Unknown", Reason::Ephemeral);
    c.is(CREDENTIALS_VALID, "Unknown", Reason::Ephemeral);
    assert!(get(&c.status().conditions, ENCRYPTED).is_none());
    c.delete(DeletionPolicy::Retain);
    c.settle();
    c.lets_go();
    c.settle();
    assert!(c.gone && c.keys_deleted.is_empty());
}

#[test]
fn a_class_that_authenticates_sectors_is_refused_for_it() {
    let mut c = Cluster::new(json!({"source": {"ephemeral": {"size": "1Gi"}}}));
    c.world.encryption = Ok(Encryption {
        integrity: Some(Integrity::HmacSha256),
        ..Encryption::default()
    });
    c.settle();
    c.is(READY, "False", Reason::EncryptionClassNotFound);
    assert!(c.message().contains("name a class without it"));
    assert_eq!(c.applies, 0);
    c.world.encryption = Ok(Encryption::default());
    c.settle();
    assert_eq!(c.nv().spec.encryption.integrity, None);
}

#[test]
fn a_scratch_device_is_named_by_its_path() {
    let mut c = Cluster::new(json!({"source": {"ephemeral": {"device": "/dev/vg/scratch"}}}));
    c.settle();
    let source = c.world.node_volumes[0].spec.source.clone();
    assert_eq!(source.device.unwrap().path, "/dev/vg/scratch");
    assert!(source.file.is_none() && source.iscsi.is_none());
    assert_eq!(
        crate::volume::observe::disk(&c.world.volume).as_deref(),
        Some("/dev/vg/scratch on node a")
    );
}

#[test]
fn that_data_went_with_the_key_is_told_once() {
    let mut c = Cluster::new(json!({"source": {"ephemeral": {"size": "1Gi"}}}));
    c.settle();
    let facts = HeaderFacts {
        provider: Provider::Plain,
        luks_uuid: c.status().luks_uuid.unwrap(),
        sector_size: 512,
        ..HeaderFacts::default()
    };
    c.comes_up();
    c.report(|s| s.header = Some(facts.clone()));
    c.settle();
    c.is(READY, "True", Reason::AsDesired);
    let notes = |c: &mut Cluster| {
        let before = c.status();
        c.settle();
        let notes = crate::volume::transitions::between(&before, &c.status());
        notes.into_iter().filter(|n| n.reason == "DataLost").count()
    };
    assert_eq!(notes(&mut c), 0);
    c.report(|s| s.data_lost = Some(Time(at(50))));
    assert_eq!(notes(&mut c), 1);
    assert_eq!(c.status().data_lost, Some(Time(at(50))));
    // Nothing is told again, not by a NodeVolume that knows nothing of it either.
    c.report(|s| s.data_lost = None);
    assert_eq!(notes(&mut c), 0);
    assert_eq!(c.status().data_lost, Some(Time(at(50))));
}
