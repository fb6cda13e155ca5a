//! Searches a node for secrets: the memory, command line and environment of every process, and every file that the node could
//! write to. The node's half is a hidden subcommand of `cryptvol-e2e`; the secrets reach it by standard input.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;

use crate::node::{Node, Spawned};
use crate::sandbox;

/// Name of the subcommand.
pub const COMMAND: &str = "node-search";
/// Bytes that are looked at together.
const CHUNK: usize = 1 << 20;

/// Secrets in all the forms in which they might lie somewhere.
#[derive(Debug, Default)]
pub struct Needles {
    forms: Vec<(String, Vec<u8>)>,
    /// Forms by their first byte.
    by_first: Vec<Vec<usize>>,
    longest: usize,
}

impl Needles {
    /// Adds a secret: its bytes, their hexadecimal digits, and base64 of either at each of the three places where it may begin
    /// within a longer text.
    pub fn add(&mut self, name: &str, secret: &[u8]) {
        let hex = hex::encode(secret);
        self.form(format!("{name} as bytes"), secret.to_vec());
        self.form(format!("{name} in hex"), hex.to_uppercase().into_bytes());
        for (what, bytes) in [("", secret), (" of its hex", hex.as_bytes())] {
            for (shift, first) in [(0, 0), (1, 2), (2, 3)] {
                let shifted = [&[0; 2][..shift], bytes].concat();
                let whole = shifted.len() / 3 * 4;
                let text = STANDARD_NO_PAD.encode(&shifted);
                // Digits that also depend on what is before or behind are left out.
                self.form(
                    format!("{name} in base64{what}"),
                    text.as_bytes()[first..whole].to_vec(),
                );
            }
        }
        self.form(format!("{name} in hex"), hex.into_bytes());
    }

    fn form(&mut self, name: String, bytes: Vec<u8>) {
        let Some(&first) = bytes.first() else { return };
        self.by_first.resize(256, vec![]);
        self.by_first[usize::from(first)].push(self.forms.len());
        self.longest = self.longest.max(bytes.len());
        self.forms.push((name, bytes));
    }

    /// Names of the forms that occur.
    pub fn found_in(&self, bytes: &[u8]) -> BTreeSet<&str> {
        let mut found = BTreeSet::new();
        for (at, byte) in bytes.iter().enumerate() {
            for form in self.by_first.get(usize::from(*byte)).into_iter().flatten() {
                let (name, needle) = &self.forms[*form];
                if bytes[at..].starts_with(needle) {
                    found.insert(name.as_str());
                }
            }
        }
        found
    }

    /// As [`Needles::found_in`] over what `read` gives for an offset and a buffer, until it gives nothing.
    fn found_by(&self, mut read: impl FnMut(u64, &mut [u8]) -> usize) -> BTreeSet<&str> {
        let mut found = BTreeSet::new();
        let mut buffer = vec![0; CHUNK + self.longest];
        let mut kept = 0;
        let mut offset = 0;
        loop {
            let got = read(offset, &mut buffer[kept..]);
            if got == 0 {
                return found;
            }
            offset += got as u64;
            let filled = kept + got;
            found.extend(self.found_in(&buffer[..filled]));
            // What may be the beginning of a form that goes on behind the end.
            kept = filled.min(self.longest);
            buffer.copy_within(filled - kept..filled, 0);
        }
    }
}

/// Searches a node; each place is a line such as `memory of 412 (cryptvol-node-a): passphrase in hex`.
pub async fn on_node(node: &Node, secrets: &[(&str, &[u8])]) -> Result<Vec<String>> {
    let program = sandbox::binary()?.display().to_string();
    let input: String = secrets
        .iter()
        .map(|(name, secret)| format!("{name} {}\n", hex::encode(secret)))
        .collect();
    let argv = [program.as_str(), COMMAND];
    let output = node
        .exec_with(&argv, &[], input.as_bytes(), Duration::from_secs(300))
        .await?
        .ok()?;
    let mut lines = output.lines().map(str::to_owned).collect::<Vec<_>>();
    let last = lines.pop().unwrap_or_default();
    // An empty list shall not come from a search that saw nothing.
    anyhow::ensure!(
        last.starts_with("searched "),
        "the search broke off: {last}"
    );
    eprintln!("{}: {last}", node.name());
    Ok(lines)
}

