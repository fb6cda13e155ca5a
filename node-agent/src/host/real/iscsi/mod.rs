//! iSCSI sessions and their disks: login and logout by iscsid, all else by sysfs.

mod iscsiadm;
pub mod iscsid;
pub mod layout;
pub mod request;

use std::{
    fs::OpenOptions,
    io,
    net::{TcpStream, ToSocketAddrs},
    os::unix::fs::OpenOptionsExt,
    thread,
    time::{Duration, Instant},
};

use cryptvol_crds::conditions::Reason;
use nix::libc;

use super::{
    error::{because, failed},
    sys,
    sysfs::{SessionEntry, Sysfs, attribute, set_attribute},
};
use crate::host::{Chap, DeviceId, StepError, Target};
use iscsid::Iscsid;
use request::{Code, LOGIN_TIMEOUT, LOGIN_TRIES};

/// How long a portal may take to take a TCP connection.
const CONNECT: Duration = Duration::from_secs(5);
/// How long iscsid may take for a login, above its own timer.
const LOGIN: Duration = Duration::from_secs((LOGIN_TIMEOUT * LOGIN_TRIES) as u64 + 5);
/// How long iscsid may take for a logout, above its own timer of 15 s.
const LOGOUT: Duration = Duration::from_secs(20);
/// How long a disk may take to appear after the scan has found its LUN.
const DISK: Duration = Duration::from_secs(5);
const DISK_STEP: Duration = Duration::from_millis(1);

/// The initiator of this node.
#[derive(Debug, Default)]
pub struct Initiator {
    /// Found at first use.
    iscsid: Option<Iscsid>,
}

impl Initiator {
    fn iscsid(&mut self) -> Result<&Iscsid, StepError> {
        match &mut self.iscsid {
            Some(found) => Ok(found),
            none => Ok(none.insert(Iscsid::find()?)),
        }
    }

    /// Makes a session without scanning for LUNs.
    ///
    /// # Errors
    /// `PortalUnreachable`, `TargetNotFound`, `ChapRejected`, `DeadlineExceeded`, `StepFailed`.
    pub fn login(
        &mut self,
        sysfs: &Sysfs,
        target: &Target,
        chap: Option<&Chap>,
    ) -> Result<(), StepError> {
        let session = sysfs
            .session(target)
            .map_err(|e| failed("reading iSCSI sessions", e))?;
        if session.is_some() {
            return Ok(());
        }
        // A portal that is not there keeps iscsid busy for its whole timer and is told in general words then.
        reachable(target)?;
        let iscsid = self.iscsid()?;
        let Some(layout) = iscsid.layout else {
            return iscsiadm::login(iscsid, target, chap);
        };
        let request = request::login(layout, target, chap)?;
        let result = match iscsid.ask(layout, &request, LOGIN) {
            Ok(Code::SUCCESS | Code::SESSION_EXISTS) => Ok(()),
            Ok(code) => Err(code.of_login(target, &iscsid.initiator)),
            Err(e) => Err(e),
        };
        if result.is_err() {
            // iscsid may have been replaced by another version.
            self.iscsid = None;
        }
        result
    }

    /// Ends the session when no disk of it is left.
    ///
    /// # Errors
    /// `StepFailed`, `DeadlineExceeded`.
    pub fn logout(&mut self, sysfs: &Sysfs, target: &Target) -> Result<(), StepError> {
        let read = |e| failed("reading iSCSI sessions", e);
        let Some(session) = sysfs.session(target).map_err(read)? else {
            return Ok(());
        };
        // Its users have disks there. iscsid would cut them off: it refuses nothing.
        if sysfs.disks(&session).map_err(read)? > 0 {
            return Ok(());
        }
        let iscsid = self.iscsid()?;
        let result = match iscsid.layout {
            None => iscsiadm::logout(iscsid, target, session.sid),
            Some(layout) => {
                let request = request::logout(layout, session.sid);
                match iscsid.ask(layout, &request, LOGOUT) {
                    Ok(Code::SUCCESS) => Ok(()),
                    Ok(Code::SESSION_NOT_FOUND) => match sysfs.session(target).map_err(read)? {
                        None => Ok(()),
                        Some(_) => Err(failed(
                            format!("logging out of {}", target.iqn),
                            "the kernel has a session that iscsid does not know: restart iscsid",
                        )),
                    },
                    Ok(code) => Err(failed(
                        format!("logging out of {}", target.iqn),
                        format!("{code} (open-iscsi error {})", code.0),
                    )),
                    Err(e) => Err(e),
                }
            }
        };
        if result.is_err() {
            self.iscsid = None;
        }
        result
    }
}

