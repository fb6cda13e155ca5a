//! The one next step for a volume: a pure function of what is wanted, what was remembered and what is observed.
//!
//! Nothing here does I/O. After a crash at any step the same function is called with what the kernel says then, and goes on
//! from there: no step relies on an earlier one having been remembered, except the receipts in the status that are
//! acknowledged before the step they guard.

#![allow(clippy::result_large_err)] // `Err` is the way out of a chain of questions, taken once a step

mod alua;
mod checks;
mod detached;
mod down;
mod erase;
mod header_backup;
mod headerless;
mod live;
mod names;
mod paths;
mod prove;
mod reach;
mod rotate;
mod up;

use cryptvol_crds::{
    conditions::Reason,
    v1alpha1::{Desired, HeaderBackup, HeaderFacts, KeySlotRef, Stage},
};

pub use header_backup::needs_backup;
pub use prove::is_break;

use super::{
    memory::{Hand, Memory, Run},
    wanted::Wanted,
};
use crate::host::{
    BackingFile, DeviceId, Erased, Lun, MapOrder, Mapping, NameTo, Observed, Session,
};

/// What to do next.
#[derive(Clone, Debug, PartialEq)]
pub enum Next {
    /// Do this, then ask again.
    Do(Step),
    /// The end of this run, all well.
    Done(Done),
    /// The end of this run: something stands in the way.
    Stop(Stop),
}

