//! Headers that lie apart from their disk: kept in the record and in the key manager before any node may open the disk.

use cryptvol_common::header;
use cryptvol_crds::{
    conditions::{HEADER_BACKED_UP, KEY_ROTATED},
    v1alpha1::{HeaderSecretStatus, NodeRotationStatus, RotationPhase, VolumeKeyDigest},
};

use super::*;
use crate::volume::{detached, world::HeaderAnswer};

const HEADER: &str = "99999999-2222-3333-4444-555555555555";
const UUID: &str = "0f6e6f0a-5a7c-4c0e-9a55-0c5a2f0d4e11";

impl Cluster {
    pub(super) fn keep_header(&mut self, version: i64, record: &HeaderBackup) {
        let status = self.status();
        let rotates = status.rotation.is_some_and(|r| r.version == version);
        assert!(
            rotates || status.header_backup.as_ref() == Some(record),
            "on record before it is anywhere else"
        );
        let found = match &self.broken {
            Some((_, problem)) => Err(problem.clone()),
            None => match self.headers.iter().find(|h| h.version == version) {
                Some(h) if h.record.as_ref() == Some(record) => Ok((h.id.clone(), record.clone())),
                Some(_) => Err(problem(Reason::HeaderRecordUnusable)),
                None => Ok((self.keep(version, Some(record)), record.clone())),
            },
        };
        self.world.header = Some(HeaderAnswer {
            version: Some(version),
            found,
        });
    }

    /// A secret of the header's name.
    pub(super) fn keep(&mut self, version: i64, record: Option<&HeaderBackup>) -> String {
        let same = self.headers.iter().filter(|h| h.version == version).count();
        let id = match same {
            0 => format!("header-{version}"),
            _ => format!("header-{version}-{same}"),
        };
        self.headers.push(KeptHeader {
            id: id.clone(),
            version,
            record: record.cloned(),
        });
        id
    }

    pub(super) fn read_header(&mut self, id: &str) {
        let kept = self.headers.iter().find(|h| h.id == id);
        let found = match (&self.broken, kept.and_then(|h| h.record.clone())) {
            (Some((_, problem)), _) => Err(problem.clone()),
            (None, Some(record)) => Ok((id.to_owned(), record)),
            (None, None) => Err(problem(Reason::KeyNotFound)),
        };
        self.world.header = Some(HeaderAnswer {
            version: None,
            found,
        });
    }

    pub(super) fn detached(spec: serde_json::Value) -> Self {
        let mut c = Self::new(spec);
        c.world.encryption = Ok(Encryption {
            detached_header: true,
            ..Encryption::default()
        });
        c
    }

    pub(super) fn record(&self, sealed: &str) -> HeaderBackup {
        HeaderBackup {
            header: HeaderFacts {
                data_offset: 0,
                digest: header::fingerprint(&VolumeKeyDigest::default()).unwrap(),
                ..self.header()
            },
            sealed: sealed.into(),
            ..HeaderBackup::default()
        }
    }

    /// The secret that the user names.
    fn import_of(&mut self, record: &HeaderBackup) {
        self.headers.push(KeptHeader {
            id: HEADER.into(),
            version: 0,
            record: Some(record.clone()),
        });
    }

    /// The node has made a header and waits.
    pub(super) fn makes(&mut self, sealed: &str) {
        let record = self.record(sealed);
        self.report(|s| {
            s.stage = Stage::Header;
            s.header_backup = Some(record);
        });
    }

    /// The node opens the disk by what was handed over.
    pub(super) fn opens(&mut self) {
        let record = self.nv().spec.header_record.clone().expect("a header");
        self.comes_up();
        self.report(|s| s.header = Some(record.header));
    }

    pub(super) fn up() -> Self {
        let mut c = Self::detached(json!({}));
        c.settle();
        c.makes("one");
        c.settle();
        c.opens();
        c.settle();
        c.is(READY, "True", Reason::AsDesired);
        c
    }

    pub(super) fn reseals(&mut self, sealed: &str) {
        let order = self.nv().spec.rotation.clone().expect("an order");
        let record = (order.phase == RotationPhase::Adding).then(|| self.record(sealed));
        self.report(|s| {
            s.rotation = Some(NodeRotationStatus {
                phase: order.phase,
                key_id: order.key_id,
                done: true,
                header_backup: record,
                ..NodeRotationStatus::default()
            });
        });
    }
}

