//! Keystone v3: login, and what the token says.

use k8s_openapi::jiff::{Timestamp, civil::DateTime, tz::TimeZone};
use reqwest::{Method as Verb, StatusCode};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::{Value, json};
use url::Url;
use zeroize::Zeroize;

use cryptvol_crds::v1alpha1::{Interface, KeyServiceSpec};

use super::{
    KeyError,
    clouds::{Credentials, Method, Project, Ref, User},
    http::{self, Http},
};

/// What a login gave. `Debug` shows no token.
#[derive(Clone, Debug)]
pub struct Session {
    /// Token for `X-Auth-Token`.
    pub token: SecretString,
    /// When the token ends.
    pub expires: Timestamp,
    /// Project of the token.
    pub project_id: String,
    /// The identity service, with version and a trailing slash.
    pub identity: Url,
    /// Key manager of this project, without version, with a trailing slash.
    pub key_manager: Url,
    /// When the application credential itself ends, where it is one and the service tells.
    pub credential_expires: Option<Timestamp>,
}

#[derive(Deserialize)]
struct Answer {
    token: Token,
}

#[derive(Deserialize)]
struct Token {
    expires_at: String,
    user: Id,
    project: Option<Id>,
    #[serde(default)]
    catalog: Vec<Service>,
    application_credential: Option<Id>,
}

#[derive(Deserialize)]
struct Id {
    id: String,
}

#[derive(Deserialize)]
struct Service {
    #[serde(rename = "type")]
    type_: String,
    #[serde(default)]
    endpoints: Vec<Endpoint>,
}

#[derive(Deserialize)]
struct Endpoint {
    interface: String,
    url: String,
    region_id: Option<String>,
    region: Option<String>,
}

/// Logs in at the KeyService. The address is the KeyService's, whatever the credentials say.
///
/// # Errors
/// Any [`KeyError`]; 401 is [`KeyError::Rejected`], or [`KeyError::Expired`] where the service says so.
pub async fn login(
    http: &Http,
    service: &KeyServiceSpec,
    credentials: &Credentials,
) -> Result<Session, KeyError> {
    let base = base(&service.auth_url)?;
    let url = join(&base, "auth/tokens")?;
    let mut body = request(credentials);
    let request = http::secret_json(http.request(Verb::POST, url.clone()), &body);
    wipe(&mut body);
    let request = request?;
    let response = http.send(request, &url).await?;
    match response.status() {
        StatusCode::CREATED | StatusCode::OK => {}
        // An unknown application credential is 404, all other wrong credentials are 401 with one text.
        StatusCode::UNAUTHORIZED | StatusCode::NOT_FOUND => {
            return Err(rejected(credentials, &http::words(response).await));
        }
        _ => return Err(http::refusal(response, "log in").await),
    }
    let token: SecretString = response
        .headers()
        .get("X-Subject-Token")
        .and_then(|t| t.to_str().ok())
        .map(|t| t.trim().to_owned().into())
        .ok_or_else(|| KeyError::Server {
            url: http::origin(&url),
            status: response.status().as_u16(),
            why: "the answer to the login holds no token".into(),
        })?;
    let answer: Answer = http::json(response).await?;
    let project_id = answer
        .token
        .project
        .ok_or_else(|| {
            KeyError::Credentials(
                "the login gives a token without a project: name one in clouds.yaml".into(),
            )
        })?
        .id;
    let key_manager = match &service.key_manager_url {
        Some(url) => self::base(url)?,
        None => from_catalog(
            &answer.token.catalog,
            service,
            credentials.region.as_deref(),
        )?,
    };
    let mut session = Session {
        token,
        expires: time(&answer.token.expires_at).unwrap_or_else(Timestamp::now),
        project_id,
        identity: base.clone(),
        key_manager,
        credential_expires: None,
    };
    if let Some(app) = answer.token.application_credential {
        session.credential_expires =
            credential_expiry(http, &base, &session, &answer.token.user.id, &app.id).await;
    }
    Ok(session)
}

