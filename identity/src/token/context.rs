//! What a token means right now: user, scope and roles from the records, and the credentials that the
//! policy sees.

use std::sync::OnceLock;

use axum::body::Bytes;
use serde_json::{Value, json};
use thiserror::Error;

use super::{
    format::{Method, TokenPayload, TokenScope},
    oauth::{self, AccessTokenRef},
    trust::{self, TrustError},
};
use crate::{
    ldap::DirectoryError,
    policy::Creds,
    store::{
        Store, StoreError, access_rules::AccessRule, assignments::EffectiveRole, domains::Domain,
        users::User,
    },
    time::now_us,
};

/// An id with its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdName {
    /// Id.
    pub id: String,
    /// Name.
    pub name: String,
}

impl IdName {
    /// `{"id": …, "name": …}`.
    pub fn to_json(&self) -> Value {
        json!({"id": self.id, "name": self.name})
    }
}

/// The user behind a token.
#[derive(Debug, Clone)]
pub struct UserRef {
    /// Id.
    pub id: String,
    /// Name.
    pub name: String,
    /// Its domain.
    pub domain: IdName,
    /// When its password must be changed (microseconds).
    pub password_expires_at: Option<i64>,
}

/// What a token is for, with names.
#[derive(Debug, Clone)]
pub enum Scope {
    /// Only says who the user is.
    Unscoped,
    /// A project of a domain.
    Project(IdName, IdName),
    /// A domain.
    Domain(IdName),
    /// The system.
    System,
}

/// The application credential behind a token.
#[derive(Debug, Clone)]
pub struct AppCredentialRef {
    /// Id.
    pub id: String,
    /// Name.
    pub name: String,
    /// Whether it may manage application credentials.
    pub unrestricted: bool,
    /// The calls it may make; none means all.
    pub access_rules: Vec<AccessRule>,
}

/// The trust behind a token.
#[derive(Debug, Clone)]
pub struct TrustRef {
    /// Id.
    pub id: String,
    /// Whose roles they are.
    pub trustor_id: String,
    /// Who logged in.
    pub trustee_id: String,
    /// Whether the token's user is the trustor.
    pub impersonation: bool,
}

/// Everything that a valid token says.
#[derive(Debug, Clone)]
pub struct AuthContext {
    /// What the token itself holds.
    pub payload: TokenPayload,
    /// The user; with an impersonating trust the trustor, whoever logged in.
    pub user: UserRef,
    /// The scope.
    pub scope: Scope,
    /// The roles on the scope, with all that they imply.
    pub roles: Vec<EffectiveRole>,
    /// The application credential, if one was used.
    pub app_credential: Option<AppCredentialRef>,
    /// The trust, if one was used.
    pub trust: Option<TrustRef>,
    /// The OAuth1 access token, if one was used.
    pub access_token: Option<AccessTokenRef>,
    /// The same for the policy.
    pub creds: Creds,
    /// What is told of the token, as JSON: without and with the catalog. Holds as long as this context does.
    pub(crate) told: [OnceLock<Bytes>; 2],
}

impl AuthContext {
    /// Whether the login was with something that the user gave away, such as an application credential: it acts within limits,
    /// and what would outlive or widen these may not be done with it. A trust is told by `trust`, whatever the method was.
    pub fn is_delegated(&self) -> bool {
        self.payload.methods.is_empty() || !self.payload.methods.iter().all(|one| one.is_primary())
    }

    /// The project of a project-scoped token.
    pub fn project_id(&self) -> Option<&str> {
        self.payload.scope.project_id()
    }

    /// The domain of a domain-scoped token.
    pub fn domain_id(&self) -> Option<&str> {
        match &self.payload.scope {
            TokenScope::Domain(id) => Some(id),
            _ => None,
        }
    }
}

/// Why a token (or a login) is worth nothing. Callers outside learn only a status, the audit log the reason.
#[derive(Debug, Error)]
pub enum TokenError {
    /// Not a token of ours.
    #[error(transparent)]
    Format(#[from] super::format::FormatError),
    /// Its time is over.
    #[error("the token has expired")]
    Expired,
    /// Revoked, or its user's password changed or was disabled since.
    #[error("the token was revoked")]
    Revoked,
    /// The user is gone or disabled, or its domain is.
    #[error("the user or its domain is disabled or deleted")]
    User,
    /// The project or domain of the scope is gone or disabled.
    #[error("the project or domain of the scope is disabled or deleted")]
    Scope,
    /// No role is left on the scope.
    #[error("the user has no role on the scope")]
    NoRoles,
    /// The application credential or the access token is gone or has expired.
    #[error("the application credential or access token is deleted or has expired")]
    Credential,
    /// The trust is there and does not hold. Who shows its token may know why.
    #[error("{0}")]
    Trust(&'static str),
    /// The trust is gone or over.
    #[error("the trust is deleted, used up or has expired")]
    TrustGone,
    /// A call that the credential's access rules do not list.
    #[error("the application credential's access rules do not list this call")]
    AccessRules,
    /// The user is in a directory that cannot be asked.
    #[error(transparent)]
    Directory(DirectoryError),
    /// The records could not be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl TokenError {
    /// Machine-readable reason.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Format(_) => "NotAToken",
            Self::Expired => "TokenExpired",
            Self::Revoked => "TokenRevoked",
            Self::User => "UserDisabled",
            Self::Scope => "ScopeDisabled",
            Self::NoRoles => "NoRoles",
            Self::Credential => "CredentialGone",
            Self::Trust(_) => "TrustBroken",
            Self::TrustGone => "TrustGone",
            Self::AccessRules => "AccessRules",
            Self::Directory(error) => error.reason(),
            Self::Store(error) => error.reason(),
        }
    }
}

