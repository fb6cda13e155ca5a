//! The second copy of a header that lies apart from its disk: looked at again, stored anew, and the record from it.

use cryptvol_crds::conditions::HEADER_BACKED_UP;

use super::*;
use crate::volume::{
    second_copy::{Found, compare},
    transitions,
};

impl Cluster {
    pub(super) fn find_header(&mut self, version: i64) {
        let found = match &self.broken {
            Some((_, problem)) => Err(problem.clone()),
            None => {
                let mut named = self.headers.iter().filter(|h| h.version == version);
                Ok(named.find_map(|h| Some((h.id.clone(), h.record.clone()?))))
            }
        };
        self.world.unrecorded = Some(found);
    }

    pub(super) fn look_at(&mut self, id: &str, record: &HeaderBackup) {
        let found = match (&self.broken, self.headers.iter().find(|h| h.id == id)) {
            (Some((_, problem)), _) => Err(problem.clone()),
            (None, None) => Ok(Found::Gone),
            (None, Some(kept)) => Ok(compare(&payload(kept.record.as_ref()), record)),
        };
        self.world.second_copy.due = false;
        self.world.second_copy.seen = Some((id.to_owned(), found));
    }

    pub(super) fn store_again(&mut self, version: i64, record: &HeaderBackup) {
        let same = self
            .headers
            .iter()
            .find(|h| h.version == version && h.record.as_ref() == Some(record));
        self.world.second_copy.stored = Some(match (&self.broken, same) {
            (Some((_, problem)), _) => Err(problem.clone()),
            (None, Some(kept)) => Ok(kept.id.clone()),
            (None, None) => Ok(self.keep(version, Some(record))),
        });
    }

    /// Time has come to look.
    fn is_due(&mut self) {
        self.world.second_copy = SecondCopy {
            due: true,
            ..SecondCopy::default()
        };
    }

    /// Another process leads, and knows nothing.
    fn begins_anew(&mut self) {
        self.lives = None;
        self.world.second_copy = SecondCopy::default();
        self.world.header = None;
        self.world.unrecorded = None;
        self.world.key = KeyState::NotAsked;
    }

    fn secret(&self) -> String {
        self.status().header_secret.expect("a second copy").id
    }

    fn backed_up(&self) -> String {
        let status = self.status();
        let condition = get(&status.conditions, HEADER_BACKED_UP).unwrap();
        condition.message.clone()
    }

    /// All that was told while it settled.
    fn told_meanwhile(&mut self) -> Vec<String> {
        let mut told = vec![];
        loop {
            let before = self.status();
            let done = self.round().is_some();
            let notes = transitions::between(&before, &self.status());
            told.extend(notes.into_iter().map(|n| n.reason));
            if done {
                return told;
            }
        }
    }
}

fn payload(record: Option<&HeaderBackup>) -> Vec<u8> {
    match record {
        Some(record) => serde_json::to_vec(record).unwrap(),
        None => b"what somebody else keeps".to_vec(),
    }
}

#[test]
fn what_is_as_it_should_be_is_looked_at_and_nothing_is_written() {
    let mut c = Cluster::up();
    let (writes, status) = (c.status_writes, c.status());
    c.settle();
    assert!(c.world.second_copy.seen.is_none(), "not due");
    c.is_due();
    c.settle();
    let seen = c.world.second_copy.seen.clone();
    assert_eq!(seen, Some(("header-1".to_owned(), Ok(Found::Same))));
    assert_eq!((c.status_writes, c.status()), (writes, status));

    // A header on the disk has no second copy.
    let mut c = Cluster::attached(json!({}));
    c.is_due();
    c.settle();
    assert!(c.world.second_copy.seen.is_none());
    // Nor is one looked at that no data depends on yet.
    let mut c = Cluster::detached(json!({}));
    c.settle();
    c.makes("one");
    c.is_due();
    c.settle();
    assert!(c.status().header_secret.is_some() && c.world.second_copy.seen.is_none());
}

#[test]
fn what_is_gone_or_no_header_of_the_volume_is_told_and_stored_anew() {
    for foreign in [false, true] {
        let mut c = Cluster::up();
        match foreign {
            true => c.headers[0].record = None,
            false => c.headers.clear(),
        }
        c.is_due();
        assert_eq!(c.told_meanwhile(), ["HeaderCopyMissing", "HeaderCopyKept"]);
        c.is(HEADER_BACKED_UP, "True", Reason::AsDesired);
        c.is(READY, "True", Reason::AsDesired);
        let kept = c.headers.last().unwrap();
        assert_eq!(kept.record, c.status().header_backup);
        assert_eq!(kept.id, c.secret());
        assert!(c.backed_up().contains(&c.secret()));
        assert_eq!(
            c.headers.len(),
            1 + usize::from(foreign),
            "none is taken away"
        );
        assert!(c.status().header_secret.unwrap().generated);
        c.is_due();
        assert_eq!(c.told_meanwhile(), [""; 0]);
    }
}

