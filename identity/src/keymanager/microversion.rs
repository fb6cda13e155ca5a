//! `OpenStack-API-Version: key-manager 1.N`: read, checked, echoed.

use axum::{
    extract::Request,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};

static HEADER: HeaderName = HeaderName::from_static("openstack-api-version");
const SERVICE: &str = "key-manager";
/// The newest minor version, the one that refuses to delete a secret in use.
pub(super) const NEWEST: u8 = 2;

/// The minor version that a request speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Microversion(pub(super) u8);

/// The version asked for: 1.0 without the header, `None` if there is no such version.
fn asked(headers: &HeaderMap) -> Option<Microversion> {
    let Some(value) = headers.get(&HEADER) else {
        return Some(Microversion(0));
    };
    let text = value.to_str().ok()?;
    // The header may list several services.
    for part in text.split(',') {
        let mut words = part.split_whitespace();
        if words
            .next()
            .is_some_and(|service| service.eq_ignore_ascii_case(SERVICE))
        {
            let version = words.next()?;
            if version == "latest" {
                return Some(Microversion(NEWEST));
            }
            let minor: u8 = version.strip_prefix("1.")?.parse().ok()?;
            return (minor <= NEWEST).then_some(Microversion(minor));
        }
    }
    Some(Microversion(0))
}

/// Puts the version into the request and onto the answer.
pub(super) async fn negotiate(mut request: Request, next: Next) -> Response {
    let Some(version) = asked(request.headers()) else {
        let text = format!(
            "This version of the key-manager API does not exist; ask for 1.0 to 1.{NEWEST}.\n"
        );
        return (StatusCode::NOT_ACCEPTABLE, text).into_response();
    };
    request.extensions_mut().insert(version);
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    if let Ok(value) = HeaderValue::from_str(&format!("{SERVICE} 1.{}", version.0)) {
        headers.insert(HEADER.clone(), value);
    }
    headers.insert(
        header::VARY,
        HeaderValue::from_static("openstack-api-version"),
    );
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_forms() {
        let ask = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(HEADER.clone(), HeaderValue::from_str(text).unwrap());
            asked(&headers).map(|version| version.0)
        };
        assert_eq!(asked(&HeaderMap::new()), Some(Microversion(0)));
        assert_eq!(ask("key-manager 1.2"), Some(2));
        assert_eq!(ask("compute 2.90, key-manager 1.1"), Some(1));
        assert_eq!(ask("key-manager latest"), Some(2));
        assert_eq!(ask("key-manager 1.3"), None);
        assert_eq!(ask("key-manager 2.0"), None);
        assert_eq!(ask("compute 2.90"), Some(0));
    }
}
