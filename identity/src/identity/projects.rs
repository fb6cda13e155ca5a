//! `/v3/projects`.

use std::sync::Arc;

use axum::{
    Router,
    body::Bytes,
    extract::{Path, State},
    http::StatusCode,
    routing::get,
};
use serde_json::{Value, json};

use super::{
    error::{ApiResult, IdentityError},
    fields, immutable,
    limits::LimitModel,
    long_list::{self, Kind, Rows},
    support::{Caller, collection, linked, member, narrowed_by, no_content, target},
};
use crate::{
    app::App,
    http::{Base, Query},
    ids::identity_id,
    policy::Target,
    store::{
        Change, Current, StoreResult, domains::Domain, limits::Limit, page::Page, projects::Project,
    },
};

const NAME_MAX: usize = 64;
/// Depth of the hierarchy, as Keystone's default.
const MAX_DEPTH: usize = 5;
const KIND: &str = "data/security/project";
const OPTIONS: &[&str] = &[fields::IMMUTABLE];
/// What a list may be filtered by.
const FILTERS: &[&str] = &["name", "enabled", "domain_id", "parent_id"];

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/projects", get(list).post(create))
        .route("/projects/{id}", get(show).patch(update).delete(delete))
}

/// The domain of a new user, group or project: as sent, else that of the token.
pub(super) async fn domain_of_request(
    app: &App,
    caller: &Caller,
    object: &mut fields::Object,
) -> Result<String, IdentityError> {
    let id = match fields::text(object, "domain_id")? {
        Some(id) => id,
        None => match &caller.0.scope {
            crate::token::Scope::Domain(domain) | crate::token::Scope::Project(_, domain) => {
                domain.id.clone()
            }
            _ => {
                return Err(IdentityError::BadRequest(
                    "The attribute domain_id is required with this token.".into(),
                ));
            }
        },
    };
    match app.store.domain(&id).await? {
        Some(_) => Ok(id),
        None => Err(IdentityError::NotFound("domain", id)),
    }
}

/// A project, if the rule permits what the caller wants with it.
pub(super) async fn authorized(
    app: &App,
    caller: &Caller,
    rule: &str,
    id: &str,
) -> Result<Project, IdentityError> {
    let found = app.store.project(id).await?;
    caller.may(
        app,
        rule,
        &target("project", found.as_ref().map(Project::to_json).as_ref()).text("project_id", id),
    )?;
    found.ok_or_else(|| IdentityError::NotFound("project", id.into()))
}

/// A project as it is at this change, to be changed or deleted by it.
pub(super) async fn for_change(
    change: &mut Change,
    id: &str,
) -> Result<Current<Project>, IdentityError> {
    let found = change.project(id).await?;
    found.ok_or_else(|| IdentityError::NotFound("project", id.into()))
}

async fn list(State(app): State<Arc<App>>, caller: Caller, base: Base, query: Query) -> ApiResult {
    let mut wanted = Target::new();
    if let Some(domain) = caller.confined_to() {
        wanted = wanted.text("target.domain_id", domain);
    }
    caller.may(&app, "identity:list_projects", &wanted)?;
    let domain = query.non_empty("domain_id").or(caller.confined_to());
    let has_tags = tag_filter(&query);
    if query.get("is_domain").is_some_and(crate::http::truthy) {
        let items = domains_as_projects(&app)
            .await?
            .into_iter()
            .filter(|object| caller.confined_to().is_none_or(|id| object["id"] == id))
            .map(|item| linked(&base, "projects", item))
            .collect();
        return Ok(collection(&base, &query, "projects", FILTERS, items));
    }
    let after = match query.non_empty("marker") {
        Some(id) => app.store.project(id).await?,
        None => None,
    };
    let kind = Kind {
        key: "projects",
        filters: FILTERS,
        narrowed: narrowed_by(&query, &["domain_id", "name", "parent_id"]),
    };
    let rows = Projects {
        domain: domain.map(str::to_owned),
        name: query.non_empty("name").map(str::to_owned),
        parent: query.non_empty("parent_id").map(str::to_owned),
        confined: caller.confined_to().map(str::to_owned),
        has_tags,
        app,
    };
    let after = after.map(|project| (project.name, project.id));
    long_list::list((base, query), kind, rows, after).await
}

