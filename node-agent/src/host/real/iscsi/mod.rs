//! iSCSI sessions and their disks: login and logout by iscsid, all else by sysfs.

pub mod discovery;
mod iscsiadm;
pub mod iscsid;
pub mod layout;
mod portals;
pub mod request;

use std::{
    fs::OpenOptions,
    io,
    os::unix::fs::OpenOptionsExt,
    thread,
    time::{Duration, Instant},
};

use cryptvol_crds::conditions::Reason;
use nix::libc;

use super::{
    error::{because, failed},
    openers, sys,
    sysfs::{SessionEntry, Sysfs, attribute, set_attribute},
};
use crate::host::{Chap, DeviceId, Discovered, Portal, StepError, Target};
use iscsid::Iscsid;
use layout::Layout;
use portals::Race;
use request::{Code, LOGIN_TIMEOUT, LOGIN_TRIES, Patience};

/// How long iscsid may take for a login, above its own timer.
const LOGIN: Duration = Duration::from_secs((LOGIN_TIMEOUT * LOGIN_TRIES) as u64 + 5);
/// After this no further portal is tried: with the last login it stays within the deadline of the call.
const ALL_LOGINS: Duration = Duration::from_secs(30);
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

    /// Makes a session without scanning for LUNs, through the first portal that answers; with `each` one through each portal. One that
    /// refuses this target, or does not answer the login, leaves it to the next.
    ///
    /// # Errors
    /// `PortalUnreachable`, `TargetNotFound`, `ChapRejected`, `TargetNotAuthentic`, `DeadlineExceeded`, `StepFailed`.
    pub fn login(
        &mut self,
        sysfs: &Sysfs,
        target: &Target,
        each: bool,
        chap: Option<&Chap>,
    ) -> Result<(), StepError> {
        let sessions = sysfs
            .sessions(&target.iqn)
            .map_err(|e| failed("reading iSCSI sessions", e))?;
        if !each && !sessions.is_empty() {
            return Ok(());
        }
        let there = |p: &Portal| {
            let mut through = sessions.iter().filter_map(|s| s.portal.as_ref());
            through.any(|t| t.is(p))
        };
        let portals = target.portals.iter().filter(|p| !each || !there(p));
        let portals: Vec<_> = portals.cloned().collect();
        if portals.is_empty() {
            return Ok(());
        }
        let patience = match each {
            true => Patience::OneOfSeveral,
            false => Patience::Only,
        };
        let begun = Instant::now();
        let mut refused: Vec<StepError> = Vec::new();
        // A portal that is not there keeps iscsid busy for its whole timer and is told in general words then.
        let mut race = Race::begin(&portals);
        if target.names_any(sessions.iter().map(|s| s.portal.as_ref())) {
            race.hurry();
        }
        while let Some(portal) = race.next() {
            match self.login_through(sysfs, target, &portal, patience, chap) {
                Ok(()) if each => race.hurry(),
                Ok(()) => return Ok(()),
                Err(e) if leaves_it_to_the_next(&e) => refused.push(e),
                Err(e) => return Err(e),
            }
            if begun.elapsed() > ALL_LOGINS {
                break;
            }
        }
        if each && refused.is_empty() && race.away().next().is_none() {
            return Ok(());
        }
        // That one portal knows the target's name says more than that another is away.
        let reason = refused
            .iter()
            .map(StepError::reason)
            .find(|r| *r != Reason::PortalUnreachable)
            .unwrap_or(Reason::PortalUnreachable);
        let said: Vec<_> = refused
            .into_iter()
            .map(|e| e.message)
            .chain(race.away())
            .collect();
        Err(because(reason, said.join("; ")))
    }

    fn login_through(
        &mut self,
        sysfs: &Sysfs,
        target: &Target,
        portal: &Portal,
        patience: Patience,
        chap: Option<&Chap>,
    ) -> Result<(), StepError> {
        let iqn = &target.iqn;
        let iscsid = self.iscsid()?.clone();
        let Some(layout) = iscsid.layout else {
            return iscsiadm::login(&iscsid, iqn, portal, patience, chap);
        };
        let mutual = chap.is_some_and(|c| c.target.is_some());
        let request = request::login(layout, iqn, portal, patience, chap)?;
        let result = match iscsid.ask(layout, &request, LOGIN) {
            Ok(Code::SUCCESS | Code::SESSION_EXISTS) => Ok(()),
            // iscsid says the same of a target that is not there.
            Ok(Code::FATAL_LOGIN)
                if mutual
                    && self.lets_strangers_know(sysfs, &iscsid, layout, target, portal)? =>
            {
                Err(because(
                    Reason::TargetNotAuthentic,
                    format!("{iqn} at {portal} does not prove that it knows its CHAP secret"),
                ))
            }
            Ok(code) => {
                let mut error = code.of_login(iqn, portal, &iscsid.initiator);
                if mutual && code == Code::AUTHENTICATION_FAILED {
                    error
                        .message
                        .push_str(", or the target has no CHAP account to prove itself with");
                }
                Err(error)
            }
            Err(e) => Err(e),
        };
        if result.is_err() {
            // iscsid may have been replaced by another version.
            self.iscsid = None;
        }
        result
    }

    /// Whether the target is there at all: it refuses a stranger by name, with credentials that are random. Where it lets one
    /// in, it asks nobody for a secret and has none to prove; that session ends at once.
    fn lets_strangers_know(
        &mut self,
        sysfs: &Sysfs,
        iscsid: &Iscsid,
        layout: &Layout,
        target: &Target,
        portal: &Portal,
    ) -> Result<bool, StepError> {
        let random = || uuid::Uuid::new_v4().simple().to_string()[..16].to_owned();
        let stranger = Chap {
            username: random(),
            password: random(),
            target: None,
        };
        let request = request::login(layout, &target.iqn, portal, Patience::Only, Some(&stranger))?;
        match iscsid.ask(layout, &request, LOGIN)? {
            Code::AUTHENTICATION_FAILED => Ok(true),
            Code::SUCCESS => {
                let sessions = sysfs.sessions(&target.iqn);
                let sessions = sessions.map_err(|e| failed("reading iSCSI sessions", e))?;
                for session in sessions {
                    if session.portal.as_ref().is_some_and(|p| p.is(portal)) {
                        self.logout(sysfs, &target.iqn, session.sid)?;
                    }
                }
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// Asks the portals of a target for further ones, in a discovery session of our own.
    ///
    /// # Errors
    /// `DiscoveryRejected`, `DiscoveryFailed`; `StepFailed` and `DeadlineExceeded` where this initiator's name cannot be had.
    pub fn discover(
        &mut self,
        target: &Target,
        chap: Option<&Chap>,
    ) -> Result<Discovered, StepError> {
        let iscsid = self.iscsid()?;
        let initiator = iscsid.initiator.clone();
        if initiator.is_empty() {
            self.iscsid = None;
            return Err(because(
                Reason::DiscoveryFailed,
                "iscsid does not tell the name of this initiator: use a node with a version of open-iscsi that is known (2.1.5 to 2.1.9)",
            ));
        }
        discovery::discover(&initiator, target, chap)
    }

    /// Ends the session when no disk of it is left.
    ///
    /// # Errors
    /// `StepFailed`, `DeadlineExceeded`.
    pub fn logout(&mut self, sysfs: &Sysfs, iqn: &str, sid: u32) -> Result<(), StepError> {
        let read = |e| failed("reading iSCSI sessions", e);
        let Some(session) = sysfs.session(iqn, sid).map_err(read)? else {
            return Ok(());
        };
        // Its users have disks there. iscsid would cut them off: it refuses nothing.
        if sysfs.in_use(&session).map_err(read)? {
            return Ok(());
        }
        let iscsid = self.iscsid()?;
        let result = match iscsid.layout {
            None => iscsiadm::logout(iscsid, iqn, &session),
            Some(layout) => {
                let request = request::logout(layout, sid);
                match iscsid.ask(layout, &request, LOGOUT) {
                    Ok(Code::SUCCESS) => Ok(()),
                    Ok(Code::SESSION_NOT_FOUND) => match sysfs.session(iqn, sid).map_err(read)? {
                        None => Ok(()),
                        Some(_) => Err(failed(
                            format!("logging out of {iqn}"),
                            "the kernel has a session that iscsid does not know: restart iscsid",
                        )),
                    },
                    Ok(code) => Err(failed(
                        format!("logging out of {iqn}"),
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

/// What another portal of the same target may do better. A refused secret is not tried elsewhere: arrays lock accounts.
fn leaves_it_to_the_next(error: &StepError) -> bool {
    matches!(
        error.reason(),
        Reason::PortalUnreachable | Reason::TargetNotFound
    )
}

/// Adds one LUN of a session to the kernel and waits for its disk; makes the kernel look anew where it has it already.
///
/// # Errors
/// `LunNotFound`, `StepFailed`, `DeadlineExceeded`.
pub fn scan(sysfs: &Sysfs, iqn: &str, sid: u32, lun: u32) -> Result<(), StepError> {
    let what = || format!("scanning {iqn} for LUN {lun}");
    let session = sysfs
        .session(iqn, sid)
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
            format!("{iqn} has no LUN {lun} for this node"),
        ));
    }
    match attribute(&scsi.join("type")).map_err(|e| failed(what(), e))? {
        Some(kind) if kind == "0" => {}
        kind => {
            return Err(because(
                Reason::LunNotFound,
                format!(
                    "LUN {lun} of {iqn} is no disk but SCSI type {}",
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
                    "LUN {lun} of {iqn} is there, but its disk did not appear within {} s",
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

/// Flushes a disk and removes it from the kernel, where nobody has it: the kernel itself would take it from whoever has it open.
///
/// # Errors
/// `DeviceBusy`, `StepFailed`.
pub fn delete_device(sysfs: &Sysfs, id: &DeviceId) -> Result<(), StepError> {
    let what = || format!("removing {} ({})", id.path, id.dev);
    // WWID and size may have changed under a disk: it is to go all the more then.
    let Some(block) = sysfs.block_dir(id).map_err(|e| failed(what(), e))? else {
        return Ok(());
    };
    sysfs.unused(id, &what())?;
    let exclusive = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_EXCL | libc::O_CLOEXEC | libc::O_NONBLOCK)
        .open(&id.path);
    // Held to the end: nobody mounts it meanwhile, or puts something above it.
    let _held = match exclusive {
        Ok(device) => {
            sys::flush_buffers(&device)
                .and_then(|()| device.sync_all())
                .or_else(|e| if is_dead(&e) { Ok(()) } else { Err(e) })
                .map_err(|e| failed(format!("flushing {}", id.path), e))?;
            Some(device)
        }
        Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {
            return Err(because(
                Reason::DeviceBusy,
                format!(
                    "{} is mounted or opened exclusively{}",
                    id.path,
                    openers::whoever(&block, id)
                ),
            ));
        }
        // Nothing of a dead disk can be flushed.
        Err(e) if is_dead(&e) => None,
        Err(e) => return Err(failed(format!("opening {}", id.path), e)),
    };
    openers::none(&block, id)?;
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
