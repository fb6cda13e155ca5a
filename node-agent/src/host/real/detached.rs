//! Headers that lie apart from their disk (ADR 54): a record of a few hundred bytes, sealed under the volume's passphrase as a backup
//! of a header is. From it the volume key is taken, and whenever one is made or sealed anew also the header that cryptsetup takes with
//! `--header`, in memory, where it is read as strictly as one from an array and opened.

use std::{fs::File, os::unix::fs::FileExt};

use cryptvol_crds::{
    conditions::Reason,
    v1alpha1::{HeaderBackup, HeaderFacts, Provider},
};

use super::{
    backup,
    disk::Aligned,
    error::{because, failed},
    header::{self, digest},
    luks::{Made, Memory, VolumeKey},
};
use crate::host::{FormatOrder, Passphrase, RecordOrder, StepError};

/// Room for a header and its key slots, as cryptsetup makes it: a header on a disk has its data behind that.
const ROOM: u64 = 16 << 20;

/// See [`crate::host::Host::header_record`].
pub fn record(order: &RecordOrder) -> Result<HeaderBackup, StepError> {
    match order {
        RecordOrder::Make(order) => make(order),
        RecordOrder::Reseal {
            record,
            passphrase,
            next,
        } => {
            let key = open(record, &record.header, passphrase)?;
            let sealed = sealed(&record.header, record, next, &key)?;
            prove(&sealed, next)?;
            Ok(sealed)
        }
        RecordOrder::Prove { record, passphrase } => {
            prove(record, passphrase)?;
            Ok((**record).clone())
        }
    }
}

/// The volume key out of a record that agrees with what was pinned.
///
/// # Errors
/// `HeaderRecordUnusable`, `HeaderBackupUnsupported`, `StepFailed`.
pub fn open(
    record: &HeaderBackup,
    expected: &HeaderFacts,
    passphrase: &Passphrase,
) -> Result<VolumeKey, StepError> {
    if !expected.is_detached() {
        return Err(because(
            Reason::HeaderRecordUnusable,
            "the header on record is of a disk that carries its header itself",
        ));
    }
    backup::opened(record, expected, passphrase).map_err(|e| match e.reason() {
        Reason::HeaderBackupInvalid => because(
            Reason::HeaderRecordUnusable,
            format!(
                "the header on record, LUKS UUID {}, was changed, or the key in the key manager does not open it",
                expected.luks_uuid
            ),
        ),
        _ => e,
    })
}

/// Writes the header as `cryptsetup open --header` takes it, with one key slot that the passphrase opens.
///
/// # Errors
/// As of [`open`]; `StepFailed` when it cannot be written.
pub fn write_file(
    record: &HeaderBackup,
    passphrase: &Passphrase,
    to: &File,
) -> Result<(), StepError> {
    let what = "writing the header";
    let made = prove(record, passphrase)?;
    // All else of it is what was proven.
    let mut json: serde_json::Value = header::metadata(&made.luks)
        .and_then(|json| serde_json::from_str(json).map_err(|e| e.to_string()))
        .map_err(|e| failed(what, e))?;
    json["segments"]["0"]["offset"] = "0".into();
    let copies = header::with_metadata(&made.luks, &json.to_string());
    let copies = copies.map_err(|e| failed(what, e))?;
    let write = || {
        to.set_len(ROOM)?;
        for (at, area) in &made.areas {
            to.write_all_at(area, *at)?;
        }
        to.write_all_at(&copies, 0)?;
        to.sync_all()
    };
    write().map_err(|e| failed(what, e))
}

fn make(order: &FormatOrder) -> Result<HeaderBackup, StepError> {
    let what = "making a header";
    let encryption = &order.encryption;
    if encryption.provider != Provider::Luks2 || encryption.integrity.is_some() {
        return Err(failed(what, "only luks2 without integrity is kept apart"));
    }
    backup::random(&order.passphrase)?;
    let facts = HeaderFacts {
        provider: Provider::Luks2,
        luks_uuid: order.luks_uuid.clone(),
        cipher: encryption.cipher.clone(),
        key_size: encryption.key_size,
        sector_size: encryption.sector_size,
        ..HeaderFacts::default()
    };
    let key = VolumeKey::random(facts.volume_key_bytes())?;
    // libcryptsetup makes the digest.
    let memory = Memory::new(2 * ROOM).map_err(|e| failed(what, e))?;
    backup::make_in(&memory, &on_disk(&facts), &order.passphrase, &key)
        .map_err(|e| failed(what, e))?;
    let mut head = Aligned::zeroed(header::USUAL_HEADER as usize);
    let read = memory.file.read_exact_at(&mut head, 0);
    read.map_err(|e| failed(what, e))?;
    let header::Parsed::Luks(luks) = header::parse(&head, 2 * ROOM) else {
        return Err(failed(what, "libcryptsetup made none"));
    };
    let digest = digest::read(&luks).map_err(|e| failed(what, e))?;
    let fingerprint = digest::fingerprint(&digest).map_err(|e| failed(what, e))?;
    let unsealed = HeaderBackup {
        header: HeaderFacts {
            digest: fingerprint,
            ..facts
        },
        digest,
        sealed: String::new(),
    };
    let made = sealed(&unsealed.header, &unsealed, &order.passphrase, &key)?;
    prove(&made, &order.passphrase)?;
    Ok(made)
}

fn sealed(
    facts: &HeaderFacts,
    of: &HeaderBackup,
    passphrase: &Passphrase,
    key: &VolumeKey,
) -> Result<HeaderBackup, StepError> {
    backup::random(passphrase)?;
    Ok(HeaderBackup {
        sealed: backup::seal(facts, &of.digest, passphrase, key)?,
        header: facts.clone(),
        digest: of.digest.clone(),
    })
}

/// Opens a record and makes it into a header in memory, which is opened as well: libcryptsetup compares the volume key with the digest.
fn prove(record: &HeaderBackup, passphrase: &Passphrase) -> Result<Made, StepError> {
    let key = open(record, &record.header, passphrase)?;
    let view = HeaderBackup {
        header: on_disk(&record.header),
        ..record.clone()
    };
    backup::make_header(2 * ROOM, &view, passphrase, &key)
}

/// The same header as it would lie on a disk before its data, which is what can be read strictly.
fn on_disk(facts: &HeaderFacts) -> HeaderFacts {
    HeaderFacts {
        data_offset: ROOM as i64,
        ..facts.clone()
    }
}

#[cfg(test)]
mod tests;
