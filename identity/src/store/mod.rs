//! Records in SQL. One file a family; every function is one question or one change, no decisions.
//!
//! Reads go through a small pool, writes through one connection (see `writer`), so that SQLite never has two writers of
//! ours. A change of an identity record raises the generation, which empties whatever was worked out from
//! the records before (see `token::cache`).

pub mod access_rules;
pub mod acls;
pub mod app_credentials;
pub mod assignments;
pub mod catalog;
pub mod containers;
pub mod directory;
pub mod documents;
pub mod domain_config;
pub mod domains;
pub mod groups;
pub mod id_mapping;
pub mod key_quotas;
pub mod key_stores;
pub mod limits;
pub mod meta;
pub mod orders;
pub mod page;
pub mod passwords;
pub mod projects;
pub mod roles;
pub mod secret_keys;
pub mod secret_list;
pub mod secret_meta;
pub mod secrets;
pub mod snapshot;
pub mod token_state;
pub mod trusts;
pub mod users;
mod writer;

use std::{
    fs, io,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use sqlx::{
    Connection, SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use thiserror::Error;

use writer::{Open, Writer};

/// Name of the database file in the data directory.
pub const DATABASE_FILE: &str = "identity.sqlite";

/// Why the records could not be read or changed.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The data directory cannot be used.
    #[error(
        "cannot use the data directory {path}: {source}; it must exist or be creatable, and be ours alone"
    )]
    DataDir {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is no database where one should be.
    #[error("there is no database in {0}; give the data directory of the service")]
    NoDatabase(PathBuf),
    /// The database cannot be opened.
    #[error("cannot open the database {path}: {source}")]
    Open {
        /// The database file.
        path: PathBuf,
        /// What SQLite said.
        source: sqlx::Error,
    },
    /// The schema cannot be brought up to date.
    #[error("cannot migrate the database: {0}; was it written by a newer release?")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// A name or id that must be unique exists already.
    #[error("an object with this name or id exists already")]
    Duplicate,
    /// A record refers to something that is not there.
    #[error("a record refers to an object that does not exist")]
    Dangling,
    /// The disk is full, or the database is busy or cannot be written just now. It may pass by itself.
    #[error("the database cannot be used just now: {0}")]
    Unavailable(sqlx::Error),
    /// The database is damaged; what SQLite found.
    #[error("the database is damaged ({0}); restore it from a backup")]
    Damaged(String),
    /// Any other failure of a statement.
    #[error("the database refused a statement: {0}")]
    Query(sqlx::Error),
}

impl StoreError {
    /// Machine-readable reason.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::DataDir { .. } => "DataDirUnusable",
            Self::NoDatabase(_) => "NoDatabase",
            Self::Open { .. } => "DatabaseNotOpened",
            Self::Migrate(_) => "DatabaseNotMigrated",
            Self::Duplicate => "Duplicate",
            Self::Dangling => "DanglingReference",
            Self::Unavailable(_) => "DatabaseUnavailable",
            Self::Damaged(_) => "DatabaseDamaged",
            Self::Query(_) => "DatabaseFailed",
        }
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        match error.as_database_error() {
            Some(database) if database.is_unique_violation() => Self::Duplicate,
            Some(database) if database.is_foreign_key_violation() => Self::Dangling,
            Some(database) if database.code().is_some_and(|code| may_pass(&code)) => {
                Self::Unavailable(error)
            }
            None if matches!(error, sqlx::Error::PoolTimedOut | sqlx::Error::Io(_)) => {
                Self::Unavailable(error)
            }
            _ => Self::Query(error),
        }
    }
}

/// Result codes of SQLite that say something about the machine and not about the statement: busy (5), locked
/// (6), out of memory (7), read-only (8), failed I/O (10), full (13), cannot open (14). The higher bits say more.
fn may_pass(code: &str) -> bool {
    code.parse::<u32>()
        .is_ok_and(|code| matches!(code & 0xff, 5 | 6 | 7 | 8 | 10 | 13 | 14))
}

/// The result of everything in this layer.
pub type StoreResult<T> = Result<T, StoreError>;

/// The records.
pub struct Store {
    read: SqlitePool,
    writer: Arc<Writer>,
    generation: Arc<AtomicU64>,
    /// Something sensitive was deleted and may still lie in the write-ahead log.
    log_dirty: AtomicBool,
}

/// A running change. Nothing is visible before [`Store::commit`].
pub struct Change {
    tx: Open,
    identity: bool,
}

impl Store {
    /// As [`Self::open`], for commands that work on what a service has: a mistyped path must not become an empty database.
    ///
    /// # Errors
    /// `NoDatabase`, and those of [`Self::open`].
    pub async fn open_existing(data_dir: &Path) -> StoreResult<Self> {
        if !data_dir.join(DATABASE_FILE).exists() {
            return Err(StoreError::NoDatabase(data_dir.into()));
        }
        Self::open(data_dir).await
    }

