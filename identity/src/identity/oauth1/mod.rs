//! OAuth 1.0a (RFC 5849): a user lets a program (the consumer) act with some of its roles on one project, without giving it the
//! password. The consumer asks for a request token, the user authorizes that, the consumer changes it for an access token, and
//! logs in with it (method `oauth1`). Routes and statuses are those of Keystone's `api/os_oauth1.py`.

mod access_tokens;
mod consumers;
mod exchange;
mod records;
mod signature;

use std::sync::Arc;

use axum::{Router, http::HeaderMap};

use super::{
    auth::{Failure, Proof},
    error::IdentityError,
};
use crate::{
    app::App,
    http::Base,
    time::now_us,
    token::{Method, TokenScope},
};
use records::{ACCESS_TOKEN, CONSUMER};
use signature::Signed;

pub(crate) use records::prune;

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .merge(consumers::routes())
        .merge(exchange::routes())
        .merge(access_tokens::routes())
}

/// The login method `oauth1`: a request that is signed with an access token.
///
/// # Errors
/// 400 for what is not such a request, 404 for an access token that is not there, 401 for all else.
pub(super) async fn prove(app: &App, headers: &HeaderMap, base: &Base) -> Result<Proof, Failure> {
    let url = format!("{}/auth/tokens", base.identity());
    let signed = Signed::read(headers, "POST", &url, &[])?;
    let token_id = signed.required("oauth_token")?;
    let token = ACCESS_TOKEN
        .find(app, token_id)
        .await?
        // 404, as in Keystone. Its id cannot be guessed, and is worth nothing without its secret.
        .ok_or_else(|| Failure {
            reason: "UnknownAccessToken",
            error: ACCESS_TOKEN.missing(token_id),
        })?;
    let consumer = CONSUMER
        .find(app, signed.required("oauth_consumer_key")?)
        .await?
        .filter(|consumer| token.text("consumer_id").as_ref() == Some(&consumer.id))
        .ok_or_else(|| Failure::denied("UnknownConsumer"))?;
    let secrets = [
        CONSUMER.secret(app, &consumer)?,
        ACCESS_TOKEN.secret(app, &token)?,
    ];
    if !signed.is_by(&secrets[0], &secrets[1]) || !signed.is_fresh(now_us()) {
        return Err(Failure::denied("WrongSignature"));
    }
    let not_after = records::expires_at(&token);
    if not_after.is_some_and(|at| at <= now_us()) {
        return Err(Failure::denied("AccessTokenExpired"));
    }
    let (Some(user_id), Some(project_id)) = (&token.user_id, &token.project_id) else {
        return Err(Failure::denied("UnknownAccessToken"));
    };
    let user = app
        .store
        .user(user_id)
        .await?
        .ok_or_else(|| Failure::denied("UnknownUser"))?;
    Ok(Proof::new(user, Method::OAuth1).of_access_token(
        token.id.clone(),
        not_after,
        TokenScope::Project(project_id.clone()),
    ))
}

impl From<signature::SignedError> for IdentityError {
    fn from(error: signature::SignedError) -> Self {
        Self::BadRequest(error.to_string())
    }
}
