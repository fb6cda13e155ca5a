//! Validating and revoking tokens.

use std::sync::Arc;

use axum::{
    extract::State,
    http::{HeaderMap, HeaderValue, header},
    response::IntoResponse,
};

use super::token_body::told;
use crate::{
    app::App,
    http::Query,
    identity::{
        error::{ApiResult, IdentityError},
        support::{Caller, no_content},
    },
    policy::Target,
    token::{AuthContext, TokenError},
};

const KIND: &str = "data/security/token";
/// Services that enforce access rules say so with this header; to others such a token does not exist.
const ACCESS_RULES: &str = "OpenStack-Identity-Access-Rules";

fn subject_header(headers: &HeaderMap) -> Result<&str, IdentityError> {
    headers
        .get("X-Subject-Token")
        .and_then(|value| value.to_str().ok())
        .map(str::trim)
        .ok_or(IdentityError::TokenNotFound)
}

/// The header's value is a version, of which there is 1 (1.0).
fn knows_access_rules(headers: &HeaderMap) -> bool {
    headers
        .get(ACCESS_RULES)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.trim().parse::<f64>().ok())
        .is_some_and(|version| version >= 1.0)
}

async fn subject(
    app: &App,
    text: &str,
    allow_expired: bool,
) -> Result<Arc<AuthContext>, IdentityError> {
    app.validate(text, allow_expired)
        .await
        .map_err(|error| match error {
            TokenError::Store(error) => IdentityError::Store(error),
            TokenError::Trust(text) => IdentityError::Forbidden(text.into()),
            TokenError::Directory(error) => IdentityError::Directory(error),
            _ => IdentityError::TokenNotFound,
        })
}

fn target(subject: &AuthContext) -> Target {
    Target::new()
        .text("target.token.user_id", &subject.user.id)
        .text("target.token.user.domain.id", &subject.user.domain.id)
}

/// `GET` and `HEAD /v3/auth/tokens`.
pub(super) async fn validate(
    State(app): State<Arc<App>>,
    caller: Caller,
    query: Query,
    headers: HeaderMap,
) -> ApiResult {
    let text = subject_header(&headers)?;
    let subject = subject(&app, text, query.flag("allow_expired")).await?;
    caller.may(&app, "identity:validate_token", &target(&subject))?;
    let has_rules = subject
        .app_credential
        .as_ref()
        .is_some_and(|credential| !credential.access_rules.is_empty());
    if has_rules && !knows_access_rules(&headers) {
        return Err(IdentityError::TokenNotFound);
    }
    let body = told(&app, &subject, query.get("nocatalog").is_none()).await?;
    let mut response = ([(header::CONTENT_TYPE, "application/json")], body).into_response();
    if let Ok(value) = HeaderValue::from_str(text) {
        response.headers_mut().insert("X-Subject-Token", value);
    }
    Ok(response)
}

/// `DELETE /v3/auth/tokens`.
pub(super) async fn revoke(
    State(app): State<Arc<App>>,
    caller: Caller,
    headers: HeaderMap,
) -> ApiResult {
    let subject = subject(&app, subject_header(&headers)?, false).await?;
    caller.may(&app, "identity:revoke_token", &target(&subject))?;
    if let Some(own) = subject.payload.audit_ids.first() {
        let mut change = app.store.change_identity().await?;
        change
            .insert_revoked(own, subject.payload.expires_at)
            .await?;
        app.store.commit(change).await?;
        caller.audit("revoke", KIND, own);
    }
    Ok(no_content())
}
