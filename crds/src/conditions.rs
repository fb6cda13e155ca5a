//! Condition types, reasons, and the one way to change a list of conditions.
//!
//! A reason says what kind of thing a person must do, and `Reason::next_step` is the sentence that ends its message.

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};

/// The device is there for the hypervisor (EncryptedVolume), or the service answers (KeyService).
pub const READY: &str = "Ready";
/// Work is under way; false when done or when only a person can go on.
pub const PROGRESSING: &str = "Progressing";
/// References resolve and the operator can log in with the credentials.
pub const CREDENTIALS_VALID: &str = "CredentialsValid";
/// The key exists in the key manager.
pub const KEY_READY: &str = "KeyReady";
/// The node is logged in and the disk is the right one.
pub const DEVICE_VERIFIED: &str = "DeviceVerified";
/// The disk carries this volume's header.
pub const HEADER_VERIFIED: &str = "HeaderVerified";
/// What is written through the link is encrypted.
pub const ENCRYPTED: &str = "Encrypted";
/// The mapping exists and the link leads to it.
pub const ATTACHED: &str = "Attached";
/// The last rotation of the passphrase that was asked for, or was due, is done. Absent where there was none.
pub const KEY_ROTATED: &str = "KeyRotated";

/// What the node read last time from the raw disk and from the mapping shows that this volume's disk is below it, and that what lies on
/// it is not what a guest reads. Absent until it was looked at for the first time.
pub const ENCRYPTION_PROVEN: &str = "EncryptionProven";

/// A backup of the header is in the record. Absent for volumes without a LUKS2 header, and before the first opening.
pub const HEADER_BACKED_UP: &str = "HeaderBackedUp";

/// I/O goes through every portal of a volume that is reached through several at once. Absent where one path was always all that was wanted.
pub const PATHS_HEALTHY: &str = "PathsHealthy";

/// The array was asked for further portals of the volume's target. Absent where that was never wanted.
pub const PORTALS_DISCOVERED: &str = "PortalsDiscovered";

macro_rules! reasons {
    ($(#[doc = $doc:literal] $name:ident => $next:literal,)*) => {
        /// Why a condition is as it is: one word a cause, each with its next step.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason { $(#[doc = $doc] $name,)* }

        impl Reason {
            /// All reasons, for documentation and for parsing.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The word in conditions, Events, metrics and audit records.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)* }
            }

            /// What it means, as a sentence.
            pub fn meaning(self) -> &'static str {
                match self { $(Self::$name => $doc.trim_ascii(),)* }
            }

            /// What to do now, as a sentence; empty where nothing is to be done.
            pub fn next_step(self) -> &'static str {
                match self { $(Self::$name => $next,)* }
            }
        }
    };
}

