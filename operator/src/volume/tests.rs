//! Decisions, tested as the function they are. A small cluster in memory plays API server and key manager, so that a test
//! can say what changed and ask what follows, until nothing follows any more.

use cryptvol_crds::{
    EncryptedVolume, KeyService, NodeVolume,
    conditions::{
        ATTACHED, CREDENTIALS_VALID, DEVICE_VERIFIED, HEADER_VERIFIED, KEY_READY, PROGRESSING,
        READY, Reason, get, message,
    },
    names,
    v1alpha1::{
        DeletionPolicy, Desired, DeviceStatus, EncryptedVolumeStatus, Encryption, EraseReceipt,
        FormatPolicy, HeaderFacts, LastError, MappingStatus, NodeVolumeStatus, PermitReceipt,
        PermitState, Stage,
    },
};
use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use serde_json::json;
use std::{collections::BTreeMap, sync::Arc};

use super::{
    decide::decide,
    world::{Action, Again, Decision, Fresh, KeyState, NodeState, Problem, SourceOwner, World},
};
use crate::keymanager::KeyInfo;

const KEY: &str = "11111111-2222-3333-4444-555555555555";

struct Cluster {
    world: World,
    /// Keys in the key manager by id; all bear the volume's name.
    keys: Vec<KeyInfo>,
    /// What the key manager answers instead.
    broken: Option<(bool, Problem)>,
    keys_made: u32,
    keys_deleted: Vec<String>,
    told: Vec<&'static str>,
    status_writes: u32,
    applies: u32,
    gone: bool,
    tick: i64,
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).unwrap()
}

fn node() -> NodeState {
    NodeState {
        ready: true,
        out_of_service: false,
        fit: Some(Ok(())),
    }
}

fn key(id: &str) -> KeyInfo {
    KeyInfo {
        id: id.into(),
        name: Some("n".into()),
        created: "2026-11-21T00:00:00".into(),
        secret_type: "symmetric".into(),
        content_type: Some("application/octet-stream".into()),
    }
}

fn volume(spec: serde_json::Value) -> EncryptedVolume {
    let mut full = json!({
        "source": {"iscsi": {"portals": ["192.0.2.1"], "iqn": "iqn.2026-11.com.example:v", "lun": 1}},
        "attachments": [{"nodeName": "a"}],
        "credentials": {"secretName": "s", "cloudName": "c"},
    });
    for (k, v) in spec.as_object().unwrap() {
        full[k] = v.clone();
    }
    let mut v = EncryptedVolume::new("v", serde_json::from_value(full).unwrap());
    v.metadata.namespace = Some("t".into());
    v.metadata.uid = Some("uid-v".into());
    v.metadata.generation = Some(1);
    v
}

impl Cluster {
    fn new(spec: serde_json::Value) -> Self {
        let mut service = KeyService::new(
            "ks",
            serde_json::from_value(json!({"authUrl": "https://k/v3"})).unwrap(),
        );
        service.metadata.generation = Some(1);
        Self {
            world: World {
                volume: volume(spec),
                encryption: Ok(Encryption::default()),
                key_service: Ok(Arc::new(service)),
                key: KeyState::NotAsked,
                nodes: ["a", "b"].map(|n| (n.to_owned(), node())).into(),
                node_volumes: vec![],
                source_owner: None,
                now: at(0),
                fresh: Fresh {
                    luks_uuid: String::new(),
                    permit_id: String::new(),
                },
            },
            keys: vec![],
            broken: None,
            keys_made: 0,
            keys_deleted: vec![],
            told: vec![],
            status_writes: 0,
            applies: 0,
            gone: false,
            tick: 0,
        }
    }

    /// One round, as `effects` makes it.
    fn round(&mut self) -> Option<Decision> {
        self.tick += 1;
        self.world.now = at(self.tick);
        self.world.fresh = Fresh {
            luks_uuid: format!("luks-{}", self.tick),
            permit_id: format!("permit-{}", self.tick),
        };
        let d = decide(&self.world);
        if d.is_idle(&self.world.volume) {
            return Some(d);
        }
        for a in &d.first {
            self.act(a);
        }
        if self.world.volume.status.as_ref() != Some(&d.status) {
            // What is stored is what comes back.
            let stored: EncryptedVolumeStatus =
                serde_json::from_value(serde_json::to_value(&d.status).unwrap()).unwrap();
            assert_eq!(stored, d.status, "a status survives the API server");
            if self.world.volume.status.is_some() || d.status != EncryptedVolumeStatus::default() {
                self.status_writes += 1;
            }
            self.world.volume.status = Some(stored);
        }
        for a in &d.then {
            self.act(a);
        }
        None
    }

