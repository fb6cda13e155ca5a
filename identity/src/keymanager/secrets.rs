//! `/v1/secrets`: stored, listed, described, deleted.

use std::sync::Arc;

use axum::{
    Router,
    body::Bytes,
    extract::{Path, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Json, Response},
    routing::get,
};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::{
    caller::Caller,
    error::{ApiResult, KeyManagerError},
    fields,
    filter::filter,
    page::Page,
    payload,
    quotas::enforce,
    sealing,
};
use crate::{
    app::App,
    http::{Base, Query},
    ids::key_manager_id,
    store::{
        acls::{Acl, Guarded},
        key_quotas::Counted,
        secrets::Secret,
    },
    time::{key_manager_time, now_us},
};

pub(super) const KIND: &str = "data/security/secret";
/// The types that the API knows.
const TYPES: [&str; 6] = [
    "symmetric",
    "passphrase",
    "private",
    "public",
    "certificate",
    "opaque",
];

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/secrets", get(list).post(create))
        .route(
            "/secrets/{id}",
            get(show).put(payload::write).delete(delete),
        )
}

/// A secret with its access list, or 404: an id that is no id is one that does not exist.
pub(super) async fn load(app: &App, id: &str) -> Result<(Secret, Option<Acl>), KeyManagerError> {
    let secret = app
        .store
        .secret(id, now_us())
        .await?
        .ok_or(KeyManagerError::NotFound("secret"))?;
    let acl = app.store.acl(Guarded::Secret, id).await?;
    Ok((secret, acl))
}

pub(super) fn secret_ref(base: &Base, id: &str) -> String {
    format!("{}/secrets/{id}", base.key_manager())
}

/// What is told of a secret; never its payload. Consumers came with version 1.1.
pub(super) async fn describe(
    app: &App,
    base: &Base,
    secret: &Secret,
    with_consumers: bool,
) -> Result<Value, KeyManagerError> {
    let mut object = json!({
        "created": key_manager_time(secret.created), "updated": key_manager_time(secret.updated), "status": "ACTIVE",
        "name": secret.name, "secret_type": secret.secret_type,
        "expiration": secret.expiration.map(key_manager_time), "algorithm": secret.algorithm,
        "bit_length": secret.bit_length, "mode": secret.mode, "creator_id": secret.creator_id,
        "secret_ref": secret_ref(base, &secret.id),
    });
    if let Some(content_type) = secret
        .content_type
        .as_ref()
        .filter(|_| secret.sealed.is_some())
    {
        object["content_types"] = json!({ "default": content_type });
    }
    if with_consumers {
        object["consumers"] = app
            .store
            .consumers(&secret.id)
            .await?
            .iter()
            .map(|consumer| {
                json!({
                    "service": consumer.service, "resource_type": consumer.resource_type,
                    "resource_id": consumer.resource_id,
                })
            })
            .collect();
    }
    Ok(object)
}

async fn create(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    headers: HeaderMap,
    bytes: Bytes,
) -> ApiResult {
    caller.may(&app, "secrets:post")?;
    let object = fields::object(&headers, &bytes)?;
    let now = now_us();
    let secret_type = fields::text(&object, "secret_type")?.unwrap_or_else(|| "opaque".into());
    if !TYPES.contains(&secret_type.as_str()) {
        return Err(KeyManagerError::BadRequest(format!(
            "The attribute secret_type must be one of {}.",
            TYPES.join(", ")
        )));
    }
    if object
        .get("transport_key_needed")
        .is_some_and(|value| value != "false")
        || object.contains_key("transport_key_id")
    {
        return Err(KeyManagerError::BadRequest(
            "No store of this service wraps secrets with a transport key; leave transport_key_needed and transport_key_id out.".into(),
        ));
    }
    let given = payload::from_json(&object)?;
    let mut secret = Secret {
        id: key_manager_id(),
        project_id: caller.project_id.clone(),
        creator_id: caller.context.user.id.clone(),
        name: fields::nullable_text(&object, "name")?.filter(|name| !name.is_empty()),
        secret_type,
        algorithm: fields::text(&object, "algorithm")?,
        bit_length: fields::bits(&object)?,
        mode: fields::text(&object, "mode")?,
        expiration: fields::expiration(&object, now)?,
        content_type: None,
        key_id: None,
        sealed: None,
        key_slot: None,
        new_key: None,
        created: now,
        updated: now,
    };
    if let Some((content_type, plain)) = given {
        fill(&app, &mut secret, content_type, &plain).await?;
    }
    let mut change = app.store.change_keys().await?;
    enforce(&mut change, Counted::Secrets, &caller.project_id, now).await?;
    change.insert_secret(&secret).await?;
    app.store.commit(change).await?;
    caller.audit("create", KIND, &secret.id);
    Ok(created(
        StatusCode::CREATED,
        "secret_ref",
        &secret_ref(&base, &secret.id),
    ))
}

