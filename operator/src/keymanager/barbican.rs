//! Barbican v1 as a [`KeyManager`].

use std::{sync::Arc, time::Duration};

use reqwest::{Method, Response, StatusCode};
use serde::Deserialize;
use serde_json::json;
use url::Url;
use zeroize::Zeroizing;

use super::{
    KeyError, KeyInfo, KeyManager,
    http::{self, Http},
    identity::{Session, join},
    sessions::Login,
};

/// Version of the key-manager protocol that is asked for: consumers are in it, refusal to delete a used secret is not.
const MICROVERSION: &str = "key-manager 1.1";
/// How long an order may take, and how often it is looked at.
const ORDER_DEADLINE: Duration = Duration::from_secs(30);
const ORDER_POLL: Duration = Duration::from_millis(250);
/// Page size of lists; the most that Barbican gives.
const PAGE: usize = 100;
/// Most pages that a search reads.
const MAX_PAGES: usize = 10;
/// Most pages that a search reads which no filter narrows.
const ALL_PAGES: usize = 200;

/// A tenant's view of one key manager. Logs in again, once, when the service says that the token is no good any more.
pub struct Barbican {
    pub(super) http: Http,
    pub(super) login: Arc<Login>,
}

#[derive(Deserialize)]
struct Secret {
    secret_ref: String,
    name: Option<String>,
    #[serde(default)]
    created: String,
    #[serde(default)]
    secret_type: String,
    #[serde(default)]
    status: String,
    content_types: Option<ContentTypes>,
}

#[derive(Deserialize)]
struct ContentTypes {
    default: Option<String>,
}

#[derive(Deserialize)]
struct Secrets {
    secrets: Vec<Secret>,
}

#[derive(Deserialize)]
struct Orders {
    orders: Vec<Order>,
}

#[derive(Deserialize)]
struct Order {
    order_ref: String,
    status: String,
    secret_ref: Option<String>,
    meta: Option<Meta>,
    error_reason: Option<String>,
}

#[derive(Deserialize)]
struct Meta {
    name: Option<String>,
}

#[derive(Deserialize)]
struct SecretRef {
    secret_ref: String,
}

#[derive(Deserialize)]
struct OrderRef {
    order_ref: String,
}

impl Secret {
    fn info(self) -> KeyInfo {
        KeyInfo {
            id: id_of(&self.secret_ref),
            name: self.name,
            created: self.created,
            secret_type: self.secret_type,
            content_type: self.content_types.and_then(|c| c.default),
        }
    }
}

/// The id at the end of a reference. Only the id is used: the host in it is the service's idea of its own name.
pub fn id_of(reference: &str) -> String {
    let path = reference.trim_end_matches('/');
    path.rsplit('/').next().unwrap_or(path).to_owned()
}

impl Barbican {
    /// A tenant's view of the key manager behind a login.
    pub fn new(http: Http, login: Arc<Login>) -> Self {
        Self { http, login }
    }

