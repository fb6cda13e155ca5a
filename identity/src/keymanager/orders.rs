//! `/v1/orders`: random keys and pairs of keys, made here and at once.

use std::sync::Arc;

use axum::{
    Router,
    body::Bytes,
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Json},
    routing::get,
};
use rand::Rng;
use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use super::{
    caller::Caller,
    containers::container_ref,
    error::{ApiResult, KeyManagerError},
    fields, keypair,
    page::Page,
    payload,
    quotas::enforce,
    secrets::{created, fill, secret_ref},
};
use crate::{
    app::App,
    http::{Base, Query},
    ids::key_manager_id,
    store::{
        containers::{Container, SecretLink},
        key_quotas::Counted,
        orders::Order,
        secrets::Secret,
    },
    time::{key_manager_time, now_us},
};

const KIND: &str = "data/security/order";
const OCTETS: &str = "application/octet-stream";

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/orders", get(list).post(create))
        .route("/orders/{id}", get(show).delete(delete))
}

/// Whether a key of this kind can be made. An XTS key is two keys, hence double the length; a 512-bit AES
/// key is accepted either way, being today's default of LUKS.
fn can_make(algorithm: &str, bits: i64, mode: Option<&str>) -> bool {
    let algorithm = algorithm.to_ascii_lowercase();
    let symmetric = matches!(algorithm.as_str(), "aes" | "des" | "desede" | "3des")
        || algorithm.starts_with("hmac");
    if algorithm == "aes" && bits == 512 {
        return true;
    }
    let bits = if mode.is_some_and(|mode| mode.eq_ignore_ascii_case("xts")) {
        bits / 2
    } else {
        bits
    };
    symmetric && matches!(bits, 64 | 128 | 192 | 256)
}

/// What is ordered, read and checked.
struct Wanted {
    asymmetric: bool,
    meta: Map<String, Value>,
    name: Option<String>,
    algorithm: String,
    bits: i64,
    mode: Option<String>,
    expiration: Option<i64>,
}

fn wanted(object: &Map<String, Value>, now: i64) -> Result<Wanted, KeyManagerError> {
    let bad = |message: &str| KeyManagerError::BadRequest(message.to_owned());
    let asymmetric = match object.get("type").and_then(Value::as_str) {
        Some("key") => false,
        Some("asymmetric") => true,
        _ => return Err(bad("The attribute type must be key or asymmetric.")),
    };
    let Some(Value::Object(meta)) = object.get("meta") else {
        return Err(bad("The attribute meta must be an object."));
    };
    if meta.contains_key("payload") {
        return Err(bad("An order has no payload: the key is made here."));
    }
    if let Some(kind) = fields::nullable_text(meta, "payload_content_type")?
        && !payload::is_known_type(&kind)
    {
        return Err(bad(payload::KNOWN_TYPES));
    }
    let algorithm = fields::text(meta, "algorithm")?
        .filter(|text| !text.is_empty())
        .ok_or_else(|| bad("The attribute meta.algorithm is required."))?;
    let bits =
        fields::bits(meta)?.ok_or_else(|| bad("The attribute meta.bit_length is required."))?;
    if algorithm.eq_ignore_ascii_case("ec") {
        if !matches!(bits, 256 | 384 | 521) {
            return Err(bad(
                "The attribute meta.bit_length must be 256, 384 or 521 for ec.",
            ));
        }
    } else if bits % 8 != 0 {
        return Err(bad(
            "The attribute meta.bit_length must be a multiple of 8.",
        ));
    }
    Ok(Wanted {
        asymmetric,
        meta: kept_meta(meta),
        name: fields::nullable_text(meta, "name")?.filter(|name| !name.is_empty()),
        algorithm,
        bits,
        mode: fields::text(meta, "mode")?,
        expiration: fields::expiration(meta, now)?,
    })
}

/// What came of an order: secrets, and for a pair the container that holds them.
#[derive(Default)]
struct Made {
    secrets: Vec<Secret>,
    container: Option<(Container, Vec<SecretLink>)>,
}

