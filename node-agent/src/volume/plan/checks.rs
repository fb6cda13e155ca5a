//! Comparisons: is this the disk, the header, the mapping that was meant?

use cryptvol_crds::{
    conditions::Reason,
    v1alpha1::{HeaderFacts, Integrity, Stage},
};

use super::{At, Next, Step, stop};
use crate::host::{
    CryptTable, Device, DeviceId, Header, HeaderFound, LinkFound, Mapping, OWN_DERIVATIONS, Source,
};

/// State of a mapping that carries this volume's name and UUID.
pub(super) enum Health {
    /// Live, over the right device.
    Good,
    /// Over the right device, and suspended.
    Suspended,
    /// Over the right device, which does not answer at present.
    Waits(String),
    /// Somebody put something in its place that does not encrypt, or led it elsewhere than to its volume's disk.
    Replaced(String),
    /// Cannot be used any more: over a device that is gone or given up, or without a table.
    Broken(String),
}

impl<'a> At<'a> {
    /// The volume was opened once, here or elsewhere: from then on its disk is never formatted.
    pub(super) fn opened(&self) -> bool {
        self.memory.opened || self.wanted.pinned.is_some()
    }

    /// Bytes that the disk had at least, once.
    pub(super) fn pinned_size(&self) -> Option<u64> {
        let own = self.memory.size_bytes.filter(|_| self.memory.opened);
        self.wanted.size_bytes.or(own)
    }

    /// WWID that the disk must have, where it is known. What this agent reported itself counts from the first opening on.
    fn pinned_wwid(&self) -> Option<&String> {
        let own = self.memory.wwid.as_ref().filter(|_| self.memory.opened);
        self.wanted.wwid.as_ref().or(own)
    }

    /// It says itself that it is another disk. One that says nothing may be the right one.
    pub(super) fn is_another(&self, device: &DeviceId) -> bool {
        let differs = |pinned| device.wwid.as_ref().is_some_and(|own| own != pinned);
        self.pinned_wwid().is_some_and(differs)
    }

    /// WWID and size agree with what is pinned. What this agent reported itself counts from the first opening on, when it
    /// was proven to be the right disk by its header.
    pub(super) fn identity(&self, device: &DeviceId) -> Result<(), Next> {
        if let Some(wwid) = self.pinned_wwid()
            && device.wwid.as_ref() != Some(wwid)
        {
            let found = device.wwid.as_deref().unwrap_or("no WWID");
            return Err(stop(
                Stage::Identity,
                Reason::WwidMismatch,
                format!("{} is {found}, expected {wwid}", self.wanted.query.source),
            ));
        }
        if let Some(size) = self.pinned_size()
            && device.size_bytes < size
        {
            return Err(stop(
                Stage::Identity,
                Reason::SizeMismatch,
                format!(
                    "{} has {} bytes, pinned are {size}",
                    device.path, device.size_bytes
                ),
            ));
        }
        Ok(())
    }

