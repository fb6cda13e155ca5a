//! iSCSI sessions and SCSI disks as sysfs shows them. Reading sysfs never waits for a target.

use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    path::{Path as FsPath, PathBuf},
};

use cryptvol_crds::conditions::Reason;

use super::{
    alua,
    error::{because, failed},
    files::has_file,
    local::{local_wwid, users},
    multipathd::{self, Foreign},
};
use crate::host::{Device, DeviceId, Lun, Path, Portal, RawKind, Session, StepError};

/// SCSI peripheral types that hold no data of anybody: controller, enclosure, unknown.
const NO_DATA: [&str; 3] = ["12", "13", "31"];

/// A sysfs tree.
#[derive(Clone, Debug)]
pub struct Sysfs {
    root: PathBuf,
}

impl Default for Sysfs {
    fn default() -> Self {
        Self::at("/sys")
    }
}

/// An iSCSI session and where its SCSI devices are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionEntry {
    /// Kernel's session id.
    pub sid: u32,
    /// SCSI host number.
    pub host: u32,
    /// SCSI target number on that host.
    pub target: u32,
    /// State, for example `LOGGED_IN`.
    pub state: String,
    /// Portal that it was made through, as far as the kernel knows it.
    pub portal: Option<Portal>,
    /// Directory of the session's devices.
    dir: PathBuf,
}

impl Sysfs {
    /// The tree at `root` (tests use a copy).
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Whether a module is loaded. What is built into the kernel without parameters is no module.
    pub fn has_module(&self, name: &str) -> bool {
        self.root.join("module").join(name).exists()
    }

    /// All sessions to a target, through whatever portal, the oldest first.
    ///
    /// # Errors
    /// When sysfs cannot be read. No iSCSI in this kernel means no session.
    pub fn sessions(&self, iqn: &str) -> io::Result<Vec<SessionEntry>> {
        let class = self.root.join("class/iscsi_session");
        let mut sids: Vec<_> = numbered(&class, "session")?.collect();
        sids.sort_unstable();
        let mut found = Vec::new();
        for sid in sids {
            found.extend(self.session(iqn, sid)?);
        }
        Ok(found)
    }

    /// The session with this id, where it is one to this target.
    ///
    /// # Errors
    /// When sysfs cannot be read.
    pub fn session(&self, iqn: &str, sid: u32) -> io::Result<Option<SessionEntry>> {
        let entry = self.root.join(format!("class/iscsi_session/session{sid}"));
        match attribute(&entry.join("targetname"))?.as_deref() == Some(iqn) {
            true => self.session_entry(&entry, sid),
            false => Ok(None),
        }
    }

    /// The ways to a logical unit: all sessions to its target with the disk that each shows, in the order in which one is taken.
    ///
    /// # Errors
    /// When sysfs cannot be read.
    pub fn paths(&self, lun: &Lun) -> io::Result<Vec<Path>> {
        let mut paths = Vec::new();
        for session in self.sessions(&lun.target.iqn)? {
            paths.push(Path {
                named: lun.target.names(session.portal.as_ref()),
                disk: self.disk(&session, lun.lun)?,
                session: Some(self.describe(&session)?),
            });
        }
        paths.sort_by_key(Path::rank);
        Ok(paths)
    }

    fn session_entry(&self, entry: &FsPath, sid: u32) -> io::Result<Option<SessionEntry>> {
        // …/host2/session1/iscsi_session/session1
        let Some(path) = link(entry)? else {
            return Ok(None);
        };
        let Some(dir) = path.parent().and_then(FsPath::parent) else {
            return Ok(None);
        };
        let host = dir
            .parent()
            .and_then(|p| p.file_name()?.to_str()?.strip_prefix("host")?.parse().ok());
        let (Some(host), Some(state)) = (host, attribute(&entry.join("state"))?) else {
            return Ok(None);
        };
        // -1 (all ones) stands for a target that is not there any more.
        let target = attribute(&entry.join("target_id"))?
            .and_then(|t| t.parse().ok())
            .unwrap_or(0);
        Ok(Some(SessionEntry {
            sid,
            host,
            target,
            state,
            portal: self.portal(sid)?,
            dir: dir.to_path_buf(),
        }))
    }

