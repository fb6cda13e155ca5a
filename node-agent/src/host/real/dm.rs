//! Crypt mappings by device-mapper ioctl: the volume key goes through the kernel keyring, nobody waits for udev, and what
//! was made is compared with what was asked before anything leads to it.

use std::{io, thread, time::Duration};

use cryptvol_crds::{
    conditions::Reason,
    names::{self, DM_UUID_PREFIX},
    v1alpha1::{Activation, HeaderFacts},
};
use devicemapper::{
    DM, DevId, Device, DeviceInfo, DmError, DmFlags, DmName, DmOptions, DmUdevFlags, DmUuid,
};
use nix::libc;
use zeroize::Zeroize;

use super::{
    error::{because, failed, no_module},
    luks::VolumeKey,
    openers,
    sys::{self, DmCommand, LogonKey},
    sysfs,
};
use crate::host::{CryptTable, Mapping, StepError};

mod table;

use table::authenticated;
pub(crate) use table::crypt_table;

/// What a module of the kernel is missed for.
const AUTHENTICATED: &str = "authenticated sectors";
/// How long a remove waits for somebody who only looks (udev, a monitoring tool) to close the device.
const BUSY_WAIT: Duration = Duration::from_millis(500);
const BUSY_STEP: Duration = Duration::from_millis(5);
/// Since which version of the kernel's crypt target it knows an option (Linux 5.9 and 6.10); older ones are as old as all
/// kernels that are supported.
const OPTION_VERSIONS: [(&str, (u32, u32)); 3] = [
    ("no_read_workqueue", (1, 22)),
    ("no_write_workqueue", (1, 22)),
    ("high_priority", (1, 26)),
];

/// Everything that a mapping is made from, but the key.
#[derive(Clone, Debug)]
pub struct Plan<'a> {
    /// Device-mapper name.
    pub name: &'a str,
    /// Device-mapper UUID.
    pub uuid: &'a str,
    /// Raw device as major:minor.
    pub dev: &'a str,
    /// Size of the raw device in bytes.
    pub size_bytes: u64,
    /// Cipher, sector and offset.
    pub facts: &'a HeaderFacts,
    /// Options that are policy and not a fact of the disk.
    pub activation: Activation,
}

