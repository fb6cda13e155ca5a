//! Who has a block device open. The kernel removes a disk from under whoever has it open plainly, and tells nobody who that is: what is
//! stacked on it is in sysfs, a mount is in the way of an exclusive open, and the rest is seen by looking at what each process has open.
//!
//! Not seen: who maps it into memory and has closed it since, who gave it to `io_uring` and closed it, and who opens it in the moment
//! between the look and what follows.

use std::{
    fmt, fs, io,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use cryptvol_crds::conditions::Reason;
use rustix::fs::{AtFlags, CWD, FileType, StatxFlags, statx};

use super::{
    error::{because, failed},
    local, proc,
    sysfs::{attribute, names},
};
use crate::host::{DeviceId, StepError};

const PROC: &str = "/proc";
/// So many are named; one is enough to know that it is in use.
const NAMED: usize = 5;
/// Who has a disk open for reading whenever something of it changes, or watches whether it answers, for as long as the kernel has it: they
/// let go of it by themselves once it is gone.
const WATCHERS: [&str; 4] = ["(udev-worker)", "systemd-udevd", "udevd", "multipathd"];
/// What programs that udev starts may take.
const PASSING: Duration = Duration::from_secs(1);
/// Between two looks, each of which reads what every process of the node has open.
const STEP: Duration = Duration::from_millis(100);

/// A process that has a device open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opener {
    /// In the PID namespace of the agent, which is the node's.
    pub pid: u32,
    /// As `ps` names it.
    pub command: String,
}

impl fmt::Display for Opener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (pid {})", self.command, self.pid)
    }
}

impl Opener {
    fn only_watches(&self) -> bool {
        WATCHERS.contains(&self.command.as_str())
    }
}

/// Nobody has a device or a partition of it open. Who only passes by is waited for; `block` is its directory in sysfs.
///
/// # Errors
/// `DeviceBusy` with who has it, `StepFailed` when that cannot be found out.
pub fn none(block: &Path, id: &DeviceId) -> Result<(), StepError> {
    let read = |e: io::Error| failed(format!("looking for who has {} open", id.path), e);
    let numbers = local::numbers(block, &id.dev).map_err(read)?;
    let begun = Instant::now();
    loop {
        let found = processes(PROC.as_ref(), FileType::BlockDevice, &numbers).map_err(read)?;
        let mut users = found.iter().filter(|o| !o.only_watches()).peekable();
        if users.peek().is_none() {
            break;
        }
        if begun.elapsed() > PASSING {
            return Err(open(id, users.map(Opener::to_string)));
        }
        thread::sleep(STEP);
    }
    match loops("/sys/block".as_ref(), &numbers).map_err(read)? {
        found if found.is_empty() => Ok(()),
        found => Err(open(id, found.into_iter())),
    }
}

fn open(id: &DeviceId, by: impl Iterator<Item = String>) -> StepError {
    let by: Vec<_> = by.collect();
    because(
        Reason::DeviceBusy,
        format!("{} ({}) is open by {}", id.path, id.dev, by.join(", ")),
    )
}

/// Whoever has a device, as far as it can be told: for a message about one that cannot be opened exclusively.
pub fn whoever(block: &Path, id: &DeviceId) -> String {
    let found = || -> io::Result<Vec<String>> {
        let numbers = local::numbers(block, &id.dev)?;
        let mut found = Vec::new();
        found.extend(proc::mount_point(&proc::mounts()?, &numbers).map(|at| format!("at {at}")));
        found.extend(local::swap(&numbers)?.map(|path| format!("swap ({path})")));
        found.extend(loops("/sys/block".as_ref(), &numbers)?);
        let processes = processes(PROC.as_ref(), FileType::BlockDevice, &numbers)?;
        found.extend(processes.iter().map(Opener::to_string));
        Ok(found)
    };
    match found() {
        Ok(found) if !found.is_empty() => format!(": {}", found.join(", ")),
        _ => String::new(),
    }
}

/// Processes that have a device of these numbers (major:minor) open, as a person is told of them.
pub fn of_number(number: String) -> Vec<String> {
    let found = processes(PROC.as_ref(), FileType::BlockDevice, &[number]);
    let found = found.unwrap_or_default();
    found.iter().map(Opener::to_string).collect()
}

