//! What is at the beginning of a device, as untrusted input: our own strict reading of a LUKS header.
//!
//! libcryptsetup repairs what it reads and accepts what a forger may ask for (null ciphers, costly key derivation,
//! re-encryption; CVE-2025-59054, CVE-2025-58356). Here the bytes are read once, checked with bounded cost, and never
//! written. LUKS2 is that of the "LUKS2 On-Disk Format Specification" version 1.1.3; LUKS1 is in `luks1`.

mod bounds;
pub mod digest;
mod json;
pub mod luks1;
pub(crate) mod probe;
mod strict;

use std::ops::Range;

use sha2::{Digest, Sha256, Sha512};

use super::{
    disk::{Disk, is_zero},
    integrity,
};
use crate::host::{Header, HeaderFound, StepError, shown::shown};
pub use bounds::MAX_KEY_BYTES;
pub use json::KeySlot;
use json::Read;

/// Where a LUKS2 header may have its second copy, which is also the size of one copy.
const COPY_SIZES: [usize; 9] = [
    0x4000, 0x8000, 0x1_0000, 0x2_0000, 0x4_0000, 0x8_0000, 0x10_0000, 0x20_0000, 0x40_0000,
];
/// Size of the copies that cryptsetup makes unless told otherwise.
const USUAL_COPY: usize = COPY_SIZES[0];
/// Where a header ends that was made with copies of the usual size. It is all of a new header that must be read: a larger buffer
/// would stay with the process.
pub const USUAL_HEADER: u64 = 2 * USUAL_COPY as u64;
/// Size of the binary part of a copy.
const BINARY: usize = 4096;
/// Longest text about one thing that is wrong, in characters.
const MAX_TEXT: usize = 300;
/// Longest cipher that is told, in characters.
const MAX_CIPHER: usize = 64;
/// Most things that are told to be wrong with one header.
const MAX_OBJECTIONS: usize = 8;
/// What must be zero for a device to count as blank: the place of a header …
pub const BLANK_HEAD: u64 = 16 << 20;
/// … and the end, where RAID metadata and backup partition tables lie.
pub const BLANK_TAIL: u64 = 2 << 20;

const PRIMARY: &[u8; 6] = b"LUKS\xba\xbe";
const SECONDARY: &[u8; 6] = b"SKUL\xba\xbe";

/// A header that was read and found well-formed, with the bytes that were looked at.
#[derive(Debug)]
pub struct Luks {
    /// What is told of it.
    pub header: Header,
    /// Its key slots.
    pub slots: Vec<KeySlot>,
    /// Where key slots may lie: from behind the header on.
    pub areas: Range<u64>,
    /// The header as it was read: of LUKS2 both copies (one that was not taken is zeros), of LUKS1 its block.
    pub bytes: Vec<u8>,
}

impl Luks {
    /// Size of one of the two copies of a LUKS2 header.
    pub fn copy_size(&self) -> usize {
        self.bytes.len() / 2
    }
}

/// What LUKS reading finds in bytes.
#[derive(Debug)]
pub enum Parsed {
    /// No magic of LUKS.
    None,
    /// A header whose copies are this long: so many bytes from the beginning are needed to read it.
    NeedMore(usize),
    /// LUKS, but not a header that can be read; says why.
    Foreign(String),
    /// A header of LUKS2 or LUKS1.
    Luks(Box<Luks>),
}

/// Reads the header of a device. Reads each byte once.
///
/// # Errors
/// `DeviceUnreadable`.
pub fn read(disk: &Disk) -> Result<HeaderFound, StepError> {
    Ok(match read_luks(disk)? {
        Ok(luks) => HeaderFound::Luks(Box::new(luks.header)),
        Err(other) => other,
    })
}

