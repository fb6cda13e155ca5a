//! The token itself.

use serde_json::Value;

use super::{
    proof::{Failure, Proof, no_trust},
    scope::Wanted,
};
use crate::{
    app::App,
    identity::error::IdentityError,
    ids::audit_id,
    time::now_us,
    token::{AuthContext, TokenError, TokenPayload, resolve_new, trust::TrustError, worth},
};

/// Makes the token that was proved to be somebody's, and takes a use of the trust that it is made with.
///
/// With it comes its catalog, if that was read already.
///
/// # Errors
/// 401 or 403 if it would be worth nothing.
pub(in crate::identity) async fn issue(
    app: &App,
    proof: Proof,
    wanted: Wanted,
) -> Result<(AuthContext, String, Option<Value>), Failure> {
    let issued_at = now_us();
    let trust = wanted.trust.as_ref().map(|chain| &chain.own().trust);
    // Nothing outlives what it was made with.
    let expires_at = [proof.not_after, trust.and_then(|trust| trust.expires_at)]
        .into_iter()
        .flatten()
        .fold(
            proof.expires_at.unwrap_or(issued_at + app.token_lifetime()),
            i64::min,
        );
    let ahead = proof.ahead;
    let trustor_valid_after = match trust {
        Some(trust) => app.store.user(&trust.trustor_id).await?,
        None => None,
    }
    .map(|trustor| trustor.tokens_valid_after);
    let payload = TokenPayload {
        user_id: proof.user.id.clone(),
        methods: proof.methods,
        scope: wanted.scope,
        app_credential_id: proof.app_credential_id,
        trust_id: trust.map(|trust| trust.id.clone()),
        access_token_id: proof.access_token_id,
        valid_after: Some(proof.user.tokens_valid_after),
        trustor_valid_after,
        issued_at,
        expires_at,
        audit_ids: std::iter::once(audit_id()).chain(proof.parent).collect(),
    };
    // The same question as at every later use, so that no token is dead at birth.
    let looked_up = app.look_up(&payload).await;
    let read = match ahead {
        Some(ahead) => {
            ahead
                .good_for(app, &payload.user_id, &payload.scope)
                .await?
        }
        None => None,
    };
    let (records, catalog) =
        read.map_or((None, None), |(records, catalog)| (Some(records), catalog));
    let resolved = match (looked_up, records) {
        (Ok(()), Some(records)) => worth(&app.store, &payload, records).await,
        (Ok(()), None) => resolve_new(&app.store, &payload).await,
        (Err(error), _) => Err(error),
    };
    let context = resolved.map_err(|error| match error {
        TokenError::Store(error) => Failure::from(error),
        TokenError::Directory(error) => IdentityError::Directory(error).into(),
        TokenError::Trust(text) => no_trust(TrustError::Broken(text)),
        other => Failure::denied(other.reason()),
    })?;
    if let Some(trust) = trust.filter(|trust| trust.remaining_uses.is_some()) {
        // Decides nothing about tokens that are there, so that these need not be worked out anew.
        let mut change = app.store.change_keys().await?;
        if !change.consume_trust(&trust.id).await? {
            return Err(no_trust(TrustError::Broken("The trust is used up.")));
        }
        app.store.commit(change).await?;
    }
    let text = app.token_keys().seal(&payload)?;
    Ok((context, text, catalog))
}
