//! `/v3/regions`, `/v3/services`, `/v3/endpoints`, and the catalog that tokens carry.

use std::sync::Arc;

use axum::{
    Router,
    body::Bytes,
    extract::{Path, State},
    http::StatusCode,
    routing::get,
};
use serde_json::{Value, json};

use super::{
    error::{ApiResult, IdentityError},
    fields,
    support::{Caller, collection, linked, member, no_content},
};
use crate::{
    app::App,
    http::{Base, Query},
    ids::identity_id,
    policy::Target,
    store::{
        Change, StoreError,
        catalog::{Endpoint, Region, Service},
    },
};

const NAME_MAX: usize = 255;
/// Who an endpoint may be for.
pub(super) const INTERFACES: [&str; 3] = ["public", "internal", "admin"];
const KIND: &str = "data/security/service";

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/regions", get(list_regions).post(create_region))
        .route(
            "/regions/{id}",
            get(show_region)
                .put(put_region)
                .patch(update_region)
                .delete(delete_region),
        )
        .route("/services", get(list_services).post(create_service))
        .route(
            "/services/{id}",
            get(show_service)
                .patch(update_service)
                .delete(delete_service),
        )
        .route("/endpoints", get(list_endpoints).post(create_endpoint))
        .route(
            "/endpoints/{id}",
            get(show_endpoint)
                .patch(update_endpoint)
                .delete(delete_endpoint),
        )
}

/// The catalog for a token: enabled services with their enabled endpoints. `$(project_id)s` in a URL stands
/// for the token's project; an endpoint that needs one is left out of a token without.
pub(super) async fn catalog(app: &App, project_id: Option<&str>) -> Result<Value, StoreError> {
    let endpoints = app.store.endpoints().await?;
    let services = app.store.services().await?;
    // A project that was given endpoints of its own sees no others (OS-EP-FILTER).
    let given = match project_id {
        Some(id) => super::endpoint_filter::endpoint_ids(app, id).await?,
        None => Vec::new(),
    };
    let list: Vec<Value> = services
        .iter()
        .filter(|service| service.enabled)
        .map(|service| {
            let own: Vec<Value> = endpoints
                .iter()
                .filter(|endpoint| endpoint.enabled && endpoint.service_id == service.id)
                .filter(|endpoint| given.is_empty() || given.contains(&endpoint.id))
                .filter_map(|endpoint| {
                    let url = with_project(&endpoint.url, project_id)?;
                    Some(json!({
                        "id": endpoint.id, "interface": endpoint.interface, "region_id": endpoint.region_id,
                        "region": endpoint.region_id, "url": url,
                    }))
                })
                .collect();
            json!({"id": service.id, "type": service.kind, "name": service.name(), "endpoints": own})
        })
        .filter(|service| given.is_empty() || service["endpoints"] != json!([]))
        .collect();
    Ok(Value::Array(list))
}

fn with_project(url: &str, project_id: Option<&str>) -> Option<String> {
    let mut url = url.to_owned();
    for name in [
        "$(project_id)s",
        "%(project_id)s",
        "$(tenant_id)s",
        "%(tenant_id)s",
    ] {
        if url.contains(name) {
            url = url.replace(name, project_id?);
        }
    }
    Some(url)
}

fn not_found(kind: &'static str, id: &str) -> IdentityError {
    IdentityError::NotFound(kind, id.to_owned())
}

async fn list_regions(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    query: Query,
) -> ApiResult {
    caller.may(&app, "identity:list_regions", &Target::new())?;
    let items = app
        .store
        .regions()
        .await?
        .iter()
        .map(|region| linked(&base, "regions", region.to_json()))
        .collect();
    Ok(collection(
        &base,
        &query,
        "regions",
        &["parent_region_id"],
        items,
    ))
}

async fn show_region(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    Path(id): Path<String>,
) -> ApiResult {
    caller.may(&app, "identity:get_region", &Target::new())?;
    let regions = app.store.regions().await?;
    let region = regions
        .iter()
        .find(|region| region.id == id)
        .ok_or_else(|| not_found("region", &id))?;
    Ok(member(
        StatusCode::OK,
        "region",
        linked(&base, "regions", region.to_json()),
    ))
}

async fn create_region(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    bytes: Bytes,
) -> ApiResult {
    let mut object = fields::body(&bytes, "region")?;
    let id = fields::text(&mut object, "id")?.unwrap_or_else(identity_id);
    new_region(&app, &caller, &base, object, id).await
}

