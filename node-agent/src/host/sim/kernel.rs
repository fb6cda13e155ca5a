//! The simulated kernel and tools.

use std::collections::BTreeMap;

use cryptvol_crds::{
    conditions::Reason,
    names,
    v1alpha1::{HeaderBackup, HeaderFacts, KeySlotRef},
};

use super::{Content, Disk, SimHeader, SimLink, SimMap, SimTarget, WIPED, World, fingerprint};
use crate::host::{
    Access, AddSlotOrder, BackingFile, BackupOrder, Belongings, Chap, CryptTable, Device, DeviceId,
    Discovered, DropSlotsOrder, Erased, FileState, FormatOrder, Header, HeaderFound, Host,
    Initialised, LinkFound, Lun, MapOrder, Mapping, NameOrder, Observed, OpenOrder, Path, Portal,
    Query, RawKind, RecordOrder, RestoreOrder, Session, Source, StepError, Target,
    real::iscsi::discovery::bounds,
};

mod host;

/// What the kernel holds.
#[derive(Clone, Debug, Default)]
pub struct Kernel {
    /// iSCSI sessions.
    pub sessions: Vec<SimSession>,
    /// SCSI disks.
    pub devices: Vec<SimDevice>,
    /// Device-mapper mappings.
    pub mappings: Vec<SimMapping>,
    /// Maps of dm-multipath.
    pub maps: Vec<SimMap>,
    /// What was last heard of the ports of arrays that tell them apart, by target and portal; nothing of a disk without the handler.
    pub heard: BTreeMap<(String, String), Access>,
    /// Last session id given.
    pub next_sid: u32,
}

/// A session.
#[derive(Clone, Debug)]
pub struct SimSession {
    /// Id.
    pub sid: u32,
    /// Target.
    pub iqn: String,
    /// Portal that it was made through.
    pub portal: Option<Portal>,
    /// State as in sysfs.
    pub state: String,
    /// Somebody else made it and uses it.
    pub foreign: bool,
}

impl SimSession {
    /// Logged in by somebody else, who uses it.
    pub fn of_another(sid: u32, iqn: &str) -> Self {
        Self {
            sid,
            iqn: iqn.to_owned(),
            portal: None,
            state: "LOGGED_IN".to_owned(),
            foreign: true,
        }
    }
}

/// A SCSI disk as the kernel knows it: identity as of the last scan.
#[derive(Clone, Debug)]
pub struct SimDevice {
    /// `/dev/sdX`.
    pub path: String,
    /// major:minor.
    pub dev: String,
    /// Session; 0 for a disk of the node itself, which needs none.
    pub sid: u32,
    /// LUN.
    pub lun: u32,
    /// The array's disk, as of the last scan.
    pub disk: usize,
    /// WWID as of the last scan.
    pub wwid: Option<String>,
    /// Size as of the last scan.
    pub size: u64,
    /// State as in sysfs.
    pub state: String,
    /// Mounted or opened exclusively by somebody.
    pub in_use: bool,
    /// Who has it open plainly, which nothing shows but a look for it.
    pub opened_by: Option<String>,
    /// Path of the file below it, of a loop device.
    pub file: Option<String>,
}

/// A mapping.
#[derive(Clone, Debug)]
pub struct SimMapping {
    /// As observed.
    pub mapping: Mapping,
    /// The array's disk below it.
    pub disk: usize,
}

/// Passphrase of a key slot that was never written: nobody has it.
const UNWRITTEN: &str = "";

/// Inside which part of a step the agent or the node dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Torn {
    /// Format: bytes without meaning. Open: mapping without a table. Erase: half of the slots.
    Early,
    /// Format: header whose key slot was never written, so that nothing opens it.
    Slot,
    /// Format: header without a key slot. Erase: all slots gone, not read back.
    Late,
}

fn error<T>(reason: Reason, message: &str) -> Result<T, StepError> {
    Err(StepError::new(reason, message))
}

