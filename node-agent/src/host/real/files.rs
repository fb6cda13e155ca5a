//! Files that stand for disks: made sparse in the one directory that the agent has for them, offered by a loop device, found
//! again by the inode.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::OwnedFd,
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use cryptvol_crds::{
    conditions::Reason,
    names::{DM_UUID_PREFIX, FILE_DIR},
};
use nix::{
    errno::Errno,
    fcntl::{OFlag, open, openat},
    libc,
    sys::{stat::Mode, statvfs::fstatvfs},
    unistd::{UnlinkatFlags, fsync, unlinkat},
};

use super::{
    disk::Disk,
    error::{because, failed, no_module},
    header,
    local::users,
    loop_sys::{self, Backing},
    openers,
    sysfs::{self, Sysfs, attribute, bytes, link},
};
use crate::{
    host::{
        BackingFile, Device, DeviceId, FileState, HeaderFound, LoopDevice, Mapping, RawKind,
        StepError,
    },
    volume::wanted::{is_file_name, is_scratch_name},
};

/// How often another may take the free loop device before us.
const TRIES: u32 = 16;
/// How long a loop device may keep its file after it was taken away, because somebody (udev) looks at it.
const LINGER: Duration = Duration::from_secs(10);

/// The directories of files.
#[derive(Clone, Debug)]
pub struct Files {
    /// What stands before the paths; `/` but in tests.
    root: PathBuf,
}

impl Default for Files {
    fn default() -> Self {
        Self {
            root: PathBuf::from("/"),
        }
    }
}

impl Files {
    /// Files below another root, for tests.
    #[cfg(test)]
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// What is at the path. A link is not followed.
    ///
    /// # Errors
    /// `FileNotUsable` for a path outside of the directories, `StepFailed`.
    pub fn observe(&self, file: &BackingFile) -> Result<FileState, StepError> {
        match fs::symlink_metadata(self.dir().join(name(&file.path)?)) {
            Ok(meta) if meta.is_file() => Ok(FileState::Regular {
                size_bytes: meta.len(),
            }),
            Ok(_) => Ok(FileState::Other),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(FileState::Absent),
            Err(e) => Err(failed(format!("reading {}", file.path), e)),
        }
    }

    /// Makes the file, sparse, for root alone. One that is there must be empty or as large as wanted.
    ///
    /// # Errors
    /// `FileNotUsable`, `StepFailed`.
    pub fn make(&self, file: &BackingFile) -> Result<(), StepError> {
        let name = name(&file.path)?;
        let fail = |e: Errno| failed(format!("making {}", file.path), e);
        fs::create_dir_all(self.dir())
            .map_err(|e| failed(format!("making the directory {FILE_DIR}"), e))?;
        let dir = self.open_dir().map_err(fail)?;
        let flags = OFlag::O_RDWR | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mode = Mode::from_bits_truncate(0o600);
        let made = match openat(&dir, name, flags | OFlag::O_CREAT | OFlag::O_EXCL, mode) {
            Ok(fd) => File::from(fd),
            // Cut off between making and sizing.
            Err(Errno::EEXIST) => self.regular(file)?,
            Err(e) => return Err(fail(e)),
        };
        let size = made.metadata().map_err(|e| failed(&file.path, e))?.len();
        if size != 0 && size < file.size_bytes {
            return Err(because(
                Reason::FileNotUsable,
                format!("{} is there and has {size} bytes", file.path),
            ));
        }
        if size == 0 {
            made.set_len(file.size_bytes)
                .map_err(|e| failed(format!("making {}", file.path), e))?;
        }
        made.sync_all()
            .map_err(|e| failed(format!("making {}", file.path), e))?;
        fsync(&dir).map_err(fail)
    }

