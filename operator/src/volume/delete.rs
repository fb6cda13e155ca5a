//! Deletion: the life of a volume in reverse. The key goes last, and only when the disk was shown not to open any more.

use cryptvol_crds::{
    NodeVolume,
    conditions::Reason,
    v1alpha1::{DeletionPolicy, Desired, EncryptedVolumeStatus},
};

use super::{
    conditions,
    decide::{self, Step, node_problem, take_down},
    ephemeral, facts, header_backup, node_volumes,
    world::{Action, Again, Decision, KeyState, Problem, World},
};

/// Decides about a volume that is being deleted.
pub fn decide(world: &World, mut status: EncryptedVolumeStatus) -> Decision {
    // What the key of an ephemeral volume wrote is gone with its mapping.
    let erase =
        world.volume.spec.deletion_policy == DeletionPolicy::Erase && !ephemeral::is(&world.volume);
    if erase {
        take_receipt(world, &mut status);
        if status.erased.is_some() {
            // Before the key goes: what it opens is to be gone then, as far as that is ours.
            header_backup::forget(&mut status);
        }
    }
    let must_erase = erase && facts::formatted_before(&status) && status.erased.is_none();
    let mut then = vec![];
    let mut waits: Option<&NodeVolume> = None;
    let mut problem = None;

    let encrypted = decide::encrypts(world, &status);
    let eraser = if must_erase && !encrypted {
        Err(Problem::new(
            Reason::EraseBlocked,
            decide::NOTHING_TO_DESTROY,
        ))
    } else if must_erase && only_the_key_opens_it(&status) {
        Err(Problem::new(
            Reason::EraseBlocked,
            "a volume without a header on its disk is erased by destroying its key, and this one's is not ours to destroy: \
             spec.key.secretRef names it; destroy it where it is",
        ))
    } else if must_erase {
        choose_eraser(world, &status)
    } else {
        Ok(None)
    };
    for node_volume in &world.node_volumes {
        let is_eraser = matches!(&eraser, Ok(Some(node)) if *node == node_volume.spec.node_name);
        let step = if is_eraser
            && facts::is_released(node_volume)
            && node_volume.spec.desired == Desired::Detached
        {
            // Detached already: the same object is told to erase.
            raise(world, &status, node_volume)
        } else if is_eraser && facts::is_released(node_volume) {
            // Erased, but without a receipt that proves it.
            problem = Some(Problem::new(
                Reason::EraseBlocked,
                format!(
                    "node {} says that it erased the disk and does not prove it",
                    node_volume.spec.node_name
                ),
            ));
            Step::Wait(vec![])
        } else {
            let desired = if is_eraser {
                Desired::Erased
            } else {
                Desired::Detached
            };
            take_down(world, &status, node_volume, desired)
        };
        match step {
            Step::Gone(actions) => then.extend(actions),
            Step::Wait(actions) => {
                then.extend(actions);
                waits = Some(node_volume);
                problem = problem.or_else(|| stuck(world, node_volume, must_erase));
            }
        }
    }
    match &eraser {
        Err(p) => problem = problem.or(Some(p.clone())),
        Ok(Some(node)) if waits.is_none() && world.node_volumes.is_empty() => {
            let encryption = decide::encryption(world, &status).unwrap_or_default();
            let making = (encryption, world.activation);
            status.last_node_name = Some(node.clone());
            let new = node_volumes::build(world, &status, node, Desired::Erased, making);
            then.push(Action::Apply(Box::new(new)));
        }
        Ok(_) => {}
    }
    if must_erase || waits.is_some() || !world.node_volumes.is_empty() {
        let doing = match waits {
            Some(nv) if nv.spec.desired == Desired::Erased => {
                format!("node {} erases the disk", nv.spec.node_name)
            }
            Some(nv) => format!("node {} detaches the volume", nv.spec.node_name),
            None if must_erase => "the disk is about to be erased".to_owned(),
            None => "the volume is off its node".to_owned(),
        };
        let again = conditions::write_deletion(world, &mut status, problem.as_ref(), &doing);
        return Decision {
            first: vec![],
            status,
            then,
            again,
        };
    }
    last_steps(world, status, erase)
}

