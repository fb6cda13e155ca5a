//! `/v3/role_assignments`: the stored ones, or what follows from them.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use axum::{Router, extract::State, routing::get};
use serde_json::{Value, json};

use super::{
    error::{ApiResult, IdentityError},
    support::{Caller, collection},
};
use crate::{
    app::App,
    http::{Base, Query},
    policy::Target,
    store::{
        assignments::Assignment, domains::Domain, groups::Group, projects::Project, roles::Role,
        users::User,
    },
};

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new().route("/role_assignments", get(list))
}

/// Every record that an assignment may name; loaded once for a list.
struct Records {
    users: HashMap<String, User>,
    groups: HashMap<String, Group>,
    projects: HashMap<String, Project>,
    domains: HashMap<String, Domain>,
    roles: HashMap<String, Role>,
}

impl Records {
    async fn load(app: &App) -> Result<Self, IdentityError> {
        Ok(Self {
            users: app
                .store
                .users(None, None)
                .await?
                .into_iter()
                .map(|x| (x.id.clone(), x))
                .collect(),
            groups: app
                .store
                .groups(None, None)
                .await?
                .into_iter()
                .map(|x| (x.id.clone(), x))
                .collect(),
            projects: app
                .store
                .projects(None, None, None)
                .await?
                .into_iter()
                .map(|x| (x.id.clone(), x))
                .collect(),
            domains: app
                .store
                .domains()
                .await?
                .into_iter()
                .map(|x| (x.id.clone(), x))
                .collect(),
            roles: app
                .store
                .all_roles()
                .await?
                .into_iter()
                .map(|x| (x.id.clone(), x))
                .collect(),
        })
    }

    fn domain_of_target<'a>(&'a self, assignment: &'a Assignment) -> Option<&'a str> {
        match assignment.target_type.as_str() {
            "domain" => Some(&assignment.target_id),
            "project" => self
                .projects
                .get(&assignment.target_id)
                .map(|project| project.domain_id.as_str()),
            _ => None,
        }
    }

    fn domain_brief(&self, id: &str) -> Value {
        json!({"id": id, "name": self.domains.get(id).map(|domain| domain.name.as_str())})
    }
}

/// An assignment with where it came from.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Line {
    assignment: Assignment,
    /// The group that gave it to this user.
    membership: Option<String>,
    /// The target above from which it was inherited: its type and id.
    inherited_from: Option<(String, String)>,
    /// The role that implied it.
    prior_role: Option<String>,
}

