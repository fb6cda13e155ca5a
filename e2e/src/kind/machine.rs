//! What kind needs of the machine itself, and what it would leave there: the kernel is shared by everybody on it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};

use crate::workdir;

const CGROUPS: &str = "/sys/fs/cgroup";
/// Beginning of the names of our control groups.
pub(super) const CGROUP_PREFIX: &str = "cryptvol-kind-";
/// kind mounts it into its nodes, and docker makes it where it is missing.
const MODULES: &str = "/lib/modules";

/// Settings of the whole kernel, not of a namespace, that kubelet and systemd in a node would change.
const SETTINGS: [&str; 8] = [
    "fs/file-max",
    "fs/nr_open",
    "kernel/keys/root_maxbytes",
    "kernel/keys/root_maxkeys",
    "kernel/panic",
    "kernel/panic_on_oops",
    "vm/overcommit_memory",
    "vm/panic_on_oom",
];

/// What the kernel under kind's nodes can do: theirs is the machine's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kernel {
    /// Device-mapper is there, or a module of it can be loaded.
    pub device_mapper: bool,
    /// iSCSI over TCP, likewise.
    pub iscsi: bool,
}

impl Kernel {
    /// Looks at the running kernel.
    pub fn detect() -> Self {
        let misc = fs::read_to_string("/proc/misc").unwrap_or_default();
        Self {
            device_mapper: misc.lines().any(|line| line.ends_with(" device-mapper"))
                || loadable("dm_crypt"),
            iscsi: Path::new("/sys/class/iscsi_transport/tcp").exists() || loadable("iscsi_tcp"),
        }
    }
}

fn loadable(module: &str) -> bool {
    Command::new("modprobe")
        .args(["--dry-run", "--quiet", module])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// The present values of [`SETTINGS`]; to be put back, or to be compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings(Vec<(&'static str, String)>);

impl Settings {
    /// Reads them; what this kernel does not have is left out.
    pub fn read() -> Self {
        let read = |name| fs::read_to_string(Path::new("/proc/sys").join(name)).ok();
        Self(
            SETTINGS
                .iter()
                .filter_map(|name| Some((*name, read(name)?.trim().to_owned())))
                .collect(),
        )
    }

    /// Writes those that differ now, as far as this user may, and says which.
    pub fn put_back(&self) -> Vec<&'static str> {
        let now = Self::read();
        self.0
            .iter()
            .filter(|old| !now.0.contains(old))
            .map(|(name, value)| {
                let _ = fs::write(Path::new("/proc/sys").join(name), value);
                *name
            })
            .collect()
    }
}

/// Removes the control groups `/NAME` of all hierarchies, with those below; the kernel refuses while a process is in one.
pub(super) fn remove_cgroup(name: &str) {
    for root in cgroup_roots() {
        remove_tree(&root.join(name));
    }
}

/// Removes what runs that were ended by force left behind. Groups of others' runs are in use, or so new that they soon will be.
pub fn sweep() {
    let old = SystemTime::now() - Duration::from_secs(10);
    for root in cgroup_roots() {
        for entry in fs::read_dir(&root).into_iter().flatten().flatten() {
            let ours = entry
                .file_name()
                .to_string_lossy()
                .starts_with(CGROUP_PREFIX);
            let is_old = |at: std::io::Result<SystemTime>| at.is_ok_and(|at| at < old);
            if ours && is_old(entry.metadata().and_then(|m| m.modified())) {
                remove_tree(&entry.path());
            }
        }
    }
    sweep_modules();
}

/// While it is there, a run may make `/lib/modules`, or use the one that another run made.
#[derive(Debug)]
pub(super) struct Modules(Option<File>);

/// Notes that `/lib/modules` is not there, so that what docker makes is removed in the end. Runs beside each other use the same.
pub(super) fn note_modules() -> Result<Modules> {
    let mark = modules_mark();
    if Path::new(MODULES).exists() && !mark.exists() {
        return Ok(Modules(None));
    }
    fs::create_dir_all(workdir::base())?;
    loop {
        let what = || format!("write {}", mark.display());
        let file = File::create(&mark).with_context(what)?;
        file.lock_shared().with_context(what)?;
        // Else the last run before removed it in the meantime.
        if mark.exists() {
            return Ok(Modules(Some(file)));
        }
    }
}

impl Modules {
    /// Removes `/lib/modules` if it was not there before, is empty, and no other run uses it.
    pub(super) fn release(&mut self) {
        if self.0.take().is_some() {
            sweep_modules();
        }
    }
}

fn sweep_modules() {
    let Ok(mark) = File::open(modules_mark()) else {
        return;
    };
    if mark.try_lock().is_ok() {
        // Fails when somebody put something there in the meantime, and shall.
        let _ = fs::remove_dir(MODULES);
        let _ = fs::remove_file(modules_mark());
    }
}

fn modules_mark() -> PathBuf {
    workdir::base().join("lib-modules-was-not-there")
}

/// The unified hierarchy, or each of the old ones.
fn cgroup_roots() -> Vec<PathBuf> {
    let mut roots = vec![PathBuf::from(CGROUPS)];
    if !Path::new(CGROUPS).join("cgroup.controllers").exists() {
        roots.extend(
            fs::read_dir(CGROUPS)
                .into_iter()
                .flatten()
                .flatten()
                .map(|e| e.path()),
        );
    }
    roots
}

fn remove_tree(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    let _ = fs::remove_dir(dir);
}
