//! `/v3/role_assignments`: the stored ones, or what follows from them.

use std::sync::Arc;

use axum::{Router, extract::State, response::IntoResponse, routing::get};

use super::{
    assignment_list::AssignmentList,
    error::{ApiResult, IdentityError},
    parts::{Document, document},
    support::Caller,
};
use crate::{
    app::App,
    directory::Directory,
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
    let model = app.read_model().await?;
    let confined = caller.confined_to();
    // All that decides the answer but the records themselves; a tree of projects is worked out from those.
    let question = format!("{} {} {}", base.0, confined.unwrap_or_default(), query.raw);
    if let Some(answer) = model.answers.answer(&question) {
        return Ok(Document::Whole(answer).into_response());
    }
    let directory = match query.non_empty("user.id") {
        // The others of a large site take longer to read than all that this one has.
        Some(user) => Arc::new(Directory::of_user(&app.store, user).await?),
        None => model.whole(&app.store).await?,
    };
    let list = AssignmentList::new(directory, base.identity(), &query, confined, tree);
    let answer = document(list).await?;
    if let Document::Whole(bytes) = &answer {
        model.answers.keep(question, bytes);
    }
    Ok(answer.into_response())
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