reasons! {
    /// All is as wanted.
    AsDesired => "",
    /// Work is under way.
    InProgress => "",
    /// No attachment is wanted.
    Detached => "",
    /// An earlier stage is not done.
    Waiting => "",

    // What the operator finds.
    /// No such EncryptionClass, or no default one.
    EncryptionClassNotFound => "Name an existing EncryptionClass (kubectl get encryptionclasses) or mark one as default.",
    /// No such KeyService, or more than one and none named.
    KeyServiceNotFound => "Name an existing KeyService (kubectl get keyservices) in spec.keyServiceName.",
    /// No such Node.
    NodeNotFound => "Name an existing node (kubectl get nodes) in spec.attachments.",
    /// The agent's own check says that the node cannot do the job, or no agent runs there.
    NodeUnfit => "See the node's condition CryptvolReady (kubectl describe node) and mend what it names, or attach to another node.",
    /// A node that has the volume, or shall have it, does not answer.
    NodeNotReady => "Bring the node back, cryptvol goes on by itself. To attach the volume elsewhere, power the node off and say so: kubectl taint node NODE node.kubernetes.io/out-of-service=nodeshutdown:NoExecute.",
    /// A node went from the cluster without reporting that it let go of the volume.
    NodeGone => "The machine may still have the disk open. Make sure that it is powered off or was detached there, then say so: kubectl annotate encryptedvolume NAME cryptvol.dev/node-is-gone=NODE.",
    /// Another EncryptedVolume has the same disk (target and LUN, or local disk of the node).
    SourceInUse => "A disk belongs to one EncryptedVolume. Delete the other one first, or correct spec.source here (create the volume anew: what names the disk is immutable).",
    /// The credentials Secret is not there.
    CredentialsSecretNotFound => "Create the Secret named in spec.credentials.secretName in the volume's namespace, with a key clouds.yaml.",
    /// The clouds.yaml cannot be used.
    CredentialsInvalid => "Correct the clouds.yaml in the Secret named in spec.credentials.",
    /// The identity service does not accept the credentials.
    CredentialsRejected => "Put working credentials into the Secret named in spec.credentials: the identity service answered 401.",
    /// The application credential has expired.
    CredentialsExpired => "Create a new application credential and put it into the Secret named in spec.credentials.",
    /// Logged in, but not allowed.
    RoleMissing => "Give the user or application credential a role that may create and read secrets (member), in its project.",
    /// The identity/keys API does not answer or answers with a server error.
    KeyServiceUnavailable => "Check the KeyService's endpoint, its certificate and that it runs; cryptvol goes on by itself when it answers.",
    /// No key with that id.
    KeyNotFound => "Restore the key in the key manager under the same id; without it the disk cannot be read.",
    /// The key is not of a form that can open a volume.
    KeyUnusable => "Name a symmetric key or passphrase secret in spec.key.secretRef.",
    /// The key manager's quota is used up.
    KeyQuotaExceeded => "Raise the project's secret quota in the key manager or delete secrets that are not needed.",
    /// The project's limit of volumes, gibibytes or keys is used up.
    QuotaExceeded => "Raise the project's limit in the identity service (openstack limit set) or delete volumes that are not needed; nothing was made, and cryptvol goes on by itself when there is room.",
    /// The CHAP Secret is not there or incomplete.
    ChapSecretInvalid => "Create the Secret named in source.iscsi.chapSecretRef (for a discovery, in source.iscsi.discoveryChapSecretRef) with keys username and password, and for mutual CHAP username_in and password_in.",
    /// Erasure needs a node and there is none.
    EraseBlocked => "Bring the node or the array back, or set deletionPolicy to Retain to let the object go and keep key and data.",

    /// The namespace is being deleted, and what the deletion of the volume still needs cannot be made there any more.
    NamespaceTerminating => "Set deletionPolicy to Retain (kubectl patch encryptedvolume NAME --type=merge -p '{\"spec\":{\"deletionPolicy\":\"Retain\"}}'): volume and namespace go, and the key stays in the key manager until it is deleted there.",

    // What the agent finds.
    /// No answer from the portal.
    PortalUnreachable => "Check the portal's address and that the node reaches it; cryptvol tries again by itself.",
    /// The portal does not offer the target to this node.
    TargetNotFound => "Check source.iscsi.iqn, and that the array lets this node's initiator name in.",
    /// The target refused the login.
    ChapRejected => "Correct the CHAP credentials in the Secret named in source.iscsi.chapSecretRef, or on the array.",
    /// Mutual CHAP: whoever answers did not prove that it knows the target's secret.
    TargetNotAuthentic => "Make sure that the portal is the array's; then correct username_in and password_in in the Secret named in source.iscsi.chapSecretRef, or the target's own CHAP account on the array. Nothing was read or written.",
    /// The array refuses the discovery, or does not prove itself in it. The named portals are used.
    DiscoveryRejected => "Correct the CHAP credentials in the Secret named in source.iscsi.discoveryChapSecretRef, or those for discovery on the array; the named portals are used meanwhile.",
    /// The array could not be asked for further portals. The named portals are used.
    DiscoveryFailed => "Check that a portal in source.iscsi.portals answers a discovery of the target, or name all portals there and remove source.iscsi.discovery; the named ones are used meanwhile, and cryptvol asks again by itself.",
    /// The target has no such LUN.
    LunNotFound => "Check source.iscsi.lun and that the array maps it to this node; cryptvol tries again by itself.",
    /// No such device or file on the node.
    DeviceNotFound => "Check the path in spec.source on that node; cryptvol looks again by itself. A file of a volume that was opened once is never made anew: bring it back.",
    /// The device is mounted, has partitions or something stacked on it, or is the node's own.
    DeviceInUse => "Name a device that nothing else uses, or free this one; nothing was read or written.",
    /// What lies at the path cannot serve as a disk.
    FileNotUsable => "Move away what lies at source.file.path on that node, or name another file; nothing was written.",
    /// The volume cannot be made longer: its sectors are authenticated, and their tags have their place.
    GrowUnsupported => "It goes on as long as it was made, and nothing is lost: leave its disk as large as it is now (set a source.file.size back to status.sizeBytes). For more room create a larger EncryptedVolume and copy the data.",
    /// A file cannot be made longer: its file system has less room than that.
    FileSystemFull => "Make room in that file system on the node, or lower source.file.size again; the volume keeps its former size until then, and cryptvol goes on by itself.",
    /// Without a header only the WWID could say that it is the right disk, and there is none.
    IdentityUnproven => "Name the disk's wwid in spec.source, use a disk that has one, or an encryptor with a header (luks2).",
    /// Opening the header takes more memory than the agent may take.
    UnlockNeedsMemory => "Raise nodeAgent.unlockMemoryMiB in the chart's values (and the agent's memory limit with it), or convert the key slot on a machine that has the passphrase: cryptsetup luksConvertKey --pbkdf pbkdf2 --pbkdf-force-iterations 1000.",
    /// The node's kernel does not know a flag of the activation.
    ActivationUnsupported => "Remove that flag from activation in the EncryptionClass or the EncryptedVolume, or attach on a node with a newer kernel.",
    /// The node's kernel lacks a module that this kind of source needs.
    KernelModuleMissing => "Load the kernel module that the message names on the node (modprobe), and at each boot (a file in /etc/modules-load.d); cryptvol goes on by itself.",
    /// The node or the array cannot do what several paths need.
    MultipathUnsupported => "Let all portals lead to the disk alike on the array, or have the array tell them apart by ALUA, or set source.iscsi.multipath to false.",
    /// Of several paths to the disk some do not work; I/O goes on through the others.
    PathsDegraded => "Check the portals that the message names, and the network between them and the node; cryptvol brings their paths back by itself.",
    /// Of several paths to the disk none works; I/O waits for one.
    PathsLost => "Bring one of the portals back that the message names: I/O waits for it, as long as --no-path-timeout of the node's agent says, and fails then. cryptvol goes on by itself.",
    /// Of several paths to the disk none works, and I/O fails, because it has waited too long.
    PathsFailing => "Bring one of the portals back that the message names; cryptvol goes on by itself. Guests have seen I/O errors meanwhile: look at their file systems (many are read-only then) and start again what ended.",
    /// Of several paths to the disk some are there, and the array takes I/O on none of them (ALUA). The volume is not in use yet.
    PathsHeldBack => "Bring the controller back that owns the disk, or have another one take over on the array: the message names the ports and what the array says of each. cryptvol goes on by itself.",
    /// The provider is none: what is written is not encrypted.
    NotEncrypted => "For encrypted data create another EncryptedVolume with an EncryptionClass that has provider luks2, and copy.",
    /// The key is random and in the node's kernel alone: there is none to be made, kept or asked for.
    Ephemeral => "",
    /// Another disk answers at this LUN.
    WwidMismatch => "The disk there is another one. Map the right disk, or correct wwid in spec.source; nothing was read or written.",
    /// The disk is smaller than before.
    SizeMismatch => "The disk is smaller than when it was pinned. Map the right disk on the array; nothing was written.",
    /// The disk cannot be read.
    DeviceUnreadable => "The disk gives read errors. Mend it on the array; nothing was written.",
    /// The disk holds something that is not this volume.
    ForeignSignature => "The disk holds data that is not this volume's. Map the right disk, or wipe it on the array if its data is not wanted; nothing was written.",
    /// The disk is neither blank nor known.
    DeviceNotBlank => "The disk is not blank, so it is not formatted. Wipe it on the array if its data is not wanted; nothing was written.",
    /// A header is missing where one was written before.
    HeaderMissing => "The disk carried this volume's header and does not any more. Bring back the right disk, or have the header written anew from its backup: kubectl cryptvol restore-header NAME. It is never formatted again.",
    /// Formatting was begun and not finished.
    FormatInterrupted => "If the disk never held data, allow formatting once more: kubectl annotate encryptedvolume NAME cryptvol.dev/new-format-permit=LUKS-UUID (from status.luksUuid).",
    /// The header does not agree with what was pinned.
    HeaderMismatch => "The header on the disk was changed or is another volume's. Map the right disk or, where its header was damaged, restore it: kubectl cryptvol restore-header NAME. Nothing was unlocked.",
    /// A header is missing and formatting is not allowed.
    FormatNotPermitted => "The disk is blank and formatting is not allowed. Map the right disk, or set spec.format to IfPermitted for a new volume.",
    /// The key does not open the header.
    KeyDoesNotOpen => "The key in the key manager does not open this disk. Check status.key and that the right disk is mapped; where its key slots were overwritten: kubectl cryptvol restore-header NAME.",
    /// The key is out of the node's kernel, and whoever has the device open waits.
    Suspended => "Resume it when its guests shall go on: kubectl cryptvol resume NAME (spec.suspended: false).",
    /// Somebody changed the table of a volume's mapping.
    MappingReplaced => "Stop the volume's guests and find out who changed the mapping on the node: what they wrote meanwhile may lie open on the array. Detach and attach the volume to have its mapping made anew.",
    /// What lies on the disk is what a guest reads.
    PlaintextOnDisk => "Stop the volume's guests and find out who changed the mapping on the node: what they write lies open on the array. Detach and attach the volume to have its mapping made anew; one that failClosed has suspended is proven anew after kubectl cryptvol suspend and resume.",
    /// The volume has no key slots that could be rotated.
    RotationUnsupported => "Remove spec.rotation: only volumes with encryption provider luks2 are rotated.",
    /// All key slots of the header are taken.
    NoFreeKeySlot => "Remove a key slot that nobody needs (cryptsetup luksDump, luksKillSlot); cryptvol removes none that it did not make, and goes on by itself.",
    /// The passphrase was not made at random by a key manager, so nothing may be sealed with it outside of the header.
    HeaderBackupUnsupported => "Keep a backup of the header yourself (cryptsetup luksHeaderBackup), or rotate to a key of 256 random bits in lower-case hex.",
    /// The backup of the header does not belong to the volume as it is on record, was changed, or is of a former key.
    HeaderBackupInvalid => "Nothing was written. Restore the header with cryptsetup luksHeaderRestore from a backup of your own, where there is one.",
    /// The header of a volume whose disk carries none is not on record, was changed, or does not open with the key.
    HeaderRecordUnusable => "Nothing was unlocked. Bring status.headerBackup back from the cluster's backup; or import the volume anew with its disk, its key and its second copy in the key manager (format Never, source's wwid, key.secretRef, key.headerSecretRef).",
    /// What was known of the volume is lost, and its key was rotated, so nothing says which key and which disk are its.
    RecordLost => "Do not wipe the disk. Bring the status back from the cluster's backup; or delete this EncryptedVolume with deletionPolicy Retain, which destroys nothing, and import the disk with another one: format Never, source's wwid, key.secretRef and (with detachedHeader) key.headerSecretRef by the ids in this message, the latest first.",
    /// The second copy of the header, in the key manager, is gone or is no header of the volume.
    HeaderCopyMissing => "status.headerBackup is the only copy of the header until cryptvol has stored another one, which it does by itself: find out who deletes secrets in the project, and mend what the message names.",
    /// The second copy of the header, in the key manager, is sealed otherwise than the record.
    HeaderCopyDiffers => "Detach and attach the volume: where it opens, the record is right, so delete that secret in the key manager and cryptvol stores it anew; where it does not, import the volume anew with that secret (format Never, source's wwid, key.secretRef, key.headerSecretRef).",
    /// The operator refused to release the key.
    KeyReleaseRefused => "See the operator's audit log for this volume (kubectl logs, audit lines).",
    /// The operator cannot be reached for key release.
    KeyReleaseUnavailable => "Check that the operator runs and that the node reaches its Service; cryptvol goes on by itself.",
    /// The mapping, or the raw disk, is still open.
    DeviceBusy => "Stop what uses the device (the message names it); cryptvol goes on by itself.",
    /// Something that is not ours stands where we would work.
    NotOurs => "Remove or rename what the message names: cryptvol does not touch what it did not make.",
    /// Something of cryptvol's is on the node and belongs to no NodeVolume of that node.
    OrphanFound => "cryptvol removes nothing that no NodeVolume asks it to; all of them: kubectl cryptvol orphans.",
    /// Something that belonged to no NodeVolume is gone from the node, or belongs to one again.
    OrphanGone => "",
    /// A step did not end in its time.
    DeadlineExceeded => "See the message for the step; a hung device or array is the usual cause. cryptvol tries again by itself.",
    /// A new volume with authenticated sectors is written once from end to end.
    Initialising => "Nothing: cryptvol goes on by itself. Until then no sector of it could be read.",
    /// What lies on the disk is not what was written there.
    IntegrityViolated => "Something else than this node wrote to the disk, or the array lost a write: the guest got read errors and no wrong bytes. Find out who has access to the disk on the array, and bring the data back from a backup.",
    /// A write to the disk failed for good, and the kernel stopped the layer of authenticated sectors: nothing can be read any more.
    IntegrityStopped => "The disk works again, and what was flushed before is there. Stop what uses the device: cryptvol makes it anew by itself once nobody has it open (or detach and attach the volume). Guests have seen I/O errors: look at their file systems.",
    /// The kernel or a tool refused for another cause.
    StepFailed => "See the message and the agent's log on that node; cryptvol tries again by itself.",
}

