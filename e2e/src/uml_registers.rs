//! Nodes on processors whose extended registers are more than User-Mode Linux knows (AMX): a small library is preloaded into their kernels, which
//! says why. Elsewhere it changes nothing.

use std::fs;
use std::path::PathBuf;

use anyhow::Result;
use sha2::{Digest, Sha256};

use crate::once::once;
use crate::parts::cache_dir;
use crate::process::run;

const SOURCE: &str = include_str!("../assets/uml_registers.c");

/// The library; compiled once, in a moment, and kept in the cache folder.
///
/// # Errors
/// If it does not compile (`cc`, which Rust links with).
pub fn library() -> Result<PathBuf> {
    let digest = Sha256::digest(SOURCE);
    let key: String = digest.iter().take(8).map(|b| format!("{b:02x}")).collect();
    let path = cache_dir()?.join("uml-registers").join(format!("{key}.so"));
    once(&path, "the library for the nodes' registers", |scratch| {
        let (source, made) = (scratch.join("it.c"), scratch.join("it.so"));
        fs::write(&source, SOURCE)?;
        let (from, to) = (source.to_string_lossy(), made.to_string_lossy());
        run("cc", &["-O2", "-shared", "-fPIC", "-o", &to, &from])?;
        Ok(made)
    })?;
    Ok(path)
}
