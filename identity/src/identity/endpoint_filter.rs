//! OS-EP-FILTER: endpoint groups, and which endpoints the catalog of a project shows. A project without any sees all.

use std::sync::Arc;

use axum::{
    Router,
    extract::{Path, State},
    response::{IntoResponse, Json},
    routing::{get, put},
};
use serde_json::{Value, json};

use super::{
    catalog::INTERFACES,
    documents::{Family, check_optional_text, check_text},
    error::{ApiResult, IdentityError},
    fields::Object,
    support::{Caller, collection, linked, no_content},
};
use crate::{
    app::App,
    http::{Base, Query},
    policy::Target,
    store::{StoreError, catalog::Endpoint, documents::Document, projects::Project},
};

const GROUP: Family = Family {
    name: "endpoint_group",
    kind: "endpoint group",
    key: "endpoint_group",
    keys: "endpoint_groups",
    path: "OS-EP-FILTER/endpoint_groups",
    audit: "data/security/service",
    filters: &["name"],
    check: check_group,
};
/// What the filters of a group may name.
const FILTERS: [&str; 3] = ["service_id", "region_id", "interface"];
const ENDPOINT: &str = "endpoint_project";
const GROUP_PROJECT: &str = "endpoint_group_project";

pub(super) fn routes() -> Router<Arc<App>> {
    GROUP
        .routes()
        .route(
            "/OS-EP-FILTER/endpoint_groups/{id}/projects",
            get(projects_of_group),
        )
        .route(
            "/OS-EP-FILTER/endpoint_groups/{id}/endpoints",
            get(endpoints_of_group),
        )
        .route(
            "/OS-EP-FILTER/endpoint_groups/{id}/projects/{project}",
            put(add_group).get(has_group).delete(remove_group),
        )
        .route(
            "/OS-EP-FILTER/endpoints/{id}/projects",
            get(projects_of_endpoint),
        )
        .route(
            "/OS-EP-FILTER/projects/{id}/endpoints",
            get(endpoints_of_project),
        )
        .route(
            "/OS-EP-FILTER/projects/{id}/endpoint_groups",
            get(groups_of_project),
        )
        .route(
            "/OS-EP-FILTER/projects/{project}/endpoints/{id}",
            put(add_endpoint).get(has_endpoint).delete(remove_endpoint),
        )
}

fn check_group(object: &mut Object, new: bool) -> Result<(), IdentityError> {
    check_text(object, "name", new)?;
    check_optional_text(object, "description")?;
    let bad = || {
        IdentityError::BadRequest(format!(
            "The attribute filters must be an object of {}, with an interface of {}.",
            FILTERS.join(", "),
            INTERFACES.join(", ")
        ))
    };
    match object.get("filters") {
        Some(Value::Object(filters)) => {
            let known = filters.iter().all(|(name, value)| {
                FILTERS.contains(&name.as_str())
                    && match (name.as_str(), value) {
                        ("interface", Value::String(value)) => INTERFACES.contains(&value.as_str()),
                        // Of endpoints that are in no region.
                        ("region_id", Value::Null) => true,
                        (_, value) => value.is_string(),
                    }
            });
            if !known {
                return Err(bad());
            }
            // As in Keystone, which lets them be emptied later: then the group holds every endpoint.
            if new && filters.is_empty() {
                return Err(IdentityError::BadRequest(
                    "The attribute filters of a new endpoint group may not be empty.".into(),
                ));
            }
        }
        None if !new => {}
        _ => return Err(bad()),
    }
    if new {
        object.entry("description").or_insert(Value::Null);
    }
    Ok(())
}

/// Whether an endpoint is in a group.
fn holds(group: &Document, endpoint: &Endpoint) -> bool {
    let shown = endpoint.to_json();
    group
        .object()
        .get("filters")
        .and_then(Value::as_object)
        .is_some_and(|filters| filters.iter().all(|(name, value)| shown[name] == *value))
}

/// The ids of the endpoints that a project was given; none means all.
pub(super) async fn endpoint_ids(app: &App, project_id: &str) -> Result<Vec<String>, StoreError> {
    let mut ids = app.store.associated_with(ENDPOINT, project_id).await?;
    let groups = app.store.associated_with(GROUP_PROJECT, project_id).await?;
    if groups.is_empty() {
        return Ok(ids);
    }
    let endpoints = app.store.endpoints().await?;
    for id in groups {
        if let Some(group) = app.store.document(GROUP.name, &id).await? {
            ids.extend(
                endpoints
                    .iter()
                    .filter(|endpoint| holds(&group, endpoint))
                    .map(|endpoint| endpoint.id.clone()),
            );
        }
    }
    ids.sort();
    ids.dedup();
    Ok(ids)
}

async fn endpoint(app: &App, id: &str) -> Result<Endpoint, IdentityError> {
    app.store
        .endpoints()
        .await?
        .into_iter()
        .find(|one| one.id == id)
        .ok_or_else(|| IdentityError::NotFound("endpoint", id.to_owned()))
}

async fn project(app: &App, id: &str) -> Result<Project, IdentityError> {
    app.store
        .project(id)
        .await?
        .ok_or_else(|| IdentityError::NotFound("project", id.to_owned()))
}

async fn list_projects(app: &App, base: &Base, query: &Query, ids: &[String]) -> ApiResult {
    let found = app.store.projects_by_ids(ids).await?;
    let items = found
        .iter()
        .map(|one| linked(base, "projects", one.to_json()))
        .collect();
    Ok(collection(base, query, "projects", &[], items))
}