#[test]
fn while_it_cannot_be_stored_the_condition_says_so_once() {
    let mut c = Cluster::up();
    c.headers.clear();
    c.is_due();
    c.round();
    c.round();
    c.is(HEADER_BACKED_UP, "False", Reason::HeaderCopyMissing);
    assert!(
        c.backed_up()
            .contains(Reason::HeaderCopyMissing.next_step())
    );
    // The key manager has no room from now on.
    c.broken = Some((true, problem(Reason::KeyQuotaExceeded)));
    c.settle();
    c.is(HEADER_BACKED_UP, "False", Reason::HeaderCopyMissing);
    assert!(c.backed_up().contains("it is so"), "{}", c.backed_up());
    let writes = c.status_writes;
    for _ in 0..3 {
        c.settle();
    }
    assert_eq!(c.status_writes, writes, "written at each attempt");
    c.is(READY, "True", Reason::AsDesired);
    c.broken = None;
    c.settle();
    c.is(HEADER_BACKED_UP, "True", Reason::AsDesired);
}

/// Which of the two opens only the key could say.
#[test]
fn one_that_is_sealed_otherwise_is_told_and_left_to_a_person() {
    let mut c = Cluster::up();
    let other = c.record("two");
    c.headers[0].record = Some(other);
    c.is_due();
    assert_eq!(c.told_meanwhile(), ["HeaderCopyDiffers"]);
    c.is(HEADER_BACKED_UP, "False", Reason::HeaderCopyDiffers);
    assert!(c.backed_up().contains("header-1"));
    assert_eq!((c.headers.len(), c.secret().as_str()), (1, "header-1"));
    c.is(READY, "True", Reason::AsDesired);
    // The person found the record to open, and deleted the secret.
    c.headers.clear();
    c.is_due();
    assert_eq!(c.told_meanwhile(), ["HeaderCopyMissing", "HeaderCopyKept"]);
    c.is(HEADER_BACKED_UP, "True", Reason::AsDesired);
}

#[test]
fn a_key_manager_that_does_not_answer_says_nothing_of_the_copy() {
    let mut c = Cluster::up();
    let (writes, key) = (c.status_writes, c.world.key.clone());
    c.broken = Some((true, problem(Reason::KeyServiceUnavailable)));
    c.is_due();
    c.settle();
    assert!(c.world.second_copy.seen.as_ref().unwrap().1.is_err());
    assert_eq!(c.status_writes, writes);
    // What is wrong with the key is told there; nobody stores a header beside a key that is not there.
    c.headers.clear();
    c.world.key = KeyState::Failed {
        logged_in: true,
        problem: problem(Reason::KeyNotFound),
    };
    c.is_due();
    c.settle();
    assert!(c.headers.is_empty());
    c.is(KEY_READY, "False", Reason::KeyNotFound);
    c.is(HEADER_BACKED_UP, "True", Reason::AsDesired);
    c.broken = None;
    c.world.key = key;
    c.settle();
    c.is(HEADER_BACKED_UP, "True", Reason::AsDesired);
    assert_eq!(c.headers.len(), 1);
}

#[test]
fn killed_at_any_moment_it_ends_with_one_copy_and_says_so() {
    let mut killed = 0;
    for lives in 0.. {
        let mut c = Cluster::up();
        c.headers.clear();
        c.is_due();
        c.lives = Some(lives);
        for _ in 0..20 {
            c.round();
        }
        let alive = !c.dies();
        c.begins_anew();
        // Found at the next look at the latest; one that was told already goes on before that.
        if get(&c.status().conditions, HEADER_BACKED_UP)
            .unwrap()
            .status
            == "True"
        {
            c.is_due();
        }
        c.settle();
        c.is(HEADER_BACKED_UP, "True", Reason::AsDesired);
        assert_eq!(c.headers.len(), 1, "killed after {lives}");
        assert_eq!(c.headers[0].record, c.status().header_backup);
        assert_eq!(c.headers[0].id, c.secret());
        if alive {
            break;
        }
        killed += 1;
    }
    assert!(killed >= 4, "look, tell, store, record: {killed}");
}