/// Projects of a domain or of all, of one name, below one.
struct Projects<F> {
    app: Arc<App>,
    domain: Option<String>,
    name: Option<String>,
    parent: Option<String>,
    confined: Option<String>,
    has_tags: F,
}

impl<F: Fn(&[String]) -> bool + Send + Sync + 'static> Rows for Projects<F> {
    type Row = Project;

    async fn page(&self, page: &Page) -> StoreResult<Vec<Project>> {
        let (domain, name) = (self.domain.as_deref(), self.name.as_deref());
        let parent = self.parent.as_deref();
        self.app
            .store
            .projects_page(domain, name, parent, page)
            .await
    }

    fn place(row: &Project) -> (String, String) {
        (row.name.clone(), row.id.clone())
    }

    fn show(&self, row: Project) -> Option<Value> {
        let seen = self.confined.as_ref().is_none_or(|id| *id == row.domain_id);
        (seen && (self.has_tags)(&row.tags())).then(|| row.to_json())
    }
}

/// The four tag filters of the API, comma-separated.
fn tag_filter(query: &Query) -> impl Fn(&[String]) -> bool + Send + Sync + use<> {
    let read = |name: &str| -> Option<Vec<String>> {
        query
            .non_empty(name)
            .map(|tags| tags.split(',').map(str::to_owned).collect())
    };
    let (all, any, not_all, not_any) = (
        read("tags"),
        read("tags-any"),
        read("not-tags"),
        read("not-tags-any"),
    );
    move |tags| {
        let holds_all = |wanted: &Vec<String>| wanted.iter().all(|tag| tags.contains(tag));
        let holds_any = |wanted: &Vec<String>| wanted.iter().any(|tag| tags.contains(tag));
        all.as_ref().is_none_or(holds_all)
            && any.as_ref().is_none_or(holds_any)
            && !not_all.as_ref().is_some_and(holds_all)
            && !not_any.as_ref().is_some_and(holds_any)
    }
}

/// Every domain is also a project that acts as one.
async fn domains_as_projects(app: &App) -> Result<Vec<Value>, IdentityError> {
    Ok(app.store.domains().await?.iter().map(as_project).collect())
}

/// A domain as the project that acts as it.
pub(super) fn as_project(domain: &Domain) -> Value {
    let mut object = domain.to_json();
    object["is_domain"] = true.into();
    object["domain_id"] = Value::Null;
    object["parent_id"] = Value::Null;
    object
}

/// The domain whose project `id` names, if the rules for the project and for the domain permit what the caller wants
/// with it: who may not touch a domain may not do so by its other name.
async fn acting_domain(
    app: &App,
    caller: &Caller,
    verb: &str,
    id: &str,
) -> Result<Option<Domain>, IdentityError> {
    let Some(domain) = app.store.domain(id).await? else {
        return Ok(None);
    };
    let project = target("project", Some(&as_project(&domain)));
    caller.may(app, &format!("identity:{verb}_project"), &project)?;
    let own = target("domain", Some(&domain.to_json()));
    caller.may(app, &format!("identity:{verb}_domain"), &own)?;
    Ok(Some(domain))
}

