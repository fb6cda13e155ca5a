//! `/v3/auth`: logging in, asking what a token is worth, revoking it.

mod ahead;
mod issue;
mod login;
mod methods;
mod proof;
mod receipt;
mod scope;
mod token_body;
mod tokens;
mod totp;

pub(super) use issue::issue;
pub(super) use login::issued;
pub(super) use proof::{Failure, Proof};
pub(super) use token_body::token_body;
#[cfg(test)]
pub(super) use totp::code_now;

use std::sync::Arc;

use axum::{
    Router,
    extract::State,
    response::{IntoResponse, Json},
    routing::get,
};
use serde_json::{Value, json};

use super::{
    error::{ApiResult, IdentityError},
    support::{Caller, collection, linked},
};
use crate::{
    app::App,
    http::{Base, Query},
};

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route(
            "/auth/tokens",
            get(tokens::validate)
                .post(login::login)
                .delete(tokens::revoke),
        )
        .route("/auth/catalog", get(catalog))
        .route("/auth/projects", get(projects))
        .route("/auth/domains", get(domains))
        .route("/auth/system", get(system))
}

/// As Keystone: the catalog is that of a project. A token of another scope carries one, where it has a scope at all.
async fn catalog(State(app): State<Arc<App>>, caller: Caller, base: Base) -> ApiResult {
    let Some(project) = caller.0.project_id() else {
        return Err(IdentityError::Forbidden(
            "A project-scoped token is required to produce a service catalog.".into(),
        ));
    };
    let list = super::catalog::catalog(&app, Some(project)).await?;
    let own = format!("{}/auth/catalog", base.identity());
    Ok(Json(json!({"catalog": list, "links": {"self": own}})).into_response())
}

async fn projects(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    query: Query,
) -> ApiResult {
    let ids = app.store.project_ids_of_user(&caller.0.user.id).await?;
    let items = app
        .store
        .projects_by_ids(&ids)
        .await?
        .iter()
        .filter(|project| project.enabled)
        .map(|project| linked(&base, "projects", project.to_json()))
        .collect();
    Ok(collection(
        &base,
        &query,
        "projects",
        &["name", "domain_id"],
        items,
    ))
}

async fn domains(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    query: Query,
) -> ApiResult {
    let ids = app.store.domain_ids_of_user(&caller.0.user.id).await?;
    let items = app
        .store
        .domains()
        .await?
        .iter()
        .filter(|domain| domain.enabled && ids.contains(&domain.id))
        .map(|domain| linked(&base, "domains", domain.to_json()))
        .collect();
    Ok(collection(&base, &query, "domains", &["name"], items))
}

async fn system(State(app): State<Arc<App>>, caller: Caller, base: Base) -> ApiResult {
    let roles = app
        .store
        .effective_roles(&caller.0.user.id, "system", "all")
        .await?;
    let list: Vec<Value> = if roles.is_empty() {
        Vec::new()
    } else {
        vec![json!({"all": true})]
    };
    let own = format!("{}/auth/system", base.identity());
    Ok(Json(json!({"system": list, "links": {"self": own}})).into_response())
}
