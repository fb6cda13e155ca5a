//! `POST /v3/auth/tokens`: who is it, what for, and the token.

use std::sync::Arc;

use axum::{
    body::Bytes,
    extract::State,
    http::{HeaderValue, StatusCode},
    response::{IntoResponse, Json},
};
use secrecy::SecretString;
use serde_json::Value;

use super::token_body::token_body;
use crate::{
    accounts::account_key,
    app::App,
    audit::{self, Outcome},
    http::Query,
    identity::{
        error::{ApiResult, IdentityError},
        fields, passwords,
    },
    ids::audit_id,
    store::users::User,
    time::now_us,
    token::{
        AuthContext, Method, Scope, TokenError, TokenPayload, TokenScope, resolve,
        trust::{self, TrustError},
    },
};

/// What the methods proved.
struct Proof {
    user: User,
    methods: Vec<Method>,
    /// Set by a token: its end is that of the new one.
    expires_at: Option<i64>,
    /// Set by an application credential that ends: no token of it lives longer.
    not_after: Option<i64>,
    /// Audit id of the token that was shown.
    parent: Option<String>,
    app_credential_id: Option<String>,
    /// Set by an application credential: nothing else can be asked for.
    fixed_scope: Option<TokenScope>,
}

/// Why a login failed; the client learns only the status.
struct Failure {
    reason: &'static str,
    error: IdentityError,
}

impl Failure {
    fn denied(reason: &'static str) -> Self {
        Self {
            reason,
            error: IdentityError::Unauthorized,
        }
    }
}

