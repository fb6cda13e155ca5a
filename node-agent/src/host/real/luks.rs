//! Writing and opening LUKS headers. libcryptsetup only ever sees a header in memory: what it made is checked before it is
//! written, what it opens is what was checked, and it never waits for a device, a lock or udev.

use std::{
    fs::File,
    io::Read,
    os::{fd::AsRawFd, unix::fs::FileExt},
    path::PathBuf,
};

use cryptvol_crds::{
    conditions::Reason,
    v1alpha1::{Encryption, Provider},
};
use libcryptsetup_rs::{
    CryptDevice, CryptInit, CryptParamsLuks1, CryptParamsLuks1Ref, CryptParamsLuks2,
    CryptParamsLuks2Ref, CryptPbkdfType, LibcryptErr, SafeMemHandle,
    consts::{
        flags::{CryptPbkdf, CryptVolumeKey},
        vals::{CryptKdf, CryptRng, EncryptionFormat},
    },
};
use nix::{
    libc,
    sys::memfd::{MFdFlags, memfd_create},
};

use super::{
    disk::{Aligned, Disk},
    error::{because, failed},
    header::{self, Luks, luks1},
    sys,
};
use crate::host::{FormatOrder, Header, HeaderFound, Passphrase, StepError};

/// Iterations for a passphrase that is a random secret of 256 bits: the least that LUKS takes.
const ITERATIONS: u32 = 1000;
/// Hash of key derivation and anti-forensic splitter, as cryptsetup's default is.
pub(super) const HASH: &str = "sha256";

/// A volume key, in locked memory that is wiped when dropped.
pub struct VolumeKey(pub(super) SafeMemHandle);

impl VolumeKey {
    /// A new key that is stored nowhere. The kernel's random numbers, as for a header.
    ///
    /// # Errors
    /// `StepFailed`.
    pub fn random(len: usize) -> Result<Self, StepError> {
        let what = "making a volume key";
        let mut key = SafeMemHandle::alloc(len).map_err(|e| failed(what, e))?;
        File::open("/dev/urandom")
            .and_then(|mut f| f.read_exact(key.as_mut()))
            .map_err(|e| failed(what, e))?;
        Ok(Self(key))
    }

    /// The key.
    pub fn bytes(&self) -> &[u8] {
        self.0.as_ref()
    }
}

/// Makes sure that the device carries a header with the ordered UUID that the passphrase opens, and writes one if it is blank or
/// carries one with that UUID that does not open and may be written over. Returns what was read back.
///
/// # Errors
/// `DeviceNotBlank`, `ForeignSignature`, `HeaderMismatch`, `KeyDoesNotOpen`, `DeviceUnreadable`, `StepFailed`.
pub fn format(disk: &Disk, order: &FormatOrder) -> Result<Header, StepError> {
    let mut over = false;
    match header::read_luks(disk)? {
        Ok(luks) if luks.header.facts.luks_uuid != order.luks_uuid => {
            return Err(because(
                Reason::ForeignSignature,
                format!(
                    "{} carries a LUKS header with UUID {} and not {}",
                    disk.name(),
                    luks.header.facts.luks_uuid,
                    order.luks_uuid
                ),
            ));
        }
        Ok(luks) if luks.header.facts.provider != order.encryption.provider => {
            return Err(because(
                Reason::HeaderMismatch,
                format!(
                    "the header on {} is of {} and not of {}",
                    disk.name(),
                    luks.header.facts.provider.as_str(),
                    order.encryption.provider.as_str()
                ),
            ));
        }
        Ok(luks) if luks.header.key_slots == 0 && order.over_torn => over = true,
        Ok(luks) if !luks.header.objections.is_empty() => {
            return Err(because(
                Reason::HeaderMismatch,
                format!(
                    "the header on {} is not acceptable: {}",
                    disk.name(),
                    luks.header.objections.join("; ")
                ),
            ));
        }
        Ok(luks) => match unlock(disk, &luks, &order.passphrase) {
            // Written before, and only the report got lost.
            Ok(_) => return Ok(luks.header),
            Err(e) if e.reason() == Reason::KeyDoesNotOpen && order.over_torn => over = true,
            Err(e) => return Err(e),
        },
        Err(HeaderFound::Blank) => {}
        Err(HeaderFound::Foreign(what)) => {
            return Err(because(
                Reason::ForeignSignature,
                format!("{} carries {what}", disk.name()),
            ));
        }
        Err(_) => {
            return Err(because(
                Reason::DeviceNotBlank,
                format!("{} is not blank", disk.name()),
            ));
        }
    }
    let made = make(disk.size(), order)?;
    write(disk, &made, over)?;
    let read = match header::read_luks(disk)? {
        Ok(luks) => luks,
        Err(other) => {
            return Err(failed(
                format!("reading back the header of {}", disk.name()),
                format!("found {other:?}"),
            ));
        }
    };
    if read.bytes != made.luks.bytes {
        return Err(failed(
            format!("reading back the header of {}", disk.name()),
            "it is not what was written",
        ));
    }
    // Proves that the key slot, too, is on the disk as it was made.
    unlock(disk, &read, &order.passphrase)?;
    Ok(read.header)
}

