//! The room in which everything runs: private network, process, mount, IPC and host-name namespaces.
//!
//! Whatever happens (a panic, Ctrl-C, `kill -9`), the kernel ends every process, removes every interface, mount and socket in
//! it together with its first process. Runs beside each other cannot collide, and nothing in it reaches another network.
//!
//! ```text
//! cryptvol-e2e sandbox -- COMMAND        waits; Ctrl-C and TERM take the room down
//!   └ cryptvol-e2e sandbox-init          process 1: mounts, network, reaps orphans, ends with COMMAND
//!       └ COMMAND                        a test binary, the supervisor of `up`, …
//! ```

use std::fs;
use std::io::Write;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitStatus, wait};
use nix::unistd::{Uid, getgid, getuid};

/// Set for everything that runs inside.
pub const MARK: &str = "CRYPTVOL_SANDBOX";
/// Path of the `cryptvol-e2e` binary, for whoever runs inside (nodes start it as their exec server).
pub const BINARY: &str = "CRYPTVOL_E2E_BIN";
/// Name of a kept cluster (`cryptvol-e2e up --name N`) whose room is to be joined instead of making a new one.
pub const JOIN: &str = "CRYPTVOL_E2E_CLUSTER";

/// The bridge that all nodes are on. The control plane listens here.
pub const BRIDGE_IP: &str = "10.77.0.1";

/// Fails, with the sentence that says what to run, when not called inside a sandbox.
pub fn require() -> Result<()> {
    let first = fs::read_to_string("/proc/1/comm").unwrap_or_default();
    if std::env::var_os(MARK).is_some() && first.trim() == "cryptvol-e2e" {
        return Ok(());
    }
    bail!(
        "this test needs namespaces of its own: run it with `cargo xtask test --tier api|node|cluster`, or build the runner with \
         `cargo build -p cryptvol-e2e` and set CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER=\"$PWD/target/debug/cryptvol-e2e sandbox --\""
    )
}

/// The `cryptvol-e2e` binary that made this sandbox.
pub fn binary() -> Result<PathBuf> {
    std::env::var_os(BINARY)
        .map(PathBuf::from)
        .with_context(|| format!("{BINARY} is not set: not in a sandbox"))
}

/// Makes the namespaces, runs `command` in them and returns its exit code. `ready` gets the outside pid of the room's first
/// process. Must be called before any thread is started.
pub fn enter(command: &[String], ready: impl FnOnce(u32) -> Result<()>) -> Result<i32> {
    let exe = std::env::current_exe()?;
    let mut flags = CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS;
    let (uid, gid) = (getuid(), getgid());
    if !Uid::effective().is_root() {
        flags |= CloneFlags::CLONE_NEWUSER;
    }
    // SIGCHLD too, so that one `wait` below serves everything. The child inherits the mask and takes it off in `init`.
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
    unshare(flags).context(
        "make namespaces: needs root, or a kernel that lets users make user namespaces (kernel.unprivileged_userns_clone)",
    )?;
    if flags.contains(CloneFlags::CLONE_NEWUSER) {
        fs::write("/proc/self/setgroups", "deny")?;
        fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
        fs::write("/proc/self/gid_map", format!("0 {gid} 1"))?;
    }
    let mut init = Command::new(&exe)
        .arg("sandbox-init")
        .arg("--")
        .args(command)
        .env(MARK, "1")
        .env(BINARY, &exe)
        .spawn()
        .context("start the first process of the sandbox")?;
    if let Err(error) = ready(init.id()) {
        init.kill()?;
        init.wait()?;
        return Err(error);
    }
    loop {
        match signals.wait()? {
            Signal::SIGCHLD => {
                if let Some(status) = init.try_wait()? {
                    return Ok(status
                        .code()
                        .unwrap_or_else(|| 128 + status.signal().unwrap_or(0)));
                }
            }
            signal => {
                init.kill()?;
                init.wait()?;
                return Ok(128 + signal as i32);
            }
        }
    }
}

