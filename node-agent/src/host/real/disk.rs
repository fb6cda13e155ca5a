//! Bytes of a raw device: opened after its identity was checked, read and written past the page cache.
//!
//! The page cache would hide what the array holds by now, and would keep a copy of the key slots on the node.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt},
    path::Path,
};

use cryptvol_crds::conditions::Reason;
use nix::libc;

use super::{
    error::{because, failed, unreadable},
    sysfs::Sysfs,
};
use crate::host::{DeviceId, Mapping, RawKind, StepError};

/// Alignment of buffers, offsets and lengths for direct I/O: no device has larger logical blocks.
pub const ALIGN: usize = 4096;

/// Heap memory at an address that direct I/O takes.
pub struct Aligned {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    /// `len` zeros.
    pub fn zeroed(len: usize) -> Self {
        let memory = vec![0; len + ALIGN];
        let start = memory.as_ptr().align_offset(ALIGN).min(ALIGN);
        Self { memory, start, len }
    }
}

impl std::ops::Deref for Aligned {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }
}

impl std::ops::DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

/// What a device is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Nothing is written, not even a repair.
    Read,
    /// Header and key slots are written, and nothing else has the device.
    Write,
    /// Key slots are written below the volume's own live mapping, which has the device.
    WriteBelow,
}

/// An open device (in tests: a plain file).
#[derive(Debug)]
pub struct Disk {
    file: File,
    size: u64,
    name: String,
    /// Writes that still succeed; the next one writes its first half and fails.
    #[cfg(test)]
    writes_left: std::cell::Cell<u32>,
}

impl Disk {
    /// After so many writes the next one writes its first half and fails, as a power cut has it.
    #[cfg(test)]
    pub fn cut_after(&self, writes: u32) {
        self.writes_left.set(writes);
    }

    #[cfg(test)]
    fn cut(&self, offset: u64, bytes: &[u8]) -> Result<(), StepError> {
        match self.writes_left.get() {
            u32::MAX => Ok(()),
            0 => {
                let half = &bytes[..bytes.len() / 2];
                let _ = self.file.write_all_at(half, offset);
                Err(failed("writing", "power cut"))
            }
            left => {
                self.writes_left.set(left - 1);
                Ok(())
            }
        }
    }

    /// Opens the device when it still is the one that `id` names: same kernel path, device number, SCSI address, WWID
    /// and size, in sysfs before and at the opened file after opening.
    ///
    /// # Errors
    /// `WwidMismatch` or `SizeMismatch` when it is another one, `DeviceInUse` when something else has a device that was there
    /// before us and is to be written, `DeviceUnreadable` when it cannot be opened.
    pub fn open(sysfs: &Sysfs, id: &DeviceId, access: Access) -> Result<Self, StepError> {
        sysfs.same_device(id)?;
        // The kernel's own claim: a mount, swap, RAID, LVM or another mapping has it, and nobody gets it until we let go.
        let exclusive = match (&id.kind, access) {
            (RawKind::Local | RawKind::Loop { .. }, Access::Write) => libc::O_EXCL,
            _ => 0,
        };
        let file = OpenOptions::new()
            .read(true)
            .write(access != Access::Read)
            .custom_flags(libc::O_DIRECT | libc::O_CLOEXEC | exclusive)
            .open(&id.path)
            .map_err(|e| match e.raw_os_error() {
                Some(libc::EBUSY) if exclusive != 0 => because(
                    Reason::DeviceInUse,
                    format!("{} is mounted or opened exclusively", id.path),
                ),
                _ => unreadable(&id.path, e),
            })?;
        let meta = file.metadata().map_err(|e| unreadable(&id.path, e))?;
        let dev = format!("{}:{}", libc::major(meta.rdev()), libc::minor(meta.rdev()));
        if !meta.file_type().is_block_device() || dev != id.dev {
            return Err(because(
                Reason::WwidMismatch,
                format!("{} is device {dev} and was {}", id.path, id.dev),
            ));
        }
        // Once more, now that the open file holds the device: between the first look and the opening it could have been
        // exchanged for another one with the same number.
        sysfs.same_device(id)?;
        Ok(Self {
            file,
            size: id.size_bytes,
            name: id.path.clone(),
            #[cfg(test)]
            writes_left: std::cell::Cell::new(u32::MAX),
        })
    }

    /// A mapping, to read what a guest reads.
    ///
    /// # Errors
    /// `DeviceUnreadable`; `StepFailed` when another device is at its path.
    pub fn open_mapping(mapping: &Mapping) -> Result<Self, StepError> {
        Self::open_mapping_with(mapping, OpenOptions::new().read(true), 0)
    }