    /// Project of the tenant.
    ///
    /// # Errors
    /// As a login.
    pub async fn project_id(&self) -> Result<String, KeyError> {
        Ok(self.login.session(&self.http).await?.project_id.clone())
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, &str)],
        accept: &str,
        body: Option<&serde_json::Value>,
    ) -> Result<Response, KeyError> {
        let session = self.login.session(&self.http).await?;
        let response = self
            .once(&session, method.clone(), path, query, accept, body)
            .await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        let session = self.login.renew(&self.http, &session).await?;
        self.once(&session, method, path, query, accept, body).await
    }

    async fn once(
        &self,
        session: &Session,
        method: Method,
        path: &str,
        query: &[(&str, &str)],
        accept: &str,
        body: Option<&serde_json::Value>,
    ) -> Result<Response, KeyError> {
        let url: Url = join(&session.key_manager, path)?;
        let mut request = self
            .http
            .request(method, url.clone())
            .query(query)
            .header("OpenStack-API-Version", MICROVERSION)
            .header("Accept", accept);
        request = http::with_token(request, &session.token);
        if let Some(body) = body {
            request = request.json(body);
        }
        self.http.send(request, &url).await
    }

    async fn get_json<T: serde::de::DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, &str)],
        action: &'static str,
    ) -> Result<Option<T>, KeyError> {
        let response = self
            .call(Method::GET, path, query, "application/json", None)
            .await?;
        match response.status() {
            StatusCode::OK => Ok(Some(http::json(response).await?)),
            StatusCode::NOT_FOUND => Ok(None),
            _ => Err(http::refusal(response, action).await),
        }
    }

    /// Has something made; any status but those of `done` is a refusal.
    async fn post_json<T: serde::de::DeserializeOwned>(
        &self,
        path: &str,
        body: &serde_json::Value,
        done: &[StatusCode],
        action: &'static str,
    ) -> Result<T, KeyError> {
        let response = self
            .call(Method::POST, path, &[], "application/json", Some(body))
            .await?;
        match done.contains(&response.status()) {
            true => http::json(response).await,
            false => Err(http::refusal(response, action).await),
        }
    }

    /// An order of this name that was begun earlier, by a process that did not live to record its key.
    async fn earlier_order(&self, name: &str) -> Result<Option<String>, KeyError> {
        for page in 0..MAX_PAGES {
            let (limit, offset) = (PAGE.to_string(), (page * PAGE).to_string());
            let query = [("limit", limit.as_str()), ("offset", offset.as_str())];
            // Who may create may not be allowed to list; then the search by the key's name has to do.
            let found: Option<Orders> =
                match self.get_json("v1/orders", &query, "list orders").await {
                    Ok(found) => found,
                    Err(KeyError::Forbidden { .. } | KeyError::Server { status: 405, .. }) => None,
                    Err(e) => return Err(e),
                };
            let Some(found) = found else { return Ok(None) };
            let last = found.orders.len() < PAGE;
            let ours = found.orders.into_iter().find(|o| {
                o.status != "ERROR" && o.meta.as_ref().and_then(|m| m.name.as_deref()) == Some(name)
            });
            if let Some(order) = ours {
                return Ok(Some(id_of(&order.order_ref)));
            }
            if last {
                break;
            }
        }
        Ok(None)
    }

    /// Secrets that are wanted by their names, the oldest first.
    async fn secrets(
        &self,
        filter: &[(&str, &str)],
        most_pages: usize,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<Vec<KeyInfo>, KeyError> {
        let mut found = vec![];
        for page in 0..most_pages {
            let (limit, offset) = (PAGE.to_string(), (page * PAGE).to_string());
            let place = [("limit", limit.as_str()), ("offset", offset.as_str())];
            let list: Secrets = self
                .get_json("v1/secrets", &[filter, &place].concat(), "list secrets")
                .await?
                .unwrap_or(Secrets { secrets: vec![] });
            let last = list.secrets.len() < PAGE;
            found.extend(
                list.secrets
                    .into_iter()
                    .filter(|s| s.name.as_deref().is_some_and(&wanted) && s.status == "ACTIVE")
                    .map(Secret::info),
            );
            if last {
                break;
            }
        }
        found.sort_by(|a, b| (&a.created, &a.id).cmp(&(&b.created, &b.id)));
        Ok(found)
    }

    async fn await_order(&self, id: &str) -> Result<String, KeyError> {
        let deadline = tokio::time::Instant::now() + ORDER_DEADLINE;
        loop {
            let order: Order = self
                .get_json(&format!("v1/orders/{id}"), &[], "read an order")
                .await?
                .ok_or_else(|| KeyError::OrderFailed("the order vanished".into()))?;
            match (order.status.as_str(), order.secret_ref) {
                ("ACTIVE", Some(secret)) => return Ok(id_of(&secret)),
                ("ERROR", _) => {
                    let why = order
                        .error_reason
                        .unwrap_or_else(|| "no reason given".into());
                    self.drop_order(id).await;
                    return if why.to_ascii_lowercase().contains("quota") {
                        Err(KeyError::Quota(why))
                    } else {
                        Err(KeyError::OrderFailed(why.chars().take(240).collect()))
                    };
                }
                _ if tokio::time::Instant::now() > deadline => {
                    return Err(KeyError::OrderFailed(format!(
                        "the order {id} is still {} after {} s",
                        order.status,
                        ORDER_DEADLINE.as_secs()
                    )));
                }
                _ => tokio::time::sleep(ORDER_POLL).await,
            }
        }
    }

    /// An order is of no use once its key is there; under older policies only an administrator may delete it.
    async fn drop_order(&self, id: &str) {
        let path = format!("v1/orders/{id}");
        match self
            .call(Method::DELETE, &path, &[], "application/json", None)
            .await
        {
            Ok(r) if r.status().is_success() || r.status() == StatusCode::NOT_FOUND => {}
            Ok(r) => tracing::debug!(order = id, status = %r.status(), "order not deleted"),
            Err(e) => tracing::debug!(order = id, error = %e, "order not deleted"),
        }
    }
}