/// The node's half: reads secrets from standard input, prints places and, last, how much it saw.
pub fn run() -> Result<()> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    let mut needles = Needles::default();
    for line in text.lines() {
        let (name, digits) = line.split_once(' ').context("NAME HEX")?;
        needles.add(name, &hex::decode(digits)?);
    }
    let (processes, memory) = search_processes(&needles)?;
    let (files, bytes) = search_files(&needles)?;
    println!(
        "searched {processes} processes, {memory} KiB of memory, {files} files, {} KiB in files",
        bytes >> 10
    );
    Ok(())
}

fn search_processes(needles: &Needles) -> Result<(u32, u64)> {
    let (mut count, mut kib) = (0, 0);
    // This process has the secrets, and so have those that handed them to it.
    let mut own = BTreeSet::new();
    let mut pid = std::process::id();
    while pid > 1 && own.insert(pid) {
        pid = parent(pid).unwrap_or(0);
    }
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else {
            continue;
        };
        let dir = entry.path();
        // A kernel thread has no program.
        if own.contains(&pid) || fs::read_link(dir.join("exe")).is_err() {
            continue;
        }
        let name = fs::read_to_string(dir.join("comm")).unwrap_or_default();
        let name = format!("{pid} ({})", name.trim());
        for (what, file) in [("command line", "cmdline"), ("environment", "environ")] {
            let bytes = fs::read(dir.join(file)).unwrap_or_default();
            tell(&format!("{what} of {name}"), &needles.found_in(&bytes));
        }
        let (found, seen) = search_memory(needles, &dir);
        tell(&format!("memory of {name}"), &found);
        count += 1;
        kib += seen >> 10;
    }
    Ok((count, kib))
}

/// All that a core dump would hold: what is writable, and what no file stands behind.
fn search_memory<'n>(needles: &'n Needles, dir: &Path) -> (BTreeSet<&'n str>, u64) {
    let (mut found, mut seen) = (BTreeSet::new(), 0);
    let (Ok(maps), Ok(memory)) = (
        fs::read_to_string(dir.join("maps")),
        File::open(dir.join("mem")),
    ) else {
        return (found, seen);
    };
    for line in maps.lines() {
        let Some((start, end, keep)) = mapping(line) else {
            continue;
        };
        if keep {
            found.extend(needles.found_by(|offset, buffer| {
                let left = (end - start).saturating_sub(offset);
                let most = usize::try_from(left).map_or(buffer.len(), |l| l.min(buffer.len()));
                let got = memory.read_at(&mut buffer[..most], start + offset);
                let got = got.unwrap_or(0);
                seen += got as u64;
                got
            }));
        }
    }
    (found, seen)
}

/// Begin, end, and whether to look: `7f00-7f10 rw-p 00000000 00:00 0  [heap]`, see proc_pid_maps(5).
fn mapping(line: &str) -> Option<(u64, u64, bool)> {
    let mut words = line.split_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let rights = words.next()?;
    let inode = words.nth(2)?;
    let keep = rights.starts_with('r') && (rights.contains('w') || inode == "0");
    let number = |digits| u64::from_str_radix(digits, 16).ok();
    Some((number(start)?, number(end)?, keep))
}

/// Files in memory (the root's upper layer among them) and in the folder that outlives power cuts.
fn search_files(needles: &Needles) -> Result<(u32, u64)> {
    let mounts = fs::read_to_string("/proc/mounts")?;
    let mut totals = (0, 0);
    let mut seen = BTreeSet::new();
    for line in mounts.lines() {
        let words: Vec<_> = line.split_whitespace().collect();
        if let [_, place, kind, ..] = words[..]
            && (kind == "tmpfs" || place == "/cv")
            && let Ok(meta) = fs::metadata(place)
            && seen.insert(meta.dev())
        {
            search_folder(needles, Path::new(place), meta.dev(), &mut totals);
        }
    }
    Ok(totals)
}

