//! Asking the operator for a passphrase or CHAP credentials: HTTPS, with the agent's projected token.
//!
//! CA file and token file are read anew for each request, because both are replaced while the agent runs. Connections are
//! not kept: their buffers would hold the answer for as long as they live.

use std::{path::PathBuf, time::Duration};

use cryptvol_common::release::{PATH, Purpose, Refusal, Released, Request};
use cryptvol_crds::conditions::Reason;
use reqwest::{Certificate, StatusCode, header};
use secrecy::ExposeSecret;
use url::Url;
use zeroize::{Zeroize, Zeroizing};

use crate::host::{Chap, Passphrase, StepError, TargetChap};

/// The whole exchange, with its second try.
const DEADLINE: Duration = Duration::from_secs(15);
/// Connection and TLS handshake of one try.
const CONNECT: Duration = Duration::from_secs(5);
/// Pause before the second try.
const PAUSE: Duration = Duration::from_millis(300);
/// Longest answer that is read, in bytes.
const MAX_ANSWER: usize = 64 << 10;

/// Where and how to ask.
#[derive(Clone, Debug)]
pub struct ReleaseConfig {
    /// Base of the operator's key-release endpoint.
    pub url: Url,
    /// Certificates (PEM) that its certificate must descend from; the system's where absent.
    pub ca_file: Option<PathBuf>,
    /// Service-account token with the audience of key release.
    pub token_file: PathBuf,
}

/// The operator's key-release endpoint as this agent sees it.
#[derive(Debug)]
pub struct ReleaseClient {
    config: ReleaseConfig,
    /// Client by the CA bytes that it was built from, so that TLS sessions are resumed while they stay the same.
    client: std::cell::RefCell<Option<(Vec<u8>, reqwest::Client)>>,
}

/// Which NodeVolume asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asker {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
}

/// One try.
enum Failure {
    /// Nothing arrived at the operator: another replica may answer.
    NotConnected(String),
    /// Anything else.
    Final(StepError),
}

impl ReleaseClient {
    /// A client; nothing is read or sent yet.
    pub fn new(config: ReleaseConfig) -> Self {
        Self {
            config,
            client: std::cell::RefCell::default(),
        }
    }

    /// The passphrase of the volume's header.
    ///
    /// # Errors
    /// The operator's refusal with its reason, or `KeyReleaseUnavailable`.
    pub async fn passphrase(&self, asker: &Asker) -> Result<Passphrase, StepError> {
        self.secret(asker, Purpose::Passphrase).await
    }

    /// The passphrase of the key that a rotation brings.
    ///
    /// # Errors
    /// As of [`Self::passphrase`].
    pub async fn next_passphrase(&self, asker: &Asker) -> Result<Passphrase, StepError> {
        self.secret(asker, Purpose::NextPassphrase).await
    }

    async fn secret(&self, asker: &Asker, purpose: Purpose) -> Result<Passphrase, StepError> {
        match self.ask(asker, purpose).await? {
            Released::Passphrase(secret) => Ok(Passphrase(secret.expose_secret().to_owned())),
            Released::Chap { .. } => Err(unavailable("the operator answered another question")),
        }
    }

    /// CHAP credentials of the login.
    ///
    /// # Errors
    /// As of [`Self::passphrase`].
    pub async fn chap(&self, asker: &Asker) -> Result<Chap, StepError> {
        self.credentials(asker, Purpose::ChapCredentials).await
    }

    /// CHAP credentials of a discovery.
    ///
    /// # Errors
    /// As of [`Self::passphrase`].
    pub async fn discovery_chap(&self, asker: &Asker) -> Result<Chap, StepError> {
        let purpose = Purpose::DiscoveryChapCredentials;
        self.credentials(asker, purpose).await
    }

    async fn credentials(&self, asker: &Asker, purpose: Purpose) -> Result<Chap, StepError> {
        match self.ask(asker, purpose).await? {
            Released::Chap {
                username,
                password,
                target,
            } => Ok(Chap {
                username,
                password: password.expose_secret().to_owned(),
                target: target.map(|t| TargetChap {
                    username: t.username,
                    password: t.password.expose_secret().to_owned(),
                }),
            }),
            Released::Passphrase(_) => Err(unavailable("the operator answered another question")),
        }
    }

    async fn ask(&self, asker: &Asker, purpose: Purpose) -> Result<Released, StepError> {
        let exchange = async {
            match self.once(asker, purpose).await {
                Err(Failure::NotConnected(first)) => {
                    tracing::debug!(error = first, "key release: trying once more");
                    tokio::time::sleep(PAUSE).await;
                    match self.once(asker, purpose).await {
                        Err(Failure::NotConnected(why)) => Err(unavailable(&why)),
                        Err(Failure::Final(e)) => Err(e),
                        Ok(released) => Ok(released),
                    }
                }
                Err(Failure::Final(e)) => Err(e),
                Ok(released) => Ok(released),
            }
        };
        tokio::time::timeout(DEADLINE, exchange)
            .await
            .unwrap_or_else(|_| {
                Err(unavailable(&format!(
                    "no answer within {} s",
                    DEADLINE.as_secs()
                )))
            })
    }

