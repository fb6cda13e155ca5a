//! The programs that the ground is made of (Kubernetes, etcd, containerd, CNI plugins, CoreDNS, Helm), built from their Go
//! modules and kept in a cache folder named after their versions, so that only the first run ever builds.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::process::tail;

/// Version of Kubernetes: what `parts/go.mod` requires, and what the programs are told to call themselves.
pub const KUBERNETES: &str = "1.36.3";
/// The sandbox image that containerd 2.4 asks for by this very name; ours is put in its place.
pub const PAUSE_IMAGE: &str = "registry.k8s.io/pause:3.10.2";
/// Version of CoreDNS.
pub const COREDNS: &str = "1.15.0";
/// The module that kind is built from; its sources hold the files of a node image too.
pub const KIND_MODULE: &str = "sigs.k8s.io/kind@v0.33.0";

const GO_MOD: &str = include_str!("../parts/go.mod");
const GO_SUM: &str = include_str!("../parts/go.sum");
const PAUSE_GO: &str = include_str!("../parts/pause/main.go");
const VERSION: &str = "k8s.io/component-base/version";

/// How one program is built.
enum Recipe {
    /// A package of a module that `parts/go.mod` names (those need its `replace` lines).
    Module(&'static str),
    /// A package that installs by itself, with the version.
    Install(&'static str),
}

/// Name, set, how, and about how many seconds it takes on two cores with empty caches.
const RECIPES: &[(&str, Set, Recipe, u32)] = &[
    (
        "etcd",
        Set::ControlPlane,
        Recipe::Module("go.etcd.io/etcd/server/v3"),
        15,
    ),
    (
        "kube-apiserver",
        Set::ControlPlane,
        Recipe::Module("k8s.io/kubernetes/cmd/kube-apiserver"),
        345,
    ),
    (
        "kube-controller-manager",
        Set::ControlPlane,
        Recipe::Module("k8s.io/kubernetes/cmd/kube-controller-manager"),
        80,
    ),
    (
        "kubectl",
        Set::ControlPlane,
        Recipe::Module("k8s.io/kubernetes/cmd/kubectl"),
        40,
    ),
    (
        "kube-scheduler",
        Set::Full,
        Recipe::Module("k8s.io/kubernetes/cmd/kube-scheduler"),
        30,
    ),
    (
        "kubelet",
        Set::Full,
        Recipe::Module("k8s.io/kubernetes/cmd/kubelet"),
        70,
    ),
    (
        "kube-proxy",
        Set::Full,
        Recipe::Module("k8s.io/kubernetes/cmd/kube-proxy"),
        20,
    ),
    (
        "containerd",
        Set::Full,
        Recipe::Install("github.com/containerd/containerd/v2/cmd/containerd@v2.4.2"),
        90,
    ),
    (
        "containerd-shim-runc-v2",
        Set::Full,
        Recipe::Install("github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2@v2.4.2"),
        15,
    ),
    (
        "ctr",
        Set::Full,
        Recipe::Install("github.com/containerd/containerd/v2/cmd/ctr@v2.4.2"),
        15,
    ),
    (
        "bridge",
        Set::Full,
        Recipe::Install("github.com/containernetworking/plugins/plugins/main/bridge@v1.9.1"),
        15,
    ),
    (
        "loopback",
        Set::Full,
        Recipe::Install("github.com/containernetworking/plugins/plugins/main/loopback@v1.9.1"),
        5,
    ),
    (
        "host-local",
        Set::Full,
        Recipe::Install("github.com/containernetworking/plugins/plugins/ipam/host-local@v1.9.1"),
        5,
    ),
    (
        "portmap",
        Set::Full,
        Recipe::Install("github.com/containernetworking/plugins/plugins/meta/portmap@v1.9.1"),
        5,
    ),
    ("pause", Set::Full, Recipe::Module("./pause"), 3),
    (
        "coredns",
        Set::Full,
        Recipe::Install("github.com/coredns/coredns@v1.15.0"),
        60,
    ),
    (
        "helm",
        Set::Full,
        Recipe::Install("helm.sh/helm/v4/cmd/helm@v4.3.1"),
        210,
    ),
    (
        "kubeadm",
        Set::Kind,
        Recipe::Module("k8s.io/kubernetes/cmd/kubeadm"),
        20,
    ),
    ("kind", Set::Kind, Recipe::Install(KIND_MODULE), 20),
];

/// Which programs are wanted; each set contains those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Set {
    /// etcd, API server, controller manager, kubectl: enough for the tiers `api` and `node`.
    ControlPlane,
    /// In addition scheduler, kubelet, kube-proxy, containerd, CNI plugins, CoreDNS and Helm: the tier `cluster`.
    Full,
    /// In addition kind, and kubeadm for a kind node image made from these parts.
    Kind,
}

/// The built programs.
#[derive(Debug, Clone)]
pub struct Parts {
    dir: PathBuf,
    given: BTreeMap<&'static str, PathBuf>,
}

impl Parts {
    /// Finds the parts, without building; fails with the command to run when one is missing.
    pub fn locate(set: Set) -> Result<Self> {
        let parts = Self::new()?;
        if let Some(name) = parts.missing(set).first() {
            bail!(
                "{name} is not built yet (looked in {}): run `cargo run -p cryptvol-e2e -- parts` first; \
                 `cargo xtask test` and `cargo xtask demo` do it by themselves",
                parts.dir.display()
            );
        }
        Ok(parts)
    }