/// When an application credential ends. Keystone answers an expired one with the same 401 as a wrong one, so this is
/// asked while the credential still works. Not being told is no error.
async fn credential_expiry(
    http: &Http,
    base: &Url,
    session: &Session,
    user: &str,
    id: &str,
) -> Option<Timestamp> {
    #[derive(Deserialize)]
    struct Answer {
        application_credential: Inner,
    }
    #[derive(Deserialize)]
    struct Inner {
        expires_at: Option<String>,
    }
    let url = join(base, &format!("users/{user}/application_credentials/{id}")).ok()?;
    let request = http::with_token(http.request(Verb::GET, url.clone()), &session.token);
    let response = http.send(request, &url).await.ok()?;
    if response.status() != StatusCode::OK {
        return None;
    }
    let answer: Answer = http::json(response).await.ok()?;
    time(&answer.application_credential.expires_at?)
}

/// What a 401 means. The text of a service that tells (ours, or Keystone with `insecure_debug`) says "expired".
fn rejected(credentials: &Credentials, words: &str) -> KeyError {
    let app = matches!(credentials.method, Method::ApplicationCredential { .. });
    if words.to_ascii_lowercase().contains("expired") {
        return KeyError::Expired(format!("the identity service says: {words}"));
    }
    KeyError::Rejected(if app {
        "the identity service does not accept the application credential: its secret is wrong, it was deleted, it has expired, or its user lost the roles on the project".into()
    } else {
        "the identity service does not accept user and password: one of them is wrong, the user is disabled or its password has expired, or it has no role on the project".into()
    })
}

/// Asks the identity endpoint for its version, without a token.
///
/// # Errors
/// [`KeyError::Unreachable`] or [`KeyError::Server`].
pub async fn version(http: &Http, auth_url: &str) -> Result<Option<String>, KeyError> {
    let url = Url::parse(auth_url.trim_end_matches('/'))
        .map_err(|_| KeyError::Configuration("authUrl is not a URL".into()))?;
    let response = http
        .send(http.request(Verb::GET, url.clone()), &url)
        .await?;
    if response.status() != StatusCode::OK {
        return Err(http::refusal(response, "read the version").await);
    }
    let answer: Value = http::json(response).await?;
    match answer.pointer("/version/id").and_then(Value::as_str) {
        Some(id) => Ok(Some(id.to_owned())),
        None => Err(KeyError::Server {
            url: http::origin(&url),
            status: 200,
            why: "this is not an identity endpoint (no version in the answer)".into(),
        }),
    }
}

fn request(credentials: &Credentials) -> Value {
    match &credentials.method {
        Method::Password {
            user,
            password,
            project,
        } => {
            let mut user = user_json(user);
            user["password"] = json!(password.expose_secret());
            let project = match project {
                Project::Id(id) => json!({"id": id}),
                Project::Name { name, domain } => {
                    json!({"name": name, "domain": ref_json(domain)})
                }
            };
            json!({"auth": {
                "identity": {"methods": ["password"], "password": {"user": user}},
                "scope": {"project": project},
            }})
        }
        // No scope: Keystone refuses an application credential with one.
        Method::ApplicationCredential { id, secret } => {
            let mut app = match id {
                Ok(id) => json!({"id": id}),
                Err((name, user)) => json!({"name": name, "user": user_json(user)}),
            };
            app["secret"] = json!(secret.expose_secret());
            json!({"auth": {"identity": {
                "methods": ["application_credential"],
                "application_credential": app,
            }}})
        }
    }
}

