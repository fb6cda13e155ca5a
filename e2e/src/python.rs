//! Python environments of the tests: packages with pinned versions, installed once under the cache folder.

use std::fs::{self, File};
use std::path::PathBuf;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::parts::cache_dir;
use crate::process::run;

/// Written last: an environment without it is half made.
const COMPLETE: &str = ".complete";

/// A set of packages. Its environment is `CACHE/venv/<hash of the interpreter's version and the requirements>`.
#[derive(Debug, Clone, Copy)]
pub struct Environment {
    /// What it is, for messages: "the openstack client".
    pub what: &'static str,
    /// `requirements.txt`, every version pinned.
    pub requirements: &'static str,
}

impl Environment {
    /// The folder of the environment, made when it is not there yet. That needs a package registry, so do it before
    /// entering a sandbox.
    pub fn ensure(self) -> Result<PathBuf> {
        let dir = self.dir()?;
        if dir.join(COMPLETE).exists() {
            return Ok(dir);
        }
        let parent = dir.parent().context("cache folder without a parent")?;
        fs::create_dir_all(parent).with_context(|| format!("make {}", parent.display()))?;
        let lock = File::create(parent.join(".lock"))?;
        lock.lock().context("wait for another installation")?;
        if dir.join(COMPLETE).exists() {
            return Ok(dir);
        }
        eprintln!(
            "installing {} into {} (once; about a minute)",
            self.what,
            dir.display()
        );
        if dir.exists() {
            fs::remove_dir_all(&dir)?;
        }
        let text = dir.to_string_lossy();
        run("python3", &["-m", "venv", &text])
            .context("make a Python environment; on Debian that needs the package python3-venv")?;
        let list = dir.join("requirements.txt");
        fs::write(&list, self.requirements)?;
        run(
            dir.join("bin/pip"),
            &[
                "install",
                "--quiet",
                "--disable-pip-version-check",
                "--requirement",
                &list.to_string_lossy(),
            ],
        )
        .with_context(|| format!("install {} from the Python package registry", self.what))?;
        fs::write(dir.join(COMPLETE), "")?;
        Ok(dir)
    }

    fn dir(self) -> Result<PathBuf> {
        let version = run("python3", &["--version"])
            .with_context(|| format!("{} needs python3 and python3-venv", self.what))?;
        let mut hash = Sha256::new();
        hash.update(version);
        hash.update(self.requirements);
        let name = hex::encode(&hash.finalize()[..8]);
        Ok(cache_dir()?.join("venv").join(name))
    }
}
