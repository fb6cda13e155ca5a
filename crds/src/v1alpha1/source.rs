//! Where the ciphertext lies: the raw device below the mapping.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Exactly one kind of raw device.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = ("[has(self.iscsi), has(self.device), has(self.file), has(self.ephemeral)].filter(x, x).size() == 1", "set exactly one of source.iscsi, source.device, source.file and source.ephemeral"),
)]
pub struct Source {
    /// A logical unit of an iSCSI target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iscsi: Option<IscsiSource>,
    /// A disk, partition or logical volume that is on the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceSource>,
    /// A file on the node, through a loop device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<FileSource>,
    /// Scratch space with a random key that is stored nowhere and gone at detach, and at each restart of the node, and with it
    /// all data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ephemeral: Option<EphemeralSource>,
}

/// A logical unit of an iSCSI target (RFC 7143).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = ("!has(self.discoveryChapSecretRef) || (has(self.discovery) && self.discovery)", "source.iscsi.discoveryChapSecretRef is for a discovery and none is asked for: set source.iscsi.discovery to true, or remove it"),
    validation = ("!has(self.discovery) || !self.discovery || (has(self.multipath) && self.multipath)", "source.iscsi.discovery finds further portals for several paths: set source.iscsi.multipath to true, or remove it"),
    validation = ("!has(self.multipath) || !self.multipath || self.portals.size() > 1 || (has(self.discovery) && self.discovery)", "source.iscsi.multipath needs at least two portals of the target: name them all in source.iscsi.portals, or let the array tell them (source.iscsi.discovery)"),
    validation = (r"!has(self.multipath) || !self.multipath || self.portals.all(p, p.matches('^(\\[[0-9a-fA-F:.]+\\]|[0-9]{1,3}([.][0-9]{1,3}){3})(:[0-9]{1,5})?$') && self.portals.exists_one(q, q == p))", "with source.iscsi.multipath each portal is an IP address and stands there once: names could lead to the same place, and one path would look like two"),
)]
pub struct IscsiSource {
    /// Portals as `address:port`; IPv6 addresses in brackets; the port defaults to 3260. Of several the first that answers
    /// is used; one that is away costs a quarter of a second.
    #[schemars(length(min = 1, max = 16), inner(length(min = 1, max = 270)))]
    #[x_kube(validation = (r"self.all(p, p.matches('^(\\[[0-9a-fA-F:.]+\\]|[A-Za-z0-9.-]+)(:[0-9]{1,5})?$'))", "a portal is address or address:port, for example 192.0.2.10:3260 or [2001:db8::10]:3260"))]
    pub portals: Vec<String>,
    /// Name of the target: `iqn.`, `eui.` or `naa.` form (RFC 3720 section 3.2.6.3), at most 223 characters.
    #[schemars(length(min = 1, max = 223))]
    #[x_kube(validation = (r"self.matches('^(iqn\\.[0-9]{4}-(0[1-9]|1[0-2])\\.[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:[^ /]+)?|eui\\.[0-9A-Fa-f]{16}|naa\\.([0-9A-Fa-f]{16}|[0-9A-Fa-f]{32}))$')", "not an iSCSI name: write it like iqn.2026-11.com.example:volume-1 (year-month, reversed domain in lower case, then a name), or an eui. or naa. name"))]
    pub iqn: String,
    /// Logical unit number, 0 to 16383.
    #[x_kube(validation = ("self >= 0 && self <= 16383", "a LUN is a number from 0 to 16383"))]
    pub lun: i32,
    /// World-wide identifier of the logical unit as the kernel reports it in sysfs (`wwid` of the SCSI device, for
    /// example `naa.6001405…` or `t10.IET …`). When set, another disk at the same LUN is refused before anything is read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub wwid: Option<String>,
    /// Secret in the volume's namespace with CHAP credentials: keys `username` and `password`, and for mutual CHAP
    /// `username_in` and `password_in`, which the target must prove that it knows; or the keys of a Secret of type
    /// `kubernetes.io/iscsi-chap` (`node.session.auth.username` and so on). Read anew before each login.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chap_secret_ref: Option<SecretName>,
    /// Whether the named portals are asked for further portals of this target (SendTargets, RFC 7143), which are then used like the named
    /// ones: 16 in all, no names, no addresses of the node itself or of its link. Only with `multipath`. A discovery adds paths and never takes one
    /// away; where it fails, the named portals are used and the condition `PortalsDiscovered` says why. Takes effect when the volume is
    /// attached next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub discovery: Option<bool>,
    /// Secret in the volume's namespace with CHAP credentials for the discovery: keys as for `chapSecretRef`, or those of a Secret of type
    /// `kubernetes.io/iscsi-chap` (`discovery.sendtargets.auth.username` and so on). Read anew before each discovery.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub discovery_chap_secret_ref: Option<SecretName>,
    /// Whether the disk is used through all portals at once, by dm-multipath: I/O goes on while one of them works. Takes effect
    /// when the volume is attached next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub multipath: Option<bool>,
}