/// `PUT`: a region whose id the caller chose.
async fn put_region(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    Path(id): Path<String>,
    bytes: Bytes,
) -> ApiResult {
    let mut object = fields::body(&bytes, "region")?;
    if fields::text(&mut object, "id")?.is_some_and(|other| other != id) {
        return Err(IdentityError::BadRequest(
            "The id in the body is not that of the path.".into(),
        ));
    }
    new_region(&app, &caller, &base, object, id).await
}

async fn new_region(
    app: &App,
    caller: &Caller,
    base: &Base,
    mut object: fields::Object,
    id: String,
) -> ApiResult {
    caller.may(app, "identity:create_region", &Target::new())?;
    let region = Region {
        id,
        description: fields::text(&mut object, "description")?.unwrap_or_default(),
        parent_region_id: fields::text(&mut object, "parent_region_id")?,
        extra: fields::merge_extra("{}", object),
    };
    let mut change = app.store.change_identity().await?;
    known_parent(&mut change, &region).await?;
    change
        .insert_region(&region)
        .await
        .map_err(IdentityError::duplicate("region", &region.id))?;
    app.store.commit(change).await?;
    caller.audit("create", KIND, &region.id);
    Ok(member(
        StatusCode::CREATED,
        "region",
        linked(base, "regions", region.to_json()),
    ))
}

/// The region above must be there, and not be this one or lie below it.
async fn known_parent(change: &mut Change, region: &Region) -> Result<(), IdentityError> {
    let Some(parent) = &region.parent_region_id else {
        return Ok(());
    };
    let regions = change.regions().await?;
    let find = |id: &str| regions.iter().find(|other| other.id == id);
    let mut at = Some(find(parent).ok_or_else(|| not_found("region", parent))?);
    for _ in 0..=regions.len() {
        let Some(above) = at else { return Ok(()) };
        if above.id == region.id {
            break;
        }
        at = above.parent_region_id.as_deref().and_then(find);
    }
    Err(IdentityError::BadRequest(
        "A region cannot lie in itself or in a region below it.".into(),
    ))
}

async fn update_region(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    Path(id): Path<String>,
    bytes: Bytes,
) -> ApiResult {
    let mut object = fields::changes(&bytes, "region")?;
    caller.may(&app, "identity:update_region", &Target::new())?;
    let mut change = app.store.change_identity().await?;
    let mut region = change
        .region(&id)
        .await?
        .ok_or_else(|| not_found("region", &id))?;
    if object.contains_key("description") {
        region.description = fields::text(&mut object, "description")?.unwrap_or_default();
    }
    if object.contains_key("parent_region_id") {
        region.parent_region_id = fields::text(&mut object, "parent_region_id")?;
        known_parent(&mut change, &region).await?;
    }
    region.extra = fields::merge_extra(&region.extra, object);
    change.update_region(&region).await?;
    app.store.commit(change).await?;
    caller.audit("update", KIND, &id);
    Ok(member(
        StatusCode::OK,
        "region",
        linked(&base, "regions", region.to_json()),
    ))
}

async fn delete_region(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
) -> ApiResult {
    caller.may(&app, "identity:delete_region", &Target::new())?;
    let mut change = app.store.change_identity().await?;
    let deleted = change
        .delete_region(&id)
        .await
        .map_err(|error| match error {
            StoreError::Dangling => IdentityError::Forbidden(
                "Endpoints or registered limits use this region; delete those first.".into(),
            ),
            other => other.into(),
        })?;
    if !deleted {
        return Err(not_found("region", &id));
    }
    app.store.commit(change).await?;
    caller.audit("delete", KIND, &id);
    Ok(no_content())
}

async fn list_services(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    query: Query,
) -> ApiResult {
    caller.may(&app, "identity:list_services", &Target::new())?;
    let items = app
        .store
        .services()
        .await?
        .iter()
        .map(|service| linked(&base, "services", service.to_json()))
        .collect();
    Ok(collection(
        &base,
        &query,
        "services",
        &["type", "name"],
        items,
    ))
}

async fn show_service(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    Path(id): Path<String>,
) -> ApiResult {
    caller.may(&app, "identity:get_service", &Target::new())?;
    let services = app.store.services().await?;
    let service = services
        .iter()
        .find(|service| service.id == id)
        .ok_or_else(|| not_found("service", &id))?;
    Ok(member(
        StatusCode::OK,
        "service",
        linked(&base, "services", service.to_json()),
    ))
}