#[test]
fn invariant_08_a_copy_that_is_stored_anew_is_that_of_the_key_on_record_through_a_rotation() {
    let mut c = Cluster::up();
    c.annotate(names::ROTATE_KEY_ANNOTATION, "1");
    c.settle();
    c.headers.clear();
    c.is_due();
    c.settle();
    assert_eq!(c.headers[0].version, 1);
    c.reseals("two");
    c.settle();
    c.headers.retain(|h| h.version == 1);
    c.is_due();
    c.settle();
    assert_eq!(c.secret(), "header-2");
    c.reseals("");
    c.settle();
    // The former one goes with the former key, whoever stored it.
    let versions: Vec<_> = c.headers.iter().map(|h| h.version).collect();
    assert_eq!(versions, [2]);
    assert_eq!(c.headers[0].record, c.status().header_backup);
    c.is(HEADER_BACKED_UP, "True", Reason::AsDesired);
}

#[test]
fn a_record_that_is_lost_or_was_changed_comes_back_from_the_second_copy() {
    for changed in [None, Some("digest"), Some("facts")] {
        let mut c = Cluster::up();
        let whole = c.status().header_backup.unwrap();
        // A node may not tell any more what it made.
        c.report(|s| s.header_backup = None);
        let status = c.world.volume.status.as_mut().unwrap();
        status.header_backup = changed.map(|what| {
            let mut record = whole.clone();
            match what {
                "digest" => record.digest.iterations += 1,
                _ => record.header.cipher = "aes-cbc-plain".into(),
            }
            if what == "digest" {
                record.digest.salt = "AAAA".into();
            }
            record
        });
        c.settle();
        assert_eq!(c.status().header_backup, Some(whole), "{changed:?}");
        c.is(READY, "True", Reason::AsDesired);
    }
    // Neither is the one that was pinned.
    let mut c = Cluster::up();
    c.report(|s| s.header_backup = None);
    c.headers[0].record.as_mut().unwrap().header.digest = "another volume".into();
    c.world.volume.status.as_mut().unwrap().header_backup = None;
    c.settle();
    c.is(KEY_READY, "False", Reason::HeaderRecordUnusable);
    assert!(c.status().header_backup.is_none());
    c.headers.clear();
    c.world.header = None;
    c.settle();
    c.is(KEY_READY, "False", Reason::HeaderRecordUnusable);
}

#[test]
fn a_status_that_is_lost_comes_back_where_a_node_has_the_volume() {
    let mut c = Cluster::up();
    let before = c.status();
    // A node tells of the header that it made until it was handed over.
    c.report(|s| s.header_backup = None);
    c.world.volume.status = None;
    c.settle();
    let after = c.status();
    assert_eq!(after.header_backup, before.header_backup);
    assert_eq!(after.header_secret, before.header_secret);
    assert_eq!((after.header, after.wwid), (before.header, before.wwid));
    assert_eq!(after.key.unwrap().id, KEY);
    assert_eq!((c.keys_made, c.headers.len()), (1, 1));
    c.is(READY, "True", Reason::AsDesired);
    c.is(HEADER_BACKED_UP, "True", Reason::AsDesired);

    // With the second copy gone as well it is said while the data can still be read.
    let mut c = Cluster::up();
    c.report(|s| s.header_backup = None);
    c.world.volume.status = None;
    c.headers.clear();
    c.settle();
    c.is(KEY_READY, "False", Reason::HeaderRecordUnusable);
}

/// Nothing says any more which disk it was; another one must not be taken for it, and no person be told to wipe it.
#[test]
fn a_status_that_is_lost_with_its_pins_names_the_two_secrets_and_stops() {
    let mut c = Cluster::up();
    c.attach_to(&[]);
    c.settle();
    c.lets_go();
    c.settle();
    c.world.volume.status = None;
    c.attach_to(&["a"]);
    c.settle();
    c.is(READY, "False", Reason::HeaderRecordUnusable);
    assert!(c.message().contains("header-1") && c.message().contains(KEY));
    assert!(c.message().contains("key.headerSecretRef"));
    assert!(c.world.node_volumes.is_empty());
    assert_eq!((c.keys_made, c.headers.len()), (1, 1));
    let writes = c.status_writes;
    c.settle();
    c.settle();
    assert_eq!(c.status_writes, writes, "written at each look");

    // The whole cluster is as it was before the node made the header, and the disk is not.
    let mut c = Cluster::detached(json!({}));
    c.settle();
    let record = c.record("one");
    c.keep(1, Some(&record));
    c.fails(Stage::Header, Reason::DeviceNotBlank);
    c.settle();
    c.is(READY, "False", Reason::HeaderRecordUnusable);
    assert!(c.message().contains("header-1"), "{}", c.message());
    assert!(c.nv().spec.header_record.is_none());

    // A disk that is not blank and nobody's is what its node says.
    let mut c = Cluster::detached(json!({}));
    c.settle();
    c.fails(Stage::Header, Reason::DeviceNotBlank);
    c.settle();
    c.is(READY, "False", Reason::DeviceNotBlank);
}
