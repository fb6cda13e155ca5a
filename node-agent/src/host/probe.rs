//! Whether this node can do the job: what the agent looks at when it starts and from time to time, without changing anything.

use std::path::Path;

use devicemapper::DM;
use nix::sys::socket::{AddressFamily, AlgAddr, SockFlag, SockType, bind, socket};
use serde::{Deserialize, Serialize};

use super::real::{iscsi::iscsid::Iscsid, multipathd, sys::LogonKey, udev};

/// One thing that a node needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeCheck {
    /// What was looked at, for example `device-mapper`.
    pub name: String,
    /// Whether it is as it must be.
    pub ok: bool,
    /// What was found.
    pub detail: String,
    /// What to do: always where it is not as it must be, and where it is, but something should be different. Empty where there is nothing to do.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub next_step: String,
}

type Found = Result<String, String>;
type Check = (&'static str, fn() -> Found, &'static str);

/// Looks at everything. May block for seconds where iscsid hangs, so run it in a worker. Opening the control device and
/// using a cipher makes the kernel load the modules itself where it can.
pub fn node() -> Vec<NodeCheck> {
    let checks: [Check; 7] = [
        (
            "device-mapper",
            device_mapper,
            "Load the kernel module dm_mod (modprobe dm_mod) or boot a kernel that has device-mapper; the agent needs /dev of the node.",
        ),
        (
            "dm-crypt",
            dm_crypt,
            "Load the kernel module dm_crypt on the node: modprobe dm_crypt.",
        ),
        (
            "iscsid",
            iscsid,
            "Install open-iscsi on the node and start it (systemctl enable --now iscsid); the agent needs the node's network namespace.",
        ),
        (
            "iscsi-tcp",
            iscsi_tcp,
            "Load the kernel module iscsi_tcp on the node: modprobe iscsi_tcp.",
        ),
        (
            "udev",
            udev_runs,
            "Start systemd-udevd on the node; without it device nodes and their rights are nobody's business.",
        ),
        (
            "keyring",
            keyring,
            "The kernel keyring must be usable: check /proc/sys/kernel/keys/maxkeys and the container's seccomp profile.",
        ),
        (
            "crypto",
            crypto,
            "Load the kernel modules xts and algif_skcipher on the node.",
        ),
    ];
    checks
        .into_iter()
        .map(|(name, look, next_step)| match look() {
            Ok(detail) => NodeCheck {
                name: name.into(),
                ok: true,
                detail,
                next_step: String::new(),
            },
            Err(detail) => NodeCheck {
                name: name.into(),
                ok: false,
                detail,
                next_step: next_step.into(),
            },
        })
        .chain([multipathd()])
        .collect()
}

/// Whether a multipathd keeps its hands off the volumes' disks. Nothing that a node must have: volumes work while it does not, but a disk that it
/// holds is not let go of.
fn multipathd() -> NodeCheck {
    let check = |detail: String, next_step: &str| NodeCheck {
        name: "multipathd".into(),
        ok: true,
        detail,
        next_step: next_step.into(),
    };
    let next_step = "Start the agent with --exclude-from-multipathd (chart: nodeAgent.excludeFromMultipathd), or exclude the volumes' disks in \
                     multipathd's configuration (examples/multipathd/cryptvol.conf), then multipathd reconfigure.";
    match multipathd::maps_over_volumes(Path::new("/sys")) {
        Ok(maps) if maps.is_empty() && multipathd::runs() => {
            check("runs, and holds no disk of a volume in use".into(), "")
        }
        Ok(maps) if maps.is_empty() => check("does not run".into(), ""),
        Ok(maps) => check(
            format!("has maps over disks of volumes in use: {}", maps.join(", ")),
            next_step,
        ),
        Err(e) => check(
            format!("what it holds cannot be read in sysfs: {e}"),
            next_step,
        ),
    }
}

fn device_mapper() -> Found {
    let dm = DM::new().map_err(|e| format!("/dev/mapper/control: {e}"))?;
    let (major, minor, patch) = dm.version().map_err(|e| e.to_string())?;
    Ok(format!("version {major}.{minor}.{patch}"))
}

fn dm_crypt() -> Found {
    let dm = DM::new().map_err(|e| format!("/dev/mapper/control: {e}"))?;
    let targets = dm.list_versions().map_err(|e| e.to_string())?;
    match targets.iter().find(|(name, ..)| name == "crypt") {
        Some((_, major, minor, patch)) => Ok(format!("target version {major}.{minor}.{patch}")),
        None => Err("the kernel has no crypt target".into()),
    }
}

fn iscsid() -> Found {
    let found = Iscsid::find().map_err(|e| e.message)?;
    let version = found.version.as_deref().unwrap_or("of unknown version");
    match found.layout {
        Some(_) => Ok(format!("{version}, initiator {}", found.initiator)),
        // Works, with two differences that a person should know.
        None => Ok(format!(
            "{version}, by iscsiadm: slower, and without CHAP, because this version is not known"
        )),
    }
}

fn iscsi_tcp() -> Found {
    if Path::new("/sys/class/iscsi_transport/tcp").exists() {
        Ok("transport tcp".into())
    } else {
        Err("the kernel has no iSCSI transport tcp".into())
    }
}

/// udev of the node, not of the agent's container.
fn udev_runs() -> Found {
    udev::directory()
        .map(|udev| format!("{} is there", udev.join("control").display()))
        .ok_or_else(|| "no /run/udev/control".into())
}

fn keyring() -> Found {
    LogonKey::add("cryptvol:node-check", &[0; 64])
        .map(|_| "logon keys can be added".into())
        .map_err(|e| format!("add_key: {e}"))
}

/// libcryptsetup opens key slots through the kernel's cipher.
fn crypto() -> Found {
    let socket = socket(
        AddressFamily::Alg,
        SockType::SeqPacket,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .map_err(|e| format!("AF_ALG: {e}"))?;
    bind(
        std::os::fd::AsRawFd::as_raw_fd(&socket),
        &AlgAddr::new("skcipher", "xts(aes)"),
    )
    .map(|()| "xts(aes)".into())
    .map_err(|e| format!("xts(aes): {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_check_says_what_to_do() {
        let checks = node();
        assert_eq!(checks.len(), 8);
        for check in checks {
            assert!(!check.detail.is_empty(), "{check:?}");
            assert!(check.ok || !check.next_step.is_empty(), "{check:?}");
        }
    }
}