impl Plan<'_> {
    /// Where data begins, in units of 512 bytes.
    fn offset(&self) -> u64 {
        self.facts.data_offset as u64 / 512
    }

    /// Length of the mapping in units of 512 bytes: whole encryption sectors only.
    pub(super) fn length(&self) -> u64 {
        self.facts.data_bytes(self.size_bytes) / 512
    }

    /// The table to load: one target over the whole length, on the raw device or on the layer of tags above it, which has the number
    /// `tags`.
    pub(super) fn table(&self, tags: Option<&str>) -> [(u64, u64, String, String); 1] {
        let params = match self.facts.provider.encrypts() {
            true => self.params(&self.key_reference(), tags),
            false => format!("{} {}", self.dev, self.offset()),
        };
        [(
            0,
            self.length(),
            CryptTable::target_of(self.facts.provider).to_owned(),
            params,
        )]
    }

    /// Puts the key where the kernel takes it from when a table is loaded: this thread's keyring, so that it is gone with the
    /// thread whatever happens; dm-crypt takes a copy.
    pub(super) fn lend(
        &self,
        key: Option<&VolumeKey>,
        step: &str,
    ) -> Result<Option<LogonKey>, StepError> {
        key.map(|key| LogonKey::add(&self.key_description(), key.bytes()))
            .transpose()
            .map_err(|e| {
                let what = format!("{step} mapping {}", self.name);
                failed(format!("{what}: adding the key to the kernel keyring"), e)
            })
    }

    /// Parameters of the crypt target, as cryptsetup writes them for the same header, but for the key's description.
    fn params(&self, key: &str, tags: Option<&str>) -> String {
        let integrity = self.facts.integrity.as_ref().map(|i| i.kind);
        let mut params = match (integrity, tags) {
            (Some(kind), Some(tags)) => {
                let cipher = authenticated(&self.facts.cipher, kind);
                format!("{cipher} {key} 0 {tags} 0")
            }
            _ => format!(
                "{} {key} 0 {} {}",
                self.facts.cipher,
                self.dev,
                self.offset()
            ),
        };
        let mut options: Vec<_> = self
            .activation
            .options()
            .iter()
            .map(|o| (*o).into())
            .collect();
        if let Some(kind) = integrity {
            options.push(format!("integrity:{}:aead", kind.tag_bytes()));
        }
        if self.facts.sector_size != 512 {
            // LUKS2 counts IVs in units of 512 bytes whatever the sector size is: no iv_large_sectors.
            options.push(format!("sector_size:{}", self.facts.sector_size));
        }
        if !options.is_empty() {
            params.push_str(&format!(" {} {}", options.len(), options.join(" ")));
        }
        params
    }

    /// Reference to the key by description, with the key's size in bytes.
    pub(super) fn key_reference(&self) -> String {
        format!(
            ":{}:logon:{}",
            self.facts.volume_key_bytes(),
            self.key_description()
        )
    }

    pub(super) fn key_description(&self) -> String {
        format!("cryptvol:{}", self.facts.luks_uuid)
    }

    /// Whether a mapping is live and exactly this.
    pub fn is(&self, mapping: &Mapping) -> bool {
        self.is_over_the_same(mapping)
            && !mapping.suspended
            && mapping.size_bytes == self.length() * 512
            && self.has_its_key(mapping)
    }

    /// Whether the kernel has the key, where there is one.
    pub(super) fn has_its_key(&self, mapping: &Mapping) -> bool {
        let table = mapping.table.as_ref();
        table.is_some_and(|t| t.key_in_keyring == self.facts.provider.encrypts())
    }

    /// Whether a mapping is this one, of whatever length, with its key or without.
    pub(super) fn is_over_the_same(&self, mapping: &Mapping) -> bool {
        mapping.name == self.name
            && mapping.uuid == self.uuid
            && mapping.deps == [self.dev]
            && mapping.table.as_ref().is_some_and(|t| {
                t.target_type == CryptTable::target_of(self.facts.provider)
                    && t.cipher == self.facts.cipher
                    && t.dev == self.dev
                    && t.data_offset == self.facts.data_offset as u64
                    && i64::from(t.sector_size) == i64::from(self.facts.sector_size)
                    && t.integrity == self.facts.integrity.as_ref().map(|i| i.kind)
                    && (!self.facts.provider.encrypts()
                        || same_options(&t.options, &self.activation))
            })
    }
}

/// Kernels differ in the order in which they show options.
fn same_options(shown: &[String], activation: &Activation) -> bool {
    let wanted = activation.options();
    shown.len() == wanted.len() && wanted.iter().all(|o| shown.iter().any(|s| s == o))
}

/// Why a table was not taken, where one of its options explains it. Asked once the kernel has loaded dm-crypt for it.
fn too_old(dm: &DM, activation: &Activation) -> Option<StepError> {
    let versions = dm.list_versions().ok()?;
    let (_, major, minor, _) = versions.into_iter().find(|v| v.0 == "crypt")?;
    let unknown = OPTION_VERSIONS
        .iter()
        .find(|(option, since)| activation.options().contains(option) && (major, minor) < *since)?;
    Some(because(
        Reason::ActivationUnsupported,
        format!(
            "the node's dm-crypt is of version {major}.{minor} and knows {} only since {}.{}",
            unknown.0, unknown.1.0, unknown.1.1
        ),
    ))
}

/// The mapping with this name; nothing where there is none or no device-mapper.
///
/// # Errors
/// `StepFailed` when device-mapper cannot be read.
pub fn observe(name: &str) -> Result<Option<Mapping>, StepError> {
    match context()? {
        Some(dm) => describe(&dm, name),
        None => Ok(None),
    }
}

/// The table of a mapping that is in everything as it was seen, but for the number of those who have it open.
///
/// # Errors
/// `StepFailed` when it is another by now, or device-mapper cannot be read.
pub fn unchanged(seen: &Mapping, what: impl Fn() -> String) -> Result<CryptTable, StepError> {
    let now = observe(&seen.name)?;
    if let Some(found) = &now
        && let Some(table) = &found.table
        && *found
            == (Mapping {
                open_count: found.open_count,
                ..seen.clone()
            })
    {
        return Ok(table.clone());
    }
    Err(failed(
        what(),
        format!("the mapping is not what it was: {now:?}"),
    ))
}

