//! `/v3/roles` and role inferences.

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

use super::{
    error::{ApiResult, IdentityError},
    fields, immutable,
    support::{Caller, collection, linked, member, no_content, target},
};
use crate::{
    app::App,
    http::{Base, Query},
    ids::identity_id,
    policy::Target,
    store::{
        Change, Current,
        roles::{Inference, Role},
    },
};

const NAME_MAX: usize = 255;
const KIND: &str = "data/security/role";
const OPTIONS: &[&str] = &[fields::IMMUTABLE];

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/roles", get(list).post(create))
        .route("/roles/{id}", get(show).patch(update).delete(delete))
        .route("/roles/{id}/implies", get(implied_by))
        .route(
            "/roles/{id}/implies/{implied}",
            get(implies).head(check_implies).put(imply).delete(unimply),
        )
        .route("/role_inferences", get(inferences))
}

/// The rule for a role: domain roles have rules of their own.
fn rule(verb: &str, domain: bool) -> String {
    let domain = if domain { "domain_" } else { "" };
    format!("identity:{verb}_{domain}role")
}

async fn authorized(
    app: &App,
    caller: &Caller,
    verb: &str,
    id: &str,
) -> Result<Role, IdentityError> {
    let found = app.store.role(id).await?;
    let rule = rule(
        verb,
        found.as_ref().is_some_and(|role| role.domain_id.is_some()),
    );
    caller.may(
        app,
        &rule,
        &target("role", found.as_ref().map(Role::to_json).as_ref()),
    )?;
    found.ok_or_else(|| IdentityError::NotFound("role", id.into()))
}

async fn list(State(app): State<Arc<App>>, caller: Caller, base: Base, query: Query) -> ApiResult {
    let domain = query.non_empty("domain_id");
    let name = if domain.is_some() {
        "identity:list_domain_roles"
    } else {
        "identity:list_roles"
    };
    caller.may(&app, name, &Target::new())?;
    let items = app
        .store
        .roles(domain)
        .await?
        .into_iter()
        .map(|role| linked(&base, "roles", role.to_json()))
        .collect();
    Ok(collection(&base, &query, "roles", &["name"], items))
}

async fn create(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    bytes: Bytes,
) -> ApiResult {
    let mut object = fields::body(&bytes, "role")?;
    let domain_id = fields::text(&mut object, "domain_id")?;
    caller.may(&app, &rule("create", domain_id.is_some()), &Target::new())?;
    if let Some(id) = &domain_id
        && app.store.domain(id).await?.is_none()
    {
        return Err(IdentityError::NotFound("domain", id.clone()));
    }
    let role = Role {
        id: identity_id(),
        domain_id,
        name: fields::name(&mut object, NAME_MAX)?,
        description: fields::text(&mut object, "description")?,
        options: fields::merged_options(&mut object, "{}", OPTIONS)?,
        extra: fields::merge_extra("{}", object),
    };
    let mut change = app.store.change_identity().await?;
    change
        .insert_role(&role)
        .await
        .map_err(IdentityError::duplicate("role", &role.name))?;
    app.store.commit(change).await?;
    caller.audit("create", KIND, &role.id);
    Ok(member(
        StatusCode::CREATED,
        "role",
        linked(&base, "roles", role.to_json()),
    ))
}

async fn show(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    Path(id): Path<String>,
) -> ApiResult {
    let role = authorized(&app, &caller, "get", &id).await?;
    Ok(member(
        StatusCode::OK,
        "role",
        linked(&base, "roles", role.to_json()),
    ))
}

async fn update(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    Path(id): Path<String>,
    bytes: Bytes,
) -> ApiResult {
    authorized(&app, &caller, "update", &id).await?;
    let mut object = fields::changes(&bytes, "role")?;
    let mut change = app.store.change_identity().await?;
    let mut role = for_change(&mut change, &id).await?;
    immutable::check_update("role", &role.name, &role.options, &object)?;
    role.options = fields::merged_options(&mut object, &role.options, OPTIONS)?;
    if let Some(name) = fields::new_name(&mut object, NAME_MAX)? {
        role.name = name;
    }
    if object.contains_key("description") {
        role.description = fields::text(&mut object, "description")?;
    }
    role.extra = fields::merge_extra(&role.extra, object);
    change
        .update_role(&role)
        .await
        .map_err(IdentityError::duplicate("role", &role.name))?;
    app.store.commit(change).await?;
    caller.audit("update", KIND, &role.id);
    Ok(member(
        StatusCode::OK,
        "role",
        linked(&base, "roles", role.to_json()),
    ))
}

async fn delete(State(app): State<Arc<App>>, caller: Caller, Path(id): Path<String>) -> ApiResult {
    authorized(&app, &caller, "delete", &id).await?;
    let mut change = app.store.change_identity().await?;
    let role = for_change(&mut change, &id).await?;
    immutable::check_delete("role", &role.name, &role.options)?;
    change.delete_role(&id).await?;
    app.store.commit(change).await?;
    caller.audit("delete", KIND, &id);
    Ok(no_content())
}

/// A role as it is at this change, to be changed or deleted by it.
async fn for_change(change: &mut Change, id: &str) -> Result<Current<Role>, IdentityError> {
    let found = change.role(id).await?;
    found.ok_or_else(|| IdentityError::NotFound("role", id.into()))
}

/// `{id, name, links}`.
fn brief(base: &Base, role: &Role) -> Value {
    linked(base, "roles", json!({"id": role.id, "name": role.name}))
}

