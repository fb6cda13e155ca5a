//! The decision about one volume: a function of what is known, nothing else.

use std::collections::BTreeMap;

use cryptvol_crds::{
    EncryptedVolume, NodeVolume,
    conditions::Reason,
    names,
    v1alpha1::{
        Activation, DeletionPolicy, Desired, EncryptedVolumeStatus, Encryption, FormatPolicy,
        KeyReferenceStatus,
    },
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{
    conditions::{self, Picture},
    delete, detached, ephemeral, facts, header_backup, lost, node_volumes, quota, rotate,
    second_copy::{self, Verdict},
    world::{Action, Again, Decision, KeyState, NodeState, Problem, World},
};

/// Decides what to write and do for one volume.
pub fn decide(world: &World) -> Decision {
    let mut status = world.volume.status.clone().unwrap_or_default();
    let deleting = world.volume.metadata.deletion_timestamp.is_some();
    if !has_finalizer(&world.volume) {
        // Without our finalizer nothing was done yet, or everything is undone.
        let then = if deleting {
            vec![]
        } else {
            vec![Action::AddFinalizer]
        };
        return Decision {
            first: vec![],
            status,
            then,
            again: Again::Seldom,
        };
    }
    facts::absorb(world, &mut status);
    if deleting {
        return delete::decide(world, status);
    }
    let mut first = facts::new_permit(world, &mut status);
    status.observed_generation = world.volume.metadata.generation;

    let mut then = vec![];
    let mut picture = Picture {
        key: key(world, &mut status, &mut then),
        size: quota::against_raise(world, &status),
        ..Picture::default()
    };
    if picture.key.problem().is_none()
        && let Some(problem) = lost::is_not_new(world, &status, &mut then)
    {
        picture.key.key = Some(problem);
    }
    if let Some(first) = one_look_first(world, &then) {
        return first;
    }
    if picture.key.problem().is_none()
        && let Some(problem) = detached::keep(world, &mut status, &mut then)
    {
        picture.key.key = Some(problem);
    }
    if let Some(first) = one_look_first(world, &then) {
        return first;
    }
    first.extend(header_backup::restores(world, &mut status));
    let turn = rotate::advance(world, &mut status);
    first.extend(turn.first);
    attachments(world, &mut status, &mut then, &mut picture);
    then.extend(turn.then);
    let verdict = match picture.key.problem() {
        None => second_copy::check(world, &mut status, &mut then),
        Some(_) => Verdict::AsBefore,
    };
    header_backup::condition(world, &mut status, verdict);
    let again = conditions::write(world, &mut status, &picture);
    let again = turn.again.unwrap_or(again);
    Decision {
        first,
        status,
        then,
        again,
    }
}

/// What is about to be known in a moment is not written as unknown: what is wrong would be written and taken back in turns, and each write is a reason
/// for the next pass.
fn one_look_first(world: &World, then: &[Action]) -> Option<Decision> {
    let look = then.iter().find(|a| {
        matches!(
            a,
            Action::AskKeyManager
                | Action::FindLater
                | Action::FindHeader(_)
                | Action::ReadHeader(_)
        )
    })?;
    Some(Decision {
        first: vec![],
        status: world.volume.status.clone().unwrap_or_default(),
        then: vec![look.clone()],
        again: Again::Backoff,
    })
}

/// How far the key is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyPicture {
    /// What is wrong with references or login.
    pub credentials: Option<Problem>,
    /// What is wrong with the key.
    pub key: Option<Problem>,
    /// Whether the key is being made.
    pub making: bool,
    /// What is wrong with the volume's claim to its disk.
    pub source: Option<Problem>,
    /// Nobody is asked for a key, and why.
    pub none_needed: Option<NoKey>,
}

/// Why nobody is asked for a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoKey {
    /// Nothing is encrypted.
    NotEncrypted,
    /// The node makes it and nobody else has it.
    Ephemeral,
}

impl KeyPicture {
    /// The first thing that is wrong.
    pub fn problem(&self) -> Option<&Problem> {
        self.source
            .as_ref()
            .or(self.credentials.as_ref())
            .or(self.key.as_ref())
    }
}

