//! `/v1/secrets/{id}/consumers`: who uses a secret; a used secret is not deleted by accident.

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
    container_consumers::location,
    error::{ApiResult, KeyManagerError},
    fields,
    page::Page,
    quotas::enforce,
    secrets::{KIND, describe, load},
};
use crate::{
    app::App,
    http::{Base, Query},
    store::{key_quotas::Counted, secrets::Consumer},
    time::{key_manager_time, now_us},
};

const MAX_CHARS: usize = 255;

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new().route(
        "/secrets/{id}/consumers",
        get(list).post(register).delete(remove),
    )
}

fn sent(headers: &HeaderMap, bytes: &[u8], caller: &Caller) -> Result<Consumer, KeyManagerError> {
    let object = fields::object(headers, bytes)?;
    Ok(Consumer {
        project_id: caller.project_id.clone(),
        service: fields::required(&object, "service", MAX_CHARS)?,
        resource_type: fields::required(&object, "resource_type", MAX_CHARS)?,
        resource_id: fields::required(&object, "resource_id", MAX_CHARS)?,
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
    let (secret, acl) = load(&app, &id).await?;
    caller.may_secret(&app, "secret_consumers:get", &secret, acl.as_ref())?;
    let page = Page::of(&query);
    let (some, total) = page.cut(app.store.consumers(&id).await?);
    let items = some
        .iter()
        .map(|consumer| {
            json!({
                "created": key_manager_time(consumer.created), "updated": key_manager_time(consumer.created),
                "status": "ACTIVE", "service": consumer.service, "resource_type": consumer.resource_type,
                "resource_id": consumer.resource_id,
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
    let (secret, acl) = load(&app, &id).await?;
    caller.may_secret(&app, "secret_consumers:post", &secret, acl.as_ref())?;
    let consumer = sent(&headers, &bytes, &caller)?;
    let mut change = app.store.change_keys().await?;
    let counted = Counted::SecretConsumers;
    enforce(
        &app,
        &mut change,
        counted,
        &caller.project_id,
        consumer.created,
    )
    .await?;
    change.insert_consumer(&id, &consumer).await?;
    app.store.commit(change).await?;
    caller.audit("update", KIND, &id);
    // These routes show the consumers whatever version the client speaks.
    let body = Json(describe(&app, &base, &secret, true).await?);
    Ok(([(header::LOCATION, location(&base, &id))], body).into_response())
}

async fn remove(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    headers: HeaderMap,
    Path(id): Path<String>,
    bytes: Bytes,
) -> ApiResult {
    let (secret, acl) = load(&app, &id).await?;
    caller.may_secret(&app, "secret_consumers:delete", &secret, acl.as_ref())?;
    let wanted = sent(&headers, &bytes, &caller)?;
    let known = app.store.consumers(&id).await?;
    let found = known
        .iter()
        .find(|other| {
            (&other.service, &other.resource_type, &other.resource_id)
                == (&wanted.service, &wanted.resource_type, &wanted.resource_id)
        })
        .ok_or(KeyManagerError::NotFound("consumer"))?;
    if caller.project_id != found.project_id && caller.project_id != secret.project_id {
        return Err(KeyManagerError::Forbidden(
            "Only the project that registered a consumer may remove it.".into(),
        ));
    }
    let mut change = app.store.change_keys().await?;
    change
        .delete_consumer(
            &id,
            &wanted.service,
            &wanted.resource_type,
            &wanted.resource_id,
        )
        .await?;
    app.store.commit(change).await?;
    caller.audit("update", KIND, &id);
    Ok(Json(describe(&app, &base, &secret, true).await?).into_response())
}
