//! Block devices that are on the node already: found by path, known by what the kernel says of them, and never touched while
//! anything else uses them.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::Path,
};

use cryptvol_crds::names::DM_UUID_PREFIX;
use nix::libc;

use super::{
    proc,
    sysfs::{Sysfs, attribute, bytes, holders, link, names, wwid},
};
use crate::host::{Device, DeviceId, Mapping, RawKind};

impl Sysfs {
    /// The device of a volume: below its live mapping, where there is one of ours, else where the path leads now. A path can
    /// lead elsewhere at any time; what a guest writes to does not move with it.
    ///
    /// # Errors
    /// When sysfs cannot be read. No block device at the path is no device.
    pub fn local(&self, path: &str, mapping: Option<&Mapping>) -> io::Result<Option<Device>> {
        if let Some([dev]) = mapping
            .filter(|m| m.uuid.starts_with(DM_UUID_PREFIX))
            .map(|m| m.deps.as_slice())
            && let Some(device) = self.local_by_number(dev)?
        {
            return Ok(Some(device));
        }
        match fs::metadata(path) {
            Ok(meta) if meta.file_type().is_block_device() => {
                self.local_by_number(&number(meta.rdev()))
            }
            Ok(_) => Ok(None),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn local_by_number(&self, dev: &str) -> io::Result<Option<Device>> {
        let Some(block) = link(&self.path("dev/block").join(dev))? else {
            return Ok(None);
        };
        let (Some(name), Some(size)) = (
            block.file_name().and_then(|n| n.to_str()),
            attribute(&block.join("size"))?,
        ) else {
            return Ok(None);
        };
        Ok(Some(Device {
            id: DeviceId {
                path: format!("/dev/{name}"),
                dev: dev.to_owned(),
                kind: RawKind::Local,
                wwid: local_wwid(&block)?,
                size_bytes: bytes(&size)?,
            },
            state: state(&block)?,
            holders: users(&block, dev)?,
            access: None,
        }))
    }
}

/// What uses a device, as far as it can be seen without opening it; what is stacked on it by its kernel name.
pub(super) fn users(block: &Path, dev: &str) -> io::Result<Vec<String>> {
    let mut all = holders(block)?;
    let parts = partitions(block)?;
    all.extend(
        parts
            .iter()
            .map(|(part, _)| format!("its partition {part}")),
    );
    let numbers = numbers(block, dev)?;
    if attribute(&block.join("ro"))?.as_deref() == Some("1") {
        all.push("the kernel, which has it read-only".to_owned());
    }
    if let Some(at) = proc::mount_point(&proc::mounts()?, &numbers) {
        all.push(format!("a mount at {at}"));
    }
    if let Some(path) = swap(&numbers)? {
        all.push(format!("swap ({path})"));
    }
    let uuid = attribute(&block.join("dm/uuid"))?.unwrap_or_default();
    if uuid.starts_with(DM_UUID_PREFIX) {
        all.push("another volume, whose decrypted device it is".to_owned());
    }
    Ok(all)
}

/// Partitions of a device, by kernel name, with their numbers.
fn partitions(block: &Path) -> io::Result<Vec<(String, String)>> {
    let disk = block.file_name().and_then(|n| n.to_str()).unwrap_or("/");
    let mut found = Vec::new();
    for part in names(block)?.filter(|n| n.starts_with(disk)) {
        let number = attribute(&block.join(&part).join("dev"))?;
        found.extend(number.map(|number| (part, number)));
    }
    Ok(found)
}

/// Numbers of a device and of its partitions.
pub(super) fn numbers(block: &Path, dev: &str) -> io::Result<Vec<String>> {
    let parts = partitions(block)?.into_iter().map(|(_, number)| number);
    Ok([dev.to_owned()].into_iter().chain(parts).collect())
}

/// What tells a device from all others: the UUID of a device-mapper device, the WWID of a disk, that and its number for a
/// partition. A partition or logical volume is as good as its disk: who can move it can write it.
pub(super) fn local_wwid(block: &Path) -> io::Result<Option<String>> {
    if let Some(uuid) = attribute(&block.join("dm/uuid"))? {
        return Ok(Some(uuid).filter(|u| !u.is_empty()));
    }
    if let Some(number) = attribute(&block.join("partition"))? {
        let disk = match block.parent() {
            Some(disk) => disk_wwid(disk)?,
            None => None,
        };
        return Ok(disk.map(|w| format!("{w}-part{number}")));
    }
    disk_wwid(block)
}

/// SCSI, then NVMe, then the serial number that a virtual disk was given.
fn disk_wwid(block: &Path) -> io::Result<Option<String>> {
    if let Some(found) = wwid(&block.join("device"))? {
        return Ok(Some(found));
    }
    for file in ["wwid", "serial"] {
        if let Some(found) = attribute(&block.join(file))?.filter(|w| !w.is_empty()) {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// State of a SCSI disk; others have none that says whether they answer.
fn state(block: &Path) -> io::Result<String> {
    let scsi = block.join("device/scsi_level").exists();
    let state = match scsi {
        true => attribute(&block.join("device/state"))?,
        false => None,
    };
    Ok(state.unwrap_or_else(|| "running".to_owned()))
}

fn number(rdev: u64) -> String {
    format!("{}:{}", libc::major(rdev), libc::minor(rdev))
}

/// The swap that is on one of the devices. Nothing where the kernel has no list of it.
pub(super) fn swap(numbers: &[String]) -> io::Result<Option<String>> {
    let list = match proc::list("/proc/swaps".as_ref()) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        list => list?,
    };
    Ok(proc::swaps(&list).find(|path| {
        fs::metadata(path)
            .is_ok_and(|m| m.file_type().is_block_device() && numbers.contains(&number(m.rdev())))
    }))
}

#[cfg(test)]
mod tests {
    use cryptvol_crds::conditions::Reason;

    use super::*;

    fn tree() -> (tempfile::TempDir, Sysfs) {
        let tmp = tempfile::tempdir().unwrap();
        let sda = tmp.path().join("devices/pci/host0/block/sda");
        for dir in ["device", "holders", "sda1/holders"] {
            fs::create_dir_all(sda.join(dir)).unwrap();
        }
        // Major numbers that no machine has, so that nothing of the one that the test runs on is mounted there.
        for (file, text) in [
            ("dev", "4000:0"),
            ("size", "409600"),
            ("ro", "0"),
            ("device/wwid", "naa.5000c500a1b2c3d4"),
            ("device/scsi_level", "7"),
            ("device/state", "offline"),
            ("sda1/dev", "4000:1"),
            ("sda1/partition", "1"),
            ("sda1/size", "2048"),
        ] {
            fs::write(sda.join(file), text).unwrap();
        }
        let dm = tmp.path().join("devices/virtual/block/dm-3");
        fs::create_dir_all(dm.join("dm")).unwrap();
        for (file, text) in [("dev", "4001:3"), ("size", "8192"), ("dm/uuid", "LVM-abc")] {
            fs::write(dm.join(file), text).unwrap();
        }
        let by_number = tmp.path().join("dev/block");
        fs::create_dir_all(&by_number).unwrap();
        for (number, to) in [
            ("4000:0", "../../devices/pci/host0/block/sda"),
            ("4000:1", "../../devices/pci/host0/block/sda/sda1"),
            ("4001:3", "../../devices/virtual/block/dm-3"),
        ] {
            std::os::unix::fs::symlink(to, by_number.join(number)).unwrap();
        }
        let sysfs = Sysfs::at(tmp.path());
        (tmp, sysfs)
    }

    #[test]
    fn disks_partitions_and_logical_volumes_are_known_by_their_own_identity() {
        let (tmp, sysfs) = tree();
        let at = |dev: &str| sysfs.local_by_number(dev).unwrap().unwrap();
        let disk = at("4000:0");
        assert_eq!(disk.id.path, "/dev/sda");
        assert_eq!(disk.id.wwid.as_deref(), Some("naa.5000c500a1b2c3d4"));
        assert_eq!(
            (disk.holders.as_slice(), disk.state.as_str()),
            (&["its partition sda1".to_owned()][..], "offline")
        );
        let part = at("4000:1");
        assert_eq!(part.id.wwid.as_deref(), Some("naa.5000c500a1b2c3d4-part1"));
        assert_eq!((part.holders.len(), part.id.size_bytes), (0, 1 << 20));
        let lv = at("4001:3");
        assert_eq!(lv.id.wwid.as_deref(), Some("LVM-abc"));
        assert_eq!((lv.holders.len(), lv.state.as_str()), (0, "running"));
        assert_eq!(sysfs.local_by_number("4000:9").unwrap(), None);

        sysfs.same_device(&lv.id).unwrap();
        let uuid = tmp.path().join("devices/virtual/block/dm-3/dm/uuid");
        fs::write(&uuid, "LVM-other").unwrap();
        let error = sysfs.same_device(&lv.id).unwrap_err();
        assert_eq!(error.reason(), Reason::WwidMismatch);
        fs::write(&uuid, "CRYPTVOL-x").unwrap();
        assert!(at("4001:3").holders[0].starts_with("another volume"));
    }

    #[test]
    fn what_is_no_block_device_is_no_device() {
        let (_tmp, sysfs) = tree();
        for path in ["/dev/null", "/dev/disk/by-id/absent", "/etc"] {
            assert_eq!(sysfs.local(path, None).unwrap(), None, "{path}");
        }
    }
}
