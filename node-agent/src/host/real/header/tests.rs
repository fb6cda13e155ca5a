//! Headers that libcryptsetup made, and forged ones.

use serde_json::{Value, json};

use super::*;
use crate::host::{
    Header,
    real::{
        luks,
        testing::{device, order, rewrite},
    },
};
use corpus::{Forgery, Verdict, metadata, put, put_both, seal};

const SIZE: u64 = 64 << 20;

/// The first bytes of a device with a good header.
fn good() -> Vec<u8> {
    static GOOD: std::sync::LazyLock<Vec<u8>> = std::sync::LazyLock::new(|| {
        let (_path, disk) = device(SIZE);
        luks::format(&disk, &order()).unwrap();
        disk.read_vec(0, 2 * USUAL_COPY).unwrap().to_vec()
    });
    GOOD.clone()
}

fn header(head: &[u8]) -> Header {
    match parse(head, SIZE) {
        Parsed::Luks(luks) => luks.header,
        other => panic!("{other:?}"),
    }
}

/// A header whose metadata a forger changed, in both copies.
fn forged(change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut head = good();
    let mut json = metadata(&head);
    change(&mut json);
    put_both(&mut head, &json.to_string());
    head
}

#[test]
fn a_good_header_has_no_objections() {
    let head = good();
    let header = header(&head);
    assert_eq!(header.objections, Vec::<String>::new());
    assert_eq!(header.facts.luks_uuid, order().luks_uuid);
    // Forging nothing changes nothing: the tests below fail for their cause and not for the way they forge.
    assert_eq!(header, self::header(&forged(|_| {})));
}

#[test]
fn every_forged_header_of_the_corpus_is_refused_in_its_own_words() {
    let mut names = std::collections::BTreeSet::new();
    for forgery in corpus::ALL {
        let Forgery { name, sentence, .. } = forgery;
        assert!(names.insert(name), "{name} stands there twice");
        let mut head = good();
        forgery.apply(&mut head);
        let said = match parse(&head, SIZE) {
            Parsed::Luks(luks) if forgery.verdict == Verdict::Objected => {
                assert!(!luks.header.objections.is_empty(), "{name}");
                assert!(luks.header.facts.cipher.len() <= 4 * MAX_CIPHER, "{name}");
                luks.header.objections.join("; ")
            }
            Parsed::Foreign(why) if forgery.verdict == Verdict::Damaged => why,
            other => panic!("{name}: {other:?}"),
        };
        assert!(
            said.contains(sentence),
            "{name}: {sentence:?} not in {said:?}"
        );
        assert!(said.len() < 2000, "{name}: {} bytes", said.len());
        // What is refused is refused before anything of it is used: the same from a disk, with not a byte written.
        let (path, disk) = device(SIZE);
        rewrite(&disk, 0, &head);
        let before = std::fs::read(path.path()).unwrap();
        assert!(!matches!(read(&disk).unwrap(), HeaderFound::Luks(h) if h.objections.is_empty()));
        assert!(
            before == std::fs::read(path.path()).unwrap(),
            "{name}: written"
        );
    }
}

#[test]
fn tokens_of_others_are_no_objection() {
    let head = forged(|j| {
        j["tokens"]["0"] = json!({"type": "clevis", "keyslots": ["0"], "jwe": {"protected": "x", "a": [1, {"b": null}]}});
    });
    assert_eq!(header(&head), header(&good()));
}

#[test]
fn giant_metadata_is_refused_at_once() {
    for (filler, why) in [
        ("0,".repeat(1 << 20), "more values"),
        ("[".repeat(2 << 20), "deeper"),
        (format!("\"{}\",", "x".repeat(3 << 20)), "metadata: "),
    ] {
        let text = corpus::giant_metadata(&good(), &filler);
        let said = match parse(&corpus::giant(&good(), &text), SIZE) {
            Parsed::Foreign(said) => said,
            Parsed::Luks(luks) => format!("metadata: {:?}", luks.header.objections),
            other => panic!("{other:?}"),
        };
        assert!(said.contains(why), "{why:?} not in {said:?}");
    }
}

#[test]
fn what_was_checked_is_what_is_opened() {
    // The array shows a good header to the judge and a forged one to whoever reads later.
    for name in ["null data cipher", "null key slot cipher", "PBKDF2 bomb"] {
        let (_path, disk) = device(SIZE);
        luks::format(&disk, &order()).unwrap();
        let checked = read_luks(&disk).unwrap().unwrap();
        let mut head = good();
        corpus::by_name(name).unwrap().apply(&mut head);
        rewrite(&disk, 0, &head);
        let key = luks::unlock(&disk, &checked, &order().passphrase).unwrap();
        assert_eq!(key.bytes().len(), 64, "{name}");
    }
    // Key slots are read again. Others in their place open nothing, and what they are decrypted with is what was checked.
    let (_path, disk) = device(SIZE);
    luks::format(&disk, &order()).unwrap();
    let checked = read_luks(&disk).unwrap().unwrap();
    let (_other, disk) = device(SIZE);
    luks::format(&disk, &order()).unwrap();
    let refused = luks::unlock(&disk, &checked, &order().passphrase)
        .err()
        .unwrap();
    assert_eq!(
        refused.reason(),
        cryptvol_crds::conditions::Reason::KeyDoesNotOpen
    );
}