fn key(world: &World, status: &mut EncryptedVolumeStatus, then: &mut Vec<Action>) -> KeyPicture {
    let mut picture = KeyPicture::default();
    if let Some(owner) = &world.source_owner {
        // Another namespace's name is not told.
        let own = world.volume.metadata.namespace.as_deref() == Some(owner.namespace.as_str());
        picture.source = Some(Problem::new(
            Reason::SourceInUse,
            if own {
                format!(
                    "EncryptedVolume {} in this namespace has the same disk",
                    owner.name
                )
            } else {
                "an EncryptedVolume in another namespace has the same disk".to_owned()
            },
        ));
        return picture;
    }
    if let Err(problem) = &world.encryption {
        picture.credentials = Some(problem.clone());
        return picture;
    }
    if ephemeral::is(&world.volume) {
        picture.none_needed = Some(NoKey::Ephemeral);
        facts::claim(world, status);
        return picture;
    }
    if !encrypts(world, status) {
        picture.none_needed = Some(NoKey::NotEncrypted);
        if world.volume.spec.deletion_policy == DeletionPolicy::Erase {
            picture.key = Some(Problem::new(Reason::EraseBlocked, NOTHING_TO_DESTROY));
            return picture;
        }
        facts::claim(world, status);
        return picture;
    }
    let service = match &world.key_service {
        Ok(service) => service,
        Err(problem) => {
            picture.credentials = Some(problem.clone());
            return picture;
        }
    };
    match &world.key {
        KeyState::NotAsked => then.push(Action::AskKeyManager),
        KeyState::Failed {
            logged_in: true,
            problem,
        } => picture.key = Some(problem.clone()),
        KeyState::Failed { problem, .. } => picture.credentials = Some(problem.clone()),
        KeyState::Known {
            project_id,
            limits,
            key: Some(key),
        } => {
            if let Err(e) = key.usable() {
                picture.key = Some(e.into());
                return picture;
            }
            if status.key.is_none()
                && let Err(over) = quota::may_begin(world, limits)
            {
                picture.key = Some(over);
                return picture;
            }
            facts::claim(world, status);
            if status.key.is_none() {
                status.key = Some(KeyReferenceStatus {
                    id: key.id.clone(),
                    generated: secret_ref(&world.volume).is_none(),
                    key_service_name: service.metadata.name.clone().unwrap_or_default(),
                    project_id: Some(project_id.clone()),
                    version: 1,
                    since: Time(world.now),
                });
            }
        }
        KeyState::Known { key: None, .. } if world.volume.spec.format == FormatPolicy::Never => {
            picture.key = Some(Problem::new(
                Reason::KeyUnusable,
                "spec.format is Never and spec.key.secretRef names no key: a new key cannot open a disk that has data",
            ));
        }
        // It was just recorded; now it can be asked for.
        KeyState::Known { key: None, .. } if status.key.is_some() => {
            then.push(Action::AskKeyManager);
        }
        KeyState::Known {
            project_id,
            key: None,
            ..
        } if status.first_opened.is_some() => match lost::key_of_one_in_use(world, then) {
            Ok((version, key)) => {
                status.key = Some(KeyReferenceStatus {
                    id: key.id,
                    generated: true,
                    key_service_name: service.metadata.name.clone().unwrap_or_default(),
                    project_id: Some(project_id.clone()),
                    version,
                    since: Time(world.now),
                });
            }
            Err(problem) => {
                picture.making = problem.is_none();
                picture.key = problem;
            }
        },
        KeyState::Known {
            limits, key: None, ..
        } => {
            if let Err(over) = quota::may_begin(world, limits) {
                picture.key = Some(over);
                return picture;
            }
            // The claim is in the record before the key is made: a deletion knows by it that there may be a key.
            facts::claim(world, status);
            picture.making = true;
            then.push(Action::CreateKey);
        }
    }
    picture
}

/// The id of the key that the user named.
pub fn secret_ref(volume: &EncryptedVolume) -> Option<&str> {
    volume.spec.key.as_ref()?.secret_ref.as_deref()
}

