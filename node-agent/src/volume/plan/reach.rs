//! Reaching the raw device, as its source wants it; the same way down lies in `down`.

use cryptvol_crds::{conditions::Reason, v1alpha1::Stage};

use super::{At, Next, Step, stop};
use crate::{
    host::{BackingFile, Device, DeviceId, FileState, Lun, Session, Source},
    volume::wanted::LEAST_FILE,
};

impl At<'_> {
    /// Session, device and identity; the device is free, answers, and its identity was read in this run.
    pub(super) fn reach_device(&self) -> Result<&DeviceId, Next> {
        match &self.wanted.query.source {
            Source::Iscsi(lun) => match &self.wanted.query.map {
                Some(map) if map.wanted => self.reach_paths(lun, map),
                _ => self.reach_lun(lun),
            },
            Source::Device { path } => self.reach_local(path),
            Source::File(file) => self.reach_file(file),
        }
    }

    /// A device that was there before us: it is only looked at, and left alone as long as anything else has it.
    fn reach_local(&self, path: &str) -> Result<&DeviceId, Next> {
        let stopped = |reason, what: String| Err(stop(Stage::Device, reason, what));
        let Some(Device {
            id, state, holders, ..
        }) = self.observed.device()
        else {
            return stopped(
                Reason::DeviceNotFound,
                format!("there is no block device at {path}"),
            );
        };
        if !holders.is_empty() {
            return stopped(
                Reason::DeviceInUse,
                format!("{path} ({}) is in use by {}", id.path, holders.join(", ")),
            );
        }
        if state != "running" || id.size_bytes == 0 {
            let what = match id.size_bytes {
                0 => "without a size",
                _ => state.as_str(),
            };
            return stopped(
                Reason::DeviceUnreadable,
                format!("{path} ({}) is {what}", id.path),
            );
        }
        self.identity(id)?;
        Ok(id)
    }

    /// A file that stands for a disk, through a loop device. It is made once, for a volume that was never begun anywhere: a file that is
    /// missing later is a disk that is missing.
    fn reach_file(&self, file: &BackingFile) -> Result<&DeviceId, Next> {
        let stopped = |reason, what: String| Err(stop(Stage::Device, reason, what));
        let path = &file.path;
        // A copy of a file is as good as the file: only a header says whose it is.
        let encryption = &self.wanted.encryption;
        if !encryption.has_header_on_disk() && !self.wanted.ephemeral {
            return Err(stop(
                Stage::Identity,
                Reason::IdentityUnproven,
                format!(
                    "{path} is a file, which has no WWID, and {} by which it could be known",
                    self.no_header()
                ),
            ));
        }
        if let Some(Device { id, holders, .. }) = self.observed.device() {
            if !holders.is_empty() {
                let by = holders.join(", ");
                return stopped(
                    Reason::DeviceInUse,
                    format!("{path} ({}) is in use by {by}", id.path),
                );
            }
            // Of before, or of a try that came to nothing: nobody has a key to what it carries, and the file below it may be gone, or hidden by
            // what was mounted over it since.
            if self.wanted.ephemeral && !self.run.file_made && self.run.purged.is_empty() {
                return Err(Next::Do(Step::DeleteDevice(id.clone())));
            }
            self.long_enough(file, id.size_bytes)?;
            self.identity(id)?;
            return Ok(id);
        }
        let permitted = self.wanted.permit.is_some();
        let begun = self.opened()
            || (self.wanted.formatted_before && !permitted)
            || self.memory.permit.is_some();
        let new = (!begun && permitted) || self.wanted.ephemeral;
        match self.observed.file {
            // Of before: nobody has the key to it any more.
            FileState::Regular { size_bytes: 1.. }
                if self.wanted.ephemeral && !self.run.file_made && !self.run.file_removed =>
            {
                Err(Next::Do(Step::RemoveFile(file.clone())))
            }
            FileState::Absent | FileState::Regular { size_bytes: 0 } if new => {
                Err(Next::Do(Step::MakeFile(file.clone())))
            }
            FileState::Absent => {
                stopped(Reason::DeviceNotFound, format!("there is no file {path}"))
            }
            FileState::Other => stopped(
                Reason::FileNotUsable,
                format!("{path} is there and is no regular file"),
            ),
            FileState::Regular { size_bytes } => {
                self.long_enough(file, size_bytes)?;
                match self.run.scanned {
                    true => stopped(
                        Reason::StepFailed,
                        format!("the loop device of {path} is gone again"),
                    ),
                    false => Err(Next::Do(Step::AttachFile(file.clone()))),
                }
            }
        }
    }

    /// A file of which more is wanted by now is made longer once the volume is up, when it is known whose it is; one that lost its end is
    /// not. What is imported was made elsewhere: a file that is short there is half a copy.
    fn long_enough(&self, file: &BackingFile, size_bytes: u64) -> Result<(), Next> {
        let new = self.wanted.permit.is_some()
            || self.memory.permit.is_some()
            || self.wanted.formatted_before;
        let (least, reason) = match self.opened() {
            true => (
                self.pinned_size().unwrap_or(file.size_bytes),
                Reason::SizeMismatch,
            ),
            false if new => (LEAST_FILE, Reason::FileNotUsable),
            false => (file.size_bytes, Reason::FileNotUsable),
        };
        match size_bytes >= least {
            true => Ok(()),
            false => Err(stop(
                Stage::Device,
                reason,
                format!("{} has {size_bytes} bytes, not {least}", file.path),
            )),
        }
    }

    /// iscsid logs in again by itself, with what it was told at the first login: a secret that the array does not take any
    /// more keeps the session down, and only a new session gets the new one.
    pub(super) fn session_is_down(&self, session: &Session, iqn: &str) -> String {
        let through = match &session.portal {
            Some(portal) => format!(" through {portal}"),
            None => String::new(),
        };
        let secret = match self.wanted.chap {
            true => {
                "; where its portal answers, the array may have another CHAP secret by now: let it take the former one \
                 until the volumes on this target were detached"
            }
            false => "",
        };
        format!(
            "the session {} to {iqn}{through} is {}{secret}",
            session.sid, session.state
        )
    }

    fn reach_lun(&self, lun: &Lun) -> Result<&DeviceId, Next> {
        let target = &lun.target;
        // Several paths were wanted before.
        if let Some(map) = &self.observed.map
            && map.device.holders.is_empty()
        {
            return Err(Next::Do(Step::DeleteDevice(map.device.id.clone())));
        }
        let Some(session) = self.observed.session() else {
            return Err(Next::Do(Step::Login {
                lun: lun.clone(),
                each: false,
            }));
        };
        if !session.is_up() {
            // Nobody has a disk there, so nobody loses one: a new login takes any of the portals, and the secret of today.
            if !session.in_use && self.run.logged_out.is_empty() {
                return Err(Next::Do(Step::logout(lun, session)));
            }
            // The kernel and iscsid bring it back by themselves. Logging out would take the disks of others with it.
            return Err(stop(
                Stage::Session,
                Reason::PortalUnreachable,
                self.session_is_down(session, &target.iqn),
            ));
        }
        let Some(Device {
            id, state, holders, ..
        }) = self.observed.device()
        else {
            return Err(match self.run.scanned {
                true => stop(
                    Stage::Device,
                    Reason::LunNotFound,
                    format!("no disk at {}", self.wanted.query.source),
                ),
                false => Next::Do(Step::scan(lun, session)),
            });
        };
        if !holders.is_empty() {
            return Err(stop(
                Stage::Device,
                Reason::DeviceBusy,
                format!("{} is in use by {}", id.path, holders.join(", ")),
            ));
        }
        // Taken off line by the kernel, or left without a size after the array withdrew it: such a device never comes
        // back by itself. Nothing is stacked on it, so it is removed and found anew, once.
        if (state == "offline" || (id.size_bytes == 0 && self.run.scanned))
            && self.run.purged.is_empty()
        {
            return Err(Next::Do(Step::DeleteDevice(id.clone())));
        }
        match state.as_str() {
            "running" => {}
            "blocked" | "transport-offline" | "created-blocked" => {
                return Err(stop(
                    Stage::Session,
                    Reason::PortalUnreachable,
                    format!("the disk {} is {state}", id.path),
                ));
            }
            other => {
                return Err(stop(
                    Stage::Device,
                    Reason::DeviceUnreadable,
                    format!("the disk {} is {other}", id.path),
                ));
            }
        }
        if !self.run.scanned {
            return Err(Next::Do(Step::scan(lun, session)));
        }
        if id.size_bytes == 0 {
            return Err(stop(
                Stage::Device,
                Reason::DeviceUnreadable,
                format!("the disk {} has no size", id.path),
            ));
        }
        self.identity(id)?;
        Ok(id)
    }
}
