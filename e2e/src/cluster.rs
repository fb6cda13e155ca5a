//! A whole cluster: control plane, Kubernetes nodes with kernels of their own, DNS, and an iSCSI array beside it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1 as core;
use kube::Api;
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, MutexGuard, OnceCell};

use crate::array::Array;
use crate::control_plane::{ControlPlane, DNS_IP, Options, SERVICE_CIDR};
use crate::image::ImageBuilder;
use crate::node::{KubeletSpec, Node, NodeSpec};
use crate::parts::{COREDNS, PAUSE_IMAGE, Parts, Set};
use crate::process::{run, tail, wait_for};
use crate::sandbox;
use crate::workdir;

/// Set by `cryptvol-e2e sandbox` when it joins a kept cluster: that cluster's folder.
pub const DIR: &str = "CRYPTVOL_E2E_CLUSTER_DIR";
/// Two nodes are Ready after 41 to 92 s on two cores; a loaded machine takes longer.
const NODE_LIMIT: Duration = Duration::from_secs(420);
const DNS_LIMIT: Duration = Duration::from_secs(180);
const COREDNS_MANIFEST: &str = include_str!("../assets/coredns.yaml");

/// How large a cluster.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ClusterOptions {
    /// Kubernetes nodes, `node-1` and so on; 1 to 9.
    pub nodes: u8,
    /// Memory of each, in MiB, taken from the machine as it is used.
    pub memory_mib: u32,
    /// Image archives that every node loads at each boot.
    pub images: Vec<PathBuf>,
}

impl Default for ClusterOptions {
    fn default() -> Self {
        Self {
            nodes: 2,
            memory_mib: 3072,
            images: Vec::new(),
        }
    }
}

/// A running cluster.
#[derive(Debug)]
pub struct Cluster {
    /// API server and all that belongs to it.
    pub plane: ControlPlane,
    /// `node-1`, `node-2`, …
    pub nodes: Vec<Node>,
    /// The array, reachable from every node.
    pub array: Array,
    parts: Parts,
    dir: PathBuf,
}

static SHARED: OnceCell<Mutex<Cluster>> = OnceCell::const_new();