/// One step. Each is idempotent.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Log in to the target.
    Login {
        /// The volume's.
        lun: Lun,
        /// Through each portal, not through one of them.
        each: bool,
    },
    /// Ask the array for further portals, and record those that are to be used.
    Discover,
    /// Make the map above several paths, or make it what it shall be.
    Gather(MapOrder),
    /// Add the LUN, or read its identity anew.
    Scan {
        /// What to look for.
        lun: Lun,
        /// Session.
        sid: u32,
    },
    /// Make the file that stands for the disk.
    MakeFile(BackingFile),
    /// Offer the file by a loop device.
    AttachFile(BackingFile),
    /// Read what the disk begins with.
    ReadHeader(DeviceId),
    /// Ask the operator for the passphrase.
    ReleaseKey,
    /// Record the permit as spent; acknowledged by the API server before anything is written.
    SpendPermit {
        /// Id of the permit.
        id: String,
    },
    /// Write a header.
    Format {
        /// Where.
        device: DeviceId,
        /// UUID to write.
        luks_uuid: String,
    },
    /// Unlock and map.
    Open {
        /// Raw device.
        device: DeviceId,
        /// What the header must be.
        expected: HeaderFacts,
        /// Device-mapper UUID of the mapping.
        mapping_uuid: String,
        /// The device must be blank.
        blank: bool,
    },
    /// Write zeros through a new mapping whose sectors are authenticated, for a few seconds.
    Initialise(Box<Mapping>),
    /// Record that the volume was opened; acknowledged before the link is made, so that no data can be written on a
    /// volume whose permit could still be taken for unspent.
    RecordFirstOpened {
        /// Facts of the header.
        facts: HeaderFacts,
    },
    /// Record that the random key of an ephemeral volume is gone, and the data with it; acknowledged before another one is made.
    RecordKeyLost,
    /// Make the link lead to the mapping.
    Link(Mapping),
    /// Give a name of udev's to the mapping, to nobody, or back.
    Name {
        /// The name.
        name: String,
        /// Who gets it.
        to: NameTo,
    },
    /// Remove the link.
    Unlink,
    /// Remove the mapping.
    Close {
        /// Its UUID.
        uuid: String,
    },
    /// Remove the raw device from the kernel.
    DeleteDevice(DeviceId),
    /// End the session.
    Logout {
        /// Name of the target.
        iqn: String,
        /// Session.
        sid: u32,
    },
    /// Wipe the key slots.
    Erase {
        /// Where.
        device: DeviceId,
        /// UUID that the header must have.
        luks_uuid: String,
    },
    /// Record that the key slots were wiped; acknowledged before the header or the file goes, without which nothing could be shown
    /// any more.
    RecordErased(Erased),
    /// Remove the header without key slots of an erased volume.
    ClearHeader {
        /// Where.
        device: DeviceId,
        /// UUID that the header must have.
        luks_uuid: String,
    },
    /// Make the file longer, and its loop device with it.
    LengthenFile {
        /// The loop device.
        device: DeviceId,
        /// The file, and how long it shall be.
        file: BackingFile,
    },
    /// Remove the file of a volume that is erased, or whose random key is gone.
    RemoveFile(BackingFile),
    /// Make the mapping as long as its disk is by now.
    Grow {
        /// Raw device.
        device: DeviceId,
        /// What the header must be.
        expected: HeaderFacts,
        /// Device-mapper UUID of the mapping.
        mapping_uuid: String,
    },
    /// Compare what the mapping reads with what lies on the disk.
    Sample {
        /// Raw device.
        device: DeviceId,
        /// The mapping.
        mapping: Box<Mapping>,
    },
    /// Suspend the mapping and wipe its key from the kernel.
    Suspend {
        /// Its UUID.
        uuid: String,
    },
    /// Give the mapping its key again and let I/O go on.
    Resume {
        /// Raw device.
        device: DeviceId,
        /// What the header must be.
        expected: HeaderFacts,
        /// Device-mapper UUID of the mapping.
        mapping_uuid: String,
    },
    /// Rotation: give the header a key slot for the new key. Gets both keys itself, and drops them when it ends.
    AddKeySlot {
        /// Where.
        device: DeviceId,
        /// What the header must be.
        expected: HeaderFacts,
    },
    /// Rotation: wipe the key slots of the former key.
    DropKeySlots {
        /// Where.
        device: DeviceId,
        /// What the header must be.
        expected: HeaderFacts,
        /// Which.
        former: Vec<KeySlotRef>,
    },
    /// Make a header that lies apart from the disk. Nothing is written anywhere but into the report.
    MakeRecord {
        /// UUID that it gets.
        luks_uuid: String,
    },
    /// Make a backup of the header.
    BackupHeader {
        /// Where.
        device: DeviceId,
        /// What the header must be.
        expected: HeaderFacts,
    },
    /// Write the header anew from its backup, where it is missing or damaged.
    RestoreHeader {
        /// Where.
        device: DeviceId,
        /// What the header must be then.
        expected: HeaderFacts,
        /// The backup.
        backup: Box<HeaderBackup>,
    },
    /// Note that this volume has no key slot anywhere: none was ever written, or the disk of a volume that was never
    /// opened does not carry its header. No effect on the node.
    NothingToErase {
        /// Whether the disk was read.
        verified: bool,
    },
}

impl Step {
    fn scan(lun: &Lun, session: &Session) -> Self {
        Self::Scan {
            lun: lun.clone(),
            sid: session.sid,
        }
    }

    fn logout(lun: &Lun, session: &Session) -> Self {
        Self::Logout {
            iqn: lun.target.iqn.clone(),
            sid: session.sid,
        }
    }

