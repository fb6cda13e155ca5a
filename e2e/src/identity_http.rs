//! Requests as the administrator of an embedded service that is killed and started again under its client.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::control_plane;
use crate::identity_service::IdentityService;

const TOKENS: &str = "/identity/v3/auth/tokens";
/// After so long a request counts as not answered.
const TIMEOUT: Duration = Duration::from_secs(60);

/// An HTTP client with the administrator's token, which outlives restarts.
#[derive(Clone, Debug)]
pub struct Http {
    client: reqwest::Client,
    base: String,
    token: String,
}

impl Http {
    /// Logs in as the administrator.
    pub async fn login(service: &IdentityService) -> Result<Self> {
        control_plane::init_tls();
        let ca = reqwest::Certificate::from_pem(&fs::read(service.ca_path())?)?;
        let nobody = Self {
            client: reqwest::Client::builder()
                .tls_certs_only([ca])
                .timeout(TIMEOUT)
                .build()?,
            base: service.base_url(),
            token: String::new(),
        };
        nobody.login_as("admin", service.password(), "admin").await
    }

    /// A new token of a user, for a project; both of the domain Default.
    pub async fn login_as(&self, user: &str, password: &str, project: &str) -> Result<Self> {
        let domain = json!({"id": "default"});
        let body = json!({"auth": {
            "identity": {"methods": ["password"], "password": {"user": {
                "name": user, "domain": domain, "password": password}}},
            "scope": {"project": {"name": project, "domain": domain}},
        }});
        let answer = self
            .client
            .post(format!("{}{TOKENS}", self.base))
            .json(&body)
            .send()
            .await?
            .error_for_status()?;
        let token = answer
            .headers()
            .get("x-subject-token")
            .context("no token")?
            .to_str()?
            .to_owned();
        Ok(Self {
            token,
            ..self.clone()
        })
    }

    /// The same token at another replica with the same certificate, by its URL without a path.
    pub fn at(&self, base: &str) -> Self {
        Self {
            base: base.to_owned(),
            ..self.clone()
        }
    }

    /// The URL without a path.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// Ends the token.
    pub async fn end_token(&self) -> Result<StatusCode> {
        let answer = self
            .client
            .delete(format!("{}{TOKENS}", self.base))
            .header("X-Auth-Token", &self.token)
            .header("X-Subject-Token", &self.token)
            .send()
            .await?;
        Ok(answer.status())
    }

    /// One request; status and body.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(StatusCode, Vec<u8>)> {
        let mut request = self
            .client
            .request(method, format!("{}{path}", self.base))
            .header("X-Auth-Token", &self.token);
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = request.send().await?;
        Ok((answer.status(), answer.bytes().await?.to_vec()))
    }

    /// The same, with a JSON body (null if it is none).
    pub async fn json(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(StatusCode, Value)> {
        let (status, bytes) = self.send(method, path, body).await?;
        Ok((status, serde_json::from_slice(&bytes).unwrap_or_default()))
    }
}
