//! `/v3/limits`: the values of projects and domains that take the place of a registered limit.

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
    LimitModel, description, list_body,
    model::{Placed, breaks_strict_two_level},
    needed, nothing_more, number, place_exists, resource_name,
};
use crate::{
    app::App,
    http::{Base, Query},
    identity::{
        error::{ApiResult, IdentityError},
        fields::{self, Object},
        support::{Caller, collection, linked, member, no_content},
    },
    ids::identity_id,
    policy::Target,
    store::{Change, limits::Limit},
    token::Scope,
};

const KIND: &str = "limit";
const AUDIT: &str = "data/security/limit";
const PATH: &str = "limits";

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/limits", get(list).post(create))
        .route("/limits/model", get(show_model))
        .route("/limits/{id}", get(show).patch(update).delete(delete))
}

fn shown(base: &Base, limit: &Limit) -> Value {
    linked(base, PATH, limit.to_json())
}

async fn show_model(State(app): State<Arc<App>>, caller: Caller) -> ApiResult {
    caller.may(&app, "identity:get_limit_model", &Target::new())?;
    Ok(Json(json!({"model": app.config.limit_model.to_json()})).into_response())
}

/// Everyone sees what concerns the own project or domain; who has the whole cloud sees all.
async fn list(State(app): State<Arc<App>>, caller: Caller, base: Base, query: Query) -> ApiResult {
    caller.may(&app, "identity:list_limits", &Target::new())?;
    let context = &caller.0;
    let all = matches!(context.scope, Scope::System)
        || context
            .roles
            .iter()
            .any(|role| role.name == "admin" || role.name == "service");
    let found = match (all, &context.scope) {
        (true, _) => app.store.limits(None).await?,
        (false, Scope::Project(project, _)) => app.store.limits(Some(&project.id)).await?,
        (false, Scope::Domain(domain)) => {
            let projects = app
                .store
                .projects(Some(&domain.id), None, None)
                .await?
                .into_iter()
                .map(|project| project.id)
                .collect::<std::collections::HashSet<_>>();
            let mut found = app.store.limits(None).await?;
            found.retain(|limit| match &limit.project_id {
                Some(project) => projects.contains(project),
                None => limit.domain_id.as_deref() == Some(domain.id.as_str()),
            });
            found
        }
        (false, _) => Vec::new(),
    };
    let items = found.iter().map(|limit| shown(&base, limit)).collect();
    let filters = [
        "service_id",
        "region_id",
        "resource_name",
        "project_id",
        "domain_id",
    ];
    Ok(collection(&base, &query, PATH, &filters, items))
}

async fn show(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    Path(id): Path<String>,
) -> ApiResult {
    let found = app.store.limit(&id).await?;
    let mut target = Target::new();
    if let Some(limit) = &found {
        let mut object = limit.to_json();
        if let Some(project) = &limit.project_id {
            let project = app.store.project(project).await?;
            object["project"] = project.map_or(Value::Null, |project| project.to_json());
        } else if let Some(domain) = &limit.domain_id {
            let domain = app.store.domain(domain).await?;
            object["domain"] = domain.map_or(Value::Null, |domain| domain.to_json());
        }
        target = target.with("target.limit", &object);
    }
    caller.may(&app, "identity:get_limit", &target)?;
    let limit = found.ok_or(IdentityError::NotFound(KIND, id))?;
    Ok(member(StatusCode::OK, "limit", shown(&base, &limit)))
}

/// A limit as asked for; which registered limit it belongs to is looked up later.
fn wanted(mut object: Object) -> Result<Limit, IdentityError> {
    let project = object.contains_key("project_id");
    if project == object.contains_key("domain_id") {
        return Err(IdentityError::BadRequest(
            "A limit is for a project or for a domain: give exactly one of project_id and domain_id.".into(),
        ));
    }
    let (project_id, domain_id) = if project {
        let id = fields::text(&mut object, "project_id")?;
        (Some(needed(id, "project_id")?), None)
    } else {
        let id = fields::text(&mut object, "domain_id")?;
        (None, Some(needed(id, "domain_id")?))
    };
    let limit = Limit {
        id: identity_id(),
        registered_limit_id: String::new(),
        project_id,
        domain_id,
        service_id: needed(fields::text(&mut object, "service_id")?, "service_id")?,
        region_id: fields::text(&mut object, "region_id")?,
        resource_name: needed(resource_name(&mut object)?, "resource_name")?,
        resource_limit: number(&mut object, "resource_limit")?.ok_or_else(|| {
            IdentityError::BadRequest("The attribute resource_limit is required.".into())
        })?,
        description: description(&mut object)?,
    };
    nothing_more(&object)?;
    Ok(limit)
}

