//! What the status says after a receipt or a run: pure, and unchanged where nothing changed, so that an idle agent writes
//! nothing.

use cryptvol_crds::{
    conditions::{self, Reason},
    v1alpha1::{
        Desired, DeviceStatus, EraseReceipt, HeaderBackup, HeaderFacts, LastError, MappingStatus,
        NodeRotation, NodeRotationStatus, NodeVolumeStatus, PathStatus, PermitReceipt, ProofStatus,
        RotationPhase, Stage,
    },
};
use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::{SignedDuration, Timestamp},
};

use super::{
    execute::{Outcome, Receipt},
    memory::{discovered, last_stage},
    plan::{Done, Stop, is_break},
    wanted::Wanted,
};
use crate::host::{
    Access, DeviceId, Erased, LinkFound, Mapping, Observed, Path, PathMap, Portal, StepError,
    shown::shown,
};

/// Longest message of an error without its next step, in characters: tools and arrays have their words in it.
const MAX_MESSAGE: usize = 1500;

/// The status with a receipt in it.
pub fn with_receipt(
    old: &NodeVolumeStatus,
    receipt: &Receipt,
    node_name: &str,
    now: Timestamp,
) -> NodeVolumeStatus {
    let mut new = old.clone();
    match receipt {
        Receipt::PermitSpent { id } => {
            // Not `Header`: nothing is written yet.
            set_stage(&mut new, Stage::Identity, now);
            new.error = None;
            new.permit = Some(PermitReceipt {
                id: id.clone(),
                spent_at: Some(Time(now)),
            });
        }
        Receipt::Discovered(portals) => {
            let discovery = new.discovery.get_or_insert_default();
            discovery.portals = portals.iter().map(ToString::to_string).collect();
        }
        Receipt::Erased { erased, luks_uuid } => {
            set_stage(&mut new, Stage::Detaching, now);
            new.error = None;
            forget_backup(&mut new);
            new.erased
                .get_or_insert_with(|| erase_receipt(erased, luks_uuid, node_name, now));
        }
        Receipt::FirstOpened {
            device,
            facts,
            mapping,
            backup,
            ephemeral,
        } => {
            set_stage(&mut new, Stage::Mapping, now);
            new.error = None;
            new.device = Some(device_status(device));
            new.header = Some(facts.clone());
            new.mapping = Some(mapping_status(mapping));
            new.first_opened.get_or_insert(Time(now));
            set_backup(&mut new, backup.as_ref(), now);
            new.key_made = ephemeral.then(|| Time(now));
        }
        Receipt::KeyLost => {
            set_stage(&mut new, Stage::Pending, now);
            new.error = None;
            new.key_made = None;
            new.data_lost = Some(Time(now));
        }
    }
    new
}

/// The status after a run.
pub fn after(
    old: &NodeVolumeStatus,
    wanted: &Wanted,
    outcome: &Outcome,
    node_name: &str,
    now: Timestamp,
) -> NodeVolumeStatus {
    let mut new = old.clone();
    new.observed_generation = Some(wanted.generation);
    set_discovery(&mut new, wanted, outcome, now);
    if let Some(observed) = &outcome.observed {
        show(&mut new, wanted, observed, &outcome.lost);
        new.io_waits_until = io_waits_until(old, wanted, outcome, observed, now);
    }
    let mapping = outcome.observed.as_ref().and_then(|o| o.mapping.as_ref());
    let mapping = mapping.filter(|m| wanted.made_for_this_volume(&m.uuid));
    let shut = is_shut(wanted, outcome, mapping);
    if shut {
        // The key is out whatever disk is there, and nobody asked whose it is: only what is on record is told of, for what is told of a
        // volume without an error is taken into the record.
        new.device.take_if(|d| d.wwid != wanted.wwid);
    }
    if let Some(erased) = &outcome.erased
        && new.erased.is_none()
    {
        let uuid = wanted.luks_uuid.as_deref().unwrap_or_default();
        new.erased = Some(erase_receipt(erased, uuid, node_name, now));
    }
    new.suspended = shut || mapping.is_some_and(|m| m.suspended);
    // Of a source whose size the kernel knows by itself a look is made by observing.
    let looked = outcome.scanned || wanted.query.source.shared().is_none();
    if matches!(outcome.end, Ok(Done::Attached { .. })) && looked {
        new.rescan.clone_from(&wanted.rescan);
    }
    set_backup(&mut new, outcome.backup.as_ref(), now);
    if new.erased.is_some() {
        forget_backup(&mut new);
    }
    let restored = wanted.header_restore.as_ref().map(|r| r.id.clone());
    new.header_restored = match &outcome.end {
        Ok(Done::Attached { .. }) => restored,
        _ => new
            .header_restored
            .filter(|id| Some(id) == restored.as_ref()),
    };
    new.proof = proof(old.proof.as_ref(), wanted, outcome, now);
    new.rotation = rotation(old.rotation.as_ref(), wanted, outcome, now);
    match &outcome.end {
        Ok(done) => {
            let stage = match done {
                Done::Attached { facts } => {
                    set_header(&mut new, facts, outcome);
                    Stage::Attached
                }
                Done::Suspended => Stage::Attached,
                Done::RecordMade => Stage::Header,
                Done::HeaderFound { facts } => {
                    set_header(&mut new, facts, outcome);
                    Stage::Header
                }
                Done::Detached | Done::Erased(_) => {
                    new.key_made = None; // gone with the mapping, as was wanted
                    last_stage(wanted.desired)
                }
            };
            set_stage(&mut new, stage, now);
            new.error = None;
        }
        Err(stop) => set_error(&mut new, stop, now),
    }
    new
}

