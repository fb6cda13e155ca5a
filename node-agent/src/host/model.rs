//! Data of `trait Host`: plain, serialisable (it crosses the pipe to the worker), and without secrets in `Debug`.

use cryptvol_crds::{
    conditions::Reason,
    v1alpha1::{
        Activation, Encryption, HeaderBackup, HeaderFacts, Integrity, KeySlotRef, Provider,
    },
};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop};

use super::{access::Access, path_map::PathMap, portal::Portal};

/// Which volume to look for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Query {
    /// Where the volume's raw device comes from.
    pub source: Source,
    /// Device-mapper name of the volume's mapping (`names::mapping_name`).
    pub mapping_name: String,
    /// The map above the paths to the disk; absent where the source has no paths.
    #[serde(default)]
    pub map: Option<MapName>,
    /// Link of the volume.
    pub link: String,
    /// Name of udev's that shall lead to the mapping and never to the raw device, for example
    /// `/dev/disk/by-path/ip-192.0.2.1:3260-iscsi-IQN-lun-1`.
    #[serde(default)]
    pub shadow: Option<String>,
}

/// Which map of dm-multipath is the volume's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapName {
    /// Device-mapper name (`names::paths_name`).
    pub name: String,
    /// Device-mapper UUID (`names::paths_uuid`).
    pub uuid: String,
    /// Whether there shall be one. One that is there although it is not wanted (any more) counts as long as it is in use.
    pub wanted: bool,
}

/// Where a raw device comes from, and so how it is reached and let go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// A logical unit: logged in, scanned, removed, logged out.
    Iscsi(Lun),
    /// A block device that is on the node: it was there before us and stays.
    Device {
        /// Path below `/dev`, resolved anew at each look.
        path: String,
    },
    /// A file through a loop device.
    File(BackingFile),
}

/// A logical unit of a target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lun {
    /// The target.
    pub target: Target,
    /// Logical unit number.
    pub lun: u32,
}

/// A file that stands for a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackingFile {
    /// Path on the node.
    pub path: String,
    /// Size in bytes that it is made with.
    pub size_bytes: u64,
}

impl Source {
    /// What must be had alone while it is reached or let go: the target of a logical unit. Other sources share nothing.
    pub fn shared(&self) -> Option<&str> {
        match self {
            Self::Iscsi(lun) => Some(&lun.target.iqn),
            Self::Device { .. } | Self::File(_) => None,
        }
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Iscsi(Lun { target, lun }) => write!(f, "LUN {lun} of {}", target.iqn),
            Self::Device { path } => f.write_str(path),
            Self::File(file) => write!(f, "the file {}", file.path),
        }
    }
}

/// An iSCSI target and where it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// Portals in the order in which they are tried.
    pub portals: Vec<Portal>,
    /// Name of the target.
    pub iqn: String,
}

impl Target {
    /// Whether a session is through a portal that is named here.
    pub fn names(&self, portal: Option<&Portal>) -> bool {
        portal.is_some_and(|p| self.portals.iter().any(|named| named.is(p)))
    }

    /// Whether one of several is.
    pub fn names_any<'a>(&self, portals: impl IntoIterator<Item = Option<&'a Portal>>) -> bool {
        portals.into_iter().any(|p| self.names(p))
    }
}

/// What the kernel holds for one volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observed {
    /// Ways to the raw device: each session to the target, in the order in which one would be taken (`Path::rank`); of another source
    /// the device alone, where it is there.
    pub paths: Vec<Path>,
    /// The map above the paths.
    #[serde(default)]
    pub map: Option<PathMap>,
    /// Whether there shall be such a map.
    #[serde(default)]
    pub multipath: bool,
    /// Mapping with the volume's name.
    pub mapping: Option<Mapping>,
    /// What the mapping of ours lies over, where that is neither the disk nor the map and the kernel has it.
    #[serde(default)]
    pub elsewhere: Option<Elsewhere>,
    /// What is at the path of the file that stands for the disk.
    #[serde(default)]
    pub file: FileState,
    /// What is at the volume's link path.
    pub link: LinkFound,
    /// Names that the volume shadows.
    #[serde(default)]
    pub names: NamesFound,
}

/// A device that is not known as a way to the volume's disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Elsewhere {
    /// Major and minor number, with what it is.
    pub what: String,
    /// What tells it from all others, where it has that.
    pub wwid: Option<String>,
}

