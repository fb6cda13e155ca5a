//! `/v1/quotas` and `/v1/project-quotas`: how much a project may store. -1 is no limit, 0 nothing at all.

use std::sync::Arc;

use axum::{
    Router,
    body::Bytes,
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Json},
    routing::get,
};
use serde_json::{Value, json};

use super::{
    caller::Caller,
    error::{ApiResult, KeyManagerError},
    fields,
    page::Page,
};
use crate::{
    app::App,
    http::{Base, Query},
    store::{
        Change,
        key_quotas::{Counted, KeyQuotas},
    },
    time::now_us,
};

const KIND: &str = "data/security/quota";
const UNLIMITED: i64 = -1;

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/quotas", get(own))
        .route("/project-quotas", get(list))
        .route(
            "/project-quotas/{project}",
            get(show).put(set).delete(delete),
        )
}

async fn own(State(app): State<Arc<App>>, caller: Caller) -> ApiResult {
    caller.may(&app, "quotas:get")?;
    let set = app
        .store
        .key_quotas(&caller.project_id)
        .await?
        .unwrap_or_default();
    let effective = |value: Option<i64>| value.unwrap_or(UNLIMITED);
    let quotas = json!({
        "secrets": effective(set.secrets), "orders": effective(set.orders), "containers": effective(set.containers),
        "consumers": effective(set.consumers), "cas": effective(set.cas),
    });
    Ok(Json(json!({ "quotas": quotas })).into_response())
}

fn shown(quotas: &KeyQuotas) -> Value {
    json!({
        "secrets": quotas.secrets, "orders": quotas.orders, "containers": quotas.containers,
        "consumers": quotas.consumers, "cas": quotas.cas,
    })
}

async fn list(State(app): State<Arc<App>>, caller: Caller, base: Base, query: Query) -> ApiResult {
    caller.may(&app, "project_quotas:get")?;
    let page = Page::of(&query);
    let (all, total) = app.store.all_key_quotas(page.limit, page.offset).await?;
    let items = all
        .iter()
        .map(|quotas| json!({"project_id": quotas.project_id, "project_quotas": shown(quotas)}))
        .collect();
    Ok(page.answer(&base, &query, "project_quotas", items, total))
}

async fn show(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(project): Path<String>,
) -> ApiResult {
    caller.may(&app, "project_quotas:get")?;
    let quotas = app
        .store
        .key_quotas(&project)
        .await?
        .ok_or(KeyManagerError::NotFound("project quota"))?;
    Ok(Json(json!({ "project_quotas": shown(&quotas) })).into_response())
}

async fn set(
    State(app): State<Arc<App>>,
    caller: Caller,
    headers: HeaderMap,
    Path(project): Path<String>,
    bytes: Bytes,
) -> ApiResult {
    caller.may(&app, "project_quotas:put")?;
    let object = fields::object(&headers, &bytes)?;
    let bad = |message: &str| KeyManagerError::BadRequest(message.to_owned());
    let Some(Value::Object(sent)) = object.get("project_quotas") else {
        return Err(bad("The body must hold an object named project_quotas."));
    };
    if object.len() > 1 {
        return Err(bad("The body holds project_quotas and nothing else."));
    }
    let mut quotas = KeyQuotas {
        project_id: project.clone(),
        ..KeyQuotas::default()
    };
    for (name, value) in sent {
        let place = match name.as_str() {
            "secrets" => &mut quotas.secrets,
            "orders" => &mut quotas.orders,
            "containers" => &mut quotas.containers,
            "consumers" => &mut quotas.consumers,
            "cas" => &mut quotas.cas,
            _ => {
                return Err(bad(
                    "There are quotas for secrets, orders, containers, consumers and cas.",
                ));
            }
        };
        let number = value.as_i64();
        *place =
            Some(number.ok_or_else(|| bad("A quota must be a whole number; -1 is no limit."))?);
    }
    let mut change = app.store.change_keys().await?;
    change.put_key_quotas(&quotas, now_us()).await?;
    app.store.commit(change).await?;
    caller.audit("update", KIND, &project);
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn delete(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(project): Path<String>,
) -> ApiResult {
    caller.may(&app, "project_quotas:delete")?;
    let mut change = app.store.change_keys().await?;
    if !change.delete_key_quotas(&project).await? {
        return Err(KeyManagerError::NotFound("project quota"));
    }
    app.store.commit(change).await?;
    caller.audit("delete", KIND, &project);
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Refuses one record more than the project may have. The count is taken inside of the change that adds it,
/// so that two requests at once cannot both be the last.
///
/// # Errors
/// 403, or from the store.
pub(super) async fn enforce(
    change: &mut Change,
    what: Counted,
    project_id: &str,
    now: i64,
) -> Result<(), KeyManagerError> {
    let Some(set) = change.key_quotas(project_id).await? else {
        return Ok(());
    };
    let (limit, name) = match what {
        Counted::Secrets => (set.secrets, "secrets"),
        Counted::Orders => (set.orders, "orders"),
        Counted::Containers => (set.containers, "containers"),
        Counted::SecretConsumers | Counted::ContainerConsumers => (set.consumers, "consumers"),
    };
    let limit = limit.unwrap_or(UNLIMITED);
    if limit <= UNLIMITED {
        return Ok(());
    }
    if limit == 0 || change.count_keys(what, project_id, now).await? >= limit {
        return Err(KeyManagerError::QuotaReached { name, limit });
    }
    Ok(())
}