/// The volume is to have no key in the kernel and has none, whatever else is to be said of it.
fn is_shut(wanted: &Wanted, outcome: &Outcome, mapping: Option<&Mapping>) -> bool {
    let wished = wanted.suspended && wanted.desired == Desired::Attached;
    matches!(outcome.end, Ok(Done::Suspended))
        || (wished && mapping.is_some_and(Mapping::is_closed))
}

fn erase_receipt(
    erased: &Erased,
    luks_uuid: &str,
    node_name: &str,
    now: Timestamp,
) -> EraseReceipt {
    EraseReceipt {
        luks_uuid: luks_uuid.to_owned(),
        key_slots_wiped: i32::try_from(erased.key_slots_wiped).unwrap_or(i32::MAX),
        verified: erased.verified,
        at: Time(now),
        node_name: node_name.to_owned(),
    }
}

/// The status of a volume on which nothing could be tried.
pub fn refused(
    old: &NodeVolumeStatus,
    generation: i64,
    stop: &Stop,
    now: Timestamp,
) -> NodeVolumeStatus {
    let mut new = old.clone();
    new.observed_generation = Some(generation);
    set_error(&mut new, stop, now);
    new
}

fn set_stage(status: &mut NodeVolumeStatus, stage: Stage, now: Timestamp) {
    if status.stage != stage || status.since.is_none() {
        status.stage = stage;
        status.since = Some(Time(now));
    }
}

/// The time of an error is that of its first sight.
fn set_error(status: &mut NodeVolumeStatus, stop: &Stop, now: Timestamp) {
    set_stage(status, stop.stage, now);
    status.error = Some(error_of(
        status.error.as_ref(),
        stop.reason,
        &stop.message,
        now,
    ));
}

fn error_of(old: Option<&LastError>, reason: Reason, what: &str, now: Timestamp) -> LastError {
    let message = conditions::message(reason, &shown(what, MAX_MESSAGE));
    match old.filter(|e| e.reason == reason.as_str() && e.message == message) {
        Some(same) => same.clone(),
        None => LastError {
            reason: reason.as_str().to_owned(),
            message,
            time: Time(now),
        },
    }
}

/// What the last proof showed, as long as there is a mapping to speak of.
fn proof(
    old: Option<&ProofStatus>,
    wanted: &Wanted,
    outcome: &Outcome,
    now: Timestamp,
) -> Option<ProofStatus> {
    let Some(observed) = &outcome.observed else {
        return old.cloned();
    };
    if !wanted.encryption.provider.encrypts() {
        return None;
    }
    let mapping = observed.mapping.as_ref();
    let mapping = mapping.filter(|m| wanted.made_for_this_volume(&m.uuid))?;
    let since = |holds| match old.filter(|o| o.holds == holds) {
        Some(same) => same.since.clone(),
        None => Time(now),
    };
    match &outcome.end {
        Err(stop) if is_break(stop) && (stop.reason != Reason::NotOurs || old.is_some()) => {
            let before = old.and_then(|o| o.error.as_ref());
            Some(ProofStatus {
                holds: false,
                since: since(false),
                error: Some(error_of(before, stop.reason, &stop.message, now)),
            })
        }
        // A person wanted it suspended: whatever was found, it is looked at anew after that.
        _ if is_shut(wanted, outcome, Some(mapping)) => None,
        // Also where something beside it is not as it should be.
        _ if outcome.proven && observed.link == LinkFound::To(mapping.path.clone()) => {
            Some(ProofStatus {
                holds: true,
                since: since(true),
                error: None,
            })
        }
        _ => old.cloned(),
    }
}

