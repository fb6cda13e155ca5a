//! `/v3/domains`.

use std::sync::Arc;

use axum::{
    Router,
    body::Bytes,
    extract::{Path, State},
    http::StatusCode,
    routing::get,
};

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
    store::{Change, Current, domains::Domain},
};

const NAME_MAX: usize = 64;
const KIND: &str = "data/security/domain";
const OPTIONS: &[&str] = &[fields::IMMUTABLE];
const EXPLICIT_ID: &str = "explicit_domain_id";
/// What only the project that acts as a domain has.
const OF_PROJECTS: &[&str] = &["is_domain", "parent_id", "domain_id"];

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/domains", get(list).post(create))
        .route("/domains/{id}", get(show).patch(update).delete(delete))
}

async fn list(State(app): State<Arc<App>>, caller: Caller, base: Base, query: Query) -> ApiResult {
    let wanted = match caller.confined_to() {
        Some(id) => Target::new().text("target.domain.id", id),
        None => Target::new(),
    };
    caller.may(&app, "identity:list_domains", &wanted)?;
    let items = app
        .store
        .domains()
        .await?
        .into_iter()
        .filter(|domain| caller.confined_to().is_none_or(|id| id == domain.id))
        .map(|domain| linked(&base, "domains", domain.to_json()))
        .collect();
    Ok(collection(
        &base,
        &query,
        "domains",
        &["name", "enabled", "id"],
        items,
    ))
}

async fn create(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    bytes: Bytes,
) -> ApiResult {
    let mut object = fields::body(&bytes, "domain")?;
    let domain = create_from(&app, &caller, &mut object).await?;
    Ok(member(
        StatusCode::CREATED,
        "domain",
        linked(&base, "domains", domain.to_json()),
    ))
}

/// Makes a domain out of what was sent.
pub(super) async fn create_from(
    app: &App,
    caller: &Caller,
    object: &mut fields::Object,
) -> Result<Domain, IdentityError> {
    caller.may(app, "identity:create_domain", &Target::new())?;
    let mut domain = Domain {
        id: new_id(app, object).await?,
        name: fields::name(object, NAME_MAX)?,
        description: fields::description(object)?.unwrap_or_default(),
        enabled: fields::boolean(object, "enabled")?.unwrap_or(true),
        options: fields::merged_options(object, "{}", OPTIONS)?,
        tags: "[]".into(),
        extra: String::new(),
    };
    if let Some(tags) = fields::texts(object, "tags")? {
        domain.set_tags(super::tags::checked(tags)?);
    }
    domain.extra = extra("{}", object);
    let mut change = app.store.change_identity().await?;
    change
        .insert_domain(&domain)
        .await
        .map_err(IdentityError::duplicate("domain", &domain.name))?;
    app.store.commit(change).await?;
    caller.audit("create", KIND, &domain.id);
    Ok(domain)
}

/// The id that is asked for, as sites with several clouds do, else a new one. It may not be that of a project: domains are projects too.
async fn new_id(app: &App, object: &mut fields::Object) -> Result<String, IdentityError> {
    let Some(id) = fields::text(object, EXPLICIT_ID)? else {
        return Ok(identity_id());
    };
    if id.len() != 32 || !id.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f')) {
        return Err(IdentityError::BadRequest(format!(
            "The attribute {EXPLICIT_ID} must be a UUID without dashes: 32 digits, 0 to 9 and a to f."
        )));
    }
    match app.store.project(&id).await? {
        Some(_) => Err(IdentityError::Conflict("project", id)),
        None => Ok(id),
    }
}

async fn authorized(
    app: &App,
    caller: &Caller,
    rule: &str,
    id: &str,
) -> Result<Domain, IdentityError> {
    let found = app.store.domain(id).await?;
    caller.may(
        app,
        rule,
        &target("domain", found.as_ref().map(Domain::to_json).as_ref()),
    )?;
    found.ok_or_else(|| IdentityError::NotFound("domain", id.into()))
}

async fn show(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    Path(id): Path<String>,
) -> ApiResult {
    let domain = authorized(&app, &caller, "identity:get_domain", &id).await?;
    Ok(member(
        StatusCode::OK,
        "domain",
        linked(&base, "domains", domain.to_json()),
    ))
}

async fn update(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    Path(id): Path<String>,
    bytes: Bytes,
) -> ApiResult {
    authorized(&app, &caller, "identity:update_domain", &id).await?;
    let object = fields::changes(&bytes, "domain")?;
    let domain = edit(&app, &caller, &id, object).await?;
    Ok(member(
        StatusCode::OK,
        "domain",
        linked(&base, "domains", domain.to_json()),
    ))
}

/// A domain as it is at this change, to be changed or deleted by it.
async fn for_change(change: &mut Change, id: &str) -> Result<Current<Domain>, IdentityError> {
    let found = change.domain(id).await?;
    found.ok_or_else(|| IdentityError::NotFound("domain", id.into()))
}

/// Takes what a change of a domain may change.
fn apply(domain: &mut Domain, object: &mut fields::Object) -> Result<(), IdentityError> {
    immutable::check_update("domain", &domain.name, &domain.options, object)?;
    domain.options = fields::merged_options(object, &domain.options, OPTIONS)?;
    if let Some(name) = fields::new_name(object, NAME_MAX)? {
        domain.name = name;
    }
    if let Some(description) = fields::description(object)? {
        domain.description = description;
    }
    if let Some(enabled) = fields::boolean(object, "enabled")? {
        domain.enabled = enabled;
    }
    if let Some(tags) = fields::texts(object, "tags")? {
        domain.set_tags(super::tags::checked(tags)?);
    }
    domain.extra = extra(&domain.extra, object);
    Ok(())
}

/// What is left of a request with what was kept, without what the project that acts as the domain has besides.
fn extra(stored: &str, object: &mut fields::Object) -> String {
    for name in OF_PROJECTS {
        object.remove(*name);
    }
    fields::merge_extra(stored, std::mem::take(object))
}

/// Changes a domain as a request says.
pub(super) async fn edit(
    app: &App,
    caller: &Caller,
    id: &str,
    mut object: fields::Object,
) -> Result<Domain, IdentityError> {
    let mut change = app.store.change_identity().await?;
    let mut domain = for_change(&mut change, id).await?;
    apply(&mut domain, &mut object)?;
    change
        .update_domain(&domain)
        .await
        .map_err(IdentityError::duplicate("domain", &domain.name))?;
    app.store.commit(change).await?;
    caller.audit("update", KIND, id);
    Ok(domain.into_inner())
}

async fn delete(State(app): State<Arc<App>>, caller: Caller, Path(id): Path<String>) -> ApiResult {
    authorized(&app, &caller, "identity:delete_domain", &id).await?;
    remove(&app, &caller, &id).await
}

/// Deletes a domain, which must be disabled.
pub(super) async fn remove(app: &App, caller: &Caller, id: &str) -> ApiResult {
    let mut change = app.store.change_identity().await?;
    let domain = for_change(&mut change, id).await?;
    immutable::check_delete("domain", &domain.name, &domain.options)?;
    if domain.enabled {
        return Err(IdentityError::Forbidden(
            "An enabled domain cannot be deleted; disable it first.".into(),
        ));
    }
    change.delete_domain(id).await?;
    app.store.commit(change).await?;
    caller.audit("delete", KIND, id);
    Ok(no_content())
}
