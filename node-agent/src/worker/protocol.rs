//! Frames between agent and worker: a length (four bytes, little-endian) and JSON. Secrets travel here and nowhere else
//! between the two: not in arguments, not in the environment.

use std::{
    io::{Read, Write},
    time::Duration,
};

use cryptvol_crds::v1alpha1::{HeaderBackup, KeySlotRef};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use zeroize::Zeroizing;

use crate::host::{
    AddSlotOrder, BackingFile, BackupOrder, Belongings, Chap, DeviceId, Discovered, DropSlotsOrder,
    Erased, FormatOrder, Header, HeaderFound, Host, Initialised, MapOrder, Mapping, NameOrder,
    Observed, OpenOrder, Query, RecordOrder, RestoreOrder, StepError, Target,
    probe::{self, NodeCheck},
    real::exclusion,
};

/// Longest frame in bytes.
pub const MAX_FRAME: usize = 1 << 20;
/// Room made before serialising: a buffer that grows leaves copies of a secret behind.
const ROOM: usize = 16 << 10;

/// One call, as in `host::Host`.
#[derive(Debug, Serialize, Deserialize)]
pub enum Call {
    /// `Host::observe`.
    Observe(Query),
    /// `Host::belongings`.
    Belongings(Vec<String>),
    /// `Host::login`.
    Login(Target, bool, Option<Chap>),
    /// `Host::discover`.
    Discover(Target, Option<Chap>),
    /// `Host::gather`.
    Gather(MapOrder),
    /// `Host::scan`.
    Scan(String, u32, u32),
    /// `Host::read_header`.
    ReadHeader(DeviceId),
    /// `Host::format`.
    Format(DeviceId, FormatOrder),
    /// `Host::open`.
    Open(DeviceId, OpenOrder),
    /// `Host::initialise`.
    Initialise(Mapping, u64),
    /// `Host::link`.
    Link(String, Mapping),
    /// `Host::unlink`.
    Unlink(String),
    /// `Host::name`.
    Name(NameOrder),
    /// `Host::close`.
    Close(String, String),
    /// `Host::make_file`.
    MakeFile(BackingFile),
    /// `Host::attach_file`.
    AttachFile(BackingFile),
    /// `Host::lengthen_file`.
    LengthenFile(DeviceId, BackingFile),
    /// `Host::remove_file`.
    RemoveFile(BackingFile),
    /// `Host::delete_device`.
    DeleteDevice(DeviceId),
    /// `Host::logout`.
    Logout(String, u32),
    /// `Host::erase`.
    Erase(DeviceId, String),
    /// `Host::clear_header`.
    ClearHeader(DeviceId, String),
    /// `Host::grow`.
    Grow(DeviceId, OpenOrder),
    /// `Host::sample`.
    Sample(DeviceId, Mapping),
    /// `Host::suspend`.
    Suspend(String, String),
    /// `Host::resume`.
    Resume(DeviceId, OpenOrder),
    /// `Host::add_key_slot`.
    AddKeySlot(DeviceId, AddSlotOrder),
    /// `Host::drop_key_slots`.
    DropKeySlots(DeviceId, DropSlotsOrder),
    /// `Host::backup_header`.
    BackupHeader(DeviceId, BackupOrder),
    /// `Host::header_record`.
    HeaderRecord(RecordOrder),
    /// `Host::restore_header`.
    RestoreHeader(DeviceId, RestoreOrder),
    /// `host::probe::node`.
    Probe,
    /// `host::real::exclusion::settle`.
    ExcludeFromMultipathd(bool),
}

/// What a call gives back.
#[derive(Debug, Serialize, Deserialize)]
pub enum Answer {
    /// Nothing.
    Unit,
    /// Of `observe`.
    Observed(Box<Observed>),
    /// Of `belongings`.
    Belongings(Box<Belongings>),
    /// Of `discover`.
    Discovered(Discovered),
    /// Of `read_header`.
    Found(HeaderFound),
    /// Of `format`.
    Formatted(Header),
    /// Of `open`.
    Opened(Mapping),
    /// Of `initialise`.
    Initialised(Initialised),
    /// Of `erase`.
    Erased(Erased),
    /// Of `add_key_slot`.
    Slots(Vec<KeySlotRef>),
    /// Of `backup_header` and `header_record`.
    BackedUp(Box<HeaderBackup>),
    /// Of the node check.
    Probed(Vec<NodeCheck>),
}

