//! One test a parser.

use std::{fs, os::unix::fs::symlink};

use cryptvol_common::release::Released;
use cryptvol_crds::{NodeVolume, v1alpha1::NodeVolumeSpec};
use reqwest::StatusCode;

use super::{feed, lines};
use crate::{
    host::{
        Lun, Portal, Source, Target,
        real::{
            dm,
            header::{self, Parsed},
            iscsi::{
                discovery,
                iscsid::version_in,
                layout,
                request::{self, Code},
            },
            luks,
            sysfs::Sysfs,
            testing::{device, order, order_luks1},
        },
    },
    release,
    volume::{tests::lab::Lab, wanted::Wanted},
};

const DEVICE: u64 = 64 << 20;

fn good_header() -> Vec<u8> {
    let (_path, disk) = device(DEVICE);
    luks::format(&disk, &order()).unwrap();
    disk.read_vec(0, 2 * header::corpus::COPY).unwrap().to_vec()
}

/// What is told of a header is short and printable, and nothing that is objected to is taken.
fn judge(head: &[u8]) {
    let texts = match header::parse(head, DEVICE) {
        Parsed::Luks(luks) => {
            assert!(luks.bytes.len() <= head.len() && luks.header.key_slots <= 32);
            if luks.header.objections.is_empty() {
                let facts = &luks.header.facts;
                assert!(!facts.cipher.contains("null") && facts.data_offset > 1 << 12);
                assert!(
                    (facts.data_offset as u64) < DEVICE
                        && luks.areas.end <= facts.data_offset as u64
                );
                for slot in &luks.slots {
                    assert!(
                        slot.area.end <= luks.areas.end
                            && slot.area.end - slot.area.start <= 512 << 10
                    );
                }
            }
            let mut texts = luks.header.objections;
            texts.push(luks.header.facts.cipher);
            texts
        }
        Parsed::Foreign(why) => vec![why],
        Parsed::None | Parsed::NeedMore(_) => vec![],
    };
    assert!(texts.len() <= 10);
    for text in texts {
        assert!(
            text.chars().count() <= 350 && !text.contains(char::is_control),
            "{text:?}"
        );
    }
}

#[test]
fn luks2_header() {
    let good = good_header();
    let corpus: Vec<_> = header::corpus::ALL
        .iter()
        .map(|forgery| {
            let mut head = good.clone();
            forgery.apply(&mut head);
            head
        })
        .chain([good.clone()])
        .collect();
    feed("header", &corpus, |len| 8 * len + (64 << 10), judge);
}

#[test]
fn luks1_header() {
    let (_path, disk) = device(DEVICE);
    luks::format(&disk, &order_luks1()).unwrap();
    let good = disk.read_vec(0, 2 * header::corpus::COPY).unwrap().to_vec();
    let recipes = header::corpus_luks1::OBJECTED.iter();
    let corpus: Vec<_> = recipes
        .chain(header::corpus_luks1::DAMAGED)
        .map(|forgery| {
            let mut head = good.clone();
            (forgery.apply)(&mut head);
            head.truncate(header::corpus_luks1::BLOCK);
            head
        })
        .collect();
    let (mut luks, mut clean) = (0, 0);
    let most = |len| 8 * len + (64 << 10);
    feed("LUKS1 header", &corpus, most, |head| {
        judge(head);
        if let Parsed::Luks(found) = header::parse(head, DEVICE) {
            luks += 1;
            clean += usize::from(found.header.objections.is_empty());
        }
    });
    assert!(
        luks > 100 && clean > 3,
        "only {luks} mutations were headers at all, {clean} without objection"
    );
}

#[test]
fn luks2_metadata() {
    // Behind the checksums: a forger's metadata in both copies, with checksums that are right.
    let good = good_header();
    let corpus: Vec<_> = header::corpus::ALL
        .iter()
        .map(|forgery| {
            let mut head = good.clone();
            forgery.apply(&mut head);
            let text = &head[4096..header::corpus::COPY];
            text.split(|b| *b == 0).next().unwrap_or_default().to_vec()
        })
        .collect();
    let (mut luks, mut clean) = (0, 0);
    feed(
        "metadata",
        &corpus,
        |_| 512 << 10,
        |text| {
            let mut head = good.clone();
            let text = &text[..text.len().min(header::corpus::COPY - 4096)];
            for copy in head.chunks_mut(header::corpus::COPY).take(2) {
                copy[4096..].fill(0);
                copy[4096..4096 + text.len()].copy_from_slice(text);
                header::corpus::seal(copy);
            }
            judge(&head);
            if let Parsed::Luks(found) = header::parse(&head, DEVICE) {
                luks += 1;
                clean += usize::from(found.header.objections.is_empty());
            }
        },
    );
    assert!(
        luks > 100 && clean > 3,
        "only {luks} mutations were metadata at all, {clean} without objection"
    );
}

