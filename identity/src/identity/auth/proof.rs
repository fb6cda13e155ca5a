//! What the methods of a login proved, and why a login failed.

use super::ahead::Ahead;
use crate::{
    identity::error::IdentityError,
    store::users::User,
    token::{Method, TokenScope, trust::TrustError},
};

/// What the methods proved.
pub(in crate::identity) struct Proof {
    pub(super) user: User,
    pub(super) methods: Vec<Method>,
    /// Set by a token: its end is that of the new one.
    pub(super) expires_at: Option<i64>,
    /// Set by what ends: no token that is made with it lives longer.
    pub(super) not_after: Option<i64>,
    /// Audit id of the first token of the chain, if a token was shown.
    pub(super) parent: Option<String>,
    pub(super) app_credential_id: Option<String>,
    pub(super) access_token_id: Option<String>,
    /// Set by what is for one project: nothing else can be asked for.
    pub(super) fixed_scope: Option<TokenScope>,
    /// What was read while it was proved.
    pub(super) ahead: Option<Ahead>,
}

impl Proof {
    /// Of a user, by one method.
    pub(in crate::identity) fn new(user: User, method: Method) -> Self {
        Self {
            user,
            methods: vec![method],
            expires_at: None,
            not_after: None,
            parent: None,
            app_credential_id: None,
            access_token_id: None,
            fixed_scope: None,
            ahead: None,
        }
    }

    /// Limits it to what an OAuth1 access token is for.
    pub(in crate::identity) fn of_access_token(
        self,
        id: String,
        not_after: Option<i64>,
        scope: TokenScope,
    ) -> Self {
        Self {
            access_token_id: Some(id),
            not_after,
            fixed_scope: Some(scope),
            ..self
        }
    }

    /// With what another method proved: it must be the same user, and neither may be for one project only.
    pub(super) fn and(self, next: Self) -> Result<Self, Failure> {
        if self.user.id != next.user.id || self.fixed_scope.is_some() || next.fixed_scope.is_some()
        {
            return Err(Failure::denied("MethodsDisagree"));
        }
        if self.user.tokens_valid_after != next.user.tokens_valid_after {
            return Err(Failure::denied("ChangedMeanwhile"));
        }
        let mut methods = self.methods;
        for method in next.methods {
            if !methods.contains(&method) {
                methods.push(method);
            }
        }
        Ok(Self {
            methods,
            expires_at: self.expires_at.or(next.expires_at),
            parent: self.parent.or(next.parent),
            user: next.user,
            not_after: None,
            app_credential_id: None,
            access_token_id: None,
            fixed_scope: None,
            ahead: None,
        })
    }
}

/// Why a login failed; the client learns only the status.
pub(in crate::identity) struct Failure {
    pub(in crate::identity) reason: &'static str,
    pub(in crate::identity) error: IdentityError,
}

impl Failure {
    pub(in crate::identity) fn denied(reason: &'static str) -> Self {
        Self {
            reason,
            error: IdentityError::Unauthorized,
        }
    }

    pub(super) fn forbidden(reason: &'static str, text: &str) -> Self {
        Self {
            reason,
            error: IdentityError::Forbidden(text.into()),
        }
    }
}

/// Of a login, a trust that is gone is as unknown as any other scope.
pub(super) fn no_trust(error: TrustError) -> Failure {
    match error {
        TrustError::Gone => Failure::denied("TrustGone"),
        TrustError::Broken(text) => Failure::forbidden("TrustBroken", text),
        TrustError::Store(error) => error.into(),
    }
}

impl<E: Into<IdentityError>> From<E> for Failure {
    fn from(error: E) -> Self {
        let error = error.into();
        Self {
            reason: error.reason(),
            error,
        }
    }
}
