//! EncryptedVolume: what a user writes.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    encryption::{Activation, Encryption},
    header_backup::{HeaderBackup, HeaderRestoreStatus, HeaderSecretStatus},
    node_volume::{EraseReceipt, HeaderFacts, PathStatus, Stage},
    rotation::RotationStatus,
    source::Source,
    status::LastError,
};

/// A volume that is encrypted on the node: the array and the network see ciphertext only.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "cryptvol.dev",
    version = "v1alpha1",
    kind = "EncryptedVolume",
    namespaced,
    // `ev` is taken by Events (docs/adr/0005).
    shortname = "evol",
    category = "cryptvol",
    status = "EncryptedVolumeStatus",
    derive = "PartialEq",
    doc = "A volume that is encrypted on the node: the array and the network see ciphertext only.",
    printcolumn(json_path = ".status.conditions[?(@.type==\"Ready\")].status", name = "Ready", type_ = "string"),
    printcolumn(json_path = ".status.conditions[?(@.type==\"Ready\")].reason", name = "Reason", type_ = "string"),
    printcolumn(json_path = ".spec.attachments[*].nodeName", name = "Node", type_ = "string"),
    printcolumn(json_path = ".status.attachments[*].link", name = "Link", type_ = "string"),
    printcolumn(json_path = ".status.usableBytes", name = "Bytes", type_ = "integer", priority = 1),
    printcolumn(json_path = ".status.luksUuid", name = "LUKS UUID", type_ = "string", priority = 1),
    printcolumn(json_path = ".status.key.id", name = "Key", type_ = "string", priority = 1),
    printcolumn(json_path = ".metadata.creationTimestamp", name = "Age", type_ = "date"),
    validation = ("self.metadata.name.size() <= 63", "the name of an EncryptedVolume has at most 63 characters"),
    validation = ("!has(self.spec.source.file) || !has(oldSelf.spec.source.file) || quantity(self.spec.source.file.size).compareTo(quantity(oldSelf.spec.source.file.size)) >= 0 || !has(self.status) || !has(self.status.sizeBytes) || quantity(self.spec.source.file.size).asInteger() >= self.status.sizeBytes", "source.file.size cannot be less than the file has (status.sizeBytes), its end would be lost: create a smaller EncryptedVolume and copy the data"),
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = ("!has(oldSelf.source.iscsi) || (has(self.source.iscsi) && self.source.iscsi.iqn == oldSelf.source.iscsi.iqn && self.source.iscsi.lun == oldSelf.source.iscsi.lun)", "source.iscsi.iqn and source.iscsi.lun are immutable, they say which disk holds the data: create another EncryptedVolume for another disk"),
    validation = ("!has(oldSelf.source.iscsi) || !has(self.source.iscsi) || !has(oldSelf.source.iscsi.wwid) || (has(self.source.iscsi.wwid) && self.source.iscsi.wwid == oldSelf.source.iscsi.wwid)", "source.iscsi.wwid is immutable once set: create another EncryptedVolume for another disk"),
    validation = ("has(self.source.device) == has(oldSelf.source.device) && (!has(self.source.device) || self.source.device.path == oldSelf.source.device.path)", "source.device.path is immutable, it says which disk holds the data: create another EncryptedVolume for another disk"),
    validation = ("!has(oldSelf.source.device) || !has(self.source.device) || !has(oldSelf.source.device.wwid) || (has(self.source.device.wwid) && self.source.device.wwid == oldSelf.source.device.wwid)", "source.device.wwid is immutable once set: create another EncryptedVolume for another disk"),
    validation = ("has(self.source.file) == has(oldSelf.source.file) && (!has(self.source.file) || self.source.file.path == oldSelf.source.file.path)", "source.file.path is immutable, it says which file holds the data: create another EncryptedVolume for another file"),
    validation = ("has(self.source.ephemeral) == has(oldSelf.source.ephemeral) && (!has(self.source.ephemeral) || self.source.ephemeral == oldSelf.source.ephemeral)", "source.ephemeral is immutable: create another EncryptedVolume"),
    validation = ("!has(self.source.ephemeral) || !has(self.key)", "a volume with source.ephemeral has a random key that is stored nowhere: remove key"),
    validation = ("!has(self.source.ephemeral) || self.format == 'IfPermitted'", "nothing is kept of a volume with source.ephemeral, so it can only begin blank: remove format"),
    validation = ("!has(self.source.ephemeral) || !has(self.encryption) || self.encryption.provider == 'plain'", "a volume with source.ephemeral has no header: set encryption.provider to plain, or remove encryption and have cipher, keySize and sectorSize from the class"),
    validation = ("!has(self.source.ephemeral) || !has(self.rotation)", "the key of a volume with source.ephemeral is another one at each attachment: remove rotation"),
    validation = ("!has(self.source.ephemeral) || self.deletionPolicy == 'Retain'", "detaching a volume with source.ephemeral is the end of its key and data: remove deletionPolicy"),
    validation = ("!has(self.source.ephemeral) || !has(self.suspended) || !self.suspended", "the key of a volume with source.ephemeral is nowhere but in the node's kernel and could not be given back: remove suspended, or detach the volume, which ends its data"),
    validation = ("!has(self.source.ephemeral) || !has(self.failClosed) || !self.failClosed", "the key of a volume with source.ephemeral is nowhere but in the node's kernel and could not be given back: remove failClosed"),
    validation = ("!has(self.encryption) || self.encryption.provider != 'none' || !has(self.key)", "a volume with encryption provider none has no key: remove key"),
    validation = ("!has(self.encryption) || self.encryption.provider != 'none' || self.deletionPolicy == 'Retain'", "deletionPolicy Erase destroys the key, and a volume with encryption provider none has none: wipe the disk on the array, and use Retain"),
    validation = ("!has(self.encryption) || self.encryption.provider != 'plain' || self.format != 'Never' || (has(self.source.iscsi) && has(self.source.iscsi.wwid)) || (has(self.source.device) && has(self.source.device.wwid))", "provider plain writes no header, so nothing on the disk says whose it is: to import one (format Never), name its wwid in source"),
    validation = ("!has(self.encryption) || !(self.encryption.provider in ['plain', 'none']) || !has(self.source.file)", "a volume without a header is known by the disk's WWID, and a file has none: use provider luks2"),
    validation = ("!has(self.encryption) || self.encryption.provider != 'plain' || self.deletionPolicy == 'Retain' || !has(self.key) || !has(self.key.secretRef)", "deletionPolicy Erase of a plain volume destroys its key, and the one that key.secretRef names is not cryptvol's to destroy: use Retain, and destroy the secret where it is"),
    validation = ("!has(self.encryption) || !self.encryption.detachedHeader || !has(self.source.file)", "a volume with detachedHeader is known by the disk's WWID, and a file has none: remove detachedHeader"),
    validation = ("!has(self.encryption) || !self.encryption.detachedHeader || !has(self.key) || !has(self.key.secretRef) || (has(self.key.headerSecretRef) && self.format == 'Never')", "a volume with detachedHeader and a key of its own is an import: name the secret with its header in key.headerSecretRef, and set format to Never; for a new volume remove key"),
    validation = ("!has(self.encryption) || !self.encryption.detachedHeader || self.format != 'Never' || (has(self.key) && has(self.key.headerSecretRef) && ((has(self.source.iscsi) && has(self.source.iscsi.wwid)) || (has(self.source.device) && has(self.source.device.wwid))))", "nothing on the disk of a volume with detachedHeader says whose it is or how it opens: to import one (format Never), name key.secretRef, key.headerSecretRef, and the disk's wwid in source"),
    validation = ("!has(self.key) || !has(self.key.headerSecretRef) || !has(self.encryption) || self.encryption.detachedHeader", "key.headerSecretRef is for volumes with encryption.detachedHeader: set that, or remove key.headerSecretRef"),
    validation = ("!has(self.key) || !has(self.key.headerSecretRef) || self.deletionPolicy == 'Retain'", "deletionPolicy Erase of a volume with detachedHeader destroys its key and its header, and those that key.secretRef and key.headerSecretRef name are not cryptvol's to destroy: use Retain, and destroy the secrets where they are"),
    validation = ("has(self.credentials) || has(self.source.ephemeral) || (has(self.encryption) && self.encryption.provider == 'none')", "spec.credentials is needed: name the Secret with the clouds.yaml by which the volume's key is made and read"),
    validation = ("has(self.encryption) == has(oldSelf.encryption) && (!has(self.encryption) || self.encryption == oldSelf.encryption)", "encryption is immutable, it describes what is written on the disk: create another EncryptedVolume and copy the data"),
    validation = ("has(self.encryptionClassName) == has(oldSelf.encryptionClassName) && (!has(self.encryptionClassName) || self.encryptionClassName == oldSelf.encryptionClassName)", "encryptionClassName is immutable, it describes what is written on the disk: create another EncryptedVolume and copy the data"),
    validation = ("has(self.key) == has(oldSelf.key) && (!has(self.key) || self.key == oldSelf.key)", "key is immutable: without the key that wrote it the disk cannot be read; create another EncryptedVolume"),
    validation = ("has(self.keyServiceName) == has(oldSelf.keyServiceName) && (!has(self.keyServiceName) || self.keyServiceName == oldSelf.keyServiceName)", "keyServiceName is immutable: the volume's key lies there"),
    validation = ("!(has(self.encryptionClassName) && has(self.encryption))", "set encryptionClassName or encryption, not both"),
    validation = ("self.attachments.size() <= 1 || self.access == 'Migratable'", "a volume may be attached to one node at a time: name one attachment"),
    validation = ("self.access == 'Exclusive'", "access Migratable is not implemented in this version: remove it and name one attachment"),
    validation = ("!has(self.link) || !has(self.link.path)", "link.path is not implemented in this version: remove it; the device is at /dev/cryptvol/NAMESPACE/NAME"),
    validation = ("!has(self.link) || !has(self.link.shadow) || !has(self.source.iscsi) || !has(self.source.iscsi.multipath) || !self.source.iscsi.multipath", "link.shadow is not implemented together with source.iscsi.multipath in this version: remove one of them"),
    validation = ("!has(self.link) || !has(self.link.shadow) || has(self.source.iscsi)", "link.shadow is for iSCSI volumes: remove it; the device is at /dev/cryptvol/NAMESPACE/NAME"),
    validation = ("!has(self.link) || !has(self.link.shadow) || !has(self.source.iscsi) || !self.link.shadow.startsWith('/dev/disk/by-path/') || (self.link.shadow.startsWith('/dev/disk/by-path/ip-') && self.link.shadow.contains('-iscsi-' + self.source.iscsi.iqn + '-lun-'))", "link.shadow is not a by-path name of this volume's own disk: write /dev/disk/by-path/ip-ADDRESS:PORT-iscsi-IQN-lun-LUN with source.iscsi's IQN and LUN"),
    validation = ("!has(self.link) || !has(self.link.shadow) || !has(self.source.iscsi) || !self.link.shadow.startsWith('/dev/disk/by-id/') || (has(self.source.iscsi.wwid) && self.source.iscsi.wwid.startsWith('naa.') && self.link.shadow in ['/dev/disk/by-id/wwn-0x' + self.source.iscsi.wwid.substring(4), '/dev/disk/by-id/scsi-3' + self.source.iscsi.wwid.substring(4)])", "a by-id name in link.shadow needs source.iscsi.wwid of the form naa.HEX, and is /dev/disk/by-id/wwn-0xHEX or /dev/disk/by-id/scsi-3HEX of that WWID"),
    validation = ("(has(self.link) && has(self.link.shadow)) == (has(oldSelf.link) && has(oldSelf.link.shadow)) && (!has(self.link) || !has(self.link.shadow) || self.link.shadow == oldSelf.link.shadow)", "link.shadow is immutable: whoever opens that name must never find another device there; create another EncryptedVolume"),
    validation = ("!has(self.rotation) || !has(self.key) || !has(self.key.secretRef)", "rotation needs a key that the key manager generates: a key named in key.secretRef belongs to whoever made it"),
)]
pub struct EncryptedVolumeSpec {
    /// Where the ciphertext lies.
    pub source: Source,
    /// EncryptionClass to use; where absent together with `encryption`, the default class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub encryption_class_name: Option<String>,
    /// Encryption of this volume alone, instead of a class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption: Option<Encryption>,
    /// How the mapping is made, instead of as the class says. Takes effect at the next attachment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activation: Option<Activation>,
    /// Where the key comes from; generated where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<KeySource>,
    /// KeyService that holds the key; where absent the class's, else the one KeyService of the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub key_service_name: Option<String>,
    /// Nodes that shall have the decrypted device: none is detached, one is attached.
    #[serde(default)]
    #[schemars(length(max = 2))]
    pub attachments: Vec<Attachment>,
    /// Whether two nodes may have the device during a live migration.
    #[serde(default)]
    pub access: Access,
    /// Further names for the device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<Link>,
    /// What becomes of key and data when this object is deleted.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
    /// When the passphrase is rotated: a new key opens the volume, and the former one is destroyed. The data is not encrypted anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotation: Option<Rotation>,
    /// Takes the key out of the kernel of the node that has the volume. Whoever has the device open waits, and goes on when this is
    /// false again: the key is asked for anew then.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub suspended: bool,
    /// Whether the volume is suspended on its node, and its key wiped, when the continuous proof does not hold: another disk or header
    /// below the mapping, or plaintext on the disk.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fail_closed: bool,
    /// Whether a blank disk may be formatted, once.
    #[serde(default)]
    pub format: FormatPolicy,
    /// Who the operator is towards the KeyService. Needed for every volume that has a key there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<Credentials>,
}

