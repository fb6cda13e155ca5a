//! What of ours is on the node, and which sessions might be: from device-mapper, sysfs, the directory of links and open-iscsi's records.

use std::{io, path::Path};

use super::{
    dm,
    error::failed,
    files::Files,
    links::Links,
    local::users,
    sysfs::{SessionEntry, Sysfs, attribute, link, names},
};
use crate::host::{Belongings, Below, OtherSession, StepError};

/// Where open-iscsi keeps a directory for each target that it has a record of, as the machine's first process sees it (Debian and Red Hat).
const RECORDS: [&str; 2] = [
    "/proc/1/root/etc/iscsi/nodes",
    "/proc/1/root/var/lib/iscsi/nodes",
];

/// See [`crate::host::Host::belongings`].
///
/// # Errors
/// As there.
pub fn read(
    sysfs: &Sysfs,
    links: &Links,
    files: &Files,
    known: &[String],
) -> Result<Belongings, StepError> {
    let what = |e| failed("reading sysfs", e);
    let mut found = Belongings {
        mappings: dm::ours()?,
        links: links.all()?,
        sessions: other_sessions(sysfs, known, &RECORDS).map_err(what)?,
        loops: files.loop_devices(sysfs).map_err(what)?,
        ..Belongings::default()
    };
    for dev in found.mappings.iter().flat_map(|m| &m.deps) {
        if let Some(below) = below(sysfs, dev).map_err(what)? {
            found.below.insert(dev.clone(), below);
        }
    }
    Ok(found)
}

/// The device of a number.
fn below(sysfs: &Sysfs, dev: &str) -> io::Result<Option<Below>> {
    let Some(block) = link(&sysfs.path("dev/block").join(dev))? else {
        return Ok(None);
    };
    let Some(name) = block.file_name().and_then(|n| n.to_str()) else {
        return Ok(None);
    };
    // …/host2/session1/target2:0:0/2:0:0:1/block/sda
    let mut parts = block.components().filter_map(|c| c.as_os_str().to_str());
    let sid = parts.find_map(|part| part.strip_prefix("session")?.parse().ok());
    let session = match sid {
        Some(sid) => session(sysfs, sid)?,
        None => None,
    };
    Ok(Some(Below {
        path: format!("/dev/{name}"),
        session: match session {
            Some((iqn, entry)) => Some((iqn, sysfs.describe(&entry)?)),
            None => None,
        },
    }))
}

/// A session with its target.
fn session(sysfs: &Sysfs, sid: u32) -> io::Result<Option<(String, SessionEntry)>> {
    let file = format!("class/iscsi_session/session{sid}/targetname");
    let Some(iqn) = attribute(&sysfs.path(&file))? else {
        return Ok(None);
    };
    Ok(sysfs.session(&iqn, sid)?.map(|entry| (iqn, entry)))
}

fn other_sessions(
    sysfs: &Sysfs,
    known: &[String],
    records: &[&str],
) -> io::Result<Vec<OtherSession>> {
    let mut found = Vec::new();
    let sids = names(&sysfs.path("class/iscsi_session"))?;
    for sid in sids.filter_map(|n| n.strip_prefix("session")?.parse().ok()) {
        let Some((iqn, entry)) = session(sysfs, sid)? else {
            continue;
        };
        if known.contains(&iqn) {
            continue;
        }
        found.push(OtherSession {
            session: sysfs.describe(&entry)?,
            recorded: recorded(&iqn, records)?,
            users: session_users(sysfs, &entry)?,
            iqn,
        });
    }
    Ok(found)
}

