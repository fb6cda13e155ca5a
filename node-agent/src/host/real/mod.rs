//! The real node: sysfs, iscsid, device-mapper, libcryptsetup and the directory of links. Runs in a worker process.
//!
//! It starts no process (but where open-iscsi's version is not known, see `iscsi::iscsiadm`), and never waits for udev.

mod alua;
mod backup;
mod belongings;
pub mod detached;
pub mod disk;
pub mod dm;
mod elsewhere;
pub mod erase;
mod error;
pub mod exclusion;
pub(crate) mod files;
pub mod header;
pub mod integrity;
pub mod iscsi;
pub mod links;
mod live;
pub mod local;
mod loop_sys;
pub mod luks;
mod multipath;
pub mod multipathd;
pub mod names;
mod openers;
pub(crate) mod path_groups;
pub mod plain;
pub(crate) mod proc;
mod rotate;
mod sample;
pub(crate) mod sys;
pub mod sysfs;
#[cfg(test)]
pub(crate) mod testing;
pub mod udev;

use cryptvol_crds::{
    conditions::Reason,
    v1alpha1::{Activation, HeaderBackup, HeaderFacts, KeySlotRef, Provider},
};

use super::{
    AddSlotOrder, BackingFile, BackupOrder, Belongings, Chap, DeviceId, Discovered, DropSlotsOrder,
    Erased, FileState, FormatOrder, Header, HeaderFound, Host, Initialised, MapOrder, Mapping,
    NameOrder, NameTo, Observed, OpenOrder, Passphrase, Path, Query, RawKind, RecordOrder,
    RestoreOrder, Source, StepError, Target,
};
use disk::{Access, Disk};
use error::{because, failed};
use files::Files;
use iscsi::Initiator;
use links::Links;
use luks::VolumeKey;
use names::Names;
use sysfs::Sysfs;

/// Lets this process go before others. A login brings a storm of udev events; without this their handlers take the CPU, one time
/// slice after the other, while a step waits. Without the right to it nothing changes.
fn go_first() {
    const NICE: i32 = -15;
    if let Err(e) = rustix::process::setpriority_process(None, NICE) {
        tracing::debug!(error = %e, "priority stays as it is");
    }
}

/// This node.
#[derive(Debug, Default)]
pub struct RealHost {
    sysfs: Sysfs,
    links: Links,
    files: Files,
    names: Names,
    initiator: Initiator,
}

impl RealHost {
    /// The node that this process runs on. For a worker: it gives this thread and what it starts a high priority, and tells udev what it
    /// need not ask about mappings.
    pub fn new() -> Self {
        go_first();
        udev::tell_flags();
        Self::default()
    }
}

impl Host for RealHost {
    fn observe(&mut self, query: &Query) -> Result<Observed, StepError> {
        let read = |e| failed("reading sysfs", e);
        let mapping = dm::observe(&query.mapping_name)?;
        let local = |device: Option<_>| device.map(Path::local).into_iter().collect();
        let paths = match &query.source {
            Source::Iscsi(lun) => self.sysfs.paths(lun).map_err(read)?,
            Source::Device { path } => {
                local(self.sysfs.local(path, mapping.as_ref()).map_err(read)?)
            }
            Source::File(file) => local(self.files.device(&self.sysfs, file, mapping.as_ref())?),
        };
        let file = match &query.source {
            Source::File(file) => self.files.observe(file)?,
            _ => FileState::Absent,
        };
        let mut observed = Observed {
            file,
            paths,
            elsewhere: None,
            map: match &query.map {
                Some(name) => multipath::observe(&self.sysfs, name)?,
                None => None,
            },
            multipath: query.map.as_ref().is_some_and(|m| m.wanted),
            mapping,
            link: self.links.observe(&query.link)?,
            names: self
                .names
                .observe(query.shadow.as_deref(), &query.mapping_name)?,
        };
        observed.elsewhere = elsewhere::find(&self.sysfs, &observed).map_err(read)?;
        Ok(observed)
    }

    fn belongings(&mut self, known: &[String]) -> Result<Belongings, StepError> {
        belongings::read(&self.sysfs, &self.links, &self.files, known)
    }

    fn login(&mut self, target: &Target, each: bool, chap: Option<&Chap>) -> Result<(), StepError> {
        self.initiator.login(&self.sysfs, target, each, chap)
    }

    fn discover(&mut self, target: &Target, chap: Option<&Chap>) -> Result<Discovered, StepError> {
        self.initiator.discover(target, chap)
    }

    fn gather(&mut self, order: &MapOrder) -> Result<(), StepError> {
        multipath::gather(&self.sysfs, order)
    }

