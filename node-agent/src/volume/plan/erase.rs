//! Erasure: mapping down, up again to the header, without a key; wipe the key slots and see them gone; record that; remove the
//! header; all down.
//!
//! The header goes after the receipt: until that is on record it says whose key slots they were, so that an erasure that was cut off
//! begins again, and a header that is missing never has to be taken for one that was erased.

use cryptvol_crds::{
    conditions::Reason,
    v1alpha1::{Provider, Stage},
};

use super::{At, Done, Next, Step, stop};
use crate::host::{DeviceId, Erased, FileState, HeaderFound, Source};

impl At<'_> {
    pub(super) fn erase(&self) -> Next {
        let receipt = self.memory.erased.as_ref().map(|e| Erased {
            key_slots_wiped: u32::try_from(e.key_slots_wiped).unwrap_or_default(),
            verified: e.verified,
        });
        match receipt.or_else(|| self.run.erased.clone()) {
            Some(erased) if (self.run.wiped || self.has_file()) && self.memory.erased.is_none() => {
                Next::Do(Step::RecordErased(erased))
            }
            Some(erased) => {
                let tidied = self.take_mapping_down().and_then(|()| self.clear_header());
                match tidied.map_or_else(|next| next, |()| self.down()) {
                    Next::Done(_) => Next::Done(Done::Erased(erased)),
                    next => next,
                }
            }
            None => self.try_erase().unwrap_or_else(|next| next),
        }
    }

    fn try_erase(&self) -> Result<Next, Next> {
        self.take_mapping_down()?;
        if self.never_written() {
            return Ok(Next::Do(Step::NothingToErase { verified: false }));
        }
        // Of the disk nothing but the key, and a header that is sealed under it, can make anything, and the end of both, which the receipt
        // allows, is the erasure. There is nothing on the disk to wipe.
        let encryption = &self.wanted.encryption;
        if encryption.provider == Provider::Plain || encryption.detached_header {
            return Ok(Next::Do(Step::NothingToErase { verified: true }));
        }
        if matches!(self.wanted.query.source, Source::File(_)) && !self.has_file() && !self.opened()
        {
            return Ok(Next::Do(Step::NothingToErase { verified: true }));
        }
        let device = self.reach_device()?;
        let found = self.header(device)?;
        if let (HeaderFound::Luks(header), Some(uuid)) = (found, &self.wanted.luks_uuid)
            && header.facts.luks_uuid == *uuid
        {
            return Ok(Next::Do(Step::Erase {
                device: device.clone(),
                luks_uuid: uuid.clone(),
            }));
        }
        // Never opened: there is no data of this volume, on this disk or another.
        if !self.opened() {
            return Ok(Next::Do(Step::NothingToErase { verified: true }));
        }
        Err(self.not_the_header(device, found))
    }

    fn never_written(&self) -> bool {
        !self.opened() && self.memory.permit.is_none() && !self.wanted.formatted_before
    }

    /// The header of which the key slots are gone, where the disk can be had: it could be used again at once without it.
    fn clear_header(&self) -> Result<(), Next> {
        let settled = self.run.header_settled
            || !self.run.purged.is_empty()
            || !self.run.logged_out.is_empty();
        let has_header = self.wanted.encryption.has_header_on_disk() && !self.never_written();
        // Reported as erased: the disk may be another volume's by now.
        let reported = self.memory.detached_at.is_some();
        let (Some(uuid), true) = (
            &self.wanted.luks_uuid,
            self.memory.erased.is_some() && has_header && !settled && !reported,
        ) else {
            return Ok(());
        };
        let device = match self.reach_device() {
            Ok(device) => device,
            Err(Next::Do(step)) => return Err(Next::Do(step)),
            Err(_) => return Ok(()),
        };
        match self.header(device)? {
            HeaderFound::Luks(header) if header.facts.luks_uuid == *uuid => {
                Err(Next::Do(Step::ClearHeader {
                    device: device.clone(),
                    luks_uuid: uuid.clone(),
                }))
            }
            _ => Ok(()),
        }
    }

    fn has_file(&self) -> bool {
        matches!(self.wanted.query.source, Source::File(_))
            && (self.observed.device().is_some() || self.observed.file != FileState::Absent)
    }

    /// The volume has data and this disk does not carry its header: saying "erased" would be a lie.
    fn not_the_header(&self, device: &DeviceId, found: &HeaderFound) -> Next {
        let (reason, what) = match found {
            HeaderFound::Blank => (Reason::HeaderMissing, "is blank".to_owned()),
            HeaderFound::Unknown => (Reason::HeaderMissing, "carries no header".to_owned()),
            HeaderFound::Foreign(what) => (Reason::ForeignSignature, format!("carries {what}")),
            HeaderFound::Luks(h) => (
                Reason::ForeignSignature,
                format!("carries a LUKS header with UUID {}", h.facts.luks_uuid),
            ),
        };
        stop(
            Stage::Detaching,
            reason,
            format!("{} {what}, so nothing was wiped", device.path),
        )
    }
}