/// As `read`, with all that is needed to open the header.
///
/// # Errors
/// `DeviceUnreadable`.
pub fn read_luks(disk: &Disk) -> Result<Result<Luks, HeaderFound>, StepError> {
    let head_len = disk.size().min(BLANK_HEAD) as usize;
    let mut head = vec_from(disk, 0, head_len.min(USUAL_HEADER as usize))?;
    let mut parsed = parse(&head, disk.size());
    if let Parsed::NeedMore(len) = parsed {
        extend(disk, &mut head, len.min(head_len))?;
        parsed = parse(&head, disk.size());
    }
    if matches!(parsed, Parsed::None) {
        // No primary copy at the beginning: a second copy may be anywhere below 8 MiB.
        extend(disk, &mut head, head_len)?;
        parsed = parse(&head, disk.size());
    }
    match parsed {
        Parsed::Luks(mut luks) => {
            let wrong = integrity::complete(disk, &mut luks.header.facts)?;
            luks.header.objections.extend(wrong);
            return Ok(Ok(*luks));
        }
        Parsed::Foreign(what) => return Ok(Err(HeaderFound::Foreign(what))),
        Parsed::NeedMore(_) => {
            return Ok(Err(HeaderFound::Foreign(
                "crypto_LUKS version 2, cut off by the end of the device".into(),
            )));
        }
        Parsed::None => {}
    }
    let tail_start = disk
        .size()
        .saturating_sub(BLANK_TAIL)
        .next_multiple_of(4096);
    let tail_start = tail_start.max(head_len as u64).min(disk.size());
    let tail = vec_from(disk, tail_start, (disk.size() - tail_start) as usize)?;
    if disk.size() > 0 && is_zero(&head) && is_zero(&tail) {
        return Ok(Err(HeaderFound::Blank));
    }
    Ok(Err(match probe::signature(&head, &tail, disk.size())? {
        Some(what) => HeaderFound::Foreign(shown(&what, MAX_TEXT)),
        None => HeaderFound::Unknown,
    }))
}

/// Looks for a LUKS header in the first bytes of a device of `device_size` bytes. All texts in the answer are short and
/// printable, whatever the header says.
pub fn parse(head: &[u8], device_size: u64) -> Parsed {
    match find(head, device_size) {
        Parsed::Foreign(why) => Parsed::Foreign(shown(&why, MAX_TEXT)),
        Parsed::Luks(mut luks) => {
            let Header {
                facts, objections, ..
            } = &mut luks.header;
            facts.cipher = shown(&facts.cipher, MAX_CIPHER);
            let more = objections.len().saturating_sub(MAX_OBJECTIONS);
            objections.truncate(MAX_OBJECTIONS);
            for objection in &mut *objections {
                *objection = shown(objection, MAX_TEXT);
            }
            if more > 0 {
                objections.push(format!("and {more} things more"));
            }
            Parsed::Luks(luks)
        }
        other => other,
    }
}

fn find(head: &[u8], device_size: u64) -> Parsed {
    if head.get(..6) == Some(PRIMARY) {
        let version = be16(head, 6);
        if version == Some(1) {
            return luks1::read(head, device_size);
        }
        if version != Some(2) {
            return Parsed::Foreign(format!("crypto_LUKS version {}", version.unwrap_or(0)));
        }
        let size = be64(head, 8).and_then(|s| usize::try_from(s).ok());
        if let Some(size) = size.filter(|s| COPY_SIZES.contains(s)) {
            if head.len() < 2 * size {
                return Parsed::NeedMore(2 * size);
            }
            return choose(head, size, device_size);
        }
        if head.len() < BLANK_HEAD as usize && (head.len() as u64) < device_size {
            return Parsed::NeedMore(BLANK_HEAD as usize);
        }
    }
    for size in COPY_SIZES {
        if head.len() >= 2 * size && head.get(size..size + 6) == Some(SECONDARY) {
            return choose(head, size, device_size);
        }
    }
    if head.get(..6) == Some(PRIMARY) {
        return Parsed::Foreign("crypto_LUKS version 2, damaged: no readable copy".into());
    }
    Parsed::None
}

