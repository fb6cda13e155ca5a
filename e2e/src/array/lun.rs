//! A disk of the array: a plain file, which a test reads to see what the array holds.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// One disk of a target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lun {
    /// The target's name.
    pub target: String,
    /// tgtd's first disk is LUN 1; its LUN 0 is a controller.
    pub number: u16,
    /// The file that holds the disk.
    pub file: PathBuf,
    /// The disk's own part of its world-wide name, 16 hex digits; see [`Lun::wwid`].
    pub name: String,
    /// Unit serial number (vital product data page 0x80).
    pub serial: String,
    /// Whether it takes discards (UNMAP) and says so: what is discarded is a hole in the file.
    #[serde(default)]
    pub thin: bool,
}

impl Lun {
    /// The world-wide name as sysfs shows it (`/sys/block/sdX/device/wwid`). tgtd makes its NAA designator (page 0x83) of a
    /// fixed first half and of the 16 hex digits in its parameter `scsi_id`.
    pub fn wwid(&self) -> String {
        format!("naa.6000000000000000{}", self.name)
    }

    /// `length` bytes from `offset` on, as they lie on the array.
    pub fn read_at(&self, offset: u64, length: usize) -> Result<Vec<u8>> {
        let mut file = File::open(&self.file)?;
        file.seek(SeekFrom::Start(offset))?;
        let mut bytes = vec![0; length];
        file.read_exact(&mut bytes).with_context(|| {
            format!("read {length} bytes at {offset} of {}", self.file.display())
        })?;
        Ok(bytes)
    }

    /// Writes behind everybody's back.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let mut file = fs::OpenOptions::new().write(true).open(&self.file)?;
        file.seek(SeekFrom::Start(offset))?;
        file.write_all(bytes)?;
        Ok(())
    }

    /// SHA-256 of the whole disk, hex: "nothing was written" is the same value before and after.
    pub fn sha256(&self) -> Result<String> {
        let mut file = File::open(&self.file)?;
        let mut hash = Sha256::new();
        std::io::copy(&mut file, &mut hash)?;
        Ok(hex::encode(hash.finalize()))
    }

    /// True if the bytes occur anywhere on the disk.
    pub fn contains(&self, needle: &[u8]) -> Result<bool> {
        contains(File::open(&self.file)?, needle)
    }

    /// Bytes that the disk takes on the array; a hole takes none.
    pub fn allocated(&self) -> Result<u64> {
        Ok(fs::metadata(&self.file)?.blocks() * 512)
    }

    /// Size in bytes.
    pub fn size(&self) -> Result<u64> {
        Ok(fs::metadata(&self.file)?.len())
    }
}

/// Searches a stream piece by piece.
fn contains(mut from: impl Read, needle: &[u8]) -> Result<bool> {
    if needle.is_empty() {
        bail!("nothing to search for");
    }
    let mut window = Vec::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = from.read(&mut buffer)?;
        if read == 0 {
            return Ok(false);
        }
        window.extend_from_slice(&buffer[..read]);
        if find(&window, needle) {
            return Ok(true);
        }
        window.drain(..window.len().saturating_sub(needle.len() - 1));
    }
}

/// True if `needle` is in `hay`.
pub(crate) fn find(hay: &[u8], needle: &[u8]) -> bool {
    let first = needle[0];
    let mut rest = hay;
    while let Some(at) = rest.iter().position(|b| *b == first) {
        if rest[at..].starts_with(needle) {
            return true;
        }
        rest = &rest[at + 1..];
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_needle_across_pieces_is_found() {
        let mut hay = vec![b'x'; (1 << 20) - 3];
        hay.extend_from_slice(b"needle and more");
        assert!(contains(hay.as_slice(), b"needle").unwrap());
        assert!(!contains(hay.as_slice(), b"needles").unwrap());
        assert!(contains(hay.as_slice(), b"more").unwrap());
    }
}
