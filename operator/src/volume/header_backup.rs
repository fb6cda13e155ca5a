//! Backup of the header in the volume's record, and the restore that a person orders (ADR 39).

use cryptvol_crds::{
    conditions::{HEADER_BACKED_UP, Is, Reason, set},
    names,
    v1alpha1::{
        Desired, EncryptedVolumeStatus, HeaderRestore, HeaderRestoreStatus, NodeVolumeStatus,
    },
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{
    conditions, detached, facts,
    second_copy::{self, Verdict},
    world::{Action, World},
};

/// Takes a node's backup into the record, where there is none and it is of the header that is pinned. A later one comes with a
/// rotation alone, in the moment in which its key becomes the volume's.
pub fn take(seen: &NodeVolumeStatus, status: &mut EncryptedVolumeStatus) {
    if let Some(backup) = &seen.header_backup
        && status.header_backup.is_none()
        && status.erased.is_none()
        && (status.header.as_ref() == Some(&backup.header)
            || detached::is_made_for(&backup.header, status))
    {
        status.header_backup = Some(backup.clone());
    }
}

/// Takes the backup out of the record of a volume that was erased: it is one more place that the key opens.
pub fn forget(status: &mut EncryptedVolumeStatus) {
    status.header_backup = None;
    status.header_restore = None;
    status.conditions.retain(|c| c.type_ != HEADER_BACKED_UP);
}

/// What the node shall do of a restore.
pub fn order(status: &EncryptedVolumeStatus, desired: Desired) -> Option<HeaderRestore> {
    let restore = status.header_restore.as_ref()?;
    let backup = status.header_backup.clone()?;
    (desired == Desired::Attached).then(|| HeaderRestore {
        id: restore.id.clone(),
        backup,
    })
}

/// Ends a restore that is done or not wanted any more, and begins one that a person orders.
pub fn restores(world: &World, status: &mut EncryptedVolumeStatus) -> Vec<Action> {
    let mut first = vec![];
    if let Some(restore) = &status.header_restore {
        let mut reports = world.node_volumes.iter().map(facts::report);
        if reports.any(|r| r.header_restored.as_ref() == Some(&restore.id)) {
            status.header_restore = None;
            status.header_restored = Some(Time(world.now));
        } else if world.volume.spec.attachments.is_empty() {
            status.header_restore = None;
        }
    }
    let annotations = world.volume.metadata.annotations.as_ref();
    let Some(asked) = annotations.and_then(|a| a.get(names::RESTORE_HEADER_ANNOTATION)) else {
        return first;
    };
    // First: a crash between the two loses the wish, and never carries it out twice.
    first.push(Action::RemoveAnnotation(names::RESTORE_HEADER_ANNOTATION));
    let mapped = world
        .node_volumes
        .iter()
        .any(|nv| facts::report(nv).mapping.is_some());
    let refusal = if status.luks_uuid.as_ref() != Some(asked) {
        "the value must be the volume's LUKS UUID (status.luksUuid)"
    } else if detached::is_detached(status) {
        "the disk carries none: the record is the header itself, and its second copy is in the key manager (status.headerSecret)"
    } else if status.header_backup.is_none() {
        "there is no backup of it (see the condition HeaderBackedUp)"
    } else if world.volume.spec.attachments.is_empty() {
        "attach the volume first: the node that it is attached to writes the header"
    } else if mapped {
        "the volume is open on its node, and no header is written below a device that may be in use; if its header was overwritten since, \
         detach the volume, attach it again, and order the restore then"
    } else {
        status.header_restore.get_or_insert(HeaderRestoreStatus {
            id: world.fresh.permit_id.clone(),
            since: Time(world.now),
        });
        return first;
    };
    first.push(Action::Tell {
        warning: true,
        reason: "HeaderRestoreRefused",
        note: format!("the header is not restored: {refusal}"),
    });
    first
}

/// Says whether there is a backup, once there could be one; and how the second copy of a header apart from its disk does.
pub fn condition(world: &World, status: &mut EncryptedVolumeStatus, second: Verdict) {
    let failed = || {
        let mut reports = world.node_volumes.iter().map(facts::report);
        reports.find_map(|r| r.header_backup_error)
    };
    let (is, reason, what) = if let Verdict::Bad(problem) = second {
        (Is::False, problem.reason, problem.what)
    } else if second == Verdict::AsBefore && second_copy::is_told(status) {
        return;
    } else if let Some(secret) = &status.header_secret {
        let what = format!(
            "the header is in the record, and in secret {} of the key manager",
            secret.id
        );
        (Is::True, Reason::AsDesired, what)
    } else if detached::is_detached(status) {
        let what = "the header is in the record, and about to be in the key manager".to_owned();
        (Is::False, Reason::InProgress, what)
    } else if status.header_backup.is_some() {
        (
            Is::True,
            Reason::AsDesired,
            "the record holds it".to_owned(),
        )
    } else if let Some(error) = failed() {
        let reason = Reason::parse(&error.reason).unwrap_or(Reason::StepFailed);
        (
            Is::False,
            reason,
            conditions::without_next_step(&error.message),
        )
    } else {
        return;
    };
    let generation = world.volume.metadata.generation;
    let conditions = &mut status.conditions;
    set(
        conditions,
        HEADER_BACKED_UP,
        is,
        reason,
        &what,
        generation,
        world.now,
    );
}