impl From<TrustError> for TokenError {
    fn from(error: TrustError) -> Self {
        match error {
            TrustError::Gone => Self::TrustGone,
            TrustError::Broken(text) => Self::Trust(text),
            TrustError::Store(error) => Self::Store(error),
        }
    }
}

/// Works out what a payload means now.
///
/// # Errors
/// Every [`TokenError`] but `Format`, `Expired` and `AccessRules`.
pub async fn resolve(store: &Store, payload: &TokenPayload) -> Result<AuthContext, TokenError> {
    if let Some(own) = payload.audit_ids.first()
        && store.is_revoked(own).await?
    {
        return Err(TokenError::Revoked);
    }
    let (user, domain) = user_and_domain(store, payload).await?;
    resolve_of(store, payload, user, domain).await
}

/// The same for a token that nobody has yet, and so none can have revoked.
///
/// # Errors
/// As [`resolve`].
pub async fn resolve_new(store: &Store, payload: &TokenPayload) -> Result<AuthContext, TokenError> {
    let (user, domain) = user_and_domain(store, payload).await?;
    resolve_of(store, payload, user, domain).await
}

async fn user_and_domain(
    store: &Store,
    payload: &TokenPayload,
) -> Result<(User, Domain), TokenError> {
    let user = store
        .user(&payload.user_id)
        .await?
        .ok_or(TokenError::User)?;
    let domain = store
        .domain(&user.domain_id)
        .await?
        .ok_or(TokenError::User)?;
    Ok((user, domain))
}

async fn resolve_of(
    store: &Store,
    payload: &TokenPayload,
    user: User,
    user_domain: Domain,
) -> Result<AuthContext, TokenError> {
    may_have_token(&user, &user_domain, payload)?;
    let (scope, roles) = scope_and_roles(store, &payload.user_id, &payload.scope).await?;
    let records = Records {
        user,
        user_domain,
        scope,
        roles,
    };
    worth(store, payload, records).await
}

/// What every token is worked out from, read at one state of the records.
#[derive(Clone)]
pub struct Records {
    /// The user that the token is of.
    pub user: User,
    /// Its domain.
    pub user_domain: Domain,
    /// The scope, enabled.
    pub scope: Scope,
    /// Effective roles of the user on the scope.
    pub roles: Vec<EffectiveRole>,
}

fn may_have_token(user: &User, domain: &Domain, payload: &TokenPayload) -> Result<(), TokenError> {
    if !user.enabled || !domain.enabled {
        return Err(TokenError::User);
    }
    if !payload.stands(payload.valid_after, user) {
        return Err(TokenError::Revoked);
    }
    Ok(())
}