#[test]
fn no_node_gets_a_header_that_is_not_in_both_places() {
    let mut c = Cluster::detached(json!({}));
    c.settle();
    assert!(c.nv().spec.encryption.detached_header && c.nv().spec.header_record.is_none());
    assert!(c.nv().spec.format_permit.is_some());
    c.broken = Some((true, problem(Reason::KeyQuotaExceeded)));
    c.makes("one");
    c.settle();
    // On record, not pinned: the disk was not opened by it.
    assert!(c.status().header_backup.is_some() && c.status().header.is_none());
    assert!(c.nv().spec.header_record.is_none());
    c.is(READY, "False", Reason::KeyQuotaExceeded);
    c.is(HEADER_BACKED_UP, "False", Reason::InProgress);
    // Another one, from whatever node, is none.
    c.makes("two");
    c.settle();
    assert_eq!(c.status().header_backup.unwrap().sealed, "one");
    c.broken = None;
    c.world.header = None;
    c.settle();
    assert_eq!(c.headers[0].record.as_ref().unwrap().sealed, "one");
    assert_eq!(
        c.status().header_secret,
        Some(HeaderSecretStatus {
            id: "header-1".into(),
            generated: true
        })
    );
    c.is(HEADER_BACKED_UP, "True", Reason::AsDesired);
    assert_eq!(c.nv().spec.header_record, c.status().header_backup);
    assert!(
        c.nv().spec.format_permit.is_some(),
        "it is still to be blank"
    );
    c.opens();
    c.settle();
    c.is(READY, "True", Reason::AsDesired);
    assert_eq!(
        c.status().header,
        Some(c.status().header_backup.unwrap().header)
    );
    assert_eq!(c.status().format_permit.unwrap().state, PermitState::Void);
    assert!(c.nv().spec.format_permit.is_none());
}

#[test]
fn another_header_under_that_name_in_the_key_manager_stops_everything() {
    let mut c = Cluster::detached(json!({}));
    c.settle();
    c.makes("one");
    c.round();
    // As `effects` says it of a secret that does not agree.
    c.world.header = Some(HeaderAnswer {
        version: Some(1),
        found: Err(problem(Reason::HeaderRecordUnusable)),
    });
    c.settle();
    c.is(READY, "False", Reason::HeaderRecordUnusable);
    assert!(c.nv().spec.header_record.is_none());
}

#[test]
fn the_header_goes_with_the_volume_to_another_node_and_a_class_changes_nothing() {
    let mut c = Cluster::up();
    let record = c.status().header_backup;
    c.attach_to(&[]);
    c.settle();
    c.lets_go();
    c.settle();
    c.world.encryption = Ok(Encryption::default());
    c.attach_to(&["b"]);
    c.settle();
    assert!(c.nv().spec.encryption.detached_header);
    assert_eq!(c.nv().spec.header_record, record);
}

#[test]
fn invariant_08_a_rotation_keeps_the_new_header_in_both_places_before_the_new_key_is_the_volumes() {
    let mut c = Cluster::up();
    c.annotate(names::ROTATE_KEY_ANNOTATION, "1");
    c.settle();
    c.broken = Some((true, problem(Reason::KeyServiceUnavailable)));
    c.reseals("two");
    c.settle();
    c.is(KEY_ROTATED, "False", Reason::KeyServiceUnavailable);
    assert_eq!(c.status().key.unwrap().id, KEY);
    assert_eq!(c.status().header_backup.unwrap().sealed, "one");
    c.broken = None;
    c.world.header = None;
    c.settle();
    // Key, header and second copy change in one write.
    let status = c.status();
    assert_eq!(status.key.unwrap().id, "key-2");
    assert_eq!(status.header_backup.unwrap().sealed, "two");
    assert_eq!(status.header_secret.unwrap().id, "header-2");
    assert_eq!(c.nv().spec.header_record.as_ref().unwrap().sealed, "two");
    assert_eq!(
        c.headers.len(),
        2,
        "the former one opens with the former key"
    );
    assert!(c.keys_deleted.is_empty(), "not shown to open yet");
    c.reseals("");
    c.settle();
    assert_eq!(c.keys_deleted, [KEY]);
    assert_eq!(c.headers.len(), 1);
    assert_eq!(c.headers[0].version, 2);
    c.is(KEY_ROTATED, "True", Reason::AsDesired);

    // A node that reports another header, or none, changes nothing.
    let mut c = Cluster::up();
    c.annotate(names::ROTATE_KEY_ANNOTATION, "1");
    c.settle();
    let order = c.nv().spec.rotation.clone().unwrap();
    c.report(|s| {
        s.rotation = Some(NodeRotationStatus {
            key_id: order.key_id,
            done: true,
            ..NodeRotationStatus::default()
        });
    });
    c.settle();
    c.is(KEY_ROTATED, "False", Reason::HeaderRecordUnusable);
    assert_eq!(c.status().key.unwrap().id, KEY);
}

