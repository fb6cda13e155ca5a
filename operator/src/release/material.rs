//! Fetches what is released: the passphrase from the key manager, CHAP credentials from their Secret.

use cryptvol_common::release::{Purpose, Released, TargetChap};
use cryptvol_crds::{
    EncryptedVolume, KeyService,
    conditions::Reason,
    v1alpha1::{IscsiSource, RotationPhase, SecretName},
};
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{Api, Client, ResourceExt};
use secrecy::{ExposeSecret, SecretString};

use crate::{
    keymanager::{KeyManager, passphrase},
    tenants::{Tenants, api_words, wipe},
    volume::world::Problem,
};

/// Longest CHAP secret that is passed on, in bytes; targets take 16 at most, some 255.
const MAX_CHAP: usize = 255;

/// Fetches what an authorised request asks for, with the tenant's rights; and the id of the key, for the audit record.
///
/// # Errors
/// A [`Problem`] with the reason that the volume's condition will show.
pub async fn fetch(
    client: &Client,
    tenants: &Tenants,
    volume: &EncryptedVolume,
    purpose: Purpose,
) -> Result<(Released, String), Problem> {
    match purpose {
        Purpose::Passphrase => {
            let id = volume.status.as_ref().and_then(|s| s.key.as_ref());
            let id = id.map(|k| k.id.as_str()).unwrap_or_default();
            key(client, tenants, volume, id).await
        }
        Purpose::NextPassphrase => key(client, tenants, volume, next(volume)?).await,
        Purpose::ChapCredentials => Ok((chap(client, volume, &LOGIN).await?, String::new())),
        Purpose::DiscoveryChapCredentials => {
            Ok((chap(client, volume, &DISCOVERY).await?, String::new()))
        }
    }
}

/// The key that a rotation brings, as long as its key slot is to be made.
fn next(volume: &EncryptedVolume) -> Result<&str, Problem> {
    let rotation = volume.status.as_ref().and_then(|s| s.rotation.as_ref());
    rotation
        .filter(|r| r.phase == RotationPhase::Adding)
        .and_then(|r| r.key_id.as_deref())
        .ok_or_else(|| {
            Problem::new(
                Reason::KeyReleaseRefused,
                "no rotation of this volume waits for a key slot",
            )
        })
}

async fn key(
    client: &Client,
    tenants: &Tenants,
    volume: &EncryptedVolume,
    id: &str,
) -> Result<(Released, String), Problem> {
    let Some(reference) = volume.status.as_ref().and_then(|s| s.key.as_ref()) else {
        return Err(Problem::new(
            Reason::KeyReleaseUnavailable,
            "the volume's key is not recorded yet",
        ));
    };
    let name = &reference.key_service_name;
    let service = Api::<KeyService>::all(client.clone())
        .get_opt(name)
        .await
        .map_err(|e| Problem::new(Reason::KeyReleaseUnavailable, api_words(&e)))?
        .ok_or_else(|| {
            Problem::new(
                Reason::KeyServiceNotFound,
                format!("there is no KeyService {name}"),
            )
        })?;
    let namespace = volume.namespace().unwrap_or_default();
    let manager = tenants
        .key_manager(&service, &namespace, volume.spec.credentials.as_ref())
        .await?;
    let key = manager.get_metadata(id).await?;
    key.usable()?;
    let payload = manager.get_payload(&key).await?;
    Ok((Released::Passphrase(passphrase(&key, &payload)?), key.id))
}

async fn chap(
    client: &Client,
    volume: &EncryptedVolume,
    which: &Which,
) -> Result<Released, Problem> {
    let iscsi = volume.spec.source.iscsi.as_ref();
    let Some(reference) = iscsi.and_then(which.reference) else {
        return Err(Problem::new(
            Reason::ChapSecretInvalid,
            format!("source.iscsi.{} names no Secret", which.field),
        ));
    };
    let namespace = volume.namespace().unwrap_or_default();
    let found = Api::<Secret>::namespaced(client.clone(), &namespace)
        .get_opt(&reference.name)
        .await
        .map_err(|e| Problem::new(Reason::KeyReleaseUnavailable, api_words(&e)))?;
    let mut secret = found.ok_or_else(|| {
        Problem::new(
            Reason::ChapSecretInvalid,
            format!(
                "there is no Secret {} in namespace {namespace}",
                reference.name
            ),
        )
    })?;
    let released = credentials(&secret, &reference.name, which);
    wipe(&mut secret);
    released
}

