//! Whether what lies on the disk is what the mapping shows: one block of both, compared.

use std::{io::Read, os::unix::fs::FileExt};

use cryptvol_crds::conditions::Reason;

use super::{
    disk::{Aligned, Disk},
    dm,
    error::{because, failed, unreadable},
    header, integrity,
};
use crate::host::{DeviceId, Mapping, StepError};

/// Bytes that are compared.
const BLOCK: usize = 4096;
/// Bytes of a cipher's block, of which each for itself must differ: part of a sector in the clear is as bad as all of it. That two are
/// the same by chance is not to be expected in the life of the universe.
const CIPHER_BLOCK: usize = 16;

/// See [`crate::host::Host::sample`].
pub fn compare(raw: &Disk, device: &DeviceId, mapping: &Mapping) -> Result<(), StepError> {
    let what = || format!("comparing {} with {}", mapping.path, device.path);
    let offset = dm::unchanged(mapping, what)?.data_offset;
    let plain = Disk::open_mapping(mapping)?;
    let at = place(mapping.size_bytes).map_err(|e| failed(what(), e))?;
    let Some(at) = at else { return Ok(()) };
    let (mut above, mut below) = (Aligned::zeroed(BLOCK), Aligned::zeroed(BLOCK));
    let read = plain.file().read_exact_at(&mut above, at);
    if let Err(e) = &read
        && integrity::is_wrong_tag(e)
    {
        return Err(because(
            Reason::IntegrityViolated,
            format!(
                "what lies on the disk for the {BLOCK} bytes at {at} of {} was not written there by a node with its key",
                mapping.path
            ),
        ));
    }
    raw.read(offset + place_below(raw, mapping, at)?, &mut below)?;
    read.map_err(|e| {
        let what = format!("reading {BLOCK} bytes at {at} of {}", mapping.path);
        let tags = mapping.table.as_ref().and_then(|t| t.integrity);
        match tags {
            // dm-integrity does not say in its status that it stopped; the disk below it was read just now.
            Some(_) => because(
                Reason::IntegrityStopped,
                format!("{what}: {e}, and the disk itself can be read there"),
            ),
            None => unreadable(what, e),
        }
    })?;
    differ(&above, &below, at, &mapping.path)
}

/// Where on the raw device, from the beginning of the data on, a block lies: with tags between the data not where it lies above.
fn place_below(raw: &Disk, mapping: &Mapping, at: u64) -> Result<u64, StepError> {
    let Some(kind) = mapping.table.as_ref().and_then(|t| t.integrity) else {
        return Ok(at);
    };
    let what = || format!("finding the bytes at {at} of {} on the disk", mapping.path);
    let facts = match header::read_luks(raw)? {
        Ok(luks) if luks.header.objections.is_empty() => luks.header.facts,
        other => return Err(failed(what(), format!("its header is {other:?}"))),
    };
    let layout = integrity::layout(raw, &facts)?.map_err(|e| failed(what(), e))?;
    layout
        .raw(at, kind.tag_bytes())
        .ok_or_else(|| failed(what(), "it lies behind the end"))
}

fn differ(above: &[u8], below: &[u8], at: u64, path: &str) -> Result<(), StepError> {
    let same = above
        .chunks(CIPHER_BLOCK)
        .zip(below.chunks(CIPHER_BLOCK))
        .filter(|(above, below)| above == below)
        .count();
    match same {
        0 => Ok(()),
        same => Err(because(
            Reason::PlaintextOnDisk,
            format!(
                "{} of the {BLOCK} bytes at {at} of {path} lie on the disk as they are read",
                same * CIPHER_BLOCK
            ),
        )),
    }
}

/// A place of chance, in whole blocks; none where not one fits.
fn place(size: u64) -> std::io::Result<Option<u64>> {
    let blocks = size / BLOCK as u64;
    let mut random = [0; 8];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut random)?;
    let place = u64::from_le_bytes(random).checked_rem(blocks);
    Ok(place.map(|block| block * BLOCK as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_whole_blocks_within_the_mapping() {
        for size in [0, 4095, 4096, 8191, 8192, 1 << 30] {
            for _ in 0..50 {
                match place(size).unwrap() {
                    None => assert!(size < 4096),
                    Some(at) => assert!(at % 4096 == 0 && at + 4096 <= size, "{at} of {size}"),
                }
            }
        }
    }

    #[test]
    fn what_is_the_same_above_and_below_is_not_encrypted() {
        let error = differ(&[7; 4096], &[7; 4096], 8192, "x").unwrap_err();
        assert_eq!(error.reason(), Reason::PlaintextOnDisk);
        // Zeros of a disk that was never written to are noise above.
        assert!(differ(&[7; 4096], &[0; 4096], 0, "x").is_ok());
        // One cipher block of a sector is enough.
        let mut below = [0; 4096];
        below[4080..].fill(7);
        let error = differ(&[7; 4096], &below, 0, "x").unwrap_err();
        assert!(
            error.message.starts_with("16 of the 4096"),
            "{}",
            error.message
        );
        // The same bytes at another place of the block are not.
        below[4080..].fill(0);
        below[3..19].fill(7);
        let mut above = [1; 4096];
        above[..16].fill(7);
        assert!(differ(&above, &below, 0, "x").is_ok());
    }
}
