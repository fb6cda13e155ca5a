//! What the families share: the caller, the policy question, links and lists.

use std::sync::Arc;

use axum::{
    extract::FromRequestParts,
    http::{StatusCode, request::Parts},
    response::{IntoResponse, Json, Response},
};
use serde_json::{Value, json};

use super::error::IdentityError;
use crate::{
    app::App,
    audit::{self, Outcome},
    http::{Base, Query, truthy},
    policy::Target,
    token::{AuthContext, Method, TokenError, permits},
};

/// The caller, known from its `X-Auth-Token`.
#[derive(Debug, Clone)]
pub struct Caller(pub Arc<AuthContext>);

impl FromRequestParts<Arc<App>> for Caller {
    type Rejection = IdentityError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, IdentityError> {
        let token = parts
            .headers
            .get("X-Auth-Token")
            .and_then(|value| value.to_str().ok())
            .map(str::trim)
            .ok_or(IdentityError::Unauthorized)?;
        let context = app
            .validate(token, false)
            .await
            .map_err(|error| match error {
                TokenError::Store(error) => IdentityError::Store(error),
                TokenError::Directory(error) => IdentityError::Directory(error),
                // Measured: a disabled project makes the caller's token not found rather than unauthorized.
                TokenError::Scope => IdentityError::TokenNotFound,
                TokenError::Trust(text) => IdentityError::Forbidden(text.into()),
                _ => IdentityError::Unauthorized,
            })?;
        audit::caller(&context);
        // As Keystone: it shows other services who signed a request, and is worth nothing here.
        if context.payload.methods.contains(&Method::Ec2Credential) {
            return Err(IdentityError::Forbidden(
                "A token that was made with an EC2 credential is for other services; log in to use this one.".into(),
            ));
        }
        if let Some(credential) = &context.app_credential {
            // Access rules name the path below the service's root, and the router has cut off `/identity/v3`.
            let path = format!("/v3{}", parts.uri.path());
            if !permits(
                &credential.access_rules,
                "identity",
                parts.method.as_str(),
                &path,
            ) {
                audit::record(
                    &context,
                    "access",
                    "service/security",
                    &path,
                    Outcome::Failure,
                    "AccessRules",
                );
                return Err(IdentityError::Unauthorized);
            }
        }
        Ok(Self(context))
    }
}

impl Caller {
    /// Asks the policy.
    ///
    /// # Errors
    /// 403 that names the rule.
    pub fn may(&self, app: &App, rule: &str, target: &Target) -> Result<(), IdentityError> {
        if app.identity_policy.authorize(rule, target, &self.0.creds) {
            return Ok(());
        }
        audit::record(
            &self.0,
            "authorize",
            "service/security/policy",
            rule,
            Outcome::Failure,
            "PolicyRefused",
        );
        Err(IdentityError::Policy(rule.to_owned()))
    }

    /// Refuses what nobody may do in the name of somebody else: with what was given away (application credential, OAuth1, EC2
    /// credential), and with a trust unless that is what `trusts_may` says.
    ///
    /// # Errors
    /// 403.
    pub fn in_person(&self, trusts_may: bool, what: &str) -> Result<(), IdentityError> {
        if self.0.is_delegated() || (self.0.trust.is_some() && !trusts_may) {
            return Err(IdentityError::Forbidden(format!(
                "{what} with a token of the user's own, not with one that was made with an application credential, an OAuth1 \
                 access token, an EC2 credential{}.",
                if trusts_may { "" } else { " or a trust" }
            )));
        }
        Ok(())
    }

    /// The domain that a list is confined to: that of a domain-scoped token.
    pub fn confined_to(&self) -> Option<&str> {
        self.0.domain_id()
    }

    /// Writes an audit line about a success.
    pub fn audit(&self, action: &str, kind: &str, id: &str) {
        audit::record(&self.0, action, kind, id, Outcome::Success, "");
    }
}

/// A target made of one object under `target.<kind>`.
pub fn target(kind: &str, object: Option<&Value>) -> Target {
    match object {
        Some(object) => Target::new().with(&format!("target.{kind}"), object),
        None => Target::new(),
    }
}

/// Adds `links.self`.
pub fn linked(base: &Base, collection: &str, mut object: Value) -> Value {
    let url = format!(
        "{}/{collection}/{}",
        base.identity(),
        object["id"].as_str().unwrap_or_default()
    );
    object["links"] = json!({ "self": url });
    object
}

/// An answer with one object.
pub fn member(status: StatusCode, key: &str, object: Value) -> Response {
    (status, Json(json!({ key: object }))).into_response()
}

/// An answer without a body.
pub fn no_content() -> Response {
    StatusCode::NO_CONTENT.into_response()
}

/// Whether a list is narrowed by nothing but `known`, which the store narrows it by.
pub fn narrowed_by(query: &Query, known: &[&str]) -> bool {
    let mut names = query.pairs().iter().map(|(name, _)| name.as_str());
    names.all(|name| matches!(name, "limit" | "marker") || known.contains(&name))
}

/// A list: filtered by the attributes in `filters` and their comparators, paged by marker and limit, linked.
pub fn collection(
    base: &Base,
    query: &Query,
    key: &str,
    filters: &[&str],
    items: Vec<Value>,
) -> Response {
    let mut items: Vec<Value> = items
        .into_iter()
        .filter(|item| wanted(item, query, filters))
        .collect();
    if let Some(marker) = query.non_empty("marker")
        && let Some(at) = items.iter().position(|item| item["id"] == marker)
    {
        items.drain(..=at);
    }
    let mut next = Value::Null;
    if let Some(limit) = query
        .get("limit")
        .and_then(|limit| limit.parse::<usize>().ok())
        .filter(|limit| *limit > 0)
        && items.len() > limit
    {
        items.truncate(limit);
        let last = items
            .last()
            .and_then(|item| item["id"].as_str())
            .unwrap_or_default();
        next = format!(
            "{}{}?limit={limit}&marker={last}",
            base.identity(),
            query.path
        )
        .into();
    }
    let mut url = format!("{}{}", base.identity(), query.path);
    if !query.raw.is_empty() {
        url = format!("{url}?{}", query.raw);
    }
    Json(json!({ key: items, "links": {"next": next, "self": url, "previous": null} }))
        .into_response()
}

/// Whether an object passes the query's filters. A name that is no filter is ignored.
pub fn wanted(item: &Value, query: &Query, filters: &[&str]) -> bool {
    query.pairs().iter().all(|(name, wanted)| {
        let (attribute, comparator) = name.split_once("__").unwrap_or((name, ""));
        if !filters.contains(&attribute) {
            return true;
        }
        let Some(value) = item.get(attribute) else {
            return comparator.is_empty() && wanted.is_empty();
        };
        match value {
            Value::Bool(flag) => truthy(wanted) == *flag,
            Value::String(text) => {
                let (lower, wanted_lower) = (text.to_lowercase(), wanted.to_lowercase());
                match comparator {
                    "contains" => text.contains(wanted.as_str()),
                    "icontains" => lower.contains(&wanted_lower),
                    "startswith" => text.starts_with(wanted.as_str()),
                    "istartswith" => lower.starts_with(&wanted_lower),
                    "endswith" => text.ends_with(wanted.as_str()),
                    "iendswith" => lower.ends_with(&wanted_lower),
                    "iexact" => lower == wanted_lower,
                    "" => text == wanted,
                    _ => true,
                }
            }
            _ => false,
        }
    })
}
