//! A small site without kubelets: control plane, identity service, operators, an array, and bare nodes with the agent as it
//! ships. Everything is a process of its own; service accounts, roles and node-bound tokens are the real ones.
//!
//! The `node` tier runs on it: a node boots in 3 s, so that a test may cut its power as often as it likes.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use cryptvol_crds::{EncryptedVolume, EncryptionClass, KeyService, NodeVolume, names, rbac};
use kube::CustomResourceExt;
use serde_json::json;

use crate::array::Array;
use crate::control_plane::{ControlPlane, Options};
use crate::identity_service::{self, IdentityService, product_binary};
use crate::keystone::{Keystone, Tenant};
use crate::node::{Node, NodeSpec, Spawned};
use crate::parts::{Parts, Set};
use crate::process::{Daemon, free_port, wait_for};
use crate::sandbox::BRIDGE_IP;
use crate::workdir::WorkDir;

/// Namespace of operator and agents.
pub const SYSTEM: &str = "cryptvol-system";
/// Log of the agent on each node.
pub const AGENT_LOG: &str = "node-agent";
/// Port of probes and metrics of the agent on each node.
pub const AGENT_ADMIN_PORT: u16 = 9091;

/// What to start.
#[derive(Debug, Clone)]
pub struct SiteSpec {
    /// Nodes, each with an agent.
    pub nodes: Vec<NodeSpec>,
    /// Replicas of the operator.
    pub operators: usize,
}

impl SiteSpec {
    /// One operator and `nodes` ordinary nodes, `node-1` and so on.
    pub fn new(nodes: usize) -> Self {
        Self {
            nodes: (1..=nodes)
                .map(|n| NodeSpec::bare(&format!("node-{n}")))
                .collect(),
            operators: 1,
        }
    }
}

/// A running site.
#[derive(Debug)]
pub struct Site {
    /// API server and so on.
    pub plane: ControlPlane,
    /// Identity/keys service.
    pub identity: IdentityService,
    /// Its administrator.
    pub keystone: Keystone,
    /// The array.
    pub array: Array,
    /// The nodes.
    pub nodes: Vec<SiteNode>,
    operators: Vec<Operator>,
    dir: PathBuf,
}

/// A node with its agent.
#[derive(Debug)]
pub struct SiteNode {
    /// The node.
    pub node: Node,
    agent: Option<Spawned>,
    release_url: String,
    container: Option<Container>,
}

/// Namespaces of its own around a node's agent, as a node of kind has them on its machine.
#[derive(Debug, Clone, Copy)]
struct Container {
    ip: Ipv4Addr,
}

impl Container {
    /// Where the agent finds the machine's procfs.
    const HOST_PROC: &str = "/run/machine-proc";

    /// What the agent's command line begins with.
    fn prefix() -> [&'static str; 9] {
        [
            "ip",
            "netns",
            "exec",
            "container",
            "unshare",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
        ]
    }
}

#[derive(Debug)]
struct Operator {
    index: usize,
    release_port: u16,
    admin_port: u16,
    daemon: Option<Daemon>,
}

impl Site {
    /// Starts everything and waits until operator and agents are ready.
    pub async fn start(work: &WorkDir, spec: SiteSpec) -> Result<Self> {
        let parts = Parts::locate(Set::ControlPlane)?;
        let plane =
            ControlPlane::start(&work.dir("control-plane")?, &parts, Options::default()).await?;
        for crd in [
            EncryptedVolume::crd(),
            EncryptionClass::crd(),
            KeyService::crd(),
            NodeVolume::crd(),
        ] {
            plane.apply(&serde_json::to_string(&crd)?).await?;
        }
        plane
            .kubectl(&[
                "wait",
                "--for=condition=Established",
                "--timeout=60s",
                "crd",
                "--all",
            ])
            .await?;
        let options = identity_service::Options {
            ip: BRIDGE_IP.into(),
            ..Default::default()
        };
        let identity = IdentityService::start(&work.dir("identity")?, options)?;
        let keystone = Keystone::new(
            &identity.auth_url(),
            identity.password(),
            &identity.ca_path(),
        )?;
        let array = Array::start(&work.dir("array")?).await?;
        let mut site = Self {
            plane,
            identity,
            keystone,
            array,
            nodes: Vec::new(),
            operators: Vec::new(),
            dir: work.path().to_path_buf(),
        };
        site.apply_system(&spec).await?;
        for index in 0..spec.operators {
            site.operators.push(Operator {
                index,
                release_port: free_port()?,
                admin_port: free_port()?,
                daemon: None,
            });
            site.start_operator(index).await?;
        }
        let release_url = site.release_url(0);
        let mut booting = Vec::new();
        for node in spec.nodes {
            booting.push(Node::begin(&work.dir(&node.name)?, node)?);
        }
        for mut node in booting {
            node.wait_until_up().await?;
            site.nodes.push(SiteNode {
                node,
                agent: None,
                release_url: release_url.clone(),
                container: None,
            });
        }
        for index in 0..site.nodes.len() {
            site.start_agent(index).await?;
        }
        Ok(site)
    }

