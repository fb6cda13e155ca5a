//! The loop driver's requests (`linux/loop.h`), each behind a safe function.
#![allow(unsafe_code)]

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
};

/// `LO_FLAGS_DIRECT_IO`: past the page cache of the file, where its file system can do that.
const DIRECT_IO: u32 = 16;

/// `LO_FLAGS_READ_ONLY`.
const READ_ONLY: u32 = 1;

/// What is below a loop device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backing {
    /// `st_dev` and inode of the file.
    pub file: (u64, u64),
    /// From its first byte to its last, and not a part of it: only that shows what a file that stands for a disk has.
    pub whole: bool,
    /// It can be written to through this device.
    pub writable: bool,
}

impl Backing {
    fn of(info: &LoopInfo) -> Self {
        Self {
            file: (info.device, info.inode),
            whole: info.offset == 0 && info.size_limit == 0,
            writable: info.flags & READ_ONLY == 0,
        }
    }

    /// As the agent makes them.
    pub fn is_a_disk(self) -> bool {
        self.whole && self.writable
    }

    /// This very file, as the agent makes them.
    pub fn is_disk_of(self, file: (u64, u64)) -> bool {
        self.is_a_disk() && self.file == file
    }
}

/// `struct loop_info64`.
#[repr(C)]
pub(super) struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
pub(super) struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<LoopInfo>() == 232 && size_of::<LoopConfig>() == 304);

mod ioctls {
    use super::{LoopConfig, LoopInfo};
    nix::ioctl_none_bad!(clear, 0x4c01);
    nix::ioctl_read_bad!(status, 0x4c05, LoopInfo);
    nix::ioctl_none_bad!(capacity, 0x4c07);
    nix::ioctl_write_ptr_bad!(configure, 0x4c0a, LoopConfig);
    nix::ioctl_none_bad!(free, 0x4c82);
}

fn empty() -> LoopInfo {
    LoopInfo {
        device: 0,
        inode: 0,
        rdevice: 0,
        offset: 0,
        size_limit: 0,
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags: 0,
        file_name: [0; 64],
        crypt_name: [0; 64],
        encrypt_key: [0; 32],
        init: [0; 2],
    }
}

/// Number of a loop device that has no file, at this moment.
///
/// # Errors
/// That of the ioctl.
pub fn free_number(control: impl AsFd) -> io::Result<u32> {
    // SAFETY: LOOP_CTL_GET_FREE has no argument.
    let number = unsafe { ioctls::free(control.as_fd().as_raw_fd()) }?;
    u32::try_from(number).map_err(io::Error::other)
}

/// Puts a file below a loop device, with direct I/O where the file system can. `name` is for people who list loop devices.
///
/// # Errors
/// That of the ioctl; `EBUSY` when another was faster.
pub fn configure(device: impl AsFd, file: impl AsFd, name: &str) -> io::Result<()> {
    let mut info = empty();
    info.flags = DIRECT_IO;
    let shown = name.len().min(info.file_name.len() - 1);
    info.file_name[..shown].copy_from_slice(&name.as_bytes()[..shown]);
    let config = LoopConfig {
        fd: u32::try_from(file.as_fd().as_raw_fd()).map_err(io::Error::other)?,
        block_size: 0,
        info,
        reserved: [0; 8],
    };
    // SAFETY: the argument has the layout and size that the kernel reads (checked above at compile time) and outlives the
    // call; the kernel takes a reference of its own to the file.
    unsafe { ioctls::configure(device.as_fd().as_raw_fd(), &raw const config) }?;
    Ok(())
}

/// The file below a loop device; nothing where there is none.
///
/// # Errors
/// That of the ioctl.
pub fn backing(device: impl AsFd) -> io::Result<Option<Backing>> {
    let mut info = empty();
    // SAFETY: the argument has the layout and size that the kernel writes, and outlives the call.
    match unsafe { ioctls::status(device.as_fd().as_raw_fd(), &raw mut info) } {
        Ok(_) => Ok(Some(Backing::of(&info))),
        Err(nix::errno::Errno::ENXIO) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Makes a loop device as long as its file is by now.
///
/// # Errors
/// That of the ioctl.
pub fn take_size(device: impl AsFd) -> io::Result<()> {
    // SAFETY: LOOP_SET_CAPACITY has no argument.
    unsafe { ioctls::capacity(device.as_fd().as_raw_fd()) }?;
    Ok(())
}

/// Takes the file away from a loop device, at once or when the last who has it open closes it.
///
/// # Errors
/// That of the ioctl.
pub fn clear(device: impl AsFd) -> io::Result<()> {
    // SAFETY: LOOP_CLR_FD has no argument.
    match unsafe { ioctls::clear(device.as_fd().as_raw_fd()) } {
        Ok(_) | Err(nix::errno::Errno::ENXIO) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_file_or_one_that_cannot_be_written_is_no_disk() {
        let mut info = empty();
        (info.device, info.inode) = (7, 8);
        assert!(Backing::of(&info).is_disk_of((7, 8)));
        assert!(!Backing::of(&info).is_disk_of((7, 9)));
        info.flags = DIRECT_IO;
        assert!(Backing::of(&info).is_a_disk());
        for change in [
            |i: &mut LoopInfo| i.offset = 512,
            |i: &mut LoopInfo| i.size_limit = 4096,
            |i: &mut LoopInfo| i.flags |= READ_ONLY,
        ] {
            let mut other = empty();
            (other.device, other.inode) = (7, 8);
            change(&mut other);
            assert!(!Backing::of(&other).is_disk_of((7, 8)));
            assert_eq!(Backing::of(&other).file, (7, 8));
        }
    }
}
