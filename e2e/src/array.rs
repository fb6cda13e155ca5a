//! An iSCSI array in user space (`tgtd`) in a network namespace of its own, behind a virtual cable that can be captured and cut;
//! or, for nodes that are containers on the machine itself, on the machine's loopback.
//!
//! Its disks are plain files that outlive nodes and the array's own restarts; a test reads them to see what the array holds.

mod contents;
mod lun;
mod network;
mod tgtadm;

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

pub use lun::Lun;
pub(crate) use lun::find;
use network::{cable, namespace};

use crate::process::{Daemon, run, tail, wait_for};
use crate::sandbox::{self, ip_batch, plain_path};

/// The port of iSCSI.
pub const PORT: u16 = 3260;

/// A running array.
#[derive(Debug)]
pub struct Array {
    dir: PathBuf,
    state: State,
    daemon: Option<Daemon>,
    owned: bool,
}

/// Everything that tgtd forgets when it ends; it is told again at each start.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct State {
    place: Place,
    targets: Vec<Target>,
    #[serde(default)]
    discovery_chap: Option<Chap>,
    #[serde(default)]
    discovery_own_chap: Option<Chap>,
    next_file: u32,
}

/// Where tgtd listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Place {
    /// In the network namespace of this number.
    Namespace(u8),
    /// At this port of the loopback.
    Loopback(u16),
}

impl Place {
    /// tgtd's number among those of the machine, at most 32767: its control socket has it in its name.
    fn control(self) -> String {
        match self {
            Self::Namespace(index) => index.to_string(),
            Self::Loopback(port) => (port / 2).to_string(),
        }
    }

    /// Part of the disks' names, so that those of two arrays differ.
    fn number(self) -> u16 {
        match self {
            Self::Namespace(index) => index.into(),
            Self::Loopback(port) => port,
        }
    }

