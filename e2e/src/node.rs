//! A node: a Linux kernel of its own (User-Mode Linux) as an ordinary process, on the machine's file system.
//!
//! Its root is the machine's, read-only, with an overlay in memory; binaries under test run as built. See `assets/node-init.sh`
//! for what it starts. `power_cut` and `start` are what happens to a real machine with an ephemeral root.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use base64::Engine;
use serde::{Deserialize, Serialize};

use crate::control_plane::{DNS_IP, POD_CIDR};
use crate::exec::{self, Output, Request, ask};
use crate::process::{Daemon, wait_for};
use crate::sandbox::{self, BRIDGE_IP, plain_path};
use crate::uml_registers;

const INIT: &str = include_str!("../assets/node-init.sh");
/// A bare node is up in 3 s, a kubelet node in 40, on an idle machine.
const BOOT_LIMIT: Duration = Duration::from_secs(300);
/// For commands that say nothing else. They take a second; the limit is for a machine that has twenty others to serve.
const EXEC_LIMIT: Duration = Duration::from_secs(300);

/// What to boot.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NodeSpec {
    /// Host name and node name.
    pub name: String,
    /// Decides the address, 10.77.0.(10 + index), and the pods' network, 10.78.(index).0/24; 1 to 240.
    pub index: u8,
    /// Memory, in MiB. It is taken from the machine as the node uses it.
    pub memory_mib: u32,
    /// Device-mapper in the kernel.
    pub device_mapper: bool,
    /// iSCSI in the kernel, and iscsid.
    pub iscsi: bool,
    /// udevd.
    pub udev: bool,
    /// Folder with kernel modules that stand in for those of the kernel's package ([`crate::scsi_dh`]).
    #[serde(default)]
    pub modules: Option<PathBuf>,
    /// Set for a Kubernetes node.
    pub kubelet: Option<KubeletSpec>,
}

/// What a Kubernetes node needs in addition.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct KubeletSpec {
    /// Folder with `ca.crt`, `NAME.kubeconfig` and `kube-proxy.kubeconfig`.
    pub credentials: PathBuf,
    /// Folder with image archives that are loaded at each boot.
    pub images: PathBuf,
    /// Folder with kubelet, containerd and so on.
    pub parts: PathBuf,
}

impl NodeSpec {
    /// A node with device-mapper, iSCSI and udev, without Kubernetes.
    pub fn bare(name: &str) -> Self {
        Self {
            name: name.into(),
            index: 0,
            memory_mib: 512,
            device_mapper: true,
            iscsi: true,
            udev: true,
            modules: None,
            kubelet: None,
        }
    }

    /// As [`NodeSpec::bare`], whose kernel has no device-mapper.
    #[must_use]
    pub fn without_device_mapper(mut self) -> Self {
        self.device_mapper = false;
        self
    }

    /// Neither the kernel module nor iscsid.
    #[must_use]
    pub fn without_iscsi(mut self) -> Self {
        self.iscsi = false;
        self
    }

    /// Its kernel has the handler for arrays that tell paths apart, as kernels for servers have it; its module is loaded when something asks
    /// for it.
    ///
    /// # Errors
    /// As [`crate::scsi_dh::locate`].
    pub fn with_alua(mut self) -> Result<Self> {
        self.modules = Some(crate::scsi_dh::locate()?);
        Ok(self)
    }

    /// Nobody makes links under `/dev/disk`.
    #[must_use]
    pub fn without_udev(mut self) -> Self {
        self.udev = false;
        self
    }
}

/// A node; dropped, it is gone.
#[derive(Debug)]
pub struct Node {
    spec: NodeSpec,
    dir: PathBuf,
    boot: u32,
    kernel: Option<Daemon>,
    owned: bool,
}

impl Node {
    /// Boots a node with its files in `dir` and returns when it takes commands (a Kubernetes node: when its images are loaded
    /// and kubelet starts). `index` 0 in the spec takes the next free one from 21 on.
    pub async fn boot(dir: &Path, spec: NodeSpec) -> Result<Self> {
        let mut node = Self::begin(dir, spec)?;
        node.wait_until_up().await?;
        Ok(node)
    }

