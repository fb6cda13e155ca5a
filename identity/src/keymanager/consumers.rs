//! `/v1/secrets/{id}/consumers`: who uses a secret; a used secret is not deleted by accident.

use std::sync::Arc;

use axum::{
    Router,
    body::Bytes,
    extract::{Path, State},
    http::HeaderMap,
    response::{IntoResponse, Json},
    routing::get,
};
use serde_json::{Value, json};

use super::{
    caller::Caller,
    error::{ApiResult, KeyManagerError},
    fields,
    secrets::{KIND, Page, describe, load},
};
use crate::{
    app::App,
    http::{Base, Query},
    store::secrets::Consumer,
    time::{key_manager_time, now_us},
};

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new().route(
        "/secrets/{id}/consumers",
        get(list).post(register).delete(remove),
    )
}

fn sent(headers: &HeaderMap, bytes: &[u8], caller: &Caller) -> Result<Consumer, KeyManagerError> {
    let object = fields::object(headers, bytes)?;
    let field = |name: &str| {
        fields::text(&object, name)?
            .filter(|text| !text.is_empty())
            .ok_or_else(|| {
                KeyManagerError::BadRequest(format!("The attribute {name} is required."))
            })
    };
    Ok(Consumer {
        project_id: caller.project_id.clone(),
        service: field("service")?,
        resource_type: field("resource_type")?,
        resource_id: field("resource_id")?,
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
    let all = app.store.consumers(&id).await?;
    let total = i64::try_from(all.len()).unwrap_or(i64::MAX);
    let skip = usize::try_from(page.offset).unwrap_or(usize::MAX);
    let take = usize::try_from(page.limit).unwrap_or(0);
    let items: Vec<Value> = all
        .iter()
        .skip(skip)
        .take(take)
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
    change.insert_consumer(&id, &consumer).await?;
    app.store.commit(change).await?;
    caller.audit("update", KIND, &id);
    Ok(Json(describe(&app, &caller, &base, &secret).await?).into_response())
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
    Ok(Json(describe(&app, &caller, &base, &secret).await?).into_response())
}
