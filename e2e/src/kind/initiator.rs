//! The machine as iSCSI initiator: what its kernel and iscsid must be for volumes on kind nodes.
//!
//! The kernel answers iSCSI's netlink socket in its first network namespace only. A test that uses the machine's own docker
//! daemon runs there; one in a sandbox does not, and cannot have iSCSI on kind.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::guard;
use super::machine::Kernel;
use crate::process::{Daemon, tail, wait_for};

/// iscsid's socket as `/proc/net/unix` lists it.
const SOCKET: &str = "@ISCSIADM_ABSTRACT_NAMESPACE";
/// What a volume needs of the kernel, and what does not come by itself at first use.
const MODULES: [&str; 5] = ["iscsi_tcp", "dm_crypt", "sd_mod", "xts", "algif_skcipher"];

/// iscsid of the machine; ended when dropped, if it was started here.
#[derive(Debug)]
pub struct Initiator {
    _iscsid: Option<Daemon>,
}

impl Initiator {
    /// Loads what the kernel needs and starts iscsid where it does not run, its log in `dir`. `None` where a volume cannot be
    /// had on kind: the kernel lacks something, or this is a sandbox.
    pub async fn ensure(dir: &Path, kernel: Kernel) -> Result<Option<Self>> {
        if !kernel.device_mapper || !kernel.iscsi || std::env::var_os(guard::CLUSTER).is_none() {
            return Ok(None);
        }
        let _ = Command::new("modprobe").arg("--all").args(MODULES).status();
        if listens() {
            return Ok(Some(Self { _iscsid: None }));
        }
        let mut iscsid = Command::new("iscsid");
        iscsid.arg("--foreground");
        let iscsid = Daemon::spawn(dir, "iscsid", iscsid)
            .context("start iscsid (Debian package open-iscsi)")?;
        let log = iscsid.log_path();
        wait_for(
            "iscsid to listen",
            Duration::from_secs(20),
            || async {
                iscsid.check()?;
                Ok(listens().then_some(()))
            },
            || tail(&log, 10),
        )
        .await?;
        Ok(Some(Self {
            _iscsid: Some(iscsid),
        }))
    }
}

fn listens() -> bool {
    let sockets = std::fs::read_to_string("/proc/net/unix").unwrap_or_default();
    sockets.lines().any(|line| line.ends_with(SOCKET))
}
