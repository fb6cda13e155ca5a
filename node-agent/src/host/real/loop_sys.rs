//! The loop driver's requests (`linux/loop.h`), each behind a safe function.
#![allow(unsafe_code)]

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
};

/// `LO_FLAGS_DIRECT_IO`: past the page cache of the file, where its file system can do that.
const DIRECT_IO: u32 = 16;

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

/// `st_dev` and inode of the file below a loop device; nothing where there is none.
///
/// # Errors
/// That of the ioctl.
pub fn backing(device: impl AsFd) -> io::Result<Option<(u64, u64)>> {
    let mut info = empty();
    // SAFETY: the argument has the layout and size that the kernel writes, and outlives the call.
    match unsafe { ioctls::status(device.as_fd().as_raw_fd(), &raw mut info) } {
        Ok(_) => Ok(Some((info.device, info.inode))),
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
