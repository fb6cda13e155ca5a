//! A volume in use: longer, suspended, resumed.

use cryptvol_crds::{
    conditions::Reason,
    v1alpha1::{HeaderFacts, Stage},
};

use super::{At, Done, Next, Step, stop};
use crate::host::{Device, DeviceId, FileState, HeaderFound, Initialised, Mapping, Source};

impl At<'_> {
    /// Has the kernel read the disk's identity and size anew, where that was not done in this run.
    pub(super) fn scan_once(&self) -> Option<Next> {
        match &self.wanted.query.source {
            Source::Iscsi(lun) if self.observed.map_in_use().is_some() => self.scan_paths_once(lun),
            Source::Iscsi(lun) if !self.run.scanned => {
                let session = self.observed.session()?;
                Some(Next::Do(Step::scan(lun, session)))
            }
            _ => None,
        }
    }

    /// Looks at the disk's size where somebody asked for it.
    pub(super) fn look(&self) -> Result<(), Next> {
        let asked = self.wanted.rescan.is_some() && self.wanted.rescan != self.memory.rescan;
        match self.scan_once() {
            Some(scan) if asked => Err(scan),
            _ => Ok(()),
        }
    }

    /// Makes the file longer where more is wanted by now. Only below the volume's own mapping: whose it is was proven when that was made.
    pub(super) fn lengthen(&self, device: &DeviceId, facts: &HeaderFacts) -> Result<(), Next> {
        let Source::File(file) = &self.wanted.query.source else {
            return Ok(());
        };
        let cannot = self.wanted.ephemeral || facts.integrity.is_some();
        if device.size_bytes >= file.size_bytes || cannot {
            return Ok(());
        }
        let stopped = |reason, what: String| Err(stop(Stage::Attached, reason, what));
        if !matches!(self.observed.file, FileState::Regular { .. }) {
            return stopped(
                Reason::DeviceNotFound,
                format!(
                    "{} shall be longer, and is not there any more below {}",
                    file.path, device.path
                ),
            );
        }
        if self.run.lengthened {
            return stopped(
                Reason::StepFailed,
                format!(
                    "{} has {} bytes although its file was just made longer",
                    device.path, device.size_bytes
                ),
            );
        }
        Err(Next::Do(Step::LengthenFile {
            device: device.clone(),
            file: file.clone(),
        }))
    }

    /// Makes the mapping longer where its disk has grown. That a disk shrank is found by the identity check, which comes before.
    pub(super) fn grow(
        &self,
        mapping: &Mapping,
        device: &DeviceId,
        facts: &HeaderFacts,
    ) -> Result<(), Next> {
        // A longer table wants the key again, which nobody has: an ephemeral volume is longer at its next attachment.
        if facts.data_bytes(device.size_bytes) <= mapping.size_bytes || self.wanted.ephemeral {
            return Ok(());
        }
        let facts = self.facts_below(device)?;
        self.key_in_hand()?;
        Err(Next::Do(Step::Grow {
            device: device.clone(),
            expected: facts,
            mapping_uuid: mapping.uuid.clone(),
        }))
    }

    /// A new volume with authenticated sectors is written once from end to end before anything leads to it: what was never written cannot
    /// be read. Once it was opened, here or elsewhere, it never comes to that again, and never to one that was made elsewhere: of what
    /// cannot be read there only its owner knows whether it was ever written.
    pub(super) fn initialise(&self, mapping: &Mapping, facts: &HeaderFacts) -> Result<(), Next> {
        let made_here = self.memory.permit.is_some() || self.wanted.formatted_before;
        if facts.integrity.is_none() || self.opened() || !made_here {
            return Ok(());
        }
        match self.run.initialised {
            None => Err(Next::Do(Step::Initialise(Box::new(mapping.clone())))),
            Some(Initialised { done, total }) if done < total => Err(stop(
                Stage::Mapping,
                Reason::Initialising,
                // In steps, each of which is written to the record: not more than a hundred, however long it takes.
                format!(
                    "{} % of {} MiB are written",
                    done / (total / 100).max(1),
                    total >> 20
                ),
            )),
            Some(_) => Ok(()),
        }
    }

    /// No mapping, and none is to be made as long as the volume is suspended: its key has no business in the kernel.
    pub(super) fn stays_closed(&self) -> Option<Next> {
        self.wanted.suspended.then(|| match self.has_link() {
            true => Next::Do(Step::Unlink),
            false => Next::Done(Done::Suspended),
        })
    }

    /// A mapping that is to be suspended: until its key is gone, and then nothing more.
    pub(super) fn shut(&self, mapping: &Mapping) -> Result<Next, Next> {
        match mapping.is_closed() {
            false => Err(Next::Do(Step::Suspend {
                uuid: mapping.uuid.clone(),
            })),
            true => Ok(Next::Done(Done::Suspended)),
        }
    }

    /// A mapping of ours that is suspended: as it is wanted, or to go on. The header is read anew before it does.
    pub(super) fn suspended(&self, mapping: &Mapping) -> Result<Next, Next> {
        if self.wanted.suspended {
            return self.shut(mapping);
        }
        self.was_broken()?;
        let Some(Device { id, .. }) = self.observed.device() else {
            return Err(self.make_anew(mapping, "its disk is gone from the kernel"));
        };
        self.identity(id)
            .map_err(|stop| self.scan_once().unwrap_or(stop))?;
        self.own_path(mapping)?;
        let facts = self.facts_below(id)?;
        self.key_in_hand()?;
        Ok(Next::Do(Step::Resume {
            device: id.clone(),
            expected: facts,
            mapping_uuid: mapping.uuid.clone(),
        }))
    }

    /// Facts of the volume below a mapping of ours: of the header as it was read in this run, and judged; of one without a header, the
    /// record's.
    pub(super) fn facts_below(&self, id: &DeviceId) -> Result<HeaderFacts, Next> {
        if !self.wanted.encryption.has_header_on_disk() {
            return self.facts_without_header();
        }
        match self.header(id)? {
            HeaderFound::Luks(header)
                if Some(&header.facts.luks_uuid) == self.wanted.luks_uuid.as_ref() =>
            {
                self.acceptable(header)
            }
            _ => Err(stop(
                Stage::Header,
                Reason::HeaderMissing,
                format!("the header on {} is gone below its mapping", id.path),
            )),
        }
    }
}