    /// A namespace with a tenant of its own: project, user, application credential, the Secret `keystone`.
    pub async fn tenant(&self, namespace: &str) -> Result<Tenant> {
        let tenant = self.keystone.tenant(namespace, "member").await?;
        self.plane
            .kubectl(&["create", "namespace", namespace])
            .await?;
        self.give_credentials(namespace, &tenant, &tenant.clouds_yaml())
            .await?;
        Ok(tenant)
    }

    /// Writes the Secret `keystone` of a namespace.
    pub async fn give_credentials(
        &self,
        namespace: &str,
        tenant: &Tenant,
        clouds_yaml: &str,
    ) -> Result<()> {
        let secret = tenant.secret_manifest(namespace, "keystone", clouds_yaml);
        self.plane.apply(&secret.to_string()).await.map(|_| ())
    }

    /// Namespaces, service accounts, roles, the nodes' objects, and a pod for each agent to bind its token to.
    async fn apply_system(&self, spec: &SiteSpec) -> Result<()> {
        let mut items =
            vec![json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM}})];
        for account in [
            names::OPERATOR_SERVICE_ACCOUNT,
            names::AGENT_SERVICE_ACCOUNT,
        ] {
            items.push(json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": account, "namespace": SYSTEM}}));
        }
        for role in rbac::roles().iter().filter(|r| r.aggregate_to.is_empty()) {
            let prefix = if role.namespaced { "" } else { "Cluster" };
            let namespace = role.namespaced.then_some(SYSTEM);
            items.push(json!({
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": format!("{prefix}Role"),
                "metadata": {"name": role.name, "namespace": namespace}, "rules": role.rules,
            }));
            items.push(json!({
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": format!("{prefix}RoleBinding"),
                "metadata": {"name": role.name, "namespace": namespace},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": format!("{prefix}Role"), "name": role.name},
                "subjects": [{"kind": "ServiceAccount", "name": role.name, "namespace": SYSTEM}],
            }));
        }
        items.push(json!({
            "apiVersion": "cryptvol.dev/v1alpha1", "kind": "KeyService", "metadata": {"name": "default"},
            "spec": {"authUrl": self.identity.auth_url(), "caBundle": std::fs::read_to_string(self.identity.ca_path())?},
        }));
        items.push(json!({
            "apiVersion": "cryptvol.dev/v1alpha1", "kind": "EncryptionClass",
            "metadata": {"name": "luks2", "annotations": {(names::DEFAULT_CLASS_ANNOTATION): "true"}}, "spec": {},
        }));
        for node in &spec.nodes {
            items
                .push(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node.name}}));
            items.push(json!({
                "apiVersion": "v1", "kind": "Pod", "metadata": {"name": format!("node-agent-{}", node.name), "namespace": SYSTEM},
                "spec": {
                    "nodeName": node.name, "serviceAccountName": names::AGENT_SERVICE_ACCOUNT,
                    "tolerations": [{"operator": "Exists"}],
                    "containers": [{"name": "node-agent", "image": "cryptvol.dev/node-agent:none"}],
                },
            }));
        }
        let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
        self.plane.apply(&list.to_string()).await?;
        // No kubelet says it.
        let ready = json!({"status": {"conditions": [{
            "type": "Ready", "status": "True", "reason": "Test", "message": "no kubelet runs here",
            "lastHeartbeatTime": null, "lastTransitionTime": null,
        }]}})
        .to_string();
        for node in &spec.nodes {
            self.plane
                .kubectl(&[
                    "patch",
                    "node",
                    &node.name,
                    "--subresource=status",
                    "-p",
                    &ready,
                ])
                .await?;
        }
        Ok(())
    }

    /// Where an operator replica releases keys.
    pub fn release_url(&self, index: usize) -> String {
        format!("https://{BRIDGE_IP}:{}", self.operators[index].release_port)
    }

    /// Starts an operator replica and waits until it is ready.
    pub async fn start_operator(&mut self, index: usize) -> Result<()> {
        let token = self
            .plane
            .kubectl(&[
                "create",
                "token",
                names::OPERATOR_SERVICE_ACCOUNT,
                "-n",
                SYSTEM,
                "--duration",
                "12h",
            ])
            .await?;
        let dir = self.dir.join(format!("operator-{index}"));
        std::fs::create_dir_all(&dir)?;
        let kubeconfig = self
            .plane
            .write_token_kubeconfig(&format!("operator-{index}"), token.trim())?;
        self.plane
            .authority()
            .server(&[BRIDGE_IP])?
            .write(&dir, "tls")?;
        let operator = &mut self.operators[index];
        let mut command = Command::new(product_binary("cryptvol-operator")?);
        command
            .args(["run", "--namespace", SYSTEM, "--log-format", "text"])
            .args([
                "--release-listen",
                &format!("{BRIDGE_IP}:{}", operator.release_port),
            ])
            .args([
                "--admin-listen",
                &format!("127.0.0.1:{}", operator.admin_port),
            ])
            .arg("--tls-cert")
            .arg(dir.join("tls.crt"))
            .arg("--tls-key")
            .arg(dir.join("tls.key"))
            .arg("--audit-file")
            .arg(dir.join("audit.jsonl"))
            .env("KUBECONFIG", kubeconfig)
            .env("POD_NAME", format!("operator-{}", operator.index));
        let daemon = Daemon::spawn(&dir, "operator", command)?;
        let url = format!("http://127.0.0.1:{}/readyz", operator.admin_port);
        let log = daemon.log_path();
        wait_for(
            "the operator to be ready",
            Duration::from_secs(60),
            || async {
                daemon.check()?;
                let answer = reqwest::get(&url).await;
                Ok(answer.is_ok_and(|a| a.status().is_success()).then_some(()))
            },
            || crate::process::tail(&log, 25),
        )
        .await?;
        operator.daemon = Some(daemon);
        Ok(())
    }

    /// SIGKILL to an operator replica.
    pub fn kill_operator(&mut self, index: usize) -> Result<()> {
        match self.operators[index].daemon.take() {
            Some(mut daemon) => daemon.kill(),
            None => Ok(()),
        }
    }

    /// Pid of an operator replica.
    pub fn operator_pid(&self, index: usize) -> Option<i32> {
        self.operators[index].daemon.as_ref().map(Daemon::pid)
    }

    /// Everything that an operator replica logged.
    pub fn operator_log(&self, index: usize) -> String {
        std::fs::read_to_string(self.dir.join(format!("operator-{index}/operator.log")))
            .unwrap_or_default()
    }

    /// The audit file of an operator replica.
    pub fn audit_file(&self, index: usize) -> PathBuf {
        self.dir.join(format!("operator-{index}/audit.jsonl"))
    }

    /// The operator's metrics.
    pub async fn operator_metrics(&self, index: usize) -> Result<String> {
        let url = format!(
            "http://127.0.0.1:{}/metrics",
            self.operators[index].admin_port
        );
        Ok(reqwest::get(url).await?.text().await?)
    }

    /// Starts the agent on a node, with tokens bound to its pod and node as kubelet would give them, and waits until it is
    /// ready.
    pub async fn start_agent(&mut self, index: usize) -> Result<()> {
        self.launch_agent(index, &[]).await?;
        let node = &self.nodes[index].node;
        let ip = self.nodes[index].container.map_or(node.ip(), |c| c.ip);
        let url = format!("http://{ip}:{AGENT_ADMIN_PORT}/readyz");
        wait_for(
            &format!("the agent on {} to be ready", node.name()),
            Duration::from_secs(60),
            || async {
                let answer = reqwest::get(&url).await;
                Ok(answer.is_ok_and(|a| a.status().is_success()).then_some(()))
            },
            || crate::process::tail(&node.log_path(AGENT_LOG), 25),
        )
        .await
    }

    /// Starts the agent with further arguments, without waiting.
    pub async fn launch_agent(&mut self, index: usize, arguments: &[&str]) -> Result<()> {
        let name = self.nodes[index].node.name().to_owned();
        let pod = format!("node-agent-{name}");
        let bound = [
            "--bound-object-kind",
            "Pod",
            "--bound-object-name",
            &pod,
            "--duration",
            "12h",
        ];
        let base = [
            "create",
            "token",
            names::AGENT_SERVICE_ACCOUNT,
            "-n",
            SYSTEM,
        ];
        let token = self
            .plane
            .kubectl(&[&base[..], &bound[..]].concat())
            .await?;
        let audience = ["--audience", names::KEY_RELEASE_AUDIENCE];
        let release = self
            .plane
            .kubectl(&[&base[..], &bound[..], &audience[..]].concat())
            .await?;
        let kubeconfig = std::fs::read(
            self.plane
                .write_token_kubeconfig(&format!("agent-{name}"), token.trim())?,
        )?;
        let binary = product_binary("cryptvol-node-agent")?;
        let site = &mut self.nodes[index];
        site.node
            .put("/run/cryptvol/kubeconfig", 0o600, &kubeconfig)
            .await?;
        site.node
            .put("/run/cryptvol/token", 0o600, release.trim().as_bytes())
            .await?;
        site.node
            .put(
                "/run/cryptvol/ca.crt",
                0o644,
                self.plane.authority().certificate().as_bytes(),
            )
            .await?;
        let admin = format!("0.0.0.0:{AGENT_ADMIN_PORT}");
        let argv = [
            binary.to_str().context("the path of the agent")?,
            "run",
            "--node-name",
            &name,
            "--release-url",
            &site.release_url,
            "--release-ca-file",
            "/run/cryptvol/ca.crt",
            "--token-file",
            "/run/cryptvol/token",
            "--admin-listen",
            &admin,
            "--log-format",
            "text",
        ];
        let mut argv = [&argv[..], arguments].concat();
        if site.container.is_some() {
            argv = [
                &Container::prefix(),
                &argv[..],
                &["--host-proc", Container::HOST_PROC],
            ]
            .concat();
        }
        let env = [("KUBECONFIG", "/run/cryptvol/kubeconfig")];
        site.agent = Some(site.node.spawn(AGENT_LOG, &argv, &env).await?);
        Ok(())
    }

    /// From its next start on, a node's agent runs in network and process namespaces of its own, as on a node of kind: it
    /// reaches the API server from there, and the kernel's iSCSI does not answer there. The node routes for it.
    pub async fn put_agent_in_container(&mut self, index: usize) -> Result<()> {
        let site = &mut self.nodes[index];
        let ip = Ipv4Addr::new(10, 77, 0, 254 - site.node.spec().index % 10);
        site.node
            .sh(&format!(
                "set -e; modprobe veth; ip netns add container
                 ip link add box0 type veth peer name eth0 netns container
                 ip link set box0 up; ip -n container link set lo up; ip -n container link set eth0 up
                 ip -n container addr add {ip}/32 dev eth0; ip -n container route add default dev eth0
                 ip route add {ip}/32 dev box0
                 sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.vec0.proxy_arp=1 net.ipv4.conf.box0.proxy_arp=1
                 mkdir -p {proc}; mount --bind /proc {proc}",
                proc = Container::HOST_PROC
            ))
            .await?
            .ok()?;
        site.container = Some(Container { ip });
        Ok(())
    }

    /// Waits until a node's agent has ended by itself, and returns its exit status.
    pub async fn agent_exit(&mut self, index: usize) -> Result<i32> {
        let agent = self.nodes[index]
            .agent
            .take()
            .context("no agent runs there")?;
        agent.wait(Duration::from_secs(60)).await
    }

    /// A signal to a node's agent.
    pub async fn signal_agent(&mut self, index: usize, signal: &str) -> Result<()> {
        let agent = self.nodes[index]
            .agent
            .as_ref()
            .context("no agent runs there")?;
        agent.signal(signal).await
    }

    /// Kills a node's agent and waits until it is gone; its workers die with it.
    pub async fn kill_agent(&mut self, index: usize) -> Result<()> {
        if let Some(agent) = self.nodes[index].agent.take() {
            agent.signal("SIGKILL").await?;
            agent.wait(Duration::from_secs(20)).await?;
        }
        Ok(())
    }

    /// Power cut, boot, and the agent again, as kubelet would start it.
    pub async fn power_cycle(&mut self, index: usize) -> Result<()> {
        self.nodes[index].node.power_cut().await?;
        self.nodes[index].agent = None;
        self.nodes[index].node.start().await?;
        self.start_agent(index).await
    }

    /// The node of that number.
    pub fn node(&self, index: usize) -> &Node {
        &self.nodes[index].node
    }
}
