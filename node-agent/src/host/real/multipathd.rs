//! What a multipathd of the node does: its maps are told from others by their device-mapper UUIDs. It is asked itself only where the disks of
//! volumes are to be kept from it.

use std::{
    collections::BTreeSet,
    io::{self, Read, Write},
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixStream},
    },
    path::Path,
    time::Duration,
};

use cryptvol_crds::names::DM_UUID_PREFIX;

use super::{
    proc,
    sysfs::{attribute, names},
};

/// What the device-mapper UUIDs of multipathd's maps begin with; the WWID follows, as udev gives it (`libmultipath/devmapper.h`).
const UUID_PREFIX: &str = "mpath-";
/// Where it is asked, among the abstract sockets of the network namespace (`libmpathcmd/mpath_cmd.h`).
const SOCKET: &str = "/org/kernel/linux/storage/multipathd";
/// How long it may take for an answer.
const ANSWER: Duration = Duration::from_secs(10);
/// Longest answer that is read: lists grow with the node's disks.
pub(crate) const MAX_ANSWER: usize = 1 << 20;

/// A map of multipathd's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Foreign {
    /// Its device-mapper name.
    pub alias: String,
    /// WWID of its disk, as udev gives it.
    pub wwid: String,
}

/// The map of multipathd's that a block device in sysfs is, if it is one.
///
/// # Errors
/// When sysfs cannot be read.
pub fn map(block: &Path) -> io::Result<Option<Foreign>> {
    let uuid = attribute(&block.join("dm/uuid"))?.unwrap_or_default();
    let Some(wwid) = uuid.strip_prefix(UUID_PREFIX) else {
        return Ok(None);
    };
    Ok(Some(Foreign {
        alias: attribute(&block.join("dm/name"))?.unwrap_or_default(),
        wwid: wwid.to_owned(),
    }))
}

/// Whether one runs, where the agent sees the node's network namespace.
pub fn runs() -> bool {
    proc::list("/proc/net/unix".as_ref()).is_ok_and(|sockets| listens(&sockets))
}

/// Whether its socket is in the kernel's list of sockets.
pub(crate) fn listens(sockets: &str) -> bool {
    let ours = format!(" @{SOCKET}");
    sockets.lines().any(|line| line.ends_with(&ours))
}

/// Asks the one that runs, where the agent sees the node's network namespace; nothing where none does.
///
/// # Errors
/// Those of the socket, and what is no answer.
pub fn ask(command: &str) -> io::Result<Option<String>> {
    let address = SocketAddr::from_abstract_name(SOCKET)?;
    match UnixStream::connect_addr(&address) {
        Ok(stream) => {
            stream.set_read_timeout(Some(ANSWER))?;
            stream.set_write_timeout(Some(ANSWER))?;
            exchange(stream, command).map(Some)
        }
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => Ok(None),
        Err(e) => Err(e),
    }
}

/// One question and its answer, each with its length (`size_t`) before it and a zero at its end (`libmpathcmd/mpath_cmd.c`).
pub(crate) fn exchange(mut stream: impl Read + Write, command: &str) -> io::Result<String> {
    let question = [command.as_bytes(), &[0]].concat();
    stream.write_all(&question.len().to_ne_bytes())?;
    stream.write_all(&question)?;
    let mut length = [0; size_of::<usize>()];
    stream.read_exact(&mut length)?;
    let length = usize::from_ne_bytes(length);
    if length > MAX_ANSWER {
        return Err(io::Error::other("an answer that is not of its protocol"));
    }
    // As it comes: a length alone takes no memory.
    let mut answer = Vec::new();
    stream.take(length as u64).read_to_end(&mut answer)?;
    if answer.len() < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let text = String::from_utf8_lossy(&answer);
    Ok(text.trim_end_matches('\0').to_owned())
}

/// Kernel names of what mappings and maps of ours are above.
///
/// # Errors
/// When sysfs, mounted at `sys`, cannot be read.
pub fn disks_of_volumes(sys: &Path) -> io::Result<BTreeSet<String>> {
    let class = sys.join("class/block");
    let mut found = BTreeSet::new();
    for name in names(&class)? {
        let ours = class.join(name);
        let uuid = attribute(&ours.join("dm/uuid"))?.unwrap_or_default();
        if uuid.starts_with(DM_UUID_PREFIX) {
            found.extend(names(&ours.join("slaves"))?);
        }
    }
    Ok(found)
}

/// Its maps over disks that mappings or maps of ours are above, each with its disk: `NAME (sda)`.
///
/// # Errors
/// When sysfs, mounted at `sys`, cannot be read.
pub fn maps_over_volumes(sys: &Path) -> io::Result<Vec<String>> {
    let class = sys.join("class/block");
    let mut found = Vec::new();
    for disk in disks_of_volumes(sys)? {
        for holder in names(&class.join(&disk).join("holders"))? {
            if let Some(map) = map(&class.join(holder))? {
                found.push(format!("{} ({disk})", map.alias));
            }
        }
    }
    found.sort();
    found.dedup();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::{fs, thread};

    use super::*;

    #[test]
    fn a_question_and_its_answer_go_with_their_lengths() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let daemon = thread::spawn(move || {
            let mut length = [0; 8];
            far.read_exact(&mut length).unwrap();
            let mut question = vec![0; usize::from_ne_bytes(length)];
            far.read_exact(&mut question).unwrap();
            far.write_all(&4_usize.to_ne_bytes()).unwrap();
            far.write_all(b"ok\n\0").unwrap();
            question
        });
        assert_eq!(exchange(near, "show blacklist").unwrap(), "ok\n");
        assert_eq!(daemon.join().unwrap(), b"show blacklist\0");
        // A length that nobody means is not waited for.
        let (near, mut far) = UnixStream::pair().unwrap();
        far.write_all(&usize::MAX.to_ne_bytes()).unwrap();
        assert!(exchange(near, "x").is_err());
    }

    #[test]
    fn maps_over_disks_of_ours_are_found_and_others_are_not() {
        let tmp = tempfile::tempdir().unwrap();
        let class = tmp.path().join("class/block");
        for (name, uuid, alias, disks) in [
            (
                "dm-0",
                "CRYPTVOL-PATHS-x",
                "cryptvol-paths-x",
                &["sda", "sdb"][..],
            ),
            ("dm-1", "CRYPTVOL-LUKS2-x", "cryptvol-x", &["dm-0"]),
            ("dm-2", "mpath-3600", "mpatha", &["sda", "sdb"]),
            ("dm-3", "mpath-3601", "mpathb", &["sdc"]),
            ("dm-4", "LVM-x", "vg-lv", &["sda"]),
        ] {
            let dm = class.join(name).join("dm");
            fs::create_dir_all(&dm).unwrap();
            fs::write(dm.join("uuid"), format!("{uuid}\n")).unwrap();
            fs::write(dm.join("name"), format!("{alias}\n")).unwrap();
            for disk in disks {
                fs::create_dir_all(class.join(name).join("slaves").join(disk)).unwrap();
                fs::create_dir_all(class.join(disk).join("holders").join(name)).unwrap();
            }
        }
        assert_eq!(
            maps_over_volumes(tmp.path()).unwrap(),
            ["mpatha (sda)", "mpatha (sdb)"]
        );
        let empty = tempfile::tempdir().unwrap();
        assert!(maps_over_volumes(empty.path()).unwrap().is_empty());
    }
}
