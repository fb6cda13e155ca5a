//! Identifiers and random text, in the shapes that the protocols use.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use rand::RngExt;

/// `N` bytes from the operating system's seeded generator of this thread.
pub fn random_bytes<const N: usize>() -> [u8; N] {
    rand::rng().random()
}

/// An id of the identity API: 32 lower-case hex digits.
pub fn identity_id() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

/// An id of the key manager: a dashed UUID.
pub fn key_manager_id() -> String {
    uuid::Uuid::new_v4().to_string()
}

/// An audit id of a token: 16 random bytes, base64url without padding (22 characters).
pub fn audit_id() -> String {
    URL_SAFE_NO_PAD.encode(random_bytes::<16>())
}

/// A generated application-credential secret: 64 random bytes, base64url without padding (86 characters).
pub fn generated_secret() -> String {
    URL_SAFE_NO_PAD.encode(random_bytes::<64>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_the_lengths_of_the_protocol() {
        assert_eq!(identity_id().len(), 32);
        assert_eq!(key_manager_id().len(), 36);
        assert_eq!(audit_id().len(), 22);
        assert_eq!(generated_secret().len(), 86);
        assert_ne!(identity_id(), identity_id());
    }
}