impl KeyManager for Barbican {
    async fn find_key(&self, name: &str) -> Result<Option<KeyInfo>, KeyError> {
        Ok(self.find_keys(name).await?.into_iter().next())
    }

    async fn find_keys(&self, name: &str) -> Result<Vec<KeyInfo>, KeyError> {
        // The service compares with SQL LIKE, we exactly.
        self.secrets(&[("name", name)], MAX_PAGES, |n| n == name)
            .await
    }

    async fn find_keys_below(&self, prefix: &str) -> Result<Vec<KeyInfo>, KeyError> {
        // A pattern is understood by some services only.
        self.secrets(&[], ALL_PAGES, |n| n.starts_with(prefix))
            .await
    }

    async fn create_key(&self, name: &str) -> Result<KeyInfo, KeyError> {
        let order = match self.earlier_order(name).await? {
            Some(order) => order,
            None => {
                let body = json!({"type": "key", "meta": {
                    "name": name,
                    "algorithm": "aes",
                    "bit_length": 256,
                    "mode": "cbc",
                    "payload_content_type": "application/octet-stream",
                }});
                let done = [StatusCode::ACCEPTED, StatusCode::CREATED, StatusCode::OK];
                let made: OrderRef = self
                    .post_json("v1/orders", &body, &done, "create a key")
                    .await?;
                id_of(&made.order_ref)
            }
        };
        let id = self.await_order(&order).await?;
        let key = self.get_metadata(&id).await?;
        self.drop_order(&order).await;
        Ok(key)
    }

    async fn store_text(&self, name: &str, text: &str) -> Result<KeyInfo, KeyError> {
        let body = json!({
            "name": name,
            "secret_type": "opaque",
            "payload": text,
            "payload_content_type": "text/plain",
        });
        let done = [StatusCode::CREATED];
        let made: SecretRef = self
            .post_json("v1/secrets", &body, &done, "store a secret")
            .await?;
        self.get_metadata(&id_of(&made.secret_ref)).await
    }

    async fn get_metadata(&self, id: &str) -> Result<KeyInfo, KeyError> {
        let path = format!("v1/secrets/{id}");
        let secret: Option<Secret> = self.get_json(&path, &[], "read the key").await?;
        secret
            .map(Secret::info)
            .ok_or_else(|| KeyError::NotFound(id.to_owned()))
    }

    async fn get_payload(&self, key: &KeyInfo) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        let path = format!("v1/secrets/{}/payload", key.id);
        let accept = key.content_type.as_deref().unwrap_or("*/*");
        let response = self.call(Method::GET, &path, &[], accept, None).await?;
        match response.status() {
            StatusCode::OK => http::body(response).await,
            StatusCode::NOT_FOUND => Err(KeyError::NotFound(key.id.clone())),
            _ => Err(http::refusal(response, "read the key's payload").await),
        }
    }

    async fn delete_key(&self, id: &str) -> Result<(), KeyError> {
        let path = format!("v1/secrets/{id}");
        let response = self
            .call(Method::DELETE, &path, &[], "application/json", None)
            .await?;
        match response.status() {
            s if s.is_success() => Ok(()),
            StatusCode::NOT_FOUND => Ok(()),
            _ => Err(http::refusal(response, "delete the key").await),
        }
    }
}

/// Asks the key manager for its highest version, without a token.
///
/// # Errors
/// [`KeyError::Unreachable`] or [`KeyError::Server`].
pub async fn version(http: &Http, base: &Url) -> Result<Option<String>, KeyError> {
    let request = http
        .request(Method::GET, base.clone())
        .header("OpenStack-API-Version", MICROVERSION)
        .header("Accept", "application/json");
    let response = http.send(request, base).await?;
    // 300 by the protocol.
    if response.status() != StatusCode::MULTIPLE_CHOICES && response.status() != StatusCode::OK {
        return Err(http::refusal(response, "read the version").await);
    }
    let answer: serde_json::Value = http::json(response).await?;
    let versions = answer.get("versions").and_then(|v| v.as_array());
    Ok(versions
        .into_iter()
        .flatten()
        .filter_map(|v| v.get("max_version")?.as_str())
        .next_back()
        .map(str::to_owned))
}
