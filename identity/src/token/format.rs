//! The token on the wire: base64url of version, key number and the sealed payload.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::crypto::{SealError, SealingKey};

/// Written since tokens say which state of their user they belong to.
const VERSION: u8 = 3;
/// Of before: still opened, so that no token ends with an upgrade. The second since there are trusts and OAuth1.
const VERSION_2: u8 = 2;
const VERSION_1: u8 = 1;
const HEAD: usize = 5;
/// Longer texts are not tokens of ours; do not even decode them.
const MAX_LEN: usize = 2048;

/// How the user proved who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Method {
    /// User and password.
    Password,
    /// An earlier token.
    Token,
    /// Application credential.
    ApplicationCredential,
    /// One-time password by time (RFC 6238).
    Totp,
    /// Access token of OAuth 1.0a.
    OAuth1,
    /// Signature with the key of an EC2 credential, shown by another service.
    Ec2Credential,
}

impl Method {
    /// The protocol's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Password => "password",
            Self::Token => "token",
            Self::ApplicationCredential => "application_credential",
            Self::Totp => "totp",
            Self::OAuth1 => "oauth1",
            Self::Ec2Credential => "ec2credential",
        }
    }

    /// The method of a login by its name. One that only marks tokens cannot be logged in with.
    pub fn of_login(name: &str) -> Option<Self> {
        [
            Self::Password,
            Self::Token,
            Self::ApplicationCredential,
            Self::Totp,
            Self::OAuth1,
        ]
        .into_iter()
        .find(|method| method.as_str() == name)
    }

    /// Whether the user itself logged in. All other methods stand for something that the user gave away, and a method
    /// that nobody thought about yet is one of those.
    pub fn is_primary(self) -> bool {
        matches!(self, Self::Password | Self::Token | Self::Totp)
    }
}

/// What a token is for; ids only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum TokenScope {
    /// Only says who the user is.
    Unscoped,
    /// One project.
    Project(String),
    /// One domain.
    Domain(String),
    /// The whole system.
    System,
}

impl TokenScope {
    /// The project, if it is for one.
    pub fn project_id(&self) -> Option<&str> {
        match self {
            Self::Project(id) => Some(id),
            _ => None,
        }
    }
}

/// What a token holds. Times in microseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenPayload {
    /// The user.
    pub user_id: String,
    /// How it logged in, newest first.
    pub methods: Vec<Method>,
    /// What for.
    pub scope: TokenScope,
    /// The application credential that it logged in with.
    pub app_credential_id: Option<String>,
    /// When.
    pub issued_at: i64,
    /// Until when.
    pub expires_at: i64,
    /// Own audit id, then that of the first token of the chain that it came from.
    pub audit_ids: Vec<String>,
    /// The trust that it was made with; `user_id` is then the trustee.
    pub trust_id: Option<String>,
    /// The OAuth1 access token that it was made with.
    pub access_token_id: Option<String>,
    /// `User::tokens_valid_after` as the login saw it. `None` in tokens of older releases.
    pub valid_after: Option<i64>,
    /// The same of the trustor, if it was made with a trust.
    pub trustor_valid_after: Option<i64>,
}

/// As version 2 wrote it.
#[derive(Deserialize)]
#[cfg_attr(test, derive(Serialize))]
struct PayloadV2 {
    user_id: String,
    methods: Vec<Method>,
    scope: TokenScope,
    app_credential_id: Option<String>,
    issued_at: i64,
    expires_at: i64,
    audit_ids: Vec<String>,
    trust_id: Option<String>,
    access_token_id: Option<String>,
}

impl From<PayloadV2> for TokenPayload {
    fn from(old: PayloadV2) -> Self {
        Self {
            user_id: old.user_id,
            methods: old.methods,
            scope: old.scope,
            app_credential_id: old.app_credential_id,
            issued_at: old.issued_at,
            expires_at: old.expires_at,
            audit_ids: old.audit_ids,
            trust_id: old.trust_id,
            access_token_id: old.access_token_id,
            valid_after: None,
            trustor_valid_after: None,
        }
    }
}

