//! What it changes for the identity API that a domain's users are in a directory: they are looked up before they are
//! shown, proved by the directory, and changed by nobody here.

use std::{sync::Arc, time::Duration};

use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;

use super::error::IdentityError;
use crate::{
    app::App,
    ldap::{DirectoryError, RefreshError, ReloadError},
    store::users::User,
};

/// A list over all domains waits no longer for one of them, and shows what was known of it before.
const PATIENCE: Duration = Duration::from_secs(5);

impl From<RefreshError> for IdentityError {
    fn from(error: RefreshError) -> Self {
        match error {
            RefreshError::Directory(error) => Self::Directory(error),
            RefreshError::Store(error) => Self::Store(error),
        }
    }
}

impl From<ReloadError> for IdentityError {
    fn from(error: ReloadError) -> Self {
        match error {
            ReloadError::Store(error) => Self::Store(error),
            other => Self::Directory(DirectoryError::Config(other.to_string())),
        }
    }
}

/// Refuses what would change a user or group of a directory, with Keystone's status.
///
/// # Errors
/// 403.
pub fn check_writable(app: &App, domain_id: &str) -> Result<(), IdentityError> {
    if app.directories.has(domain_id) {
        return Err(IdentityError::Forbidden(
            "The users and groups of this domain are in a directory, which is only read here; change them there."
                .into(),
        ));
    }
    Ok(())
}

/// Looks one user up if it is of a directory.
///
/// # Errors
/// 503 while the directory is away.
pub async fn before_user(app: &App, id: &str) -> Result<(), IdentityError> {
    Ok(app.directories.refresh_user(&app.store, id).await?)
}

/// Looks up the users and groups of a domain before they are listed, or of all domains.
///
/// # Errors
/// 503 while the directory of the one domain that was asked for is away. In a list over all domains such a domain is
/// shown as it was known last.
pub async fn before_list(app: &Arc<App>, domain_id: Option<&str>) -> Result<(), IdentityError> {
    if let Some(id) = domain_id {
        return Ok(app.directories.refresh_domain(&app.store, id).await?);
    }
    for id in app.directories.ids() {
        let (looking, of) = (Arc::clone(app), id.clone());
        let look = async move {
            looking
                .directories
                .refresh_domain(&looking.store, &of)
                .await
        };
        tell(&id, look).await;
    }
    Ok(())
}

/// The same before users of this name are listed, which is what a client does with every name.
///
/// # Errors
/// As [`before_list`].
pub async fn before_users(
    app: &Arc<App>,
    domain_id: Option<&str>,
    name: Option<&str>,
) -> Result<(), IdentityError> {
    let Some(name) = name else {
        return before_list(app, domain_id).await;
    };
    if let Some(id) = domain_id {
        return Ok(look_for(app, id, name).await?);
    }
    for id in app.directories.ids() {
        let (looking, of, name) = (Arc::clone(app), id.clone(), name.to_owned());
        tell(&id, async move { look_for(&looking, &of, &name).await }).await;
    }
    Ok(())
}

async fn look_for(app: &App, domain_id: &str, name: &str) -> Result<(), RefreshError> {
    if app.directories.has(domain_id)
        && app
            .directories
            .user_named(&app.store, domain_id, name)
            .await?
            .is_none()
        && let Some(old) = app.store.user_by_name(domain_id, name).await?
    {
        app.directories.refresh_user(&app.store, &old.id).await?;
    }
    Ok(())
}

/// Looks, but waits no longer than a list should. The look goes on, so that a directory that is away is known to be.
async fn tell(
    domain_id: &str,
    look: impl Future<Output = Result<(), RefreshError>> + Send + 'static,
) {
    let why = match tokio::time::timeout(PATIENCE, tokio::spawn(look)).await {
        Ok(Ok(Ok(()))) => return,
        Ok(Ok(Err(error))) => error.to_string(),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer in {PATIENCE:?}"),
    };
    tracing::warn!(
        domain = domain_id,
        why,
        "a domain is listed as it was known last"
    );
}

/// Proves a password by the directory of the user's domain. `None`: the domain has none. The inner error is the cause
/// of a refusal, for the audit trail.
///
/// # Errors
/// 503 while the directory is away.
pub async fn prove(
    app: &App,
    domain_id: Option<&str>,
    named: &Value,
    password: &SecretString,
) -> Result<Option<Result<User, &'static str>>, IdentityError> {
    let looked = match (named["id"].as_str(), named["name"].as_str(), domain_id) {
        (Some(id), _, _) => app.directories.look_for_id(&app.store, id).await?,
        (None, Some(name), Some(domain)) => app.directories.look_for_name(domain, name).await?,
        _ => None,
    };
    let Some(looked) = looked else {
        return Ok(None);
    };
    // Never sent: a bind without a password is an anonymous one, which succeeds.
    if password.expose_secret().is_empty() {
        return Ok(Some(Err("EmptyPassword")));
    }
    let somebody = looked.is_somebody();
    // Nothing else is asked or written before that: a refusal is the same work for whoever is named.
    let proved = app.directories.proves(&looked, password).await?;
    Ok(Some(match (proved, somebody) {
        (true, _) => app
            .directories
            .take(&app.store, looked)
            .await?
            .ok_or("UnknownUser"),
        (false, true) => Err("WrongPassword"),
        (false, false) => Err("UnknownUser"),
    }))
}
