//! kind as second ground: a Kubernetes whose nodes are containers on the machine's own kernel.
//!
//! Where the machine has a docker daemon (a laptop, a hosted runner) that one is used, with the ordinary node image. Elsewhere a
//! dockerd of our own runs inside the sandbox, with a node image made from the parts; no registry is asked for anything.
//! Without device-mapper in the machine's kernel this ground shows installation, admission and the refusal on an unfit node.

mod docker;
pub mod guard;
pub mod initiator;
pub mod machine;
pub mod node_image;
pub mod oci_runtime;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::parts::{Parts, Set};
use crate::process::{Daemon, run, tail, wait_for};
use docker::{Chosen, Docker};
use machine::Kernel;

/// Making a cluster takes 30 s on two idle cores.
const CREATE_LIMIT: Duration = Duration::from_secs(240);
/// From a Ready node to pods with names and Service addresses; 20 s on two idle cores.
const SYSTEM_PODS_LIMIT: Duration = Duration::from_secs(120);
const COMMAND_LIMIT: Duration = Duration::from_secs(120);
/// Where the nodes see the machine's `/dev`; `nodeAgent.devPath` of the chart is set to it.
pub const HOST_DEV: &str = "/hostdev";

/// Where the nodes see the machine's `/proc`; `nodeAgent.hostProcPath` of the chart is set to it.
pub const HOST_PROC: &str = "/hostproc";

/// What to start.
#[derive(Debug, Clone, Default)]
pub struct KindSpec {
    /// Nodes beside the one with the control plane (which runs pods, too).
    pub workers: u8,
}

/// A running cluster. Dropping it removes it and writes the nodes' logs into the work folder first, because then something failed;
/// [`Kind::stop`] is the ordinary end.
#[derive(Debug)]
pub struct Kind {
    name: String,
    dir: PathBuf,
    parts: Parts,
    docker: Docker,
    kernel: Kernel,
    from_parts: bool,
    stopped: bool,
}

impl Kind {
    /// Starts one with its files in `work`/kind and returns when its system pods are ready.
    pub async fn start(work: &Path, spec: KindSpec) -> Result<Self> {
        let start = Instant::now();
        let parts = Parts::locate(Set::Kind)?;
        let dir = work.join("kind");
        fs::create_dir_all(&dir)?;
        let (docker, name) = match std::env::var(guard::CLUSTER) {
            Ok(name) => (Docker::Machine, name),
            Err(_) => (Docker::start(&dir).await?, "cryptvol".to_owned()),
        };
        let mut kind = Self {
            name,
            dir,
            parts,
            docker,
            kernel: Kernel::detect(),
            from_parts: false,
            stopped: false,
        };
        let workers = spec.workers;
        let image = kind.docker.node_image(&kind.parts)?;
        kind.from_parts = image.from_parts;
        eprintln!(
            "kind: {} docker daemon, node image {}, after {:.1} s",
            match kind.docker {
                Docker::Machine => "the machine's",
                Docker::Own { .. } => "our own",
            },
            image.reference,
            start.elapsed().as_secs_f32()
        );
        let config = kind.dir.join("cluster.json");
        fs::write(
            &config,
            serde_json::to_vec_pretty(&kind.config(&image, spec)?)?,
        )?;
        kind.create(&config).await?;
        eprintln!(
            "kind: nodes are Ready after {:.1} s",
            start.elapsed().as_secs_f32()
        );
        if kind.from_parts && workers > 0 {
            kind.make_routes().await?;
        }
        kind.wait_for_system_pods().await?;
        eprintln!(
            "kind: system pods are ready after {:.1} s",
            start.elapsed().as_secs_f32()
        );
        Ok(kind)
    }

    /// What the kernel under the nodes can do.
    pub fn kernel(&self) -> Kernel {
        self.kernel
    }

