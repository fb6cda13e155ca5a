//! Changes of an identity/keys service that is killed under its clients, and the question whether they hold: what was answered
//! with success is there, what was deleted is not, and nothing half-written is seen.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::identity_http::Http;

/// First state of the generator of moments.
pub(crate) const SEED: u64 = 20_261_128;

/// How much was answered with success over all rounds, and held.
#[derive(Debug, Clone, Copy, Default)]
pub struct Held {
    /// Users that were made.
    pub users: usize,
    /// Edits of users.
    pub edits: usize,
    /// Secrets that were stored.
    pub secrets: usize,
    /// Secrets that were deleted again.
    pub deletions: usize,
    /// Keys that were ordered.
    pub orders: usize,
}

/// What was answered with success, and must be so ever after.
#[derive(Default)]
pub(crate) struct Acknowledged {
    /// A user's id, and what its last answered edit says. Nobody else edits it.
    users: BTreeMap<String, String>,
    /// Path of a secret and its payload.
    secrets: Vec<(String, String)>,
    /// Paths of secrets that were deleted.
    deleted: Vec<String>,
    /// Paths of orders.
    orders: Vec<String>,
    edits: usize,
}

impl Acknowledged {
    /// Takes in what another writer was answered.
    pub(crate) fn add(&mut self, other: Self) {
        self.users.extend(other.users);
        self.secrets.extend(other.secrets);
        self.deleted.extend(other.deleted);
        self.orders.extend(other.orders);
        self.edits += other.edits;
    }

    /// How much it is.
    pub(crate) fn held(&self) -> Held {
        Held {
            users: self.users.len(),
            edits: self.edits,
            secrets: self.secrets.len(),
            deletions: self.deleted.len(),
            orders: self.orders.len(),
        }
    }
}

/// How long the writers have until the next blow.
pub(crate) fn moment(state: &mut u64) -> Duration {
    *state = state
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    Duration::from_micros(20_000 + (*state >> 33) % 150_000)
}

/// Whether a request was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reply {
    /// With success.
    Success,
    /// Not at all: what it asked for may be there or not.
    None,
    /// With 503: the database is away, or the transaction was lost; nothing of it is there.
    Unavailable,
}

/// The body of an answer with this status. Another status than this and 503 is an error.
fn expect(
    answer: Result<(StatusCode, Value)>,
    wanted: StatusCode,
    what: &str,
) -> Result<Result<Value, Reply>> {
    match answer {
        Ok((status, body)) if status == wanted => Ok(Ok(body)),
        Ok((StatusCode::SERVICE_UNAVAILABLE, _)) => Ok(Err(Reply::Unavailable)),
        Ok((status, body)) => bail!("{what}: answered with {status} {body}"),
        Err(_) => Ok(Err(Reply::None)),
    }
}

/// Path below `path` of the object that a URL names.
pub(crate) fn below(path: &str, url: &Value) -> String {
    let id = url.as_str().unwrap_or_default().rsplit('/').next();
    format!("{path}/{}", id.unwrap_or_default())
}

/// Kinds of [`write`], a bit each.
pub(crate) const ALL_KINDS: u8 = 0b111;

/// Writes until a request is not answered; or, if the service is to be there again, until it is `over`, and then 503 is taken. `first` is
/// the kind of write that this writer begins with; `kinds` gets the bit of each that was answered whole.
///
/// # Errors
/// At an answer that may not be.
pub(crate) async fn write_until_gone(
    http: Http,
    label: String,
    first: u64,
    over: Option<Arc<AtomicBool>>,
    kinds: Arc<AtomicU8>,
) -> Result<Acknowledged> {
    let mut done = Acknowledged::default();
    for number in 0_u64.. {
        if over.as_ref().is_some_and(|o| o.load(Ordering::Acquire)) {
            break;
        }
        let name = format!("{label}-{number}");
        let kind = (first + number) % 3;
        match write(&http, &name, kind, &mut done).await? {
            Reply::Success => {
                kinds.fetch_or(1 << kind, Ordering::Relaxed);
            }
            Reply::None if over.is_none() => break,
            Reply::Unavailable if over.is_some() => {}
            reply => bail!("the service that is killed or stopped: {reply:?}"),
        }
    }
    Ok(done)
}

