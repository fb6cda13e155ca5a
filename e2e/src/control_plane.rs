//! etcd, kube-apiserver, kube-controller-manager and, where pods are to run, kube-scheduler.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rcgen::KeyPair;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::audit_log::{self, AuditLog};
use crate::parts::Parts;
use crate::pki::{Authority, Identity};
use crate::process::{Daemon, free_port, wait_for};
use crate::sandbox::{self, BRIDGE_IP};

/// Addresses of Services.
pub const SERVICE_CIDR: &str = "10.96.0.0/16";
/// The cluster's DNS server.
pub const DNS_IP: &str = "10.96.0.10";
/// Addresses of pods; node N has `10.78.N.0/24`.
pub const POD_CIDR: &str = "10.78.0.0/16";

/// Issuer of service-account tokens.
const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
/// From nothing to an API server that answers; 5 s on an idle machine.
const START_LIMIT: Duration = Duration::from_secs(180);

/// What to start beside etcd and the API server.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Options {
    /// Needed for service accounts' clean-up, namespaces' deletion, owner references, Jobs and Deployments.
    pub controller_manager: bool,
    /// Needed where pods are to run. Without it nobody watches the nodes' heartbeats either: nodes are what a test says.
    pub scheduler: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            controller_manager: true,
            scheduler: false,
        }
    }
}

/// A running control plane. Several can run beside each other in one sandbox.
#[derive(Debug)]
pub struct ControlPlane {
    dir: PathBuf,
    parts: Parts,
    ca: Authority,
    state: State,
    daemons: Vec<(&'static str, Daemon)>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct State {
    options: Options,
    port: u16,
    etcd_port: u16,
    etcd_peer_port: u16,
}

const ETCD: &str = "etcd";
const API_SERVER: &str = "kube-apiserver";
const CONTROLLER_MANAGER: &str = "kube-controller-manager";
const SCHEDULER: &str = "kube-scheduler";

impl ControlPlane {
    /// Starts one with its files in `dir` and returns when it is ready.
    pub async fn start(dir: &Path, parts: &Parts, options: Options) -> Result<Self> {
        sandbox::require()?;
        init_tls();
        fs::create_dir_all(dir)?;
        let mut plane = Self {
            dir: dir.into(),
            parts: parts.clone(),
            ca: Authority::open(dir)?,
            state: State {
                options,
                port: free_port()?,
                etcd_port: free_port()?,
                etcd_peer_port: free_port()?,
            },
            daemons: Vec::new(),
        };
        plane.write_files()?;
        plane.spawn(ETCD)?;
        plane.start_api_server().await?;
        if options.controller_manager {
            plane.spawn(CONTROLLER_MANAGER)?;
        }
        if options.scheduler {
            plane.spawn(SCHEDULER)?;
        }
        if options.controller_manager {
            plane.wait_for_service_account("default").await?;
        }
        Ok(plane)
    }

    /// Takes over one that another process of this sandbox started; dropping this value stops nothing.
    pub fn attach(dir: &Path, parts: &Parts) -> Result<Self> {
        sandbox::require()?;
        init_tls();
        let text = fs::read(dir.join("state.json"))
            .with_context(|| format!("no control plane in {}", dir.display()))?;
        let mut plane = Self {
            dir: dir.into(),
            parts: parts.clone(),
            ca: Authority::open(dir)?,
            state: serde_json::from_slice(&text)?,
            daemons: Vec::new(),
        };
        for name in [ETCD, API_SERVER, CONTROLLER_MANAGER, SCHEDULER] {
            if let Ok(daemon) = Daemon::open(dir, name) {
                plane.daemons.push((name, daemon));
            }
        }
        Ok(plane)
    }

    /// `https://10.77.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("https://{BRIDGE_IP}:{}", self.state.port)
    }

    /// The authority that clients of the API server trust; it may sign other certificates of the run too.
    pub fn authority(&self) -> &Authority {
        &self.ca
    }

    /// The folder with all logs, certificates and kubeconfig files.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// etcd's files, for searching them.
    pub fn etcd_dir(&self) -> PathBuf {
        self.dir.join("etcd-data")
    }

    /// The API server's record of requests.
    pub fn audit_log(&self) -> AuditLog {
        AuditLog::new(self.dir.join("audit.log"))
    }