    /// The loop device of a volume: the one below its live mapping, where there is one of ours, else the one that has the file at the
    /// path now, all of it and to be written to. Told by the inode: names in sysfs are those of whoever made it. A scratch file's name is its
    /// volume's alone, so its loop device is found by that too, also when something was mounted over the directory since.
    ///
    /// # Errors
    /// `FileNotUsable` for a path outside of the directory, `StepFailed`.
    pub fn device(
        &self,
        sysfs: &Sysfs,
        file: &BackingFile,
        mapping: Option<&Mapping>,
    ) -> Result<Option<Device>, StepError> {
        let read = |e: io::Error| failed("reading loop devices", e);
        let below = mapping.filter(|m| m.uuid.starts_with(DM_UUID_PREFIX));
        if let Some([dev]) = below.map(|m| m.deps.as_slice())
            && let Some(block) = link(&sysfs.path("dev/block").join(dev)).map_err(read)?
            && let Some((device, _)) = looped(&block).map_err(read)?
        {
            return Ok(Some(device));
        }
        let name = name(&file.path)?;
        let known_by = match fs::symlink_metadata(self.dir().join(name)) {
            _ if is_scratch_name(name) => None,
            Ok(meta) if meta.is_file() => Some((meta.dev(), meta.ino())),
            Ok(_) => return Ok(None),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(failed(format!("reading {}", file.path), e)),
        };
        for block in sysfs.loops(name).map_err(read)? {
            if let Some((device, below)) = looped(&block).map_err(read)?
                && below.is_a_disk()
                && known_by.is_none_or(|file| file == below.file)
            {
                return Ok(Some(device));
            }
        }
        Ok(None)
    }

    /// All loop devices over files in the directory, whoever made them. Where the path that the kernel shows is not the node's (it is that of
    /// whoever made the device) the inode tells, and of a scratch file its name.
    ///
    /// # Errors
    /// When sysfs cannot be read.
    pub fn loop_devices(&self, sysfs: &Sysfs) -> io::Result<Vec<LoopDevice>> {
        let mut all = vec![];
        for block in sysfs.loops("")? {
            let Some(shown) = attribute(&block.join("loop/backing_file"))? else {
                continue;
            };
            let Some((path, name)) = shown_name(&shown) else {
                continue;
            };
            let file = format!("{FILE_DIR}/{name}");
            let known_by = match fs::symlink_metadata(self.dir().join(name)) {
                _ if is_scratch_name(name) => None,
                _ if path == file => None,
                Ok(meta) if meta.is_file() => Some((meta.dev(), meta.ino())),
                _ => continue,
            };
            let device = looped(&block)?;
            let device = device.filter(|(_, b)| known_by.is_none_or(|file| file == b.file));
            all.extend(device.map(|(d, _)| LoopDevice {
                path: d.id.path,
                dev: d.id.dev,
                file,
                users: d.holders,
            }));
        }
        all.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(all)
    }

    /// Offers the file by a loop device. Success when one has it already, all of it and to be written to; one of another kind is left alone,
    /// and where it can write into the file none is made beside it.
    ///
    /// # Errors
    /// `FileNotUsable`, `DeviceInUse`, `StepFailed`.
    pub fn attach(&self, sysfs: &Sysfs, file: &BackingFile) -> Result<(), StepError> {
        if self.device(sysfs, file, None)?.is_some() {
            return Ok(());
        }
        let backing = self.regular(file)?;
        let what = |e: io::Error| failed(format!("a loop device for {}", file.path), e);
        let meta = backing.metadata().map_err(what)?;
        if let Some(other) = writer(sysfs, (meta.dev(), meta.ino())).map_err(what)? {
            return Err(because(
                Reason::DeviceInUse,
                format!(
                    "{} is written to through {other}, which shows a part of it and was made by somebody else: losetup -d {other}, where nobody \
                     needs it",
                    file.path
                ),
            ));
        }
        let control = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/loop-control")
            .map_err(|e| match e.raw_os_error() {
                Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => no_module("a file", "loop"),
                _ => what(e),
            })?;
        let mut last = io::Error::other("no free loop device");
        for _ in 0..TRIES {
            let number = loop_sys::free_number(&control).map_err(what)?;
            let device = OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(libc::O_CLOEXEC)
                .open(format!("/dev/loop{number}"))
                .map_err(what)?;
            match loop_sys::configure(&device, &backing, &file.path) {
                Ok(()) => return Ok(()),
                Err(e) if e.raw_os_error() == Some(libc::EBUSY) => last = e,
                Err(e) => return Err(what(e)),
            }
        }
        Err(what(last))
    }