/// A Secret in the same namespace.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretName {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// A block device that is already on the node. One that is mounted, has partitions, carries something else's mapping or is
/// swap is refused before anything is read.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeviceSource {
    /// Path below `/dev`, best a stable one such as under `/dev/disk/by-id/`, or a logical volume.
    #[schemars(length(min = 6, max = 255))]
    #[x_kube(validation = (r"self.matches('^/dev/[A-Za-z0-9][A-Za-z0-9._:+@/-]*$') && !self.contains('/../') && !self.endsWith('/..')", "a device is named by its path below /dev, best a stable one such as /dev/disk/by-id/wwn-0x5000c500a1b2c3d4"))]
    pub path: String,
    /// WWID of the disk as sysfs shows it, or the device-mapper UUID of a logical volume. When set, another device at the
    /// same path is refused before anything is read; else the one found first is pinned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub wwid: Option<String>,
}

/// A file on the node, offered as a block device by a loop device.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct FileSource {
    /// The file, in `/var/lib/cryptvol/volumes/`, the one directory of the node that the agent has for it. Made, sparse,
    /// where it is not there and the volume was never begun. `deletionPolicy: Erase` removes it in the end, `Retain` leaves it.
    #[schemars(length(min = 1, max = 255))]
    #[x_kube(validation = (r"self.matches('^/var/lib/cryptvol/volumes/[A-Za-z0-9][A-Za-z0-9._-]*$')", "a file is directly in /var/lib/cryptvol/volumes/, its name of letters, digits, dots, dashes and underscores: the agent has no other directory of the node"))]
    pub path: String,
    /// Size as a quantity, for example `10Gi`. It can be raised: the file is made longer, and with it the volume, while it is in use.
    /// A file is never made shorter.
    #[schemars(length(min = 1, max = 32))]
    #[x_kube(validation = ("isQuantity(self) && quantity(self).isInteger() && quantity(self).asInteger() >= 33554432 && quantity(self).asInteger() % 4096 == 0", "size is a quantity of at least 32Mi and a multiple of 4096 bytes, for example 10Gi"))]
    pub size: String,
}

/// A device whose key is random and never stored.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("has(self.device) != has(self.size)", "set source.ephemeral.device or source.ephemeral.size, not both"))]
pub struct EphemeralSource {
    /// Path of a block device of the node below `/dev`, with a WWID; blank at the first attachment. It stays when the volume goes, with
    /// what nobody can read any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 6, max = 255))]
    #[x_kube(validation = (r"self.matches('^/dev/[A-Za-z0-9][A-Za-z0-9._:+@/-]*$') && !self.contains('/../') && !self.endsWith('/..')", "a device is named by its path below /dev, best a stable one such as /dev/disk/by-id/wwn-0x5000c500a1b2c3d4"))]
    pub device: Option<String>,
    /// Size of a scratch file as a quantity, where no device is named: sparse, in `/var/lib/cryptvol/volumes/`, and removed at detach.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32))]
    #[x_kube(validation = ("isQuantity(self) && quantity(self).isInteger() && quantity(self).asInteger() >= 33554432 && quantity(self).asInteger() % 4096 == 0", "size is a quantity of at least 32Mi and a multiple of 4096 bytes, for example 10Gi"))]
    pub size: Option<String>,
}
