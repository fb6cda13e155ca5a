//! `/v3/groups` and their members.

use std::sync::Arc;

use axum::{
    Router,
    body::Bytes,
    extract::{Path, State},
    http::StatusCode,
    routing::{get, put},
};
use serde_json::Value;

use super::{
    directory,
    error::{ApiResult, IdentityError},
    fields,
    long_list::{self, Kind, Rows},
    support::{Caller, collection, linked, member, narrowed_by, no_content, target},
};
use crate::{
    app::App,
    http::{Base, Query},
    ids::identity_id,
    policy::Target,
    store::{StoreResult, groups::Group, page::Page, users::User},
};

const NAME_MAX: usize = 64;
const KIND: &str = "data/security/group";
const CHECK_MEMBER: &str = "identity:check_user_in_group";

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/groups", get(list).post(create))
        .route("/groups/{id}", get(show).patch(update).delete(delete))
        .route("/groups/{id}/users", get(users))
        .route(
            "/groups/{id}/users/{user_id}",
            put(add).delete(remove).get(contains),
        )
}

async fn authorized(
    app: &Arc<App>,
    caller: &Caller,
    rule: &str,
    id: &str,
) -> Result<Group, IdentityError> {
    let mut found = app.store.group(id).await?;
    if let Some(group) = found
        .as_ref()
        .filter(|group| app.directories.has(&group.domain_id))
    {
        directory::before_list(app, Some(&group.domain_id)).await?;
        found = app.store.group(id).await?;
    }
    caller.may(
        app,
        rule,
        &target("group", found.as_ref().map(Group::to_json).as_ref()),
    )?;
    found.ok_or_else(|| IdentityError::NotFound("group", id.into()))
}

async fn list(State(app): State<Arc<App>>, caller: Caller, base: Base, query: Query) -> ApiResult {
    let mut wanted = Target::new();
    if let Some(domain) = caller.confined_to() {
        wanted = wanted.text("target.group.domain_id", domain);
    }
    caller.may(&app, "identity:list_groups", &wanted)?;
    let domain = query.non_empty("domain_id").or(caller.confined_to());
    directory::before_list(&app, domain).await?;
    let after = match query.non_empty("marker") {
        Some(id) => {
            let missing = || IdentityError::NotFound("group", id.into());
            Some(app.store.group(id).await?.ok_or_else(missing)?)
        }
        None => None,
    };
    let kind = Kind {
        key: "groups",
        filters: &["name", "domain_id"],
        narrowed: narrowed_by(&query, &["domain_id", "name"]),
    };
    let rows = Groups {
        domain: domain.map(str::to_owned),
        name: query.non_empty("name").map(str::to_owned),
        confined: caller.confined_to().map(str::to_owned),
        app,
    };
    let after = after.map(|group| (group.name, group.id));
    long_list::list((base, query), kind, rows, after).await
}

/// Groups of a domain or of all, of one name or of any.
struct Groups {
    app: Arc<App>,
    domain: Option<String>,
    name: Option<String>,
    confined: Option<String>,
}

impl Rows for Groups {
    type Row = Group;

    async fn page(&self, page: &Page) -> StoreResult<Vec<Group>> {
        let (domain, name) = (self.domain.as_deref(), self.name.as_deref());
        self.app.store.groups_page(domain, name, page).await
    }

    fn place(row: &Group) -> (String, String) {
        (row.name.clone(), row.id.clone())
    }