/// What was done of the rotation that is wanted; nothing where none is.
fn rotation(
    old: Option<&NodeRotationStatus>,
    wanted: &Wanted,
    outcome: &Outcome,
    now: Timestamp,
) -> Option<NodeRotationStatus> {
    let NodeRotation { phase, key_id, .. } = wanted.rotation.as_ref()?;
    let before = old.filter(|r| (r.phase, &r.key_id) == (*phase, key_id));
    let backup = outcome.backup.as_ref().and_then(|b| b.as_ref().ok());
    let of = |done, former_slots, error| NodeRotationStatus {
        header_backup: backup
            .filter(|_| done && *phase == RotationPhase::Adding)
            .cloned(),
        phase: *phase,
        key_id: key_id.clone(),
        done,
        former_slots,
        error,
    };
    match &outcome.rotation {
        None => before.cloned(),
        Some(Ok(former)) => Some(of(true, former.clone(), None)),
        Some(Err(e)) => {
            let error = error_of(
                before.and_then(|b| b.error.as_ref()),
                e.reason(),
                &e.message,
                now,
            );
            Some(of(false, vec![], Some(error)))
        }
    }
}

/// What the array told of further portals. Off the node nothing of it is left: the next attachment asks anew.
fn set_discovery(
    status: &mut NodeVolumeStatus,
    wanted: &Wanted,
    outcome: &Outcome,
    now: Timestamp,
) {
    if matches!(outcome.end, Ok(Done::Detached | Done::Erased(_))) {
        status.discovery = None;
        return;
    }
    // What is in use stays in use until the volume is off the node.
    if wanted.discovery.is_none() {
        status.discovery.take_if(|d| d.portals.is_empty());
        if let Some(discovery) = &mut status.discovery {
            (discovery.ignored, discovery.error) = (vec![], None);
        }
        return;
    }
    match &outcome.discovery {
        None => {}
        Some(Ok(found)) => {
            let discovery = status.discovery.get_or_insert_default();
            discovery.ignored.clone_from(&found.ignored);
            discovery.error = None;
        }
        Some(Err(e)) => {
            let discovery = status.discovery.get_or_insert_default();
            let old = discovery.error.as_ref();
            discovery.error = Some(error_of(old, e.reason(), &e.message, now));
        }
    }
}

/// The backup that was made in this run, or why none could be.
fn set_backup(
    status: &mut NodeVolumeStatus,
    made: Option<&Result<HeaderBackup, StepError>>,
    now: Timestamp,
) {
    match made {
        None => {}
        Some(Ok(backup)) => {
            status.header_backup = Some(backup.clone());
            status.header_backup_error = None;
        }
        Some(Err(e)) => {
            let old = status.header_backup_error.as_ref();
            status.header_backup_error = Some(error_of(old, e.reason(), &e.message, now));
        }
    }
}

/// Of an erased volume nothing is kept that its key opens.
fn forget_backup(status: &mut NodeVolumeStatus) {
    status.header_backup = None;
    status.header_backup_error = None;
}

fn set_header(status: &mut NodeVolumeStatus, facts: &HeaderFacts, outcome: &Outcome) {
    status.header = Some(facts.clone());
    if let Some(derivations) = &outcome.derivations {
        status.derivations.clone_from(derivations);
    }
}

/// Portal, device, mapping and link as observed. The link is shown only while it leads to a mapping of this volume.
fn show(status: &mut NodeVolumeStatus, wanted: &Wanted, observed: &Observed, lost: &[StepError]) {
    let portal = observed.session().and_then(|s| s.portal.as_ref());
    status.portal = portal.map(ToString::to_string);
    let portals = wanted.portals(&discovered(status));
    status.paths = paths(&portals, observed, lost);
    status.io_fails = without_path(observed).is_some_and(|m| !m.queues && m.replaced_by.is_none());
    status.device = observed.device().map(|d| device_status(&d.id));
    let ours = observed
        .mapping
        .as_ref()
        .filter(|m| wanted.made_for_this_volume(&m.uuid));
    status.mapping = ours.map(mapping_status);
    status.link = ours
        .filter(|m| observed.link == LinkFound::To(m.path.clone()))
        .map(|_| wanted.query.link.clone());
    status.shadow = ours
        .filter(|m| observed.names.leads.as_ref() == Some(&m.path))
        .and(wanted.query.shadow.clone());
}

/// The map, where none of its paths works.
fn without_path(observed: &Observed) -> Option<&PathMap> {
    let lost = observed.multipath && !observed.is_reachable();
    observed.map.as_ref().filter(|_| lost)
}