/// What a payload means by records that were read, and by those of what it was made with, if it was made with something that
/// can end.
///
/// # Errors
/// As [`resolve`].
pub async fn worth(
    store: &Store,
    payload: &TokenPayload,
    records: Records,
) -> Result<AuthContext, TokenError> {
    let Records {
        user,
        user_domain,
        scope,
        mut roles,
    } = records;
    may_have_token(&user, &user_domain, payload)?;
    let app_credential = match &payload.app_credential_id {
        None => None,
        Some(id) => {
            let found = store
                .app_credential(id)
                .await?
                .ok_or(TokenError::Credential)?;
            if found.expires_at.is_some_and(|at| at <= now_us()) || found.user_id != user.id {
                return Err(TokenError::Credential);
            }
            // The credential never gives more than its user has now.
            let granted = store.app_credential_effective_roles(id).await?;
            roles.retain(|role| granted.contains(role));
            let access_rules = store.access_rules(id).await?;
            Some(AppCredentialRef {
                id: found.id,
                name: found.name,
                unrestricted: found.unrestricted.unwrap_or(false),
                access_rules,
            })
        }
    };
    let mut trust = None;
    let (mut user, mut user_domain) = (user, user_domain);
    if let Some(id) = &payload.trust_id {
        let chain = trust::chain(store, id, now_us(), false).await?;
        let (trustor, given) = trust::worth(store, &chain, &user.id).await?;
        // What ends the tokens of the trustor ends those with its roles too.
        if !payload.stands(payload.trustor_valid_after, &trustor) {
            return Err(TokenError::Revoked);
        }
        let own = &chain.own().trust;
        if own.project_id.as_deref() != payload.scope.project_id() {
            return Err(TokenError::TrustGone);
        }
        roles = given;
        trust = Some(TrustRef {
            id: own.id.clone(),
            trustor_id: own.trustor_id.clone(),
            trustee_id: own.trustee_id.clone(),
            impersonation: own.impersonation,
        });
        if own.impersonation {
            user_domain = store
                .domain(&trustor.domain_id)
                .await?
                .ok_or(TokenError::TrustGone)?;
            user = trustor;
        }
    }
    let mut access_token = None;
    if let Some(id) = &payload.access_token_id {
        let (token, given) = oauth::access_token(store, payload, id, now_us()).await?;
        roles.retain(|role| given.contains(&role.id));
        access_token = Some(token);
    }
    if roles.is_empty() && !matches!(scope, Scope::Unscoped) {
        return Err(TokenError::NoRoles);
    }
    let user = UserRef {
        id: user.id,
        name: user.name,
        password_expires_at: user.password_expires_at,
        domain: IdName {
            id: user_domain.id,
            name: user_domain.name,
        },
    };
    let mut creds = creds(&user, &scope, &roles);
    if let Some(trust) = &trust {
        creds["trust_id"] = trust.id.as_str().into();
        creds["trustor_id"] = trust.trustor_id.as_str().into();
        creds["trustee_id"] = trust.trustee_id.as_str().into();
    }
    let creds = Creds(creds);
    Ok(AuthContext {
        payload: payload.clone(),
        user,
        scope,
        roles,
        app_credential,
        trust,
        access_token,
        creds,
        told: Default::default(),
    })
}

/// A scope that is there and enabled, and the effective roles of a user on it.
///
/// # Errors
/// `Scope`, `Store`.
pub async fn scope_and_roles(
    store: &Store,
    user: &str,
    scope: &TokenScope,
) -> Result<(Scope, Vec<EffectiveRole>), TokenError> {
    Ok(match scope {
        TokenScope::Unscoped => (Scope::Unscoped, Vec::new()),
        TokenScope::System => (
            Scope::System,
            store.effective_roles(user, "system", "all").await?,
        ),
        TokenScope::Domain(id) => {
            let domain = store
                .domain(id)
                .await?
                .filter(|domain| domain.enabled)
                .ok_or(TokenError::Scope)?;
            let scope = Scope::Domain(IdName {
                id: domain.id,
                name: domain.name,
            });
            (scope, store.effective_roles(user, "domain", id).await?)
        }
        TokenScope::Project(id) => {
            let project = store
                .project(id)
                .await?
                .filter(|project| project.enabled)
                .ok_or(TokenError::Scope)?;
            let domain = store
                .domain(&project.domain_id)
                .await?
                .filter(|domain| domain.enabled)
                .ok_or(TokenError::Scope)?;
            let scope = Scope::Project(
                IdName {
                    id: project.id,
                    name: project.name,
                },
                IdName {
                    id: domain.id,
                    name: domain.name,
                },
            );
            (scope, store.effective_roles(user, "project", id).await?)
        }
    })
}

/// The attributes that oslo.policy rules may ask for.
fn creds(user: &UserRef, scope: &Scope, roles: &[EffectiveRole]) -> Value {
    let names: Vec<&str> = roles.iter().map(|role| role.name.as_str()).collect();
    let mut creds = json!({
        "user_id": user.id, "user_domain_id": user.domain.id, "roles": names, "is_admin": false,
        "project_id": null, "project_domain_id": null, "domain_id": null, "system_scope": null,
    });
    match scope {
        Scope::Unscoped => {}
        Scope::System => creds["system_scope"] = "all".into(),
        Scope::Domain(domain) => {
            creds["domain_id"] = domain.id.as_str().into();
            creds["token"] = json!({"domain": {"id": domain.id}});
        }
        Scope::Project(project, domain) => {
            creds["project_id"] = project.id.as_str().into();
            creds["project_domain_id"] = domain.id.as_str().into();
            creds["token"] = json!({"project": {"id": project.id, "domain": {"id": domain.id}}});
        }
    }
    creds
}

impl TokenPayload {
    /// Whether nothing ended all tokens of a user since `seen`, which is what the login saw of it. Times of clocks decide only
    /// about tokens of releases that did not note it: between the time of a change and its commit, and between the clocks of two
    /// machines, a token could otherwise be made that the change does not end.
    fn stands(&self, seen: Option<i64>, user: &User) -> bool {
        match seen {
            Some(seen) => seen == user.tokens_valid_after,
            None => self.issued_at > user.tokens_valid_after,
        }
    }

    /// Whether nothing ended all tokens of its user since it was made.
    pub fn stands_for(&self, user: &User) -> bool {
        self.stands(self.valid_after, user)
    }

    /// The methods as the protocol lists them.
    pub fn method_names(&self) -> Vec<&'static str> {
        self.methods
            .iter()
            .map(|method| Method::as_str(*method))
            .collect()
    }
}
