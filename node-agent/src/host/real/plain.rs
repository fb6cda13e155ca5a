//! The key of plain dm-crypt, made from the passphrase as cryptsetup makes it: no header says how, and every key "opens".

use cryptvol_crds::v1alpha1::{HeaderFacts, PlainHash};
use libcryptsetup_rs::{
    CryptParamsPlain, CryptParamsPlainRef, Either, LibcryptErr, SafeMemHandle,
    consts::vals::EncryptionFormat,
};

use super::{
    error::failed,
    luks::{Memory, VolumeKey},
};
use crate::host::{Passphrase, StepError};

/// Size of the file that stands for a device: libcryptsetup wants one, and nothing of it is looked at.
const STAND_IN: u64 = 1 << 20;

/// The volume key: what `cryptsetup open --type plain --key-file=-` makes of a passphrase without a line break, and os-brick
/// by `cryptsetup create --key-file=-`. The passphrase is hashed, with a growing prefix for each further block of the key.
///
/// # Errors
/// `StepFailed`, where the hash is not there (RIPEMD-160 in FIPS mode, for example).
pub fn volume_key(facts: &HeaderFacts, passphrase: &Passphrase) -> Result<VolumeKey, StepError> {
    let hash = match facts.hash.unwrap_or_default() {
        PlainHash::Sha256 => "sha256",
        PlainHash::Ripemd160 => "ripemd160",
    };
    let len = usize::try_from(facts.key_size / 8).unwrap_or_default();
    derive(hash, &facts.cipher, len, passphrase)
        .map_err(|e| failed(format!("making a key of {len} bytes by {hash}"), e))
}

fn derive(
    hash: &str,
    cipher: &str,
    len: usize,
    passphrase: &Passphrase,
) -> Result<VolumeKey, LibcryptErr> {
    let cipher = cipher
        .split_once('-')
        .ok_or_else(|| LibcryptErr::Other("cipher without a mode".into()))?;
    let memory = Memory::new(STAND_IN).map_err(LibcryptErr::IOError)?;
    let mut device = memory.device()?;
    let params = CryptParamsPlain {
        hash: hash.to_owned(),
        offset: 0,
        sector_size: 512,
        size: 0,
        skip: 0,
    };
    let mut params: CryptParamsPlainRef<'_> = (&params).try_into()?;
    device.context_handle().format(
        EncryptionFormat::Plain,
        cipher,
        None,
        Either::Right(len),
        Some(&mut params),
    )?;
    let mut key = SafeMemHandle::alloc(len)?;
    let (_, got) =
        device
            .volume_key_handle()
            .get(None, key.as_mut(), Some(passphrase.0.as_bytes()))?;
    if got != len {
        return Err(LibcryptErr::Other("the key has another size".into()));
    }
    Ok(VolumeKey(key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Digest, Sha256};

    fn key(hash: PlainHash, bits: i32) -> Vec<u8> {
        let facts = HeaderFacts {
            hash: Some(hash),
            cipher: "aes-xts-plain64".into(),
            key_size: bits,
            ..HeaderFacts::default()
        };
        let passphrase = Passphrase("000102040f10ff".into());
        volume_key(&facts, &passphrase).unwrap().bytes().to_vec()
    }

    /// The rule of cryptsetup's `lib/crypt_plain.c`: block `i` is the hash of `i` letters A and the passphrase.
    #[test]
    fn longer_keys_are_hashed_with_a_growing_prefix() {
        let block = |prefix: &str| Sha256::digest(format!("{prefix}000102040f10ff")).to_vec();
        assert_eq!(key(PlainHash::Sha256, 256), block(""));
        assert_eq!(
            key(PlainHash::Sha256, 512),
            [block(""), block("A")].concat()
        );
    }

    /// Of `openssl dgst -ripemd160` over the passphrase after no and one letter A.
    #[test]
    fn a_digest_shorter_than_the_key_is_continued() {
        let hex = hex::encode(key(PlainHash::Ripemd160, 256));
        assert_eq!(hex, RIPEMD160);
    }

    const RIPEMD160: &str = "cd401a57c98786a5b22ec2584cdedc82b43328c9ee1f745101dcacb79097376c";
}