/// Signatures of others: libblkid looks at a copy of what was read.
#[test]
fn foreign_signatures() {
    let mut dos = vec![0; 4096];
    dos[510..512].copy_from_slice(&[0x55, 0xaa]);
    dos[446..462].copy_from_slice(&[0, 0, 2, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0]);
    let mut ext4 = vec![0; 8192];
    ext4[1024 + 56..][..2].copy_from_slice(&[0x53, 0xef]);
    ext4[1024 + 24..][..4].copy_from_slice(&[2, 0, 0, 0]);
    let mut swap = vec![0; 4096];
    swap[1024] = 1;
    swap[4086..].copy_from_slice(b"SWAPSPACE2");
    let mut xfs = vec![0; 4096];
    xfs[..8].copy_from_slice(b"XFSB\0\0\x10\0");
    let corpus = [dos, ext4, swap, xfs, vec![0xff; 4096]];
    feed(
        "signature",
        &corpus,
        |len| 4 * len + (64 << 10),
        |bytes| {
            let size = 1 << 20;
            let len = bytes.len().min(512 << 10);
            if let Some(what) = header::probe::signature(&bytes[..len], &[], size).unwrap() {
                assert!(!what.is_empty());
            }
        },
    );
}

#[test]
fn iscsid_answers() {
    let layout = layout::of_version("2.1.8").unwrap();
    let mut corpus = Vec::new();
    for (command, code, text) in [
        (1, 0, "iqn.2026-11.dev.example:node-1"),
        (1, 24, ""),
        (2, 0, ""),
        (9, 15, "x"),
        (-1, -1, ""),
    ] {
        let mut bytes = vec![0; layout.answer_size];
        bytes[..4].copy_from_slice(&i32::to_ne_bytes(command));
        bytes[4..8].copy_from_slice(&i32::to_ne_bytes(code));
        bytes[8..8 + text.len()].copy_from_slice(text.as_bytes());
        corpus.push(bytes);
    }
    let portal = Portal {
        address: "192.0.2.1".into(),
        port: 3260,
    };
    feed(
        "iscsid",
        &corpus,
        |len| 4 * len + 4096,
        |bytes| {
            for command in [request::Command::Login, request::Command::Logout] {
                if let Some(code) = request::answer(bytes, command).filter(|c| *c != Code::SUCCESS)
                {
                    assert!(
                        !code
                            .of_login(
                                "iqn.2026-11.dev.example:db-0",
                                &portal,
                                &request::answer_text(bytes)
                            )
                            .message
                            .is_empty()
                    );
                }
            }
        },
    );
    let programs = lines(include_str!("../../corpus/iscsid-programs.txt"));
    feed(
        "iscsid's program",
        &programs,
        |len| len + 4096,
        |bytes| {
            if let Some(version) = version_in(bytes) {
                assert!(version.len() <= 32 && version.bytes().all(|b| b.is_ascii_graphic()));
            }
        },
    );
}

/// What an array says in a discovery, as one stream of PDUs.
#[test]
fn iscsi_discovery() {
    let corpus = discovery::tests::streams();
    let mut told = 0;
    feed(
        "discovery",
        &corpus,
        |len| 16 * len + (64 << 10),
        |stream| {
            for way in [None, Some(false), Some(true)] {
                match discovery::tests::take(stream, way) {
                    Ok(addresses) => {
                        told += 1;
                        let named = [Portal {
                            address: "192.0.2.1".into(),
                            port: 3260,
                        }];
                        let found = discovery::bounds::admit(&named, &addresses);
                        assert!(found.portals.len() < 16 && found.ignored.len() <= 9);
                        for text in &found.ignored {
                            assert!(text.chars().count() < 120);
                            assert!(!text.contains(char::is_control));
                        }
                    }
                    Err(e) => assert!(e.to_string().len() < 200),
                }
            }
        },
    );
    assert!(told > 100, "{told}");
}

#[test]
fn dm_tables() {
    let corpus = lines(include_str!("../../corpus/dm-tables.txt"));
    feed(
        "dm table",
        &corpus,
        |len| 24 * len + 4096,
        |bytes| {
            let line = String::from_utf8_lossy(bytes);
            let (target, params) = line.split_once(' ').unwrap_or((&line, ""));
            let table = dm::crypt_table(target, params);
            // A key that lies open in the table is never taken for one that does not, and is told nowhere.
            let key = params.split(' ').nth(1).unwrap_or_default();
            assert!(!table.key_in_keyring || key.starts_with(':'));
            assert!(
                key.len() < 32
                    || table.target_type.contains(key)
                    || !format!("{table:?}").contains(key)
                    || params.matches(key).count() > 1
            );
        },
    );
}