impl Observed {
    /// The path that counts: the one below the mapping, whatever became of its session meanwhile; without one the first in order.
    pub fn path(&self) -> Option<&Path> {
        let below = |path: &&Path| {
            let (mapping, disk) = (self.mapping.as_ref(), path.disk.as_ref());
            mapping
                .zip(disk)
                .is_some_and(|(m, d)| m.deps.contains(&d.id.dev))
        };
        self.paths.iter().find(below).or(self.paths.first())
    }

    /// Session of that path.
    pub fn session(&self) -> Option<&Session> {
        self.path()?.session.as_ref()
    }

    /// The raw device: what is below the mapping; without a mapping the map, where one is wanted, or else the disk of the first path.
    pub fn device(&self) -> Option<&Device> {
        let map = self.map.as_ref().map(|m| &m.device);
        if let (Some(mapping), Some(map)) = (&self.mapping, map)
            && mapping.deps.contains(&map.id.dev)
        {
            return Some(map);
        }
        let disk = self.path()?.disk.as_ref();
        let below = |d: &&Device| {
            let mapping = self.mapping.as_ref();
            mapping.is_some_and(|m| m.deps.contains(&d.id.dev))
        };
        match self.multipath {
            true => disk.filter(below).or(map),
            false => disk,
        }
    }

    /// What the mapping lies over, as major:minor, that is no way to the volume's disk as far as the kernel shows one.
    pub fn strange_deps(&self) -> impl Iterator<Item = &str> {
        let own = |dev: &&str| {
            let mut disks = self.paths.iter().filter_map(|p| p.disk.as_ref());
            let map = self.map.as_ref().map(|m| &m.device);
            disks.any(|d| d.id.dev == *dev) || map.is_some_and(|m| m.id.dev == *dev)
        };
        let deps = self.mapping.iter().flat_map(|m| &m.deps);
        deps.map(String::as_str).filter(move |dev| !own(dev))
    }

    /// The map, where it is the raw device.
    pub fn map_in_use(&self) -> Option<&PathMap> {
        let map = self.map.as_ref()?;
        (self.device()?.id.dev == map.device.id.dev).then_some(map)
    }

    /// Whether commands get to the raw device, as far as the kernel knows: through its session, or through a path of the map.
    pub fn is_reachable(&self) -> bool {
        match self.map_in_use() {
            Some(map) => self.paths.iter().any(|p| p.is_used_by(map)),
            None => self.session().is_some_and(Session::is_up),
        }
    }
}

/// A way to a volume's raw device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Path {
    /// The session; absent where the source is no target.
    pub session: Option<Session>,
    /// Whether the session is through a portal that the volume names.
    pub named: bool,
    /// Raw device at the volume's LUN in this session.
    pub disk: Option<Device>,
}

impl Path {
    /// A device that is there without a session.
    pub fn local(disk: Device) -> Self {
        Self {
            session: None,
            named: true,
            disk: Some(disk),
        }
    }

    /// Whether I/O gets to the disk this way, as far as the kernel knows.
    pub fn works(&self) -> bool {
        self.is_there() && self.disk.as_ref().is_some_and(Device::takes_io)
    }

    /// Whether commands get there, whether or not the array wants I/O sent this way.
    pub fn is_there(&self) -> bool {
        let disk = self.disk.as_ref();
        self.session.as_ref().is_some_and(Session::is_up)
            && disk.is_some_and(|d| d.state == "running" && d.id.size_bytes > 0)
    }

    /// Whether it works and the map sends I/O this way.
    pub fn is_used_by(&self, map: &PathMap) -> bool {
        self.works() && self.disk.as_ref().is_some_and(|d| map.uses(&d.id.dev))
    }

    /// Place in the order in which one is taken: through a named portal, then logged in, then the oldest.
    pub fn rank(&self) -> (bool, bool, u32) {
        let session = self.session.as_ref();
        (
            !self.named,
            session.is_none_or(|s| !s.is_up()),
            session.map_or(0, |s| s.sid),
        )
    }
}

/// What is known of the names that a volume shadows. Each survives as long as the node runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamesFound {
    /// Names that are kept from every raw device for this volume, wanted or not.
    pub kept: Vec<String>,
    /// The wanted name is kept for another volume: the name of its mapping.
    pub kept_for_another: Option<String>,
    /// UUID of the mapping that the wanted name is given to; where none is wanted, the first that is kept.
    pub given: Option<String>,
    /// Kernel path of the device that this name leads to.
    pub leads: Option<String>,
}

