//! `/v3/OS-TRUST/trusts`: a user lets another one act with roles of its own on one project. What a trust is worth is decided in
//! `token::trust`; the statuses and checks are those of Keystone's `api/trusts.py`.

use std::sync::Arc;

use axum::{
    Router,
    body::Bytes,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse, Json},
    routing::get,
};
use serde_json::{Value, json};

use super::{
    error::{ApiResult, IdentityError},
    fields::{self, Object},
    support::{Caller, collection, linked, member, no_content},
};
use crate::{
    app::App,
    http::{Base, Query},
    ids::identity_id,
    policy::Target,
    store::{json_object, roles::Role, trusts::Trust},
    time::{now_us, parse_time, token_time},
    token::trust::{self, Chain, MAX_REDELEGATION, TrustError},
};

const PATH: &str = "OS-TRUST/trusts";
const KIND: &str = "data/security/trust";

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/OS-TRUST/trusts", get(list).post(create))
        .route("/OS-TRUST/trusts/{id}", get(show).delete(delete))
        .route("/OS-TRUST/trusts/{id}/roles", get(roles))
        .route("/OS-TRUST/trusts/{id}/roles/{role_id}", get(role))
}

impl From<TrustError> for IdentityError {
    fn from(error: TrustError) -> Self {
        match error {
            TrustError::Gone => Self::NotFound("trust", "it is over or does not exist".into()),
            TrustError::Broken(text) => Self::Forbidden(text.into()),
            TrustError::Store(error) => Self::Store(error),
        }
    }
}

/// A trust as lists show it.
fn listed(base: &Base, trust: &Trust) -> Value {
    let mut object = json!({
        "id": trust.id, "trustor_user_id": trust.trustor_id, "trustee_user_id": trust.trustee_id,
        "project_id": trust.project_id, "impersonation": trust.impersonation,
        "expires_at": trust.expires_at.map(token_time), "remaining_uses": trust.remaining_uses, "deleted_at": null,
        "redelegated_trust_id": trust.redelegated_trust_id, "redelegation_count": trust.redelegation_count,
    });
    if let Some(map) = object.as_object_mut() {
        for (name, value) in json_object(&trust.extra) {
            map.entry(name).or_insert(value);
        }
    }
    linked(base, PATH, object)
}

fn role_json(base: &Base, role: &Role) -> Value {
    linked(base, "roles", role.to_json())
}

fn roles_links(base: &Base, id: &str) -> Value {
    json!({"self": format!("{}/{PATH}/{id}/roles", base.identity()), "next": null, "previous": null})
}

/// A trust as it is shown alone.
async fn shown(app: &App, base: &Base, trust: &Trust) -> Result<Value, IdentityError> {
    let roles = app.store.trust_roles(&trust.id).await?;
    let mut object = listed(base, trust);
    object["roles"] = roles.iter().map(|role| role_json(base, role)).collect();
    object["roles_links"] = roles_links(base, &trust.id);
    Ok(object)
}

fn target(trust: &Trust) -> Target {
    Target::new()
        .text("target.trust.trustor_user_id", &trust.trustor_id)
        .text("target.trust.trustee_user_id", &trust.trustee_id)
}

/// A trust that can be used, if the rule permits what the caller wants with it. One that is not there is told before the rule is
/// asked, as in Keystone.
async fn authorized(
    app: &App,
    caller: &Caller,
    rule: &str,
    id: &str,
) -> Result<Trust, IdentityError> {
    let chain =
        trust::chain(&app.store, id, now_us(), true)
            .await
            .map_err(|error| match error {
                TrustError::Gone => IdentityError::NotFound("trust", id.to_owned()),
                other => other.into(),
            })?;
    let trust = chain.own().trust.clone();
    caller.may(app, rule, &target(&trust))?;
    in_person(caller)?;
    Ok(trust)
}

/// With a trust other trusts can be made and seen: that is what passing it on is.
fn in_person(caller: &Caller) -> Result<(), IdentityError> {
    caller.in_person(true, "Trusts are managed")
}

async fn list(State(app): State<Arc<App>>, caller: Caller, base: Base, query: Query) -> ApiResult {
    let trustor = query.non_empty("trustor_user_id");
    let trustee = query.non_empty("trustee_user_id");
    let (rule, target) = match (trustor, trustee) {
        (Some(id), _) => (
            "identity:list_trusts_for_trustor",
            Target::new().text("target.trust.trustor_user_id", id),
        ),
        (None, Some(id)) => (
            "identity:list_trusts_for_trustee",
            Target::new().text("target.trust.trustee_user_id", id),
        ),
        (None, None) => ("identity:list_trusts", Target::new()),
    };
    caller.may(&app, rule, &target)?;
    in_person(&caller)?;
    let found = app.store.trusts(trustor, trustee).await?;
    let items = found.iter().map(|trust| listed(&base, trust)).collect();
    Ok(collection(&base, &query, "trusts", &[], items))
}

