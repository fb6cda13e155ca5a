//! Background processes with a log file and a pid file, short commands, and waiting with a deadline.
//!
//! Nothing here belongs to an async runtime: tests share one cluster although each `#[tokio::test]` has its own runtime,
//! and a later command can take over what an earlier one started (`attach`).

use std::fs::{self, File, OpenOptions};
use std::future::Future;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

/// A long-running process in a process group of its own. Dropping it kills the group, unless it was taken over with
/// [`Daemon::open`] from whoever started it.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    dir: PathBuf,
    pid: i32,
    started: u64,
    child: Option<Child>,
}

impl Daemon {
    /// Starts `command` with `DIR/NAME.log` as its output (appended) and notes its pid in `DIR/NAME.pid`.
    pub fn spawn(dir: &Path, name: &str, mut command: Command) -> Result<Self> {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(dir.join(format!("{name}.log")))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .with_context(|| format!("start {name} ({:?})", command.get_program()))?;
        let pid = i32::try_from(child.id())?;
        let started = start_time(pid).unwrap_or_default();
        fs::write(
            dir.join(format!("{name}.pid")),
            format!("{pid} {started}\n"),
        )?;
        Ok(Self {
            name: name.into(),
            dir: dir.into(),
            pid,
            started,
            child: Some(child),
        })
    }

    /// Takes over what another process of this sandbox started with [`Daemon::spawn`].
    pub fn open(dir: &Path, name: &str) -> Result<Self> {
        let path = dir.join(format!("{name}.pid"));
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let mut words = text.split_whitespace().map(str::parse::<u64>);
        match (words.next(), words.next()) {
            (Some(Ok(pid)), Some(Ok(started))) => Ok(Self {
                name: name.into(),
                dir: dir.into(),
                pid: i32::try_from(pid)?,
                started,
                child: None,
            }),
            _ => bail!("{} does not hold a pid and a start time", path.display()),
        }
    }

    /// Lets the process live on when this value is dropped.
    pub fn keep(&mut self) {
        self.child = None;
    }

    /// The pid as seen inside the sandbox.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// The file with everything that it printed, over all its starts.
    pub fn log_path(&self) -> PathBuf {
        self.dir.join(format!("{}.log", self.name))
    }

    /// The last `lines` of the log, for messages.
    pub fn log_tail(&self, lines: usize) -> String {
        tail(&self.log_path(), lines)
    }

    /// False once it ended with all its threads, so that its files, sockets and locks are let go.
    pub fn is_running(&self) -> bool {
        stat(self.pid).is_some_and(|s| s.started == self.started && !s.has_ended())
    }

    /// Sends a signal to the process alone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        if self.is_running() {
            kill(Pid::from_raw(self.pid), signal)
                .with_context(|| format!("send {signal} to {}", self.name))?;
        }
        Ok(())
    }

    /// Sends a signal to the process and all that it started in its group.
    pub fn signal_group(&self, signal: Signal) -> Result<()> {
        match killpg(Pid::from_raw(self.pid), signal) {
            Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
            Err(error) => {
                Err(error).with_context(|| format!("send {signal} to the group of {}", self.name))
            }
        }
    }

    /// `SIGKILL` to the whole group, and returns only when none of it is left.
    pub fn kill(&mut self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            self.signal_group(Signal::SIGKILL)?;
            if let Some(child) = &mut self.child {
                let _ = child.try_wait();
            }
            let left = group_members(self.pid);
            if left.is_empty() {
                let _ = fs::remove_file(self.dir.join(format!("{}.pid", self.name)));
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!(
                    "{} (group {}) does not die: still there are {left:?}",
                    self.name,
                    self.pid
                );
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// An error that says that the process ended, with the end of its log.
    pub fn check(&self) -> Result<()> {
        if self.is_running() {
            return Ok(());
        }
        bail!(
            "{} ended by itself; the end of {}:\n{}",
            self.name,
            self.log_path().display(),
            self.log_tail(25)
        )
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.child.is_some() {
            let _ = self.kill();
        }
    }
}

struct Stat {
    state: char,
    group: i32,
    threads: u32,
    started: u64,
}

impl Stat {
    /// A process whose first thread is a zombie still holds its files as long as another thread of it is on its way out: who starts
    /// its successor then finds its port in use.
    fn has_ended(&self) -> bool {
        self.state == 'Z' && self.threads <= 1
    }
}

/// `/proc/PID/stat`: state is field 3, process group 5, number of threads 20, start time (clock ticks since boot) 22; see proc(5).
fn stat(pid: i32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    Some(Stat {
        state: fields.first()?.chars().next()?,
        group: fields.get(2)?.parse().ok()?,
        threads: fields.get(17)?.parse().ok()?,
        started: fields.get(19)?.parse().ok()?,
    })
}

/// When a process was started, in clock ticks since boot; with its pid this names it once and for all.
pub(crate) fn start_time(pid: i32) -> Option<u64> {
    stat(pid).map(|s| s.started)
}

/// Members of a process group that have not ended.
fn group_members(group: i32) -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| stat(*pid).is_some_and(|s| s.group == group && !s.has_ended()))
        .collect()
}