/// Whose a name shall be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameOrder {
    /// The name, as in `Query::shadow`.
    pub name: String,
    /// Device-mapper name of the volume's mapping: whom the name is kept for.
    pub mapping_name: String,
    /// Who gets it.
    pub to: NameTo,
}

/// Who gets a name.
#[allow(clippy::large_enum_variant)] // made twice in an attachment
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NameTo {
    /// No device: it leads nowhere.
    Nobody,
    /// The volume's mapping.
    Mapping(Mapping),
    /// Whatever device udev's own rules give it to: the volume does not care for it any more.
    Everybody,
}

/// An iSCSI session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// Kernel's session id.
    pub sid: u32,
    /// State as in sysfs: `LOGGED_IN`, `FAILED`, `FREE`.
    pub state: String,
    /// Portal that it was made through, as far as the kernel knows it.
    pub portal: Option<Portal>,
    /// Whether the kernel has a disk of this session, be it this volume's.
    pub in_use: bool,
}

impl Session {
    /// Whether commands get through, as far as the kernel knows.
    pub fn is_up(&self) -> bool {
        self.state == "LOGGED_IN"
    }
}

/// Identity of a raw device: all of it must still hold when a step acts on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceId {
    /// Kernel path, for example `/dev/sda`.
    pub path: String,
    /// Major and minor number, for example `8:0`.
    pub dev: String,
    /// What it is to the kernel.
    pub kind: RawKind,
    /// What tells it from all others, where there is such a thing: the WWID of a disk, the UUID of a device-mapper device.
    pub wwid: Option<String>,
    /// Size in bytes.
    pub size_bytes: u64,
}

/// What a raw device is to the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RawKind {
    /// A logical unit.
    Lun {
        /// SCSI address `host:channel:target:lun`.
        hctl: String,
    },
    /// A map of dm-multipath above the paths to one disk.
    Paths {
        /// Its device-mapper UUID.
        uuid: String,
    },
    /// A disk, partition or logical volume that is on the node.
    Local,
    /// A loop device.
    Loop {
        /// `st_dev` of the file below it.
        file_system: u64,
        /// Inode of the file below it.
        inode: u64,
    },
}

/// A raw device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// What it is.
    pub id: DeviceId,
    /// State as in sysfs: `running`, `offline`, `transport-offline`, `blocked`.
    pub state: String,
    /// Names of what is stacked on it (sysfs `holders`), for example `dm-0`.
    pub holders: Vec<String>,
    /// What the array says of this path, as far as the kernel has heard; absent where the array makes no difference between paths.
    #[serde(default)]
    pub access: Option<Access>,
}

impl Device {
    /// Whether the array lets I/O be sent this way.
    pub fn takes_io(&self) -> bool {
        self.access.is_none_or(Access::takes_io)
    }
}

/// A device-mapper mapping.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mapping {
    /// Name.
    pub name: String,
    /// UUID; ours begins with `names::DM_UUID_PREFIX`.
    pub uuid: String,
    /// Kernel path, for example `/dev/dm-0`.
    pub path: String,
    /// Major and minor number.
    pub dev: String,
    /// Devices below it, as major:minor.
    pub deps: Vec<String>,
    /// Table, as far as it matters; absent where none is loaded.
    pub table: Option<CryptTable>,
    /// Whether it is suspended.
    pub suspended: bool,
    /// How often it is open.
    pub open_count: u32,
    /// Size in bytes.
    pub size_bytes: u64,
}

impl Mapping {
    /// Whether it has a key that came through the kernel keyring.
    pub fn has_key(&self) -> bool {
        self.table.as_ref().is_some_and(|t| t.key_in_keyring)
    }

    /// Whether it is suspended and its key was wiped.
    pub fn is_closed(&self) -> bool {
        self.suspended && !self.has_key()
    }
}

/// A live table of one target. The key is never read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CryptTable {
    /// Target type; anything but [`CryptTable::target_of`] the volume's provider is not ours.
    pub target_type: String,
    /// Cipher, for example `aes-xts-plain64`.
    pub cipher: String,
    /// Whether the key came through the kernel keyring.
    pub key_in_keyring: bool,
    /// Raw device as major:minor.
    pub dev: String,
    /// Where data begins on the raw device, in bytes.
    pub data_offset: u64,
    /// Encryption sector in bytes.
    pub sector_size: u32,
    /// Options of an activation that are set.
    #[serde(default)]
    pub options: Vec<String>,
    /// How sectors are authenticated. Their tags are kept by a layer of dm-integrity below, which is part of the mapping and not shown
    /// by itself: `dev` and `data_offset` are those of the raw device. A layer without a mapping is a mapping without a table.
    #[serde(default)]
    pub integrity: Option<Integrity>,
}

