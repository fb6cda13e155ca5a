//! `/v1/secret-stores` and `/v1/transport_keys`. There is one store, the database sealed by the
//! key-encryption key, and no plug-in that would unwrap what was wrapped with a transport key.

use std::sync::Arc;

use axum::{
    Router,
    body::Bytes,
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Json},
    routing::{get, post},
};
use serde_json::{Value, json};

use super::{
    caller::Caller,
    error::{ApiResult, KeyManagerError},
    fields,
    page::Page,
    secrets::created,
};
use crate::{
    app::App,
    http::{Base, Query},
    ids::key_manager_id,
    store::key_stores::TransportKey,
    time::{key_manager_time, now_us},
};

const KIND: &str = "data/security/transport-key";
/// Id of the one store, the same in every installation.
const STORE: &str = "5c0ff9a7-2d9b-4f51-9f0c-6a2d5c1b7e10";
/// Longest transport key, in characters: an RSA key of 16384 bits in PEM is half of it.
const MAX_TRANSPORT_KEY: usize = 8_192;

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/secret-stores", get(list))
        .route("/secret-stores/global-default", get(global_default))
        .route("/secret-stores/preferred", get(preferred))
        .route("/secret-stores/{id}", get(show))
        .route("/secret-stores/{id}/preferred", post(prefer).delete(forget))
        .route(
            "/transport_keys",
            get(transport_keys).post(add_transport_key),
        )
        .route(
            "/transport_keys/{id}",
            get(transport_key).delete(delete_transport_key),
        )
}

fn described(base: &Base) -> Value {
    // The store is as old as the protocol's first version; nobody sets it up.
    let time = key_manager_time(0);
    json!({
        "name": "Sealed database", "status": "ACTIVE", "global_default": true, "created": time, "updated": time,
        "secret_store_plugin": "store_crypto", "crypto_plugin": "aes_gcm",
        "secret_store_ref": format!("{}/secret-stores/{STORE}", base.key_manager()),
    })
}

fn known(id: &str) -> Result<(), KeyManagerError> {
    if id == STORE {
        return Ok(());
    }
    Err(KeyManagerError::NotFound("secret store"))
}

async fn list(State(app): State<Arc<App>>, caller: Caller, base: Base) -> ApiResult {
    caller.may(&app, "secretstores:get")?;
    Ok(Json(json!({"secret_stores": [described(&base)]})).into_response())
}

async fn global_default(State(app): State<Arc<App>>, caller: Caller, base: Base) -> ApiResult {
    caller.may(&app, "secretstores:get_global_default")?;
    Ok(Json(described(&base)).into_response())
}

async fn preferred(State(app): State<Arc<App>>, caller: Caller, base: Base) -> ApiResult {
    caller.may(&app, "secretstores:get_preferred")?;
    let chosen = app.store.preferred_secret_store(&caller.project_id).await?;
    known(chosen.as_deref().unwrap_or_default())
        .map_err(|_| KeyManagerError::NotFound("preferred secret store of this project"))?;
    Ok(Json(described(&base)).into_response())
}

async fn show(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    Path(id): Path<String>,
) -> ApiResult {
    known(&id)?;
    caller.may(&app, "secretstore:get")?;
    Ok(Json(described(&base)).into_response())
}

async fn prefer(State(app): State<Arc<App>>, caller: Caller, Path(id): Path<String>) -> ApiResult {
    known(&id)?;
    caller.may(&app, "secretstore_preferred:post")?;
    let mut change = app.store.change_keys().await?;
    change.prefer_secret_store(&caller.project_id, &id).await?;
    app.store.commit(change).await?;
    caller.audit("update", "data/security/secret-store", &id);
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn forget(State(app): State<Arc<App>>, caller: Caller, Path(id): Path<String>) -> ApiResult {
    known(&id)?;
    caller.may(&app, "secretstore_preferred:delete")?;
    let mut change = app.store.change_keys().await?;
    if !change.forget_secret_store(&caller.project_id).await? {
        return Err(KeyManagerError::NotFound(
            "preferred secret store of this project",
        ));
    }
    app.store.commit(change).await?;
    caller.audit("update", "data/security/secret-store", &id);
    Ok(StatusCode::NO_CONTENT.into_response())
}

fn transport_key_ref(base: &Base, id: &str) -> String {
    format!("{}/transport_keys/{id}", base.key_manager())
}

async fn transport_keys(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    query: Query,
) -> ApiResult {
    caller.may(&app, "transport_keys:get")?;
    let page = Page::of(&query);
    let (ids, total) = app
        .store
        .transport_keys(query.get("plugin_name"), page.limit, page.offset)
        .await?;
    let items = ids
        .iter()
        .map(|id| transport_key_ref(&base, id).into())
        .collect();
    Ok(page.answer(&base, &query, "transport_keys", items, total))
}

async fn add_transport_key(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    headers: HeaderMap,
    bytes: Bytes,
) -> ApiResult {
    caller.may(&app, "transport_keys:post")?;
    let object = fields::object(&headers, &bytes)?;
    let key = TransportKey {
        id: key_manager_id(),
        plugin_name: fields::required(&object, "plugin_name", 255)?,
        transport_key: fields::required(&object, "transport_key", MAX_TRANSPORT_KEY)?,
        created: now_us(),
    };
    let mut change = app.store.change_keys().await?;
    change.insert_transport_key(&key).await?;
    app.store.commit(change).await?;
    caller.audit("create", KIND, &key.id);
    let url = transport_key_ref(&base, &key.id);
    Ok(created(StatusCode::CREATED, "transport_key_ref", &url))
}

async fn transport_key(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    Path(id): Path<String>,
) -> ApiResult {
    caller.may(&app, "transport_key:get")?;
    let key = app
        .store
        .transport_key(&id)
        .await?
        .ok_or(KeyManagerError::NotFound("transport key"))?;
    let time = key_manager_time(key.created);
    let body = json!({
        "created": time, "updated": time, "status": "ACTIVE", "plugin_name": key.plugin_name,
        "transport_key": key.transport_key, "transport_key_ref": transport_key_ref(&base, &key.id),
    });
    Ok(Json(body).into_response())
}

async fn delete_transport_key(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
) -> ApiResult {
    caller.may(&app, "transport_key:delete")?;
    let mut change = app.store.change_keys().await?;
    if !change.delete_transport_key(&id).await? {
        return Err(KeyManagerError::NotFound("transport key"));
    }
    app.store.commit(change).await?;
    caller.audit("delete", KIND, &id);
    Ok(StatusCode::NO_CONTENT.into_response())
}
