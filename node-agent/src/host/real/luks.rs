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
    v1alpha1::{Encryption, HeaderFacts, Integrity, Provider},
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
use crate::host::{FormatOrder, Header, HeaderFound, OWN_DERIVATIONS, Passphrase, StepError};

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
    let over = match judge(disk, order)? {
        Verdict::Keep(header) => return Ok(header),
        Verdict::Write { over } => over,
    };
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

/// What is to become of what a device carries.
pub enum Verdict {
    /// It is what was ordered.
    Keep(Header),
    /// A header may be written.
    Write {
        /// Over one that does not open.
        over: bool,
    },
}

/// Looks whether a header may be written. Writes nothing.
///
/// # Errors
/// As of [`format`].
pub fn judge(disk: &Disk, order: &FormatOrder) -> Result<Verdict, StepError> {
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
        // Memory and time for another way were given to nobody.
        Ok(luks) if !is_own(&luks.header) => {
            return Err(because(
                Reason::HeaderMismatch,
                format!(
                    "the header on {} has the volume's UUID, and derives its keys by {}, which this agent does not",
                    disk.name(),
                    luks.header.derivations.join(", ")
                ),
            ));
        }
        Ok(luks) => match unlock(disk, &luks, &order.passphrase) {
            // Written before, and only the report got lost.
            Ok(_) => return Ok(Verdict::Keep(luks.header)),
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
    Ok(Verdict::Write { over })
}

/// Whether all keys of a header are derived as this agent does it.
fn is_own(header: &Header) -> bool {
    let mut ways = header.derivations.iter().map(String::as_str);
    ways.all(|way| OWN_DERIVATIONS.contains(&way))
}

/// Facts of a header as it would be written, without a word of what only the device can say.
///
/// # Errors
/// `StepFailed`.
pub fn facts_to_be(device_size: u64, order: &FormatOrder) -> Result<HeaderFacts, StepError> {
    Ok(make(device_size, order)?.luks.header.facts)
}

/// A header that is in memory only.
pub(super) struct Made {
    pub(super) luks: Luks,
    pub(super) areas: Vec<(u64, Aligned)>,
}

/// Makes a header for a device of this size, and reads it as strictly as one from an array.
fn make(device_size: u64, order: &FormatOrder) -> Result<Made, StepError> {
    let what = "making a LUKS header";
    let memory = Memory::new(device_size).map_err(|e| failed(what, e))?;
    make_in(&memory, order).map_err(|e| failed(what, e))?;
    if let Some(integrity) = order.encryption.integrity {
        authenticate(&memory, integrity).map_err(|e| failed(what, e))?;
    }

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
        integrity,
        ..
    } = &order.encryption;
    if !luks.header.objections.is_empty()
        || facts.luks_uuid != order.luks_uuid
        || facts.provider != *provider
        || facts.cipher != *cipher
        || facts.key_size != *key_size
        || facts.sector_size != *sector_size
        || facts.integrity.as_ref().map(|i| i.kind) != *integrity
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
    let (key, flags) = match order.encryption.integrity {
        None => (None, CryptVolumeKey::empty()),
        // A key that is longer than the cipher's belongs to no segment as long as that has no word of its authentication.
        Some(integrity) => {
            let len = order.encryption.key_size as usize / 8 + integrity.key_bytes();
            let key = VolumeKey::random(len).map_err(|e| LibcryptErr::Other(e.to_string()))?;
            (Some(key), CryptVolumeKey::NO_SEGMENT)
        }
    };
    device.keyslot_handle().add_by_key(
        Some(0),
        key.as_ref()
            .map(|key| libcryptsetup_rs::Either::Left(key.bytes())),
        order.passphrase.0.as_bytes(),
        flags,
    )?;
    Ok(())
}