    fn act(&mut self, action: &Action) {
        let meta = &mut self.world.volume.metadata;
        match action {
            Action::AddFinalizer => meta.finalizers = Some(vec![names::VOLUME_FINALIZER.into()]),
            Action::RemoveFinalizer => {
                meta.finalizers = None;
                self.gone = true;
            }
            Action::RemoveAnnotation(a) => {
                assert!(meta.annotations.as_mut().unwrap().remove(*a).is_some());
            }
            Action::AskKeyManager => self.world.key = self.ask(),
            Action::CreateKey => {
                assert!(
                    self.world
                        .volume
                        .status
                        .as_ref()
                        .unwrap()
                        .luks_uuid
                        .is_some(),
                    "claimed before the key is made"
                );
                assert!(self.keys.is_empty(), "never a second key");
                self.keys_made += 1;
                self.keys.push(key(KEY));
                self.world.key = self.ask();
            }
            Action::DeleteKey(id) => {
                assert!(self.world.node_volumes.is_empty(), "the key goes last");
                self.keys.retain(|k| k.id != *id);
                self.keys_deleted.push(id.clone());
                self.world.key = KeyState::NotAsked;
            }
            Action::Apply(nv) => self.apply(nv),
            Action::Release(nv) => {
                let name = &nv.metadata.name;
                self.world.node_volumes.retain(|x| x.metadata.name != *name);
            }
            Action::Tell { reason, .. } => self.told.push(reason),
        }
    }

    fn apply(&mut self, wanted: &NodeVolume) {
        self.applies += 1;
        let status = self.world.volume.status.clone().unwrap_or_default();
        // What is handed out is on record.
        assert_eq!(wanted.spec.luks_uuid, status.luks_uuid);
        if let Some(permit) = &wanted.spec.format_permit {
            let record = status.format_permit.as_ref().unwrap();
            assert_eq!(
                (permit.id.as_str(), record.state),
                (record.id.as_str(), PermitState::Issued)
            );
            assert!(status.first_opened.is_none() && !wanted.spec.formatted_before);
        }
        if wanted.spec.desired == Desired::Attached {
            assert!(
                status.key.is_some(),
                "no attachment before the key is on record"
            );
        }
        let found = self
            .world
            .node_volumes
            .iter_mut()
            .find(|x| x.metadata.name == wanted.metadata.name);
        match found {
            Some(old) => {
                if old.spec != wanted.spec {
                    old.metadata.generation = old.metadata.generation.map(|g| g + 1);
                }
                old.spec = wanted.spec.clone();
            }
            None => {
                assert!(
                    self.world.node_volumes.is_empty(),
                    "never on two nodes: {:?}",
                    wanted.metadata.name
                );
                let mut new = wanted.clone();
                new.metadata.generation = Some(1);
                self.world.node_volumes.push(new);
            }
        }
    }

    fn ask(&self) -> KeyState {
        if let Some((logged_in, problem)) = &self.broken {
            return KeyState::Failed {
                logged_in: *logged_in,
                problem: problem.clone(),
            };
        }
        KeyState::Known {
            project_id: "p".into(),
            key: self.keys.first().cloned(),
        }
    }

    /// Rounds until nothing follows.
    fn settle(&mut self) -> Decision {
        for _ in 0..20 {
            if let Some(d) = self.round() {
                return d;
            }
            if self.gone {
                return decide(&self.world);
            }
        }
        panic!("no end: {:?}", self.world.volume.status);
    }

    fn status(&self) -> EncryptedVolumeStatus {
        self.world.volume.status.clone().unwrap_or_default()
    }

    fn nv(&self) -> &NodeVolume {
        let [one] = &self.world.node_volumes[..] else {
            panic!("{} NodeVolumes", self.world.node_volumes.len())
        };
        one
    }

    fn condition(&self, type_: &str) -> (String, String) {
        let status = self.status();
        let c = get(&status.conditions, type_).unwrap_or_else(|| panic!("no condition {type_}"));
        (c.status.clone(), c.reason.clone())
    }

