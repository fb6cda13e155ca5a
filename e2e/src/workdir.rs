//! Where a run keeps its files: logs, certificates, the array's disks, the nodes' exchange folders.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};

/// The folder for all runs: `$CRYPTVOL_E2E_DIR`, or `target/e2e` of this checkout.
pub fn base() -> PathBuf {
    std::env::var_os("CRYPTVOL_E2E_DIR")
        .map_or_else(|| workspace_root().join("target/e2e"), PathBuf::from)
}

/// The root of the checkout that this was built from.
pub fn workspace_root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

/// A folder for one test. [`WorkDir::passed`], the test's last line, removes it; otherwise it is kept and its path is printed.
#[derive(Debug)]
pub struct WorkDir {
    path: PathBuf,
    passed: bool,
}

impl WorkDir {
    /// Makes `target/e2e/tests/NAME-XXXXXX`; leftovers of failed tests go after a day.
    pub fn new(name: &str) -> Result<Self> {
        let parent = base().join("tests");
        fs::create_dir_all(&parent)?;
        let old = SystemTime::now() - Duration::from_secs(24 * 3600);
        for entry in fs::read_dir(&parent)?.flatten() {
            if entry
                .metadata()
                .and_then(|m| m.modified())
                .is_ok_and(|at| at < old)
            {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        let dir = tempfile::Builder::new()
            .prefix(&format!("{name}-"))
            .tempdir_in(&parent)
            .with_context(|| format!("make a folder in {}", parent.display()))?;
        Ok(Self {
            path: dir.keep(),
            passed: false,
        })
    }

    /// Nobody needs the logs any more. What is still running may write on; what it leaves is removed after a day.
    pub fn passed(mut self) -> Result<()> {
        self.passed = true;
        let _ = fs::remove_dir_all(&self.path);
        Ok(())
    }

    /// Its absolute path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A new folder inside it.
    pub fn dir(&self, name: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        fs::create_dir_all(&path)?;
        Ok(path)
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        if !self.passed {
            eprintln!(
                "logs and disks of this run are kept in {}",
                self.path.display()
            );
        }
    }
}
