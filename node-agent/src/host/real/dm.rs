//! Crypt mappings by device-mapper ioctl: the volume key goes through the kernel keyring, nobody waits for udev, and what
//! was made is compared with what was asked before anything leads to it.

use std::{io, thread, time::Duration};

use cryptvol_crds::{
    conditions::Reason,
    names::DM_UUID_PREFIX,
    v1alpha1::{Activation, HeaderFacts},
};
use devicemapper::{
    DM, DevId, Device, DeviceInfo, DmError, DmFlags, DmName, DmOptions, DmUdevFlags, DmUuid,
};
use nix::libc;
use zeroize::Zeroize;

use super::{
    error::{because, failed},
    luks::VolumeKey,
    sys::{self, DmCommand, LogonKey},
    sysfs,
};
use crate::host::{CryptTable, Mapping, StepError};

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
        let sectors = (self.size_bytes / 512).saturating_sub(self.offset());
        let unit = (self.facts.sector_size as u64 / 512).max(1);
        sectors - sectors % unit
    }

    /// The table to load: one target over the whole length.
    pub(super) fn table(&self) -> [(u64, u64, String, String); 1] {
        let params = match self.facts.provider.encrypts() {
            true => self.params(&self.key_reference()),
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
    fn params(&self, key: &str) -> String {
        let mut params = format!(
            "{} {key} 0 {} {}",
            self.facts.cipher,
            self.dev,
            self.offset()
        );
        let mut options: Vec<_> = self
            .activation
            .options()
            .iter()
            .map(|o| (*o).into())
            .collect();
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
            self.facts.key_size / 8,
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
        mappings.extend(describe(&dm, name)?.filter(|m| m.uuid.starts_with(DM_UUID_PREFIX)));
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
        Some(found) if found.table.is_none() => remove(&dm, plan.uuid).map(|()| None),
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
    let name = DmName::new(plan.name).map_err(|e| failed("mapping name", e))?;
    let uuid = DmUuid::new(plan.uuid).map_err(|e| failed("mapping UUID", e))?;
    dm.device_create(name, Some(uuid), DmOptions::default())
        .map_err(|e| failed(format!("creating mapping {}", plan.name), e))?;
    match fill(&dm, plan, key) {
        Ok(mapping) => Ok(mapping),
        Err(e) => {
            if let Err(undo) = remove(&dm, plan.uuid) {
                tracing::warn!(mapping = plan.name, error = %undo, "half-made mapping stays");
            }
            Err(e)
        }
    }
}

fn fill(dm: &DM, plan: &Plan<'_>, key: Option<&VolumeKey>) -> Result<Mapping, StepError> {
    let what = |step: &str| format!("{step} mapping {}", plan.name);
    let uuid = DmUuid::new(plan.uuid).map_err(|e| failed("mapping UUID", e))?;
    {
        let _key = plan.lend(key, "making")?;
        dm.table_load(
            &DevId::Uuid(uuid),
            &plan.table(),
            DmOptions::default().set_flags(DmFlags::DM_SECURE_DATA),
        )
        .map_err(|e| {
            too_old(dm, &plan.activation).unwrap_or_else(|| failed(what("loading the table of"), e))
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
        Some(_) => remove(&dm, uuid),
    }
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
    let holders: Vec<_> = sysfs::names(format!("/sys/block/{node}/holders").as_ref())
        .map(Iterator::collect)
        .unwrap_or_default();
    let openers = openers(&format!("/dev/{node}"));
    let mut text = format!("/dev/{node} is open {} times", info.open_count());
    for (who, list) in [("stacked on it", holders), ("opened by", openers)] {
        if !list.is_empty() {
            text.push_str(&format!("; {who}: {}", list.join(", ")));
        }
    }
    text
}

/// Processes that have a device open, as `name (pid)`; at most a handful. Sees only processes of this PID namespace.
fn openers(path: &str) -> Vec<String> {
    let mut found = Vec::new();
    let pids = sysfs::names("/proc".as_ref()).into_iter().flatten();
    for pid in pids.filter(|n| n.bytes().all(|b| b.is_ascii_digit())) {
        let dir = std::path::Path::new("/proc").join(&pid);
        let has = std::fs::read_dir(dir.join("fd"))
            .into_iter()
            .flatten()
            .flatten()
            .any(|fd| {
                std::fs::read_link(fd.path()).is_ok_and(|to| to == std::path::Path::new(path))
            });
        if has {
            let name = sysfs::attribute(&dir.join("comm")).ok().flatten();
            found.push(format!("{} ({pid})", name.unwrap_or_default()));
        }
        if found.len() == 5 {
            break;
        }
    }
    found
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

pub(super) fn describe(dm: &DM, name: &str) -> Result<Option<Mapping>, StepError> {
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
        },
    });
    // A mapping that somebody made without the keyring shows its key here.
    for (_, _, _, params) in &mut table {
        params.zeroize();
    }
    Ok(Some(mapping))
}

/// Reads a target's parameters: `<cipher> <key> <IV offset> <device> <offset> [<n> <option>…]`, or `<device> <offset>` of a
/// linear one.
pub(crate) fn crypt_table(target: &str, params: &str) -> CryptTable {
    let fields: Vec<_> = params.split(' ').collect();
    let field = |at: usize| fields.get(at).copied().unwrap_or_default();
    let crypt = target == "crypt";
    let (dev, offset) = match target {
        "crypt" => (field(3), field(4)),
        "linear" => (field(0), field(1)),
        _ => ("", ""),
    };
    CryptTable {
        target_type: target.to_owned(),
        cipher: if crypt { field(0) } else { "" }.to_owned(),
        key_in_keyring: crypt && field(1).starts_with(':'),
        dev: dev.to_owned(),
        data_offset: offset.parse::<u64>().unwrap_or(0).saturating_mul(512),
        sector_size: fields
            .iter()
            .skip(5)
            .find_map(|o| o.strip_prefix("sector_size:")?.parse().ok())
            .unwrap_or(512),
        options: fields
            .iter()
            .skip(5)
            .filter(|o| crypt && Activation::OPTIONS.contains(o))
            .take(Activation::OPTIONS.len())
            .map(|o| (*o).to_owned())
            .collect(),
    }
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
    match error {
        DmError::Core(devicemapper::errors::Error::Ioctl(_, _, _, errno)) => {
            io::Error::from(**errno).raw_os_error() == Some(libc::ENXIO)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> HeaderFacts {
        HeaderFacts {
            luks_uuid: "0f6e6f0a-5a7c-4c0e-9a55-0c5a2f0d4e11".into(),
            cipher: "aes-xts-plain64".into(),
            key_size: 512,
            sector_size: 4096,
            data_offset: 16 << 20,
            digest: String::new(),
            ..HeaderFacts::default()
        }
    }

    #[test]
    fn tables_read_as_they_are_written() {
        let facts = facts();
        let plan = Plan {
            name: "cryptvol-x",
            uuid: "CRYPTVOL-x",
            dev: "8:16",
            size_bytes: (64 << 20) + 512,
            facts: &facts,
            activation: Activation::default(),
        };
        assert_eq!(plan.length(), (48 << 20) / 512);
        let params = plan.params(&plan.key_reference());
        assert_eq!(
            params,
            "aes-xts-plain64 :64:logon:cryptvol:0f6e6f0a-5a7c-4c0e-9a55-0c5a2f0d4e11 0 8:16 32768 1 sector_size:4096"
        );
        let mut mapping = Mapping {
            name: "cryptvol-x".into(),
            uuid: "CRYPTVOL-x".into(),
            path: "/dev/dm-0".into(),
            dev: "253:0".into(),
            deps: vec!["8:16".into()],
            table: Some(crypt_table("crypt", &params)),
            suspended: false,
            open_count: 0,
            size_bytes: 48 << 20,
        };
        assert!(plan.is(&mapping));
        let plan = Plan {
            activation: Activation {
                allow_discards: true,
                no_read_workqueue: true,
                high_priority: true,
                ..Activation::default()
            },
            ..plan
        };
        assert!(!plan.is(&mapping));
        let params = plan.params(&plan.key_reference());
        assert!(
            params.ends_with(" 4 allow_discards no_read_workqueue high_priority sector_size:4096"),
            "{params}"
        );
        mapping.table = Some(crypt_table("crypt", &params));
        assert!(plan.is(&mapping));
        mapping.deps = vec!["8:0".into()];
        assert!(!plan.is(&mapping));
        mapping.deps = vec!["8:16".into()];
        mapping.table = Some(crypt_table("crypt", &params.replace(":64:logon", "00ff")));
        assert!(!plan.is(&mapping));
        mapping.table = Some(crypt_table("linear", "8:16 32768"));
        assert!(!plan.is(&mapping));
    }
}