/// The last lines of a text file; says so when there are none.
pub fn tail(path: &Path, lines: usize) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = File::open(path)?;
        let size = file.metadata()?.len();
        file.seek(SeekFrom::Start(size.saturating_sub(64 * 1024)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    match read() {
        Ok(text) if text.trim().is_empty() => format!("({} is empty)", path.display()),
        Ok(text) => {
            let all: Vec<&str> = text.lines().collect();
            all[all.len().saturating_sub(lines)..].join("\n")
        }
        Err(error) => format!("({}: {error})", path.display()),
    }
}

/// Runs a short command to its end and returns its standard output; a failure carries what it printed as an error.
pub fn run(program: impl AsRef<std::ffi::OsStr>, args: &[&str]) -> Result<String> {
    let program = program.as_ref();
    let output = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("start {}", program.display()))?;
    if !output.status.success() {
        bail!(
            "{} {} failed ({}): {}",
            program.display(),
            args.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Asks `probe` again and again until it gives a value. `Ok(None)` means not yet; an error ends the waiting at once.
/// After `limit` the error names `what` and adds what `explain` knows (usually the end of a log).
pub async fn wait_for<T, F>(
    what: &str,
    limit: Duration,
    mut probe: impl FnMut() -> F,
    explain: impl Fn() -> String,
) -> Result<T>
where
    F: Future<Output = Result<Option<T>>>,
{
    let start = Instant::now();
    let mut pause = Duration::from_millis(20);
    loop {
        let left = limit.saturating_sub(start.elapsed());
        match tokio::time::timeout(left, probe()).await {
            Ok(Ok(Some(value))) => return Ok(value),
            Ok(Ok(None)) => {}
            Ok(Err(error)) => return Err(error.context(format!("while waiting for {what}"))),
            Err(_) => return Err(anyhow!("waited {limit:?} for {what}\n{}", explain())),
        }
        tokio::time::sleep(pause.min(limit.saturating_sub(start.elapsed()))).await;
        pause = (pause * 3 / 2).min(Duration::from_millis(500));
        if start.elapsed() >= limit {
            return Err(anyhow!("waited {limit:?} for {what}\n{}", explain()));
        }
    }
}

/// Resident memory of a process in KiB, see proc_pid_status(5).
pub fn resident_kib(pid: i32) -> Result<u64> {
    status_kib(pid, "VmRSS:")
}

/// The most memory that was resident at any time since the process began, in KiB.
pub fn peak_kib(pid: i32) -> Result<u64> {
    status_kib(pid, "VmHWM:")
}

fn status_kib(pid: i32, field: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|l| l.strip_prefix(field));
    line.and_then(|l| l.split_whitespace().next()?.parse().ok())
        .ok_or_else(|| anyhow!("no {field} of process {pid}"))
}

/// Memory of all members of a process group in KiB, what processes share counted once (PSS, proc(5)).
pub fn group_memory_kib(group: i32) -> Result<u64> {
    let mut sum = 0;
    for pid in group_members(group) {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        let line = text.lines().find_map(|l| l.strip_prefix("Pss:"));
        sum += line
            .and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok())
            .ok_or_else(|| anyhow!("no Pss of process {pid}"))?;
    }
    Ok(sum)
}

/// Where ports of servers are taken from: below those that the kernel takes for outgoing connections
/// (`net.ipv4.ip_local_port_range`, from 32768 on). Otherwise a connection could have the port of a server that is just being
/// started anew; who waits for that server can even connect to himself.
const SERVER_PORTS: Range<u16> = 20_000..30_000;

/// A TCP port that is free now, and that this process was not given before; for servers that cannot choose one by themselves.
pub fn free_port() -> Result<u16> {
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    let count = u32::from(SERVER_PORTS.end - SERVER_PORTS.start);
    // Processes beside each other begin far from each other.
    let begin = std::process::id().wrapping_mul(97);
    for _ in 0..count {
        let next = begin.wrapping_add(GIVEN.fetch_add(1, Ordering::Relaxed)) % count;
        let port = SERVER_PORTS.start + u16::try_from(next)?;
        match std::net::TcpListener::bind(("127.0.0.1", port)) {
            Ok(_) => return Ok(port),
            Err(e) if e.kind() == std::io::ErrorKind::AddrInUse => {}
            Err(e) => return Err(e).context("look for a free port"),
        }
    }
    Err(anyhow!("no port of {SERVER_PORTS:?} is free"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_of_servers_are_none_of_outgoing_connections() {
        let ports: Vec<_> = (0..10).map(|_| free_port().unwrap()).collect();
        assert!(ports.iter().all(|p| SERVER_PORTS.contains(p)), "{ports:?}");
        let different: std::collections::BTreeSet<_> = ports.iter().collect();
        assert_eq!(different.len(), ports.len(), "{ports:?}");
    }

    #[test]
    fn a_process_whose_first_thread_ended_is_still_there() {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new("python3");
        command.args([
            "-c",
            "import ctypes, threading, time\n\
             threading.Thread(target=time.sleep, args=(1000,)).start()\n\
             ctypes.CDLL(None).pthread_exit(None)",
        ]);
        let mut daemon = Daemon::spawn(dir.path(), "headless", command).unwrap();
        for _ in 0..1000 {
            if stat(daemon.pid()).is_some_and(|s| s.state == 'Z') {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(stat(daemon.pid()).is_some_and(|s| s.state == 'Z'));
        assert!(daemon.is_running());
        assert_eq!(group_members(daemon.pid()), [daemon.pid()]);
        daemon.kill().unwrap();
        assert!(!daemon.is_running());
    }

    #[test]
    fn a_daemon_dies_with_its_whole_group() {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 1000 & sleep 1000 & echo hello; wait"]);
        let mut daemon = Daemon::spawn(dir.path(), "sleepers", command).unwrap();
        for _ in 0..200 {
            if group_members(daemon.pid()).len() == 3 {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(group_members(daemon.pid()).len(), 3);
        assert!(daemon.is_running());
        assert_eq!(daemon.log_tail(5), "hello");
        daemon.kill().unwrap();
        assert!(group_members(daemon.pid()).is_empty());
        assert!(daemon.check().unwrap_err().to_string().contains("hello"));
    }
}
