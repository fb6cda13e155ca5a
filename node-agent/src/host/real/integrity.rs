//! Authenticated sectors: what dm-integrity notes at the beginning of the data, read as strictly as a header, and the writing of zeros
//! without which no sector could be read. The format of the superblock is that of the kernel's `dm-integrity.c`.
//!
//! The layer below the crypt mapping keeps a tag for each sector in runs between the data, and a journal by which both are written or
//! neither. It holds no key: what it keeps is checked above it.

use std::{
    io,
    os::unix::fs::FileExt,
    time::{Duration, Instant},
};

use cryptvol_crds::v1alpha1::HeaderFacts;
use nix::libc;

use super::{
    disk::{ALIGN, Aligned, Disk},
    dm,
    error::{failed, unreadable},
};
use crate::host::{Initialised, Mapping, StepError};

/// Bytes that the superblock has for itself.
pub const SUPERBLOCK: usize = 4096;
const MAGIC: &[u8; 8] = b"integrt\0";
/// Sectors between two runs of tags, as the kernel takes unless told otherwise.
const LOG2_INTERLEAVE: u8 = 15;
/// No two fields of tags overlap the data's alignment; set by every kernel since 5.4 that is asked to.
const FLAG_FIXED_PADDING: u32 = 8;
/// The largest journal that the kernel makes unless told otherwise, in sectors of 512 bytes.
const MAX_JOURNAL_SECTORS: u64 = 131_072;
const SECTOR: u64 = 512;
const BLOCK: usize = ALIGN;
/// How long one call writes.
const TURN: Duration = Duration::from_secs(8);
/// Bytes of one write.
const CHUNK: usize = 1 << 20;
/// Bytes after which all is brought to stable storage; what a power cut takes lies within so many.
const FLUSH_EVERY: u64 = 256 << 20;

/// Where things lie, as the superblock says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Bytes for data.
    pub data_bytes: u64,
    /// Sections of the journal.
    journal_sections: u64,
    /// Sectors of a block, as a power of two.
    log2_block: u8,
}

/// Reads a superblock. `room` is what the device has from the superblock on, in bytes.
///
/// # Errors
/// What in it is not as this agent or cryptsetup has the kernel make it.
pub fn superblock(bytes: &[u8], facts: &HeaderFacts, room: u64) -> Result<Layout, String> {
    let tag = facts.integrity.as_ref().map_or(0, |i| i.kind.tag_bytes());
    if bytes.get(..8) != Some(MAGIC) {
        return Err("there is no superblock of dm-integrity before its data".into());
    }
    let (version, interleave) = (byte(bytes, 8), byte(bytes, 9));
    let (tag_found, sections) = (le(bytes, 10, 2), le(bytes, 12, 4));
    let (sectors, flags, log2_block) = (le(bytes, 16, 8), le(bytes, 24, 4), byte(bytes, 28));
    if !(1..=5).contains(&version) {
        return Err(format!(
            "its superblock of dm-integrity is of version {version}"
        ));
    }
    if flags != u64::from(FLAG_FIXED_PADDING) {
        return Err(format!(
            "its superblock of dm-integrity has flags {flags:#x}"
        ));
    }
    let wanted_block = u64::try_from(facts.sector_size).unwrap_or_default() / SECTOR;
    if interleave != LOG2_INTERLEAVE
        || tag_found != tag
        || log2_block > 3
        || 1 << log2_block != wanted_block
    {
        return Err(format!(
            "its superblock of dm-integrity says tags of {tag_found} bytes, blocks of 2^{log2_block} sectors and runs of 2^{interleave}"
        ));
    }
    let layout = Layout {
        data_bytes: sectors.saturating_mul(SECTOR),
        journal_sections: sections,
        log2_block,
    };
    let journal = sections.saturating_mul(layout.journal_section_sectors(tag));
    let end = sectors
        .checked_sub(1)
        .and_then(|last| layout.raw_sector(last, tag))
        .and_then(|last| last.checked_mul(SECTOR));
    if sections == 0
        || journal > MAX_JOURNAL_SECTORS + layout.journal_section_sectors(tag)
        || !layout.data_bytes.is_multiple_of(BLOCK as u64)
        || end.is_none_or(|end| end >= room)
    {
        return Err(format!(
            "its superblock of dm-integrity says {sectors} sectors and {sections} sections of a journal, for which there is no room"
        ));
    }
    Ok(layout)
}

impl Layout {
    /// Sectors of a section of the journal: entries of a sector's place, its data and its tag, and the data itself.
    fn journal_section_sectors(&self, tag: u64) -> u64 {
        // struct journal_entry: the place, a last word for each sector of a block, the tag; in whole words of 8 bytes.
        let entry = (8 + (8 << self.log2_block) + tag).next_multiple_of(8);
        let per_sector = (SECTOR - 8 - 8) / entry;
        let entries = per_sector.saturating_mul(8);
        8 + (entries << self.log2_block)
    }