/// Takes the newer of the two valid copies, as libcryptsetup does.
fn choose(head: &[u8], size: usize, device_size: u64) -> Parsed {
    let primary = Copy::read(head, 0, size, PRIMARY);
    let secondary = Copy::read(head, size, size, SECONDARY);
    let mut objections = Vec::new();
    let (copy, other) = match (&primary, &secondary) {
        (Ok(a), Ok(b)) => {
            let (newer, older) = if b.seqid > a.seqid { (b, a) } else { (a, b) };
            if b.seqid > a.seqid {
                // Tools write the first copy first, so no interruption leaves this behind.
                objections.push("its second copy is newer than its first".to_owned());
            }
            if a.seqid == b.seqid && (a.json != b.json || a.uuid != b.uuid) {
                objections
                    .push("its two copies disagree though they claim to be equally new".to_owned());
            }
            (newer, Some(older))
        }
        (Ok(copy), Err(_)) | (Err(_), Ok(copy)) => (copy, None),
        (Err(why), Err(_)) => {
            return Parsed::Foreign(format!("crypto_LUKS version 2, damaged: {why}"));
        }
    };
    let Read {
        mut facts,
        slots,
        used,
        unlock_memory_kib,
        derivations,
        areas_end,
        objections: more,
    } = match json::read(copy.json, size, device_size) {
        Ok(read) => read,
        Err(why) => return Parsed::Foreign(format!("crypto_LUKS version 2, damaged: {why}")),
    };
    facts.luks_uuid = copy.uuid.to_owned();
    objections.extend(more);
    objections.extend(overlaps(used));
    let key_slots = slots.len() as u32;

    let mut bytes = vec![0; 2 * size];
    let mut take = |copy: &Copy| {
        let at = copy.offset..copy.offset + size;
        bytes[at.clone()].copy_from_slice(&head[at]);
    };
    take(copy);
    // Only a second copy that says the same goes along: whoever opens from these bytes sees what was checked here.
    if let Some(other) = other.filter(|o| o.seqid == copy.seqid && o.json == copy.json) {
        take(other);
    }
    Parsed::Luks(Box::new(Luks {
        header: Header {
            facts,
            key_slots,
            unlock_memory_kib,
            derivations,
            objections,
        },
        slots,
        areas: 2 * size as u64..areas_end,
        bytes,
    }))
}

fn overlaps(mut areas: Vec<Range<u64>>) -> Option<String> {
    areas.sort_by_key(|a| a.start);
    areas
        .windows(2)
        .any(|w| w[0].end > w[1].start)
        .then(|| "key slots overlap".to_owned())
}

/// One copy of a header whose checksum is right.
struct Copy<'a> {
    offset: usize,
    seqid: u64,
    uuid: &'a str,
    json: &'a str,
}

impl<'a> Copy<'a> {
    fn read(head: &'a [u8], offset: usize, size: usize, magic: &[u8; 6]) -> Result<Self, String> {
        let copy = head.get(offset..offset + size).ok_or("cut off")?;
        if copy.get(..6) != Some(magic) || be16(copy, 6) != Some(2) {
            return Err("no magic".into());
        }
        if be64(copy, 8) != Some(size as u64) || be64(copy, 256) != Some(offset as u64) {
            return Err("wrong size or place of a copy".into());
        }
        let seqid = be64(copy, 16).ok_or("cut off")?;
        let uuid = text(copy, 168, 40)?;
        if uuid::Uuid::try_parse(uuid).map(|u| u.to_string()) != Ok(uuid.to_owned()) {
            return Err("UUID not in its usual form".into());
        }
        let right = match text(copy, 72, 32)? {
            "sha256" => checksum_is_right::<Sha256>(copy),
            "sha512" => checksum_is_right::<Sha512>(copy),
            other => return Err(format!("checksum algorithm {other:?}")),
        };
        if !right {
            return Err("wrong checksum".into());
        }
        let area = copy.get(BINARY..).ok_or("cut off")?;
        let end = area.iter().position(|b| *b == 0).unwrap_or(area.len());
        let (json, rest) = area.split_at(end);
        if !is_zero(rest) {
            return Err("bytes behind the metadata".into());
        }
        Ok(Self {
            offset,
            seqid,
            uuid,
            json: std::str::from_utf8(json).map_err(|_| "metadata is not UTF-8")?,
        })
    }
}

/// Where a copy has its checksum.
const CHECKSUM: usize = 448;
/// Room for a checksum.
const CHECKSUM_LEN: usize = 64;

