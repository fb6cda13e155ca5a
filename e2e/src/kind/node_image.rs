//! The node image that is made from the parts, for machines that cannot pull the ordinary one.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use nix::unistd::Uid;
use sha2::{Digest, Sha256};

use crate::image::ImageBuilder;
use crate::once::once;
use crate::parts::{KIND_MODULE, KUBERNETES, Parts, cache_dir};
use crate::process::{run, tail};

const SCRIPT: &str = include_str!("../../assets/kind/node-image.sh");
/// Part of the cache key: counted up when this file changes what is in the image.
const RECIPE: u32 = 1;

/// An archive of a node's root file system and the name under which docker is to know it.
#[derive(Debug, Clone)]
pub struct NodeImage {
    /// For `docker import`.
    pub archive: PathBuf,
    /// Names the content.
    pub reference: String,
}

impl NodeImage {
    /// Finds the one that fits these parts; fails with the command that makes it.
    pub fn locate(parts: &Parts) -> Result<Self> {
        let image = Self::new(parts)?;
        ensure!(
            image.archive.is_file(),
            "there is no node image {} yet: run `cargo run -p cryptvol-e2e -- parts --set kind` first; `cargo xtask test` does it \
             by itself",
            image.archive.display()
        );
        Ok(image)
    }

    /// Makes it, once for these parts (about 80 s). Needs root and the network.
    pub fn ensure(parts: &Parts) -> Result<Self> {
        let image = Self::new(parts)?;
        if image.archive.is_file() {
            return Ok(image);
        }
        ensure!(
            Uid::effective().is_root(),
            "only root can make a node image for kind: run as root, or have a docker daemon that can pull kindest/node"
        );
        once(&image.archive, "a node image for kind", |scratch| {
            let start = Instant::now();
            eprintln!("making a node image for kind from Debian packages and the parts (once)");
            make(parts, scratch)?;
            eprintln!("made the node image: {} s", start.elapsed().as_secs());
            Ok(scratch.join("node.tar"))
        })?;
        Ok(image)
    }

    fn new(parts: &Parts) -> Result<Self> {
        let mut key = Sha256::new();
        for part in [
            &parts.dir().display().to_string(),
            SCRIPT,
            KIND_MODULE,
            &RECIPE.to_string(),
        ] {
            key.update(part);
            key.update([0]);
        }
        let key = hex::encode(&key.finalize()[..8]);
        Ok(Self {
            archive: cache_dir()?.join(format!("kind/node-{key}.tar")),
            reference: format!("cryptvol.dev/kind-node:{key}"),
        })
    }
}

fn make(parts: &Parts, scratch: &Path) -> Result<()> {
    let module: serde_json::Value =
        serde_json::from_str(&run("go", &["mod", "download", "-json", KIND_MODULE])?)?;
    let sources = module["Dir"]
        .as_str()
        .context("`go mod download` names no folder")?;
    script("root", parts, sources, scratch)?;
    images(parts, Path::new(sources), scratch)?;
    script("pack", parts, sources, scratch)
}

fn script(what: &str, parts: &Parts, sources: &str, scratch: &Path) -> Result<()> {
    let log_path = scratch.join(format!("{what}.log"));
    let log = File::create(&log_path)?;
    let path = scratch.join("node-image.sh");
    fs::write(&path, SCRIPT)?;
    let status = Command::new("timeout")
        .args(["900", "bash"])
        .arg(&path)
        .arg(what)
        .env("CV_BIN", parts.dir())
        .env("CV_KIND", sources)
        .env("CV_WORK", scratch)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .status()
        .context("start bash")?;
    if !status.success() {
        bail!(
            "node-image.sh {what} ended with {status}:\n{}",
            tail(&log_path, 25)
        );
    }
    Ok(())
}

/// The images of a control plane, by the names that kubeadm and kind's configuration of containerd use.
fn images(parts: &Parts, sources: &Path, scratch: &Path) -> Result<()> {
    let out = scratch.join("images");
    fs::create_dir_all(&out)?;
    let version = format!("v{KUBERNETES}");
    let listed = run(
        parts.path("kubeadm"),
        &["config", "images", "list", "--kubernetes-version", &version],
    )?;
    let reference = |name: &str| {
        let part = format!("/{name}:");
        listed
            .lines()
            .find(|line| line.contains(&part))
            .with_context(|| format!("kubeadm names no image of {name}"))
    };
    for name in [
        "kube-apiserver",
        "kube-controller-manager",
        "kube-scheduler",
        "etcd",
    ] {
        // kubeadm's manifests start each by its bare name.
        let path = format!("/usr/local/bin/{name}");
        ImageBuilder::new(reference(name)?)
            .file(parts.path(name), &path, 0o755)
            .write(out.join(format!("{name}.tar")))?;
    }
    ImageBuilder::new(reference("coredns")?)
        .file(parts.path("coredns"), "/coredns", 0o755)
        .entrypoint(["/coredns"])
        .write(out.join("coredns.tar"))?;
    ImageBuilder::new(sandbox_image(sources)?)
        .file(parts.path("pause"), "/pause", 0o755)
        .entrypoint(["/pause"])
        .write(out.join("pause.tar"))?;

    let root = scratch.join("root");
    let mut proxy = ImageBuilder::new(reference("kube-proxy")?)
        .file(parts.path("kube-proxy"), "/usr/local/bin/kube-proxy", 0o755)
        .file(root.join("usr/sbin/nft"), "/usr/sbin/nft", 0o755)
        .bytes("", "/tmp/.keep", 0o644);
    let root_text = root.display().to_string();
    let libraries = run("chroot", &[&root_text, "ldd", "/usr/sbin/nft"])?;
    for library in libraries
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
    {
        proxy = proxy.file(root.join(library.trim_start_matches('/')), library, 0o755);
    }
    proxy.write(out.join("kube-proxy.tar"))?;
    Ok(())
}

/// The image that holds a pod's namespaces, as kind's configuration of containerd names it.
fn sandbox_image(sources: &Path) -> Result<String> {
    let path = sources.join("images/base/files/etc/containerd/config.toml");
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    text.lines()
        .find_map(|line| line.trim().strip_prefix("sandbox_image = "))
        .map(|value| value.trim_matches('"').to_owned())
        .with_context(|| format!("{} names no sandbox_image", path.display()))
}
