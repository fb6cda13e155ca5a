//! `/v1/containers`: named groups of secrets, such as the two keys of a pair.

use std::{collections::BTreeSet, sync::Arc};

use axum::{
    Router,
    body::Bytes,
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Json},
    routing::{get, post},
};
use serde_json::{Value, json};

use super::{
    caller::Caller,
    error::{ApiResult, KeyManagerError},
    fields::{self, Object},
    page::Page,
    quotas::enforce,
    secrets::{created, secret_ref},
};
use crate::{
    app::App,
    http::{Base, Query},
    ids::key_manager_id,
    store::{
        StoreError,
        acls::{Acl, Guarded},
        containers::{Container, SecretLink},
        key_quotas::Counted,
    },
    time::{key_manager_time, now_us},
};

pub(super) const KIND: &str = "data/security/container";
/// Longest URL of a secret.
const MAX_REF: usize = 2_048;

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/containers", get(list).post(create))
        .route("/containers/{id}", get(show).delete(delete))
        .route(
            "/containers/{id}/secrets",
            post(add_secret).delete(remove_secret),
        )
}

/// A container with its access list, or 404.
pub(super) async fn load(app: &App, id: &str) -> Result<(Container, Option<Acl>), KeyManagerError> {
    let container = app
        .store
        .container(id)
        .await?
        .ok_or(KeyManagerError::NotFound("container"))?;
    let acl = app.store.acl(Guarded::Container, id).await?;
    Ok((container, acl))
}

pub(super) fn container_ref(base: &Base, id: &str) -> String {
    format!("{}/containers/{id}", base.key_manager())
}

/// What is told of a container.
pub(super) async fn describe(
    app: &App,
    base: &Base,
    container: &Container,
) -> Result<Value, KeyManagerError> {
    let secrets = app.store.container_secrets(&container.id).await?;
    let refs: Vec<Value> = secrets
        .iter()
        .map(|link| json!({"name": link.name, "secret_ref": secret_ref(base, &link.secret_id)}))
        .collect();
    let consumers = app.store.container_consumers(&container.id).await?;
    let users: Vec<Value> = consumers
        .iter()
        .map(|consumer| json!({"name": consumer.name, "URL": consumer.url}))
        .collect();
    Ok(json!({
        "created": key_manager_time(container.created), "updated": key_manager_time(container.updated),
        "status": "ACTIVE", "name": container.name, "type": container.kind, "creator_id": container.creator_id,
        "secret_refs": refs, "consumers": users, "container_ref": container_ref(base, &container.id),
    }))
}

fn bad(message: &str) -> KeyManagerError {
    KeyManagerError::BadRequest(message.to_owned())
}

/// The id at the end of a secret's URL.
fn secret_id(url: &str) -> String {
    url.trim_end_matches('/')
        .rsplit('/')
        .next()
        .unwrap_or_default()
        .to_owned()
}

/// The secrets named in the body of a new container. Names and secrets are unique in a container, and a URL
/// must be one of this service.
fn links(object: &Object, kind: &str, base: &Base) -> Result<Vec<SecretLink>, KeyManagerError> {
    let sent = match object.get("secret_refs") {
        None => return Ok(Vec::new()),
        Some(Value::Array(sent)) => sent,
        Some(_) => return Err(bad("The attribute secret_refs must be a list.")),
    };
    let (mut links, mut names, mut ids) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
    for item in sent {
        let Value::Object(item) = item else {
            return Err(bad("An item of secret_refs must be an object."));
        };
        let url = fields::required(item, "secret_ref", MAX_REF)?;
        let name = fields::nullable_text(item, "name")?;
        if !names.insert(name.clone().unwrap_or_default()) {
            return Err(bad(
                "Two secrets of a container must not have the same name.",
            ));
        }
        let secret_id = secret_id(&url);
        if !ids.insert(secret_id.clone()) {
            return Err(bad("A secret can be in a container only once."));
        }
        if !url.starts_with(&base.0) {
            return Err(bad("A secret_ref must be a URL of this key manager."));
        }
        links.push(SecretLink { secret_id, name });
    }
    // A container without secrets is permitted whatever its type.
    if !links.is_empty() {
        check_names(kind, &names)?;
    }
    Ok(links)
}

fn check_names(kind: &str, names: &BTreeSet<String>) -> Result<(), KeyManagerError> {
    let (required, optional): (&[&str], &[&str]) = match kind {
        "rsa" => (&["public_key", "private_key"], &["private_key_passphrase"]),
        "certificate" => (
            &["certificate"],
            &["private_key", "private_key_passphrase", "intermediates"],
        ),
        _ => return Ok(()),
    };
    let known =
        |name: &String| required.contains(&name.as_str()) || optional.contains(&name.as_str());
    if names.iter().all(known) && required.iter().all(|name| names.contains(*name)) {
        return Ok(());
    }
    Err(KeyManagerError::BadRequest(format!(
        "The secrets of a container of type {kind} must be named {}, and may be named {}.",
        required.join(" and "),
        optional.join(", "),
    )))
}

