//! A small site without kubelets: control plane, identity service, operators, an array, and bare nodes with the agent as it
//! ships. Everything is a process of its own; service accounts, roles and node-bound tokens are the real ones.
//!
//! The `node` tier runs on it: a node boots in 3 s, so that a test may cut its power as often as it likes.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cryptvol_crds::names;
use serde_json::json;

use crate::array::{self, Array, Lun};
use crate::control_plane::{ControlPlane, Options};
use crate::identity_service::{self, IdentityService, product_binary};
use crate::keystone::{Keystone, Tenant};
use crate::node::{Node, NodeSpec, Spawned};
use crate::parts::{Parts, Set};
use crate::process::wait_for;
use crate::sandbox::BRIDGE_IP;
pub use crate::system::SYSTEM;
use crate::system::{self, Operator, OperatorSpec};
use crate::volumes::Volume;
use crate::workdir::WorkDir;

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
    operators: Vec<(OperatorSpec, Option<Operator>)>,
    dir: PathBuf,
}

/// A node with its agent.
#[derive(Debug)]
pub struct SiteNode {
    /// The node.
    pub node: Node,
    agent: Option<Spawned>,
    /// What it is started with besides what every agent is.
    pub agent_arguments: Vec<String>,
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

impl Site {
    /// Starts everything and waits until operator and agents are ready.
    pub async fn start(work: &WorkDir, spec: SiteSpec) -> Result<Self> {
        let parts = Parts::locate(Set::ControlPlane)?;
        // Nodes boot while the control plane starts.
        let mut booting = Vec::new();
        for node in spec.nodes {
            booting.push(Node::begin(&work.dir(&node.name)?, node)?);
        }
        let plane =
            ControlPlane::start(&work.dir("control-plane")?, &parts, Options::default()).await?;
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
        system::install(&plane, &identity.auth_url(), &identity.ca_path()).await?;
        let mut site = Self {
            plane,
            identity,
            keystone,
            array,
            nodes: Vec::new(),
            operators: Vec::new(),
            dir: work.path().to_path_buf(),
        };
        for index in 0..spec.operators {
            let spec = OperatorSpec::new(&format!("operator-{index}"), BRIDGE_IP)?;
            site.operators.push((spec, None));
            site.start_operator(index).await?;
        }
        let release_url = site.release_url(0);
        for mut node in booting {
            node.wait_until_up().await?;
            system::add_node(&site.plane, node.name()).await?;
            site.nodes.push(SiteNode {
                node,
                agent: None,
                agent_arguments: Vec::new(),
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

    /// A tenant in a namespace of its own, a target with one blank disk of 64 MiB at LUN 1, and a volume on it, attached to the
    /// first node in its manifest, not applied yet; all of that name.
    pub async fn volume(&mut self, name: &str) -> Result<(Tenant, Lun, Volume)> {
        let tenant = self.tenant(name).await?;
        let iqn = array::iqn(name);
        self.array.create_target(&iqn)?;
        let lun = self.array.create_lun(&iqn, 1, 64 << 20)?;
        let volume = Volume::iscsi(name, "vol", &self.array.portal(), &iqn, 1, name)
            .on(self.nodes[0].node.name());
        Ok((tenant, lun, volume))
    }

    /// As [`Site::volume`], through two portals of the array at once, the second one of IPv6; they are named too.
    pub async fn multipath_volume(&mut self, name: &str) -> Result<(Lun, Volume, [String; 2])> {
        let (_, lun, volume) = self.volume(name).await?;
        let first = self.array.portals()[0].clone();
        let portals = [first, self.array.add_ipv6()?];
        let volume = volume
            .with_iscsi("portals", json!(portals))
            .with_iscsi("multipath", json!(true));
        self.give_ipv6(0).await?;
        Ok((lun, volume, portals))
    }

    /// Lets a node reach the array by IPv6, until it is switched off.
    pub async fn give_ipv6(&self, index: usize) -> Result<()> {
        let node = self.node(index);
        let script = format!(
            "modprobe ipv6 && ip -6 addr add fd77::{:x}/64 dev vec0 nodad && ip -6 route add default via fd77::1",
            node.ip().octets()[3]
        );
        node.sh(&script).await?.ok().map(drop)
    }

    /// Where an operator replica releases keys.
    pub fn release_url(&self, index: usize) -> String {
        self.operators[index].0.release_url()
    }

    /// Starts an operator replica and waits until it is ready.
    pub async fn start_operator(&mut self, index: usize) -> Result<()> {
        let (spec, operator) = &mut self.operators[index];
        *operator = None;
        let dir = self.dir.join(&spec.name);
        *operator = Some(Operator::start(&self.plane, &dir, spec).await?);
        Ok(())
    }

    /// SIGKILL to an operator replica.
    pub fn kill_operator(&mut self, index: usize) -> Result<()> {
        match self.operators[index].1.take() {
            Some(mut operator) => operator.daemon.kill(),
            None => Ok(()),
        }
    }

    /// A running operator replica.
    pub fn operator(&self, index: usize) -> Result<&Operator> {
        let operator = self.operators.get(index).and_then(|(_, o)| o.as_ref());
        operator.with_context(|| format!("operator {index} does not run"))
    }

    /// Everything that an operator replica logged.
    pub fn operator_log(&self, index: usize) -> String {
        let dir = self.dir.join(&self.operators[index].0.name);
        std::fs::read_to_string(dir.join("operator.log")).unwrap_or_default()
    }

    /// Starts the agent on a node, with tokens bound to its pod and node as kubelet would give them, and waits until it is
    /// ready.
    pub async fn start_agent(&mut self, index: usize) -> Result<()> {
        let arguments = self.nodes[index].agent_arguments.clone();
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        self.launch_agent(index, &arguments).await?;
        self.wait_agent(index).await
    }

    /// Waits until the agent on a node is ready.
    pub async fn wait_agent(&self, index: usize) -> Result<()> {
        let node = &self.nodes[index].node;
        let ip = self.nodes[index].container.map_or(node.ip(), |c| c.ip);
        let url = format!("http://{ip}:{AGENT_ADMIN_PORT}/readyz");
        wait_for(
            &format!("the agent on {} to be ready", node.name()),
            crate::volumes::PATIENCE,
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
        let token = system::agent_token(&self.plane, &name, None).await?;
        let release =
            system::agent_token(&self.plane, &name, Some(names::KEY_RELEASE_AUDIENCE)).await?;
        let kubeconfig = std::fs::read(
            self.plane
                .write_token_kubeconfig(&format!("agent-{name}"), &token)?,
        )?;
        let binary = product_binary("cryptvol-node-agent")?;
        let site = &mut self.nodes[index];
        site.node
            .put("/run/cryptvol/kubeconfig", 0o600, &kubeconfig)
            .await?;
        site.node
            .put("/run/cryptvol/token", 0o600, release.as_bytes())
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
        let env = [
            ("KUBECONFIG", "/run/cryptvol/kubeconfig"),
            // Else tests of several paths wait half a minute for each change; the one of the interval itself sets the flag.
            ("CRYPTVOL_PATH_STATUS_INTERVAL", "1"),
        ];
        site.agent = Some(site.node.spawn(AGENT_LOG, &argv, &env).await?);
        Ok(())
    }

    /// Starts the agent on a node with a fail point, `STEP:WHEN:BLOW` of `kill` or `hang` or `STEP:during:MS`, and waits until it struck. By
    /// `kill` the agent is gone then; by `hang` it does nothing any more, so that the power can be cut right there.
    ///
    /// # Errors
    /// When the agent does not come to that step, or ends elsewhere.
    pub async fn strike(&mut self, index: usize, point: &str) -> Result<()> {
        let told = |site: &Self| {
            let log = site.node(index).log(AGENT_LOG);
            log.matches("fail point").count()
        };
        // The log is up to half a second behind: what it has by then is of before.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let before = told(self);
        self.launch_agent(index, &["--failpoint", point]).await?;
        if point.ends_with(":kill") {
            let code = self.agent_exit(index).await?;
            ensure!(
                code == 128 + 9,
                "{point}: the agent ended with {code}, not at the fail point"
            );
            return Ok(());
        }
        // Armed, and struck.
        wait_for(
            &format!("the agent to come to {point}"),
            crate::volumes::PATIENCE,
            || async { Ok((told(self) >= before + 2).then_some(())) },
            || crate::process::tail(&self.node(index).log_path(AGENT_LOG), 25),
        )
        .await
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

    /// The pid of a node's agent, on the node.
    pub fn agent_pid(&self, index: usize) -> Result<u32> {
        let agent = self.nodes[index].agent.as_ref();
        Ok(agent.context("no agent runs there")?.pid())
    }

    /// Waits until a node's agent has ended by itself, and returns its exit status.
    pub async fn agent_exit(&mut self, index: usize) -> Result<i32> {
        let agent = self.nodes[index]
            .agent
            .take()
            .context("no agent runs there")?;
        agent.wait(crate::volumes::PATIENCE).await
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
            agent.wait(crate::volumes::PATIENCE).await?;
        }
        Ok(())
    }

    /// Power cut, boot, and the agent again, as kubelet would start it.
    pub async fn power_cycle(&mut self, index: usize) -> Result<()> {
        self.power_cycle_without_agent(index).await?;
        self.start_agent(index).await
    }

    /// Power cut and boot; nobody starts the agent.
    pub async fn power_cycle_without_agent(&mut self, index: usize) -> Result<()> {
        self.nodes[index].node.power_cut().await?;
        self.nodes[index].agent = None;
        self.nodes[index].node.start().await
    }

    /// What of ours is left on a node: mappings, links and what they are made by, names that lead on, disks, sessions, keys, cookies of
    /// device-mapper. Empty on a clean node.
    pub async fn left_behind(&self, index: usize) -> Result<String> {
        self.node(index)
            .sh("dmsetup ls 2>/dev/null | grep -v '^No devices'; find /dev/cryptvol -type l 2>/dev/null; find /run/udev/cryptvol/given -type f \
                 2>/dev/null; ls /sys/class/iscsi_session; lsblk -dno NAME,TRAN 2>/dev/null | grep iscsi; grep -h cryptvol /proc/keys; \
                 ipcs -s | grep 0x0d4d; true")
            .await?
            .ok()
            .map(|text| text.trim().to_owned())
    }

    /// Nothing of ours is left on a node.
    ///
    /// # Errors
    /// When something is, which it names; see [`Site::left_behind`].
    pub async fn nothing_left(&self, index: usize) -> Result<()> {
        let left = self.left_behind(index).await?;
        let node = self.node(index).name();
        ensure!(left.is_empty(), "left on {node}: {left}");
        Ok(())
    }

    /// The node of that number.
    pub fn node(&self, index: usize) -> &Node {
        &self.nodes[index].node
    }
}