    /// Makes the file below a loop device longer, and the loop device with it. The file system must have room now for what is added,
    /// though the file is sparse: what a guest was promised and cannot be written is an I/O error to it.
    ///
    /// # Errors
    /// `FileNotUsable`, `FileSystemFull`, `StepFailed`.
    pub fn lengthen(&self, device: &DeviceId, file: &BackingFile) -> Result<(), StepError> {
        let doing = format!("lengthening {}", file.path);
        let what = |e: io::Error| failed(&doing, e);
        let backing = self.regular(file)?;
        let meta = backing.metadata().map_err(what)?;
        let block = look(&device.path).map_err(what)?;
        let below = loop_sys::backing(&block).map_err(what)?;
        if !below.is_some_and(|b| b.is_disk_of((meta.dev(), meta.ino()))) {
            return Err(because(
                Reason::FileNotUsable,
                format!("{} is not the file below {}", file.path, device.path),
            ));
        }
        self.stretch(&backing, file)?;
        loop_sys::take_size(&block).map_err(what)
    }

    fn stretch(&self, backing: &File, file: &BackingFile) -> Result<(), StepError> {
        let doing = format!("lengthening {}", file.path);
        let has = backing.metadata().map_err(|e| failed(&doing, e))?.len();
        let more = file.size_bytes.saturating_sub(has);
        if more > 0 {
            let room = fstatvfs(backing).map_err(|e| failed(&doing, e))?;
            let free = room.blocks_available().saturating_mul(room.fragment_size());
            if free < more {
                return Err(because(
                    Reason::FileSystemFull,
                    format!(
                        "{} has {has} bytes and shall have {}, and its file system has {free} bytes free",
                        file.path, file.size_bytes
                    ),
                ));
            }
            backing
                .set_len(file.size_bytes)
                .map_err(|e| failed(&doing, e))?;
        }
        // Not only of what was just added: who did that may have died before it was on the disk.
        backing.sync_all().map_err(|e| failed(&doing, e))
    }

    /// Removes the file of an erased volume. One that by now carries a header or anything else that has a name is somebody's, and
    /// stays; a scratch file has its volume's name, and goes. Absent is success.
    ///
    /// # Errors
    /// `FileNotUsable`, `StepFailed`.
    pub fn remove(&self, file: &BackingFile) -> Result<(), StepError> {
        if self.observe(file)? == FileState::Absent {
            return Ok(());
        }
        let found = self.regular(file)?;
        let scratch = is_scratch_name(name(&file.path)?);
        match header::read(&Disk::of(found, &file.path)?)? {
            _ if scratch => {}
            HeaderFound::Blank | HeaderFound::Unknown => {}
            found => {
                let what = match found {
                    HeaderFound::Foreign(what) => what,
                    _ => "a LUKS header".to_owned(),
                };
                tracing::warn!(file = file.path, what, "not removed: it carries something");
                return Ok(());
            }
        }
        let fail = |e: Errno| failed(format!("removing {}", file.path), e);
        let dir = self.open_dir().map_err(fail)?;
        match unlinkat(&dir, name(&file.path)?, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => fsync(&dir).map_err(fail),
            Err(e) => Err(fail(e)),
        }
    }

