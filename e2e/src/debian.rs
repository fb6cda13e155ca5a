//! Debian packages that are unpacked and never installed, so that the machine itself stays as it is.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::process::run;

/// Downloads packages from the machine's own package source into `scratch` and unpacks them below `root`. Root is not needed; the network is,
/// so not inside a sandbox.
///
/// # Errors
/// When apt does not know a package, or the network is away.
pub(crate) fn unpack(packages: &[&str], scratch: &Path, root: &Path) -> Result<()> {
    let output = Command::new("apt-get")
        .args(["-q", "download"])
        .args(packages)
        .current_dir(scratch)
        .stdin(Stdio::null())
        .output()
        .context("start apt-get")?;
    let names = packages.join(" ");
    ensure!(
        output.status.success(),
        "`apt-get download {names}` ended with {} (an old package list? run `apt-get update`)\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    let root = root.to_str().context("an odd folder name")?;
    let files = fs::read_dir(scratch)?.flatten().map(|entry| entry.path());
    let archives: Vec<_> = files
        .filter(|path| path.extension().is_some_and(|ext| ext == "deb"))
        .collect();
    ensure!(
        archives.len() == packages.len(),
        "apt-get downloaded {archives:?} for {names}"
    );
    for archive in archives {
        let archive = archive.to_str().context("an odd file name")?;
        run("dpkg-deb", &["-x", archive, root])?;
    }
    Ok(())
}
