//! Records of fixed form: one test a parser.

use cryptvol_crds::{
    conditions::Reason,
    orphans::Orphans,
    quantity,
    v1alpha1::{HeaderBackup, HeaderFacts, Integrity, IntegrityFacts},
};
use serde::{Serialize, de::DeserializeOwned};

use super::{feed, lines};
use crate::{
    host::{
        Chap, HeaderFound, OpenOrder, Passphrase, RecordOrder, StepError, TargetChap,
        real::{
            detached,
            integrity::{superblock, tests::made_by_kernel},
            testing::order,
        },
    },
    volume::{tests::lab::Lab, wanted::Wanted},
    worker::protocol::{self, Answer, Call, MAX_FRAME},
};

const MIB: u64 = 1 << 20;

/// What dm-integrity notes on the disk: what is taken lies within the room that there is, and no byte of the data in the place of another.
#[test]
fn integrity_superblock() {
    let tag = Integrity::HmacSha256.tag_bytes();
    let corpus: Vec<_> = [512, 4096]
        .map(|sector| {
            // The rest is zeros, and is not looked at.
            let mut bytes = made_by_kernel(sector);
            bytes.truncate(32);
            bytes
        })
        .to_vec();
    let mut taken = 0;
    feed(
        "superblock of dm-integrity",
        &corpus,
        |_| 4096,
        |bytes| {
            for sector_size in [512, 4096] {
                for room in [4096, 112 * MIB, 1 << 40, u64::MAX] {
                    let facts = HeaderFacts {
                        sector_size,
                        data_offset: 16 << 20,
                        integrity: Some(IntegrityFacts {
                            kind: Integrity::HmacSha256,
                            data_bytes: 0,
                        }),
                        ..HeaderFacts::default()
                    };
                    let layout = match superblock(bytes, &facts, room) {
                        Ok(layout) => layout,
                        Err(why) => {
                            assert!(why.len() < 200 && !why.contains(char::is_control));
                            continue;
                        }
                    };
                    taken += 1;
                    let end = layout.data_bytes;
                    assert!(end > 0 && end.is_multiple_of(4096));
                    let places = [0, 4096.min(end - 4096), end / 8192 * 4096, end - 4096];
                    let raw = places.map(|at| layout.raw(at, tag).unwrap());
                    assert!(raw.is_sorted() && raw[0] >= 8 * 512, "{raw:?}");
                    assert!(raw[3] + 4096 <= room, "{raw:?}");
                    for (at, raw) in places.iter().zip(raw) {
                        assert!(raw > *at, "{at} lies at {raw}");
                    }
                }
            }
        },
    );
    assert!(taken > 100, "{taken}");
}

/// A header that lies apart from its disk, as etcd or the key manager give it: the very record opens, to the very key, or none does.
#[test]
fn header_records() {
    let corpus = lines(include_str!("../../corpus/header-records.jsonl"));
    let passphrase = Passphrase("7".repeat(64));
    let open = |record: &HeaderBackup| detached::open(record, &record.header, &passphrase);
    let true_one: HeaderBackup = serde_json::from_slice(&corpus[0]).unwrap();
    let key = open(&true_one).unwrap().bytes().to_vec();
    let (mut read, mut opened) = (0, 0);
    feed(
        "header record",
        &corpus,
        |len| 64 * len + (16 << 10),
        |bytes| {
            let Ok(record) = serde_json::from_slice::<HeaderBackup>(bytes) else {
                return;
            };
            read += 1;
            let again = serde_json::to_vec(&record).unwrap();
            assert_eq!(
                serde_json::from_slice::<HeaderBackup>(&again).unwrap(),
                record
            );
            assert!(!format!("{record:?}").contains(&record.sealed) || record.sealed.len() < 16);
            match open(&record) {
                Ok(found) => {
                    opened += 1;
                    assert!(record == true_one && found.bytes() == key);
                }
                Err(e) => assert!(
                    matches!(
                        e.reason(),
                        Reason::HeaderRecordUnusable | Reason::StepFailed
                    ),
                    "{e}"
                ),
            }
        },
    );
    assert!(read > 200 && opened > 1, "{read} {opened}");
}

const SECRET: &str = "5ec4e7c0ffee5ec4";

fn frames<T: Serialize>(messages: &[T]) -> Vec<Vec<u8>> {
    let frames = messages
        .iter()
        .map(|m| protocol::encode(m).unwrap().to_vec());
    let mut frames: Vec<_> = frames.collect();
    frames.push(vec![0xff; 8]);
    frames.push(u32::try_from(MAX_FRAME).unwrap().to_le_bytes().to_vec());
    // Of another version: a call and an answer that nobody knows.
    for text in ["{\"NoSuchCall\":[1]}", "{\"Ok\":{\"NoSuchAnswer\":1}}"] {
        let length = u32::try_from(text.len()).unwrap().to_le_bytes();
        frames.push([&length[..], text.as_bytes()].concat());
    }
    frames
}

/// A frame as it is, and one of the same content whose length is right: few mutations leave it so.
fn either<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let content = bytes.get(4..).unwrap_or_default();
    let length = u32::try_from(content.len()).unwrap().to_le_bytes();
    frame(bytes).or_else(|| frame(&[&length[..], content].concat()))
}

