//! `runc`, asked only for the capabilities that this machine can give.
//!
//! Inside a container or a small virtual machine the bounding set may lack some (often `CAP_SYS_RESOURCE`). Docker asks for all of
//! them for a privileged container, and `runc` before 1.2 fails then. dockerd starts this program in place of `runc`.

use std::ffi::OsString;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

/// Bit numbers of capability sets, from `linux/capability.h`.
const NAMES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// True if a plain `runc` would do.
pub(super) fn has_all_capabilities() -> Result<bool> {
    let last: u32 = fs::read_to_string("/proc/sys/kernel/cap_last_cap")?
        .trim()
        .parse()?;
    let all = (1_u64 << (last + 1)) - 1;
    Ok(bounding_set()? & all == all)
}

/// Rewrites what dockerd prepared and becomes `runc ARGS`.
pub fn exec(args: &[OsString]) -> Result<std::convert::Infallible> {
    if let Some(file) = request_file(args) {
        let text = fs::read(&file).with_context(|| format!("read {}", file.display()))?;
        let mut request: Value = serde_json::from_slice(&text)?;
        restrict(&mut request, bounding_set()?);
        fs::write(&file, serde_json::to_vec(&request)?)?;
    }
    Err(Command::new("runc").args(args).exec()).context("start runc (Debian package runc)")
}

/// `create` and `run` have a bundle with a `config.json`, `exec` has a file with a process.
fn request_file(args: &[OsString]) -> Option<PathBuf> {
    let after = |flag: &str| {
        args.windows(2)
            .find(|pair| pair[0] == flag)
            .map(|pair| PathBuf::from(&pair[1]))
    };
    after("--bundle")
        .map(|bundle| bundle.join("config.json"))
        .or_else(|| after("--process"))
        .filter(|file| Path::is_file(file))
}

fn restrict(request: &mut Value, bounding: u64) {
    let process = if request.get("process").is_some() {
        &mut request["process"]
    } else {
        request
    };
    let Some(sets) = process
        .get_mut("capabilities")
        .and_then(Value::as_object_mut)
    else {
        return;
    };
    for set in sets.values_mut().filter_map(Value::as_array_mut) {
        set.retain(|name| {
            let bit = NAMES.iter().position(|known| name == known);
            bit.is_none_or(|bit| bounding & (1 << bit) != 0)
        });
    }
}

fn bounding_set() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("CapBnd:"))
        .context("/proc/self/status has no CapBnd")?;
    Ok(u64::from_str_radix(line.trim(), 16)?)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_is_missing_is_taken_away() {
        let sets =
            json!({"bounding": ["CAP_CHOWN", "CAP_SYS_RESOURCE", "CAP_NEW"], "ambient": null});
        let less = json!({"bounding": ["CAP_CHOWN", "CAP_NEW"], "ambient": null});
        let without_sys_resource = !(1_u64 << 24);
        let mut container = json!({"process": {"capabilities": sets, "args": ["x"]}});
        restrict(&mut container, without_sys_resource);
        assert_eq!(container["process"]["capabilities"], less);
        let mut process = json!({"capabilities": sets});
        restrict(&mut process, without_sys_resource);
        assert_eq!(process["capabilities"], less);
        let mut all = json!({"capabilities": sets});
        restrict(&mut all, u64::MAX);
        assert_eq!(all["capabilities"], sets);
    }

    #[test]
    fn finds_what_docker_passes() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("config.json");
        fs::write(&config, "{}").unwrap();
        let args: Vec<OsString> = ["--root", "/x", "create", "--bundle"]
            .iter()
            .map(OsString::from)
            .chain([dir.path().into()])
            .collect();
        assert_eq!(request_file(&args), Some(config));
        assert_eq!(request_file(&args[..4]), None);
    }
}
