//! Requests as the administrator of an embedded service that is killed and started again under its client.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::control_plane;
use crate::identity_service::IdentityService;

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
        let client = reqwest::Client::builder()
            .tls_certs_only([ca])
            .timeout(Duration::from_secs(20))
            .build()?;
        let domain = json!({"id": "default"});
        let body = json!({"auth": {
            "identity": {"methods": ["password"], "password": {"user": {
                "name": "admin", "domain": domain, "password": service.password()}}},
            "scope": {"project": {"name": "admin", "domain": domain}},
        }});
        let url = format!("{}/auth/tokens", service.auth_url());
        let answer = client
            .post(url)
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
            client,
            base: service.base_url(),
            token,
        })
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
