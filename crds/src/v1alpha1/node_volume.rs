//! NodeVolume: the hand-over between operator and one node's agent. Spec by the operator, status by that agent alone.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    encryption::{Activation, Encryption, Integrity, PlainHash, Provider},
    header_backup::{HeaderBackup, HeaderRestore},
    rotation::{NodeRotation, NodeRotationStatus},
    status::LastError,
};

/// What one node shall do for one volume.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "cryptvol.dev",
    version = "v1alpha1",
    kind = "NodeVolume",
    namespaced,
    shortname = "nv",
    category = "cryptvol",
    status = "NodeVolumeStatus",
    derive = "PartialEq",
    doc = "Internal hand-over between operator and node agent: what one node shall do for one volume. Do not edit.",
    selectable = ".spec.nodeName",
    printcolumn(json_path = ".spec.nodeName", name = "Node", type_ = "string"),
    printcolumn(json_path = ".spec.desired", name = "Desired", type_ = "string"),
    printcolumn(json_path = ".status.stage", name = "Stage", type_ = "string"),
    printcolumn(json_path = ".status.error.reason", name = "Error", type_ = "string"),
    printcolumn(
        json_path = ".metadata.creationTimestamp",
        name = "Age",
        type_ = "date"
    )
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = ("self.nodeName == oldSelf.nodeName", "nodeName is immutable"),
    validation = ("self.volumeRef == oldSelf.volumeRef", "volumeRef is immutable"),
)]
pub struct NodeVolumeSpec {
    /// Node whose agent acts on this object.
    #[schemars(length(min = 1, max = 253))]
    pub node_name: String,
    /// The EncryptedVolume in the same namespace.
    pub volume_ref: VolumeRef,
    /// State to reach.
    pub desired: Desired,
    /// The raw device.
    pub source: NodeSource,
    /// How sectors are encrypted.
    pub encryption: Encryption,
    /// How the mapping is made.
    #[serde(default)]
    pub activation: Activation,
    /// The key is random, made on the node, and gone with the mapping: nobody is asked for one, and what lies on the disk
    /// without it is nobody's.
    #[serde(default)]
    pub ephemeral: bool,
    /// UUID that the LUKS header must have. Absent only for a first import (`format: Never`): then the header found is
    /// reported and pinned by the operator before the link is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub luks_uuid: Option<String>,
    /// Size of the raw device in bytes, pinned earlier. A device may be larger, never smaller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<i64>,
    /// WWID of the raw device: given by the user, or pinned earlier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wwid: Option<String>,
    /// Facts that the header must agree with, pinned earlier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<HeaderFacts>,
    /// How its key slots and its digest may derive their keys beside the agent's own way, pinned earlier; any within the agent's bounds
    /// where nothing stands here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub derivations: Vec<String>,
    /// The header of a volume whose disk has none (`encryption.detachedHeader`), once both its durable copies were written and read
    /// back: nothing is opened before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header_record: Option<HeaderBackup>,
    /// The right to write a header, as long as it is issued and not spent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format_permit: Option<FormatPermit>,
    /// Set once the permit of this volume was spent, by whatever node: a missing header is then an error.
    #[serde(default)]
    pub formatted_before: bool,
    /// A part of a rotation of the passphrase, to be done while the volume is attached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotation: Option<NodeRotation>,
    /// The key is to be out of the kernel, and whoever has the device open waits.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub suspended: bool,
    /// Whether a mapping of which the proof does not hold is suspended, its key wiped.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fail_closed: bool,
    /// A name for a look at the disk's size that somebody asked for. A look is made once for each name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub rescan: Option<String>,
    /// Whether a backup of the header is on record: the node need not make one.
    #[serde(default)]
    pub header_backed_up: bool,
    /// The header is to be written anew from its backup, where it is missing or damaged, before the volume is opened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header_restore: Option<HeaderRestore>,
    /// Link that the hypervisor opens, `/dev/cryptvol/NAMESPACE/NAME`.
    #[schemars(length(min = 1, max = 4096))]
    pub link: String,
    /// Name of udev's below `/dev/disk/by-path` or `/dev/disk/by-id` that shall lead to the mapping and never to the raw device.
    /// Absent once the volume is being deleted: then the name is udev's again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 4096))]
    pub shadow: Option<String>,
}

/// The EncryptedVolume that a NodeVolume serves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VolumeRef {
    /// Name in the same namespace.
    pub name: String,
    /// UID, part of the mapping's device-mapper UUID: a new volume of the same name is another volume.
    pub uid: String,
}

/// The raw device as the agent needs it: exactly one kind.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("[has(self.iscsi), has(self.device), has(self.file)].filter(x, x).size() == 1", "exactly one of source.iscsi, source.device and source.file"))]
pub struct NodeSource {
    /// A logical unit of an iSCSI target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iscsi: Option<NodeIscsi>,
    /// A block device that is on the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<NodeDevice>,
    /// A file on the node, through a loop device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<NodeFile>,
}

/// A block device that is on the node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeDevice {
    /// Path below `/dev`.
    pub path: String,
}

