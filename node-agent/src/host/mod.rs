//! The node as the agent sees it: what can be observed and the few things that can be done.
//!
//! `trait Host` has two implementations: the real one, which runs inside a worker process (see `worker`), and a
//! simulated kernel for tests (`sim`). All calls are synchronous and may block; whoever calls them from the daemon does so
//! through a worker with a deadline.
//!
//! Every step is idempotent: done already is success. Every step that writes re-checks, in the same call and
//! immediately before writing, that it acts on the thing it was planned for (device number, WWID, LUKS UUID, mapping UUID).

pub mod access;
pub mod belongings;
pub mod model;
pub mod path_map;
pub mod portal;
pub mod probe;
pub mod real;
pub mod shown;
#[cfg(test)]
pub mod sim;

pub use access::{Access, Layout};
pub use belongings::{Belongings, Below, LoopDevice, OtherSession};
use cryptvol_crds::v1alpha1::{HeaderBackup, KeySlotRef};
pub use model::*;
pub use path_map::{MapOrder, Member, PathMap};
pub use portal::{Discovered, MAX_PORTALS, Portal};

/// What can be observed and done on a node.
pub trait Host {
    /// Reads sessions, device, mapping and link of one volume from sysfs, device-mapper and the link directory. Never
    /// opens the device for reading: that can hang, and has a step of its own. On a node without device-mapper or iSCSI
    /// there is no mapping or session, which is an answer and not an error.
    ///
    /// # Errors
    /// When the kernel's state cannot be read; an absent thing is not an error.
    fn observe(&mut self, query: &Query) -> Result<Observed, StepError>;

    /// All mappings whose UUID begins with `names::DM_UUID_PREFIX`, all links in our directory, all loop devices over files in our
    /// directory, and all sessions to other targets than `known`: to find those that no volume wants. Reads from no device.
    ///
    /// # Errors
    /// `StepFailed` when one of them cannot be read.
    fn belongings(&mut self, known: &[String]) -> Result<Belongings, StepError>;

    /// Makes an iSCSI session to the target, through the first of its portals that answers, without scanning for LUNs.
    /// Success when there is one already, through whatever portal. With `each` a session through each portal, where there is
    /// none; one that does not answer holds up the others for a moment only, and is an error after they are there.
    ///
    /// # Errors
    /// `PortalUnreachable`, `TargetNotFound`, `ChapRejected`, `TargetNotAuthentic`, `DeadlineExceeded`, `StepFailed`.
    fn login(&mut self, target: &Target, each: bool, chap: Option<&Chap>) -> Result<(), StepError>;

    /// Asks the named portals of a target, the first that answers, for further portals of exactly this target, and says which may be used.
    /// Changes nothing on the node.
    ///
    /// # Errors
    /// `DiscoveryRejected` (the credentials, or the target does not prove itself), `DiscoveryFailed`, `DeadlineExceeded`, `StepFailed`.
    fn discover(&mut self, target: &Target, chap: Option<&Chap>) -> Result<Discovered, StepError>;

    /// Makes the map above several paths to one disk, or makes it what it shall be: adds paths, groups them, takes back those that failed,
    /// has the best group used, sets what becomes of I/O without a path. Looks at each path's identity and holders once more before and after.
    ///
    /// # Errors
    /// `WwidMismatch`, `SizeMismatch`, `DeviceBusy` (something else holds a path), `NotOurs` (another map of that name),
    /// `MultipathUnsupported`, `KernelModuleMissing`, `StepFailed`.
    fn gather(&mut self, order: &MapOrder) -> Result<(), StepError>;

    /// Asks the kernel to add exactly one LUN of a session to the target. Where the LUN is there already, makes the kernel read its
    /// WWID and size anew (sysfs `rescan`): they are cached, and the array may show another disk under the same number now.
    ///
    /// # Errors
    /// `LunNotFound` when no disk appears.
    fn scan(&mut self, iqn: &str, sid: u32, lun: u32) -> Result<(), StepError>;

    /// Reads the beginning of the device once, with direct I/O and read-only, and says what is there. Does not write, not even to
    /// repair a damaged copy of the header.
    ///
    /// # Errors
    /// `DeviceUnreadable`; `WwidMismatch` when `device` is not what it was.
    fn read_header(&mut self, device: &DeviceId) -> Result<HeaderFound, StepError>;

    /// Writes a LUKS header with one key slot. The caller holds a permit that is recorded as spent. Checks once more that
    /// the device is blank, or carries a header with the permit's UUID that either opens (it is kept) or, where
    /// `order.over_torn` says so, does not (it is replaced).
    ///
    /// # Errors
    /// `DeviceNotBlank`, `ForeignSignature`, `DeviceUnreadable`, `StepFailed`.
    fn format(&mut self, device: &DeviceId, order: &FormatOrder) -> Result<Header, StepError>;