/// Whether the portal takes TCP connections.
fn reachable(target: &Target) -> Result<(), StepError> {
    let Target { address, port, .. } = target;
    let no = |e: io::Error| {
        because(
            Reason::PortalUnreachable,
            format!("no TCP connection to portal {address}:{port}: {e}"),
        )
    };
    let mut last = io::Error::other("the name has no address");
    for address in (address.as_str(), *port).to_socket_addrs().map_err(no)? {
        match TcpStream::connect_timeout(&address, CONNECT) {
            Ok(_) => return Ok(()),
            Err(e) => last = e,
        }
    }
    Err(no(last))
}

/// Adds one LUN of a session to the kernel and waits for its disk; makes the kernel look anew where it has it already.
///
/// # Errors
/// `LunNotFound`, `StepFailed`, `DeadlineExceeded`.
pub fn scan(sysfs: &Sysfs, target: &Target, lun: u32) -> Result<(), StepError> {
    let what = || format!("scanning {} for LUN {lun}", target.iqn);
    let session = sysfs
        .session(target)
        .map_err(|e| failed(what(), e))?
        .ok_or_else(|| failed(what(), "there is no session"))?;
    let scsi = sysfs.scsi_device_dir(&session, lun);
    if scsi.exists() {
        set_attribute(&scsi.join("rescan"), "1").map_err(|e| failed(what(), e))?;
    } else {
        add_lun(sysfs, &session, lun).map_err(|e| failed(what(), e))?;
    }
    // The scan is done when the write returns; only the disk's driver works on.
    if !scsi.exists() {
        return Err(because(
            Reason::LunNotFound,
            format!("{} has no LUN {lun} for this node", target.iqn),
        ));
    }
    match attribute(&scsi.join("type")).map_err(|e| failed(what(), e))? {
        Some(kind) if kind == "0" => {}
        kind => {
            return Err(because(
                Reason::LunNotFound,
                format!(
                    "LUN {lun} of {} is no disk but SCSI type {}",
                    target.iqn,
                    kind.unwrap_or_default()
                ),
            ));
        }
    }
    let deadline = Instant::now() + DISK;
    loop {
        if let Some(disk) = sysfs.disk(&session, lun).map_err(|e| failed(what(), e))?
            && opens(&disk.id.path)
        {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(because(
                Reason::DeadlineExceeded,
                format!(
                    "LUN {lun} of {} is there, but its disk did not appear within {} s",
                    target.iqn,
                    DISK.as_secs()
                ),
            ));
        }
        thread::sleep(DISK_STEP);
    }
}

/// Whether a disk can be used: sysfs shows it a moment before it can be opened.
fn opens(path: &str) -> bool {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_CLOEXEC | libc::O_NONBLOCK)
        .open(path)
        .is_ok()
}

fn add_lun(sysfs: &Sysfs, session: &SessionEntry, lun: u32) -> io::Result<()> {
    let scan = sysfs.path(&format!("class/scsi_host/host{}/scan", session.host));
    set_attribute(&scan, &format!("0 {} {lun}", session.target))
}

/// Flushes a disk and removes it from the kernel.
///
/// # Errors
/// `DeviceBusy`, `StepFailed`.
pub fn delete_device(sysfs: &Sysfs, id: &DeviceId) -> Result<(), StepError> {
    let what = || format!("removing {} ({})", id.path, id.dev);
    // WWID and size may have changed under a disk: it is to go all the more then.
    let Some(block) = sysfs.block_dir(id).map_err(|e| failed(what(), e))? else {
        return Ok(());
    };
    let holders = sysfs.holders(id).map_err(|e| failed(what(), e))?;
    if !holders.is_empty() {
        return Err(because(
            Reason::DeviceBusy,
            format!("{} is used by {}", id.path, holders.join(", ")),
        ));
    }
    let exclusive = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_EXCL | libc::O_CLOEXEC | libc::O_NONBLOCK)
        .open(&id.path);
    match exclusive {
        Ok(device) => {
            sys::flush_buffers(&device)
                .and_then(|()| device.sync_all())
                .or_else(|e| if is_dead(&e) { Ok(()) } else { Err(e) })
                .map_err(|e| failed(format!("flushing {}", id.path), e))?;
        }
        Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {
            return Err(because(
                Reason::DeviceBusy,
                format!("{} is mounted or opened exclusively", id.path),
            ));
        }
        // Nothing of a dead disk can be flushed.
        Err(e) if is_dead(&e) => {}
        Err(e) => return Err(failed(format!("opening {}", id.path), e)),
    }
    // Still the same one, after it was open.
    if sysfs.block_dir(id).map_err(|e| failed(what(), e))? != Some(block.clone()) {
        return Ok(());
    }
    match set_attribute(&block.join("device/delete"), "1") {
        Ok(()) => Ok(()),
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => Ok(()),
        Err(e) => Err(failed(what(), e)),
    }
}

fn is_dead(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENXIO | libc::ENODEV | libc::EIO | libc::ENOENT)
    )
}
