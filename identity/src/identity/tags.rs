//! `/v3/projects/{id}/tags`.

use std::sync::Arc;

use axum::{
    Router,
    body::Bytes,
    extract::{Path, State},
    http::{StatusCode, Uri, header::LOCATION},
    response::{IntoResponse, Json},
    routing::get,
};
use serde_json::{Value, json};

use super::{
    error::{ApiResult, IdentityError},
    projects::{self, as_project, for_change},
    support::{Caller, no_content, target},
};
use crate::{app::App, http::Base};

/// Most tags a project may have, and characters a tag may have.
const MAX_TAGS: usize = 80;
const TAG_MAX: usize = 255;

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/projects/{id}/tags", get(list).put(replace).delete(clear))
        .route(
            "/projects/{id}/tags/{tag}",
            get(has).put(add).delete(remove),
        )
}

/// Tags as the API permits them: no comma or slash, not blank.
pub(super) fn checked(tags: Vec<String>) -> Result<Vec<String>, IdentityError> {
    let bad = |tag: &String| {
        tag.trim().is_empty()
            || tag.chars().count() > TAG_MAX
            || tag.chars().any(|c| c == ',' || c == '/' || c.is_control())
    };
    if tags.len() > MAX_TAGS || tags.iter().any(bad) {
        return Err(IdentityError::BadRequest(format!(
            "A project has {MAX_TAGS} tags at most, each of 1 to {TAG_MAX} characters without comma and slash."
        )));
    }
    let mut tags = tags;
    tags.sort();
    tags.dedup();
    Ok(tags)
}

fn shown(base: &Base, id: &str, tags: &[String]) -> Value {
    json!({"tags": tags, "links": {"self": format!("{}/projects/{id}/tags", base.identity())}})
}

/// The tags of a project, or of a domain by the project that acts as it: who may not touch a domain may not do so by its other name.
async fn authorized(
    app: &App,
    caller: &Caller,
    verb: &str,
    rule: &str,
    id: &str,
) -> Result<Vec<String>, IdentityError> {
    let Some(domain) = app.store.domain(id).await? else {
        return Ok(projects::authorized(app, caller, rule, id).await?.tags());
    };
    let project = target("project", Some(&as_project(&domain))).text("project_id", id);
    caller.may(app, rule, &project)?;
    let own = target("domain", Some(&domain.to_json()));
    caller.may(app, &format!("identity:{verb}_domain"), &own)?;
    Ok(domain.tags())
}

/// Makes others of the tags. What they are now.
async fn edit(
    app: &App,
    id: &str,
    edit: impl FnOnce(Vec<String>) -> Result<Vec<String>, IdentityError>,
) -> Result<Vec<String>, IdentityError> {
    let mut change = app.store.change_identity().await?;
    let tags = match change.domain(id).await? {
        Some(mut domain) => {
            let tags = edit(domain.tags())?;
            domain.set_tags(tags.clone());
            change.update_domain(&domain).await?;
            tags
        }
        None => {
            let tags = edit(for_change(&mut change, id).await?.tags())?;
            change.set_tags(id, &tags).await?;
            tags
        }
    };
    app.store.commit(change).await?;
    Ok(tags)
}

async fn list(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    Path(id): Path<String>,
) -> ApiResult {
    let tags = authorized(&app, &caller, "get", "identity:list_project_tags", &id).await?;
    Ok(Json(shown(&base, &id, &tags)).into_response())
}

async fn replace(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    Path(id): Path<String>,
    bytes: Bytes,
) -> ApiResult {
    authorized(&app, &caller, "update", "identity:update_project_tags", &id).await?;
    let value: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let tags = serde_json::from_value(value["tags"].clone()).map_err(|_| {
        IdentityError::BadRequest("The request body must hold a list of strings named tags.".into())
    })?;
    let tags = edit(&app, &id, |_| checked(tags)).await?;
    Ok(Json(shown(&base, &id, &tags)).into_response())
}

async fn clear(State(app): State<Arc<App>>, caller: Caller, Path(id): Path<String>) -> ApiResult {
    authorized(&app, &caller, "update", "identity:delete_project_tags", &id).await?;
    edit(&app, &id, |_| Ok(Vec::new())).await?;
    Ok(no_content())
}

async fn has(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((id, tag)): Path<(String, String)>,
) -> ApiResult {
    let tags = authorized(&app, &caller, "get", "identity:get_project_tag", &id).await?;
    if tags.contains(&tag) {
        Ok(no_content())
    } else {
        Err(IdentityError::NotFound("project tag", tag))
    }
}

async fn add(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    uri: Uri,
    Path((id, tag)): Path<(String, String)>,
) -> ApiResult {
    authorized(&app, &caller, "update", "identity:create_project_tag", &id).await?;
    edit(&app, &id, |mut tags| {
        tags.push(tag);
        checked(tags)
    })
    .await?;
    // As it was sent: the path has it encoded already.
    let sent = uri.path().rsplit_once('/').map_or("", |(_, tag)| tag);
    let own = format!("{}/projects/{id}/tags/{sent}", base.identity());
    Ok((StatusCode::CREATED, [(LOCATION, own)]).into_response())
}

async fn remove(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((id, tag)): Path<(String, String)>,
) -> ApiResult {
    authorized(&app, &caller, "update", "identity:delete_project_tag", &id).await?;
    edit(&app, &id, |mut tags| {
        let before = tags.len();
        tags.retain(|other| *other != tag);
        if tags.len() == before {
            return Err(IdentityError::NotFound("project tag", tag));
        }
        Ok(tags)
    })
    .await?;
    Ok(no_content())
}
