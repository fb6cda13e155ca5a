//! What a LUKS2 header is known by, where operator and agent must say the same.

use base64::{Engine, engine::general_purpose::STANDARD};
use cryptvol_crds::v1alpha1::VolumeKeyDigest;
use sha2::{Digest, Sha256};

/// SHA-256 (lower-case hex) over salt and digest of the volume key: another volume key, or the same under another salt, is another volume.
pub fn fingerprint_of(salt: &[u8], digest: &[u8]) -> String {
    let mut hash = Sha256::new();
    hash.update(salt);
    hash.update(digest);
    hex::encode(hash.finalize())
}

/// What stands for the digest in the facts of a header.
///
/// # Errors
/// When it is not base64.
pub fn fingerprint(digest: &VolumeKeyDigest) -> Result<String, String> {
    let decode = |part: &str| STANDARD.decode(part).map_err(|e| format!("digest: {e}"));
    let (salt, sum) = (decode(&digest.salt)?, decode(&digest.digest)?);
    Ok(fingerprint_of(&salt, &sum))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn salt_and_digest_are_decoded_and_hashed_one_after_the_other() {
        let digest = VolumeKeyDigest {
            salt: STANDARD.encode("a"),
            digest: STANDARD.encode("bc"),
            ..VolumeKeyDigest::default()
        };
        // SHA-256 of `abc`, as FIPS 180-2 has it.
        let known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(fingerprint(&digest), Ok(known.to_owned()));
        let broken = VolumeKeyDigest {
            salt: "?".to_owned(),
            ..digest
        };
        assert!(fingerprint(&broken).is_err());
    }
}
