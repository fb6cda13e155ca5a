//! One writer, many changes: those that come while the disk is being waited for become durable together.
//!
//! A durable commit waits for the disk, and SQLite has one writer. So a change is a savepoint in a transaction that it
//! shares with the changes before and after it; one task commits the transaction, behind all changes that were waiting
//! when it was called. No change is answered before that commit. A change that is given up is rolled back to its
//! savepoint and takes nothing else with it; a commit that fails fails every change in it.
//!
//! So what a change builds on is read through the change: the other connections do not see yet what the changes before it
//! did in the same transaction.

use std::{
    ops::{Deref, DerefMut},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use tokio::sync::{OwnedMappedMutexGuard, OwnedMutexGuard, oneshot};

use super::{
    StoreError, StoreResult,
    sql::{self, Pool, Tx},
    upgrade,
};

type Group = Option<Tx>;
/// Number of the advisory lock that makes one writer of all replicas.
pub(super) const ONE_WRITER: i64 = 0x6372_7970_7476_6f6c;

type Waiting = oneshot::Sender<StoreResult<()>>;

/// The connection that writes.
pub(super) struct Writer {
    pool: Pool,
    /// The transaction that is open, and the right to use it; handed on in the order in which it was asked for.
    group: Arc<tokio::sync::Mutex<Group>>,
    /// Changes that are whole and wait for the commit.
    waiting: Mutex<Vec<Waiting>>,
    /// The last change was given up and has to be taken back.
    given_up: AtomicBool,
    /// One of the waiting changes is about identity records.
    identity: AtomicBool,
    /// The task that commits is on its way.
    called: AtomicBool,
    generation: Arc<AtomicU64>,
    /// The highest migration that this program knows.
    knows: i64,
}

/// A connection in the midst of a change; given up unless [`Writer::commit`] takes it.
pub(super) struct Open {
    connection: OwnedMappedMutexGuard<Group, Tx>,
    writer: Arc<Writer>,
    whole: bool,
}

impl Deref for Open {
    type Target = Tx;

    fn deref(&self) -> &Tx {
        &self.connection
    }
}

impl DerefMut for Open {
    fn deref_mut(&mut self) -> &mut Tx {
        &mut self.connection
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if !self.whole {
            self.writer.given_up.store(true, Ordering::Release);
        }
    }
}

impl Writer {
    /// `pool` has one connection; `generation` grows with every commit of identity records; the program `knows` so many migrations.
    pub(super) fn new(pool: Pool, generation: Arc<AtomicU64>, knows: i64) -> Arc<Self> {
        Arc::new(Self {
            pool,
            group: Arc::default(),
            waiting: Mutex::default(),
            given_up: AtomicBool::new(false),
            identity: AtomicBool::new(false),
            called: AtomicBool::new(false),
            generation,
            knows,
        })
    }

    /// Starts a change.
    ///
    /// # Errors
    /// `Unavailable`, `Query`.
    pub(super) async fn begin(self: &Arc<Self>) -> StoreResult<Open> {
        let mut group = Arc::clone(&self.group).lock_owned().await;
        // Before anything else, so that an open transaction ends also if this request is given up from here on.
        self.call();
        self.take_back(&mut group).await;
        if group.is_none() {
            *group = Some(self.transaction().await?);
        }
        if let Some(transaction) = group.as_mut()
            && let Err(error) = sql::query("SAVEPOINT change").execute(transaction).await
        {
            let error = StoreError::from(error);
            self.lost(&mut group, &error);
            return Err(error);
        }
        let connection = OwnedMutexGuard::try_map(group, |group| group.as_mut())
            .map_err(|_| lost_transaction())?;
        Ok(Open {
            connection,
            writer: Arc::clone(self),
            whole: false,
        })
    }

    /// Makes a change durable, together with others.
    ///
    /// # Errors
    /// `Unavailable`, `Query`: nothing of the change is there.
    pub(super) async fn commit(
        self: &Arc<Self>,
        mut open: Open,
        identity: bool,
    ) -> StoreResult<()> {
        // Said first: if this request is given up while SQLite does it, the change may become durable with the others.
        open.whole = true;
        if let Err(error) = sql::query("RELEASE change").execute(&mut *open).await {
            self.given_up.store(true, Ordering::Release);
            return Err(error.into());
        }
        let (done, committed) = oneshot::channel();
        self.waiting().push(done);
        self.identity.fetch_or(identity, Ordering::AcqRel);
        drop(open);
        committed.await.unwrap_or_else(|_| Err(lost_transaction()))
    }

    /// The connection with no transaction open, for what cannot be part of one; no change runs as long as the guard lives.
    pub(super) async fn alone(self: &Arc<Self>) -> (OwnedMutexGuard<Group>, &Pool) {
        let mut group = Arc::clone(&self.group).lock_owned().await;
        self.finish(&mut group).await;
        (group, &self.pool)
    }

    /// Closes the connection.
    pub(super) async fn close(self: &Arc<Self>) {
        let (_alone, pool) = self.alone().await;
        pool.close().await;
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, Vec<Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends the task that commits to the end of the queue, unless it is there.
    fn call(self: &Arc<Self>) {
        if self.called.swap(true, Ordering::AcqRel) {
            return;
        }
        let writer = Arc::clone(self);
        tokio::spawn(async move {
            let mut group = Arc::clone(&writer.group).lock_owned().await;
            writer.called.store(false, Ordering::Release);
            writer.finish(&mut group).await;
        });
    }

    /// Takes back a change that was given up. SQLite ends a transaction by itself after some failures (a full disk); then
    /// what was in it is lost, and those who wait for it are told.
    async fn take_back(&self, group: &mut Group) {
        if !self.given_up.swap(false, Ordering::AcqRel) {
            return;
        }
        let Some(transaction) = group.as_mut() else {
            return;
        };
        let mut back = sql::query("ROLLBACK TO change")
            .execute(&mut *transaction)
            .await;
        if back.is_ok() {
            back = sql::query("RELEASE change").execute(transaction).await;
        }
        if let Err(error) = back {
            self.lost(group, &StoreError::Unavailable(error));
        }
    }

    async fn finish(&self, group: &mut Group) {
        self.take_back(group).await;
        let Some(transaction) = group.take() else {
            return;
        };
        if self.waiting().is_empty() {
            if let Err(error) = transaction.rollback().await {
                tracing::debug!(%error, "nothing to roll back");
            }
            return;
        }
        let identity = self.identity.swap(false, Ordering::AcqRel);
        match self.make_durable(transaction, identity).await {
            Ok(()) => self.tell(|| Ok(())),
            Err(error) => self.lost(group, &error),
        }
    }

    /// SQLite lets one write at a time by itself. On PostgreSQL an advisory lock does, for all replicas: so what a change sees
    /// holds until its commit there too, without any lock on a record.
    async fn transaction(&self) -> sqlx::Result<Tx> {
        match &self.pool {
            Pool::Sqlite(pool) => Ok(Tx::Sqlite(pool.begin_with("BEGIN IMMEDIATE").await?)),
            Pool::Postgres(pool) => {
                let mut tx = Tx::Postgres(pool.begin().await?);
                sql::query("SELECT pg_advisory_xact_lock($1)")
                    .bind(ONE_WRITER)
                    .execute(&mut tx)
                    .await?;
                Ok(tx)
            }
        }
    }

    /// Commits, and raises the generation: on PostgreSQL the one in the database, by the same commit, so that no replica can see
    /// the change and not that something changed. One that a later release has made too old changes nothing.
    async fn make_durable(&self, mut tx: Tx, identity: bool) -> StoreResult<()> {
        let raised = match &mut tx {
            Tx::Postgres(_) if identity => {
                let raise = "UPDATE generation SET value = value + 1 RETURNING value, needs";
                let (raised, needs): (i64, i64) = sql::query_as(raise).fetch_one(&mut tx).await?;
                upgrade::suffices(self.knows, needs)?;
                Some(raised.cast_unsigned())
            }
            _ => None,
        };
        let sqlite = matches!(tx, Tx::Sqlite(_));
        tx.commit().await?;
        if let Some(raised) = raised {
            self.generation.fetch_max(raised, Ordering::AcqRel);
        } else if sqlite && identity {
            self.generation.fetch_add(1, Ordering::AcqRel);
        }
        Ok(())
    }

    /// The transaction is gone; all that waits for it failed.
    fn lost(&self, group: &mut Group, error: &StoreError) {
        *group = None;
        self.identity.store(false, Ordering::Release);
        self.tell(|| Err(same(error)));
    }

    fn tell(&self, result: impl Fn() -> StoreResult<()>) {
        for waiting in std::mem::take(&mut *self.waiting()) {
            // Whoever has gone is not told.
            let _ = waiting.send(result());
        }
    }
}

/// The same error for everyone.
fn same(error: &StoreError) -> StoreError {
    let text = std::io::Error::other(error.to_string());
    match error {
        StoreError::Unavailable(_) => StoreError::Unavailable(sqlx::Error::Io(text)),
        StoreError::Outdated { needs, knows } => StoreError::Outdated {
            needs: *needs,
            knows: *knows,
        },
        _ => StoreError::Query(sqlx::Error::Io(text)),
    }
}

fn lost_transaction() -> StoreError {
    let text = "the transaction ended before its commit";
    StoreError::Unavailable(sqlx::Error::Io(std::io::Error::other(text)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::{sync::Arc, time::Duration};

    use crate::store::{Store, StoreError};

    async fn store() -> (tempfile::TempDir, Arc<Store>) {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(dir.path()).await.unwrap());
        (dir, store)
    }

    async fn is_there(store: &Store, name: &str) -> bool {
        store.meta(name).await.unwrap().is_some()
    }

    /// Changes that commit, that give up and that are refused, all at once: each gets what it was told, and nothing
    /// is left open.
    #[tokio::test(flavor = "multi_thread")]
    async fn changes_at_once_do_not_touch_each_other() {
        let (_dir, store) = store().await;
        let tasks: Vec<_> = (0..200)
            .map(|number| {
                let store = Arc::clone(&store);
                tokio::spawn(async move {
                    let mut change = store.change_keys().await.unwrap();
                    let name = format!("record-{number}");
                    change.insert_meta(&name, b"x").await.unwrap();
                    match number % 4 {
                        0 => drop(change),
                        1 => {
                            // Refused by SQLite, and given up for it.
                            let again = change.insert_meta(&name, b"x").await;
                            assert!(matches!(again, Err(StoreError::Duplicate)));
                        }
                        2 => {
                            // Abandoned in the middle of everything, as by a client that goes away.
                            let abandoned = store.commit(change);
                            let _ = tokio::time::timeout(Duration::ZERO, abandoned).await;
                        }
                        _ => {
                            store.commit(change).await.unwrap();
                            assert!(is_there(&store, &name).await, "{name} was acknowledged");
                        }
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        for number in 0..200 {
            let found = is_there(&store, &format!("record-{number}")).await;
            match number % 4 {
                0 | 1 => assert!(!found, "record-{number} was given up"),
                3 => assert!(found, "record-{number} was acknowledged"),
                _ => {}
            }
        }
        // Another process can write: no transaction was left open.
        store.rewrite().await.unwrap();
    }

    #[tokio::test]
    async fn a_change_given_up_alone_leaves_no_transaction() {
        let (dir, store) = store().await;
        let mut change = store.change_identity().await.unwrap();
        change.insert_meta("a", b"x").await.unwrap();
        drop(change);
        // A second store on the same file waits for the lock, and gets it.
        let other = Store::open(dir.path()).await.unwrap();
        let mut change = other.change_keys().await.unwrap();
        change.insert_meta("b", b"x").await.unwrap();
        other.commit(change).await.unwrap();
        assert!(is_there(&store, "b").await && !is_there(&store, "a").await);
        assert_eq!(store.generation(), 0);
    }

    #[tokio::test]
    async fn a_generation_is_as_new_as_what_was_acknowledged() {
        let (_dir, store) = store().await;
        let before = store.generation();
        let change = store.change_identity().await.unwrap();
        assert_eq!(store.generation(), before);
        store.commit(change).await.unwrap();
        assert!(store.generation() > before);
    }

    /// A full disk ends the transaction: whoever is in it is told, and the next one works.
    #[tokio::test]
    async fn a_lost_transaction_is_told_and_passes() {
        let (_dir, store) = store().await;
        store.limit_pages(2).await.unwrap();
        let mut change = store.change_keys().await.unwrap();
        let refused = change.insert_meta("large", &vec![7; 1 << 20]).await;
        assert!(matches!(refused, Err(StoreError::Unavailable(_))));
        drop(change);
        let mut change = store.change_keys().await.unwrap();
        change.insert_meta("small", b"x").await.unwrap();
        store.commit(change).await.unwrap();
        assert!(is_there(&store, "small").await && !is_there(&store, "large").await);
    }
}