/// A file on the node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeFile {
    /// Path of the file.
    pub path: String,
    /// Size in bytes that it is made with.
    pub size_bytes: i64,
}

/// A logical unit as the agent needs it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeIscsi {
    /// Portals as `address:port`, the port always given.
    pub portals: Vec<String>,
    /// Name of the target.
    pub iqn: String,
    /// Logical unit number.
    pub lun: i32,
    /// Whether CHAP credentials are to be asked for at key release before login.
    #[serde(default)]
    pub chap: bool,
    /// Whether the disk is reached through all portals at once. Takes effect when the volume is attached next.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub multipath: bool,
    /// Whether the array is asked for further portals of the target.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub discovery: bool,
    /// Whether CHAP credentials are to be asked for at key release before a discovery.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub discovery_chap: bool,
}

/// State that the agent shall reach.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Desired {
    /// Mapping and link are there.
    Attached,
    /// Nothing of the volume is left on the node.
    #[default]
    Detached,
    /// Detached, and the key slots on the disk are wiped and shown to be gone.
    Erased,
}

/// The one-time right to write a LUKS header, as the agent gets it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FormatPermit {
    /// Random id.
    pub id: String,
    /// UUID to write.
    pub luks_uuid: String,
}

/// Facts of a header, or of a mapping without one, that must not change between one opening and the next.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HeaderFacts {
    /// Which encryptor it is for.
    #[serde(default)]
    pub provider: Provider,
    /// How plain dm-crypt makes its key; absent for others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash: Option<PlainHash>,
    /// UUID of the header; without a header that of the volume's record.
    pub luks_uuid: String,
    /// Cipher of the one crypt segment, for example `aes-xts-plain64`.
    pub cipher: String,
    /// Size of the volume key in bits.
    pub key_size: i32,
    /// Encryption sector in bytes.
    pub sector_size: i32,
    /// Where data begins on the raw device, in bytes.
    pub data_offset: i64,
    /// How sectors are authenticated; absent where they are not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub integrity: Option<IntegrityFacts>,
    /// SHA-256 (lower-case hex) over the header's volume key digest: another volume key is another volume. Empty without
    /// a header.
    pub digest: String,
}

impl HeaderFacts {
    /// Whether the header lies apart from its disk: data begins where the disk does, and a header on the disk would be in its place.
    pub fn is_detached(&self) -> bool {
        self.provider == Provider::Luks2 && self.data_offset == 0
    }

    /// Bytes of the volume key: that of the cipher, and behind it that of the authentication.
    pub fn volume_key_bytes(&self) -> usize {
        let cipher = usize::try_from(self.key_size / 8).unwrap_or_default();
        cipher + self.integrity.as_ref().map_or(0, |i| i.kind.key_bytes())
    }

    /// Bytes that a mapping has on a raw device of this size: whole encryption sectors behind the header; of authenticated ones what
    /// dm-integrity said when they were initialised, however long the device is by now.
    pub fn data_bytes(&self, device_bytes: u64) -> u64 {
        if let Some(integrity) = &self.integrity {
            return u64::try_from(integrity.data_bytes).unwrap_or_default();
        }
        let offset = u64::try_from(self.data_offset).unwrap_or(u64::MAX);
        let sector = u64::try_from(self.sector_size).unwrap_or(512).max(512);
        let room = device_bytes.saturating_sub(offset);
        room - room % sector
    }

    /// Bytes at the end of a raw device that authenticated sectors cannot use, because it was shorter when their places were laid out; 0
    /// for all others. What is less than a few MiB is not told from what the kernel leaves free anyway.
    pub fn unused_bytes(&self, device_bytes: u64) -> u64 {
        let Some(integrity) = &self.integrity else {
            return 0;
        };
        let of = |n: i64| u64::try_from(n).unwrap_or_default();
        let (data, sector) = (
            of(integrity.data_bytes),
            of(self.sector_size.into()).max(512),
        );
        let tags = (data / sector).saturating_mul(integrity.kind.tag_bytes());
        let laid_out = of(self.data_offset)
            .saturating_add(data)
            .saturating_add(tags);
        // The journal that the kernel makes: a 128th of the device, at least one section, at most 64 MiB.
        let journal = (laid_out / 127).clamp(1 << 18, 64 << 20) + (1 << 18);
        // The last run of tags is whole, be there data for all of it or not.
        let used = laid_out.saturating_add(journal).saturating_add(2 << 20);
        device_bytes.saturating_sub(used)
    }
}

/// What is known of sectors that are authenticated.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct IntegrityFacts {
    /// How.
    pub kind: Integrity,
    /// Bytes that there is room for beside the tags: fixed when the header is written.
    pub data_bytes: i64,
}

/// How far the agent has come. Stages follow each other in this order.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    JsonSchema,
)]
pub enum Stage {
    /// Nothing done yet.
    #[default]
    Pending,
    /// iSCSI session.
    Session,
    /// Raw block device.
    Device,
    /// WWID and size agree.
    Identity,
    /// LUKS header written or found, and agrees.
    Header,
    /// Passphrase received.
    KeyRelease,
    /// Decrypted device.
    Mapping,
    /// Link made: attached.
    Attached,
    /// On the way down.
    Detaching,
    /// Nothing left on the node.
    Detached,
    /// Key slots wiped and nothing left on the node.
    Erased,
}