/// How sectors are encrypted: as the header says where it is pinned, so that another default class changes nothing.
pub fn encryption(world: &World, status: &EncryptedVolumeStatus) -> Result<Encryption, Problem> {
    let made = status.header_backup.as_ref().map(|b| &b.header);
    match status.header.as_ref().or(made) {
        None if ephemeral::is(&world.volume) => {
            world.encryption.clone().and_then(ephemeral::encryption)
        }
        Some(header) if !header.provider.encrypts() => Ok(Encryption {
            provider: header.provider,
            ..Encryption::default()
        }),
        Some(header) => Ok(Encryption {
            provider: header.provider,
            hash: header.hash,
            cipher: header.cipher.clone(),
            key_size: header.key_size,
            sector_size: header.sector_size,
            detached_header: header.is_detached(),
            integrity: header.integrity.as_ref().map(|i| i.kind),
            ..Encryption::default()
        }),
        None => world.encryption.clone(),
    }
}

/// Whether the volume's data is encrypted, as far as it is known by now.
pub fn encrypts(world: &World, status: &EncryptedVolumeStatus) -> bool {
    encryption(world, status).map_or(true, |e| e.provider.encrypts())
}

/// Why a volume without encryption cannot be erased.
pub const NOTHING_TO_DESTROY: &str = "deletionPolicy Erase destroys a key, and a volume with encryption provider none has none: wipe the disk on the array";

/// Nodes that shall have the volume.
pub fn wanted(volume: &EncryptedVolume) -> Vec<&str> {
    let list = &volume.spec.attachments;
    list.iter().map(|a| a.node_name.as_str()).collect()
}

fn attachments(
    world: &World,
    status: &mut EncryptedVolumeStatus,
    then: &mut Vec<Action>,
    picture: &mut Picture,
) {
    let wanted = wanted(&world.volume);
    let mut holders = vec![];
    for node_volume in &world.node_volumes {
        let node = node_volume.spec.node_name.as_str();
        let deleting = node_volume.metadata.deletion_timestamp.is_some();
        // A namespace deletes its objects in any order. This one stays until the volume says what becomes of the disk:
        // another one cannot be made there any more.
        if wanted.contains(&node) && (!deleting || world.namespace_goes) {
            keep(world, status, then, node_volume);
            continue;
        }
        match take_down(world, status, node_volume, Desired::Detached) {
            Step::Gone(actions) => then.extend(actions),
            Step::Wait(actions) => {
                then.extend(actions);
                holders.push(node_volume);
            }
        }
    }
    for node in wanted {
        let present = world
            .node_volumes
            .iter()
            .find(|nv| nv.spec.node_name == node);
        if let Some(present) = present {
            picture.current = Some(present.clone());
            picture.node = node_problem(world, node, true);
        } else if let Some(holder) = holders.first() {
            picture.waits_for = Some((*holder).clone());
            picture.node = node_problem(world, &holder.spec.node_name, true);
        } else {
            match attach(world, status, node, &picture.key) {
                Ok(new) => {
                    // Shown at once, so that its appearing in the watch is no further change.
                    picture.current.clone_from(&new);
                    then.extend(new.map(|nv| Action::Apply(Box::new(nv))));
                }
                Err(problem) => picture.node = Some(problem),
            }
        }
    }
    if picture.current.is_none() && picture.waits_for.is_none() {
        picture.leaving = holders.first().map(|nv| (*nv).clone());
        if let Some(leaving) = &picture.leaving {
            picture.node = node_problem(world, &leaving.spec.node_name, true);
        }
    }
}

/// A NodeVolume that stays: its spec follows the record (pins, permit, portals).
fn keep(world: &World, status: &EncryptedVolumeStatus, then: &mut Vec<Action>, found: &NodeVolume) {
    let wanted = node_volumes::build(
        world,
        status,
        &found.spec.node_name,
        Desired::Attached,
        as_made(found),
    );
    // A volume whose disk belongs to another one does not come up; what is up stays up.
    let may_rise = world.source_owner.is_none() || found.spec.desired == Desired::Attached;
    if may_rise && !node_volumes::is_as(found, &wanted) {
        then.push(Action::Apply(Box::new(wanted)));
    }
}

/// A new NodeVolume, if all that it needs is there.
fn attach(
    world: &World,
    status: &mut EncryptedVolumeStatus,
    node: &str,
    key: &KeyPicture,
) -> Result<Option<NodeVolume>, Problem> {
    // Checked even while the key is not there: a wrong node name shows at once.
    if let Some(problem) = node_problem(world, node, false) {
        return Err(problem);
    }
    if key.problem().is_some() || (status.key.is_none() && key.none_needed.is_none()) {
        return Ok(None);
    }
    if !detached::may_be_handed_over(world, status) {
        return Ok(None);
    }
    quota::may_be_handed_over(world)?;
    let making = match ephemeral::is(&world.volume) {
        true => ephemeral::activation(world.activation),
        false => world.activation,
    };
    let making = (encryption(world, status)?, making);
    status.last_node_name = Some(node.to_owned());
    let new = node_volumes::build(world, status, node, Desired::Attached, making);
    Ok(Some(new))
}

