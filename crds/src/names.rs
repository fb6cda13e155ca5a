//! Names that more than one part uses. Nothing else in the project spells them.

use kube::Resource;

use crate::v1alpha1::EncryptedVolume;

/// Finalizer of the operator on an EncryptedVolume.
pub const VOLUME_FINALIZER: &str = "cryptvol.dev/volume";
/// Finalizer on a NodeVolume: gone only when nothing of the volume is left on the node.
pub const NODE_VOLUME_FINALIZER: &str = "cryptvol.dev/node-volume";
/// Annotation that makes an EncryptionClass the default one (value `true`).
pub const DEFAULT_CLASS_ANNOTATION: &str = "cryptvol.dev/is-default-class";
/// Annotation by which a person asks for a new format permit; its value is the volume's LUKS UUID, as a proof that the
/// person read the status. Honoured only for a volume that was never opened.
pub const NEW_PERMIT_ANNOTATION: &str = "cryptvol.dev/new-format-permit";
/// Annotation by which a person asks for a rotation of the passphrase; its value is the version of the key that is to go
/// (`status.key.version`), so that a wish that comes twice is not carried out twice. Removed once it was acted upon.
pub const ROTATE_KEY_ANNOTATION: &str = "cryptvol.dev/rotate-key";
/// Annotation by which a person asks for a look at the size of an attached volume's disk; its value (at most 64 characters) is a
/// name for it: another one asks for another look.
pub const RESCAN_ANNOTATION: &str = "cryptvol.dev/rescan";
/// Annotation by which a person orders that the header is written anew from its backup; its value is the volume's LUKS UUID, as a proof
/// that the person read the status. Removed once it was acted upon.
pub const RESTORE_HEADER_ANNOTATION: &str = "cryptvol.dev/restore-header";
/// Annotation by which a person says that a node (its value) which went from the cluster without letting go of the volume
/// has no access to the disk any more. Removed once it was acted upon.
pub const NODE_GONE_ANNOTATION: &str = "cryptvol.dev/node-is-gone";
/// Taint of Kubernetes by which a person says that a node that does not answer is powered off.
pub const OUT_OF_SERVICE_TAINT: &str = "node.kubernetes.io/out-of-service";
/// Annotation on a Node with what the agent's own check found (JSON list of `NodeCheck`-like objects).
pub const NODE_CHECK_ANNOTATION: &str = "cryptvol.dev/node-check";
/// Annotation on a Node with what of cryptvol's belongs to no NodeVolume there (JSON of `orphans::Orphans`).
pub const ORPHANS_ANNOTATION: &str = "cryptvol.dev/orphans";
/// Condition type on a Node: whether the node can hold encrypted volumes.
pub const NODE_CONDITION: &str = "CryptvolReady";
/// Label on a NodeVolume: name of its EncryptedVolume.
pub const VOLUME_LABEL: &str = "cryptvol.dev/volume";
/// Field manager of the operator.
pub const OPERATOR_MANAGER: &str = "cryptvol-operator";
/// Field manager of the node agent.
pub const AGENT_MANAGER: &str = "cryptvol-node-agent";
/// Lease by which one operator replica reconciles.
pub const OPERATOR_LEASE: &str = "cryptvol-operator";
/// Audience of the agent's projected token for key release.
pub const KEY_RELEASE_AUDIENCE: &str = "cryptvol-key-release";
/// Name of the agent's service account.
pub const AGENT_SERVICE_ACCOUNT: &str = "cryptvol-node-agent";
/// Name of the operator's service account.
pub const OPERATOR_SERVICE_ACCOUNT: &str = "cryptvol-operator";
/// Directory of the links that hypervisors open.
pub const LINK_DIR: &str = "/dev/cryptvol";
/// The one directory of a node for files that stand for disks.
pub const FILE_DIR: &str = "/var/lib/cryptvol/volumes";
/// What the name of an ephemeral volume's scratch file begins with; its volume's UID follows. No `source.file` can be called like this.
const SCRATCH_PREFIX: &str = "ephemeral@";
/// Prefix of the device-mapper UUID of every mapping that is ours.
pub const DM_UUID_PREFIX: &str = "CRYPTVOL-";
/// Key of the `clouds.yaml` file in a credentials Secret.
pub const CLOUDS_YAML_KEY: &str = "clouds.yaml";

/// Link of a volume.
pub fn link_path(namespace: &str, name: &str) -> String {
    format!("{LINK_DIR}/{namespace}/{name}")
}

/// Scratch file of an ephemeral volume.
pub fn scratch_file(volume_uid: &str) -> String {
    format!("{FILE_DIR}/{SCRATCH_PREFIX}{volume_uid}")
}

/// UID of the volume whose scratch file has this name in the directory for files.
pub fn scratch_owner(file_name: &str) -> Option<&str> {
    file_name.strip_prefix(SCRATCH_PREFIX)
}

/// Device-mapper name of a volume's mapping: `cryptvol-` and the volume's UID (45 characters of 127).
pub fn mapping_name(volume_uid: &str) -> String {
    format!("cryptvol-{volume_uid}")
}

/// Device-mapper UUID of a volume's mapping: our prefix, the LUKS UUID and the volume's UID, so that a mapping tells
/// whose it is without any record (82 characters of 128).
pub fn mapping_uuid(luks_uuid: &str, volume_uid: &str) -> String {
    format!("{DM_UUID_PREFIX}{luks_uuid}-{volume_uid}")
}

