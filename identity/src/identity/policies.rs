//! `/v3/policies`, and OS-ENDPOINT-POLICY: which of them an endpoint, a service or a service in a region uses. They are
//! kept for those who fetch them; this service's own rights are decided by its policy files.

use std::sync::Arc;

use axum::{
    Router,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse, Json},
    routing::{MethodRouter, get, put},
};
use serde_json::{Value, json};

use super::{
    documents::{Family, check_any_text},
    error::{ApiResult, IdentityError},
    support::{Caller, linked, no_content},
};
use crate::{
    app::App,
    http::Base,
    policy::Target,
    store::{Change, catalog::Endpoint},
};

pub(super) const POLICY: Family = Family {
    name: "policy",
    kind: "policy",
    key: "policy",
    keys: "policies",
    path: "policies",
    audit: "data/security/policy",
    filters: &["type"],
    check: |object, new| {
        check_any_text(object, "type", new)?;
        check_any_text(object, "blob", new)
    },
};

const ENDPOINT: &str = "policy_endpoint";
const SERVICE: &str = "policy_service";
const REGION: &str = "policy_region_service";

pub(super) fn routes() -> Router<Arc<App>> {
    POLICY
        .routes()
        .route(
            "/policies/{policy}/OS-ENDPOINT-POLICY/endpoints",
            get(endpoints),
        )
        .route(
            "/policies/{policy}/OS-ENDPOINT-POLICY/endpoints/{id}",
            pair(ENDPOINT, "endpoint"),
        )
        .route(
            "/policies/{policy}/OS-ENDPOINT-POLICY/services/{id}",
            pair(SERVICE, "service"),
        )
        .route(
            "/policies/{policy}/OS-ENDPOINT-POLICY/services/{id}/regions/{region}",
            put(
                |State(app): State<Arc<App>>, caller: Caller, Path(ids): Ids| async move {
                    let (policy, second) = region_pair(&app, ids).await?;
                    associate(
                        &app,
                        &caller,
                        REGION,
                        "region_and_service",
                        &policy,
                        &second,
                    )
                    .await
                },
            )
            .get(
                |State(app): State<Arc<App>>, caller: Caller, Path(ids): Ids| async move {
                    let (policy, second) = region_pair(&app, ids).await?;
                    check(
                        &app,
                        &caller,
                        REGION,
                        "region_and_service",
                        &policy,
                        &second,
                    )
                    .await
                },
            )
            .delete(
                |State(app): State<Arc<App>>, caller: Caller, Path(ids): Ids| async move {
                    let (policy, second) = region_pair(&app, ids).await?;
                    dissociate(
                        &app,
                        &caller,
                        REGION,
                        "region_and_service",
                        &policy,
                        &second,
                    )
                    .await
                },
            ),
        )
        .route(
            "/endpoints/{id}/OS-ENDPOINT-POLICY/policy",
            get(policy_of_endpoint),
        )
}

type Ids = Path<(String, String, String)>;
type Pair = Path<(String, String)>;

/// Policy id and `region/service`, both known.
async fn region_pair(
    app: &App,
    (policy, service, region): (String, String, String),
) -> Result<(String, String), IdentityError> {
    exists(app, SERVICE, &service).await?;
    if !app
        .store
        .regions()
        .await?
        .iter()
        .any(|one| one.id == region)
    {
        return Err(IdentityError::NotFound("region", region));
    }
    Ok((policy, format!("{region}/{service}")))
}

async fn exists(app: &App, family: &str, id: &str) -> Result<(), IdentityError> {
    let (kind, known) = match family {
        ENDPOINT => (
            "endpoint",
            app.store.endpoints().await?.iter().any(|one| one.id == id),
        ),
        _ => (
            "service",
            app.store.services().await?.iter().any(|one| one.id == id),
        ),
    };
    if known {
        Ok(())
    } else {
        Err(IdentityError::NotFound(kind, id.to_owned()))
    }
}

fn pair(family: &'static str, word: &'static str) -> MethodRouter<Arc<App>> {
    put(
        move |State(app): State<Arc<App>>, caller: Caller, Path((policy, id)): Pair| async move {
            exists(&app, family, &id).await?;
            associate(&app, &caller, family, word, &policy, &id).await
        },
    )
    .get(
        move |State(app): State<Arc<App>>, caller: Caller, Path((policy, id)): Pair| async move {
            exists(&app, family, &id).await?;
            check(&app, &caller, family, word, &policy, &id).await
        },
    )
    .delete(
        move |State(app): State<Arc<App>>, caller: Caller, Path((policy, id)): Pair| async move {
            exists(&app, family, &id).await?;
            dissociate(&app, &caller, family, word, &policy, &id).await
        },
    )
}

async fn may(
    app: &App,
    caller: &Caller,
    verb: &str,
    word: &str,
    policy: &str,
) -> Result<(), IdentityError> {
    let rule = format!("identity:{verb}_policy_association_for_{word}");
    caller.may(app, &rule, &Target::new())?;
    POLICY.load(app, policy).await.map(|_| ())
}

