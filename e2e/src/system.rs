//! The product as the chart installs it, without Helm and without kubelets: custom resources, accounts with their roles, a
//! KeyService, a default class, nodes with a pod for each agent, and operators as processes. The tiers `api` and `node`
//! stand on it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use cryptvol_crds::{EncryptedVolume, EncryptionClass, KeyService, NodeVolume, names, rbac};
use k8s_openapi::jiff::Timestamp;
use kube::CustomResourceExt;
use serde_json::json;

use crate::control_plane::ControlPlane;
use crate::identity_service::product_binary;
use crate::process::{Daemon, free_port, resident_kib, wait_for};

/// Namespace of operator and agents.
pub const SYSTEM: &str = "cryptvol-system";
/// Name of the EncryptionClass that is the default.
pub const CLASS: &str = "standard";

/// Installs everything that is neither a node nor a process. The KeyService is at `auth_url`, with a certificate of the
/// authority in the file `ca`.
pub async fn install(plane: &ControlPlane, auth_url: &str, ca: &Path) -> Result<()> {
    custom_resources(plane).await?;
    let mut items =
        vec![json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM}})];
    for account in [
        names::OPERATOR_SERVICE_ACCOUNT,
        names::AGENT_SERVICE_ACCOUNT,
    ] {
        items.push(json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": account, "namespace": SYSTEM}}));
    }
    for role in rbac::roles() {
        let (prefix, namespace) = match role.scope {
            rbac::Scope::Cluster => ("Cluster", None),
            rbac::Scope::Release => ("", Some(SYSTEM)),
            rbac::Scope::Namespace(name) => ("", Some(name)),
        };
        items.push(json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": format!("{prefix}Role"),
            "metadata": {"name": role.name, "namespace": namespace}, "rules": role.rules,
        }));
        if role.aggregate_to.is_empty() {
            items.push(json!({
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": format!("{prefix}RoleBinding"),
                "metadata": {"name": role.name, "namespace": namespace},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": format!("{prefix}Role"), "name": role.name},
                "subjects": [{"kind": "ServiceAccount", "name": role.name, "namespace": SYSTEM}],
            }));
        }
    }
    items.push(json!({
        "apiVersion": "cryptvol.dev/v1alpha1", "kind": "KeyService", "metadata": {"name": "embedded"},
        "spec": {"authUrl": auth_url, "caBundle": std::fs::read_to_string(ca)?},
    }));
    items.push(json!({
        "apiVersion": "cryptvol.dev/v1alpha1", "kind": "EncryptionClass",
        "metadata": {"name": CLASS, "annotations": {names::DEFAULT_CLASS_ANNOTATION: "true"}}, "spec": {},
    }));
    let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
    plane.apply(&list.to_string()).await.map(drop)
}

async fn custom_resources(plane: &ControlPlane) -> Result<()> {
    for crd in [
        EncryptedVolume::crd(),
        EncryptionClass::crd(),
        KeyService::crd(),
        NodeVolume::crd(),
    ] {
        plane.apply(&serde_json::to_string(&crd)?).await?;
    }
    let kinds = "encryptedvolumes,encryptionclasses,keyservices,nodevolumes";
    wait_for(
        "the custom resources to be served",
        Duration::from_secs(60),
        // `kubectl wait` fails on an object that has no conditions yet.
        || async { Ok(plane.kubectl(&["get", kinds, "-A"]).await.ok()) },
        String::new,
    )
    .await
    .map(drop)
}

/// A Node that is ready, as no kubelet says here, and a pod for its agent's token to be bound to.
pub async fn add_node(plane: &ControlPlane, name: &str) -> Result<()> {
    let list = json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}},
        {
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": agent_pod(name), "namespace": SYSTEM},
            "spec": {
                "nodeName": name, "serviceAccountName": names::AGENT_SERVICE_ACCOUNT, "automountServiceAccountToken": false,
                "tolerations": [{"operator": "Exists"}],
                "containers": [{"name": "node-agent", "image": "cryptvol.dev/node-agent:none"}],
            },
        },
    ]});
    plane.apply(&list.to_string()).await?;
    node_condition(plane, name, "Ready", true, "no kubelet runs here").await
}

/// Writes a condition of a Node.
pub async fn node_condition(
    plane: &ControlPlane,
    node: &str,
    type_: &str,
    good: bool,
    message: &str,
) -> Result<()> {
    let now = Timestamp::now().to_string();
    let status = json!({"status": {"conditions": [{
        "type": type_, "status": if good { "True" } else { "False" }, "reason": "Test", "message": message,
        "lastHeartbeatTime": now, "lastTransitionTime": now,
    }]}});
    plane
        .kubectl(&[
            "patch",
            "node",
            node,
            "--subresource=status",
            "-p",
            &status.to_string(),
        ])
        .await
        .map(drop)
}

