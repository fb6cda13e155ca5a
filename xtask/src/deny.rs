//! Licences, sources and bans of dependencies. Advisories need a database from the network and are left to a scheduled job.

use std::path::PathBuf;

use anyhow::Result;

use crate::run;

const VERSION: &str = "0.20.2";

/// Runs cargo-deny, which is installed into the cache folder once where it is not in `PATH`.
pub fn check() -> Result<()> {
    let program = if run::has("cargo-deny") {
        "cargo-deny".into()
    } else {
        installed()?
    };
    run::check(std::process::Command::new(program).args([
        "--workspace",
        "check",
        "bans",
        "licenses",
        "sources",
    ]))
}

fn installed() -> Result<PathBuf> {
    let root = cache().join(format!("tools/cargo-deny-{VERSION}"));
    let program = root.join("bin/cargo-deny");
    if !program.is_file() {
        run::say("installing cargo-deny, once (some minutes)");
        run::check(
            run::cargo()
                .args([
                    "install",
                    "--quiet",
                    "--locked",
                    "--no-track",
                    "--version",
                    VERSION,
                    "--root",
                ])
                .arg(&root)
                .arg("cargo-deny"),
        )?;
    }
    Ok(program)
}

/// The folder for built tools: `CRYPTVOL_CACHE`, or `cryptvol` in the user's cache folder (as the harness has it).
fn cache() -> PathBuf {
    let var = |name| std::env::var_os(name).map(PathBuf::from);
    var("CRYPTVOL_CACHE")
        .or_else(|| Some(var("XDG_CACHE_HOME")?.join("cryptvol")))
        .or_else(|| Some(std::env::home_dir()?.join(".cache/cryptvol")))
        .unwrap_or_else(|| "target/cache".into())
}