impl CryptTable {
    /// Target type of a volume with this provider: `linear` where nothing is encrypted.
    pub fn target_of(provider: Provider) -> &'static str {
        match provider.encrypts() {
            true => "crypt",
            false => "linear",
        }
    }
}

/// What is at the path of a file that stands for a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileState {
    /// Nothing.
    #[default]
    Absent,
    /// A regular file.
    Regular {
        /// Its length in bytes.
        size_bytes: u64,
    },
    /// A directory, a link or whatever else is no file of bytes.
    Other,
}

/// What is at a link's path.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum LinkFound {
    /// Nothing.
    #[default]
    Absent,
    /// A symbolic link, with what it leads to.
    To(String),
    /// Something that is no symbolic link.
    NoLink,
}

/// What the beginning of a device holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HeaderFound {
    /// A LUKS2 or LUKS1 header.
    Luks(Box<Header>),
    /// All zeros where a header would be (16 MiB), and no signature anywhere that libblkid knows.
    Blank,
    /// Something else, named, for example `ext4`, `LVM2_member`, `linux_raid_member`.
    Foreign(String),
    /// Not zeros and not known.
    Unknown,
}

/// A LUKS header that was read and found well-formed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// Facts to pin.
    pub facts: HeaderFacts,
    /// Number of key slots in use.
    pub key_slots: u32,
    /// Most memory that deriving the key of one of its slots takes (Argon2), in KiB.
    #[serde(default)]
    pub unlock_memory_kib: u32,
    /// How its key slots and its digest derive their keys, each once.
    #[serde(default)]
    pub derivations: Vec<String>,
    /// What in it is not acceptable whatever was pinned (null cipher, costly KDF, re-encryption, several segments…);
    /// empty when all is well.
    pub objections: Vec<String>,
}

impl Eq for Header {}

/// How key slots and digests that this agent makes derive their keys: the least that LUKS takes, for a passphrase of 256 random bits.
pub const OWN_DERIVATIONS: [&str; 2] = ["pbkdf2 sha256 1000", "digest pbkdf2 sha256 1000"];

impl Header {
    /// A way of deriving a key that was not there when the header was pinned, and is not the agent's own; no other word is said where
    /// nothing was pinned.
    pub fn strange_derivation(&self, pinned: &[String]) -> Option<&str> {
        let mut found = self.derivations.iter().map(String::as_str);
        found.find(|way| {
            !pinned.is_empty() && !OWN_DERIVATIONS.contains(way) && !pinned.iter().any(|p| p == way)
        })
    }
}

/// CHAP credentials of the initiator. Wiped when dropped.
#[derive(Clone, Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
pub struct Chap {
    /// CHAP name.
    pub username: String,
    /// CHAP secret.
    pub password: String,
    /// What the target must prove that it knows: mutual CHAP.
    #[serde(default)]
    pub target: Option<TargetChap>,
}

/// CHAP credentials of a target. Wiped when dropped.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
pub struct TargetChap {
    /// CHAP name.
    pub username: String,
    /// CHAP secret.
    pub password: String,
}

impl std::fmt::Debug for TargetChap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TargetChap([REDACTED])")
    }
}

impl std::fmt::Debug for Chap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Chap([REDACTED])")
    }
}

/// A passphrase. Wiped when dropped.
#[derive(Clone, Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
#[serde(transparent)]
pub struct Passphrase(pub String);

impl std::fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Passphrase([REDACTED])")
    }
}

/// What header to write.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FormatOrder {
    /// UUID to write, from the permit.
    pub luks_uuid: String,
    /// How sectors are encrypted.
    pub encryption: Encryption,
    /// Opens key slot 0.
    pub passphrase: Passphrase,
    /// Device-mapper name of the volume's mapping: of authenticated sectors the layer below it is made for a moment.
    pub mapping_name: String,
    /// Device-mapper UUID of the volume's mapping.
    pub mapping_uuid: String,
    /// Whether a header with this UUID that does not open may be written over: what an earlier, interrupted format of
    /// this very volume left, as the caller saw it before it spent the permit.
    pub over_torn: bool,
}

