//! `/v3/users`, passwords, and what belongs to a user.

use std::sync::Arc;

use axum::{
    Router,
    body::Bytes,
    extract::{Path, State},
    http::StatusCode,
    routing::{get, post},
};
use secrecy::SecretString;
use serde_json::Value;

use super::{
    directory,
    error::{ApiResult, IdentityError},
    fields,
    long_list::{self, Kind, Rows},
    passwords::{self, By},
    support::{Caller, collection, linked, member, narrowed_by, no_content, target},
};
use crate::{
    accounts::account_key,
    app::App,
    audit,
    http::{Base, Query},
    ids::identity_id,
    policy::Target,
    store::{StoreResult, page::Page, users::User},
    time::now_us,
};

const NAME_MAX: usize = 255;
const KIND: &str = "data/security/account/user";
const OPTIONS: &[&str] = &[
    "ignore_change_password_upon_first_use",
    "ignore_password_expiry",
    "ignore_lockout_failure_attempts",
    "ignore_user_inactivity",
    "lock_password",
    "multi_factor_auth_enabled",
    fields::MFA_RULES,
];

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/users", get(list).post(create))
        .route("/users/{id}", get(show).patch(update).delete(delete))
        .route("/users/{id}/password", post(change_password))
        .route("/users/{id}/projects", get(projects))
        .route("/users/{id}/groups", get(groups))
}

/// The target of the rules about one user; empty when there is no such user.
pub(super) fn user_target(user: Option<&User>) -> Target {
    target("user", user.map(User::to_json).as_ref())
}

async fn authorized(
    app: &App,
    caller: &Caller,
    rule: &str,
    id: &str,
) -> Result<User, IdentityError> {
    directory::before_user(app, id).await?;
    let found = app.store.user(id).await?;
    caller.may(app, rule, &user_target(found.as_ref()).text("user_id", id))?;
    found.ok_or_else(|| IdentityError::NotFound("user", id.into()))
}

async fn list(State(app): State<Arc<App>>, caller: Caller, base: Base, query: Query) -> ApiResult {
    let mut wanted = Target::new();
    if let Some(domain) = caller.confined_to() {
        wanted = wanted.text("target.domain_id", domain);
    }
    caller.may(&app, "identity:list_users", &wanted)?;
    let domain = query.non_empty("domain_id").or(caller.confined_to());
    directory::before_users(&app, domain, query.non_empty("name")).await?;
    let after = match query.non_empty("marker") {
        Some(id) => {
            let missing = || IdentityError::NotFound("user", id.into());
            Some(app.store.user(id).await?.ok_or_else(missing)?)
        }
        None => None,
    };
    let kind = Kind {
        key: "users",
        filters: &["name", "enabled", "domain_id"],
        narrowed: narrowed_by(&query, &["domain_id", "name"]),
    };
    let rows = Users {
        domain: domain.map(str::to_owned),
        name: query.non_empty("name").map(str::to_owned),
        confined: caller.confined_to().map(str::to_owned),
        app,
    };
    let after = after.map(|user| (user.name, user.id));
    long_list::list((base, query), kind, rows, after).await
}

/// Users of a domain or of all, of one name or of any.
struct Users {
    app: Arc<App>,
    domain: Option<String>,
    name: Option<String>,
    confined: Option<String>,
}

impl Rows for Users {
    type Row = User;

    async fn page(&self, page: &Page) -> StoreResult<Vec<User>> {
        let (domain, name) = (self.domain.as_deref(), self.name.as_deref());
        self.app.store.users_page(domain, name, page).await
    }

    fn place(row: &User) -> (String, String) {
        (row.name.clone(), row.id.clone())
    }

    fn show(&self, row: User) -> Option<Value> {
        let seen = self.confined.as_ref().is_none_or(|id| *id == row.domain_id);
        seen.then(|| row.to_json())
    }
}

