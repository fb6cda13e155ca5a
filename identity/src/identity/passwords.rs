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
    Ok(judge_anybody(app, user, Proof::Password, matches).await?)
}

/// The same for a one-time password that was compared already. Its failures are counted apart: who knows the password could
/// else set the count back between two guesses.
///
/// # Errors
/// As [`prove`].
pub async fn prove_code(
    app: &Arc<App>,
    user: Option<User>,
    matches: bool,
) -> Result<Result<User, &'static str>, IdentityError> {
    Ok(judge_anybody(app, user, Proof::Code, matches).await?)
}

/// Judges a user, or nobody after the same questions to the records.
async fn judge_anybody(
    app: &Arc<App>,
    user: Option<User>,
    proof: Proof,
    matches: bool,
) -> StoreResult<Result<User, &'static str>> {
    let (id, options) = user
        .as_ref()
        .map_or(("", "{}"), |user| (user.id.as_str(), user.options.as_str()));
    let standing = Standing::of(app, id, options, proof).await?;
    let Some(user) = user else {
        return Ok(Err("UnknownUser"));
    };
    Ok(judge(app, user, proof, matches, standing).await)
}

/// By what a user proves itself; failures of each are counted apart.
#[derive(Clone, Copy)]
enum Proof {
    Password,
    Code,
}

impl Proof {
    /// In the records.
    fn word(self) -> &'static str {
        match self {
            Self::Password => "password",
            Self::Code => "totp",
        }
    }

    /// Name of a user's counter in memory.
    fn counter(self, user_id: &str) -> String {
        match self {
            Self::Password => user_id.to_owned(),
            Self::Code => format!("totp {user_id}"),
        }
    }

    fn wrong(self) -> &'static str {
        match self {
            Self::Password => "WrongPassword",
            Self::Code => "WrongPasscode",
        }
    }
}

/// Where a user stands before a login is judged.
struct Standing {
    locked: bool,
    /// Failures that shared records count.
    stored: u32,
}

impl Standing {
    /// By the user's record, and by the failures that are counted; of nobody too, by the same questions.
    async fn of(app: &App, id: &str, options: &str, proof: Proof) -> StoreResult<Self> {
        let rules = &app.config.passwords;
        // The length of a lock-out, if this user can be locked out at all.
        let Some(length) = rules.lockout(options, u32::MAX) else {
            return Ok(Self {
                locked: false,
                stored: 0,
            });
        };
        let now = now_us();
        let since = now.saturating_sub(length);
        let failures = app.failures.count(&proof.counter(id), since);
        let (until, stored) = if app.store.is_shared() {
            app.store.shared_standing(id, proof.word(), since).await?
        } else {
            (app.store.locked_until(id).await?, 0)
        };
        let failures = failures.saturating_add(stored);
        Ok(Self {
            locked: rules.lockout(options, failures).is_some() || until.is_some_and(|at| at > now),
            stored,
        })
    }
}

/// The user if it proved itself; counts.
async fn judge(
    app: &Arc<App>,
    user: User,
    proof: Proof,
    matches: bool,
    standing: Standing,
) -> Result<User, &'static str> {
    if standing.locked {
        return Err("LockedOut");
    }
    if !matches {
        if let Some(length) = app.config.passwords.lockout(&user.options, u32::MAX) {
            count_failure(app, user, proof, length);
        }
        return Err(proof.wrong());
    }
    app.failures.clear(&proof.counter(&user.id));
    if standing.stored > 0
        && let Err(error) = begin_anew(app, &user.id, proof).await
    {
        tracing::warn!(%error, user = user.id, "failed logins of before still count");
    }
    Ok(user)
}

async fn begin_anew(app: &App, id: &str, proof: Proof) -> StoreResult<()> {
    let mut change = app.store.change_keys().await?;
    change.forget_failures(id, Some(proof.word())).await?;
    app.store.commit(change).await
}

/// Counts a failure. It counts here at once; the record, for restarts and other replicas, is written beside the answer, so that its
/// time says nothing. That is the lock-out, and where replicas share the records also the count: it leaves this memory when it is there.
fn count_failure(app: &Arc<App>, user: User, proof: Proof, length: i64) {
    let now = now_us();
    let since = now.saturating_sub(length);
    let counter = proof.counter(&user.id);
    let failures = app.failures.add(&counter, now, since);
    let shared = app.store.is_shared();
    if !shared && !locks(app, &user, failures) {
        return;
    }
    let app = Arc::clone(app);
    tokio::spawn(async move {
        let stored = store_failure(&app, &user, proof, (now, since), failures).await;
        if shared && stored.is_ok() {
            app.failures.settle(&counter);
        }
        let failures = stored.unwrap_or_else(|error| {
            tracing::warn!(%error, user = user.id, "failed login not stored; it counts in this process");
            failures
        });
        if locks(&app, &user, failures) {
            crate::audit::locked_out(&user.id, &user.name, failures);
        }
    });
}

fn locks(app: &App, user: &User, failures: u32) -> bool {
    let rules = &app.config.passwords;
    rules.lockout(&user.options, failures).is_some()
}

/// Stores a failure where replicas share the count, and the lock-out if that was enough; the count.
async fn store_failure(
    app: &App,
    user: &User,
    proof: Proof,
    (now, since): (i64, i64),
    failures: u32,
) -> StoreResult<u32> {
    let mut change = app.store.change_keys().await?;
    let failures = if app.store.is_shared() {
        change
            .count_failure(&user.id, proof.word(), now, since)
            .await?
    } else {
        failures
    };
    if locks(app, user, failures) {
        // As long again as failures count.
        let until = now.saturating_add(now.saturating_sub(since));
        change.lock_out(&user.id, until).await?;
    }
    app.store.commit(change).await?;
    Ok(failures)
}

/// Ends a lock-out: an administrator enabled the user or set its password.
///
/// # Errors
/// From the store.
pub async fn unlock(app: &App, change: &mut Change, id: &str) -> Result<(), IdentityError> {
    for proof in [Proof::Password, Proof::Code] {
        app.failures.clear(&proof.counter(id));
    }
    change.forget_failures(id, None).await?;
    Ok(change.end_lock_out(id).await?)
}
