//! Records in SQL. One file a family; every function is one question or one change, no decisions.
//!
//! The database is SQLite, or PostgreSQL where there is more than one replica; statements are the same (see `sql`). Reads go
//! through a small pool, writes through one connection (see `writer`), so that there are never two writers of ours. What a
//! change writes whole, and what it depends on, is read in that change (see `current`). A change of an identity record raises the generation, which empties whatever was worked out from the records before (see
//! `token::cache`).

pub mod access_rules;
pub mod acls;
pub mod app_credentials;
pub mod assignments;
pub mod catalog;
pub mod containers;
mod current;
pub mod description;
mod dialect;
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
pub mod place;
pub mod projects;
pub mod replicas;
pub mod roles;
mod sealed_rows;
pub mod secret_keys;
pub mod secret_list;
pub mod secret_meta;
pub mod secrets;
pub mod snapshot;
mod sql;
mod sqlite_whole;
pub mod token_state;
pub mod trusts;
pub(crate) mod upgrade;
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
    time::{Duration, Instant},
};

use sqlx::{
    ConnectOptions, Connection,
    postgres::{PgDatabaseError, PgPoolOptions},
    sqlite::{
        SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
    },
};
use thiserror::Error;

pub use current::Current;
pub use place::{Place, PlaceError, PostgresUrl};
use sql::Pool;
use upgrade::Schema;
use writer::{Open, Writer};

/// Name of the database file in the data directory.
pub const DATABASE_FILE: &str = "identity.sqlite";

/// How long one process waits for another one that holds SQLite's database.
const BUSY: Duration = Duration::from_secs(10);

/// What a client is told of [`StoreError::Unfit`].
pub const UNFIT: &str = "A text of this request has a NUL character, or is too long for something that must be unique; the database cannot hold it.";

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
    #[error("there are no records in {0}; give the place that the service has")]
    NoDatabase(Place),
    /// The database cannot be opened.
    #[error("cannot open the database {path}: {source}")]
    Open {
        /// The database file.
        path: PathBuf,
        /// What SQLite said.
        source: sqlx::Error,
    },
    /// The server cannot be reached, or does not let us in.
    #[error("cannot use {place}: {source}{}", proof_hint(.source))]
    Connect {
        /// Which database.
        place: Place,
        /// What the server or the connection said.
        source: sqlx::Error,
    },
    /// The server's database cannot hold the records.
    #[error(
        "{0} has the encoding {1}; make a database with `CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0`"
    )]
    Encoding(Place, String),
    /// The schema cannot be brought up to date.
    #[error("cannot migrate the database: {0}; was it written by a newer release?")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// A later release changed the records so that this program cannot work on them.
    #[error(
        "the records need a program that knows the migration {needs}, and this one knows those up to {knows}: a later release works on \
         them; start that one"
    )]
    Outdated {
        /// The lowest migration that has to be known.
        needs: i64,
        /// The highest one that is.
        knows: i64,
    },
    /// There are replicas that could not go on.
    #[error(
        "the replicas {} are of an earlier release, which cannot work on the records as this release changes them: end them first, then \
         start this one; one that was killed is forgotten after three minutes",
        .0.join(", ")
    )]
    OlderReplicas(Vec<String>),
    /// A name or id that must be unique exists already.
    #[error("an object with this name or id exists already")]
    Duplicate,
    /// A record refers to something that is not there.
    #[error("a record refers to an object that does not exist")]
    Dangling,
    /// A text that PostgreSQL cannot hold: one with a NUL, or one too long to be unique.
    #[error("the database cannot hold a text: {0}")]
    Unfit(sqlx::Error),
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
    /// Whether a later request may find it otherwise, here or at another replica: 503.
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Outdated { .. })
    }

    /// Machine-readable reason.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::DataDir { .. } => "DataDirUnusable",
            Self::NoDatabase(_) => "NoDatabase",
            Self::Open { .. } => "DatabaseNotOpened",
            Self::Connect { .. } => "DatabaseNotConnected",
            Self::Encoding(..) => "DatabaseEncoding",
            Self::Migrate(_) => "DatabaseNotMigrated",
            Self::Outdated { .. } => "ReleaseOutdated",
            Self::OlderReplicas(_) => "OlderReplicas",
            Self::Duplicate => "Duplicate",
            Self::Dangling => "DanglingReference",
            Self::Unfit(_) => "TextUnfit",
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
            Some(database) if passes(database) => Self::Unavailable(error),
            Some(database) if is_unfit(database) => Self::Unfit(error),
            None if matches!(
                error,
                sqlx::Error::PoolTimedOut | sqlx::Error::Io(_) | sqlx::Error::Tls(_)
            ) =>
            {
                Self::Unavailable(error)
            }
            _ => Self::Query(error),
        }
    }
}