impl EncryptedVolumeSpec {
    /// Name of the Secret with the credentials, where there is one.
    pub fn secret_name(&self) -> Option<&str> {
        self.credentials.as_ref().map(|c| c.secret_name.as_str())
    }
}

/// Where the key comes from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = ("!(has(self.generated) && has(self.secretRef))", "set key.generated or key.secretRef, not both"),
    validation = ("!has(self.headerSecretRef) || has(self.secretRef)", "key.headerSecretRef names the header that the key in key.secretRef opens: name that key as well"),
)]
pub struct KeySource {
    /// The key manager makes the key (default).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generated: Option<GeneratedKey>,
    /// Barbican href or id of an existing secret, for a volume that OpenStack or another cluster made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 36, max = 2048))]
    #[x_kube(validation = (r"self.matches('^(https://[^ ]+/v1/secrets/)?[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}/?$')", "key.secretRef is the id (a UUID) or the href (https://…/v1/secrets/UUID) of a Barbican secret"))]
    pub secret_ref: Option<String>,
    /// Barbican href or id of the secret that holds the header of a volume with `encryption.detachedHeader`, to import it with its disk and
    /// its key (in `status.headerSecret` of the volume that it was).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 36, max = 2048))]
    #[x_kube(validation = (r"self.matches('^(https://[^ ]+/v1/secrets/)?[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}/?$')", "key.headerSecretRef is the id (a UUID) or the href (https://…/v1/secrets/UUID) of a Barbican secret"))]
    pub header_secret_ref: Option<String>,
}