    /// As [`Node::boot`], without waiting; see [`Node::wait_until_up`].
    pub fn begin(dir: &Path, mut spec: NodeSpec) -> Result<Self> {
        sandbox::require()?;
        fs::create_dir_all(dir.join("cv/logs"))?;
        plain_path(dir)?;
        spec.index = match spec.index {
            0 => (21..=240)
                .find(|index| sandbox::add_tap(&tap(*index)).is_ok())
                .context("cannot make a tap device: is /dev/net/tun there? (modprobe tun)")?,
            index => {
                sandbox::add_tap(&tap(index)).with_context(|| format!("node number {index}"))?;
                index
            }
        };
        if spec.kubelet.is_some() {
            let route = format!("10.78.{}.0/24", spec.index);
            crate::process::run(
                "ip",
                &[
                    "route",
                    "replace",
                    &route,
                    "via",
                    &address(spec.index).to_string(),
                ],
            )?;
        }
        fs::write(dir.join("init.sh"), INIT)?;
        fs::set_permissions(
            dir.join("init.sh"),
            std::os::unix::fs::PermissionsExt::from_mode(0o755),
        )?;
        fs::write(dir.join("node.json"), serde_json::to_vec_pretty(&spec)?)?;
        let mut node = Self {
            spec,
            dir: dir.into(),
            boot: 0,
            kernel: None,
            owned: true,
        };
        node.begin_start()?;
        Ok(node)
    }

