//! The key-release protocol between node agent and operator.
//!
//! `POST /v1/release` over HTTPS with the agent's projected service-account token (audience
//! `cryptvol_crds::names::KEY_RELEASE_AUDIENCE`, bound to pod and node) as bearer token; body [`Request`]. The answer is
//! 200 with [`Released`], or an error status with [`Refusal`].

use cryptvol_crds::conditions::Reason;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

/// Path of the endpoint.
pub const PATH: &str = "/v1/release";

/// What the agent wants to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Purpose {
    /// Passphrase of the volume's LUKS header: lower-case hex of the secret's bytes.
    Passphrase,
    /// Passphrase of the key that a rotation brings, while its key slot is to be made.
    NextPassphrase,
    /// CHAP credentials for the login to the target.
    ChapCredentials,
    /// CHAP credentials for asking the array for further portals.
    DiscoveryChapCredentials,
}

impl Purpose {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::Passphrase,
        Self::NextPassphrase,
        Self::ChapCredentials,
        Self::DiscoveryChapCredentials,
    ];

    /// The word for it: on the wire, in the audit log, and as the label of the metric.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Passphrase => "Passphrase",
            Self::NextPassphrase => "NextPassphrase",
            Self::ChapCredentials => "ChapCredentials",
            Self::DiscoveryChapCredentials => "DiscoveryChapCredentials",
        }
    }
}

/// What the agent asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Request {
    /// Namespace of the NodeVolume.
    pub namespace: String,
    /// Name of the NodeVolume.
    pub name: String,
    /// UID of the NodeVolume, so that an object made anew under the same name is another one.
    pub uid: String,
    /// What for.
    pub purpose: Purpose,
    /// Random id of this request (UUID). A repeated id is refused.
    pub request_id: String,
}

/// What the agent gets. `Debug` shows no secret.
#[derive(Debug)]
pub enum Released {
    /// For [`Purpose::Passphrase`] and [`Purpose::NextPassphrase`].
    Passphrase(SecretString),
    /// For [`Purpose::ChapCredentials`] and [`Purpose::DiscoveryChapCredentials`].
    Chap {
        /// CHAP name of the initiator.
        username: String,
        /// CHAP secret of the initiator.
        password: SecretString,
        /// What the target must prove that it knows: mutual CHAP.
        target: Option<TargetChap>,
    },
}

/// CHAP credentials of the target. `Debug` shows no secret.
#[derive(Debug)]
pub struct TargetChap {
    /// CHAP name of the target.
    pub username: String,
    /// CHAP secret of the target.
    pub password: SecretString,
}

/// JSON form of [`Released`]; its strings are wiped when dropped.
#[derive(Serialize, Deserialize, zeroize::Zeroize, zeroize::ZeroizeOnDrop)]
#[serde(rename_all = "camelCase")]
struct Wire {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    passphrase: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    username: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    password: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    username_in: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    password_in: Option<String>,
}

impl Released {
    /// JSON body. The caller wipes it after sending.
    ///
    /// # Errors
    /// Never in practice; serialisation of strings.
    pub fn to_json(&self) -> Result<zeroize::Zeroizing<Vec<u8>>, serde_json::Error> {
        let wire = match self {
            Self::Passphrase(p) => Wire {
                passphrase: Some(p.expose_secret().to_owned()),
                username: None,
                password: None,
                username_in: None,
                password_in: None,
            },
            Self::Chap {
                username,
                password,
                target,
            } => Wire {
                passphrase: None,
                username: Some(username.clone()),
                password: Some(password.expose_secret().to_owned()),
                username_in: target.as_ref().map(|t| t.username.clone()),
                password_in: target
                    .as_ref()
                    .map(|t| t.password.expose_secret().to_owned()),
            },
        };
        // Grown in advance: a vector that reallocates leaves unwiped copies behind.
        let mut out = zeroize::Zeroizing::new(Vec::with_capacity(4096));
        serde_json::to_writer(&mut *out, &wire)?;
        Ok(out)
    }

    /// Reads a JSON body.
    ///
    /// # Errors
    /// When the body is not of the protocol; the message holds no part of it.
    pub fn from_json(body: &[u8]) -> Result<Self, MalformedAnswer> {
        let mut wire: Wire = serde_json::from_slice(body).map_err(|_| MalformedAnswer)?;
        let target = match (wire.username_in.take(), wire.password_in.take()) {
            (None, None) => None,
            (Some(username), Some(password)) => Some(TargetChap {
                username,
                password: password.into(),
            }),
            _ => return Err(MalformedAnswer),
        };
        match (
            wire.passphrase.take(),
            wire.username.take(),
            wire.password.take(),
        ) {
            (Some(p), None, None) if target.is_none() => Ok(Self::Passphrase(p.into())),
            (None, Some(username), Some(password)) => Ok(Self::Chap {
                username,
                password: password.into(),
                target,
            }),
            _ => Err(MalformedAnswer),
        }
    }
}

/// The answer was not of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MalformedAnswer;

impl std::fmt::Display for MalformedAnswer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the answer to a key release is not of the protocol")
    }
}

impl std::error::Error for MalformedAnswer {}

/// Why nothing is released.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Refusal {
    /// A word of [`Reason`].
    pub reason: String,
    /// What happened and the next step. Never contains a secret.
    pub message: String,
}

impl Refusal {
    /// A refusal for a reason.
    pub fn new(reason: Reason, what: &str) -> Self {
        Self {
            reason: reason.as_str().to_owned(),
            message: cryptvol_crds::conditions::message(reason, what),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_word_for_a_purpose_everywhere() {
        let mut words = std::collections::BTreeSet::new();
        for purpose in Purpose::ALL {
            let wire = serde_json::to_value(purpose).unwrap();
            assert_eq!(wire, purpose.as_str());
            words.insert(purpose.as_str());
        }
        assert_eq!(words.len(), Purpose::ALL.len());
    }

    #[test]
    fn round_trip_and_no_secret_in_debug() {
        for target in [None, Some(("array", "proof-of-array"))] {
            let r = Released::Chap {
                username: "u".into(),
                password: "hunter2hunter2".to_owned().into(),
                target: target.map(|(username, password)| TargetChap {
                    username: username.into(),
                    password: password.to_owned().into(),
                }),
            };
            let shown = format!("{r:?}");
            assert!(!shown.contains("hunter2") && !shown.contains("proof"));
            match Released::from_json(&r.to_json().unwrap()).unwrap() {
                Released::Chap {
                    username,
                    password,
                    target: found,
                } => {
                    assert_eq!(
                        (username.as_str(), password.expose_secret()),
                        ("u", "hunter2hunter2")
                    );
                    let found = found.as_ref();
                    assert_eq!(
                        found.map(|t| (t.username.as_str(), t.password.expose_secret())),
                        target
                    );
                }
                Released::Passphrase(_) => panic!("wrong kind"),
            }
        }
        // Half of the target's credentials must not pass for one-way CHAP.
        for half in ["usernameIn", "passwordIn"] {
            let body = format!(r#"{{"username":"u","password":"p","{half}":"x"}}"#);
            assert!(Released::from_json(body.as_bytes()).is_err());
        }
        assert!(Released::from_json(b"{}").is_err());
    }
}
