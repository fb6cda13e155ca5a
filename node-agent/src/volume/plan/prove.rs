//! The continuous proof: the link leads to the mapping, below that is the disk with this WWID and this header, and what lies there is
//! not what a guest reads. Each part is asked of the kernel and the disk anew, not remembered.

use cryptvol_crds::{conditions::Reason, v1alpha1::Stage};

use super::{At, Next, Step, Stop, stop};
use crate::host::{DeviceId, LinkFound, Mapping};

/// Whether a run's end says that the proof does not hold, and not only that it cannot be had now.
pub fn is_break(stop: &Stop) -> bool {
    match stop.reason {
        Reason::WwidMismatch
        | Reason::SizeMismatch
        | Reason::HeaderMismatch
        | Reason::HeaderMissing
        | Reason::MappingReplaced
        | Reason::PlaintextOnDisk
        | Reason::IntegrityViolated => true,
        // Something else at the place of the link.
        Reason::NotOurs => stop.stage == Stage::Attached,
        _ => false,
    }
}

impl At<'_> {
    /// At the link's path is nothing, or what can be a link of ours: one to a mapping, be it another.
    pub(super) fn own_path(&self, mapping: &Mapping) -> Result<(), Next> {
        let path = &self.wanted.query.link;
        let what = match &self.observed.link {
            LinkFound::NoLink => format!("{path} is there and is no symbolic link"),
            LinkFound::To(to) if !to.starts_with("/dev/dm-") => {
                format!("{path} leads to {to} and not to {}", mapping.path)
            }
            _ => return Ok(()),
        };
        Err(stop(Stage::Attached, Reason::NotOurs, what))
    }

    /// What a proof still needs in this run. Link, mapping and identity were checked before.
    pub(super) fn prove(&self, mapping: &Mapping, device: &DeviceId) -> Result<(), Next> {
        if !self.wanted.prove || !self.wanted.encryption.provider.encrypts() {
            return Ok(());
        }
        if let Some(scan) = self.scan_once() {
            return Err(scan);
        }
        self.facts_below(device)?;
        match &self.run.sample {
            Some(Ok(())) => Ok(()),
            Some(Err(e)) => Err(stop(Stage::Mapping, e.reason(), &e.message)),
            None => Err(Next::Do(Step::Sample {
                device: device.clone(),
                mapping: Box::new(mapping.clone()),
            })),
        }
    }

    /// The kernel stopped the layer of tags for good. It works once it is made anew, which takes nothing from anybody where nobody has it
    /// open; with its link, so before that is asked for.
    pub(super) fn stopped_layer(&self, mapping: &Mapping) -> Result<(), Next> {
        match &self.run.sample {
            Some(Err(e)) if e.reason() == Reason::IntegrityStopped => {
                Err(match mapping.open_count {
                    0 => self.make_anew(mapping, &e.message),
                    _ => stop(Stage::Mapping, e.reason(), &e.message),
                })
            }
            _ => Ok(()),
        }
    }

    /// A sample of this run, or one since a person last suspended or detached the volume, showed something else than its ciphertext. Nothing
    /// on the disk tells that it is over: the next sample is of another block.
    pub(super) fn was_broken(&self) -> Result<(), Next> {
        match (&self.run.sample, &self.memory.broken) {
            (Some(Err(e)), _) => Err(stop(Stage::Mapping, e.reason(), &e.message)),
            (_, Some(broken)) => Err(stop(Stage::Mapping, broken.reason, &broken.what)),
            (_, None) => Ok(()),
        }
    }

    /// Suspends a mapping of which the proof does not hold and wipes its key, where that is wanted.
    pub(super) fn fail_closed(&self, mapping: &Mapping, next: Next) -> Next {
        match &next {
            Next::Stop(stop)
                if self.wanted.fail_closed && is_break(stop) && !mapping.is_closed() =>
            {
                Next::Do(Step::Suspend {
                    uuid: mapping.uuid.clone(),
                })
            }
            _ => next,
        }
    }
}