/// What the agent saw and did.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeVolumeStatus {
    /// Generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Stage reached, or the stage that failed when `error` is set.
    #[serde(default)]
    pub stage: Stage,
    /// Since when the stage holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    /// Why the agent cannot go on; absent when all is well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<LastError>,
    /// Portal of the iSCSI session in use, as `address:port`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub portal: Option<String>,
    /// Ways to the disk, where several are wanted: one for each portal.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<PathStatus>,
    /// What the array told of further portals, where it is asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub discovery: Option<DiscoveryStatus>,
    /// None of the paths works, and I/O fails instead of waiting for one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub io_fails: bool,
    /// None of the paths works, and I/O waits for one until then; after it I/O fails.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io_waits_until: Option<Time>,
    /// Raw device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceStatus>,
    /// Facts of the header as last read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<HeaderFacts>,
    /// How its key slots and its digest derive their keys, for example `pbkdf2 sha256 1000` and `digest pbkdf2 sha256 1000`, each once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub derivations: Vec<String>,
    /// Decrypted device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mapping: Option<MappingStatus>,
    /// Link, once it leads to the mapping.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<String>,
    /// Shadowed name, while it leads to the mapping.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shadow: Option<String>,
    /// Receipt of the format permit: written before the first byte of the header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub permit: Option<PermitReceipt>,
    /// When the mapping of this volume was first made on this node; written before the link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_opened: Option<Time>,
    /// Backup of the header, made from the header as it opened; with the key that a rotation brings once that has a key slot. Of a volume
    /// whose disk has no header: the header itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header_backup: Option<HeaderBackup>,
    /// Why there is no backup of the header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header_backup_error: Option<LastError>,
    /// Id of the restore of the header that is done: the volume was opened after it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header_restored: Option<String>,
    /// When the random key in use was made, of an ephemeral volume; absent while there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_made: Option<Time>,
    /// When the random key of an ephemeral volume was last found gone without a detach, and the data with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_lost: Option<Time>,
    /// What was done of the rotation in the spec.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotation: Option<NodeRotationStatus>,
    /// The key is out of the kernel; whoever has the device open waits.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub suspended: bool,
    /// Whether what is below the mapping is what should be there, and encrypted; absent until it was looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<ProofStatus>,
    /// Name of the last look at the disk's size that was asked for and made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rescan: Option<String>,
    /// Proof of erasure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub erased: Option<EraseReceipt>,
}

/// What was found by walking from the link to the disk and comparing what both ends read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProofStatus {
    /// Whether all of it is as it should be.
    pub holds: bool,
    /// Since when that is so.
    pub since: Time,
    /// What is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<LastError>,
}

/// One way to a disk.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PathStatus {
    /// Portal as `address:port`.
    pub portal: String,
    /// Whether I/O goes this way, or would when it is its turn.
    pub up: bool,
    /// What the array says of this path (ALUA), as far as the kernel has heard: `active/optimized`, `active/non-optimized`, `lba-dependent`,
    /// `standby`, `unavailable`, `offline`, `transitioning`; absent where it makes no difference between paths.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub access: Option<String>,
    /// Kernel name of the disk on this way, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Why it is not up; absent too where it only waits to take over (`standby`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub why: Option<String>,
}

/// What an array told of further portals of a target.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DiscoveryStatus {
    /// Portals in use beside those that the volume names, as `address:port`. Recorded before anybody logs in there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub portals: Vec<String>,
    /// What it told last and is not used, each with the reason.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 256)))]
    pub ignored: Vec<String>,
    /// Why it could not be asked last; absent when it could.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<LastError>,
}

/// The raw device as the kernel shows it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeviceStatus {
    /// Kernel name, for example `/dev/sda`.
    pub path: String,
    /// WWID from sysfs, the device-mapper UUID, or the inode of a file, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wwid: Option<String>,
    /// Size in bytes.
    pub size_bytes: i64,
}

/// The decrypted device.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MappingStatus {
    /// Device-mapper name.
    pub name: String,
    /// Kernel path, for example `/dev/dm-0`.
    pub path: String,
    /// Size in bytes.
    pub size_bytes: i64,
    /// Options of dm-crypt as the kernel shows them, for example `allow_discards`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

/// Record of a spent format permit.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PermitReceipt {
    /// Id of the permit.
    pub id: String,
    /// When it was spent.
    pub spent_at: Option<Time>,
}

/// Proof that the disk opens no more.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EraseReceipt {
    /// LUKS UUID of the erased volume.
    pub luks_uuid: String,
    /// Key slots that were wiped.
    pub key_slots_wiped: i32,
    /// Whether the header area was read back from the disk and found without key slots.
    pub verified: bool,
    /// When.
    pub at: Time,
    /// Node that did it.
    pub node_name: String,
}
