//! How much room the disk has, as tests that find none fail with the oddest words.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::run;

/// What all tiers take from a fresh clone with empty caches, in GiB, with something to spare.
const NEEDED_GIB: u64 = 25;
/// With less than this left, in MiB, something has probably failed for want of room.
const FULL_MIB: u64 = 512;
/// How often the room is looked at.
const EVERY: Duration = Duration::from_secs(3);

/// Looks at the room in a folder until it is asked for the least that was seen.
pub struct Watch {
    least: Arc<AtomicU64>,
    ended: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Watch {
    /// Starts looking at the file system of `folder`, and warns when it has less room than all tests may take.
    pub fn start(folder: &'static str) -> Result<Self> {
        let now = free_mib(Path::new(folder))?;
        if now / 1024 < NEEDED_GIB {
            run::say(&format!(
                "the disk of {folder} has {} free; with empty caches all tests take up to {NEEDED_GIB} GiB",
                told(now)
            ));
        }
        let least = Arc::new(AtomicU64::new(now));
        let ended = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let (least, ended) = (least.clone(), ended.clone());
            move || {
                while !ended.load(Ordering::Relaxed) {
                    if let Ok(free) = free_mib(Path::new(folder)) {
                        least.fetch_min(free, Ordering::Relaxed);
                    }
                    thread::park_timeout(EVERY);
                }
            }
        });
        Ok(Self {
            least,
            ended,
            thread,
        })
    }

    /// One line about the least room that was seen.
    pub fn end(self) -> String {
        self.ended.store(true, Ordering::Relaxed);
        self.thread.thread().unpark();
        let _ = self.thread.join();
        sentence(self.least.load(Ordering::Relaxed))
    }
}

fn sentence(least_mib: u64) -> String {
    let why = if least_mib < FULL_MIB {
        ": failures above may be for want of room; make some and run again"
    } else {
        ""
    };
    format!("the disk had at least {} free{why}", told(least_mib))
}

fn told(mib: u64) -> String {
    if mib < 1024 {
        format!("{mib} MiB")
    } else {
        format!("{} GiB", mib / 1024)
    }
}

fn free_mib(folder: &Path) -> Result<u64> {
    let text = run::output(
        Command::new("df")
            .args(["--output=avail", "--block-size=1M", "--"])
            .arg(folder),
    )?;
    read(&text).with_context(|| format!("what df says of {}: {text:?}", folder.display()))
}

/// The second line of `df --output=avail`.
fn read(text: &str) -> Option<u64> {
    text.lines().nth(1)?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_df_says() {
        assert_eq!(read("  Avail\n  13312\n"), Some(13312));
        assert_eq!(read("Avail\n"), None);
        assert_eq!(read("Avail\n-\n"), None);
        assert!(free_mib(Path::new(".")).is_ok());
    }

    #[test]
    fn a_full_disk_is_named_as_a_reason() {
        assert!(sentence(100).contains("want of room"));
        assert_eq!(sentence(20 * 1024 + 7), "the disk had at least 20 GiB free");
    }
}
