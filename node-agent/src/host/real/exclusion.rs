//! Disks of volumes are kept from the node's multipathd, where its administrator asked for that (ADR 57): a rule of udev's gives them a property,
//! and a drop-in of multipathd's excludes what has it.
//!
//! The rule never changes; a file for each disk tells it which ones are meant. The file is there before the kernel has the disk,
//! so that no event of the disk is without the property.

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use super::{
    error::failed,
    multipathd, proc,
    sysfs::{Sysfs, attribute, set_attribute},
    udev::{self, RULES_READ, remove, write},
};
use crate::host::{DeviceId, Portal, RawKind, StepError};

const RULE: &str = include_str!("cryptvol-multipathd.rules");
const RULE_FILE: &str = "rules.d/59-cryptvol-multipathd.rules";
const DROP_IN: &str = include_str!("cryptvol-multipathd.conf");
const DROP_IN_FILE: &str = "conf.d/cryptvol-agent.conf";
/// What the drop-in excludes, as multipathd shows it.
const PATTERN: &str = "^CRYPTVOL_DISK$";
/// The property, as udev's database has it.
const PROPERTY: &str = "E:CRYPTVOL_DISK=1";
/// Files that tell the rule, below udev's runtime directory.
const MARKS: &str = "cryptvol/disks";
/// How long udev may take for the events of disks that are in use already, and multipathd for its configuration.
const PATIENCE: Duration = Duration::from_secs(8);
const STEP: Duration = Duration::from_millis(20);

/// Where udev and multipathd look.
#[derive(Clone, Debug)]
struct Places {
    /// udev's runtime directory.
    udev: PathBuf,
    /// multipathd's directory in `/etc`.
    multipath: PathBuf,
}

impl Places {
    /// Those of the node, not of the agent's container.
    fn of_the_node() -> Option<Self> {
        let etc = ["/proc/1/root/etc", "/etc"].into_iter().map(PathBuf::from);
        Some(Self {
            udev: udev::directory()?,
            multipath: etc.into_iter().find(|e| e.is_dir())?.join("multipath"),
        })
    }

    fn marks(&self) -> PathBuf {
        self.udev.join(MARKS)
    }

    /// Writes the rule, and gives udev the time to read it.
    fn put_rule(&self) -> io::Result<()> {
        let rule = self.udev.join(RULE_FILE);
        if fs::read_to_string(&rule).is_ok_and(|text| text == RULE) {
            return Ok(());
        }
        write(&rule, RULE)?;
        thread::sleep(RULES_READ);
        Ok(())
    }

    /// Takes back what was put here; a drop-in that does not begin like ours is somebody else's.
    fn take_back(&self) -> io::Result<()> {
        remove(&self.udev.join(RULE_FILE))?;
        match fs::remove_dir_all(self.marks()) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let drop_in = self.multipath.join(DROP_IN_FILE);
        match proc::list(&drop_in) {
            Ok(text) if text.lines().next() == DROP_IN.lines().next() => remove(&drop_in),
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }
}

/// Sees to it that the node's multipathd leaves the volumes' disks alone, or that nothing of this is left. It may be called at any time.
///
/// # Errors
/// `StepFailed` when udev's or multipathd's directory cannot be written, or multipathd does not take the drop-in.
pub fn settle(wanted: bool) -> Result<(), StepError> {
    let what = |e: io::Error| failed("excluding the volumes' disks from multipathd", e);
    let Some(places) = Places::of_the_node() else {
        return match wanted {
            true => Err(failed(
                "excluding the volumes' disks from multipathd",
                "no udev runs on this node, so nobody tells multipathd which disks are meant",
            )),
            false => Ok(()),
        };
    };
    if wanted {
        places.put_rule().map_err(what)?;
        mark_those_in_use(&Sysfs::default(), &places).map_err(what)?;
        write(&places.multipath.join(DROP_IN_FILE), DROP_IN).map_err(what)?;
    } else {
        places.take_back().map_err(what)?;
    }
    read_anew(wanted)
}

/// Has a running multipathd read its configuration, unless it has.
fn read_anew(wanted: bool) -> Result<(), StepError> {
    let asked = |e: io::Error| failed("asking multipathd", e);
    // None runs: the next one reads it when it starts.
    let excludes = || -> Result<bool, StepError> {
        let shown = multipathd::ask("show blacklist").map_err(asked)?;
        Ok(shown.is_none_or(|text| text.contains(PATTERN) == wanted))
    };
    if excludes()? {
        return Ok(());
    }
    multipathd::ask("reconfigure").map_err(asked)?;
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        if excludes()? {
            return Ok(());
        }
        thread::sleep(STEP);
    }
    Err(failed(
        "asking multipathd to read its configuration",
        match wanted {
            true => "it does not take /etc/multipath/conf.d/cryptvol-agent.conf",
            false => "it still excludes the volumes' disks",
        },
    ))
}

