//! Whether what lies on the disk is what the mapping shows: one block of both, compared.

use std::io::Read;

use cryptvol_crds::conditions::Reason;

use super::{
    disk::{Aligned, Disk},
    dm,
    error::{because, failed},
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
    let now = dm::observe(&mapping.name)?;
    let offset = match now.as_ref().and_then(|m| m.table.as_ref()) {
        Some(table) if now.as_ref() == Some(&unopened(mapping, now.as_ref())) => table.data_offset,
        _ => {
            return Err(failed(
                what(),
                format!("the mapping is not what it was: {now:?}"),
            ));
        }
    };
    let plain = Disk::open_mapping(mapping)?;
    let at = place(mapping.size_bytes).map_err(|e| failed(what(), e))?;
    let Some(at) = at else { return Ok(()) };
    let (mut above, mut below) = (Aligned::zeroed(BLOCK), Aligned::zeroed(BLOCK));
    plain.read(at, &mut above)?;
    raw.read(offset + at, &mut below)?;
    differ(&above, &below, at, &mapping.path)
}

/// The mapping as it was seen, with the number of those who have it open now.
fn unopened(seen: &Mapping, now: Option<&Mapping>) -> Mapping {
    Mapping {
        open_count: now.map_or(0, |m| m.open_count),
        ..seen.clone()
    }
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
