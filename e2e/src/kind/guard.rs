//! A test of kind on the docker daemon that the machine has.
//!
//! Its containers, its networks and the port of the API server are outside of every sandbox. So is the test then, and the process
//! that started it sees to it that nothing stays, also after Ctrl-C.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal};

use super::docker;
use super::machine::{self, Settings};
use super::timed;

/// Set to the cluster's name for a test that uses the machine's daemon.
pub const CLUSTER: &str = "CRYPTVOL_KIND_CLUSTER";
/// Beginning of the file names of test programs that need no sandbox when the machine has a docker daemon.
const TESTS: &str = "cluster_kind";

/// True if `command` is such a test on such a machine.
pub fn applies(command: &[String]) -> bool {
    let name = command
        .first()
        .and_then(|program| Path::new(program).file_name())
        .unwrap_or_default();
    name.to_string_lossy().starts_with(TESTS) && docker::machine_has_one()
}

/// Runs it, removes its cluster however it ended, and returns its exit code. Before any thread is started.
pub fn run(command: &[String]) -> Result<i32> {
    let mut signals = SigSet::empty();
    for signal in [
        Signal::SIGINT,
        Signal::SIGTERM,
        Signal::SIGHUP,
        Signal::SIGCHLD,
    ] {
        signals.add(signal);
    }
    signals.thread_block()?;
    let name = format!("cryptvol-{}", std::process::id());
    let had_network = timed(10, "docker", &["network", "inspect", "kind"]).is_ok();
    let settings = Settings::read();
    let mut modules = machine::note_modules()?;
    let (program, args) = command.split_first().context("no command")?;
    let mut child = Command::new(program)
        .args(args)
        .env(CLUSTER, &name)
        .spawn()
        .with_context(|| format!("start {program}"))?;
    let code = loop {
        match signals.wait()? {
            Signal::SIGCHLD => {
                if let Some(status) = child.try_wait()? {
                    break status
                        .code()
                        .unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
                }
            }
            signal => {
                child.kill()?;
                child.wait()?;
                break 128 + signal as i32;
            }
        }
    };
    remove(&name)?;
    modules.release();
    if !had_network {
        // Refused while somebody else's cluster uses it.
        let _ = timed(10, "docker", &["network", "rm", "kind"]);
        settings.put_back();
    }
    Ok(code)
}

/// The cluster's nodes with their volumes; works without kind.
fn remove(cluster: &str) -> Result<()> {
    let label = format!("label=io.x-k8s.kind.cluster={cluster}");
    let nodes = timed(
        30,
        "docker",
        &["ps", "--all", "--quiet", "--filter", &label],
    )?;
    for node in nodes.split_whitespace() {
        timed(60, "docker", &["rm", "--force", "--volumes", node])?;
    }
    Ok(())
}