/// Disks of volumes that were attached before, by their names to udev, each with an event if that is new.
fn mark_those_in_use(sysfs: &Sysfs, places: &Places) -> io::Result<()> {
    let mut new = Vec::new();
    for disk in multipathd::disks_of_volumes(&sysfs.path(""))? {
        let Some(block) = super::sysfs::link(&sysfs.path("class/block").join(&disk))? else {
            continue;
        };
        let Some(name) = name_of(sysfs, &block)? else {
            continue;
        };
        let mark = places.marks().join(name);
        if !mark.exists() {
            write(&mark, "")?;
            set_attribute(&block.join("uevent"), "change")?;
            new.extend(attribute(&block.join("dev"))?);
        }
    }
    let begun = Instant::now();
    let told = |dev: &String| {
        let entry = proc::list(&places.udev.join("data").join(format!("b{dev}")));
        entry.is_ok_and(|text| is_told(&text))
    };
    while !new.iter().all(told) {
        if begun.elapsed() > PATIENCE {
            return Err(io::Error::other("udev does not tell which disks they are"));
        }
        thread::sleep(STEP);
    }
    Ok(())
}

/// Whether a disk's entry in udev's database has the property.
pub(crate) fn is_told(entry: &str) -> bool {
    entry.lines().any(|line| line == PROPERTY)
}

/// A LUN that a session is about to show is a volume's. A disk that is there already may be somebody else's, and stays what it is.
///
/// # Errors
/// `StepFailed` when udev's directory cannot be written or sysfs not be read.
pub fn expect(sysfs: &Sysfs, iqn: &str, sid: u32, lun: u32) -> Result<(), StepError> {
    let what = |e: io::Error| failed("telling udev of a volume's disk", e);
    let Some(udev) = udev::directory().filter(|u| u.join(RULE_FILE).exists()) else {
        return Ok(());
    };
    let Some(session) = sysfs.session(iqn, sid).map_err(what)? else {
        return Ok(());
    };
    let name = session.portal.as_ref().map(|p| id_path(p, iqn, lun));
    match name.flatten() {
        Some(name) if !sysfs.scsi_device_dir(&session, lun).exists() => {
            write(&udev.join(MARKS).join(name), "").map_err(what)
        }
        _ => Ok(()),
    }
}

/// What told udev of a volume's disk; to be found while the disk is there, and taken away once it is not.
///
/// # Errors
/// `StepFailed` when sysfs cannot be read.
pub fn mark_of(sysfs: &Sysfs, id: &DeviceId) -> Result<Option<PathBuf>, StepError> {
    if !matches!(id.kind, RawKind::Lun { .. }) {
        return Ok(None);
    }
    let found = || -> io::Result<Option<PathBuf>> {
        let (Some(udev), Some(block)) = (udev::directory(), sysfs.block_dir(id)?) else {
            return Ok(None);
        };
        let name = name_of(sysfs, &block)?;
        Ok(name.map(|name| udev.join(MARKS).join(name)))
    };
    found().map_err(|e| failed(format!("reading sysfs of {}", id.path), e))
}

/// The disk is gone, so its way may lead to somebody else's.
pub fn forget(mark: Option<&Path>) {
    let Some(mark) = mark else { return };
    if let Err(e) = remove(mark) {
        tracing::warn!(error = %e, "multipathd stays excluded from {} until the next boot", mark.display());
    }
}

/// What udev calls the way to an iSCSI disk in sysfs; nothing for other disks.
pub(crate) fn name_of(sysfs: &Sysfs, block: &Path) -> io::Result<Option<String>> {
    // …/host2/session1/target2:0:0/2:0:0:1/block/sda
    let mut parts = block.components().filter_map(|c| c.as_os_str().to_str());
    let sid = parts.find_map(|part| part.strip_prefix("session")?.parse().ok());
    let hctl = block.ancestors().nth(2).and_then(Path::file_name);
    let lun = hctl.and_then(|hctl| hctl.to_str()?.rsplit_once(':')?.1.parse().ok());
    let (Some(sid), Some(lun)) = (sid, lun) else {
        return Ok(None);
    };
    let entry = sysfs.path(&format!("class/iscsi_session/session{sid}/targetname"));
    let Some(iqn) = attribute(&entry)? else {
        return Ok(None);
    };
    let session = sysfs.session(&iqn, sid)?;
    let portal = session.and_then(|session| session.portal);
    Ok(portal.and_then(|portal| id_path(&portal, &iqn, lun)))
}

