//! The few system calls that no safe crate offers, each behind a safe function: keys of type `logon`, two device-mapper
//! commands with udev flags, flushing a block device's buffers, and libcryptsetup's log callback.
#![allow(unsafe_code)]

use std::{
    ffi::CString,
    io,
    os::fd::{AsFd, AsRawFd},
};

use libcryptsetup_rs::{c_logging_callback, consts::vals::CryptLogLevel, set_log_callback};
use nix::libc;

const KEY_SPEC_THREAD_KEYRING: libc::c_long = -1;
const KEYCTL_UNLINK: libc::c_long = 9;

/// A key in this thread's keyring, gone when dropped. The kernel hands the payload of a `logon` key to nobody in user space.
#[derive(Debug)]
pub struct LogonKey {
    id: libc::c_long,
}

impl LogonKey {
    /// Adds a key. `description` needs a prefix that ends with a colon.
    ///
    /// # Errors
    /// That of `add_key(2)`, for example `EDQUOT`.
    pub fn add(description: &str, payload: &[u8]) -> io::Result<Self> {
        let description = CString::new(description).map_err(io::Error::other)?;
        // SAFETY: both strings end with NUL, payload pointer and length belong to one live slice, and the kernel only
        // reads from them.
        let id = unsafe {
            libc::syscall(
                libc::SYS_add_key,
                c"logon".as_ptr(),
                description.as_ptr(),
                payload.as_ptr(),
                payload.len(),
                KEY_SPEC_THREAD_KEYRING,
            )
        };
        if id < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { id })
    }
}

impl Drop for LogonKey {
    fn drop(&mut self) {
        // SAFETY: keyctl(KEYCTL_UNLINK) takes two key numbers and no pointers. When it fails the key goes with the thread.
        unsafe {
            libc::syscall(
                libc::SYS_keyctl,
                KEYCTL_UNLINK,
                self.id,
                KEY_SPEC_THREAD_KEYRING,
            );
        }
    }
}

/// `struct dm_ioctl` of `linux/dm-ioctl.h`, without data behind it.
#[repr(C)]
struct DmIoctl {
    version: [u32; 3],
    data_size: u32,
    data_start: u32,
    target_count: u32,
    open_count: i32,
    flags: u32,
    event_nr: u32,
    padding: u32,
    dev: u64,
    name: [u8; 128],
    uuid: [u8; 129],
    data: [u8; 7],
}

const DM_SKIP_LOCKFS_FLAG: u32 = 1 << 10;
const DM_NOFLUSH_FLAG: u32 = 1 << 11;
const DM_IOCTL_SIZE: usize = size_of::<DmIoctl>();
const _: () = assert!(DM_IOCTL_SIZE == 312);

/// Device-mapper commands that libraries couple with waiting for udev.
#[derive(Clone, Copy, Debug)]
pub enum DmCommand {
    /// Puts the loaded table in force, once what is on its way has ended.
    Resume,
    /// The same while I/O waits for a path: it goes on waiting, below the new table.
    Exchange,
    /// Removes the device, at once or not at all.
    Remove,
}

mod ioctls {
    use super::DmIoctl;
    nix::ioctl_readwrite!(dm_remove, 0xfd, 4, DmIoctl);
    nix::ioctl_readwrite!(dm_suspend, 0xfd, 6, DmIoctl);
    nix::ioctl_none!(blk_flush_buffers, 0x12, 97);
}

/// Runs one command on the device with this UUID. `udev_flags` go into the upper half of the event number (the udev
/// cookie); with a lower half of zero they are flags for the rules only, there is no semaphore, and nobody waits.
///
/// # Errors
/// That of the ioctl: `EBUSY` when open, `ENXIO` when there is no such device.
pub fn dm_command(
    control: impl AsFd,
    command: DmCommand,
    uuid: &str,
    udev_flags: u16,
) -> io::Result<()> {
    let mut arg = DmIoctl {
        version: [4, 0, 0],
        data_size: DM_IOCTL_SIZE as u32,
        data_start: DM_IOCTL_SIZE as u32,
        target_count: 0,
        open_count: 0,
        flags: match command {
            DmCommand::Exchange => DM_SKIP_LOCKFS_FLAG | DM_NOFLUSH_FLAG,
            DmCommand::Resume | DmCommand::Remove => 0,
        },
        event_nr: u32::from(udev_flags) << 16,
        padding: 0,
        dev: 0,
        name: [0; 128],
        uuid: [0; 129],
        data: [0; 7],
    };
    if uuid.is_empty() || uuid.len() >= arg.uuid.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    arg.uuid[..uuid.len()].copy_from_slice(uuid.as_bytes());
    let fd = control.as_fd().as_raw_fd();
    // SAFETY: the argument has the layout and size that the kernel expects (checked above at compile time), data_size
    // names exactly its size, and it outlives the call.
    let result = unsafe {
        match command {
            DmCommand::Resume | DmCommand::Exchange => ioctls::dm_suspend(fd, &raw mut arg),
            DmCommand::Remove => ioctls::dm_remove(fd, &raw mut arg),
        }
    };
    result.map(drop).map_err(io::Error::from)
}

/// Writes out and drops what the page cache holds of a block device.
///
/// # Errors
/// That of the ioctl, for example `ENOTTY` on something that is no block device.
pub fn flush_buffers(device: impl AsFd) -> io::Result<()> {
    // SAFETY: BLKFLSBUF has no argument.
    unsafe { ioctls::blk_flush_buffers(device.as_fd().as_raw_fd()) }
        .map(drop)
        .map_err(io::Error::from)
}

c_logging_callback!(log_callback, (), log_message);

/// libcryptsetup speaks on standard output and standard error otherwise; standard output may be a protocol.
fn log_message(level: CryptLogLevel, message: &str, _: Option<&mut ()>) {
    match level {
        CryptLogLevel::Error => tracing::warn!(target: "libcryptsetup", "{message}"),
        _ => tracing::debug!(target: "libcryptsetup", "{message}"),
    }
}

/// Sends libcryptsetup's messages to the log. They never hold secrets.
pub fn cryptsetup_messages_to_log() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| set_log_callback::<()>(Some(log_callback), None));
}
