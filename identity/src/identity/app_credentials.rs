//! `/v3/users/{id}/application_credentials`.

use std::sync::Arc;

use axum::{
    Router,
    body::Bytes,
    extract::{Path, State},
    http::StatusCode,
    routing::get,
};
use secrecy::SecretString;
use serde_json::{Value, json};

use super::{
    access_rules::{self, rule_json},
    error::{ApiResult, IdentityError},
    fields,
    support::{Caller, collection, linked, member, no_content},
    users::user_target,
};
use crate::{
    app::App,
    http::{Base, Query},
    ids::{generated_secret, identity_id},
    policy::Target,
    store::{access_rules::AccessRule, app_credentials::AppCredential, roles::Role},
    time::{now_us, parse_time, zoneless_time},
};

const NAME_MAX: usize = 255;
const KIND: &str = "data/security/credential";

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route(
            "/users/{user_id}/application_credentials",
            get(list).post(create),
        )
        .route(
            "/users/{user_id}/application_credentials/{id}",
            get(show).delete(delete),
        )
}

/// The object of the API; the secret is added only in the answer to its creation.
fn object(base: &Base, credential: &AppCredential, roles: &[Role], rules: &[AccessRule]) -> Value {
    let collection = format!("users/{}/application_credentials", credential.user_id);
    let mut object = json!({
        "id": credential.id, "name": credential.name, "description": credential.description,
        "user_id": credential.user_id, "project_id": credential.project_id, "system": null,
        "expires_at": credential.expires_at.map(zoneless_time), "unrestricted": credential.unrestricted,
        "roles": roles.iter().map(Role::to_json).collect::<Vec<_>>(),
    });
    if !rules.is_empty() {
        object["access_rules"] = rules.iter().map(rule_json).collect();
    }
    linked(base, &collection, object)
}

/// What would outlive a trust, an OAuth1 access token or an EC2 credential may not be looked at or made with it. Application
/// credentials have a rule of their own: [`unrestricted`].
fn not_delegated(caller: &Caller) -> Result<(), IdentityError> {
    if caller.0.app_credential.is_some() {
        return Ok(());
    }
    caller.in_person(false, "Application credentials are managed")
}

/// A restricted credential may not manage credentials: it could make itself an unrestricted one.
pub(super) fn unrestricted(caller: &Caller) -> Result<(), IdentityError> {
    match &caller.0.app_credential {
        Some(credential) if !credential.unrestricted => Err(IdentityError::Forbidden(
            "A restricted application credential may not manage application credentials.".into(),
        )),
        _ => Ok(()),
    }
}

pub(super) async fn authorized(
    app: &App,
    caller: &Caller,
    rule: &str,
    user_id: &str,
) -> Result<(), IdentityError> {
    let user = app.store.user(user_id).await?;
    caller.may(
        app,
        rule,
        &user_target(user.as_ref()).text("user_id", user_id),
    )?;
    not_delegated(caller)?;
    user.map(|_| ())
        .ok_or_else(|| IdentityError::NotFound("user", user_id.into()))
}

async fn list(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    query: Query,
    Path(user_id): Path<String>,
) -> ApiResult {
    authorized(
        &app,
        &caller,
        "identity:list_application_credentials",
        &user_id,
    )
    .await?;
    let mut items = Vec::new();
    for credential in app.store.app_credentials(&user_id).await? {
        let roles = app.store.app_credential_roles(&credential.id).await?;
        let rules = app.store.access_rules(&credential.id).await?;
        items.push(object(&base, &credential, &roles, &rules));
    }
    Ok(collection(
        &base,
        &query,
        "application_credentials",
        &["name"],
        items,
    ))
}

async fn show(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    Path((user_id, id)): Path<(String, String)>,
) -> ApiResult {
    authorized(
        &app,
        &caller,
        "identity:get_application_credential",
        &user_id,
    )
    .await?;
    let credential = owned(&app, &user_id, &id).await?;
    let roles = app.store.app_credential_roles(&id).await?;
    let rules = app.store.access_rules(&id).await?;
    Ok(member(
        StatusCode::OK,
        "application_credential",
        object(&base, &credential, &roles, &rules),
    ))
}

async fn owned(app: &App, user_id: &str, id: &str) -> Result<AppCredential, IdentityError> {
    app.store
        .app_credential(id)
        .await?
        .filter(|credential| credential.user_id == user_id)
        .ok_or_else(|| IdentityError::NotFound("application credential", id.into()))
}

