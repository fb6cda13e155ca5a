//! Where the node is a container on a machine (kind): the machine's view for a worker.
//!
//! The kernel answers iSCSI's netlink socket in its first network namespace only, so iscsid runs there, with its own socket.
//! iscsid, udev and who keeps a device open are found in procfs, which must then be the machine's as well.

use std::{fs::File, path::Path};

use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
};
use thiserror::Error;

/// Why the machine's view cannot be had.
#[derive(Debug, Error)]
pub enum MachineError {
    /// No procfs there.
    #[error(
        "{0} shows no network namespace of the machine ({1}): mount the machine's /proc there, or leave --host-proc out"
    )]
    NoProc(String, std::io::Error),
    /// The kernel refuses.
    #[error("cannot {0}: {1}; the agent must be privileged")]
    Refused(&'static str, Errno),
}

/// Moves this process, which must have one thread, into the network namespace of the machine whose procfs is mounted at
/// `proc`, and lays that procfs over `/proc` in a mount namespace of the process's own. A procfs shows `self` as it is in its
/// own process namespace, so what relies on `/proc/self` works on.
///
/// # Errors
/// See [`MachineError`].
pub fn enter(proc: &Path) -> Result<(), MachineError> {
    let network = File::open(proc.join("1/ns/net"))
        .map_err(|e| MachineError::NoProc(proc.display().to_string(), e))?;
    let refused = |what| move |errno| MachineError::Refused(what, errno);
    setns(network, CloneFlags::CLONE_NEWNET)
        .map_err(refused("enter the machine's network namespace"))?;
    unshare(CloneFlags::CLONE_NEWNS).map_err(refused("make a mount namespace"))?;
    // Mounts of the pod still arrive here, and none of ours goes there.
    mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_SLAVE | MsFlags::MS_REC,
        None::<&str>,
    )
    .map_err(refused("keep mounts to this process"))?;
    mount(
        Some(proc),
        "/proc",
        None::<&str>,
        MsFlags::MS_BIND | MsFlags::MS_REC,
        None::<&str>,
    )
    .map_err(refused("lay the machine's procfs over /proc"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_is_no_procfs_is_named() {
        let error = enter(Path::new("/nonexistent")).unwrap_err().to_string();
        assert!(
            error.contains("/nonexistent") && error.contains("--host-proc"),
            "{error}"
        );
    }
}