    fn scan(&mut self, iqn: &str, sid: u32, lun: u32) -> Result<(), StepError> {
        exclusion::expect(&self.sysfs, iqn, sid, lun)?;
        iscsi::scan(&self.sysfs, iqn, sid, lun)
    }

    fn read_header(&mut self, device: &DeviceId) -> Result<HeaderFound, StepError> {
        header::read(&Disk::open(&self.sysfs, device, Access::Read)?)
    }

    fn format(&mut self, device: &DeviceId, order: &FormatOrder) -> Result<Header, StepError> {
        let disk = Disk::open(&self.sysfs, device, Access::Write)?;
        self.sysfs.unused(device, "reading sysfs")?;
        if order.encryption.integrity.is_none() {
            return luks::format(&disk, order);
        }
        let facts = match luks::judge(&disk, order)? {
            luks::Verdict::Keep(header) => return Ok(header),
            luks::Verdict::Write { .. } => luks::facts_to_be(disk.size(), order)?,
        };
        // What is there of another volume would be taken for this one's.
        let at = facts.data_offset as u64;
        disk.write(at, &[0; integrity::SUPERBLOCK])?;
        disk.sync()?;
        drop(disk); // who has a local disk to himself keeps the kernel's own layer away too
        let activation = Activation::default();
        dm::begin_tags(&dm::Plan {
            name: &order.mapping_name,
            uuid: &order.mapping_uuid,
            dev: &device.dev,
            size_bytes: device.size_bytes,
            facts: &facts,
            activation,
        })?;
        let disk = Disk::open(&self.sysfs, device, Access::Write)?;
        self.sysfs.unused(device, "reading sysfs")?;
        luks::format(&disk, order)
    }

    fn open(&mut self, device: &DeviceId, order: &OpenOrder) -> Result<Mapping, StepError> {
        let plan = plan(device, order);
        let disk = Disk::open(&self.sysfs, device, Access::Read)?;
        if let Some(found) = dm::existing(&plan)? {
            return Ok(found);
        }
        dm::create(&plan, volume_key(&disk, order)?.as_ref())
    }

    fn initialise(&mut self, mapping: &Mapping, from: u64) -> Result<Initialised, StepError> {
        integrity::initialise(mapping, from)
    }

    fn link(&mut self, link: &str, mapping: &Mapping) -> Result<(), StepError> {
        // The mapping as the kernel has it now, not as it was when it was seen.
        match dm::observe(&mapping.name)? {
            Some(now)
                if now.uuid == mapping.uuid
                    && now.dev == mapping.dev
                    && now.table.is_some()
                    && now.table == mapping.table
                    && now.deps == mapping.deps =>
            {
                self.links.set(link, &now.path)
            }
            now => Err(failed(
                format!("linking {link}"),
                format!("mapping {} is not what it was: {now:?}", mapping.name),
            )),
        }
    }

    fn unlink(&mut self, link: &str) -> Result<(), StepError> {
        self.links.remove(link)
    }

    fn name(&mut self, order: &NameOrder) -> Result<(), StepError> {
        if let NameTo::Mapping(mapping) = &order.to
            && dm::observe(&mapping.name)?
                .is_none_or(|now| now.uuid != mapping.uuid || now.dev != mapping.dev)
        {
            return Err(failed(
                format!("giving {} away", order.name),
                format!("mapping {} is not what it was", mapping.name),
            ));
        }
        self.names.set(order)
    }

    fn close(&mut self, name: &str, uuid: &str) -> Result<(), StepError> {
        dm::close(name, uuid)
    }

    fn delete_device(&mut self, device: &DeviceId) -> Result<(), StepError> {
        match &device.kind {
            RawKind::Loop { .. } => files::detach(&self.sysfs, device),
            RawKind::Paths { uuid } => multipath::remove(device, uuid),
            _ => {
                let mark = exclusion::mark_of(&self.sysfs, device)?;
                iscsi::delete_device(&self.sysfs, device)?;
                exclusion::forget(mark.as_deref());
                Ok(())
            }
        }
    }

    fn make_file(&mut self, file: &BackingFile) -> Result<(), StepError> {
        self.files.make(file)
    }

    fn attach_file(&mut self, file: &BackingFile) -> Result<(), StepError> {
        self.files.attach(&self.sysfs, file)
    }

    fn lengthen_file(&mut self, device: &DeviceId, file: &BackingFile) -> Result<(), StepError> {
        self.files.lengthen(device, file)
    }

    fn remove_file(&mut self, file: &BackingFile) -> Result<(), StepError> {
        self.files.remove(file)
    }