/// Whether open-iscsi has a record of a target. Where its records cannot be looked at, it may have one.
fn recorded(iqn: &str, records: &[&str]) -> io::Result<bool> {
    // What a target is called comes from outside.
    if iqn.is_empty() || iqn.contains('/') || iqn.starts_with('.') {
        return Ok(true);
    }
    for dir in records {
        match std::fs::symlink_metadata(Path::new(dir).join(iqn)) {
            Ok(_) => return Ok(true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => return Ok(true),
            Err(e) => return Err(e),
        }
    }
    Ok(false)
}

/// What uses the disks of a session.
fn session_users(sysfs: &Sysfs, entry: &SessionEntry) -> io::Result<Vec<String>> {
    let mut found = Vec::new();
    let any_lun = sysfs.scsi_device_dir(entry, 0);
    let Some(target) = any_lun.parent() else {
        return Ok(found);
    };
    for hctl in names(target)?.filter(|n| n.split(':').count() == 4) {
        let blocks = target.join(hctl).join("block");
        for name in names(&blocks)? {
            let block = blocks.join(&name);
            if let Some(dev) = attribute(&block.join("dev"))? {
                found.extend(users(&block, &dev)?);
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    const IQN: &str = "iqn.2026-11.com.example:left";

    /// A tree with one session, one disk of it, and a mapping on the disk.
    fn tree() -> (tempfile::TempDir, Sysfs) {
        let tmp = tempfile::tempdir().unwrap();
        let session = tmp.path().join("devices/platform/host2/session7");
        let scsi = session.join("target2:0:0/2:0:0:1");
        let sda = scsi.join("block/sda");
        for dir in [
            session.join("iscsi_session/session7"),
            sda.join("holders/dm-4/dm"),
            tmp.path().join("class/iscsi_session"),
            tmp.path().join("dev/block"),
        ] {
            fs::create_dir_all(dir).unwrap();
        }
        let of_session = session.join("iscsi_session/session7");
        for (file, text) in [
            (of_session.join("targetname"), IQN),
            (of_session.join("state"), "LOGGED_IN"),
            (of_session.join("target_id"), "0"),
            (scsi.join("type"), "0"),
            // A major number that no machine has, so that nothing of the one that the test runs on is mounted there.
            (sda.join("dev"), "4000:0"),
            (sda.join("ro"), "0"),
        ] {
            fs::write(file, text).unwrap();
        }
        let class = tmp.path().join("class/iscsi_session/session7");
        let to = "../../devices/platform/host2/session7/iscsi_session/session7";
        symlink(to, class).unwrap();
        let to = "../../devices/platform/host2/session7/target2:0:0/2:0:0:1/block/sda";
        symlink(to, tmp.path().join("dev/block/4000:0")).unwrap();
        let sysfs = Sysfs::at(tmp.path());
        (tmp, sysfs)
    }

    #[test]
    fn a_disk_tells_its_session_and_a_session_what_uses_its_disks() {
        let (_tmp, sysfs) = tree();
        let disk = below(&sysfs, "4000:0").unwrap().unwrap();
        assert_eq!(disk.path, "/dev/sda");
        let (iqn, session) = disk.session.unwrap();
        assert_eq!((iqn.as_str(), session.sid, session.in_use), (IQN, 7, true));
        assert_eq!(below(&sysfs, "4000:1").unwrap(), None);

        let others = other_sessions(&sysfs, &[], &[]).unwrap();
        assert_eq!(others.len(), 1);
        assert_eq!((others[0].iqn.as_str(), others[0].recorded), (IQN, false));
        assert_eq!(others[0].users, ["dm-4"]);
        assert!(
            other_sessions(&sysfs, &[IQN.to_owned()], &[])
                .unwrap()
                .is_empty()
        );
    }

    #[test]
    fn a_target_with_a_record_is_of_open_iscsis_own_tools() {
        let (tmp, sysfs) = tree();
        let records = tmp.path().join("nodes");
        fs::create_dir_all(records.join(IQN)).unwrap();
        let (records, absent) = (records.to_str().unwrap(), "/nonexistent/nodes");
        let others = other_sessions(&sysfs, &[], &[absent, records]).unwrap();
        assert!(others[0].recorded);
        assert!(!recorded("iqn.2026-11.com.example:other", &[records]).unwrap());
        // Names that lead elsewhere are not looked up.
        assert!(recorded("../nodes", &[records]).unwrap());
    }
}
