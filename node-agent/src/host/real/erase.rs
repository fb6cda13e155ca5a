//! Erasure without a key: overwrites the key slots, then the whole header, and reads back what the device holds now.

use std::io::Read;

use cryptvol_crds::conditions::Reason;

use super::{
    disk::{Aligned, Disk, is_zero},
    error::{because, failed},
    header,
};
use crate::host::{Erased, HeaderFound, StepError};

/// Written and read at once.
const STEP: u64 = 1 << 20;

/// Erases the header with this UUID. The key slots go first: until they are gone for good the header still names what is being erased,
/// so that a power cut in between is followed by the same erasure.
///
/// # Errors
/// `HeaderMismatch` when another header or none is there, `DeviceUnreadable`, `StepFailed`.
pub fn erase(disk: &Disk, luks_uuid: &str) -> Result<Erased, StepError> {
    let luks = match header::read_luks(disk)? {
        Ok(luks) => luks,
        Err(found) => return Err(other(disk, luks_uuid, &describe(&found))),
    };
    if luks.header.facts.luks_uuid != luks_uuid {
        let found = format!("a LUKS header with UUID {}", luks.header.facts.luks_uuid);
        return Err(other(disk, luks_uuid, &found));
    }
    // What the header claims is bounded: a forged one cannot send this past the usual place of a header.
    let start = luks.areas.start;
    let end = luks
        .areas
        .end
        .clamp(start, header::BLANK_HEAD)
        .min(disk.size());
    let areas = start..end;

    // Noise before zeros: a thin array may drop zeros without touching what it holds.
    let mut wiped = 0;
    for slot in &luks.slots {
        // In whole blocks, whatever a forged header claims.
        let (start, stop) = (
            (slot.area.start & !4095).max(areas.start),
            slot.area.end.min(areas.end) & !4095,
        );
        if start < stop {
            noise(disk, start, stop)?;
        }
        wiped += 1;
    }
    disk.sync()?;
    zeros(disk, areas.start, areas.end)?;
    disk.sync()?;
    zeros(disk, 0, areas.start)?;
    disk.sync()?;
    Ok(Erased {
        key_slots_wiped: wiped,
        verified: reads_as_zeros(disk, 0, end)?
            && !matches!(header::read(disk)?, HeaderFound::Luks(_)),
    })
}

fn other(disk: &Disk, luks_uuid: &str, found: &str) -> StepError {
    because(
        Reason::HeaderMismatch,
        format!(
            "{} does not carry LUKS UUID {luks_uuid} but {found}",
            disk.name()
        ),
    )
}

fn describe(found: &HeaderFound) -> String {
    match found {
        HeaderFound::Blank => "zeros".into(),
        HeaderFound::Foreign(what) => what.clone(),
        HeaderFound::Luks(_) => "LUKS".into(),
        HeaderFound::Unknown => "unknown data".into(),
    }
}

fn steps(start: u64, end: u64) -> impl Iterator<Item = (u64, usize)> {
    (start..end)
        .step_by(STEP as usize)
        .map(move |at| (at, STEP.min(end - at) as usize))
}

/// Overwrites with random bytes.
pub(super) fn noise(disk: &Disk, start: u64, end: u64) -> Result<(), StepError> {
    let mut random =
        std::fs::File::open("/dev/urandom").map_err(|e| failed("opening /dev/urandom", e))?;
    for (at, len) in steps(start, end) {
        let mut bytes = Aligned::zeroed(len);
        random
            .read_exact(&mut bytes)
            .map_err(|e| failed("reading /dev/urandom", e))?;
        disk.write(at, &bytes)?;
    }
    Ok(())
}

/// Overwrites with zeros.
pub(super) fn zeros(disk: &Disk, start: u64, end: u64) -> Result<(), StepError> {
    let bytes = Aligned::zeroed(STEP as usize);
    for (at, len) in steps(start, end) {
        disk.write(at, &bytes[..len])?;
    }
    Ok(())
}

/// Whether the device holds nothing but zeros there.
pub(super) fn reads_as_zeros(disk: &Disk, start: u64, end: u64) -> Result<bool, StepError> {
    let mut bytes = Aligned::zeroed(STEP as usize);
    for (at, len) in steps(start, end) {
        disk.read(at, &mut bytes[..len])?;
        if !is_zero(&bytes[..len]) {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::real::{
        luks,
        testing::{device, order, rewrite},
    };

    #[test]
    fn nothing_of_the_header_is_left_and_data_is_not_touched() {
        let (path, disk) = device(64 << 20);
        luks::format(&disk, &order()).unwrap();
        rewrite(&disk, 16 << 20, &[0xaa; 4096]);
        let erased = erase(&disk, &order().luks_uuid).unwrap();
        assert_eq!(
            erased,
            Erased {
                key_slots_wiped: 1,
                verified: true
            }
        );
        let bytes = std::fs::read(path.path()).unwrap();
        assert!(is_zero(&bytes[..16 << 20]));
        assert_eq!(bytes[16 << 20..][..4096], [0xaa; 4096]);
        assert_eq!(
            erase(&disk, &order().luks_uuid).unwrap_err().reason(),
            Reason::HeaderMismatch
        );
    }

    #[test]
    fn another_header_is_not_erased() {
        let (path, disk) = device(64 << 20);
        luks::format(&disk, &order()).unwrap();
        let before = std::fs::read(path.path()).unwrap();
        let error = erase(&disk, "5a2a5f3a-0000-4000-8000-000000000000").unwrap_err();
        assert_eq!(error.reason(), Reason::HeaderMismatch);
        assert!(before == std::fs::read(path.path()).unwrap());
    }

    #[test]
    fn an_erasure_that_was_cut_off_goes_on() {
        let (_path, disk) = device(64 << 20);
        luks::format(&disk, &order()).unwrap();
        // Key slots and the first copy are gone, the second is there.
        rewrite(&disk, 0x8000, &vec![0; 258_048]);
        rewrite(&disk, 0, &[0; 0x4000]);
        assert!(erase(&disk, &order().luks_uuid).unwrap().verified);
    }
}
