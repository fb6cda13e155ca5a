//! Backup of a LUKS2 header in a few hundred bytes, and the header written anew from it (ADR 39).
//!
//! A header is 16 MiB on the disk and says little: its facts, the digest of the volume key, and the volume key in its key slots. The
//! first two are kept as they are, the volume key sealed under the passphrase. All is checked in memory before anything is written.

use std::os::unix::fs::FileExt;

use base64::{Engine, engine::general_purpose::STANDARD};
use cryptvol_crds::{
    conditions::Reason,
    v1alpha1::{HeaderBackup, HeaderFacts, Provider, VolumeKeyDigest},
};
use libcryptsetup_rs::{
    CryptParamsLuks2, CryptParamsLuks2Ref, Either, LibcryptErr, SafeMemHandle,
    consts::{
        flags::CryptVolumeKey,
        vals::{CryptRng, EncryptionFormat},
    },
};
use ring::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    hkdf::{HKDF_SHA256, Salt},
};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::{
    difference,
    disk::{Aligned, Disk},
    error::{because, failed},
    header::{self, digest},
    integrity, known_derivations,
    luks::{self, Made, Memory, VolumeKey},
    pinned_header, with_room_of,
};
use crate::host::{BackupOrder, Header, Passphrase, RestoreOrder, StepError};

/// Begins what the seal is made over; another form of backup has another one.
const FORM: &str = "cryptvol header backup 1";
/// Least length of a passphrase that seals, in lower-case hex: 256 bits.
const LEAST_HEX: usize = 64;
/// Longest volume key in bytes: that of the cipher, and that of an authentication behind it.
const MAX_KEY: usize = header::MAX_KEY_BYTES as usize;

/// See [`crate::host::Host::backup_header`].
pub fn make(disk: &Disk, order: &BackupOrder) -> Result<HeaderBackup, StepError> {
    let what = || format!("making a backup of the header of {}", disk.name());
    if order.expected.provider != Provider::Luks2 {
        return Err(failed(what(), "it is not of luks2"));
    }
    random(&order.passphrase)?;
    let luks = pinned_header(disk, &order.expected, &order.derivations)?;
    if luks.header.unlock_memory_kib > order.unlock_memory_kib {
        return Err(failed(what(), "opening it takes more memory than before"));
    }
    let key = luks::unlock(disk, &luks, &order.passphrase)?;
    let digest = digest::read(&luks).map_err(|e| failed(what(), e))?;
    let backup = HeaderBackup {
        sealed: seal(&order.expected, &digest, &order.passphrase, &key)?,
        header: order.expected.clone(),
        digest,
    };
    // What cannot be restored is no backup.
    let again = opened(&backup, &order.expected, &order.passphrase)?;
    make_header(disk.size(), &backup, &order.passphrase, &again)?;
    Ok(backup)
}

/// See [`crate::host::Host::restore_header`].
pub fn restore(disk: &Disk, order: &RestoreOrder) -> Result<(), StepError> {
    let RestoreOrder {
        expected,
        derivations,
        backup,
        passphrase,
    } = order;
    match header::read_luks(disk)? {
        Ok(luks) if luks.header.facts.luks_uuid != expected.luks_uuid => {
            return Err(because(
                Reason::ForeignSignature,
                format!(
                    "{} carries a LUKS header with UUID {}, expected {}",
                    disk.name(),
                    luks.header.facts.luks_uuid,
                    expected.luks_uuid
                ),
            ));
        }
        Ok(luks) if luks.header.key_slots > 0 => {
            if let Some(difference) = difference(expected, &luks.header) {
                return Err(because(
                    Reason::HeaderMismatch,
                    format!("the header of {} is whole, and {difference}", disk.name()),
                ));
            }
            known_derivations(disk, &luks.header, derivations)?;
            if derivations.is_empty() && luks.header.unlock_memory_kib > 0 {
                return Err(because(
                    Reason::HeaderMismatch,
                    format!(
                        "the header of {} is whole, and nobody knows whether it took Argon2 before",
                        disk.name()
                    ),
                ));
            }
            match luks::unlock(disk, &luks, passphrase) {
                // Nothing is damaged, or it was written before and only the report got lost.
                Ok(_) => return Ok(()),
                Err(e) if e.reason() == Reason::KeyDoesNotOpen => {}
                Err(e) => return Err(e),
            }
        }
        Ok(_) | Err(_) => {}
    }
    let key = opened(backup, expected, passphrase)?;
    let made = make_header(disk.size(), backup, passphrase, &key)?;
    let mut behind = expected.clone();
    if let Some(why) = integrity::complete(disk, &mut behind)? {
        return Err(because(
            Reason::HeaderMismatch,
            format!(
                "the header of {} cannot be restored: {why}, and without that there are no tags",
                disk.name()
            ),
        ));
    }
    luks::write_luks2(disk, &made, true)?;

    let now = pinned_header(disk, expected, derivations)?;
    let back = luks::unlock(disk, &now, passphrase)?;
    if now.bytes != made.luks.bytes || back.bytes() != key.bytes() {
        return Err(failed(
            format!("reading back the header of {}", disk.name()),
            "it is not what was written",
        ));
    }
    Ok(())
}