/// What to do if it was TLS that failed.
fn proof_hint(source: &sqlx::Error) -> &'static str {
    let tls = match source {
        sqlx::Error::Tls(_) => true,
        sqlx::Error::Io(error) => error.kind() == io::ErrorKind::InvalidData,
        _ => false,
    };
    if tls {
        "; the server must show a valid certificate of this host name, from an authority of this machine or of ?sslrootcert=FILE in the \
         URL: see docs/postgresql.md"
    } else {
        ""
    }
}

/// Whether a failure says something about the machine or the moment and not about the statement. SQLite: busy (5), locked (6), out of memory
/// (7), read-only (8), failed I/O (10), full (13), cannot open (14); the higher bits say more. PostgreSQL, by class: connection
/// (08), a transaction ended from outside or that is read-only, as on a standby (25), not let in any more, as after a change of the
/// password there (28), deadlock (40), resources (53), a lock that was not had in time (55), shutdown and cancellation (57), failed
/// I/O (58); and a statement that was prepared before a later release added a column (see `sql::is_stale`).
fn passes(error: &dyn sqlx::error::DatabaseError) -> bool {
    match error.try_downcast_ref::<PgDatabaseError>() {
        Some(error) => {
            matches!(
                error.code().get(..2),
                Some("08" | "25" | "28" | "40" | "53" | "55" | "57" | "58")
            ) || error.code() == sql::STALE
        }
        None => error
            .code()
            .and_then(|code| code.parse::<u32>().ok())
            .is_some_and(|code| matches!(code & 0xff, 5 | 6 | 7 | 8 | 10 | 13 | 14)),
    }
}

/// Whether PostgreSQL refused a value: data that is none of its type (class 22), an entry that is too long for an index (54000).
fn is_unfit(error: &dyn sqlx::error::DatabaseError) -> bool {
    error
        .try_downcast_ref::<PgDatabaseError>()
        .is_some_and(|error| error.code().starts_with("22") || error.code() == "54000")
}

/// The result of everything in this layer.
pub type StoreResult<T> = Result<T, StoreError>;

/// The records.
pub struct Store {
    read: Pool,
    writer: Arc<Writer>,
    generation: Arc<AtomicU64>,
    /// Something sensitive was deleted and may still lie in the write-ahead log.
    log_dirty: AtomicBool,
    /// When the generation in a shared database was last asked for.
    asked: Asked,
    /// Where tests stop changes.
    #[cfg(test)]
    pub(crate) write_pause: crate::testing::WritePause,
    /// Where tests stop what is whole and not yet visible.
    #[cfg(test)]
    pub(crate) commit_pause: crate::testing::WritePause,
    /// The highest migration that this program knows, where others may have made the schema.
    knows: i64,
}

/// Questions for the generation; each has a number.
#[derive(Default)]
struct Asked {
    /// The last one that began.
    begun: AtomicU64,
    /// The last one that was answered.
    answered: AtomicU64,
    one_at_a_time: tokio::sync::Mutex<()>,
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
    pub async fn open_existing(place: &Place) -> StoreResult<Self> {
        if let Place::Directory(data_dir) = place
            && !data_dir.join(DATABASE_FILE).exists()
        {
            return Err(StoreError::NoDatabase(place.clone()));
        }
        if let Place::Postgres(url) = place {
            let failed = |source| StoreError::Connect {
                place: place.clone(),
                source,
            };
            let mut connection = url
                .options()
                .map_err(failed)?
                .connect()
                .await
                .map_err(failed)?;
            let there: bool = sqlx::query_scalar("SELECT to_regclass('generation') IS NOT NULL")
                .fetch_one(&mut connection)
                .await
                .map_err(failed)?;
            connection.close().await.map_err(failed)?;
            if !there {
                return Err(StoreError::NoDatabase(place.clone()));
            }
        }
        Self::open_at(place).await
    }