impl World {
    /// Index of the disk that the array shows at a device now, which need not be the one that was scanned.
    pub(super) fn disk_behind(&self, device: &SimDevice) -> Option<usize> {
        if device.sid == 0 {
            return Some(device.disk);
        }
        let session = self.kernel.sessions.iter().find(|s| s.sid == device.sid)?;
        let target = self.targets.get(&session.iqn).filter(|t| t.up)?;
        let portal = session.portal.as_ref().map(ToString::to_string);
        if portal.is_some_and(|p| target.portals_away.contains(&p)) {
            return None;
        }
        let portal = session.portal.as_ref().map(ToString::to_string);
        let other = portal.and_then(|p| target.other_luns.get(&p));
        other.or(target.luns.get(&device.lun)).copied()
    }

    /// The device of this identity, with the disk that answers; as a real step re-checks before it acts (the WWID by
    /// INQUIRY, not from sysfs).
    pub(super) fn check(&self, id: &DeviceId) -> Result<usize, StepError> {
        if let RawKind::Paths { .. } = id.kind {
            return self.check_map(id);
        }
        let Some(device) = self.kernel.devices.iter().find(|d| d.path == id.path) else {
            return error(Reason::WwidMismatch, "the device is gone");
        };
        let Some(disk) = self.disk_behind(device) else {
            return error(Reason::DeviceUnreadable, "input/output error");
        };
        if self.id(device) != *id || self.disks[disk].wwid != id.wwid {
            return error(Reason::WwidMismatch, "another disk answers");
        }
        Ok(disk)
    }

    pub(super) fn described(&self, s: &SimSession) -> Session {
        let mut disks = self.kernel.devices.iter();
        Session {
            sid: s.sid,
            state: s.state.clone(),
            portal: s.portal.clone(),
            in_use: disks.any(|d| d.sid == s.sid),
        }
    }

    /// All sessions to a target with what each shows at the LUN.
    fn paths(&self, lun: &Lun) -> Vec<Path> {
        let sessions = self.kernel.sessions.iter();
        let mut paths: Vec<_> = sessions
            .filter(|s| s.iqn == lun.target.iqn)
            .map(|s| {
                let mut all = self.kernel.devices.iter();
                let disk = all.find(|d| d.sid == s.sid && d.lun == lun.lun);
                Path {
                    session: Some(self.described(s)),
                    named: lun.target.names(s.portal.as_ref()),
                    disk: disk.map(|d| self.shown(d)),
                }
            })
            .collect();
        paths.sort_by_key(Path::rank);
        paths
    }

    /// The disk of the node below a mapping of this name, else the one at the path.
    fn local(&self, path: &str, mapping: &str) -> Option<&SimDevice> {
        let mut mappings = self.kernel.mappings.iter().map(|m| &m.mapping);
        let below = mappings
            .find(|m| m.name == mapping && m.uuid.starts_with(names::DM_UUID_PREFIX))
            .and_then(|m| m.deps.first());
        let mut locals = self.kernel.devices.iter().filter(|d| d.sid == 0);
        below
            .and_then(|dev| locals.clone().find(|d| d.dev == *dev))
            .or_else(|| locals.find(|d| d.path == path))
    }

    fn shown(&self, d: &SimDevice) -> Device {
        let mut holders = self.holders(&d.dev);
        if d.sid == 0 && d.in_use {
            holders.push("a mount at /mnt".to_owned());
        }
        Device {
            id: self.id(d),
            state: d.state.clone(),
            holders,
            access: self.access_shown(d),
        }
    }

    fn id(&self, device: &SimDevice) -> DeviceId {
        DeviceId {
            path: device.path.clone(),
            dev: device.dev.clone(),
            kind: match (&device.file, device.sid) {
                (Some(_), _) => RawKind::Loop {
                    file_system: 1,
                    inode: device.disk as u64,
                },
                (None, 0) => RawKind::Local,
                (None, sid) => RawKind::Lun {
                    hctl: format!("{sid}:0:0:{}", device.lun),
                },
            },
            wwid: device.wwid.clone(),
            size_bytes: device.size,
        }
    }

    pub(super) fn holders(&self, dev: &str) -> Vec<String> {
        let maps = self.kernel.maps.iter();
        let maps = maps
            .filter(|m| m.members.iter().any(|member| member.dev == dev))
            .map(|m| &m.path);
        self.kernel
            .mappings
            .iter()
            .filter(|m| m.mapping.deps.iter().any(|d| d == dev))
            .map(|m| &m.mapping.path)
            .chain(maps)
            .map(|path| path.trim_start_matches("/dev/").to_owned())
            .collect()
    }

