//! Backup of the header, made before the first byte of data, and the header's restore from it, which a person orders.

use cryptvol_crds::{
    conditions::Reason,
    v1alpha1::{HeaderFacts, Provider, Stage},
};

use super::{At, Memory, Next, Step, Wanted, stop};
use crate::host::{DeviceId, Source};

/// Whether a backup of a volume's header is to be made when it is opened.
pub fn needs_backup(wanted: &Wanted, memory: &Memory, provider: Provider) -> bool {
    let known = wanted.header_backed_up || memory.backed_up;
    let of_disk = provider == Provider::Luks2 && wanted.encryption.has_header_on_disk();
    of_disk && wanted.encryption.header_backup && !known
}

impl At<'_> {
    /// The step that makes a backup, where there is none and none was tried in this run. Its failure is told of and ends nothing.
    pub(super) fn back_up_header(
        &self,
        device: &DeviceId,
        facts: &HeaderFacts,
    ) -> Result<(), Next> {
        let needed = needs_backup(self.wanted, self.memory, facts.provider);
        if !needed || self.run.backup.is_some() {
            return Ok(());
        }
        Err(Next::Do(Step::BackupHeader {
            device: device.clone(),
            expected: facts.clone(),
        }))
    }

    /// The step that restores the header, where that was ordered. Identity and size of the disk were compared before.
    pub(super) fn restore_header(&self, device: &DeviceId) -> Result<(), Next> {
        let Some(order) = self
            .wanted
            .header_restore
            .as_ref()
            .filter(|_| !self.run.restored)
        else {
            return Ok(());
        };
        let Some(expected) = &self.wanted.pinned else {
            return Err(stop(
                Stage::Header,
                Reason::HeaderBackupInvalid,
                "a restore of the header is ordered, and the header was never pinned",
            ));
        };
        // Of what stands where the header was nothing says that it is this volume's disk, so the disk must say it itself. The name of
        // a file does: the agent made it for this volume.
        let file = matches!(self.wanted.query.source, Source::File(_));
        if self.wanted.wwid.is_none() && !file {
            return Err(stop(
                Stage::Identity,
                Reason::IdentityUnproven,
                format!(
                    "the header on {} is to be restored, and no WWID is on record by which the disk could be known without it",
                    device.path
                ),
            ));
        }
        self.key_in_hand()?;
        Err(Next::Do(Step::RestoreHeader {
            device: device.clone(),
            expected: expected.clone(),
            backup: Box::new(order.backup.clone()),
        }))
    }
}
