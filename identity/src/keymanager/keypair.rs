//! Pairs of keys: RSA, in the formats that Barbican's own generator gives out (PKCS #8 and
//! SubjectPublicKeyInfo, both PEM).

use pkcs8::{EncodePrivateKey, EncodePublicKey, LineEnding};
use rsa::PrivateKey;
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

/// Pairs made at the same time: each keeps a processor busy for a while.
static MAKING: Semaphore = Semaphore::const_new(1);

/// A pair as text.
pub(super) struct KeyPair {
    pub(super) private: Zeroizing<String>,
    pub(super) public: String,
}

/// Whether a pair of this kind can be made.
pub(super) fn can_make(algorithm: &str, bits: i64) -> bool {
    algorithm.eq_ignore_ascii_case("rsa") && matches!(bits, 1024 | 2048 | 4096)
}

/// A new RSA pair, the private key encrypted if there is a passphrase (PBES2). `None` if that failed.
pub(super) async fn make(bits: usize, passphrase: Option<Zeroizing<String>>) -> Option<KeyPair> {
    let _turn = MAKING.acquire().await.ok()?;
    let made = tokio::task::spawn_blocking(move || {
        let key = PrivateKey::new(&mut rand::rng(), bits)
            .inspect_err(|error| tracing::error!(%error, bits, "RSA key not made"))
            .ok()?;
        let private = match passphrase {
            Some(text) => key.to_pkcs8_encrypted_pem(text.as_bytes(), LineEnding::LF),
            None => key.to_pkcs8_pem(LineEnding::LF),
        };
        let public = key.to_public_key().to_public_key_pem(LineEnding::LF);
        private
            .inspect_err(|error| tracing::error!(%error, "RSA key not encoded"))
            .ok()
            .zip(public.ok())
    })
    .await;
    let (private, public) = made.ok().flatten()?;
    Some(KeyPair { private, public })
}

#[cfg(test)]
mod tests {
    use pkcs8::{DecodePrivateKey, DecodePublicKey};
    use rsa::{PublicKey, traits::PublicKeyParts};

    use super::*;

    #[test]
    fn kinds() {
        assert!(can_make("RSA", 2048) && can_make("rsa", 1024) && can_make("rsa", 4096));
        assert!(!can_make("rsa", 512) && !can_make("dsa", 2048) && !can_make("ec", 256));
    }

    #[tokio::test]
    async fn a_pair_belongs_together_and_a_passphrase_opens_it() {
        let plain = make(1024, None).await.unwrap();
        let key = PrivateKey::from_pkcs8_pem(&plain.private).unwrap();
        let public = PublicKey::from_public_key_pem(&plain.public).unwrap();
        assert_eq!((key.n().bit_width(), key.to_public_key()), (1024, public));
        let sealed = make(1024, Some(Zeroizing::new("open".to_owned())))
            .await
            .unwrap();
        assert!(
            sealed
                .private
                .starts_with("-----BEGIN ENCRYPTED PRIVATE KEY-----")
        );
        assert!(PrivateKey::from_pkcs8_encrypted_pem(&sealed.private, "wrong").is_err());
        assert!(PrivateKey::from_pkcs8_encrypted_pem(&sealed.private, "open").is_ok());
    }
}