    /// Name in logs, metrics and fail points.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Login { .. } => "login",
            Self::Discover => "discover",
            Self::Gather(_) => "gather-paths",
            Self::Scan { .. } => "scan",
            Self::MakeFile(_) => "make-file",
            Self::AttachFile(_) => "attach-file",
            Self::ReadHeader(_) => "read-header",
            Self::ReleaseKey => "release-key",
            Self::SpendPermit { .. } => "spend-permit",
            Self::Format { .. } => "format",
            Self::Open { .. } => "open",
            Self::Initialise(_) => "initialise",
            Self::RecordFirstOpened { .. } => "record-first-opened",
            Self::RecordKeyLost => "record-key-lost",
            Self::Link(_) => "link",
            Self::Name { to, .. } => match to {
                NameTo::Nobody => "take-name",
                NameTo::Mapping(_) => "give-name",
                NameTo::Everybody => "free-name",
            },
            Self::Unlink => "unlink",
            Self::Close { .. } => "close",
            Self::DeleteDevice(_) => "delete-device",
            Self::Logout { .. } => "logout",
            Self::Erase { .. } => "erase",
            Self::RecordErased(_) => "record-erased",
            Self::ClearHeader { .. } => "clear-header",
            Self::LengthenFile { .. } => "lengthen-file",
            Self::RemoveFile(_) => "remove-file",
            Self::Grow { .. } => "grow",
            Self::Sample { .. } => "sample",
            Self::Suspend { .. } => "suspend",
            Self::Resume { .. } => "resume",
            Self::AddKeySlot { .. } => "add-key-slot",
            Self::DropKeySlots { .. } => "drop-key-slots",
            Self::MakeRecord { .. } => "make-record",
            Self::BackupHeader { .. } => "backup-header",
            Self::RestoreHeader { .. } => "restore-header",
            Self::NothingToErase { .. } => "nothing-to-erase",
        }
    }

    /// Names of all steps.
    pub const NAMES: &'static [&'static str] = &[
        "login",
        "discover",
        "gather-paths",
        "scan",
        "make-file",
        "attach-file",
        "read-header",
        "release-key",
        "spend-permit",
        "format",
        "open",
        "initialise",
        "record-first-opened",
        "record-key-lost",
        "take-name",
        "give-name",
        "free-name",
        "link",
        "unlink",
        "close",
        "delete-device",
        "logout",
        "erase",
        "record-erased",
        "clear-header",
        "lengthen-file",
        "remove-file",
        "grow",
        "sample",
        "suspend",
        "resume",
        "add-key-slot",
        "drop-key-slots",
        "make-record",
        "backup-header",
        "restore-header",
        "nothing-to-erase",
    ];

    /// Stage that this step belongs to, for the report when it fails.
    pub fn stage(&self) -> Stage {
        match self {
            Self::Login { .. } | Self::Discover => Stage::Session,
            Self::Gather(_) | Self::Scan { .. } | Self::MakeFile(_) | Self::AttachFile(_) => {
                Stage::Device
            }
            Self::ReadHeader(_) | Self::SpendPermit { .. } | Self::Format { .. } => Stage::Header,
            Self::RestoreHeader { .. } | Self::MakeRecord { .. } => Stage::Header,
            Self::BackupHeader { .. } => Stage::Mapping,
            Self::ReleaseKey => Stage::KeyRelease,
            Self::RecordKeyLost => Stage::Pending,
            Self::Open { .. }
            | Self::Initialise(_)
            | Self::RecordFirstOpened { .. }
            | Self::Sample { .. } => Stage::Mapping,
            Self::Link(_)
            | Self::LengthenFile { .. }
            | Self::Grow { .. }
            | Self::Suspend { .. }
            | Self::Resume { .. }
            | Self::AddKeySlot { .. }
            | Self::DropKeySlots { .. } => Stage::Attached,
            Self::Name { to, .. } => match to {
                NameTo::Nobody => Stage::Device,
                NameTo::Mapping(_) => Stage::Attached,
                NameTo::Everybody => Stage::Detaching,
            },
            Self::Unlink
            | Self::Close { .. }
            | Self::DeleteDevice(_)
            | Self::Logout { .. }
            | Self::Erase { .. }
            | Self::RecordErased(_)
            | Self::ClearHeader { .. }
            | Self::RemoveFile(_)
            | Self::NothingToErase { .. } => Stage::Detaching,
        }
    }

    /// Whether the step belongs to a rotation: its failure is told of and ends nothing else.
    pub fn is_rotation(&self) -> bool {
        matches!(self, Self::AddKeySlot { .. } | Self::DropKeySlots { .. })
    }

    /// Whether the step is about one of several paths, or about those of a volume in use: its failure is told of and ends nothing else.
    pub fn concerns_one_path(&self, observed: &Observed) -> bool {
        match self {
            Self::Login { each, .. } => *each,
            Self::Scan { .. } => observed.multipath || observed.map_in_use().is_some(),
            Self::Gather(_) | Self::DeleteDevice(_) => {
                observed.mapping.is_some() && observed.map_in_use().is_some()
            }
            _ => false,
        }
    }

    /// Whether the step is about the name of a volume that has its mapping: its failure is told of, and ends nothing that concerns the mapping.
    pub fn is_beside_mapping(&self, wanted: &Wanted, observed: &Observed) -> bool {
        let up = wanted.desired == Desired::Attached && observed.mapping.is_some();
        up && matches!(self, Self::Name { .. })
    }

    /// Whether the step, of those that concern a target, is about one disk of it.
    pub fn concerns_one_disk(&self) -> bool {
        matches!(self, Self::Scan { .. } | Self::DeleteDevice(_))
    }

    /// Whether the step changes what a target's session holds: such steps of volumes that share a target go one by one.
    pub fn concerns_target(&self) -> bool {
        matches!(
            self,
            Self::Login { .. } | Self::Scan { .. } | Self::DeleteDevice(_) | Self::Logout { .. }
        )
    }
}