async fn create(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    headers: HeaderMap,
    bytes: Bytes,
) -> ApiResult {
    caller.may(&app, "orders:post")?;
    let object = fields::object(&headers, &bytes)?;
    let now = now_us();
    let wanted = wanted(&object, now)?;
    // Owner and project come from the token, whatever else the body says.
    let mut order = Order {
        id: key_manager_id(),
        project_id: caller.project_id.clone(),
        creator_id: caller.context.user.id.clone(),
        kind: if wanted.asymmetric {
            "asymmetric"
        } else {
            "key"
        }
        .into(),
        meta: Value::Object(wanted.meta.clone()).to_string(),
        status: "ACTIVE".into(),
        secret_id: None,
        container_id: None,
        error_status: None,
        error_reason: None,
        created: now,
        updated: now,
    };
    let made = if wanted.asymmetric {
        pair(&app, &caller, &wanted, passphrase(&object)?, now).await?
    } else {
        key(&app, &caller, &wanted, now).await?
    };
    match made {
        Ok(Made {
            ref secrets,
            ref container,
        }) => {
            order.container_id = container
                .as_ref()
                .map(|(container, _)| container.id.clone());
            if container.is_none() {
                order.secret_id = secrets.first().map(|secret| secret.id.clone());
            }
        }
        // As the real service does: the order is taken, and then fails.
        Err(ref reason) => {
            order.status = "ERROR".into();
            order.error_status = Some("500".into());
            order.error_reason = Some(reason.clone());
        }
    }
    let made = made.unwrap_or_default();
    let mut change = app.store.change_keys().await?;
    enforce(&mut change, Counted::Orders, &caller.project_id, now).await?;
    for secret in &made.secrets {
        change.insert_secret(secret).await?;
    }
    if let Some((container, links)) = &made.container {
        change.insert_container(container, links).await?;
    }
    change.insert_order(&order).await?;
    app.store.commit(change).await?;
    caller.audit("create", KIND, &order.id);
    for secret in &made.secrets {
        caller.audit("create", super::secrets::KIND, &secret.id);
    }
    if let Some((container, _)) = &made.container {
        caller.audit("create", super::containers::KIND, &container.id);
    }
    Ok(created(
        StatusCode::ACCEPTED,
        "order_ref",
        &order_ref(&base, &order.id),
    ))
}

fn new_secret(caller: &Caller, wanted: &Wanted, kind: &str, now: i64) -> Secret {
    Secret {
        id: key_manager_id(),
        project_id: caller.project_id.clone(),
        creator_id: caller.context.user.id.clone(),
        name: wanted.name.clone(),
        secret_type: kind.into(),
        algorithm: Some(wanted.algorithm.clone()),
        bit_length: Some(wanted.bits),
        mode: wanted.mode.clone(),
        expiration: wanted.expiration,
        content_type: None,
        key_id: None,
        sealed: None,
        key_slot: None,
        new_key: None,
        created: now,
        updated: now,
    }
}

/// A random key, or why there is none.
async fn key(
    app: &App,
    caller: &Caller,
    wanted: &Wanted,
    now: i64,
) -> Result<Result<Made, String>, KeyManagerError> {
    if !can_make(&wanted.algorithm, wanted.bits, wanted.mode.as_deref()) {
        return Ok(Err(format!(
            "A key of algorithm {} with {} bits cannot be made; aes with 128, 192, 256 or 512 bits can.",
            wanted.algorithm, wanted.bits
        )));
    }
    let mut bytes = Zeroizing::new(vec![0; usize::try_from(wanted.bits / 8).unwrap_or(0)]);
    rand::rng().fill_bytes(&mut bytes);
    let mut secret = new_secret(caller, wanted, "symmetric", now);
    fill(app, &mut secret, OCTETS.into(), &bytes).await?;
    Ok(Ok(Made {
        secrets: vec![secret],
        container: None,
    }))
}

/// The passphrase for a private key. It is part of what was ordered, and kept as a secret only.
fn passphrase(object: &Map<String, Value>) -> Result<Option<Zeroizing<String>>, KeyManagerError> {
    match object.get("meta").and_then(Value::as_object) {
        Some(meta) => Ok(fields::nullable_text(meta, "passphrase")?
            .filter(|text| !text.is_empty())
            .map(Zeroizing::new)),
        None => Ok(None),
    }
}

