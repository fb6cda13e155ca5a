//! EC2 credentials: pairs of an access key and a secret with which a user signs requests to services that speak Amazon's
//! protocols; they are credentials of the type `ec2`. `/v3/users/{id}/credentials/OS-EC2` is the older way to them.

mod signature;
mod tokens;

use std::sync::Arc;

use axum::{
    Router,
    body::Bytes,
    extract::{Path, State},
    http::StatusCode,
    routing::{get, post},
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

pub(in crate::identity) use signature::quoted;

use super::{
    credentials,
    error::{ApiResult, IdentityError},
    fields::{self, Object},
    support::{Caller, collection, member, no_content},
};
use crate::{
    app::App,
    http::{Base, Query},
    ids::identity_id,
    policy::Target,
    store::documents::Document,
};

const KIND: &str = "data/security/credential";

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route(
            "/users/{user_id}/credentials/OS-EC2",
            get(list).post(create),
        )
        .route(
            "/users/{user_id}/credentials/OS-EC2/{access}",
            get(show).delete(delete),
        )
        .route("/ec2tokens", post(tokens::ec2))
        .route("/s3tokens", post(tokens::s3))
}

/// The id of an EC2 credential: it is found by its access key, which no list of ids gives away.
pub(super) fn id_of_access(access: &str) -> String {
    hex::encode(Sha256::digest(access))
}

/// What is in the blob of an EC2 credential.
struct Keys {
    access: String,
    secret: String,
}

/// # Errors
/// None but those of opening it; `None` if the blob is not one of an EC2 credential, or one that is bound to something else (a trust,
/// an application credential, an access token), which such credentials cannot be here.
fn keys_of(app: &App, document: &Document) -> Result<Option<Keys>, IdentityError> {
    let blob: Value =
        serde_json::from_str(&credentials::blob(app, document)?).unwrap_or(Value::Null);
    let text = |name: &str| blob[name].as_str().map(str::to_owned);
    let of_ec2 = document.text("type").is_some_and(|kind| kind == "ec2");
    if !of_ec2 || BOUND_TO.iter().any(|name| !blob[*name].is_null()) {
        return Ok(None);
    }
    Ok(text("access")
        .zip(text("secret"))
        .map(|(access, secret)| Keys { access, secret }))
}

/// Names in a blob that would bind a credential to what its owner was given by somebody else. Who knew the id of a trust could so
/// act with it; therefore none is accepted.
pub(super) const BOUND_TO: [&str; 4] = ["trust_id", "app_cred_id", "access_token_id", "access_id"];

fn shown(base: &Base, document: &Document, keys: &Keys) -> Value {
    let user = document.user_id.as_deref().unwrap_or_default();
    let url = format!(
        "{}/users/{user}/credentials/OS-EC2/{}",
        base.identity(),
        keys.access
    );
    json!({
        "user_id": user, "tenant_id": document.project_id, "access": keys.access, "secret": keys.secret, "trust_id": null,
        "links": {"self": url},
    })
}

fn target(user_id: &str) -> Target {
    Target::new()
        .text("user_id", user_id)
        .text("target.credential.user_id", user_id)
}

fn in_person(caller: &Caller) -> Result<(), IdentityError> {
    caller.in_person(false, "EC2 credentials are managed")
}

async fn user_exists(app: &App, user_id: &str) -> Result<(), IdentityError> {
    match app.store.user(user_id).await? {
        Some(_) => Ok(()),
        None => Err(IdentityError::NotFound("user", user_id.to_owned())),
    }
}

async fn list(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    query: Query,
    Path(user_id): Path<String>,
) -> ApiResult {
    caller.may(&app, "identity:ec2_list_credentials", &target(&user_id))?;
    in_person(&caller)?;
    user_exists(&app, &user_id).await?;
    let mut items = Vec::new();
    for document in credentials::of_user(&app, &user_id, "ec2").await? {
        if let Some(keys) = keys_of(&app, &document)? {
            items.push(shown(&base, &document, &keys));
        }
    }
    Ok(collection(&base, &query, "credentials", &[], items))
}

async fn create(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    Path(user_id): Path<String>,
    bytes: Bytes,
) -> ApiResult {
    caller.may(&app, "identity:ec2_create_credential", &target(&user_id))?;
    in_person(&caller)?;
    user_exists(&app, &user_id).await?;
    let mut sent: Object = serde_json::from_slice(&bytes).map_err(|error| {
        IdentityError::BadRequest(format!("The request body must be a JSON object: {error}."))
    })?;
    let project = fields::text(&mut sent, "tenant_id")?.ok_or_else(|| {
        IdentityError::BadRequest("The attribute tenant_id (a project's id) is required.".into())
    })?;
    if app.store.project(&project).await?.is_none() {
        return Err(IdentityError::NotFound("project", project));
    }
    let keys = Keys {
        access: identity_id(),
        secret: identity_id(),
    };
    let blob = json!({"access": keys.access, "secret": keys.secret, "trust_id": null});
    let document = credentials::sealed(
        &app,
        &id_of_access(&keys.access),
        (&user_id, Some(&project)),
        "ec2",
        &blob.to_string(),
    )?;
    credentials::insert(&app, &caller, &document).await?;
    Ok(member(
        StatusCode::CREATED,
        "credential",
        shown(&base, &document, &keys),
    ))
}

/// The credential of a user with this access key, if the rule permits what the caller wants with it.
async fn authorized(
    app: &App,
    caller: &Caller,
    rule: &str,
    user_id: &str,
    access: &str,
) -> Result<(Document, Keys), IdentityError> {
    let missing = || IdentityError::NotFound("credential", access.chars().take(64).collect());
    let document = credentials::find(app, &id_of_access(access))
        .await?
        .ok_or_else(missing)?;
    // The owner is who the record says, not who the path says.
    caller.may(
        app,
        rule,
        &target(document.user_id.as_deref().unwrap_or_default()),
    )?;
    in_person(caller)?;
    if document.user_id.as_deref() != Some(user_id) {
        return Err(missing());
    }
    let keys = keys_of(app, &document)?.ok_or_else(missing)?;
    Ok((document, keys))
}

async fn show(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    Path((user_id, access)): Path<(String, String)>,
) -> ApiResult {
    let rule = "identity:ec2_get_credential";
    let (document, keys) = authorized(&app, &caller, rule, &user_id, &access).await?;
    Ok(member(
        StatusCode::OK,
        "credential",
        shown(&base, &document, &keys),
    ))
}

async fn delete(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((user_id, access)): Path<(String, String)>,
) -> ApiResult {
    let rule = "identity:ec2_delete_credential";
    let (document, _) = authorized(&app, &caller, rule, &user_id, &access).await?;
    let mut change = app.store.change_identity().await?;
    // It may be somebody else's by now.
    let now = change.document(&document.family, &document.id).await?;
    if now.is_none_or(|now| now.user_id != document.user_id) {
        return Err(IdentityError::NotFound("credential", access));
    }
    change
        .delete_document(&document.family, &document.id)
        .await?;
    app.store.commit(change).await?;
    caller.audit("delete", KIND, &document.id);
    Ok(no_content())
}