/// Whether a passphrase is the hex of so many random bits that nobody can guess it.
pub(super) fn random(passphrase: &Passphrase) -> Result<(), StepError> {
    let hex = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
    match passphrase.0.len() >= LEAST_HEX && passphrase.0.bytes().all(hex) {
        true => Ok(()),
        false => Err(because(
            Reason::HeaderBackupUnsupported,
            "there is no backup of the header: its passphrase is not 256 bits in lower-case hex",
        )),
    }
}

/// All that the seal is made over.
fn bound(facts: &HeaderFacts, digest: &VolumeKeyDigest) -> Result<Vec<u8>, StepError> {
    serde_json::to_vec(&(FORM, facts, digest)).map_err(|e| failed("sealing a header", e))
}

/// The key of the seal. It is used for one text alone, which is the volume key that this digest is of: so the nonce may be fixed,
/// and the same header makes the same backup.
fn sealing_key(bound: &[u8], passphrase: &Passphrase) -> Result<LessSafeKey, StepError> {
    let salt = Salt::new(HKDF_SHA256, &Sha256::digest(bound));
    let secret = salt.extract(passphrase.0.as_bytes());
    let info = [FORM.as_bytes()];
    let key = secret
        .expand(&info, &AES_256_GCM)
        .map_err(|_| failed("sealing a header", "no key"))?;
    Ok(LessSafeKey::new(UnboundKey::from(key)))
}

fn nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; NONCE_LEN])
}

pub(super) fn seal(
    facts: &HeaderFacts,
    digest: &VolumeKeyDigest,
    passphrase: &Passphrase,
    key: &VolumeKey,
) -> Result<String, StepError> {
    let bound = bound(facts, digest)?;
    let sealing = sealing_key(&bound, passphrase)?;
    let mut text = Zeroizing::new(Vec::with_capacity(MAX_KEY + AES_256_GCM.tag_len()));
    text.extend_from_slice(key.bytes());
    sealing
        .seal_in_place_append_tag(nonce(), Aad::from(&bound), &mut *text)
        .map_err(|_| failed("sealing a header", "refused"))?;
    Ok(STANDARD.encode(&*text))
}

/// The volume key out of a backup of this very header.
pub(super) fn opened(
    backup: &HeaderBackup,
    expected: &HeaderFacts,
    passphrase: &Passphrase,
) -> Result<VolumeKey, StepError> {
    let invalid = |what: &str| {
        because(
            Reason::HeaderBackupInvalid,
            format!(
                "the backup of the header with LUKS UUID {} {what}",
                expected.luks_uuid
            ),
        )
    };
    random(passphrase)?;
    if backup.header != *expected || expected.provider != Provider::Luks2 {
        return Err(invalid("is of a header with other facts than were pinned"));
    }
    if digest::fingerprint(&backup.digest).as_ref() != Ok(&expected.digest) {
        return Err(invalid("is of another volume key"));
    }
    let bound = bound(&backup.header, &backup.digest)?;
    let sealing = sealing_key(&bound, passphrase)?;
    let sealed = STANDARD.decode(&backup.sealed);
    let mut text = Zeroizing::new(sealed.map_err(|_| invalid("is not base64"))?);
    let bytes = sealing
        .open_in_place(nonce(), Aad::from(&bound), &mut text)
        .map_err(|_| invalid("was changed, or the key on record does not open it"))?;
    if bytes.len() != expected.volume_key_bytes() {
        return Err(invalid("holds a key of another size"));
    }
    let mut key = SafeMemHandle::alloc(bytes.len()).map_err(|e| failed("opening a backup", e))?;
    key.as_mut().copy_from_slice(bytes);
    Ok(VolumeKey(key))
}

