//! The way up: session, device, identity, header, key, mapping, first opening recorded, link.

use cryptvol_crds::{
    conditions::Reason,
    names,
    v1alpha1::{HeaderFacts, Stage},
};

use super::{
    At, Done, Next, Step,
    checks::{Health, table_agrees},
    names::Known,
    stop,
};
use crate::host::{Device, DeviceId, HeaderFound, LinkFound, Mapping};

/// Whether a header may be written on a blank disk.
enum Permit<'a> {
    /// Recorded as spent by this process, and not used yet.
    InHand,
    /// Issued and not spent.
    Fresh(&'a str),
    /// Refused, with the reason.
    No(Reason, String),
}

impl At<'_> {
    pub(super) fn up(&self) -> Next {
        let next = self.try_up().unwrap_or_else(|next| next);
        match &self.observed.mapping {
            Some(_) => self.beside_mapping(next),
            None => next,
        }
    }

    fn try_up(&self) -> Result<Next, Next> {
        if self.observed.link == LinkFound::NoLink && self.observed.mapping.is_none() {
            let link = &self.wanted.query.link;
            return Err(stop(
                Stage::Attached,
                Reason::NotOurs,
                format!("{link} is there and is no symbolic link"),
            ));
        }
        if self.wanted.encryption.integrity.is_some() && self.wanted.activation.allow_discards {
            return Err(stop(
                Stage::Pending,
                Reason::ActivationUnsupported,
                "allowDiscards cannot be had with integrity: a discarded sector has no tag and could not be read",
            ));
        }
        if let Some(mapping) = &self.observed.mapping {
            return self.with_mapping(mapping);
        }
        self.keep_name(Known::ByPath)?;
        if let Some(next) = self.stays_closed() {
            return Ok(next);
        }
        // A link without a mapping leads to nothing, or, once the kernel gives the number to another mapping, to
        // another volume's data.
        if self.has_link() {
            return Err(Next::Do(Step::Unlink));
        }
        if self.wanted.ephemeral && self.memory.key_made {
            return Err(Next::Do(Step::RecordKeyLost));
        }
        let device = self.reach_device()?;
        let has_header = self.wanted.encryption.has_header_on_disk();
        if !has_header && !self.has_scratch_file() {
            self.proven(device)?;
        }
        self.keep_name(Known::ByIdentity)?;
        if !has_header {
            return self.map_without_header(device);
        }
        let Some(uuid) = &self.wanted.luks_uuid else {
            return self.import(device);
        };
        self.restore_header(device)?;
        let facts = self.own_header(device, uuid)?;
        self.key_in_hand()?;
        Ok(Next::Do(Step::Open {
            device: device.clone(),
            expected: facts,
            mapping_uuid: names::mapping_uuid(uuid, &self.wanted.volume_uid),
            blank: false,
        }))
    }

    /// The passphrase was released in this run, or none is needed; or the step that asks for it.
    pub(super) fn key_in_hand(&self) -> Result<(), Next> {
        let asked = self.wanted.encryption.provider.encrypts() && !self.wanted.ephemeral;
        match self.run.key || !asked {
            true => Ok(()),
            false => Err(Next::Do(Step::ReleaseKey)),
        }
    }

    /// Facts of the header on the disk, proven to be this volume's; or what leads there.
    fn own_header(&self, device: &DeviceId, uuid: &str) -> Result<HeaderFacts, Next> {
        match self.header(device)? {
            HeaderFound::Luks(header) if header.facts.luks_uuid != uuid => {
                let hint = match self.opened() {
                    true => "",
                    false => {
                        "; where it is the disk of a volume whose record was lost, import that with its key (spec.format Never) and do not wipe it"
                    }
                };
                Err(stop(
                    Stage::Header,
                    Reason::ForeignSignature,
                    format!(
                        "{} carries a LUKS header with UUID {}, expected {uuid}{hint}",
                        device.path, header.facts.luks_uuid
                    ),
                ))
            }
            // Formatting stops half-way like this: the header is written before its first key slot.
            HeaderFound::Luks(header) if header.key_slots == 0 => {
                if self.opened() {
                    return Err(stop(
                        Stage::Header,
                        Reason::HeaderMismatch,
                        format!("the header on {} has no key slot left", device.path),
                    ));
                }
                Err(self.format(device, uuid, "carries a header without a key slot"))
            }
            HeaderFound::Luks(header) => {
                let facts = self.acceptable(header)?;
                if self.run.torn {
                    let found = "carries a header of which the key opens no slot";
                    return Err(self.format(device, uuid, found));
                }
                Ok(facts)
            }
            HeaderFound::Blank => Err(self.format(device, uuid, "is blank")),
            // Not "wipe it if its data is not wanted": these are the rests of this volume's own header.
            HeaderFound::Foreign(what) if self.opened() && what.starts_with("crypto_LUKS") => {
                Err(stop(
                    Stage::Header,
                    Reason::HeaderMismatch,
                    format!("{} carries {what}", device.path),
                ))
            }
            HeaderFound::Foreign(what) => Err(stop(
                Stage::Header,
                Reason::ForeignSignature,
                format!("{} carries {what}", device.path),
            )),
            HeaderFound::Unknown if self.opened() => Err(stop(
                Stage::Header,
                Reason::HeaderMissing,
                format!("{} is not blank and carries no header", device.path),
            )),
            HeaderFound::Unknown
                if self.memory.permit.is_some() || self.wanted.formatted_before =>
            {
                Err(stop(
                    Stage::Header,
                    Reason::FormatInterrupted,
                    format!(
                        "{} is neither blank nor carries a whole header, and writing one was begun: wipe its first 16 MiB \
                         on the array if it never held data",
                        device.path
                    ),
                ))
            }
            HeaderFound::Unknown => Err(stop(
                Stage::Header,
                Reason::DeviceNotBlank,
                format!(
                    "{} is neither blank nor carries anything known",
                    device.path
                ),
            )),
        }
    }

    /// The way to a header on a disk without one: key first (an outage of the key service must not cost the permit), then
    /// the receipt, then the write.
    fn format(&self, device: &DeviceId, uuid: &str, found: &str) -> Next {
        let permit = self.permit(uuid);
        if let Permit::No(reason, why) = permit {
            return stop(
                Stage::Header,
                reason,
                format!("{} {found}; {why}", device.path),
            );
        }
        if !self.run.key {
            return Next::Do(Step::ReleaseKey);
        }
        match permit {
            Permit::Fresh(id) => Next::Do(Step::SpendPermit { id: id.to_owned() }),
            _ => Next::Do(Step::Format {
                device: device.clone(),
                luks_uuid: uuid.to_owned(),
            }),
        }
    }

    fn permit(&self, uuid: &str) -> Permit<'_> {
        let spent = self.memory.permit.as_deref();
        let issued = self.wanted.permit.as_ref();
        if self.opened() {
            return Permit::No(Reason::HeaderMissing, "it was opened before".to_owned());
        }
        if let Some(hand) = self.hand.permit.as_deref()
            && spent == Some(hand)
            && issued.is_none_or(|p| p.id == hand && p.luks_uuid == uuid)
        {
            return Permit::InHand;
        }
        // A permit beside that was given by a person for what the first one left.
        if self.wanted.formatted_before && issued.is_none() {
            return Permit::No(
                Reason::FormatInterrupted,
                "a header was begun before".to_owned(),
            );
        }
        match issued {
            Some(p) if spent == Some(p.id.as_str()) => Permit::No(
                Reason::FormatInterrupted,
                format!("format permit {} is spent", p.id),
            ),
            Some(p) if p.luks_uuid != uuid => Permit::No(
                Reason::FormatNotPermitted,
                "the format permit is for another UUID".to_owned(),
            ),
            Some(p) => Permit::Fresh(&p.id),
            None if spent.is_some() => Permit::No(
                Reason::FormatInterrupted,
                "its format permit is spent".to_owned(),
            ),
            None => Permit::No(
                Reason::FormatNotPermitted,
                "there is no format permit".to_owned(),
            ),
        }
    }

    /// A volume that was made elsewhere: its header is reported, and pinned by the operator before anything is unlocked.
    fn import(&self, device: &DeviceId) -> Result<Next, Next> {
        match self.header(device)? {
            HeaderFound::Luks(header) if header.key_slots > 0 => {
                let facts = self.acceptable(header)?;
                Ok(Next::Done(Done::HeaderFound { facts }))
            }
            HeaderFound::Luks(_) => Err(stop(
                Stage::Header,
                Reason::HeaderMismatch,
                format!("the header on {} has no key slot", device.path),
            )),
            HeaderFound::Blank => Err(stop(
                Stage::Header,
                Reason::FormatNotPermitted,
                format!("{} is blank, and the volume is to be imported", device.path),
            )),
            HeaderFound::Foreign(what) => Err(stop(
                Stage::Header,
                Reason::ForeignSignature,
                format!("{} carries {what}, not a LUKS header", device.path),
            )),
            HeaderFound::Unknown => Err(stop(
                Stage::Header,
                Reason::DeviceNotBlank,
                format!("{} carries no header", device.path),
            )),
        }
    }

    /// There is a mapping of this volume's name: adopt it, make it anew, or leave it to whom it belongs.
    fn with_mapping(&self, mapping: &Mapping) -> Result<Next, Next> {
        let expected = self
            .wanted
            .luks_uuid
            .as_ref()
            .map(|uuid| names::mapping_uuid(uuid, &self.wanted.volume_uid));
        if expected.as_ref() != Some(&mapping.uuid) {
            return Err(stop(
                Stage::Mapping,
                Reason::NotOurs,
                format!(
                    "a mapping {} with UUID {} is there, expected {}",
                    mapping.name,
                    mapping.uuid,
                    expected.as_deref().unwrap_or("none")
                ),
            ));
        }
        // Of one that is to be suspended only where nothing gets to its disk: until what is on its way is written out the key stays.
        if !self.wanted.suspended || !self.observed.is_reachable() {
            self.heal(mapping)?;
        }
        let in_use = mapping.open_count > 0;
        match self.health(mapping) {
            // Before any other question: whatever is wrong, the key is to go.
            Health::Good if self.wanted.suspended => self.shut(mapping),
            Health::Good => self
                .adopt(mapping)
                .map_err(|next| self.fail_closed(mapping, next)),
            Health::Suspended if self.wanted.ephemeral => Err(self.make_anew(
                mapping,
                "somebody suspended it, and its key could be given back by nobody",
            )),
            Health::Suspended => self
                .suspended(mapping)
                .map_err(|next| self.fail_closed(mapping, next)),
            Health::Replaced(_) if self.wanted.suspended && in_use => self.shut(mapping),
            Health::Replaced(why) if in_use => {
                Err(self.fail_closed(mapping, replaced(mapping, &why)))
            }
            Health::Replaced(why) => Err(self.make_anew(mapping, &why)),
            Health::Waits(why) => Err(stop(Stage::Session, Reason::PortalUnreachable, why)),
            Health::Broken(_)
                if self.wanted.suspended
                    && in_use
                    && (mapping.is_closed() || self.errors_at_once(mapping)) =>
            {
                self.shut(mapping)
            }
            Health::Broken(why) => Err(self.make_anew(mapping, &why)),
        }
    }

    /// What is on its way to the broken mapping's disk ends with an error, and keeps no key in the kernel by waiting.
    fn errors_at_once(&self, mapping: &Mapping) -> bool {
        let waits = self.observed.map_in_use().is_some_and(|map| map.queues);
        mapping.table.is_some() && !waits
    }

    /// Takes a broken mapping of ours away, unless a guest has it open: its link first, so that it never leads elsewhere.
    pub(super) fn make_anew(&self, mapping: &Mapping, why: &str) -> Next {
        let broken = |reason, rest: &str| {
            stop(
                Stage::Mapping,
                reason,
                format!("the mapping {} is broken ({why}){rest}", mapping.name),
            )
        };
        if mapping.open_count > 0 {
            return broken(
                Reason::DeviceBusy,
                &format!(" and open {} times", mapping.open_count),
            );
        }
        if self.run.closed {
            return broken(Reason::StepFailed, " although it was just made anew");
        }
        if self.has_link() {
            return Next::Do(Step::Unlink);
        }
        if let Err(next) = self.withdraw_name() {
            return next;
        }
        Next::Do(Step::Close {
            uuid: mapping.uuid.clone(),
        })
    }

    /// A live mapping over the right device. With its facts known (pinned or reported before) the disk is not read.
    fn adopt(&self, mapping: &Mapping) -> Result<Next, Next> {
        let Some(Device { id, .. }) = self.observed.device() else {
            return Err(self.make_anew(mapping, "its disk is gone from the kernel"));
        };
        self.look()?;
        // What the kernel remembers of the disk may be of before.
        self.identity(id)
            .map_err(|stop| self.scan_once().unwrap_or(stop))?;
        let uuid = self.wanted.luks_uuid.as_deref().unwrap_or_default();
        let known = self
            .wanted
            .pinned
            .as_ref()
            .or(self.memory.facts.as_ref().filter(|_| self.memory.opened))
            .filter(|facts| facts.luks_uuid == uuid);
        let read_now;
        let facts = match known {
            Some(facts) => facts,
            None => {
                read_now = self.facts_below(id)?;
                &read_now
            }
        };
        if let Err(why) = table_agrees(mapping, facts) {
            return Err(match mapping.open_count {
                0 => self.make_anew(mapping, &why),
                _ => replaced(mapping, &why),
            });
        }
        self.own_path(mapping)?;
        self.stopped_layer(mapping)?;
        self.back_up_header(id, facts)?;
        self.initialise(mapping, facts)?;
        if !self.memory.opened || (self.wanted.ephemeral && !self.memory.key_made) {
            return Err(Next::Do(Step::RecordFirstOpened {
                facts: facts.clone(),
            }));
        }
        // What can be proven does not wait for udev.
        if !self.lacks_name() {
            self.give_name(mapping)?;
            if self.observed.link != LinkFound::To(mapping.path.clone()) {
                return Err(Next::Do(Step::Link(mapping.clone())));
            }
        }
        self.prove(mapping, id)?;
        self.lengthen(id, facts)?;
        self.grow(mapping, id, facts)?;
        self.rotate(id, facts)?;
        Ok(Next::Done(Done::Attached {
            facts: facts.clone(),
        }))
    }
}

/// Somebody changed the table of a mapping that is in use.
fn replaced(mapping: &Mapping, why: &str) -> Next {
    stop(
        Stage::Mapping,
        Reason::MappingReplaced,
        format!(
            "the mapping {} is open {} times and is not what was made: {why}",
            mapping.name, mapping.open_count
        ),
    )
}
