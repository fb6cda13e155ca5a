//! `/v1/secrets/{id}/acl` and `/v1/containers/{id}/acl`: who may read beyond the policy.

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
    containers,
    error::{ApiResult, KeyManagerError},
    fields, secrets,
};
use crate::{
    app::App,
    http::Base,
    store::acls::{Acl, Guarded},
    time::{key_manager_time, now_us},
};

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route(
            "/secrets/{id}/acl",
            get(show_secret)
                .put(put_secret)
                .patch(patch_secret)
                .delete(delete_secret),
        )
        .route(
            "/containers/{id}/acl",
            get(show_container)
                .put(put_container)
                .patch(patch_container)
                .delete(delete_container),
        )
}

/// What a caller wants to do to an access list.
#[derive(Clone, Copy)]
enum Act {
    Get,
    Set,
    Delete,
}

/// The access list of an object that is there, if the caller may do this to it.
async fn permitted(
    app: &App,
    caller: &Caller,
    kind: Guarded,
    id: &str,
    act: Act,
) -> Result<Option<Acl>, KeyManagerError> {
    match kind {
        Guarded::Secret => {
            let (secret, acl) = secrets::load(app, id).await?;
            let rule = match act {
                Act::Get => "secret_acls:get",
                Act::Set => "secret_acls:put_patch",
                Act::Delete => "secret_acls:delete",
            };
            caller.may_secret(app, rule, &secret, acl.as_ref())?;
            Ok(acl)
        }
        Guarded::Container => {
            let (container, acl) = containers::load(app, id).await?;
            let rule = match act {
                Act::Get => "container_acls:get",
                Act::Set => "container_acls:put_patch",
                Act::Delete => "container_acls:delete",
            };
            caller.may_container(app, rule, &container, acl.as_ref())?;
            Ok(acl)
        }
    }
}

fn audit_kind(kind: Guarded) -> &'static str {
    match kind {
        Guarded::Secret => secrets::KIND,
        Guarded::Container => containers::KIND,
    }
}

async fn show_secret(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
) -> ApiResult {
    show(&app, &caller, Guarded::Secret, &id).await
}

async fn show_container(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
) -> ApiResult {
    show(&app, &caller, Guarded::Container, &id).await
}

async fn show(app: &App, caller: &Caller, kind: Guarded, id: &str) -> ApiResult {
    let read = match permitted(app, caller, kind, id, Act::Get).await? {
        None => json!({"project-access": true}),
        Some(acl) => json!({
            "project-access": acl.project_access, "users": acl.users,
            "created": key_manager_time(acl.created), "updated": key_manager_time(acl.updated),
        }),
    };
    Ok(Json(json!({ "read": read })).into_response())
}

/// Project access and users, each if it was named.
type Asked = (Option<bool>, Option<Vec<String>>);

/// What a body says about reading; nothing else can be set.
fn asked(headers: &HeaderMap, bytes: &[u8]) -> Result<Option<Asked>, KeyManagerError> {
    let bad = |message: &str| KeyManagerError::BadRequest(message.to_owned());
    let object = fields::object(headers, bytes)?;
    if object.keys().any(|key| key != "read") {
        return Err(bad("An access list has the one operation read."));
    }
    let read = match object.get("read") {
        None => return Ok(None),
        // An empty object says as much as none.
        Some(Value::Object(read)) if read.is_empty() => return Ok(None),
        Some(Value::Object(read)) => read,
        Some(_) => return Err(bad("The attribute read must be an object.")),
    };
    if read
        .keys()
        .any(|key| !matches!(key.as_str(), "users" | "project-access"))
    {
        return Err(bad("The operation read has users and project-access."));
    }
    let access = match read.get("project-access") {
        None => None,
        Some(Value::Bool(flag)) => Some(*flag),
        Some(_) => return Err(bad("The attribute project-access must be a Boolean.")),
    };
    let users = match read.get("users") {
        None => None,
        Some(list) => Some(
            serde_json::from_value::<Vec<String>>(list.clone())
                .map_err(|_| bad("The attribute users must be a list of user ids."))?,
        ),
    };
    Ok(Some((access, users)))
}

/// A request that sets an access list.
struct SetRequest<'a> {
    kind: Guarded,
    id: &'a str,
    headers: &'a HeaderMap,
    bytes: &'a [u8],
    /// Whether what is not named stays.
    merge: bool,
}

macro_rules! setter {
    ($name:ident, $kind:expr, $merge:literal) => {
        async fn $name(
            State(app): State<Arc<App>>,
            caller: Caller,
            base: Base,
            headers: HeaderMap,
            Path(id): Path<String>,
            bytes: Bytes,
        ) -> ApiResult {
            let request = SetRequest {
                kind: $kind,
                id: &id,
                headers: &headers,
                bytes: &bytes,
                merge: $merge,
            };
            set(&app, &caller, &base, request).await
        }
    };
}

setter!(put_secret, Guarded::Secret, false);
setter!(patch_secret, Guarded::Secret, true);
setter!(put_container, Guarded::Container, false);
setter!(patch_container, Guarded::Container, true);

async fn set(app: &App, caller: &Caller, base: &Base, request: SetRequest<'_>) -> ApiResult {
    let (kind, id) = (request.kind, request.id);
    permitted(app, caller, kind, id, Act::Set).await?;
    let asked = asked(request.headers, request.bytes)?;
    let now = now_us();
    let mut change = app.store.change_keys().await?;
    match asked {
        // Nothing about reading: a replacement is the default, a merge changes nothing.
        None if request.merge => {}
        None => change.delete_acl(kind, id).await?,
        Some((access, users)) => {
            let old = match request.merge {
                true => change.acl(kind, id).await?,
                false => None,
            };
            let kept = old.unwrap_or(Acl {
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
            change.put_acl(kind, id, &acl).await?;
        }
    }
    app.store.commit(change).await?;
    caller.audit("update", audit_kind(kind), id);
    let url = match kind {
        Guarded::Secret => secrets::secret_ref(base, id),
        Guarded::Container => containers::container_ref(base, id),
    };
    Ok(Json(json!({"acl_ref": format!("{url}/acl")})).into_response())
}

async fn delete_secret(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
) -> ApiResult {
    delete(&app, &caller, Guarded::Secret, &id).await
}

async fn delete_container(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
) -> ApiResult {
    delete(&app, &caller, Guarded::Container, &id).await
}

async fn delete(app: &App, caller: &Caller, kind: Guarded, id: &str) -> ApiResult {
    permitted(app, caller, kind, id, Act::Delete).await?;
    let mut change = app.store.change_keys().await?;
    change.delete_acl(kind, id).await?;
    app.store.commit(change).await?;
    caller.audit("update", audit_kind(kind), id);
    Ok(Json(Value::Null).into_response())
}