    /// Opens (or makes) the database in `data_dir` and brings its schema up to date.
    ///
    /// # Errors
    /// `DataDir`, `Open` or `Migrate`.
    pub async fn open(data_dir: &Path) -> StoreResult<Self> {
        let dir_error = |source| StoreError::DataDir {
            path: data_dir.into(),
            source,
        };
        fs::create_dir_all(data_dir).map_err(dir_error)?;
        // The group keeps its access: with an fsGroup that is how a pod reaches its volume.
        let mode = fs::metadata(data_dir)
            .map_err(dir_error)?
            .permissions()
            .mode();
        if mode & 0o007 != 0 {
            fs::set_permissions(data_dir, fs::Permissions::from_mode(mode & 0o7770))
                .map_err(dir_error)?;
        }
        let path = data_dir.join(DATABASE_FILE);
        // Made here, so that it is closed from the first moment; SQLite's side files follow its mode.
        fs::OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&path)
            .map_err(dir_error)?;
        let open_error = |source| StoreError::Open {
            path: path.clone(),
            source,
        };
        let options = SqliteConnectOptions::new()
            .filename(&path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            // A committed write of a key must survive a power cut.
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(Duration::from_secs(10))
            .pragma("secure_delete", "ON")
            .pragma("cache_size", "-512")
            .statement_cache_capacity(64);
        let write = SqlitePoolOptions::new()
            .max_connections(1)
            // After some failures (a full disk) SQLite has rolled back by itself, and the driver, whose own rollback
            // then fails, takes the connection for one inside a transaction for ever. It is replaced.
            .before_acquire(|connection, _| {
                Box::pin(async move { Ok(!connection.is_in_transaction()) })
            })
            .connect_with(options.clone())
            .await
            .map_err(open_error)?;
        sqlx::migrate!("./migrations").run(&write).await?;
        let read = SqlitePoolOptions::new()
            .max_connections(4)
            // A file does not go away; asking each time would double the work of a short question.
            .test_before_acquire(false)
            .connect_with(options)
            .await
            .map_err(open_error)?;
        let generation = Arc::default();
        Ok(Self {
            read,
            writer: Writer::new(write, Arc::clone(&generation)),
            generation,
            log_dirty: AtomicBool::new(false),
        })
    }

    /// Grows with every change of an identity record made by this process.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Starts a change of identity records.
    ///
    /// # Errors
    /// `Query`.
    pub async fn change_identity(&self) -> StoreResult<Change> {
        self.begin(true).await
    }

    /// Starts a change of key-manager records.
    ///
    /// # Errors
    /// `Query`.
    pub async fn change_keys(&self) -> StoreResult<Change> {
        self.begin(false).await
    }

    async fn begin(&self, identity: bool) -> StoreResult<Change> {
        let tx = self.writer.begin().await?;
        Ok(Change { tx, identity })
    }

    /// Makes a change visible and durable.
    ///
    /// # Errors
    /// `Query`.
    pub async fn commit(&self, change: Change) -> StoreResult<()> {
        self.writer.commit(change.tx, change.identity).await
    }

    /// Says that something sensitive was deleted; [`Store::truncate_log`] then has work to do.
    pub fn mark_log_dirty(&self) {
        self.log_dirty.store(true, Ordering::Release);
    }

    /// Moves the write-ahead log into the database and cuts it off, if something sensitive was deleted
    /// since. A busy reader makes it try again the next time.
    ///
    /// # Errors
    /// `Query`.
    pub async fn truncate_log(&self) -> StoreResult<()> {
        if !self.log_dirty.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        let (_alone, pool) = self.writer.alone().await;
        let (busy, _, _): (i64, i64, i64) = sqlx::query_as("PRAGMA wal_checkpoint(TRUNCATE)")
            .fetch_one(pool)
            .await?;
        if busy != 0 {
            self.mark_log_dirty();
        }
        Ok(())
    }

    /// Whether the database answers.
    ///
    /// # Errors
    /// `Query`.
    pub async fn ping(&self) -> StoreResult<()> {
        sqlx::query("SELECT 1").execute(&self.read).await?;
        Ok(())
    }

    /// Lets the database grow by no more than so many pages, as far as the present connection goes.
    #[cfg(test)]
    pub(crate) async fn limit_pages(&self, more: i64) -> StoreResult<()> {
        let (_alone, pool) = self.writer.alone().await;
        let now: i64 = sqlx::query_scalar("PRAGMA page_count")
            .fetch_one(pool)
            .await?;
        let statement = sqlx::AssertSqlSafe(format!("PRAGMA max_page_count = {}", now + more));
        sqlx::query(statement).execute(pool).await?;
        Ok(())
    }

    /// Claims that a migration of a later release was made.
    #[cfg(test)]
    pub(crate) async fn later_release(&self, version: i64) -> StoreResult<()> {
        let (_alone, pool) = self.writer.alone().await;
        sqlx::query(
            "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
             VALUES ($1, 'later', TRUE, x'00', 0)",
        )
        .bind(version)
        .execute(pool)
        .await?;
        Ok(())
    }

    /// Closes all connections; the last one folds the write-ahead log into the database.
    pub async fn close(&self) {
        self.read.close().await;
        self.writer.close().await;
    }
}

/// A stored JSON object; a damaged one reads as empty.
pub(crate) fn json_object(text: &str) -> serde_json::Map<String, serde_json::Value> {
    serde_json::from_str(text).unwrap_or_default()
}

/// Adds stored attributes that the API does not define to an object; defined ones win.
pub(crate) fn add_extra(object: &mut serde_json::Value, extra: &str) {
    if let Some(map) = object.as_object_mut() {
        for (name, value) in json_object(extra) {
            map.entry(name).or_insert(value);
        }
    }
}

#[cfg(test)]
mod migration_tests;
#[cfg(test)]
mod tests;