/// A pair of keys in a container, or why there is none.
async fn pair(
    app: &App,
    caller: &Caller,
    wanted: &Wanted,
    passphrase: Option<Zeroizing<String>>,
    now: i64,
) -> Result<Result<Made, String>, KeyManagerError> {
    if !keypair::can_make(&wanted.algorithm, wanted.bits) {
        return Ok(Err(format!(
            "A key pair of algorithm {} with {} bits cannot be made; rsa with 1024, 2048 or 4096 bits can.",
            wanted.algorithm, wanted.bits
        )));
    }
    let bits = usize::try_from(wanted.bits).unwrap_or_default();
    let Some(keys) = keypair::make(bits, passphrase.clone()).await else {
        return Ok(Err("The key pair could not be made.".into()));
    };
    let mut parts = vec![
        (
            "private_key",
            "private",
            Zeroizing::new(keys.private.as_bytes().to_vec()),
        ),
        (
            "public_key",
            "public",
            Zeroizing::new(keys.public.into_bytes()),
        ),
    ];
    if let Some(text) = passphrase {
        let bytes = Zeroizing::new(text.as_bytes().to_vec());
        parts.push(("private_key_passphrase", "passphrase", bytes));
    }
    let (mut secrets, mut links) = (Vec::new(), Vec::new());
    for (name, kind, bytes) in parts {
        let mut secret = new_secret(caller, wanted, kind, now);
        fill(app, &mut secret, OCTETS.into(), &bytes).await?;
        links.push(SecretLink {
            secret_id: secret.id.clone(),
            name: Some(name.into()),
        });
        secrets.push(secret);
    }
    let container = Container {
        id: key_manager_id(),
        project_id: caller.project_id.clone(),
        creator_id: caller.context.user.id.clone(),
        name: wanted.name.clone(),
        kind: wanted.algorithm.to_ascii_lowercase(),
        created: now,
        updated: now,
    };
    Ok(Ok(Made {
        secrets,
        container: Some((container, links)),
    }))
}

/// The attributes of an order that are kept and shown.
fn kept_meta(meta: &Map<String, Value>) -> Map<String, Value> {
    let mut kept = Map::new();
    for name in [
        "name",
        "algorithm",
        "bit_length",
        "mode",
        "payload_content_type",
        "expiration",
    ] {
        match meta.get(name) {
            Some(value) => drop(kept.insert(name.into(), value.clone())),
            None if matches!(name, "name" | "expiration") => {
                drop(kept.insert(name.into(), Value::Null))
            }
            None => {}
        }
    }
    kept
}

fn order_ref(base: &Base, id: &str) -> String {
    format!("{}/orders/{id}", base.key_manager())
}

fn describe(base: &Base, order: &Order) -> Value {
    let mut object = json!({
        "created": key_manager_time(order.created), "updated": key_manager_time(order.updated),
        "status": order.status, "type": order.kind, "meta": crate::store::json_object(&order.meta),
        "creator_id": order.creator_id, "sub_status": "Unknown", "sub_status_message": "Unknown",
        "order_ref": order_ref(base, &order.id),
    });
    if let Some(container) = &order.container_id {
        object["container_ref"] = container_ref(base, container).into();
    }
    if let Some(secret) = &order.secret_id {
        object["secret_ref"] = secret_ref(base, secret).into();
    }
    if let (Some(status), Some(reason)) = (&order.error_status, &order.error_reason) {
        object["error_status_code"] = status.as_str().into();
        object["error_reason"] = reason.as_str().into();
    }
    object
}

async fn load(
    app: &App,
    caller: &Caller,
    rule: &'static str,
    id: &str,
) -> Result<Order, KeyManagerError> {
    let order = app
        .store
        .order(id, &caller.project_id)
        .await?
        .ok_or(KeyManagerError::NotFound("order"))?;
    caller.may_order(app, rule, id, &order.project_id)?;
    Ok(order)
}

async fn show(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    Path(id): Path<String>,
) -> ApiResult {
    let order = load(&app, &caller, "order:get", &id).await?;
    Ok(Json(describe(&base, &order)).into_response())
}

async fn list(State(app): State<Arc<App>>, caller: Caller, base: Base, query: Query) -> ApiResult {
    caller.may(&app, "orders:get")?;
    let page = Page::of(&query);
    let (orders, total) = app
        .store
        .orders(
            &caller.project_id,
            query.non_empty("meta"),
            page.limit,
            page.offset,
        )
        .await?;
    let items = orders.iter().map(|order| describe(&base, order)).collect();
    Ok(page.answer(&base, &query, "orders", items, total))
}

async fn delete(State(app): State<Arc<App>>, caller: Caller, Path(id): Path<String>) -> ApiResult {
    load(&app, &caller, "order:delete", &id).await?;
    let mut change = app.store.change_keys().await?;
    change.delete_order(&id).await?;
    app.store.commit(change).await?;
    caller.audit("delete", KIND, &id);
    Ok(StatusCode::NO_CONTENT.into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_sizes() {
        for (algorithm, bits, mode, expected) in [
            ("aes", 256, None, true),
            ("AES", 256, Some("cbc"), true),
            ("aes", 512, Some("xts"), true),
            ("aes", 512, None, true),
            ("aes", 256, Some("xts"), true),
            ("aes", 192, Some("xts"), false),
            ("aes", 1024, None, false),
            ("hmacsha256", 256, None, true),
            ("rsa", 2048, None, false),
        ] {
            assert_eq!(
                can_make(algorithm, bits, mode),
                expected,
                "{algorithm} {bits} {mode:?}"
            );
        }
    }
}