    pub(super) fn found(&self, disk: usize) -> Result<HeaderFound, StepError> {
        let disk = &self.disks[disk];
        if disk.unreadable {
            return error(Reason::DeviceUnreadable, "input/output error");
        }
        if disk.zeros {
            return Ok(HeaderFound::Blank);
        }
        Ok(match &disk.content {
            Content::Blank => HeaderFound::Blank,
            Content::Garbage => HeaderFound::Unknown,
            Content::Foreign(what) => HeaderFound::Foreign(what.clone()),
            Content::Luks(h) => HeaderFound::Luks(Box::new(Header {
                facts: h.facts.clone(),
                key_slots: u32::try_from(h.slots.len()).unwrap(),
                unlock_memory_kib: h.unlock_memory_kib,
                derivations: h.derivations.clone(),
                objections: h.objections.clone(),
            })),
        })
    }

    /// A step that is cut in its middle.
    pub fn tear(&mut self, step: &TornStep, torn: Torn) {
        match step {
            TornStep::Format(id, order) => {
                let Ok(disk) = self.formattable(id, order) else {
                    return;
                };
                if self.opens(disk, order) {
                    return;
                }
                let mut header = SimHeader::to(order);
                header.slots.clear();
                self.disks[disk].formats += 1;
                write(
                    &mut self.disks[disk],
                    match torn {
                        Torn::Early => Content::Garbage,
                        Torn::Slot => {
                            header.slots.push(UNWRITTEN.to_owned());
                            Content::Luks(header)
                        }
                        Torn::Late => Content::Luks(header),
                    },
                );
            }
            TornStep::Open(id, order) => {
                if let (Ok(disk), Torn::Early) = (self.check(id), torn)
                    && !self
                        .kernel
                        .mappings
                        .iter()
                        .any(|m| m.mapping.name == order.mapping_name)
                {
                    let mut mapping = self.new_mapping(id, order);
                    mapping.table = None;
                    mapping.deps.clear();
                    self.kernel.mappings.push(SimMapping { mapping, disk });
                }
            }
            TornStep::Gather(order) => {
                match self.kernel.maps.iter_mut().find(|m| m.uuid == order.uuid) {
                    None if order.paths.is_empty() => {}
                    None => self.new_map(order),
                    Some(map) => map.suspended = torn != Torn::Early,
                }
            }
            // The file is longer, and its loop device was not told yet.
            TornStep::Lengthen(file) => {
                if let Some(size) = self.files.get_mut(&file.path).and_then(|f| f.size.as_mut())
                    && torn != Torn::Early
                {
                    *size = file.size_bytes.max(*size);
                }
            }
            TornStep::Suspend(name, uuid) => {
                if let Ok(m) = self.mapping_of(name, uuid) {
                    m.suspended = torn != Torn::Early;
                }
            }
            TornStep::DropSlots(id, order) => {
                // The areas are noise, and the header still names them.
                let Ok(header) = self.pinned(id, &order.expected) else {
                    return;
                };
                for slot in &mut header.slots {
                    let name = fingerprint(slot);
                    if order.former.iter().any(|f| f.fingerprint == name) && torn != Torn::Early {
                        *slot = format!("{WIPED}{name}");
                    }
                }
            }
            TornStep::Restore(id, order) => {
                let Ok(Some(disk)) = self.restorable(id, order) else {
                    return;
                };
                let content = match torn {
                    Torn::Early => Content::Garbage,
                    Torn::Slot | Torn::Late => Content::Luks(restored(order, UNWRITTEN)),
                };
                write(&mut self.disks[disk], content);
            }
            TornStep::Erase(id, uuid) => {
                let Ok(disk) = self.check(id) else { return };
                if let Content::Luks(h) = &self.disks[disk].content
                    && h.facts.luks_uuid == *uuid
                {
                    let mut header = h.clone();
                    let keep = if torn == Torn::Early {
                        header.slots.len() / 2
                    } else {
                        0
                    };
                    header.slots.truncate(keep);
                    write(&mut self.disks[disk], Content::Luks(header));
                }
            }
            TornStep::ClearHeader(id, uuid) => {
                let Ok(disk) = self.check(id) else { return };
                if matches!(&self.disks[disk].content, Content::Luks(h) if h.facts.luks_uuid == *uuid)
                    && torn != Torn::Early
                {
                    write(&mut self.disks[disk], Content::Garbage);
                }
            }
        }
    }