    /// The header as read from this device in this run, or the step that reads it.
    pub(super) fn header(&self, device: &DeviceId) -> Result<&'a HeaderFound, Next> {
        match &self.run.reading {
            Some(reading) if reading.device == *device => Ok(&reading.found),
            _ => Err(Next::Do(Step::ReadHeader(device.clone()))),
        }
    }

    /// Facts that the header must agree with, from the strongest source there is.
    pub(super) fn pins(&self) -> impl Iterator<Item = &HeaderFacts> {
        let own = self.memory.facts.as_ref().filter(|_| self.memory.opened);
        [self.wanted.pinned.as_ref(), own, self.run.written.as_ref()]
            .into_iter()
            .flatten()
    }

    /// A LUKS header is this volume's and acceptable. The header is input from an array that is not trusted.
    /// Gives back its facts; the room of authenticated sectors is that of the record, for the kernel notes more where the disk has grown.
    pub(super) fn acceptable(&self, header: &Header) -> Result<HeaderFacts, Next> {
        let mismatch = |what: String| Err(stop(Stage::Header, Reason::HeaderMismatch, what));
        if !header.objections.is_empty() {
            return mismatch(format!(
                "the header is not acceptable: {}",
                header.objections.join("; ")
            ));
        }
        if header.unlock_memory_kib > self.wanted.unlock_memory_kib {
            return Err(stop(
                Stage::Header,
                Reason::UnlockNeedsMemory,
                format!(
                    "opening the header takes {} MiB of memory (Argon2), and this agent may take {}",
                    header.unlock_memory_kib.div_ceil(1024),
                    self.wanted.unlock_memory_kib >> 10
                ),
            ));
        }
        let (facts, wanted) = (&header.facts, &self.wanted.encryption);
        for (what, found, expected) in [
            (
                "provider",
                facts.provider.as_str().to_owned(),
                wanted.provider.as_str().to_owned(),
            ),
            ("cipher", facts.cipher.clone(), wanted.cipher.clone()),
            (
                "key size in bits",
                facts.key_size.to_string(),
                wanted.key_size.to_string(),
            ),
            (
                "encryption sector in bytes",
                facts.sector_size.to_string(),
                self.wanted_sector(facts).to_string(),
            ),
            (
                "integrity",
                integrity_word(facts.integrity.as_ref().map(|i| i.kind)),
                integrity_word(wanted.integrity),
            ),
        ] {
            if found != expected {
                return mismatch(format!("{what}: {found} in the header, {expected} wanted"));
            }
        }
        for pin in self.pins() {
            if let Some(what) = difference(facts, pin) {
                return mismatch(format!("the header's {what} is not what was pinned"));
            }
        }
        let own: &[String] = match self.memory.opened {
            true => &self.memory.derivations,
            false => &[],
        };
        for pinned in [self.wanted.derivations.as_slice(), own] {
            if let Some(way) = header.strange_derivation(pinned) {
                return mismatch(format!(
                    "the header derives a key by {way:?}, which it did not when it was pinned; beside the ways that were pinned only {:?} is taken",
                    OWN_DERIVATIONS[0]
                ));
            }
        }
        let mut facts = facts.clone();
        if let Some(pin) = self.pins().next() {
            facts.integrity.clone_from(&pin.integrity);
        }
        Ok(facts)
    }

    /// The encryption sector that a header must have. cryptsetup chooses one by the disk where nobody says, and Cinder has no word
    /// for it: what others wrote is taken as it is, and pinned with the rest.
    fn wanted_sector(&self, found: &HeaderFacts) -> i32 {
        let import = self.wanted.luks_uuid.is_none();
        match &self.wanted.pinned {
            Some(pinned) => pinned.sector_size,
            None if import => found.sector_size,
            None => self.wanted.encryption.sector_size,
        }
    }

    /// State of our mapping, as far as it can be told without the header's facts.
    pub(super) fn health(&self, mapping: &Mapping) -> Health {
        let Some(table) = &mapping.table else {
            return Health::Broken("it has no table".to_owned());
        };
        // Before any question about the disk: what a guest writes need not come there.
        if let Some(what) = self.replaced(mapping, table) {
            return Health::Replaced(what);
        }
        let Some(Device { id, state, .. }) = self.observed.device() else {
            return Health::Broken("its disk is gone from the kernel".to_owned());
        };
        if mapping.deps != [id.dev.clone()] || table.dev != id.dev {
            return Health::Broken(format!(
                "it lies over {}, the disk is {} now",
                mapping.deps.join(" "),
                id.dev
            ));
        }
        if self.is_dead() {
            return Health::Broken("all its disks were taken off line by the kernel".to_owned());
        }
        if state == "offline" {
            // The kernel gave it up after errors; unlike a disk whose transport is down it never comes back by itself.
            return Health::Broken(format!(
                "its disk {} was taken off line by the kernel",
                id.path
            ));
        }
        let logged_in = match &self.wanted.query.source {
            Source::Iscsi(_) => self.observed.is_reachable(),
            Source::Device { .. } | Source::File(_) => true,
        };
        if state != "running" || !logged_in {
            return Health::Waits(match self.observed.map_in_use() {
                Some(_) => self.paths_down(),
                None => format!("the disk {} is {state}", id.path),
            });
        }
        match mapping.suspended {
            true => Health::Suspended,
            false => Health::Good,
        }
    }

    /// What somebody put in place of what was made: the mapping's own table, the disk that it leads to, or the map below it.
    fn replaced(&self, mapping: &Mapping, table: &CryptTable) -> Option<String> {
        let (found, target) = (
            &table.target_type,
            CryptTable::target_of(self.wanted.encryption.provider),
        );
        if found != target {
            return Some(format!("its table is {found}, not {target}"));
        }
        // The volume's own disk on a way that is not one of its own, or not any more: a session that is being taken away shows none first.
        let own = |wwid: &String| self.pinned_wwid() == Some(wwid);
        let other = self.observed.elsewhere.as_ref();
        if let Some(other) = other.filter(|o| !o.wwid.as_ref().is_some_and(own)) {
            return Some(format!("its table leads to another disk, {}", other.what));
        }
        let map = self.observed.map.as_ref();
        let map = map.filter(|m| mapping.deps.contains(&m.device.id.dev))?;
        let found = map.replaced_by.as_ref()?;
        Some(format!(
            "the table of the map {} below it is {found}, not multipath",
            map.device.id.path
        ))
    }

    /// Whether something that can be a link of ours is at the link's path.
    pub(super) fn has_link(&self) -> bool {
        matches!(self.observed.link, LinkFound::To(_))
    }
}

