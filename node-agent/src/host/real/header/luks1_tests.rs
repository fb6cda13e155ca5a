//! LUKS1 headers that libcryptsetup and cryptsetup made, and forged ones.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use cryptvol_crds::{conditions::Reason, v1alpha1::Provider};

use super::{corpus_luks1 as corpus, *};
use crate::host::{
    FormatOrder,
    real::{
        erase, luks,
        testing::{device, order, order_luks1, rewrite},
    },
};

const SIZE: u64 = 64 << 20;

/// The first bytes of a device with a good header.
fn good() -> Vec<u8> {
    static GOOD: std::sync::LazyLock<Vec<u8>> = std::sync::LazyLock::new(|| {
        let (_path, disk) = device(SIZE);
        luks::format(&disk, &order_luks1()).unwrap();
        disk.read_vec(0, 2 * USUAL_COPY).unwrap().to_vec()
    });
    GOOD.clone()
}

fn cryptsetup(path: &std::path::Path, args: &[&str], input: &str) -> String {
    let mut child = Command::new("cryptsetup")
        .args(args)
        .arg(path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn what_we_write_cryptsetup_opens() {
    let (path, disk) = device(SIZE);
    let header = luks::format(&disk, &order_luks1()).unwrap();
    assert!(
        header
            .derivations
            .iter()
            .all(|way| crate::host::OWN_DERIVATIONS.contains(&way.as_str())),
        "{:?}",
        header.derivations
    );
    assert_eq!(header.objections, Vec::<String>::new());
    assert_eq!(header.key_slots, 1);
    assert_eq!(header.facts.provider, Provider::Luks);
    assert_eq!(header.facts.data_offset, 2 << 20);
    let dump = cryptsetup(path.path(), &["luksDump"], "");
    for line in [
        "Version:       \t1",
        &format!("UUID:          \t{}", order_luks1().luks_uuid),
        "Payload offset:\t4096",
        "MK bits:       \t512",
        "Key Slot 0: ENABLED",
        "Key Slot 1: DISABLED",
    ] {
        assert!(dump.contains(line), "{line:?} not in {dump}");
    }
    let open = [
        "open",
        "--test-passphrase",
        "--type",
        "luks1",
        "--key-file=-",
    ];
    cryptsetup(path.path(), &open, &order_luks1().passphrase.0);
}

#[test]
fn what_cryptsetup_writes_we_open() {
    let (path, disk) = device(SIZE);
    let format = "luksFormat --batch-mode --type luks1 --key-size 256 --pbkdf-force-iterations 2000 --key-file=-";
    let format: Vec<_> = format.split(' ').collect();
    cryptsetup(path.path(), &format, &order().passphrase.0);
    let luks = read_luks(&disk).unwrap().unwrap();
    assert_eq!(luks.header.objections, Vec::<String>::new());
    assert_eq!(luks.header.facts.key_size, 256);
    let key = luks::unlock(&disk, &luks, &order().passphrase).unwrap();
    let dump = "luksDump --batch-mode --dump-volume-key --key-file=-";
    let dump = cryptsetup(
        path.path(),
        &dump.split(' ').collect::<Vec<_>>(),
        &order().passphrase.0,
    );
    let hex: String = dump
        .split_once("MK dump:")
        .unwrap()
        .1
        .split_whitespace()
        .collect();
    assert_eq!(hex, hex::encode(key.bytes()));
    let wrong = crate::host::Passphrase("0".repeat(64));
    let error = luks::unlock(&disk, &luks, &wrong).err().unwrap();
    assert_eq!(error.reason(), Reason::KeyDoesNotOpen);
}

#[test]
fn the_good_header_of_the_corpus_is_good() {
    match parse(&corpus::good(), SIZE) {
        Parsed::Luks(luks) => assert_eq!(luks.header.objections, Vec::<String>::new()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_forged_header_is_refused_in_its_own_words() {
    let mut names = std::collections::BTreeSet::new();
    let all = [(corpus::OBJECTED, false), (corpus::DAMAGED, true)];
    for (forgery, damaged) in all.iter().flat_map(|(l, d)| l.iter().map(move |f| (f, *d))) {
        let name = forgery.name;
        assert!(names.insert(name), "{name} stands there twice");
        let mut head = good();
        (forgery.apply)(&mut head);
        let said = match parse(&head, SIZE) {
            Parsed::Luks(luks) if !damaged => luks.header.objections.join("; "),
            Parsed::Foreign(why) if damaged => why,
            other => panic!("{name}: {other:?}"),
        };
        let sentence = forgery.sentence;
        assert!(
            said.contains(sentence),
            "{name}: {sentence:?} not in {said:?}"
        );
        assert!(said.len() < 2000 && !said.contains('\n'), "{name}: {said}");
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
fn what_was_checked_is_what_is_opened() {
    let (_path, disk) = device(SIZE);
    luks::format(&disk, &order_luks1()).unwrap();
    let checked = read_luks(&disk).unwrap().unwrap();
    for forgery in corpus::OBJECTED {
        let mut head = good();
        (forgery.apply)(&mut head);
        rewrite(&disk, 0, &head[..corpus::BLOCK]);
        let key = luks::unlock(&disk, &checked, &order().passphrase).unwrap();
        assert_eq!(key.bytes().len(), 64, "{}", forgery.name);
    }
}

/// The disk as it is after each write of a format, with the last one cut in each of its sectors.
fn cut(order: &FormatOrder) -> Vec<Vec<u8>> {
    let (path, disk) = device(SIZE);
    luks::format(&disk, order).unwrap();
    let whole = std::fs::read(path.path()).unwrap();
    let free = luks1::without_key_slots(&whole[..corpus::BLOCK]);
    let mut second = free.clone();
    second[..512].fill(0);
    let mut states = Vec::new();
    let mut state = vec![0; SIZE as usize];
    for after in [&second, &free] {
        for sector in [0, 512] {
            let mut cut = state.clone();
            cut[sector..sector + 512].copy_from_slice(&after[sector..sector + 512]);
            states.push(cut);
        }
        state[..corpus::BLOCK].copy_from_slice(after);
        states.push(state.clone());
    }
    // Half of the key material, and all of it.
    for end in [4096 + 100 * 512, 2 << 20] {
        state[4096..end].copy_from_slice(&whole[4096..end]);
        states.push(state.clone());
    }
    states
}

#[test]
fn a_format_that_was_cut_off_is_recognised_and_gone_on_with() {
    let order = order_luks1();
    for (n, state) in cut(&order).into_iter().enumerate() {
        let (path, disk) = device(SIZE);
        std::fs::write(path.path(), &state).unwrap();
        match read(&disk).unwrap() {
            // Not begun, or begun with what is no header yet: FormatInterrupted, by the permit that is spent.
            HeaderFound::Blank | HeaderFound::Unknown => {}
            HeaderFound::Luks(header) => {
                assert_eq!(header.facts.luks_uuid, order.luks_uuid, "{n}");
                assert_eq!(header.key_slots, 0, "{n}");
                // Not with a permit that was given for a blank disk …
                let error = luks::format(&disk, &order).unwrap_err();
                assert_eq!(error.reason(), Reason::HeaderMismatch, "{n}: {error}");
                assert!(state == std::fs::read(path.path()).unwrap(), "{n}");
                // … only with one that a person gave for what is there.
                let mut over = order.clone();
                over.over_torn = true;
                let header = luks::format(&disk, &over).unwrap();
                assert_eq!(header.objections, Vec::<String>::new(), "{n}");
            }
            other => panic!("{n}: {other:?}"),
        }
    }
}

#[test]
fn a_header_of_the_other_version_is_not_written_over() {
    for (there, wanted) in [(order(), order_luks1()), (order_luks1(), order())] {
        let (path, disk) = device(SIZE);
        luks::format(&disk, &there).unwrap();
        let before = std::fs::read(path.path()).unwrap();
        let mut wanted = wanted;
        for over in [false, true] {
            wanted.over_torn = over;
            let error = luks::format(&disk, &wanted).unwrap_err();
            assert_eq!(error.reason(), Reason::HeaderMismatch);
        }
        assert!(before == std::fs::read(path.path()).unwrap());
    }
}

#[test]
fn erased_like_any_header() {
    let (path, disk) = device(SIZE);
    luks::format(&disk, &order_luks1()).unwrap();
    rewrite(&disk, 2 << 20, &[0xaa; 4096]);
    let erased = erase::erase(&disk, &order_luks1().luks_uuid).unwrap();
    assert!(erased.verified);
    assert_eq!(erased.key_slots_wiped, 1);
    erase::clear(&disk, &order_luks1().luks_uuid).unwrap();
    let bytes = std::fs::read(path.path()).unwrap();
    assert!(is_zero(&bytes[..2 << 20]));
    assert_eq!(bytes[2 << 20..][..4096], [0xaa; 4096]);
}
