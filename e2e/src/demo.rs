//! `cargo xtask demo`: a cluster, a volume, and at each step what a user, the array and the network see.
//!
//! Two halves: [`run`] outside makes images and cluster and takes the cluster down again; [`inside`] is the story, told
//! within the cluster's namespaces.

mod story;
mod telling;

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;

use crate::cluster::{Cluster, ClusterOptions, DIR};
use crate::guest::Guest;
use crate::images;
use crate::kept::{DEFAULT_NAME, Kept};
use crate::release;
use crate::sandbox;
use crate::workdir::workspace_root;

/// Makes what is missing, starts a cluster (or takes the one that `up` left), tells the story, and takes down what it
/// started, unless `keep`. Returns the exit code. Call it before any thread is started.
pub fn run(keep: bool) -> Result<i32> {
    let clock = telling::Clock::start();
    let program = std::env::current_exe()?;
    let bin = program.parent().context("the folder of this program")?;
    telling::heading(
        "Images of operator, node agent and identity service, made without a container daemon",
    );
    images::build(bin, &workspace_root().join("target/images"))?;
    Guest::prepare()?;
    let kept = Kept::new(DEFAULT_NAME)?;
    let ours = !kept.is_running();
    if ours {
        telling::heading(
            "A Kubernetes cluster: control plane, two nodes with kernels of their own, an iSCSI array",
        );
        let options = ClusterOptions {
            images: release::image_archives(),
            ..ClusterOptions::default()
        };
        kept.up_detached(&options)?;
    } else {
        telling::heading("The cluster that `cargo xtask up` left is used, and left again");
    }
    let outcome = wait_for_story(
        Command::new(&program)
            .args(["sandbox", "--"])
            .arg(&program)
            .args(["demo", "--inside"])
            .env(sandbox::JOIN, DEFAULT_NAME),
    );
    if ours && !keep {
        telling::heading("The cluster is taken down");
        kept.down()?;
    }
    let code = outcome?;
    clock.tell("all of it");
    if code == 0 {
        telling::ending(ours && !keep);
    }
    Ok(code)
}

/// Runs the inner half to its end. Ctrl-C and TERM end it, and the cluster is taken down all the same.
fn wait_for_story(command: &mut Command) -> Result<i32> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.thread_block()?;
    let pending = SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
    let mut child = command
        .spawn()
        .context("start the inner half of the demo")?;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status.code().unwrap_or(1));
        }
        if pending.read_signal()?.is_some() {
            kill(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGTERM)?;
            child.wait()?;
            return Ok(130);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The story, in the namespaces of the cluster.
pub async fn inside() -> Result<()> {
    let Some(dir) = std::env::var_os(DIR) else {
        bail!("this is the inner half of the demo: run `cargo xtask demo`");
    };
    let mut cluster = Cluster::attach(std::path::Path::new(&dir))?;
    tell(&mut cluster).await
}

/// The story on a cluster: installs the charts and goes on to the end; what it claims it checks.
pub async fn tell(cluster: &mut Cluster) -> Result<()> {
    story::tell(cluster).await
}