/// What a call works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallStage {
    /// The kernel's and udev's state; no disk is asked anything.
    Node,
    /// Sessions and the devices that they show.
    Session,
    /// A disk: its header, its key slots, its mapping.
    Disk,
}

impl CallStage {
    /// How many there are.
    pub const COUNT: usize = 3;
}

impl Call {
    /// Name in messages.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Observe(_) => "observe",
            Self::Belongings(_) => "list what is ours",
            Self::Login(..) => "log in",
            Self::Discover(..) => "ask for portals",
            Self::Gather(_) => "gather the paths",
            Self::Scan(..) => "scan",
            Self::ReadHeader(_) => "read the header",
            Self::Format(..) => "format",
            Self::Open(..) => "open",
            Self::Initialise(..) => "initialise",
            Self::Link(..) => "link",
            Self::Unlink(_) => "unlink",
            Self::Name(_) => "give or take a name",
            Self::Close(..) => "close",
            Self::MakeFile(_) => "make the file",
            Self::AttachFile(_) => "attach the file",
            Self::LengthenFile(..) => "lengthen the file",
            Self::RemoveFile(_) => "remove the file",
            Self::DeleteDevice(_) => "remove the device",
            Self::Logout(..) => "log out",
            Self::Erase(..) => "erase",
            Self::ClearHeader(..) => "remove the header",
            Self::Grow(..) => "grow the mapping",
            Self::Sample(..) => "compare the mapping with its disk",
            Self::Suspend(..) => "suspend the mapping",
            Self::Resume(..) => "resume the mapping",
            Self::AddKeySlot(..) => "add a key slot",
            Self::DropKeySlots(..) => "drop key slots",
            Self::BackupHeader(..) => "back up the header",
            Self::HeaderRecord(_) => "make a header in memory",
            Self::RestoreHeader(..) => "restore the header",
            Self::Probe => "check the node",
            Self::ExcludeFromMultipathd(_) => "keep disks from multipathd",
        }
    }

    /// How long the call may take before its worker is killed. Longer than what iscsid and the kernel allow themselves by
    /// default for one attempt, so that their own error comes first where there is one.
    pub fn deadline(&self) -> Duration {
        Duration::from_secs(match self {
            Self::Observe(_) | Self::Belongings(_) | Self::Link(..) | Self::Unlink(_) => 10,
            Self::Discover(..)
            | Self::Scan(..)
            | Self::ReadHeader(_)
            | Self::Sample(..)
            | Self::Close(..)
            | Self::Probe => 30,
            // udev's time, and a rule that is new to it; and multipathd's.
            Self::Name(_) | Self::ExcludeFromMultipathd(_) => 40,
            // Several portals, each with its own time.
            Self::Login(..) => 75,
            Self::DeleteDevice(_)
            | Self::Gather(_)
            | Self::MakeFile(_)
            | Self::AttachFile(_)
            | Self::LengthenFile(..)
            | Self::RemoveFile(_)
            | Self::Logout(..)
            | Self::Open(..)
            | Self::ClearHeader(..)
            | Self::Grow(..)
            | Self::Suspend(..)
            | Self::Resume(..) => 45,
            Self::BackupHeader(..) | Self::HeaderRecord(_) => 45,
            Self::Format(..)
            | Self::Initialise(..)
            | Self::Erase(..)
            | Self::RestoreHeader(..)
            | Self::AddKeySlot(..)
            | Self::DropKeySlots(..) => 90,
        })
    }

    /// What it works on, for the limits of what goes on at once.
    pub fn stage(&self) -> CallStage {
        match self {
            Self::Login(..)
            | Self::Discover(..)
            | Self::Scan(..)
            | Self::DeleteDevice(_)
            | Self::Logout(..) => CallStage::Session,
            Self::Observe(_)
            | Self::Belongings(_)
            | Self::Link(..)
            | Self::Unlink(_)
            | Self::Name(_)
            | Self::Probe
            | Self::ExcludeFromMultipathd(_) => CallStage::Node,
            _ => CallStage::Disk,
        }
    }

    /// Memory beyond the ordinary that it takes, in MiB: Argon2 of a header that others made.
    pub fn memory_mib(&self) -> u32 {
        match self {
            Self::Open(_, order) | Self::Grow(_, order) | Self::Resume(_, order) => {
                order.unlock_memory_kib.div_ceil(1024)
            }
            // All that there is: they try key slots of whatever kind the header has, which was opened within the limit before.
            Self::BackupHeader(_, order) => order.unlock_memory_kib.div_ceil(1024),
            Self::AddKeySlot(..) | Self::DropKeySlots(..) => u32::MAX,
            _ => 0,
        }
    }

    /// Does it.
    ///
    /// # Errors
    /// Those of the host.
    pub fn run(&self, host: &mut impl Host) -> Result<Answer, StepError> {
        match self {
            Self::Observe(query) => host.observe(query).map(|o| Answer::Observed(Box::new(o))),
            Self::Belongings(known) => host
                .belongings(known)
                .map(|b| Answer::Belongings(Box::new(b))),
            Self::Login(target, each, chap) => unit(host.login(target, *each, chap.as_ref())),
            Self::Discover(target, chap) => {
                host.discover(target, chap.as_ref()).map(Answer::Discovered)
            }
            Self::Gather(order) => unit(host.gather(order)),
            Self::Scan(iqn, sid, lun) => unit(host.scan(iqn, *sid, *lun)),
            Self::ReadHeader(device) => host.read_header(device).map(Answer::Found),
            Self::Format(device, order) => host.format(device, order).map(Answer::Formatted),
            Self::Open(device, order) => host.open(device, order).map(Answer::Opened),
            Self::Initialise(mapping, from) => {
                host.initialise(mapping, *from).map(Answer::Initialised)
            }
            Self::Link(link, mapping) => unit(host.link(link, mapping)),
            Self::Unlink(link) => unit(host.unlink(link)),
            Self::Name(order) => unit(host.name(order)),
            Self::Close(name, uuid) => unit(host.close(name, uuid)),
            Self::MakeFile(file) => unit(host.make_file(file)),
            Self::AttachFile(file) => unit(host.attach_file(file)),
            Self::LengthenFile(device, file) => unit(host.lengthen_file(device, file)),
            Self::RemoveFile(file) => unit(host.remove_file(file)),
            Self::DeleteDevice(device) => unit(host.delete_device(device)),
            Self::Logout(iqn, sid) => unit(host.logout(iqn, *sid)),
            Self::Erase(device, uuid) => host.erase(device, uuid).map(Answer::Erased),
            Self::ClearHeader(device, uuid) => unit(host.clear_header(device, uuid)),
            Self::Grow(device, order) => host.grow(device, order).map(Answer::Opened),
            Self::Sample(device, mapping) => unit(host.sample(device, mapping)),
            Self::Suspend(name, uuid) => unit(host.suspend(name, uuid)),
            Self::Resume(device, order) => host.resume(device, order).map(Answer::Opened),
            Self::AddKeySlot(device, order) => host.add_key_slot(device, order).map(Answer::Slots),
            Self::DropKeySlots(device, order) => unit(host.drop_key_slots(device, order)),
            Self::BackupHeader(device, order) => host
                .backup_header(device, order)
                .map(|b| Answer::BackedUp(Box::new(b))),
            Self::HeaderRecord(order) => host
                .header_record(order)
                .map(|b| Answer::BackedUp(Box::new(b))),
            Self::RestoreHeader(device, order) => unit(host.restore_header(device, order)),
            Self::Probe => Ok(Answer::Probed(probe::node())),
            Self::ExcludeFromMultipathd(wanted) => unit(exclusion::settle(*wanted)),
        }
    }
}

