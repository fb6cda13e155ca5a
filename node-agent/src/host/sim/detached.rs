//! Simulated headers that lie apart from their disk. Each one that is made has a volume key of its own: what another one wrote it
//! does not read.

use cryptvol_crds::{
    conditions::Reason,
    v1alpha1::{HeaderBackup, HeaderFacts},
};

use super::{World, fingerprint};
use crate::host::{HeaderFound, OpenOrder, RecordOrder, StepError};

impl World {
    /// The record opens, and the disk is blank where it must be.
    pub(super) fn unlocks_apart(&self, disk: usize, order: &OpenOrder) -> Result<(), StepError> {
        if order.blank && self.found(disk)? != HeaderFound::Blank {
            return Err(StepError::new(
                Reason::DeviceNotBlank,
                "the disk is not blank any more",
            ));
        }
        let passphrase = order.passphrase.as_ref().map(|p| p.0.as_str());
        match &order.record {
            Some(record) if record.header == order.expected => opens(record, passphrase),
            _ => unusable("it is of another header"),
        }
    }

    pub(super) fn record(&mut self, order: &RecordOrder) -> Result<HeaderBackup, StepError> {
        match order {
            RecordOrder::Make(order) => {
                self.log.push("volume key made".to_owned());
                let made = self.log.iter().filter(|l| *l == "volume key made").count();
                Ok(HeaderBackup {
                    header: HeaderFacts {
                        luks_uuid: order.luks_uuid.clone(),
                        cipher: order.encryption.cipher.clone(),
                        key_size: order.encryption.key_size,
                        sector_size: order.encryption.sector_size,
                        digest: format!("volume-key-{made}"),
                        ..HeaderFacts::default()
                    },
                    sealed: fingerprint(&order.passphrase.0),
                    ..HeaderBackup::default()
                })
            }
            RecordOrder::Reseal {
                record,
                passphrase,
                next,
            } => {
                opens(record, Some(&passphrase.0))?;
                Ok(HeaderBackup {
                    sealed: fingerprint(&next.0),
                    ..(**record).clone()
                })
            }
            RecordOrder::Prove { record, passphrase } => {
                opens(record, Some(&passphrase.0))?;
                Ok((**record).clone())
            }
        }
    }
}

fn opens(record: &HeaderBackup, passphrase: Option<&str>) -> Result<(), StepError> {
    match passphrase.map(fingerprint) {
        Some(sealed) if sealed == record.sealed => Ok(()),
        _ => unusable("its seal does not open"),
    }
}

fn unusable(what: &str) -> Result<(), StepError> {
    Err(StepError::new(Reason::HeaderRecordUnusable, what))
}
