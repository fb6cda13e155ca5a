//! Role assignments, made and removed one by one: on projects, domains and the system, for users and
//! groups, plain and inherited.

use std::sync::Arc;

use axum::{
    Router,
    extract::{Path, State},
    routing::{MethodRouter, get, put},
};
use serde_json::{Value, json};

use super::{
    error::{ApiResult, IdentityError},
    support::{Caller, collection, linked, no_content},
};
use crate::{
    app::App,
    http::{Base, Query},
    policy::Target,
    store::{Change, assignments::Assignment},
};

const KIND: &str = "data/security/role-assignment";

pub(super) fn routes() -> Router<Arc<App>> {
    let mut router = Router::new();
    for (plural, kind) in [
        ("projects", TargetKind::Project),
        ("domains", TargetKind::Domain),
    ] {
        for (actors, actor) in [("users", ActorKind::User), ("groups", ActorKind::Group)] {
            let path = format!("/{plural}/{{target}}/{actors}/{{actor}}/roles");
            let inherited = format!("/OS-INHERIT{path}/{{role}}/inherited_to_projects");
            router = router
                .route(&path, lists(kind, actor, false))
                .route(&format!("{path}/{{role}}"), singles(kind, actor, false))
                .route(
                    &format!("/OS-INHERIT{path}/inherited_to_projects"),
                    lists(kind, actor, true),
                )
                .route(&inherited, singles(kind, actor, true));
        }
    }
    for (actors, actor) in [("users", ActorKind::User), ("groups", ActorKind::Group)] {
        let path = format!("/system/{actors}/{{actor}}/roles");
        router = router
            .route(
                &path,
                get(
                    move |State(app): State<Arc<App>>,
                          caller: Caller,
                          base: Base,
                          query: Query,
                          Path(id): Path<String>| async move {
                        let place = Place {
                            kind: TargetKind::System,
                            target: "all".into(),
                            actor,
                            actor_id: id,
                            inherited: false,
                        };
                        list(&app, &caller, &base, &query, &place).await
                    },
                ),
            )
            .route(&format!("{path}/{{role}}"), system_singles(actor));
    }
    router
}

#[derive(Clone, Copy, PartialEq)]
enum TargetKind {
    Project,
    Domain,
    System,
}

#[derive(Clone, Copy, PartialEq)]
enum ActorKind {
    User,
    Group,
}

impl TargetKind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Project => "project",
            Self::Domain => "domain",
            Self::System => "system",
        }
    }
}

impl ActorKind {
    fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Group => "group",
        }
    }
}

/// Where an assignment is: the path without its role.
struct Place {
    kind: TargetKind,
    target: String,
    actor: ActorKind,
    actor_id: String,
    inherited: bool,
}

impl Place {
    fn assignment(&self, role_id: &str) -> Assignment {
        Assignment {
            actor_type: self.actor.as_str().into(),
            actor_id: self.actor_id.clone(),
            target_type: self.kind.as_str().into(),
            target_id: self.target.clone(),
            role_id: role_id.into(),
            inherited: self.inherited,
        }
    }

    /// The policy rule for a verb here.
    fn rule(&self, verb: &str) -> String {
        let plural = if verb == "list" { "s" } else { "" };
        match self.kind {
            TargetKind::System => format!(
                "identity:{verb}_system_grant{plural}_for_{}",
                self.actor.as_str()
            ),
            _ => format!("identity:{verb}_grant{plural}"),
        }
    }
}

type Ids = Path<(String, String, String)>;

fn lists(kind: TargetKind, actor: ActorKind, inherited: bool) -> MethodRouter<Arc<App>> {
    get(
        move |State(app): State<Arc<App>>,
              caller: Caller,
              base: Base,
              query: Query,
              Path((target, actor_id)): Path<(String, String)>| async move {
            let place = Place {
                kind,
                target,
                actor,
                actor_id,
                inherited,
            };
            list(&app, &caller, &base, &query, &place).await
        },
    )
}

fn singles(kind: TargetKind, actor: ActorKind, inherited: bool) -> MethodRouter<Arc<App>> {
    let place = move |(target, actor_id, role): (String, String, String)| {
        (
            Place {
                kind,
                target,
                actor,
                actor_id,
                inherited,
            },
            role,
        )
    };
    put(
        move |State(app): State<Arc<App>>, caller: Caller, Path(ids): Ids| async move {
            let (place, role) = place(ids);
            create(&app, &caller, &place, &role).await
        },
    )
    .delete(
        move |State(app): State<Arc<App>>, caller: Caller, Path(ids): Ids| async move {
            let (place, role) = place(ids);
            revoke(&app, &caller, &place, &role).await
        },
    )
    .get(
        move |State(app): State<Arc<App>>, caller: Caller, Path(ids): Ids| async move {
            let (place, role) = place(ids);
            check(&app, &caller, &place, &role).await
        },
    )
}

fn system_singles(actor: ActorKind) -> MethodRouter<Arc<App>> {
    let place = move |actor_id: String| Place {
        kind: TargetKind::System,
        target: "all".into(),
        actor,
        actor_id,
        inherited: false,
    };
    put(
        move |State(app): State<Arc<App>>,
              caller: Caller,
              Path((id, role)): Path<(String, String)>| async move {
            create(&app, &caller, &place(id), &role).await
        },
    )
    .delete(
        move |State(app): State<Arc<App>>,
              caller: Caller,
              Path((id, role)): Path<(String, String)>| async move {
            revoke(&app, &caller, &place(id), &role).await
        },
    )
    .get(
        move |State(app): State<Arc<App>>,
              caller: Caller,
              Path((id, role)): Path<(String, String)>| async move {
            check(&app, &caller, &place(id), &role).await
        },
    )
}

