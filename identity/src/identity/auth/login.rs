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
    token::{AuthContext, Method, TokenError, TokenPayload, TokenScope, resolve},
};

/// What the methods proved.
struct Proof {
    user: User,
    methods: Vec<Method>,
    /// Set by a token: it cannot be outlived.
    expires_at: Option<i64>,
    /// Audit id of the token that was shown.
    parent: Option<String>,
    app_credential_id: Option<String>,
    /// Set by an application credential or by a token made with one: nothing else can be asked for.
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
            "token" => token(app, details).await?,
            "application_credential" => application_credential(app, details).await?,
            _ => return Err(IdentityError::UnsupportedMethod.into()),
        };
        proof = Some(match proof {
            None => next,
            Some(first) => combine(first, next)?,
        });
    }
    let proof = proof.ok_or_else(|| Failure::denied("NoMethods"))?;
    let scope = scope(app, auth.get("scope"), &proof).await?;
    issue(app, proof, scope).await
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
        parent: None,
        app_credential_id: None,
        fixed_scope: None,
    })
}

async fn token(app: &App, details: &Value) -> Result<Proof, Failure> {
    let text = details["id"]
        .as_str()
        .ok_or_else(|| IdentityError::BadRequest("auth.identity.token.id is required.".into()))?;
    let shown = app
        .validate(text.trim(), false)
        .await
        .map_err(|error| match error {
            TokenError::Store(error) => Failure::from(error),
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
        return Err(Failure::denied("AccessRules"));
    }
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
    let app_credential_id = shown.payload.app_credential_id.clone();
    Ok(Proof {
        user,
        methods,
        expires_at: Some(shown.payload.expires_at),
        parent: shown.payload.audit_ids.first().cloned(),
        // What an application credential was not given, a token made of its token must not have either.
        fixed_scope: app_credential_id
            .is_some()
            .then(|| shown.payload.scope.clone()),
        app_credential_id,
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
        parent: None,
        app_credential_id: Some(credential.id),
        fixed_scope: Some(TokenScope::Project(credential.project_id)),
    })
}

/// What the token is to be for.
async fn scope(app: &App, sent: Option<&Value>, proof: &Proof) -> Result<TokenScope, Failure> {
    let asked = match sent {
        None | Some(Value::Null) => None,
        Some(Value::String(word)) if word == "unscoped" => Some(TokenScope::Unscoped),
        Some(scope) => Some(asked_scope(app, scope).await?),
    };
    match (&proof.fixed_scope, asked) {
        (Some(fixed), None) => Ok(fixed.clone()),
        (Some(fixed), Some(asked))
            if proof.methods.first() == Some(&Method::Token) && asked == *fixed =>
        {
            Ok(asked)
        }
        (Some(_), Some(_)) => Err(Failure::denied("CredentialWithScope")),
        (None, Some(asked)) => Ok(asked),
        (None, None) => default_scope(app, &proof.user).await,
    }
}

async fn asked_scope(app: &App, scope: &Value) -> Result<TokenScope, Failure> {
    let unknown = || Failure::denied("UnknownScope");
    if let Some(project) = scope.get("project") {
        if let Some(id) = project["id"].as_str() {
            return Ok(TokenScope::Project(id.to_owned()));
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
        return Ok(TokenScope::Project(found.id));
    }
    if let Some(domain) = scope.get("domain") {
        return Ok(TokenScope::Domain(
            domain_id(app, domain).await?.ok_or_else(unknown)?,
        ));
    }
    if scope["system"]["all"] == true {
        return Ok(TokenScope::System);
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

async fn issue(
    app: &App,
    proof: Proof,
    scope: TokenScope,
) -> Result<(AuthContext, String), Failure> {
    let issued_at = now_us();
    let payload = TokenPayload {
        user_id: proof.user.id,
        methods: proof.methods,
        scope,
        app_credential_id: proof.app_credential_id,
        issued_at,
        expires_at: proof.expires_at.unwrap_or(issued_at + app.token_lifetime()),
        audit_ids: std::iter::once(audit_id()).chain(proof.parent).collect(),
    };
    // The same question as at every later use, so that no token is dead at birth.
    let context = resolve(&app.store, &payload)
        .await
        .map_err(|error| match error {
            TokenError::Store(error) => Failure::from(error),
            other => Failure::denied(other.reason()),
        })?;
    let text = app.token_keys().seal(&payload)?;
    Ok((context, text))
}