fn agent_pod(node: &str) -> String {
    format!("node-agent-{node}")
}

/// A token of the agent on a node, bound to its pod; for the API server, or for `audience`.
pub async fn agent_token(
    plane: &ControlPlane,
    node: &str,
    audience: Option<&str>,
) -> Result<String> {
    let pod = agent_pod(node);
    let mut args = vec![
        "create",
        "token",
        names::AGENT_SERVICE_ACCOUNT,
        "-n",
        SYSTEM,
        "--bound-object-kind",
        "Pod",
        "--bound-object-name",
        &pod,
        "--duration",
        "12h",
    ];
    args.extend(audience.iter().flat_map(|a| ["--audience", a]));
    Ok(plane.kubectl(&args).await?.trim().to_owned())
}

/// Where an operator listens; the same over its restarts.
#[derive(Debug, Clone)]
pub struct OperatorSpec {
    /// Name of the replica.
    pub name: String,
    /// Address of key release, and of probes and metrics.
    pub ip: String,
    /// Port of key release.
    pub release_port: u16,
    /// Port of probes and metrics.
    pub admin_port: u16,
    /// Further arguments of `run`.
    pub arguments: Vec<String>,
}

impl OperatorSpec {
    /// On ports that are free now.
    pub fn new(name: &str, ip: &str) -> Result<Self> {
        Ok(Self {
            name: name.into(),
            ip: ip.into(),
            release_port: free_port()?,
            admin_port: free_port()?,
            arguments: Vec::new(),
        })
    }

    /// Base of the key-release endpoint.
    pub fn release_url(&self) -> String {
        format!("https://{}:{}", self.ip, self.release_port)
    }
}

/// A replica of the operator. Dropped, it is killed.
#[derive(Debug)]
pub struct Operator {
    /// The process.
    pub daemon: Daemon,
    /// Base of the key-release endpoint.
    pub release_url: String,
    /// Base of probes and metrics.
    pub admin_url: String,
    /// Its audit log.
    pub audit_file: PathBuf,
}

impl Operator {
    /// Starts a replica with its files in `dir` and the rights of its service account, and waits until it is ready.
    pub async fn start(plane: &ControlPlane, dir: &Path, spec: &OperatorSpec) -> Result<Self> {
        std::fs::create_dir_all(dir)?;
        plane.authority().server(&[&spec.ip])?.write(dir, "tls")?;
        let account = names::OPERATOR_SERVICE_ACCOUNT;
        let token = plane
            .kubectl(&["create", "token", account, "-n", SYSTEM, "--duration=12h"])
            .await?;
        let kubeconfig = plane.write_token_kubeconfig(&spec.name, token.trim())?;
        let audit_file = dir.join("audit.jsonl");
        let mut command = Command::new(product_binary("cryptvol-operator")?);
        command
            .args(["run", "--namespace", SYSTEM, "--pod-name", &spec.name])
            .args(["--log", "info,cryptvol_operator=debug"])
            .args(["--log-format", "text"])
            .arg("--release-listen")
            .arg(format!("{}:{}", spec.ip, spec.release_port))
            .arg("--admin-listen")
            .arg(format!("{}:{}", spec.ip, spec.admin_port))
            .arg("--tls-cert")
            .arg(dir.join("tls.crt"))
            .arg("--tls-key")
            .arg(dir.join("tls.key"))
            .arg("--audit-file")
            .arg(&audit_file)
            .args(&spec.arguments)
            .env("KUBECONFIG", kubeconfig);
        let operator = Self {
            daemon: Daemon::spawn(dir, "operator", command)?,
            release_url: spec.release_url(),
            admin_url: format!("http://{}:{}", spec.ip, spec.admin_port),
            audit_file,
        };
        let ready = format!("{}/readyz", operator.admin_url);
        wait_for(
            "the operator to be ready",
            Duration::from_secs(60),
            || async {
                operator.daemon.check()?;
                let answer = reqwest::get(&ready).await;
                Ok(answer.is_ok_and(|a| a.status().is_success()).then_some(()))
            },
            || operator.daemon.log_tail(25),
        )
        .await?;
        Ok(operator)
    }

    /// The value of a counter or gauge without labels.
    pub async fn metric(&self, name: &str) -> Result<u64> {
        let text = reqwest::get(format!("{}/metrics", self.admin_url))
            .await?
            .text()
            .await?;
        let line = text
            .lines()
            .find_map(|l| l.strip_prefix(name)?.strip_prefix(' '));
        line.with_context(|| format!("no {name} in {text}"))?
            .parse()
            .context(name.to_owned())
    }

    /// Everything that it logged, over all its starts in this folder.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.daemon.log_path()).unwrap_or_default()
    }

    /// Resident memory in KiB.
    pub fn resident_kib(&self) -> Result<u64> {
        resident_kib(self.daemon.pid())
    }
}
