//! A LUKS1 header: 592 bytes without a checksum, and key slots behind them. The format is that of the "LUKS On-Disk Format
//! Specification" version 1.2.3.

use std::collections::BTreeSet;

use cryptvol_crds::v1alpha1::{HeaderFacts, Provider};

use super::{
    COPY_SIZES, KeySlot, Luks, Parsed, SECONDARY,
    bounds::{self, HASHES, MAX_PBKDF2_ITERATIONS, MIN_PBKDF2_ITERATIONS, STRIPES},
    overlaps, text,
};
use crate::host::Header;

/// What is read and written of the place of a header: the largest logical block of a device.
pub const BLOCK: usize = 4096;
/// Bytes that stand for a header.
const SIZE: usize = 592;
/// Sectors that offsets are counted in.
const SECTOR: u64 = 512;
/// Places of key slots.
const SLOTS: usize = 8;
/// First of them, and bytes of one.
const SLOT_AT: usize = 208;
const SLOT_SIZE: usize = 48;
/// A slot in use, and one that is not.
const IN_USE: u32 = 0x00ac_71f3;
const FREE: u32 = 0x0000_dead;

/// Reads a header whose magic and version were seen.
pub(super) fn read(head: &[u8], device_size: u64) -> Parsed {
    try_read(head, device_size).map_or_else(
        |why| Parsed::Foreign(format!("crypto_LUKS version 1, damaged: {why}")),
        |luks| Parsed::Luks(Box::new(luks)),
    )
}

fn try_read(head: &[u8], device_size: u64) -> Result<Luks, String> {
    let header = head.get(..BLOCK).ok_or("cut off")?;
    let mut objections = Vec::new();
    let mut object = |what: String| objections.push(what);

    let cipher = match (text(header, 8, 32)?, text(header, 40, 32)?) {
        (name, "") => name.to_owned(),
        (name, mode) => format!("{name}-{mode}"),
    };
    if bounds::is_null(&cipher) || !bounds::protects(&cipher) {
        // The same cipher encrypts data and key slots.
        object(format!(
            "its cipher is {cipher:?}, which is not known to protect it"
        ));
    }
    let hash = text(header, 72, 32)?;
    if !HASHES.contains(&hash) {
        object(format!("it derives its keys by {hash:?}"));
    }
    let data = u64::from(be32(header, 104)?) * SECTOR;
    let key_bytes = be32(header, 108)?;
    if !bounds::KEY_BYTES.contains(&key_bytes) {
        object(format!("it holds a key of {key_bytes} bytes"));
    }
    let (digest, salt) = (field(header, 112, 20)?, field(header, 132, 32)?);
    let digest_cost = be32(header, 164)?;
    if !(1..=MAX_PBKDF2_ITERATIONS).contains(&digest_cost) {
        object(format!(
            "its volume key digest has {digest_cost} iterations"
        ));
    }
    let uuid = text(header, 168, 40)?;
    if uuid::Uuid::try_parse(uuid).map(|u| u.to_string()) != Ok(uuid.to_owned()) {
        return Err("UUID not in its usual form".into());
    }

    let areas = BLOCK as u64..data;
    if data <= areas.start || !data.is_multiple_of(4096) || data >= device_size {
        object(format!("its data begins at {data}"));
    }
    let (mut slots, mut places, mut cost) = (Vec::new(), Vec::new(), 0_u64);
    let own = bounds::pbkdf2(hash, digest_cost).map(|way| format!("digest {way}"));
    let mut derivations: BTreeSet<_> = own.into_iter().collect();
    for id in 0..SLOTS {
        let slot = Slot::read(header, id, key_bytes)?;
        if slot.stripes != STRIPES {
            object(format!("key slot {id} has {} stripes", slot.stripes));
        }
        // Those that are free, too: a tool that fills one later writes there.
        if slot.area.start < areas.start
            || slot.area.end > areas.end
            || !slot.area.start.is_multiple_of(4096)
        {
            object(format!(
                "key slot {id} lies at {} with {} bytes",
                slot.area.start,
                slot.area.end - slot.area.start
            ));
        }
        places.push(slot.area.clone());
        if !slot.in_use {
            continue;
        }
        if !(MIN_PBKDF2_ITERATIONS..=MAX_PBKDF2_ITERATIONS).contains(&slot.iterations) {
            object(format!(
                "key slot {id} derives its key with {} iterations",
                slot.iterations
            ));
        }
        // Whoever tries a slot computes the digest of what came out of it.
        derivations.extend(bounds::pbkdf2(hash, slot.iterations));
        cost += u64::from(slot.iterations) + u64::from(digest_cost);
        slots.push(KeySlot {
            id: id as u32,
            fingerprint: bounds::fingerprint(
                slot.salt,
                format!(" {} {}", slot.area.start, slot.area.end).as_bytes(),
            ),
            area: slot.area,
        });
    }
    if slots.is_empty() {
        object("it has no key slot in use".into());
    }
    if cost > bounds::MAX_PBKDF2_TOTAL {
        object("its key slots together cost more time than is allowed here".into());
    }
    objections.extend(overlaps(places));
    if COPY_SIZES
        .iter()
        .any(|at| head.get(*at..at + SECONDARY.len()) == Some(SECONDARY))
    {
        objections.push("a copy of a LUKS2 header lies behind it".into());
    }

    // Nothing of what stands between the header and its key slots.
    let mut bytes = vec![0; BLOCK];
    bytes[..SIZE].copy_from_slice(&header[..SIZE]);
    Ok(Luks {
        header: Header {
            facts: HeaderFacts {
                provider: Provider::Luks,
                luks_uuid: uuid.to_owned(),
                cipher,
                key_size: key_bytes.saturating_mul(8).min(i32::MAX as u32) as i32,
                sector_size: SECTOR as i32,
                data_offset: i64::try_from(data).unwrap_or(i64::MAX),
                digest: bounds::fingerprint(salt, digest),
                ..HeaderFacts::default()
            },
            key_slots: slots.len() as u32,
            unlock_memory_kib: 0,
            derivations: derivations.into_iter().collect(),
            objections,
        },
        slots,
        areas,
        bytes,
    })
}