    /// Opens (or makes) the records and brings their schema up to date.
    ///
    /// # Errors
    /// Those of [`Self::open`] and [`Self::connect`].
    pub async fn open_at(place: &Place) -> StoreResult<Self> {
        match place {
            Place::Directory(data_dir) => Self::open(data_dir).await,
            Place::Postgres(url) => Self::connect(url).await,
        }
    }

    /// Opens the records in a PostgreSQL server and brings their schema up to date; of several that start at once, one does.
    ///
    /// # Errors
    /// `Connect`, `Encoding`, `Outdated`, `OlderReplicas`, `Migrate`.
    pub async fn connect(url: &PostgresUrl) -> StoreResult<Self> {
        Self::connect_as(url, &Schema::ours()).await
    }

    /// As [`Self::connect`], as the program with this schema.
    pub(crate) async fn connect_as(url: &PostgresUrl, schema: &Schema) -> StoreResult<Self> {
        let failed = |source| StoreError::Connect {
            place: Place::Postgres(url.clone()),
            source,
        };
        let options = url.options().map_err(failed)?;
        let write = postgres_pool(1)
            .connect_with(
                // A replica that stands still, or whose machine is gone, must not keep the others from writing: the server ends its
                // session before those who wait for the lock would give up.
                options.clone().options([
                    ("idle_in_transaction_session_timeout", "10s"),
                    ("lock_timeout", "20s"),
                ]),
            )
            .await
            .map_err(failed)?;
        let encoding: String = sqlx::query_scalar("SHOW server_encoding")
            .fetch_one(&write)
            .await
            .map_err(failed)?;
        if encoding != "UTF8" {
            return Err(StoreError::Encoding(Place::Postgres(url.clone()), encoding));
        }
        schema.bring_up(options.clone()).await?;
        let read = postgres_pool(url.connections())
            .connect_with(options)
            .await
            .map_err(failed)?;
        let store = Self::new(Pool::Postgres(read), Pool::Postgres(write), schema.knows());
        store.refresh().await?;
        Ok(store)
    }

    fn new(read: Pool, write: Pool, knows: i64) -> Self {
        let generation = Arc::default();
        Self {
            read,
            writer: Writer::new(write, Arc::clone(&generation), knows),
            generation,
            log_dirty: AtomicBool::new(false),
            asked: Asked::default(),
            #[cfg(test)]
            write_pause: Default::default(),
            #[cfg(test)]
            commit_pause: Default::default(),
            knows,
        }
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
            .busy_timeout(BUSY)
            .pragma("secure_delete", "ON")
            // What a change may have to take back stays in memory, however much it is: a file could keep the key of a secret
            // that is destroyed. What is as large as the database does not (see `sqlite_whole`).
            .pragma("temp_store", "MEMORY")
            .pragma("cache_size", "-512")
            .statement_cache_capacity(64);
        let write = sqlite_writer(&options).await.map_err(open_error)?;
        sqlite_whole::bring_up(&options)
            .await
            .map_err(open_error)??;
        let read = SqlitePoolOptions::new()
            .max_connections(4)
            // A file does not go away; asking each time would double the work of a short question.
            .test_before_acquire(false)
            .connect_with(options)
            .await
            .map_err(open_error)?;
        Ok(Self::new(Pool::Sqlite(read), Pool::Sqlite(write), 0))
    }

    /// Learns what other replicas changed until now, so that [`Self::generation`] tells of it: whatever was acknowledged by any
    /// replica before this was called. SQLite has no other replica. Those who call while a question is on its way share the
    /// next one.
    ///
    /// # Errors
    /// `Outdated`, `Unavailable`, `Query`.
    pub async fn refresh(&self) -> StoreResult<()> {
        if !self.is_shared() {
            return Ok(());
        }
        let before = self.asked.begun.load(Ordering::Acquire);
        let _mine = self.asked.one_at_a_time.lock().await;
        // One that began after this was called serves as well.
        if self.asked.answered.load(Ordering::Acquire) > before {
            return Ok(());
        }
        let number = self.asked.begun.fetch_add(1, Ordering::AcqRel) + 1;
        let (value, needs): (i64, i64) = sql::query_as("SELECT value, needs FROM generation")
            .fetch_one(&self.read)
            .await?;
        upgrade::suffices(self.knows, needs)?;
        self.generation
            .fetch_max(value.cast_unsigned(), Ordering::AcqRel);
        self.asked.answered.store(number, Ordering::Release);
        Ok(())
    }

