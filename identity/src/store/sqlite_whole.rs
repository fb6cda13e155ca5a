//! Work on an SQLite database that may be as large as the database itself: its schema brought up to date, the whole of it written
//! anew. What that has to sort, to copy or could have to take back goes to files, as a service has little memory. They are in the
//! database's folder, as a pod has no other, have no name and are gone with the connection. All other changes keep theirs in memory.
//!
//! A file of before is no more than the write-ahead log is: keys of secrets in it are sealed, and nothing leads to it any more.

use sqlx::{Connection, SqliteConnection, sqlite::SqliteConnectOptions};

use super::dialect;

/// A connection for it.
pub(super) async fn connect(options: &SqliteConnectOptions) -> sqlx::Result<SqliteConnection> {
    let mut options = options.clone();
    let folder = options.get_filename().parent().map(ToOwned::to_owned);
    // A folder whose name is no text cannot be said in a statement; then it is memory after all.
    if let Some(folder) = folder.as_deref().and_then(|folder| folder.to_str()) {
        let place = match folder {
            "" => ".",
            other => other,
        };
        options = options
            // For the whole process, where nothing else uses it.
            .pragma(
                "temp_store_directory",
                format!("'{}'", place.replace('\'', "''")),
            )
            .pragma("temp_store", "FILE");
    }
    SqliteConnection::connect_with(&options).await
}

/// Runs the migrations: all of them or none; of several processes that do it at once, one does.
///
/// # Errors
/// `Migrate` from the inner result; the outer one says that the database cannot be opened or written.
pub(super) async fn bring_up(
    options: &SqliteConnectOptions,
) -> sqlx::Result<Result<(), sqlx::migrate::MigrateError>> {
    let mut connection = connect(options).await?;
    let mut tx = connection.begin_with("BEGIN IMMEDIATE").await?;
    if let Err(error) = dialect::FOR_SQLITE.run_direct(None, &mut *tx, false).await {
        return Ok(Err(error));
    }
    tx.commit().await?;
    connection.close().await?;
    Ok(Ok(()))
}

/// Writes all of it anew, while nobody else writes.
///
/// # Errors
/// Of the database, or of the disk.
pub(super) async fn rewrite(options: &SqliteConnectOptions) -> sqlx::Result<()> {
    let mut connection = connect(options).await?;
    sqlx::query("VACUUM").execute(&mut connection).await?;
    connection.close().await
}
