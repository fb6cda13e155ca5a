//! What a login will need if the password is right, read while its hash is computed. It decides nothing: it is used after the
//! proof, and only if no record changed since; else all of it is asked again. Nobody is told of it when the password is wrong,
//! and for a user who does not exist the same is read.

use std::time::Instant;

use serde_json::Value;

use super::{
    proof::Failure,
    scope::{Wanted, asked_scope},
};
use crate::{
    app::App,
    generation::LIFETIME,
    identity::catalog::catalog,
    store::{StoreError, users::User},
    token::{Records, TokenScope, scope_and_roles},
};

/// The state of the records at the beginning of a login, before any of them was read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Since {
    generation: u64,
    at: Instant,
}

impl Since {
    /// # Errors
    /// From the store, when other replicas' changes cannot be asked for.
    pub(super) async fn now(app: &App) -> Result<Self, StoreError> {
        let at = Instant::now();
        app.store.refresh().await?;
        let generation = app.store.generation();
        Ok(Self { generation, at })
    }

    /// The user as it is now, who proved itself by what was read since then.
    ///
    /// # Errors
    /// 401 if it is gone, or if what ends its tokens (a new password, disabled) happened meanwhile: that ends a login that began
    /// before it too.
    pub(super) async fn present(self, app: &App, user: User) -> Result<User, Failure> {
        if self.holds(app).await? {
            return Ok(user);
        }
        let now = app.store.user(&user.id).await?;
        let now = now.ok_or_else(|| Failure::denied("UnknownUser"))?;
        if now.tokens_valid_after == user.tokens_valid_after {
            Ok(now)
        } else {
            Err(Failure::denied("ChangedMeanwhile"))
        }
    }

    /// Whether what was read since then is as good as what would be read now. Within the time for which other things are
    /// kept too: a hash may wait long for its turn.
    async fn holds(self, app: &App) -> Result<bool, StoreError> {
        app.store.refresh().await?;
        Ok(self.generation == app.store.generation() && self.at.elapsed() < LIFETIME)
    }
}

/// See the module.
pub(in crate::identity) struct Ahead {
    since: Since,
    scope: TokenScope,
    records: Records,
    catalog: Option<Value>,
}

impl Ahead {
    /// Reads for a login of `user` with this wish for a scope. `None` where something is not there, which the login finds out
    /// by itself, and for wishes whose answer depends on more than these records: none at all, and a trust.
    pub(super) async fn read(
        app: &App,
        since: Since,
        user: Option<&User>,
        scope: Option<&Value>,
    ) -> Option<Self> {
        let sent = scope.filter(|scope| scope.get("OS-TRUST:trust").is_none() && scope.is_object());
        let Wanted { scope, .. } = asked_scope(app, sent?).await.ok()?;
        let (user_id, domain_id) = user.map_or(("", ""), |user| (&user.id, &user.domain_id));
        let user_domain = app.store.domain(domain_id).await.ok()?;
        let (resolved, roles) = scope_and_roles(&app.store, user_id, &scope).await.ok()?;
        let catalog = match &scope {
            TokenScope::Unscoped => None,
            scope => Some(catalog(app, scope.project_id()).await.ok()?),
        };
        Some(Self {
            since,
            records: Records {
                user: user?.clone(),
                user_domain: user_domain?,
                scope: resolved,
                roles,
            },
            scope,
            catalog,
        })
    }

    /// What was read of the user, the scope and the roles, and the catalog, if it is what a login with this scope would read now.
    ///
    /// # Errors
    /// From the store, when other replicas' changes cannot be asked for.
    pub(super) async fn good_for(
        self,
        app: &App,
        user_id: &str,
        scope: &TokenScope,
    ) -> Result<Option<(Records, Option<Value>)>, StoreError> {
        let same = self.records.user.id == user_id && self.scope == *scope;
        Ok((same && self.since.holds(app).await?).then_some((self.records, self.catalog)))
    }

    /// The scope that was asked for, if it was looked up and that still holds.
    ///
    /// # Errors
    /// As [`Self::good_for`].
    pub(super) async fn scope(&self, app: &App) -> Result<Option<TokenScope>, StoreError> {
        Ok(self.since.holds(app).await?.then(|| self.scope.clone()))
    }
}

/// Waits for the proof, and reads meanwhile. What was read is worth waiting for only if the proof succeeds.
pub(super) async fn beside<T, E>(
    proof: impl Future<Output = Result<Result<T, &'static str>, E>>,
    read: impl Future<Output = Option<Ahead>>,
) -> Result<Result<(T, Option<Ahead>), &'static str>, E> {
    tokio::pin!(proof, read);
    let mut early = None;
    let proved = loop {
        tokio::select! {
            biased;
            proved = &mut proof => break proved?,
            found = &mut read, if early.is_none() => early = Some(found),
        }
    };
    Ok(match (proved, early) {
        (Err(why), _) => Err(why),
        (Ok(proved), Some(found)) => Ok((proved, found)),
        (Ok(proved), None) => Ok((proved, read.await)),
    })
}

#[cfg(test)]
mod tests {
    use std::{future, task::Poll};

    use super::*;

    /// Whoever did not prove anything does not wait for what was read.
    #[tokio::test]
    async fn only_a_proof_waits_for_what_is_read() {
        let never = future::pending::<Option<Ahead>>;
        for refused in [Ok(Err("WrongPassword")), Err("no database")] {
            let refused: Result<Result<(), &str>, &str> = refused;
            let came = beside(future::ready(refused), never()).await;
            assert!(matches!(came, Ok(Err(_)) | Err(_)));
        }
        let proved = future::ready(Ok::<_, ()>(Ok(())));
        let waits = beside(proved, never());
        tokio::pin!(waits);
        assert!(matches!(futures::poll!(waits), Poll::Pending));
        // What was read before the proof is not asked for again.
        let mut turns = 0;
        let proof = future::poll_fn(move |context| {
            turns += 1;
            context.waker().wake_by_ref();
            if turns < 3 {
                Poll::Pending
            } else {
                Poll::Ready(Ok::<_, ()>(Ok(())))
            }
        });
        let came = beside(proof, future::ready(None)).await;
        assert!(matches!(came, Ok(Ok(((), None)))));
    }
}
