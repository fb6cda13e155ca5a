//! What is made once and kept in the cache folder.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Sees to it that `path` is there, by one process at a time, and whole or not at all: `make` makes it in the folder that it is given, which is
/// beside `path` and goes away afterwards, and says where it is there.
///
/// # Errors
/// As of `make`; when files cannot be written.
pub fn once(path: &Path, what: &str, make: impl FnOnce(&Path) -> Result<PathBuf>) -> Result<()> {
    if path.exists() {
        return Ok(());
    }
    let parent = path
        .parent()
        .with_context(|| format!("no folder for {what}"))?;
    fs::create_dir_all(parent).with_context(|| format!("make {}", parent.display()))?;
    let lock = File::create(parent.join(".lock"))?;
    lock.lock()
        .with_context(|| format!("wait for another process that makes {what}"))?;
    if path.exists() {
        return Ok(());
    }
    let scratch = tempfile::Builder::new()
        .prefix(".making-")
        .tempdir_in(parent)?;
    let made = make(scratch.path()).with_context(|| format!("make {what}"))?;
    fs::rename(&made, path).with_context(|| format!("put {} into place", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_made_once_and_a_half_of_it_is_never_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kept/it");
        let failed = once(&path, "it", |scratch| {
            fs::write(scratch.join("half"), "x")?;
            anyhow::bail!("no room")
        });
        assert!(failed.is_err() && !path.exists());
        for text in ["first", "second"] {
            let made = once(&path, "it", |scratch| {
                let made = scratch.join("whole");
                fs::write(&made, text)?;
                Ok(made)
            });
            made.unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), "first");
        }
        let left = fs::read_dir(dir.path().join("kept")).unwrap().count();
        assert_eq!(left, 2, "it and the lock");
    }
}
