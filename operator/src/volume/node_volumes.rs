//! The hand-over objects: what a NodeVolume should say.

use cryptvol_crds::{
    EncryptedVolume, NodeVolume, names, quantity,
    v1alpha1::{
        Activation, Desired, EncryptedVolumeStatus, Encryption, IscsiSource, NodeDevice, NodeFile,
        NodeIscsi, NodeSource, NodeVolumeSpec, Source, VolumeRef,
    },
};
use kube::{Resource, ResourceExt};

use super::{detached, ephemeral, facts, header_backup, quota, rotate, world::World};

/// iSCSI's registered port, for portals that name none.
const ISCSI_PORT: u16 = 3260;

/// The NodeVolume of this volume on a node, as it should be. `status` is the volume's record as it will be written
/// before this object is.
pub fn build(
    world: &World,
    status: &EncryptedVolumeStatus,
    node: &str,
    desired: Desired,
    (encryption, activation): (Encryption, Activation),
) -> NodeVolume {
    let volume = &world.volume;
    let name = volume.name_any();
    let namespace = volume.namespace().unwrap_or_default();
    let source = &volume.spec.source;
    let named = match (&source.iscsi, &source.device) {
        (Some(iscsi), _) => iscsi.wwid.clone(),
        (_, Some(device)) => device.wwid.clone(),
        _ => None,
    };
    let header_record = detached::hand_over(status, &encryption);
    let spec = NodeVolumeSpec {
        node_name: node.to_owned(),
        volume_ref: VolumeRef {
            name: name.clone(),
            uid: volume.uid().unwrap_or_default(),
        },
        desired,
        encryption,
        activation,
        ephemeral: ephemeral::is(volume),
        luks_uuid: status.luks_uuid.clone(),
        size_bytes: status.size_bytes,
        wwid: named.or_else(|| status.wwid.clone()),
        header: status.header.clone(),
        derivations: status.derivations.clone(),
        header_record,
        format_permit: (desired == Desired::Attached)
            .then(|| facts::permit_to_hand_out(status))
            .flatten(),
        formatted_before: facts::formatted_before(status),
        header_backed_up: status.header_backup.is_some(),
        header_restore: header_backup::order(status, desired),
        rotation: rotate::order(status, desired),
        suspended: volume.spec.suspended,
        fail_closed: volume.spec.fail_closed,
        rescan: rescan(volume),
        link: names::link_path(&namespace, &name),
        shadow: volume
            .spec
            .link
            .as_ref()
            .and_then(|l| l.shadow.clone())
            .filter(|_| volume.metadata.deletion_timestamp.is_none()),
        source: NodeSource {
            iscsi: source.iscsi.clone().map(iscsi),
            device: device_path(source).map(|path| NodeDevice { path: path.clone() }),
            file: file(world, status),
        },
    };
    let mut node_volume = NodeVolume::new(&names::node_volume_name(&name, node), spec);
    let meta = &mut node_volume.metadata;
    meta.namespace = Some(namespace);
    meta.finalizers = Some(vec![names::NODE_VOLUME_FINALIZER.to_owned()]);
    meta.labels = Some([(names::VOLUME_LABEL.to_owned(), name)].into());
    meta.owner_references = volume.controller_owner_ref(&()).map(|o| vec![o]);
    node_volume
}

/// Path of the block device of the node that the volume is on.
pub fn device_path(source: &Source) -> Option<&String> {
    let scratch = source.ephemeral.as_ref().and_then(|e| e.device.as_ref());
    source.device.as_ref().map(|d| &d.path).or(scratch)
}

/// The file that the volume is in.
fn file(world: &World, status: &EncryptedVolumeStatus) -> Option<NodeFile> {
    let source = &world.volume.spec.source;
    // The rules of the API let nothing else through; the agent refuses 0.
    let bytes = |size| quantity::bytes(size).unwrap_or_default();
    if let Some(file) = &source.file {
        return Some(NodeFile {
            path: file.path.clone(),
            size_bytes: quota::file_size(world, status, bytes(&file.size)),
        });
    }
    let size = source.ephemeral.as_ref()?.size.as_ref()?;
    Some(NodeFile {
        path: names::scratch_file(&world.volume.uid().unwrap_or_default()),
        size_bytes: bytes(size),
    })
}

/// The name of a look at the disk's size that somebody asked for. It stays: each is made once.
fn rescan(volume: &EncryptedVolume) -> Option<String> {
    let name = volume.annotations().get(names::RESCAN_ANNOTATION)?;
    Some(name.chars().take(64).collect())
}

/// Whether an object already says what it should.
pub fn is_as(found: &NodeVolume, wanted: &NodeVolume) -> bool {
    let has_finalizer = found
        .metadata
        .finalizers
        .iter()
        .flatten()
        .any(|f| f == names::NODE_VOLUME_FINALIZER);
    let has_label =
        found.labels().get(names::VOLUME_LABEL) == wanted.labels().get(names::VOLUME_LABEL);
    found.spec == wanted.spec && has_finalizer && has_label
}

fn iscsi(source: IscsiSource) -> NodeIscsi {
    NodeIscsi {
        portals: source.portals.iter().map(|p| with_port(p)).collect(),
        iqn: source.iqn,
        lun: source.lun,
        chap: source.chap_secret_ref.is_some(),
        multipath: source.multipath.unwrap_or_default(),
        discovery: source.discovery.unwrap_or_default(),
        discovery_chap: source.discovery_chap_secret_ref.is_some(),
    }
}

fn with_port(portal: &str) -> String {
    let after_address = match portal.rfind(']') {
        Some(end) => &portal[end..],
        None => portal,
    };
    if after_address.contains(':') {
        portal.to_owned()
    } else {
        format!("{portal}:{ISCSI_PORT}")
    }
}

#[cfg(test)]
mod tests {
    use super::with_port;

    #[test]
    fn portals_always_have_a_port() {
        for (given, full) in [
            ("192.0.2.10", "192.0.2.10:3260"),
            ("192.0.2.10:3261", "192.0.2.10:3261"),
            ("[2001:db8::10]", "[2001:db8::10]:3260"),
            ("[2001:db8::10]:860", "[2001:db8::10]:860"),
            ("array.example.com", "array.example.com:3260"),
        ] {
            assert_eq!(with_port(given), full);
        }
    }
}
