//! Payloads: read from bodies, written once, given out to those who may decrypt.

use std::sync::Arc;

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Path, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use base64::{
    Engine,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use serde_json::Value;
use zeroize::Zeroizing;

use super::{
    caller::Caller,
    error::{ApiResult, KeyManagerError},
    fields::{Object, media_type, nullable_text, text},
    sealing,
    secrets::{KIND, fill, load},
};
use crate::{app::App, store::acls::Guarded, time::now_us};

/// Longest payload, in bytes.
const MAX_PAYLOAD: usize = 20_000;
const TEXT: &str = "text/plain";
const OCTETS: &str = "application/octet-stream";
const PKCS8: &str = "application/pkcs8";

/// What is told to those who name another content type.
pub(super) const KNOWN_TYPES: &str = "The attribute payload_content_type must be text/plain, application/octet-stream or application/pkcs8.";

/// A payload with the content type under which it is stored.
pub(super) type Given = (String, Zeroizing<Vec<u8>>);

/// Padding may be missing; anything else must be right, so that no damaged key is stored.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new().route("/secrets/{id}/payload", get(read))
}

fn bad(message: &str) -> KeyManagerError {
    KeyManagerError::BadRequest(message.to_owned())
}

/// The content type under which a payload is stored; `None` if it is not one of the API's.
fn known_type(sent: &str) -> Option<&'static str> {
    let compact: String = sent
        .to_ascii_lowercase()
        .chars()
        .filter(|c| !c.is_whitespace())
        .collect();
    match compact.as_str() {
        "text/plain" | "text/plain;charset=utf-8" => Some(TEXT),
        OCTETS => Some(OCTETS),
        PKCS8 => Some(PKCS8),
        _ => None,
    }
}

/// Whether a content type is one of the API's.
pub(super) fn is_known_type(sent: &str) -> bool {
    known_type(sent).is_some()
}

fn decoded(text: &str) -> Result<Zeroizing<Vec<u8>>, KeyManagerError> {
    let compact = Zeroizing::new(
        text.chars()
            .filter(|c| !c.is_ascii_whitespace())
            .collect::<String>(),
    );
    BASE64
        .decode(compact.as_bytes())
        .map(Zeroizing::new)
        .map_err(|_| bad("The payload is not valid base64."))
}

fn checked(plain: Zeroizing<Vec<u8>>) -> Result<Zeroizing<Vec<u8>>, KeyManagerError> {
    if plain.is_empty() {
        return Err(bad("The payload is empty; leave it out to store it later."));
    }
    if plain.len() > MAX_PAYLOAD {
        return Err(KeyManagerError::TooLarge(MAX_PAYLOAD));
    }
    Ok(plain)
}

/// The payload in the body of a new secret with its content type; `None` if it is to come later.
pub(super) fn from_json(object: &Object) -> Result<Option<Given>, KeyManagerError> {
    let content_type =
        nullable_text(object, "payload_content_type")?.filter(|text| !text.is_empty());
    let encoding = text(object, "payload_content_encoding")?;
    let sent = match object.get("payload") {
        None => {
            return if object.contains_key("payload_content_type") {
                Err(bad(
                    "A payload_content_type was given without a payload; leave both out to store the payload later.",
                ))
            } else {
                Ok(None)
            };
        }
        Some(Value::String(sent)) => sent,
        Some(_) => return Err(bad("The attribute payload must be a string.")),
    };
    let content_type =
        content_type.ok_or_else(|| bad("A payload needs a payload_content_type."))?;
    let known = known_type(&content_type).ok_or_else(|| bad(KNOWN_TYPES))?;
    let plain = match (known, encoding.as_deref()) {
        (TEXT, None) => Zeroizing::new(sent.clone().into_bytes()),
        (TEXT, Some(_)) => {
            return Err(bad("A text/plain payload has no payload_content_encoding."));
        }
        (_, Some(encoding)) if encoding.eq_ignore_ascii_case("base64") => decoded(sent)?,
        _ => {
            return Err(bad(
                "A binary payload needs the payload_content_encoding base64.",
            ));
        }
    };
    Ok(Some((known.to_owned(), checked(plain)?)))
}

