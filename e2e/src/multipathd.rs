//! The real multipathd (Debian package `multipath-tools`) on a node: unpacked into the cache folder, and put on the nodes that ask for it. It is
//! not installed on the machine, for its udev rules would then count on every node.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use sha2::{Digest, Sha256};

use crate::debian;
use crate::node::{Node, Spawned};
use crate::once::once;
use crate::parts::cache_dir;
use crate::process::{run, wait_for};
use crate::sandbox::plain_path;
use crate::volumes::PATIENCE;

/// Name of its log on a node.
pub const LOG: &str = "multipathd";
/// Part of the cache key: counted up when this file changes what comes out.
const RECIPE: &str = "1";
/// What of its dependencies comes along, by how the name begins (their ends differ between releases); the rest is there on every machine that
/// has udev and dmsetup. `sg3-utils-udev` reads disks' identities for the rules.
const ALONG: &[&str] = &[
    "kpartx",
    "sg3-utils-udev",
    "libaio",
    "libedit",
    "libjson-c",
    "liburcu",
];

/// The unpacked packages.
#[derive(Debug, Clone)]
pub struct Multipathd {
    root: PathBuf,
}

impl Multipathd {
    /// Finds them.
    ///
    /// # Errors
    /// When they were not unpacked yet; it names the command that does.
    pub fn locate() -> Result<Self> {
        let root = dir()?;
        ensure!(
            root.join("sbin/multipathd").exists() || root.join("usr/sbin/multipathd").exists(),
            "multipathd is not in {} yet: run `cargo run -p cryptvol-e2e -- parts` first, outside the sandbox",
            root.display()
        );
        Ok(Self { root })
    }

    /// Downloads and unpacks them, once (half a MB).
    ///
    /// # Errors
    /// As apt's.
    pub fn prepare() -> Result<Self> {
        once(&dir()?, "multipathd", |scratch| {
            let depends = run("apt-cache", &["depends", "--important", "multipath-tools"])?;
            let depends = depends
                .lines()
                .filter_map(|line| line.trim().strip_prefix("Depends: "))
                .filter(|name| ALONG.iter().any(|along| name.starts_with(along)));
            let packages: Vec<_> = depends.chain(["multipath-tools"]).collect();
            let root = scratch.join("root");
            debian::unpack(&packages, scratch, &root)?;
            Ok(root)
        })?;
        Self::locate()
    }

    /// Puts program, libraries and udev rules into a node's overlay, as its package would, with this `/etc/multipath.conf` (none: as
    /// the package leaves it). Nothing is started.
    ///
    /// # Errors
    /// When the node does not do as told.
    pub async fn install(&self, node: &Node, config: Option<&str>) -> Result<()> {
        let root = plain_path(&self.root)?;
        // `/lib` is a link on the node and a folder in the package.
        node.sh(&format!(
            "tar -C {root} -c . | tar -C / --keep-directory-symlink --no-same-owner -x && mkdir -p /etc/multipath && udevadm control --reload"
        ))
        .await?
        .ok()?;
        match config {
            Some(text) => node.put(CONFIG, 0o644, text.as_bytes()).await,
            None => Ok(()),
        }
    }

    /// Starts it as its systemd unit does, and waits until it answers.
    ///
    /// # Errors
    /// When it does not.
    pub async fn start(&self, node: &Node) -> Result<Spawned> {
        let daemon = node.spawn(LOG, &["multipathd", "-d", "-s"], &[]).await?;
        wait_idle(node).await?;
        Ok(daemon)
    }
}

/// Gives a running one another configuration.
///
/// # Errors
/// When it does not take it.
pub async fn configure(node: &Node, config: &str) -> Result<()> {
    node.put(CONFIG, 0o644, config.as_bytes()).await?;
    node.sh("multipathd reconfigure").await?.ok()?;
    wait_idle(node).await
}

/// The maps that it drives, by their names, sorted.
///
/// # Errors
/// When it does not answer.
pub async fn maps(node: &Node) -> Result<Vec<String>> {
    let mut maps = lines(node, "multipathd show maps raw format %n").await?;
    maps.sort();
    Ok(maps)
}

/// The paths that it knows of, whether it uses them or not: `KERNEL-NAME WWID`.
///
/// # Errors
/// When it does not answer.
pub async fn paths(node: &Node) -> Result<Vec<String>> {
    lines(node, "multipathd show paths raw format '%d %w'").await
}

async fn lines(node: &Node, command: &str) -> Result<Vec<String>> {
    let text = node.sh(command).await?.ok()?;
    let lines = text.lines().map(str::trim);
    // Where there is nothing it says that it did what it was told.
    let lines = lines.filter(|line| !line.is_empty() && *line != "ok");
    Ok(lines.map(str::to_owned).collect())
}

async fn wait_idle(node: &Node) -> Result<()> {
    wait_for(
        "multipathd to answer",
        PATIENCE,
        || async {
            let answer = node.sh("multipathd show daemon").await?;
            Ok(answer.stdout.contains("idle").then_some(()))
        },
        || node.log(LOG),
    )
    .await
}

/// Where its configuration lies on a node.
pub const CONFIG: &str = "/etc/multipath.conf";

fn dir() -> Result<PathBuf> {
    let mut key = Sha256::new();
    for part in ALONG.iter().chain(&[RECIPE]) {
        key.update(part);
        key.update([0]);
    }
    let key = hex::encode(&key.finalize()[..8]);
    Ok(cache_dir()?.join("multipathd").join(key))
}