/// Writes a user, an edit of it, and a secret, which is deleted again in turn 2; in turn 1 a key is ordered too.
///
/// # Errors
/// At an answer that is neither success nor 503.
pub(crate) async fn write(
    http: &Http,
    name: &str,
    turn: u64,
    done: &mut Acknowledged,
) -> Result<Reply> {
    let user =
        json!({"user": {"name": name, "domain_id": "default", "description": text("made", name)}});
    let answer = http
        .json(Method::POST, "/identity/v3/users", Some(&user))
        .await;
    let user = match expect(answer, StatusCode::CREATED, "make a user")? {
        Ok(user) => user,
        Err(reply) => return Ok(reply),
    };
    let id = user["user"]["id"].as_str().context("no id")?.to_owned();

    let edit =
        json!({"user": {"description": text("edited", name), "email": text("edited", name)}});
    // Asked for, not answered: both are right, so nothing is said of this user before.
    let path = format!("/identity/v3/users/{id}");
    let answer = http.json(Method::PATCH, &path, Some(&edit)).await;
    if let Err(reply) = expect(answer, StatusCode::OK, "edit a user")? {
        return Ok(reply);
    }
    done.users.insert(id, text("edited", name));
    done.edits += 1;

    let payload = text("payload of", name);
    let secret = json!({"name": name, "payload": payload, "payload_content_type": "text/plain"});
    let secrets = "/key-manager/v1/secrets";
    let answer = http.json(Method::POST, secrets, Some(&secret)).await;
    let secret = match expect(answer, StatusCode::CREATED, "store a secret")? {
        Ok(secret) => secret,
        Err(reply) => return Ok(reply),
    };
    let path = below(secrets, &secret["secret_ref"]);
    if turn == 2 {
        let answer = http.json(Method::DELETE, &path, None).await;
        if let Err(reply) = expect(answer, StatusCode::NO_CONTENT, "delete a secret")? {
            return Ok(reply);
        }
        done.deleted.push(path);
    } else {
        done.secrets.push((path, payload));
    }
    if turn == 1 {
        let meta = json!({"name": "ordered", "algorithm": "aes", "bit_length": 256, "mode": "cbc",
            "payload_content_type": "application/octet-stream"});
        let order = json!({"type": "key", "meta": meta});
        let orders = "/key-manager/v1/orders";
        let answer = http.json(Method::POST, orders, Some(&order)).await;
        let order = match expect(answer, StatusCode::ACCEPTED, "order a key")? {
            Ok(order) => order,
            Err(reply) => return Ok(reply),
        };
        done.orders.push(below(orders, &order["order_ref"]));
    }
    Ok(Reply::Success)
}

fn text(what: &str, name: &str) -> String {
    format!("{what} {name}")
}

/// Whether all of it is as it was answered.
///
/// # Errors
/// At the first that is not.
pub(crate) async fn verify(http: &Http, all: &Acknowledged) -> Result<()> {
    for (id, description) in &all.users {
        let path = format!("/identity/v3/users/{id}");
        let (status, body) = http.json(Method::GET, &path, None).await?;
        ensure!(
            status == StatusCode::OK && body["user"]["description"] == description.as_str(),
            "user {id} was acknowledged as {description:?}, and is {status} {body}"
        );
        // Both fields of an edit, or neither.
        let edited = description.starts_with("edited");
        ensure!(
            edited == (body["user"]["email"] == description.as_str()),
            "half an edit: {body}"
        );
    }
    for (path, payload) in &all.secrets {
        let (status, bytes) = http
            .send(Method::GET, &format!("{path}/payload"), None)
            .await?;
        ensure!(
            status == StatusCode::OK && bytes == payload.as_bytes(),
            "{path} was acknowledged, and is {status}"
        );
    }
    for path in &all.deleted {
        let (status, _) = http.send(Method::GET, path, None).await?;
        ensure!(
            status == StatusCode::NOT_FOUND,
            "{path} was deleted, and is {status}"
        );
    }
    for path in &all.orders {
        let (status, order) = http.json(Method::GET, path, None).await?;
        ensure!(
            status == StatusCode::OK && order["status"] == "ACTIVE",
            "{path} was acknowledged, and is {status} {order}"
        );
        let url = order["secret_ref"].as_str().context("no key")?;
        let key = format!(
            "/key-manager/v1/secrets/{}/payload",
            url.rsplit('/').next().unwrap_or_default()
        );
        let (status, bytes) = http.send(Method::GET, &key, None).await?;
        ensure!(
            status == StatusCode::OK && bytes.len() == 32,
            "{path} has no whole key: {status}, {} bytes",
            bytes.len()
        );
    }
    Ok(())
}

/// Every secret that the list shows has its whole payload, whether it was acknowledged or not.
///
/// # Errors
/// At the first that has not.
pub(crate) async fn nothing_half_written(http: &Http) -> Result<()> {
    let mut seen = 0;
    loop {
        let (status, page) = http
            .json(
                Method::GET,
                &format!("/key-manager/v1/secrets?limit=100&offset={seen}"),
                None,
            )
            .await?;
        ensure!(status == StatusCode::OK, "{status}");
        let list = page["secrets"].as_array().cloned().unwrap_or_default();
        if list.is_empty() {
            ensure!(seen > 0, "no secrets at all");
            return Ok(());
        }
        seen += list.len();
        for secret in list {
            let url = secret["secret_ref"].as_str().context("no reference")?;
            let path = format!(
                "/key-manager/v1/secrets/{}/payload",
                url.rsplit('/').next().unwrap_or_default()
            );
            let (status, bytes) = http.send(Method::GET, &path, None).await?;
            let name = secret["name"].as_str().unwrap_or_default();
            let whole = match name {
                "ordered" => bytes.len() == 32,
                _ => bytes == text("payload of", name).as_bytes(),
            };
            ensure!(status == StatusCode::OK && whole, "{path}: {status}");
        }
    }
}