    fn message(&self) -> String {
        get(&self.status().conditions, READY)
            .unwrap()
            .message
            .clone()
    }

    #[track_caller]
    fn is(&self, type_: &str, status: &str, reason: Reason) {
        let message = get(&self.status().conditions, type_).map(|c| c.message.clone());
        assert_eq!(
            self.condition(type_),
            (status.to_owned(), reason.to_string()),
            "{type_}: {message:?}"
        );
    }

    /// The agent reports.
    fn report(&mut self, change: impl FnOnce(&mut NodeVolumeStatus)) {
        let generation = self.nv().metadata.generation;
        let now = Time(at(self.tick));
        let nv = &mut self.world.node_volumes[0];
        let status = nv.status.get_or_insert_default();
        status.observed_generation = generation;
        let before = status.stage;
        change(status);
        if status.since.is_none() || status.stage != before {
            status.since = Some(now);
        }
    }

    fn fails(&mut self, stage: Stage, reason: Reason) {
        self.report(|s| {
            s.stage = stage;
            s.error = Some(LastError {
                reason: reason.to_string(),
                message: message(reason, "it is so"),
                time: Time(at(5)),
            });
        });
    }

    fn header(&self) -> HeaderFacts {
        HeaderFacts {
            luks_uuid: self.status().luks_uuid.unwrap_or_else(|| "found".into()),
            cipher: "aes-xts-plain64".into(),
            key_size: 512,
            sector_size: 512,
            data_offset: 16 << 20,
            digest: "d".into(),
        }
    }

    fn spends(&mut self) {
        let id = self.nv().spec.format_permit.clone().expect("a permit").id;
        self.report(|s| {
            s.stage = Stage::Header;
            s.permit = Some(PermitReceipt {
                id,
                spent_at: Some(Time(at(7))),
            });
        });
    }

    fn comes_up(&mut self) {
        let header = self.header();
        self.report(|s| {
            s.stage = Stage::Attached;
            s.error = None;
            s.header = Some(header);
            s.device = Some(DeviceStatus {
                path: "/dev/sda".into(),
                wwid: Some("w1".into()),
                size_bytes: 1 << 30,
            });
            s.mapping = Some(MappingStatus {
                name: "m".into(),
                path: "/dev/dm-0".into(),
                size_bytes: (1 << 30) - (16 << 20),
            });
            s.link = Some("/dev/cryptvol/t/v".into());
            s.first_opened.get_or_insert(Time(at(9)));
        });
    }

    fn lets_go(&mut self) {
        self.report(|s| {
            *s = NodeVolumeStatus {
                observed_generation: s.observed_generation,
                stage: Stage::Detached,
                permit: s.permit.clone(),
                first_opened: s.first_opened.clone(),
                ..NodeVolumeStatus::default()
            }
        });
    }

    fn attached(spec: serde_json::Value) -> Self {
        let mut c = Self::new(spec);
        c.settle();
        c.spends();
        c.settle();
        c.comes_up();
        c.settle();
        c.is(READY, "True", Reason::AsDesired);
        c
    }

    fn delete(&mut self, policy: DeletionPolicy) {
        self.world.volume.spec.deletion_policy = policy;
        self.world.volume.metadata.deletion_timestamp = Some(Time(at(100)));
        self.world.key = KeyState::NotAsked;
    }

    fn attach_to(&mut self, nodes: &[&str]) {
        let list: Vec<_> = nodes.iter().map(|n| json!({"nodeName": n})).collect();
        self.world.volume.spec.attachments = serde_json::from_value(json!(list)).unwrap();
        self.world.volume.metadata.generation =
            self.world.volume.metadata.generation.map(|g| g + 1);
    }

    fn annotate(&mut self, name: &str, value: &str) {
        let map: &mut BTreeMap<_, _> = self
            .world
            .volume
            .metadata
            .annotations
            .get_or_insert_default();
        map.insert(name.into(), value.into());
    }
}

fn problem(reason: Reason) -> Problem {
    Problem::new(reason, "it is so")
}

mod life {
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
        assert_eq!(nv.spec.iscsi.portals, ["192.0.2.1:3260"]);
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
    fn moving_waits_for_the_old_node() {
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
            s.device = Some(DeviceStatus {
                path: "/dev/sda".into(),
                wwid: None,
                size_bytes: 7,
            });
        });
        c.settle();
        assert_eq!(c.nv().spec.luks_uuid.as_deref(), Some("theirs"));
        assert_eq!(c.nv().spec.header.as_ref(), Some(&header));
        assert_eq!(c.status().format_permit, None);
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
}

