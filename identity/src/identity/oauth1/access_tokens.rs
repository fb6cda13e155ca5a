//! `/v3/users/{id}/OS-OAUTH1/access_tokens`: what a user authorized, and taking it back.

use std::sync::Arc;

use axum::{
    Router,
    extract::{Path, State},
    http::StatusCode,
    routing::get,
};
use serde_json::{Value, json};

use super::records::{ACCESS_TOKEN, expires_at, role_ids};
use crate::{
    app::App,
    http::{Base, Query},
    identity::{
        error::{ApiResult, IdentityError},
        support::{Caller, collection, linked, member, no_content},
    },
    policy::Target,
    store::{documents::Document, roles::Role},
    time::token_time,
};

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/users/{user_id}/OS-OAUTH1/access_tokens", get(list))
        .route(
            "/users/{user_id}/OS-OAUTH1/access_tokens/{id}",
            get(show).delete(delete),
        )
        .route(
            "/users/{user_id}/OS-OAUTH1/access_tokens/{id}/roles",
            get(roles),
        )
        .route(
            "/users/{user_id}/OS-OAUTH1/access_tokens/{id}/roles/{role_id}",
            get(role),
        )
}

fn shown(base: &Base, token: &Document) -> Value {
    let user = token.user_id.as_deref().unwrap_or_default();
    let path = format!("users/{user}/OS-OAUTH1/access_tokens");
    let mut object = linked(
        base,
        &path,
        json!({
            "id": token.id, "consumer_id": token.text("consumer_id"), "project_id": token.project_id,
            "authorizing_user_id": user, "expires_at": expires_at(token).map(token_time),
        }),
    );
    object["links"]["roles"] = format!("{}/{path}/{}/roles", base.identity(), token.id).into();
    object
}

fn may(app: &App, caller: &Caller, rule: &str, user_id: &str) -> Result<(), IdentityError> {
    let target = Target::new()
        .text("user_id", user_id)
        .text("target.user.id", user_id);
    caller.may(app, rule, &target)?;
    caller.in_person(false, "OAuth1 access tokens are managed")
}

async fn owned(app: &App, user_id: &str, id: &str) -> Result<Document, IdentityError> {
    let token = ACCESS_TOKEN.load(app, id).await?;
    if token.user_id.as_deref() == Some(user_id) {
        Ok(token)
    } else {
        Err(ACCESS_TOKEN.missing(id))
    }
}

async fn list(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    query: Query,
    Path(user_id): Path<String>,
) -> ApiResult {
    may(&app, &caller, "identity:list_access_tokens", &user_id)?;
    let found = app
        .store
        .documents(ACCESS_TOKEN.name, Some(&user_id))
        .await?;
    let items = found.iter().map(|token| shown(&base, token)).collect();
    Ok(collection(&base, &query, "access_tokens", &[], items))
}

async fn show(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    Path((user_id, id)): Path<(String, String)>,
) -> ApiResult {
    may(&app, &caller, "identity:get_access_token", &user_id)?;
    let token = owned(&app, &user_id, &id).await?;
    Ok(member(StatusCode::OK, "access_token", shown(&base, &token)))
}

async fn delete(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((user_id, id)): Path<(String, String)>,
) -> ApiResult {
    may(&app, &caller, "identity:delete_access_token", &user_id)?;
    owned(&app, &user_id, &id).await?;
    let mut change = app.store.change_identity().await?;
    change.delete_document(ACCESS_TOKEN.name, &id).await?;
    app.store.commit(change).await?;
    caller.audit("delete", ACCESS_TOKEN.audit, &id);
    Ok(no_content())
}

/// The roles that a token was authorized for, as far as they are still there.
async fn roles_of(app: &App, user_id: &str, id: &str) -> Result<Vec<Role>, IdentityError> {
    let token = owned(app, user_id, id).await?;
    let mut roles = Vec::new();
    for id in role_ids(&token) {
        roles.extend(app.store.role(&id).await?);
    }
    Ok(roles)
}

/// As in Keystone, without the description.
fn shown_role(base: &Base, role: &Role) -> Value {
    let mut shown = linked(base, "roles", role.to_json());
    if let Some(object) = shown.as_object_mut() {
        object.remove("description");
    }
    shown
}

async fn roles(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    query: Query,
    Path((user_id, id)): Path<(String, String)>,
) -> ApiResult {
    may(&app, &caller, "identity:list_access_token_roles", &user_id)?;
    let items = roles_of(&app, &user_id, &id)
        .await?
        .iter()
        .map(|role| shown_role(&base, role))
        .collect();
    Ok(collection(&base, &query, "roles", &[], items))
}

async fn role(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    Path((user_id, id, role_id)): Path<(String, String, String)>,
) -> ApiResult {
    may(&app, &caller, "identity:get_access_token_role", &user_id)?;
    let role = roles_of(&app, &user_id, &id)
        .await?
        .into_iter()
        .find(|role| role.id == role_id)
        .ok_or(IdentityError::NotFound("role", role_id))?;
    Ok(member(StatusCode::OK, "role", shown_role(&base, &role)))
}