/// Until when I/O waits for a path, where the kernel has it wait. What was said of it stays said, so that it is written once; an agent that
/// began anew counts anew, and says so once what was said is over.
fn io_waits_until(
    old: &NodeVolumeStatus,
    wanted: &Wanted,
    outcome: &Outcome,
    observed: &Observed,
    now: Timestamp,
) -> Option<Time> {
    without_path(observed).filter(|m| m.queues)?;
    if let Some(Time(said)) = &old.io_waits_until
        && *said >= now
    {
        return old.io_waits_until.clone();
    }
    let left = wanted.no_path_timeout.saturating_sub(outcome.cut_off?);
    let until = now.checked_add(SignedDuration::try_from(left).ok()?).ok()?;
    let whole = Timestamp::from_second(until.as_second()).ok()?;
    Some(Time(whole))
}

/// Whether two statuses differ in nothing but what they say of paths: which portals work, and what follows from it, the session and the
/// kernel's name of the disk that are shown. Worth telling, and not each time that a portal comes and goes.
pub fn only_paths_changed(old: &NodeVolumeStatus, new: &NodeVolumeStatus) -> bool {
    let mut same = old.clone();
    same.paths.clone_from(&new.paths);
    same.portal.clone_from(&new.portal);
    if let (Some(device), Some(now)) = (&mut same.device, &new.device) {
        device.path.clone_from(&now.path);
    }
    old.paths != new.paths && same == *new
}

/// One for each portal, where several paths are wanted and the volume is on this node.
fn paths(portals: &[Portal], observed: &Observed, lost: &[StepError]) -> Vec<PathStatus> {
    let Some(map) = observed.map.as_ref().filter(|_| observed.multipath) else {
        return vec![];
    };
    let own = map.device.id.path.strip_prefix("/dev/");
    let status = |portal: &Portal| {
        let through = |p: &&Path| {
            let session = p.session.as_ref();
            session.is_some_and(|s| s.portal.as_ref().is_some_and(|p| p.is(portal)))
        };
        let path = observed.paths.iter().find(through);
        let disk = path.and_then(|p| p.disk.as_ref());
        let session = path.and_then(|p| p.session.as_ref());
        let up = path.is_some_and(|p| p.is_used_by(map));
        let why = match (session, disk) {
            _ if up => None,
            (None, _) => Some("no session".to_owned()),
            (Some(s), _) if !s.is_up() => Some(format!("its session is {}", s.state)),
            (_, None) => Some("its session shows no disk".to_owned()),
            (_, Some(_)) if map.replaced_by.is_some() => {
                Some("the map above it has another table".to_owned())
            }
            (_, Some(d)) if d.id.wwid != map.device.id.wwid => Some(format!(
                "its disk has WWID {}",
                d.id.wwid.as_deref().unwrap_or("none")
            )),
            (_, Some(d)) if d.state != "running" => Some(format!("its disk is {}", d.state)),
            (_, Some(d)) if !d.takes_io() => match d.access {
                Some(Access::Standby) if map.has(&d.id.dev) => None,
                access => Some(format!(
                    "the array says that it is {}",
                    access.map_or("unknown", Access::as_str)
                )),
            },
            (_, Some(d)) => Some(match d.holders.iter().find(|h| own != Some(h.as_str())) {
                Some(other) => shown(&format!("its disk is held by {other}"), 256),
                None => "the kernel does not use it".to_owned(),
            }),
        };
        // What was said of it names the portal or begins with the disk.
        let portal_text = portal.to_string();
        let disk_text = disk.map(|d| format!("{} ", d.id.path));
        let about = |m: &&str| {
            let of_disk = disk_text.as_ref().is_some_and(|d| m.starts_with(d));
            m.contains(&portal_text) || of_disk
        };
        let said = lost.iter().map(|e| e.message.as_str()).find(about);
        PathStatus {
            portal: portal_text,
            up,
            access: disk.and_then(|d| d.access).map(|a| a.as_str().to_owned()),
            device: disk.map(|d| d.id.path.clone()),
            why: why.map(|why| match said {
                Some(said) => shown(&format!("{why}: {said}"), 256),
                None => why,
            }),
        }
    };
    portals.iter().map(status).collect()
}

fn device_status(device: &DeviceId) -> DeviceStatus {
    DeviceStatus {
        path: device.path.clone(),
        wwid: device.wwid.clone(),
        size_bytes: i64::try_from(device.size_bytes).unwrap_or(i64::MAX),
    }
}

fn mapping_status(mapping: &Mapping) -> MappingStatus {
    MappingStatus {
        name: mapping.name.clone(),
        path: mapping.path.clone(),
        size_bytes: i64::try_from(mapping.size_bytes).unwrap_or(i64::MAX),
        options: mapping
            .table
            .as_ref()
            .map(|t| t.options.clone())
            .unwrap_or_default(),
    }
}
