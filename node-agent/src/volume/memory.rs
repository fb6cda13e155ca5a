//! What was remembered: across restarts in the NodeVolume's own status, within a process in `Hand`, within one run in `Run`.
//! None of it replaces what the kernel says; it holds only what the kernel cannot know.

use cryptvol_crds::v1alpha1::{
    Desired, EraseReceipt, HeaderBackup, HeaderFacts, KeySlotRef, NodeRotationStatus,
    NodeVolumeStatus, Stage,
};

use cryptvol_crds::conditions::Reason;

use std::time::Instant;

use super::wanted::{Wanted, portal};
use crate::host::{
    DeviceId, Discovered, Erased, HeaderFound, Initialised, Observed, Path, PathMap, Portal,
    StepError,
};

/// What the NodeVolume's status says, as last acknowledged by the API server.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Memory {
    /// Id of the permit that was recorded as spent.
    pub permit: Option<String>,
    /// Whether the mapping was ever made on this node.
    pub opened: bool,
    /// Of an ephemeral volume: a mapping was made and recorded, and not taken down since.
    pub key_made: bool,
    /// Facts of the header as last reported.
    pub facts: Option<HeaderFacts>,
    /// How its keys are derived, as last reported.
    pub derivations: Vec<String>,
    /// WWID as last reported.
    pub wwid: Option<String>,
    /// Size of the raw device in bytes as last reported.
    pub size_bytes: Option<u64>,
    /// Receipt of an erasure.
    pub erased: Option<EraseReceipt>,
    /// A backup of the header was reported, or can never be made.
    pub backed_up: bool,
    /// A header that lies apart from the disk was made here and reported.
    pub record_made: bool,
    /// What was done of a rotation.
    pub rotation: Option<NodeRotationStatus>,
    /// A sample was not of this volume's ciphertext.
    pub broken: Option<BrokenSample>,
    /// Name of the last look at the disk's size that was asked for and made.
    pub rescan: Option<String>,
    /// Portals in use that an array told of.
    pub discovered: Vec<Portal>,
    /// Nothing of this volume was left on the node, for this generation of the spec.
    pub detached_at: Option<i64>,
}

impl Memory {
    /// Reads a status.
    pub fn read(status: &NodeVolumeStatus) -> Self {
        let device = status.device.as_ref();
        Self {
            permit: status.permit.as_ref().map(|p| p.id.clone()),
            opened: status.first_opened.is_some(),
            key_made: status.key_made.is_some(),
            facts: status.header.clone(),
            derivations: status.derivations.clone(),
            wwid: device.and_then(|d| d.wwid.clone()),
            size_bytes: device.and_then(|d| u64::try_from(d.size_bytes).ok()),
            erased: status.erased.clone(),
            backed_up: status.header_backup.is_some()
                || status
                    .header_backup_error
                    .as_ref()
                    .is_some_and(|e| e.reason == Reason::HeaderBackupUnsupported.as_str()),
            record_made: status.header_backup.is_some(),
            rotation: status.rotation.clone(),
            broken: broken(status),
            rescan: status.rescan.clone(),
            discovered: discovered(status),
            detached_at: status.observed_generation.filter(|_| {
                status.error.is_none() && matches!(status.stage, Stage::Detached | Stage::Erased)
            }),
        }
    }
}

/// Portals in use that an array told of.
pub fn discovered(status: &NodeVolumeStatus) -> Vec<Portal> {
    let portals = status.discovery.iter().flat_map(|d| &d.portals);
    portals.filter_map(|p| portal(p)).collect()
}

/// What a sample of the disk shows where the disk is not this volume's ciphertext.
pub const BROKEN: [Reason; 2] = [Reason::PlaintextOnDisk, Reason::IntegrityViolated];

/// What a sample of the disk showed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokenSample {
    /// One of [`BROKEN`].
    pub reason: Reason,
    /// Where.
    pub what: String,
}

fn broken(status: &NodeVolumeStatus) -> Option<BrokenSample> {
    let error = status.proof.as_ref()?.error.as_ref()?;
    let reason = BROKEN.into_iter().find(|r| error.reason == r.as_str())?;
    let what = error.message.strip_suffix(reason.next_step());
    let what = what.unwrap_or(&error.message).trim().trim_end_matches('.');
    Some(BrokenSample {
        reason,
        what: what.to_owned(),
    })
}

/// What this process knows of one volume from one run to the next. Lost when it ends, on purpose.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hand {
    /// Since when no path of a volume that has several works.
    pub cut_off: Option<Instant>,
    /// Permit that this process recorded (or tried to record) as spent and has not used: no byte was written with it. It
    /// counts only together with the receipt in [`Memory`], and is given up before the first write.
    pub permit: Option<String>,
    /// Bytes of a new volume that were initialised and are on stable storage. What it forgets, the disk shows.
    pub initialised: u64,
}

