//! Key-encryption keys that are secrets of another key manager: Barbican, or a second embedded service. The file then
//! holds where they are and an application credential that may read them, and no key.

use std::{
    error::Error,
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::body::Bytes;
use reqwest::{
    Certificate, Client, Response, StatusCode, Url,
    header::{ACCEPT, CONTENT_TYPE, HeaderValue},
    redirect::Policy,
};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use zeroize::{Zeroize, Zeroizing};

use super::kek::{KekError, KekSource, KeyBytes, contents};

/// Connection and TLS handshake.
const CONNECT: Duration = Duration::from_secs(5);
/// A whole exchange.
const TOTAL: Duration = Duration::from_secs(15);
/// Largest payload that is read, in bytes.
const MAX_PAYLOAD: usize = 4096;
/// What was found a moment ago is not asked for again: a record that does not open makes us look each time.
const FRESH: Duration = Duration::from_secs(5);

/// The file.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Reference {
    /// The identity service, with `/v3`.
    #[serde(deserialize_with = "url")]
    auth_url: Url,
    application_credential_id: String,
    #[serde(deserialize_with = "secret")]
    application_credential_secret: SecretString,
    /// PEM file of the authority that signed both services' certificates; without, the system's are trusted.
    #[serde(default)]
    ca_file: Option<PathBuf>,
    /// `secret_ref` of each key as the key manager shows it, newest first.
    #[serde(deserialize_with = "urls")]
    secret_refs: Vec<Url>,
}

fn url<'de, D: Deserializer<'de>>(from: D) -> Result<Url, D::Error> {
    String::deserialize(from)?.parse().map_err(D::Error::custom)
}

fn urls<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Url>, D::Error> {
    let texts = Vec::<String>::deserialize(from)?;
    let urls = texts.iter().map(|text| text.parse());
    urls.collect::<Result<_, _>>().map_err(D::Error::custom)
}

fn secret<'de, D: Deserializer<'de>>(from: D) -> Result<SecretString, D::Error> {
    String::deserialize(from).map(SecretString::from)
}

/// The body of a login.
#[derive(Serialize)]
struct Login<'a> {
    auth: Auth<'a>,
}

#[derive(Serialize)]
struct Auth<'a> {
    identity: Identity<'a>,
}

#[derive(Serialize)]
struct Identity<'a> {
    methods: [&'static str; 1],
    application_credential: Credential<'a>,
}

#[derive(Serialize)]
struct Credential<'a> {
    id: &'a str,
    secret: &'a str,
}

/// Whether a file that should hold keys says where they are instead: neither hex nor base64 has a colon.
pub(super) fn is_reference(text: &str) -> bool {
    let mut lines = text.lines().map(str::trim);
    lines
        .find(|line| !line.is_empty() && !line.starts_with('#'))
        .is_some_and(|line| line.contains(':'))
}

impl Reference {
    fn parse(text: &str) -> Result<Self, String> {
        // What the parser says may quote the text, hence the credential.
        let reference: Self = serde_saphyr::from_str(text).map_err(|_| {
            "it needs authUrl, applicationCredentialId, applicationCredentialSecret, secretRefs, and may have caFile"
                .to_owned()
        })?;
        if reference.secret_refs.is_empty() {
            return Err("secretRefs is empty".into());
        }
        let urls = std::iter::once(&reference.auth_url).chain(&reference.secret_refs);
        match urls.into_iter().find(|url| url.scheme() != "https") {
            Some(url) => Err(format!("{url} is not https")),
            None => Ok(reference),
        }
    }
}

/// Why there are no keys: where, whether it may pass by itself, and what happened.
type Refusal = (Url, bool, String);

/// What was asked for and found a moment ago.
struct Found {
    at: Instant,
    secret_refs: Vec<Url>,
    keys: Result<Vec<KeyBytes>, Refusal>,
}

/// Keys in another key manager, by a file that says where.
pub(super) struct Elsewhere {
    path: PathBuf,
    found: Mutex<Option<Found>>,
}