/// Takes the name of a service; there may be none, but null is none that can be.
fn service_name(object: &mut fields::Object) -> Result<Option<String>, IdentityError> {
    if object.get("name").is_some_and(Value::is_null) {
        return Err(IdentityError::BadRequest(
            "The attribute name may not be null; leave it out.".into(),
        ));
    }
    fields::new_name(object, NAME_MAX)
}

/// Takes the description of a service. Null stays in what is sent: it is kept among the attributes that the API does not define.
fn described(object: &mut fields::Object) -> Result<Option<String>, IdentityError> {
    match object.get("description") {
        Some(Value::Null) => Ok(None),
        _ => fields::text(object, "description"),
    }
}

async fn create_service(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    bytes: Bytes,
) -> ApiResult {
    let mut object = fields::body(&bytes, "service")?;
    caller.may(&app, "identity:create_service", &Target::new())?;
    let service = Service {
        id: identity_id(),
        kind: fields::text(&mut object, "type")?
            .filter(|kind| !kind.is_empty())
            .ok_or_else(|| IdentityError::BadRequest("The attribute type is required.".into()))?,
        name: service_name(&mut object)?,
        description: described(&mut object)?,
        enabled: fields::boolean(&mut object, "enabled")?.unwrap_or(true),
        extra: fields::merge_extra("{}", object),
    };
    let mut change = app.store.change_identity().await?;
    change.insert_service(&service).await?;
    app.store.commit(change).await?;
    caller.audit("create", KIND, &service.id);
    Ok(member(
        StatusCode::CREATED,
        "service",
        linked(&base, "services", service.to_json()),
    ))
}

async fn update_service(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    Path(id): Path<String>,
    bytes: Bytes,
) -> ApiResult {
    let mut object = fields::changes(&bytes, "service")?;
    caller.may(&app, "identity:update_service", &Target::new())?;
    let mut change = app.store.change_identity().await?;
    let mut service = change
        .service(&id)
        .await?
        .ok_or_else(|| not_found("service", &id))?;
    if object.contains_key("type") {
        service.kind = fields::text(&mut object, "type")?
            .filter(|kind| !kind.is_empty())
            .ok_or_else(|| {
                IdentityError::BadRequest("The attribute type may not be empty.".into())
            })?;
    }
    if let Some(name) = service_name(&mut object)? {
        service.name = Some(name);
    }
    if object.contains_key("description") {
        service.description = described(&mut object)?;
    }
    if let Some(enabled) = fields::boolean(&mut object, "enabled")? {
        service.enabled = enabled;
    }
    service.extra = fields::merge_extra(&service.extra, object);
    change.update_service(&service).await?;
    app.store.commit(change).await?;
    caller.audit("update", KIND, &id);
    Ok(member(
        StatusCode::OK,
        "service",
        linked(&base, "services", service.to_json()),
    ))
}

async fn delete_service(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
) -> ApiResult {
    caller.may(&app, "identity:delete_service", &Target::new())?;
    let mut change = app.store.change_identity().await?;
    let deleted = change
        .delete_service(&id)
        .await
        .map_err(|error| match error {
            StoreError::Dangling => IdentityError::Forbidden(
                "There are registered limits of this service; delete those first.".into(),
            ),
            other => other.into(),
        })?;
    if !deleted {
        return Err(not_found("service", &id));
    }
    change.dissociate_all(&id).await?;
    app.store.commit(change).await?;
    caller.audit("delete", KIND, &id);
    Ok(no_content())
}

async fn list_endpoints(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    query: Query,
) -> ApiResult {
    caller.may(&app, "identity:list_endpoints", &Target::new())?;
    let items = app
        .store
        .endpoints()
        .await?
        .iter()
        .map(|endpoint| linked(&base, "endpoints", endpoint.to_json()))
        .collect();
    Ok(collection(
        &base,
        &query,
        "endpoints",
        &["interface", "service_id", "region_id"],
        items,
    ))
}

async fn show_endpoint(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    Path(id): Path<String>,
) -> ApiResult {
    caller.may(&app, "identity:get_endpoint", &Target::new())?;
    let endpoints = app.store.endpoints().await?;
    let endpoint = endpoints
        .iter()
        .find(|endpoint| endpoint.id == id)
        .ok_or_else(|| not_found("endpoint", &id))?;
    Ok(member(
        StatusCode::OK,
        "endpoint",
        linked(&base, "endpoints", endpoint.to_json()),
    ))
}

