//! `/v1/secrets/{id}/acl`: who may read a secret beyond the policy.

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
    secrets::{KIND, load, secret_ref},
};
use crate::{
    app::App,
    http::Base,
    store::secrets::Acl,
    time::{key_manager_time, now_us},
};

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new().route(
        "/secrets/{id}/acl",
        get(show).put(put).patch(patch).delete(delete),
    )
}

async fn show(State(app): State<Arc<App>>, caller: Caller, Path(id): Path<String>) -> ApiResult {
    let (secret, acl) = load(&app, &id).await?;
    caller.may_secret(&app, "secret_acls:get", &secret, acl.as_ref())?;
    let read = match acl {
        None => json!({"project-access": true}),
        Some(acl) => json!({
            "project-access": acl.project_access, "users": acl.users,
            "created": key_manager_time(acl.created), "updated": key_manager_time(acl.updated),
        }),
    };
    Ok(Json(json!({ "read": read })).into_response())
}

/// What a body says about reading; nothing else can be set.
fn asked(
    headers: &HeaderMap,
    bytes: &[u8],
) -> Result<(Option<bool>, Option<Vec<String>>), KeyManagerError> {
    let bad = |message: &str| KeyManagerError::BadRequest(message.to_owned());
    let object = fields::object(headers, bytes)?;
    if object.keys().any(|key| key != "read") {
        return Err(bad("An access list has the one operation read."));
    }
    let read = match object.get("read") {
        Some(Value::Object(read)) => read,
        _ => return Err(bad("The body must hold an object named read.")),
    };
    if read.keys().any(|key| {
        !matches!(
            key.as_str(),
            "users" | "project-access" | "created" | "updated"
        )
    }) {
        return Err(bad("The operation read has users and project-access."));
    }
    let access = match read.get("project-access") {
        None | Some(Value::Null) => None,
        Some(Value::Bool(flag)) => Some(*flag),
        Some(_) => return Err(bad("The attribute project-access must be a Boolean.")),
    };
    let users = match read.get("users") {
        None | Some(Value::Null) => None,
        Some(list) => Some(
            serde_json::from_value::<Vec<String>>(list.clone())
                .map_err(|_| bad("The attribute users must be a list of user ids."))?,
        ),
    };
    Ok((access, users))
}

async fn put(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    headers: HeaderMap,
    Path(id): Path<String>,
    bytes: Bytes,
) -> ApiResult {
    set(&app, &caller, &base, &id, &headers, &bytes, false).await
}

async fn patch(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    headers: HeaderMap,
    Path(id): Path<String>,
    bytes: Bytes,
) -> ApiResult {
    set(&app, &caller, &base, &id, &headers, &bytes, true).await
}

async fn set(
    app: &App,
    caller: &Caller,
    base: &Base,
    id: &str,
    headers: &HeaderMap,
    bytes: &[u8],
    merge: bool,
) -> ApiResult {
    let (secret, old) = load(app, id).await?;
    caller.may_secret(app, "secret_acls:put_patch", &secret, old.as_ref())?;
    let (access, users) = asked(headers, bytes)?;
    let now = now_us();
    let kept = old.filter(|_| merge).unwrap_or(Acl {
        project_access: true,
        users: Vec::new(),
        created: now,
        updated: now,
    });
    let acl = Acl {
        project_access: access.unwrap_or(kept.project_access),
        users: users.unwrap_or(kept.users),
        created: kept.created,
        updated: now,
    };
    let mut change = app.store.change_keys().await?;
    change.put_acl(id, &acl).await?;
    app.store.commit(change).await?;
    caller.audit("update", KIND, id);
    Ok(Json(json!({"acl_ref": format!("{}/acl", secret_ref(base, id))})).into_response())
}

async fn delete(State(app): State<Arc<App>>, caller: Caller, Path(id): Path<String>) -> ApiResult {
    let (secret, acl) = load(&app, &id).await?;
    caller.may_secret(&app, "secret_acls:delete", &secret, acl.as_ref())?;
    let mut change = app.store.change_keys().await?;
    change.delete_acl(&id).await?;
    app.store.commit(change).await?;
    caller.audit("update", KIND, &id);
    Ok(Json(Value::Null).into_response())
}