/// Within the bounds that every header has, and so no objection; but not what was judged, and not what this agent writes.
#[test]
fn a_key_that_is_derived_otherwise_than_was_judged_is_not_derived() {
    use crate::host::OWN_DERIVATIONS;
    use cryptvol_crds::conditions::Reason;
    let (path, disk) = device(SIZE);
    let judged = luks::format(&disk, &order()).unwrap();
    let mut own = OWN_DERIVATIONS.map(str::to_owned);
    own.sort();
    assert_eq!(judged.derivations, own);
    let good = disk.read_vec(0, 2 * USUAL_COPY).unwrap().to_vec();
    type Change = fn(&mut Value);
    let changes: [(&str, Change); 5] = [
        ("pbkdf2 sha256 9000000", |j| match corpus::DEARER.forge {
            corpus::Recipe::Metadata(change) => change(j),
            _ => panic!(),
        }),
        ("pbkdf2 sha512 1000", |j| {
            j["keyslots"]["0"]["kdf"]["hash"] = json!("sha512")
        }),
        ("digest pbkdf2 sha256 9000000", |j| {
            j["digests"]["0"]["iterations"] = json!(9_000_000)
        }),
        ("argon2id time 16 memory 1048576 threads 4", |j| {
            j["keyslots"]["0"]["kdf"] = json!({"type": "argon2id", "time": 16, "memory": 1 << 20, "cpus": 4, "salt": "AAAAAAAAAAAAAAAAAAAAAA=="});
        }),
        ("argon2i time 4 memory 32 threads 1", |j| {
            let mut slot = j["keyslots"]["0"].clone();
            slot["area"]["offset"] = json!("290816");
            slot["kdf"] = json!({"type": "argon2i", "time": 4, "memory": 32, "cpus": 1, "salt": "AAAAAAAAAAAAAAAAAAAAAA=="});
            j["keyslots"]["1"] = slot;
            j["digests"]["0"]["keyslots"] = json!(["0", "1"]);
        }),
    ];
    for (way, change) in changes {
        let mut head = good.clone();
        let mut json = metadata(&head);
        change(&mut json);
        put_both(&mut head, &json.to_string());
        rewrite(&disk, 0, &head);
        let before = std::fs::read(path.path()).unwrap();
        let found = header(&head);
        assert_eq!(found.objections, Vec::<String>::new(), "{way}");
        assert_eq!(found.strange_derivation(&judged.derivations), Some(way));
        assert_eq!(found.strange_derivation(&[]), None, "nothing was pinned");
        assert_eq!(found.strange_derivation(&found.derivations), None);
        let refused = |e: crate::host::StepError| {
            assert_eq!(e.reason(), Reason::HeaderMismatch, "{way}: {e}");
            assert!(e.message.contains(way), "{way}: {e}");
        };
        let pinned = super::super::pinned_header(&disk, &judged.facts, &judged.derivations);
        refused(pinned.map(drop).unwrap_err());
        // A format that finds the volume's own UUID opens nothing that costs more than its own header.
        refused(luks::format(&disk, &order()).map(drop).unwrap_err());
        assert!(
            before == std::fs::read(path.path()).unwrap(),
            "{way}: written"
        );
    }
}