#[test]
fn an_import_takes_its_header_from_the_key_manager() {
    let spec = || {
        json!({
            "format": "Never",
            "source": {"iscsi": {"portals": ["192.0.2.1"], "iqn": "iqn.2026-11.com.example:v", "lun": 1, "wwid": "w1"}},
            "key": {"secretRef": KEY, "headerSecretRef": HEADER},
        })
    };
    let mut c = Cluster::detached(spec());
    c.keys.push(key(KEY));
    let mut record = c.record("one");
    record.header.luks_uuid = UUID.into();
    c.import_of(&record);
    c.broken = None;
    c.settle();
    let status = c.status();
    assert_eq!(status.luks_uuid.as_deref(), Some(UUID));
    assert_eq!(status.header_secret.unwrap().id, HEADER);
    assert!(status.header.is_none() && status.format_permit.is_none());
    assert_eq!(c.nv().spec.header_record.as_ref(), Some(&record));
    assert_eq!(c.nv().spec.wwid.as_deref(), Some("w1"));
    c.opens();
    c.settle();
    c.is(READY, "True", Reason::AsDesired);
    // Neither secret is ours.
    c.delete(DeletionPolicy::Erase);
    c.settle();
    c.is(READY, "False", Reason::EraseBlocked);
    assert!(c.keys_deleted.is_empty() && c.headers.len() == 1);

    // What is no header of such a volume.
    let mut c = Cluster::detached(spec());
    c.keys.push(key(KEY));
    record.header.data_offset = 16 << 20;
    c.import_of(&record);
    c.settle();
    c.is(READY, "False", Reason::HeaderRecordUnusable);
    assert!(c.world.node_volumes.is_empty());
}

#[test]
fn what_class_and_volume_cannot_have_together_is_said() {
    let refused = |mut c: Cluster, word: &str| {
        c.keys.push(key(KEY));
        c.settle();
        c.is(READY, "False", Reason::HeaderRecordUnusable);
        assert!(c.message().contains(word), "{}", c.message());
        assert!(c.world.node_volumes.is_empty());
    };
    refused(
        Cluster::detached(json!({"key": {"secretRef": KEY}})),
        "names no header",
    );
    refused(
        Cluster::new(json!({"key": {"secretRef": KEY, "headerSecretRef": HEADER}})),
        "has no detachedHeader",
    );
}

#[test]
fn no_restore_is_ordered_where_the_disk_has_no_header() {
    let mut c = Cluster::up();
    let uuid = c.status().luks_uuid.unwrap();
    c.fails(Stage::Header, Reason::HeaderRecordUnusable);
    c.report(|s| s.mapping = None);
    c.annotate(names::RESTORE_HEADER_ANNOTATION, &uuid);
    c.settle();
    assert_eq!(c.told, ["HeaderRestoreRefused"]);
    assert!(c.nv().spec.header_restore.is_none());
}

#[test]
fn invariant_09_an_erasure_looks_for_key_and_header_by_their_names() {
    let c = Cluster::up();
    let names = crate::volume::rotate::key_names(&c.world);
    assert_eq!(names, ["cryptvol/t/v/uid-v", "cryptvol/t/v/uid-v/header"]);
    assert_eq!(
        detached::secret_name(&c.world, 2),
        "cryptvol/t/v/uid-v/2/header"
    );
    // Also where the header was taken out of the record already, and where it was never opened.
    let mut c = Cluster::detached(json!({}));
    c.settle();
    c.makes("one");
    c.round();
    assert!(c.status().header_secret.is_none());
    assert_eq!(crate::volume::rotate::key_names(&c.world).len(), 2);
}