async fn show(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    Path(id): Path<String>,
) -> ApiResult {
    let trust = authorized(&app, &caller, "identity:get_trust", &id).await?;
    let object = shown(&app, &base, &trust).await?;
    Ok(member(StatusCode::OK, "trust", object))
}

async fn delete(State(app): State<Arc<App>>, caller: Caller, Path(id): Path<String>) -> ApiResult {
    authorized(&app, &caller, "identity:delete_trust", &id).await?;
    let mut change = app.store.change_identity().await?;
    change.delete_trust(&id).await?;
    app.store.commit(change).await?;
    caller.audit("delete", KIND, &id);
    Ok(no_content())
}

async fn roles(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    Path(id): Path<String>,
) -> ApiResult {
    authorized(&app, &caller, "identity:list_roles_for_trust", &id).await?;
    let roles = app.store.trust_roles(&id).await?;
    let list: Vec<Value> = roles.iter().map(|role| role_json(&base, role)).collect();
    Ok(Json(json!({"roles": list, "links": roles_links(&base, &id)})).into_response())
}

async fn role(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    Path((id, role_id)): Path<(String, String)>,
) -> ApiResult {
    authorized(&app, &caller, "identity:get_role_for_trust", &id).await?;
    let roles = app.store.trust_roles(&id).await?;
    let role = roles
        .iter()
        .find(|role| role.id == role_id)
        .ok_or_else(|| IdentityError::NotFound("role", role_id.clone()))?;
    Ok(member(StatusCode::OK, "role", role_json(&base, role)))
}

/// A number that is absent, null or at least `least`.
fn number(object: &mut Object, name: &str, least: i64) -> Result<Option<i64>, IdentityError> {
    match object.remove(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => value
            .as_i64()
            // Larger ones than any use could count are as bad as none.
            .filter(|number| (least..=i64::from(i32::MAX)).contains(number))
            .map(Some)
            .ok_or_else(|| {
                IdentityError::BadRequest(format!(
                    "The attribute {name} must be a whole number from {least} to {}.",
                    i32::MAX
                ))
            }),
    }
}

fn required(object: &mut Object, name: &str) -> Result<String, IdentityError> {
    fields::text(object, name)?
        .filter(|text| !text.is_empty())
        .ok_or_else(|| IdentityError::BadRequest(format!("The attribute {name} is required.")))
}

/// What a client asks for, read and checked by itself.
struct Request {
    trust: Trust,
    roles: Vec<Value>,
    redelegatable: bool,
    /// How often the trust may be passed on, if the client says so.
    count: Option<i64>,
}

fn read(mut sent: Object) -> Result<Request, IdentityError> {
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
    let roles = match sent.remove("roles") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(list)) => list,
        Some(_) => {
            return Err(IdentityError::BadRequest(
                "The attribute roles must be a list.".into(),
            ));
        }
    };
    if fields::text(&mut sent, "redelegated_trust_id")?.is_some() {
        return Err(IdentityError::BadRequest(
            "redelegated_trust_id cannot be set: log in with the trust that is to be passed on."
                .into(),
        ));
    }
    let count = number(&mut sent, "redelegation_count", 0)?;
    let redelegatable =
        fields::boolean(&mut sent, "allow_redelegation")?.unwrap_or(false) && count != Some(0);
    let remaining_uses = number(&mut sent, "remaining_uses", 1)?;
    if redelegatable && remaining_uses.is_some() {
        return Err(IdentityError::BadRequest(
            "remaining_uses must not be set if redelegation is allowed.".into(),
        ));
    }
    let impersonation = fields::boolean(&mut sent, "impersonation")?.ok_or_else(|| {
        IdentityError::BadRequest("The attribute impersonation is required.".into())
    })?;
    let trust = Trust {
        id: identity_id(),
        trustor_id: required(&mut sent, "trustor_user_id")?,
        trustee_id: required(&mut sent, "trustee_user_id")?,
        project_id: fields::text(&mut sent, "project_id")?.filter(|id| !id.is_empty()),
        impersonation,
        expires_at,
        remaining_uses,
        redelegated_trust_id: None,
        redelegation_count: 0,
        extra: {
            sent.remove("deleted_at");
            fields::merge_extra("{}", sent)
        },
    };
    Ok(Request {
        trust,
        roles,
        redelegatable,
        count,
    })
}

