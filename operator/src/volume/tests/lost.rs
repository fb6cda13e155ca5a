//! A status that is lost after the volume's key was rotated: the key has another name than a new volume's by then.

use super::*;
use crate::volume::rotate;
use cryptvol_crds::v1alpha1::RotationPhase;

impl Cluster {
    pub(super) fn find_later(&mut self) {
        let plain = rotate::key_name(&self.world, 1);
        let versioned = |version: &str, last: &str| match version {
            "1" => format!("{plain}{last}"),
            _ => format!("{plain}/{version}{last}"),
        };
        let keys = self.keys.iter().map(|k| {
            let version = k.id.strip_prefix("key-").unwrap_or("1");
            (k.id.clone(), versioned(version, ""))
        });
        let headers = self
            .headers
            .iter()
            .map(|h| (h.id.clone(), versioned(&h.version.to_string(), "/header")));
        let all = keys.chain(headers).map(|(id, name)| KeyInfo {
            name: Some(name),
            ..key(&id)
        });
        self.world.later = Some(match &self.broken {
            Some((_, problem)) => Err(problem.clone()),
            None => Ok(all.collect()),
        });
    }

    fn turns(&mut self, detached: bool) {
        match (detached, self.nv().spec.rotation.as_ref().map(|r| r.phase)) {
            (true, Some(RotationPhase::Adding)) => self.reseals("two"),
            (true, _) => self.reseals(""),
            (false, _) => drop(self.rotates()),
        }
        self.settle();
    }

    /// In use, with its second key.
    fn rotated(detached: bool) -> Self {
        let mut c = match detached {
            true => Self::up(),
            false => Self::attached(json!({})),
        };
        c.annotate(names::ROTATE_KEY_ANNOTATION, "1");
        c.settle();
        c.turns(detached);
        c.turns(detached);
        let key = c.status().key.unwrap();
        assert_eq!((key.id.as_str(), key.version), ("key-2", 2));
        assert_eq!(c.keys_deleted, [KEY]);
        c.report(|s| s.header_backup = None);
        c
    }

    /// Nobody knows anything any more but the key manager.
    fn loses_all(&mut self) {
        self.attach_to(&[]);
        self.settle();
        self.lets_go();
        self.settle();
        assert!(self.world.node_volumes.is_empty());
        self.world.volume.status = None;
        self.world.key = KeyState::NotAsked;
        self.attach_to(&["a"]);
        self.settle();
    }

    fn forgets(&mut self) {
        self.world.volume.status = None;
        self.world.key = KeyState::NotAsked;
    }
}

#[test]
fn a_status_that_is_lost_after_a_rotation_comes_back_where_a_node_has_the_volume() {
    for detached in [false, true] {
        let mut c = Cluster::rotated(detached);
        let before = c.status();
        c.forgets();
        c.settle();
        let after = c.status();
        let key = after.key.unwrap();
        assert_eq!((key.id.as_str(), key.version), ("key-2", 2));
        assert!(key.generated);
        assert_eq!((after.header, after.wwid), (before.header, before.wwid));
        assert_eq!(after.header_secret, before.header_secret);
        assert_eq!(c.keys_made, 2, "no key is made for a volume that has one");
        c.is(READY, "True", Reason::AsDesired);
        if detached {
            assert_eq!(c.status().header_backup, before.header_backup);
        }
        // And it is rotated on.
        c.annotate(names::ROTATE_KEY_ANNOTATION, "2");
        c.settle();
        c.turns(detached);
        c.turns(detached);
        assert_eq!(c.status().key.unwrap().id, "key-3");
    }
}

#[test]
fn a_volume_in_use_without_a_key_that_is_known_gets_no_new_one() {
    // The rotation was not done: which of two keys opens, only the disk could say.
    let mut c = Cluster::rotated(false);
    c.keys.push(key("key-3"));
    c.forgets();
    c.settle();
    c.is(KEY_READY, "False", Reason::RecordLost);
    let status = c.status();
    let said = &get(&status.conditions, KEY_READY).unwrap().message;
    assert!(said.contains("key-2") && said.contains("key-3"), "{said}");
    c.is(READY, "True", Reason::AsDesired);
    // There is none at all.
    c.keys.clear();
    c.forgets();
    c.settle();
    c.is(KEY_READY, "False", Reason::KeyNotFound);
    assert_eq!((c.keys_made, c.status().key), (2, None));
    // The guest has its disk all the while.
    assert_eq!(c.nv().spec.desired, Desired::Attached);
    // No answer is no reason to make one either.
    c.keys.push(key("key-2"));
    c.forgets();
    c.world.key = c.ask();
    c.broken = Some((true, problem(Reason::KeyServiceUnavailable)));
    c.settle();
    c.is(KEY_READY, "False", Reason::KeyServiceUnavailable);
    c.broken = None;
    c.settle();
    c.is(READY, "True", Reason::AsDesired);
    assert_eq!(c.keys_made, 2);
}

#[test]
fn a_disk_that_is_not_as_a_new_volumes_is_told_with_the_keys_that_its_volume_had() {
    for (detached, reason) in [
        (false, Reason::ForeignSignature),
        (true, Reason::DeviceNotBlank),
    ] {
        let mut c = Cluster::rotated(detached);
        c.loses_all();
        c.fails(Stage::Header, reason);
        c.settle();
        c.is(READY, "False", Reason::RecordLost);
        let said = c.message();
        assert!(
            said.contains("key-2") && said.contains("version 2"),
            "{said}"
        );
        assert_eq!(said.contains("header-2"), detached, "{said}");
        assert!(said.contains("Do not wipe"), "{said}");
        assert!(c.nv().spec.header_record.is_none());
        let writes = c.status_writes;
        for _ in 0..3 {
            c.settle();
        }
        assert_eq!(c.status_writes, writes, "written at each look");
        // The way that it names destroys nothing.
        c.delete(DeletionPolicy::Retain);
        c.settle();
        c.lets_go();
        c.settle();
        assert!(c.gone);
        assert_eq!(c.keys_deleted, [KEY], "that of the rotation");
        assert!(c.keys.iter().any(|k| k.id == "key-2"));
        assert_eq!(c.headers.len(), usize::from(detached));
    }
}

#[test]
fn a_new_volume_on_a_disk_of_somebody_elses_is_told_what_its_node_says() {
    for reason in [Reason::ForeignSignature, Reason::DeviceNotBlank] {
        let mut c = Cluster::new(json!({}));
        c.settle();
        c.fails(Stage::Header, reason);
        c.settle();
        c.is(READY, "False", reason);
        c.broken = Some((true, problem(Reason::KeyServiceUnavailable)));
        c.settle();
        c.is(READY, "False", reason);
    }
}
