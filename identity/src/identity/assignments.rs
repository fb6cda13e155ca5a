//! `/v3/role_assignments`: the stored ones, or what follows from them.

use std::sync::Arc;

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::header,
    response::{IntoResponse, Response},
    routing::get,
};
use serde::Serialize;

use super::{
    error::{ApiResult, IdentityError},
    support::Caller,
};
use crate::{
    app::App,
    directory::{Directory, Line},
    http::{Base, Query},
    policy::Target,
};

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new().route("/role_assignments", get(list))
}

async fn list(State(app): State<Arc<App>>, caller: Caller, base: Base, query: Query) -> ApiResult {
    check_filters(&query)?;
    let tree = authorized(&app, &caller, &query).await?;
    super::directory::before_list(&app, None).await?;
    let directory = app.directory().await?;
    let confined = caller.confined_to();
    // All that decides the answer but the records themselves; a tree of projects is worked out from those.
    let question = format!("{} {} {}", base.0, confined.unwrap_or_default(), query.raw);
    if let Some(answer) = directory.answer(&question) {
        return Ok(json_answer(answer));
    }
    let mut lines = if query.flag("effective") {
        directory.effective(query.non_empty("user.id"))
    } else {
        directory.stored()
    };
    lines.retain(|line| {
        wanted(line, &query, tree.as_deref())
            && confined.is_none_or(|domain| domain_of_target(&directory, line) == Some(domain))
    });
    let answer = Bytes::from(show_all(&base, &query, &directory, &lines)?);
    directory.keep(question, &answer);
    Ok(json_answer(answer))
}

fn json_answer(body: Bytes) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

fn domain_of_target<'a>(directory: &'a Directory, line: &Line<'a>) -> Option<&'a str> {
    match line.target_type {
        "domain" => Some(line.target_id),
        "project" => {
            let project = directory.projects.get(line.target_id);
            project.map(|project| &*project.domain_id)
        }
        _ => None,
    }
}

/// Asks the policy. With `include_subtree`, the projects that are wanted: one and all below it.
async fn authorized(
    app: &App,
    caller: &Caller,
    query: &Query,
) -> Result<Option<Vec<String>>, IdentityError> {
    let mut target = Target::new();
    if !query.flag("include_subtree") {
        if let Some(domain) = caller.confined_to() {
            target = target.text("target.domain_id", domain);
        }
        caller.may(app, "identity:list_role_assignments", &target)?;
        return Ok(None);
    }
    let wanted = query.non_empty("scope.project.id");
    let project = match wanted {
        Some(id) => app.store.project(id).await?,
        None => None,
    };
    if let Some(project) = &project {
        target = target
            .with("target.project", &project.to_json())
            .text("target.domain_id", &project.domain_id);
    }
    caller.may(app, "identity:list_role_assignments_for_tree", &target)?;
    let id = wanted.ok_or_else(|| {
        IdentityError::BadRequest("include_subtree needs scope.project.id.".into())
    })?;
    let project = project.ok_or_else(|| IdentityError::NotFound("project", id.to_owned()))?;
    let mut ids = super::projects::ids_below(app, &project).await?;
    ids.push(project.id);
    Ok(Some(ids))
}

/// Combinations that have no meaning.
fn check_filters(query: &Query) -> Result<(), IdentityError> {
    let has = |name: &str| query.non_empty(name).is_some();
    let effective = query.flag("effective");
    let clash = [
        (has("user.id") && has("group.id"), "user.id and group.id"),
        (
            has("scope.domain.id") && has("scope.project.id"),
            "scope.domain.id and scope.project.id",
        ),
        (
            has("scope.system") && has("scope.project.id"),
            "scope.system and scope.project.id",
        ),
        (
            has("scope.system") && has("scope.domain.id"),
            "scope.system and scope.domain.id",
        ),
        (effective && has("group.id"), "effective and group.id"),
        (
            effective && has("scope.domain.id") && has("scope.OS-INHERIT:inherited_to"),
            "effective, scope.domain.id and scope.OS-INHERIT:inherited_to",
        ),
    ];
    match clash.iter().find(|(clashes, _)| *clashes) {
        Some((_, which)) => Err(IdentityError::BadRequest(format!(
            "The filters {which} cannot be used together."
        ))),
        None => Ok(()),
    }
}

fn wanted(line: &Line<'_>, query: &Query, tree: Option<&[String]>) -> bool {
    let actor = |kind: &str, wanted: &str| line.actor_type == kind && line.actor_id == wanted;
    let target = |kind: &str, wanted: &str| line.target_type == kind && line.target_id == wanted;
    query
        .non_empty("user.id")
        .is_none_or(|id| actor("user", id))
        && query
            .non_empty("group.id")
            .is_none_or(|id| actor("group", id))
        && query
            .non_empty("role.id")
            .is_none_or(|id| line.role_id == id)
        && query
            .non_empty("scope.project.id")
            .is_none_or(|id| match tree {
                Some(ids) => {
                    line.target_type == "project" && ids.iter().any(|id| id == line.target_id)
                }
                None => target("project", id),
            })
        && query
            .non_empty("scope.domain.id")
            .is_none_or(|id| target("domain", id))
        && query
            .non_empty("scope.system")
            // Measured: a list of effective assignments has none of the system, and takes no notice of this filter.
            .is_none_or(|_| query.flag("effective") || line.target_type == "system")
        && query
            .non_empty("scope.OS-INHERIT:inherited_to")
            .is_none_or(|to| line.inherited == (to == "projects"))
}

