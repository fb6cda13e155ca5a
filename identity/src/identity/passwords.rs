//! Setting a user's password: by an administrator or by itself, within the site's rules.

use std::sync::Arc;

use secrecy::{ExposeSecret, SecretString};

use super::error::IdentityError;
use crate::{
    accounts::PasswordRefusal,
    app::App,
    store::{Change, StoreResult, users::User},
    time::now_us,
};

/// Who sets a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// The user itself, who proved the old one.
    Itself,
    /// Somebody with the right to change the user.
    Other,
}

/// Checks a new password against the rules and puts its hash and end into `user`, which is not stored yet;
/// [`remember`] belongs into the change that stores it.
///
/// # Errors
/// 400 with what the rules want, 503 when too many passwords are being checked.
pub async fn set(
    app: &App,
    user: &mut User,
    password: &SecretString,
    by: By,
) -> Result<(), IdentityError> {
    let rules = &app.config.passwords;
    rules.check_strength(password.expose_secret())?;
    let now = now_us();
    if by == By::Itself {
        let known = app
            .store
            .password_history(&user.id, rules.remembered())
            .await?;
        rules.check_own_change(&user.options, known.first().map(|(at, _)| *at), now)?;
        if rules.history > 0 {
            let current = user.password_hash.iter();
            for hash in current.chain(known.iter().map(|(_, hash)| hash)) {
                if app.hasher.verify(password, Some(hash)).await? {
                    return Err(PasswordRefusal::Used(rules.history).into());
                }
            }
        }
    }
    user.password_hash = Some(app.hasher.hash(password).await?);
    user.password_expires_at = rules.expires_at(&user.options, by == By::Other, now);
    Ok(())
}

/// Remembers the password that `user` has now, as far as the rules need it.
///
/// # Errors
/// From the store.
pub async fn remember(app: &App, change: &mut Change, user: &User) -> Result<(), IdentityError> {
    let rules = &app.config.passwords;
    if rules.history == 0 && rules.min_age_days.is_none() {
        return Ok(());
    }
    if let Some(hash) = &user.password_hash {
        change
            .remember_password(&user.id, now_us(), hash, rules.remembered())
            .await?;
    }
    Ok(())
}

/// Checks the password of a user, or of nobody, and counts the failures. The work is the same whatever the
/// cause; the caller learns it for the audit trail, the client only that it failed.
///
/// # Errors
/// The inner error is the cause, as a word; the outer one says that it could not be checked.
pub async fn prove(
    app: &Arc<App>,
    user: Option<User>,
    password: &SecretString,
) -> Result<Result<User, &'static str>, IdentityError> {
    let hash = user.as_ref().and_then(|user| user.password_hash.as_deref());
    let matches = app.hasher.verify(password, hash).await?;
    let (id, options) = user
        .as_ref()
        .map_or(("", "{}"), |user| (user.id.as_str(), user.options.as_str()));
    let locked = is_locked(app, id, options, id).await?;
    let Some(user) = user else {
        return Ok(Err("UnknownUser"));
    };
    let counter = user.id.clone();
    Ok(judge(app, user, &counter, matches, locked, "WrongPassword"))
}

/// The same for a one-time password that was compared already. Its failures are counted apart: who knows the password could
/// else set the count back between two guesses.
///
/// # Errors
/// As [`prove`].
pub async fn prove_code(
    app: &Arc<App>,
    user: User,
    matches: bool,
) -> Result<Result<User, &'static str>, IdentityError> {
    let counter = code_counter(&user.id);
    let locked = is_locked(app, &user.id, &user.options, &counter).await?;
    Ok(judge(app, user, &counter, matches, locked, "WrongPasscode"))
}

fn code_counter(user_id: &str) -> String {
    format!("totp {user_id}")
}

/// Whether a user is locked out, by its record or by the failures of this counter.
async fn is_locked(app: &App, id: &str, options: &str, counter: &str) -> StoreResult<bool> {
    let rules = &app.config.passwords;
    // The length of a lock-out, if this user can be locked out at all.
    let Some(length) = rules.lockout(options, u32::MAX) else {
        return Ok(false);
    };
    let now = now_us();
    let failures = app.failures.count(counter, now.saturating_sub(length));
    let until = app.store.locked_until(id).await?;
    Ok(rules.lockout(options, failures).is_some() || until.is_some_and(|at| at > now))
}

/// The user if it proved itself; counts.
fn judge(
    app: &Arc<App>,
    user: User,
    counter: &str,
    matches: bool,
    locked: bool,
    wrong: &'static str,
) -> Result<User, &'static str> {
    if locked {
        return Err("LockedOut");
    }
    if matches {
        app.failures.clear(counter);
        return Ok(user);
    }
    if let Some(length) = app.config.passwords.lockout(&user.options, u32::MAX) {
        count_failure(app, &user, counter, length);
    }
    Err(wrong)
}

/// Counts a failure. A lock-out counts here at once; the record, for restarts and other replicas, is written
/// beside the answer, so that its time says nothing.
fn count_failure(app: &Arc<App>, user: &User, counter: &str, length: i64) {
    let now = now_us();
    let failures = app.failures.add(counter, now, now.saturating_sub(length));
    if app
        .config
        .passwords
        .lockout(&user.options, failures)
        .is_none()
    {
        return;
    }
    crate::audit::locked_out(&user.id, &user.name, failures);
    let (app, id) = (Arc::clone(app), user.id.clone());
    tokio::spawn(async move {
        if let Err(error) = lock_out(&app, &id, now.saturating_add(length)).await {
            tracing::warn!(%error, user = id, "lock-out not stored; it holds in this process");
        }
    });
}

async fn lock_out(app: &App, id: &str, until: i64) -> StoreResult<()> {
    let mut change = app.store.change_keys().await?;
    change.lock_out(id, until).await?;
    app.store.commit(change).await
}

/// Ends a lock-out: an administrator enabled the user or set its password.
///
/// # Errors
/// From the store.
pub async fn unlock(app: &App, change: &mut Change, id: &str) -> Result<(), IdentityError> {
    app.failures.clear(id);
    app.failures.clear(&code_counter(id));
    Ok(change.end_lock_out(id).await?)
}
