//! HTTP towards the identity/keys API: one client per KeyService, deadlines on everything, bounded answers, wiped bodies.

use std::time::Duration;

use axum::body::Bytes;
use cryptvol_crds::KeyService;
use reqwest::{Certificate, Method, RequestBuilder, Response, StatusCode, redirect};
use secrecy::{ExposeSecret, SecretString};
use serde::de::DeserializeOwned;
use url::Url;
use zeroize::{Zeroize, Zeroizing};

use super::KeyError;

/// Connection and TLS handshake.
const CONNECT: Duration = Duration::from_secs(5);
/// A whole exchange.
const TOTAL: Duration = Duration::from_secs(15);
/// Largest answer that is read, in bytes.
const MAX_ANSWER: usize = 1024 * 1024;
/// Most characters of a service's own words that go into a message.
const MAX_WORDS: usize = 240;

/// A client that trusts what the KeyService says, follows no redirect and speaks https only.
#[derive(Clone, Debug)]
pub struct Http {
    client: reqwest::Client,
}

impl Http {
    /// Builds the client. `default_ca` holds certificates (PEM) for a KeyService without a bundle of its own, beside the
    /// system's.
    ///
    /// # Errors
    /// [`KeyError::Configuration`] when a bundle cannot be read.
    pub fn new(service: &KeyService, default_ca: Option<&[u8]>) -> Result<Self, KeyError> {
        let builder = reqwest::Client::builder()
            .https_only(true)
            .no_proxy()
            .redirect(redirect::Policy::none())
            .connect_timeout(CONNECT)
            .timeout(TOTAL)
            .pool_idle_timeout(Duration::from_secs(60))
            .user_agent(concat!("cryptvol-operator/", env!("CARGO_PKG_VERSION")));
        let certificates = |pem: &[u8], what: &str| {
            let list = Certificate::from_pem_bundle(pem)
                .map_err(|_| KeyError::Configuration(format!("{what} cannot be read as PEM")))?;
            if list.is_empty() {
                return Err(KeyError::Configuration(format!(
                    "{what} holds no certificate"
                )));
            }
            Ok(list)
        };
        let builder = match (&service.spec.ca_bundle, default_ca) {
            (Some(pem), _) => {
                builder.tls_certs_only(certificates(pem.as_bytes(), "spec.caBundle")?)
            }
            (None, Some(pem)) => {
                builder.tls_certs_merge(certificates(pem, "the operator's --ca-file")?)
            }
            (None, None) => builder,
        };
        let client = builder
            .build()
            .map_err(|e| KeyError::Configuration(why(&e)))?;
        Ok(Self { client })
    }

    /// Begins a request.
    pub fn request(&self, method: Method, url: Url) -> RequestBuilder {
        self.client.request(method, url)
    }

    /// Sends and gives the answer whatever its status.
    ///
    /// # Errors
    /// [`KeyError::Unreachable`].
    pub async fn send(&self, request: RequestBuilder, url: &Url) -> Result<Response, KeyError> {
        request.send().await.map_err(|e| KeyError::Unreachable {
            url: origin(url),
            why: why(&e),
        })
    }
}

/// Puts the token on a request, marked so that no log of a library prints it.
pub fn with_token(request: RequestBuilder, token: &SecretString) -> RequestBuilder {
    match reqwest::header::HeaderValue::from_str(token.expose_secret()) {
        Ok(mut value) => {
            value.set_sensitive(true);
            request.header("X-Auth-Token", value)
        }
        // Refused by the service as a missing token.
        Err(_) => request,
    }
}

/// A JSON body that is wiped when the client lets go of it.
///
/// # Errors
/// [`KeyError::Configuration`] when it cannot be written as JSON.
pub fn secret_json(
    request: RequestBuilder,
    body: &impl serde::Serialize,
) -> Result<RequestBuilder, KeyError> {
    // Grown in advance: a vector that reallocates leaves unwiped copies behind.
    let mut buffer = Zeroizing::new(Vec::with_capacity(16 * 1024));
    serde_json::to_writer(&mut *buffer, body)
        .map_err(|_| KeyError::Configuration("a request cannot be written as JSON".into()))?;
    Ok(request
        .header(reqwest::header::CONTENT_TYPE, "application/json")
        .body(Bytes::from_owner(buffer)))
}