/// All mappings that are ours.
///
/// # Errors
/// `StepFailed` when device-mapper cannot be read.
pub fn ours() -> Result<Vec<Mapping>, StepError> {
    let Some(dm) = context()? else {
        return Ok(Vec::new());
    };
    let all = dm
        .list_devices()
        .map_err(|e| failed("listing mappings", e))?;
    let mut mappings = Vec::new();
    for (name, _, _) in all {
        let Ok(name) = std::str::from_utf8(name.as_bytes()) else {
            continue;
        };
        // A layer of tags belongs to the mapping above it, or, where there is none, is what is left of one.
        let of_tags = name.strip_suffix("-tags");
        let has_mapping = of_tags.is_some_and(|name| {
            let name = DmName::new(name).map(DevId::Name);
            name.is_ok_and(|id| dm.device_info(&id).is_ok())
        });
        if has_mapping {
            continue;
        }
        let found = describe(&dm, of_tags.unwrap_or(name))?;
        mappings.extend(found.filter(|m| m.uuid.starts_with(DM_UUID_PREFIX)));
    }
    Ok(mappings)
}

/// The mapping, where it is there as it should be. What is left of one that was cut off while being made is removed.
///
/// # Errors
/// `NotOurs` when the name is taken, `StepFailed` when the mapping is another than it should be.
pub fn existing(plan: &Plan<'_>) -> Result<Option<Mapping>, StepError> {
    let Some(dm) = context()? else {
        return Ok(None);
    };
    match describe(&dm, plan.name)? {
        None => Ok(None),
        Some(found) if found.uuid != plan.uuid => Err(taken(&found)),
        Some(found) if plan.is(&found) => Ok(Some(found)),
        // Without a table nobody can have it open.
        Some(found) if found.table.is_none() => remove_all(&dm, plan.uuid).map(|()| None),
        Some(found) => Err(failed(
            format!("mapping {} is there", plan.name),
            format!("but is not what it should be: {found:?}"),
        )),
    }
}

/// Makes the mapping and checks it. A step that fails takes away what it made.
///
/// # Errors
/// `NotOurs` when the name is taken, `StepFailed`.
pub fn create(plan: &Plan<'_>, key: Option<&VolumeKey>) -> Result<Mapping, StepError> {
    let Some(dm) = context()? else {
        return Err(failed(
            "making the mapping",
            "no device-mapper on this node",
        ));
    };
    if let Some(found) = existing(plan)? {
        return Ok(found);
    }
    match fill(&dm, plan, key) {
        Ok(mapping) => Ok(mapping),
        Err(e) => {
            if let Err(undo) = remove_all(&dm, plan.uuid) {
                tracing::warn!(mapping = plan.name, error = %undo, "half-made mapping stays");
            }
            Err(e)
        }
    }
}

/// Has the kernel begin a layer of tags on a device that has none yet: its superblock and an empty journal. Nothing of it stays in
/// the kernel.
///
/// # Errors
/// `NotOurs` when the name is taken, `KernelModuleMissing`, `StepFailed`.
pub fn begin_tags(plan: &Plan<'_>) -> Result<(), StepError> {
    let Some(dm) = context()? else {
        return Err(failed(
            "beginning the tags",
            "no device-mapper on this node",
        ));
    };
    if let Some(found) = existing(plan)? {
        return Err(failed(
            format!("mapping {} is there", plan.name),
            format!("and its disk has no header yet: {found:?}"),
        ));
    }
    // As short as it can be: how long it can be the kernel says afterwards.
    let begun = load_tags(&dm, plan, 8);
    remove_all(&dm, plan.uuid).and(begun).map(drop)
}