/// Loads what the path names, asks the policy, and says what is missing only to those who may know.
async fn authorized(
    app: &App,
    caller: &Caller,
    verb: &str,
    place: &Place,
    role_id: Option<&str>,
) -> Result<(), IdentityError> {
    let actor = match place.actor {
        ActorKind::User => app
            .store
            .user(&place.actor_id)
            .await?
            .map(|user| user.to_json()),
        ActorKind::Group => app
            .store
            .group(&place.actor_id)
            .await?
            .map(|group| group.to_json()),
    };
    let object = match place.kind {
        TargetKind::Project => app
            .store
            .project(&place.target)
            .await?
            .map(|project| project.to_json()),
        TargetKind::Domain => app
            .store
            .domain(&place.target)
            .await?
            .map(|domain| domain.to_json()),
        TargetKind::System => Some(json!({})),
    };
    let role = match role_id {
        Some(id) => app.store.role(id).await?.map(|role| role.to_json()),
        None => Some(json!({})),
    };
    let mut target = Target::new();
    for (kind, value) in [
        (place.actor.as_str(), &actor),
        (place.kind.as_str(), &object),
        ("role", &role),
    ] {
        if let Some(value) = value {
            target = target.with(&format!("target.{kind}"), value);
        }
    }
    caller.may(app, &place.rule(verb), &target)?;
    let missing = |kind, id: &str| IdentityError::NotFound(kind, id.to_owned());
    actor.ok_or_else(|| missing(place.actor.as_str(), &place.actor_id))?;
    let object = object.ok_or_else(|| missing(place.kind.as_str(), &place.target))?;
    let role = role.ok_or_else(|| missing("role", role_id.unwrap_or_default()))?;
    fits(place.kind, &object, &role)
}

/// A domain's role means nothing on the projects of another one, nor on the system.
fn fits(kind: TargetKind, object: &Value, role: &Value) -> Result<(), IdentityError> {
    let Some(domain) = role["domain_id"].as_str() else {
        return Ok(());
    };
    match kind {
        TargetKind::Project if object["domain_id"] != domain => Err(IdentityError::Forbidden(
            "The role belongs to another domain than the project; use a role of the project's domain or a global one."
                .into(),
        )),
        TargetKind::System => Err(IdentityError::BadRequest(
            "A role of a domain cannot be assigned on the system; use a global role.".into(),
        )),
        _ => Ok(()),
    }
}

async fn list(app: &App, caller: &Caller, base: &Base, query: &Query, place: &Place) -> ApiResult {
    authorized(app, caller, "list", place, None).await?;
    let held = app
        .store
        .grants(
            (place.actor.as_str(), &place.actor_id),
            (place.kind.as_str(), &place.target),
            place.inherited,
        )
        .await?;
    let items: Vec<Value> = app
        .store
        .all_roles()
        .await?
        .iter()
        .filter(|role| held.iter().any(|grant| grant.role_id == role.id))
        .map(|role| linked(base, "roles", role.to_json()))
        .collect();
    Ok(collection(base, query, "roles", &["name"], items))
}

/// No assignment may outlive whom and what it is about: the id of a user of a directory comes back with the user.
async fn still_there(change: &mut Change, place: &Place) -> Result<(), IdentityError> {
    let (actor, target) = (&place.actor_id, &place.target);
    let missing = |kind, id: &str| Err(IdentityError::NotFound(kind, id.to_owned()));
    let known = match place.actor {
        ActorKind::User => change.user(actor).await?.is_some(),
        ActorKind::Group => change.group(actor).await?.is_some(),
    };
    if !known {
        return missing(place.actor.as_str(), actor);
    }
    let known = match place.kind {
        TargetKind::Project => change.project(target).await?.is_some(),
        TargetKind::Domain => change.domain(target).await?.is_some(),
        TargetKind::System => true,
    };
    if !known {
        return missing(place.kind.as_str(), target);
    }
    Ok(())
}

async fn create(app: &App, caller: &Caller, place: &Place, role: &str) -> ApiResult {
    authorized(app, caller, "create", place, Some(role)).await?;
    let mut change = app.store.change_identity().await?;
    still_there(&mut change, place).await?;
    change.insert_assignment(&place.assignment(role)).await?;
    app.store.commit(change).await?;
    audit(caller, "create", place, role);
    Ok(no_content())
}

async fn revoke(app: &App, caller: &Caller, place: &Place, role: &str) -> ApiResult {
    authorized(app, caller, "revoke", place, Some(role)).await?;
    let mut change = app.store.change_identity().await?;
    if !change.delete_assignment(&place.assignment(role)).await? {
        return Err(IdentityError::NotFound(
            "role assignment with role",
            role.to_owned(),
        ));
    }
    app.store.commit(change).await?;
    audit(caller, "delete", place, role);
    Ok(no_content())
}

async fn check(app: &App, caller: &Caller, place: &Place, role: &str) -> ApiResult {
    authorized(app, caller, "check", place, Some(role)).await?;
    let held = app
        .store
        .grants(
            (place.actor.as_str(), &place.actor_id),
            (place.kind.as_str(), &place.target),
            place.inherited,
        )
        .await?;
    if held.iter().any(|grant| grant.role_id == role) {
        Ok(no_content())
    } else {
        Err(IdentityError::NotFound(
            "role assignment with role",
            role.to_owned(),
        ))
    }
}

fn audit(caller: &Caller, action: &str, place: &Place, role: &str) {
    let id = format!(
        "{}:{}/{}:{}/role:{role}",
        place.kind.as_str(),
        place.target,
        place.actor.as_str(),
        place.actor_id
    );
    caller.audit(action, KIND, &id);
}
