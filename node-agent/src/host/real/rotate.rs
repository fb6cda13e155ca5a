//! Key slots of a header in use: one more, or some fewer. Everything is made and judged in memory first; on the disk the order of writes is
//! such that a header that was interrupted anywhere opens with the passphrase that is on record then.
//!
//! One more: the new area, which no header names yet; the first copy, which is newer than the second from then on; the second
//! copy. Some fewer: the areas that go, then the two copies in the same order.

use std::{ops::Range, os::unix::fs::FileExt};

use cryptvol_crds::{conditions::Reason, v1alpha1::KeySlotRef};
use libcryptsetup_rs::{
    CryptDevice, Either, LibcryptErr, SafeMemHandle,
    consts::{flags::CryptVolumeKey, vals::EncryptionFormat},
};
use nix::libc;

use super::{
    disk::{Aligned, Disk},
    erase,
    error::{because, failed},
    header::{self, KeySlot, Luks},
    luks::{self, Memory, VolumeKey},
    pinned_header, with_room_of,
};
use crate::host::{AddSlotOrder, DropSlotsOrder, Passphrase, StepError};

/// Most key slots of the format.
const MAX_SLOTS: usize = 32;

/// See [`crate::host::Host::add_key_slot`].
pub fn add(disk: &Disk, order: &AddSlotOrder) -> Result<Vec<KeySlotRef>, StepError> {
    let what = || format!("adding a key slot to the header of {}", disk.name());
    let found = pinned_header(disk, &order.expected, &order.derivations)?;
    let memory = Memory::of(disk, &found)?;
    let mut device = load(&memory).map_err(|e| failed(what(), e))?;
    let former =
        opened_by(&mut device, &found, &order.passphrase).map_err(|e| failed(what(), e))?;
    let next = opened_by(&mut device, &found, &order.next).map_err(|e| failed(what(), e))?;
    let Some((_, volume_key)) = former.first() else {
        return Err(opens_nothing(disk, &found, "the present passphrase"));
    };
    if next.iter().any(|(n, _)| former.iter().any(|(f, _)| n == f)) {
        return Err(failed(what(), "the new key is the present one"));
    }
    let mut added = Vec::new();
    // Also where it was added before and the second copy did not follow.
    let mut copies = header::both_copies(&found);
    if next.is_empty() {
        if found.slots.len() >= MAX_SLOTS {
            return Err(full(disk));
        }
        match add_in(&mut device, volume_key, &order.next) {
            Ok(()) => {}
            Err(LibcryptErr::IOError(e))
                if matches!(e.raw_os_error(), Some(libc::ENOSPC | libc::EINVAL)) =>
            {
                return Err(full(disk));
            }
            Err(e) => return Err(failed(what(), e)),
        }
        drop(device);
        let made = judged(disk, &memory, &found)?;
        added = made.slots.clone();
        added.retain(|slot| !found.slots.contains(slot));
        let kept = found.slots.iter().all(|slot| made.slots.contains(slot));
        if added.len() != 1 || !kept {
            return Err(failed(what(), "other key slots than one would change"));
        }
        for slot in &added {
            disk.write(slot.area.start, &read(&memory, &slot.area, &what())?)?;
        }
        disk.sync()?;
        copies = read(&memory, &(0..2 * found.copy_size() as u64), &what())?.to_vec();
    }
    write_copies(disk, &copies, found.copy_size())?;

    // Proven on the disk as it is now, to the very key that encrypts the sectors.
    let now = pinned_header(disk, &order.expected, &order.derivations)?;
    if added.iter().any(|slot| !now.slots.contains(slot)) {
        return Err(failed(what(), "the new key slot is not in the header"));
    }
    let by_new = luks::unlock(disk, &now, &order.next)?;
    if by_new.bytes() != volume_key.bytes() {
        return Err(failed(what(), "the new key slot holds another volume key"));
    }
    let slots = found.slots.iter();
    let former = slots.filter(|slot| former.iter().any(|(id, _)| *id == slot.id));
    Ok(former.map(reference).collect())
}