/// The whole inference table, a line a prior role. Roles that imply nothing are not in it.
async fn inferences(State(app): State<Arc<App>>, caller: Caller, base: Base) -> ApiResult {
    caller.may(&app, "identity:list_role_inference_rules", &Target::new())?;
    let roles = app.store.all_roles().await?;
    let table = app.store.inferences().await?;
    let lines: Vec<Value> = roles
        .iter()
        .filter_map(|prior| {
            let implied: Vec<Value> = table
                .iter()
                .filter(|line| line.prior_role_id == prior.id)
                .filter_map(|line| roles.iter().find(|role| role.id == line.implied_role_id))
                .map(|role| brief(&base, role))
                .collect();
            (!implied.is_empty())
                .then(|| json!({"prior_role": brief(&base, prior), "implies": implied}))
        })
        .collect();
    let own = format!("{}/role_inferences", base.identity());
    Ok(Json(json!({"role_inferences": lines, "links": {"self": own}})).into_response())
}

async fn role(app: &App, id: &str) -> Result<Role, IdentityError> {
    app.store
        .role(id)
        .await?
        .ok_or_else(|| IdentityError::NotFound("role", id.into()))
}

async fn implied_by(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    Path(id): Path<String>,
) -> ApiResult {
    caller.may(&app, "identity:list_implied_roles", &Target::new())?;
    let prior = role(&app, &id).await?;
    let mut implied = Vec::new();
    for line in app
        .store
        .inferences()
        .await?
        .iter()
        .filter(|line| line.prior_role_id == id)
    {
        implied.push(brief(&base, &role(&app, &line.implied_role_id).await?));
    }
    let own = format!("{}/roles/{id}/implies", base.identity());
    let body = json!({
        "role_inference": {"prior_role": brief(&base, &prior), "implies": implied}, "links": {"self": own},
    });
    Ok(Json(body).into_response())
}

fn inference(base: &Base, prior: &Role, implied: &Role) -> Value {
    let own = format!(
        "{}/roles/{}/implies/{}",
        base.identity(),
        prior.id,
        implied.id
    );
    json!({
        "role_inference": {"prior_role": brief(base, prior), "implies": brief(base, implied)},
        "links": {"self": own},
    })
}

async fn implies(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    Path((prior, implied)): Path<(String, String)>,
) -> ApiResult {
    caller.may(&app, "identity:get_implied_role", &Target::new())?;
    let (prior, implied) = (role(&app, &prior).await?, role(&app, &implied).await?);
    let known = app
        .store
        .inferences()
        .await?
        .iter()
        .any(|line| line.prior_role_id == prior.id && line.implied_role_id == implied.id);
    if !known {
        return Err(IdentityError::NotFound("implied role", implied.id));
    }
    Ok(Json(inference(&base, &prior, &implied)).into_response())
}

/// `HEAD`: whether there is such an inference.
async fn check_implies(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((prior, implied)): Path<(String, String)>,
) -> ApiResult {
    caller.may(&app, "identity:check_implied_role", &Target::new())?;
    let table = app.store.inferences().await?;
    if table
        .iter()
        .any(|line| line.prior_role_id == prior && line.implied_role_id == implied)
    {
        Ok(no_content())
    } else {
        Err(IdentityError::NotFound("implied role", implied))
    }
}

/// Whether `from` implies `to` over any number of steps, or is it.
fn leads_to(table: &[Inference], from: &str, to: &str) -> bool {
    let mut reached = vec![from];
    let mut at = 0;
    while at < reached.len() {
        if reached[at] == to {
            return true;
        }
        let prior = reached[at];
        for line in table.iter().filter(|line| line.prior_role_id == prior) {
            if !reached.contains(&line.implied_role_id.as_str()) {
                reached.push(&line.implied_role_id);
            }
        }
        at += 1;
    }
    false
}

async fn imply(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    Path((prior, implied)): Path<(String, String)>,
) -> ApiResult {
    caller.may(&app, "identity:create_implied_role", &Target::new())?;
    let mut change = app.store.change_identity().await?;
    let prior = for_change(&mut change, &prior).await?;
    let implied = for_change(&mut change, &implied).await?;
    // Rules compare roles without regard to case.
    if implied.name.eq_ignore_ascii_case("admin") {
        return Err(IdentityError::Forbidden(
            "The role admin may not be implied by another role.".into(),
        ));
    }
    if prior.domain_id.is_none() && implied.domain_id.is_some() {
        return Err(IdentityError::Forbidden(
            "A global role may not imply a role of one domain.".into(),
        ));
    }
    if leads_to(&change.inferences().await?, &implied.id, &prior.id) {
        return Err(IdentityError::Forbidden(format!(
            "The role {} implies {} already; an inference back would be a circle.",
            implied.name, prior.name
        )));
    }
    change.insert_inference(&prior.id, &implied.id).await?;
    app.store.commit(change).await?;
    caller.audit("update", KIND, &prior.id);
    Ok((
        StatusCode::CREATED,
        Json(inference(&base, &prior, &implied)),
    )
        .into_response())
}

async fn unimply(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((prior, implied)): Path<(String, String)>,
) -> ApiResult {
    caller.may(&app, "identity:delete_implied_role", &Target::new())?;
    let mut change = app.store.change_identity().await?;
    if !change.delete_inference(&prior, &implied).await? {
        return Err(IdentityError::NotFound("implied role", implied));
    }
    app.store.commit(change).await?;
    caller.audit("update", KIND, &prior);
    Ok(no_content())
}