    /// Builds what is missing, telling on standard error what it does and how long it took.
    ///
    /// Each program goes into place by a rename when it is complete, so that an interrupted build goes on where it was, and
    /// only one build runs at a time.
    pub fn ensure(set: Set) -> Result<Self> {
        let parts = Self::new()?;
        if parts.missing(set).is_empty() {
            return Ok(parts);
        }
        fs::create_dir_all(&parts.dir).with_context(|| format!("make {}", parts.dir.display()))?;
        let lock = File::create(parts.dir.join(".lock"))?;
        lock.lock().context("wait for another build of the parts")?;
        let missing = parts.missing(set);
        let scratch = tempfile::Builder::new()
            .prefix(".build-")
            .tempdir_in(&parts.dir)?;
        fs::write(scratch.path().join("go.mod"), GO_MOD)?;
        fs::write(scratch.path().join("go.sum"), GO_SUM)?;
        fs::create_dir(scratch.path().join("pause"))?;
        fs::write(scratch.path().join("pause/main.go"), PAUSE_GO)?;
        let total: u32 = RECIPES
            .iter()
            .filter(|r| missing.contains(&r.0))
            .map(|r| r.3)
            .sum();
        eprintln!(
            "building {} programs from their Go modules into {} (once; about {} min with empty Go caches on 2 cores)",
            missing.len(),
            parts.dir.display(),
            total.div_ceil(60)
        );
        for (number, name) in missing.iter().enumerate() {
            let start = Instant::now();
            eprintln!("  [{}/{}] {name}", number + 1, missing.len());
            parts
                .build(name, scratch.path())
                .with_context(|| format!("build {name}"))?;
            eprintln!(
                "  [{}/{}] {name}: {} s",
                number + 1,
                missing.len(),
                start.elapsed().as_secs()
            );
        }
        Ok(parts)
    }

    fn new() -> Result<Self> {
        let mut given = BTreeMap::new();
        // The convention of controller-runtime's test environment.
        if let Some(assets) = std::env::var_os("KUBEBUILDER_ASSETS").filter(|v| !v.is_empty()) {
            for name in ["etcd", "kube-apiserver", "kubectl"] {
                let path = Path::new(&assets).join(name);
                if path.is_file() {
                    given.insert(name, path);
                }
            }
        }
        Ok(Self {
            dir: cache_dir()?.join("parts").join(recipe_hash()),
            given,
        })
    }

    fn missing(&self, set: Set) -> Vec<&'static str> {
        RECIPES
            .iter()
            .filter(|r| r.1 <= set && !self.path(r.0).is_file())
            .map(|r| r.0)
            .collect()
    }

    /// Where a program lies.
    pub fn path(&self, name: &str) -> PathBuf {
        self.given
            .get(name)
            .cloned()
            .unwrap_or_else(|| self.dir.join(name))
    }