/// A header that is in memory only.
pub(super) struct Made {
    pub(super) luks: Luks,
    areas: Vec<(u64, Aligned)>,
}

/// Makes a header for a device of this size, and reads it as strictly as one from an array.
fn make(device_size: u64, order: &FormatOrder) -> Result<Made, StepError> {
    let what = "making a LUKS header";
    let memory = Memory::new(device_size).map_err(|e| failed(what, e))?;
    make_in(&memory, order).map_err(|e| failed(what, e))?;

    let mut head = Aligned::zeroed(device_size.min(header::USUAL_HEADER) as usize);
    memory
        .file
        .read_exact_at(&mut head, 0)
        .map_err(|e| failed(what, e))?;
    let luks = match header::parse(&head, device_size) {
        header::Parsed::Luks(luks) => *luks,
        other => return Err(failed(what, format!("{other:?}"))),
    };
    let facts = &luks.header.facts;
    let Encryption {
        provider,
        cipher,
        key_size,
        sector_size,
        ..
    } = &order.encryption;
    if !luks.header.objections.is_empty()
        || facts.luks_uuid != order.luks_uuid
        || facts.provider != *provider
        || facts.cipher != *cipher
        || facts.key_size != *key_size
        || facts.sector_size != *sector_size
    {
        return Err(failed(
            what,
            format!("it is not what was ordered: {:?}", luks.header),
        ));
    }
    Made::of(&memory, luks).map_err(|e| failed(what, e))
}

impl Made {
    /// A header and its key slots.
    pub(super) fn of(memory: &Memory, luks: Luks) -> std::io::Result<Self> {
        let mut areas = Vec::new();
        for slot in &luks.slots {
            let mut area = Aligned::zeroed((slot.area.end - slot.area.start) as usize);
            memory.file.read_exact_at(&mut area, slot.area.start)?;
            areas.push((slot.area.start, area));
        }
        Ok(Self { luks, areas })
    }
}

/// How our key slots derive their keys.
pub(super) fn pbkdf() -> CryptPbkdfType {
    CryptPbkdfType {
        type_: CryptKdf::Pbkdf2,
        hash: Some(HASH.into()),
        time_ms: 0,
        iterations: ITERATIONS,
        max_memory_kb: 0,
        parallel_threads: 0,
        flags: CryptPbkdf::NO_BENCHMARK,
    }
}

