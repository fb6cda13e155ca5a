//! What is wrong with what users or clusters say, and what they are told.

use super::*;

#[test]
fn each_failure_of_the_agent_shows_with_its_reason_and_one_next_step() {
    for (stage, reason, condition) in [
        (Stage::Session, Reason::PortalUnreachable, DEVICE_VERIFIED),
        (Stage::Session, Reason::TargetNotFound, DEVICE_VERIFIED),
        (Stage::Session, Reason::ChapRejected, DEVICE_VERIFIED),
        (Stage::Device, Reason::LunNotFound, DEVICE_VERIFIED),
        (Stage::Identity, Reason::WwidMismatch, DEVICE_VERIFIED),
        (Stage::Identity, Reason::SizeMismatch, DEVICE_VERIFIED),
        (Stage::Header, Reason::ForeignSignature, HEADER_VERIFIED),
        (Stage::Header, Reason::DeviceNotBlank, HEADER_VERIFIED),
        (Stage::Header, Reason::DeviceUnreadable, HEADER_VERIFIED),
        (Stage::KeyRelease, Reason::KeyReleaseUnavailable, ATTACHED),
        (Stage::Mapping, Reason::KeyDoesNotOpen, ATTACHED),
        (Stage::Attached, Reason::NotOurs, ATTACHED),
    ] {
        let mut c = Cluster::new(json!({}));
        c.settle();
        c.fails(stage, reason);
        c.settle();
        c.is(READY, "False", reason);
        c.is(condition, "False", reason);
        let progressing = if reason.is_transient() {
            "True"
        } else {
            "False"
        };
        c.is(PROGRESSING, progressing, reason);
        let text = c.message();
        assert_eq!(text.matches(reason.next_step()).count(), 1, "{text}");
        let last = c.status().last_error.unwrap();
        assert_eq!(
            (last.reason.as_str(), last.time),
            (reason.as_str(), Time(at(5)))
        );
        let writes = c.status_writes;
        c.fails(stage, reason);
        c.settle();
        assert_eq!(c.status_writes, writes, "the same failure is written once");
        c.comes_up();
        c.settle();
        c.is(READY, "True", Reason::AsDesired);
    }
}

#[test]
fn credentials_and_key_service() {
    for (logged_in, reason, type_) in [
        (false, Reason::CredentialsSecretNotFound, CREDENTIALS_VALID),
        (false, Reason::CredentialsInvalid, CREDENTIALS_VALID),
        (false, Reason::CredentialsRejected, CREDENTIALS_VALID),
        (false, Reason::CredentialsExpired, CREDENTIALS_VALID),
        (false, Reason::KeyServiceUnavailable, CREDENTIALS_VALID),
        (true, Reason::KeyServiceUnavailable, KEY_READY),
        (true, Reason::RoleMissing, KEY_READY),
        (true, Reason::KeyNotFound, KEY_READY),
        (true, Reason::KeyUnusable, KEY_READY),
        (true, Reason::KeyQuotaExceeded, KEY_READY),
    ] {
        let mut c = Cluster::new(json!({}));
        c.broken = Some((logged_in, problem(reason)));
        let d = c.settle();
        c.is(READY, "False", reason);
        c.is(type_, "False", reason);
        assert!(c.message().contains(reason.next_step()));
        let kubernetes = matches!(
            reason,
            Reason::CredentialsSecretNotFound | Reason::CredentialsInvalid
        );
        assert_eq!(
            d.again,
            if kubernetes {
                Again::Long
            } else {
                Again::Backoff
            },
            "{reason}"
        );
        assert_eq!((c.keys_made, c.applies), (0, 0));
        // Repair of the cause alone makes it go on.
        c.broken = None;
        c.world.key = KeyState::NotAsked;
        c.settle();
        assert_eq!((c.keys_made, c.applies), (1, 1), "{reason}");
    }
}

type Case = (Reason, fn(&mut World));