    /// The folder with all programs (those of `KUBEBUILDER_ASSETS` excepted).
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What kubectl and Helm need to work on the control plane in `dir`: `KUBECONFIG`, `PATH` with the parts, caches in `dir`.
    pub fn tool_env(&self, dir: &Path) -> Vec<(String, String)> {
        let path = std::env::var("PATH").unwrap_or_default();
        let in_dir = |name: &str| dir.join(name).display().to_string();
        vec![
            ("KUBECONFIG".into(), in_dir("admin.kubeconfig")),
            ("PATH".into(), format!("{}:{path}", self.dir.display())),
            ("KUBECACHEDIR".into(), in_dir("kube-cache")),
            ("HELM_CACHE_HOME".into(), in_dir("helm/cache")),
            ("HELM_CONFIG_HOME".into(), in_dir("helm/config")),
            ("HELM_DATA_HOME".into(), in_dir("helm/data")),
        ]
    }

    fn build(&self, name: &str, scratch: &Path) -> Result<()> {
        let Some((_, _, recipe, _)) = RECIPES.iter().find(|r| r.0 == name) else {
            bail!("no recipe")
        };
        let out = scratch.join("out");
        fs::create_dir_all(&out)?;
        let log_path = scratch.join("build.log");
        let log = File::create(&log_path)?;
        let mut go = Command::new("go");
        go.current_dir(scratch)
            .env("CGO_ENABLED", "0")
            .env("GOFLAGS", "-trimpath")
            .env("GOWORK", "off");
        let (major, minor) = KUBERNETES
            .rsplit_once('.')
            .and_then(|(v, _)| v.split_once('.'))
            .unwrap_or_default();
        match recipe {
            Recipe::Module(package) => go.args(["build", "-ldflags"]).arg(format!(
                "-s -w -X {VERSION}.gitVersion=v{KUBERNETES} -X {VERSION}.gitMajor={major} -X {VERSION}.gitMinor={minor} \
                 -X {VERSION}.gitTreeState=clean"
            )).arg("-o").arg(out.join(name)).arg(package),
            Recipe::Install(package) => go.env("GOBIN", &out).args(["install", "-ldflags", "-s -w", package]),
        };
        let mut child = go
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context(
                "start `go`: install Go 1.26 or newer from https://go.dev/dl/ and have it in PATH",
            )?;
        let start = Instant::now();
        let mut told = 0;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            std::thread::sleep(Duration::from_millis(200));
            let minutes = start.elapsed().as_secs() / 60;
            if minutes > told {
                told = minutes;
                eprintln!("      {name}: {minutes} min so far");
            }
        };
        if !status.success() {
            bail!("`go` ended with {status}:\n{}", tail(&log_path, 20));
        }
        fs::rename(out.join(name), self.dir.join(name))
            .with_context(|| format!("put {name} into place"))
    }
}

/// The folder for what is built once: `CRYPTVOL_CACHE`, or `cryptvol` in the user's cache folder.
pub fn cache_dir() -> Result<PathBuf> {
    let cache = match (
        std::env::var_os("CRYPTVOL_CACHE"),
        std::env::var_os("XDG_CACHE_HOME"),
        std::env::home_dir(),
    ) {
        (Some(dir), ..) => PathBuf::from(dir),
        (_, Some(dir), _) => PathBuf::from(dir).join("cryptvol"),
        (.., Some(home)) => home.join(".cache/cryptvol"),
        _ => bail!("no home folder: set CRYPTVOL_CACHE to a folder for built programs"),
    };
    Ok(std::path::absolute(cache)?)
}

/// The cache key: everything that the result depends on, apart from the Go version.
fn recipe_hash() -> String {
    let mut hash = Sha256::new();
    for text in [GO_MOD, GO_SUM, PAUSE_GO, KUBERNETES] {
        hash.update(text);
        hash.update([0]);
    }
    for (name, _, recipe, _) in RECIPES {
        hash.update(name);
        hash.update(match recipe {
            Recipe::Module(package) | Recipe::Install(package) => package,
        });
    }
    hex::encode(&hash.finalize()[..8])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_those_of_go_mod() {
        assert!(GO_MOD.contains(&format!("k8s.io/kubernetes v{KUBERNETES}")));
        let coredns = format!("coredns@v{COREDNS}");
        assert!(
            RECIPES
                .iter()
                .any(|r| matches!(r.2, Recipe::Install(p) if p.ends_with(&coredns)))
        );
    }
}