    /// Opens the key slot and makes the mapping under our name and UUID, from a header that agrees with `order.expected`,
    /// the volume key going through the kernel keyring. Plain dm-crypt has no header, and takes any key; with `order.blank`
    /// it checks once more that the device is blank. With `order.random` the key is made here, and nobody can make the mapping
    /// again: that the device carries nothing with a name is checked once more. Success when the same mapping is there already.
    ///
    /// # Errors
    /// `KeyDoesNotOpen`, `HeaderMismatch`, `DeviceNotBlank`, `NotOurs` (another mapping of that name), `StepFailed`.
    fn open(&mut self, device: &DeviceId, order: &OpenOrder) -> Result<Mapping, StepError>;

    /// Writes zeros through a new mapping whose sectors are authenticated, for a few seconds, from `from` on: without that no sector
    /// could be read. What was written and is on stable storage counts whoever wrote it, as far as the disk shows. The last block is
    /// written when all others are on stable storage: where it can be read nothing is written, for the volume may have been used.
    ///
    /// # Errors
    /// `DeviceUnreadable`, `StepFailed`.
    fn initialise(&mut self, mapping: &Mapping, from: u64) -> Result<Initialised, StepError>;

    /// Makes the link lead to the mapping, by rename. Refuses to replace what is not ours.
    ///
    /// # Errors
    /// `NotOurs`, `StepFailed`.
    fn link(&mut self, link: &str, mapping: &Mapping) -> Result<(), StepError>;

    /// Removes our link. Absent is success; not ours is an error.
    ///
    /// # Errors
    /// `NotOurs`, `StepFailed`.
    fn unlink(&mut self, link: &str) -> Result<(), StepError>;

    /// Sees to it that a name of udev's leads to this volume's mapping, or nowhere, and never to the raw device; waits until
    /// udev has done so. `NameTo::Everybody` ends that.
    ///
    /// # Errors
    /// `NotOurs` when another volume has the name, `DeadlineExceeded` when udev does not follow, `StepFailed`.
    fn name(&mut self, order: &NameOrder) -> Result<(), StepError>;

    /// Removes the mapping with this name and UUID.
    ///
    /// # Errors
    /// `DeviceBusy` (message names the holders), `NotOurs`, `StepFailed`.
    fn close(&mut self, name: &str, uuid: &str) -> Result<(), StepError>;

    /// Makes the file that stands for a disk, sparse and for root alone. One that is there must be empty or as long as wanted.
    ///
    /// # Errors
    /// `FileNotUsable`, `StepFailed`.
    fn make_file(&mut self, file: &BackingFile) -> Result<(), StepError>;

    /// Offers the file by a loop device. Success when one has all of it already. One of somebody's that shows a part of it, or cannot write it,
    /// is left alone.
    ///
    /// # Errors
    /// `FileNotUsable`, `DeviceInUse` (somebody else can write into a part of the file), `StepFailed`.
    fn attach_file(&mut self, file: &BackingFile) -> Result<(), StepError>;

    /// Makes the file below a loop device as long as wanted, and lets the loop device know; that it has the file is checked. What it
    /// gets longer by is sparse, and must be free in its file system now. Never shorter; success when both are long enough.
    ///
    /// # Errors
    /// `FileNotUsable` (another file at the path by now), `FileSystemFull`, `StepFailed`.
    fn lengthen_file(&mut self, device: &DeviceId, file: &BackingFile) -> Result<(), StepError>;

    /// Removes the file of an erased volume. One that still carries something that can be named stays, which is no error; absent is success.
    /// The scratch file of an ephemeral volume goes whatever is in it.
    ///
    /// # Errors
    /// `FileNotUsable`, `StepFailed`.
    fn remove_file(&mut self, file: &BackingFile) -> Result<(), StepError>;

    /// Flushes the raw device and removes it from the kernel; takes the file away from a loop device, and the map above several
    /// paths, whose I/O without a path fails then. Refuses while anything is stacked on it or
    /// has it open exclusively (a mount is no holder). Absent is success.
    ///
    /// # Errors
    /// `DeviceBusy`, `StepFailed`.
    fn delete_device(&mut self, device: &DeviceId) -> Result<(), StepError>;

    /// Ends a session to the target, only when no device of it is left in the kernel and the session is one that we made or
    /// nobody else uses. Success when there is none, or when it has other users (it is theirs then).
    ///
    /// # Errors
    /// `StepFailed`.
    fn logout(&mut self, iqn: &str, sid: u32) -> Result<(), StepError>;

