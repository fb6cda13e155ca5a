//! The key manager: what the operator needs of it, and how it fails.
//!
//! The client is our own on `reqwest` because none exists that speaks both Keystone v3 and Barbican v1 and keeps secrets
//! in memory that is wiped.

pub mod barbican;
pub mod clouds;
pub mod http;
pub mod identity;
pub mod limits;
pub mod sessions;

#[cfg(test)]
pub(crate) mod fake;

use std::future::Future;

use cryptvol_crds::conditions::Reason;
use secrecy::SecretString;
use zeroize::Zeroizing;

/// What is known of a key without its material.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyInfo {
    /// Id (UUID) of the secret.
    pub id: String,
    /// Name, where it has one.
    pub name: Option<String>,
    /// When it was made, as the service writes it.
    pub created: String,
    /// Barbican's type of secret: `symmetric`, `passphrase`, `opaque`, …
    pub secret_type: String,
    /// Content type under which the payload is stored; none while there is no payload.
    pub content_type: Option<String>,
}

impl KeyInfo {
    /// Whether this can open a volume.
    ///
    /// # Errors
    /// [`KeyError::Unusable`] when the secret is of another kind or has no payload.
    pub fn usable(&self) -> Result<(), KeyError> {
        let unusable = |why: String| {
            Err(KeyError::Unusable {
                id: self.id.clone(),
                why,
            })
        };
        if !matches!(
            self.secret_type.as_str(),
            "symmetric" | "passphrase" | "opaque"
        ) {
            return unusable(format!("it is of type {}", self.secret_type));
        }
        if self.content_type.is_none() {
            return unusable("it has no payload".to_owned());
        }
        Ok(())
    }
}

/// A key manager, logged in as one tenant.
pub trait KeyManager: Send + Sync {
    /// The oldest key with exactly this name.
    fn find_key(
        &self,
        name: &str,
    ) -> impl Future<Output = Result<Option<KeyInfo>, KeyError>> + Send;
    /// All keys with exactly this name, the oldest first.
    fn find_keys(&self, name: &str) -> impl Future<Output = Result<Vec<KeyInfo>, KeyError>> + Send;
    /// All keys whose names begin so, the oldest first. It reads the list of all secrets: not for every day.
    fn find_keys_below(
        &self,
        prefix: &str,
    ) -> impl Future<Output = Result<Vec<KeyInfo>, KeyError>> + Send;
    /// Has the key manager make a 256-bit key. An order of that name that is under way is waited for, not repeated.
    fn create_key(&self, name: &str) -> impl Future<Output = Result<KeyInfo, KeyError>> + Send;
    /// Stores a text under a name. The caller has looked that there is none of that name.
    fn store_text(
        &self,
        name: &str,
        text: &str,
    ) -> impl Future<Output = Result<KeyInfo, KeyError>> + Send;
    /// Metadata of a key.
    fn get_metadata(&self, id: &str) -> impl Future<Output = Result<KeyInfo, KeyError>> + Send;
    /// Payload of a key, in memory that is wiped when dropped.
    fn get_payload(
        &self,
        key: &KeyInfo,
    ) -> impl Future<Output = Result<Zeroizing<Vec<u8>>, KeyError>> + Send;
    /// Destroys a key. A key that is gone already is a success.
    fn delete_key(&self, id: &str) -> impl Future<Output = Result<(), KeyError>> + Send;
}

/// Why the key manager gave nothing. No variant holds a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The `clouds.yaml` cannot be used.
    #[error("{0}")]
    Credentials(String),
    /// The KeyService object cannot be used.
    #[error("the KeyService cannot be used: {0}")]
    Configuration(String),
    /// No connection, no answer in time, or TLS failed.
    #[error("no answer from {url}: {why}")]
    Unreachable {
        /// Where.
        url: String,
        /// What the client said.
        why: String,
    },
    /// A server error, or an answer that is not of the protocol.
    #[error("{url} answered {status}: {why}")]
    Server {
        /// Where.
        url: String,
        /// HTTP status.
        status: u16,
        /// What the service said.
        why: String,
    },
    /// 401 at login.
    #[error("{0}")]
    Rejected(String),
    /// 401 at login, and the application credential is known to have expired.
    #[error("{0}")]
    Expired(String),
    /// 403.
    #[error("not allowed to {action}: {why}")]
    Forbidden {
        /// What was tried.
        action: &'static str,
        /// What the service said.
        why: String,
    },
    /// 403 or 413 because of a quota.
    #[error("the key manager's quota is reached: {0}")]
    Quota(String),
    /// No such key.
    #[error("the key manager has no key with id {0}")]
    NotFound(String),
    /// The key is of no use here.
    #[error("the key {id} cannot open a volume: {why}")]
    Unusable {
        /// Id of the key.
        id: String,
        /// Why.
        why: String,
    },
    /// The key manager could not make a key.
    #[error("the key manager could not make the key: {0}")]
    OrderFailed(String),
}