fn make_in(memory: &Memory, order: &FormatOrder) -> Result<(), LibcryptErr> {
    let uuid = uuid::Uuid::parse_str(&order.luks_uuid)
        .map_err(|e| LibcryptErr::Other(format!("LUKS UUID: {e}")))?;
    let (cipher, mode) = order
        .encryption
        .cipher
        .split_once('-')
        .ok_or_else(|| LibcryptErr::Other("cipher without a mode".into()))?;
    let mut device = memory.device()?;
    let mut settings = device.settings_handle();
    settings.set_rng_type(CryptRng::Urandom);
    settings.set_pbkdf_type(&pbkdf())?;
    let key = libcryptsetup_rs::Either::Right(order.encryption.key_size as usize / 8);
    let mut context = device.context_handle();
    match order.encryption.provider {
        Provider::Luks2 => {
            let params = CryptParamsLuks2 {
                pbkdf: Some(pbkdf()),
                integrity: None,
                integrity_params: None,
                data_alignment: 0,
                data_device: None,
                sector_size: order.encryption.sector_size as u32,
                label: None,
                subsystem: None,
            };
            let mut params: CryptParamsLuks2Ref<'_> = (&params).try_into()?;
            let format = EncryptionFormat::Luks2;
            context.format(format, (cipher, mode), Some(uuid), key, Some(&mut params))?;
        }
        Provider::Luks => {
            let params = CryptParamsLuks1 {
                hash: HASH.into(),
                data_alignment: 0,
                data_device: None,
            };
            let mut params: CryptParamsLuks1Ref<'_> = (&params).try_into()?;
            let format = EncryptionFormat::Luks1;
            context.format(format, (cipher, mode), Some(uuid), key, Some(&mut params))?;
        }
        other @ (Provider::Plain | Provider::PassThrough) => {
            let what = format!("{} has no header", other.as_str());
            return Err(LibcryptErr::Other(what));
        }
    }
    device.keyslot_handle().add_by_key(
        Some(0),
        None,
        order.passphrase.0.as_bytes(),
        CryptVolumeKey::empty(),
    )?;
    Ok(())
}

fn write(disk: &Disk, made: &Made, over: bool) -> Result<(), StepError> {
    match made.luks.header.facts.provider {
        Provider::Luks => write_luks1(disk, made, over),
        _ => write_luks2(disk, made, over),
    }
}

/// Writes the second copy first: from then on the device is known by its UUID. The first copy comes last, when all else
/// is on stable storage.
pub(super) fn write_luks2(disk: &Disk, made: &Made, over: bool) -> Result<(), StepError> {
    let copy_size = made.luks.copy_size();
    let (primary, secondary) = made.luks.bytes.split_at(copy_size);
    if over {
        // At no moment two copies that are both whole and say different things.
        disk.write(0, &vec![0; copy_size])?;
        disk.sync()?;
    }
    disk.write(copy_size as u64, secondary)?;
    disk.sync()?;
    write_areas(disk, made)?;
    disk.write(0, primary)?;
    disk.sync()
}

/// There is one copy: it says first that no key slot is in use, then the key slot is written, then the header says so. It spans
/// two sectors, and a device may write one of them only: the second is there before the first, which has magic and UUID.
fn write_luks1(disk: &Disk, made: &Made, over: bool) -> Result<(), StepError> {
    const SECTOR: usize = 512;
    let free = luks1::without_key_slots(&made.luks.bytes);
    if !over {
        let mut second = free.clone();
        second[..SECTOR].fill(0);
        disk.write(0, &second)?;
        disk.sync()?;
    }
    disk.write(0, &free)?;
    disk.sync()?;
    write_areas(disk, made)?;
    disk.write(0, &made.luks.bytes)?;
    disk.sync()
}

fn write_areas(disk: &Disk, made: &Made) -> Result<(), StepError> {
    for (offset, area) in &made.areas {
        disk.write(*offset, area)?;
    }
    disk.sync()
}

