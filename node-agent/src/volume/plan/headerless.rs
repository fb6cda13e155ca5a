//! Volumes without a header: nothing on the disk says whose it is or which key it wants, so the disk's own WWID must. Nothing
//! is written to make one, and so no permit is spent: the first opening takes a blank disk, or, at an import, the one whose WWID
//! the user named.

use cryptvol_crds::{
    conditions::Reason,
    names,
    v1alpha1::{HeaderFacts, Provider, Stage},
};

use super::{At, Next, Step, checks::difference, stop};
use crate::host::{DeviceId, HeaderFound, Source};

impl At<'_> {
    /// The disk is known by more than its place. Asked before anything is done by which it would be taken for this volume's.
    pub(super) fn proven(&self, device: &DeviceId) -> Result<(), Next> {
        let no_header = self.no_header();
        let unproven = |what: String| Err(stop(Stage::Identity, Reason::IdentityUnproven, what));
        if device.wwid.is_none() {
            return unproven(format!("{} has no WWID, and {no_header}", device.path));
        }
        if !self.opened() && self.wanted.permit.is_none() && self.wanted.wwid.is_none() {
            return unproven(format!(
                "{} is to be imported, and {no_header} by which it could be known",
                device.path
            ));
        }
        Ok(())
    }

    /// The way on from a device that was reached.
    pub(super) fn map_without_header(&self, device: &DeviceId) -> Result<Next, Next> {
        let first = !self.opened();
        let new = self.wanted.permit.is_some();
        if self.wanted.encryption.detached_header && self.wanted.header_record.is_none() {
            if first {
                self.may_begin(device, new)?;
            }
            return self.make_record();
        }
        let facts = self.facts_without_header()?;
        if self.wanted.ephemeral {
            self.may_begin_anew(device)?;
        }
        if first && !self.has_scratch_file() {
            self.may_begin(device, new)?;
        }
        self.key_in_hand()?;
        Ok(Next::Do(Step::Open {
            device: device.clone(),
            mapping_uuid: names::mapping_uuid(&facts.luks_uuid, &self.wanted.volume_uid),
            expected: facts,
            blank: first && new && !self.has_scratch_file(),
        }))
    }

    /// What stands for the facts of a header: the record alone, and what was pinned of it must agree.
    pub(super) fn facts_without_header(&self) -> Result<HeaderFacts, Next> {
        let encryption = &self.wanted.encryption;
        let Some(uuid) = &self.wanted.luks_uuid else {
            return Err(stop(
                Stage::Identity,
                Reason::IdentityUnproven,
                "the record has no UUID yet for a volume without a header",
            ));
        };
        if encryption.detached_header {
            return self.facts_of_record(uuid);
        }
        let facts = match encryption.provider.encrypts() {
            true => HeaderFacts {
                integrity: None,
                provider: encryption.provider,
                // No passphrase, so nothing that a key is made from.
                hash: (encryption.provider == Provider::Plain && !self.wanted.ephemeral)
                    .then(|| encryption.hash.unwrap_or_default()),
                luks_uuid: uuid.clone(),
                cipher: encryption.cipher.clone(),
                key_size: encryption.key_size,
                sector_size: encryption.sector_size,
                data_offset: 0,
                digest: String::new(),
            },
            // No sector is encrypted, whatever the fields for it say.
            false => HeaderFacts {
                provider: encryption.provider,
                luks_uuid: uuid.clone(),
                sector_size: 512,
                ..HeaderFacts::default()
            },
        };
        for pin in self.pins() {
            if let Some(what) = difference(&facts, pin) {
                return Err(stop(
                    Stage::Header,
                    Reason::HeaderMismatch,
                    format!("the volume's {what} is not what was pinned"),
                ));
            }
        }
        Ok(facts)
    }

    /// Why nothing on the disk says whose it is.
    pub(super) fn no_header(&self) -> String {
        match self.wanted.encryption.detached_header {
            true => "detachedHeader leaves no header on it".to_owned(),
            false => {
                let provider = self.wanted.encryption.provider.as_str();
                format!("provider {provider} writes no header")
            }
        }
    }

    /// The volume is in a file that was made for it alone, and goes with it.
    pub(super) fn has_scratch_file(&self) -> bool {
        self.wanted.ephemeral && matches!(self.wanted.query.source, Source::File(_))
    }

    /// Whether a disk of which nobody can read anything may be written from its beginning. It was this volume's by its WWID; what carries a
    /// name by now is somebody's all the same.
    fn may_begin_anew(&self, device: &DeviceId) -> Result<(), Next> {
        let what = match self.header(device)? {
            HeaderFound::Blank | HeaderFound::Unknown => return Ok(()),
            HeaderFound::Foreign(what) => what.clone(),
            HeaderFound::Luks(header) => {
                format!("a LUKS header with UUID {}", header.facts.luks_uuid)
            }
        };
        Err(stop(
            Stage::Header,
            Reason::ForeignSignature,
            format!("{} carries {what}", device.path),
        ))
    }

    /// Whether the disk may be taken for this volume though it never was before.
    fn may_begin(&self, device: &DeviceId, new: bool) -> Result<(), Next> {
        let refused = |reason, what: &str| {
            Err(stop(
                Stage::Header,
                reason,
                format!("{} {what}", device.path),
            ))
        };
        // What is imported without encryption is a guest's own disk, whatever that guest made of it. The WWID that the user named
        // says that it is this one.
        if !new && !self.wanted.encryption.provider.encrypts() {
            return Ok(());
        }
        match self.header(device)? {
            HeaderFound::Luks(header) => refused(
                Reason::ForeignSignature,
                &format!("carries a LUKS header with UUID {}", header.facts.luks_uuid),
            ),
            HeaderFound::Foreign(what) => {
                refused(Reason::ForeignSignature, &format!("carries {what}"))
            }
            HeaderFound::Blank if new => Ok(()),
            HeaderFound::Blank => refused(
                Reason::FormatNotPermitted,
                "is blank, and the volume is to be imported",
            ),
            HeaderFound::Unknown if new => refused(
                Reason::DeviceNotBlank,
                "is neither blank nor carries anything known; where it is the disk of a volume whose record was lost, import that with its \
                 secrets (spec.format Never) and do not wipe it",
            ),
            HeaderFound::Unknown => Ok(()),
        }
    }
}