async fn create_endpoint(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    bytes: Bytes,
) -> ApiResult {
    let mut object = fields::body(&bytes, "endpoint")?;
    caller.may(&app, "identity:create_endpoint", &Target::new())?;
    let required = |value: Option<String>, name: &str| {
        value
            .filter(|text| !text.is_empty())
            .ok_or_else(|| IdentityError::BadRequest(format!("The attribute {name} is required.")))
    };
    let legacy_region = fields::text(&mut object, "region")?;
    let endpoint = Endpoint {
        id: identity_id(),
        service_id: required(fields::text(&mut object, "service_id")?, "service_id")?,
        interface: required(fields::text(&mut object, "interface")?, "interface")?,
        region_id: fields::text(&mut object, "region_id")?.or(legacy_region),
        url: required(fields::text(&mut object, "url")?, "url")?,
        enabled: fields::boolean(&mut object, "enabled")?.unwrap_or(true),
        extra: fields::merge_extra("{}", object),
    };
    let mut change = app.store.change_identity().await?;
    check(&mut change, &endpoint).await?;
    change.insert_endpoint(&endpoint).await?;
    app.store.commit(change).await?;
    caller.audit("create", KIND, &endpoint.id);
    Ok(member(
        StatusCode::CREATED,
        "endpoint",
        linked(&base, "endpoints", endpoint.to_json()),
    ))
}

/// Whether an endpoint can be as it is. As in Keystone, it brings its region into being if there is none yet.
async fn check(change: &mut Change, endpoint: &Endpoint) -> Result<(), IdentityError> {
    let bad = |text: String| Err(IdentityError::BadRequest(text));
    if !INTERFACES.contains(&endpoint.interface.as_str()) {
        return bad(format!(
            "The attribute interface must be one of {}.",
            INTERFACES.join(", ")
        ));
    }
    if endpoint.url.is_empty() {
        return bad("The attribute url may not be empty.".into());
    }
    if change.service(&endpoint.service_id).await?.is_none() {
        return bad(format!("There is no service {}.", endpoint.service_id));
    }
    if let Some(id) = &endpoint.region_id
        && change.region(id).await?.is_none()
    {
        let region = Region {
            id: id.clone(),
            description: String::new(),
            parent_region_id: None,
            extra: "{}".into(),
        };
        change.insert_region(&region).await?;
    }
    Ok(())
}

async fn update_endpoint(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    Path(id): Path<String>,
    bytes: Bytes,
) -> ApiResult {
    let mut object = fields::changes(&bytes, "endpoint")?;
    caller.may(&app, "identity:update_endpoint", &Target::new())?;
    let mut change = app.store.change_identity().await?;
    let mut endpoint = change
        .endpoint(&id)
        .await?
        .ok_or_else(|| not_found("endpoint", &id))?;
    let row: &mut Endpoint = &mut endpoint;
    for (name, place) in [
        ("service_id", &mut row.service_id),
        ("interface", &mut row.interface),
        ("url", &mut row.url),
    ] {
        if let Some(text) = fields::text(&mut object, name)? {
            *place = text;
        }
    }
    // The older clients' word comes first, so that the newer one wins.
    for name in ["region", "region_id"] {
        if object.contains_key(name) {
            endpoint.region_id = fields::text(&mut object, name)?;
        }
    }
    if let Some(enabled) = fields::boolean(&mut object, "enabled")? {
        endpoint.enabled = enabled;
    }
    endpoint.extra = fields::merge_extra(&endpoint.extra, object);
    check(&mut change, &endpoint).await?;
    change.update_endpoint(&endpoint).await?;
    app.store.commit(change).await?;
    caller.audit("update", KIND, &id);
    Ok(member(
        StatusCode::OK,
        "endpoint",
        linked(&base, "endpoints", endpoint.to_json()),
    ))
}

async fn delete_endpoint(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
) -> ApiResult {
    caller.may(&app, "identity:delete_endpoint", &Target::new())?;
    let mut change = app.store.change_identity().await?;
    if !change.delete_endpoint(&id).await? {
        return Err(not_found("endpoint", &id));
    }
    change.dissociate_all(&id).await?;
    app.store.commit(change).await?;
    caller.audit("delete", KIND, &id);
    Ok(no_content())
}
