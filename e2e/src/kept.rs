//! Clusters that outlive the command that started them: `up`, `down`, `status` and commands that enter one.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{Pid, setsid};
use serde::{Deserialize, Serialize};

use crate::cluster::{self, Cluster, ClusterOptions};
use crate::parts::{Parts, Set};
use crate::process::{start_time, tail};
use crate::{sandbox, workdir};

/// What `up` notes for the other commands. Pids are those of the machine, with their start times, since pids come again.
#[derive(Debug, Serialize, Deserialize)]
struct State {
    supervisor: u32,
    supervisor_started: u64,
    first: u32,
}

/// A cluster by its name.
#[derive(Debug, Clone)]
pub struct Kept {
    name: String,
    dir: PathBuf,
}

impl Kept {
    /// Names are for people and paths: letters, digits and dashes.
    pub fn new(name: &str) -> Result<Self> {
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') {
            bail!("{name:?} is no name for a cluster: use letters, digits and dashes");
        }
        Ok(Self {
            name: name.into(),
            dir: workdir::base().join("clusters").join(name),
        })
    }

    /// Its folder.
    pub fn dir(&self) -> &PathBuf {
        &self.dir
    }

    fn state(&self) -> Option<State> {
        let state: State =
            serde_json::from_slice(&fs::read(self.dir.join("state.json")).ok()?).ok()?;
        let pid = i32::try_from(state.supervisor).ok()?;
        (start_time(pid) == Some(state.supervisor_started)).then_some(state)
    }

    /// True while its supervisor lives.
    pub fn is_running(&self) -> bool {
        self.state().is_some()
    }

    /// Starts the cluster and stays until Ctrl-C or `down`; returns the exit code. Call it before any thread is started.
    /// `background`: started by [`Kept::up_detached`], which prepared everything.
    pub fn up(&self, options: &ClusterOptions, background: bool) -> Result<i32> {
        if background {
            // Closing the terminal does not end the cluster, nor does a later Ctrl-C.
            setsid()?;
        } else {
            self.prepare(options)?;
        }
        let exe = std::env::current_exe()?.display().to_string();
        let command = [exe, "supervise".into(), "--name".into(), self.name.clone()];
        let supervisor = std::process::id();
        // Before the room is made: this process and the first of the room have the same mounts, so as soon as that one has a
        // `/proc` of the room, this one is not in it any more.
        let supervisor_started = start_time(i32::try_from(supervisor)?)
            .with_context(|| format!("/proc/{supervisor}/stat cannot be read"))?;
        let code = sandbox::enter(&command, |first| {
            let state = State {
                supervisor,
                supervisor_started,
                first,
            };
            Ok(fs::write(
                self.dir.join("state.json"),
                serde_json::to_vec(&state)?,
            )?)
        });
        let _ = fs::remove_file(self.dir.join("state.json"));
        eprintln!("cluster {} is down", self.name);
        code
    }

    /// As [`Kept::up`] in a session of its own; returns when the cluster is ready. Ctrl-C before that takes it down.
    pub fn up_detached(&self, options: &ClusterOptions) -> Result<()> {
        self.prepare(options)?;
        let log_path = self.dir.join("up.log");
        let log = fs::File::create(&log_path)?;
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["up", "--background", "--name", &self.name]);
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGINT);
        signals.add(Signal::SIGTERM);
        signals.thread_block()?;
        let pending =
            SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        let mut supervisor = command.spawn()?;
        let mut shown = 0;
        loop {
            let text = fs::read_to_string(&log_path)?;
            eprint!("{}", &text[shown..]);
            shown = text.len();
            if self.dir.join("ready").exists() {
                eprint!("{}", &fs::read_to_string(&log_path)?[shown..]);
                return Ok(());
            }
            if let Some(status) = supervisor.try_wait()? {
                bail!(
                    "the cluster did not come up ({status}), see {}",
                    self.dir.display()
                );
            }
            if pending.read_signal()?.is_some() {
                kill(
                    Pid::from_raw(i32::try_from(supervisor.id())?),
                    Signal::SIGTERM,
                )?;
                supervisor.wait()?;
                bail!("interrupted; cluster {} is down", self.name);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn prepare(&self, options: &ClusterOptions) -> Result<()> {
        if self.is_running() {
            bail!(
                "cluster {0} is up already; `cryptvol-e2e down --name {0}` takes it down",
                self.name
            );
        }
        Parts::ensure(Set::Full)?;
        let _ = fs::remove_dir_all(&self.dir);
        fs::create_dir_all(&self.dir)?;
        fs::write(self.dir.join("options.json"), serde_json::to_vec(options)?)?;
        Ok(())
    }

    /// The settings that `up --detach` wrote down for the process that it started.
    pub fn noted_options(&self) -> Result<ClusterOptions> {
        Ok(serde_json::from_slice(&fs::read(
            self.dir.join("options.json"),
        )?)?)
    }

    /// Inside the sandbox: starts the cluster and waits for ever. Whoever ends the sandbox ends it.
    pub async fn supervise(&self) -> Result<()> {
        let cluster = Cluster::start(&self.dir, self.noted_options()?).await?;
        eprintln!("cluster {} is up\n{}", self.name, self.hints(&cluster));
        fs::write(self.dir.join("ready"), "")?;
        std::future::pending().await
    }

    fn hints(&self, cluster: &Cluster) -> String {
        let name = if self.name == DEFAULT_NAME {
            String::new()
        } else {
            format!(" --name {}", self.name)
        };
        format!(
            "  kubeconfig (inside):   {}\n  look around:           cryptvol-e2e kubectl{name} get pods -A\n  a shell inside:        \
             cryptvol-e2e shell{name}\n  a command on a node:   cryptvol-e2e exec-node{name} node-1 -- dmsetup ls\n  logs and disks:        \
             {}\n  take it down:          cryptvol-e2e down{name}   (or Ctrl-C where it runs)",
            cluster.plane.kubeconfig().display(),
            self.dir.display()
        )
    }

    /// Takes it down; says so when there is nothing to take down.
    pub fn down(&self) -> Result<()> {
        let Some(state) = self.state() else {
            println!("cluster {} is not up", self.name);
            let _ = fs::remove_dir_all(&self.dir);
            return Ok(());
        };
        kill(
            Pid::from_raw(i32::try_from(state.supervisor)?),
            Signal::SIGTERM,
        )?;
        let start = Instant::now();
        while self.is_running() {
            if start.elapsed() > Duration::from_secs(30) {
                bail!(
                    "process {} of cluster {} does not end",
                    state.supervisor,
                    self.name
                );
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        fs::remove_dir_all(&self.dir).with_context(|| format!("remove {}", self.dir.display()))?;
        println!("cluster {} is down", self.name);
        Ok(())
    }

    /// A few lines for people.
    pub fn status(&self) -> Result<String> {
        let Some(state) = self.state() else {
            bail!(
                "cluster {} is not up; `cryptvol-e2e up` starts it",
                self.name
            )
        };
        let ready = if self.dir.join("ready").exists() {
            "ready"
        } else {
            "starting"
        };
        Ok(format!(
            "cluster {}: {ready}\n  supervisor process {}, first process inside {}\n  files: {}",
            self.name,
            state.supervisor,
            state.first,
            self.dir.display()
        ))
    }

    /// Replaces this process by `command` inside the cluster's sandbox, with `kubectl`, `helm` and a `KUBECONFIG` at hand.
    pub fn enter(&self, command: &[String]) -> Result<std::convert::Infallible> {
        let Some(state) = self.state() else {
            bail!(
                "cluster {} is not up; `cryptvol-e2e up` starts it",
                self.name
            )
        };
        if !self.dir.join("ready").exists() {
            bail!(
                "cluster {} is still starting:\n{}",
                self.name,
                tail(&self.dir.join("up.log"), 5)
            );
        }
        let plane = self.dir.join("control-plane");
        let mut env = Parts::locate(Set::Full)?.tool_env(&plane);
        env.push((cluster::DIR.into(), self.dir.display().to_string()));
        sandbox::join(state.first, command, &env)
    }
}

/// The name where none is given.
pub const DEFAULT_NAME: &str = "dev";