impl Elsewhere {
    pub(super) fn new(path: &Path) -> Self {
        Self {
            path: path.into(),
            found: Mutex::default(),
        }
    }

    /// The keys of which the file says this. Waits for the network, on a thread of its own, for a thread of the runtime may not.
    pub(super) fn keys_by(&self, text: &str) -> Result<Vec<KeyBytes>, KekError> {
        let reference = Reference::parse(text).map_err(|why| KekError::Reference {
            path: self.path.clone(),
            why,
        })?;
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = &*found
            && found.at.elapsed() < FRESH
            && found.secret_refs == reference.secret_refs
        {
            return found.keys.clone().map_err(refused);
        }
        let asked = std::thread::scope(|scope| {
            let asking = scope.spawn(|| {
                tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .map_err(|error| (reference.auth_url.clone(), true, error.to_string()))?
                    .block_on(ask(&reference))
            });
            asking.join()
        });
        let keys = asked.unwrap_or_else(|_| {
            let why = "asking for the keys broke off";
            Err((reference.auth_url.clone(), true, why.to_owned()))
        });
        *found = Some(Found {
            at: Instant::now(),
            secret_refs: reference.secret_refs,
            keys: keys.clone(),
        });
        keys.map_err(refused)
    }
}

impl KekSource for Elsewhere {
    fn keys(&self) -> Result<Vec<KeyBytes>, KekError> {
        self.keys_by(&contents(&self.path)?)
    }

    fn waits(&self) -> bool {
        true
    }

    fn replace(&self, _: &[KeyBytes]) -> Result<(), KekError> {
        Err(KekError::NotHere {
            path: self.path.clone(),
        })
    }
}

fn refused((url, may_pass, why): Refusal) -> KekError {
    let host = url.origin().ascii_serialization();
    if may_pass {
        KekError::Unreachable { host, why }
    } else {
        KekError::Refused { host, why }
    }
}

/// Logs in and reads each key.
async fn ask(reference: &Reference) -> Result<Vec<KeyBytes>, Refusal> {
    let auth = &reference.auth_url;
    let client = client(reference).map_err(|why| (auth.clone(), false, why))?;
    let token = log_in(&client, reference).await?;
    let mut keys = Vec::new();
    for secret in &reference.secret_refs {
        let mut url = secret.clone();
        url.set_path(&format!("{}/payload", secret.path().trim_end_matches('/')));
        let request = client
            .get(url)
            .header("X-Auth-Token", token.clone())
            .header(ACCEPT, "application/octet-stream");
        let answer = sent(request, secret).await?;
        let answer = expect(answer, StatusCode::OK, secret, "read a key")?;
        let bytes = payload(answer, secret).await?;
        let key = bytes.as_slice().try_into().map(Zeroizing::new);
        keys.push(key.map_err(|_| {
            let why = format!("{secret} is not 32 bytes but {}", bytes.len());
            (secret.clone(), false, why)
        })?);
    }
    Ok(keys)
}

fn client(reference: &Reference) -> Result<Client, String> {
    let mut builder = Client::builder()
        .https_only(true)
        .no_proxy()
        .redirect(Policy::none())
        .connect_timeout(CONNECT)
        .timeout(TOTAL)
        .user_agent(concat!("cryptvol-identity/", env!("CARGO_PKG_VERSION")));
    if let Some(path) = &reference.ca_file {
        let pem =
            fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        let certificates = Certificate::from_pem_bundle(&pem)
            .map_err(|_| format!("{} is no PEM file of certificates", path.display()))?;
        builder = builder.tls_certs_only(certificates);
    }
    builder.build().map_err(|error| why(&error))
}