    fn open_mapping_with(
        mapping: &Mapping,
        options: &mut OpenOptions,
        flags: i32,
    ) -> Result<Self, StepError> {
        let file = options
            .custom_flags(libc::O_DIRECT | libc::O_CLOEXEC | flags)
            .open(&mapping.path)
            .map_err(|e| match e.raw_os_error() {
                Some(libc::EBUSY) => because(
                    Reason::DeviceBusy,
                    format!("{} is opened exclusively", mapping.path),
                ),
                _ => unreadable(&mapping.path, e),
            })?;
        let meta = file.metadata().map_err(|e| unreadable(&mapping.path, e))?;
        let dev = format!("{}:{}", libc::major(meta.rdev()), libc::minor(meta.rdev()));
        if !meta.file_type().is_block_device() || dev != mapping.dev {
            let what = format!("opening {}", mapping.path);
            return Err(failed(what, format!("it is {dev}, not {}", mapping.dev)));
        }
        Ok(Self {
            file,
            size: mapping.size_bytes,
            name: mapping.path.clone(),
            #[cfg(test)]
            writes_left: std::cell::Cell::new(u32::MAX),
        })
    }

    /// A mapping that nobody has yet, to write its first bytes.
    ///
    /// # Errors
    /// `DeviceUnreadable`; `DeviceBusy` when somebody has it exclusively; `StepFailed` when another device is at its path.
    pub fn open_new_mapping(mapping: &Mapping) -> Result<Self, StepError> {
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        Self::open_mapping_with(mapping, &mut options, libc::O_EXCL)
    }

    /// A plain file in place of a device, without direct I/O.
    ///
    /// # Errors
    /// `DeviceUnreadable` when it cannot be opened.
    pub fn plain_file(path: &Path) -> Result<Self, StepError> {
        let name = path.display().to_string();
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .map_err(|e| unreadable(&name, e))?;
        Self::of(file, &name)
    }

    /// An open plain file in place of a device, without direct I/O.
    ///
    /// # Errors
    /// `DeviceUnreadable` when its size cannot be read.
    pub fn of(file: File, name: &str) -> Result<Self, StepError> {
        let size = file.metadata().map_err(|e| unreadable(name, e))?.len();
        Ok(Self {
            file,
            size,
            name: name.to_owned(),
            #[cfg(test)]
            writes_left: std::cell::Cell::new(u32::MAX),
        })
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Kernel path, for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The open file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Reads exactly into `buffer`. Offset, length and memory must be aligned (the length only up to the end of the device).
    ///
    /// # Errors
    /// `DeviceUnreadable`, also for a device that ends early.
    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), StepError> {
        self.file.read_exact_at(buffer, offset).map_err(|e| {
            unreadable(
                format!(
                    "reading {} bytes at {offset} of {}",
                    buffer.len(),
                    self.name
                ),
                e,
            )
        })
    }

    /// Reads `len` bytes at `offset` into new memory.
    ///
    /// # Errors
    /// As `read`.
    pub fn read_vec(&self, offset: u64, len: usize) -> Result<Aligned, StepError> {
        let mut buffer = Aligned::zeroed(len);
        self.read(offset, &mut buffer)?;
        Ok(buffer)
    }

    /// Writes all of `bytes`. Offset and length must be aligned; the memory is copied where it is not.
    ///
    /// # Errors
    /// `StepFailed`.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), StepError> {
        let what = || format!("writing {} bytes at {offset} of {}", bytes.len(), self.name);
        #[cfg(test)]
        self.cut(offset, bytes)?;
        if bytes.as_ptr().align_offset(ALIGN) == 0 {
            return self
                .file
                .write_all_at(bytes, offset)
                .map_err(|e| failed(what(), e));
        }
        let mut copy = Aligned::zeroed(bytes.len());
        copy.copy_from_slice(bytes);
        self.file
            .write_all_at(&copy, offset)
            .map_err(|e| failed(what(), e))
    }

    /// Waits until what was written is on stable storage (on a SCSI disk: SYNCHRONIZE CACHE).
    ///
    /// # Errors
    /// `StepFailed`.
    pub fn sync(&self) -> Result<(), StepError> {
        self.file
            .sync_all()
            .map_err(|e| failed(format!("flushing {}", self.name), e))
    }
}

/// Whether all bytes are zero.
pub fn is_zero(bytes: &[u8]) -> bool {
    const ZEROS: [u8; ALIGN] = [0; ALIGN];
    bytes
        .chunks(ALIGN)
        .all(|chunk| chunk == &ZEROS[..chunk.len()])
}