impl Reason {
    /// The reason that a word stands for.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|r| r.as_str() == word)
    }

    /// Whether trying again can help without a person changing something first. Where it cannot, the object is looked
    /// at again only when something changes (and at long intervals, because arrays do not tell).
    pub fn is_transient(self) -> bool {
        matches!(
            self,
            Self::InProgress
                | Self::Waiting
                | Self::KeyServiceUnavailable
                | Self::PortalUnreachable
                | Self::DiscoveryFailed
                | Self::PathsDegraded
                | Self::PathsLost
                | Self::PathsFailing
                | Self::PathsHeldBack
                | Self::KeyReleaseUnavailable
                | Self::DeviceBusy
                | Self::Initialising
                | Self::IntegrityStopped
                | Self::DeadlineExceeded
                | Self::StepFailed
        )
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Status of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Is {
    /// Holds.
    True,
    /// Does not hold.
    False,
    /// Not known yet.
    Unknown,
}

impl Is {
    fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

/// A message with its next step, cut to what an Event takes (1024 bytes).
pub fn message(reason: Reason, what: &str) -> String {
    let mut text = match (what.trim(), reason.next_step()) {
        (what, "") => what.to_owned(),
        ("", next) => next.to_owned(),
        (what, next) => format!("{}. {next}", what.trim_end_matches('.')),
    };
    if text.len() > 1024 {
        let cut = (0..=1021)
            .rev()
            .find(|i| text.is_char_boundary(*i))
            .unwrap_or(0);
        text.truncate(cut);
        text.push('…');
    }
    text
}

/// Sets one condition and says whether anything changed. The transition time moves only when the status does, so that
/// an unchanged state makes an unchanged object and no write.
pub fn set(
    conditions: &mut Vec<Condition>,
    type_: &str,
    is: Is,
    reason: Reason,
    what: &str,
    generation: Option<i64>,
    now: Timestamp,
) -> bool {
    let message = message(reason, what);
    let new = |since| Condition {
        type_: type_.to_owned(),
        status: is.as_str().to_owned(),
        reason: reason.as_str().to_owned(),
        message: message.clone(),
        observed_generation: generation,
        last_transition_time: since,
    };
    match conditions.iter_mut().find(|c| c.type_ == type_) {
        None => {
            conditions.push(new(Time(now)));
            true
        }
        Some(old) => {
            let since = if old.status == is.as_str() {
                old.last_transition_time.clone()
            } else {
                Time(now)
            };
            let new = new(since);
            let changed = *old != new;
            *old = new;
            changed
        }
    }
}

/// The condition of a type.
pub fn get<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|c| c.type_ == type_)
}

