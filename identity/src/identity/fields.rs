//! Reading attributes out of request bodies: null counts as absent where the protocol says so, a wrong type
//! is a 400 that names the attribute.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::error::IdentityError;
use crate::store::description::Description;

/// A JSON object.
pub type Object = Map<String, Value>;

/// The object under `key` of a request body.
///
/// # Errors
/// 400 unless the body is `{"<key>": {…}}`.
pub fn body(bytes: &[u8], key: &str) -> Result<Object, IdentityError> {
    let value: Value = serde_json::from_slice(bytes).map_err(|error| {
        IdentityError::BadRequest(format!("The request body is not valid JSON: {error}."))
    })?;
    match value {
        Value::Object(mut outer) => match outer.remove(key) {
            Some(Value::Object(inner)) => Ok(inner),
            _ => Err(IdentityError::BadRequest(format!(
                "The request body must hold an object named {key}."
            ))),
        },
        _ => Err(IdentityError::BadRequest(
            "The request body must be a JSON object.".into(),
        )),
    }
}

/// The same for a change, which has to be one.
///
/// # Errors
/// 400, also if the object is empty.
pub fn changes(bytes: &[u8], key: &str) -> Result<Object, IdentityError> {
    let sent = body(bytes, key)?;
    if sent.is_empty() {
        return Err(IdentityError::BadRequest(format!(
            "The object {key} is empty; name what is to be changed."
        )));
    }
    Ok(sent)
}

/// Takes a string; null and absence are `None`.
///
/// # Errors
/// 400 if it is something else.
pub fn text(object: &mut Object, name: &str) -> Result<Option<String>, IdentityError> {
    match object.remove(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(wrong_type(name, "a string")),
    }
}

/// Takes a Boolean; null and absence are `None`. A string that looks like one is refused.
///
/// # Errors
/// 400 if it is something else.
pub fn boolean(object: &mut Object, name: &str) -> Result<Option<bool>, IdentityError> {
    match object.remove(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(flag)) => Ok(Some(flag)),
        Some(_) => Err(wrong_type(name, "a Boolean")),
    }
}

/// Takes the options of a change and merges them into the stored ones; null removes one.
///
/// # Errors
/// 400 for an option that is not in `known`, or of another type than Boolean (`multi_factor_auth_rules`: lists of
/// methods, not empty and without duplicates).
pub fn merged_options(
    object: &mut Object,
    stored: &str,
    known: &[&str],
) -> Result<String, IdentityError> {
    let mut options = crate::store::json_object(stored);
    let sent = match object.remove("options") {
        None | Some(Value::Null) => return Ok(Value::Object(options).to_string()),
        Some(Value::Object(sent)) => sent,
        Some(_) => return Err(wrong_type("options", "an object")),
    };
    for (name, value) in sent {
        if !known.contains(&name.as_str()) {
            return Err(IdentityError::BadRequest(format!(
                "There is no option {name}; there are: {}.",
                known.join(", ")
            )));
        }
        let fits = match (&value, name.as_str()) {
            (Value::Null, _) => true,
            (value, MFA_RULES) => are_mfa_rules(value),
            (value, _) => value.is_boolean(),
        };
        if !fits {
            let wanted = match name.as_str() {
                MFA_RULES => "a list of lists of methods, none of them empty or twice the same",
                _ => "a Boolean",
            };
            return Err(wrong_type(&name, wanted));
        }
        if value.is_null() {
            options.remove(&name);
        } else {
            options.insert(name, value);
        }
    }
    Ok(Value::Object(options).to_string())
}

/// Lists of methods. None may be empty, as none would be needed for it, and nothing is there twice.
fn are_mfa_rules(value: &Value) -> bool {
    fn once<T: Ord>(list: &[T]) -> bool {
        list.iter().collect::<BTreeSet<_>>().len() == list.len()
    }
    serde_json::from_value::<Vec<Vec<String>>>(value.clone())
        .is_ok_and(|rules| once(&rules) && rules.iter().all(|rule| !rule.is_empty() && once(rule)))
}

/// The option that names sets of methods, one of which a login must use whole.
pub const MFA_RULES: &str = "multi_factor_auth_rules";

/// The option of roles, projects and domains that protects them from changes and deletion.
pub const IMMUTABLE: &str = "immutable";

/// Takes a list of strings.
///
/// # Errors
/// 400 if it is something else.
pub fn texts(object: &mut Object, name: &str) -> Result<Option<Vec<String>>, IdentityError> {
    match object.remove(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => serde_json::from_value(value)
            .map(Some)
            .map_err(|_| wrong_type(name, "a list of strings")),
    }
}

/// A name that is there, not blank, and at most `max` characters.
///
/// # Errors
/// 400 otherwise.
pub fn name(object: &mut Object, max: usize) -> Result<String, IdentityError> {
    let name = text(object, "name")?
        .ok_or_else(|| IdentityError::BadRequest("The attribute name is required.".into()))?;
    check_name(name, max)
}

/// The same for a name that may be absent.
///
/// # Errors
/// 400 if it is there and blank or too long.
pub fn new_name(object: &mut Object, max: usize) -> Result<Option<String>, IdentityError> {
    text(object, "name")?
        .map(|name| check_name(name, max))
        .transpose()
}

fn check_name(name: String, max: usize) -> Result<String, IdentityError> {
    let name = name.trim().to_owned();
    if name.is_empty() || name.chars().count() > max || name.chars().any(char::is_control) {
        return Err(IdentityError::BadRequest(format!(
            "The attribute name must have 1 to {max} printable characters."
        )));
    }
    Ok(name)
}

/// Takes the description of a domain, project or group; `None` where none is sent. Null is a description that is none.
///
/// # Errors
/// 400 if it is something else.
pub fn description(object: &mut Object) -> Result<Option<Description>, IdentityError> {
    Ok(match object.contains_key("description") {
        true => Some(text(object, "description")?.into()),
        false => None,
    })
}

/// Merges what is left of a request into stored extra attributes; null removes one.
pub fn merge_extra(stored: &str, rest: Object) -> String {
    let mut extra = crate::store::json_object(stored);
    for (name, value) in rest {
        if matches!(
            name.as_str(),
            "id" | "links" | "password_hash" | "password_expires_at"
        ) {
            continue;
        }
        extra.insert(name, value);
    }
    Value::Object(extra).to_string()
}

fn wrong_type(name: &str, expected: &str) -> IdentityError {
    IdentityError::BadRequest(format!(
        "Invalid input for attribute {name}: it must be {expected}."
    ))
}
