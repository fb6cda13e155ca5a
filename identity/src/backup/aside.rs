//! A folder in the data directory for the copy that a backup or a restore works on. It goes with the work; what a killed
//! process left is swept away, for a secret that is deleted later must not live on in a forgotten copy.

use std::{
    fs::{self, File, TryLockError},
    path::Path,
};

use super::BackupError;

const PREFIX: &str = ".aside-";

/// The folder, and the lock on the data directory that makes it the only one.
pub(super) struct Aside {
    dir: tempfile::TempDir,
    // Ends after the folder.
    _lock: File,
}

impl Aside {
    /// A new folder, after what others left is gone.
    pub(super) fn new(data_dir: &Path) -> Result<Self, BackupError> {
        let lock = File::open(data_dir).map_err(BackupError::Stage)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(BackupError::Busy(data_dir.into())),
            Err(TryLockError::Error(error)) => return Err(BackupError::Stage(error)),
        }
        remove_left(data_dir);
        let dir = tempfile::Builder::new()
            .prefix(PREFIX)
            .tempdir_in(data_dir)
            .map_err(BackupError::Stage)?;
        Ok(Self { dir, _lock: lock })
    }

    pub(super) fn path(&self) -> &Path {
        self.dir.path()
    }
}

/// Removes what a backup or restore left that was killed, unless one runs.
pub fn sweep(data_dir: &Path) {
    if let Ok(lock) = File::open(data_dir)
        && lock.try_lock().is_ok()
    {
        remove_left(data_dir);
    }
}

fn remove_left(data_dir: &Path) {
    let entries = fs::read_dir(data_dir).into_iter().flatten().flatten();
    for entry in entries {
        if entry.file_name().to_string_lossy().starts_with(PREFIX)
            && let Err(error) = fs::remove_dir_all(entry.path())
        {
            tracing::warn!(path = %entry.path().display(), %error, "a copy of the database that a stopped backup left is not removed; remove it");
        }
    }
}