    /// The file, when it is one and not a link, a device or a second name of another file.
    fn regular(&self, file: &BackingFile) -> Result<File, StepError> {
        let name = name(&file.path)?;
        let unusable = |why: String| because(Reason::FileNotUsable, format!("{} {why}", file.path));
        let flags = OFlag::O_RDWR | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let found = self
            .open_dir()
            .and_then(|dir| openat(&dir, name, flags, Mode::empty()));
        let found = match found {
            Ok(fd) => File::from(fd),
            Err(Errno::ELOOP) => return Err(unusable("is a symbolic link".into())),
            Err(e) => return Err(failed(format!("opening {}", file.path), e)),
        };
        let meta = found.metadata().map_err(|e| failed(&file.path, e))?;
        if !meta.is_file() {
            return Err(unusable("is no regular file".into()));
        }
        if meta.nlink() != 1 {
            return Err(unusable(format!("has {} names", meta.nlink())));
        }
        Ok(found)
    }

    fn dir(&self) -> PathBuf {
        self.root.join(FILE_DIR.trim_start_matches('/'))
    }

    fn open_dir(&self) -> nix::Result<OwnedFd> {
        let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        open(&self.dir(), flags, Mode::empty())
    }
}

/// Takes the file away from its loop device, unless anything uses it. Absent is success.
///
/// # Errors
/// `DeviceBusy`, `StepFailed`.
pub fn detach(sysfs: &Sysfs, id: &DeviceId) -> Result<(), StepError> {
    let doing = format!("detaching {}", id.path);
    let what = |e: io::Error| failed(&doing, e);
    let RawKind::Loop { file_system, inode } = &id.kind else {
        return Err(failed(&id.path, "is no loop device"));
    };
    sysfs.unused(id, &doing)?;
    let Some(block) = sysfs.block_dir(id).map_err(what)? else {
        return Ok(());
    };
    let exclusive = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_EXCL | libc::O_CLOEXEC)
        .open(&id.path);
    let device = match exclusive {
        Ok(device) => device,
        Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {
            return Err(because(
                Reason::DeviceBusy,
                format!(
                    "{} is mounted or opened exclusively{}",
                    id.path,
                    openers::whoever(&block, id)
                ),
            ));
        }
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENXIO | libc::ENOENT)) => return Ok(()),
        Err(e) => return Err(what(e)),
    };
    let below = loop_sys::backing(&device).map_err(what)?;
    if !below.is_some_and(|b| b.is_disk_of((*file_system, *inode))) {
        return Ok(()); // it has another file, or a part of one, by now
    }
    // Whoever has it open keeps the file there; the kernel would take it away at a moment of theirs.
    openers::none(&block, id)?;
    device.sync_all().map_err(what)?;
    loop_sys::clear(&device).map_err(what)?;
    // The last who closes it takes the file away.
    drop(device);
    let begun = Instant::now();
    while block.join("loop/backing_file").exists() {
        if begun.elapsed() > LINGER {
            return Err(because(
                Reason::DeviceBusy,
                format!("{} is still open somewhere", id.path),
            ));
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Whether a loop device still has the file that it is known by, and all of it.
///
/// # Errors
/// Those of the device.
pub fn has_file(id: &DeviceId) -> io::Result<bool> {
    let RawKind::Loop { file_system, inode } = &id.kind else {
        return Ok(false);
    };
    let below = loop_sys::backing(look(&id.path)?)?;
    Ok(below.is_some_and(|b| b.is_disk_of((*file_system, *inode))))
}

fn look(path: &str) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_CLOEXEC | libc::O_NONBLOCK)
        .open(path)
}

/// A loop device through which a file, or a part of it, can be written.
fn writer(sysfs: &Sysfs, file: (u64, u64)) -> io::Result<Option<String>> {
    for block in sysfs.loops("")? {
        if let Some((device, below)) = looped(&block)?
            && below.file == file
            && below.writable
        {
            return Ok(Some(device.id.path));
        }
    }
    Ok(None)
}