async fn create(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    bytes: Bytes,
) -> ApiResult {
    let mut object = fields::body(&bytes, "project")?;
    if fields::boolean(&mut object, "is_domain")?.unwrap_or(false) {
        return create_domain(&app, &caller, &base, object).await;
    }
    caller.may(
        &app,
        "identity:create_project",
        &target("project", Some(&Value::Object(object.clone()))),
    )?;
    let name = fields::name(&mut object, NAME_MAX)?;
    let parent = fields::text(&mut object, "parent_id")?;
    let mut change = app.store.change_identity().await?;
    let place = place(&app, &caller, &mut change, &mut object, parent);
    let (domain_id, parent_id) = place.await?;
    let mut project = Project::new(identity_id(), domain_id, parent_id, name);
    project.description = fields::description(&mut object)?.unwrap_or_default();
    project.enabled = fields::boolean(&mut object, "enabled")?.unwrap_or(true);
    project.options = fields::merged_options(&mut object, "{}", OPTIONS)?;
    if let Some(tags) = fields::texts(&mut object, "tags")? {
        project.set_tags(&super::tags::checked(tags)?);
    }
    project.extra = fields::merge_extra("{}", object);
    change
        .insert_project(&project)
        .await
        .map_err(IdentityError::duplicate("project", &project.name))?;
    app.store.commit(change).await?;
    caller.audit("create", KIND, &project.id);
    Ok(member(
        StatusCode::CREATED,
        "project",
        linked(&base, "projects", project.to_json()),
    ))
}

/// A project that acts as a domain is a domain.
async fn create_domain(
    app: &App,
    caller: &Caller,
    base: &Base,
    mut object: fields::Object,
) -> ApiResult {
    for name in ["parent_id", "domain_id"] {
        if fields::text(&mut object, name)?.is_some() {
            return Err(IdentityError::BadRequest(format!(
                "A project that acts as a domain is at the top: leave {name} out."
            )));
        }
    }
    let domain = super::domains::create_from(app, caller, &mut object).await?;
    Ok(member(
        StatusCode::CREATED,
        "project",
        linked(base, "projects", as_project(&domain)),
    ))
}

/// Domain and parent of a new project: the parent decides the domain if one is given.
async fn place(
    app: &App,
    caller: &Caller,
    change: &mut Change,
    object: &mut fields::Object,
    parent: Option<String>,
) -> Result<(String, String), IdentityError> {
    let Some(parent) = parent else {
        // As Keystone: what names no domain is a bad request here, and not found for users and groups.
        let domain = domain_of_request(app, caller, object)
            .await
            .map_err(|e| match e {
                IdentityError::NotFound(what, id) => {
                    IdentityError::BadRequest(format!("Could not find {what}: {id}."))
                }
                other => other,
            })?;
        return Ok((domain.clone(), domain));
    };
    let asked = fields::text(object, "domain_id")?;
    let mismatch = || {
        IdentityError::BadRequest(
            "The parent project lies in another domain than domain_id says.".into(),
        )
    };
    if change.domain(&parent).await?.is_some() {
        return if asked.is_none_or(|domain| domain == parent) {
            Ok((parent.clone(), parent))
        } else {
            Err(mismatch())
        };
    }
    let above = change.project(&parent).await?.ok_or_else(|| {
        IdentityError::BadRequest(format!("There is no project {parent} to be the parent."))
    })?;
    if asked.is_some_and(|domain| domain != above.domain_id) {
        return Err(mismatch());
    }
    if !above.enabled {
        return Err(IdentityError::Forbidden(
            "The parent project is disabled; enable it first.".into(),
        ));
    }
    if app.config.limit_model == LimitModel::StrictTwoLevel {
        return Err(IdentityError::Forbidden(
            "There are no projects below projects here: limits are strict in two levels, domains and their projects."
                .into(),
        ));
    }
    if change.projects_above(&parent).await?.len() + 2 > MAX_DEPTH {
        return Err(IdentityError::Forbidden(format!(
            "The hierarchy may be {MAX_DEPTH} projects deep at most."
        )));
    }
    Ok((above.into_inner().domain_id, parent))
}