    /// Takes over a node that another process of this sandbox booted; dropping this value does not stop it.
    pub fn attach(dir: &Path) -> Result<Self> {
        let text = fs::read(dir.join("node.json"))
            .with_context(|| format!("no node in {}", dir.display()))?;
        let boot = fs::read_to_string(dir.join("boot"))?.trim().parse()?;
        let kernel = Daemon::open(dir, &console_name(boot)).ok();
        Ok(Self {
            spec: serde_json::from_slice(&text)?,
            dir: dir.into(),
            boot,
            kernel,
            owned: false,
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// What was booted.
    pub fn spec(&self) -> &NodeSpec {
        &self.spec
    }

    /// Its address in the sandbox's network.
    pub fn ip(&self) -> Ipv4Addr {
        address(self.spec.index)
    }

    /// The initiator name that it shows to arrays.
    pub fn initiator(&self) -> String {
        format!("iqn.2026-11.dev.cryptvol:{}", self.spec.name)
    }

    /// How many times it was booted.
    pub fn boots(&self) -> u32 {
        self.boot
    }

    /// The folder that the node sees, writable, as `/cv`; it outlives power cuts.
    pub fn shared_dir(&self) -> PathBuf {
        self.dir.join("cv")
    }

    /// A log file of this node: `iscsid`, `containerd`, `kubelet`, `kube-proxy`, or the name given to [`Node::spawn`].
    pub fn log_path(&self, name: &str) -> PathBuf {
        self.dir.join(format!("cv/logs/{name}.log"))
    }

    /// The whole log of that name; empty if there is none yet. It is up to half a second behind.
    pub fn log(&self, name: &str) -> String {
        fs::read(self.log_path(name))
            .map(|b| String::from_utf8_lossy(&b).into_owned())
            .unwrap_or_default()
    }

    /// What the kernel and init of the present boot printed.
    pub fn console_path(&self) -> PathBuf {
        self.dir.join(format!("{}.log", console_name(self.boot)))
    }

    /// The kernel's process and all that belongs to it, as pids of the sandbox; empty when the power is off.
    pub fn is_running(&self) -> bool {
        self.kernel.as_ref().is_some_and(Daemon::is_running)
    }

    /// A power cut: `SIGKILL` to the kernel's process and to the ptrace stubs that run its user space (they would survive it),
    /// and returns when none is left.
    pub async fn power_cut(&mut self) -> Result<()> {
        if let Some(mut kernel) = self.kernel.take() {
            kernel.kill()?;
        }
        Ok(())
    }

    /// Switches it on again: what it wrote outside `/cv` is gone, as on every node with an ephemeral root.
    pub async fn start(&mut self) -> Result<()> {
        self.begin_start()?;
        self.wait_until_up().await
    }

    /// As [`Node::start`], without waiting.
    pub fn begin_start(&mut self) -> Result<()> {
        if self.is_running() {
            bail!("{} is running", self.spec.name);
        }
        self.boot += 1;
        fs::write(self.dir.join("boot"), self.boot.to_string())?;
        fs::write(self.dir.join("node.env"), self.environment()?)?;
        let dir = plain_path(&self.dir)?;
        let index = self.spec.index;
        let mut command = Command::new("linux.uml");
        command
            .env("HOME", &self.dir)
            .env("LD_PRELOAD", uml_registers::library()?)
            .args([
                format!("mem={}M", self.spec.memory_mib),
                "rootfstype=hostfs".into(),
                "rootflags=/".into(),
                "ro".into(),
                "panic=-1".into(),
                format!("init={dir}/init.sh"),
                format!("CV_DIR={dir}"),
                format!("uml_dir={dir}/uml"),
                "con=null".into(),
                "con0=null,fd:1".into(),
                format!(
                    "vec0:transport=tap,ifname={},depth=128,gro=1,mac=02:cb:00:00:00:{index:02x}",
                    tap(index)
                ),
            ]);
        let mut kernel = Daemon::spawn(&self.dir, &console_name(self.boot), command)
            .context("start linux.uml (Debian package user-mode-linux)")?;
        if !self.owned {
            kernel.keep();
        }
        self.kernel = Some(kernel);
        Ok(())
    }

    /// Waits until the node takes commands.
    pub async fn wait_until_up(&mut self) -> Result<()> {
        let kernel = self
            .kernel
            .as_ref()
            .with_context(|| format!("{} is switched off", self.spec.name))?;
        let ready = self.shared_dir().join("ready");
        let boot = self.boot.to_string();
        wait_for(
            &format!("{} to boot", self.spec.name),
            BOOT_LIMIT,
            || async {
                kernel.check()?;
                let up = fs::read_to_string(&ready).is_ok_and(|text| text.trim() == boot);
                Ok((up
                    && tokio::net::TcpStream::connect(self.exec_address())
                        .await
                        .is_ok())
                .then_some(()))
            },
            || kernel.log_tail(25),
        )
        .await
    }

    /// Runs a command in the node's own context (not in a container), at most five minutes.
    pub async fn exec(&self, argv: &[&str]) -> Result<Output> {
        self.exec_with(argv, &[], b"", EXEC_LIMIT).await
    }

    /// A line or a script for bash: `node.sh("lsblk | wc -l").await?.ok()?`.
    pub async fn sh(&self, script: &str) -> Result<Output> {
        self.exec(&["bash", "-c", script]).await
    }

    /// With environment, standard input and a limit. A command that takes longer is killed and is an error.
    pub async fn exec_with(
        &self,
        argv: &[&str],
        env: &[(&str, &str)],
        stdin: &[u8],
        limit: Duration,
    ) -> Result<Output> {
        exec::run(self.exec_address(), argv, env, stdin, limit)
            .await
            .with_context(|| format!("on {}", self.spec.name))
    }

    /// Starts a command in the background; its output is [`Node::log`]`(name)`, over all starts and boots.
    pub async fn spawn(&self, name: &str, argv: &[&str], env: &[(&str, &str)]) -> Result<Spawned> {
        let request = Request::Spawn {
            argv: exec::owned(argv),
            env: exec::owned_pairs(env),
            log: format!("/cv/logs/{name}.log"),
        };
        let address = self.exec_address();
        let pid = ask(address, &request, EXEC_LIMIT).await?.pid;
        Ok(Spawned { address, pid })
    }

    /// Writes a file on the node, with its parent folders.
    pub async fn put(&self, path: &str, mode: u32, content: &[u8]) -> Result<()> {
        let content = base64::engine::general_purpose::STANDARD.encode(content);
        ask(
            self.exec_address(),
            &Request::Put {
                path: path.into(),
                mode,
                content,
            },
            EXEC_LIMIT,
        )
        .await?;
        Ok(())
    }

    /// Cuts the node off the network (`true`) or gives it back: nothing passes, as with a pulled cable.
    pub fn unplug(&self, unplugged: bool) -> Result<()> {
        let state = if unplugged { "nomaster" } else { "master" };
        let tap = tap(self.spec.index);
        let mut args = vec!["link", "set", &tap, state];
        if !unplugged {
            args.push("br0");
        }
        crate::process::run("ip", &args).map(|_| ())
    }

    fn exec_address(&self) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(self.ip()), exec::PORT)
    }

    fn environment(&self) -> Result<String> {
        let spec = &self.spec;
        let flag = |on: bool| if on { "1" } else { "0" }.to_owned();
        let mut lines = vec![
            ("CV_NAME", spec.name.clone()),
            ("CV_BOOT", self.boot.to_string()),
            ("CV_IP", self.ip().to_string()),
            ("CV_GATEWAY", BRIDGE_IP.to_owned()),
            ("CV_DISK", "3g".to_owned()),
            ("CV_DM", flag(spec.device_mapper)),
            ("CV_ISCSI", flag(spec.iscsi)),
            ("CV_UDEV", flag(spec.udev)),
            ("CV_INITIATOR", self.initiator()),
            ("CV_E2E", plain_path(&sandbox::binary()?)?.to_owned()),
            ("CV_EXEC_PORT", exec::PORT.to_string()),
            ("CV_KUBELET", String::new()),
            ("CV_MODULES", String::new()),
        ];
        if let Some(modules) = &spec.modules {
            lines.push(("CV_MODULES", plain_path(modules)?.to_owned()));
        }
        if let Some(kubelet) = &spec.kubelet {
            lines.extend([
                ("CV_KUBELET", plain_path(&kubelet.credentials)?.to_owned()),
                ("CV_BIN", plain_path(&kubelet.parts)?.to_owned()),
                ("CV_IMAGES", plain_path(&kubelet.images)?.to_owned()),
                ("CV_PODS", format!("10.78.{}.0/24", spec.index)),
                ("CV_POD_CIDR", POD_CIDR.to_owned()),
                ("CV_DNS", DNS_IP.to_owned()),
            ]);
        }
        Ok(lines
            .into_iter()
            .map(|(name, value)| format!("{name}='{value}'\n"))
            .collect())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.owned {
            self.kernel = None;
            sandbox::remove_link(&tap(self.spec.index));
        }
    }
}

/// A command that runs in the background on a node.
#[derive(Debug, Clone)]
pub struct Spawned {
    address: SocketAddr,
    pid: u32,
}

impl Spawned {
    /// Its pid on the node.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// `None` while it runs, then its exit code (128 + N after signal N).
    pub async fn exit_code(&self) -> Result<Option<i32>> {
        Ok(
            ask(self.address, &Request::Status { pid: self.pid }, EXEC_LIMIT)
                .await?
                .code,
        )
    }

    /// A signal to it and all that it started in its group, for example `SIGKILL`.
    pub async fn signal(&self, signal: &str) -> Result<()> {
        ask(
            self.address,
            &Request::Signal {
                pid: self.pid,
                signal: signal.into(),
            },
            EXEC_LIMIT,
        )
        .await
        .map(|_| ())
    }

    /// Waits for its end and returns the exit code.
    pub async fn wait(&self, limit: Duration) -> Result<i32> {
        wait_for(
            &format!("process {} to end", self.pid),
            limit,
            || self.exit_code(),
            String::new,
        )
        .await
    }
}

fn tap(index: u8) -> String {
    format!("tap{index}")
}

fn address(index: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, 10 + index)
}

fn console_name(boot: u32) -> String {
    format!("console-{boot}")
}
