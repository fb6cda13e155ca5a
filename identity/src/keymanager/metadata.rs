//! `/v1/secrets/{id}/metadata`: pairs of key and value that users write on their secrets.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Router,
    body::Bytes,
    extract::{Path, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Json},
    routing::get,
};
use serde_json::{Value, json};

use super::{
    caller::Caller,
    error::{ApiResult, KeyManagerError},
    fields,
    secrets::{KIND, load, secret_ref},
};
use crate::{app::App, http::Base, store::StoreError};

const MAX_CHARS: usize = 255;

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/secrets/{id}/metadata", get(show).put(replace).post(add))
        .route(
            "/secrets/{id}/metadata/{key}",
            get(show_one).put(update_one).delete(delete_one),
        )
}

fn bad(message: &str) -> KeyManagerError {
    KeyManagerError::BadRequest(message.to_owned())
}

/// The key in lower case, if it can be part of a URL.
fn checked_key(key: &str) -> Result<String, KeyManagerError> {
    let plain = key
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if !plain {
        return Err(bad(
            "A key of metadata consists of letters, digits, _ and -.",
        ));
    }
    Ok(key.to_ascii_lowercase())
}

/// One pair in a body, and nothing else.
fn pair(headers: &HeaderMap, bytes: &[u8]) -> Result<(String, String), KeyManagerError> {
    let object = fields::object(headers, bytes)?;
    if object.keys().any(|name| name != "key" && name != "value") {
        return Err(bad("The body holds key and value and nothing else."));
    }
    let text = |name: &str| match object.get(name) {
        Some(Value::String(text)) if text.chars().count() <= MAX_CHARS => Ok(text.clone()),
        _ => Err(bad(
            "The attributes key and value are required and must be strings of at most 255 characters.",
        )),
    };
    Ok((checked_key(&text("key")?)?, text("value")?))
}

async fn show(State(app): State<Arc<App>>, caller: Caller, Path(id): Path<String>) -> ApiResult {
    let (secret, acl) = load(&app, &id).await?;
    caller.may_secret(&app, "secret_meta:get", &secret, acl.as_ref())?;
    let pairs = app.store.secret_metadata(&id).await?;
    Ok(Json(json!({ "metadata": pairs })).into_response())
}

async fn replace(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    headers: HeaderMap,
    Path(id): Path<String>,
    bytes: Bytes,
) -> ApiResult {
    let (secret, acl) = load(&app, &id).await?;
    caller.may_secret(&app, "secret_meta:put", &secret, acl.as_ref())?;
    let object = fields::object(&headers, &bytes)?;
    let Some(Value::Object(sent)) = object.get("metadata") else {
        return Err(bad("The body must hold an object named metadata."));
    };
    let mut pairs = BTreeMap::new();
    for (key, value) in sent {
        let Value::String(value) = value else {
            return Err(bad("A value of metadata must be a string."));
        };
        pairs.insert(checked_key(key)?, value.clone());
    }
    let mut change = app.store.change_keys().await?;
    change.replace_secret_metadata(&id, &pairs).await?;
    app.store.commit(change).await?;
    caller.audit("update", KIND, &id);
    let url = format!("{}/metadata", secret_ref(&base, &id));
    Ok((StatusCode::CREATED, Json(json!({ "metadata_ref": url }))).into_response())
}

async fn add(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    headers: HeaderMap,
    Path(id): Path<String>,
    bytes: Bytes,
) -> ApiResult {
    let (secret, acl) = load(&app, &id).await?;
    caller.may_secret(&app, "secret_meta:post", &secret, acl.as_ref())?;
    let (key, value) = pair(&headers, &bytes)?;
    let mut change = app.store.change_keys().await?;
    match change.insert_secret_metadatum(&id, &key, &value).await {
        Err(StoreError::Duplicate) => {
            return Err(KeyManagerError::Conflict(
                "The secret has metadata under this key; use PUT to change it.".into(),
            ));
        }
        done => done?,
    }
    app.store.commit(change).await?;
    caller.audit("update", KIND, &id);
    let url = format!("{}/metadata/{key}", secret_ref(&base, &id));
    let body = Json(json!({ "key": key, "value": value }));
    Ok((StatusCode::CREATED, [(header::LOCATION, url)], body).into_response())
}

async fn show_one(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((id, key)): Path<(String, String)>,
) -> ApiResult {
    let (secret, acl) = load(&app, &id).await?;
    caller.may_secret(&app, "secret_meta:get", &secret, acl.as_ref())?;
    let pairs = app.store.secret_metadata(&id).await?;
    let value = pairs
        .get(&key)
        .ok_or(KeyManagerError::NotFound("metadata of the secret"))?;
    Ok(Json(json!({ "key": key, "value": value })).into_response())
}

async fn update_one(
    State(app): State<Arc<App>>,
    caller: Caller,
    headers: HeaderMap,
    Path((id, key)): Path<(String, String)>,
    bytes: Bytes,
) -> ApiResult {
    let (secret, acl) = load(&app, &id).await?;
    caller.may_secret(&app, "secret_meta:put", &secret, acl.as_ref())?;
    let (sent, value) = pair(&headers, &bytes)?;
    if !app.store.secret_metadata(&id).await?.contains_key(&key) {
        return Err(KeyManagerError::NotFound("metadata of the secret"));
    }
    if sent != key {
        return Err(KeyManagerError::Conflict(
            "The key in the body is another one than in the URL.".into(),
        ));
    }
    let mut change = app.store.change_keys().await?;
    if !change.update_secret_metadatum(&id, &key, &value).await? {
        return Err(KeyManagerError::NotFound("metadata of the secret"));
    }
    app.store.commit(change).await?;
    caller.audit("update", KIND, &id);
    Ok(Json(json!({ "key": key, "value": value })).into_response())
}

/// Deleting what is not there is no error in this protocol.
async fn delete_one(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((id, key)): Path<(String, String)>,
) -> ApiResult {
    let (secret, acl) = load(&app, &id).await?;
    caller.may_secret(&app, "secret_meta:delete", &secret, acl.as_ref())?;
    let mut change = app.store.change_keys().await?;
    change.delete_secret_metadatum(&id, &key).await?;
    app.store.commit(change).await?;
    caller.audit("update", KIND, &id);
    Ok(StatusCode::NO_CONTENT.into_response())
}
