//! AES-256-GCM with associated data that binds a record to its place, so that a row copied to another id
//! or another project does not open.

use aes_gcm::{
    Aes256Gcm, KeyInit, Nonce,
    aead::{Aead, Payload},
};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::ids::random_bytes;

/// Format of a sealed record: this byte, 12 bytes of nonce, ciphertext, 16 bytes of tag.
const FORMAT: u8 = 1;
const NONCE_LEN: usize = 12;

/// Length of every sealing key, in bytes.
pub const KEY_LEN: usize = 32;

/// Why sealing or opening failed.
#[derive(Debug, Error)]
pub enum SealError {
    /// Encryption failed: the plaintext is longer than AES-GCM permits.
    #[error("the record could not be sealed; it may be too long for AES-GCM")]
    Seal,
    /// The record is cut off or of an unknown format.
    #[error(
        "the sealed record is damaged or was written by a newer release; restore it from a backup or upgrade"
    )]
    Format,
    /// Wrong key, altered bytes, or a record moved to another place.
    #[error("the sealed record does not open: it was altered, moved, or sealed by another key")]
    Open,
    /// A key that does not have 32 bytes.
    #[error(
        "the opened key does not have 32 bytes; the key table is damaged, restore it from a backup"
    )]
    KeyLength,
}

impl SealError {
    /// Machine-readable reason.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Seal => "SealFailed",
            Self::Format => "SealedRecordDamaged",
            Self::Open => "SealedRecordRefused",
            Self::KeyLength => "SealedKeyDamaged",
        }
    }
}

/// One AES-256-GCM key, ready to seal and open. The key schedule is wiped on drop.
pub struct SealingKey {
    cipher: Aes256Gcm,
}

impl SealingKey {
    /// A key from its 32 bytes.
    pub fn new(key: &[u8; KEY_LEN]) -> Self {
        Self {
            cipher: Aes256Gcm::new(key.into()),
        }
    }

    /// A key from bytes that were just opened.
    ///
    /// # Errors
    /// [`SealError::KeyLength`] unless there are exactly 32 bytes.
    pub fn from_slice(key: &[u8]) -> Result<Self, SealError> {
        Aes256Gcm::new_from_slice(key)
            .map(|cipher| Self { cipher })
            .map_err(|_| SealError::KeyLength)
    }

    /// Seals `plain` for the place that `place` names.
    ///
    /// # Errors
    /// [`SealError::Seal`] if the plaintext is too long.
    pub fn seal(&self, place: &[&str], plain: &[u8]) -> Result<Vec<u8>, SealError> {
        let nonce: [u8; NONCE_LEN] = random_bytes();
        let aad = associated_data(place);
        let sealed = self
            .cipher
            .encrypt(
                &Nonce::from(nonce),
                Payload {
                    msg: plain,
                    aad: &aad,
                },
            )
            .map_err(|_| SealError::Seal)?;
        let mut out = Vec::with_capacity(1 + NONCE_LEN + sealed.len());
        out.push(FORMAT);
        out.extend_from_slice(&nonce);
        out.extend_from_slice(&sealed);
        Ok(out)
    }

    /// Opens a record that was sealed for exactly this place.
    ///
    /// # Errors
    /// [`SealError::Format`] or [`SealError::Open`].
    pub fn open(&self, place: &[&str], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let (format, rest) = sealed.split_first().ok_or(SealError::Format)?;
        if *format != FORMAT || rest.len() < NONCE_LEN {
            return Err(SealError::Format);
        }
        let (nonce, body) = rest.split_at(NONCE_LEN);
        let nonce: [u8; NONCE_LEN] = nonce.try_into().map_err(|_| SealError::Format)?;
        let aad = associated_data(place);
        self.cipher
            .decrypt(
                &Nonce::from(nonce),
                Payload {
                    msg: body,
                    aad: &aad,
                },
            )
            .map(Zeroizing::new)
            .map_err(|_| SealError::Open)
    }
}

/// Length-prefixed parts, so that no two places have the same associated data.
fn associated_data(place: &[&str]) -> Vec<u8> {
    let mut out = Vec::new();
    for part in place {
        out.extend_from_slice(&(part.len() as u64).to_be_bytes());
        out.extend_from_slice(part.as_bytes());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> SealingKey {
        SealingKey::new(&[7; KEY_LEN])
    }

    #[test]
    fn opens_what_it_sealed() {
        let sealed = key()
            .seal(&["secret", "id-1", "project-1"], b"payload")
            .unwrap();
        assert!(!sealed.windows(7).any(|window| window == b"payload"));
        assert_eq!(
            &**key()
                .open(&["secret", "id-1", "project-1"], &sealed)
                .unwrap(),
            b"payload"
        );
    }

    #[test]
    fn a_moved_record_is_refused() {
        let sealed = key()
            .seal(&["secret", "id-1", "project-1"], b"payload")
            .unwrap();
        for place in [
            ["secret", "id-2", "project-1"],
            ["secret", "id-1", "project-2"],
            ["order", "id-1", "project-1"],
            // The same bytes, cut at another place.
            ["secret", "id-1p", "roject-1"],
        ] {
            assert!(
                matches!(key().open(&place, &sealed), Err(SealError::Open)),
                "{place:?}"
            );
        }
    }

    #[test]
    fn altered_cut_and_foreign_records_are_refused() {
        let place = ["secret", "id-1", "project-1"];
        let sealed = key().seal(&place, b"payload").unwrap();
        for at in 0..sealed.len() {
            let mut altered = sealed.clone();
            altered[at] ^= 1;
            assert!(key().open(&place, &altered).is_err(), "byte {at}");
        }
        for len in 0..sealed.len() {
            assert!(key().open(&place, &sealed[..len]).is_err(), "length {len}");
        }
        assert!(
            SealingKey::new(&[8; KEY_LEN])
                .open(&place, &sealed)
                .is_err()
        );
        assert!(SealingKey::from_slice(&[1; 31]).is_err());
    }

    #[test]
    fn two_seals_of_the_same_payload_differ() {
        let place = ["secret", "id-1", "project-1"];
        assert_ne!(
            key().seal(&place, b"x").unwrap(),
            key().seal(&place, b"x").unwrap()
        );
    }
}