/// A loop device in sysfs, with what is below it.
fn looped(block: &Path) -> io::Result<Option<(Device, Backing)>> {
    let Some(name) = block.file_name().and_then(|n| n.to_str()) else {
        return Ok(None);
    };
    if !block.join("loop/backing_file").exists() {
        return Ok(None);
    }
    let path = format!("/dev/{name}");
    let Ok(open) = look(&path) else {
        return Ok(None); // taken away meanwhile
    };
    let Some(below) = loop_sys::backing(&open)? else {
        return Ok(None);
    };
    let (file_system, inode) = below.file;
    let (Some(dev), Some(size)) = (
        attribute(&block.join("dev"))?,
        attribute(&block.join("size"))?,
    ) else {
        return Ok(None);
    };
    let device = Device {
        holders: users(block, &dev)?,
        access: None,
        id: DeviceId {
            path,
            dev,
            kind: RawKind::Loop { file_system, inode },
            wwid: None,
            size_bytes: bytes(&size)?,
        },
        state: "running".to_owned(),
    };
    Ok(Some((device, below)))
}

/// The path of a loop device's file as the kernel shows it, and its name, where a file in the directory could have that.
pub(crate) fn shown_name(shown: &str) -> Option<(&str, &str)> {
    // One that was removed or replaced since.
    let path = shown.strip_suffix(" (deleted)").unwrap_or(shown);
    let name = path.rsplit('/').next()?;
    (is_scratch_name(name) || is_file_name(name)).then_some((path, name))
}

/// Name of a file in the directory.
fn name(path: &str) -> Result<&str, StepError> {
    path.strip_prefix(FILE_DIR)
        .and_then(|rest| rest.strip_prefix('/'))
        .filter(|name| is_file_name(name) || is_scratch_name(name))
        .ok_or_else(|| {
            because(
                Reason::FileNotUsable,
                format!(
                    "{path} is not directly in {FILE_DIR}, the only directory of the node that the agent has for files"
                ),
            )
        })
}

