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

/// The version asked for: 1.0 without the header.
///
/// # Errors
/// 406 if there is no such version, 400 if what is asked for is none.
fn asked(headers: &HeaderMap) -> Result<Microversion, StatusCode> {
    let (none, no_version) = (StatusCode::NOT_ACCEPTABLE, StatusCode::BAD_REQUEST);
    let Some(value) = headers.get(&HEADER) else {
        return Ok(Microversion(0));
    };
    let text = value.to_str().map_err(|_| no_version)?;
    // The header may list several services.
    for part in text.split(',') {
        let mut words = part.split_whitespace();
        if words
            .next()
            .is_some_and(|service| service.eq_ignore_ascii_case(SERVICE))
        {
            let version = words.next().ok_or(no_version)?;
            if version == "latest" {
                return Ok(Microversion(NEWEST));
            }
            let (major, minor) = version.split_once('.').ok_or(no_version)?;
            let number = |text: &str| text.parse::<u32>().map_err(|_| no_version);
            let (major, minor) = (number(major)?, number(minor)?);
            return match u8::try_from(minor) {
                Ok(minor) if major == 1 && minor <= NEWEST => Ok(Microversion(minor)),
                _ => Err(none),
            };
        }
    }
    Ok(Microversion(0))
}

/// Puts the version into the request and onto the answer.
pub(super) async fn negotiate(mut request: Request, next: Next) -> Response {
    let version = match asked(request.headers()) {
        Ok(version) => version,
        Err(status) => {
            let text = format!(
                "This version of the key-manager API does not exist; ask for 1.0 to 1.{NEWEST}.\n"
            );
            return (status, text).into_response();
        }
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
        assert_eq!(asked(&HeaderMap::new()), Ok(Microversion(0)));
        assert_eq!(ask("key-manager 1.2"), Ok(2));
        assert_eq!(ask("compute 2.90, key-manager 1.1"), Ok(1));
        assert_eq!(ask("key-manager latest"), Ok(2));
        for none in ["1.3", "2.0", "1.256", "9.9"] {
            let answer = ask(&format!("key-manager {none}"));
            assert_eq!(answer, Err(StatusCode::NOT_ACCEPTABLE), "{none}");
        }
        for no_version in ["", "x", "x.y", "1.", "1.99999999999999999999"] {
            let answer = ask(&format!("key-manager {no_version}"));
            assert_eq!(answer, Err(StatusCode::BAD_REQUEST), "{no_version}");
        }
        assert_eq!(ask("compute 2.90"), Ok(0));
    }
}