fn list_endpoints<'a>(
    base: &Base,
    query: &Query,
    found: impl Iterator<Item = &'a Endpoint>,
) -> ApiResult {
    let items = found
        .map(|one| linked(base, "endpoints", one.to_json()))
        .collect();
    Ok(collection(base, query, "endpoints", &[], items))
}

async fn projects_of_group(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    query: Query,
    Path(id): Path<String>,
) -> ApiResult {
    let rule = "identity:list_projects_associated_with_endpoint_group";
    caller.may(&app, rule, &Target::new())?;
    GROUP.load(&app, &id).await?;
    let ids = app.store.associated(GROUP_PROJECT, &id).await?;
    list_projects(&app, &base, &query, &ids).await
}

async fn endpoints_of_group(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    query: Query,
    Path(id): Path<String>,
) -> ApiResult {
    let rule = "identity:list_endpoints_associated_with_endpoint_group";
    caller.may(&app, rule, &Target::new())?;
    let group = GROUP.load(&app, &id).await?;
    let all = app.store.endpoints().await?;
    list_endpoints(&base, &query, all.iter().filter(|one| holds(&group, one)))
}

async fn projects_of_endpoint(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    query: Query,
    Path(id): Path<String>,
) -> ApiResult {
    caller.may(&app, "identity:list_projects_for_endpoint", &Target::new())?;
    endpoint(&app, &id).await?;
    let ids = app.store.associated(ENDPOINT, &id).await?;
    list_projects(&app, &base, &query, &ids).await
}

async fn endpoints_of_project(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    query: Query,
    Path(id): Path<String>,
) -> ApiResult {
    caller.may(&app, "identity:list_endpoints_for_project", &Target::new())?;
    project(&app, &id).await?;
    let ids = endpoint_ids(&app, &id).await?;
    let all = app.store.endpoints().await?;
    list_endpoints(
        &base,
        &query,
        all.iter().filter(|one| ids.contains(&one.id)),
    )
}

async fn groups_of_project(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    query: Query,
    Path(id): Path<String>,
) -> ApiResult {
    caller.may(
        &app,
        "identity:list_endpoint_groups_for_project",
        &Target::new(),
    )?;
    project(&app, &id).await?;
    let mut items = Vec::new();
    for group in app.store.associated_with(GROUP_PROJECT, &id).await? {
        items.push(GROUP.shown(&base, &GROUP.load(&app, &group).await?));
    }
    Ok(collection(&base, &query, "endpoint_groups", &[], items))
}

/// Adds a pair, removes it, or says whether it is there.
async fn set(
    app: &App,
    caller: &Caller,
    family: &str,
    first: &str,
    second: &str,
    on: bool,
) -> ApiResult {
    let mut change = app.store.change_identity().await?;
    if on {
        // No association may outlive what it is between.
        if family == GROUP_PROJECT {
            GROUP.for_change(&mut change, first).await?;
        } else if change.endpoint(first).await?.is_none() {
            return Err(IdentityError::NotFound("endpoint", first.to_owned()));
        }
        super::projects::for_change(&mut change, second).await?;
        change.associate(family, first, second).await?;
    } else if !change.dissociate(family, first, second).await? {
        return Err(IdentityError::NotFound("association", first.to_owned()));
    }
    app.store.commit(change).await?;
    caller.audit("update", GROUP.audit, first);
    Ok(no_content())
}

async fn is_set(app: &App, family: &str, first: &str, second: &str) -> Result<(), IdentityError> {
    let all = app.store.associated(family, first).await?;
    if all.iter().any(|id| id == second) {
        Ok(())
    } else {
        Err(IdentityError::NotFound("association", first.to_owned()))
    }
}

type Pair = Path<(String, String)>;

async fn add_group(State(app): State<Arc<App>>, caller: Caller, Path((id, to)): Pair) -> ApiResult {
    caller.may(
        &app,
        "identity:add_endpoint_group_to_project",
        &Target::new(),
    )?;
    set(&app, &caller, GROUP_PROJECT, &id, &to, true).await
}

async fn has_group(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    Path((id, of)): Pair,
) -> ApiResult {
    caller.may(
        &app,
        "identity:get_endpoint_group_in_project",
        &Target::new(),
    )?;
    is_set(&app, GROUP_PROJECT, &id, &of).await?;
    let own = format!("{}/{}/{id}/projects/{of}", base.identity(), GROUP.path);
    let pair = json!({"endpoint_group_id": id, "project_id": of, "links": {"self": own}});
    Ok(Json(json!({ "project_endpoint_group": pair })).into_response())
}

async fn remove_group(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((id, of)): Pair,
) -> ApiResult {
    caller.may(
        &app,
        "identity:remove_endpoint_group_from_project",
        &Target::new(),
    )?;
    set(&app, &caller, GROUP_PROJECT, &id, &of, false).await
}

async fn add_endpoint(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((to, id)): Pair,
) -> ApiResult {
    caller.may(&app, "identity:add_endpoint_to_project", &Target::new())?;
    set(&app, &caller, ENDPOINT, &id, &to, true).await
}

async fn has_endpoint(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((of, id)): Pair,
) -> ApiResult {
    caller.may(&app, "identity:check_endpoint_in_project", &Target::new())?;
    is_set(&app, ENDPOINT, &id, &of).await?;
    Ok(no_content())
}

async fn remove_endpoint(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((of, id)): Pair,
) -> ApiResult {
    caller.may(
        &app,
        "identity:remove_endpoint_from_project",
        &Target::new(),
    )?;
    set(&app, &caller, ENDPOINT, &id, &of, false).await
}