/// The ids of the roles asked for.
async fn role_ids(app: &App, sent: &[Value]) -> Result<Vec<String>, IdentityError> {
    let mut ids = Vec::new();
    for role in sent {
        let (found, wanted) = match (role["id"].as_str(), role["name"].as_str()) {
            (Some(id), None) => (app.store.role(id).await?, id),
            (None, Some(name)) => (app.store.global_role_by_name(name).await?, name),
            _ => {
                return Err(IdentityError::BadRequest(
                    "A role of a trust is given by its id or by its name.".into(),
                ));
            }
        };
        let found = found
            .ok_or_else(|| IdentityError::NotFound("role", wanted.chars().take(64).collect()))?;
        ids.push(found.id);
    }
    Ok(ids)
}

/// How often the new trust may be passed on, and what the one that it is made with says to it.
fn redelegate(
    request: &mut Request,
    roles: &[String],
    above: Option<&Chain>,
) -> Result<(), IdentityError> {
    if request.redelegatable && request.count.is_some_and(|count| count > MAX_REDELEGATION) {
        return Err(IdentityError::Forbidden(format!(
            "redelegation_count must be at most {MAX_REDELEGATION}."
        )));
    }
    let trust = &mut request.trust;
    let most = match above {
        None => MAX_REDELEGATION,
        Some(chain) => {
            let parent = &chain.own().trust;
            let left = parent.redelegation_count - 1;
            if request.redelegatable && request.count.is_some_and(|count| count != left) {
                return Err(IdentityError::Forbidden(
                    "redelegation_count cannot be changed when a trust is passed on; leave it out."
                        .into(),
                ));
            }
            trust.redelegated_trust_id = Some(parent.id.clone());
            trust.expires_at = trust.expires_at.or(parent.expires_at);
            left
        }
    };
    if request.redelegatable {
        trust.redelegation_count = request.count.unwrap_or(most);
    }
    for link in above.map(Chain::links).unwrap_or_default() {
        trust::may_redelegate(link, trust, roles)?;
    }
    Ok(())
}

async fn create(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    bytes: Bytes,
) -> ApiResult {
    let mut request = read(fields::body(&bytes, "trust")?)?;
    caller.may(&app, "identity:create_trust", &target(&request.trust))?;
    in_person(&caller)?;
    if request.trust.project_id.is_some() && request.roles.is_empty() {
        return Err(IdentityError::Forbidden(
            "A trust for a project needs at least one role.".into(),
        ));
    }
    // The rule says so too, but a site may have another one, and nobody gives away what is somebody else's.
    if caller.0.user.id != request.trust.trustor_id {
        return Err(IdentityError::Forbidden(
            "Only the trustor itself can make a trust.".into(),
        ));
    }
    let trustee = request.trust.trustee_id.as_str();
    if app.store.user(trustee).await?.is_none() {
        return Err(IdentityError::NotFound("user", trustee.to_owned()));
    }
    let above = match &caller.0.trust {
        None => None,
        Some(used) => Some(trust::chain(&app.store, &used.id, now_us(), true).await?),
    };
    let roles = role_ids(&app, &request.roles).await?;
    if let Some(project) = &request.trust.project_id {
        if app.store.project(project).await?.is_none() {
            return Err(IdentityError::NotFound("project", project.clone()));
        }
        if above
            .as_ref()
            .is_some_and(|chain| chain.own().trust.project_id.as_ref() != Some(project))
        {
            return Err(IdentityError::Forbidden(
                "A trust that is passed on is for the same project.".into(),
            ));
        }
        let whose = above
            .as_ref()
            .map_or(request.trust.trustor_id.as_str(), Chain::first_trustor);
        let held = app.store.held_role_ids(whose, "project", project).await?;
        if let Some(missing) = roles.iter().find(|role| !held.contains(role)) {
            return Err(IdentityError::NotFound(
                "role that the trustor has on the project",
                missing.clone(),
            ));
        }
    } else if !roles.is_empty() || above.is_some() {
        return Err(IdentityError::BadRequest(
            "A trust with roles needs a project_id.".into(),
        ));
    }
    redelegate(&mut request, &roles, above.as_ref())?;
    let trust = request.trust;
    let mut change = app.store.change_identity().await?;
    change
        .insert_trust(&trust, &roles)
        .await
        .map_err(IdentityError::duplicate("trust", &trust.id))?;
    app.store.commit(change).await?;
    caller.audit("create", KIND, &trust.id);
    let object = shown(&app, &base, &trust).await?;
    Ok(member(StatusCode::CREATED, "trust", object))
}