    /// Whether the disk carries a header that the order's passphrase opens: such a one is kept.
    fn opens(&self, disk: usize, order: &FormatOrder) -> bool {
        matches!(&self.disks[disk].content, Content::Luks(h) if h.slots.contains(&order.passphrase.0))
    }

    fn formattable(&self, id: &DeviceId, order: &FormatOrder) -> Result<usize, StepError> {
        let disk = self.check(id)?;
        if !self.holders(&id.dev).is_empty() {
            return error(Reason::DeviceBusy, "device is in use");
        }
        match self.found(disk)? {
            HeaderFound::Blank => Ok(disk),
            HeaderFound::Luks(h)
                if h.facts.luks_uuid == order.luks_uuid
                    && (order.over_torn || self.opens(disk, order)) =>
            {
                Ok(disk)
            }
            HeaderFound::Luks(_) | HeaderFound::Foreign(_) => {
                error(Reason::ForeignSignature, "the disk carries something")
            }
            HeaderFound::Unknown => error(Reason::DeviceNotBlank, "the disk is not blank"),
        }
    }

    /// The disk whose header may be written anew; nothing where its header opens.
    fn restorable(&self, id: &DeviceId, order: &RestoreOrder) -> Result<Option<usize>, StepError> {
        let disk = self.check(id)?;
        if !self.holders(&id.dev).is_empty() {
            return error(Reason::DeviceBusy, "device is in use");
        }
        let right = order.backup.header == order.expected
            && order.backup.sealed == fingerprint(&order.passphrase.0);
        match (self.found(disk)?, &self.disks[disk].content) {
            (HeaderFound::Luks(h), _) if h.facts.luks_uuid != order.expected.luks_uuid => {
                error(Reason::ForeignSignature, "another header")
            }
            (HeaderFound::Luks(h), _) if h.facts != order.expected => {
                error(Reason::HeaderMismatch, "a header with other facts")
            }
            (HeaderFound::Luks(_), Content::Luks(h)) if h.slots.contains(&order.passphrase.0) => {
                Ok(None)
            }
            _ if !right => error(Reason::HeaderBackupInvalid, "another backup"),
            _ => Ok(Some(disk)),
        }
    }

    /// The header on a disk, where it is as it was pinned.
    fn pinned(
        &mut self,
        id: &DeviceId,
        expected: &HeaderFacts,
    ) -> Result<&mut SimHeader, StepError> {
        let disk = self.check(id)?;
        self.found(disk)?;
        match &mut self.disks[disk].content {
            Content::Luks(h) if as_pinned(&h.facts, expected) && h.objections.is_empty() => Ok(h),
            _ => error(Reason::HeaderMismatch, "the header is another one"),
        }
    }

    /// The header is as it was pinned and the passphrase opens it; without a header every passphrase does.
    fn unlocks(&self, disk: usize, order: &OpenOrder) -> Result<(), StepError> {
        if order.random && order.passphrase.is_some() {
            return error(Reason::StepFailed, "a passphrase for a random key");
        }
        if order.random {
            return match self.found(disk)? {
                HeaderFound::Unknown if order.blank => {
                    error(Reason::DeviceNotBlank, "the disk is not blank any more")
                }
                HeaderFound::Blank | HeaderFound::Unknown => Ok(()),
                _ => error(Reason::ForeignSignature, "the disk carries something"),
            };
        }
        if order.expected.is_detached() {
            return self.unlocks_apart(disk, order);
        }
        if !order.expected.provider.has_header() {
            return match order.blank && self.found(disk)? != HeaderFound::Blank {
                true => error(Reason::DeviceNotBlank, "the disk is not blank any more"),
                false => Ok(()),
            };
        }
        match self.found(disk)? {
            HeaderFound::Luks(h)
                if as_pinned(&h.facts, &order.expected)
                    && h.objections.is_empty()
                    && h.strange_derivation(&order.derivations).is_none() => {}
            _ => return error(Reason::HeaderMismatch, "the header is another one"),
        }
        match &self.disks[disk].content {
            Content::Luks(header) if header.unlock_memory_kib > order.unlock_memory_kib => error(
                Reason::HeaderMismatch,
                "the header asks for more memory now",
            ),
            Content::Luks(header)
                if order
                    .passphrase
                    .as_ref()
                    .is_some_and(|p| header.slots.contains(&p.0)) =>
            {
                Ok(())
            }
            Content::Luks(_) => error(Reason::KeyDoesNotOpen, "no key slot opens"),
            _ => error(Reason::HeaderMismatch, "no header"),
        }
    }