    async fn once(&self, asker: &Asker, purpose: Purpose) -> Result<Released, Failure> {
        let client = self.client().await.map_err(Failure::Final)?;
        let url = self
            .config
            .url
            .join(PATH)
            .map_err(|e| Failure::Final(unavailable(&e.to_string())))?;
        let request = Request {
            namespace: asker.namespace.clone(),
            name: asker.name.clone(),
            uid: asker.uid.clone(),
            purpose,
            request_id: uuid::Uuid::new_v4().to_string(),
        };
        let response = client
            .post(url)
            .header(header::AUTHORIZATION, self.token().await?)
            .json(&request)
            .send()
            .await
            .map_err(|e| match e.is_connect() {
                true => Failure::NotConnected(words(&e)),
                false => Failure::Final(unavailable(&words(&e))),
            })?;
        let status = response.status();
        let body = bounded(response).await.map_err(Failure::Final)?;
        answer(status, &body).map_err(Failure::Final)
    }

    async fn token(&self) -> Result<header::HeaderValue, Failure> {
        let path = &self.config.token_file;
        let unreadable = |why: &dyn std::fmt::Display| {
            Failure::Final(unavailable(&format!(
                "the token file {} cannot be used: {why}",
                path.display()
            )))
        };
        let token = tokio::fs::read(path).await.map_err(|e| unreadable(&e))?;
        let token = Zeroizing::new(token);
        let mut bearer = Zeroizing::new(b"Bearer ".to_vec());
        bearer.extend_from_slice(token.trim_ascii());
        let mut value =
            header::HeaderValue::from_bytes(&bearer).map_err(|_| unreadable(&"not a token"))?;
        value.set_sensitive(true);
        Ok(value)
    }

    async fn client(&self) -> Result<reqwest::Client, StepError> {
        let ca = match &self.config.ca_file {
            Some(path) => tokio::fs::read(path).await.map_err(|e| {
                unavailable(&format!(
                    "the CA file {} cannot be read: {e}",
                    path.display()
                ))
            })?,
            None => Vec::new(),
        };
        if let Some((bytes, client)) = self.client.borrow().as_ref()
            && *bytes == ca
        {
            return Ok(client.clone());
        }
        let mut builder = reqwest::Client::builder()
            .https_only(true)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT)
            // A connection that is kept has the last answer in its buffer, and with it a passphrase.
            .pool_max_idle_per_host(0)
            .user_agent(concat!("cryptvol-node-agent/", env!("CARGO_PKG_VERSION")));
        if self.config.ca_file.is_some() {
            let certificates = Certificate::from_pem_bundle(&ca)
                .ok()
                .filter(|list| !list.is_empty())
                .ok_or_else(|| unavailable("the CA file holds no certificate"))?;
            builder = builder.tls_certs_only(certificates);
        }
        let client = builder.build().map_err(|e| unavailable(&words(&e)))?;
        *self.client.borrow_mut() = Some((ca, client.clone()));
        Ok(client)
    }
}

/// The body, in memory that is wiped.
async fn bounded(mut response: reqwest::Response) -> Result<Zeroizing<Vec<u8>>, StepError> {
    let mut body = Zeroizing::new(Vec::with_capacity(MAX_ANSWER));
    while let Some(chunk) = response
        .chunk()
        .await
        .map_err(|e| unavailable(&words(&e)))?
    {
        if body.len() + chunk.len() > MAX_ANSWER {
            return Err(unavailable("the answer is too long"));
        }
        body.extend_from_slice(&chunk);
        // Ours alone in most cases; otherwise it is wiped when the connection's buffer is freed (see `main`).
        if let Ok(mut chunk) = chunk.try_into_mut() {
            chunk.as_mut().zeroize();
        }
    }
    Ok(body)
}

/// What an answer says.
pub(crate) fn answer(status: StatusCode, body: &[u8]) -> Result<Released, StepError> {
    if status != StatusCode::OK {
        return Err(refusal(status, body));
    }
    Released::from_json(body).map_err(|e| unavailable(&e.to_string()))
}

/// An error answer. A refusal's message ends with its next step, which the report adds again from the reason.
fn refusal(status: StatusCode, body: &[u8]) -> StepError {
    match serde_json::from_slice::<Refusal>(body) {
        Ok(refusal) => {
            let reason = Reason::parse(&refusal.reason).unwrap_or(Reason::KeyReleaseRefused);
            let message = refusal.message.trim();
            let message = message
                .strip_suffix(reason.next_step())
                .unwrap_or(message)
                .trim_end()
                .trim_end_matches('.');
            StepError::new(reason, message)
        }
        Err(_) if status.is_server_error() => {
            unavailable(&format!("the operator answered {status}"))
        }
        Err(_) => StepError::new(
            Reason::KeyReleaseRefused,
            format!("the operator answered {status}"),
        ),
    }
}

fn unavailable(why: &str) -> StepError {
    StepError::new(Reason::KeyReleaseUnavailable, format!("key release: {why}"))
}

/// An error with its causes, without the URL.
fn words(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(e) = cause {
        let more = e.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = e.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_keeps_its_reason_and_says_its_next_step_once() {
        let body =
            serde_json::to_vec(&Refusal::new(Reason::KeyNotFound, "no secret 1234")).unwrap();
        let error = refusal(StatusCode::NOT_FOUND, &body);
        assert_eq!(error.reason(), Reason::KeyNotFound);
        assert_eq!(error.message, "no secret 1234");
        let gateway = refusal(StatusCode::BAD_GATEWAY, b"<html>");
        assert_eq!(gateway.reason(), Reason::KeyReleaseUnavailable);
        assert_eq!(
            refusal(StatusCode::FORBIDDEN, b"").reason(),
            Reason::KeyReleaseRefused
        );
    }
}