async fn create(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    headers: HeaderMap,
    bytes: Bytes,
) -> ApiResult {
    caller.may(&app, "containers:post")?;
    let object = fields::object(&headers, &bytes)?;
    let kind = match object.get("type").and_then(Value::as_str) {
        Some(kind @ ("generic" | "rsa" | "certificate")) => kind.to_owned(),
        _ => {
            return Err(bad(
                "The attribute type must be generic, rsa or certificate.",
            ));
        }
    };
    let name = fields::nullable_text(&object, "name")?;
    let links = links(&object, &kind, &base)?;
    let now = now_us();
    for link in &links {
        own_secret(&app, &caller, &link.secret_id, now).await?;
    }
    let container = Container {
        id: key_manager_id(),
        project_id: caller.project_id.clone(),
        creator_id: caller.context.user.id.clone(),
        name,
        kind,
        created: now,
        updated: now,
    };
    let mut change = app.store.change_keys().await?;
    enforce(&mut change, Counted::Containers, &caller.project_id, now).await?;
    match change.insert_container(&container, &links).await {
        // Deleted since it was looked up.
        Err(StoreError::Dangling) => return Err(KeyManagerError::NotFound("secret")),
        done => done?,
    }
    app.store.commit(change).await?;
    caller.audit("create", KIND, &container.id);
    let url = container_ref(&base, &container.id);
    Ok(created(StatusCode::CREATED, "container_ref", &url))
}

/// A container only takes secrets of its own project.
async fn own_secret(app: &App, caller: &Caller, id: &str, now: i64) -> Result<(), KeyManagerError> {
    app.store
        .secret(id, now)
        .await?
        .filter(|secret| secret.project_id == caller.project_id)
        .map(|_| ())
        .ok_or(KeyManagerError::NotFound("secret"))
}

async fn list(State(app): State<Arc<App>>, caller: Caller, base: Base, query: Query) -> ApiResult {
    caller.may(&app, "containers:get")?;
    let page = Page::of(&query);
    let (containers, total) = app
        .store
        .containers(
            &caller.project_id,
            query.non_empty("name"),
            query.non_empty("type"),
            page.limit,
            page.offset,
        )
        .await?;
    let mut items = Vec::with_capacity(containers.len());
    for container in &containers {
        items.push(describe(&app, &base, container).await?);
    }
    Ok(page.answer(&base, &query, "containers", items, total))
}

async fn show(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    Path(id): Path<String>,
) -> ApiResult {
    let (container, acl) = load(&app, &id).await?;
    caller.may_container(&app, "container:get", &container, acl.as_ref())?;
    Ok(Json(describe(&app, &base, &container).await?).into_response())
}

async fn delete(State(app): State<Arc<App>>, caller: Caller, Path(id): Path<String>) -> ApiResult {
    let (container, acl) = load(&app, &id).await?;
    caller.may_container(&app, "container:delete", &container, acl.as_ref())?;
    let mut change = app.store.change_keys().await?;
    // A policy of the site may let others through; the protocol only deletes in the caller's project.
    if container.project_id != caller.project_id || !change.delete_container(&id).await? {
        return Err(KeyManagerError::NotFound("container"));
    }
    app.store.commit(change).await?;
    caller.audit("delete", KIND, &id);
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// The secret that a body names, if the container may be changed and the project has it.
async fn sent_link(
    app: &App,
    caller: &Caller,
    headers: &HeaderMap,
    bytes: &[u8],
) -> Result<SecretLink, KeyManagerError> {
    let object = fields::object(headers, bytes)?;
    let link = SecretLink {
        secret_id: secret_id(&fields::required(&object, "secret_ref", MAX_REF)?),
        name: fields::text(&object, "name")?,
    };
    own_secret(app, caller, &link.secret_id, now_us()).await?;
    Ok(link)
}

async fn add_secret(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    headers: HeaderMap,
    Path(id): Path<String>,
    bytes: Bytes,
) -> ApiResult {
    let (container, acl) = load(&app, &id).await?;
    caller.may_container(&app, "container_secret:post", &container, acl.as_ref())?;
    if container.kind != "generic" {
        return Err(bad("Only a container of type generic can be changed."));
    }
    let link = sent_link(&app, &caller, &headers, &bytes).await?;
    let mut change = app.store.change_keys().await?;
    if change.container_secrets(&id).await?.contains(&link) {
        return Err(KeyManagerError::Conflict(
            "The container has this secret under this name already.".into(),
        ));
    }
    change.add_container_secret(&id, &link).await?;
    app.store.commit(change).await?;
    caller.audit("update", KIND, &id);
    let url = container_ref(&base, &id);
    Ok(created(StatusCode::CREATED, "container_ref", &url))
}

async fn remove_secret(
    State(app): State<Arc<App>>,
    caller: Caller,
    headers: HeaderMap,
    Path(id): Path<String>,
    bytes: Bytes,
) -> ApiResult {
    let (container, acl) = load(&app, &id).await?;
    caller.may_container(&app, "container_secret:delete", &container, acl.as_ref())?;
    let link = sent_link(&app, &caller, &headers, &bytes).await?;
    let mut change = app.store.change_keys().await?;
    if !change.remove_container_secret(&id, &link).await? {
        return Err(KeyManagerError::NotFound("secret in this container"));
    }
    app.store.commit(change).await?;
    caller.audit("update", KIND, &id);
    Ok(StatusCode::NO_CONTENT.into_response())
}