/// See [`crate::host::Host::drop_key_slots`].
pub fn drop_slots(disk: &Disk, order: &DropSlotsOrder) -> Result<(), StepError> {
    let what = || format!("dropping key slots of the header of {}", disk.name());
    let found = pinned_header(disk, &order.expected, &order.derivations)?;
    let memory = Memory::of(disk, &found)?;
    let mut device = load(&memory).map_err(|e| failed(what(), e))?;
    let kept = opened_by(&mut device, &found, &order.passphrase).map_err(|e| failed(what(), e))?;
    let goes = |slot: &&KeySlot| order.former.contains(&reference(slot));
    let doomed: Vec<_> = found.slots.iter().filter(goes).cloned().collect();
    let is_doomed = |id: &u32| doomed.iter().any(|slot| slot.id == *id);
    if kept.iter().all(|(id, _)| is_doomed(id)) {
        return Err(opens_nothing(
            disk,
            &found,
            "beside what is to go, the passphrase",
        ));
    }
    if doomed.is_empty() {
        return write_copies(disk, &header::both_copies(&found), found.copy_size());
    }
    for slot in &doomed {
        device
            .keyslot_handle()
            .destroy(slot.id)
            .map_err(|e| failed(what(), e))?;
    }
    drop(device);
    let made = judged(disk, &memory, &found)?;
    let mut left = found.slots.clone();
    left.retain(|slot| !doomed.contains(slot));
    if made.slots != left {
        return Err(failed(
            what(),
            "other key slots would change than those that go",
        ));
    }
    // Noise before zeros, as at an erasure: a thin array may drop zeros without touching what it holds.
    let region = 2 * found.copy_size() as u64..found.areas.end.min(header::BLANK_HEAD);
    let wiped: Vec<_> = doomed.iter().map(|s| within(&s.area, &region)).collect();
    for area in &wiped {
        erase::noise(disk, area.start, area.end)?;
    }
    disk.sync()?;
    for area in &wiped {
        erase::zeros(disk, area.start, area.end)?;
    }
    disk.sync()?;
    let copies = read(&memory, &(0..2 * found.copy_size() as u64), &what())?;
    write_copies(disk, &copies, found.copy_size())?;

    let now = pinned_header(disk, &order.expected, &order.derivations)?;
    luks::unlock(disk, &now, &order.passphrase)?;
    let mut clean = now.slots == left;
    for area in &wiped {
        clean &= erase::reads_as_zeros(disk, area.start, area.end)?;
    }
    if !clean {
        return Err(failed(what(), "after it the disk still shows them"));
    }
    Ok(())
}

fn load(memory: &Memory) -> Result<CryptDevice, LibcryptErr> {
    let mut device = memory.device()?;
    device
        .context_handle()
        .load::<()>(Some(EncryptionFormat::Luks2), None)?;
    Ok(device)
}

fn add_in(device: &mut CryptDevice, key: &VolumeKey, next: &Passphrase) -> Result<(), LibcryptErr> {
    device.settings_handle().set_pbkdf_type(&luks::pbkdf())?;
    device
        .keyslot_handle()
        .add_by_key(
            None,
            Some(Either::Left(key.bytes())),
            next.0.as_bytes(),
            CryptVolumeKey::empty(),
        )
        .map(drop)
}

/// All key slots that a passphrase opens, with the volume key in them.
fn opened_by(
    device: &mut CryptDevice,
    luks: &Luks,
    passphrase: &Passphrase,
) -> Result<Vec<(u32, VolumeKey)>, LibcryptErr> {
    let len = luks.header.facts.volume_key_bytes();
    let mut opened = Vec::new();
    for slot in &luks.slots {
        let mut key = SafeMemHandle::alloc(len)?;
        match device.volume_key_handle().get(
            Some(slot.id),
            key.as_mut(),
            Some(passphrase.0.as_bytes()),
        ) {
            Ok((_, got)) if got == len => opened.push((slot.id, VolumeKey(key))),
            Ok(_) => return Err(LibcryptErr::Other("the volume key is not usable".into())),
            Err(LibcryptErr::IOError(e)) if e.raw_os_error() == Some(libc::EPERM) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(opened)
}

/// What was made in memory, read as strictly as what lies on an array; nothing but key slots may be other than it was.
fn judged(disk: &Disk, memory: &Memory, before: &Luks) -> Result<Luks, StepError> {
    let what = || format!("changing the header of {}", disk.name());
    let end = header::USUAL_HEADER.max(before.bytes.len() as u64);
    let head = read(memory, &(0..end.min(disk.size())), &what())?;
    match header::parse(&head, disk.size()) {
        header::Parsed::Luks(made)
            if with_room_of(&before.header.facts, &made.header.facts) == before.header.facts
                && made.header.objections.is_empty()
                && made.copy_size() == before.copy_size() =>
        {
            Ok(*made)
        }
        other => Err(failed(
            what(),
            format!("it is not what was wanted: {other:?}"),
        )),
    }
}

/// First copy, then second, each on stable storage before the next.
fn write_copies(disk: &Disk, copies: &[u8], size: usize) -> Result<(), StepError> {
    for (at, copy) in [0, size as u64].into_iter().zip(copies.chunks(size)) {
        if *disk.read_vec(at, size)? != *copy {
            disk.write(at, copy)?;
            disk.sync()?;
        }
    }
    Ok(())
}

fn read(memory: &Memory, range: &Range<u64>, what: &str) -> Result<Aligned, StepError> {
    let mut bytes = Aligned::zeroed((range.end - range.start) as usize);
    memory
        .file
        .read_exact_at(&mut bytes, range.start)
        .map_err(|e| failed(what, e))?;
    Ok(bytes)
}

fn within(area: &Range<u64>, region: &Range<u64>) -> Range<u64> {
    let start = area.start.max(region.start);
    start..area.end.min(region.end).max(start)
}

fn reference(slot: &KeySlot) -> KeySlotRef {
    KeySlotRef {
        number: slot.id as i32,
        fingerprint: slot.fingerprint.clone(),
    }
}

fn opens_nothing(disk: &Disk, luks: &Luks, who: &str) -> StepError {
    because(
        Reason::KeyDoesNotOpen,
        format!(
            "{who} opens no key slot of LUKS UUID {} on {}",
            luks.header.facts.luks_uuid,
            disk.name()
        ),
    )
}

fn full(disk: &Disk) -> StepError {
    because(
        Reason::NoFreeKeySlot,
        format!("the header of {} has no room for a key slot", disk.name()),
    )
}

#[cfg(test)]
mod tests;
