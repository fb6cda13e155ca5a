//! `/v3/credentials`: secrets of users that other parts of a cloud use (certificates, seeds of one-time passwords, EC2
//! keys). The blob is sealed at rest.

use std::sync::Arc;

use axum::{
    Router,
    body::Bytes,
    extract::{Path, State},
    http::StatusCode,
    routing::get,
};
use serde_json::Value;

use super::{
    documents::{Family, check_any_text},
    ec2::{BOUND_TO, id_of_access},
    error::{ApiResult, IdentityError},
    fields::{self, Object},
    support::{Caller, collection},
};
use crate::{
    app::App,
    crypto::SealError,
    http::{Base, Query},
    ids::identity_id,
    policy::Target,
    store::documents::Document,
};

const CREDENTIAL: Family = Family {
    name: "credential",
    kind: "credential",
    key: "credential",
    keys: "credentials",
    path: "credentials",
    audit: "data/security/credential",
    filters: &["user_id", "type"],
    check: |object, new| {
        // Nothing is proved by an empty one.
        check_any_text(object, "type", new)?;
        check_any_text(object, "blob", new)
    },
};

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/credentials", get(list).post(create))
        .route("/credentials/{id}", get(show).patch(update).delete(delete))
}

fn target(user_id: Option<&str>) -> Target {
    match user_id {
        Some(id) => Target::new().text("target.credential.user_id", id),
        None => Target::new(),
    }
}

/// A delegated token acts within limits; what would outlive these may neither be made nor read with it.
fn in_person(caller: &Caller) -> Result<(), IdentityError> {
    caller.in_person(false, "Credentials are managed")
}

/// The record, if the rule permits what the caller wants with it.
async fn authorized(
    app: &App,
    caller: &Caller,
    rule: &str,
    id: &str,
) -> Result<Document, IdentityError> {
    let found = app.store.document(CREDENTIAL.name, id).await?;
    let owner = found.as_ref().and_then(|one| one.user_id.as_deref());
    caller.may(app, rule, &target(owner))?;
    in_person(caller)?;
    found.ok_or_else(|| IdentityError::NotFound(CREDENTIAL.kind, id.to_owned()))
}

/// Puts the blob, sealed for this record, and the owners into their places.
fn fill(app: &App, document: &mut Document, mut object: Object) -> Result<(), IdentityError> {
    if let Some(blob) = fields::text(&mut object, "blob")? {
        document.sealed = Some(
            app.credential_key()
                .seal(&["credential", &document.id], blob.as_bytes())?,
        );
    }
    if object.contains_key("project_id") {
        document.project_id = fields::text(&mut object, "project_id")?;
    }
    if let Some(user) = fields::text(&mut object, "user_id")? {
        document.user_id = Some(user);
    }
    let mut kept = document.object();
    kept.append(&mut object);
    document.set(&kept);
    Ok(())
}

/// A record of a user's credential, with the blob sealed for it.
pub(super) fn sealed(
    app: &App,
    id: &str,
    owners: (&str, Option<&str>),
    kind: &str,
    blob: &str,
) -> Result<Document, IdentityError> {
    let mut document = Document::new(CREDENTIAL.name, id, &Object::new());
    let mut object = Object::new();
    object.insert("type".into(), kind.into());
    object.insert("blob".into(), blob.into());
    object.insert("user_id".into(), owners.0.into());
    object.insert("project_id".into(), owners.1.into());
    fill(app, &mut document, object)?;
    Ok(document)
}

/// Stores a new credential.
pub(super) async fn insert(
    app: &App,
    caller: &Caller,
    document: &Document,
) -> Result<(), IdentityError> {
    CREDENTIAL.insert(app, caller, document).await
}

/// One credential.
pub(super) async fn find(app: &App, id: &str) -> Result<Option<Document>, IdentityError> {
    Ok(app.store.document(CREDENTIAL.name, id).await?)
}

/// The credentials of a user of one type.
pub(super) async fn of_user(
    app: &App,
    user_id: &str,
    kind: &str,
) -> Result<Vec<Document>, IdentityError> {
    let mut found = app.store.documents(CREDENTIAL.name, Some(user_id)).await?;
    found.retain(|document| document.text("type").as_deref() == Some(kind));
    Ok(found)
}

/// The blobs of a user's credentials of one type.
pub(super) async fn blobs(
    app: &App,
    user_id: &str,
    kind: &str,
) -> Result<Vec<String>, IdentityError> {
    of_user(app, user_id, kind)
        .await?
        .iter()
        .map(|document| blob(app, document).map_err(IdentityError::from))
        .collect()
}

/// The blob of a record, opened.
pub(super) fn blob(app: &App, document: &Document) -> Result<String, SealError> {
    let sealed = document.sealed.as_deref().unwrap_or_default();
    let opened = app
        .credential_key()
        .open(&["credential", &document.id], sealed)?;
    String::from_utf8(opened.to_vec()).map_err(|_| SealError::Format)
}

fn shown(app: &App, base: &Base, document: &Document) -> Result<Value, IdentityError> {
    let mut object = CREDENTIAL.shown(base, document);
    object["user_id"] = document.user_id.clone().into();
    object["project_id"] = document.project_id.clone().into();
    object["blob"] = blob(app, document)?.into();
    Ok(object)
}

