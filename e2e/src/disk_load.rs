//! Reads or writes a block device with direct I/O, so many requests at a time, and says how many ended: what fio does, as much of
//! it as the benchmark `datapath` needs, without its dozens of libraries.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::libc::O_DIRECT;

/// What to do.
#[derive(Debug, Clone, clap::Args)]
pub struct DiskLoad {
    /// The device; with --write what is on it is lost
    #[arg(long)]
    pub device: PathBuf,
    /// Bytes of a request, a multiple of 4096
    #[arg(long, default_value_t = 4096)]
    pub block: usize,
    /// Requests at one time
    #[arg(long, default_value_t = 1)]
    pub depth: u64,
    /// How long
    #[arg(long, default_value_t = 2000)]
    pub milliseconds: u64,
    /// Write instead of reading
    #[arg(long)]
    pub write: bool,
    /// One block after the other instead of any
    #[arg(long)]
    pub sequential: bool,
}

/// Alignment that every disk is content with.
const ALIGN: usize = 4096;

impl DiskLoad {
    /// Runs it and returns the requests that ended in each second.
    ///
    /// # Errors
    /// At the first request that fails.
    pub fn run(&self) -> Result<f64> {
        ensure!(
            self.block > 0 && self.block.is_multiple_of(ALIGN) && self.depth > 0,
            "a block is a multiple of {ALIGN}, and a depth is 1 or more"
        );
        let file = OpenOptions::new()
            .read(true)
            .write(self.write)
            .custom_flags(O_DIRECT)
            .open(&self.device)
            .with_context(|| format!("open {}", self.device.display()))?;
        let size = std::io::Seek::seek(&mut &file, std::io::SeekFrom::End(0))?;
        let blocks = size / self.block as u64;
        ensure!(
            blocks >= self.depth,
            "{} is too small",
            self.device.display()
        );
        let next = AtomicU64::new(0);
        let start = Instant::now();
        let end = start + Duration::from_millis(self.milliseconds);
        let done: u64 = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..self.depth)
                .map(|_| scope.spawn(|| self.requests(&file, blocks, &next, end)))
                .collect();
            let mut done = 0;
            for thread in threads {
                done += thread
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            }
            anyhow::Ok(done)
        })?;
        Ok(done as f64 / start.elapsed().as_secs_f64())
    }

    /// One request after the other until it is time to end; how many.
    fn requests(&self, file: &File, blocks: u64, next: &AtomicU64, end: Instant) -> Result<u64> {
        let mut space = vec![0x5a_u8; self.block + ALIGN];
        let at = space.as_ptr().align_offset(ALIGN);
        let buffer = &mut space[at..at + self.block];
        let mut done = 0;
        while Instant::now() < end {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let block = if self.sequential {
                number % blocks
            } else {
                // SplitMix64: the same blocks in each run.
                let mut z = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
                z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
                (z ^ (z >> 31)) % blocks
            };
            let offset = block * self.block as u64;
            if self.write {
                file.write_all_at(buffer, offset)?;
            } else {
                file.read_exact_at(buffer, offset)?;
            }
            done += 1;
        }
        Ok(done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_read_beyond_the_device_and_what_ended_is_counted() {
        let dir = tempfile::tempdir_in(".").unwrap();
        let device = dir.path().join("disk");
        std::fs::write(&device, vec![0_u8; 3 * 8192 + 4096]).unwrap();
        let load = |write, sequential| DiskLoad {
            device: device.clone(),
            block: 8192,
            depth: 2,
            milliseconds: 30,
            write,
            sequential,
        };
        assert!(load(false, false).run().unwrap() > 0.0);
        assert!(load(true, true).run().unwrap() > 0.0);
        let content = std::fs::read(&device).unwrap();
        assert_eq!(content.len(), 3 * 8192 + 4096);
        assert!(content[3 * 8192..].iter().all(|b| *b == 0));
        let small = DiskLoad {
            depth: 4,
            ..load(false, false)
        };
        assert!(small.run().unwrap_err().to_string().contains("too small"));
    }
}