/// Makes the layer of tags, and gives its number.
fn load_tags(dm: &DM, plan: &Plan<'_>, length: u64) -> Result<String, StepError> {
    let (name, uuid) = (names::tags_name(plan.name), names::tags_uuid(plan.uuid));
    let what = |step: &str| format!("{step} the layer of tags {name}");
    let tag = plan
        .facts
        .integrity
        .as_ref()
        .map_or(0, |i| i.kind.tag_bytes());
    let id = DmUuid::new(&uuid).map_err(|e| failed("mapping UUID", e))?;
    dm.device_create(
        DmName::new(&name).map_err(|e| failed("mapping name", e))?,
        Some(id),
        DmOptions::default(),
    )
    .map_err(|e| failed(what("creating"), e))?;
    let mut options = vec!["fix_padding".to_owned()];
    if plan.facts.sector_size != 512 {
        options.push(format!("block_size:{}", plan.facts.sector_size));
    }
    // With the journal: a sector and its tag are written both or neither, whatever dies between the two.
    let params = format!(
        "{} {} {tag} J {} {}",
        plan.dev,
        plan.offset(),
        options.len(),
        options.join(" ")
    );
    let table = [(0, length, "integrity".to_owned(), params)];
    let id = DevId::Uuid(id);
    dm.table_load(&id, &table, DmOptions::default())
        .map_err(|e| match has_target(dm, "integrity") {
            true => failed(what("loading the table of"), e),
            false => no_module(AUTHENTICATED, "dm_integrity"),
        })?;
    sys::dm_command(dm.file(), DmCommand::Resume, &uuid, udev_flags())
        .map_err(|e| failed(what("resuming"), e))?;
    let info = dm
        .device_info(&id)
        .map_err(|e| failed(what("reading"), e))?;
    Ok(number(info.device()))
}

/// Whether the kernel has a target now. Asked once it had reason to load its module.
pub(super) fn has_target(dm: &DM, target: &str) -> bool {
    dm.list_versions()
        .is_ok_and(|all| all.iter().any(|v| v.0 == target))
}

fn fill(dm: &DM, plan: &Plan<'_>, key: Option<&VolumeKey>) -> Result<Mapping, StepError> {
    let what = |step: &str| format!("{step} mapping {}", plan.name);
    let tags = match plan.facts.integrity {
        Some(_) => Some(load_tags(dm, plan, plan.length())?),
        None => None,
    };
    let name = DmName::new(plan.name).map_err(|e| failed("mapping name", e))?;
    let id = DmUuid::new(plan.uuid).map_err(|e| failed("mapping UUID", e))?;
    dm.device_create(name, Some(id), DmOptions::default())
        .map_err(|e| failed(what("creating"), e))?;
    let uuid = DmUuid::new(plan.uuid).map_err(|e| failed("mapping UUID", e))?;
    {
        let _key = plan.lend(key, "making")?;
        dm.table_load(
            &DevId::Uuid(uuid),
            &plan.table(tags.as_deref()),
            DmOptions::default().set_flags(DmFlags::DM_SECURE_DATA),
        )
        .map_err(|e| match errno(&e) {
            // Of the cipher's parts only this is wanted by nobody else.
            Some(libc::ENOENT) if tags.is_some() => no_module(AUTHENTICATED, "authenc"),
            _ => too_old(dm, &plan.activation)
                .unwrap_or_else(|| failed(what("loading the table of"), e)),
        })?;
    }
    sys::dm_command(dm.file(), DmCommand::Resume, plan.uuid, udev_flags())
        .map_err(|e| failed(what("resuming"), e))?;
    let made = describe(dm, plan.name)?
        .ok_or_else(|| failed(what("checking"), "it is not there any more"))?;
    if !plan.is(&made) {
        return Err(failed(what("checking"), format!("it is {made:?}")));
    }
    Ok(made)
}

/// Rules for the guest's data: udev makes `/dev/mapper/<name>` and nothing else. It does not look into the device, makes no
/// links by label or UUID that a guest could choose, and hands it to no LVM, RAID or file system on the node.
pub(super) fn udev_flags() -> u16 {
    let flags = DmUdevFlags::DM_UDEV_DISABLE_SUBSYSTEM_RULES_FLAG
        | DmUdevFlags::DM_UDEV_DISABLE_DISK_RULES_FLAG
        | DmUdevFlags::DM_UDEV_DISABLE_OTHER_RULES_FLAG
        | DmUdevFlags::DM_UDEV_PRIMARY_SOURCE_FLAG;
    flags.bits() as u16
}