    fn namespace(self) -> Result<u8> {
        match self {
            Self::Namespace(index) => Ok(index),
            Self::Loopback(_) => bail!("an array on the loopback has no cable"),
        }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Target {
    id: u32,
    iqn: String,
    chap: Option<Chap>,
    own_chap: Option<Chap>,
    luns: Vec<Lun>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Chap {
    user: String,
    password: String,
}

/// The target of that name.
pub fn iqn(name: &str) -> String {
    format!("iqn.2026-11.dev.cryptvol:{name}")
}

impl Array {
    /// Starts an array without targets, its files in `dir`. Several can run beside each other.
    pub async fn start(dir: &Path) -> Result<Self> {
        sandbox::require()?;
        fs::create_dir_all(dir)?;
        plain_path(dir)?;
        let index = (1..=9)
            .find(|i| !sandbox::has_link(&cable(*i)))
            .context("more than nine arrays in one sandbox")?;
        let (ns, cable) = (namespace(index), cable(index));
        run("ip", &["netns", "add", &ns])?;
        // The second address is for multipath and for portals that answer under several names.
        ip_batch(&format!(
            "link add {cable} type veth peer name port0 netns {ns}\naddr add 10.77.{index}.254/24 dev {cable}\nlink set {cable} up\n"
        ))?;
        run("ip", &["-n", &ns, "link", "set", "lo", "up"])?;
        run("ip", &["-n", &ns, "link", "set", "port0", "up"])?;
        for last in [1, 2] {
            run(
                "ip",
                &[
                    "-n",
                    &ns,
                    "addr",
                    "add",
                    &format!("10.77.{index}.{last}/24"),
                    "dev",
                    "port0",
                ],
            )?;
        }
        run(
            "ip",
            &[
                "-n",
                &ns,
                "route",
                "add",
                "default",
                "via",
                &format!("10.77.{index}.254"),
            ],
        )?;
        Self::first_start(dir, Place::Namespace(index)).await
    }

    /// Starts an array on a free port of the machine's loopback, for an initiator that the machine itself is.
    pub async fn start_on_loopback(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir)?;
        plain_path(dir)?;
        let free = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        Self::first_start(dir, Place::Loopback(free.port())).await
    }

    async fn first_start(dir: &Path, place: Place) -> Result<Self> {
        let state = State {
            place,
            targets: Vec::new(),
            discovery_chap: None,
            discovery_own_chap: None,
            next_file: 1,
        };
        let mut array = Self {
            dir: dir.into(),
            state,
            daemon: None,
            owned: true,
        };
        array.power_on().await?;
        Ok(array)
    }

    /// Takes over an array that another process of this sandbox started; dropping this value does not stop it.
    pub fn attach(dir: &Path) -> Result<Self> {
        let text = fs::read(dir.join("array.json"))
            .with_context(|| format!("no array in {}", dir.display()))?;
        Ok(Self {
            dir: dir.into(),
            state: serde_json::from_slice(&text)?,
            daemon: Daemon::open(dir, "tgtd").ok(),
            owned: false,
        })
    }

    /// The array's own messages.
    pub fn log_path(&self) -> PathBuf {
        self.dir.join("tgtd.log")
    }

    /// Ends the array at once, like a controller that crashed; portals answer no more. The disks stay.
    pub fn power_off(&mut self) -> Result<()> {
        match self.daemon.take() {
            Some(mut daemon) => daemon.kill(),
            None => Ok(()),
        }
    }

    /// Starts it again with the same targets, disks and passwords.
    pub async fn power_on(&mut self) -> Result<()> {
        ensure!(
            self.daemon.as_ref().is_none_or(|d| !d.is_running()),
            "the array is running"
        );
        let control = self.state.place.control();
        let tgtd = ["tgtd", "-f", "-C", &control];
        let mut command;
        match self.state.place {
            // It listens on every address of its namespace; tgtd takes one `portal=` only.
            Place::Namespace(index) => {
                command = Command::new("ip");
                command
                    .args(["netns", "exec", &namespace(index)])
                    .args(tgtd);
            }
            Place::Loopback(_) => {
                command = Command::new(tgtd[0]);
                command
                    .args(&tgtd[1..])
                    .arg("--iscsi")
                    .arg(format!("portal={}", self.portal()));
            }
        }
        let mut daemon =
            Daemon::spawn(&self.dir, "tgtd", command).context("start tgtd (Debian package tgt)")?;
        if !self.owned {
            daemon.keep();
        }
        let log = daemon.log_path();
        wait_for(
            "tgtd to answer",
            Duration::from_secs(30),
            || async {
                daemon.check()?;
                Ok(self.admin(&["--mode", "target", "--op", "show"]).ok())
            },
            || tail(&log, 20),
        )
        .await?;
        self.daemon = Some(daemon);
        if let Some(chap) = &self.state.discovery_chap {
            self.tell_discovery_chap(chap, &[])?;
        }
        if let Some(chap) = &self.state.discovery_own_chap {
            self.tell_discovery_chap(chap, &["--outgoing"])?;
        }
        for target in self.state.targets.clone() {
            self.tell_target(&target)?;
            if let Some(chap) = &target.chap {
                self.tell_chap(target.id, chap)?;
            }
            if let Some(chap) = &target.own_chap {
                self.tell_own_chap(target.id, chap)?;
            }
            for lun in &target.luns {
                self.tell_lun(target.id, lun)?;
            }
        }
        self.save()
    }

    /// Stops answering without closing connections, like a controller that hangs; `false` lets it go on.
    pub fn hang(&self, hang: bool) -> Result<()> {
        let daemon = self.daemon.as_ref().context("the array is switched off")?;
        daemon.signal_group(if hang {
            Signal::SIGSTOP
        } else {
            Signal::SIGCONT
        })
    }

    fn save(&self) -> Result<()> {
        fs::write(
            self.dir.join("array.json"),
            serde_json::to_vec_pretty(&self.state)?,
        )?;
        Ok(())
    }
}

impl Drop for Array {
    fn drop(&mut self) {
        if self.owned {
            self.daemon = None;
            if let Place::Namespace(index) = self.state.place {
                sandbox::remove_link(&cable(index));
                let _ = run("ip", &["netns", "del", &namespace(index)]);
            }
        }
    }
}
