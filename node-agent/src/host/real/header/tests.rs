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

fn foreign(head: &[u8]) -> String {
    match parse(head, SIZE) {
        Parsed::Foreign(why) => why,
        other => panic!("{other:?}"),
    }
}

fn metadata(head: &[u8]) -> Value {
    let area = &head[BINARY..USUAL_COPY];
    let end = area.iter().position(|b| *b == 0).unwrap();
    serde_json::from_slice(&area[..end]).unwrap()
}

/// Puts text as metadata into one copy and makes its checksum right, as a forger does.
fn put(head: &mut [u8], copy: usize, text: &str) {
    let copy = &mut head[copy * USUAL_COPY..(copy + 1) * USUAL_COPY];
    copy[BINARY..].fill(0);
    copy[BINARY..BINARY + text.len()].copy_from_slice(text.as_bytes());
    seal(copy);
}

fn seal(copy: &mut [u8]) {
    copy[448..512].fill(0);
    let sum = Sha256::digest(&*copy);
    copy[448..480].copy_from_slice(&sum);
}

/// A header whose metadata a forger changed, in both copies.
fn forged(change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut head = good();
    let mut json = metadata(&head);
    change(&mut json);
    let text = json.to_string();
    put(&mut head, 0, &text);
    put(&mut head, 1, &text);
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
fn what_a_forger_may_ask_for_is_objected_to() {
    type Change = fn(&mut Value);
    let changes: &[(&str, Change)] = &[
        ("data cipher", |j| {
            j["segments"]["0"]["encryption"] = json!("cipher_null-ecb")
        }),
        ("data cipher", |j| {
            j["segments"]["0"]["encryption"] = json!("")
        }),
        ("protects nothing", |j| {
            j["keyslots"]["0"]["area"]["encryption"] = json!("cipher_null-ecb")
        }),
        ("protects nothing", |j| {
            j["keyslots"]["0"]["area"]["key_size"] = json!(0)
        }),
        ("type \"reencrypt\"", |j| {
            j["keyslots"]["0"]["type"] = json!("reencrypt")
        }),
        ("4294967295 iterations", |j| {
            j["keyslots"]["0"]["kdf"]["iterations"] = json!(4_294_967_295_u32)
        }),
        ("with 1 iterations", |j| {
            j["keyslots"]["0"]["kdf"]["iterations"] = json!(1)
        }),
        ("KiB of memory", |j| {
            j["keyslots"]["0"]["kdf"] = json!({"type": "argon2id", "time": 4, "memory": 4_194_304, "cpus": 4, "salt": "AAAA"});
        }),
        ("time 4294967295", |j| {
            j["keyslots"]["0"]["kdf"] = json!({"type": "argon2i", "time": 4_294_967_295_u32, "memory": 64, "cpus": 1, "salt": "AAAA"});
        }),
        ("volume key digest", |j| {
            j["digests"]["0"]["iterations"] = json!(4_000_000_000_u32)
        }),
        ("anti-forensic", |j| {
            j["keyslots"]["0"]["af"]["stripes"] = json!(4_000_000_000_u32)
        }),
        ("lies at", |j| {
            j["keyslots"]["0"]["area"]["offset"] = json!("16777216")
        }),
        ("lies at", |j| {
            j["keyslots"]["0"]["area"]["offset"] = json!("0")
        }),
        ("lies at", |j| {
            j["keyslots"]["0"]["area"]["size"] = json!("134217728")
        }),
        ("2 segments", |j| {
            j["segments"]["1"] = j["segments"]["0"].clone();
        }),
        ("of type \"linear\"", |j| {
            j["segments"]["0"]["type"] = json!("linear")
        }),
        ("data begins", |j| {
            j["segments"]["0"]["offset"] = json!("32768")
        }),
        ("data begins", |j| {
            j["segments"]["0"]["offset"] = json!("16777217")
        }),
        ("data begins", |j| {
            j["segments"]["0"]["offset"] = json!("18446744073709547520")
        }),
        ("segment ends", |j| {
            j["segments"]["0"]["size"] = json!("4096")
        }),
        ("IV offset", |j| j["segments"]["0"]["iv_tweak"] = json!("8")),
        ("integrity", |j| {
            j["segments"]["0"]["integrity"] = json!({"type": "hmac(sha256)"})
        }),
        ("sector size", |j| {
            j["segments"]["0"]["sector_size"] = json!(3)
        }),
        ("flags (in-reencryption)", |j| {
            j["segments"]["0"]["flags"] = json!(["in-reencryption"])
        }),
        ("activation flags", |j| {
            j["config"]["flags"] = json!(["allow-discards"])
        }),
        ("requirements", |j| {
            j["config"]["requirements"] = json!({"mandatory": ["online-reencrypt-v2"]})
        }),
        ("requirements", |j| {
            j["config"]["requirements"] = json!({"mandatory": "something new"})
        }),
        ("bytes of metadata", |j| {
            j["config"]["json_size"] = json!("4096")
        }),
        ("bytes of key slots", |j| {
            j["config"]["keyslots_size"] = json!("99999999999")
        }),
        ("not there", |j| {
            j["digests"]["0"]["keyslots"] = json!(["0", "7"])
        }),
        ("no key slot in use", |j| {
            j["digests"]["0"]["keyslots"] = json!([])
        }),
        ("one digest", |j| {
            j["digests"]["1"] = j["digests"]["0"].clone()
        }),
        ("overlap", |j| {
            j["keyslots"]["1"] = j["keyslots"]["0"].clone();
        }),
    ];
    for (expected, change) in changes {
        let header = header(&forged(change));
        assert!(
            header.objections.iter().any(|o| o.contains(expected)),
            "{expected:?} not in {:?}",
            header.objections
        );
    }
}

#[test]
fn metadata_that_readers_could_read_differently_is_no_header() {
    let text = metadata(&good()).to_string();
    for bad in [
        text.replacen("\"keyslots\":{", "\"keyslots\":{},\"keyslots\":{", 1),
        text.replacen("\"0\":{", "\"0\":{},\"0\":{", 1),
        text.replacen("\"0\":{", "\"00\":{", 1),
        text.replacen("\"0\":{", "\"33\":{", 1),
        text.replacen("\"16777216\"", "\"+16777216\"", 1),
        text.replacen("\"16777216\"", "16777216", 1),
        format!("{text} {{}}"),
        String::new(),
        "[".repeat(11_000),
    ] {
        let mut head = good();
        put(&mut head, 0, &bad);
        put(&mut head, 1, &bad);
        assert!(foreign(&head).contains("damaged"), "{bad}");
    }
    let mut head = good();
    for copy in 0..2 {
        head[copy * USUAL_COPY + USUAL_COPY - 1] = 1;
        seal(&mut head[copy * USUAL_COPY..(copy + 1) * USUAL_COPY]);
    }
    assert!(foreign(&head).contains("behind the metadata"));
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

    let second = &mut head[USUAL_COPY..];
    second[23] += 1;
    seal(second);
    let newer = header(&head);
    assert_eq!(newer.facts.sector_size, 4096);
    assert_eq!(newer.objections, Vec::<String>::new());
    // The older copy does not go along to whoever opens from these bytes.
    match parse(&head, SIZE) {
        Parsed::Luks(luks) => assert!(is_zero(&luks.bytes[..USUAL_COPY])),
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
fn luks1_is_foreign() {
    let (_path, disk) = device(SIZE);
    let mut magic = [0; 4096];
    magic[..6].copy_from_slice(PRIMARY);
    magic[7] = 1;
    rewrite(&disk, 0, &magic);
    assert_eq!(
        read(&disk).unwrap(),
        HeaderFound::Foreign("crypto_LUKS version 1".into())
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