/// As version 1 wrote it.
#[derive(Deserialize)]
#[cfg_attr(test, derive(Serialize))]
struct PayloadV1 {
    user_id: String,
    methods: Vec<Method>,
    scope: TokenScope,
    app_credential_id: Option<String>,
    issued_at: i64,
    expires_at: i64,
    audit_ids: Vec<String>,
}

impl From<PayloadV1> for PayloadV2 {
    fn from(old: PayloadV1) -> Self {
        Self {
            user_id: old.user_id,
            methods: old.methods,
            scope: old.scope,
            app_credential_id: old.app_credential_id,
            issued_at: old.issued_at,
            expires_at: old.expires_at,
            audit_ids: old.audit_ids,
            trust_id: None,
            access_token_id: None,
        }
    }
}

/// What a receipt holds: what was proved of a user that needs more. Times in microseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReceiptPayload {
    /// The user.
    pub user_id: String,
    /// What was proved.
    pub methods: Vec<Method>,
    /// `User::tokens_valid_after` as the login saw it.
    pub valid_after: i64,
    /// Until when.
    pub expires_at: i64,
}

/// Those of before are not opened: they live for minutes, and the login begins anew.
const RECEIPT_VERSION: u8 = 2;

/// What the seal of a receipt is bound to: none passes for a token.
fn receipt_bound_to(version: u8) -> Option<&'static str> {
    (version == RECEIPT_VERSION).then_some("receipt-2")
}

/// What a version's seal is bound to: what was sealed as one version never opens as another one, which would drop the limits
/// that only the newer one knows.
fn bound_to(version: u8) -> Option<&'static str> {
    match version {
        VERSION_1 => Some("token"),
        VERSION_2 => Some("token-2"),
        VERSION => Some("token-3"),
        _ => None,
    }
}

/// Why a text is not a token of ours, or could not be made one.
#[derive(Debug, Error)]
pub enum FormatError {
    /// Not base64url, cut off, of another version, or with rubbish inside.
    #[error("not a token of this service")]
    Malformed,
    /// Sealed by a key that we do not have.
    #[error("the token names a key that this service does not have")]
    UnknownKey,
    /// Altered, or sealed by another service.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// There is no key to seal with.
    #[error("there is no token key; run `cryptvol-identity bootstrap`")]
    NoKey,
}

/// The keys that open tokens; the first one seals.
pub struct TokenKeys(Vec<(u32, SealingKey)>);

impl TokenKeys {
    /// Keys, newest first.
    pub fn new(keys: Vec<(u32, SealingKey)>) -> Self {
        Self(keys)
    }

    /// The numbers of the keys, newest first.
    pub fn numbers(&self) -> impl Iterator<Item = u32> {
        self.0.iter().map(|(number, _)| *number)
    }

    /// Seals a payload into the text of a token.
    ///
    /// # Errors
    /// `NoKey`, `Seal`, `Malformed` (never, for payloads of ours).
    pub fn seal(&self, payload: &TokenPayload) -> Result<String, FormatError> {
        let plain = postcard::to_allocvec(payload).map_err(|_| FormatError::Malformed)?;
        self.seal_bytes(VERSION, bound_to(VERSION), &plain)
    }

    /// Seals a receipt.
    ///
    /// # Errors
    /// As [`TokenKeys::seal`].
    pub fn seal_receipt(&self, receipt: &ReceiptPayload) -> Result<String, FormatError> {
        let plain = postcard::to_allocvec(receipt).map_err(|_| FormatError::Malformed)?;
        self.seal_bytes(RECEIPT_VERSION, receipt_bound_to(RECEIPT_VERSION), &plain)
    }

    /// Opens a receipt. Says nothing about whether it is still valid.
    ///
    /// # Errors
    /// As [`TokenKeys::open`].
    pub fn open_receipt(&self, text: &str) -> Result<ReceiptPayload, FormatError> {
        let (_, plain) = self.open_bytes(text, receipt_bound_to)?;
        postcard::from_bytes(&plain).map_err(|_| FormatError::Malformed)
    }

