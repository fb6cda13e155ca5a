//! `/v3/users/{id}/access_rules`: what application credentials of the user may be confined to. A rule is made with a credential,
//! stays when that goes, and is deleted once none uses it.

use std::sync::Arc;

use axum::{
    Router,
    extract::{Path, State},
    http::StatusCode,
    routing::get,
};
use serde_json::{Value, json};

use super::{
    app_credentials::{authorized, unrestricted},
    error::{ApiResult, IdentityError},
    support::{Caller, collection, linked, member, no_content},
};
use crate::{
    app::App,
    http::{Base, Query},
    ids::identity_id,
    store::{StoreError, access_rules::AccessRule},
};

const KIND: &str = "data/security/access_rule";

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/users/{user_id}/access_rules", get(list))
        .route(
            "/users/{user_id}/access_rules/{id}",
            get(show).delete(delete),
        )
}

pub(super) fn rule_json(rule: &AccessRule) -> Value {
    json!({"id": rule.id, "service": rule.service, "method": rule.method, "path": rule.path})
}

fn shown(base: &Base, user_id: &str, rule: &AccessRule) -> Value {
    linked(
        base,
        &format!("users/{user_id}/access_rules"),
        rule_json(rule),
    )
}

/// The rules that a client asks for in a new credential: whole ones, or ids of those that the user has.
///
/// # Errors
/// 400 for what is no rule, 404 for an id that there is none of.
pub(super) fn requested(
    sent: Option<Value>,
    known: &[AccessRule],
) -> Result<Vec<AccessRule>, IdentityError> {
    let list = match sent {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(list)) => list,
        Some(_) => {
            return Err(IdentityError::BadRequest(
                "The attribute access_rules must be a list.".into(),
            ));
        }
    };
    let bad = || {
        IdentityError::BadRequest(
            "An access rule has a service, a method (DELETE, GET, HEAD, PATCH, POST, PUT) and a path that begins with a slash; or \
             the id of a rule that there is."
                .into(),
        )
    };
    list.iter()
        .map(|rule| {
            if let Some(id) = rule["id"].as_str() {
                let found = known.iter().find(|rule| rule.id == id).cloned();
                return found.ok_or_else(|| {
                    IdentityError::NotFound("access rule", id.chars().take(64).collect())
                });
            }
            let field = |name: &str| {
                rule[name]
                    .as_str()
                    .filter(|text| !text.is_empty())
                    .map(str::to_owned)
                    .ok_or_else(bad)
            };
            let (service, method, path) = (field("service")?, field("method")?, field("path")?);
            let known = matches!(
                method.as_str(),
                "DELETE" | "GET" | "HEAD" | "PATCH" | "POST" | "PUT"
            );
            if !known || !path.starts_with('/') {
                return Err(bad());
            }
            Ok(AccessRule {
                id: identity_id(),
                service,
                method,
                path,
            })
        })
        .collect()
}

async fn list(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    query: Query,
    Path(user_id): Path<String>,
) -> ApiResult {
    authorized(&app, &caller, "identity:list_access_rules", &user_id).await?;
    let items = app
        .store
        .access_rules_of_user(&user_id)
        .await?
        .iter()
        .map(|rule| shown(&base, &user_id, rule))
        .collect();
    Ok(collection(
        &base,
        &query,
        "access_rules",
        &["service", "method", "path"],
        items,
    ))
}

async fn show(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    Path((user_id, id)): Path<(String, String)>,
) -> ApiResult {
    authorized(&app, &caller, "identity:get_access_rule", &user_id).await?;
    let rules = app.store.access_rules_of_user(&user_id).await?;
    let rule = rules
        .iter()
        .find(|rule| rule.id == id)
        .ok_or_else(|| IdentityError::NotFound("access rule", id.clone()))?;
    Ok(member(
        StatusCode::OK,
        "access_rule",
        shown(&base, &user_id, rule),
    ))
}

async fn delete(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((user_id, id)): Path<(String, String)>,
) -> ApiResult {
    authorized(&app, &caller, "identity:delete_access_rule", &user_id).await?;
    unrestricted(&caller)?;
    let mut change = app.store.change_identity().await?;
    match change.delete_access_rule(&user_id, &id).await {
        Ok(true) => {}
        Ok(false) => return Err(IdentityError::NotFound("access rule", id)),
        Err(StoreError::Dangling) => {
            return Err(IdentityError::Forbidden(
                "The access rule is used by an application credential; delete that first.".into(),
            ));
        }
        Err(error) => return Err(error.into()),
    }
    app.store.commit(change).await?;
    caller.audit("delete", KIND, &id);
    Ok(no_content())
}
