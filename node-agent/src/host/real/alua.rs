//! What the kernel knows of the array's word about a path (ALUA), from sysfs: no command is sent to a disk.
//!
//! That an array tells paths apart stands in its standard INQUIRY data, which the kernel keeps (byte 5, field TPGS; SPC-4, 6.4.2). The state
//! of a path shows once the kernel's handler (`scsi_dh_alua`) is attached to it: when the disk is found, where the module is loaded by then,
//! or by a table of dm-multipath that names it. The handler asks the array when it is attached, at each rescan, and when the array reports a
//! change together with a command: a path without commands shows what was last heard of it.

use std::{fs::File, io, io::Read, path::Path as FsPath};

use super::sysfs::{absent, attribute};
use crate::host::Access;

/// The kernel's handler, as tables and sysfs (`dh_state`) call it.
pub const HANDLER: &str = "alua";
/// Its module.
pub const HANDLER_MODULE: &str = "scsi_dh_alua";
/// Byte of standard INQUIRY data with the field TPGS, and the field in it.
const TPGS: (usize, u8) = (5, 0x30);

/// State of the path to which this SCSI device (`/sys/block/sdX/device`) belongs; nothing where the array makes no difference.
///
/// # Errors
/// When sysfs cannot be read.
pub fn access(scsi: &FsPath) -> io::Result<Option<Access>> {
    if !tells_apart(scsi)? {
        return Ok(None);
    }
    // Another handler's word (`rdac`, `emc`) is not ALUA's.
    Ok(Some(match handler(scsi)?.as_deref() {
        Some(HANDLER) => {
            let word = attribute(&scsi.join("access_state"))?;
            word.map_or(Access::Unknown, |word| Access::parse(&word))
        }
        _ => Access::Unknown,
    }))
}

/// What another handler of the kernel says of a path whose array does not know ALUA, if it is that the path is not to be used: handler and state.
///
/// # Errors
/// When sysfs cannot be read.
pub fn other_objection(scsi: &FsPath) -> io::Result<Option<(String, String)>> {
    let Some(handler) = handler(scsi)?.filter(|h| h != HANDLER) else {
        return Ok(None);
    };
    let state = attribute(&scsi.join("access_state"))?.unwrap_or_default();
    let objects = !state.is_empty() && Access::parse(&state) != Access::Optimized;
    Ok(objects.then_some((handler, state)))
}

/// The handler that is attached.
fn handler(scsi: &FsPath) -> io::Result<Option<String>> {
    let shown = attribute(&scsi.join("dh_state"))?;
    Ok(shown.filter(|h| !h.is_empty() && h != "detached"))
}

fn tells_apart(scsi: &FsPath) -> io::Result<bool> {
    let mut data = Vec::new();
    match File::open(scsi.join("inquiry")).and_then(|f| f.take(64).read_to_end(&mut data)) {
        Ok(_) => Ok(data.get(TPGS.0).is_some_and(|byte| byte & TPGS.1 != 0)),
        // A kernel before 3.20, or a disk that goes this moment.
        Err(e) if absent(&e) => Ok(false),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(inquiry: &[u8], attributes: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("inquiry"), inquiry).unwrap();
        for (name, text) in attributes {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        dir
    }

    /// Bytes as an LIO target with implicit ALUA gives them, and as tgtd without it.
    const IMPLICIT: &[u8] = &[0, 0, 6, 2, 91, 0x98, 0, 2];
    const WITHOUT: &[u8] = &[0, 0, 5, 2, 61, 0, 0, 2];

    #[test]
    fn the_state_counts_where_the_array_tells_paths_apart_and_the_handler_is_there() {
        let state = ("access_state", "active/non-optimized\n");
        let of = |inquiry, attributes: &[_]| access(device(inquiry, attributes).path()).unwrap();
        assert_eq!(
            of(IMPLICIT, &[("dh_state", "alua\n"), state]),
            Some(Access::NonOptimized)
        );
        for attributes in [&[("dh_state", "detached\n")][..], &[], &[state]] {
            assert_eq!(of(IMPLICIT, attributes), Some(Access::Unknown));
        }
        for inquiry in [WITHOUT, &[]] {
            assert_eq!(of(inquiry, &[("dh_state", "alua\n"), state]), None);
        }
        let nothing = tempfile::tempdir().unwrap();
        assert_eq!(access(nothing.path()).unwrap(), None);
    }

    #[test]
    fn another_handlers_objection_is_told() {
        let of = |attributes: &[_]| other_objection(device(WITHOUT, attributes).path()).unwrap();
        let rdac = ("dh_state", "rdac\n");
        assert_eq!(
            of(&[rdac, ("access_state", "standby\n")]),
            Some(("rdac".to_owned(), "standby".to_owned()))
        );
        assert_eq!(of(&[rdac, ("access_state", "active/optimized\n")]), None);
        assert_eq!(of(&[rdac]), None);
        let alua = ("dh_state", "alua\n");
        assert_eq!(of(&[alua, ("access_state", "standby\n")]), None);
    }
}