#[test]
fn one_damaged_copy_is_no_harm_and_two_are() {
    let head = good();
    let whole = header(&head);
    for at in [0, 5000] {
        let mut torn = head.clone();
        torn[at] ^= 1;
        assert_eq!(header(&torn), whole);
        torn[at + USUAL_COPY] ^= 1;
        match parse(&torn, SIZE) {
            Parsed::Foreign(why) => assert!(why.contains("damaged"), "{why}"),
            Parsed::None => assert_eq!(at, 0),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn the_newer_copy_counts_and_equally_new_ones_must_agree() {
    let mut head = good();
    let mut json = metadata(&head);
    json["segments"]["0"]["sector_size"] = json!(4096);
    put(&mut head, 1, &json.to_string());
    let disagreeing = header(&head);
    assert!(
        disagreeing
            .objections
            .iter()
            .any(|o| o.contains("disagree"))
    );

    // The first copy newer: what an interrupted change leaves. The older copy does not go along to whoever opens from these
    // bytes.
    let mut head = good();
    head[23] += 1;
    put(&mut head, 0, &json.to_string());
    let newer = header(&head);
    assert_eq!(newer.facts.sector_size, 4096);
    assert_eq!(newer.objections, Vec::<String>::new());
    match parse(&head, SIZE) {
        Parsed::Luks(luks) => assert!(is_zero(&luks.bytes[USUAL_COPY..])),
        other => panic!("{other:?}"),
    }
}

#[test]
fn any_bytes_are_read_without_harm() {
    let head = good();
    for len in (0..head.len()).step_by(97) {
        let _ = parse(&head[..len], SIZE);
    }
    // Every byte of the binary header and of the metadata, inverted.
    for at in (0..6000).step_by(7) {
        let mut bad = head.clone();
        bad[at] ^= 0xff;
        bad[at + USUAL_COPY] ^= 0xff;
        let _ = parse(&bad, SIZE);
        seal(&mut bad[..USUAL_COPY]);
        seal(&mut bad[USUAL_COPY..2 * USUAL_COPY]);
        let _ = parse(&bad, SIZE);
    }
}

#[test]
fn a_version_that_nobody_knows_is_foreign() {
    let (_path, disk) = device(SIZE);
    let mut magic = [0; 4096];
    magic[..6].copy_from_slice(PRIMARY);
    magic[7] = 3;
    rewrite(&disk, 0, &magic);
    assert_eq!(
        read(&disk).unwrap(),
        HeaderFound::Foreign("crypto_LUKS version 3".into())
    );
}

fn found_after(command: &[&str]) -> HeaderFound {
    let (path, disk) = device(SIZE);
    let output = std::process::Command::new(command[0])
        .args(&command[1..])
        .arg(path.path())
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .output()
        .unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    read(&disk).unwrap()
}

#[test]
fn foreign_signatures_are_named() {
    let foreign = |what: &str| HeaderFound::Foreign(what.into());
    assert_eq!(
        found_after(&["mkfs.ext4", "-q"]),
        foreign("ext4 version 1.0")
    );
    match found_after(&["mkswap", "-q"]) {
        HeaderFound::Foreign(what) => assert!(what.starts_with("swap"), "{what}"),
        other => panic!("{other:?}"),
    }
    // LVM2 as pvcreate writes it: a label in the second sector with a CRC that libblkid checks is not needed here,
    // a partition table is.
    let (_path, disk) = device(SIZE);
    let mut sector = vec![0; 4096];
    sector[510..512].copy_from_slice(&[0x55, 0xaa]);
    sector[446..462].copy_from_slice(&[0, 0, 2, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0]);
    rewrite(&disk, 0, &sector);
    assert_eq!(read(&disk).unwrap(), foreign("dos partition table"));
}

#[test]
fn blank_means_zeros_where_anything_could_be() {
    let (_path, disk) = device(SIZE);
    assert_eq!(read(&disk).unwrap(), HeaderFound::Blank);
    for at in [0, 4096, (16 << 20) - 4096, SIZE - (2 << 20), SIZE - 4096] {
        let (_path, disk) = device(SIZE);
        let mut block = [0; 4096];
        block[4095] = 1;
        rewrite(&disk, at, &block);
        assert_eq!(read(&disk).unwrap(), HeaderFound::Unknown, "{at}");
    }
    // Smaller than a header would be.
    let (_path, disk) = device(8 << 20);
    assert_eq!(read(&disk).unwrap(), HeaderFound::Blank);
    rewrite(&disk, (8 << 20) - 4096, &[1; 4096]);
    assert_eq!(read(&disk).unwrap(), HeaderFound::Unknown);
}

#[test]
fn a_device_that_ends_early_is_unreadable_and_not_blank() {
    let (path, disk) = device(SIZE);
    path.as_file().set_len(1 << 20).unwrap();
    assert_eq!(
        read(&disk).unwrap_err().reason(),
        cryptvol_crds::conditions::Reason::DeviceUnreadable
    );
}

/// Key derivation costs more memory than the agent may take: what we write costs nothing, what others wrote is bounded.
#[test]
fn peer_failure_12_key_derivation_has_a_bound() {
    let ours = metadata(&good());
    assert_eq!(ours["keyslots"]["0"]["kdf"]["type"], "pbkdf2");
    assert_eq!(ours["keyslots"]["0"]["kdf"]["iterations"], 1000);
    let argon2 = |memory: u32| {
        header(&forged(|j| {
            j["keyslots"]["0"]["kdf"] = json!({"type": "argon2id", "time": 4, "memory": memory, "cpus": 4, "salt": "AAAAAAAAAAAAAAAAAAAAAA=="});
        }))
        .objections
    };
    assert_eq!(argon2(1 << 20), Vec::<String>::new());
    let refused = argon2((1 << 20) + 1).join("; ");
    assert!(refused.contains("cryptsetup luksConvertKey"), "{refused}");
}