/// Whether a condition is `True`.
pub fn is_true(conditions: &[Condition], type_: &str) -> bool {
    get(conditions, type_).is_some_and(|c| c.status == "True")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transition_time_moves_only_with_the_status() {
        let (t1, t2) = (
            Timestamp::from_second(1).unwrap(),
            Timestamp::from_second(2).unwrap(),
        );
        let mut list = vec![];
        assert!(set(
            &mut list,
            READY,
            Is::False,
            Reason::InProgress,
            "a",
            Some(1),
            t1
        ));
        assert!(!set(
            &mut list,
            READY,
            Is::False,
            Reason::InProgress,
            "a",
            Some(1),
            t2
        ));
        assert!(set(
            &mut list,
            READY,
            Is::False,
            Reason::InProgress,
            "b",
            Some(1),
            t2
        ));
        assert_eq!(list[0].last_transition_time.0, t1);
        assert!(set(
            &mut list,
            READY,
            Is::True,
            Reason::AsDesired,
            "",
            Some(1),
            t2
        ));
        assert_eq!(list[0].last_transition_time.0, t2);
    }

    #[test]
    fn every_failure_has_a_next_step_and_words_parse_back() {
        for r in Reason::ALL {
            assert_eq!(Reason::parse(r.as_str()), Some(*r));
            let quiet = matches!(
                r,
                Reason::AsDesired
                    | Reason::InProgress
                    | Reason::Detached
                    | Reason::Waiting
                    | Reason::OrphanGone
                    | Reason::Ephemeral
            );
            assert_eq!(r.next_step().is_empty(), quiet, "{r}");
        }
    }

    #[test]
    fn long_messages_are_cut_at_a_character() {
        let text = message(Reason::StepFailed, &"ü".repeat(2000));
        assert!(text.len() <= 1024);
    }
}