/// How the mapping on a node was made: it stays so until the next attachment, whatever the class says by now.
pub fn as_made(found: &NodeVolume) -> (Encryption, Activation) {
    (found.spec.encryption.clone(), found.spec.activation)
}

/// How far a NodeVolume is on its way out.
pub enum Step {
    /// Nothing of the volume is left on the node, or a person said so.
    Gone(Vec<Action>),
    /// The agent is still to act.
    Wait(Vec<Action>),
}

/// Brings a NodeVolume down to `desired` and lets it go once its node says that nothing is left.
pub fn take_down(
    world: &World,
    status: &EncryptedVolumeStatus,
    found: &NodeVolume,
    desired: Desired,
) -> Step {
    if facts::is_released(found) {
        return Step::Gone(vec![Action::Release(Box::new(found.clone()))]);
    }
    let node = found.spec.node_name.as_str();
    if let Some(by) = confirmed_down(world, node) {
        let mut actions = vec![
            Action::Release(Box::new(found.clone())),
            Action::Tell {
                warning: true,
                reason: "ReleasedByHand",
                note: format!(
                    "node {node} did not report that it let go of the volume; released because of {by}"
                ),
            },
        ];
        if by == names::NODE_GONE_ANNOTATION {
            actions.push(Action::RemoveAnnotation(names::NODE_GONE_ANNOTATION));
        }
        return Step::Gone(actions);
    }
    let wanted = node_volumes::build(world, status, node, desired, as_made(found));
    if node_volumes::is_as(found, &wanted) {
        Step::Wait(vec![])
    } else {
        Step::Wait(vec![Action::Apply(Box::new(wanted))])
    }
}

/// Whether a person said that a node has no access to the disk any more, and how. A Node object that is gone proves
/// nothing: the machine may run on, with the disk open, out of the cluster's sight.
fn confirmed_down(world: &World, node: &str) -> Option<&'static str> {
    match world.nodes.get(node) {
        Some(state) => {
            (state.out_of_service && !state.ready).then_some(names::OUT_OF_SERVICE_TAINT)
        }
        None => {
            let said = world
                .volume
                .metadata
                .annotations
                .as_ref()
                .and_then(|a: &BTreeMap<_, _>| a.get(names::NODE_GONE_ANNOTATION));
            (said.map(String::as_str) == Some(node)).then_some(names::NODE_GONE_ANNOTATION)
        }
    }
}

/// What stands against a node. One that has the volume (`holds`) is judged by whether it answers; one that shall get it,
/// also by whether it exists and can do the job.
pub fn node_problem(world: &World, node: &str, holds: bool) -> Option<Problem> {
    let state: &NodeState = match world.nodes.get(node) {
        Some(state) => state,
        None if holds => {
            return Some(Problem::new(
                Reason::NodeGone,
                format!("node {node} has the volume and is not in the cluster any more"),
            ));
        }
        None => {
            return Some(Problem::new(
                Reason::NodeNotFound,
                format!("there is no node {node}"),
            ));
        }
    };
    if !state.ready {
        let what = if holds {
            format!("node {node} has the volume and is not ready")
        } else {
            format!("node {node} is not ready")
        };
        return Some(Problem::new(Reason::NodeNotReady, what));
    }
    if holds {
        return None;
    }
    match &state.fit {
        Some(Ok(())) => None,
        Some(Err(why)) => Some(Problem::new(
            Reason::NodeUnfit,
            format!("node {node} cannot hold encrypted volumes: {why}"),
        )),
        None => Some(Problem::new(
            Reason::NodeUnfit,
            format!("no cryptvol node agent has reported on node {node}"),
        )),
    }
}

fn has_finalizer(volume: &EncryptedVolume) -> bool {
    volume
        .metadata
        .finalizers
        .iter()
        .flatten()
        .any(|f| f == names::VOLUME_FINALIZER)
}
