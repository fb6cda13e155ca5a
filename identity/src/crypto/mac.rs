//! Message authentication codes of other people's protocols (EC2, S3, OAuth 1.0a, one-time passwords), and comparing what a client
//! sent with what it should have sent.

use ring::hmac::{self, Algorithm, HMAC_SHA1_FOR_LEGACY_USE_ONLY, HMAC_SHA256, Key};
use sha2::{Digest, Sha256};

/// HMAC-SHA1. Still what OAuth 1.0a and one-time passwords are defined with; as a MAC it is not broken.
pub fn hmac_sha1(key: &[u8], message: &[u8]) -> Vec<u8> {
    compute(HMAC_SHA1_FOR_LEGACY_USE_ONLY, key, message)
}

/// HMAC-SHA256.
pub fn hmac_sha256(key: &[u8], message: &[u8]) -> Vec<u8> {
    compute(HMAC_SHA256, key, message)
}

fn compute(algorithm: Algorithm, key: &[u8], message: &[u8]) -> Vec<u8> {
    hmac::sign(&Key::new(algorithm, key), message)
        .as_ref()
        .to_vec()
}

/// Whether two texts are the same, in a time that says nothing about where they differ.
pub fn same(sent: &str, expected: &str) -> bool {
    Sha256::digest(sent) == Sha256::digest(expected)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 2202 case 2, RFC 4231 case 2.
    #[test]
    fn known_answers() {
        let (key, text) = (b"Jefe", b"what do ya want for nothing?");
        assert_eq!(
            hex::encode(hmac_sha1(key, text)),
            "effcdf6ae5eb2fa2d27416d5f184df9c259a7c79"
        );
        assert_eq!(
            hex::encode(hmac_sha256(key, text)),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
        assert!(same("a", "a") && !same("a", "b") && !same("", "a"));
    }
}