/// What mapping to make.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OpenOrder {
    /// Device-mapper name.
    pub mapping_name: String,
    /// Device-mapper UUID.
    pub mapping_uuid: String,
    /// What the header must be, or what stands for one.
    pub expected: HeaderFacts,
    /// How the header may derive keys beside the agent's own way; any within bounds where nothing stands here.
    #[serde(default)]
    pub derivations: Vec<String>,
    /// The device must be blank: the first opening of a volume without a header.
    #[serde(default)]
    pub blank: bool,
    /// The key is made here, of random bytes, and given to nobody but the kernel.
    #[serde(default)]
    pub random: bool,
    /// How the mapping is made.
    #[serde(default)]
    pub activation: Activation,
    /// Memory that key derivation may take, in KiB: what the header said when it was judged.
    #[serde(default)]
    pub unlock_memory_kib: u32,
    /// Opens a key slot, or makes the key; none where nothing is encrypted or the key is random.
    #[serde(default)]
    pub passphrase: Option<Passphrase>,
    /// The header, where it lies apart from the disk. Nothing is read of the disk then.
    #[serde(default)]
    pub record: Option<Box<HeaderBackup>>,
}

/// What to do with a header that lies apart from its disk. It is only ever in memory, and no disk is asked anything.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum RecordOrder {
    /// Make one, with a new volume key.
    Make(FormatOrder),
    /// Seal its volume key under the key that a rotation brings.
    Reseal {
        /// The header.
        record: Box<HeaderBackup>,
        /// Opens it.
        passphrase: Passphrase,
        /// Shall open it.
        next: Passphrase,
    },
    /// Show that it opens.
    Prove {
        /// The header.
        record: Box<HeaderBackup>,
        /// Opens it.
        passphrase: Passphrase,
    },
}

/// What key slot to add.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AddSlotOrder {
    /// What the header must be.
    pub expected: HeaderFacts,
    /// How the header may derive keys beside the agent's own way; any within bounds where nothing stands here.
    #[serde(default)]
    pub derivations: Vec<String>,
    /// Opens a key slot.
    pub passphrase: Passphrase,
    /// Shall open one as well.
    pub next: Passphrase,
}

/// What key slots to drop.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DropSlotsOrder {
    /// What the header must be.
    pub expected: HeaderFacts,
    /// How the header may derive keys beside the agent's own way; any within bounds where nothing stands here.
    #[serde(default)]
    pub derivations: Vec<String>,
    /// Opens a key slot that is not to be dropped.
    pub passphrase: Passphrase,
    /// Key slots to drop. One that is not there any more, or is another one by now, is none of them.
    pub former: Vec<KeySlotRef>,
}

/// What to make a backup of.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BackupOrder {
    /// What the header must be.
    pub expected: HeaderFacts,
    /// How the header may derive keys beside the agent's own way; any within bounds where nothing stands here.
    #[serde(default)]
    pub derivations: Vec<String>,
    /// Memory that key derivation may take, in KiB.
    pub unlock_memory_kib: u32,
    /// Opens a key slot, and seals the backup.
    pub passphrase: Passphrase,
}

/// What header to write anew.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RestoreOrder {
    /// What the header must be when it is written.
    pub expected: HeaderFacts,
    /// How the header may derive keys beside the agent's own way; any within bounds where nothing stands here.
    #[serde(default)]
    pub derivations: Vec<String>,
    /// What to make it from.
    pub backup: HeaderBackup,
    /// Opens the backup, and will open key slot 0.
    pub passphrase: Passphrase,
}

/// How far a new volume with authenticated sectors is initialised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Initialised {
    /// Bytes from the beginning that read as zeros.
    pub done: u64,
    /// Bytes in all. Only when both are the same may the volume be used.
    pub total: u64,
}

/// Result of an erasure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Erased {
    /// Key slots that were wiped.
    pub key_slots_wiped: u32,
    /// Whether the area was read back and no key slot was found.
    pub verified: bool,
}

/// Why a step did not succeed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{message}")]
pub struct StepError {
    /// Word of a `Reason`.
    reason: String,
    /// What happened, without the next step (the reason has it) and without secrets.
    pub message: String,
}

impl StepError {
    /// An error for a reason.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            reason: reason.as_str().to_owned(),
            message: message.into(),
        }
    }

    /// The reason.
    pub fn reason(&self) -> Reason {
        Reason::parse(&self.reason).unwrap_or(Reason::StepFailed)
    }
}