fn unit(result: Result<(), StepError>) -> Result<Answer, StepError> {
    result.map(|()| Answer::Unit)
}

/// A frame, wiped when dropped.
///
/// # Errors
/// When it cannot be serialised or is too long.
pub fn encode(message: &impl Serialize) -> std::io::Result<Zeroizing<Vec<u8>>> {
    let mut frame = Zeroizing::new(Vec::with_capacity(ROOM));
    frame.extend_from_slice(&[0; 4]);
    serde_json::to_writer(&mut *frame, message)?;
    let length = length_of(frame.len() - 4)?;
    frame[..4].copy_from_slice(&length.to_le_bytes());
    Ok(frame)
}

/// The content of a frame.
///
/// # Errors
/// When it is not of the protocol; the message shows nothing of it.
pub fn decode<T: DeserializeOwned>(content: &[u8]) -> std::io::Result<T> {
    serde_json::from_slice(content)
        .map_err(|_| std::io::Error::other("a message that is not of the protocol"))
}

/// Length of the frame that begins like this.
///
/// # Errors
/// When it is longer than a frame may be.
pub fn frame_length(head: [u8; 4]) -> std::io::Result<usize> {
    let length = usize::try_from(u32::from_le_bytes(head)).map_err(std::io::Error::other)?;
    length_of(length)?;
    Ok(length)
}