impl Sysfs {
    /// Loop devices whose file has this in its name, wherever; all that have a file for an empty one.
    fn loops(&self, file: &str) -> io::Result<Vec<PathBuf>> {
        let mut all = vec![];
        let dir = self.path("block");
        for name in sysfs::names(&dir)?.filter(|n| n.starts_with("loop")) {
            let block = dir.join(name);
            let below = attribute(&block.join("loop/backing_file"))?;
            if below.is_some_and(|path| path.contains(file)) {
                all.push(block);
            }
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str) -> BackingFile {
        BackingFile {
            path: path.into(),
            size_bytes: 64 << 20,
        }
    }

    #[test]
    fn made_once_and_sparse_and_never_outside() {
        let tmp = tempfile::tempdir().unwrap();
        let files = Files::at(tmp.path());
        let disk = file("/var/lib/cryptvol/volumes/db-0.img");
        assert_eq!(files.observe(&disk).unwrap(), FileState::Absent);
        files.make(&disk).unwrap();
        files.make(&disk).unwrap();
        let at = tmp.path().join("var/lib/cryptvol/volumes/db-0.img");
        let meta = fs::metadata(&at).unwrap();
        assert_eq!(
            (meta.len(), meta.blocks(), meta.mode() & 0o777),
            (64 << 20, 0, 0o600)
        );
        // Cut off before it had its size.
        fs::OpenOptions::new()
            .write(true)
            .open(&at)
            .unwrap()
            .set_len(0)
            .unwrap();
        files.make(&disk).unwrap();
        assert_eq!(
            files.observe(&disk).unwrap(),
            FileState::Regular {
                size_bytes: 64 << 20
            }
        );
        for bad in [
            "/etc/passwd",
            "/var/lib/cryptvol/volumes/../x",
            "/var/lib/cryptvol/volumes/a/b",
            "/var/lib/cryptvol/volumes/.x",
            "/var/lib/cryptvol/volumes/",
            "/var/lib/cryptvol/volumesx/a",
        ] {
            for result in [
                files.make(&file(bad)),
                files.remove(&file(bad)),
                files.observe(&file(bad)).map(drop),
            ] {
                assert_eq!(result.unwrap_err().reason(), Reason::FileNotUsable, "{bad}");
            }
        }
    }

    #[test]
    fn made_longer_where_there_is_room_and_never_shorter() {
        let tmp = tempfile::tempdir().unwrap();
        let files = Files::at(tmp.path());
        let mut disk = file("/var/lib/cryptvol/volumes/a");
        files.make(&disk).unwrap();
        let backing = files.regular(&disk).unwrap();
        let length = || backing.metadata().unwrap().len();
        disk.size_bytes = 96 << 20;
        files.stretch(&backing, &disk).unwrap();
        files.stretch(&backing, &disk).unwrap();
        assert_eq!(length(), 96 << 20);
        disk.size_bytes = 64 << 20;
        files.stretch(&backing, &disk).unwrap();
        assert_eq!(length(), 96 << 20);
        disk.size_bytes = 1 << 60;
        let full = files.stretch(&backing, &disk).unwrap_err();
        assert_eq!(full.reason(), Reason::FileSystemFull);
        assert!(full.message.contains("bytes free"), "{}", full.message);
        assert_eq!(length(), 96 << 20);
        // Whatever the device is, it has another file.
        let other = DeviceId {
            path: "/dev/null".into(),
            dev: "1:3".into(),
            kind: RawKind::Loop {
                file_system: 0,
                inode: 0,
            },
            wwid: None,
            size_bytes: 0,
        };
        assert!(files.lengthen(&other, &disk).is_err());
        assert_eq!(length(), 96 << 20);
    }

    #[test]
    fn what_is_no_file_of_its_own_is_refused_and_what_carries_something_stays() {
        let tmp = tempfile::tempdir().unwrap();
        let files = Files::at(tmp.path());
        files.make(&file("/var/lib/cryptvol/volumes/a")).unwrap();
        let dir = tmp.path().join("var/lib/cryptvol/volumes");
        fs::write(tmp.path().join("outside"), "data").unwrap();
        std::os::unix::fs::symlink(tmp.path().join("outside"), dir.join("link")).unwrap();
        fs::hard_link(tmp.path().join("outside"), dir.join("second")).unwrap();
        fs::create_dir(dir.join("folder")).unwrap();
        for name in ["link", "second", "folder"] {
            let disk = file(&format!("/var/lib/cryptvol/volumes/{name}"));
            assert!(files.make(&disk).is_err(), "{name}");
            assert!(files.remove(&disk).is_err(), "{name}");
        }
        assert_eq!(
            files
                .observe(&file("/var/lib/cryptvol/volumes/folder"))
                .unwrap(),
            FileState::Other
        );
        assert_eq!(fs::read(tmp.path().join("outside")).unwrap(), b"data");

        let swap = file("/var/lib/cryptvol/volumes/swap");
        files.make(&swap).unwrap();
        let mut head = vec![0; 4096];
        head[4086..].copy_from_slice(b"SWAPSPACE2");
        head[1024] = 1; // version
        head[1029] = 1; // last page
        let opened = fs::OpenOptions::new().write(true).open(dir.join("swap"));
        std::os::unix::fs::FileExt::write_all_at(&opened.unwrap(), &head, 0).unwrap();
        files.remove(&swap).unwrap();
        assert_ne!(files.observe(&swap).unwrap(), FileState::Absent);

        let blank = file("/var/lib/cryptvol/volumes/a");
        files.remove(&blank).unwrap();
        files.remove(&blank).unwrap();
        assert_eq!(files.observe(&blank).unwrap(), FileState::Absent);
    }
}