async fn log_in(client: &Client, reference: &Reference) -> Result<HeaderValue, Refusal> {
    let auth = &reference.auth_url;
    let login = Login {
        auth: Auth {
            identity: Identity {
                methods: ["application_credential"],
                application_credential: Credential {
                    id: &reference.application_credential_id,
                    secret: reference.application_credential_secret.expose_secret(),
                },
            },
        },
    };
    // Wiped when the client lets go of it, and grown in advance.
    let mut body = Zeroizing::new(Vec::with_capacity(MAX_PAYLOAD));
    serde_json::to_writer(&mut *body, &login)
        .map_err(|error| (auth.clone(), false, error.to_string()))?;
    let mut url = auth.clone();
    url.set_path(&format!(
        "{}/auth/tokens",
        auth.path().trim_end_matches('/')
    ));
    let request = client
        .post(url)
        .header(CONTENT_TYPE, "application/json")
        .body(Bytes::from_owner(body));
    let answer = sent(request, auth).await?;
    let answer = expect(answer, StatusCode::CREATED, auth, "log in")?;
    let mut token = answer
        .headers()
        .get("X-Subject-Token")
        .cloned()
        .ok_or_else(|| (auth.clone(), false, "the login gives no token".to_owned()))?;
    token.set_sensitive(true);
    Ok(token)
}

async fn sent(request: reqwest::RequestBuilder, to: &Url) -> Result<Response, Refusal> {
    let sent = request.send().await;
    sent.map_err(|error| (to.clone(), true, why(&error)))
}

fn expect(
    answer: Response,
    wanted: StatusCode,
    from: &Url,
    what: &str,
) -> Result<Response, Refusal> {
    let status = answer.status();
    if status == wanted {
        return Ok(answer);
    }
    let may_pass = status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS;
    Err((from.clone(), may_pass, format!("{what} ({from}): {status}")))
}

async fn payload(mut answer: Response, from: &Url) -> Result<Zeroizing<Vec<u8>>, Refusal> {
    // Grown in advance: a vector that reallocates leaves unwiped copies behind.
    let mut all = Zeroizing::new(Vec::with_capacity(MAX_PAYLOAD));
    loop {
        let chunk = answer.chunk().await;
        let Some(chunk) = chunk.map_err(|error| (from.clone(), true, why(&error)))? else {
            return Ok(all);
        };
        if all.len() + chunk.len() > MAX_PAYLOAD {
            return Err((from.clone(), false, format!("{from} is longer than a key")));
        }
        all.extend_from_slice(&chunk);
        if let Ok(mut chunk) = chunk.try_into_mut() {
            chunk.as_mut().zeroize();
        }
    }
}

/// An error with its causes.
fn why(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "# where the key is\nauthUrl: https://keys.example.org/identity/v3\n\
        applicationCredentialId: 5f1a\napplicationCredentialSecret: hunter2\n\
        secretRefs:\n- https://keys.example.org/key-manager/v1/secrets/1\n";

    #[test]
    fn a_reference_is_told_from_keys() {
        assert!(is_reference(GOOD));
        assert!(!is_reference(&format!("# a: b\n{}\n", "ab".repeat(32))));
        assert!(!is_reference(
            "q6urq6urq6urq6urq6urq6urq6urq6urq6urq6urq6s=\n"
        ));
        assert!(!is_reference(""));
    }

    #[test]
    fn what_a_reference_must_say() {
        let good = Reference::parse(GOOD).unwrap();
        assert_eq!(good.secret_refs.len(), 1);
        assert!(!format!("{good:?}").contains("hunter2"));
        for (from, to) in [
            (
                "https://keys.example.org/identity",
                "http://keys.example.org/identity",
            ),
            ("secretRefs:\n- https", "secretRefs:\n- http"),
            ("- https://keys.example.org/key-manager/v1/secrets/1\n", ""),
            ("authUrl", "authURL"),
            ("applicationCredentialId: 5f1a\n", ""),
        ] {
            let bad = GOOD.replace(from, to);
            assert_ne!(bad, GOOD);
            let why = Reference::parse(&bad).unwrap_err();
            assert!(!why.contains("hunter2"), "{why}");
        }
    }
}
