//! The way down: link, mapping, device, session, from what is observed and never from what should be there.

use cryptvol_crds::{conditions::Reason, v1alpha1::Stage};

use super::{At, Done, Next, Step, stop};
use crate::host::{Device, FileState, Session, Source};

impl At<'_> {
    pub(super) fn down(&self) -> Next {
        self.take_mapping_down()
            .and_then(|()| self.take_device_down())
            .and_then(|()| self.free_names())
            .map_or_else(|next| next, |()| Next::Done(Done::Detached))
    }

    /// Link and mapping. The link goes first: nobody shall open anew what is about to go. Then the name, for which udev may be long: one that still
    /// led to the mapping could lead to the next one that gets its number.
    pub(super) fn take_mapping_down(&self) -> Result<(), Next> {
        if self.has_link() {
            return Err(Next::Do(Step::Unlink));
        }
        self.withdraw_name()?;
        let Some(mapping) = &self.observed.mapping else {
            return Ok(());
        };
        if self.wanted.made_for_this_volume(&mapping.uuid) {
            // Nobody who waits for a path could let go of the mapping.
            if self.observed.map_in_use().is_some() && !self.observed.is_reachable() {
                self.let_io_fail()?;
            }
            return Err(Next::Do(Step::Close {
                uuid: mapping.uuid.clone(),
            }));
        }
        let over_our_disk = self
            .observed
            .device()
            .is_some_and(|d| mapping.deps.contains(&d.id.dev));
        if over_our_disk {
            return Err(stop(
                Stage::Detaching,
                Reason::NotOurs,
                format!(
                    "a mapping {} with UUID {} holds the disk",
                    mapping.name, mapping.uuid
                ),
            ));
        }
        Ok(())
    }

    /// Device and session, where nothing else needs them.
    fn take_device_down(&self) -> Result<(), Next> {
        // Reported as gone for this very spec: what shows up later at this LUN is not this volume's doing.
        if self.memory.detached_at == Some(self.wanted.generation) {
            return Ok(());
        }
        // It is this volume's alone, whoever else has the disk.
        if let Some(map) = &self.observed.map {
            let Device { id, holders, .. } = &map.device;
            return Err(match holders.is_empty() {
                true => Next::Do(Step::DeleteDevice(id.clone())),
                false => stop(
                    Stage::Detaching,
                    Reason::DeviceBusy,
                    format!("{} is in use by {}", id.path, holders.join(", ")),
                ),
            });
        }
        if self.wanted.lun_wanted_by_another {
            return Ok(());
        }
        if let Source::Device { .. } = self.wanted.query.source {
            return Ok(()); // it was there before us, and stays
        }
        if let Some(device) = self.left() {
            if !device.holders.is_empty() {
                return Err(stop(
                    Stage::Detaching,
                    Reason::DeviceBusy,
                    format!(
                        "{} is in use by {}",
                        device.id.path,
                        device.holders.join(", ")
                    ),
                ));
            }
            return Err(Next::Do(Step::DeleteDevice(device.id.clone())));
        }
        // Only once the receipt is on record: without the file nobody could see any more that it was erased. Of an ephemeral volume
        // nothing is kept.
        if let Source::File(file) = &self.wanted.query.source
            && (self.memory.erased.is_some() || self.wanted.ephemeral)
            && self.observed.file != FileState::Absent
            && !self.run.file_removed
        {
            return Err(Next::Do(Step::RemoveFile(file.clone())));
        }
        if let Source::Iscsi(lun) = &self.wanted.query.source
            && let Some(session) = self.idle_session()
        {
            return Err(Next::Do(Step::logout(lun, session)));
        }
        Ok(())
    }

    /// A session of which nobody has a disk: through a portal that the volume names, or the one that was used. It is asked for once, for
    /// it may be found to be somebody else's.
    fn idle_session(&self) -> Option<&Session> {
        let observed = self.observed;
        let named = observed.paths.iter().filter(|p| p.named);
        let mut sessions = named.chain(observed.path()).flat_map(|p| &p.session);
        sessions.find(|s| !s.in_use && !self.run.logged_out.contains(&s.sid))
    }

    /// A raw device that is left: once the mapping is gone nothing tells through which of several sessions it was, so it is that of
    /// any, where nothing else uses it.
    fn left(&self) -> Option<&Device> {
        let observed = self.observed;
        let named = observed.paths.iter().filter(|p| p.named);
        let mut disks = named.filter_map(|p| p.disk.as_ref());
        observed
            .device()
            .or_else(|| disks.clone().find(|d| d.holders.is_empty()))
            .or_else(|| disks.next().filter(|_| observed.multipath))
    }
}