    fn logout(&mut self, iqn: &str, sid: u32) -> Result<(), StepError> {
        self.initiator.logout(&self.sysfs, iqn, sid)
    }

    fn grow(&mut self, device: &DeviceId, order: &OpenOrder) -> Result<Mapping, StepError> {
        has_a_lasting_key(order)?;
        let disk = Disk::open(&self.sysfs, device, Access::Read)?;
        live::grow(&plan(device, order), volume_key(&disk, order)?.as_ref())
    }

    fn sample(&mut self, device: &DeviceId, mapping: &Mapping) -> Result<(), StepError> {
        sample::compare(
            &Disk::open(&self.sysfs, device, Access::Read)?,
            device,
            mapping,
        )
    }

    fn suspend(&mut self, name: &str, uuid: &str) -> Result<(), StepError> {
        live::suspend(name, uuid)
    }

    fn resume(&mut self, device: &DeviceId, order: &OpenOrder) -> Result<Mapping, StepError> {
        has_a_lasting_key(order)?;
        let disk = Disk::open(&self.sysfs, device, Access::Read)?;
        live::resume(&plan(device, order), volume_key(&disk, order)?.as_ref())
    }

    fn add_key_slot(
        &mut self,
        device: &DeviceId,
        order: &AddSlotOrder,
    ) -> Result<Vec<KeySlotRef>, StepError> {
        rotate::add(&Disk::open(&self.sysfs, device, Access::WriteBelow)?, order)
    }

    fn drop_key_slots(
        &mut self,
        device: &DeviceId,
        order: &DropSlotsOrder,
    ) -> Result<(), StepError> {
        rotate::drop_slots(&Disk::open(&self.sysfs, device, Access::WriteBelow)?, order)
    }

    fn backup_header(
        &mut self,
        device: &DeviceId,
        order: &BackupOrder,
    ) -> Result<HeaderBackup, StepError> {
        backup::make(&Disk::open(&self.sysfs, device, Access::Read)?, order)
    }

    fn header_record(&mut self, order: &RecordOrder) -> Result<HeaderBackup, StepError> {
        detached::record(order)
    }

    fn restore_header(&mut self, device: &DeviceId, order: &RestoreOrder) -> Result<(), StepError> {
        let disk = Disk::open(&self.sysfs, device, Access::Write)?;
        self.sysfs.unused(device, "reading sysfs")?;
        backup::restore(&disk, order)
    }

    fn erase(&mut self, device: &DeviceId, luks_uuid: &str) -> Result<Erased, StepError> {
        let disk = Disk::open(&self.sysfs, device, Access::Write)?;
        self.sysfs.unused(device, "reading sysfs")?;
        erase::erase(&disk, luks_uuid)
    }

    fn clear_header(&mut self, device: &DeviceId, luks_uuid: &str) -> Result<(), StepError> {
        let disk = Disk::open(&self.sysfs, device, Access::Write)?;
        self.sysfs.unused(device, "reading sysfs")?;
        erase::clear(&disk, luks_uuid)
    }
}

fn plan<'a>(device: &'a DeviceId, order: &'a OpenOrder) -> dm::Plan<'a> {
    dm::Plan {
        name: &order.mapping_name,
        uuid: &order.mapping_uuid,
        dev: &device.dev,
        size_bytes: device.size_bytes,
        facts: &order.expected,
        activation: order.activation,
    }
}

/// A table that is loaded once more wants the key that it had.
fn has_a_lasting_key(order: &OpenOrder) -> Result<(), StepError> {
    match order.random {
        true => Err(failed(
            "a table for the mapping",
            "the key of an ephemeral volume was given to the kernel, and nobody has it any more",
        )),
        false => Ok(()),
    }
}

/// A key for a disk of which nobody can read anything.
fn random_key(disk: &Disk, order: &OpenOrder) -> Result<VolumeKey, StepError> {
    let found = match header::read(disk)? {
        HeaderFound::Blank | HeaderFound::Unknown => {
            let bytes = usize::try_from(order.expected.key_size / 8).unwrap_or_default();
            return VolumeKey::random(bytes);
        }
        HeaderFound::Foreign(what) => what,
        HeaderFound::Luks(_) => "a LUKS header".to_owned(),
    };
    Err(because(
        Reason::ForeignSignature,
        format!("{} carries {found} by now", disk.name()),
    ))
}

