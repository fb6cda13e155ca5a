//! Credentials out of a `clouds.yaml`.
//!
//! Only what a login needs is read. The address in the file must be the KeyService's, so that a tenant cannot send the
//! operator, and with it other tenants' traffic or its own network position, elsewhere.

use std::collections::BTreeMap;

use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use url::Url;

use super::KeyError;

/// The most that a `clouds.yaml` may be, in bytes.
const MAX_SIZE: usize = 64 * 1024;

/// A name or an id, as Keystone takes them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ref {
    /// By id.
    Id(String),
    /// By name.
    Name(String),
}

/// Who logs in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum User {
    /// By id, which says the domain too.
    Id(String),
    /// By name in a domain.
    Name {
        /// Name.
        name: String,
        /// Domain.
        domain: Ref,
    },
}

/// The project of the token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Project {
    /// By id.
    Id(String),
    /// By name in a domain.
    Name {
        /// Name.
        name: String,
        /// Domain.
        domain: Ref,
    },
}

/// How to log in. `Debug` shows no secret.
#[derive(Clone, Debug)]
pub enum Method {
    /// A user's password, scoped to a project.
    Password {
        /// User.
        user: User,
        /// Password.
        password: SecretString,
        /// Project.
        project: Project,
    },
    /// An application credential, which has its project.
    ApplicationCredential {
        /// By id, or by name with its user.
        id: Result<String, (String, User)>,
        /// Secret.
        secret: SecretString,
    },
}

/// What one entry of a `clouds.yaml` says.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// How to log in.
    pub method: Method,
    /// Region, for a KeyService that names none.
    pub region: Option<String>,
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    clouds: BTreeMap<String, Cloud>,
}

#[derive(Deserialize)]
struct Cloud {
    auth_type: Option<String>,
    auth: Option<Auth>,
    region_name: Option<String>,
}

#[derive(Deserialize)]
struct Auth {
    auth_url: Option<String>,
    username: Option<String>,
    user_id: Option<String>,
    #[serde(default, deserialize_with = "secret")]
    password: Option<SecretString>,
    user_domain_name: Option<String>,
    user_domain_id: Option<String>,
    project_name: Option<String>,
    project_id: Option<String>,
    project_domain_name: Option<String>,
    project_domain_id: Option<String>,
    domain_name: Option<String>,
    domain_id: Option<String>,
    tenant_name: Option<String>,
    tenant_id: Option<String>,
    application_credential_id: Option<String>,
    application_credential_name: Option<String>,
    #[serde(default, deserialize_with = "secret")]
    application_credential_secret: Option<SecretString>,
}

fn secret<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Option<SecretString>, D::Error> {
    Ok(Option::<String>::deserialize(d)?.map(Into::into))
}

impl Credentials {
    /// Reads the entry `cloud` of a `clouds.yaml` and checks that it is meant for the KeyService at `auth_url`.
    ///
    /// # Errors
    /// [`KeyError::Credentials`] with a sentence that says what to write; it holds no part of the file but names.
    pub fn parse(file: &[u8], cloud: &str, auth_url: &str) -> Result<Self, KeyError> {
        let bad = |what: String| KeyError::Credentials(what);
        if file.len() > MAX_SIZE {
            return Err(bad(format!(
                "clouds.yaml is larger than {} KiB",
                MAX_SIZE / 1024
            )));
        }
        let text = std::str::from_utf8(file).map_err(|_| bad("clouds.yaml is not UTF-8".into()))?;
        // The parser's own message may quote the file, passwords included: only the place is told.
        let file: File = serde_saphyr::from_str(text).map_err(|e| {
            bad(match e.location() {
                Some(at) => format!("clouds.yaml cannot be read at line {}", at.line()),
                None => {
                    "clouds.yaml cannot be read: it is not YAML of the form clouds: NAME: auth: …"
                        .into()
                }
            })
        })?;
        let names = file.clouds.keys().cloned().collect::<Vec<_>>().join(", ");
        let mut clouds = file.clouds;
        let entry = clouds.remove(cloud).ok_or_else(|| {
            bad(if names.is_empty() {
                "clouds.yaml has no entries under clouds:".into()
            } else {
                format!("clouds.yaml has no entry {cloud} under clouds: (it has {names}); correct spec.credentials.cloudName or the file")
            })
        })?;
        let auth = entry
            .auth
            .ok_or_else(|| bad(format!("the entry {cloud} of clouds.yaml has no auth:")))?;
        let url = auth.auth_url.as_deref().ok_or_else(|| {
            bad(format!(
                "the entry {cloud} of clouds.yaml has no auth_url: write {auth_url}"
            ))
        })?;
        if !same_service(url, auth_url) {
            return Err(bad(format!(
                "auth_url in clouds.yaml is {}, but the KeyService's is {auth_url}: cryptvol talks to the KeyService only, write its URL or name another KeyService",
                without_userinfo(url)
            )));
        }
        let method = method(cloud, entry.auth_type.as_deref(), auth)?;
        Ok(Self {
            method,
            region: entry.region_name,
        })
    }

