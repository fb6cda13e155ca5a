//! Erasure without a key: overwrites the key slots and reads back what the device holds now; the header goes by itself, later.

use std::{io::Read, ops::Range};

use cryptvol_crds::conditions::Reason;

use super::{
    disk::{Aligned, Disk, is_zero},
    error::{because, failed},
    header::{self, Luks},
};
use crate::host::{Erased, HeaderFound, StepError};

/// Written and read at once.
const STEP: u64 = 1 << 20;

/// Wipes all key slots of the header with this UUID. The header stays and names what is erased, so that a power cut at any place is followed
/// by the same erasure.
///
/// # Errors
/// `HeaderMismatch` when another header or none is there, `DeviceUnreadable`, `StepFailed`.
pub fn erase(disk: &Disk, luks_uuid: &str) -> Result<Erased, StepError> {
    let luks = match header::read_luks(disk)? {
        Ok(luks) => luks,
        Err(found) => return Err(other(disk, luks_uuid, &describe(&found))),
    };
    let areas = own_areas(disk, &luks, luks_uuid)?;

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
    Ok(Erased {
        key_slots_wiped: wiped,
        verified: reads_as_zeros(disk, areas.start, areas.end)?,
    })
}

/// Removes the header with this UUID, once its key slots are wiped. Success when there is no LUKS header.
///
/// # Errors
/// `HeaderMismatch` when another header is there or this one has key slots, `DeviceUnreadable`.
pub fn clear(disk: &Disk, luks_uuid: &str) -> Result<(), StepError> {
    let Ok(luks) = header::read_luks(disk)? else {
        return Ok(());
    };
    let areas = own_areas(disk, &luks, luks_uuid)?;
    if !reads_as_zeros(disk, areas.start, areas.end)? {
        return Err(other(
            disk,
            luks_uuid,
            "that with key slots that are not wiped",
        ));
    }
    zeros(disk, 0, areas.start)?;
    disk.sync()
}

/// Where the header with this UUID may have key slots. What it claims is bounded: a forged one cannot send anything past the usual place of
/// a header.
fn own_areas(disk: &Disk, luks: &Luks, luks_uuid: &str) -> Result<Range<u64>, StepError> {
    if luks.header.facts.luks_uuid != luks_uuid {
        let found = format!("a LUKS header with UUID {}", luks.header.facts.luks_uuid);
        return Err(other(disk, luks_uuid, &found));
    }
    let start = luks.areas.start;
    let end = luks
        .areas
        .end
        .clamp(start, header::BLANK_HEAD)
        .min(disk.size());
    Ok(start..end)
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
        // The header still says whose key slots they were, and erases as before.
        assert!(matches!(header::read(&disk).unwrap(), HeaderFound::Luks(_)));
        assert!(erase(&disk, &order().luks_uuid).unwrap().verified);
        for _ in 0..2 {
            clear(&disk, &order().luks_uuid).unwrap();
            let bytes = std::fs::read(path.path()).unwrap();
            assert!(is_zero(&bytes[..16 << 20]));
            assert_eq!(bytes[16 << 20..][..4096], [0xaa; 4096]);
        }
        assert_eq!(
            erase(&disk, &order().luks_uuid).unwrap_err().reason(),
            Reason::HeaderMismatch
        );
    }

    #[test]
    fn a_header_with_key_slots_is_not_removed() {
        let (path, disk) = device(64 << 20);
        luks::format(&disk, &order()).unwrap();
        let before = std::fs::read(path.path()).unwrap();
        for uuid in [&order().luks_uuid, "5a2a5f3a-0000-4000-8000-000000000000"] {
            let error = clear(&disk, uuid).unwrap_err();
            assert_eq!(error.reason(), Reason::HeaderMismatch);
        }
        assert!(before == std::fs::read(path.path()).unwrap());
    }

    #[test]
    fn invariant_07_a_power_cut_at_any_write_leaves_a_header_that_is_erased_again() {
        let mut writes = 0;
        loop {
            let (_path, disk) = device(64 << 20);
            luks::format(&disk, &order()).unwrap();
            disk.cut_after(writes);
            let cut = erase(&disk, &order().luks_uuid).is_err();
            disk.cut_after(u32::MAX);
            assert!(erase(&disk, &order().luks_uuid).unwrap().verified);
            if !cut {
                break;
            }
            writes += 1;
        }
        assert!(writes > 2, "{writes}");
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
