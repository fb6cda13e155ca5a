//! Volumes whose header lies apart from their disk (ADR 54). To the disk they are as those without a header; what opens them is the
//! record, which the operator hands over once both its durable copies were written and read back. So nothing can be written on
//! the disk under a volume key that could get lost with one of them.

use cryptvol_crds::{
    conditions::Reason,
    v1alpha1::{HeaderFacts, Stage},
};

use super::{At, Done, Next, Step, checks::difference, stop};

fn unusable(what: String) -> Next {
    stop(Stage::Header, Reason::HeaderRecordUnusable, what)
}

impl At<'_> {
    /// There is no header on record, and the disk is one that a new volume may begin on.
    pub(super) fn make_record(&self) -> Result<Next, Next> {
        let uuid = self.wanted.luks_uuid.clone().unwrap_or_default();
        if self.opened() {
            let what = format!("the header with LUKS UUID {uuid} is not on record any more");
            return Err(unusable(what));
        }
        if self.wanted.permit.is_none() {
            let what = format!("no header with LUKS UUID {uuid} is on record");
            return Err(unusable(what));
        }
        // What was reported and what the operator keeps is one: a second one would only be a second chance to mix them up.
        if self.memory.record_made || matches!(self.run.backup, Some(Ok(_))) {
            return Ok(Next::Done(Done::RecordMade));
        }
        self.key_in_hand()?;
        Ok(Next::Do(Step::MakeRecord { luks_uuid: uuid }))
    }

    /// Facts of the header on record, where it is this volume's and as was wanted and pinned. That it was not changed shows its seal.
    pub(super) fn facts_of_record(&self, uuid: &str) -> Result<HeaderFacts, Next> {
        let Some(record) = &self.wanted.header_record else {
            let what = format!("the header with LUKS UUID {uuid} is not on record any more");
            return Err(unusable(what));
        };
        let (facts, wanted) = (&record.header, &self.wanted.encryption);
        let as_wanted = HeaderFacts {
            provider: wanted.provider,
            hash: None,
            luks_uuid: uuid.to_owned(),
            cipher: wanted.cipher.clone(),
            key_size: wanted.key_size,
            sector_size: wanted.sector_size,
            data_offset: 0,
            integrity: None,
            digest: facts.digest.clone(),
        };
        if let Some(what) = difference(facts, &as_wanted) {
            return Err(unusable(format!(
                "the {what} of the header on record is not as it is wanted"
            )));
        }
        for pin in self.pins() {
            if let Some(what) = difference(facts, pin) {
                return Err(unusable(format!(
                    "the {what} of the header on record is not what was pinned"
                )));
            }
        }
        Ok(facts.clone())
    }
}