async fn create(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    bytes: Bytes,
) -> ApiResult {
    let mut object = fields::body(&bytes, "user")?;
    let password = fields::text(&mut object, "password")?.map(SecretString::from);
    caller.may(
        &app,
        "identity:create_user",
        &target("user", Some(&Value::Object(object.clone()))),
    )?;
    let domain_id = super::projects::domain_of_request(&app, &caller, &mut object).await?;
    directory::check_writable(&app, &domain_id)?;
    let mut user = User {
        id: identity_id(),
        domain_id,
        name: fields::name(&mut object, NAME_MAX)?,
        enabled: fields::boolean(&mut object, "enabled")?.unwrap_or(true),
        default_project_id: fields::text(&mut object, "default_project_id")?,
        password_hash: None,
        password_expires_at: None,
        tokens_valid_after: 0,
        options: fields::merged_options(&mut object, "{}", OPTIONS)?,
        extra: "{}".into(),
    };
    user.extra = fields::merge_extra("{}", object);
    if app
        .store
        .user_by_name(&user.domain_id, &user.name)
        .await?
        .is_some()
    {
        return Err(IdentityError::Conflict("user", user.name));
    }
    if let Some(password) = password {
        passwords::set(&app, &mut user, &password, By::Other).await?;
    }
    let mut change = app.store.change_identity().await?;
    change
        .insert_user(&user)
        .await
        .map_err(IdentityError::duplicate("user", &user.name))?;
    passwords::remember(&app, &mut change, &user).await?;
    app.store.commit(change).await?;
    caller.audit("create", KIND, &user.id);
    Ok(member(
        StatusCode::CREATED,
        "user",
        linked(&base, "users", user.to_json()),
    ))
}

async fn show(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    Path(id): Path<String>,
) -> ApiResult {
    let user = authorized(&app, &caller, "identity:get_user", &id).await?;
    Ok(member(
        StatusCode::OK,
        "user",
        linked(&base, "users", user.to_json()),
    ))
}

/// Writes these attributes of a request over a user's own; all but its password, and its id and domain, which stay.
fn edit(user: &mut User, mut object: fields::Object) -> Result<(), IdentityError> {
    if let Some(name) = fields::new_name(&mut object, NAME_MAX)? {
        user.name = name;
    }
    if let Some(enabled) = fields::boolean(&mut object, "enabled")? {
        user.enabled = enabled;
    }
    if object.contains_key("default_project_id") {
        user.default_project_id = fields::text(&mut object, "default_project_id")?;
    }
    user.options = fields::merged_options(&mut object, &user.options, OPTIONS)?;
    user.extra = fields::merge_extra(&user.extra, object);
    Ok(())
}

async fn update(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    Path(id): Path<String>,
    bytes: Bytes,
) -> ApiResult {
    let mut user = authorized(&app, &caller, "identity:update_user", &id).await?;
    directory::check_writable(&app, &user.domain_id)?;
    let mut object = fields::changes(&bytes, "user")?;
    if fields::text(&mut object, "id")?.is_some_and(|other| other != id) {
        return Err(IdentityError::BadRequest(
            "The id of a user cannot be changed.".into(),
        ));
    }
    if fields::text(&mut object, "domain_id")?.is_some_and(|other| other != user.domain_id) {
        return Err(IdentityError::BadRequest(
            "The domain of a user cannot be changed.".into(),
        ));
    }
    let password = fields::text(&mut object, "password")?.map(SecretString::from);
    edit(&mut user, object.clone())?;
    // After the options, which may exempt from the rules.
    if let Some(password) = &password {
        passwords::set(&app, &mut user, password, By::Other).await?;
        #[cfg(test)]
        app.password_pause.after_hashing().await;
    }
    let mut change = app.store.change_identity().await?;
    // A hash takes its time, and the user may be another one by now.
    let hashed = user;
    let now = change.user(&id).await?;
    let mut user = now.ok_or_else(|| IdentityError::NotFound("user", id.clone()))?;
    let was_enabled = user.enabled;
    let unlock = password.is_some() || object.get("enabled") == Some(&Value::Bool(true));
    edit(&mut user, object)?;
    if password.is_some() {
        user.password_hash = hashed.password_hash;
        user.password_expires_at = hashed.password_expires_at;
    }
    if password.is_some() || (was_enabled && !user.enabled) {
        user.end_tokens(now_us());
    }
    change
        .update_user(&user)
        .await
        .map_err(IdentityError::duplicate("user", &user.name))?;
    if password.is_some() {
        passwords::remember(&app, &mut change, &user).await?;
    }
    if unlock {
        passwords::unlock(&app, &mut change, &user.id).await?;
    }
    app.store.commit(change).await?;
    caller.audit("update", KIND, &user.id);
    let mut shown = linked(&base, "users", user.to_json());
    shown["extra"] = Value::Object(crate::store::json_object(&user.extra));
    Ok(member(StatusCode::OK, "user", shown))
}