/// Overwrites every string: one of them is a password.
fn wipe(value: &mut Value) {
    match value {
        Value::String(s) => s.zeroize(),
        Value::Array(list) => list.iter_mut().for_each(wipe),
        Value::Object(map) => map.values_mut().for_each(wipe),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn user_json(user: &User) -> Value {
    match user {
        User::Id(id) => json!({"id": id}),
        User::Name { name, domain } => json!({"name": name, "domain": ref_json(domain)}),
    }
}

fn ref_json(r: &Ref) -> Value {
    match r {
        Ref::Id(id) => json!({"id": id}),
        Ref::Name(name) => json!({"name": name}),
    }
}

fn from_catalog(
    catalog: &[Service],
    service: &KeyServiceSpec,
    region: Option<&str>,
) -> Result<Url, KeyError> {
    let region = service.region.as_deref().or(region);
    let interface = match service.interface {
        Interface::Public => "public",
        Interface::Internal => "internal",
        Interface::Admin => "admin",
    };
    let found = catalog
        .iter()
        .filter(|s| s.type_ == "key-manager")
        .flat_map(|s| &s.endpoints)
        .find(|e| {
            e.interface == interface
                && region.is_none_or(|r| e.region_id.as_deref().or(e.region.as_deref()) == Some(r))
        });
    match found {
        Some(e) => base(&e.url),
        None => Err(KeyError::Configuration(format!(
            "the catalog has no key-manager endpoint for interface {interface}{}: set keyManagerUrl, or correct region and interface",
            region
                .map(|r| format!(" in region {r}"))
                .unwrap_or_default()
        ))),
    }
}

/// A URL that paths can be appended to.
///
/// # Errors
/// [`KeyError::Configuration`] when it is not an https URL.
pub fn base(url: &str) -> Result<Url, KeyError> {
    let url = format!("{}/", url.trim_end_matches('/'));
    match Url::parse(&url) {
        Ok(u) if u.scheme() == "https" && u.host_str().is_some() => Ok(u),
        _ => Err(KeyError::Configuration(format!(
            "{url} is not an https URL"
        ))),
    }
}

/// A path below a base.
///
/// # Errors
/// [`KeyError::Configuration`] when no URL comes out.
pub fn join(base: &Url, path: &str) -> Result<Url, KeyError> {
    base.join(path)
        .map_err(|_| KeyError::Configuration(format!("no URL comes of {base} and {path}")))
}

/// A time as Keystone writes it, with `Z` or without.
fn time(text: &str) -> Option<Timestamp> {
    text.parse::<Timestamp>().ok().or_else(|| {
        let local = text.parse::<DateTime>().ok()?;
        Some(local.to_zoned(TimeZone::UTC).ok()?.timestamp())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_with_and_without_zone() {
        let a = time("2026-11-23T23:06:21.000000").unwrap();
        assert_eq!(a, time("2026-11-23T23:06:21.000000Z").unwrap());
        assert!(time("tomorrow").is_none());
    }

    #[test]
    fn the_catalog_is_chosen_by_region_and_interface() {
        let catalog: Vec<Service> = serde_json::from_value(json!([
            {"type": "identity", "endpoints": [{"interface": "public", "url": "https://i", "region_id": "a"}]},
            {"type": "key-manager", "endpoints": [
                {"interface": "internal", "url": "https://a-internal/key-manager", "region_id": "a"},
                {"interface": "public", "url": "https://a/", "region_id": "a"},
                {"interface": "public", "url": "http://b", "region_id": "b"},
            ]},
        ]))
        .unwrap();
        let mut spec: KeyServiceSpec =
            serde_json::from_value(json!({"authUrl": "https://i/v3"})).unwrap();
        let url = |spec: &KeyServiceSpec, region| {
            from_catalog(&catalog, spec, region).map(|u| u.to_string())
        };
        assert_eq!(url(&spec, None).unwrap(), "https://a/");
        // A key must not cross the network in the clear, whatever the catalog says.
        assert!(
            url(&spec, Some("b"))
                .unwrap_err()
                .to_string()
                .contains("https")
        );
        spec.interface = Interface::Internal;
        assert_eq!(url(&spec, None).unwrap(), "https://a-internal/key-manager/");
        spec.region = Some("c".into());
        assert!(
            url(&spec, Some("a"))
                .unwrap_err()
                .to_string()
                .contains("region c")
        );
    }
}
