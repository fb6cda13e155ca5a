//! The kernel's handler for arrays that tell paths apart (`scsi_dh_alua`), for the nodes that ask for it. Debian's User-Mode Linux is built without
//! `CONFIG_SCSI_DH`, which every kernel for servers has. Two of its modules hang on that: they are built anew from the sources of that very
//! kernel, with its own configuration and that one option, and the handler with them; the kernel itself is the package's.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use crate::debian;
use crate::once::once;
use crate::parts::cache_dir;
use crate::process::{run, tail};

/// Part of the cache key: counted up when this file changes what comes out.
const RECIPE: &str = "1";
/// Where the package has the modules of its kernel.
const PACKAGED: &str = "/usr/lib/uml/modules";
/// What is built, as paths in the sources: the modules that have code for handlers, and the handler.
const MODULES: [&str; 3] = [
    "drivers/scsi/scsi_mod",
    "drivers/scsi/device_handler/scsi_dh_alua",
    "drivers/md/dm-multipath",
];
/// What differs from the package's configuration.
const OPTIONS: [(&str, &str); 2] = [
    (
        "# CONFIG_SCSI_DH is not set",
        "CONFIG_SCSI_DH=y\nCONFIG_SCSI_DH_ALUA=m",
    ),
    // It would look for a git repository around the sources.
    (
        "CONFIG_LOCALVERSION_AUTO=y",
        "# CONFIG_LOCALVERSION_AUTO is not set",
    ),
];

/// The folder with the modules that are built.
///
/// # Errors
/// When they were not built yet; it names the command that does.
pub fn locate() -> Result<PathBuf> {
    let dir = dir()?;
    ensure!(
        dir.is_dir(),
        "the kernel modules for ALUA are not in {} yet: run `cargo run -p cryptvol-e2e -- parts` first, outside the sandbox",
        dir.display()
    );
    Ok(dir)
}

/// Downloads the kernel's sources (140 MB), builds the modules and keeps them (1 MB), once; half a minute.
///
/// # Errors
/// When the package source does not have the sources of the installed kernel any more, or they do not build.
pub fn prepare() -> Result<PathBuf> {
    once(&dir()?, "the kernel modules for ALUA", |scratch| {
        build(&sources(scratch)?, scratch)
    })?;
    locate()
}

/// The sources of the installed kernel, unpacked.
fn sources(scratch: &Path) -> Result<PathBuf> {
    let release = release()?;
    let series: Vec<_> = release.split('.').take(2).collect();
    let package = format!("linux-source-{}", series.join("."));
    let known = run("apt-cache", &["madison", &package])?;
    let mut versions = known.lines().filter_map(|line| line.split('|').nth(1));
    let of_release = |v: &&str| v.trim().split('-').next() == Some(release.as_str());
    let version = versions.find(of_release).with_context(|| {
        format!("no package source has {package} of version {release} (an old package list? run `apt-get update`)")
    })?;
    let root = scratch.join("root");
    debian::unpack(&[&format!("{package}={}", version.trim())], scratch, &root)?;
    let archive = root.join(format!("usr/src/{package}.tar.xz"));
    let text = |p: &Path| p.to_str().map(str::to_owned).context("an odd folder name");
    let (archive, into) = (text(&archive)?, text(scratch)?);
    // A third of it all, and no part of it is built.
    let left_out = "--exclude=*/drivers/gpu/drm/*/include";
    run("tar", &["-xJf", &archive, "-C", &into, left_out])?;
    Ok(scratch.join(package))
}

fn build(sources: &Path, scratch: &Path) -> Result<PathBuf> {
    let mut config = run("linux.uml", &["--showconfig"])?;
    for (from, to) in OPTIONS {
        ensure!(
            config.contains(from),
            "the kernel's configuration has no {from:?}"
        );
        config = config.replace(from, to);
    }
    fs::write(sources.join(".config"), config)?;
    make(sources, scratch, &["olddefconfig", "modules_prepare"])?;
    let targets: Vec<_> = MODULES.iter().map(|m| format!("{m}.ko")).collect();
    let targets: Vec<_> = targets.iter().map(String::as_str).collect();
    make(sources, scratch, &targets)?;
    let built = scratch.join("modules");
    fs::create_dir(&built)?;
    let release = release()?;
    for target in targets {
        let module = sources.join(target);
        let name = module.file_name().context("a file name")?;
        let path = module.to_str().context("an odd folder name")?;
        let magic = run("modinfo", &["-F", "vermagic", path])?;
        ensure!(
            magic.split(' ').next() == Some(release.as_str()),
            "{target} is for {magic}, and the nodes' kernel is {release}"
        );
        fs::copy(&module, built.join(name))?;
    }
    Ok(built)
}

fn make(sources: &Path, scratch: &Path, targets: &[&str]) -> Result<()> {
    let log_path = scratch.join("make.log");
    let log = File::options().create(true).append(true).open(&log_path)?;
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    // Without the whole kernel built nobody can say that a symbol is there; loading the module does.
    let status = Command::new("make")
        .current_dir(sources)
        .args(["ARCH=um", "KBUILD_MODPOST_WARN=1", &format!("-j{jobs}")])
        .args(targets)
        .stdout(log.try_clone()?)
        .stderr(log)
        .status()
        .context("start make (Debian packages make, gcc, flex, bison and bc)")?;
    ensure!(
        status.success(),
        "`make {}` ended with {status}:\n{}",
        targets.join(" "),
        tail(&log_path, 20)
    );
    Ok(())
}

/// Release of the nodes' kernel, for example `6.1.176`.
fn release() -> Result<String> {
    let mut found = fs::read_dir(PACKAGED)
        .with_context(|| format!("no {PACKAGED} (Debian package user-mode-linux)"))?
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok());
    found
        .next()
        .with_context(|| format!("nothing in {PACKAGED}"))
}

fn dir() -> Result<PathBuf> {
    let mut key = Sha256::new();
    let options = OPTIONS.iter().map(|(_, to)| to);
    for part in MODULES.iter().chain(options).chain(&[RECIPE]) {
        key.update(part);
        key.update([0]);
    }
    key.update(release()?);
    let key = hex::encode(&key.finalize()[..8]);
    Ok(cache_dir()?.join("scsi-dh").join(key))
}