    /// Path of the administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.join("kubeconfig")
    }

    /// Name of the first node.
    pub fn control_plane(&self) -> String {
        format!("{}-control-plane", self.name)
    }

    /// `kind load image-archive`: all nodes have the images afterwards.
    pub async fn load(&self, archive: &Path) -> Result<()> {
        let archive = archive.to_str().context("path of an image archive")?;
        self.command(
            "kind",
            &["load", "image-archive", archive, "--name", &self.name],
        )
        .await
        .map(|_| ())
    }

    /// `helm ARGS`.
    pub async fn helm(&self, args: &[&str]) -> Result<String> {
        self.command("helm", args).await
    }

    /// `kubectl ARGS`; an error carries what kubectl said.
    pub async fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.command("kubectl", args).await
    }

    /// `kubectl get ARGS -o json`.
    pub async fn get(&self, args: &[&str]) -> Result<Value> {
        let all = [&["get"], args, &["-o", "json"]].concat();
        Ok(serde_json::from_str(&self.kubectl(&all).await?)?)
    }

    /// `kubectl apply -f -`: the output, or what the API server refused it with.
    pub async fn apply(&self, manifest: &str) -> Result<String> {
        self.command_with("kubectl", &["apply", "-f", "-"], manifest)
            .await
    }

    /// `kubectl port-forward ARGS` from the same port of `address`, until it is dropped; its log is in `dir`.
    pub fn port_forward(
        &self,
        dir: &Path,
        args: &[&str],
        address: &str,
        port: u16,
    ) -> Result<Daemon> {
        let mut kubectl = std::process::Command::new(self.parts.path("kubectl"));
        kubectl
            .args(["port-forward", "--address", address])
            .args(args)
            .arg(port.to_string())
            .envs(self.env());
        Daemon::spawn(dir, "port-forward", kubectl)
    }

    /// A command on a node, outside of any pod.
    pub fn on_node(&self, node: &str, argv: &[&str]) -> Result<String> {
        self.docker
            .run(60, &[&["exec", node], argv].concat())
            .with_context(|| format!("on {node}"))
    }

    /// What is going on, for messages: pods, the latest Events, the end of the logs of pods that are not ready.
    pub async fn explain(&self, namespace: &str) -> String {
        let pods = self.kubectl(&["get", "pods", "-A", "-o", "wide"]).await;
        let events = self
            .kubectl(&["get", "events", "-n", namespace, "--sort-by=.lastTimestamp"])
            .await
            .unwrap_or_default();
        let lines: Vec<&str> = events.lines().collect();
        let logs = self
            .kubectl(&[
                "logs",
                "-n",
                namespace,
                "--all-containers",
                "--tail=15",
                "--prefix",
                "--ignore-errors",
                "--selector",
                "app.kubernetes.io/name",
            ])
            .await;
        let text = |result: Result<String>| result.unwrap_or_else(|error| format!("{error:#}"));
        format!(
            "{}\n{}\n{}",
            text(pods),
            lines[lines.len().saturating_sub(20)..].join("\n"),
            text(logs)
        )
    }

    /// Removes the cluster and, if it is ours, the docker daemon.
    pub fn stop(mut self) -> Result<()> {
        self.remove()
    }

    /// `kind delete cluster` without what only matters to a user's kubeconfig.
    fn remove(&mut self) -> Result<()> {
        if self.stopped {
            return Ok(());
        }
        self.stopped = true;
        let label = format!("label=io.x-k8s.kind.cluster={}", self.name);
        let nodes = self
            .docker
            .run(30, &["ps", "--all", "--quiet", "--filter", &label])?;
        for node in nodes.split_whitespace() {
            self.docker.run(60, &["rm", "--force", "--volumes", node])?;
        }
        self.docker.stop()
    }

    fn config(&self, image: &Chosen, spec: KindSpec) -> Result<Value> {
        let node = |role: &str| -> Result<Value> {
            let mut mounts = vec![
                json!({"hostPath": self.dev()?, "containerPath": HOST_DEV}),
                json!({"hostPath": "/proc", "containerPath": HOST_PROC}),
            ];
            if Path::new("/run/udev").is_dir() {
                mounts.push(json!({"hostPath": "/run/udev", "containerPath": "/run/udev"}));
            }
            Ok(json!({"role": role, "image": image.reference, "extraMounts": mounts}))
        };
        let mut nodes = vec![node("control-plane")?];
        for _ in 0..spec.workers {
            nodes.push(node("worker")?);
        }
        let mut config = json!({
            "kind": "Cluster",
            "apiVersion": "kind.x-k8s.io/v1alpha4",
            "nodes": nodes,
        });
        if image.from_parts {
            // Its pods are wired by containerd, and its kube-proxy has `nft` only. The two patches matter on a machine with the old
            // control groups or without CAP_SYS_RESOURCE.
            config["networking"] = json!({"disableDefaultCNI": true, "kubeProxyMode": "nftables"});
            config["kubeadmConfigPatches"] =
                json!(["kind: KubeletConfiguration\nfailCgroupV1: false\n"]);
            config["containerdConfigPatches"] = json!([
                "[plugins.\"io.containerd.grpc.v1.cri\"]\n  restrict_oom_score_adj = true\n"
            ]);
        }
        Ok(config)
    }

    /// The machine's `/dev` where it is of use. Elsewhere a folder with the devices that every program expects, so that nothing that
    /// runs in the cluster can reach the machine's.
    fn dev(&self) -> Result<PathBuf> {
        use nix::sys::stat::{Mode, SFlag, makedev, mknod};
        if self.kernel.device_mapper || matches!(self.docker, Docker::Machine) {
            return Ok("/dev".into());
        }
        // In the sandbox's own /run: device nodes work there, and it goes with the sandbox.
        let dev = PathBuf::from("/run/cryptvol-kind-dev");
        fs::create_dir_all(dev.join("shm"))?;
        for (name, minor) in [
            ("null", 3),
            ("zero", 5),
            ("full", 7),
            ("random", 8),
            ("urandom", 9),
        ] {
            let path = dev.join(name);
            if !path.exists() {
                let mode = Mode::from_bits_truncate(0o666);
                mknod(&path, SFlag::S_IFCHR, mode, makedev(1, minor))
                    .with_context(|| format!("make {}", path.display()))?;
                fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o666))?;
            }
        }
        Ok(dev)
    }

    async fn create(&self, config: &Path) -> Result<()> {
        let log_path = self.dir.join("create.log");
        let log = fs::File::create(&log_path)?;
        let mut command = tokio::process::Command::new(self.parts.path("kind"));
        command
            .args(["create", "cluster", "--name", &self.name, "--retain"])
            .arg("--config")
            .arg(config)
            .arg("--kubeconfig")
            .arg(self.kubeconfig())
            .args(["--wait", "120s"])
            .envs(self.env())
            .kill_on_drop(true)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let mut child = command.spawn().context("start kind")?;
        let how = match tokio::time::timeout(CREATE_LIMIT, child.wait()).await {
            Ok(status) => {
                let status = status?;
                if status.success() {
                    return Ok(());
                }
                format!("ended with {status}")
            }
            Err(_) => format!("did not end in {CREATE_LIMIT:?}"),
        };
        let journal = "journalctl -u kubelet -u containerd -n 20 --no-pager";
        let journal: Vec<&str> = journal.split(' ').collect();
        let node = self.on_node(&self.control_plane(), &journal);
        bail!(
            "kind create cluster {how}:\n{}\n{}",
            tail(&log_path, 30),
            node.unwrap_or_else(|error| format!("{error:#}"))
        )
    }

    /// What kindnet would do.
    async fn make_routes(&self) -> Result<()> {
        let nodes = self.get(&["nodes"]).await?;
        let nodes: Vec<[String; 3]> = nodes["items"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|node| {
                let address = node["status"]["addresses"]
                    .as_array()?
                    .iter()
                    .find(|a| a["type"] == "InternalIP")?;
                Some([
                    node["metadata"]["name"].as_str()?.to_owned(),
                    address["address"].as_str()?.to_owned(),
                    node["spec"]["podCIDR"].as_str()?.to_owned(),
                ])
            })
            .collect();
        for [from, _, _] in &nodes {
            for [to, address, range] in &nodes {
                if from != to {
                    self.on_node(from, &["ip", "route", "replace", range, "via", address])?;
                }
            }
        }
        Ok(())
    }

    async fn wait_for_system_pods(&self) -> Result<()> {
        let limit = format!("--timeout={}s", SYSTEM_PODS_LIMIT.as_secs());
        for what in ["daemonset/kube-proxy", "deployment/coredns"] {
            let waited = self
                .kubectl(&["-n", "kube-system", "rollout", "status", what, &limit])
                .await;
            if let Err(error) = waited {
                return Err(error.context(self.explain("kube-system").await));
            }
        }
        wait_for(
            "the default service account",
            SYSTEM_PODS_LIMIT,
            || async {
                let account = self.kubectl(&["get", "serviceaccount", "default"]).await;
                Ok(account.ok().map(|_| ()))
            },
            String::new,
        )
        .await
    }

    async fn command(&self, name: &str, args: &[&str]) -> Result<String> {
        self.command_with(name, args, "").await
    }

    async fn command_with(&self, name: &str, args: &[&str], input: &str) -> Result<String> {
        use tokio::io::AsyncWriteExt;
        let limit = COMMAND_LIMIT + Duration::from_secs(30);
        let mut child = tokio::process::Command::new(self.parts.path(name))
            .args(args)
            .envs(self.env())
            .kill_on_drop(true)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {name}"))?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.as_bytes()).await?;
        }
        let output = tokio::time::timeout(limit, child.wait_with_output())
            .await
            .with_context(|| format!("{name} {} did not end in {limit:?}", args.join(" ")))??;
        if !output.status.success() {
            bail!(
                "{name} {}: {}",
                args.join(" "),
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// For kind, kubectl and Helm.
    fn env(&self) -> Vec<(String, String)> {
        let dir = self.dir.display();
        let path = std::env::var("PATH").unwrap_or_default();
        let mut env = vec![
            ("KUBECONFIG".into(), self.kubeconfig().display().to_string()),
            ("KIND_EXPERIMENTAL_PROVIDER".into(), "docker".into()),
            (
                "PATH".into(),
                format!("{path}:{}", self.parts.dir().display()),
            ),
            ("KUBECACHEDIR".into(), format!("{dir}/kube-cache")),
            ("HELM_CACHE_HOME".into(), format!("{dir}/helm/cache")),
            ("HELM_CONFIG_HOME".into(), format!("{dir}/helm/config")),
            ("HELM_DATA_HOME".into(), format!("{dir}/helm/data")),
        ];
        env.extend(self.docker.env());
        env
    }
}

impl Drop for Kind {
    fn drop(&mut self) {
        if !self.stopped {
            let logs = self.dir.join("logs");
            let mut kind = std::process::Command::new("timeout");
            kind.arg("60")
                .arg(self.parts.path("kind"))
                .args(["export", "logs", "--name", &self.name])
                .arg(&logs)
                .envs(self.env())
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            // Nothing to be done about failures here; kind goes on after those of single commands.
            let _ = kind.status();
            let _ = self.remove();
        }
    }
}

/// A short command that is ended after so many seconds.
fn timed(seconds: u32, program: &str, args: &[&str]) -> Result<String> {
    let limit = seconds.to_string();
    run(
        "timeout",
        &[&["--kill-after=5", &limit, program], args].concat(),
    )
}
