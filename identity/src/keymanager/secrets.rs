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
    fields, payload, sealing,
};
use crate::{
    app::App,
    http::{Base, Query},
    ids::key_manager_id,
    store::secrets::{Acl, Secret, SecretFilter},
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
    let acl = app.store.acl(id).await?;
    Ok((secret, acl))
}

pub(super) fn secret_ref(base: &Base, id: &str) -> String {
    format!("{}/secrets/{id}", base.key_manager())
}

/// What is told of a secret; never its payload.
pub(super) async fn describe(
    app: &App,
    caller: &Caller,
    base: &Base,
    secret: &Secret,
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
    if caller.version.0 >= 1 {
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
    let given = payload::from_json(&object)?;
    let mut secret = Secret {
        id: key_manager_id(),
        project_id: caller.project_id.clone(),
        creator_id: caller.context.user.id.clone(),
        name: fields::text(&object, "name")?.filter(|name| !name.is_empty()),
        secret_type,
        algorithm: fields::text(&object, "algorithm")?,
        bit_length: fields::bits(&object)?,
        mode: fields::text(&object, "mode")?,
        expiration: fields::expiration(&object, now)?,
        content_type: None,
        key_id: None,
        sealed: None,
        created: now,
        updated: now,
    };
    if let Some((content_type, plain)) = given {
        fill(&app, &mut secret, content_type, &plain).await?;
    }
    let mut change = app.store.change_keys().await?;
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
    let own = |name: &str| query.non_empty(name).map(str::to_owned);
    let filter = SecretFilter {
        name: own("name"),
        algorithm: own("alg"),
        mode: own("mode"),
        bit_length: query
            .get("bits")
            .and_then(|bits| bits.parse().ok())
            .filter(|bits| *bits != 0),
        secret_type: own("secret_type"),
        acl_user: query
            .get("acl_only")
            .is_some_and(|value| value.eq_ignore_ascii_case("true"))
            .then(|| caller.context.user.id.clone()),
    };
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
        items.push(describe(&app, &caller, &base, secret).await?);
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
    let (secret, acl) = load(&app, &id).await?;
    let accept = headers
        .get(header::ACCEPT)
        .and_then(|value| value.to_str().ok())
        .unwrap_or("*/*");
    if !accept.contains("application/json") && !accept.contains("*/*") {
        // The deprecated way to ask for the payload.
        return payload::answer(&app, &caller, &secret, acl.as_ref(), accept).await;
    }
    caller.may_secret(&app, "secret:get", &secret, acl.as_ref())?;
    Ok(Json(describe(&app, &caller, &base, &secret).await?).into_response())
}

async fn delete(
    State(app): State<Arc<App>>,
    caller: Caller,
    query: Query,
    Path(id): Path<String>,
) -> ApiResult {
    let (secret, acl) = load(&app, &id).await?;
    caller.may_secret(&app, "secret:delete", &secret, acl.as_ref())?;
    let forced = query.get("force").is_some_and(crate::http::truthy);
    if caller.version.0 >= 2 && !forced && !app.store.consumers(&id).await?.is_empty() {
        return Err(KeyManagerError::BadRequest(
            "The secret has consumers; remove those first, or delete with force=true.".into(),
        ));
    }
    let mut change = app.store.change_keys().await?;
    if !change.delete_secret(&id).await? {
        return Err(KeyManagerError::NotFound("secret"));
    }
    app.store.commit(change).await?;
    app.store.mark_log_dirty();
    app.store.truncate_log().await?;
    caller.audit("delete", KIND, &id);
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// A page of a list.
pub(super) struct Page {
    pub(super) limit: i64,
    pub(super) offset: i64,
}

impl Page {
    const DEFAULT: i64 = 10;
    const MAX: i64 = 100;

    /// From `limit` and `offset`; what makes no sense is the default.
    pub(super) fn of(query: &Query) -> Self {
        let number = |name: &str| query.get(name).and_then(|text| text.parse::<i64>().ok());
        Self {
            limit: number("limit")
                .filter(|limit| *limit > 0)
                .unwrap_or(Self::DEFAULT)
                .min(Self::MAX),
            offset: number("offset").filter(|offset| *offset > 0).unwrap_or(0),
        }
    }

    /// `{"<key>": […], "total": n}` with links to the pages around this one.
    pub(super) fn answer(
        &self,
        base: &Base,
        query: &Query,
        key: &str,
        items: Vec<Value>,
        total: i64,
    ) -> Response {
        let at = |offset: i64| {
            format!(
                "{}{}?limit={}&offset={offset}",
                base.key_manager(),
                query.path,
                self.limit
            )
        };
        let mut body = json!({ key: items, "total": total });
        if self.offset + self.limit < total {
            body["next"] = at(self.offset + self.limit).into();
        }
        if self.offset > 0 {
            body["previous"] = at((self.offset - self.limit).max(0)).into();
        }
        Json(body).into_response()
    }
}