/// Puts the limit to where its target is: a project that acts as a domain is the domain.
async fn settle(app: &App, limit: &mut Limit) -> Result<(), IdentityError> {
    place_exists(app, Some(&limit.service_id), limit.region_id.as_deref()).await?;
    if let Some(id) = &limit.project_id
        && app.store.project(id).await?.is_none()
    {
        if app.store.domain(id).await?.is_none() {
            return Err(IdentityError::BadRequest(format!(
                "There is no project {id}; give the id of one."
            )));
        }
        limit.domain_id = limit.project_id.take();
    }
    if let Some(id) = &limit.domain_id
        && app.store.domain(id).await?.is_none()
    {
        return Err(IdentityError::BadRequest(format!(
            "There is no domain {id}; give the id of one."
        )));
    }
    Ok(())
}

/// Asks the model about the limits of one resource as they are inside of a change that wrote the `touched` ones.
async fn obey_model(
    app: &App,
    change: &mut Change,
    registered_limit_id: &str,
    touched: &[String],
) -> Result<(), IdentityError> {
    if app.config.limit_model == LimitModel::Flat {
        return Ok(());
    }
    let default = change
        .default_limit(registered_limit_id)
        .await?
        .unwrap_or(-1);
    let limits = change.limits_of(registered_limit_id).await?;
    let mut domains = Vec::with_capacity(limits.len());
    for limit in &limits {
        domains.push(match (&limit.domain_id, &limit.project_id) {
            (Some(domain), _) => domain.clone(),
            (None, Some(project)) => {
                let project = change.project(project).await?;
                project.map_or_else(String::new, |project| project.into_inner().domain_id)
            }
            (None, None) => String::new(),
        });
    }
    let placed: Vec<Placed<'_>> = limits
        .iter()
        .zip(&domains)
        .map(|(limit, domain)| Placed {
            id: &limit.id,
            domain_id: domain,
            project_id: limit.project_id.as_deref(),
            value: limit.resource_limit,
        })
        .collect();
    match breaks_strict_two_level(&placed, default, |id| touched.iter().any(|one| one == id)) {
        None => Ok(()),
        Some(found) => Err(IdentityError::Forbidden(format!(
            "Invalid resource limit: project {} would have {}, which is more than its domain {} has.",
            found.project_id.unwrap_or_default(),
            if found.value < 0 {
                "no limit".into()
            } else {
                found.value.to_string()
            },
            found.domain_id,
        ))),
    }
}

/// All of a request or none.
async fn create(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    bytes: Bytes,
) -> ApiResult {
    let mut limits = list_body(&bytes, PATH)?
        .into_iter()
        .map(wanted)
        .collect::<Result<Vec<_>, _>>()?;
    caller.may(&app, "identity:create_limits", &Target::new())?;
    for limit in &mut limits {
        settle(&app, limit).await?;
    }
    let mut change = app.store.change_identity().await?;
    for limit in &mut limits {
        limit.registered_limit_id = change
            .registered_limit_of(
                &limit.service_id,
                limit.region_id.as_deref(),
                &limit.resource_name,
            )
            .await?
            .map(|registered| registered.id)
            .ok_or_else(|| {
                IdentityError::Forbidden(
                    "There is no registered limit for this resource of the service (in this region); \
                     register one first."
                        .into(),
                )
            })?;
        change
            .insert_limit(limit)
            .await
            .map_err(IdentityError::duplicate(KIND, &limit.resource_name))?;
    }
    let touched: Vec<String> = limits.iter().map(|limit| limit.id.clone()).collect();
    for limit in &limits {
        obey_model(&app, &mut change, &limit.registered_limit_id, &touched).await?;
    }
    app.store.commit(change).await?;
    for id in &touched {
        caller.audit("create", AUDIT, id);
    }
    let shown: Vec<Value> = limits.iter().map(|limit| shown(&base, limit)).collect();
    Ok((StatusCode::CREATED, Json(json!({ PATH: shown }))).into_response())
}

async fn update(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    Path(id): Path<String>,
    bytes: Bytes,
) -> ApiResult {
    let mut object = fields::body(&bytes, "limit")?;
    caller.may(&app, "identity:update_limit", &Target::new())?;
    let mut change = app.store.change_identity().await?;
    let mut limit = change
        .limit(&id)
        .await?
        .ok_or_else(|| IdentityError::NotFound(KIND, id.clone()))?;
    if let Some(value) = number(&mut object, "resource_limit")? {
        limit.resource_limit = value;
    }
    if object.contains_key("description") {
        limit.description = description(&mut object)?;
    }
    nothing_more(&object)?;
    change.update_limit(&limit).await?;
    let touched = std::slice::from_ref(&limit.id);
    obey_model(&app, &mut change, &limit.registered_limit_id, touched).await?;
    app.store.commit(change).await?;
    caller.audit("update", AUDIT, &id);
    Ok(member(StatusCode::OK, "limit", shown(&base, &limit)))
}

async fn delete(State(app): State<Arc<App>>, caller: Caller, Path(id): Path<String>) -> ApiResult {
    caller.may(&app, "identity:delete_limit", &Target::new())?;
    let mut change = app.store.change_identity().await?;
    if !change.delete_limit(&id).await? {
        return Err(IdentityError::NotFound(KIND, id));
    }
    app.store.commit(change).await?;
    caller.audit("delete", AUDIT, &id);
    Ok(no_content())
}