/// Where a run ended well.
#[derive(Clone, Debug, PartialEq)]
pub enum Done {
    /// Mapping and link are there and verified.
    Attached {
        /// Facts of the header below the mapping.
        facts: HeaderFacts,
    },
    /// No key of the volume is in the kernel. Where there is a mapping, whoever has it open waits.
    Suspended,
    /// Import: the header is read and acceptable, and waits for the operator to pin it.
    HeaderFound {
        /// Facts of the header.
        facts: HeaderFacts,
    },
    /// A header that lies apart from the disk was made and reported, and waits for the operator to keep it.
    RecordMade,
    /// Nothing of the volume is left on the node.
    Detached,
    /// Nothing is left on the node and no key slot of this volume on the disk.
    Erased(Erased),
}

/// Why a run could not go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stop {
    /// Stage that could not be reached.
    pub stage: Stage,
    /// What kind of thing a person must do, if any.
    pub reason: Reason,
    /// What happened; the reason adds the next step.
    pub message: String,
}

fn stop(stage: Stage, reason: Reason, message: impl Into<String>) -> Next {
    Next::Stop(Stop {
        stage,
        reason,
        message: message.into(),
    })
}

/// Whether a header that does not open can be the rest of an interrupted format: one was begun, and the volume was never
/// opened since.
pub fn may_be_torn(wanted: &Wanted, memory: &Memory) -> bool {
    (memory.permit.is_some() || wanted.formatted_before)
        && !memory.opened
        && wanted.pinned.is_none()
}

/// Whether a step only serves to leave the disk of an erased volume blank. The receipt is on record, so that nothing waits for a
/// disk that cannot be had any more.
pub fn only_tidies(step: &Step, wanted: &Wanted, memory: &Memory) -> bool {
    wanted.desired == Desired::Erased
        && memory.erased.is_some()
        && matches!(
            step,
            Step::Login { .. }
                | Step::Scan { .. }
                | Step::Gather(_)
                | Step::AttachFile(_)
                | Step::ReadHeader(_)
                | Step::ClearHeader { .. }
        )
}

/// Decides the next step.
pub fn plan(wanted: &Wanted, memory: &Memory, hand: &Hand, run: &Run, observed: &Observed) -> Next {
    let at = At {
        wanted,
        memory,
        hand,
        run,
        observed,
    };
    match wanted.desired {
        Desired::Attached => at.up(),
        Desired::Detached => at.down(),
        Desired::Erased => at.erase(),
    }
}

/// All that a decision looks at.
struct At<'a> {
    wanted: &'a Wanted,
    memory: &'a Memory,
    hand: &'a Hand,
    run: &'a Run,
    observed: &'a Observed,
}
