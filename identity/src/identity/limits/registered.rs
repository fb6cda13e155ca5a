//! `/v3/registered_limits`: the defaults.

use std::sync::Arc;

use axum::{
    Router,
    body::Bytes,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse, Json},
    routing::get,
};
use serde_json::{Value, json};

use super::{description, list_body, needed, nothing_more, number, place_exists, resource_name};
use crate::{
    app::App,
    http::{Base, Query},
    identity::{
        error::{ApiResult, IdentityError},
        fields::{self, Object},
        support::{Caller, collection, linked, member, no_content},
    },
    ids::identity_id,
    policy::Target,
    store::{StoreError, limits::RegisteredLimit},
};

const KIND: &str = "registered limit";
const AUDIT: &str = "data/security/limit";
const PATH: &str = "registered_limits";

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/registered_limits", get(list).post(create))
        .route(
            "/registered_limits/{id}",
            get(show).patch(update).delete(delete),
        )
}

fn shown(base: &Base, limit: &RegisteredLimit) -> Value {
    linked(base, PATH, limit.to_json())
}

async fn load(app: &App, id: &str) -> Result<RegisteredLimit, IdentityError> {
    app.store
        .registered_limit(id)
        .await?
        .ok_or_else(|| IdentityError::NotFound(KIND, id.to_owned()))
}

/// While projects or domains have values of their own for it, neither its meaning nor its default may change.
fn in_use(error: StoreError) -> IdentityError {
    match error {
        StoreError::Dangling => IdentityError::Forbidden(
            "Limits of projects or domains belong to this registered limit; delete those first."
                .into(),
        ),
        other => other.into(),
    }
}

async fn list(State(app): State<Arc<App>>, caller: Caller, base: Base, query: Query) -> ApiResult {
    caller.may(&app, "identity:list_registered_limits", &Target::new())?;
    let found = app.store.registered_limits().await?;
    let items = found.iter().map(|limit| shown(&base, limit)).collect();
    let filters = ["service_id", "region_id", "resource_name"];
    Ok(collection(&base, &query, PATH, &filters, items))
}

async fn show(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    Path(id): Path<String>,
) -> ApiResult {
    caller.may(&app, "identity:get_registered_limit", &Target::new())?;
    let limit = shown(&base, &load(&app, &id).await?);
    Ok(member(StatusCode::OK, "registered_limit", limit))
}

fn wanted(mut object: Object) -> Result<RegisteredLimit, IdentityError> {
    let limit = RegisteredLimit {
        id: identity_id(),
        service_id: needed(fields::text(&mut object, "service_id")?, "service_id")?,
        region_id: fields::text(&mut object, "region_id")?,
        resource_name: needed(resource_name(&mut object)?, "resource_name")?,
        default_limit: number(&mut object, "default_limit")?.ok_or_else(|| {
            IdentityError::BadRequest("The attribute default_limit is required.".into())
        })?,
        description: description(&mut object)?,
    };
    nothing_more(&object)?;
    Ok(limit)
}

/// All of a request or none.
async fn create(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    bytes: Bytes,
) -> ApiResult {
    let limits = list_body(&bytes, PATH)?
        .into_iter()
        .map(wanted)
        .collect::<Result<Vec<_>, _>>()?;
    caller.may(&app, "identity:create_registered_limits", &Target::new())?;
    for limit in &limits {
        place_exists(&app, Some(&limit.service_id), limit.region_id.as_deref()).await?;
    }
    let mut change = app.store.change_identity().await?;
    for limit in &limits {
        change
            .insert_registered_limit(limit)
            .await
            .map_err(IdentityError::duplicate(KIND, &limit.resource_name))?;
    }
    app.store.commit(change).await?;
    for limit in &limits {
        caller.audit("create", AUDIT, &limit.id);
    }
    let shown: Vec<Value> = limits.iter().map(|limit| shown(&base, limit)).collect();
    Ok((StatusCode::CREATED, Json(json!({ PATH: shown }))).into_response())
}

async fn update(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    Path(id): Path<String>,
    bytes: Bytes,
) -> ApiResult {
    let mut object = fields::body(&bytes, "registered_limit")?;
    caller.may(&app, "identity:update_registered_limit", &Target::new())?;
    let mut change = app.store.change_identity().await?;
    let mut limit = change
        .registered_limit(&id)
        .await?
        .ok_or_else(|| IdentityError::NotFound(KIND, id.clone()))?;
    // As in Keystone, naming what makes a registered limit unique asks whether there is such a one, itself included.
    let mut identity = false;
    if object.contains_key("service_id") {
        let service = fields::text(&mut object, "service_id")?;
        limit.service_id = needed(service, "service_id")?;
        identity = true;
    }
    if object.contains_key("region_id") {
        limit.region_id = fields::text(&mut object, "region_id")?;
        identity = true;
    }
    if let Some(name) = resource_name(&mut object)? {
        limit.resource_name = name;
        identity = true;
    }
    if let Some(value) = number(&mut object, "default_limit")? {
        limit.default_limit = value;
    }
    if object.contains_key("description") {
        limit.description = description(&mut object)?;
    }
    nothing_more(&object)?;
    place_exists(&app, Some(&limit.service_id), limit.region_id.as_deref()).await?;
    if !change.limits_of(&id).await?.is_empty() {
        return Err(in_use(StoreError::Dangling));
    }
    if identity
        && change
            .registered_limit_of(
                &limit.service_id,
                limit.region_id.as_deref(),
                &limit.resource_name,
            )
            .await?
            .is_some()
    {
        let name = limit.into_inner().resource_name;
        return Err(IdentityError::Conflict(KIND, name));
    }
    change.update_registered_limit(&limit).await?;
    app.store.commit(change).await?;
    caller.audit("update", AUDIT, &id);
    Ok(member(
        StatusCode::OK,
        "registered_limit",
        shown(&base, &limit),
    ))
}

async fn delete(State(app): State<Arc<App>>, caller: Caller, Path(id): Path<String>) -> ApiResult {
    caller.may(&app, "identity:delete_registered_limit", &Target::new())?;
    let mut change = app.store.change_identity().await?;
    if !change.delete_registered_limit(&id).await.map_err(in_use)? {
        return Err(IdentityError::NotFound(KIND, id));
    }
    app.store.commit(change).await?;
    caller.audit("delete", AUDIT, &id);
    Ok(no_content())
}