async fn list(State(app): State<Arc<App>>, caller: Caller, base: Base, query: Query) -> ApiResult {
    check_filters(&query)?;
    let tree = authorized(&app, &caller, &query).await?;
    super::directory::before_list(&app, None).await?;
    let effective_wanted = query.flag("effective");
    let stored = match query.non_empty("user.id").filter(|_| effective_wanted) {
        Some(user) => app.store.assignments_reaching(user).await?,
        None => app.store.assignments().await?,
    };
    let mut lines: Vec<Line> = stored
        .into_iter()
        .map(|assignment| Line {
            assignment,
            membership: None,
            inherited_from: None,
            prior_role: None,
        })
        .collect();
    let records = Records::load(&app).await?;
    if effective_wanted {
        lines = effective(&app, &records, lines).await?;
    }
    let names = query.flag("include_names");
    let items = lines
        .iter()
        .filter(|line| wanted(line, &query, tree.as_deref()))
        .filter(|line| {
            caller
                .confined_to()
                .is_none_or(|domain| records.domain_of_target(&line.assignment) == Some(domain))
        })
        .map(|line| show(&base, &records, line, names))
        .collect();
    Ok(collection(&base, &query, "role_assignments", &[], items))
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

/// Groups become their members, inherited ones reach the projects below, implied roles are added.
async fn effective(
    app: &App,
    records: &Records,
    lines: Vec<Line>,
) -> Result<Vec<Line>, IdentityError> {
    let mut members: HashMap<String, Vec<String>> = HashMap::new();
    for id in records.groups.keys() {
        let users = app.store.users_of_group(id).await?;
        members.insert(id.clone(), users.into_iter().map(|user| user.id).collect());
    }
    let mut out: Vec<Line> = lines
        .into_iter()
        .flat_map(|line| with_members(&members, line))
        .flat_map(|line| reached(records, line))
        .collect();
    let mut implied: HashMap<String, Vec<String>> = HashMap::new();
    for inference in app.store.inferences().await? {
        implied
            .entry(inference.prior_role_id)
            .or_default()
            .push(inference.implied_role_id);
    }
    // Every derivation is a line of its own, so that each can be traced; the same one twice is not.
    let mut seen: HashSet<Line> = out.iter().cloned().collect();
    let mut at = 0;
    while at < out.len() {
        let line = out[at].clone();
        at += 1;
        for role in implied.get(&line.assignment.role_id).into_iter().flatten() {
            let mut next = line.clone();
            next.prior_role = Some(line.assignment.role_id.clone());
            next.assignment.role_id.clone_from(role);
            if seen.insert(next.clone()) {
                out.push(next);
            }
        }
    }
    // A domain's role counts only through what it implies.
    out.retain(|line| {
        records
            .roles
            .get(&line.assignment.role_id)
            .is_some_and(|role| role.domain_id.is_none())
    });
    Ok(out)
}

fn with_members(members: &HashMap<String, Vec<String>>, line: Line) -> Vec<Line> {
    if line.assignment.actor_type != "group" {
        return vec![line];
    }
    let group = line.assignment.actor_id.clone();
    members
        .get(&group)
        .into_iter()
        .flatten()
        .map(|user| {
            let mut mine = line.clone();
            mine.assignment.actor_type = "user".into();
            mine.assignment.actor_id.clone_from(user);
            mine.membership = Some(group.clone());
            mine
        })
        .collect()
}

fn reached(records: &Records, line: Line) -> Vec<Line> {
    if !line.assignment.inherited {
        return vec![line];
    }
    let below = |project: &Project| {
        if line.assignment.target_type == "domain" {
            return project.domain_id == line.assignment.target_id;
        }
        let mut at = project;
        for _ in 0..64 {
            if at.parent_id == line.assignment.target_id {
                return true;
            }
            let Some(parent) = records.projects.get(&at.parent_id) else {
                return false;
            };
            at = parent;
        }
        false
    };
    records
        .projects
        .values()
        .filter(|project| below(project))
        .map(|project| {
            let mut mine = line.clone();
            mine.inherited_from = Some((
                mine.assignment.target_type.clone(),
                mine.assignment.target_id.clone(),
            ));
            mine.assignment.target_type = "project".into();
            mine.assignment.target_id.clone_from(&project.id);
            mine
        })
        .collect()
}

fn wanted(line: &Line, query: &Query, tree: Option<&[String]>) -> bool {
    let assignment = &line.assignment;
    let actor =
        |kind: &str, wanted: &str| assignment.actor_type == kind && assignment.actor_id == wanted;
    let target =
        |kind: &str, wanted: &str| assignment.target_type == kind && assignment.target_id == wanted;
    query
        .non_empty("user.id")
        .is_none_or(|id| actor("user", id))
        && query
            .non_empty("group.id")
            .is_none_or(|id| actor("group", id))
        && query
            .non_empty("role.id")
            .is_none_or(|id| assignment.role_id == id)
        && query
            .non_empty("scope.project.id")
            .is_none_or(|id| match tree {
                Some(ids) => {
                    assignment.target_type == "project" && ids.contains(&assignment.target_id)
                }
                None => target("project", id),
            })
        && query
            .non_empty("scope.domain.id")
            .is_none_or(|id| target("domain", id))
        && query
            .non_empty("scope.system")
            .is_none_or(|_| assignment.target_type == "system")
        && query
            .non_empty("scope.OS-INHERIT:inherited_to")
            .is_none_or(|to| assignment.inherited == (to == "projects"))
}

fn show(base: &Base, records: &Records, line: &Line, names: bool) -> Value {
    let assignment = &line.assignment;
    let root = base.identity();
    let mut role = json!({"id": assignment.role_id});
    let mut actor = json!({"id": assignment.actor_id});
    let mut target = json!({"id": assignment.target_id});
    if names {
        if let Some(found) = records.roles.get(&assignment.role_id) {
            role["name"] = found.name.as_str().into();
            if let Some(domain) = &found.domain_id {
                role["domain"] = records.domain_brief(domain);
            }
        }
        let found = match assignment.actor_type.as_str() {
            "user" => records
                .users
                .get(&assignment.actor_id)
                .map(|user| (&user.name, &user.domain_id)),
            _ => records
                .groups
                .get(&assignment.actor_id)
                .map(|group| (&group.name, &group.domain_id)),
        };
        if let Some((name, domain)) = found {
            actor["name"] = name.as_str().into();
            actor["domain"] = records.domain_brief(domain);
        }
        if let Some(project) = records.projects.get(&assignment.target_id) {
            target["name"] = project.name.as_str().into();
            target["domain"] = records.domain_brief(&project.domain_id);
        } else if let Some(domain) = records.domains.get(&assignment.target_id) {
            target["name"] = domain.name.as_str().into();
        }
    }
    let mut scope = match assignment.target_type.as_str() {
        "system" => json!({"system": {"all": true}}),
        kind => json!({ kind: target }),
    };
    if assignment.inherited {
        scope["OS-INHERIT:inherited_to"] = "projects".into();
    }
    json!({"role": role, assignment.actor_type.as_str(): actor, "scope": scope, "links": links(&root, line)})
}

/// Where the assignment behind a line is kept, and by which membership and inference it counts here.
fn links(root: &str, line: &Line) -> Value {
    let assignment = &line.assignment;
    let (kind, id) = match &line.inherited_from {
        Some((kind, id)) => (kind.as_str(), id.as_str()),
        None => (
            assignment.target_type.as_str(),
            assignment.target_id.as_str(),
        ),
    };
    let place = match kind {
        "system" => "system".to_owned(),
        kind => format!("{kind}s/{id}"),
    };
    let (actors, actor) = match &line.membership {
        Some(group) => ("groups".to_owned(), group),
        None => (format!("{}s", assignment.actor_type), &assignment.actor_id),
    };
    let role = line.prior_role.as_ref().unwrap_or(&assignment.role_id);
    let (head, tail) = if assignment.inherited {
        ("/OS-INHERIT", "/inherited_to_projects")
    } else {
        ("", "")
    };
    let mut links =
        json!({"assignment": format!("{root}{head}/{place}/{actors}/{actor}/roles/{role}{tail}")});
    if let Some(group) = &line.membership {
        links["membership"] = format!("{root}/groups/{group}/users/{}", assignment.actor_id).into();
    }
    if let Some(prior) = &line.prior_role {
        // Keystone writes the implied role first.
        links["prior_role"] =
            format!("{root}/prior_role/{}/implies/{prior}", assignment.role_id).into();
    }
    links
}
