//! What an OAuth1 access token is worth now: the roles that its user authorized, as far as the user has them.

use serde_json::Value;

use super::{context::TokenError, format::TokenPayload};
use crate::store::Store;

/// Family of the records of access tokens.
pub const ACCESS_TOKEN_FAMILY: &str = "oauth_access_token";

/// The OAuth1 access token behind a token.
#[derive(Debug, Clone)]
pub struct AccessTokenRef {
    /// Id.
    pub id: String,
    /// The program that it was given to.
    pub consumer_id: String,
}

/// The access token of a payload, and the ids of the roles that it gives, with all that they imply.
///
/// # Errors
/// `Credential` if it is gone, over, or not that of this user and project.
pub(super) async fn access_token(
    store: &Store,
    payload: &TokenPayload,
    id: &str,
    now: i64,
) -> Result<(AccessTokenRef, Vec<String>), TokenError> {
    let record = store
        .document(ACCESS_TOKEN_FAMILY, id)
        .await?
        .ok_or(TokenError::Credential)?;
    let object = record.object();
    let over = object
        .get("expires_at")
        .and_then(Value::as_i64)
        .is_some_and(|at| at <= now);
    if over
        || record.user_id.as_deref() != Some(payload.user_id.as_str())
        || record.project_id.as_deref() != payload.scope.project_id()
    {
        return Err(TokenError::Credential);
    }
    let roles: Vec<String> = object
        .get("role_ids")
        .and_then(|list| serde_json::from_value(list.clone()).ok())
        .unwrap_or_default();
    let closure = store.implied_closure(&roles).await?;
    let token = AccessTokenRef {
        id: id.to_owned(),
        consumer_id: record.text("consumer_id").unwrap_or_default(),
    };
    Ok((token, closure.into_iter().map(|role| role.id).collect()))
}