/// Removes the mapping with this name and UUID. Absent is success.
///
/// # Errors
/// `NotOurs`, `DeviceBusy`, `StepFailed`.
pub fn close(name: &str, uuid: &str) -> Result<(), StepError> {
    let Some(dm) = context()? else {
        return Ok(());
    };
    match describe(&dm, name)? {
        None => Ok(()),
        Some(found) if found.uuid != uuid || !uuid.starts_with(DM_UUID_PREFIX) => {
            Err(taken(&found))
        }
        Some(_) => remove_all(&dm, uuid),
    }
}

/// Removes a mapping and, of authenticated sectors, the layer of tags below it.
fn remove_all(dm: &DM, uuid: &str) -> Result<(), StepError> {
    remove(dm, uuid)?;
    remove(dm, &names::tags_uuid(uuid))
}

pub(super) fn remove(dm: &DM, uuid: &str) -> Result<(), StepError> {
    let mut waited = Duration::ZERO;
    loop {
        let busy = match sys::dm_command(dm.file(), DmCommand::Remove, uuid, 0) {
            Ok(()) => return Ok(()),
            Err(e) => e,
        };
        match busy.raw_os_error() {
            Some(libc::ENXIO) => return Ok(()),
            Some(libc::EBUSY) if waited < BUSY_WAIT => {
                thread::sleep(BUSY_STEP);
                waited += BUSY_STEP;
            }
            Some(libc::EBUSY) => return Err(because(Reason::DeviceBusy, users(dm, uuid))),
            _ => return Err(failed(format!("removing mapping {uuid}"), busy)),
        }
    }
}

/// Who has the mapping open, as far as the kernel tells.
fn users(dm: &DM, uuid: &str) -> String {
    let info = DmUuid::new(uuid)
        .ok()
        .and_then(|u| dm.device_info(&DevId::Uuid(u)).ok());
    let Some(info) = info else {
        return format!("mapping {uuid} is busy");
    };
    let node = format!("dm-{}", info.device().minor);
    let holders = stacked(format!("/sys/block/{node}/holders").as_ref());
    let device = info.device();
    let openers = openers::of_number(format!("{}:{}", device.major, device.minor));
    let mut text = format!("/dev/{node} is open {} times", info.open_count());
    for (who, list) in [("stacked on it", holders), ("opened by", openers)] {
        if !list.is_empty() {
            text.push_str(&format!("; {who}: {}", list.join(", ")));
        }
    }
    text
}

/// What is stacked on a device, by its directory of holders: `dm-3 (name)`, for a person knows the name.
fn stacked(holders: &std::path::Path) -> Vec<String> {
    let named = |holder: String| {
        let name = sysfs::attribute(&holders.join(&holder).join("dm/name"));
        match name.ok().flatten() {
            Some(name) => format!("{holder} ({name})"),
            None => holder,
        }
    };
    let all = sysfs::names(holders);
    all.map(|all| all.map(named).collect()).unwrap_or_default()
}

pub(super) fn taken(found: &Mapping) -> StepError {
    because(
        Reason::NotOurs,
        format!(
            "a mapping named {} with UUID {:?} is there",
            found.name, found.uuid
        ),
    )
}

/// Device-mapper, where the kernel has it.
pub(super) fn context() -> Result<Option<DM>, StepError> {
    match DM::new() {
        Ok(dm) => Ok(Some(dm)),
        // The control node can be there without a driver behind it; without the driver there is no mapping.
        Err(_) if !std::path::Path::new("/sys/class/misc/device-mapper").exists() => Ok(None),
        Err(e) => Err(failed("opening /dev/mapper/control", e)),
    }
}