mod bad_input {
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

    #[test]
    fn references() {
        let cases: [(Reason, fn(&mut World)); 2] = [
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
}

mod lost_nodes {
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
    fn a_dead_node_with_the_volume_shows_and_keeps_it() {
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
}

mod permits {
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
        assert!(!c.nv().spec.formatted_before);
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
}

mod deletion {
    use super::*;

    fn receipt(c: &Cluster, verified: bool) -> EraseReceipt {
        EraseReceipt {
            luks_uuid: c.status().luks_uuid.unwrap(),
            key_slots_wiped: 1,
            verified,
            at: Time(at(200)),
            node_name: c.nv().spec.node_name.clone(),
        }
    }

    fn erases(c: &mut Cluster, verified: bool) {
        assert_eq!(c.nv().spec.desired, Desired::Erased);
        assert!(c.nv().spec.format_permit.is_none());
        let receipt = receipt(c, verified);
        c.report(|s| {
            s.stage = Stage::Erased;
            s.error = None;
            s.link = None;
            s.erased = Some(receipt);
        });
    }

    #[test]
    fn retain_needs_no_key_service_and_keeps_the_key() {
        let mut c = Cluster::attached(json!({}));
        c.delete(DeletionPolicy::Retain);
        c.world.key_service = Err(problem(Reason::KeyServiceNotFound));
        c.world.encryption = Err(problem(Reason::EncryptionClassNotFound));
        c.settle();
        assert_eq!(c.nv().spec.desired, Desired::Detached);
        assert!(!c.gone);
        c.lets_go();
        c.settle();
        assert!(c.gone && c.keys.len() == 1);
    }

    #[test]
    fn erase_wipes_then_destroys_the_key_then_goes() {
        let mut c = Cluster::attached(json!({}));
        c.delete(DeletionPolicy::Erase);
        c.settle();
        assert!(!c.gone && c.keys_deleted.is_empty());
        erases(&mut c, true);
        c.settle();
        assert!(c.gone && c.world.node_volumes.is_empty());
        assert!(
            c.status().erased.unwrap().verified,
            "the receipt is on record before the key goes"
        );
        assert_eq!(c.keys_deleted, [KEY]);
    }

    #[test]
    fn erase_of_a_detached_volume_uses_its_last_node() {
        let mut c = Cluster::attached(json!({}));
        c.attach_to(&[]);
        c.settle();
        c.lets_go();
        c.settle();
        c.delete(DeletionPolicy::Erase);
        c.settle();
        assert_eq!(
            (c.nv().spec.node_name.as_str(), c.nv().spec.desired),
            ("a", Desired::Erased)
        );
        erases(&mut c, true);
        c.settle();
        assert!(c.gone);
    }

    #[test]
    fn without_proof_the_key_stays() {
        let mut c = Cluster::attached(json!({}));
        c.delete(DeletionPolicy::Erase);
        c.settle();
        erases(&mut c, false);
        c.settle();
        c.is(READY, "False", Reason::EraseBlocked);
        assert!(!c.gone && c.keys.len() == 1);
        // Another volume's receipt is no proof either.
        let mut foreign = receipt(&c, true);
        foreign.luks_uuid = "another".into();
        c.report(|s| s.erased = Some(foreign));
        c.settle();
        assert!(!c.gone && c.keys.len() == 1);
        let good = receipt(&c, true);
        c.report(|s| s.erased = Some(good));
        c.settle();
        assert!(c.gone && c.keys.is_empty());
    }

    #[test]
    fn erase_that_cannot_go_on_says_so_and_retain_lets_it_go() {
        let mut c = Cluster::attached(json!({}));
        c.world.nodes.insert(
            "a".into(),
            NodeState {
                ready: false,
                ..node()
            },
        );
        c.delete(DeletionPolicy::Erase);
        c.settle();
        c.is(READY, "False", Reason::EraseBlocked);
        c.world.nodes.insert("a".into(), node());
        c.settle();
        c.fails(Stage::Detaching, Reason::DeviceBusy);
        c.settle();
        c.is(READY, "False", Reason::DeviceBusy);
        c.delete(DeletionPolicy::Retain);
        c.settle();
        assert_eq!(c.nv().spec.desired, Desired::Detached);
        c.lets_go();
        c.settle();
        assert!(c.gone && c.keys.len() == 1);
    }

    #[test]
    fn erase_without_any_node_waits_for_the_user_to_name_one() {
        let mut c = Cluster::attached(json!({}));
        c.attach_to(&[]);
        c.settle();
        c.lets_go();
        c.settle();
        c.world.nodes.remove("a");
        c.delete(DeletionPolicy::Erase);
        c.settle();
        c.is(READY, "False", Reason::EraseBlocked);
        assert!(c.message().contains("no node a"), "{}", c.message());
        c.attach_to(&["b"]);
        c.settle();
        assert_eq!(c.nv().spec.node_name, "b");
        erases(&mut c, true);
        c.settle();
        assert!(c.gone);
    }

    #[test]
    fn never_formatted_is_only_the_key() {
        let mut c = Cluster::new(json!({"attachments": []}));
        c.settle();
        assert_eq!(c.keys_made, 1);
        c.delete(DeletionPolicy::Erase);
        c.settle();
        assert!(c.gone);
        assert_eq!((c.keys_deleted.len(), c.applies), (1, 0));
    }

    #[test]
    fn a_permit_that_is_spent_while_the_volume_goes_is_not_missed() {
        let mut c = Cluster::new(json!({}));
        c.settle();
        c.delete(DeletionPolicy::Erase);
        let before = c.nv().spec.format_permit.clone().unwrap();
        c.settle();
        assert_eq!(c.nv().spec.desired, Desired::Detached);
        assert!(c.nv().spec.format_permit.is_none(), "taken back");
        // Too late: the agent had begun.
        c.report(|s| {
            s.permit = Some(PermitReceipt {
                id: before.id,
                spent_at: None,
            })
        });
        c.lets_go();
        c.settle();
        erases(&mut c, true);
        c.settle();
        assert!(c.gone && c.keys.is_empty());
    }

    #[test]
    fn an_imported_key_is_not_ours_to_destroy() {
        let mut c = Cluster::new(json!({"key": {"secretRef": KEY}}));
        c.keys.push(key(KEY));
        c.settle();
        c.spends();
        c.comes_up();
        c.settle();
        c.delete(DeletionPolicy::Erase);
        c.settle();
        erases(&mut c, true);
        c.settle();
        assert!(c.gone && c.keys.len() == 1 && c.keys_deleted.is_empty());
    }

    #[test]
    fn credentials_that_are_gone_hold_only_an_erasure() {
        let mut c = Cluster::new(json!({"attachments": []}));
        c.settle();
        c.delete(DeletionPolicy::Erase);
        c.broken = Some((false, problem(Reason::CredentialsSecretNotFound)));
        let d = c.settle();
        assert!(!c.gone);
        c.is(READY, "False", Reason::CredentialsSecretNotFound);
        assert!(
            c.message().contains("deletionPolicy to Retain"),
            "{}",
            c.message()
        );
        assert_eq!(d.again, Again::Backoff);
        c.broken = None;
        c.world.key = KeyState::NotAsked;
        c.settle();
        assert!(c.gone && c.keys.is_empty());
    }

    #[test]
    fn a_key_that_was_made_and_not_recorded_is_destroyed_too() {
        let mut c = Cluster::new(json!({"attachments": []}));
        // Finalizer, a look at the key manager, the claim; then the process dies right after the key was made.
        c.round();
        c.round();
        let d = decide(&c.world);
        assert!(d.then.contains(&Action::CreateKey));
        c.world.volume.status = Some(d.status);
        c.keys.push(key(KEY));
        c.delete(DeletionPolicy::Erase);
        c.settle();
        assert!(c.gone && c.keys.is_empty());
    }

    #[test]
    fn what_never_had_a_key_goes_without_a_key_service() {
        let mut c = Cluster::new(json!({}));
        c.broken = Some((false, problem(Reason::CredentialsSecretNotFound)));
        c.settle();
        c.delete(DeletionPolicy::Erase);
        c.settle();
        assert!(c.gone);
    }

    #[test]
    fn without_our_finalizer_nothing_is_done() {
        let mut c = Cluster::new(json!({}));
        c.delete(DeletionPolicy::Erase);
        let d = decide(&c.world);
        assert!(d.is_idle(&c.world.volume));
    }
}
