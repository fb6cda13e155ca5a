//! `/v1/containers/{id}/consumers`: who uses a container.

use std::sync::Arc;

use axum::{
    Router,
    body::Bytes,
    extract::{Path, State},
    http::{HeaderMap, header},
    response::{IntoResponse, Json},
    routing::get,
};
use serde_json::json;

use super::{
    caller::Caller,
    containers::{KIND, describe, load},
    error::{ApiResult, KeyManagerError},
    fields,
    page::Page,
    quotas::enforce,
};
use crate::{
    app::App,
    http::{Base, Query},
    store::{containers::ContainerConsumer, key_quotas::Counted},
    time::{key_manager_time, now_us},
};

/// Longest name and longest URL of a consumer, in characters.
const MAX_NAME: usize = 36;
const MAX_URL: usize = 255;

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new().route(
        "/containers/{id}/consumers",
        get(list).post(register).delete(remove),
    )
}

fn sent(
    headers: &HeaderMap,
    bytes: &[u8],
    caller: &Caller,
) -> Result<ContainerConsumer, KeyManagerError> {
    let object = fields::object(headers, bytes)?;
    Ok(ContainerConsumer {
        project_id: caller.project_id.clone(),
        name: fields::required(&object, "name", MAX_NAME)?,
        url: fields::required(&object, "URL", MAX_URL)?,
        created: now_us(),
    })
}

async fn list(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    query: Query,
    Path(id): Path<String>,
) -> ApiResult {
    let (container, acl) = load(&app, &id).await?;
    caller.may_container(&app, "container_consumers:get", &container, acl.as_ref())?;
    let page = Page::of(&query);
    let (some, total) = page.cut(app.store.container_consumers(&id).await?);
    let items = some
        .iter()
        .map(|consumer| {
            let time = key_manager_time(consumer.created);
            json!({
                "created": time, "updated": time, "status": "ACTIVE", "name": consumer.name, "URL": consumer.url,
            })
        })
        .collect();
    Ok(page.answer(&base, &query, "consumers", items, total))
}

async fn register(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    headers: HeaderMap,
    Path(id): Path<String>,
    bytes: Bytes,
) -> ApiResult {
    let (container, acl) = load(&app, &id).await?;
    caller.may_container(&app, "container_consumers:post", &container, acl.as_ref())?;
    let consumer = sent(&headers, &bytes, &caller)?;
    let mut change = app.store.change_keys().await?;
    let counted = Counted::ContainerConsumers;
    enforce(
        &app,
        &mut change,
        counted,
        &caller.project_id,
        consumer.created,
    )
    .await?;
    change.insert_container_consumer(&id, &consumer).await?;
    app.store.commit(change).await?;
    caller.audit("update", KIND, &id);
    let body = Json(describe(&app, &base, &container).await?);
    Ok(([(header::LOCATION, location(&base, &id))], body).into_response())
}

/// Where the protocol says that the consumers of an object are (nothing is served there, as in Barbican).
pub(super) fn location(base: &Base, id: &str) -> String {
    format!("{}/consumers/{id}/consumers", base.key_manager())
}

async fn remove(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    headers: HeaderMap,
    Path(id): Path<String>,
    bytes: Bytes,
) -> ApiResult {
    let (container, acl) = load(&app, &id).await?;
    caller.may_container(&app, "container_consumers:delete", &container, acl.as_ref())?;
    let wanted = sent(&headers, &bytes, &caller)?;
    let known = app.store.container_consumers(&id).await?;
    let found = known
        .iter()
        .find(|other| (&other.name, &other.url) == (&wanted.name, &wanted.url))
        .ok_or(KeyManagerError::NotFound("consumer"))?;
    if caller.project_id != found.project_id && caller.project_id != container.project_id {
        return Err(KeyManagerError::Forbidden(
            "Only the project that registered a consumer may remove it.".into(),
        ));
    }
    let mut change = app.store.change_keys().await?;
    change
        .delete_container_consumer(&id, &wanted.name, &wanted.url)
        .await?;
    app.store.commit(change).await?;
    caller.audit("update", KIND, &id);
    Ok(Json(describe(&app, &base, &container).await?).into_response())
}