    /// Gives the header of an attached volume a key slot for `order.next`, and shows that it opens as the header lies on the
    /// disk then. Success when it has one already. Gives back the key slots that `order.passphrase` opens.
    ///
    /// # Errors
    /// `KeyDoesNotOpen` (the present passphrase opens nothing), `HeaderMismatch`, `NoFreeKeySlot`, `DeviceUnreadable`,
    /// `WwidMismatch`, `StepFailed`.
    fn add_key_slot(
        &mut self,
        device: &DeviceId,
        order: &AddSlotOrder,
    ) -> Result<Vec<KeySlotRef>, StepError>;

    /// Wipes the key slots that are named, once `order.passphrase` was shown to open another one, and takes them out of the header.
    ///
    /// # Errors
    /// `KeyDoesNotOpen` (no key slot but those that go would open), `HeaderMismatch`, `DeviceUnreadable`, `WwidMismatch`, `StepFailed`.
    fn drop_key_slots(
        &mut self,
        device: &DeviceId,
        order: &DropSlotsOrder,
    ) -> Result<(), StepError>;

    /// Makes a mapping of ours as long as its disk is by now, under those who use it. The key is needed again because the kernel gives it
    /// to nobody. Success when it is that long already.
    ///
    /// # Errors
    /// `KeyDoesNotOpen`, `HeaderMismatch`, `NotOurs`, `SizeMismatch` (the disk is shorter than the mapping), `StepFailed`.
    fn grow(&mut self, device: &DeviceId, order: &OpenOrder) -> Result<Mapping, StepError>;

    /// Reads a block of the mapping and the block of the raw device that it stands for, at a place of chance, and compares them. They
    /// differ whatever a guest wrote, unless nothing is encrypted.
    ///
    /// # Errors
    /// `PlaintextOnDisk` when they are the same; `DeviceUnreadable`, `WwidMismatch`, `SizeMismatch`, `StepFailed`.
    fn sample(&mut self, device: &DeviceId, mapping: &Mapping) -> Result<(), StepError>;

    /// Suspends a mapping of ours and wipes its key from the kernel. I/O waits from then on; what was on its way is written out before.
    /// Success when it is so already.
    ///
    /// # Errors
    /// `NotOurs`, `StepFailed`.
    fn suspend(&mut self, name: &str, uuid: &str) -> Result<(), StepError>;

    /// Gives a suspended mapping its key again, from the header as it is on the disk now, and lets I/O go on. Success when it is not
    /// suspended.
    ///
    /// # Errors
    /// As of `grow`.
    fn resume(&mut self, device: &DeviceId, order: &OpenOrder) -> Result<Mapping, StepError>;

    /// Makes a backup of the header, from the header as it opens. Writes nothing.
    ///
    /// # Errors
    /// `HeaderBackupUnsupported` (the passphrase is not of full entropy), `KeyDoesNotOpen`, `HeaderMismatch`, `DeviceUnreadable`,
    /// `WwidMismatch`, `StepFailed`.
    fn backup_header(
        &mut self,
        device: &DeviceId,
        order: &BackupOrder,
    ) -> Result<HeaderBackup, StepError>;

    /// Makes a header that lies apart from its disk, seals it anew, or shows that it opens. Gives back the header, which was opened and made
    /// into one that cryptsetup takes, in memory.
    ///
    /// # Errors
    /// `HeaderRecordUnusable` (it was changed, or the passphrase does not open it), `HeaderBackupUnsupported` (the passphrase is not
    /// of full entropy), `StepFailed`.
    fn header_record(&mut self, order: &RecordOrder) -> Result<HeaderBackup, StepError>;

    /// Writes the header anew from its backup, with one key slot, where it is missing or opens no more; writes nothing where it opens.
    ///
    /// # Errors
    /// Without a byte written: `HeaderBackupInvalid`, `ForeignSignature` (a whole header with another UUID), `HeaderMismatch` (one
    /// with other facts), `DeviceBusy`, `SizeMismatch`, `WwidMismatch`, `DeviceUnreadable`. `StepFailed`.
    fn restore_header(&mut self, device: &DeviceId, order: &RestoreOrder) -> Result<(), StepError>;

    /// Wipes all key slots of the header with this UUID, reads the area back and says what it found. Needs no key, and leaves the header
    /// to say whose they were.
    ///
    /// # Errors
    /// `HeaderMismatch` when the header has another UUID, `DeviceUnreadable`, `StepFailed`.
    fn erase(&mut self, device: &DeviceId, luks_uuid: &str) -> Result<Erased, StepError>;

    /// Removes the header with this UUID, whose key slots were wiped. Success when there is no LUKS header.
    ///
    /// # Errors
    /// `HeaderMismatch` when the header has another UUID or its key slots are there, `DeviceUnreadable`, `StepFailed`.
    fn clear_header(&mut self, device: &DeviceId, luks_uuid: &str) -> Result<(), StepError>;
}