/// A key that the key manager generates. No choices yet: 256 bits.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct GeneratedKey {}

/// A node that shall have the decrypted device.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Attachment {
    /// Name of the Node.
    #[schemars(length(min = 1, max = 253))]
    pub node_name: String,
}

/// Whether two nodes may have the device at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Access {
    /// One node.
    #[default]
    Exclusive,
    /// Two during a live migration. Not implemented in this version.
    Migratable,
}

/// Further names for the device.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Link {
    /// A further link to the device. Not implemented in this version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 4096))]
    pub path: Option<String>,
    /// A by-path or by-id name of this volume's disk that shall lead to the decrypted device, and to nothing else: udev takes it
    /// from the raw disk. After detach it leads nowhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 300))]
    #[x_kube(validation = (r"self.matches('^/dev/disk/(by-path|by-id)/[A-Za-z0-9#+:=@_-][A-Za-z0-9#+.:=@_-]*$')", "link.shadow is a name as udev makes them below /dev/disk/by-path or /dev/disk/by-id"))]
    pub shadow: Option<String>,
}

/// What becomes of key and data at deletion.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DeletionPolicy {
    /// The device is detached; key and data stay.
    #[default]
    Retain,
    /// The device is detached, the key slots on the disk are wiped and shown to be gone, then the key is destroyed.
    Erase,
}

