//! The steps with a header that lies apart from its disk.

use cryptvol_crds::{conditions::Reason, names};
use tracing::info;

use super::{Executor, Node, Office, Progress};
use crate::{
    host::{FormatOrder, RecordOrder, StepError},
    volume::{plan::Step, wanted::Wanted},
};

impl<N: Node, O: Office> Executor<'_, N, O> {
    /// Makes a header that lies apart from its disk, or rotates it: nobody has to reach the disk for that.
    pub(super) async fn header_record(
        &self,
        step: &Step,
        wanted: &Wanted,
        at: &mut Progress,
    ) -> Result<(), StepError> {
        let record = || {
            let record = wanted.record().cloned().map(Box::new);
            record.ok_or_else(|| StepError::new(Reason::StepFailed, "no header is on record"))
        };
        match step {
            Step::MakeRecord { luks_uuid } => {
                let order = FormatOrder {
                    luks_uuid: luks_uuid.clone(),
                    encryption: wanted.encryption.clone(),
                    passphrase: at.passphrase()?,
                    mapping_name: wanted.query.mapping_name.clone(),
                    mapping_uuid: names::mapping_uuid(luks_uuid, &wanted.volume_uid),
                    over_torn: false,
                };
                (at.key, at.run.key) = (None, false);
                let made = self.node.header_record(RecordOrder::Make(order)).await?;
                info!(luks_uuid, "header made, to be kept apart from the disk");
                at.run.backup = Some(Ok(made));
            }
            Step::AddKeySlot { .. } => {
                let order = RecordOrder::Reseal {
                    record: record()?,
                    passphrase: self.office.passphrase().await?,
                    next: self.office.next_passphrase().await?,
                };
                let sealed = self.node.header_record(order).await?;
                info!("the new key opens the header");
                at.run.backup = Some(Ok(sealed));
                at.run.rotation = Some(Ok(vec![]));
            }
            // What is on record opens with the key on record, before the former key is destroyed.
            _ => {
                let order = RecordOrder::Prove {
                    record: record()?,
                    passphrase: self.office.passphrase().await?,
                };
                self.node.header_record(order).await?;
                at.run.rotation = Some(Ok(vec![]));
            }
        }
        Ok(())
    }
}
