//! The embedded identity/keys service, killed (SIGKILL) again and again while clients write: what was answered is there, what
//! was deleted is not, and nothing half-written is seen.
//!
//! When the blows come is the same in every run; what they hit is not, because the machine is not.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::identity_http::Http;
use crate::identity_service::{IdentityService, Options};
use crate::workdir::WorkDir;

/// Writers beside each other.
const WRITERS: u64 = 4;
/// First state of the generator of moments.
const SEED: u64 = 20_261_128;
/// Rounds after which everything is looked at once more.
const LONG: u32 = 100;

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
struct Acknowledged {
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
    fn add(&mut self, other: Self) {
        self.users.extend(other.users);
        self.secrets.extend(other.secrets);
        self.deleted.extend(other.deleted);
        self.orders.extend(other.orders);
        self.edits += other.edits;
    }

    fn held(&self) -> Held {
        Held {
            users: self.users.len(),
            edits: self.edits,
            secrets: self.secrets.len(),
            deletions: self.deleted.len(),
            orders: self.orders.len(),
        }
    }
}

/// Kills the service `rounds` times and tells how it goes.
///
/// # Errors
/// At the first thing that is not as it must be.
pub fn run(rounds: u32, tell: impl Fn(&str)) -> Result<Held> {
    let work = WorkDir::new("identity-killed")?;
    let options = Options {
        // One token for the whole of it.
        serve_args: vec!["--token-lifetime".into(), "86400".into()],
        ..Options::default()
    };
    let mut service = IdentityService::start(&work.dir("identity")?, options)?;
    let runtime = tokio::runtime::Runtime::new()?;
    let http = runtime.block_on(Http::login(&service))?;
    let mut all = Acknowledged::default();
    let mut seed = SEED;
    for round in 1..=rounds {
        let writers: Vec<_> = (0_u64..WRITERS)
            .map(|writer| {
                runtime.spawn(write_until_gone(
                    http.clone(),
                    format!("r{round}-w{writer}"),
                    writer,
                ))
            })
            .collect();
        std::thread::sleep(moment(&mut seed));
        service.kill()?;
        let mut done = Acknowledged::default();
        for writer in writers {
            done.add(runtime.block_on(writer)?);
        }
        service.launch()?;
        // Those of this round; all of them once more from time to time, and at the end.
        runtime
            .block_on(verify(&http, &done))
            .with_context(|| format!("kill {round}"))?;
        all.add(done);
        if round % LONG == 0 && round != rounds {
            runtime
                .block_on(verify(&http, &all))
                .with_context(|| format!("after kill {round}"))?;
            tell(&format!("{round} kills: {:?}", all.held()));
        }
    }
    runtime.block_on(verify(&http, &all))?;
    tell(&format!(
        "{rounds} kills, and all of it holds: {:?}",
        all.held()
    ));
    runtime.block_on(nothing_half_written(&http))?;
    service.stop()?;
    work.passed()?;
    Ok(all.held())
}

/// How long the writers have until the next blow.
fn moment(state: &mut u64) -> Duration {
    *state = state
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    Duration::from_micros(20_000 + (*state >> 33) % 150_000)
}

/// Writes until the service is gone: each time a user, an edit of it, and a secret; every third secret is deleted again, and
/// every third time a key is ordered. `first` is where this writer begins, so that also on a slow machine all of it is done.
async fn write_until_gone(http: Http, label: String, first: u64) -> Acknowledged {
    let mut done = Acknowledged::default();
    for number in 0_u64.. {
        let name = format!("{label}-{number}");
        if write(&http, &name, (first + number) % 3, &mut done)
            .await
            .is_none()
        {
            break;
        }
    }
    done
}

/// `None` at the first request that was not answered with success: what it asked for may be there or not.
async fn write(http: &Http, name: &str, turn: u64, done: &mut Acknowledged) -> Option<()> {
    let made = |path, status, body| async move {
        let answer = http.json(Method::POST, path, Some(&body)).await;
        let (got, body) = answer.ok()?;
        (got == status).then_some(body)
    };
    let below = |path: &str, url: &Value| {
        let id = url.as_str().unwrap_or_default().rsplit('/').next();
        format!("{path}/{}", id.unwrap_or_default())
    };
    let user =
        json!({"user": {"name": name, "domain_id": "default", "description": text("made", name)}});
    let user = made("/identity/v3/users", StatusCode::CREATED, user).await?;
    let id = user["user"]["id"].as_str()?.to_owned();
    done.users.insert(id.clone(), text("made", name));

    let edit =
        json!({"user": {"description": text("edited", name), "email": text("edited", name)}});
    // Asked for, not answered: both are right, so nothing is said of this user.
    done.users.remove(&id);
    let path = format!("/identity/v3/users/{id}");
    let answer = http.json(Method::PATCH, &path, Some(&edit)).await;
    if !matches!(answer, Ok((StatusCode::OK, _))) {
        return None;
    }
    done.users.insert(id, text("edited", name));
    done.edits += 1;

    let payload = text("payload of", name);
    let secret = json!({"name": name, "payload": payload, "payload_content_type": "text/plain"});
    let secrets = "/key-manager/v1/secrets";
    let secret = made(secrets, StatusCode::CREATED, secret).await?;
    let path = below(secrets, &secret["secret_ref"]);
    match turn {
        2 => match http.send(Method::DELETE, &path, None).await {
            Ok((StatusCode::NO_CONTENT, _)) => done.deleted.push(path),
            _ => return None,
        },
        _ => done.secrets.push((path, payload)),
    }
    if turn == 1 {
        let meta = json!({"name": "ordered", "algorithm": "aes", "bit_length": 256, "mode": "cbc",
            "payload_content_type": "application/octet-stream"});
        let order = json!({"type": "key", "meta": meta});
        let orders = "/key-manager/v1/orders";
        let order = made(orders, StatusCode::ACCEPTED, order).await?;
        done.orders.push(below(orders, &order["order_ref"]));
    }
    Some(())
}

fn text(what: &str, name: &str) -> String {
    format!("{what} {name}")
}

async fn verify(http: &Http, all: &Acknowledged) -> Result<()> {
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
async fn nothing_half_written(http: &Http) -> Result<()> {
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
