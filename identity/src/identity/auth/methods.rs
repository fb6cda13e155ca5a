//! The methods of a login: password, token, application credential.

use std::sync::Arc;

use secrecy::SecretString;
use serde_json::Value;

use super::{
    ahead::{self, Ahead, Since},
    proof::{Failure, Proof, no_trust},
};
use crate::{
    accounts::account_key,
    app::App,
    identity::{directory, error::IdentityError, passwords},
    store::users::User,
    time::now_us,
    token::{AuthContext, Method, Scope, TokenError, TokenScope, trust::TrustError},
};

/// A domain by `{"id": …}` or `{"name": …}`.
pub(super) async fn domain_id(app: &App, domain: &Value) -> Result<Option<String>, IdentityError> {
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

/// Whether there are a name and a domain, so that it can be one only.
pub(super) fn is_named(object: &Value) -> bool {
    let domain = &object["domain"];
    object["name"].is_string() && (domain["id"].is_string() || domain["name"].is_string())
}

/// A user by `{"id": …}` or `{"name": …, "domain": …}`.
pub(super) async fn find_user(app: &App, user: &Value) -> Result<Option<User>, IdentityError> {
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
pub(super) fn admit(app: &App, account: &Value) -> Result<(), Failure> {
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

pub(super) async fn password(
    app: &Arc<App>,
    details: &Value,
    scope: Option<&Value>,
) -> Result<Proof, Failure> {
    let named = &details["user"];
    if !named["id"].is_string() && !is_named(named) {
        return Err(IdentityError::BadRequest(
            "auth.identity.password.user needs an id, or a name and a domain.".into(),
        )
        .into());
    }
    let sent = match &named["password"] {
        Value::String(sent) => SecretString::from(sent.clone()),
        Value::Null => return Err(Failure::denied("NoPassword")),
        _ => {
            return Err(IdentityError::BadRequest(
                "auth.identity.password.user.password must be a string.".into(),
            )
            .into());
        }
    };
    admit(app, named)?;
    let since = Since::now(app).await?;
    // A domain that is not there has neither a directory nor users, so that an id need not be looked up.
    let domain = match (named["name"].as_str(), named["domain"]["id"].as_str()) {
        (Some(_), Some(id)) => Some(id.to_owned()),
        (Some(_), None) => domain_id(app, &named["domain"]).await?,
        (None, _) => None,
    };
    let proved = match directory::prove(app, domain.as_deref(), named, &sent).await? {
        Some(proved) => proved.map(|user| (user, None)),
        None => {
            let user = match (named["id"].as_str(), named["name"].as_str(), &domain) {
                (Some(id), _, _) => app.store.user(id).await?,
                (None, Some(name), Some(domain)) => app.store.user_by_name(domain, name).await?,
                _ => None,
            };
            let proof = async {
                let proved = passwords::prove(app, user.clone(), &sent).await;
                #[cfg(test)]
                app.login_pause.after_the_proof().await;
                proved
            };
            let read = async {
                let found = Ahead::read(app, since, user.as_ref(), scope).await;
                #[cfg(test)]
                app.login_pause.after_reading();
                found
            };
            match ahead::beside(proof, read).await? {
                Ok((user, ahead)) => Ok((since.present(app, user).await?, ahead)),
                Err(why) => Err(why),
            }
        }
    };
    let (user, ahead) = proved.map_err(Failure::denied)?;
    if app
        .config
        .passwords
        .expired(&user.options, user.password_expires_at, now_us())
    {
        return Err(IdentityError::PasswordExpired(user.id).into());
    }
    Ok(Proof {
        ahead,
        ..Proof::new(user, Method::Password)
    })
}

/// What a token may not be exchanged for: with what somebody gave away, nothing wider can be reached.
fn may_exchange(shown: &AuthContext, scope: Option<&Value>) -> Result<(), Failure> {
    let asks = |name: &str| scope.is_some_and(|scope| scope.get(name).is_some());
    let refused = |reason, text| Err(Failure::forbidden(reason, text));
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

pub(super) async fn token(
    app: &App,
    details: &Value,
    scope: Option<&Value>,
) -> Result<Proof, Failure> {
    let text = details["id"]
        .as_str()
        .ok_or_else(|| IdentityError::BadRequest("auth.identity.token.id is required.".into()))?;
    let shown = app
        .validate(text.trim(), false)
        .await
        .map_err(|error| match error {
            TokenError::Store(error) => Failure::from(error),
            TokenError::Directory(error) => IdentityError::Directory(error).into(),
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
    // What ended the token since it was looked at ends what is made with it.
    if !shown.payload.stands_for(&user) {
        return Err(Failure::denied("ChangedMeanwhile"));
    }
    let mut methods = vec![Method::Token];
    methods.extend(
        shown
            .payload
            .methods
            .iter()
            .filter(|method| **method != Method::Token),
    );
    Ok(Proof {
        methods,
        expires_at: Some(shown.payload.expires_at),
        // The chain is named by its first token.
        parent: shown.payload.audit_ids.last().cloned(),
        ..Proof::new(user, Method::Token)
    })
}

pub(super) async fn application_credential(app: &App, details: &Value) -> Result<Proof, Failure> {
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
        (None, Some(name)) => {
            // Of nobody too: the time of a refusal tells nothing.
            let user = find_user(app, &details["user"]).await?;
            let id = user.as_ref().map_or("", |user| &user.id);
            app.store.app_credential_by_name(id, name).await?
        }
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
        // Measured: an unknown id is not found, other than an unknown name or user.
        let Some(id) = details["id"].as_str() else {
            return Err(Failure::denied("UnknownCredential"));
        };
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
        not_after: credential.expires_at,
        app_credential_id: Some(credential.id),
        fixed_scope: Some(TokenScope::Project(credential.project_id)),
        ..Proof::new(user, Method::ApplicationCredential)
    })
}