/// Process 1 of the room. Never returns on success of anything but `command`.
pub fn init(command: &[String]) -> Result<i32> {
    SigSet::all().thread_unblock()?;
    // The room ends with whoever made it, even if that one was killed with SIGKILL.
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    if std::process::id() != 1 {
        bail!("sandbox-init is started by `cryptvol-e2e sandbox`, not by hand");
    }
    private_mounts()?;
    network()?;
    let Some((program, args)) = command.split_first() else {
        bail!("no command")
    };
    // The command has a process group of its own in no case: Ctrl-C at the terminal is meant for it too.
    let child = Command::new(program)
        .args(args)
        .spawn()
        .with_context(|| format!("start {program}"))?;
    let pid = i32::try_from(child.id())?;
    loop {
        match wait() {
            Ok(WaitStatus::Exited(who, code)) if who.as_raw() == pid => return Ok(code),
            Ok(WaitStatus::Signaled(who, signal, _)) if who.as_raw() == pid => {
                return Ok(128 + signal as i32);
            }
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error).context("wait for the command"),
        }
    }
}

/// Replaces this process by `command` inside the room of process `pid` (a pid as seen here).
pub fn join(
    pid: u32,
    command: &[String],
    env: &[(String, String)],
) -> Result<std::convert::Infallible> {
    let mut nsenter = Command::new("nsenter");
    nsenter.args([
        "--target",
        &pid.to_string(),
        "--net",
        "--pid",
        "--mount",
        "--ipc",
        "--uts",
    ]);
    if !Uid::effective().is_root() {
        nsenter.args(["--user", "--preserve-credentials"]);
    }
    let here = std::env::current_dir()?;
    nsenter
        .arg(format!("--wd={}", here.display()))
        .arg("--")
        .args(command);
    nsenter.env(MARK, "1").env(BINARY, std::env::current_exe()?);
    nsenter.envs(env.iter().map(|(name, value)| (name, value)));
    Err(nsenter.exec()).context("start nsenter (Debian package util-linux)")
}

fn private_mounts() -> Result<()> {
    let none: Option<&str> = None;
    let tmpfs = |at: &str, options: &str| {
        mount(
            Some("tmpfs"),
            at,
            Some("tmpfs"),
            MsFlags::empty(),
            Some(options),
        )
        .with_context(|| format!("tmpfs on {at}"))
    };
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .context("make mounts private")?;
    mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), none).context("mount /proc")?;
    // Sockets and locks of the machine (tgtd's control socket, ip netns, xtables, container daemons) are out of sight.
    tmpfs("/run", "mode=755")?;
    for dir in ["/run/lock", "/run/netns", "/run/tgtd"] {
        fs::create_dir_all(dir)?;
    }
    // The nodes' memory lies here; a container's own /dev/shm often has 64 MB only. It fills as the nodes use it.
    tmpfs("/dev/shm", "mode=1777,size=90%")?;
    Ok(())
}

/// `lo`, and a bridge for the nodes.
fn network() -> Result<()> {
    ip_batch(&format!(
        "link set lo up\nlink add br0 type bridge\naddr add {BRIDGE_IP}/24 dev br0\nlink set br0 up\n"
    ))?;
    fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
    Ok(())
}

/// Several `ip` commands in one process.
pub fn ip_batch(commands: &str) -> Result<()> {
    let mut ip = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("start `ip` (Debian package iproute2)")?;
    if let Some(mut input) = ip.stdin.take() {
        input.write_all(commands.as_bytes())?;
    }
    let output = ip.wait_with_output()?;
    if !output.status.success() {
        bail!(
            "ip -batch failed: {}\n{commands}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}

/// A tap device on the bridge for one node. Fails when another node of this room has that number.
pub(crate) fn add_tap(name: &str) -> Result<()> {
    crate::process::run("ip", &["tuntap", "add", name, "mode", "tap"])?;
    ip_batch(&format!("link set {name} master br0\nlink set {name} up\n"))
}

/// True if there is such an interface in this network namespace.
pub(crate) fn has_link(name: &str) -> bool {
    crate::process::run("ip", &["link", "show", name]).is_ok()
}

/// Removes an interface, if it is there.
pub(crate) fn remove_link(name: &str) {
    let _ = crate::process::run("ip", &["link", "del", name]);
}

/// A path as an argument or a kernel's command line takes it: absolute, without spaces.
pub(crate) fn plain_path(path: &Path) -> Result<&str> {
    match path.to_str() {
        Some(text)
            if path.is_absolute()
                && !text.contains(|c: char| c.is_whitespace() || c == '\'' || c == '"') =>
        {
            Ok(text)
        }
        _ => bail!(
            "{}: the ground needs paths without spaces or quotes",
            path.display()
        ),
    }
}
