//! Reading request bodies of the key manager.

use axum::http::{HeaderMap, header};
use serde_json::{Map, Value};

use super::error::KeyManagerError;

/// Longer JSON bodies are cut off by the protocol and then read as malformed.
const MAX_JSON: usize = 25_000;
const TEXT_MAX: usize = 255;

/// A JSON object.
pub(super) type Object = Map<String, Value>;

/// The media type of a header without its parameters, in lower case.
pub(super) fn media_type(text: &str) -> String {
    text.split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase()
}

/// The object in a JSON body, its strings without white space around them.
///
/// # Errors
/// 415 unless the content type is JSON, 400 unless the body is an object.
pub(super) fn object(headers: &HeaderMap, bytes: &[u8]) -> Result<Object, KeyManagerError> {
    let content_type = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    if media_type(content_type) != "application/json" {
        return Err(KeyManagerError::MediaType(content_type.to_owned()));
    }
    let malformed = || KeyManagerError::BadRequest("The request body is not a JSON object.".into());
    if bytes.len() > MAX_JSON {
        return Err(malformed());
    }
    match serde_json::from_slice(bytes).map(trimmed) {
        Ok(Value::Object(object)) => Ok(object),
        _ => Err(malformed()),
    }
}

fn trimmed(value: Value) -> Value {
    match value {
        Value::String(text) => Value::String(text.trim().to_owned()),
        Value::Array(list) => Value::Array(list.into_iter().map(trimmed).collect()),
        Value::Object(map) => Value::Object(
            map.into_iter()
                .map(|(key, value)| (key, trimmed(value)))
                .collect(),
        ),
        other => other,
    }
}

/// A string of at most 255 characters; absence is `None`.
///
/// # Errors
/// 400, also for null.
pub(super) fn text(object: &Object, name: &str) -> Result<Option<String>, KeyManagerError> {
    match object.get(name) {
        Some(Value::Null) => Err(KeyManagerError::BadRequest(format!(
            "The attribute {name} must be a string; leave it out if there is none."
        ))),
        _ => nullable_text(object, name),
    }
}

/// A string of at most 255 characters; null and absence are `None`.
///
/// # Errors
/// 400.
pub(super) fn nullable_text(
    object: &Object,
    name: &str,
) -> Result<Option<String>, KeyManagerError> {
    match object.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.chars().count() <= TEXT_MAX => Ok(Some(text.clone())),
        Some(_) => Err(KeyManagerError::BadRequest(format!(
            "The attribute {name} must be a string of at most {TEXT_MAX} characters."
        ))),
    }
}

/// A string of 1 to `max` characters that must be there.
///
/// # Errors
/// 400.
pub(super) fn required(object: &Object, name: &str, max: usize) -> Result<String, KeyManagerError> {
    match object.get(name) {
        Some(Value::String(text)) if (1..=max).contains(&text.chars().count()) => Ok(text.clone()),
        _ => Err(KeyManagerError::BadRequest(format!(
            "The attribute {name} is required and must be a string of 1 to {max} characters."
        ))),
    }
}

/// A number of bits; absence is `None`.
///
/// # Errors
/// 400, also for null, unless it is from 1 to 32767.
pub(super) fn bits(object: &Object) -> Result<Option<i64>, KeyManagerError> {
    match object.get("bit_length") {
        None => Ok(None),
        Some(value) => value
            .as_i64()
            .filter(|bits| (1..=32_767).contains(bits))
            .map(Some)
            .ok_or_else(|| {
                KeyManagerError::BadRequest(
                    "The attribute bit_length must be a number from 1 to 32767.".into(),
                )
            }),
    }
}

/// A time in the future, in microseconds; absence and an empty string are `None`.
///
/// # Errors
/// 400.
pub(super) fn expiration(object: &Object, now: i64) -> Result<Option<i64>, KeyManagerError> {
    let Some(text) = text(object, "expiration")?.filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    crate::time::parse_time(&text)
        .filter(|at| *at > now)
        .map(Some)
        .ok_or_else(|| {
            KeyManagerError::BadRequest(
                "The attribute expiration must be a time in the future.".into(),
            )
        })
}