async fn show(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    query: Query,
    Path(id): Path<String>,
) -> ApiResult {
    for (list, ids) in [
        ("parents_as_list", "parents_as_ids"),
        ("subtree_as_list", "subtree_as_ids"),
    ] {
        if query.flag(list) && query.flag(ids) {
            return Err(IdentityError::BadRequest(format!(
                "{list} and {ids} cannot be asked for together."
            )));
        }
    }
    let (own, domain_id) = match acting_domain(&app, &caller, "get", &id).await? {
        Some(domain) => (as_project(&domain), domain.id),
        None => {
            let project = authorized(&app, &caller, "identity:get_project", &id).await?;
            (project.to_json(), project.domain_id)
        }
    };
    let mut shown = linked(&base, "projects", own);
    let is_domain = id == domain_id;
    let above = if is_domain {
        Vec::new()
    } else {
        app.store.ancestors(&id).await?
    };
    if query.flag("parents_as_ids") {
        shown["parents"] = if is_domain {
            Value::Null
        } else {
            parents(&domain_id, &above)
        };
    }
    if query.flag("parents_as_list") {
        shown["parents"] = visible(&app, &caller, &base, &query, &above).await?;
    }
    if query.flag("subtree_as_ids") || query.flag("subtree_as_list") {
        let all = app.store.projects(Some(&domain_id), None, None).await?;
        let tree = subtree(&all, &id, 0);
        shown["subtree"] = if query.flag("subtree_as_ids") {
            tree
        } else {
            let mut ids = Vec::new();
            flatten(&tree, &mut ids);
            visible(&app, &caller, &base, &query, &ids).await?
        };
    }
    Ok(member(StatusCode::OK, "project", shown))
}

/// Those of the projects on which the caller has a role, as the API lists them: `[{"project": {…}}]`; with
/// `include_limits` each with its limits.
async fn visible(
    app: &App,
    caller: &Caller,
    base: &Base,
    query: &Query,
    ids: &[String],
) -> Result<Value, IdentityError> {
    let own = app.store.project_ids_of_user(&caller.0.user.id).await?;
    let wanted: Vec<String> = ids.iter().filter(|id| own.contains(id)).cloned().collect();
    let found = app.store.projects_by_ids(&wanted).await?;
    let mut list = Vec::with_capacity(found.len());
    for project in &found {
        let mut object = linked(base, "projects", project.to_json());
        if query.flag("include_limits") {
            let limits = app.store.limits(Some(&project.id)).await?;
            object["limits"] = limits.iter().map(Limit::to_json).collect();
        }
        list.push(json!({ "project": object }));
    }
    Ok(list.into())
}

/// The ids in a tree of ids.
fn flatten(tree: &Value, out: &mut Vec<String>) {
    for (id, below) in tree.as_object().into_iter().flatten() {
        out.push(id.clone());
        flatten(below, out);
    }
}

/// The ids of all projects below one, however deep.
pub(super) async fn ids_below(app: &App, project: &Project) -> Result<Vec<String>, IdentityError> {
    let all = app
        .store
        .projects(Some(&project.domain_id), None, None)
        .await?;
    let mut ids = Vec::new();
    flatten(&subtree(&all, &project.id, 0), &mut ids);
    Ok(ids)
}

/// `{parent: {grandparent: {domain: null}}}`.
fn parents(domain_id: &str, above: &[String]) -> Value {
    above.iter().rev().fold(
        json!({ domain_id: null }),
        |tree, id| json!({ id.as_str(): tree }),
    )
}

/// `{child: {grandchild: null}}`, null where there are none.
fn subtree(all: &[Project], id: &str, depth: usize) -> Value {
    let children: serde_json::Map<String, Value> = all
        .iter()
        .filter(|project| project.parent_id == id && depth < 64)
        .map(|project| (project.id.clone(), subtree(all, &project.id, depth + 1)))
        .collect();
    if children.is_empty() {
        Value::Null
    } else {
        Value::Object(children)
    }
}