#[test]
fn references() {
    let cases: [Case; 2] = [
        (Reason::EncryptionClassNotFound, |w| {
            w.encryption = Err(problem(Reason::EncryptionClassNotFound))
        }),
        (Reason::KeyServiceNotFound, |w| {
            w.key_service = Err(problem(Reason::KeyServiceNotFound))
        }),
    ];
    for (reason, break_) in cases {
        let mut c = Cluster::new(json!({}));
        let whole = c.world.clone();
        break_(&mut c.world);
        let d = c.settle();
        c.is(READY, "False", reason);
        c.is(CREDENTIALS_VALID, "False", reason);
        assert_eq!((d.again, c.keys_made), (Again::Long, 0));
        c.world.encryption = whole.encryption;
        c.world.key_service = whole.key_service;
        c.settle();
        assert_eq!(c.applies, 1);
    }
}

#[test]
fn nodes() {
    let cases: [(Reason, Option<NodeState>); 4] = [
        (Reason::NodeNotFound, None),
        (
            Reason::NodeNotReady,
            Some(NodeState {
                ready: false,
                ..node()
            }),
        ),
        (
            Reason::NodeUnfit,
            Some(NodeState {
                fit: Some(Err("no device-mapper".into())),
                ..node()
            }),
        ),
        (
            Reason::NodeUnfit,
            Some(NodeState {
                fit: None,
                ..node()
            }),
        ),
    ];
    for (reason, state) in cases {
        let mut c = Cluster::new(json!({}));
        c.world.nodes.remove("a");
        if let Some(state) = state {
            c.world.nodes.insert("a".into(), state);
        }
        c.settle();
        c.is(READY, "False", reason);
        c.is(ATTACHED, "False", reason);
        c.is(PROGRESSING, "False", reason);
        assert_eq!(
            c.applies, 0,
            "nothing is handed to a node that cannot take it"
        );
        c.world.nodes.insert("a".into(), node());
        c.settle();
        assert_eq!(c.applies, 1);
    }
}

#[test]
fn a_wrong_node_shows_even_while_the_key_cannot_be_made() {
    let mut c = Cluster::new(json!({}));
    c.world.nodes.clear();
    c.broken = Some((true, problem(Reason::RoleMissing)));
    c.settle();
    c.is(ATTACHED, "False", Reason::NodeNotFound);
    c.is(READY, "False", Reason::RoleMissing);
}

#[test]
fn one_disk_belongs_to_one_volume() {
    let mut c = Cluster::new(json!({}));
    c.world.source_owner = Some(SourceOwner {
        namespace: "other".into(),
        name: "theirs".into(),
    });
    let d = c.settle();
    c.is(READY, "False", Reason::SourceInUse);
    assert!(
        !c.message().contains("theirs"),
        "another namespace's name is not told"
    );
    assert_eq!(
        (c.keys_made, c.applies, c.status().luks_uuid, d.again),
        (0, 0, None, Again::Backoff)
    );
    c.world.source_owner = None;
    c.settle();
    assert_eq!((c.keys_made, c.applies), (1, 1));
}

#[test]
fn a_new_key_for_an_old_disk_is_refused() {
    let mut c = Cluster::new(json!({"format": "Never"}));
    c.settle();
    c.is(READY, "False", Reason::KeyUnusable);
    assert_eq!((c.keys_made, c.applies), (0, 0));
}

#[test]
fn a_certificate_is_no_key() {
    let mut c = Cluster::new(json!({"key": {"secretRef": KEY}}));
    c.keys.push(KeyInfo {
        secret_type: "certificate".into(),
        ..key(KEY)
    });
    c.settle();
    c.is(KEY_READY, "False", Reason::KeyUnusable);
    assert_eq!(c.applies, 0);
}

#[test]
fn a_volume_that_is_up_stays_up_when_its_credentials_go_bad() {
    let mut c = Cluster::attached(json!({}));
    c.broken = Some((false, problem(Reason::CredentialsExpired)));
    c.world.key = KeyState::NotAsked;
    c.settle();
    c.is(READY, "True", Reason::AsDesired);
    c.is(CREDENTIALS_VALID, "False", Reason::CredentialsExpired);
    assert_eq!(c.nv().spec.desired, Desired::Attached);
    c.attach_to(&[]);
    c.settle();
    assert_eq!(
        c.nv().spec.desired,
        Desired::Detached,
        "detaching needs no key"
    );
}