#[test]
fn sysfs_values() {
    let tmp = tempfile::tempdir().unwrap();
    let root = tmp.path();
    let session = root.join("devices/platform/host2/session1");
    let scsi = session.join("target2:0:0/2:0:0:1");
    let block = scsi.join("block/sda");
    let class = session.join("iscsi_session/session1");
    for dir in [
        &class,
        &block.join("holders/dm-0"),
        &root.join("class/iscsi_session"),
        &root.join("dev/block"),
    ] {
        fs::create_dir_all(dir).unwrap();
    }
    symlink(
        "../../devices/platform/host2/session1/iscsi_session/session1",
        root.join("class/iscsi_session/session1"),
    )
    .unwrap();
    symlink(
        "../../devices/platform/host2/session1/target2:0:0/2:0:0:1/block/sda",
        root.join("dev/block/8:0"),
    )
    .unwrap();
    symlink("../../../2:0:0:1", block.join("device")).unwrap();
    let files = [
        class.join("targetname"),
        class.join("state"),
        class.join("target_id"),
        scsi.join("type"),
        scsi.join("state"),
        scsi.join("wwid"),
        block.join("dev"),
        block.join("size"),
    ];
    let sysfs = Sysfs::at(root);
    // One line is a whole tree: its attributes with `|` between.
    let corpus = lines(include_str!("../../corpus/sysfs.txt"));
    let mut found = 0;
    feed(
        "sysfs",
        &corpus,
        |len| 64 * len + (64 << 10),
        |bytes| {
            let mut values = bytes.split(|b| *b == b'|');
            for file in &files {
                fs::write(file, values.next().unwrap_or_default()).unwrap();
            }
            let name = fs::read_to_string(&files[0]).unwrap_or_default();
            let target = Target {
                portals: vec![Portal {
                    address: "192.0.2.1".into(),
                    port: 3260,
                }],
                iqn: name.trim().to_owned(),
            };
            let Ok(paths) = sysfs.paths(&Lun { target, lun: 1 }) else {
                return;
            };
            for device in paths.into_iter().filter_map(|p| p.disk) {
                found += 1;
                assert!(device.id.path == "/dev/sda" && device.id.size_bytes.is_multiple_of(512));
                let _ = sysfs.same_device(&device.id);
            }
        },
    );
    assert!(found > 100, "{found}");
}

#[test]
fn node_volumes() {
    let mut corpus = lines(include_str!("../../corpus/node-volumes.jsonl"));
    // One as the types have it today.
    corpus.push(serde_json::to_vec(&Lab::new(1).volume(1).spec).unwrap());
    let mut taken = 0;
    feed(
        "NodeVolume",
        &corpus,
        |len| 64 * len + (64 << 10),
        |bytes| {
            let Ok(spec) = serde_json::from_slice::<NodeVolumeSpec>(bytes) else {
                return;
            };
            let Ok(wanted) = Wanted::read(&NodeVolume::new("vol", spec)) else {
                return;
            };
            taken += 1;
            // Nothing of it can leave the places that the agent works in, or look like an option.
            let query = &wanted.query;
            assert!(
                query.link.starts_with("/dev/cryptvol/")
                    && !query.link.split('/').any(|p| p == ".." || p == ".")
            );
            let Source::Iscsi(Lun { target, lun }) = &query.source else {
                panic!("a source that is not implemented: {query:?}");
            };
            assert!(!target.iqn.contains(['/', '\0', ' ']) && !target.iqn.starts_with('-'));
            assert!(*lun <= 16383 && !target.portals.is_empty());
            for portal in &target.portals {
                assert!(
                    !portal.address.contains(['/', '\0', ' ']) && !portal.address.starts_with('-')
                );
                assert!(portal.port > 0);
            }
            assert!(query.mapping_name.len() < 128 && !query.mapping_name.contains('/'));
        },
    );
    assert!(taken > 30, "{taken}");
}

#[test]
fn key_release_answers() {
    const SECRET: &str = "5ec4e7c0ffee5ec4";
    let corpus = lines(include_str!("../../corpus/key-release.txt"));
    let mut released = 0;
    feed(
        "key release",
        &corpus,
        |len| 16 * len + (16 << 10),
        |bytes| {
            let secret_is_whole = bytes.windows(SECRET.len()).any(|w| w == SECRET.as_bytes());
            for status in [
                StatusCode::OK,
                StatusCode::FORBIDDEN,
                StatusCode::BAD_GATEWAY,
            ] {
                match release::answer(status, bytes) {
                    Ok(answer) => {
                        released += 1;
                        let shown = format!("{answer:?}");
                        assert!(!shown.contains(SECRET), "{shown}");
                        assert!(matches!(
                            answer,
                            Released::Passphrase(_) | Released::Chap { .. }
                        ));
                    }
                    // A refusal's message is the operator's own words; a broken answer's words are never told.
                    Err(e) if status == StatusCode::OK => {
                        assert!(
                            !(secret_is_whole && e.message.contains(SECRET)),
                            "{}",
                            e.message
                        );
                    }
                    Err(e) => assert!(e.message.len() <= bytes.len() + 200),
                }
            }
        },
    );
    assert!(released > 30, "{released}");
}