/// No association may outlive its policy, or its place.
async fn still_there(
    change: &mut Change,
    family: &str,
    policy: &str,
    second: &str,
) -> Result<(), IdentityError> {
    POLICY.for_change(change, policy).await?;
    let (region, id) = match second.rsplit_once('/') {
        Some((region, id)) if family == REGION => (Some(region), id),
        _ => (None, second),
    };
    let (kind, known) = match family {
        ENDPOINT => ("endpoint", change.endpoint(id).await?.is_some()),
        _ => ("service", change.service(id).await?.is_some()),
    };
    if !known {
        return Err(IdentityError::NotFound(kind, id.to_owned()));
    }
    if let Some(region) = region
        && change.region(region).await?.is_none()
    {
        return Err(IdentityError::NotFound("region", region.to_owned()));
    }
    Ok(())
}

/// There is one policy for a place: the new one takes it.
async fn associate(
    app: &App,
    caller: &Caller,
    family: &str,
    word: &str,
    policy: &str,
    second: &str,
) -> ApiResult {
    may(app, caller, "create", word, policy).await?;
    let mut change = app.store.change_identity().await?;
    still_there(&mut change, family, policy, second).await?;
    for other in change.associated_with(family, second).await? {
        change.dissociate(family, &other, second).await?;
    }
    change.associate(family, policy, second).await?;
    app.store.commit(change).await?;
    caller.audit("update", POLICY.audit, policy);
    Ok(no_content())
}

async fn check(
    app: &App,
    caller: &Caller,
    family: &str,
    word: &str,
    policy: &str,
    second: &str,
) -> ApiResult {
    may(app, caller, "check", word, policy).await?;
    let all = app.store.associated(family, policy).await?;
    if all.iter().any(|id| id == second) {
        Ok(no_content())
    } else {
        Err(IdentityError::NotFound(
            "policy association",
            second.to_owned(),
        ))
    }
}

async fn dissociate(
    app: &App,
    caller: &Caller,
    family: &str,
    word: &str,
    policy: &str,
    second: &str,
) -> ApiResult {
    may(app, caller, "delete", word, policy).await?;
    let mut change = app.store.change_identity().await?;
    // As Keystone: what was not there is as gone.
    let was_there = change.dissociate(family, policy, second).await?;
    app.store.commit(change).await?;
    if was_there {
        caller.audit("update", POLICY.audit, policy);
    }
    Ok(no_content())
}

/// The policy of an endpoint: its own, else that of its service in its region or the regions above, else that of its
/// service.
async fn policy_for(app: &App, endpoint: &Endpoint) -> Result<Option<String>, IdentityError> {
    let first = |mut found: Vec<String>| (!found.is_empty()).then(|| found.swap_remove(0));
    if let Some(id) = first(app.store.associated_with(ENDPOINT, &endpoint.id).await?) {
        return Ok(Some(id));
    }
    let regions = app.store.regions().await?;
    let mut region = endpoint.region_id.clone();
    for _ in 0..=regions.len() {
        let Some(id) = region else { break };
        let place = format!("{id}/{}", endpoint.service_id);
        if let Some(found) = first(app.store.associated_with(REGION, &place).await?) {
            return Ok(Some(found));
        }
        region = regions
            .iter()
            .find(|one| one.id == id)
            .and_then(|one| one.parent_region_id.clone());
    }
    Ok(first(
        app.store
            .associated_with(SERVICE, &endpoint.service_id)
            .await?,
    ))
}

async fn policy_of_endpoint(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    Path(id): Path<String>,
) -> ApiResult {
    caller.may(&app, "identity:get_policy_for_endpoint", &Target::new())?;
    let endpoints = app.store.endpoints().await?;
    let endpoint = endpoints
        .iter()
        .find(|one| one.id == id)
        .ok_or_else(|| IdentityError::NotFound("endpoint", id.clone()))?;
    let policy = policy_for(&app, endpoint)
        .await?
        .ok_or(IdentityError::NotFound("policy for endpoint", id))?;
    POLICY.answer(&base, StatusCode::OK, &POLICY.load(&app, &policy).await?)
}

async fn endpoints(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    Path(policy): Path<String>,
) -> ApiResult {
    caller.may(&app, "identity:list_endpoints_for_policy", &Target::new())?;
    POLICY.load(&app, &policy).await?;
    let mut list: Vec<Value> = Vec::new();
    for endpoint in app.store.endpoints().await? {
        if policy_for(&app, &endpoint).await?.as_deref() == Some(policy.as_str()) {
            list.push(linked(&base, "endpoints", endpoint.to_json()));
        }
    }
    let own = format!(
        "{}/policies/{policy}/OS-ENDPOINT-POLICY/endpoints",
        base.identity()
    );
    Ok(
        Json(json!({"endpoints": list, "links": {"self": own, "next": null, "previous": null}}))
            .into_response(),
    )
}