impl Cluster {
    /// The one cluster of a test program: the kept one that the sandbox joined (`CRYPTVOL_E2E_CLUSTER`), or a new one for all
    /// tests in this program. Holding the guard keeps other tests away. `images` are loaded in either case.
    pub async fn shared(images: &[PathBuf]) -> Result<MutexGuard<'static, Self>> {
        let cluster = SHARED
            .get_or_try_init(|| async {
                let cluster = match std::env::var_os(DIR) {
                    Some(dir) => Self::attach(Path::new(&dir))?,
                    None => {
                        let dir = workdir::base()
                            .join("tests")
                            .join(format!("cluster-{}", unique()?));
                        Self::start(&dir, ClusterOptions::default()).await?
                    }
                };
                for image in images {
                    cluster.load_image(image).await?;
                }
                anyhow::Ok(Mutex::new(cluster))
            })
            .await?;
        Ok(cluster.lock().await)
    }

    /// Starts one, telling on standard error what takes long, and returns when all nodes are Ready and names resolve.
    pub async fn start(dir: &Path, options: ClusterOptions) -> Result<Self> {
        sandbox::require()?;
        let parts = Parts::locate(Set::Full)?;
        fs::create_dir_all(dir)?;
        let images = dir.join("images");
        fs::create_dir_all(&images)?;

        let step = Step::begin("control plane");
        let plane = ControlPlane::start(
            &dir.join("control-plane"),
            &parts,
            Options {
                controller_manager: true,
                scheduler: true,
            },
        )
        .await?;
        step.done();

        let step = Step::begin("images of pause and CoreDNS");
        let coredns = format!("cryptvol.test/coredns:{COREDNS}");
        ImageBuilder::new(PAUSE_IMAGE)
            .file(parts.path("pause"), "/pause", 0o755)
            .entrypoint(["/pause"])
            .user("65535:65535")
            .write(images.join("0-pause.tar"))?;
        ImageBuilder::new(&coredns)
            .file(parts.path("coredns"), "/coredns", 0o755)
            .entrypoint(["/coredns"])
            .user("65532:65532")
            .write(images.join("1-coredns.tar"))?;
        for image in &options.images {
            place_image(&images, image)?;
        }
        step.done();

        let step = Step::begin(&format!(
            "{} nodes: kernel, udev, containerd, kubelet",
            options.nodes
        ));
        plane.write_kubeconfig("kube-proxy", "system:kube-proxy", &[])?;
        let mut nodes = Vec::new();
        for index in 1..=options.nodes {
            let name = format!("node-{index}");
            plane.write_kubeconfig(&name, &format!("system:node:{name}"), &["system:nodes"])?;
            let spec = NodeSpec {
                index,
                memory_mib: options.memory_mib,
                kubelet: Some(KubeletSpec {
                    credentials: plane.dir().into(),
                    images: images.clone(),
                    parts: parts.dir().into(),
                }),
                ..NodeSpec::bare(&name)
            };
            nodes.push(Node::begin(&dir.join(&name), spec)?);
        }
        // So that the harness itself reaches Services, through the first node.
        run(
            "ip",
            &[
                "route",
                "replace",
                SERVICE_CIDR,
                "via",
                &nodes[0].ip().to_string(),
            ],
        )?;
        let array = Array::start(&dir.join("array")).await?;
        plane
            .apply(
                &COREDNS_MANIFEST
                    .replace("@IMAGE@", &coredns)
                    .replace("@DNS@", DNS_IP)
                    .replace("@REPLICAS@", &options.nodes.min(2).to_string()),
            )
            .await?;
        let mut cluster = Self {
            plane,
            nodes,
            array,
            parts,
            dir: dir.into(),
        };
        for at in 0..cluster.nodes.len() {
            cluster.nodes[at].wait_until_up().await?;
        }
        for node in &cluster.nodes {
            cluster.wait_node_ready(node).await?;
        }
        step.done();

        let step = Step::begin("DNS");
        cluster
            .wait_deployment("kube-system", "coredns", DNS_LIMIT)
            .await?;
        step.done();
        fs::write(
            dir.join("cluster.json"),
            serde_json::to_vec_pretty(&options)?,
        )?;
        Ok(cluster)
    }

    /// Takes over a cluster that another process of this sandbox started; dropping this value stops nothing.
    pub fn attach(dir: &Path) -> Result<Self> {
        let text = fs::read(dir.join("cluster.json"))
            .with_context(|| format!("no complete cluster in {}", dir.display()))?;
        let options: ClusterOptions = serde_json::from_slice(&text)?;
        let parts = Parts::locate(Set::Full)?;
        Ok(Self {
            plane: ControlPlane::attach(&dir.join("control-plane"), &parts)?,
            nodes: (1..=options.nodes)
                .map(|index| Node::attach(&dir.join(format!("node-{index}"))))
                .collect::<Result<_>>()?,
            array: Array::attach(&dir.join("array"))?,
            parts,
            dir: dir.into(),
        })
    }

    /// The folder with everything.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The programs that it is made of, Helm among them.
    pub fn parts(&self) -> &Parts {
        &self.parts
    }

    /// The node of that name.
    pub fn node(&self, name: &str) -> Result<&Node> {
        self.nodes
            .iter()
            .find(|n| n.name() == name)
            .with_context(|| format!("there is no node {name}"))
    }

    /// The node of that name, to switch it off and on.
    pub fn node_mut(&mut self, name: &str) -> Result<&mut Node> {
        self.nodes
            .iter_mut()
            .find(|n| n.name() == name)
            .with_context(|| format!("there is no node {name}"))
    }

    /// Switches a node on after a power cut and returns when the API server has heard from that very boot.
    pub async fn start_node(&mut self, name: &str) -> Result<()> {
        self.node_mut(name)?.start().await?;
        self.wait_node_ready(self.node(name)?).await
    }

    /// Gives an image archive to all nodes, now and at each later boot. Its reference is the one that it was written with.
    pub async fn load_image(&self, archive: &Path) -> Result<()> {
        let name = place_image(&self.dir.join("images"), archive)?;
        let ctr = self.parts.path("ctr");
        let (ctr, file) = (ctr.display().to_string(), format!("/cv-images/{name}"));
        let import = [
            ctr.as_str(),
            "-n",
            "k8s.io",
            "images",
            "import",
            "--local",
            &file,
        ];
        for node in self.nodes.iter().filter(|n| n.is_running()) {
            node.exec_with(&import, &[], b"", Duration::from_secs(300))
                .await?
                .ok()?;
        }
        Ok(())
    }

    /// Runs Helm against the cluster, from the root of the checkout.
    pub async fn helm(&self, args: &[&str]) -> Result<String> {
        let output = tokio::process::Command::new(self.parts.path("helm"))
            .args(args)
            .current_dir(workdir::workspace_root())
            .envs(self.plane.env())
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(Duration::from_secs(600), output)
            .await
            .with_context(|| format!("helm {} did not end in 600 s", args.join(" ")))?
            .context("start helm")?;
        anyhow::ensure!(
            output.status.success(),
            "helm {}: {}",
            args.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Waits until the node's present boot is the one that the API server calls Ready (for a while after a power cut it still
    /// shows what it heard last).
    pub async fn wait_node_ready(&self, node: &Node) -> Result<()> {
        let nodes: Api<core::Node> = Api::all(self.plane.client()?);
        let boot_id = node.sh("cat /proc/sys/kernel/random/boot_id").await?.ok()?;
        let boot_id = boot_id.trim();
        wait_for(
            &format!("{} to be Ready", node.name()),
            NODE_LIMIT,
            || async {
                let Some(status) = nodes.get_opt(node.name()).await?.and_then(|n| n.status) else {
                    return Ok(None);
                };
                let this_boot = status.node_info.is_some_and(|info| info.boot_id == boot_id);
                let ready = status
                    .conditions
                    .iter()
                    .flatten()
                    .any(|c| c.type_ == "Ready" && c.status == "True");
                Ok((this_boot && ready).then_some(()))
            },
            || {
                let mut text = tail(&node.console_path(), 5);
                for log in ["containerd", "kubelet"] {
                    text += &format!("\n--- {log}\n{}", tail(&node.log_path(log), 10));
                }
                text
            },
        )
        .await
    }

    /// Waits until a Deployment has all its replicas available; on timeout the error shows its pods.
    pub async fn wait_deployment(
        &self,
        namespace: &str,
        name: &str,
        limit: Duration,
    ) -> Result<()> {
        let deployments: Api<Deployment> = Api::namespaced(self.plane.client()?, namespace);
        let done = wait_for(
            &format!("Deployment {namespace}/{name} to be available"),
            limit,
            || async {
                let deployment = deployments.get_opt(name).await?;
                let wanted = deployment
                    .as_ref()
                    .and_then(|d| d.spec.as_ref()?.replicas)
                    .unwrap_or(1);
                let status = deployment.and_then(|d| d.status).unwrap_or_default();
                Ok((status.available_replicas == Some(wanted)
                    && status.updated_replicas == Some(wanted))
                .then_some(()))
            },
            String::new,
        )
        .await;
        if let Err(error) = done {
            let pods = self
                .plane
                .kubectl(&["get", "pods", "-A", "-o", "wide"])
                .await
                .unwrap_or_default();
            let events = self
                .plane
                .kubectl(&["get", "events", "-n", namespace])
                .await
                .unwrap_or_default();
            return Err(error.context(format!("{pods}\n{events}")));
        }
        Ok(())
    }
}

/// Puts an archive into the folder that all nodes load at boot, and returns its name there.
fn place_image(images: &Path, archive: &Path) -> Result<String> {
    let name = archive
        .file_name()
        .and_then(|n| n.to_str())
        .context("an image archive needs a file name")?
        .to_owned();
    let place = images.join(&name);
    let part = images.join(format!(".{name}.part"));
    let _ = fs::remove_file(&part);
    // A link costs nothing; another file system needs a copy.
    if fs::hard_link(archive, &part).is_err() {
        fs::copy(archive, &part).with_context(|| format!("copy {}", archive.display()))?;
    }
    fs::rename(&part, &place)?;
    Ok(name)
}

fn unique() -> Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/uuid")?
        .chars()
        .take(8)
        .collect())
}

/// One line when something long begins, one with its time when it is done.
struct Step {
    what: String,
    start: Instant,
}

impl Step {
    fn begin(what: &str) -> Self {
        eprintln!("  {what} …");
        Self {
            what: what.into(),
            start: Instant::now(),
        }
    }

    fn done(self) {
        eprintln!(
            "  {}: {:.0} s",
            self.what,
            self.start.elapsed().as_secs_f32()
        );
    }
}
