//! Building the product and handing over to `cryptvol-e2e`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::run;

/// Packages of the product and of the harness that runs it.
const PACKAGES: &[&str] = &[
    "cryptvol-operator",
    "cryptvol-node-agent",
    "cryptvol-identity",
    "kubectl-cryptvol",
    "cryptvol-e2e",
];

/// `cargo build --release` of what the product consists of. Seconds when nothing changed.
pub fn release() -> Command {
    let mut cargo = run::cargo();
    cargo.args(["build", "--release"]);
    for package in PACKAGES {
        cargo.args(["-p", package]);
    }
    cargo
}

/// Builds the product and the harness.
pub fn products() -> Result<()> {
    run::check(&mut release())
}

/// A program of the release build.
pub fn program(name: &str) -> PathBuf {
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    target.join("release").join(name)
}

/// The harness, as a command.
pub fn e2e() -> Command {
    Command::new(
        std::path::absolute(program("cryptvol-e2e")).unwrap_or_else(|_| program("cryptvol-e2e")),
    )
}

/// Replaces this process by the harness, which is built when it is not there yet.
pub fn become_e2e(command: &str, arguments: impl IntoIterator<Item = OsString>) -> Result<()> {
    if !program("cryptvol-e2e").is_file() {
        run::check(run::cargo().args(["build", "--release", "-p", "cryptvol-e2e"]))?;
    }
    run::become_program(e2e().arg(command).args(arguments))
}