    /// Where a sector of the data lies, in sectors from the superblock on.
    fn raw_sector(&self, sector: u64, tag: u64) -> Option<u64> {
        let area = sector >> LOG2_INTERLEAVE;
        let run_bytes = (tag << (LOG2_INTERLEAVE - self.log2_block)).next_multiple_of(8 * SECTOR);
        let run = run_bytes / SECTOR;
        let journal = self
            .journal_sections
            .checked_mul(self.journal_section_sectors(tag))?;
        (area + 1)
            .checked_mul(run)?
            .checked_add(sector)?
            .checked_add(8)?
            .checked_add(journal)
    }

    /// Where a byte of the data lies, in bytes from the superblock on; the rest of its sector follows it.
    pub fn raw(&self, at: u64, tag: u64) -> Option<u64> {
        self.raw_sector(at / SECTOR, tag)?
            .checked_mul(SECTOR)?
            .checked_add(at % SECTOR)
    }
}

/// Reads how data and tags lie behind a header; or says what is wrong with it.
///
/// # Errors
/// `DeviceUnreadable`.
pub fn layout(disk: &Disk, facts: &HeaderFacts) -> Result<Result<Layout, String>, StepError> {
    let at = u64::try_from(facts.data_offset).unwrap_or(u64::MAX);
    let room = disk.size().saturating_sub(at);
    if room < SUPERBLOCK as u64 || !at.is_multiple_of(ALIGN as u64) {
        return Ok(Err("there is no room for its data".into()));
    }
    let bytes = disk.read_vec(at, SUPERBLOCK)?;
    Ok(superblock(&bytes, facts, room))
}

/// Puts what the superblock says into the facts of a header; or says what is wrong with it.
///
/// # Errors
/// `DeviceUnreadable`.
pub fn complete(disk: &Disk, facts: &mut HeaderFacts) -> Result<Option<String>, StepError> {
    if facts.integrity.is_none() {
        return Ok(None);
    }
    let layout = match layout(disk, facts)? {
        Ok(layout) => layout,
        Err(why) => return Ok(Some(why)),
    };
    if let Some(integrity) = &mut facts.integrity {
        integrity.data_bytes = i64::try_from(layout.data_bytes).unwrap_or_default();
    }
    Ok(None)
}

fn byte(bytes: &[u8], at: usize) -> u8 {
    bytes.get(at).copied().unwrap_or_default()
}

fn le(bytes: &[u8], at: usize, len: usize) -> u64 {
    let field = bytes.get(at..at + len).unwrap_or_default();
    field.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b))
}

/// See [`crate::host::Host::initialise`].
pub fn initialise(mapping: &Mapping, from: u64) -> Result<Initialised, StepError> {
    let what = || format!("initialising {}", mapping.path);
    let table = dm::unchanged(mapping, what)?;
    if table.integrity.is_none() {
        return Err(failed(what(), "its sectors are not authenticated"));
    }
    let disk = Disk::open_new_mapping(mapping)?;
    zero(&disk, from, Instant::now() + TURN)
}

/// Zeros from `from` on or, where nobody knows any more how far it came, from where the disk shows it.
fn zero(disk: &Disk, from: u64, until: Instant) -> Result<Initialised, StepError> {
    let total = disk.size();
    let all = Initialised { done: total, total };
    let Some(last) = total
        .checked_sub(BLOCK as u64)
        .filter(|l| l.is_multiple_of(BLOCK as u64))
    else {
        return Err(failed(
            "initialising",
            format!("{total} bytes are no whole blocks"),
        ));
    };
    if is_written(disk, last)? {
        return Ok(all);
    }
    let mut at = match from {
        0 => written_to(disk, last)?.saturating_sub(FLUSH_EVERY),
        known => known.min(last),
    };
    at -= at % BLOCK as u64;
    let zeros = Aligned::zeroed(CHUNK);
    let mut flushed = at;
    while at < last {
        let len = (last - at).min(CHUNK as u64);
        disk.write(at, &zeros[..usize::try_from(len).unwrap_or(BLOCK)])?;
        at += len;
        let over = Instant::now() >= until;
        if over || at - flushed >= FLUSH_EVERY || at == last {
            disk.sync()?;
            flushed = at;
        }
        if over && at < last {
            return Ok(Initialised { done: at, total });
        }
    }
    // Only now: that it can be read says that all others can.
    disk.write(last, &zeros[..BLOCK])?;
    disk.sync()?;
    Ok(all)
}

/// Bytes up to which blocks were written. Zeros are written in order, and what lies behind the last flush is of no order.
fn written_to(disk: &Disk, last: u64) -> Result<u64, StepError> {
    let (mut low, mut high) = (0, last / BLOCK as u64);
    while low < high {
        let middle = low + (high - low) / 2;
        match is_written(disk, middle * BLOCK as u64)? {
            true => low = middle + 1,
            false => high = middle,
        }
    }
    Ok(low * BLOCK as u64)
}