    /// Whether other replicas work on the same records.
    pub fn is_shared(&self) -> bool {
        matches!(self.read, Pool::Postgres(_))
    }

    /// Grows with every change of an identity record: made by this process, or learned of by [`Self::refresh`].
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
        #[cfg(test)]
        self.write_pause.stop_here().await;
        let tx = self.writer.begin().await?;
        Ok(Change { tx, identity })
    }

    /// Makes a change visible and durable.
    ///
    /// # Errors
    /// `Query`.
    pub async fn commit(&self, change: Change) -> StoreResult<()> {
        #[cfg(test)]
        self.commit_pause.stop_here().await;
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
        match pool {
            Pool::Sqlite(_) => {
                let (busy, _, _): (i64, i64, i64) =
                    sql::query_as("PRAGMA wal_checkpoint(TRUNCATE)")
                        .fetch_one(pool)
                        .await?;
                if busy != 0 {
                    self.mark_log_dirty();
                }
            }
            // Old rows with keys give their place back; its write-ahead log is the server's own affair.
            Pool::Postgres(_) => {
                for statement in ["VACUUM secret_keys", "VACUUM token_keys"] {
                    if let Err(error) = sql::query(statement).execute(pool).await {
                        self.mark_log_dirty();
                        return Err(error.into());
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether the database answers.
    ///
    /// # Errors
    /// `Query`.
    pub async fn ping(&self) -> StoreResult<()> {
        sql::query("SELECT 1").execute(&self.read).await?;
        Ok(())
    }

    /// Lets the database grow by no more than so many pages, as far as the present connection goes.
    #[cfg(test)]
    pub(crate) async fn limit_pages(&self, more: i64) -> StoreResult<()> {
        let (_alone, pool) = self.writer.alone().await;
        let now: i64 = sql::query_scalar("PRAGMA page_count")
            .fetch_one(pool)
            .await?;
        let statement = format!("PRAGMA max_page_count = {}", now + more);
        sql::query(statement).execute(pool).await?;
        Ok(())
    }

    /// Claims that a migration of a later release was made.
    #[cfg(test)]
    pub(crate) async fn later_release(&self, version: i64) -> StoreResult<()> {
        let (_alone, pool) = self.writer.alone().await;
        sql::query(
            "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
             VALUES ($1, 'later', TRUE, $2, 0)",
        )
        .bind(version)
        .bind(&[0u8][..])
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

/// The connection that writes. SQLite waits for other processes by itself, but for the one that turns over the journal of a new
/// database.
async fn sqlite_writer(options: &SqliteConnectOptions) -> sqlx::Result<SqlitePool> {
    let start = Instant::now();
    loop {
        let opened = SqlitePoolOptions::new()
            .max_connections(1)
            // After some failures (a full disk) SQLite has rolled back by itself, and the driver, whose own rollback
            // then fails, takes the connection for one inside a transaction for ever. It is replaced.
            .before_acquire(|connection, _| {
                Box::pin(async move { Ok(!connection.is_in_transaction()) })
            })
            .connect_with(options.clone())
            .await;
        match opened {
            Err(error) if is_busy(&error) && start.elapsed() < BUSY => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            done => return done,
        }
    }
}

/// Whether SQLite says that another process holds the database.
fn is_busy(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    code.and_then(|code| code.parse::<u32>().ok())
        .is_some_and(|code| code & 0xff == 5)
}

/// How long a request waits for a connection before it is told to come again later: less than clients wait for an answer. The tests
/// that run in this process share the machine with everything else that is tested; none of them is about this time.
const PATIENCE: Duration = Duration::from_secs(if cfg!(test) { 60 } else { 5 });

/// A connection that was idle for long is tried before it is used; asking each time would double the work of a short question.
fn postgres_pool(connections: u32) -> PgPoolOptions {
    PgPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(PATIENCE)
        .test_before_acquire(false)
        .before_acquire(|connection, idle| {
            Box::pin(async move {
                Ok(idle.idle_for < Duration::from_secs(1) || connection.ping().await.is_ok())
            })
        })
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