/// A mapping with the layer of tags that belongs to it, as one: over the raw device. What is left of one whose upper part is not there
/// (any more) is shown as a mapping without a table.
pub(super) fn describe(dm: &DM, name: &str) -> Result<Option<Mapping>, StepError> {
    let found = describe_alone(dm, name)?;
    let has_tags = |m: &Mapping| m.table.as_ref().is_none_or(|t| t.integrity.is_some());
    if found.as_ref().is_some_and(|m| !has_tags(m)) {
        return Ok(found);
    }
    let tags = describe_alone(dm, &names::tags_name(name))?;
    let (tags, whose) = match tags.map(|t| (names::mapping_of_tags(&t.uuid), t)) {
        Some((Some(whose), tags)) => (tags, whose),
        _ => return Ok(found),
    };
    let Some(mut mapping) = found else {
        return Ok(Some(Mapping {
            name: name.to_owned(),
            uuid: whose,
            table: None,
            ..tags
        }));
    };
    if mapping.table.is_none() && mapping.uuid == whose {
        mapping.deps = tags.deps;
        return Ok(Some(mapping));
    }
    if let (Some(table), Some(below)) = (&mut mapping.table, &tags.table)
        && mapping.uuid == whose
        && mapping.deps == [tags.dev.clone()]
        && table.data_offset == 0
        && table.dev == tags.dev
        && below.target_type == "integrity"
        && below.sector_size == table.sector_size
        && !tags.suspended
    {
        mapping.deps = tags.deps;
        table.dev.clone_from(&below.dev);
        table.data_offset = below.data_offset;
    }
    Ok(Some(mapping))
}

fn describe_alone(dm: &DM, name: &str) -> Result<Option<Mapping>, StepError> {
    let id = DmName::new(name).map_err(|e| failed("mapping name", e))?;
    let id = DevId::Name(id);
    let what = || format!("reading mapping {name}");
    let info = match dm.device_info(&id) {
        Ok(info) => info,
        Err(e) if gone(&e) => return Ok(None),
        Err(e) => return Err(failed(what(), e)),
    };
    let mut mapping = Mapping {
        name: name.to_owned(),
        uuid: info.uuid().map(|u| text(u.as_bytes())).unwrap_or_default(),
        path: format!("/dev/dm-{}", info.device().minor),
        dev: number(info.device()),
        deps: Vec::new(),
        table: None,
        suspended: suspended(&info),
        open_count: u32::try_from(info.open_count()).unwrap_or(0),
        size_bytes: 0,
    };
    if !info.flags().contains(DmFlags::DM_ACTIVE_PRESENT) {
        return Ok(Some(mapping));
    }
    let read = dm.table_deps(&id, DmOptions::default()).and_then(|deps| {
        let options = DmOptions::default().set_flags(DmFlags::DM_STATUS_TABLE);
        Ok((deps, dm.table_status(&id, options)?.1))
    });
    let (deps, mut table) = match read {
        Ok(read) => read,
        Err(e) if gone(&e) => return Ok(None),
        Err(e) => return Err(failed(what(), e)),
    };
    mapping.deps = deps.into_iter().map(number).collect();
    mapping.size_bytes = table.iter().map(|(_, length, _, _)| length * 512).sum();
    mapping.table = Some(match &table[..] {
        [(_, _, target, params)] => crypt_table(target, params),
        several => CryptTable {
            target_type: format!("{} targets", several.len()),
            cipher: String::new(),
            key_in_keyring: false,
            dev: String::new(),
            data_offset: 0,
            sector_size: 512,
            options: Vec::new(),
            integrity: None,
        },
    });
    // A mapping that somebody made without the keyring shows its key here.
    for (_, _, _, params) in &mut table {
        params.zeroize();
    }
    Ok(Some(mapping))
}

fn suspended(info: &DeviceInfo) -> bool {
    info.flags().contains(DmFlags::DM_SUSPEND)
}

fn number(device: Device) -> String {
    format!("{}:{}", device.major, device.minor)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Whether an error says that there is no such mapping.
pub(super) fn gone(error: &DmError) -> bool {
    errno(error) == Some(libc::ENXIO)
}

/// What the kernel answered, where it was asked.
fn errno(error: &DmError) -> Option<i32> {
    match error {
        DmError::Core(devicemapper::errors::Error::Ioctl(_, _, _, errno)) => {
            io::Error::from(**errno).raw_os_error()
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests;
