//! What a multipathd of the node does: its maps are told from others by their device-mapper UUIDs. Its program is asked nothing.

use std::{fs, io, path::Path};

use cryptvol_crds::names::DM_UUID_PREFIX;

use super::sysfs::{attribute, names};

/// What the device-mapper UUIDs of multipathd's maps begin with; the WWID follows, as udev gives it (`libmultipath/devmapper.h`).
const UUID_PREFIX: &str = "mpath-";
/// Where it is asked, among the abstract sockets of the network namespace (`libmpathcmd/mpath_cmd.h`).
const SOCKET: &str = "@/org/kernel/linux/storage/multipathd";

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
    let sockets = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    sockets.lines().any(|line| line.ends_with(SOCKET))
}

/// Its maps over disks that mappings or maps of ours are above, each with its disk: `NAME (sda)`.
///
/// # Errors
/// When sysfs, mounted at `sys`, cannot be read.
pub fn maps_over_volumes(sys: &Path) -> io::Result<Vec<String>> {
    let class = sys.join("class/block");
    let mut found = Vec::new();
    for name in names(&class)? {
        let ours = class.join(name);
        let uuid = attribute(&ours.join("dm/uuid"))?.unwrap_or_default();
        if !uuid.starts_with(DM_UUID_PREFIX) {
            continue;
        }
        for disk in names(&ours.join("slaves"))? {
            let block = class.join(&disk);
            for holder in names(&block.join("holders"))? {
                if let Some(map) = map(&class.join(holder))? {
                    found.push(format!("{} ({disk})", map.alias));
                }
            }
        }
    }
    found.sort();
    found.dedup();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

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