async fn list(State(app): State<Arc<App>>, caller: Caller, base: Base, query: Query) -> ApiResult {
    let own = caller.0.user.id.as_str();
    caller.may(&app, "identity:list_credentials", &target(Some(own)))?;
    let mut items = Vec::new();
    // A delegated token sees none, rather than being refused: as Keystone answers.
    if in_person(&caller).is_err() {
        return Ok(collection(
            &base,
            &query,
            CREDENTIAL.keys,
            CREDENTIAL.filters,
            items,
        ));
    }
    for document in app
        .store
        .documents(CREDENTIAL.name, query.non_empty("user_id"))
        .await?
    {
        // A list shows what could be shown one by one.
        if app.identity_policy.authorize(
            "identity:get_credential",
            &target(document.user_id.as_deref()),
            &caller.0.creds,
        ) {
            items.push(shown(&app, &base, &document)?);
        }
    }
    Ok(collection(
        &base,
        &query,
        CREDENTIAL.keys,
        CREDENTIAL.filters,
        items,
    ))
}

async fn create(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    bytes: Bytes,
) -> ApiResult {
    let mut object = fields::body(&bytes, CREDENTIAL.key)?;
    object.remove("id");
    let owner = fields::text(&mut object, "user_id")?.unwrap_or_else(|| caller.0.user.id.clone());
    caller.may(&app, "identity:create_credential", &target(Some(&owner)))?;
    in_person(&caller)?;
    (CREDENTIAL.check)(&mut object, true)?;
    object.insert("user_id".into(), owner.into());
    let id = id_of(&object)?;
    let mut document = Document::new(CREDENTIAL.name, &id, &Object::new());
    fill(&app, &mut document, object)?;
    CREDENTIAL.insert(&app, &caller, &document).await?;
    answer(&app, &base, StatusCode::CREATED, &document)
}

/// The id of an EC2 credential is the SHA-256 of its access key, so that it can be found by it; it is for one project.
fn id_of(object: &Object) -> Result<String, IdentityError> {
    let text = |name: &str| object.get(name).and_then(Value::as_str).unwrap_or_default();
    if text("type") != "ec2" {
        return Ok(identity_id());
    }
    let bad = |text: &str| IdentityError::BadRequest(text.to_owned());
    let blob: Value = serde_json::from_str(text("blob"))
        .map_err(|_| bad("The blob of an EC2 credential must be a JSON object."))?;
    let access = blob["access"]
        .as_str()
        .ok_or_else(|| bad("The blob of an EC2 credential must hold access."))?;
    if let Some(name) = BOUND_TO.iter().find(|name| !blob[**name].is_null()) {
        return Err(IdentityError::BadRequest(format!(
            "An EC2 credential cannot be bound to something else; leave {name} out of its blob."
        )));
    }
    if !object.get("project_id").is_some_and(Value::is_string) {
        return Err(bad("An EC2 credential needs a project_id."));
    }
    Ok(id_of_access(access))
}

fn answer(app: &App, base: &Base, status: StatusCode, document: &Document) -> ApiResult {
    Ok(super::support::member(
        status,
        CREDENTIAL.key,
        shown(app, base, document)?,
    ))
}

async fn show(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    Path(id): Path<String>,
) -> ApiResult {
    let document = authorized(&app, &caller, "identity:get_credential", &id).await?;
    answer(&app, &base, StatusCode::OK, &document)
}

async fn update(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    Path(id): Path<String>,
    bytes: Bytes,
) -> ApiResult {
    let object = fields::changes(&bytes, CREDENTIAL.key)?;
    // As Keystone: whose it is, for what, and of which type stays as it was made.
    if let Some(name) = object.keys().find(|name| *name != "blob") {
        return Err(IdentityError::BadRequest(format!(
            "Only the blob of a credential can be changed, not {name}; delete it and make a new one."
        )));
    }
    check_any_text(&object, "blob", true)?;
    let rule = "identity:update_credential";
    authorized(&app, &caller, rule, &id).await?;
    let edit = |document: &mut Document| {
        // One of EC2 may be somebody else's by now: its id is made of its access key.
        caller.may(&app, rule, &target(document.user_id.as_deref()))?;
        if document.text("type").as_deref() == Some("ec2") {
            let mut whole = document.object();
            whole.insert("project_id".into(), document.project_id.clone().into());
            whole.append(&mut object.clone());
            if id_of(&whole)? != id {
                return Err(IdentityError::BadRequest(
                    "The access key of an EC2 credential cannot be changed; make a new one.".into(),
                ));
            }
        }
        fill(&app, document, object)
    };
    let document = CREDENTIAL.edit(&app, &caller, &id, edit).await?;
    answer(&app, &base, StatusCode::OK, &document)
}

async fn delete(State(app): State<Arc<App>>, caller: Caller, Path(id): Path<String>) -> ApiResult {
    let rule = "identity:delete_credential";
    authorized(&app, &caller, rule, &id).await?;
    let may = |document: &Document| caller.may(&app, rule, &target(document.user_id.as_deref()));
    CREDENTIAL.delete(&app, &caller, &id, may).await
}