    fn seal_bytes(
        &self,
        version: u8,
        bound: Option<&str>,
        plain: &[u8],
    ) -> Result<String, FormatError> {
        let (number, key) = self.0.first().ok_or(FormatError::NoKey)?;
        let bound = bound.ok_or(FormatError::Malformed)?;
        let mut bytes = vec![version];
        bytes.extend_from_slice(&number.to_be_bytes());
        bytes.extend_from_slice(&key.seal(&[bound, &number.to_string()], plain)?);
        Ok(URL_SAFE_NO_PAD.encode(bytes))
    }

    /// Opens the text of a token. Says nothing about whether it is still valid.
    ///
    /// # Errors
    /// `Malformed`, `UnknownKey`, `Seal`.
    pub fn open(&self, text: &str) -> Result<TokenPayload, FormatError> {
        let (version, plain) = self.open_bytes(text, bound_to)?;
        let payload = match version {
            VERSION_1 => {
                postcard::from_bytes::<PayloadV1>(&plain).map(|old| PayloadV2::from(old).into())
            }
            VERSION_2 => postcard::from_bytes::<PayloadV2>(&plain).map(Into::into),
            _ => postcard::from_bytes(&plain),
        };
        payload.map_err(|_| FormatError::Malformed)
    }

    /// The version and what was sealed.
    fn open_bytes(
        &self,
        text: &str,
        bound_to: fn(u8) -> Option<&'static str>,
    ) -> Result<(u8, Zeroizing<Vec<u8>>), FormatError> {
        if text.len() > MAX_LEN {
            return Err(FormatError::Malformed);
        }
        let bytes = URL_SAFE_NO_PAD
            .decode(text)
            .map_err(|_| FormatError::Malformed)?;
        let (head, sealed) = bytes.split_at_checked(HEAD).ok_or(FormatError::Malformed)?;
        let [version, number @ ..] = head else {
            return Err(FormatError::Malformed);
        };
        let bound = bound_to(*version).ok_or(FormatError::Malformed)?;
        let number = u32::from_be_bytes(number.try_into().map_err(|_| FormatError::Malformed)?);
        let (_, key) = self
            .0
            .iter()
            .find(|(id, _)| *id == number)
            .ok_or(FormatError::UnknownKey)?;
        let plain = key.open(&[bound, &number.to_string()], sealed)?;
        Ok((*version, plain))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(numbers: &[u32]) -> TokenKeys {
        TokenKeys::new(
            numbers
                .iter()
                .map(|n| (*n, SealingKey::new(&[*n as u8; 32])))
                .collect(),
        )
    }

    fn payload() -> TokenPayload {
        TokenPayload {
            user_id: "7a0d94e5a2a14d57a59f7ed01c3ca0f4".into(),
            methods: vec![Method::Token, Method::Password],
            scope: TokenScope::Project("0f6a1cbb5ec14ec7a1f7d4b1a9f0a3f1".into()),
            app_credential_id: None,
            issued_at: 1_795_000_000_000_000,
            expires_at: 1_795_003_600_000_000,
            audit_ids: vec![crate::ids::audit_id(), crate::ids::audit_id()],
            trust_id: None,
            access_token_id: None,
            valid_after: Some(1_794_000_000_000_000),
            trustor_valid_after: None,
        }
    }

    #[test]
    fn tokens_of_before_open_and_no_version_passes_for_another() {
        let keys = keys(&[1]);
        let now = payload();
        let old = PayloadV1 {
            user_id: now.user_id.clone(),
            methods: now.methods.clone(),
            scope: now.scope.clone(),
            app_credential_id: Some("a".into()),
            issued_at: now.issued_at,
            expires_at: now.expires_at,
            audit_ids: now.audit_ids.clone(),
        };
        let mut bytes = vec![VERSION_1, 0, 0, 0, 1];
        let plain = postcard::to_allocvec(&old).unwrap();
        bytes.extend(keys.0[0].1.seal(&["token", "1"], &plain).unwrap());
        let opened = keys.open(&URL_SAFE_NO_PAD.encode(&bytes)).unwrap();
        assert_eq!(opened.app_credential_id.as_deref(), Some("a"));
        assert_eq!((&opened.user_id, opened.trust_id), (&old.user_id, None));
        for other in [VERSION_2, VERSION] {
            bytes[0] = other;
            assert!(keys.open(&URL_SAFE_NO_PAD.encode(&bytes)).is_err());
        }
        let old = PayloadV2 {
            trust_id: Some("t".into()),
            ..old.into()
        };
        let mut bytes = vec![VERSION_2, 0, 0, 0, 1];
        let plain = postcard::to_allocvec(&old).unwrap();
        bytes.extend(keys.0[0].1.seal(&["token-2", "1"], &plain).unwrap());
        let opened = keys.open(&URL_SAFE_NO_PAD.encode(&bytes)).unwrap();
        assert_eq!(opened.trust_id.as_deref(), Some("t"));
        assert_eq!(
            (opened.issued_at, opened.valid_after),
            (now.issued_at, None)
        );
        for other in [VERSION_1, VERSION] {
            bytes[0] = other;
            assert!(keys.open(&URL_SAFE_NO_PAD.encode(&bytes)).is_err());
        }
        // A token with a trust does not become one without.
        let text = keys
            .seal(&TokenPayload {
                trust_id: Some("t".into()),
                ..now
            })
            .unwrap();
        let mut bytes = URL_SAFE_NO_PAD.decode(text).unwrap();
        bytes[0] = VERSION_1;
        assert!(keys.open(&URL_SAFE_NO_PAD.encode(&bytes)).is_err());
    }

    #[test]
    fn round_trip_and_length() {
        let text = keys(&[1]).seal(&payload()).unwrap();
        assert_eq!(
            keys(&[1]).open(&text).unwrap(),
            payload_like(&keys(&[1]).open(&text).unwrap())
        );
        // Goes into a header: must stay well under what proxies accept.
        assert!(text.len() < 320, "{}", text.len());
        assert!(!text.contains("7a0d94e5"));
    }

    fn payload_like(other: &TokenPayload) -> TokenPayload {
        TokenPayload {
            audit_ids: other.audit_ids.clone(),
            ..payload()
        }
    }

    #[test]
    fn every_altered_character_is_refused() {
        let keys = keys(&[1]);
        let text = keys.seal(&payload()).unwrap();
        for at in 0..text.len() {
            let mut altered = text.clone().into_bytes();
            altered[at] = if altered[at] == b'A' { b'B' } else { b'A' };
            assert!(
                keys.open(std::str::from_utf8(&altered).unwrap()).is_err(),
                "character {at}"
            );
        }
        for len in 0..text.len() {
            assert!(keys.open(&text[..len]).is_err(), "length {len}");
        }
    }

    #[test]
    fn a_new_key_seals_and_the_old_one_still_opens() {
        let old = keys(&[1]).seal(&payload()).unwrap();
        let both = keys(&[2, 1]);
        assert!(both.open(&old).is_ok());
        assert!(matches!(
            keys(&[1]).open(&both.seal(&payload()).unwrap()),
            Err(FormatError::UnknownKey)
        ));
    }

    #[test]
    fn a_receipt_is_no_token_and_a_token_no_receipt() {
        let keys = keys(&[1]);
        let receipt = ReceiptPayload {
            user_id: "u".into(),
            methods: vec![Method::Password],
            valid_after: 1,
            expires_at: 2,
        };
        let text = keys.seal_receipt(&receipt).unwrap();
        assert_eq!(keys.open_receipt(&text).unwrap(), receipt);
        assert!(keys.open(&text).is_err());
        assert!(keys.open_receipt(&keys.seal(&payload()).unwrap()).is_err());
        let mut bytes = URL_SAFE_NO_PAD.decode(&text).unwrap();
        for version in [0, 1, VERSION, 4] {
            bytes[0] = version;
            let text = URL_SAFE_NO_PAD.encode(&bytes);
            assert!(keys.open(&text).is_err() && keys.open_receipt(&text).is_err());
        }
    }

    #[test]
    fn other_texts_are_not_tokens() {
        for text in ["", "x", "gAAAAABn", &"A".repeat(3000)] {
            assert!(keys(&[1]).open(text).is_err(), "{text}");
        }
    }
}