/// When the passphrase is rotated.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Rotation {
    /// Days between rotations. A rotation that is due is begun when the volume is attached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 36500))]
    pub interval_days: Option<i32>,
}

/// Whether a blank disk may be formatted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum FormatPolicy {
    /// Once, when the operator has issued a permit and the disk is blank.
    #[default]
    IfPermitted,
    /// Never: the disk must carry a header that the key opens.
    Never,
}

/// A Secret with a `clouds.yaml`, in the volume's namespace.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Credentials {
    /// Name of the Secret; its key `clouds.yaml` holds the file.
    #[schemars(length(min = 1, max = 253))]
    pub secret_name: String,
    /// Entry under `clouds:` in that file.
    #[schemars(length(min = 1, max = 253))]
    pub cloud_name: String,
}

/// What the operator knows of the volume.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct EncryptedVolumeStatus {
    /// Generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// See `conditions` for the types and reasons.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(["type".into()].to_vec()))]
    pub conditions: Vec<Condition>,
    /// One entry a node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(["nodeName".into()].to_vec()))]
    pub attachments: Vec<AttachmentStatus>,
    /// UUID of the LUKS header, chosen before the disk is formatted; without a header it is in this record alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub luks_uuid: Option<String>,
    /// Facts of the header, pinned when it was first read after format or import.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<HeaderFacts>,
    /// How the header's key slots and its digest derive their keys, as at the last attachment, each once: what a header asks for otherwise
    /// is refused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub derivations: Vec<String>,
    /// The one-time right to format the disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format_permit: Option<FormatPermitStatus>,
    /// The key, never its material.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<KeyReferenceStatus>,
    /// Size of the raw device in bytes, pinned when first seen, and raised when it has grown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<i64>,
    /// Size of the decrypted device in bytes: the raw size less the header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usable_bytes: Option<i64>,
    /// WWID of the raw device, pinned when first seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wwid: Option<String>,
    /// The node that last had the device; it does the work of `deletionPolicy: Erase`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_node_name: Option<String>,
    /// When the volume was first opened; from then on no format permit exists for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_opened: Option<Time>,
    /// What the header can be written anew from, under the key in `key`. With `encryption.detachedHeader` it is the header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header_backup: Option<HeaderBackup>,
    /// The second copy of the header, with `encryption.detachedHeader`: a secret in the key manager, written and read back before the
    /// volume is opened for the first time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header_secret: Option<HeaderSecretStatus>,
    /// A restore of the header that a person ordered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header_restore: Option<HeaderRestoreStatus>,
    /// When the volume was last opened after such a restore.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header_restored: Option<Time>,
    /// A rotation of the passphrase that is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotation: Option<RotationStatus>,
    /// When the passphrase was last rotated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_rotation: Option<Time>,
    /// When the random key of a volume with `source.ephemeral` was last found gone without a detach, and the data with it: the
    /// node was restarted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_lost: Option<Time>,
    /// Proof of erasure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub erased: Option<EraseReceipt>,
    /// The last thing that went wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<LastError>,
}