/// The volume key, by whatever the volume's encryptor is; the disk is as it was judged.
fn volume_key(disk: &Disk, order: &OpenOrder) -> Result<Option<VolumeKey>, StepError> {
    if order.blank && header::read(disk)? != HeaderFound::Blank {
        return Err(because(
            Reason::DeviceNotBlank,
            format!("{} is not blank any more", disk.name()),
        ));
    }
    if order.random {
        return random_key(disk, order).map(Some);
    }
    let passphrase = || {
        let given = order.passphrase.as_ref();
        given.ok_or_else(|| failed("opening", "no passphrase was given"))
    };
    if let Some(record) = &order.record {
        return detached::open(record, &order.expected, passphrase()?).map(Some);
    }
    match order.expected.provider {
        Provider::Luks2 | Provider::Luks => open_header(disk, order, passphrase()?).map(Some),
        Provider::Plain => plain::volume_key(&order.expected, passphrase()?).map(Some),
        Provider::PassThrough => Ok(None),
    }
}

/// The header of a disk, where it is the one that was pinned and acceptable.
fn pinned_header(
    disk: &Disk,
    expected: &HeaderFacts,
    derivations: &[String],
) -> Result<header::Luks, StepError> {
    let mismatch = |what| Err(because(Reason::HeaderMismatch, what));
    match header::read_luks(disk)? {
        Err(found) => mismatch(format!(
            "{} carries no LUKS header but {found:?}",
            disk.name()
        )),
        Ok(luks) => match difference(expected, &luks.header) {
            Some(difference) => mismatch(format!("the header of {}: {difference}", disk.name())),
            None => known_derivations(disk, &luks.header, derivations).map(|()| luks),
        },
    }
}

/// No key slot and no digest derives its key in a way that was not there when the header was judged.
fn known_derivations(disk: &Disk, found: &Header, pinned: &[String]) -> Result<(), StepError> {
    match found.strange_derivation(pinned) {
        None => Ok(()),
        Some(way) => Err(because(
            Reason::HeaderMismatch,
            format!(
                "the header of {} derives a key by {way:?}, which it did not before",
                disk.name()
            ),
        )),
    }
}

/// The volume key out of a header that is as it should be.
fn open_header(
    disk: &Disk,
    order: &OpenOrder,
    passphrase: &Passphrase,
) -> Result<VolumeKey, StepError> {
    let luks = pinned_header(disk, &order.expected, &order.derivations)?;
    if luks.header.unlock_memory_kib > order.unlock_memory_kib {
        return Err(because(
            Reason::HeaderMismatch,
            format!(
                "the header of {} asks for {} KiB of memory now, more than before",
                disk.name(),
                luks.header.unlock_memory_kib
            ),
        ));
    }
    luks::unlock(disk, &luks, passphrase)
}

/// What in a header is not as it was pinned, or not acceptable at all.
fn difference(expected: &HeaderFacts, found: &Header) -> Option<String> {
    if !found.objections.is_empty() {
        return Some(found.objections.join("; "));
    }
    let facts = &found.facts;
    let pair = |what: &str, was: &dyn std::fmt::Display, is: &dyn std::fmt::Display| {
        Some(format!("{what} is {is} and was {was}"))
    };
    match expected {
        e if e.luks_uuid != facts.luks_uuid => pair("LUKS UUID", &e.luks_uuid, &facts.luks_uuid),
        e if e.provider != facts.provider => {
            pair("encryptor", &e.provider.as_str(), &facts.provider.as_str())
        }
        e if e.cipher != facts.cipher => pair("cipher", &e.cipher, &facts.cipher),
        e if e.key_size != facts.key_size => pair("key size", &e.key_size, &facts.key_size),
        e if e.sector_size != facts.sector_size => {
            pair("sector size", &e.sector_size, &facts.sector_size)
        }
        e if e.data_offset != facts.data_offset => {
            pair("data offset", &e.data_offset, &facts.data_offset)
        }
        e if !same_integrity(e, facts) => Some("its integrity is not as it was".into()),
        e if e.digest != facts.digest => pair("volume key digest", &e.digest, &facts.digest),
        e if *e != with_room_of(e, facts) => Some("it has other facts than were pinned".into()),
        _ => None,
    }
}

/// Whether sectors are authenticated alike, and there is no less room. The kernel notes more where the disk has grown.
fn same_integrity(expected: &HeaderFacts, found: &HeaderFacts) -> bool {
    match (&expected.integrity, &found.integrity) {
        (None, None) => true,
        (Some(e), Some(f)) => e.kind == f.kind && e.data_bytes <= f.data_bytes,
        _ => false,
    }
}

/// Facts with the room that is on record.
fn with_room_of(expected: &HeaderFacts, found: &HeaderFacts) -> HeaderFacts {
    HeaderFacts {
        integrity: expected.integrity.clone(),
        ..found.clone()
    }
}