/// Whether the live table is that of the header. A key that did not come through the keyring can be read by anyone who
/// may read tables.
pub(super) fn table_agrees(mapping: &Mapping, facts: &HeaderFacts) -> Result<(), String> {
    let Some(table) = &mapping.table else {
        return Err("it has no table".to_owned());
    };
    if table.cipher != facts.cipher {
        return Err(format!(
            "its cipher is {}, the header's {}",
            table.cipher, facts.cipher
        ));
    }
    if i64::try_from(table.data_offset) != Ok(facts.data_offset) {
        return Err(format!(
            "its data begins at {}, the header's at {}",
            table.data_offset, facts.data_offset
        ));
    }
    if i32::try_from(table.sector_size) != Ok(facts.sector_size) {
        return Err(format!(
            "its sector is {} bytes, the header's {}",
            table.sector_size, facts.sector_size
        ));
    }
    if facts.provider.encrypts() && !table.key_in_keyring {
        return Err("its key lies open in the table".to_owned());
    }
    let kind = facts.integrity.as_ref().map(|i| i.kind);
    if table.integrity != kind {
        return Err(format!(
            "its sectors are authenticated by {}, the header's by {}",
            integrity_word(table.integrity),
            integrity_word(kind)
        ));
    }
    match &facts.integrity {
        Some(i) if i64::try_from(mapping.size_bytes) != Ok(i.data_bytes) => Err(format!(
            "it has {} bytes, of which {} are authenticated",
            mapping.size_bytes, i.data_bytes
        )),
        _ => Ok(()),
    }
}

fn integrity_word(kind: Option<Integrity>) -> String {
    kind.map_or("none", Integrity::as_str).to_owned()
}

/// Name of the first fact of `a` that is not as it was in `b`.
pub(super) fn difference(a: &HeaderFacts, b: &HeaderFacts) -> Option<&'static str> {
    if a.luks_uuid != b.luks_uuid {
        return Some("UUID");
    }
    if a.provider != b.provider {
        return Some("provider");
    }
    if a.digest != b.digest {
        return Some("volume key digest");
    }
    if a.cipher != b.cipher {
        return Some("cipher");
    }
    if a.key_size != b.key_size {
        return Some("key size");
    }
    if a.hash != b.hash {
        return Some("hash");
    }
    if a.sector_size != b.sector_size {
        return Some("sector size");
    }
    if a.data_offset != b.data_offset {
        return Some("data offset");
    }
    match (&a.integrity, &b.integrity) {
        (None, None) => None,
        (Some(a), Some(b)) if a.kind == b.kind => {
            (a.data_bytes < b.data_bytes).then_some("room for data")
        }
        _ => Some("integrity"),
    }
}