impl KeyError {
    /// The condition reason of this error.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Credentials(_) => Reason::CredentialsInvalid,
            Self::Configuration(_)
            | Self::Unreachable { .. }
            | Self::Server { .. }
            | Self::OrderFailed(_) => Reason::KeyServiceUnavailable,
            Self::Rejected(_) => Reason::CredentialsRejected,
            Self::Expired(_) => Reason::CredentialsExpired,
            Self::Forbidden { .. } => Reason::RoleMissing,
            Self::Quota(_) => Reason::KeyQuotaExceeded,
            Self::NotFound(_) => Reason::KeyNotFound,
            Self::Unusable { .. } => Reason::KeyUnusable,
        }
    }
}

/// The most that cryptsetup takes as a passphrase, in bytes.
const MAX_PASSPHRASE: usize = 512;

/// What opens the key slot: lower-case hex of the payload, except for a secret of type `passphrase`, whose text is used as
/// it is. os-brick does the same, so a volume that Nova and Cinder encrypted opens with the same secret.
///
/// # Errors
/// [`KeyError::Unusable`] when nothing that cryptsetup accepts would come out.
pub fn passphrase(key: &KeyInfo, payload: &[u8]) -> Result<SecretString, KeyError> {
    let unusable = |why: &str| KeyError::Unusable {
        id: key.id.clone(),
        why: why.to_owned(),
    };
    if payload.is_empty() {
        return Err(unusable("its payload is empty"));
    }
    let text = if key.secret_type == "passphrase" {
        std::str::from_utf8(payload)
            .map_err(|_| unusable("it is of type passphrase and not UTF-8"))?
            .to_owned()
    } else {
        hex::encode(payload)
    };
    if text.len() > MAX_PASSPHRASE {
        drop(SecretString::from(text));
        return Err(unusable("its passphrase is longer than 512 bytes"));
    }
    Ok(text.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use secrecy::ExposeSecret;

    fn key(secret_type: &str) -> KeyInfo {
        KeyInfo {
            id: "id".into(),
            name: None,
            created: String::new(),
            secret_type: secret_type.into(),
            content_type: Some("application/octet-stream".into()),
        }
    }

    #[test]
    fn passphrase_is_os_bricks() {
        let bytes = [0x00, 0x01, 0x02, 0x04, 0x0f, 0x10, 0xff];
        let hex = passphrase(&key("symmetric"), &bytes).unwrap();
        assert_eq!(hex.expose_secret(), "000102040f10ff");
        let text = passphrase(&key("passphrase"), b"Correct Horse").unwrap();
        assert_eq!(text.expose_secret(), "Correct Horse");
        assert!(passphrase(&key("passphrase"), &[0xff, 0xfe]).is_err());
        assert!(passphrase(&key("symmetric"), &[]).is_err());
        assert!(passphrase(&key("symmetric"), &[1; 257]).is_err());
        assert!(passphrase(&key("symmetric"), &[1; 256]).is_ok());
    }

    #[test]
    fn only_secrets_with_the_material_of_a_key_are_usable() {
        assert!(key("symmetric").usable().is_ok());
        assert!(key("opaque").usable().is_ok());
        assert_eq!(
            key("certificate").usable().unwrap_err().reason(),
            Reason::KeyUnusable
        );
        let empty = KeyInfo {
            content_type: None,
            ..key("symmetric")
        };
        assert_eq!(empty.usable().unwrap_err().reason(), Reason::KeyUnusable);
    }
}