    /// Tells one set of credentials from another without holding them: SHA-256 over all that a login sends.
    pub fn digest(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        let mut part = |s: &str| {
            hash.update((s.len() as u64).to_le_bytes());
            hash.update(s.as_bytes());
        };
        part(self.region.as_deref().unwrap_or_default());
        match &self.method {
            Method::Password {
                user,
                password,
                project,
            } => {
                part(&format!("{user:?}{project:?}"));
                part(password.expose_secret());
            }
            Method::ApplicationCredential { id, secret } => {
                part(&format!("{id:?}"));
                part(secret.expose_secret());
            }
        }
        hash.finalize().into()
    }
}

fn method(cloud: &str, auth_type: Option<&str>, auth: Auth) -> Result<Method, KeyError> {
    let bad =
        |what: &str| KeyError::Credentials(format!("the entry {cloud} of clouds.yaml {what}"));
    let has_app = auth.application_credential_id.is_some()
        || auth.application_credential_name.is_some()
        || auth.application_credential_secret.is_some();
    let app = match auth_type {
        None => has_app,
        Some("v3applicationcredential") => true,
        Some("password" | "v3password") => false,
        Some(_) => {
            return Err(bad(
                "has an auth_type that cryptvol does not know: use v3applicationcredential or password",
            ));
        }
    };
    let user_domain = domain(auth.user_domain_id, auth.user_domain_name)
        .or_else(|| domain(auth.domain_id.clone(), auth.domain_name.clone()));
    let user = match (auth.user_id, auth.username) {
        (Some(id), _) => Some(User::Id(id)),
        (None, Some(name)) => match user_domain {
            Some(domain) => Some(User::Name { name, domain }),
            None => {
                return Err(bad(
                    "has a username and no user_domain_name or user_domain_id",
                ));
            }
        },
        (None, None) => None,
    };
    if app {
        let secret = auth
            .application_credential_secret
            .filter(|s| !s.expose_secret().is_empty())
            .ok_or_else(|| bad("has no application_credential_secret"))?;
        let id = match (auth.application_credential_id, auth.application_credential_name) {
            (Some(id), _) => Ok(id),
            (None, Some(name)) => Err((
                name,
                user.ok_or_else(|| bad("has application_credential_name and not whose it is: add username and user_domain_name, or use application_credential_id"))?,
            )),
            (None, None) => return Err(bad("has no application_credential_id")),
        };
        return Ok(Method::ApplicationCredential { id, secret });
    }
    let user = user.ok_or_else(|| bad("has no username"))?;
    let password = auth
        .password
        .filter(|p| !p.expose_secret().is_empty())
        .ok_or_else(|| bad("has no password"))?;
    let project = match (
        auth.project_id.or(auth.tenant_id),
        auth.project_name.or(auth.tenant_name),
    ) {
        (Some(id), _) => Project::Id(id),
        (None, Some(name)) => {
            let domain = domain(auth.project_domain_id, auth.project_domain_name)
                .or_else(|| domain(auth.domain_id, auth.domain_name))
                .ok_or_else(|| {
                    bad("has a project_name and no project_domain_name or project_domain_id")
                })?;
            Project::Name { name, domain }
        }
        (None, None) => return Err(bad("names no project: add project_name or project_id")),
    };
    Ok(Method::Password {
        user,
        password,
        project,
    })
}

fn domain(id: Option<String>, name: Option<String>) -> Option<Ref> {
    id.map(Ref::Id).or(name.map(Ref::Name))
}

/// Whether two identity URLs mean one service: equal up to a trailing slash and the version.
pub fn same_service(a: &str, b: &str) -> bool {
    let parts = |s: &str| {
        let url = Url::parse(s).ok()?;
        let path = url.path().trim_end_matches('/');
        let path = path.strip_suffix("/v3").unwrap_or(path);
        let plain = url.username().is_empty()
            && url.password().is_none()
            && url.query().is_none()
            && url.fragment().is_none();
        plain.then(|| {
            (
                url.scheme().to_owned(),
                url.host_str().map(str::to_ascii_lowercase),
                url.port_or_known_default(),
                path.trim_end_matches('/').to_owned(),
            )
        })
    };
    matches!((parts(a), parts(b)), (Some(a), Some(b)) if a == b)
}