/// Processes that have one of the devices open; a handful at most of those that do not only watch. The agent and its workers are left
/// out: one that hangs with a disk is freed by nothing but the end of the disk.
fn processes(proc: &Path, kind: FileType, numbers: &[String]) -> io::Result<Vec<Opener>> {
    let own = fs::read_link(proc.join("self/exe")).ok();
    let mut found: Vec<Opener> = Vec::new();
    for pid in names(proc)? {
        let Ok(number) = pid.parse() else { continue };
        let dir = proc.join(&pid);
        if !has_open(&dir.join("fd"), kind, numbers) {
            continue;
        }
        if own.is_some() && fs::read_link(dir.join("exe")).ok() == own {
            continue;
        }
        found.push(Opener {
            pid: number,
            // It may end in this moment.
            command: attribute(&dir.join("comm"))
                .ok()
                .flatten()
                .unwrap_or_default(),
        });
        if found.iter().filter(|o| !o.only_watches()).count() == NAMED {
            break;
        }
    }
    Ok(found)
}

/// Whether something that a process has open is one of the devices. One that ended meanwhile has nothing.
fn has_open(fds: &Path, kind: FileType, numbers: &[String]) -> bool {
    let open = fs::read_dir(fds).into_iter().flatten().flatten();
    open.map(|fd| fd.path()).any(|fd| {
        // Sockets, pipes and the like have no path.
        let named = fs::read_link(&fd).is_ok_and(|to| to.has_root());
        named && device(&fd, kind).is_some_and(|number| numbers.contains(&number))
    })
}

/// Number of the device at a path, as the node itself knows it: a file of a network file system that does not answer is not asked for
/// either, and holds nobody.
fn device(path: &Path, kind: FileType) -> Option<String> {
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    let found = statx(CWD, path, flags, StatxFlags::TYPE).ok()?;
    let is = FileType::from_raw_mode(found.stx_mode.into()) == kind;
    is.then(|| format!("{}:{}", found.stx_rdev_major, found.stx_rdev_minor))
}

/// Loop devices over one of the devices: no process has it open then. `blocks` is the directory of all block devices in sysfs.
fn loops(blocks: &Path, numbers: &[String]) -> io::Result<Vec<String>> {
    let mut found = Vec::new();
    for name in names(blocks)?.filter(|n| n.starts_with("loop")) {
        let below = attribute(&blocks.join(&name).join("loop/backing_file"))?;
        let Some(below) = below.filter(|path| path.starts_with("/dev/")) else {
            continue;
        };
        let below = below.strip_suffix(" (deleted)").unwrap_or(&below);
        let number = device(below.as_ref(), FileType::BlockDevice);
        if number.is_some_and(|n| numbers.contains(&n)) {
            found.push(format!("the loop device {name}"));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// Somebody who has a device open, and nothing else.
    struct Somebody(Child);

    impl Somebody {
        fn has(path: &str) -> Self {
            let open = fs::File::open(path).unwrap();
            let mut command = Command::new("sleep");
            command.arg("600").stdin(open);
            let quiet = command.stdout(Stdio::null()).stderr(Stdio::null());
            Self(quiet.spawn().unwrap())
        }
    }

    impl Drop for Somebody {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    /// A device of the test machine that nobody else has open: `/dev/full`, of characters.
    const FULL: &str = "1:7";

    fn of_full(kind: FileType) -> Vec<Opener> {
        processes(PROC.as_ref(), kind, &[FULL.to_owned()]).unwrap()
    }

    #[test]
    fn who_has_a_device_open_is_found_by_its_number_and_told_by_name() {
        let somebody = Somebody::has("/dev/full");
        let pid = somebody.0.id();
        let is = |o: &Opener| o.pid == pid;
        let found = of_full(FileType::CharacterDevice);
        let opener = found.iter().find(|o| is(o)).unwrap();
        assert_eq!(opener.to_string(), format!("sleep (pid {pid})"));
        // Devices of characters and of blocks have the same numbers.
        assert_eq!(of_full(FileType::BlockDevice), []);
        drop(somebody);
        assert!(!of_full(FileType::CharacterDevice).iter().any(is));
    }

    #[test]
    fn what_the_agent_itself_has_open_is_nobodys() {
        let _open = fs::File::open("/dev/full").unwrap();
        let own = std::process::id();
        let found = of_full(FileType::CharacterDevice);
        assert!(!found.iter().any(|o| o.pid == own), "{found:?}");
    }

    #[test]
    fn who_only_watches_is_known() {
        let opener = |command: &str| Opener {
            pid: 1,
            command: command.to_owned(),
        };
        assert!(opener("(udev-worker)").only_watches());
        assert!(opener("multipathd").only_watches());
        assert!(!opener("qemu-system-x86").only_watches());
    }

    #[test]
    fn a_loop_device_over_a_disk_is_a_use_of_it() {
        let tmp = tempfile::tempdir().unwrap();
        let below = |name: &str, path: &str| {
            let dir = tmp.path().join(name).join("loop");
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("backing_file"), path).unwrap();
        };
        below("loop0", "/srv/image");
        below("loop1", "/dev/absent (deleted)");
        let number = ["4000:0".to_owned()];
        assert!(loops(tmp.path(), &number).unwrap().is_empty());
    }
}