fn search_folder(needles: &Needles, folder: &Path, device: u64, totals: &mut (u32, u64)) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(meta) = fs::symlink_metadata(&path) else {
            continue;
        };
        if meta.dev() != device {
            continue;
        }
        let name = path.as_os_str().as_encoded_bytes();
        tell(&format!("name {}", path.display()), &needles.found_in(name));
        if meta.is_dir() {
            search_folder(needles, &path, device, totals);
        } else if meta.is_file()
            && let Ok(file) = File::open(&path)
        {
            let found =
                needles.found_by(|offset, buffer| file.read_at(buffer, offset).unwrap_or(0));
            tell(&format!("file {}", path.display()), &found);
            totals.0 += 1;
            totals.1 += meta.len();
        }
    }
}

fn tell(place: &str, found: &BTreeSet<&str>) {
    for form in found {
        println!("{place}: {form}");
    }
}

fn parent(pid: u32) -> Option<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(')')?;
    rest.split_whitespace().nth(1)?.parse().ok()
}

/// All that was ever in a command line or environment on a node while it was watched.
#[derive(Debug)]
pub struct Watch {
    process: Spawned,
    log: PathBuf,
}

/// Log of the watch on its node.
const WATCH: &str = "process-watch";

/// Begins to look at the command lines and environments of a node's processes, some ten times a second, so that short-lived ones are
/// seen as well. Each word is noted once.
pub async fn watch_processes(node: &Node) -> Result<Watch> {
    let script = "while :; do cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null; sleep .05; done | tr '\\0' '\\n' \
                  | awk '!seen[$0]++ { print; fflush() }'";
    let process = node.spawn(WATCH, &["bash", "-c", script], &[]).await?;
    Ok(Watch {
        process,
        log: node.log_path(WATCH),
    })
}

impl Watch {
    /// Ends it and returns the words.
    pub async fn stop(self) -> Result<String> {
        self.process.signal("SIGKILL").await?;
        self.process.wait(Duration::from_secs(20)).await?;
        Ok(String::from_utf8_lossy(&fs::read(self.log)?).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::engine::general_purpose::STANDARD;

    #[test]
    fn every_form_is_found_wherever_it_begins() {
        let secret: Vec<u8> = (0..32).map(|n| n * 7 + 3).collect();
        let mut needles = Needles::default();
        needles.add("key", &secret);
        let hex = hex::encode(&secret);
        for before in 0..4 {
            let pad = vec![b'x'; before];
            let with = |bytes: &[u8]| [&pad[..], bytes, b"tail"].concat();
            for text in [
                with(&secret),
                with(hex.as_bytes()),
                with(hex.to_uppercase().as_bytes()),
                STANDARD.encode(with(&secret)).into_bytes(),
                STANDARD.encode(with(hex.as_bytes())).into_bytes(),
            ] {
                assert_eq!(needles.found_in(&text).len(), 1, "{text:?}");
            }
        }
        assert!(needles.found_in(&secret[1..]).is_empty());
    }

    #[test]
    fn a_secret_across_two_reads_is_found() {
        let mut needles = Needles::default();
        needles.add("key", b"0123456789abcdef");
        for at in [0, CHUNK - 8, CHUNK + 3, 2 * CHUNK - 1] {
            let mut bytes = vec![b'.'; 3 * CHUNK];
            bytes[at..at + 16].copy_from_slice(b"0123456789abcdef");
            let found = needles.found_by(|offset, buffer| {
                let rest = &bytes[offset as usize..];
                let most = rest.len().min(buffer.len()).min(CHUNK / 2 + 1);
                buffer[..most].copy_from_slice(&rest[..most]);
                most
            });
            assert_eq!(found.len(), 1, "at {at}");
        }
    }

    #[test]
    fn what_a_dump_would_hold() {
        let line = |rights, inode| format!("7f00-7f10 {rights} 00000000 00:1f {inode}   /lib/x");
        assert_eq!(mapping(&line("rw-p", "12")), Some((0x7f00, 0x7f10, true)));
        assert_eq!(mapping(&line("r-xp", "12")), Some((0x7f00, 0x7f10, false)));
        assert_eq!(mapping(&line("r--p", "0")), Some((0x7f00, 0x7f10, true)));
        assert_eq!(mapping(&line("---p", "0")), Some((0x7f00, 0x7f10, false)));
    }
}