/// A URL for a message: without user and password, and cut.
fn without_userinfo(url: &str) -> String {
    match Url::parse(url) {
        Ok(mut u) => {
            let _ = u.set_username("");
            let _ = u.set_password(None);
            u.set_query(None);
            u.as_str().chars().take(200).collect()
        }
        Err(_) => "not a URL".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cryptvol_crds::conditions::Reason;

    const URL: &str = "https://keys.example.com/identity/v3";

    fn parse(text: &str) -> Result<Credentials, KeyError> {
        Credentials::parse(text.as_bytes(), "c", URL)
    }

    fn refused(text: &str, part: &str) {
        let e = parse(text).unwrap_err();
        assert_eq!(e.reason(), Reason::CredentialsInvalid);
        assert!(e.to_string().contains(part), "{e} should contain {part}");
        assert!(!e.to_string().contains("hunter2"), "{e}");
    }

    #[test]
    fn application_credential_by_id() {
        let c = parse(
            "clouds:\n  c:\n    auth_type: v3applicationcredential\n    auth:\n      auth_url: https://KEYS.example.com:443/identity/\n      application_credential_id: abc\n      application_credential_secret: hunter2\n    region_name: r1\n",
        )
        .unwrap();
        assert!(
            matches!(&c.method, Method::ApplicationCredential { id: Ok(id), .. } if id == "abc")
        );
        assert_eq!(c.region.as_deref(), Some("r1"));
        assert!(!format!("{c:?}").contains("hunter2"));
    }

    #[test]
    fn application_credential_by_name_needs_its_user() {
        let text = "clouds: {c: {auth: {auth_url: 'https://keys.example.com/identity/v3/', application_credential_name: n, application_credential_secret: hunter2 USER}}}";
        refused(&text.replace(" USER", ""), "whose it is");
        let c = parse(&text.replace(" USER", ", username: u, user_domain_name: Default")).unwrap();
        assert!(
            matches!(&c.method, Method::ApplicationCredential { id: Err((n, User::Name { .. })), .. } if n == "n")
        );
    }

    #[test]
    fn password_with_a_project() {
        let text = "clouds: {c: {auth: {auth_url: 'https://keys.example.com/identity', username: u, password: 12345678, user_domain_id: default, project_name: p PD}}}";
        refused(&text.replace(" PD", ""), "project_domain_name");
        let c = parse(&text.replace(" PD", ", project_domain_name: Default")).unwrap();
        let Method::Password {
            password, project, ..
        } = &c.method
        else {
            panic!()
        };
        assert_eq!(password.expose_secret(), "12345678");
        assert_eq!(
            *project,
            Project::Name {
                name: "p".into(),
                domain: Ref::Name("Default".into())
            }
        );
    }

    #[test]
    fn garbage_is_told_without_being_quoted() {
        refused("\u{0}", "cannot be read");
        refused("", "no entries");
        refused("clouds: hunter2", "cannot be read");
        refused("clouds:\n  c:\n   - hunter2: [", "line");
        refused(
            "clouds: {d: {auth: {auth_url: x, password: hunter2}}}",
            "has no entry c under clouds: (it has d)",
        );
        refused("clouds: {c: {}}", "no auth:");
        refused("clouds: {c: {auth: {password: hunter2}}}", "no auth_url");
        refused(
            "clouds: {c: {auth: {auth_url: 'https://u:hunter2@evil.example.com/v3', password: hunter2}}}",
            "https://evil.example.com/v3",
        );
        refused(
            "clouds: {c: {auth: {auth_url: 'http://keys.example.com/identity/v3'}}}",
            "KeyService's is https",
        );
        refused(
            "clouds: {c: {auth: {auth_url: 'https://keys.example.com:8443/identity/v3'}}}",
            "KeyService's is https",
        );
        refused(
            &format!("clouds: {{c: {{auth: {{auth_url: '{URL}'}}}}}}"),
            "no username",
        );
        refused(
            &format!("clouds: {{c: {{auth_type: v3oidcpassword, auth: {{auth_url: '{URL}'}}}}}}"),
            "auth_type",
        );
        refused(
            &format!(
                "clouds: {{c: {{auth: {{auth_url: '{URL}', user_id: u, password: hunter2}}}}}}"
            ),
            "names no project",
        );
        refused(
            &format!("clouds: {{c: {{auth: {{auth_url: '{URL}', user_id: u, password: ''}}}}}}"),
            "no password",
        );
        refused(&"a".repeat(MAX_SIZE + 1), "larger than");
        let e = Credentials::parse(&[0xff, 0xfe], "c", URL).unwrap_err();
        assert!(e.to_string().contains("UTF-8"));
        // Anchors that grow without end are refused by the parser's budget.
        let bomb = "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e]\nclouds: [*f,*f,*f,*f,*f,*f,*f,*f,*f]\n";
        assert!(parse(bomb).is_err());
    }

    #[test]
    fn digests_tell_credentials_apart() {
        let text = |secret: &str| {
            format!(
                "clouds: {{c: {{auth: {{auth_url: '{URL}', application_credential_id: a, application_credential_secret: {secret}}}}}}}"
            )
        };
        let digest = |s: &str| parse(&text(s)).unwrap().digest();
        assert_eq!(digest("one"), digest("one"));
        assert_ne!(digest("one"), digest("two"));
    }

    #[test]
    fn one_service_under_several_spellings() {
        for same in [
            "https://keys.example.com/identity/v3/",
            "https://keys.example.com/identity",
            "https://keys.example.com:443/identity//",
        ] {
            assert!(same_service(same, URL), "{same}");
        }
        for other in [
            "https://keys.example.com/identity/v2.0",
            "https://keys.example.com.evil/identity/v3",
            "https://keys.example.com/identity/v3?x",
            "//keys",
            "https://a@keys.example.com/identity/v3",
        ] {
            assert!(!same_service(other, URL), "{other}");
        }
    }
}