/// Takes the volume key out of a header that was read before, and of the key slots on the disk.
///
/// # Errors
/// `KeyDoesNotOpen`, `DeviceUnreadable`, `StepFailed`.
pub fn unlock(disk: &Disk, luks: &Luks, passphrase: &Passphrase) -> Result<VolumeKey, StepError> {
    let what = || format!("opening the header of {}", disk.name());
    let memory = Memory::of(disk, luks)?;
    let len = luks.header.facts.key_size as usize / 8;
    let format = match luks.header.facts.provider {
        Provider::Luks => EncryptionFormat::Luks1,
        _ => EncryptionFormat::Luks2,
    };
    let opened = open_in(&memory, format, len, passphrase);
    match opened {
        Ok(key) => Ok(key),
        Err(LibcryptErr::IOError(e)) if e.raw_os_error() == Some(libc::EPERM) => Err(because(
            Reason::KeyDoesNotOpen,
            format!(
                "the passphrase opens no key slot of LUKS UUID {} on {}",
                luks.header.facts.luks_uuid,
                disk.name()
            ),
        )),
        Err(e) => Err(failed(what(), e)),
    }
}

pub(super) fn open_in(
    memory: &Memory,
    format: EncryptionFormat,
    len: usize,
    passphrase: &Passphrase,
) -> Result<VolumeKey, LibcryptErr> {
    let mut device = memory.device()?;
    device.context_handle().load::<()>(Some(format), None)?;
    let mut key = SafeMemHandle::alloc(len)?;
    let (_, got) =
        device
            .volume_key_handle()
            .get(None, key.as_mut(), Some(passphrase.0.as_bytes()))?;
    let halves = key.as_ref().split_at(len / 2);
    if got != len || halves.0 == halves.1 {
        return Err(LibcryptErr::Other("the volume key is not usable".into()));
    }
    Ok(VolumeKey(key))
}

/// A file in memory that stands for the device.
pub(super) struct Memory {
    pub(super) file: File,
}

impl Memory {
    /// Zeros.
    pub(super) fn new(size: u64) -> std::io::Result<Self> {
        let file = File::from(memfd_create(c"cryptvol-header", MFdFlags::MFD_CLOEXEC)?);
        file.set_len(size)?;
        Ok(Self { file })
    }

    /// The header that was judged, and of the disk nothing but its key slots.
    pub(super) fn of(disk: &Disk, luks: &Luks) -> Result<Self, StepError> {
        let what = || format!("opening the header of {}", disk.name());
        let memory = Self::new(disk.size()).map_err(|e| failed(what(), e))?;
        let put = |bytes: &[u8], at| memory.file.write_all_at(bytes, at);
        put(&luks.bytes, 0).map_err(|e| failed(what(), e))?;
        for slot in &luks.slots {
            let area =
                disk.read_vec(slot.area.start, (slot.area.end - slot.area.start) as usize)?;
            put(&area, slot.area.start).map_err(|e| failed(what(), e))?;
        }
        Ok(memory)
    }

