//! Whether a mapping of ours lies over something that is not its volume's disk: somebody gave it a table that leads elsewhere.

use std::{io, path::Path};

use cryptvol_crds::names::{self, DM_UUID_PREFIX};

use super::{
    local::local_wwid,
    sysfs::{Sysfs, attribute, link},
};
use crate::host::{Elsewhere, Observed};

/// What it leads to. A device that the kernel has no more is no other disk: a disk that was removed
/// below its mapping keeps its number.
///
/// # Errors
/// When sysfs cannot be read.
pub fn find(sysfs: &Sysfs, observed: &Observed) -> io::Result<Option<Elsewhere>> {
    let ours = |uuid: &str| uuid.starts_with(DM_UUID_PREFIX);
    let Some(mapping) = observed.mapping.as_ref().filter(|m| ours(&m.uuid)) else {
        return Ok(None);
    };
    for dev in observed.strange_deps() {
        let Some(block) = link(&sysfs.path("dev/block").join(dev))? else {
            continue;
        };
        if let Some(what) = describe(&block, &mapping.uuid)? {
            return Ok(Some(Elsewhere {
                what: format!("{dev} ({what})"),
                wwid: local_wwid(&block)?,
            }));
        }
    }
    Ok(None)
}

fn describe(block: &Path, mapping_uuid: &str) -> io::Result<Option<String>> {
    let name = block.file_name().unwrap_or_default().to_string_lossy();
    let uuid = attribute(&block.join("dm/uuid"))?;
    // Of the layer of tags only one that works and is shown by itself is not as it was made.
    if uuid == Some(names::tags_uuid(mapping_uuid)) {
        let suspended = attribute(&block.join("dm/suspended"))?.as_deref() == Some("1");
        let changed = format!("{name}, the layer of tags, which is not as it was made");
        return Ok((!suspended).then_some(changed));
    }
    let known_by = match attribute(&block.join("loop/backing_file"))? {
        Some(file) => Some(file),
        None => local_wwid(block)?,
    };
    Ok(Some(match known_by {
        Some(known_by) => format!("{name}, {known_by}"),
        None => name.into_owned(),
    }))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;
    use crate::host::Mapping;

    const UUID: &str = "CRYPTVOL-LUKS2-x";

    /// A tree with one block device of this number, and these files below it.
    fn tree(dev: &str, name: &str, files: &[(&str, &str)]) -> (tempfile::TempDir, Sysfs) {
        let tmp = tempfile::tempdir().unwrap();
        let block = tmp.path().join("devices/block").join(name);
        for (file, text) in files {
            let file = block.join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
        let by_number = tmp.path().join("dev/block");
        fs::create_dir_all(&by_number).unwrap();
        symlink(format!("../../devices/block/{name}"), by_number.join(dev)).unwrap();
        let sysfs = Sysfs::at(tmp.path());
        (tmp, sysfs)
    }

    fn over(uuid: &str, dev: &str) -> Observed {
        Observed {
            mapping: Some(Mapping {
                name: "m".into(),
                uuid: uuid.into(),
                path: "/dev/dm-0".into(),
                dev: "253:0".into(),
                deps: vec![dev.into()],
                table: None,
                suspended: false,
                open_count: 0,
                size_bytes: 0,
            }),
            ..Observed::default()
        }
    }

    #[test]
    fn another_disk_is_named_and_one_that_is_gone_is_none() {
        for (name, files, said) in [
            (
                "sdc",
                &[("device/wwid", "naa.6001")][..],
                "8:32 (sdc, naa.6001)",
            ),
            ("ram0", &[("size", "8")], "8:32 (ram0)"),
            (
                "loop3",
                &[("loop/backing_file", "/x.img")],
                "8:32 (loop3, /x.img)",
            ),
            ("dm-4", &[("dm/uuid", "LVM-a")], "8:32 (dm-4, LVM-a)"),
        ] {
            let (_tmp, sysfs) = tree("8:32", name, files);
            let found = |observed| find(&sysfs, &observed).unwrap();
            let other = found(over(UUID, "8:32")).unwrap();
            assert_eq!(other.what, said);
            let known = ["naa.6001", "LVM-a"].into_iter().find(|w| said.contains(w));
            assert_eq!(other.wwid.as_deref(), known);
            assert_eq!(found(over(UUID, "8:0")), None, "gone");
            assert_eq!(found(over("CRYPT-x", "8:32")), None, "not ours");
        }
    }

    #[test]
    fn the_layer_of_tags_is_another_thing_only_where_it_works_and_was_changed() {
        let tags = names::tags_uuid(UUID);
        for (suspended, said) in [("1", false), ("0", true)] {
            let files = [("dm/uuid", tags.as_str()), ("dm/suspended", suspended)];
            let (_tmp, sysfs) = tree("253:4", "dm-4", &files);
            let found = find(&sysfs, &over(UUID, "253:4")).unwrap();
            assert_eq!(found.is_some(), said, "{found:?}");
        }
    }
}