/// `PUT /v1/secrets/{id}`: the payload of a secret that has none.
pub(super) async fn write(
    State(app): State<Arc<App>>,
    caller: Caller,
    headers: HeaderMap,
    Path(id): Path<String>,
    bytes: Bytes,
) -> ApiResult {
    let text_header = |name| {
        headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    };
    let content_type = text_header(header::CONTENT_TYPE);
    // Only these two: PKCS #8 comes in one step.
    let known = known_type(content_type)
        .filter(|known| *known != PKCS8)
        .ok_or_else(|| KeyManagerError::MediaType(content_type.to_owned()))?;
    let (secret, acl) = load(&app, &id).await?;
    caller.may_secret(&app, "secret:put", &secret, acl.as_ref())?;
    if secret.sealed.is_some() {
        return Err(KeyManagerError::HasPayload);
    }
    let plain = match text_header(header::CONTENT_ENCODING) {
        "" | "binary" => Zeroizing::new(bytes.to_vec()),
        encoding if encoding.eq_ignore_ascii_case("base64") && known != TEXT => decoded(
            std::str::from_utf8(&bytes).map_err(|_| bad("The payload is not valid base64."))?,
        )?,
        _ => {
            return Err(bad(
                "Content-Encoding must be base64, for a binary payload, or absent.",
            ));
        }
    };
    let plain = checked(plain)?;
    if known == TEXT && std::str::from_utf8(&plain).is_err() {
        return Err(bad("A text/plain payload must be UTF-8."));
    }
    let mut secret = secret;
    fill(&app, &mut secret, known.to_owned(), &plain).await?;
    let mut change = app.store.change_keys().await?;
    if !change.set_payload(&secret, now_us()).await? {
        return Err(KeyManagerError::HasPayload);
    }
    app.store.commit(change).await?;
    caller.audit("update", KIND, &id);
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn read(
    State(app): State<Arc<App>>,
    caller: Caller,
    headers: HeaderMap,
    Path(id): Path<String>,
) -> ApiResult {
    let accept = headers
        .get(header::ACCEPT)
        .and_then(|value| value.to_str().ok())
        .unwrap_or("*/*");
    answer(&app, &caller, &id, accept).await
}

/// The payload, if the caller may decrypt it and asked for the type it has.
pub(super) async fn answer(app: &App, caller: &Caller, id: &str, accept: &str) -> ApiResult {
    let stored = app
        .store
        .sealed_secret(id, now_us())
        .await?
        .ok_or(KeyManagerError::NotFound("secret"))?;
    let acl = match stored.has_acl {
        true => app.store.acl(Guarded::Secret, id).await?,
        false => None,
    };
    let secret = &stored.secret;
    caller.may_secret(app, "secret:decrypt", secret, acl.as_ref())?;
    let content_type = secret
        .content_type
        .clone()
        .ok_or(KeyManagerError::NotFound("payload"))?;
    let wanted = accept
        .split(',')
        .map(media_type)
        .any(|wanted| wanted == "*/*" || wanted == content_type);
    if !wanted {
        return Err(KeyManagerError::NotAcceptable(content_type));
    }
    let plain = sealing::open(app, &stored)?.ok_or(KeyManagerError::NotFound("payload"))?;
    caller.audit("read", KIND, &secret.id);
    let shown = if content_type == TEXT {
        "text/plain; charset=utf-8".to_owned()
    } else {
        content_type
    };
    let body = Body::from(Bytes::from_owner(WipedBytes(plain)));
    Ok(Response::builder()
        .header(header::CONTENT_TYPE, shown)
        .body(body)
        .unwrap_or_else(|_| StatusCode::INTERNAL_SERVER_ERROR.into_response()))
}

/// Bytes of an answer that are wiped when it is sent.
struct WipedBytes(Zeroizing<Vec<u8>>);

impl AsRef<[u8]> for WipedBytes {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: Value) -> Result<Option<Given>, KeyManagerError> {
        let Value::Object(object) = value else {
            unreachable!()
        };
        from_json(&object)
    }

    #[test]
    fn accepted_payloads() {
        let (kind, plain) =
            read(json!({"payload": "hello", "payload_content_type": "text/plain; charset=UTF-8"}))
                .unwrap()
                .unwrap();
        assert_eq!(
            (kind.as_str(), plain.as_slice()),
            (TEXT, b"hello".as_slice())
        );
        let (kind, plain) = read(json!({
            "payload": "aGVs\nbG8=", "payload_content_type": OCTETS, "payload_content_encoding": "base64",
        }))
        .unwrap()
        .unwrap();
        assert_eq!(
            (kind.as_str(), plain.as_slice()),
            (OCTETS, b"hello".as_slice())
        );
        assert!(read(json!({"name": "later"})).unwrap().is_none());
    }

    #[test]
    fn refused_payloads() {
        for value in [
            json!({"payload": "x"}),
            json!({"payload": "", "payload_content_type": TEXT}),
            json!({"payload": "x", "payload_content_type": "text/html"}),
            json!({"payload": "aGVsbG8=", "payload_content_type": OCTETS}),
            json!({"payload": "x", "payload_content_type": TEXT, "payload_content_encoding": "base64"}),
            json!({"payload": "$$$", "payload_content_type": OCTETS, "payload_content_encoding": "base64"}),
            json!({"payload_content_type": TEXT}),
            json!({"payload": 5, "payload_content_type": TEXT}),
        ] {
            assert!(
                matches!(read(value.clone()), Err(KeyManagerError::BadRequest(_))),
                "{value}"
            );
        }
        let long = json!({"payload": "x".repeat(MAX_PAYLOAD + 1), "payload_content_type": TEXT});
        assert!(matches!(read(long), Err(KeyManagerError::TooLarge(_))));
    }
}