fn length_of(length: usize) -> std::io::Result<u32> {
    u32::try_from(length)
        .ok()
        .filter(|_| length <= MAX_FRAME)
        .ok_or_else(|| std::io::Error::other("a message longer than a frame may be"))
}

/// Reads one message; nothing at the end of the pipe.
///
/// # Errors
/// When the pipe breaks within a frame or the message is not of the protocol.
pub fn read<T: DeserializeOwned>(from: &mut impl Read) -> std::io::Result<Option<T>> {
    let mut head = [0; 4];
    match from.read_exact(&mut head) {
        Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let mut content = Zeroizing::new(vec![0; frame_length(head)?]);
    from.read_exact(&mut content)?;
    decode(&content).map(Some)
}

/// Writes one message.
///
/// # Errors
/// Those of the pipe.
pub fn write(to: &mut impl Write, message: &impl Serialize) -> std::io::Result<()> {
    to.write_all(&encode(message)?)?;
    to.flush()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::{Passphrase, RawKind, sim::World};
    use cryptvol_crds::v1alpha1::HeaderFacts;

    #[test]
    fn a_message_goes_through_a_pipe() {
        let secret = "s3cr3t-\"\\ü";
        let order = OpenOrder {
            derivations: vec![],
            mapping_name: "m".into(),
            mapping_uuid: "u".into(),
            blank: false,
            random: false,
            activation: Default::default(),
            unlock_memory_kib: 0,
            expected: HeaderFacts::default(),
            passphrase: Some(Passphrase(secret.into())),
            record: None,
        };
        let device = DeviceId {
            path: "/dev/sda".into(),
            dev: "8:0".into(),
            kind: RawKind::Lun {
                hctl: "0:0:0:1".into(),
            },
            wwid: None,
            size_bytes: 1,
        };
        let call = Call::Open(device, order);
        assert!(!format!("{call:?}").contains("s3cr3t"));
        let mut pipe = Vec::new();
        write(&mut pipe, &call).unwrap();
        let mut from = pipe.as_slice();
        let Some(Call::Open(_, order)) = read(&mut from).unwrap() else {
            panic!("another call");
        };
        assert_eq!(order.passphrase.unwrap().0, secret);
        assert!(read::<Call>(&mut from).unwrap().is_none());
    }

    #[test]
    fn a_frame_of_any_length_is_not_believed() {
        let mut from = &[0xff, 0xff, 0xff, 0xff, b'{'][..];
        assert!(read::<Call>(&mut from).is_err());
        let mut from = &[5, 0, 0, 0, b'{'][..];
        assert!(read::<Call>(&mut from).is_err());
        let message = read::<Call>(&mut &b"\x07\0\0\0{\"x\":1}"[..]).unwrap_err();
        assert!(!message.to_string().contains('x'));
    }

    #[test]
    fn an_error_keeps_its_reason_on_the_way() {
        let call = Call::Unlink("/dev/cryptvol/a/b".into());
        let mut world = World::default();
        world
            .links
            .insert("/dev/cryptvol/a/b".into(), crate::host::sim::SimLink::File);
        let result = call.run(&mut world);
        let mut pipe = Vec::new();
        write(&mut pipe, &result.map(|_| ())).unwrap();
        let back: Result<(), StepError> = read(&mut pipe.as_slice()).unwrap().unwrap();
        assert_eq!(
            back.unwrap_err().reason(),
            cryptvol_crds::conditions::Reason::NotOurs
        );
    }
}