/// A header in memory for a disk of this size, with one key slot, read as strictly as one from an array, and opened.
pub(super) fn make_header(
    size: u64,
    backup: &HeaderBackup,
    passphrase: &Passphrase,
    key: &VolumeKey,
) -> Result<Made, StepError> {
    let what = "making a header from its backup";
    let expected = &backup.header;
    let offset = u64::try_from(expected.data_offset).unwrap_or(u64::MAX);
    if offset >= size {
        return Err(because(
            Reason::SizeMismatch,
            format!("the disk has {size} bytes, and its data began at {offset}"),
        ));
    }
    let memory = Memory::new(size).map_err(|e| failed(what, e))?;
    make_in(&memory, expected, passphrase, key).map_err(|e| failed(what, e))?;
    if let Some(integrity) = &expected.integrity {
        luks::authenticate(&memory, integrity.kind).map_err(|e| failed(what, e))?;
    }
    let mut head = Aligned::zeroed(size.min(header::USUAL_HEADER) as usize);
    let read = |head: &mut Aligned| memory.file.read_exact_at(head, 0);
    read(&mut head).map_err(|e| failed(what, e))?;
    let copy_size = match header::parse(&head, size) {
        header::Parsed::Luks(luks) => luks.copy_size(),
        other => return Err(failed(what, format!("{other:?}"))),
    };
    for at in [0, copy_size] {
        let copy = &mut head[at..at + copy_size];
        digest::replace(copy, &backup.digest).map_err(|e| failed(what, e))?;
    }
    let put = memory.file.write_all_at(&head[..2 * copy_size], 0);
    put.map_err(|e| failed(what, e))?;
    let luks = match header::parse(&head, size) {
        header::Parsed::Luks(luks) => *luks,
        other => return Err(failed(what, format!("{other:?}"))),
    };
    // How many bytes are authenticated says the disk behind the header.
    let found = Header {
        facts: with_room_of(expected, &luks.header.facts),
        ..luks.header.clone()
    };
    if let Some(difference) = difference(expected, &found) {
        return Err(failed(what, difference));
    }
    // libcryptsetup compares with the digest: it is the volume key that the lost header had.
    let (len, of_cipher) = (expected.volume_key_bytes(), expected.key_size as usize / 8);
    let proof = luks::open_in(&memory, EncryptionFormat::Luks2, len, of_cipher, passphrase);
    let proof = proof.map_err(|e| failed(what, e))?;
    if proof.bytes() != key.bytes() {
        return Err(failed(what, "its key slot holds another volume key"));
    }
    Made::of(&memory, luks).map_err(|e| failed(what, e))
}

pub(super) fn make_in(
    memory: &Memory,
    facts: &HeaderFacts,
    passphrase: &Passphrase,
    key: &VolumeKey,
) -> Result<(), LibcryptErr> {
    let other = |what: &str| LibcryptErr::Other(what.to_owned());
    let uuid = uuid::Uuid::parse_str(&facts.luks_uuid).map_err(|_| other("LUKS UUID"))?;
    let cipher = facts
        .cipher
        .split_once('-')
        .ok_or_else(|| other("cipher"))?;
    let offset = u64::try_from(facts.data_offset).map_err(|_| other("data offset"))?;
    // A longer key than the cipher's belongs to no segment before that has the word of its authentication.
    let authenticated = facts.integrity.is_some();
    let (of_cipher, _) = key
        .bytes()
        .split_at_checked(facts.key_size as usize / 8)
        .ok_or_else(|| other("key size"))?;
    let (slot_key, flags) = match authenticated {
        true => (Some(Either::Left(key.bytes())), CryptVolumeKey::NO_SEGMENT),
        false => (None, CryptVolumeKey::empty()),
    };
    let mut device = memory.device()?;
    device.set_data_offset(offset / 512)?;
    let mut settings = device.settings_handle();
    settings.set_rng_type(CryptRng::Urandom);
    settings.set_pbkdf_type(&luks::pbkdf())?;
    let params = CryptParamsLuks2 {
        pbkdf: Some(luks::pbkdf()),
        integrity: None,
        integrity_params: None,
        data_alignment: 0,
        data_device: None,
        sector_size: facts.sector_size as u32,
        label: None,
        subsystem: None,
    };
    let mut params: CryptParamsLuks2Ref<'_> = (&params).try_into()?;
    device.context_handle().format(
        EncryptionFormat::Luks2,
        cipher,
        Some(uuid),
        Either::Left(of_cipher),
        Some(&mut params),
    )?;
    device
        .keyslot_handle()
        .add_by_key(Some(0), slot_key, passphrase.0.as_bytes(), flags)
        .map(drop)
}

#[cfg(test)]
mod tests;
