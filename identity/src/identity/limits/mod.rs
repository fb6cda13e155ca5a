//! Unified limits (`/v3/registered_limits`, `/v3/limits`): how much of a service's resources a project or domain may
//! have. This service keeps and shows the numbers; whose resource it is counts and refuses (as oslo.limit does).

mod model;
mod overrides;
mod registered;

use std::sync::Arc;

use axum::{Router, body::Bytes};
use serde_json::Value;

use super::{
    error::IdentityError,
    fields::{self, Object},
};
use crate::app::App;

pub use model::LimitModel;

/// Largest value, as in Keystone.
const MAX: i64 = 0x7FFF_FFFF;
const NAME_MAX: usize = 255;

pub(super) fn routes() -> Router<Arc<App>> {
    registered::routes().merge(overrides::routes())
}

/// The objects of `{"<key>": [{…}, …]}`, of which there is at least one.
fn list_body(bytes: &Bytes, key: &str) -> Result<Vec<Object>, IdentityError> {
    let bad = || {
        IdentityError::BadRequest(format!(
            "The request body must hold nothing but a list named {key} with at least one object."
        ))
    };
    let value: Value = serde_json::from_slice(bytes).map_err(|error| {
        IdentityError::BadRequest(format!("The request body is not valid JSON: {error}."))
    })?;
    let Value::Object(mut outer) = value else {
        return Err(bad());
    };
    let list = match outer.remove(key) {
        Some(Value::Array(list)) if outer.is_empty() && !list.is_empty() => list,
        _ => return Err(bad()),
    };
    list.into_iter()
        .map(|item| match item {
            Value::Object(object) => Ok(object),
            _ => Err(bad()),
        })
        .collect()
}

/// Takes a limit; absence is `None`.
fn number(object: &mut Object, name: &str) -> Result<Option<i64>, IdentityError> {
    match object.remove(name) {
        None => Ok(None),
        Some(value) => value
            .as_i64()
            .filter(|number| (-1..=MAX).contains(number))
            .map(Some)
            .ok_or_else(|| {
                IdentityError::BadRequest(format!(
                    "The attribute {name} must be a whole number from -1 (no limit) to {MAX}."
                ))
            }),
    }
}

/// Takes the name of a resource; absence is `None`.
fn resource_name(object: &mut Object) -> Result<Option<String>, IdentityError> {
    match object.remove("resource_name") {
        None => Ok(None),
        Some(Value::String(name))
            if !name.trim().is_empty() && name.chars().count() <= NAME_MAX =>
        {
            Ok(Some(name))
        }
        Some(_) => Err(IdentityError::BadRequest(format!(
            "The attribute resource_name must have 1 to {NAME_MAX} characters that are not all blank."
        ))),
    }
}

/// Takes a description; null and absence are `None`.
fn description(object: &mut Object) -> Result<Option<String>, IdentityError> {
    let text = fields::text(object, "description")?;
    if text
        .as_ref()
        .is_some_and(|text| text.chars().count() > NAME_MAX)
    {
        return Err(IdentityError::BadRequest(format!(
            "The attribute description may have {NAME_MAX} characters at most."
        )));
    }
    Ok(text)
}

/// Takes an id that is needed.
fn needed(value: Option<String>, name: &str) -> Result<String, IdentityError> {
    value
        .filter(|text| !text.is_empty())
        .ok_or_else(|| IdentityError::BadRequest(format!("The attribute {name} is required.")))
}

/// Refuses what is left of a request: limits have no attributes but their own.
fn nothing_more(object: &Object) -> Result<(), IdentityError> {
    match object.keys().next() {
        None => Ok(()),
        Some(name) => Err(IdentityError::BadRequest(format!(
            "There is no attribute {} here; leave it out.",
            name.chars().take(64).collect::<String>()
        ))),
    }
}

/// Refuses a service or region that is not there, which is the request's fault and not the path's: 400.
async fn place_exists(
    app: &App,
    service_id: Option<&str>,
    region_id: Option<&str>,
) -> Result<(), IdentityError> {
    if let Some(id) = service_id
        && !app.store.services().await?.iter().any(|one| one.id == id)
    {
        return Err(IdentityError::BadRequest(format!(
            "There is no service {id}; give the id of one."
        )));
    }
    if let Some(id) = region_id
        && !app.store.regions().await?.iter().any(|one| one.id == id)
    {
        return Err(IdentityError::BadRequest(format!(
            "There is no region {id}; give the id of one."
        )));
    }
    Ok(())
}