async fn create(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    Path(user_id): Path<String>,
    bytes: Bytes,
) -> ApiResult {
    let mut sent = fields::body(&bytes, "application_credential")?;
    // Only the user itself may: the credential acts in its name.
    caller.may(
        &app,
        "identity:create_application_credential",
        &Target::new().text("user_id", &user_id),
    )?;
    not_delegated(&caller)?;
    unrestricted(&caller)?;
    let project_id = caller
        .0
        .project_id()
        .ok_or_else(|| {
            IdentityError::BadRequest(
                "Log in to a project first: an application credential is for one.".into(),
            )
        })?
        .to_owned();
    let name = fields::name(&mut sent, NAME_MAX)?;
    let expires_at = match fields::text(&mut sent, "expires_at")? {
        None => None,
        Some(text) => Some(
            parse_time(&text)
                .filter(|at| *at > now_us())
                .ok_or_else(|| {
                    IdentityError::BadRequest(
                        "The attribute expires_at must be a time in the future.".into(),
                    )
                })?,
        ),
    };
    let asked = requested_roles(&caller, sent.remove("roles"))?;
    // As Keystone: what they imply is said too, as it is where none are named.
    let closure = app.store.implied_closure(&asked).await?;
    let roles: Vec<String> = closure.into_iter().map(|role| role.id).collect();
    let known = app.store.access_rules_of_user(&user_id).await?;
    let rules = access_rules::requested(sent.remove("access_rules"), &known)?;
    let secret = fields::text(&mut sent, "secret")?
        .filter(|text| !text.is_empty())
        .unwrap_or_else(generated_secret);
    if app
        .store
        .app_credential_by_name(&user_id, &name)
        .await?
        .is_some()
    {
        return Err(IdentityError::Conflict("application credential", name));
    }
    let credential = AppCredential {
        id: identity_id(),
        user_id,
        project_id,
        name,
        description: fields::text(&mut sent, "description")?,
        expires_at,
        unrestricted: fields::boolean(&mut sent, "unrestricted")?,
        secret_hash: app.hasher.hash(&SecretString::from(secret.clone())).await?,
    };
    let mut change = app.store.change_identity().await?;
    change
        .insert_app_credential(&credential, &roles, &rules)
        .await
        .map_err(IdentityError::duplicate(
            "application credential",
            &credential.name,
        ))?;
    app.store.commit(change).await?;
    caller.audit("create", KIND, &credential.id);
    let roles = app.store.app_credential_roles(&credential.id).await?;
    let rules = app.store.access_rules(&credential.id).await?;
    let mut shown = object(&base, &credential, &roles, &rules);
    shown["secret"] = secret.into();
    Ok(member(StatusCode::CREATED, "application_credential", shown))
}

/// The ids of the roles asked for, which the token must hold; all roles of the token if none are.
fn requested_roles(caller: &Caller, sent: Option<Value>) -> Result<Vec<String>, IdentityError> {
    let wanted = match sent {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(list)) => list,
        Some(_) => {
            return Err(IdentityError::BadRequest(
                "The attribute roles must be a list.".into(),
            ));
        }
    };
    if wanted.is_empty() {
        return Ok(caller.0.roles.iter().map(|role| role.id.clone()).collect());
    }
    wanted
        .iter()
        .map(|role| {
            caller
                .0
                .roles
                .iter()
                .find(|held| {
                    role["id"].as_str().is_some_and(|id| id == held.id)
                        || (role["id"].is_null() && role["name"].as_str().is_some_and(|name| name == held.name))
                })
                .map(|held| held.id.clone())
                .ok_or_else(|| {
                    IdentityError::BadRequest(
                        "The token does not hold a role that was asked for; leave it out or log in with a user that has it."
                            .into(),
                    )
                })
        })
        .collect()
}

async fn delete(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((user_id, id)): Path<(String, String)>,
) -> ApiResult {
    authorized(
        &app,
        &caller,
        "identity:delete_application_credential",
        &user_id,
    )
    .await?;
    unrestricted(&caller)?;
    owned(&app, &user_id, &id).await?;
    let mut change = app.store.change_identity().await?;
    change.delete_app_credential(&id).await?;
    app.store.commit(change).await?;
    caller.audit("delete", KIND, &id);
    Ok(no_content())
}
