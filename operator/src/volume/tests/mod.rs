//! Decisions, tested as the function they are. A small cluster in memory plays API server and key manager, so that a test
//! can say what changed and ask what follows, until nothing follows any more.

mod bad_input;
mod deletion;
mod detached;
mod discovery;
mod ephemeral;
mod events;
mod header_backup;
mod in_use;
mod life;
mod lost;
mod lost_nodes;
mod paths;
mod permits;
mod quota;
mod rotation;
mod second_copy;

use cryptvol_crds::{
    EncryptedVolume, KeyService, NodeVolume,
    conditions::{
        ATTACHED, CREDENTIALS_VALID, DEVICE_VERIFIED, ENCRYPTED, HEADER_VERIFIED, KEY_READY,
        PROGRESSING, READY, Reason, get, message,
    },
    names,
    v1alpha1::{
        Activation, DeletionPolicy, Desired, DeviceStatus, EncryptedVolumeStatus, Encryption,
        EraseReceipt, FormatPolicy, HeaderBackup, HeaderFacts, Integrity, IntegrityFacts,
        LastError, MappingStatus, NodeVolumeStatus, PermitReceipt, PermitState, PlainHash,
        Provider, Stage,
    },
};
use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use serde_json::json;
use std::{collections::BTreeMap, sync::Arc};

use super::{
    decide::decide,
    quota::Usage,
    second_copy::SecondCopy,
    world::{
        Action, Again, Decision, Fresh, KeyState, NodeState, Problem, RotationKeys, SourceOwner,
        World,
    },
};
use crate::keymanager::{KeyInfo, limits::Limits};

const KEY: &str = "11111111-2222-3333-4444-555555555555";

/// A secret that bears the name of the header under a version of the key.
struct KeptHeader {
    id: String,
    version: i64,
    /// Nothing where it is no header.
    record: Option<HeaderBackup>,
}

struct Cluster {
    world: World,
    /// Keys in the key manager by id; all bear the volume's name.
    keys: Vec<KeyInfo>,
    /// Headers in the key manager.
    headers: Vec<KeptHeader>,
    /// How many more things the operator does until it is killed.
    lives: Option<u32>,
    /// What the key manager answers instead.
    broken: Option<(bool, Problem)>,
    limits: Limits,
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
                activation: Activation::default(),
                key_service: Ok(Arc::new(service)),
                key: KeyState::NotAsked,
                rotation: RotationKeys::default(),
                header: None,
                unrecorded: None,
                later: None,
                second_copy: SecondCopy::default(),
                nodes: ["a", "b"].map(|n| (n.to_owned(), node())).into(),
                node_volumes: vec![],
                namespace_goes: false,
                source_owner: None,
                used: Usage::default(),
                now: at(0),
                fresh: Fresh {
                    luks_uuid: String::new(),
                    permit_id: String::new(),
                },
            },
            keys: vec![],
            headers: vec![],
            lives: None,
            broken: None,
            limits: Limits::default(),
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
            if self.dies() {
                return None;
            }
            self.act(a);
        }
        if self.world.volume.status.as_ref() != Some(&d.status) {
            if self.dies() {
                return None;
            }
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
            if self.dies() {
                return None;
            }
            self.act(a);
        }
        None
    }

    /// Whether the operator is killed before the next thing that it does.
    fn dies(&mut self) -> bool {
        match &mut self.lives {
            Some(0) => true,
            Some(left) => {
                *left -= 1;
                false
            }
            None => false,
        }
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
                let later = |k: &KeyInfo| k.id.starts_with("key-");
                assert!(self.keys.iter().all(later), "never a second key");
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
            Action::CreateNextKey(version) => {
                let status = self.world.volume.status.as_ref().unwrap();
                assert_eq!(status.rotation.as_ref().unwrap().version, *version);
                let id = format!("key-{version}");
                let made = match &self.broken {
                    Some((_, problem)) => Err(problem.clone()),
                    None => {
                        if self.keys.iter().all(|k| k.id != id) {
                            self.keys_made += 1;
                            self.keys.push(key(&id));
                        }
                        Ok(id)
                    }
                };
                self.world.rotation.made = Some((*version, made));
            }
            Action::DestroyFormerKey { version, id } => {
                let status = self.world.volume.status.as_ref().unwrap();
                assert_ne!(status.key.as_ref().unwrap().id, *id, "8: the key on record");
                let gone = match &self.broken {
                    Some((_, problem)) => Err(problem.clone()),
                    None => {
                        self.keys.retain(|k| k.id != *id);
                        self.headers.retain(|h| h.version != *version - 1);
                        self.keys_deleted.push(id.clone());
                        Ok(())
                    }
                };
                self.world.rotation.destroyed = Some((*version, gone));
            }
            Action::KeepHeader { version, record } => self.keep_header(*version, record),
            Action::ReadHeader(id) => self.read_header(id),
            Action::FindHeader(version) => self.find_header(*version),
            Action::FindLater => self.find_later(),
            Action::LookAtSecondCopy { id, record, .. } => self.look_at(id, record),
            Action::StoreSecondCopy { version, record } => self.store_again(*version, record),
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
            assert!(status.first_opened.is_none());
            assert_eq!(wanted.spec.formatted_before, record.again);
        }
        if wanted.spec.desired == Desired::Attached {
            assert!(
                status.key.is_some()
                    || !wanted.spec.encryption.provider.encrypts()
                    || wanted.spec.ephemeral,
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
        // By the id on record, or by the plain name; of one that is deleted all that there are.
        let recorded = self.status().key.map(|k| k.id);
        let deleting = self.world.volume.metadata.deletion_timestamp.is_some();
        let mut keys = self.keys.iter();
        let key = match recorded {
            _ if deleting => keys.next(),
            Some(id) => keys.find(|k| k.id == id),
            None => keys.find(|k| !k.id.starts_with("key-")),
        };
        KeyState::Known {
            project_id: "p".into(),
            limits: self.limits,
            key: key.cloned(),
        }
    }

    /// Rounds until nothing follows.
    fn settle(&mut self) -> Decision {
        self.world.unrecorded = None;
        self.world.later = None;
        self.world.second_copy.stored = None;
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
            ..HeaderFacts::default()
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
                ..MappingStatus::default()
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