    /// The mapping of this name, where it has this UUID.
    fn mapping_of(&mut self, name: &str, uuid: &str) -> Result<&mut Mapping, StepError> {
        let mut all = self.kernel.mappings.iter_mut().map(|m| &mut m.mapping);
        match all.find(|m| m.name == name) {
            Some(m) if m.uuid == uuid => Ok(m),
            Some(_) => error(Reason::NotOurs, "another mapping of that name"),
            None => error(Reason::StepFailed, "it is gone"),
        }
    }

    fn new_mapping(&self, id: &DeviceId, order: &OpenOrder) -> Mapping {
        let minor = self.free_minor();
        let facts = &order.expected;
        let offset = u64::try_from(facts.data_offset).unwrap();
        Mapping {
            name: order.mapping_name.clone(),
            uuid: order.mapping_uuid.clone(),
            path: format!("/dev/dm-{minor}"),
            dev: format!("253:{minor}"),
            deps: vec![id.dev.clone()],
            table: Some(CryptTable {
                target_type: CryptTable::target_of(facts.provider).to_owned(),
                cipher: facts.cipher.clone(),
                key_in_keyring: facts.provider.encrypts(),
                dev: id.dev.clone(),
                data_offset: offset,
                sector_size: u32::try_from(facts.sector_size).unwrap(),
                options: order
                    .activation
                    .options()
                    .into_iter()
                    .map(str::to_owned)
                    .collect(),
                integrity: facts.integrity.as_ref().map(|i| i.kind),
            }),
            suspended: false,
            open_count: 0,
            size_bytes: facts.data_bytes(id.size_bytes),
        }
    }
}

/// A step that can be cut in its middle.
#[derive(Clone, Debug)]
pub enum TornStep {
    /// See `Host::format`.
    Format(DeviceId, FormatOrder),
    /// See `Host::open`.
    Open(DeviceId, OpenOrder),
    /// See `Host::erase`.
    Erase(DeviceId, String),
    /// See `Host::clear_header`.
    ClearHeader(DeviceId, String),
    /// See `Host::gather`.
    Gather(MapOrder),
    /// See `Host::lengthen_file`.
    Lengthen(BackingFile),
    /// See `Host::suspend`.
    Suspend(String, String),
    /// See `Host::drop_key_slots`.
    DropSlots(DeviceId, DropSlotsOrder),
    /// See `Host::restore_header`.
    Restore(DeviceId, RestoreOrder),
}

fn restored(order: &RestoreOrder, passphrase: &str) -> SimHeader {
    let mut header = SimHeader::new(&order.expected.luks_uuid, passphrase);
    header.facts = order.backup.header.clone();
    header
}

/// The room of authenticated sectors may be more than what is on record.
fn as_pinned(found: &HeaderFacts, expected: &HeaderFacts) -> bool {
    let room = |f: &HeaderFacts| f.integrity.as_ref().map_or(0, |i| i.data_bytes);
    let mut same = found.clone();
    if let (Some(s), Some(e)) = (&mut same.integrity, &expected.integrity) {
        s.data_bytes = e.data_bytes;
    }
    same == *expected && room(found) >= room(expected)
}

fn write(disk: &mut Disk, content: Content) {
    disk.content = content;
    disk.written += 16 << 20;
}
