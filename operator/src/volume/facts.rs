//! What the nodes report, taken into the volume's own record: the permit's life, the pins, the first opening.

use cryptvol_crds::{
    NodeVolume, names,
    v1alpha1::{
        Desired, EncryptedVolumeStatus, FormatPermit, FormatPermitStatus, FormatPolicy,
        HeaderFacts, NodeVolumeStatus, PermitState, Stage,
    },
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{
    header_backup,
    world::{Action, World},
};

/// The agent's report, empty where there is none yet.
pub fn report(node_volume: &NodeVolume) -> NodeVolumeStatus {
    node_volume.status.clone().unwrap_or_default()
}

/// Whether a stage was reached without an error at it.
pub fn reached(status: &NodeVolumeStatus, stage: Stage) -> bool {
    match status.error {
        Some(_) => status.stage > stage,
        None => status.stage >= stage,
    }
}

/// Whether the agent says, of the spec as it is now, that nothing is left on the node.
pub fn is_released(node_volume: &NodeVolume) -> bool {
    let status = report(node_volume);
    node_volume.spec.desired != Desired::Attached
        && matches!(status.stage, Stage::Detached | Stage::Erased)
        && status.error.is_none()
        && status.observed_generation.is_some()
        && status.observed_generation == node_volume.metadata.generation
}

/// Whether a header was ever written, or begun to be written, on the disk.
pub fn formatted_before(status: &EncryptedVolumeStatus) -> bool {
    status.first_opened.is_some()
        || status
            .format_permit
            .as_ref()
            .is_some_and(|p| p.again || p.state == PermitState::Spent)
}

/// The permit as a node may have it: only while it is issued and the volume was never opened.
pub fn permit_to_hand_out(status: &EncryptedVolumeStatus) -> Option<FormatPermit> {
    let permit = status.format_permit.as_ref()?;
    let luks_uuid = status.luks_uuid.clone()?;
    (permit.state == PermitState::Issued && status.first_opened.is_none()).then(|| FormatPermit {
        id: permit.id.clone(),
        luks_uuid,
    })
}

/// Chooses what the volume is known by from now on: the LUKS UUID and, with it, the one permit to write it. Done once,
/// and recorded before anything uses it.
///
/// An import brings its UUID in its header. Where there is none the record's own is all that there is.
pub fn claim(world: &World, status: &mut EncryptedVolumeStatus) {
    let import = world.volume.spec.format == FormatPolicy::Never;
    let has_header = !matches!(&world.encryption, Ok(e) if !e.provider.has_header());
    if status.luks_uuid.is_some() || (import && has_header) {
        return;
    }
    status.luks_uuid = Some(world.fresh.luks_uuid.clone());
    if import {
        return;
    }
    status.format_permit = Some(FormatPermitStatus {
        id: world.fresh.permit_id.clone(),
        state: PermitState::Issued,
        issued_at: Time(world.now),
        spent_at: None,
        spent_by: None,
        again: false,
    });
}

/// Takes the nodes' reports into the record.
pub fn absorb(world: &World, status: &mut EncryptedVolumeStatus) {
    for node_volume in &world.node_volumes {
        let seen = report(node_volume);
        if let (Some(permit), Some(receipt)) = (&mut status.format_permit, &seen.permit)
            && permit.id == receipt.id
            && permit.state == PermitState::Issued
        {
            permit.state = PermitState::Spent;
            permit.spent_at = receipt.spent_at.clone().or(Some(Time(world.now)));
            permit.spent_by = Some(node_volume.spec.node_name.clone());
        }
        if let Some(opened) = &seen.first_opened
            && status.first_opened.is_none()
        {
            status.first_opened = Some(opened.clone());
        }
        let at = |lost: &Option<Time>| lost.as_ref().map(|t| t.0);
        if at(&seen.data_lost) > at(&status.data_lost) {
            status.data_lost.clone_from(&seen.data_lost);
        }
        pin(node_volume, &seen, status);
        header_backup::take(&seen, status);
    }
    if status.first_opened.is_some()
        && let Some(permit) = &mut status.format_permit
    {
        permit.state = PermitState::Void;
    }
}

/// Records what the disk is known by. Only once its header was verified: a wrong disk that was mapped by mistake, and
/// refused for its contents, must not be pinned as the right one.
fn pin(node_volume: &NodeVolume, seen: &NodeVolumeStatus, status: &mut EncryptedVolumeStatus) {
    let on_the_way_up = reached(seen, Stage::Header) && seen.stage <= Stage::Attached;
    let Some(header) = seen.header.as_ref().filter(|_| on_the_way_up) else {
        return;
    };
    if node_volume.spec.desired != Desired::Attached || !agrees(header, status) {
        return;
    }
    if status.luks_uuid.is_none() {
        status.luks_uuid = Some(header.luks_uuid.clone());
    }
    if status.header.is_none() {
        status.header = Some(header.clone());
    }
    // The agent takes no others than these and its own, so that this follows a rotation, and gets no wider.
    if !seen.derivations.is_empty() {
        status.derivations.clone_from(&seen.derivations);
    }
    if let Some(device) = &seen.device {
        if status.size_bytes.is_none() && device.size_bytes > 0 {
            status.size_bytes = Some(device.size_bytes);
        }
        // A disk that has grown must not shrink again. Taken once the volume is up with it.
        if reached(seen, Stage::Attached)
            && status.size_bytes.is_some_and(|s| s < device.size_bytes)
        {
            status.size_bytes = Some(device.size_bytes);
        }
        if status.wwid.is_none() {
            status.wwid.clone_from(&device.wwid);
        }
    }
    if let Some(mapping) = &seen.mapping {
        status.usable_bytes = Some(mapping.size_bytes);
    }
}

/// Whether a header is this volume's, as far as that is recorded.
pub fn agrees(header: &HeaderFacts, status: &EncryptedVolumeStatus) -> bool {
    status
        .luks_uuid
        .as_ref()
        .is_none_or(|u| *u == header.luks_uuid)
        && status.header.as_ref().is_none_or(|h| h == header)
}

/// A person asks for another permit. Given only for a volume that was never opened, when the value proves that the
/// person read the status, and when the last permit is spent. The annotation goes first: a crash between the two loses
/// the wish, never gives two permits for one.
pub fn new_permit(world: &World, status: &mut EncryptedVolumeStatus) -> Vec<Action> {
    let asked = world
        .volume
        .metadata
        .annotations
        .as_ref()
        .and_then(|a| a.get(names::NEW_PERMIT_ANNOTATION));
    let Some(asked) = asked else { return vec![] };
    let remove = Action::RemoveAnnotation(names::NEW_PERMIT_ANNOTATION);
    let refuse = |note: String| {
        vec![
            Action::RemoveAnnotation(names::NEW_PERMIT_ANNOTATION),
            Action::Tell {
                warning: true,
                reason: "FormatPermitRefused",
                note,
            },
        ]
    };
    if status.first_opened.is_some() {
        return refuse("no new format permit: the volume was opened once, so the disk held its data; it is never formatted again".into());
    }
    let Some(luks_uuid) = &status.luks_uuid else {
        return refuse("no new format permit: none was ever issued".into());
    };
    if asked != luks_uuid {
        return refuse(format!(
            "no new format permit: the value must be the volume's LUKS UUID, {luks_uuid}"
        ));
    }
    match &mut status.format_permit {
        Some(permit) if permit.state == PermitState::Spent => {
            *permit = FormatPermitStatus {
                id: world.fresh.permit_id.clone(),
                state: PermitState::Issued,
                issued_at: Time(world.now),
                spent_at: None,
                spent_by: None,
                again: true,
            };
            vec![
                remove,
                Action::Tell {
                    warning: false,
                    reason: "FormatPermitIssued",
                    note: "a new format permit was issued on request".into(),
                },
            ]
        }
        Some(permit) if permit.state == PermitState::Issued => vec![remove],
        _ => refuse("no new format permit: spec.format is Never, or the permit is void".into()),
    }
}
