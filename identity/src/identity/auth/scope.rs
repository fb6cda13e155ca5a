//! What a token is to be for.

use serde_json::Value;

use super::{
    methods::{domain_id, is_named},
    proof::{Failure, Proof, no_trust},
};
use crate::{
    app::App,
    identity::error::IdentityError,
    store::users::User,
    time::now_us,
    token::{TokenScope, trust},
};

/// What a token is to be made for.
pub(in crate::identity) struct Wanted {
    pub(super) scope: TokenScope,
    /// Set by the scope `OS-TRUST:trust`.
    pub(super) trust: Option<trust::Chain>,
}

impl From<TokenScope> for Wanted {
    fn from(scope: TokenScope) -> Self {
        Self { scope, trust: None }
    }
}

/// What the token is to be for.
pub(super) async fn scope(
    app: &App,
    sent: Option<&Value>,
    proof: &Proof,
) -> Result<Wanted, Failure> {
    let read = match (sent, &proof.ahead) {
        (Some(_), Some(ahead)) => ahead.scope(app).await?,
        _ => None,
    };
    let asked = match sent {
        _ if read.is_some() => read.map(Wanted::from),
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

/// A scope that is named.
///
/// # Errors
/// 400 for what names none, 401 for one that is not there.
pub(super) async fn asked_scope(app: &App, scope: &Value) -> Result<Wanted, Failure> {
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
        if !is_named(project) {
            return Err(IdentityError::BadRequest(
                "auth.scope.project needs an id, or a name and a domain.".into(),
            )
            .into());
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