/// The state of one attachment, as its node's agent reported it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AttachmentStatus {
    /// Name of the Node.
    pub node_name: String,
    /// Stage reached.
    pub stage: Stage,
    /// Path of the decrypted device for the hypervisor, once it is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<String>,
    /// Kernel name of the raw device, for example `/dev/sda`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Ways to the disk, where it has several (`source.iscsi.multipath`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<PathStatus>,
    /// Since when the stage holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
}

/// Life of a format permit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PermitState {
    /// The agent may spend it.
    #[default]
    Issued,
    /// The agent recorded that it began to write.
    Spent,
    /// The volume was opened, or formatting was never wanted.
    Void,
}

/// The one-time right to write a LUKS header, as the operator remembers it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FormatPermitStatus {
    /// Random id of the permit.
    pub id: String,
    /// State of the permit.
    pub state: PermitState,
    /// When it was issued.
    pub issued_at: Time,
    /// When the agent recorded it as spent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spent_at: Option<Time>,
    /// Node that spent it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spent_by: Option<String>,
    /// It is not the first one: writing a header was begun with another, and what that left on the disk may be written over.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub again: bool,
}

/// The key in the key manager, never its material.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KeyReferenceStatus {
    /// Id of the secret.
    pub id: String,
    /// Whether this volume's operator made it (and so may destroy it).
    pub generated: bool,
    /// KeyService that holds it.
    pub key_service_name: String,
    /// Project that owns it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project_id: Option<String>,
    /// Version of the key, counted up at rotation.
    pub version: i64,
    /// When it was made or first seen.
    pub since: Time,
}
