//! Backup and restore: the whole database in one sealed file. What opens it is the key-encryption key, which is not in it.

mod aside;
mod sealed;

use std::{
    fs,
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use thiserror::Error;

use aside::Aside;
pub use aside::sweep;

use crate::{
    app::{AppError, KEK_CHECK, check_kek},
    crypto::{Kek, SealError},
    store::{DATABASE_FILE, Store, StoreError, snapshot},
};

/// Why there is no backup, or nothing was restored.
#[derive(Debug, Error)]
pub enum BackupError {
    /// Nothing to back up.
    #[error("there is no database in {0}; give the data directory of the service")]
    NoDatabase(PathBuf),
    /// The copy that is sealed could not be made.
    #[error(
        "cannot copy the database in the data directory: {0}; for as long as a backup runs it needs room for the database once more"
    )]
    Copy(#[source] StoreError),
    /// The key-encryption key is not the one of the records.
    #[error(transparent)]
    Kek(#[from] AppError),
    /// Sealing.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The sealed file could not be written.
    #[error("cannot write the backup: {0}")]
    Write(#[source] io::Error),
    /// The sealed file could not be read.
    #[error("cannot read the backup: {0}")]
    Read(#[source] io::Error),
    /// Another kind of file.
    #[error("this is not a backup of cryptvol-identity; nothing was restored")]
    NotABackup,
    /// A later format.
    #[error(
        "the backup was written by a newer release; restore it with that one. Nothing was restored"
    )]
    Newer,
    /// The wrapped key does not open.
    #[error(
        "the key-encryption key does not open this backup; give --kek-file the key that the service had when it was made (or its first lines were altered). Nothing was restored"
    )]
    WrongKey,
    /// It ends too early.
    #[error(
        "the backup is cut off: its end is missing. Copy it again or take another one; nothing was restored"
    )]
    Truncated,
    /// It was changed.
    #[error(
        "the backup was altered or is damaged. Copy it again or take another one; nothing was restored"
    )]
    Altered,
    /// The data directory cannot be used.
    #[error("cannot use the data directory: {0}; nothing was changed")]
    Stage(#[source] io::Error),
    /// What came out is no database that this release can use.
    #[error("the database in the backup cannot be used: {0}; nothing was restored")]
    Contents(#[source] StoreError),
    /// There are records already.
    #[error(
        "there is a database in {0} already, and restoring would destroy it; give an empty data directory, or --replace"
    )]
    NotEmpty(PathBuf),
    /// Only one at a time.
    #[error("another backup or restore runs on {0}; wait until it has ended")]
    Busy(PathBuf),
    /// The service has the database open.
    #[error("the service still runs on {0}; stop it first. Nothing was restored")]
    InUse(PathBuf),
}

impl BackupError {
    /// Machine-readable reason.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoDatabase(_) => "NoDatabase",
            Self::Copy(_) => "CopyFailed",
            Self::Kek(error) => error.reason(),
            Self::Seal(error) => error.reason(),
            Self::Write(_) => "BackupNotWritten",
            Self::Read(_) => "BackupNotRead",
            Self::NotABackup => "NotABackup",
            Self::Newer => "BackupNewer",
            Self::WrongKey => "WrongKek",
            Self::Truncated => "BackupTruncated",
            Self::Altered => "BackupAltered",
            Self::Stage(_) => "DataDirUnusable",
            Self::Contents(_) => "BackupContents",
            Self::NotEmpty(_) => "DataDirNotEmpty",
            Self::Busy(_) => "BackupRunning",
            Self::InUse(_) => "DatabaseInUse",
        }
    }
}

/// Seals the database of `data_dir` into `out`, while the service runs: what is in it is what was acknowledged at one moment
/// after the beginning. Size of the database, in bytes.
///
/// # Errors
/// Any [`BackupError`].
pub async fn backup(data_dir: &Path, kek: &Kek, out: &mut dyn Write) -> Result<u64, BackupError> {
    let database = data_dir.join(DATABASE_FILE);
    if !database.exists() {
        return Err(BackupError::NoDatabase(data_dir.into()));
    }
    // Beside the database, so that what is readable in it is nowhere where the database is not.
    let place = Aside::new(data_dir)?;
    let copy = place.path().join(DATABASE_FILE);
    let check = snapshot::take(&database, &copy, KEK_CHECK)
        .await
        .map_err(BackupError::Copy)?;
    let check = check.unwrap_or_default();
    if kek.open(&[KEK_CHECK], &check).is_err() {
        return Err(AppError::WrongKek(data_dir.into()).into());
    }
    let plain = fs::File::open(&copy).map_err(BackupError::Stage)?;
    sealed::write(kek, &check, plain, out)
}

/// Restores a backup into `data_dir`. The database there, if `replace` permits that there is one, is replaced in one step at
/// the end, after all was read and found usable. All tokens end: which of them were revoked since the backup is not known.
/// Size of the database, in bytes.
///
/// # Errors
/// Any [`BackupError`]; nothing has changed then.
pub async fn restore(
    data_dir: &Path,
    kek: &Kek,
    from: &mut dyn Read,
    replace: bool,
) -> Result<u64, BackupError> {
    let database = data_dir.join(DATABASE_FILE);
    let there = fs::metadata(&database).is_ok_and(|file| file.len() > 0);
    if there && !replace {
        return Err(BackupError::NotEmpty(data_dir.into()));
    }
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(data_dir)
        .map_err(BackupError::Stage)?;
    let place = Aside::new(data_dir)?;
    let staged = place.path().join(DATABASE_FILE);
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&staged)
        .map_err(BackupError::Stage)?;
    let total = sealed::read(kek, from, &mut file)?;
    file.sync_all().map_err(BackupError::Stage)?;
    drop(file);
    make_usable(place.path(), kek).await?;
    if there && !snapshot::retire(&database).await {
        return Err(BackupError::InUse(data_dir.into()));
    }
    for side in ["-wal", "-shm", "-journal"] {
        let mut name = database.clone().into_os_string();
        name.push(side);
        match fs::remove_file(name) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(BackupError::Stage(error));
            }
            _ => {}
        }
    }
    fs::rename(&staged, &database).map_err(BackupError::Stage)?;
    fs::File::open(data_dir)
        .and_then(|dir| dir.sync_all())
        .map_err(BackupError::Stage)?;
    Ok(total)
}

/// Looks through a staged database, brings its schema up to date, and ends its tokens.
async fn make_usable(dir: &Path, kek: &Kek) -> Result<(), BackupError> {
    let store = Store::open(dir).await.map_err(BackupError::Contents)?;
    let done = async {
        store.check_whole().await.map_err(BackupError::Contents)?;
        check_kek(&store, kek, &dir.into()).await?;
        let mut change = store.change_keys().await.map_err(BackupError::Contents)?;
        change.end_tokens().await.map_err(BackupError::Contents)?;
        store.commit(change).await.map_err(BackupError::Contents)
    };
    let done = done.await;
    // Folds the write-ahead log into the file that is moved.
    store.close().await;
    done
}

#[cfg(test)]
mod tests;
