//! Rotation of the passphrase, while the volume is attached: a key slot more, or some fewer. What goes wrong here is told of, and the
//! volume stays as it is: the key on record opens it at every moment (invariant 8 of the design).

use cryptvol_crds::v1alpha1::{HeaderFacts, RotationPhase};

use super::{At, Next, Step};
use crate::host::DeviceId;

impl At<'_> {
    /// The step of a rotation that is wanted and was neither done before nor tried in this run.
    pub(super) fn rotate(&self, device: &DeviceId, facts: &HeaderFacts) -> Result<(), Next> {
        let Some(wanted) = &self.wanted.rotation else {
            return Ok(());
        };
        let done = self.memory.rotation.as_ref().is_some_and(|r| {
            r.done && (r.phase, r.key_id.as_str()) == (wanted.phase, wanted.key_id.as_str())
        });
        if done || self.run.rotation.is_some() {
            return Ok(());
        }
        let (device, expected) = (device.clone(), facts.clone());
        Err(Next::Do(match wanted.phase {
            RotationPhase::Adding => Step::AddKeySlot { device, expected },
            RotationPhase::Dropping => Step::DropKeySlots {
                device,
                expected,
                former: wanted.former_slots.clone(),
            },
            // The key manager's business; no node is told of it.
            RotationPhase::Destroying => return Ok(()),
        }))
    }
}