/// Nothing is left on any node: the key, then the object.
fn last_steps(world: &World, mut status: EncryptedVolumeStatus, erase: bool) -> Decision {
    let done = |status, then, again| Decision {
        first: vec![],
        status,
        then,
        again,
    };
    let gone = vec![Action::RemoveFinalizer];
    // A claim without a recorded key: the key may have been made by a process that did not live to record it.
    let may_have_key = match &status.key {
        Some(key) => key.generated,
        None => {
            status.luks_uuid.is_some()
                && decide::secret_ref(&world.volume).is_none()
                && decide::encrypts(world, &status)
        }
    };
    if !erase || !may_have_key {
        return done(status, gone, Again::Seldom);
    }
    let problem = match (&world.key_service, &world.key) {
        (Err(problem), _) => problem.clone(),
        (Ok(_), KeyState::NotAsked) => {
            return done(status, vec![Action::AskKeyManager], Again::Backoff);
        }
        (Ok(_), KeyState::Known { key: Some(key), .. }) => {
            return done(
                status,
                vec![Action::DeleteKey(key.id.clone())],
                Again::Backoff,
            );
        }
        (Ok(_), KeyState::Known { key: None, .. }) => return done(status, gone, Again::Seldom),
        (Ok(_), KeyState::Failed { problem, .. }) if problem.reason == Reason::KeyNotFound => {
            return done(status, gone, Again::Seldom);
        }
        (Ok(_), KeyState::Failed { problem, .. }) => problem.clone(),
    };
    let what = problem.what.trim_end_matches('.');
    let problem = if world.namespace_goes && problem.reason == Reason::CredentialsSecretNotFound {
        let id = status.key.as_ref().map_or("", |k| &k.id);
        Problem::new(
            Reason::NamespaceTerminating,
            format!("the key {id} cannot be destroyed: {what} any more"),
        )
    } else {
        Problem::new(
            problem.reason,
            format!(
                "the key cannot be destroyed: {what}; to let the object go and keep the key, set deletionPolicy to Retain"
            ),
        )
    };
    conditions::write_deletion(world, &mut status, Some(&problem), "");
    // Whatever the cause, it may be mended where we do not see it.
    done(status, vec![], Again::Backoff)
}

/// Nothing on the disk can be wiped to close it, and the key is somebody else's.
fn only_the_key_opens_it(status: &EncryptedVolumeStatus) -> bool {
    let headerless =
        matches!(&status.header, Some(h) if !h.provider.has_header() || h.is_detached());
    headerless && status.key.as_ref().is_some_and(|k| !k.generated)
}

/// Takes the proof of erasure into the record.
fn take_receipt(world: &World, status: &mut EncryptedVolumeStatus) {
    if status.erased.is_some() {
        return;
    }
    let proof = world
        .node_volumes
        .iter()
        .filter(|nv| nv.spec.desired == Desired::Erased && facts::is_released(nv))
        .find_map(|nv| facts::report(nv).erased)
        .filter(|r| r.verified && status.luks_uuid.as_ref().is_none_or(|u| *u == r.luks_uuid));
    status.erased = proof;
}

/// The node that erases: the one that has the volume, else the one that the user names, else the last one.
fn choose_eraser(world: &World, status: &EncryptedVolumeStatus) -> Result<Option<String>, Problem> {
    if let Some(present) = world
        .node_volumes
        .iter()
        .max_by_key(|nv| nv.spec.desired == Desired::Erased)
    {
        return Ok(Some(present.spec.node_name.clone()));
    }
    if world.namespace_goes {
        return Err(Problem::new(
            Reason::NamespaceTerminating,
            "the disk cannot be erased: no node has the volume, and none can be told any more",
        ));
    }
    let mut candidates = decide::wanted(&world.volume);
    candidates.extend(status.last_node_name.as_deref());
    let mut why = vec![];
    for node in candidates {
        match node_problem(world, node, false) {
            None => return Ok(Some(node.to_owned())),
            Some(problem) if !why.contains(&problem.what) => why.push(problem.what),
            Some(_) => {}
        }
    }
    let why = if why.is_empty() {
        "no node is known that can reach the disk; name one in spec.attachments".to_owned()
    } else {
        why.join("; ")
    };
    Err(Problem::new(
        Reason::EraseBlocked,
        format!("the disk cannot be erased: {why}"),
    ))
}

fn raise(world: &World, status: &EncryptedVolumeStatus, found: &NodeVolume) -> Step {
    let wanted = node_volumes::build(
        world,
        status,
        &found.spec.node_name,
        Desired::Erased,
        decide::as_made(found),
    );
    Step::Wait(vec![Action::Apply(Box::new(wanted))])
}

/// Why a node does not get on with it.
fn stuck(world: &World, node_volume: &NodeVolume, erasing: bool) -> Option<Problem> {
    if let Some(problem) = node_problem(world, &node_volume.spec.node_name, true) {
        return Some(if erasing {
            Problem::new(
                Reason::EraseBlocked,
                format!("the disk cannot be erased: {}", problem.what),
            )
        } else {
            problem
        });
    }
    conditions::agent_problem(
        node_volume,
        &world.volume.status.clone().unwrap_or_default(),
    )
}