async fn delete(State(app): State<Arc<App>>, caller: Caller, Path(id): Path<String>) -> ApiResult {
    let user = authorized(&app, &caller, "identity:delete_user", &id).await?;
    directory::check_writable(&app, &user.domain_id)?;
    let mut change = app.store.change_identity().await?;
    change.delete_user(&id).await?;
    app.store.commit(change).await?;
    caller.audit("delete", KIND, &id);
    Ok(no_content())
}

/// A user changes its own password; what proves it is the old password, no token is needed.
async fn change_password(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    bytes: Bytes,
) -> ApiResult {
    let mut object = fields::body(&bytes, "user")?;
    let missing = |name| IdentityError::BadRequest(format!("The attribute {name} is required."));
    let original = fields::text(&mut object, "original_password")?
        .ok_or_else(|| missing("original_password"))?;
    let new = fields::text(&mut object, "password")?.ok_or_else(|| missing("password"))?;
    // No token is looked at, which would ask this.
    app.store.refresh().await?;
    let user = app.store.user(&id).await?.filter(|user| user.enabled);
    if let Some(user) = &user {
        directory::check_writable(&app, &user.domain_id)?;
    }
    if !app.login_limit.admit(account_key(("id", &id))) {
        return Err(IdentityError::TooManyAttempts);
    }
    let proved = passwords::prove(&app, user, &SecretString::from(original)).await?;
    let refused = |cause| {
        audit::failed_login(&id, cause);
        IdentityError::Unauthorized
    };
    let proved = proved.map_err(refused)?;
    let mut hashed = proved.clone();
    passwords::set(&app, &mut hashed, &SecretString::from(new), By::Itself).await?;
    #[cfg(test)]
    app.password_pause.after_hashing().await;
    let mut change = app.store.change_identity().await?;
    // Who was disabled meanwhile, or got another password, may not undo that.
    let now = change.user(&id).await?.filter(|now| now.enabled);
    let now = now.filter(|now| now.password_hash == proved.password_hash);
    let mut user = now.ok_or_else(|| refused("ChangedMeanwhile"))?;
    user.password_hash = hashed.password_hash;
    user.password_expires_at = hashed.password_expires_at;
    user.end_tokens(now_us());
    change.update_user(&user).await?;
    passwords::remember(&app, &mut change, &user).await?;
    app.store.commit(change).await?;
    tracing::info!(target: crate::log::AUDIT, action = "update", outcome = "success", initiator_user_id = %user.id,
        target_type_uri = KIND, target_id = %user.id, "password changed by its user");
    Ok(no_content())
}

async fn projects(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    query: Query,
    Path(id): Path<String>,
) -> ApiResult {
    authorized(&app, &caller, "identity:list_user_projects", &id).await?;
    let ids = app.store.project_ids_of_user(&id).await?;
    let items = app
        .store
        .projects_by_ids(&ids)
        .await?
        .into_iter()
        .map(|project| linked(&base, "projects", project.to_json()))
        .collect();
    Ok(collection(
        &base,
        &query,
        "projects",
        &["name", "enabled", "domain_id"],
        items,
    ))
}

async fn groups(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    query: Query,
    Path(id): Path<String>,
) -> ApiResult {
    authorized(&app, &caller, "identity:list_groups_for_user", &id).await?;
    let items = app
        .store
        .groups_of_user(&id)
        .await?
        .into_iter()
        .filter(|group| {
            caller
                .confined_to()
                .is_none_or(|domain| domain == group.domain_id)
        })
        .map(|group| {
            let mut shown = linked(&base, "groups", group.to_json());
            shown["membership_expires_at"] = Value::Null;
            shown
        })
        .collect();
    Ok(collection(&base, &query, "groups", &["name"], items))
}