/// Whether a block carries tags that are right: what was never written has none.
fn is_written(disk: &Disk, at: u64) -> Result<bool, StepError> {
    let mut block = Aligned::zeroed(BLOCK);
    match disk.file().read_exact_at(&mut block, at) {
        Ok(()) => Ok(true),
        Err(e) if is_wrong_tag(&e) => Ok(false),
        Err(e) => Err(unreadable(
            format!("reading a block at {at} of {}", disk.name()),
            e,
        )),
    }
}

/// Whether a read failed because what lies on the disk is not what was written there.
pub fn is_wrong_tag(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EILSEQ)
}

#[cfg(test)]
pub(crate) mod tests {
    use cryptvol_crds::v1alpha1::{Integrity, IntegrityFacts};

    use super::*;
    use crate::host::real::testing::device;

    const TAG: u64 = 32;

    fn facts(sector_size: i32) -> HeaderFacts {
        HeaderFacts {
            sector_size,
            data_offset: 16 << 20,
            integrity: Some(IntegrityFacts {
                kind: Integrity::HmacSha256,
                data_bytes: 0,
            }),
            ..HeaderFacts::default()
        }
    }

    /// A superblock as Linux 6.1 makes it on 128 MiB with data from 16 MiB on.
    pub(crate) fn made_by_kernel(sector_size: i32) -> Vec<u8> {
        let (sections, sectors, log2_block): (u32, u64, u8) = match sector_size {
            512 => (0x17, 0x0003_4010, 0),
            _ => (7, 0x0003_71c0, 3),
        };
        let mut bytes = vec![0; SUPERBLOCK];
        bytes[..12].copy_from_slice(b"integrt\0\x04\x0f\x20\0");
        bytes[12..16].copy_from_slice(&sections.to_le_bytes());
        bytes[16..24].copy_from_slice(&sectors.to_le_bytes());
        bytes[24] = 8;
        bytes[28] = log2_block;
        bytes
    }

    #[test]
    fn a_superblock_is_read_as_the_kernel_lays_it_out() {
        let room = 112 << 20;
        for (sector, sectors, first) in [
            (512, 213_008, 8 + 2024 + 2048),
            (4096, 225_728, 8 + 1848 + 256),
        ] {
            let layout = superblock(&made_by_kernel(sector), &facts(sector), room).unwrap();
            assert_eq!(layout.data_bytes, sectors * 512);
            assert_eq!(layout.raw(0, TAG), Some(first * 512));
            assert_eq!(layout.raw(4096, TAG), Some(first * 512 + 4096));
            // Behind the second run of tags.
            let run = first - 8 - if sector == 512 { 2024 } else { 1848 };
            let second = 32768 * 512;
            assert_eq!(layout.raw(second, TAG), Some((first + 32768 + run) * 512));
            // The kernel uses what there is to the last blocks.
            let end = layout.raw(layout.data_bytes - 4096, TAG).unwrap() + 4096;
            assert!(end <= room && room - end < 2 << 20, "{end}");
        }
    }

    #[test]
    fn a_superblock_that_is_not_ours_is_refused() {
        let room = 112 << 20;
        let refused = |at: usize, byte: u8, said: &str| {
            let mut bytes = made_by_kernel(512);
            bytes[at] = byte;
            let why = superblock(&bytes, &facts(512), room).unwrap_err();
            assert!(why.contains(said), "{at}: {why}");
        };
        refused(0, b'I', "no superblock");
        refused(8, 9, "version 9");
        refused(9, 16, "runs of 2^16");
        refused(10, 0, "tags of 0 bytes");
        refused(11, 1, "tags of 288 bytes");
        refused(12, 0, "0 sections");
        refused(14, 1, "no room");
        refused(16, 0x11, "no room");
        refused(18, 4, "no room");
        refused(23, 0xff, "no room");
        for flag in [0, 1, 2, 4, 9, 10, 12, 24] {
            refused(24, flag, "has flags");
        }
        refused(28, 3, "blocks of 2^3");
        refused(28, 200, "blocks of 2^200");
        assert!(superblock(&[], &facts(512), room).is_err());
        assert!(superblock(&made_by_kernel(4096), &facts(512), room).is_err());
        // A disk that is shorter by now.
        assert!(superblock(&made_by_kernel(512), &facts(512), 111 << 20).is_err());
        assert!(superblock(&made_by_kernel(512), &facts(512), 400 << 20).is_ok());
    }

    /// Plain files have no tags: whatever is there counts as written.
    #[test]
    fn where_the_last_block_can_be_read_nothing_is_written() {
        let (_file, disk) = device(8 << 20);
        disk.cut_after(0);
        let total = 8 << 20;
        let over = Instant::now();
        let all = Initialised { done: total, total };
        assert_eq!(zero(&disk, 0, over).unwrap(), all);
        assert_eq!(zero(&disk, 1 << 20, over).unwrap(), all);
        let (_file, disk) = device(1000);
        assert!(zero(&disk, 0, over).is_err());
        let (_file, disk) = device(0);
        assert!(zero(&disk, 0, over).is_err());
    }
}