/// Binds the longer key to the segment and says how that is authenticated. libcryptsetup would have the kernel make the layer of tags
/// in the same call, for which it would need the disk itself.
pub(super) fn authenticate(memory: &Memory, integrity: Integrity) -> Result<(), String> {
    let size = memory.file.metadata().map_err(|e| e.to_string())?.len();
    let mut head = vec![0; size.min(1 << 20) as usize];
    let read = memory.file.read_exact_at(&mut head, 0);
    read.map_err(|e| e.to_string())?;
    let header::Parsed::Luks(luks) = header::parse(&head, size) else {
        return Err("libcryptsetup made no header".into());
    };
    let mut json: serde_json::Value =
        serde_json::from_str(header::metadata(&luks)?).map_err(|e| e.to_string())?;
    let unbound = json["digests"]
        .as_object()
        .and_then(|digests| {
            digests
                .values()
                .find(|d| d["keyslots"] == serde_json::json!(["0"]))
        })
        .cloned();
    let mut digest = unbound.ok_or("its key slot has no digest")?;
    digest["segments"] = serde_json::json!(["0"]);
    json["digests"] = serde_json::json!({ "0": digest });
    json["segments"]["0"]["integrity"] = serde_json::json!({
        "type": integrity.kernel_name(),
        "journal_encryption": "none",
        "journal_integrity": "none",
    });
    let bytes = header::with_metadata(&luks, &json.to_string())?;
    let written = memory.file.write_all_at(&bytes, 0);
    written.map_err(|e| e.to_string())
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
    let len = luks.header.facts.volume_key_bytes();
    let of_cipher = luks.header.facts.key_size as usize / 8;
    let format = match luks.header.facts.provider {
        Provider::Luks => EncryptionFormat::Luks1,
        _ => EncryptionFormat::Luks2,
    };
    let opened = open_in(&memory, format, len, of_cipher, passphrase);
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
    of_cipher: usize,
    passphrase: &Passphrase,
) -> Result<VolumeKey, LibcryptErr> {
    let mut device = memory.device()?;
    device.context_handle().load::<()>(Some(format), None)?;
    let mut key = SafeMemHandle::alloc(len)?;
    let (_, got) =
        device
            .volume_key_handle()
            .get(None, key.as_mut(), Some(passphrase.0.as_bytes()))?;
    let halves = key.as_ref()[..of_cipher].split_at(of_cipher / 2);
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
    fn a_header_for_authenticated_sectors_is_made_and_opened() {
        use crate::host::real::{integrity::tests::made_by_kernel, pinned_header};
        for sector_size in [512, 4096] {
            let (_path, disk) = device(128 << 20);
            rewrite(&disk, 16 << 20, &made_by_kernel(sector_size));
            let mut order = order();
            order.encryption.integrity = Some(Integrity::HmacSha256);
            order.encryption.sector_size = sector_size;
            let header = format(&disk, &order).unwrap();
            assert_eq!(header.objections, Vec::<String>::new());
            assert_eq!((header.key_slots, header.facts.key_size), (1, 512));
            assert_eq!(header.facts.volume_key_bytes(), 96);
            let integrity = header.facts.integrity.clone().unwrap();
            assert_eq!(integrity.kind, Integrity::HmacSha256);
            assert_eq!(
                integrity.data_bytes,
                if sector_size == 512 { 213_008 } else { 225_728 } * 512
            );

            let luks = header::read_luks(&disk).unwrap().unwrap();
            let key = unlock(&disk, &luks, &order.passphrase).unwrap();
            assert_eq!(key.bytes().len(), 96);
            assert_eq!(format(&disk, &order).unwrap(), header, "kept");
            let wrong = Passphrase("8".repeat(64));
            let error = unlock(&disk, &luks, &wrong).map(drop).unwrap_err();
            assert_eq!(error.reason(), Reason::KeyDoesNotOpen);

            // Pinned: no less room, no other kind, no superblock that went.
            let mut pinned = header.facts.clone();
            pinned_header(&disk, &pinned, &[]).unwrap();
            pinned.integrity.as_mut().unwrap().data_bytes -= 4096;
            pinned_header(&disk, &pinned, &[]).unwrap();
            pinned.integrity.as_mut().unwrap().data_bytes += 8192;
            assert!(pinned_header(&disk, &pinned, &[]).is_err());
            pinned.integrity = None;
            assert!(pinned_header(&disk, &pinned, &[]).is_err());
            rewrite(&disk, 16 << 20, &[0; 4096]);
            let error = pinned_header(&disk, &header.facts, &[]).unwrap_err();
            assert!(
                error.message.contains("no superblock of dm-integrity"),
                "{error}"
            );
        }
    }

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
