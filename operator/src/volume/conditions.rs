//! The status as a user reads it: conditions, attachments, the last error.

use cryptvol_crds::{
    NodeVolume,
    conditions::{
        ATTACHED, CREDENTIALS_VALID, DEVICE_VERIFIED, ENCRYPTED, ENCRYPTION_PROVEN,
        HEADER_VERIFIED, Is, KEY_READY, PATHS_HEALTHY, PORTALS_DISCOVERED, PROGRESSING, READY,
        Reason, get, message, set,
    },
    paths::{self, PathsHealth},
    v1alpha1::{
        AttachmentStatus, DiscoveryStatus, EncryptedVolumeStatus, LastError, NodeVolumeStatus,
        PermitState, Stage,
    },
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{
    decide::{KeyPicture, NoKey},
    facts,
    world::{Again, KeyState, Problem, World},
};

/// What a decision found, as far as the conditions show it.
#[derive(Clone, Debug, Default)]
pub struct Picture {
    /// References, credentials, key.
    pub key: KeyPicture,
    /// The NodeVolume on the node that shall have the volume.
    pub current: Option<NodeVolume>,
    /// The NodeVolume on another node, that must go first.
    pub waits_for: Option<NodeVolume>,
    /// The NodeVolume that goes while none is wanted.
    pub leaving: Option<NodeVolume>,
    /// What is wrong with the node.
    pub node: Option<Problem>,
    /// What stands against a file that shall be longer; the volume goes on as it is.
    pub size: Option<Problem>,
}

/// Writes conditions, attachments and last error, and says when to look again.
pub fn write(world: &World, status: &mut EncryptedVolumeStatus, picture: &Picture) -> Again {
    let agent = picture
        .current
        .as_ref()
        .or(picture.waits_for.as_ref())
        .or(picture.leaving.as_ref())
        .and_then(|nv| agent_problem(nv, status));
    stages(world, status, picture, agent.as_ref());

    let wanted = !world.volume.spec.attachments.is_empty();
    let seen = picture.current.as_ref().map(facts::report);
    let up = seen.as_ref().is_some_and(is_up) && agent.is_none();
    let suspended = seen.as_ref().filter(|s| is_suspended(s));
    let node_silent = up && picture.node.is_some();
    let blocking = if up {
        picture.node.clone()
    } else {
        picture
            .key
            .problem()
            .cloned()
            .filter(|p| {
                let free = picture.current.is_none() && picture.leaving.is_none();
                // What a node says of the disk of a header or record that is lost would lead astray.
                let lost = [Reason::HeaderRecordUnusable, Reason::RecordLost];
                free || lost.contains(&p.reason)
            })
            .or(picture.node.clone())
            .or(agent.clone())
            .or_else(|| picture.key.problem().cloned())
    };
    let going = picture.leaving.is_some() || picture.waits_for.is_some();
    let (ready, reason, what) = match &blocking {
        Some(p) if node_silent => (Is::Unknown, p.reason, p.what.clone()),
        Some(p) => (Is::False, p.reason, p.what.clone()),
        None if suspended.is_some() => (Is::False, Reason::Suspended, SUSPENDED.to_owned()),
        None if up => (Is::True, Reason::AsDesired, link_text(seen.as_ref())),
        None if going => (Is::False, Reason::InProgress, going_text(picture)),
        None if wanted || picture.key.making => (Is::False, Reason::InProgress, work_text(picture)),
        None => (Is::False, Reason::Detached, String::new()),
    };
    let mut put = |type_, is, reason, what: &str| {
        condition(world, status, type_, is, reason, what);
    };
    put(READY, ready, reason, &what);
    match &blocking {
        Some(p) if p.reason.is_transient() => put(PROGRESSING, Is::True, p.reason, &p.what),
        Some(p) => put(PROGRESSING, Is::False, p.reason, &p.what),
        None if reason == Reason::InProgress => put(PROGRESSING, Is::True, reason, &what),
        None => put(PROGRESSING, Is::False, reason, ""),
    }
    proof(world, status, seen.as_ref());
    several_paths(world, status, seen.as_ref());
    discovery(world, status, seen.as_ref());
    attachments(world, status, picture.current.as_ref());
    // What is wrong with the key of a volume that is up shows as well, though the device works.
    let worst = blocking
        .or_else(|| picture.key.problem().cloned())
        .or_else(|| picture.size.clone());
    last_error(world, status, worst.as_ref(), picture.current.as_ref());
    again(worst.as_ref(), reason)
}

/// The conditions that a deletion shows: what it waits for.
pub fn write_deletion(
    world: &World,
    status: &mut EncryptedVolumeStatus,
    problem: Option<&Problem>,
    doing: &str,
) -> Again {
    let (reason, what) = match problem {
        Some(p) => (p.reason, p.what.as_str()),
        None => (Reason::InProgress, doing),
    };
    let going = problem.is_none_or(|p| p.reason.is_transient());
    let mut put = |type_, is, reason, what: &str| {
        condition(world, status, type_, is, reason, what);
    };
    put(READY, Is::False, reason, what);
    let progressing = if going { Is::True } else { Is::False };
    put(PROGRESSING, progressing, reason, what);
    attachments(world, status, None);
    last_error(world, status, problem, None);
    match problem {
        Some(p) => again(Some(p), reason),
        None => Again::Seldom,
    }
}

/// What the node's last proof showed; a condition that is there is not known any more where there is no mapping.
fn proof(world: &World, status: &mut EncryptedVolumeStatus, seen: Option<&NodeVolumeStatus>) {
    let found = seen.and_then(|s| s.proof.as_ref());
    let (is, reason, what) = match found {
        None if get(&status.conditions, ENCRYPTION_PROVEN).is_none() => return,
        None => (Is::Unknown, Reason::Waiting, String::new()),
        Some(proof) => match &proof.error {
            None => (Is::True, Reason::AsDesired, String::new()),
            Some(error) => (
                Is::False,
                Reason::parse(&error.reason).unwrap_or(Reason::StepFailed),
                without_next_step(&error.message),
            ),
        },
    };
    condition(world, status, ENCRYPTION_PROVEN, is, reason, &what);
}

/// How the paths do, where several are wanted; a condition that is there is not known any more where there are none.
fn several_paths(
    world: &World,
    status: &mut EncryptedVolumeStatus,
    seen: Option<&NodeVolumeStatus>,
) {
    let list = seen.map_or(&[][..], |s| &s.paths);
    let io_fails = seen.is_some_and(|s| s.io_fails);
    let (is, reason) = match PathsHealth::of(list, io_fails) {
        None if get(&status.conditions, PATHS_HEALTHY).is_none() => return,
        None => (Is::Unknown, Reason::Waiting),
        Some(PathsHealth::Healthy) => (Is::True, Reason::AsDesired),
        Some(health) => (Is::False, health.reason()),
    };
    let mut what = paths::down(list);
    let until = seen.and_then(|s| s.io_waits_until.as_ref());
    if let Some(Time(until)) = until.filter(|_| reason == Reason::PathsLost) {
        what.push_str(&format!("; I/O waits for one until {until}"));
    }
    condition(world, status, PATHS_HEALTHY, is, reason, &what);
}

/// What the array told of further portals; a condition that is there is not known any more where it is not asked.
fn discovery(world: &World, status: &mut EncryptedVolumeStatus, seen: Option<&NodeVolumeStatus>) {
    let found = seen.and_then(|s| s.discovery.as_ref());
    let (is, reason, what) = match found {
        None if get(&status.conditions, PORTALS_DISCOVERED).is_none() => return,
        None => (Is::Unknown, Reason::Waiting, String::new()),
        Some(found) => match &found.error {
            None => (Is::True, Reason::AsDesired, discovered(found)),
            Some(error) => (
                Is::False,
                Reason::parse(&error.reason).unwrap_or(Reason::DiscoveryFailed),
                without_next_step(&error.message),
            ),
        },
    };
    condition(world, status, PORTALS_DISCOVERED, is, reason, &what);
}

/// The portals that are used because the array told of them, and those that are not.
fn discovered(found: &DiscoveryStatus) -> String {
    let mut what = match found.portals.is_empty() {
        true => "the array told of no portals to use beside the named ones".to_owned(),
        false => format!(
            "used beside the named portals: {}",
            found.portals.join(", ")
        ),
    };
    if !found.ignored.is_empty() {
        what += &format!("; not used: {}", found.ignored.join(", "));
    }
    what
}

/// Writes one condition, of the volume's generation and with the time of the decision.
pub(super) fn condition(
    world: &World,
    status: &mut EncryptedVolumeStatus,
    type_: &str,
    is: Is,
    reason: Reason,
    what: &str,
) {
    set(
        &mut status.conditions,
        type_,
        is,
        reason,
        what,
        world.volume.metadata.generation,
        world.now,
    );
}

fn again(problem: Option<&Problem>, reason: Reason) -> Again {
    match problem.map(|p| p.reason) {
        None if reason == Reason::AsDesired || reason == Reason::Detached => Again::Seldom,
        None => Again::Long,
        // These are mended in the identity/keys service, which does not tell us.
        Some(
            Reason::CredentialsRejected
            | Reason::CredentialsExpired
            | Reason::RoleMissing
            | Reason::KeyNotFound
            | Reason::KeyUnusable
            | Reason::KeyQuotaExceeded
            | Reason::QuotaExceeded
            | Reason::SourceInUse
            | Reason::KeyServiceUnavailable,
        ) => Again::Backoff,
        // The rest is found by agents and watches.
        Some(_) => Again::Long,
    }
}

fn stages(
    world: &World,
    status: &mut EncryptedVolumeStatus,
    picture: &Picture,
    agent: Option<&Problem>,
) {
    let has_key = status.key.is_some();
    let mut put = |type_, is, reason, what: &str| {
        condition(world, status, type_, is, reason, what);
    };
    let key = &picture.key;
    let keyless = key.none_needed.map(|why| match why {
        NoKey::NotEncrypted => Reason::NotEncrypted,
        NoKey::Ephemeral => Reason::Ephemeral,
    });
    if key.none_needed == Some(NoKey::NotEncrypted) {
        put(ENCRYPTED, Is::False, Reason::NotEncrypted, NOT_ENCRYPTED);
    }
    match (keyless, &key.credentials, &key.source, &world.key) {
        (Some(why), ..) => put(CREDENTIALS_VALID, Is::Unknown, why, ""),
        (None, Some(p), _, _) => put(CREDENTIALS_VALID, Is::False, p.reason, &p.what),
        (None, None, Some(_), _) | (None, None, None, KeyState::NotAsked) => {
            put(CREDENTIALS_VALID, Is::Unknown, Reason::Waiting, "");
        }
        (None, None, None, _) => put(CREDENTIALS_VALID, Is::True, Reason::AsDesired, ""),
    }
    match (&key.key, keyless, key.making) {
        (Some(p), ..) => put(KEY_READY, Is::False, p.reason, &p.what),
        (None, Some(why), _) => put(KEY_READY, Is::Unknown, why, ""),
        (None, None, true) => put(
            KEY_READY,
            Is::False,
            Reason::InProgress,
            "the key manager makes the key",
        ),
        // The key was there when it was last seen; what is wrong with the credentials is told by their condition.
        (None, None, false) if has_key => put(KEY_READY, Is::True, Reason::AsDesired, ""),
        (None, None, false) => put(KEY_READY, Is::Unknown, Reason::Waiting, ""),
    }
    let wanted = !world.volume.spec.attachments.is_empty();
    let none = if wanted {
        Reason::Waiting
    } else {
        Reason::Detached
    };
    let Some(current) = &picture.current else {
        put(DEVICE_VERIFIED, Is::Unknown, none, "");
        put(HEADER_VERIFIED, Is::Unknown, none, "");
        match (&picture.node, agent, &key.source) {
            (Some(p), _, _) | (None, Some(p), _) | (None, None, Some(p)) => {
                put(ATTACHED, Is::False, p.reason, &p.what);
            }
            (None, None, None) => put(ATTACHED, Is::False, none, ""),
        }
        return;
    };
    let seen = facts::report(current);
    let at = seen.error.as_ref().map(|_| seen.stage);
    let mut stage = |type_, first: Stage, last: Stage| match agent {
        Some(p) if at.is_some_and(|s| first <= s && s <= last) => {
            put(type_, Is::False, p.reason, &p.what);
        }
        Some(p) if at.is_none() && type_ == HEADER_VERIFIED => {
            // The record and the report disagree.
            put(type_, Is::False, p.reason, &p.what);
        }
        _ if facts::reached(&seen, last) && seen.stage <= Stage::Attached => {
            put(type_, Is::True, Reason::AsDesired, "");
        }
        _ if seen.stage > Stage::Attached => put(type_, Is::Unknown, Reason::Waiting, ""),
        _ if at.is_some() => put(type_, Is::Unknown, Reason::Waiting, ""),
        _ => put(type_, Is::False, Reason::InProgress, ""),
    };
    stage(DEVICE_VERIFIED, Stage::Pending, Stage::Identity);
    stage(HEADER_VERIFIED, Stage::Header, Stage::Header);
    match (&picture.node, agent) {
        (Some(p), _) => put(ATTACHED, Is::Unknown, p.reason, &p.what),
        (None, Some(p)) if at.is_some_and(|s| s > Stage::Header) => {
            put(ATTACHED, Is::False, p.reason, &p.what);
        }
        (None, None) if is_suspended(&seen) => {
            put(ATTACHED, Is::False, Reason::Suspended, SUSPENDED);
        }
        (None, _) if is_up(&seen) => put(
            ATTACHED,
            Is::True,
            Reason::AsDesired,
            &link_text(Some(&seen)),
        ),
        (None, Some(_)) => put(ATTACHED, Is::False, Reason::Waiting, ""),
        (None, None) => put(ATTACHED, Is::False, Reason::InProgress, ""),
    }
}

/// What the agent says is wrong, or what is wrong with what it says.
pub fn agent_problem(node_volume: &NodeVolume, status: &EncryptedVolumeStatus) -> Option<Problem> {
    let seen = facts::report(node_volume);
    if let Some(error) = &seen.error {
        let mut reason = Reason::parse(&error.reason).unwrap_or(Reason::StepFailed);
        // Where the permit was spent and the volume never opened, nothing but an interrupted formatting explains a
        // missing header. A node that did not spend the permit itself cannot know.
        let spent = status
            .format_permit
            .as_ref()
            .is_some_and(|p| p.state == PermitState::Spent);
        if reason == Reason::HeaderMissing && spent && status.first_opened.is_none() {
            reason = Reason::FormatInterrupted;
        }
        return Some(Problem::new(reason, without_next_step(&error.message)));
    }
    let header = seen.header.as_ref()?;
    let up = seen.stage >= Stage::Header && seen.stage <= Stage::Attached;
    (up && !facts::agrees(header, status)).then(|| {
        Problem::new(
            Reason::HeaderMismatch,
            format!(
                "node {} reports a header that is not the one on record (LUKS UUID {})",
                node_volume.spec.node_name, header.luks_uuid
            ),
        )
    })
}

/// An agent's message without the next step that it ends with, which comes again with the reason.
pub(super) fn without_next_step(text: &str) -> String {
    let text = text.trim();
    let cut = Reason::ALL
        .iter()
        .map(|r| r.next_step())
        .filter(|step| !step.is_empty())
        .find_map(|step| text.strip_suffix(step));
    cut.unwrap_or(text)
        .trim_end()
        .trim_end_matches('.')
        .to_owned()
}

const NOT_ENCRYPTED: &str =
    "encryption provider none: array and network see the data as the guest writes it";

const SUSPENDED: &str =
    "the key is out of the node's kernel, and whoever has the device open waits";

/// Whether the device is there.
pub(super) fn is_up(seen: &NodeVolumeStatus) -> bool {
    seen.stage == Stage::Attached && seen.error.is_none() && seen.link.is_some() && !seen.suspended
}

/// Whether the volume is suspended, and nothing is wrong.
fn is_suspended(seen: &NodeVolumeStatus) -> bool {
    seen.stage == Stage::Attached && seen.error.is_none() && seen.suspended
}

fn link_text(seen: Option<&NodeVolumeStatus>) -> String {
    let link = seen.and_then(|s| s.link.clone()).unwrap_or_default();
    format!("the device is at {link}")
}

fn going_text(picture: &Picture) -> String {
    let from = picture.waits_for.as_ref().or(picture.leaving.as_ref());
    let node = from
        .map(|nv| nv.spec.node_name.as_str())
        .unwrap_or_default();
    format!("node {node} detaches the volume")
}

fn work_text(picture: &Picture) -> String {
    match &picture.current {
        Some(nv) => format!("node {} attaches the volume", nv.spec.node_name),
        None => "the key is prepared".to_owned(),
    }
}

fn attachments(world: &World, status: &mut EncryptedVolumeStatus, current: Option<&NodeVolume>) {
    let new = current.filter(|nv| {
        let name = &nv.metadata.name;
        !world.node_volumes.iter().any(|x| x.metadata.name == *name)
    });
    let mut list: Vec<_> = world
        .node_volumes
        .iter()
        .chain(new)
        .map(|nv| {
            let seen = facts::report(nv);
            AttachmentStatus {
                node_name: nv.spec.node_name.clone(),
                stage: seen.stage,
                link: seen.link,
                device: seen.device.map(|d| d.path),
                paths: seen.paths,
                since: seen.since,
            }
        })
        .collect();
    list.sort_by(|a, b| a.node_name.cmp(&b.node_name));
    status.attachments = list;
}

/// The last error stays after recovery. One that is the same keeps its time.
fn last_error(
    world: &World,
    status: &mut EncryptedVolumeStatus,
    problem: Option<&Problem>,
    current: Option<&NodeVolume>,
) {
    let Some(problem) = problem else { return };
    let text = message(problem.reason, &problem.what);
    let same = status
        .last_error
        .as_ref()
        .is_some_and(|e| e.reason == problem.reason.as_str() && e.message == text);
    if same {
        return;
    }
    let seen = current
        .and_then(|nv| nv.status.as_ref()?.error.as_ref())
        .filter(|e| e.reason == problem.reason.as_str());
    status.last_error = Some(LastError {
        reason: problem.reason.as_str().to_owned(),
        message: text,
        time: seen.map_or(Time(world.now), |e| e.time.clone()),
    });
}