/// What one run has found out and done so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Run {
    /// The header as read in this run.
    pub reading: Option<Reading>,
    /// Whether the passphrase is in hand.
    pub key: bool,
    /// The key opened no slot of the volume's own header, which was never opened yet: an interrupted format leaves a
    /// header like this, whose key slot was never written.
    pub torn: bool,
    /// Facts of the header that this run wrote.
    pub written: Option<HeaderFacts>,
    /// How far a new volume was initialised in this run.
    pub initialised: Option<Initialised>,
    /// The kernel read the LUN's identity anew in this run, or a loop device was given its file.
    pub scanned: bool,
    /// Devices without use that were removed to be found anew, as major:minor; once is enough.
    pub purged: Vec<String>,
    /// A broken mapping was closed to be made anew; once is enough.
    pub closed: bool,
    /// Sessions that were left as far as they are ours to leave.
    pub logged_out: Vec<u32>,
    /// Of several paths: what the array told of further portals, or why it did not.
    pub discovery: Option<Result<Discovered, StepError>>,
    /// Of several paths: sessions were asked for.
    pub logged_in: bool,
    /// Of several paths: sessions in which the disk was looked for, found or not.
    pub tried: Vec<u32>,
    /// Of several paths: sessions in which the kernel read the disk's identity anew.
    pub seen: Vec<u32>,
    /// Of several paths: the map was made what it shall be.
    pub gathered: bool,
    /// Of several paths: what did not succeed on one of them, and ended nothing.
    pub lost: Vec<StepError>,
    /// The file that stands for the disk was made.
    pub file_made: bool,
    /// The file that stands for the disk was made longer, and its loop device with it.
    pub lengthened: bool,
    /// The file of a volume that is over was removed, as far as it is this volume's.
    pub file_removed: bool,
    /// Key slots of a header were wiped.
    pub wiped: bool,
    /// The header of an erased volume was removed, or cannot be.
    pub header_settled: bool,
    /// Key slots were wiped, or there are none.
    pub erased: Option<Erased>,
    /// The name that an attached volume shadows could not be kept from others or given to its mapping.
    pub name: Option<StepError>,
    /// What the comparison of mapping and disk showed: that they differ, or where they do not.
    pub sample: Option<Result<(), StepError>>,
    /// Backup of the header, or why there is none.
    pub backup: Option<Result<HeaderBackup, StepError>>,
    /// The header was written anew from its backup, or was found to open.
    pub restored: bool,
    /// How the step of a rotation ended; with the key slots that the key that goes opens, where it found them.
    pub rotation: Option<Result<Vec<KeySlotRef>, StepError>>,
}

impl Run {
    /// Memory that opening the header takes, as it was read in this run and judged.
    pub fn unlock_memory_kib(&self) -> u32 {
        match self.reading.as_ref().map(|r| &r.found) {
            Some(HeaderFound::Luks(header)) => header.unlock_memory_kib,
            _ => 0,
        }
    }
}

impl Run {
    /// Whether the kernel read the disk's identity and size anew, on each path that I/O goes through: a size that one path still has as it was
    /// is the size of the map.
    pub fn looked(&self, observed: Option<&Observed>) -> bool {
        let missed = |map: &PathMap, path: &Path| {
            let sid = path.session.as_ref().map(|s| s.sid);
            let missed = sid.is_some_and(|s| self.tried.contains(&s) && !self.seen.contains(&s));
            missed && path.is_used_by(map)
        };
        let in_use = observed.and_then(|o| Some((o, o.map_in_use()?)));
        self.scanned && in_use.is_none_or(|(o, map)| !o.paths.iter().any(|p| missed(map, p)))
    }

    /// How the header's keys are derived, as it was read in this run.
    pub fn derivations(&self) -> Option<Vec<String>> {
        match self.reading.as_ref().map(|r| &r.found) {
            Some(HeaderFound::Luks(header)) => Some(header.derivations.clone()),
            _ => None,
        }
    }

    /// How they may be derived: as in the header that was judged in this run, or else as was pinned.
    pub fn derivations_or(&self, wanted: &Wanted) -> Vec<String> {
        self.derivations()
            .unwrap_or_else(|| wanted.derivations.clone())
    }
}

/// A header and the device that it was read from. For another device it is worth nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    /// The device.
    pub device: DeviceId,
    /// What was found.
    pub found: HeaderFound,
}

/// Stage that a desired state ends with.
pub fn last_stage(desired: Desired) -> Stage {
    match desired {
        Desired::Attached => Stage::Attached,
        Desired::Detached => Stage::Detached,
        Desired::Erased => Stage::Erased,
    }
}