/// What is taken says the same when it is sent on; what is not is told without a word of it.
fn frame<T: Serialize + DeserializeOwned>(mut bytes: &[u8]) -> Option<T> {
    let all = bytes;
    match protocol::read::<T>(&mut bytes) {
        Ok(Some(message)) => {
            let sent = protocol::encode(&message).unwrap();
            let again: T = protocol::read(&mut &sent[..]).unwrap().unwrap();
            assert_eq!(protocol::encode(&again).unwrap(), sent);
            Some(message)
        }
        Ok(None) => {
            assert!(all.len() < 4);
            None
        }
        Err(e) => {
            let told = e.to_string();
            assert!(told.len() < 100 && !told.contains(SECRET), "{told}");
            None
        }
    }
}

/// Memory that a frame takes: what its length promises, up to the limit, and what is made of what came.
fn most(len: usize) -> usize {
    MAX_FRAME + 64 * len + (64 << 10)
}

#[test]
fn worker_calls() {
    let wanted = Wanted::read(&Lab::new(1).volume(1)).unwrap();
    let crate::host::Source::Iscsi(lun) = &wanted.query.source else {
        panic!()
    };
    let chap = Chap {
        username: "node-1".into(),
        password: SECRET.into(),
        target: Some(TargetChap {
            username: "array".into(),
            password: SECRET.into(),
        }),
    };
    let mut format = order();
    format.passphrase = Passphrase(SECRET.into());
    let device = crate::host::DeviceId {
        path: "/dev/sda".into(),
        dev: "8:0".into(),
        kind: crate::host::RawKind::Lun {
            hctl: "0:0:0:1".into(),
        },
        wwid: Some("naa.6001405".into()),
        size_bytes: 64 << 20,
    };
    let open = OpenOrder {
        derivations: vec![],
        mapping_name: "m".into(),
        mapping_uuid: "u".into(),
        expected: HeaderFacts::default(),
        blank: false,
        random: false,
        activation: Default::default(),
        unlock_memory_kib: 0,
        passphrase: Some(Passphrase(SECRET.into())),
        record: None,
    };
    let corpus = frames(&[
        Call::Observe(wanted.query.clone()),
        Call::Login(lun.target.clone(), true, Some(chap)),
        Call::Scan(lun.target.iqn.clone(), 1, 1),
        Call::Format(device.clone(), format.clone()),
        Call::Open(device, open),
        Call::HeaderRecord(RecordOrder::Make(format)),
        Call::Unlink("/dev/cryptvol/ns/vol".into()),
        Call::Probe,
    ]);
    let mut taken = 0;
    feed("call", &corpus, most, |bytes| {
        let Some(call) = either::<Call>(bytes) else {
            return;
        };
        taken += 1;
        assert!(!format!("{call:?}").contains(SECRET) || call.name() == "unlink");
        assert!(call.deadline().as_secs() <= 90);
    });
    assert!(taken > 100, "{taken}");
}

#[test]
fn worker_answers() {
    let corpus = frames::<Result<Answer, StepError>>(&[
        Ok(Answer::Unit),
        Ok(Answer::Observed(Box::default())),
        Ok(Answer::Found(HeaderFound::Foreign(
            "ext4 version 1.0".into(),
        ))),
        Ok(Answer::Found(HeaderFound::Blank)),
        Err(StepError::new(
            Reason::HeaderMismatch,
            "LUKS UUID is x and was y",
        )),
    ]);
    let mut taken = 0;
    feed("answer", &corpus, most, |bytes| {
        match either::<Result<Answer, StepError>>(bytes) {
            None => return,
            // Whatever word stands there, it is one that has a next step.
            Some(Err(e)) => assert!(!e.reason().next_step().is_empty()),
            Some(Ok(_)) => {}
        }
        taken += 1;
    });
    assert!(taken > 50, "{taken}");
}

/// What a Node says of what is left on it, from an earlier life of the agent.
#[test]
fn orphan_annotations() {
    let corpus = lines(include_str!("../../corpus/orphans.jsonl"));
    let mut taken = 0;
    feed(
        "orphans",
        &corpus,
        |len| 64 * len + 4096,
        |bytes| {
            if let Ok(orphans) = serde_json::from_slice::<Orphans>(bytes) {
                taken += 1;
                let again = serde_json::to_vec(&orphans).unwrap();
                assert_eq!(serde_json::from_slice::<Orphans>(&again).unwrap(), orphans);
            }
        },
    );
    assert!(taken > 100, "{taken}");
}

/// Sizes as users write them: what is taken is a positive number of bytes, and the same without its suffix.
#[test]
fn quantities() {
    let corpus = lines(include_str!("../../corpus/quantities.txt"));
    let mut taken = 0;
    feed(
        "quantity",
        &corpus,
        |len| 16 * len + 4096,
        |bytes| {
            let text = String::from_utf8_lossy(bytes);
            if let Some(found) = quantity::bytes(&text) {
                taken += 1;
                assert!(found > 0, "{text}");
                assert_eq!(quantity::bytes(&found.to_string()), Some(found));
                assert!(text.starts_with(|c: char| c.is_ascii_digit()), "{text}");
            }
        },
    );
    assert!(taken > 100, "{taken}");
}
