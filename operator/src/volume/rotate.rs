//! Rotation of the passphrase. The key on record opens the disk at every moment (invariant 8 of the design): the new key is made and
//! recorded, gets a key slot and is proven by opening; only then it is the volume's key, only then the former one's key slots
//! go, and only when they are gone is it destroyed.

use cryptvol_crds::{
    NodeVolume,
    conditions::{Is, KEY_ROTATED, Reason},
    names,
    v1alpha1::{
        Desired, EncryptedVolumeStatus, KeyReferenceStatus, NodeRotation, NodeRotationStatus,
        Provider, RotationPhase, RotationStatus,
    },
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;

use super::{
    conditions, decide, detached, facts,
    world::{Action, Again, Problem, World},
};

/// Seconds of a day.
const DAY: i64 = 24 * 60 * 60;

/// What a rotation adds to a decision.
#[derive(Debug, Default)]
pub struct Turn {
    /// Done before the status is written.
    pub first: Vec<Action>,
    /// Done once the status is written.
    pub then: Vec<Action>,
    /// When to look again, where that is sooner than otherwise.
    pub again: Option<Again>,
}

/// Takes a rotation one step further, or begins one that is asked for or due.
pub fn advance(world: &World, status: &mut EncryptedVolumeStatus) -> Turn {
    match status.rotation.clone() {
        Some(rotation) => under_way(world, status, rotation),
        None => begin(world, status),
    }
}

/// What the node shall do of it.
pub fn order(status: &EncryptedVolumeStatus, desired: Desired) -> Option<NodeRotation> {
    let rotation = status.rotation.as_ref()?;
    let key_id = rotation.key_id.clone()?;
    let for_nodes = rotation.phase != RotationPhase::Destroying;
    (for_nodes && desired == Desired::Attached).then(|| NodeRotation {
        phase: rotation.phase,
        key_id,
        former_slots: rotation.former_slots.clone(),
    })
}

fn begin(world: &World, status: &mut EncryptedVolumeStatus) -> Turn {
    let annotations = world.volume.metadata.annotations.as_ref();
    let asked = annotations.and_then(|a| a.get(names::ROTATE_KEY_ANNOTATION));
    let Some(key) = status.key.clone() else {
        return Turn::default();
    };
    let refuse = |note: String| Turn {
        first: vec![
            Action::RemoveAnnotation(names::ROTATE_KEY_ANNOTATION),
            Action::Tell {
                warning: true,
                reason: "KeyRotationRefused",
                note,
            },
        ],
        ..Turn::default()
    };
    if let Some(asked) = asked {
        if !key.generated {
            return refuse("the key is not rotated: key.secretRef names it, so it belongs to whoever made it; rotation needs a generated key".into());
        }
        if *asked != key.version.to_string() {
            return refuse(format!(
                "the key is not rotated: the value must be the version of the key that is to go, {}",
                key.version
            ));
        }
    }
    if asked.is_none() && !is_due(world, status, &key) {
        return Turn::default();
    }
    let encryption = decide::encryption(world, status);
    if encryption.is_ok_and(|e| e.provider != Provider::Luks2) {
        let what = "the volume is not encrypted with luks2";
        put(world, status, Is::False, Reason::RotationUnsupported, what);
        return match asked {
            Some(_) => refuse(format!("the key is not rotated: {what}")),
            None => Turn::default(),
        };
    }
    if attached(world).next().is_none() {
        let what = "the rotation begins when the volume is attached";
        put(world, status, Is::False, Reason::Waiting, what);
        return Turn::default();
    }
    status.rotation = Some(RotationStatus {
        phase: RotationPhase::Adding,
        version: key.version + 1,
        key_id: None,
        former_key_id: key.id,
        former_slots: vec![],
        since: Time(world.now),
    });
    let what = "the key manager makes a new key";
    put(world, status, Is::False, Reason::InProgress, what);
    Turn {
        // First: a crash between the two loses the wish, and never carries it out twice.
        first: asked
            .map(|_| Action::RemoveAnnotation(names::ROTATE_KEY_ANNOTATION))
            .into_iter()
            .collect(),
        then: vec![Action::CreateNextKey(key.version + 1)],
        again: None,
    }
}

fn is_due(world: &World, status: &EncryptedVolumeStatus, key: &KeyReferenceStatus) -> bool {
    let rotation = world.volume.spec.rotation.as_ref();
    let Some(days) = rotation.and_then(|r| r.interval_days) else {
        return false;
    };
    let last = status.last_rotation.as_ref().unwrap_or(&key.since);
    key.generated && world.now.as_second() - last.0.as_second() >= i64::from(days) * DAY
}

fn under_way(world: &World, status: &mut EncryptedVolumeStatus, rotation: RotationStatus) -> Turn {
    let mut next = rotation.clone();
    match (rotation.phase, &rotation.key_id) {
        (RotationPhase::Adding, None) => match world.rotation.made(rotation.version) {
            None => {
                return Turn {
                    then: vec![Action::CreateNextKey(rotation.version)],
                    ..Turn::default()
                };
            }
            Some(Err(problem)) => return failed(world, status, problem),
            Some(Ok(id)) => next.key_id = Some(id.clone()),
        },
        (RotationPhase::Adding, Some(key_id)) => {
            match report(world, RotationPhase::Adding, key_id) {
                Some(done) if done.done => {
                    // The second copy first: never is the new key on record without a header that it opens in both places.
                    let header_secret = match detached::keep_next(world, status, &rotation, &done) {
                        detached::Kept::Yes(secret) => secret,
                        detached::Kept::Do(action) => {
                            return Turn {
                                then: vec![action],
                                ..Turn::default()
                            };
                        }
                        detached::Kept::Failed(problem) => return failed(world, status, &problem),
                    };
                    // From here on the new key is the volume's: it was shown to open the disk. The former one still does.
                    if let Some(key) = &mut status.key {
                        key.id.clone_from(key_id);
                        key.version = rotation.version;
                        key.since = Time(world.now);
                    }
                    next.phase = RotationPhase::Dropping;
                    next.former_slots = done.former_slots;
                    // Under the key that is on record from now on; one under the former key would open no more.
                    status.header_backup = done.header_backup;
                    status.header_secret = header_secret;
                }
                seen => return waits(world, status, seen, "the new key gets a key slot"),
            }
        }
        (RotationPhase::Dropping, key_id) => {
            let key_id = key_id.as_deref().unwrap_or_default();
            match report(world, RotationPhase::Dropping, key_id) {
                Some(done) if done.done => next.phase = RotationPhase::Destroying,
                seen => {
                    let doing =
                        "the new key opens the volume; the key slot of the former one is wiped";
                    return waits(world, status, seen, doing);
                }
            }
        }
        (RotationPhase::Destroying, _) => match world.rotation.destroyed(rotation.version) {
            None => {
                return Turn {
                    then: vec![Action::DestroyFormerKey {
                        version: rotation.version,
                        id: rotation.former_key_id,
                    }],
                    ..Turn::default()
                };
            }
            Some(Err(problem)) => return failed(world, status, problem),
            Some(Ok(())) => {
                status.rotation = None;
                status.last_rotation = Some(Time(world.now));
                let what = format!("key version {} opens the volume", rotation.version);
                put(world, status, Is::True, Reason::AsDesired, &what);
                return Turn::default();
            }
        },
    }
    status.rotation = Some(next);
    Turn::default()
}

/// What the node that has the volume says of a phase.
fn report(world: &World, phase: RotationPhase, key_id: &str) -> Option<NodeRotationStatus> {
    attached(world)
        .filter_map(|nv| facts::report(nv).rotation)
        .find(|r| (r.phase, r.key_id.as_str()) == (phase, key_id))
}

/// The NodeVolumes of nodes that have the volume and shall have it.
fn attached(world: &World) -> impl Iterator<Item = &NodeVolume> {
    let wanted = decide::wanted(&world.volume);
    world.node_volumes.iter().filter(move |nv| {
        wanted.contains(&nv.spec.node_name.as_str())
            && nv.spec.desired == Desired::Attached
            && nv.metadata.deletion_timestamp.is_none()
            && conditions::is_up(&facts::report(nv))
    })
}

fn waits(
    world: &World,
    status: &mut EncryptedVolumeStatus,
    seen: Option<NodeRotationStatus>,
    doing: &str,
) -> Turn {
    match seen.and_then(|s| s.error) {
        Some(error) => {
            let reason = Reason::parse(&error.reason).unwrap_or(Reason::StepFailed);
            let what = conditions::without_next_step(&error.message);
            put(world, status, Is::False, reason, &what);
        }
        None if attached(world).next().is_some() => {
            put(world, status, Is::False, Reason::InProgress, doing);
        }
        None => {
            let what = format!("{doing} when the volume is attached");
            put(world, status, Is::False, Reason::Waiting, &what);
        }
    }
    Turn::default()
}

fn failed(world: &World, status: &mut EncryptedVolumeStatus, problem: &Problem) -> Turn {
    put(world, status, Is::False, problem.reason, &problem.what);
    Turn {
        // It is mended in the key manager, which does not tell us.
        again: Some(Again::Backoff),
        ..Turn::default()
    }
}

fn put(world: &World, status: &mut EncryptedVolumeStatus, is: Is, reason: Reason, what: &str) {
    conditions::condition(world, status, KEY_ROTATED, is, reason, what);
}

/// Names of all keys of the volume that may exist: the present one's, and that of a rotation that may have made a key which it did not
/// live to record.
pub fn key_names(world: &World) -> Vec<String> {
    let status = world.volume.status.as_ref();
    let present = status.and_then(|s| s.key.as_ref()).map_or(1, |k| k.version);
    let next = status
        .and_then(|s| s.rotation.as_ref())
        .map_or(present, |r| r.version);
    // The one before the present: it may not be destroyed yet.
    let mut versions = vec![1, present - 1, present, next];
    versions.retain(|v| *v >= 1);
    versions.sort_unstable();
    versions.dedup();
    let mut names: Vec<_> = versions.iter().map(|v| key_name(world, *v)).collect();
    // The keys first: without them the headers are nothing.
    if detached::may_have_secret(world) {
        names.extend(versions.iter().map(|v| detached::secret_name(world, *v)));
    }
    names
}

/// Name of a version of the volume's key.
pub fn key_name(world: &World, version: i64) -> String {
    let v = &world.volume;
    names::key_version_name(
        &v.namespace().unwrap_or_default(),
        &v.name_any(),
        &v.uid().unwrap_or_default(),
        version,
    )
}