/// Reads an answer into memory that is wiped, up to a limit.
///
/// # Errors
/// [`KeyError::Unreachable`] when it breaks off, [`KeyError::Server`] when it is too long.
pub async fn body(mut response: Response) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    let url = response.url().clone();
    let status = response.status().as_u16();
    let expected = response.content_length().unwrap_or(16 * 1024);
    let expected = usize::try_from(expected)
        .unwrap_or(MAX_ANSWER)
        .min(MAX_ANSWER);
    let mut all = Zeroizing::new(Vec::with_capacity(expected));
    loop {
        let chunk = response.chunk().await.map_err(|e| KeyError::Unreachable {
            url: origin(&url),
            why: why(&e),
        })?;
        let Some(chunk) = chunk else { return Ok(all) };
        if all.len() + chunk.len() > MAX_ANSWER {
            return Err(KeyError::Server {
                url: origin(&url),
                status,
                why: "the answer is longer than 1 MiB".into(),
            });
        }
        if all.capacity() < all.len() + chunk.len() {
            let mut grown = Zeroizing::new(Vec::with_capacity((all.len() + chunk.len()) * 2));
            grown.extend_from_slice(&all);
            all = grown;
        }
        all.extend_from_slice(&chunk);
        // Ours alone once hyper has moved on; where it is still shared there is nothing that could be wiped safely.
        if let Ok(mut mine) = chunk.try_into_mut() {
            mine.as_mut().zeroize();
        }
    }
}

/// Reads an answer as JSON.
///
/// # Errors
/// As [`body`], and [`KeyError::Server`] when it is not the JSON that is expected.
pub async fn json<T: DeserializeOwned>(response: Response) -> Result<T, KeyError> {
    let url = origin(response.url());
    let status = response.status().as_u16();
    let body = body(response).await?;
    serde_json::from_slice(&body).map_err(|_| KeyError::Server {
        url,
        status,
        why: "the answer is not the JSON of this protocol".into(),
    })
}

/// The error that a refusing answer means, for a call that does `action`. 404 is for the caller to tell.
pub async fn refusal(response: Response, action: &'static str) -> KeyError {
    let url = origin(response.url());
    let status = response.status();
    let why = words(response).await;
    match status {
        StatusCode::UNAUTHORIZED => KeyError::Rejected(format!(
            "{url} does not accept the token although it was just issued ({why})"
        )),
        StatusCode::FORBIDDEN if why.to_ascii_lowercase().contains("quota") => KeyError::Quota(why),
        StatusCode::PAYLOAD_TOO_LARGE => KeyError::Quota(why),
        StatusCode::FORBIDDEN => KeyError::Forbidden { action, why },
        status => KeyError::Server {
            url,
            status: status.as_u16(),
            why,
        },
    }
}

/// The service's own words in an error answer: Keystone's `error.message`, Barbican's `title` and `description`.
pub async fn words(response: Response) -> String {
    let status = response.status();
    let text = match body(response).await {
        Ok(body) => serde_json::from_slice::<serde_json::Value>(&body)
            .ok()
            .and_then(|v| {
                let word = |p: &str| v.pointer(p).and_then(|x| x.as_str()).map(str::to_owned);
                let barbican = [word("/title"), word("/description")]
                    .into_iter()
                    .flatten()
                    .collect::<Vec<_>>()
                    .join(": ");
                word("/error/message").or((!barbican.is_empty()).then_some(barbican))
            }),
        Err(_) => None,
    };
    let text = text.unwrap_or_else(|| {
        status
            .canonical_reason()
            .unwrap_or("no reason given")
            .to_owned()
    });
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(MAX_WORDS)
        .collect()
}

/// Scheme, host and port, for messages.
pub fn origin(url: &Url) -> String {
    url.origin().ascii_serialization()
}

/// A client error with its causes, without the URL (which is told apart and may hold a key's name).
fn why(error: &reqwest::Error) -> String {
    let mut parts = vec![];
    let mut next: Option<&dyn std::error::Error> = std::error::Error::source(error);
    while let Some(e) = next {
        parts.push(e.to_string());
        next = e.source();
    }
    if error.is_timeout() {
        parts.insert(0, "timed out".into());
    }
    // The innermost cause is the one that helps: "Connection refused", "invalid peer certificate: …".
    match (parts.first(), parts.last()) {
        (Some(first), Some(last)) if first != last && error.is_timeout() => {
            format!("{first}: {last}")
        }
        (_, Some(last)) => last.clone(),
        _ => "the request could not be made".into(),
    }
}