/// The checksum covers the whole copy with its own field as zeros.
fn checksum<D: Digest>(copy: &[u8]) -> Vec<u8> {
    let mut hash = D::new();
    hash.update(&copy[..CHECKSUM]);
    hash.update([0; CHECKSUM_LEN]);
    hash.update(&copy[CHECKSUM + CHECKSUM_LEN..]);
    hash.finalize().to_vec()
}

fn checksum_is_right<D: Digest>(copy: &[u8]) -> bool {
    copy[CHECKSUM..].starts_with(&checksum::<D>(copy))
}

/// Gives both copies other metadata. It must be no longer than there is room.
///
/// # Errors
/// When there is no room.
pub fn with_metadata(luks: &Luks, json: &str) -> Result<Vec<u8>, String> {
    let mut bytes = luks.bytes.clone();
    let size = luks.copy_size();
    let room = size - BINARY;
    if json.len() >= room {
        return Err(format!("{} bytes of metadata", json.len()));
    }
    for copy in bytes.chunks_mut(size) {
        copy[BINARY..].fill(0);
        copy[BINARY..BINARY + json.len()].copy_from_slice(json.as_bytes());
        let sum = match text(copy, 72, 32)? {
            "sha512" => checksum::<Sha512>(copy),
            _ => checksum::<Sha256>(copy),
        };
        copy[CHECKSUM..CHECKSUM + CHECKSUM_LEN].fill(0);
        copy[CHECKSUM..CHECKSUM + sum.len()].copy_from_slice(&sum);
    }
    Ok(bytes)
}

/// The metadata of a header, as it was read.
pub fn metadata(luks: &Luks) -> Result<&str, String> {
    let size = luks.copy_size();
    let copy = Copy::read(&luks.bytes, 0, size, PRIMARY)
        .or_else(|_| Copy::read(&luks.bytes, size, size, SECONDARY))?;
    Ok(copy.json)
}

/// Both copies of a header of which one may be missing in `bytes` because it was damaged or older: the other one again.
pub fn both_copies(luks: &Luks) -> Vec<u8> {
    let mut bytes = luks.bytes.clone();
    let (first, second) = bytes.split_at_mut(luks.copy_size());
    match (is_zero(first), is_zero(second)) {
        (false, true) => recopy(first, second, SECONDARY, luks.copy_size() as u64),
        (true, false) => recopy(second, first, PRIMARY, 0),
        _ => {}
    }
    bytes
}

fn recopy(from: &[u8], to: &mut [u8], magic: &[u8; 6], offset: u64) {
    to.copy_from_slice(from);
    to[..6].copy_from_slice(magic);
    to[256..264].copy_from_slice(&offset.to_be_bytes());
    let sum = match text(from, 72, 32) {
        Ok("sha512") => checksum::<Sha512>(to),
        _ => checksum::<Sha256>(to),
    };
    to[CHECKSUM..CHECKSUM + CHECKSUM_LEN].fill(0);
    to[CHECKSUM..CHECKSUM + sum.len()].copy_from_slice(&sum);
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn be64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// Text of a field that is filled up with NUL.
fn text(bytes: &[u8], at: usize, len: usize) -> Result<&str, String> {
    let field = bytes.get(at..at + len).ok_or("cut off")?;
    let end = field
        .iter()
        .position(|b| *b == 0)
        .ok_or("text without end")?;
    std::str::from_utf8(&field[..end]).map_err(|_| "text is not UTF-8".into())
}

fn vec_from(disk: &Disk, offset: u64, len: usize) -> Result<Vec<u8>, StepError> {
    if len == 0 {
        return Ok(Vec::new());
    }
    Ok(disk.read_vec(offset, len)?.to_vec())
}

fn extend(disk: &Disk, head: &mut Vec<u8>, len: usize) -> Result<(), StepError> {
    if len > head.len() {
        let more = disk.read_vec(head.len() as u64, len - head.len())?;
        head.extend_from_slice(&more);
    }
    Ok(())
}

#[cfg(test)]
#[path = "../../../../corpus/headers.rs"]
pub(crate) mod corpus;
#[cfg(test)]
#[path = "../../../../corpus/headers_luks1.rs"]
pub(crate) mod corpus_luks1;
#[cfg(test)]
#[path = "luks1_tests.rs"]
mod luks1_tests;
#[cfg(test)]
mod tests;
