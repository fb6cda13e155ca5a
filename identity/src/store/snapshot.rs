//! The database as a file: a copy of one moment, and whether anybody has it open.

use std::{fs, os::unix::fs::OpenOptionsExt, path::Path, time::Duration};

use sqlx::{
    ConnectOptions, Connection,
    sqlite::{SqliteConnectOptions, SqliteConnection},
};

use super::{
    Change, Store, StoreError, StoreResult,
    sql::{self, Pool},
};

/// Without migrations: a running service of another release may have the database open.
async fn connect(path: &Path, patience: Duration) -> StoreResult<SqliteConnection> {
    SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(false)
        .busy_timeout(patience)
        .connect()
        .await
        .map_err(|source| StoreError::Open {
            path: path.into(),
            source,
        })
}

/// Writes the database as it is at one moment into a new file, while others read and write it. The value of one record of the
/// copy.
///
/// # Errors
/// `Open`, `DataDir`, `Unavailable`, `Query`.
pub async fn take(database: &Path, copy: &Path, record: &str) -> StoreResult<Option<Vec<u8>>> {
    // Made here, so that it is closed from the first moment; SQLite takes an empty file for none.
    fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(copy)
        .map_err(|source| StoreError::DataDir {
            path: copy.into(),
            source,
        })?;
    let mut connection = connect(database, Duration::from_secs(10)).await?;
    sqlx::query("VACUUM INTO $1")
        .bind(copy.to_string_lossy().as_ref())
        .execute(&mut connection)
        .await?;
    connection.close().await?;
    let mut connection = connect(copy, Duration::from_secs(10)).await?;
    let value = sqlx::query_scalar("SELECT value FROM meta WHERE name = $1")
        .bind(record)
        .fetch_optional(&mut connection)
        .await?;
    connection.close().await?;
    Ok(value)
}

/// Folds the write-ahead log into a database that is to be replaced. False if somebody has it open: leaving the write-ahead log
/// needs it alone. One that is damaged beyond being opened is nobody's.
pub async fn retire(database: &Path) -> bool {
    let Ok(mut connection) = connect(database, Duration::from_millis(500)).await else {
        return true;
    };
    let alone: Result<String, StoreError> = sqlx::query_scalar("PRAGMA journal_mode = DELETE")
        .fetch_one(&mut connection)
        .await
        .map_err(Into::into);
    // What matters of it is told by the result above.
    let _ = connection.close().await;
    match alone {
        Ok(mode) => mode.eq_ignore_ascii_case("delete"),
        Err(StoreError::Unavailable(_)) => false,
        Err(_) => true,
    }
}

impl Store {
    /// Reads the database from end to end.
    ///
    /// # Errors
    /// `Damaged` with the first thing that is wrong, `Query`.
    pub async fn check_whole(&self) -> StoreResult<()> {
        // Only a file has an end; a server looks after its own.
        if matches!(self.read, Pool::Postgres(_)) {
            return Ok(());
        }
        let found: String = sql::query_scalar("PRAGMA integrity_check(1)")
            .fetch_one(&self.read)
            .await?;
        if found == "ok" {
            Ok(())
        } else {
            Err(StoreError::Damaged(found))
        }
    }
}

impl Change {
    /// Forgets the keys of tokens: none that was ever issued opens any more.
    ///
    /// # Errors
    /// `Query`.
    pub async fn end_tokens(&mut self) -> StoreResult<()> {
        for statement in ["DELETE FROM token_keys", "DELETE FROM revoked_tokens"] {
            sql::query(statement).execute(&mut *self.tx).await?;
        }
        Ok(())
    }
}
