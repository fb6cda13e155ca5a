//! Names what a device holds that is no LUKS2 header. libblkid looks at a copy of the bytes that were read, in memory:
//! it never touches the device, and sees what we saw.

use std::{fs::File, os::fd::AsRawFd, os::unix::fs::FileExt};

use libblkid_rs::{BlkidProbe, BlkidSafeprobeRet, BlkidSublks, BlkidSublksFlags};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::host::{StepError, real::error::failed};

/// What libblkid finds, for example `ext4`, `LVM2_member` or `gpt`.
///
/// # Errors
/// `StepFailed` when the copy cannot be made or libblkid fails; not for what it finds.
pub fn signature(head: &[u8], tail: &[u8], size: u64) -> Result<Option<String>, StepError> {
    let what = "looking for signatures";
    let copy = sparse(head, tail, size).map_err(|e| failed(what, e))?;
    probe(&copy, size).map_err(|e| failed(what, e))
}

/// A file in memory with the bytes in their places and zeros between.
fn sparse(head: &[u8], tail: &[u8], size: u64) -> std::io::Result<File> {
    let file = File::from(memfd_create(c"cryptvol-probe", MFdFlags::MFD_CLOEXEC)?);
    file.set_len(size)?;
    file.write_all_at(head, 0)?;
    file.write_all_at(tail, size - tail.len() as u64)?;
    Ok(file)
}

fn probe(file: &File, size: u64) -> Result<Option<String>, libblkid_rs::BlkidErr> {
    let mut probe = BlkidProbe::new()?;
    probe.set_device(file.as_raw_fd(), 0, size as i64)?;
    probe.enable_superblocks(true)?;
    probe.set_superblock_flags(BlkidSublksFlags::new(vec![
        BlkidSublks::Type,
        BlkidSublks::Version,
        BlkidSublks::Usage,
    ]))?;
    probe.enable_partitions(true)?;
    match probe.do_safeprobe()? {
        BlkidSafeprobeRet::Success => {}
        BlkidSafeprobeRet::Ambiguous => return Ok(Some("several signatures at once".into())),
        _ => return Ok(None),
    }
    let value = |name: &str| probe.lookup_value(name).ok();
    Ok(match (value("TYPE"), value("VERSION"), value("PTTYPE")) {
        (Some(kind), Some(version), _) => Some(format!("{kind} version {version}")),
        (Some(kind), None, _) => Some(kind),
        (None, _, Some(table)) => Some(format!("{table} partition table")),
        (None, _, None) => Some("a signature without a name".into()),
    })
}