    fn show(&self, row: Group) -> Option<Value> {
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
    let mut object = fields::body(&bytes, "group")?;
    caller.may(
        &app,
        "identity:create_group",
        &target("group", Some(&Value::Object(object.clone()))),
    )?;
    let domain_id = super::projects::domain_of_request(&app, &caller, &mut object).await?;
    directory::check_writable(&app, &domain_id)?;
    let mut group = Group {
        id: identity_id(),
        domain_id,
        name: fields::name(&mut object, NAME_MAX)?,
        description: fields::description(&mut object)?.unwrap_or_default(),
        extra: String::new(),
    };
    group.extra = fields::merge_extra("{}", object);
    let mut change = app.store.change_identity().await?;
    change
        .insert_group(&group)
        .await
        .map_err(IdentityError::duplicate("group", &group.name))?;
    app.store.commit(change).await?;
    caller.audit("create", KIND, &group.id);
    Ok(member(
        StatusCode::CREATED,
        "group",
        linked(&base, "groups", group.to_json()),
    ))
}

async fn show(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    Path(id): Path<String>,
) -> ApiResult {
    let group = authorized(&app, &caller, "identity:get_group", &id).await?;
    Ok(member(
        StatusCode::OK,
        "group",
        linked(&base, "groups", group.to_json()),
    ))
}

async fn update(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    Path(id): Path<String>,
    bytes: Bytes,
) -> ApiResult {
    let group = authorized(&app, &caller, "identity:update_group", &id).await?;
    directory::check_writable(&app, &group.domain_id)?;
    let mut object = fields::changes(&bytes, "group")?;
    if fields::text(&mut object, "domain_id")?.is_some_and(|other| other != group.domain_id) {
        return Err(IdentityError::BadRequest(
            "The domain of a group cannot be changed.".into(),
        ));
    }
    let mut change = app.store.change_identity().await?;
    let mut group = change
        .group(&id)
        .await?
        .ok_or_else(|| IdentityError::NotFound("group", id.clone()))?;
    if let Some(name) = fields::new_name(&mut object, NAME_MAX)? {
        group.name = name;
    }
    if let Some(description) = fields::description(&mut object)? {
        group.description = description;
    }
    group.extra = fields::merge_extra(&group.extra, object);
    change
        .update_group(&group)
        .await
        .map_err(IdentityError::duplicate("group", &group.name))?;
    app.store.commit(change).await?;
    caller.audit("update", KIND, &group.id);
    Ok(member(
        StatusCode::OK,
        "group",
        linked(&base, "groups", group.to_json()),
    ))
}

async fn delete(State(app): State<Arc<App>>, caller: Caller, Path(id): Path<String>) -> ApiResult {
    let group = authorized(&app, &caller, "identity:delete_group", &id).await?;
    directory::check_writable(&app, &group.domain_id)?;
    let mut change = app.store.change_identity().await?;
    change.delete_group(&id).await?;
    app.store.commit(change).await?;
    caller.audit("delete", KIND, &id);
    Ok(no_content())
}

async fn users(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    query: Query,
    Path(id): Path<String>,
) -> ApiResult {
    authorized(&app, &caller, "identity:list_users_in_group", &id).await?;
    let items = app
        .store
        .users_of_group(&id)
        .await?
        .into_iter()
        .map(|user| linked(&base, "users", user.to_json()))
        .collect();
    Ok(collection(
        &base,
        &query,
        "users",
        &["name", "enabled", "domain_id"],
        items,
    ))
}

async fn membership(
    app: &Arc<App>,
    caller: &Caller,
    rule: &str,
    group_id: &str,
    user_id: &str,
) -> Result<Group, IdentityError> {
    directory::before_user(app, user_id).await?;
    let group = app.store.group(group_id).await?;
    let user = app.store.user(user_id).await?;
    let mut wanted = target("group", group.as_ref().map(Group::to_json).as_ref());
    if let Some(user) = &user {
        wanted = wanted.with("target.user", &User::to_json(user));
    }
    caller.may(app, rule, &wanted)?;
    let group = group.ok_or_else(|| IdentityError::NotFound("group", group_id.into()))?;
    let user = user.ok_or_else(|| IdentityError::NotFound("user", user_id.into()))?;
    // A directory says who is in its groups, and a group of ours holds no user of a directory that may vanish: both
    // are members by their directory alone, as in Keystone.
    if rule != CHECK_MEMBER {
        directory::check_writable(app, &group.domain_id)?;
        if app.directories.has(&user.domain_id) {
            return Err(IdentityError::Forbidden(
                "A user of a directory can only be in groups of that directory.".into(),
            ));
        }
    }
    Ok(group)
}

async fn add(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((group_id, user_id)): Path<(String, String)>,
) -> ApiResult {
    membership(
        &app,
        &caller,
        "identity:add_user_to_group",
        &group_id,
        &user_id,
    )
    .await?;
    let mut change = app.store.change_identity().await?;
    change.add_member(&group_id, &user_id).await?;
    app.store.commit(change).await?;
    caller.audit("update", KIND, &group_id);
    Ok(no_content())
}

async fn remove(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((group_id, user_id)): Path<(String, String)>,
) -> ApiResult {
    membership(
        &app,
        &caller,
        "identity:remove_user_from_group",
        &group_id,
        &user_id,
    )
    .await?;
    let mut change = app.store.change_identity().await?;
    if !change.remove_member(&group_id, &user_id).await? {
        return Err(IdentityError::NotFound("user in group", user_id));
    }
    app.store.commit(change).await?;
    caller.audit("update", KIND, &group_id);
    Ok(no_content())
}

async fn contains(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((group_id, user_id)): Path<(String, String)>,
) -> ApiResult {
    membership(&app, &caller, CHECK_MEMBER, &group_id, &user_id).await?;
    if app
        .store
        .groups_of_user(&user_id)
        .await?
        .iter()
        .any(|group| group.id == group_id)
    {
        Ok(no_content())
    } else {
        Err(IdentityError::NotFound("user in group", user_id))
    }
}
