//! Parts of a request that handlers ask for.

use std::{convert::Infallible, sync::Arc};

use axum::{
    extract::FromRequestParts,
    http::{header::HOST, request::Parts},
};

use crate::app::App;

/// The base URL that the client used: scheme and host, no slash at the end.
#[derive(Debug, Clone)]
pub struct Base(pub String);

impl Base {
    /// `…/identity/v3`.
    pub fn identity(&self) -> String {
        format!("{}/identity/v3", self.0)
    }

    /// `…/key-manager/v1`.
    pub fn key_manager(&self) -> String {
        format!("{}/key-manager/v1", self.0)
    }

    /// From a request's parts.
    pub fn of(parts: &Parts, tls: bool) -> Self {
        let host = parts
            .headers
            .get(HOST)
            .and_then(|value| value.to_str().ok())
            .or_else(|| parts.uri.authority().map(|authority| authority.as_str()))
            // A host that could break out of a JSON URL is not repeated.
            .filter(|host| {
                host.bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"-._:[]".contains(&b))
            })
            .unwrap_or("localhost");
        Self(format!("{}://{host}", if tls { "https" } else { "http" }))
    }
}

impl FromRequestParts<Arc<App>> for Base {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Infallible> {
        Ok(Self::of(parts, app.config.tls))
    }
}

/// The query, in order. A query that cannot be decoded is empty.
#[derive(Debug, Clone, Default)]
pub struct Query {
    /// Path as the client sees it below the API's root.
    pub path: String,
    /// The undecoded query.
    pub raw: String,
    pairs: Vec<(String, String)>,
}

impl Query {
    /// The last value of a name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.pairs
            .iter()
            .rev()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    /// The value of a name, unless it is empty.
    pub fn non_empty(&self, name: &str) -> Option<&str> {
        self.get(name).filter(|value| !value.is_empty())
    }

    /// Whether a switch is on: present and neither `0` nor `false`.
    pub fn flag(&self, name: &str) -> bool {
        self.get(name).is_some_and(truthy)
    }

    /// All pairs.
    pub fn pairs(&self) -> &[(String, String)] {
        &self.pairs
    }
}

/// How the protocols read a switch: everything but `0`, `false`, `no` and `off` is on, an empty value too.
pub fn truthy(value: &str) -> bool {
    !matches!(
        value.to_ascii_lowercase().as_str(),
        "0" | "false" | "no" | "off"
    )
}

impl FromRequestParts<Arc<App>> for Query {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<App>) -> Result<Self, Infallible> {
        let pairs = axum::extract::Query::<Vec<(String, String)>>::try_from_uri(&parts.uri)
            .map(|query| query.0)
            .unwrap_or_default();
        Ok(Self {
            path: parts.uri.path().to_owned(),
            raw: parts.uri.query().unwrap_or_default().to_owned(),
            pairs,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn switches() {
        assert!(truthy("True") && truthy("1") && truthy(""));
        assert!(!truthy("0") && !truthy("False"));
    }
}