/// Seals a payload into a secret that is not stored yet.
pub(super) async fn fill(
    app: &App,
    secret: &mut Secret,
    content_type: String,
    plain: &Zeroizing<Vec<u8>>,
) -> Result<(), KeyManagerError> {
    let sealed = sealing::seal(app, &secret.project_id, &secret.id, plain).await?;
    secret.content_type = Some(content_type);
    secret.key_id = Some(sealed.key_id);
    secret.sealed = Some(sealed.bytes);
    secret.new_key = Some(sealed.wrapped_key);
    Ok(())
}

/// `{"<kind>_ref": url}` with the same URL in `Location`.
pub(super) fn created(status: StatusCode, name: &str, url: &str) -> Response {
    (
        status,
        [(header::LOCATION, url.to_owned())],
        Json(json!({ name: url })),
    )
        .into_response()
}

async fn list(State(app): State<Arc<App>>, caller: Caller, base: Base, query: Query) -> ApiResult {
    caller.may(&app, "secrets:get")?;
    let filter = filter(&query, &caller.context.user.id)?;
    let page = Page::of(&query);
    let (secrets, total) = app
        .store
        .secrets(
            &caller.project_id,
            &filter,
            now_us(),
            page.limit,
            page.offset,
        )
        .await?;
    let mut items = Vec::with_capacity(secrets.len());
    for secret in &secrets {
        items.push(describe(&app, &base, secret, caller.knows_consumers()).await?);
    }
    Ok(page.answer(&base, &query, "secrets", items, total))
}

async fn show(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    headers: HeaderMap,
    Path(id): Path<String>,
) -> ApiResult {
    let accept = headers
        .get(header::ACCEPT)
        .and_then(|value| value.to_str().ok())
        .unwrap_or("*/*");
    if !accept.contains("application/json") && !accept.contains("*/*") {
        // The deprecated way to ask for the payload.
        return payload::answer(&app, &caller, &id, accept).await;
    }
    let (secret, acl) = load(&app, &id).await?;
    caller.may_secret(&app, "secret:get", &secret, acl.as_ref())?;
    Ok(Json(describe(&app, &base, &secret, caller.knows_consumers()).await?).into_response())
}

async fn delete(
    State(app): State<Arc<App>>,
    caller: Caller,
    query: Query,
    Path(id): Path<String>,
) -> ApiResult {
    let (secret, acl) = load(&app, &id).await?;
    caller.may_secret(&app, "secret:delete", &secret, acl.as_ref())?;
    // Before version 1.2 nothing keeps a secret from being deleted.
    let guarded = caller.version.0 >= 2 && !forced(&query)?;
    let mut change = app.store.change_keys().await?;
    if guarded && !change.consumers(&id).await?.is_empty() {
        return Err(KeyManagerError::BadRequest(
            "The secret has consumers; remove those first, or delete with force=true.".into(),
        ));
    }
    if !change.delete_secret(&id).await? {
        return Err(KeyManagerError::NotFound("secret"));
    }
    app.store.commit(change).await?;
    app.store.mark_log_dirty();
    app.store.truncate_log().await?;
    caller.audit("delete", KIND, &id);
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Whether a deletion is to go through although the secret is in use.
fn forced(query: &Query) -> Result<bool, KeyManagerError> {
    let Some(value) = query.get("force") else {
        return Ok(false);
    };
    match value.trim().to_ascii_lowercase().as_str() {
        "1" | "t" | "true" | "on" | "y" | "yes" => Ok(true),
        "0" | "f" | "false" | "off" | "n" | "no" => Ok(false),
        _ => Err(KeyManagerError::BadRequest(
            "The parameter force must be true or false.".into(),
        )),
    }
}