/// Device-mapper name of the layer below a volume's mapping that keeps the tags of authenticated sectors.
pub fn tags_name(mapping_name: &str) -> String {
    format!("{mapping_name}-tags")
}

/// Device-mapper UUID of that layer (87 characters of 128).
pub fn tags_uuid(mapping_uuid: &str) -> String {
    let whose = mapping_uuid
        .strip_prefix(DM_UUID_PREFIX)
        .unwrap_or(mapping_uuid);
    format!("{DM_UUID_PREFIX}TAGS-{whose}")
}

/// UUID of the mapping that a layer of tags is for.
pub fn mapping_of_tags(tags_uuid: &str) -> Option<String> {
    let whose = tags_uuid
        .strip_prefix(DM_UUID_PREFIX)?
        .strip_prefix("TAGS-")?;
    Some(format!("{DM_UUID_PREFIX}{whose}"))
}

/// UID of the volume that a mapping with this device-mapper UUID is of, whatever stands between our prefix and it.
pub fn volume_of_mapping(uuid: &str) -> Option<&str> {
    let whose = uuid.strip_prefix(DM_UUID_PREFIX)?;
    let uid = whose.get(whose.len().checked_sub(36)?..)?;
    is_uuid(uid).then_some(uid)
}

/// Whether a text is a UUID as Kubernetes and libuuid write it: in lower case, with hyphens.
pub fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(i, b)| match i {
            8 | 13 | 18 | 23 => b == b'-',
            _ => b.is_ascii_digit() || (b'a'..=b'f').contains(&b),
        })
}

/// Device-mapper name of the map above the paths to a volume's disk (51 characters of 127).
pub fn paths_name(volume_uid: &str) -> String {
    format!("cryptvol-paths-{volume_uid}")
}

/// Device-mapper UUID of that map. No LUKS UUID is in it: it is made before the header is read.
pub fn paths_uuid(volume_uid: &str) -> String {
    format!("{DM_UUID_PREFIX}PATHS-{volume_uid}")
}

/// Name of a volume's key in the key manager. Found again after a crash between making it and recording it.
pub fn key_name(namespace: &str, name: &str, volume_uid: &str) -> String {
    format!("cryptvol/{namespace}/{name}/{volume_uid}")
}

/// Name of a version of a volume's key. The first version has the plain name.
pub fn key_version_name(namespace: &str, name: &str, volume_uid: &str, version: i64) -> String {
    let plain = key_name(namespace, name, volume_uid);
    match version {
        ..=1 => plain,
        later => format!("{plain}/{later}"),
    }
}

/// Name of the secret with the header of a volume whose disk has none, for a version of its key.
pub fn header_version_name(namespace: &str, name: &str, volume_uid: &str, version: i64) -> String {
    let key = key_version_name(namespace, name, volume_uid, version);
    format!("{key}/header")
}

/// Name of the NodeVolume of a volume on a node. Both together can exceed what a name may have; the volume's name is
/// limited to 63 characters and a node name is cut and told apart by a checksum then.
pub fn node_volume_name(volume: &str, node: &str) -> String {
    let name = format!("{volume}.{node}");
    if name.len() <= 253 {
        return name;
    }
    // FNV-1a, only to tell cut names apart: the spec holds the full node name and is what counts.
    let hash = node.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| {
        (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{}-{hash:016x}", name[..236].trim_end_matches(['.', '-']))
}

/// Name of the NodeVolume of `volume` on `node`.
pub fn node_volume_name_for(volume: &EncryptedVolume, node: &str) -> String {
    node_volume_name(volume.metadata.name.as_deref().unwrap_or_default(), node)
}

/// `namespace/name` of an object, for whoever reads.
pub fn display<K: Resource>(object: &K) -> String {
    let meta = object.meta();
    format!(
        "{}/{}",
        meta.namespace.as_deref().unwrap_or_default(),
        meta.name.as_deref().unwrap_or_default()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_volume_names_stay_valid_and_distinct() {
        assert_eq!(node_volume_name("db-0", "node-1"), "db-0.node-1");
        let volume = "v".repeat(63);
        let (a, b) = (
            format!("{}a", "n".repeat(252)),
            format!("{}b", "n".repeat(252)),
        );
        let (x, y) = (node_volume_name(&volume, &a), node_volume_name(&volume, &b));
        assert!(x.len() <= 253 && y.len() <= 253);
        assert_ne!(x, y);
    }

    #[test]
    fn a_mapping_tells_its_volume() {
        let (luks, uid) = (
            "0f6e6f0a-5a7c-4c0e-9a55-0c5a2f0d4e11",
            "123e4567-e89b-12d3-a456-426614174000",
        );
        for uuid in [mapping_uuid(luks, uid), paths_uuid(uid)] {
            assert_eq!(volume_of_mapping(&uuid), Some(uid), "{uuid}");
        }
        for other in [
            "",
            "CRYPTVOL-",
            "CRYPTVOL-x",
            &format!("LVM-{uid}"),
            "CRYPTVOL-123e4567-e89b-12d3-a456-42661417400g",
            "CRYPTVOL-ü23e4567-e89b-12d3-a456-42661417400",
        ] {
            assert_eq!(volume_of_mapping(other), None, "{other}");
        }
    }

    #[test]
    fn mapping_names_fit_device_mapper() {
        let uid = "123e4567-e89b-12d3-a456-426614174000";
        assert!(mapping_name(uid).len() < 128);
        assert!(mapping_uuid(uid, uid).len() < 129);
    }
}
