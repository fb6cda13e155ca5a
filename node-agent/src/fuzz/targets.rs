//! What lies on a disk, what an array and its daemons say, and what the cluster wants: one test a parser.

use cryptvol_common::release::Released;
use cryptvol_crds::{
    NodeVolume, names,
    v1alpha1::{NodeVolumeSpec, Provider},
};
use reqwest::StatusCode;

use super::{feed, lines};
use crate::{
    host::{
        Lun, Portal, Source,
        real::{
            header::{self, Luks, Parsed, digest},
            iscsi::{
                discovery,
                iscsid::version_in,
                layout,
                request::{self, Code},
            },
            luks,
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
                written_anew(&luks);
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

/// A header without objections is the same when both its copies are written anew, and the digest in it is the one that is pinned.
fn written_anew(luks: &Luks) {
    if luks.header.facts.provider != Provider::Luks2 {
        return;
    }
    // Each of the copies by itself.
    for lost in [0, luks.copy_size()] {
        let mut bytes = header::both_copies(luks);
        bytes[lost..lost + luks.copy_size()].fill(0);
        match header::parse(&bytes, DEVICE) {
            Parsed::Luks(again) => {
                assert!(again.header == luks.header && again.slots == luks.slots);
            }
            other => panic!("{other:?}"),
        }
    }
    if let Ok(digest) = digest::read(luks) {
        let known = digest::fingerprint(&digest);
        assert_eq!(known.as_ref(), Ok(&luks.header.facts.digest));
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
fn node_volumes() {
    let mut corpus = lines(include_str!("../../corpus/node-volumes.jsonl"));
    // Those of each kind as the types have them today.
    for lab in [
        Lab::new(1),
        Lab::authenticated(1),
        Lab::local(Provider::Luks, 1),
        Lab::discovering(Provider::Luks2, 1),
        Lab::file(Provider::Luks2, 1),
        Lab::scratch_file(1),
        Lab::scratch_device(1),
    ] {
        corpus.push(serde_json::to_vec(&lab.volume(1).spec).unwrap());
    }
    let mut taken = [0; 3];
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
            // Nothing of it can leave the places that the agent works in, or look like an option.
            let within = |path: &str, dir: &str| {
                path.strip_prefix(dir)
                    .and_then(|rest| rest.strip_prefix('/'))
                    .is_some_and(|rest| {
                        let stays = |part: &str| !part.is_empty() && !part.starts_with('.');
                        rest.split('/').all(stays) && !rest.contains('\0')
                    })
            };
            let query = &wanted.query;
            assert!(within(&query.link, names::LINK_DIR), "{query:?}");
            assert!(query.mapping_name.len() < 128 && !query.mapping_name.contains('/'));
            if let Some(name) = &query.shadow {
                assert!(within(name, "/dev/disk"), "{name:?}");
            }
            match &query.source {
                Source::Iscsi(Lun { target, lun }) => {
                    taken[0] += 1;
                    assert!(!target.iqn.contains(['/', '\0', ' ']) && !target.iqn.starts_with('-'));
                    assert!(*lun <= 16383 && !target.portals.is_empty() && !wanted.ephemeral);
                    for Portal { address, port } in &target.portals {
                        assert!(!address.contains(['/', '\0', ' ']) && !address.starts_with('-'));
                        assert!(*port > 0);
                    }
                }
                Source::Device { path } => {
                    taken[1] += 1;
                    assert!(within(path, "/dev"), "{path:?}");
                }
                Source::File(file) => {
                    taken[2] += 1;
                    assert!(within(&file.path, names::FILE_DIR), "{file:?}");
                    assert!(!file.path[names::FILE_DIR.len() + 1..].contains('/'));
                    assert!(file.size_bytes.is_multiple_of(4096) && file.size_bytes >= 32 << 20);
                }
            }
            let encryption = &wanted.encryption;
            assert!(!wanted.ephemeral || encryption.provider == Provider::Plain);
            assert!(!encryption.detached_header || encryption.provider == Provider::Luks2);
        },
    );
    assert!(taken.iter().all(|n| *n > 10), "{taken:?}");
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
