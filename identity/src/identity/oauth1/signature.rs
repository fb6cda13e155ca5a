//! Signed requests of OAuth 1.0a (RFC 5849, section 3): what was signed, and whether by whom it says.

use std::{borrow::Cow, collections::BTreeMap};

use axum::http::{HeaderMap, header::AUTHORIZATION};
use base64::{Engine, engine::general_purpose::STANDARD};
use thiserror::Error;

use crate::{
    crypto::mac::{hmac_sha1, hmac_sha256, same},
    identity::ec2::quoted,
};

/// How far the time of a request may be from ours, in microseconds.
const CLOCKS: i64 = 600 * 1_000_000;

/// Why a request is not one of OAuth 1.0a.
#[derive(Debug, Error, PartialEq, Eq)]
pub(super) enum SignedError {
    /// Nothing to read.
    #[error("The request needs an Authorization header of OAuth 1.0a.")]
    NoHeader,
    /// It is not made as RFC 5849 says.
    #[error("The Authorization header is not one of OAuth 1.0a (RFC 5849).")]
    Malformed,
    /// A parameter is not there.
    #[error("The OAuth parameter {0} is required.")]
    Missing(&'static str),
    /// A way to sign that is not known.
    #[error("The OAuth signature methods are HMAC-SHA1 and HMAC-SHA256.")]
    Method,
}

/// A request of which the parameters were read.
pub(super) struct Signed {
    parameters: BTreeMap<String, String>,
    base_string: String,
}

impl Signed {
    /// Reads a request: its header, and the pairs of its query.
    ///
    /// # Errors
    /// Any [`SignedError`].
    pub(super) fn read(
        headers: &HeaderMap,
        method: &str,
        url: &str,
        query: &[(String, String)],
    ) -> Result<Self, SignedError> {
        let line = headers
            .get(AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .ok_or(SignedError::NoHeader)?;
        let parameters = parse(line)?;
        let mut pairs: Vec<(String, String)> = query
            .iter()
            .chain(
                parameters
                    .iter()
                    .map(|(name, value)| (name.clone(), value.clone()))
                    .filter(|(name, _)| name != "oauth_signature")
                    .collect::<Vec<_>>()
                    .iter(),
            )
            .map(|(name, value)| (quoted(name), quoted(value)))
            .collect();
        pairs.sort();
        let pairs: Vec<String> = pairs
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        let base_string = format!(
            "{method}&{}&{}",
            quoted(&normal(url)),
            quoted(&pairs.join("&"))
        );
        let signed = Self {
            parameters,
            base_string,
        };
        for name in [
            "oauth_consumer_key",
            "oauth_signature",
            "oauth_timestamp",
            "oauth_nonce",
        ] {
            signed.required(name)?;
        }
        if !matches!(
            signed.required("oauth_signature_method")?,
            "HMAC-SHA1" | "HMAC-SHA256"
        ) {
            return Err(SignedError::Method);
        }
        if signed
            .parameters
            .get("oauth_version")
            .is_some_and(|version| version != "1.0")
        {
            return Err(SignedError::Malformed);
        }
        Ok(signed)
    }

    /// A parameter that must be there.
    ///
    /// # Errors
    /// `Missing`.
    pub(super) fn required(&self, name: &'static str) -> Result<&str, SignedError> {
        self.parameters
            .get(name)
            .map(String::as_str)
            .filter(|value| !value.is_empty())
            .ok_or(SignedError::Missing(name))
    }

    /// Whether it was signed with these secrets; the second one is empty while there is no token.
    pub(super) fn is_by(&self, consumer_secret: &str, token_secret: &str) -> bool {
        let sent = |name: &str| self.parameters.get(name).map_or("", String::as_str);
        let key = format!("{}&{}", quoted(consumer_secret), quoted(token_secret));
        let mac = match sent("oauth_signature_method") {
            "HMAC-SHA256" => hmac_sha256(key.as_bytes(), self.base_string.as_bytes()),
            _ => hmac_sha1(key.as_bytes(), self.base_string.as_bytes()),
        };
        same(sent("oauth_signature"), &STANDARD.encode(mac))
    }

    /// Whether it was made at about `now` (microseconds).
    pub(super) fn is_fresh(&self, now: i64) -> bool {
        self.parameters
            .get("oauth_timestamp")
            .and_then(|text| text.parse::<i64>().ok())
            .and_then(|seconds| seconds.checked_mul(1_000_000))
            .is_some_and(|at| at.abs_diff(now) <= CLOCKS.unsigned_abs())
    }
}

/// Scheme and host of a URL in lower case, without the port that the scheme implies.
fn normal(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.to_owned();
    };
    let (host, path) = match rest.find('/') {
        Some(at) => rest.split_at(at),
        None => (rest, "/"),
    };
    let (scheme, host) = (scheme.to_lowercase(), host.to_lowercase());
    let port = match scheme.as_str() {
        "https" => ":443",
        _ => ":80",
    };
    format!(
        "{scheme}://{}{path}",
        host.strip_suffix(port).unwrap_or(&host)
    )
}

/// The parameters of the header, decoded, without the realm.
fn parse(line: &str) -> Result<BTreeMap<String, String>, SignedError> {
    let (scheme, rest) = line.split_once(' ').ok_or(SignedError::Malformed)?;
    if !scheme.eq_ignore_ascii_case("OAuth") {
        return Err(SignedError::NoHeader);
    }
    let mut parameters = BTreeMap::new();
    for part in rest.split(',') {
        let (name, value) = part.trim().split_once('=').ok_or(SignedError::Malformed)?;
        let value = value
            .strip_prefix('"')
            .and_then(|value| value.strip_suffix('"'))
            .ok_or(SignedError::Malformed)?;
        if name == "realm" {
            continue;
        }
        // Twice the same parameter could be read in two ways.
        if parameters.insert(decoded(name)?, decoded(value)?).is_some() {
            return Err(SignedError::Malformed);
        }
    }
    Ok(parameters)
}

fn decoded(text: &str) -> Result<String, SignedError> {
    // The extractor of queries reads a plus as a blank; OAuth does not.
    let text = text.replace('+', "%2B");
    form_urlencoded::parse(format!("x={text}").as_bytes())
        .map(|(_, value): (Cow<'_, str>, Cow<'_, str>)| value.into_owned())
        .next()
        .ok_or(SignedError::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(line: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, line.parse().unwrap());
        headers
    }

    /// The request for the photograph of RFC 5849, section 1.2; the one for temporary credentials was signed by oauthlib.
    #[test]
    fn the_examples_of_the_specification() {
        let line = r#"OAuth realm="Photos", oauth_consumer_key="dpf43f3p2l4k3l03", oauth_signature_method="HMAC-SHA1",
            oauth_timestamp="137131200", oauth_nonce="wIjqoxSZ", oauth_callback="http%3A%2F%2Fprinter.example.com%2Fready",
            oauth_signature="%2FUvthHqLWsq3QBhDNNbCXRUcFvI%3D""#
            .replace('\n', "");
        let url = "HTTPS://Photos.example.net:443/initiate";
        let signed = Signed::read(&headers(&line), "POST", url, &[]).unwrap();
        assert!(
            signed.is_by("kd94hf93k423kf44", ""),
            "{}",
            signed.base_string
        );
        assert!(!signed.is_by("kd94hf93k423kf44", "x") && !signed.is_by("x", ""));
        let line = r#"OAuth realm="Photos", oauth_consumer_key="dpf43f3p2l4k3l03", oauth_token="nnch734d00sl2jdk",
            oauth_signature_method="HMAC-SHA1", oauth_timestamp="137131202", oauth_nonce="chapoH",
            oauth_signature="MdpQcU8iPSUjWoN%2FUDMsK2sui9I%3D""#
            .replace('\n', "");
        let query = [
            ("file".to_owned(), "vacation.jpg".to_owned()),
            ("size".to_owned(), "original".to_owned()),
        ];
        let url = "http://photos.example.net/photos";
        let signed = Signed::read(&headers(&line), "GET", url, &query).unwrap();
        assert!(
            signed.is_by("kd94hf93k423kf44", "pfkkdhi9sl3r4s00"),
            "{}",
            signed.base_string
        );
        assert!(signed.is_fresh(137_131_802_000_000) && !signed.is_fresh(137_131_803_000_000));
    }

    #[test]
    fn what_is_no_signed_request() {
        let read = |line: &str| Signed::read(&headers(line), "POST", "http://h/", &[]).err();
        let all =
            r#"oauth_consumer_key="a", oauth_signature="b", oauth_timestamp="1", oauth_nonce="c""#;
        assert_eq!(read("Basic x"), Some(SignedError::NoHeader));
        assert_eq!(read("OAuth"), Some(SignedError::Malformed));
        assert_eq!(read("OAuth x"), Some(SignedError::Malformed));
        assert_eq!(read("OAuth a=b"), Some(SignedError::Malformed));
        assert_eq!(
            read(&format!("OAuth {all}")),
            Some(SignedError::Missing("oauth_signature_method"))
        );
        assert_eq!(
            read(&format!(
                "OAuth {all}, oauth_signature_method=\"PLAINTEXT\""
            )),
            Some(SignedError::Method)
        );
        let good = format!("OAuth {all}, oauth_signature_method=\"HMAC-SHA1\"");
        assert_eq!(read(&good), None);
        assert_eq!(
            read(&format!("{good}, oauth_nonce=\"d\"")),
            Some(SignedError::Malformed)
        );
        assert_eq!(
            read(&format!("{good}, oauth_version=\"2.0\"")),
            Some(SignedError::Malformed)
        );
    }
}