/// `ID_PATH` of an iSCSI disk (systemd's `udev-builtin-path_id.c`); nothing where that is no name of a file.
fn id_path(portal: &Portal, iqn: &str, lun: u32) -> Option<String> {
    let Portal { address, port } = portal;
    let lun = match lun {
        ..256 => lun.to_string(),
        _ => format!("0x{:04x}{:04x}00000000", lun & 0xffff, lun >> 16),
    };
    let name = format!("ip-{address}:{port}-iscsi-{iqn}-lun-{lun}");
    (!name.contains('/')).then_some(name)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn the_rule_and_the_drop_in_speak_of_the_same_property() {
        let name = PATTERN.trim_start_matches('^').trim_end_matches('$');
        assert!(RULE.contains(&format!("ENV{{{name}}}=\"1\"")));
        assert!(RULE.contains(&format!("/run/udev/{MARKS}/$env{{ID_PATH}}")));
        assert!(DROP_IN.contains(&format!("property \"{PATTERN}\"")));
        assert_eq!(PROPERTY, format!("E:{name}=1"));
        // multipathd takes the first of a disk's properties, in the order of their names, that a list of its says something of: before those
        // that it includes all disks by.
        for built_in in ["ID_WWN", "SCSI_IDENT_SERIAL"] {
            assert!(name < built_in);
        }
    }

    #[test]
    fn what_is_taken_back_is_ours() {
        let tmp = tempfile::tempdir().unwrap();
        let places = Places {
            udev: tmp.path().join("udev"),
            multipath: tmp.path().join("multipath"),
        };
        let drop_in = places.multipath.join(DROP_IN_FILE);
        let mark = places.marks().join("ip-192.0.2.1:3260-iscsi-iqn.x:y-lun-1");
        places.take_back().unwrap();
        write(&places.udev.join(RULE_FILE), RULE).unwrap();
        write(&mark, "").unwrap();
        write(&drop_in, &format!("{DROP_IN}# of another version\n")).unwrap();
        places.take_back().unwrap();
        for gone in [&places.udev.join(RULE_FILE), &mark, &drop_in] {
            assert!(!gone.exists(), "{}", gone.display());
        }
        write(&drop_in, "# the administrator's\n").unwrap();
        places.take_back().unwrap();
        assert!(drop_in.exists());
    }

    #[test]
    fn an_iscsi_disk_is_known_by_the_name_that_udev_has_for_the_way_to_it() {
        let tmp = tempfile::tempdir().unwrap();
        let root = tmp.path();
        let session = root.join("devices/platform/host2/session7");
        let entry = session.join("iscsi_session/session7");
        fs::create_dir_all(&entry).unwrap();
        fs::write(entry.join("targetname"), "iqn.2026-11.com.example:a\n").unwrap();
        fs::write(entry.join("state"), "LOGGED_IN\n").unwrap();
        let connection = root.join("class/iscsi_connection/connection7:0");
        fs::create_dir_all(&connection).unwrap();
        fs::write(connection.join("persistent_address"), "fd77::1\n").unwrap();
        fs::write(connection.join("persistent_port"), "3260\n").unwrap();
        fs::create_dir_all(root.join("class/iscsi_session")).unwrap();
        symlink(
            "../../devices/platform/host2/session7/iscsi_session/session7",
            root.join("class/iscsi_session/session7"),
        )
        .unwrap();
        let sysfs = Sysfs::at(root);
        for (lun, named) in [("1", "1"), ("16640", "0x4100000000000000")] {
            let block = session.join(format!("target2:0:0/2:0:0:{lun}/block/sda"));
            let name = format!("ip-fd77::1:3260-iscsi-iqn.2026-11.com.example:a-lun-{named}");
            assert_eq!(name_of(&sysfs, &block).unwrap(), Some(name));
        }
        let local = root.join("devices/pci/ata1/host0/target0:0:0/0:0:0:0/block/sdb");
        assert_eq!(name_of(&sysfs, &local).unwrap(), None);
        let portal = Portal {
            address: "192.0.2.1".into(),
            port: 3260,
        };
        assert_eq!(id_path(&portal, "iqn.x/../y", 1), None);
    }
}