/// Which credentials, and where they are.
struct Which {
    /// Field of the source.
    field: &'static str,
    /// What that names.
    reference: fn(&IscsiSource) -> Option<&SecretName>,
    /// Keys of the values in a Secret: the short name, and that of a Secret of type `kubernetes.io/iscsi-chap`.
    username: [&'static str; 2],
    password: [&'static str; 2],
    username_in: [&'static str; 2],
    password_in: [&'static str; 2],
}

/// Those of a login.
const LOGIN: Which = Which {
    field: "chapSecretRef",
    reference: |i| i.chap_secret_ref.as_ref(),
    username: ["username", "node.session.auth.username"],
    password: ["password", "node.session.auth.password"],
    username_in: ["username_in", "node.session.auth.username_in"],
    password_in: ["password_in", "node.session.auth.password_in"],
};

/// Those of a discovery.
const DISCOVERY: Which = Which {
    field: "discoveryChapSecretRef",
    reference: |i| i.discovery_chap_secret_ref.as_ref(),
    username: ["username", "discovery.sendtargets.auth.username"],
    password: ["password", "discovery.sendtargets.auth.password"],
    username_in: ["username_in", "discovery.sendtargets.auth.username_in"],
    password_in: ["password_in", "discovery.sendtargets.auth.password_in"],
};

/// Reads CHAP credentials: those of the initiator, and where they are there those that the target must prove (mutual CHAP).
/// Half of the latter is an error: it must not pass for one-way CHAP.
fn credentials(secret: &Secret, name: &str, which: &Which) -> Result<Released, Problem> {
    let invalid = |what: String| Problem::new(Reason::ChapSecretInvalid, what);
    let data = |keys: [&str; 2]| keys.iter().find_map(|k| secret.data.as_ref()?.get(*k));
    let value = |keys: [&str; 2]| {
        let found = data(keys).map(|ByteString(b)| b.as_slice());
        let text = found.and_then(|b| std::str::from_utf8(b).ok());
        let fit =
            |t: &&str| !t.is_empty() && t.len() <= MAX_CHAP && !t.chars().any(char::is_control);
        text.filter(fit).map(str::to_owned).ok_or_else(|| {
            invalid(format!(
                "the Secret {name} has no usable {} (1 to {MAX_CHAP} bytes of text without line breaks)",
                keys[0]
            ))
        })
    };
    let password = SecretString::from(value(which.password)?);
    let target = match data(which.username_in).or_else(|| data(which.password_in)) {
        None => None,
        Some(_) => Some(TargetChap {
            username: value(which.username_in)?,
            password: SecretString::from(value(which.password_in)?),
        }),
    };
    // RFC 7143 section 12.1.3. Whoever answers could otherwise send the initiator's own challenge back to it.
    if target
        .as_ref()
        .is_some_and(|t| t.password.expose_secret() == password.expose_secret())
    {
        return Err(invalid(format!(
            "the Secret {name} has the same secret in password and password_in, which mutual CHAP forbids"
        )));
    }
    Ok(Released::Chap {
        username: value(which.username)?,
        password,
        target,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(pairs: &[(&str, &str)]) -> Secret {
        Secret {
            data: Some(
                pairs
                    .iter()
                    .map(|(k, v)| ((*k).to_owned(), ByteString(v.as_bytes().to_vec())))
                    .collect(),
            ),
            ..Secret::default()
        }
    }

    #[test]
    fn both_spellings_of_chap_credentials() {
        for (which, user, password) in [
            (&LOGIN, "username", "password"),
            (
                &LOGIN,
                "node.session.auth.username",
                "node.session.auth.password",
            ),
            (&DISCOVERY, "username", "password"),
            (
                &DISCOVERY,
                "discovery.sendtargets.auth.username",
                "discovery.sendtargets.auth.password",
            ),
        ] {
            let found = secret(&[(user, "u"), (password, "pppppppppppp")]);
            match credentials(&found, "s", which).unwrap() {
                Released::Chap {
                    username,
                    password,
                    target,
                } => {
                    assert!(target.is_none());
                    assert_eq!(
                        (username.as_str(), password.expose_secret()),
                        ("u", "pppppppppppp")
                    );
                }
                Released::Passphrase(_) => panic!(),
            }
        }
        // A Secret for both has two passwords, and neither passes for the other.
        let logins = secret(&[
            ("node.session.auth.username", "u"),
            ("node.session.auth.password", "pppppppppppp"),
        ]);
        assert!(credentials(&logins, "s", &DISCOVERY).is_err());
        // A line break would let a Secret write further lines into iscsid's configuration.
        for bad in [
            &[("username", "u")][..],
            &[],
            &[("username", "u"), ("password", "")],
            &[
                ("username", "u"),
                ("password", "a\nnode.startup = automatic"),
            ],
        ] {
            let e = credentials(&secret(bad), "s", &LOGIN).unwrap_err();
            assert_eq!(e.reason, Reason::ChapSecretInvalid);
            assert!(!e.what.contains("automatic"));
        }
    }

    #[test]
    fn the_targets_credentials_are_whole_and_others() {
        let ours = [("username", "u"), ("password", "pppppppppppp")];
        let with =
            |more: &[(&str, &str)]| credentials(&secret(&[&ours[..], more].concat()), "s", &LOGIN);
        for (user, password) in [
            ("username_in", "password_in"),
            (
                "node.session.auth.username_in",
                "node.session.auth.password_in",
            ),
        ] {
            let Released::Chap {
                target: Some(t), ..
            } = with(&[(user, "t"), (password, "qqqqqqqqqqqq")]).unwrap()
            else {
                panic!("one-way");
            };
            assert_eq!(
                (t.username.as_str(), t.password.expose_secret()),
                ("t", "qqqqqqqqqqqq")
            );
        }
        for (bad, says) in [
            (&[("username_in", "t")][..], "password_in"),
            (&[("password_in", "qqqqqqqqqqqq")], "username_in"),
            (&[("username_in", "t"), ("password_in", "")], "password_in"),
            (
                &[("username_in", "t"), ("password_in", "pppppppppppp")],
                "same secret",
            ),
        ] {
            let e = with(bad).unwrap_err();
            assert_eq!(e.reason, Reason::ChapSecretInvalid);
            assert!(
                e.what.contains(says) && !e.what.contains("pppp"),
                "{}",
                e.what
            );
        }
    }
}