    /// Path of the administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.join("admin.kubeconfig")
    }

    /// A client with all rights. Make a new one in each test: a client belongs to the async runtime that made it.
    pub fn client(&self) -> Result<kube::Client> {
        self.client_as("admin", &["system:masters"])
    }

    /// A client with a certificate of this user and these groups, for example
    /// `("system:node:node-1", &["system:nodes"])`.
    pub fn client_as(&self, user: &str, groups: &[&str]) -> Result<kube::Client> {
        let kubeconfig =
            serde_json::from_value(self.kubeconfig_for(&self.ca.client(user, groups)?))?;
        client_from(kubeconfig)
    }

    /// A client that shows this bearer token (a service account's).
    pub fn client_with_token(&self, token: &str) -> Result<kube::Client> {
        client_from(serde_json::from_value(
            self.kubeconfig_value(&json!({ "token": token })),
        )?)
    }

    /// Writes `NAME.kubeconfig` with a new certificate and returns its path.
    pub fn write_kubeconfig(&self, name: &str, user: &str, groups: &[&str]) -> Result<PathBuf> {
        let path = self.dir.join(format!("{name}.kubeconfig"));
        let identity = self.ca.client(user, groups)?;
        // JSON is YAML.
        fs::write(
            &path,
            serde_json::to_vec_pretty(&self.kubeconfig_for(&identity))?,
        )?;
        Ok(path)
    }

    /// Writes `NAME.kubeconfig` that shows this bearer token (a service account's) and returns its path.
    pub fn write_token_kubeconfig(&self, name: &str, token: &str) -> Result<PathBuf> {
        let path = self.dir.join(format!("{name}.kubeconfig"));
        let kubeconfig = self.kubeconfig_value(&json!({ "token": token }));
        fs::write(&path, serde_json::to_vec_pretty(&kubeconfig)?)?;
        Ok(path)
    }

    /// Runs `kubectl ARGS` as the administrator; an error carries what kubectl said.
    pub async fn kubectl(&self, args: &[&str]) -> Result<String> {
        let output = self.kubectl_output(args, None).await?;
        if !output.status.success() {
            bail!(
                "kubectl {}: {}",
                args.join(" "),
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// `kubectl apply -f -`: the output, or what the API server refused it with.
    pub async fn apply(&self, manifest: &str) -> Result<String> {
        let output = self
            .kubectl_output(&["apply", "-f", "-"], Some(manifest))
            .await?;
        if !output.status.success() {
            bail!(
                "kubectl apply: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// As [`ControlPlane::kubectl`], whatever the exit code.
    pub async fn kubectl_output(
        &self,
        args: &[&str],
        input: Option<&str>,
    ) -> Result<std::process::Output> {
        use tokio::io::AsyncWriteExt;
        let mut command = tokio::process::Command::new(self.parts.path("kubectl"));
        command.args(args).envs(self.env()).kill_on_drop(true);
        command.stdin(if input.is_some() {
            std::process::Stdio::piped()
        } else {
            std::process::Stdio::null()
        });
        command
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped());
        let mut child = command.spawn().context("start kubectl")?;
        if let (Some(text), Some(mut pipe)) = (input, child.stdin.take()) {
            pipe.write_all(text.as_bytes()).await?;
        }
        tokio::time::timeout(Duration::from_secs(300), child.wait_with_output())
            .await
            .with_context(|| format!("kubectl {} did not end in 300 s", args.join(" ")))?
            .context("run kubectl")
    }

    /// What kubectl and Helm need: `KUBECONFIG`, `PATH` with the parts, and their caches in the run's folder.
    pub fn env(&self) -> Vec<(String, String)> {
        self.parts.tool_env(&self.dir)
    }

    /// Kills the API server, as a crash would. etcd and the others stay.
    pub fn stop_api_server(&mut self) -> Result<()> {
        self.stop(API_SERVER)
    }

    /// Starts it (again) on the same port and returns when it is ready.
    pub async fn start_api_server(&mut self) -> Result<()> {
        self.spawn(API_SERVER)?;
        let client = self.client()?;
        let daemon = self.daemon(API_SERVER)?;
        let etcd = self.daemon(ETCD)?;
        wait_for(
            "the API server to be ready",
            START_LIMIT,
            || async {
                daemon.check()?;
                etcd.check()?;
                let request = http_get("/readyz")?;
                Ok(client.request_text(request).await.is_ok().then_some(()))
            },
            || format!("{}\n{}", etcd.log_tail(5), daemon.log_tail(20)),
        )
        .await
    }

    /// The admission plugin ServiceAccount refuses pods until the controller made the namespace's account.
    pub async fn wait_for_service_account(&self, namespace: &str) -> Result<()> {
        let accounts: kube::Api<k8s_openapi::api::core::v1::ServiceAccount> =
            kube::Api::namespaced(self.client()?, namespace);
        wait_for(
            &format!("the default service account of namespace {namespace}"),
            Duration::from_secs(60),
            || async { Ok(accounts.get_opt("default").await?.map(|_| ())) },
            || {
                self.daemon(CONTROLLER_MANAGER)
                    .map(|d| d.log_tail(20))
                    .unwrap_or_default()
            },
        )
        .await
    }

    /// Fails with the end of the log of a part that ended by itself.
    pub fn check(&self) -> Result<()> {
        self.daemons
            .iter()
            .try_for_each(|(_, daemon)| daemon.check())
    }

    fn daemon(&self, name: &str) -> Result<&Daemon> {
        self.daemons
            .iter()
            .find(|d| d.0 == name)
            .map(|d| &d.1)
            .with_context(|| format!("{name} is not running"))
    }

    fn stop(&mut self, name: &str) -> Result<()> {
        if let Some(at) = self.daemons.iter().position(|d| d.0 == name) {
            self.daemons.remove(at).1.kill()?;
        }
        Ok(())
    }

    fn spawn(&mut self, name: &'static str) -> Result<()> {
        self.stop(name)?;
        let mut command = Command::new(self.parts.path(name));
        command.current_dir(&self.dir).args(match name {
            ETCD => self.etcd_args(),
            API_SERVER => self.api_server_args(),
            CONTROLLER_MANAGER => self.controller_manager_args(),
            _ => words("--kubeconfig scheduler.kubeconfig --leader-elect=false --secure-port 0"),
        });
        let daemon = Daemon::spawn(&self.dir, name, command)?;
        self.daemons.push((name, daemon));
        Ok(())
    }

    fn etcd_args(&self) -> Vec<String> {
        let client = format!("http://127.0.0.1:{}", self.state.etcd_port);
        let peer = format!("http://127.0.0.1:{}", self.state.etcd_peer_port);
        words(&format!(
            "--data-dir {} --unsafe-no-fsync --log-level warn --listen-client-urls {client} \
             --advertise-client-urls {client} --listen-peer-urls {peer} --initial-advertise-peer-urls {peer} \
             --initial-cluster default={peer}",
            self.etcd_dir().display()
        ))
    }

    fn api_server_args(&self) -> Vec<String> {
        words(&format!(
            "--etcd-servers http://127.0.0.1:{etcd} --bind-address {BRIDGE_IP} --advertise-address {BRIDGE_IP} \
             --secure-port {port} --tls-cert-file api.crt --tls-private-key-file api.key --client-ca-file ca.crt \
             --service-account-issuer {ISSUER} --service-account-key-file sa.pub \
             --service-account-signing-key-file sa.key --service-cluster-ip-range {SERVICE_CIDR} \
             --authorization-mode Node,RBAC --enable-admission-plugins NodeRestriction --allow-privileged \
             --kubelet-client-certificate kubelet-client.crt --kubelet-client-key kubelet-client.key \
             --kubelet-preferred-address-types InternalIP \
             --audit-policy-file audit-policy.json --audit-log-path audit.log",
            etcd = self.state.etcd_port,
            port = self.state.port,
        ))
    }

    fn controller_manager_args(&self) -> Vec<String> {
        let controllers = if self.state.options.scheduler {
            "*"
        } else {
            "*,-node-lifecycle-controller"
        };
        let mut args = words(
            "--kubeconfig controller-manager.kubeconfig --service-account-private-key-file sa.key \
             --root-ca-file ca.crt --use-service-account-credentials --leader-elect=false --secure-port 0 \
             --cluster-signing-cert-file ca.crt --cluster-signing-key-file ca.key",
        );
        args.push(format!("--controllers={controllers}"));
        args
    }

    fn write_files(&self) -> Result<()> {
        let dir = &self.dir;
        let names = [
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
            "localhost",
            BRIDGE_IP,
            "127.0.0.1",
            "10.96.0.1",
        ];
        self.ca.server(&names)?.write(dir, "api")?;
        self.ca
            .client("kube-apiserver", &["system:masters"])?
            .write(dir, "kubelet-client")?;
        let accounts = KeyPair::generate()?;
        fs::write(dir.join("sa.key"), accounts.serialize_pem())?;
        fs::write(dir.join("sa.pub"), accounts.public_key_pem())?;
        fs::write(dir.join("audit-policy.json"), audit_log::POLICY)?;
        fs::write(dir.join("audit.log"), "")?;
        self.write_kubeconfig("admin", "admin", &["system:masters"])?;
        self.write_kubeconfig("controller-manager", "system:kube-controller-manager", &[])?;
        self.write_kubeconfig("scheduler", "system:kube-scheduler", &[])?;
        fs::write(dir.join("state.json"), serde_json::to_vec(&self.state)?)?;
        Ok(())
    }

    fn kubeconfig_for(&self, identity: &Identity) -> Value {
        self.kubeconfig_value(&json!({
            "client-certificate-data": base64(&identity.certificate),
            "client-key-data": base64(&identity.key),
        }))
    }

    fn kubeconfig_value(&self, user: &Value) -> Value {
        json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "cryptvol", "cluster": {
                "server": self.url(), "certificate-authority-data": base64(self.ca.certificate()),
            }}],
            "users": [{"name": "user", "user": user}],
            "contexts": [{"name": "cryptvol", "context": {"cluster": "cryptvol", "user": "user"}}],
            "current-context": "cryptvol",
        })
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        // In reverse: whoever loses its server first would only fill its log.
        while self.daemons.pop().is_some() {}
    }
}

/// Chooses the cryptography for TLS in this process; calling it again does nothing.
pub fn init_tls() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}

fn client_from(kubeconfig: kube::config::Kubeconfig) -> Result<kube::Client> {
    // Everything is inline, so that no file is read and nothing waits.
    let config = futures::executor::block_on(kube::Config::from_custom_kubeconfig(
        kubeconfig,
        &kube::config::KubeConfigOptions::default(),
    ))?;
    Ok(kube::Client::try_from(config)?)
}

fn http_get(path: &str) -> Result<http::Request<Vec<u8>>> {
    Ok(http::Request::get(path).body(Vec::new())?)
}

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

fn base64(text: &str) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(text)
}