async fn update(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    Path(id): Path<String>,
    bytes: Bytes,
) -> ApiResult {
    if acting_domain(&app, &caller, "update", &id).await?.is_some() {
        let object = fields::body(&bytes, "project")?;
        let domain = super::domains::edit(&app, &caller, &id, object).await?;
        let mut shown = linked(&base, "projects", as_project(&domain));
        shown["extra"] = Value::Object(crate::store::json_object(&domain.extra));
        return Ok(member(StatusCode::OK, "project", shown));
    }
    authorized(&app, &caller, "identity:update_project", &id).await?;
    let mut object = fields::body(&bytes, "project")?;
    let mut change = app.store.change_identity().await?;
    let mut project = for_change(&mut change, &id).await?;
    immutable::check_update("project", &project.name, &project.options, &object)?;
    if fields::boolean(&mut object, "is_domain")?.unwrap_or(false) {
        return Err(IdentityError::BadRequest(
            "The attribute is_domain of a project cannot be changed.".into(),
        ));
    }
    if let Some(parent) = fields::text(&mut object, "parent_id")?
        && parent != project.parent_id
    {
        return Err(IdentityError::Forbidden(
            "A project cannot be moved: its parent_id stays.".into(),
        ));
    }
    for (name, current) in [("domain_id", &project.domain_id), ("id", &project.id)] {
        if fields::text(&mut object, name)?.is_some_and(|other| other != *current) {
            return Err(IdentityError::BadRequest(format!(
                "The attribute {name} of a project cannot be changed."
            )));
        }
    }
    if let Some(name) = fields::new_name(&mut object, NAME_MAX)? {
        project.name = name;
    }
    if let Some(description) = fields::description(&mut object)? {
        project.description = description;
    }
    if let Some(enabled) = fields::boolean(&mut object, "enabled")? {
        if !enabled
            && change
                .projects_below(&id)
                .await?
                .iter()
                .any(|child| child.enabled)
        {
            return Err(IdentityError::Forbidden(
                "A project with enabled projects below it cannot be disabled; disable those first."
                    .into(),
            ));
        }
        if enabled && !project.enabled {
            let above = change.projects_above(&id).await?;
            if above.iter().any(|parent| !parent.enabled) {
                return Err(IdentityError::Forbidden(
                    "A project below a disabled one cannot be enabled; enable that one first."
                        .into(),
                ));
            }
        }
        project.enabled = enabled;
    }
    project.options = fields::merged_options(&mut object, &project.options, OPTIONS)?;
    if let Some(tags) = fields::texts(&mut object, "tags")? {
        project.set_tags(&super::tags::checked(tags)?);
    }
    project.extra = fields::merge_extra(&project.extra, object);
    change
        .update_project(&project)
        .await
        .map_err(IdentityError::duplicate("project", &project.name))?;
    app.store.commit(change).await?;
    caller.audit("update", KIND, &project.id);
    let mut shown = linked(&base, "projects", project.to_json());
    shown["extra"] = Value::Object(crate::store::json_object(&project.extra));
    Ok(member(StatusCode::OK, "project", shown))
}

async fn delete(State(app): State<Arc<App>>, caller: Caller, Path(id): Path<String>) -> ApiResult {
    if acting_domain(&app, &caller, "delete", &id).await?.is_some() {
        return super::domains::remove(&app, &caller, &id).await;
    }
    authorized(&app, &caller, "identity:delete_project", &id).await?;
    let mut change = app.store.change_identity().await?;
    let project = for_change(&mut change, &id).await?;
    immutable::check_delete("project", &project.name, &project.options)?;
    if !change.projects_below(&id).await?.is_empty() {
        return Err(IdentityError::Forbidden(
            "A project with projects below it cannot be deleted; delete those first.".into(),
        ));
    }
    change.delete_project(&id).await?;
    change.dissociate_all(&id).await?;
    app.store.commit(change).await?;
    caller.audit("delete", KIND, &id);
    Ok(no_content())
}