/// Of a login, a trust that is gone is as unknown as any other scope.
fn no_trust(error: TrustError) -> Failure {
    match error {
        TrustError::Gone => Failure::denied("TrustGone"),
        TrustError::Broken(text) => Failure {
            reason: "TrustBroken",
            error: IdentityError::Forbidden(text.into()),
        },
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

pub(super) async fn login(State(app): State<Arc<App>>, query: Query, bytes: Bytes) -> ApiResult {
    let auth = Value::Object(fields::body(&bytes, "auth")?);
    match attempt(&app, &auth).await {
        Ok((context, text)) => {
            app.metrics.login(true);
            let id = context
                .payload
                .audit_ids
                .first()
                .cloned()
                .unwrap_or_default();
            audit::record(
                &context,
                "authenticate",
                "data/security/token",
                &id,
                Outcome::Success,
                "",
            );
            let body = token_body(&app, &context, query.get("nocatalog").is_none()).await?;
            let mut response = (StatusCode::CREATED, Json(body)).into_response();
            if let Ok(value) = HeaderValue::from_str(&text) {
                response.headers_mut().insert("X-Subject-Token", value);
            }
            Ok(response)
        }
        Err(failure) => {
            app.metrics.login(false);
            audit::failed_login(&claimed(&auth), failure.reason);
            Err(failure.error)
        }
    }
}

/// Who the client said it was, for the audit trail.
fn claimed(auth: &Value) -> String {
    let identity = &auth["identity"];
    for user in [
        &identity["password"]["user"],
        &identity["application_credential"]["user"],
    ] {
        for name in ["name", "id"] {
            if let Some(text) = user[name].as_str() {
                return text.chars().take(255).collect();
            }
        }
    }
    let id = identity["application_credential"]["id"].as_str();
    id.map(|id| {
        format!(
            "application credential {}",
            id.chars().take(64).collect::<String>()
        )
    })
    .unwrap_or_default()
}

async fn attempt(app: &Arc<App>, auth: &Value) -> Result<(AuthContext, String), Failure> {
    let identity = &auth["identity"];
    let methods = identity["methods"]
        .as_array()
        .ok_or_else(|| IdentityError::BadRequest("auth.identity.methods must be a list.".into()))?;
    let mut proof: Option<Proof> = None;
    for method in methods {
        let name = method.as_str().unwrap_or_default();
        let details = &identity[name];
        let next = match name {
            "password" => password(app, details).await?,
            "token" => token(app, details, auth.get("scope")).await?,
            "application_credential" => application_credential(app, details).await?,
            _ => return Err(IdentityError::UnsupportedMethod.into()),
        };
        proof = Some(match proof {
            None => next,
            Some(first) => combine(first, next)?,
        });
    }
    let proof = proof.ok_or_else(|| Failure::denied("NoMethods"))?;
    let wanted = scope(app, auth.get("scope"), &proof).await?;
    issue(app, proof, wanted).await
}

/// Several methods must name the same user.
fn combine(first: Proof, next: Proof) -> Result<Proof, Failure> {
    if first.user.id != next.user.id || first.fixed_scope.is_some() || next.fixed_scope.is_some() {
        return Err(Failure::denied("MethodsDisagree"));
    }
    let mut methods = first.methods;
    methods.extend(
        next.methods
            .iter()
            .filter(|method| !methods.contains(method))
            .copied()
            .collect::<Vec<_>>(),
    );
    Ok(Proof {
        methods,
        expires_at: first.expires_at.or(next.expires_at),
        not_after: None,
        parent: first.parent.or(next.parent),
        ..next
    })
}

/// A domain by `{"id": …}` or `{"name": …}`.
async fn domain_id(app: &App, domain: &Value) -> Result<Option<String>, IdentityError> {
    if let Some(id) = domain["id"].as_str() {
        return Ok(app.store.domain(id).await?.map(|domain| domain.id));
    }
    match domain["name"].as_str() {
        Some(name) => Ok(app
            .store
            .domain_by_name(name)
            .await?
            .map(|domain| domain.id)),
        None => Ok(None),
    }
}

/// A user by `{"id": …}` or `{"name": …, "domain": …}`.
async fn find_user(app: &App, user: &Value) -> Result<Option<User>, IdentityError> {
    if let Some(id) = user["id"].as_str() {
        return Ok(app.store.user(id).await?);
    }
    let Some(name) = user["name"].as_str() else {
        return Ok(None);
    };
    match domain_id(app, &user["domain"]).await? {
        Some(domain) => Ok(app.store.user_by_name(&domain, name).await?),
        None => Ok(None),
    }
}

/// Counts an attempt on the account that the client names; not on its address, which behind a load balancer is
/// everybody's.
fn admit(app: &App, account: &Value) -> Result<(), Failure> {
    // Only what decides which account it is, so that nothing else in the request can make it a new one.
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let key = match text(&account["id"]) {
        Some(id) => account_key(("id", id)),
        None => account_key((
            text(&account["name"]),
            text(&account["domain"]["id"]).or_else(|| text(&account["domain"]["name"])),
        )),
    };
    if app.login_limit.admit(key) {
        Ok(())
    } else {
        Err(IdentityError::TooManyAttempts.into())
    }
}

async fn password(app: &Arc<App>, details: &Value) -> Result<Proof, Failure> {
    let sent = details["user"]["password"].as_str().ok_or_else(|| {
        IdentityError::BadRequest("auth.identity.password.user.password is required.".into())
    })?;
    admit(app, &details["user"])?;
    let user = find_user(app, &details["user"]).await?;
    let user = passwords::prove(app, user, &SecretString::from(sent.to_owned()))
        .await?
        .map_err(Failure::denied)?;
    if app
        .config
        .passwords
        .expired(&user.options, user.password_expires_at, now_us())
    {
        return Err(IdentityError::PasswordExpired(user.id).into());
    }
    Ok(Proof {
        user,
        methods: vec![Method::Password],
        expires_at: None,
        not_after: None,
        parent: None,
        app_credential_id: None,
        fixed_scope: None,
    })
}

/// What a token may not be exchanged for: with what somebody gave away, nothing wider can be reached.
fn may_exchange(shown: &AuthContext, scope: Option<&Value>) -> Result<(), Failure> {
    let asks = |name: &str| scope.is_some_and(|scope| scope.get(name).is_some());
    let refused = |reason, text: &str| {
        Err(Failure {
            reason,
            error: IdentityError::Forbidden(text.into()),
        })
    };
    if shown.trust.is_some() {
        return refused(
            "TokenOfTrust",
            "A token of a trust cannot be exchanged for another one; log in with the trust again.",
        );
    }
    if shown.is_delegated() {
        return refused(
            "DelegatedToken",
            "A token of an application credential, an OAuth1 access token or an EC2 credential cannot be exchanged for another one.",
        );
    }
    if matches!(shown.scope, Scope::System) && (asks("project") || asks("domain")) {
        return refused(
            "SystemToken",
            "A token for the system cannot be exchanged for one for a project or a domain.",
        );
    }
    Ok(())
}

async fn token(app: &App, details: &Value, scope: Option<&Value>) -> Result<Proof, Failure> {
    let text = details["id"]
        .as_str()
        .ok_or_else(|| IdentityError::BadRequest("auth.identity.token.id is required.".into()))?;
    let shown = app
        .validate(text.trim(), false)
        .await
        .map_err(|error| match error {
            TokenError::Store(error) => Failure::from(error),
            TokenError::Trust(text) => no_trust(TrustError::Broken(text)),
            other => Failure {
                reason: other.reason(),
                error: IdentityError::TokenNotFound,
            },
        })?;
    if shown
        .app_credential
        .as_ref()
        .is_some_and(|credential| !credential.access_rules.is_empty())
    {
        // To one who does not say that it knows about access rules, such a token does not exist.
        return Err(Failure {
            reason: "AccessRules",
            error: IdentityError::TokenNotFound,
        });
    }
    may_exchange(&shown, scope)?;
    let user = app
        .store
        .user(&shown.user.id)
        .await?
        .ok_or_else(|| Failure::denied("UnknownUser"))?;
    let mut methods = vec![Method::Token];
    methods.extend(
        shown
            .payload
            .methods
            .iter()
            .filter(|method| **method != Method::Token),
    );
    Ok(Proof {
        user,
        methods,
        expires_at: Some(shown.payload.expires_at),
        not_after: None,
        // The chain is named by its first token.
        parent: shown.payload.audit_ids.last().cloned(),
        app_credential_id: None,
        fixed_scope: None,
    })
}

async fn application_credential(app: &App, details: &Value) -> Result<Proof, Failure> {
    let secret = details["secret"].as_str().ok_or_else(|| {
        IdentityError::BadRequest("auth.identity.application_credential.secret is required.".into())
    })?;
    admit(
        app,
        if details["id"].is_string() {
            details
        } else {
            &details["user"]
        },
    )?;
    let found = match (details["id"].as_str(), details["name"].as_str()) {
        (Some(id), _) => app.store.app_credential(id).await?,
        (None, Some(name)) => match find_user(app, &details["user"]).await? {
            Some(user) => app.store.app_credential_by_name(&user.id, name).await?,
            None => None,
        },
        (None, None) => None,
    };
    let hash = found
        .as_ref()
        .map(|credential| credential.secret_hash.as_str());
    let verified = app
        .hasher
        .verify(&SecretString::from(secret.to_owned()), hash)
        .await?;
    let Some(credential) = found else {
        // Measured: an unknown credential is not found, other than an unknown user.
        let id = details["id"]
            .as_str()
            .or(details["name"].as_str())
            .unwrap_or_default();
        return Err(Failure {
            reason: "UnknownCredential",
            error: IdentityError::NotFound("application credential", id.chars().take(64).collect()),
        });
    };
    if !verified {
        return Err(Failure::denied("WrongSecret"));
    }
    if credential
        .expires_at
        .is_some_and(|at| at <= crate::time::now_us())
    {
        return Err(Failure {
            reason: "ExpiredCredential",
            error: IdentityError::CredentialExpired,
        });
    }
    let user = app
        .store
        .user(&credential.user_id)
        .await?
        .ok_or_else(|| Failure::denied("UnknownUser"))?;
    Ok(Proof {
        user,
        methods: vec![Method::ApplicationCredential],
        expires_at: None,
        not_after: credential.expires_at,
        parent: None,
        app_credential_id: Some(credential.id),
        fixed_scope: Some(TokenScope::Project(credential.project_id)),
    })
}

/// What a token is to be made for.
struct Wanted {
    scope: TokenScope,
    /// Set by the scope `OS-TRUST:trust`.
    trust: Option<trust::Chain>,
}

impl From<TokenScope> for Wanted {
    fn from(scope: TokenScope) -> Self {
        Self { scope, trust: None }
    }
}

/// What the token is to be for.
async fn scope(app: &App, sent: Option<&Value>, proof: &Proof) -> Result<Wanted, Failure> {
    let asked = match sent {
        None | Some(Value::Null) => None,
        Some(Value::String(word)) if word == "unscoped" => Some(TokenScope::Unscoped.into()),
        Some(scope) => Some(asked_scope(app, scope).await?),
    };
    match (&proof.fixed_scope, asked) {
        (Some(fixed), None) => Ok(fixed.clone().into()),
        (Some(_), Some(_)) => Err(Failure::denied("CredentialWithScope")),
        (None, Some(asked)) => Ok(asked),
        (None, None) => Ok(default_scope(app, &proof.user).await?.into()),
    }
}

const SCOPES: [&str; 5] = ["project", "domain", "system", "unscoped", "OS-TRUST:trust"];

async fn asked_scope(app: &App, scope: &Value) -> Result<Wanted, Failure> {
    let unknown = || Failure::denied("UnknownScope");
    if SCOPES
        .iter()
        .filter(|name| scope.get(**name).is_some())
        .count()
        != 1
    {
        return Err(IdentityError::BadRequest(format!(
            "auth.scope must name exactly one of: {}.",
            SCOPES.join(", ")
        ))
        .into());
    }
    if scope.get("unscoped").is_some() {
        return Ok(TokenScope::Unscoped.into());
    }
    if let Some(wanted) = scope.get("OS-TRUST:trust") {
        let id = wanted["id"].as_str().ok_or_else(|| {
            IdentityError::BadRequest("auth.scope.OS-TRUST:trust.id is required.".into())
        })?;
        let chain = trust::chain(&app.store, id, now_us(), true)
            .await
            .map_err(no_trust)?;
        let project = chain.own().trust.project_id.clone().ok_or_else(unknown)?;
        return Ok(Wanted {
            scope: TokenScope::Project(project),
            trust: Some(chain),
        });
    }
    if let Some(project) = scope.get("project") {
        if let Some(id) = project["id"].as_str() {
            return Ok(TokenScope::Project(id.to_owned()).into());
        }
        let name = project["name"].as_str().ok_or_else(unknown)?;
        let domain = domain_id(app, &project["domain"])
            .await?
            .ok_or_else(unknown)?;
        let found = app
            .store
            .project_by_name(&domain, name)
            .await?
            .ok_or_else(unknown)?;
        return Ok(TokenScope::Project(found.id).into());
    }
    if let Some(domain) = scope.get("domain") {
        return Ok(TokenScope::Domain(domain_id(app, domain).await?.ok_or_else(unknown)?).into());
    }
    if scope["system"]["all"] == true {
        return Ok(TokenScope::System.into());
    }
    Err(
        IdentityError::BadRequest("auth.scope must name a project, a domain or the system.".into())
            .into(),
    )
}

/// Without a wish: the user's default project if it has a role there, else no scope.
async fn default_scope(app: &App, user: &User) -> Result<TokenScope, Failure> {
    if let Some(id) = &user.default_project_id
        && app
            .store
            .project(id)
            .await?
            .is_some_and(|project| project.enabled)
        && !app
            .store
            .effective_roles(&user.id, "project", id)
            .await?
            .is_empty()
    {
        return Ok(TokenScope::Project(id.clone()));
    }
    Ok(TokenScope::Unscoped)
}

async fn issue(app: &App, proof: Proof, wanted: Wanted) -> Result<(AuthContext, String), Failure> {
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
    let payload = TokenPayload {
        user_id: proof.user.id,
        methods: proof.methods,
        scope: wanted.scope,
        app_credential_id: proof.app_credential_id,
        trust_id: trust.map(|trust| trust.id.clone()),
        access_token_id: None,
        issued_at,
        expires_at,
        audit_ids: std::iter::once(audit_id()).chain(proof.parent).collect(),
    };
    // The same question as at every later use, so that no token is dead at birth.
    let context = resolve(&app.store, &payload)
        .await
        .map_err(|error| match error {
            TokenError::Store(error) => Failure::from(error),
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
    Ok((context, text))
}