struct Slot<'a> {
    in_use: bool,
    iterations: u32,
    salt: &'a [u8],
    area: std::ops::Range<u64>,
    stripes: u32,
}

impl<'a> Slot<'a> {
    fn read(header: &'a [u8], id: usize, key_bytes: u32) -> Result<Self, String> {
        let slot = field(header, SLOT_AT + id * SLOT_SIZE, SLOT_SIZE)?;
        let in_use = match be32(slot, 0)? {
            IN_USE => true,
            FREE => false,
            _ => return Err(format!("key slot {id} is neither in use nor free")),
        };
        let start = u64::from(be32(slot, 40)?) * SECTOR;
        // Up to the next slot's block: so it is read from devices with blocks of 4096 bytes.
        let size = (u64::from(key_bytes) * u64::from(STRIPES)).next_multiple_of(4096);
        Ok(Self {
            in_use,
            iterations: be32(slot, 4)?,
            salt: field(slot, 8, 32)?,
            area: start..start + size,
            stripes: be32(slot, 44)?,
        })
    }
}

/// The same header with all its key slots free: what stands on the disk while their key material is written.
pub fn without_key_slots(bytes: &[u8]) -> Vec<u8> {
    const IN_USE_AND_SALT: usize = 40;
    let mut free = bytes.to_vec();
    for slot in free[SLOT_AT..SIZE].chunks_mut(SLOT_SIZE) {
        slot[..IN_USE_AND_SALT].fill(0);
        slot[..4].copy_from_slice(&FREE.to_be_bytes());
    }
    free
}

fn field(bytes: &[u8], at: usize, len: usize) -> Result<&[u8], String> {
    bytes.get(at..at + len).ok_or_else(|| "cut off".to_owned())
}

fn be32(bytes: &[u8], at: usize) -> Result<u32, String> {
    let bytes = field(bytes, at, 4)?.try_into();
    bytes.map(u32::from_be_bytes).map_err(|_| "cut off".into())
}