#[derive(Serialize)]
struct Shown<'a> {
    role_assignments: Vec<Item<'a>>,
    links: ListLinks<'a>,
}

#[derive(Serialize)]
struct ListLinks<'a> {
    next: Option<&'a str>,
    #[serde(rename = "self")]
    own: &'a str,
    previous: Option<&'a str>,
}

#[derive(Serialize)]
struct Item<'a> {
    role: Object<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<Object<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<Object<'a>>,
    scope: Scope<'a>,
    links: Links,
}

#[derive(Serialize)]
struct Object<'a> {
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    domain: Option<Domain<'a>>,
}

#[derive(Serialize)]
struct Domain<'a> {
    id: &'a str,
    name: Option<&'a str>,
}

#[derive(Serialize)]
struct System {
    all: bool,
}

#[derive(Serialize)]
struct Scope<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    project: Option<Object<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    domain: Option<Object<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    system: Option<System>,
    #[serde(
        rename = "OS-INHERIT:inherited_to",
        skip_serializing_if = "Option::is_none"
    )]
    inherited_to: Option<&'a str>,
}

#[derive(Serialize)]
struct Links {
    assignment: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    membership: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prior_role: Option<String>,
}

/// The list as JSON; with a limit, its beginning.
fn show_all(
    base: &Base,
    query: &Query,
    directory: &Directory,
    lines: &[Line<'_>],
) -> Result<Vec<u8>, IdentityError> {
    let root = base.identity();
    let names = query.flag("include_names");
    let limit = query.get("limit").and_then(|limit| limit.parse().ok());
    let limit = limit.filter(|limit| (1..lines.len()).contains(limit));
    // An assignment has no id to go on from.
    let next = limit.map(|limit| format!("{root}{}?limit={limit}&marker=", query.path));
    let mut own = format!("{root}{}", query.path);
    if !query.raw.is_empty() {
        own = format!("{own}?{}", query.raw);
    }
    let shown = Shown {
        role_assignments: lines
            .iter()
            .take(limit.unwrap_or(lines.len()))
            .map(|line| show(&root, directory, line, names))
            .collect(),
        links: ListLinks {
            next: next.as_deref(),
            own: &own,
            previous: None,
        },
    };
    Ok(serde_json::to_vec(&shown)?)
}

fn show<'a>(root: &str, directory: &'a Directory, line: &Line<'a>, names: bool) -> Item<'a> {
    let domain = |id: &'a str| Domain {
        id,
        name: directory.domains.get(id).map(|name| &**name),
    };
    let plain = |id: &'a str| Object {
        id,
        name: None,
        domain: None,
    };
    let (mut role, mut actor) = (plain(line.role_id), plain(line.actor_id));
    let mut target = plain(line.target_id);
    let is_user = line.actor_type == "user";
    if names {
        let actors = if is_user {
            &directory.users
        } else {
            &directory.groups
        };
        for (object, found) in [
            (&mut role, directory.roles.get(line.role_id)),
            (&mut actor, actors.get(line.actor_id)),
        ] {
            object.name = found.map(|found| &*found.name);
            object.domain = found
                .and_then(|found| found.domain_id.as_deref())
                .map(domain);
        }
        if let Some(project) = directory.projects.get(line.target_id) {
            target.name = Some(&project.name);
            target.domain = Some(domain(&project.domain_id));
        } else {
            target.name = directory.domains.get(line.target_id).map(|name| &**name);
        }
    }
    let mut scope = Scope {
        project: None,
        domain: None,
        system: None,
        inherited_to: line.inherited.then_some("projects"),
    };
    match line.target_type {
        "system" => scope.system = Some(System { all: true }),
        "domain" => scope.domain = Some(target),
        _ => scope.project = Some(target),
    }
    let (user, group) = if is_user {
        (Some(actor), None)
    } else {
        (None, Some(actor))
    };
    Item {
        role,
        user,
        group,
        scope,
        links: links(root, line),
    }
}

/// Where the assignment behind a line is kept, and by which membership and inference it counts here.
fn links(root: &str, line: &Line<'_>) -> Links {
    let (kind, id) = line
        .inherited_from
        .unwrap_or((line.target_type, line.target_id));
    let place = match kind {
        "system" => "system".to_owned(),
        kind => format!("{kind}s/{id}"),
    };
    let (actors, actor) = match line.membership {
        Some(group) => ("group", group),
        None => (line.actor_type, line.actor_id),
    };
    let role = line.prior_role.unwrap_or(line.role_id);
    let (head, tail) = if line.inherited {
        ("/OS-INHERIT", "/inherited_to_projects")
    } else {
        ("", "")
    };
    Links {
        assignment: format!("{root}{head}/{place}/{actors}s/{actor}/roles/{role}{tail}"),
        membership: line
            .membership
            .map(|group| format!("{root}/groups/{group}/users/{}", line.actor_id)),
        // Keystone writes the implied role first.
        prior_role: line
            .prior_role
            .map(|prior| format!("{root}/prior_role/{}/implies/{prior}", line.role_id)),
    }
}