    /// For libcryptsetup.
    pub(super) fn device(&self) -> Result<CryptDevice, LibcryptErr> {
        sys::cryptsetup_messages_to_log();
        let path = PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()));
        let mut device = CryptInit::init(&path)?;
        // Nobody else can see this file.
        device.settings_handle().metadata_locking(false)?;
        Ok(device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::real::testing::{device, order, rewrite};

    #[test]
    fn formats_and_opens() {
        let (path, disk) = device(64 << 20);
        let order = order();
        let header = format(&disk, &order).unwrap();
        assert_eq!(header.objections, Vec::<String>::new());
        assert_eq!(header.key_slots, 1);
        let facts = &header.facts;
        assert_eq!(facts.luks_uuid, order.luks_uuid);
        assert_eq!(facts.cipher, "aes-xts-plain64");
        assert_eq!((facts.key_size, facts.sector_size), (512, 512));
        assert_eq!(facts.data_offset, 16 << 20);
        assert_eq!(facts.digest.len(), 64);

        let luks = header::read_luks(&disk).unwrap().unwrap();
        let key = unlock(&disk, &luks, &order.passphrase).unwrap();
        assert_eq!(key.bytes().len(), 64);

        // The tools of others agree: cryptsetup knows the header and opens it with the same passphrase.
        let mut other = CryptInit::init(path.path()).unwrap();
        other
            .context_handle()
            .load::<()>(Some(EncryptionFormat::Luks2), None)
            .unwrap();
        let json = other.status_handle().dump_json().unwrap();
        assert_eq!(json["digests"]["0"]["iterations"], 1000);
        assert_eq!(json["keyslots"]["0"]["kdf"]["iterations"], 1000);
        let mut theirs = vec![0; 64];
        other
            .volume_key_handle()
            .get(None, &mut theirs, Some(order.passphrase.0.as_bytes()))
            .unwrap();
        assert_eq!(theirs, key.bytes());
    }

    #[test]
    fn four_kilobyte_sectors_and_short_keys() {
        let (_path, disk) = device(64 << 20);
        let mut order = order();
        order.encryption.sector_size = 4096;
        order.encryption.key_size = 256;
        let header = format(&disk, &order).unwrap();
        assert_eq!(
            (header.facts.key_size, header.facts.sector_size),
            (256, 4096)
        );
        assert_eq!(header.objections, Vec::<String>::new());
    }

    #[test]
    fn a_wrong_passphrase_does_not_open() {
        let (_path, disk) = device(64 << 20);
        format(&disk, &order()).unwrap();
        let luks = header::read_luks(&disk).unwrap().unwrap();
        let wrong = Passphrase("0".repeat(64));
        let error = unlock(&disk, &luks, &wrong).err().unwrap();
        assert_eq!(error.reason(), Reason::KeyDoesNotOpen);
    }

    #[test]
    fn formatting_again_keeps_the_header_that_opens() {
        let (_path, disk) = device(64 << 20);
        let first = format(&disk, &order()).unwrap();
        let second = format(&disk, &order()).unwrap();
        assert_eq!(first, second);
    }

    #[test]
    fn formats_over_its_own_torn_header_only() {
        let (path, disk) = device(64 << 20);
        let first = format(&disk, &order()).unwrap();
        // As a power cut leaves it after the second copy: no first copy, no key slot.
        rewrite(&disk, 0, &[0; 0x4000]);
        rewrite(&disk, 0x8000, &vec![0; 258_048]);
        let torn = header::read_luks(&disk).unwrap().unwrap();
        assert_eq!(torn.header.facts, first.facts);
        // Not with a permit that was given for a blank disk …
        let before = std::fs::read(path.path()).unwrap();
        assert_eq!(
            format(&disk, &order()).unwrap_err().reason(),
            Reason::KeyDoesNotOpen
        );
        assert!(before == std::fs::read(path.path()).unwrap());
        // … only with one that a person gave for what is there.
        let mut order = order();
        order.over_torn = true;
        let second = format(&disk, &order).unwrap();
        assert_ne!(first.facts.digest, second.facts.digest);
    }

    #[test]
    fn does_not_format_what_is_not_blank() {
        for (at, bytes, reason) in [
            (9 << 20, vec![1; 4096], Reason::DeviceNotBlank),
            (63 << 20, vec![1; 4096], Reason::DeviceNotBlank),
        ] {
            let (path, disk) = device(64 << 20);
            rewrite(&disk, at, &bytes);
            let before = std::fs::read(path.path()).unwrap();
            assert_eq!(format(&disk, &order()).unwrap_err().reason(), reason);
            assert!(before == std::fs::read(path.path()).unwrap());
        }
        let (path, disk) = device(64 << 20);
        format(&disk, &order()).unwrap();
        let before = std::fs::read(path.path()).unwrap();
        let mut other = order();
        other.luks_uuid = "5a2a5f3a-0000-4000-8000-000000000000".into();
        assert_eq!(
            format(&disk, &other).unwrap_err().reason(),
            Reason::ForeignSignature
        );
        assert!(before == std::fs::read(path.path()).unwrap());
    }
}