    /// The portal that the session was made through. A redirection by the target does not change it.
    fn portal(&self, sid: u32) -> io::Result<Option<Portal>> {
        let connection = self
            .root
            .join(format!("class/iscsi_connection/connection{sid}:0"));
        let address = attribute(&connection.join("persistent_address"))?;
        let port = attribute(&connection.join("persistent_port"))?.and_then(|p| p.parse().ok());
        Ok(address
            .filter(|a| !a.is_empty())
            .zip(port)
            .map(|(address, port)| Portal { address, port }))
    }

    /// What is told of a session.
    ///
    /// # Errors
    /// When sysfs cannot be read.
    pub fn describe(&self, session: &SessionEntry) -> io::Result<Session> {
        Ok(Session {
            sid: session.sid,
            state: session.state.clone(),
            portal: session.portal.clone(),
            in_use: self.in_use(session)?,
        })
    }

    /// Whether the session has a device in the kernel that may hold data. It ends with the first: each volume of a session with hundreds
    /// asks this at every step.
    ///
    /// # Errors
    /// When sysfs cannot be read.
    pub fn in_use(&self, session: &SessionEntry) -> io::Result<bool> {
        for target in names(&session.dir)?.filter(|n| n.starts_with("target")) {
            let dir = session.dir.join(target);
            for hctl in names(&dir)?.filter(|n| n.split(':').count() == 4) {
                let kind = attribute(&dir.join(hctl).join("type"))?;
                if kind.is_some_and(|k| !NO_DATA.contains(&k.as_str())) {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Directory of the SCSI device at a LUN of a session, whether it exists or not.
    pub fn scsi_device_dir(&self, session: &SessionEntry, lun: u32) -> PathBuf {
        let (host, target) = (session.host, session.target);
        session
            .dir
            .join(format!("target{host}:0:{target}/{host}:0:{target}:{lun}"))
    }

    /// The disk at a LUN of a session.
    ///
    /// # Errors
    /// When sysfs cannot be read.
    pub fn disk(&self, session: &SessionEntry, lun: u32) -> io::Result<Option<Device>> {
        let scsi = self.scsi_device_dir(session, lun);
        let Some(name) = names(&scsi.join("block"))?.next() else {
            return Ok(None);
        };
        let block = scsi.join("block").join(&name);
        let (Some(dev), Some(sectors)) = (
            attribute(&block.join("dev"))?,
            attribute(&block.join("size"))?,
        ) else {
            return Ok(None);
        };
        let Some(hctl) = scsi.file_name().and_then(|n| n.to_str()) else {
            return Ok(None);
        };
        Ok(Some(Device {
            id: DeviceId {
                path: format!("/dev/{name}"),
                dev,
                kind: RawKind::Lun {
                    hctl: hctl.to_owned(),
                },
                wwid: wwid(&scsi)?,
                size_bytes: bytes(&sectors)?,
            },
            state: attribute(&scsi.join("state"))?.unwrap_or_default(),
            holders: holders(&block)?,
            access: alua::access(&scsi)?,
        }))
    }

    /// What is stacked on a device or on a partition of it, and whatever else uses one that was there before us.
    ///
    /// # Errors
    /// When sysfs cannot be read.
    pub fn holders(&self, id: &DeviceId) -> io::Result<Vec<String>> {
        match self.block_dir(id)? {
            None => Ok(Vec::new()),
            Some(block) => match id.kind {
                RawKind::Lun { .. } | RawKind::Paths { .. } => holders(&block),
                RawKind::Local | RawKind::Loop { .. } => users(&block, &id.dev),
            },
        }
    }

    /// Nothing is stacked on a device or uses it. `doing` is what an error of reading is told with.
    ///
    /// # Errors
    /// `DeviceBusy` with whatever uses it, `StepFailed`.
    pub fn unused(&self, id: &DeviceId, doing: &str) -> Result<(), StepError> {
        let holders = self.holders(id).map_err(|e| failed(doing, e))?;
        match holders.is_empty() {
            true => Ok(()),
            false => Err(because(
                Reason::DeviceBusy,
                format!("{} is used by {}", id.path, holders.join(", ")),
            )),
        }
    }

    /// Directory of the block device when the kernel still has this very device: same number, name and SCSI address.
    ///
    /// # Errors
    /// When sysfs cannot be read.
    pub fn block_dir(&self, id: &DeviceId) -> io::Result<Option<PathBuf>> {
        let Some(path) = link(&self.root.join("dev/block").join(&id.dev))? else {
            return Ok(None);
        };
        let name = id.path.strip_prefix("/dev/").unwrap_or(&id.path);
        let same = match &id.kind {
            RawKind::Lun { hctl } => path.ends_with(FsPath::new(hctl).join("block").join(name)),
            RawKind::Local | RawKind::Loop { .. } | RawKind::Paths { .. } => path.ends_with(name),
        };
        Ok(same.then_some(path))
    }

    /// Whether a device is what it was: same number, name, SCSI address, WWID and size.
    ///
    /// # Errors
    /// `DeviceUnreadable` when it is gone, `WwidMismatch` or `SizeMismatch` when another one is there.
    pub fn same_device(&self, id: &DeviceId) -> Result<(), StepError> {
        let read = |e: io::Error| failed(format!("reading sysfs of {}", id.path), e);
        let Some(block) = self.block_dir(id).map_err(read)? else {
            return Err(because(
                Reason::DeviceUnreadable,
                format!("{} ({}) is gone", id.path, id.dev),
            ));
        };
        let wwid = match &id.kind {
            RawKind::Local => local_wwid(&block),
            RawKind::Lun { .. } | RawKind::Loop { .. } => wwid(&block.join("device")),
            RawKind::Paths { uuid } => {
                let found = attribute(&block.join("dm/uuid")).map_err(read)?;
                if found.as_ref() != Some(uuid) {
                    return Err(because(
                        Reason::WwidMismatch,
                        format!("{} is another map now", id.path),
                    ));
                }
                paths_wwid(&block)
            }
        };
        let wwid = wwid.map_err(read)?;
        if wwid != id.wwid {
            let show = |w: &Option<String>| w.clone().unwrap_or_else(|| "none".to_owned());
            return Err(because(
                Reason::WwidMismatch,
                format!(
                    "{} has WWID {} and had {}",
                    id.path,
                    show(&wwid),
                    show(&id.wwid)
                ),
            ));
        }
        if matches!(id.kind, RawKind::Loop { .. }) && !has_file(id).map_err(read)? {
            return Err(because(
                Reason::WwidMismatch,
                format!("{} has another file by now", id.path),
            ));
        }
        let size = attribute(&block.join("size")).map_err(read)?;
        let size = bytes(size.as_deref().unwrap_or("0")).map_err(read)?;
        if size != id.size_bytes {
            return Err(because(
                Reason::SizeMismatch,
                format!("{} has {size} bytes and had {}", id.path, id.size_bytes),
            ));
        }
        Ok(())
    }

    /// Path below this tree.
    pub fn path(&self, below: &str) -> PathBuf {
        self.root.join(below)
    }
}

/// Reads an attribute with one read, without the line end; nothing when it or its device is not there.
///
/// # Errors
/// Those of the file that do not mean absence.
pub fn attribute(path: &FsPath) -> io::Result<Option<String>> {
    let mut buffer = [0; 4096];
    let read = File::open(path).and_then(|mut f| f.read(&mut buffer));
    match read {
        Ok(n) => Ok(Some(
            String::from_utf8_lossy(&buffer[..n]).trim().to_owned(),
        )),
        Err(e) if absent(&e) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Writes an attribute with one write.
///
/// # Errors
/// Those of the file.
pub fn set_attribute(path: &FsPath, value: &str) -> io::Result<()> {
    OpenOptions::new()
        .write(true)
        .open(path)?
        .write_all(value.as_bytes())
}

/// Names in a directory, sorted; none when it is not there.
///
/// # Errors
/// Those of the directory that do not mean absence.
pub fn names(dir: &FsPath) -> io::Result<impl Iterator<Item = String> + use<>> {
    let mut names = Vec::new();
    match fs::read_dir(dir) {
        Ok(entries) => {
            for entry in entries {
                names.push(entry?.file_name().to_string_lossy().into_owned());
            }
        }
        Err(e) if absent(&e) => {}
        Err(e) => return Err(e),
    }
    names.sort();
    Ok(names.into_iter())
}

/// `ENOENT`, and what sysfs answers while a device is being removed.
pub(super) fn absent(error: &io::Error) -> bool {
    use nix::libc::{ENODEV, ENOENT, ENOTDIR, ENXIO};
    matches!(
        error.raw_os_error(),
        Some(ENOENT | ENODEV | ENXIO | ENOTDIR)
    )
}

/// Where a link leads, as a path that can be opened; nothing when it is not there.
pub(super) fn link(path: &FsPath) -> io::Result<Option<PathBuf>> {
    match fs::read_link(path) {
        Ok(to) => Ok(path.parent().map(|p| normal(&p.join(to)))),
        Err(e) if absent(&e) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Takes out `..` by name. Right in sysfs, where directories are no links.
fn normal(path: &FsPath) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        if part == std::path::Component::ParentDir {
            out.pop();
        } else {
            out.push(part);
        }
    }
    out
}

/// Numbers of the names `PREFIX<number>` in a directory.
fn numbered(dir: &FsPath, prefix: &'static str) -> io::Result<impl Iterator<Item = u32>> {
    Ok(names(dir)?.filter_map(move |n| n.strip_prefix(prefix)?.parse().ok()))
}

/// What is stacked on a device or on a partition of it, by kernel name; a map of multipathd's with its own name too, and how it is kept off.
pub(super) fn holders(block: &FsPath) -> io::Result<Vec<String>> {
    let mut all = Vec::new();
    for name in names(&block.join("holders"))? {
        let map = multipathd::map(&block.join("holders").join(&name))?;
        all.push(match map {
            None => name,
            Some(Foreign { alias, wwid }) => format!(
                "{name}, the map {alias} of multipathd (keep the disk from it: blacklist {{ wwid {wwid} }} in /etc/multipath.conf, then \
                 multipathd reconfigure and multipath -f {alias})"
            ),
        });
    }
    let disk = block.file_name().and_then(|n| n.to_str()).unwrap_or("/");
    for part in names(block)?.filter(|n| n.starts_with(disk)) {
        all.extend(names(&block.join(part).join("holders"))?);
    }
    Ok(all)
}

pub(super) fn wwid(scsi: &FsPath) -> io::Result<Option<String>> {
    Ok(attribute(&scsi.join("wwid"))?.filter(|w| !w.is_empty()))
}

/// What the paths of a map show, those that are down left out unless all are: one WWID, or else all of them.
pub(super) fn paths_wwid(block: &FsPath) -> io::Result<Option<String>> {
    let slaves = block.join("slaves");
    let (mut up, mut all) = (BTreeSet::new(), BTreeSet::new());
    for disk in names(&slaves)? {
        let scsi = slaves.join(disk).join("device");
        let shown = wwid(&scsi)?.unwrap_or_else(|| "no WWID".to_owned());
        if attribute(&scsi.join("state"))?.as_deref() == Some("running") {
            up.insert(shown.clone());
        }
        all.insert(shown);
    }
    let shown = if up.is_empty() { all } else { up };
    let shown: Vec<_> = shown.into_iter().collect();
    Ok((!shown.is_empty()).then(|| shown.join(" and ")))
}

/// sysfs counts in units of 512 bytes whatever the device's blocks are.
pub(super) fn bytes(sectors: &str) -> io::Result<u64> {
    sectors
        .parse::<u64>()
        .ok()
        .and_then(|s| s.checked_mul(512))
        .ok_or_else(|| io::Error::other(format!("size {sectors:?}")))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::host::Target;

    /// A sysfs tree with one session and one disk, as kernel 6.1 shows them.
    fn tree() -> (tempfile::TempDir, Sysfs) {
        let tmp = tempfile::tempdir().unwrap();
        let root = tmp.path();
        let session = root.join("devices/platform/host2/session1");
        let scsi = session.join("target2:0:0/2:0:0:1");
        let block = scsi.join("block/sda");
        fs::create_dir_all(session.join("iscsi_session/session1")).unwrap();
        fs::create_dir_all(block.join("holders/dm-0")).unwrap();
        fs::create_dir_all(root.join("class/iscsi_session")).unwrap();
        fs::create_dir_all(root.join("dev/block")).unwrap();
        symlink(
            "../../devices/platform/host2/session1/iscsi_session/session1",
            root.join("class/iscsi_session/session1"),
        )
        .unwrap();
        symlink(
            "../../devices/platform/host2/session1/target2:0:0/2:0:0:1/block/sda",
            root.join("dev/block/8:0"),
        )
        .unwrap();
        symlink("../../../2:0:0:1", block.join("device")).unwrap();
        let s = session.join("iscsi_session/session1");
        for (file, text) in [
            (s.join("targetname"), "iqn.2026-11.dev.example:db-0\n"),
            (s.join("state"), "LOGGED_IN\n"),
            (s.join("target_id"), "0\n"),
            (scsi.join("type"), "0\n"),
            (scsi.join("state"), "running\n"),
            (scsi.join("wwid"), "t10.IET     00010001\n"),
            (block.join("dev"), "8:0\n"),
            (block.join("size"), "409600\n"),
        ] {
            fs::write(file, text).unwrap();
        }
        let sysfs = Sysfs::at(root);
        (tmp, sysfs)
    }

    fn portal(address: &str) -> Portal {
        Portal {
            address: address.into(),
            port: 3260,
        }
    }

    fn paths(sysfs: &Sysfs, iqn: &str) -> Vec<Path> {
        let target = Target {
            portals: vec![portal("10.0.0.1"), portal("fd00:0:0::1")],
            iqn: iqn.into(),
        };
        sysfs.paths(&Lun { target, lun: 1 }).unwrap()
    }

    #[test]
    fn a_map_of_multipathds_is_named_with_the_way_to_keep_the_disk_from_it() {
        let (tmp, sysfs) = tree();
        let target = "devices/platform/host2/session1/target2:0:0/2:0:0:1/block/sda";
        let dm = tmp.path().join(target).join("holders/dm-0/dm");
        fs::create_dir_all(&dm).unwrap();
        fs::write(dm.join("name"), "mpatha\n").unwrap();
        for (uuid, ours) in [("CRYPTVOL-PATHS-x", true), ("mpath-360e1\n", false)] {
            fs::write(dm.join("uuid"), uuid).unwrap();
            let found = disk(&sysfs).holders;
            match ours {
                true => assert_eq!(found, ["dm-0"]),
                false => {
                    assert!(
                        found[0].starts_with("dm-0, the map mpatha of multipathd"),
                        "{found:?}"
                    );
                    assert!(found[0].contains("wwid 360e1"), "{found:?}");
                }
            }
        }
    }

    fn disk(sysfs: &Sysfs) -> Device {
        let iqn = "iqn.2026-11.dev.example:db-0";
        let sessions = sysfs.sessions(iqn).unwrap();
        assert_eq!(sysfs.session(iqn, 1).unwrap().as_ref(), sessions.first());
        let session = &sessions[0];
        assert_eq!((session.sid, session.host), (1, 2));
        assert!(sysfs.in_use(session).unwrap());
        assert_eq!(sysfs.disk(session, 2).unwrap(), None);
        sysfs.disk(session, 1).unwrap().unwrap()
    }

    #[test]
    fn finds_session_and_disk() {
        let (_tmp, sysfs) = tree();
        let device = disk(&sysfs);
        assert_eq!(device.id.path, "/dev/sda");
        let hctl = "2:0:0:1".to_owned();
        assert_eq!(device.id.kind, RawKind::Lun { hctl });
        assert_eq!(device.id.size_bytes, 409_600 * 512);
        assert_eq!(device.id.wwid.as_deref(), Some("t10.IET     00010001"));
        assert_eq!(device.holders, ["dm-0"]);
        assert!(paths(&sysfs, "iqn.other:x").is_empty());
        assert_eq!(sysfs.session("iqn.other:x", 1).unwrap(), None);
        sysfs.same_device(&device.id).unwrap();
    }

    #[test]
    fn a_controller_is_no_use_of_a_session() {
        let (tmp, sysfs) = tree();
        let iqn = "iqn.2026-11.dev.example:db-0";
        let session = sysfs.sessions(iqn).unwrap().remove(0);
        let target = tmp
            .path()
            .join("devices/platform/host2/session1/target2:0:0");
        fs::write(target.join("2:0:0:1/type"), "12\n").unwrap();
        assert!(!sysfs.in_use(&session).unwrap());
        fs::create_dir(target.join("2:0:0:2")).unwrap();
        fs::write(target.join("2:0:0:2/type"), "0\n").unwrap();
        assert!(sysfs.in_use(&session).unwrap());
    }

    #[test]
    fn of_several_sessions_the_one_through_a_named_portal() {
        let (tmp, sysfs) = tree();
        let root = tmp.path();
        let iqn = "iqn.2026-11.dev.example:db-0";
        // Session 1 is somebody's, through a portal that the volume does not name.
        for (sid, address) in [(1, "10.0.0.9"), (2, "fd00::1")] {
            let connection = root.join(format!("class/iscsi_connection/connection{sid}:0"));
            fs::create_dir_all(&connection).unwrap();
            fs::write(connection.join("persistent_address"), address).unwrap();
            fs::write(connection.join("persistent_port"), "3260\n").unwrap();
        }
        let first = || paths(&sysfs, iqn).remove(0);
        let session = || first().session.unwrap();
        assert!(!first().named);
        assert_eq!(session().portal, Some(portal("10.0.0.9")));
        let second = root.join("devices/platform/host3/session2/iscsi_session/session2");
        fs::create_dir_all(&second).unwrap();
        for (file, text) in [("targetname", iqn), ("state", "FAILED"), ("target_id", "0")] {
            fs::write(second.join(file), text).unwrap();
        }
        symlink(&second, root.join("class/iscsi_session/session2")).unwrap();
        assert_eq!(
            (session().sid, session().portal),
            (2, Some(portal("fd00::1")))
        );
        assert!(first().named);
        assert_eq!(paths(&sysfs, iqn).len(), 2);
    }

    #[test]
    fn another_disk_under_the_same_number_is_noticed() {
        let (tmp, sysfs) = tree();
        let id = disk(&sysfs).id;
        let scsi = tmp
            .path()
            .join("devices/platform/host2/session1/target2:0:0/2:0:0:1");

        let moved = DeviceId {
            kind: RawKind::Lun {
                hctl: "2:0:0:9".into(),
            },
            ..id.clone()
        };
        assert_eq!(
            sysfs.same_device(&moved).unwrap_err().reason(),
            Reason::DeviceUnreadable
        );
        fs::write(scsi.join("block/sda/size"), "8\n").unwrap();
        assert_eq!(
            sysfs.same_device(&id).unwrap_err().reason(),
            Reason::SizeMismatch
        );
        fs::write(scsi.join("wwid"), "naa.6000\n").unwrap();
        assert_eq!(
            sysfs.same_device(&id).unwrap_err().reason(),
            Reason::WwidMismatch
        );
    }

    #[test]
    fn no_iscsi_means_no_session() {
        let tmp = tempfile::tempdir().unwrap();
        assert!(paths(&Sysfs::at(tmp.path()), "iqn.a:b").is_empty());
    }
}
