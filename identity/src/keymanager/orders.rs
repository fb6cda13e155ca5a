//! `/v1/orders`: random keys, made here and at once.

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
    error::{ApiResult, KeyManagerError},
    fields,
    secrets::{Page, created, fill, secret_ref},
};
use crate::{
    app::App,
    http::{Base, Query},
    ids::key_manager_id,
    store::{orders::Order, secrets::Secret},
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

async fn create(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    headers: HeaderMap,
    bytes: Bytes,
) -> ApiResult {
    caller.may(&app, "orders:post")?;
    let object = fields::object(&headers, &bytes)?;
    let bad = |message: &str| KeyManagerError::BadRequest(message.to_owned());
    match fields::text(&object, "type")?
        .map(|kind| kind.to_ascii_lowercase())
        .as_deref()
    {
        Some("key") => {}
        Some("asymmetric") => {
            return Err(bad(
                "Orders for key pairs are not served yet; make the pair yourself and store it.",
            ));
        }
        _ => return Err(bad("The attribute type must be key.")),
    }
    let Some(Value::Object(meta)) = object.get("meta") else {
        return Err(bad("The attribute meta must be an object."));
    };
    if meta.contains_key("payload") {
        return Err(bad("An order has no payload: the key is made here."));
    }
    let now = now_us();
    let algorithm = fields::text(meta, "algorithm")?
        .filter(|text| !text.is_empty())
        .ok_or_else(|| bad("The attribute meta.algorithm is required."))?;
    let bits =
        fields::bits(meta)?.ok_or_else(|| bad("The attribute meta.bit_length is required."))?;
    if bits % 8 != 0 {
        return Err(bad(
            "The attribute meta.bit_length must be a multiple of 8.",
        ));
    }
    let mode = fields::text(meta, "mode")?;
    let name = fields::text(meta, "name")?.filter(|name| !name.is_empty());
    let expiration = fields::expiration(meta, now)?;
    // Owner and project come from the token, whatever else the body says.
    let mut order = Order {
        id: key_manager_id(),
        project_id: caller.project_id.clone(),
        creator_id: caller.context.user.id.clone(),
        kind: "key".into(),
        meta: Value::Object(kept_meta(meta)).to_string(),
        status: "ACTIVE".into(),
        secret_id: None,
        error_status: None,
        error_reason: None,
        created: now,
        updated: now,
    };
    let mut secret = None;
    if can_make(&algorithm, bits, mode.as_deref()) {
        let mut made = Secret {
            id: key_manager_id(),
            project_id: caller.project_id.clone(),
            creator_id: caller.context.user.id.clone(),
            name,
            secret_type: "symmetric".into(),
            algorithm: Some(algorithm),
            bit_length: Some(bits),
            mode,
            expiration,
            content_type: None,
            key_id: None,
            sealed: None,
            created: now,
            updated: now,
        };
        let mut key = Zeroizing::new(vec![0; usize::try_from(bits / 8).unwrap_or(0)]);
        rand::rng().fill_bytes(&mut key);
        fill(&app, &mut made, OCTETS.into(), &key).await?;
        order.secret_id = Some(made.id.clone());
        secret = Some(made);
    } else {
        // As the real service does: the order is taken, and then fails.
        order.status = "ERROR".into();
        order.error_status = Some("500".into());
        order.error_reason = Some(format!(
            "A key of algorithm {algorithm} with {bits} bits cannot be made; aes with 128, 192, 256 or 512 bits can."
        ));
    }
    let mut change = app.store.change_keys().await?;
    if let Some(secret) = &secret {
        change.insert_secret(secret).await?;
    }
    change.insert_order(&order).await?;
    app.store.commit(change).await?;
    caller.audit("create", KIND, &order.id);
    if let Some(secret) = &secret {
        caller.audit("create", super::secrets::KIND, &secret.id);
    }
    Ok(created(
        StatusCode::ACCEPTED,
        "order_ref",
        &order_ref(&base, &order.id),
    ))
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
        .orders(&caller.project_id, page.limit, page.offset)
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
