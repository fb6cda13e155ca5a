//! Benchmarks live in the harness; they print both sides and write JSON.

use std::ffi::OsString;

use anyhow::Result;

use crate::{build, setup};

/// Builds and runs one.
pub fn run(name: &str, arguments: &[OsString]) -> Result<()> {
    setup::ensure(setup::For::Clusters)?;
    build::products()?;
    let all = std::iter::once(OsString::from(name)).chain(arguments.iter().cloned());
    build::become_e2e("bench", all)
}
