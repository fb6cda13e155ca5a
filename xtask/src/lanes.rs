//! Test programs beside each other. Each has namespaces of its own, so that they do not meet; a node is one CPU, and most of what its
//! tests do is waiting for it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// What two nodes with control planes of their own take together, the largest tests being side by side.
const MEMORY_KIB: u64 = 6 << 20;

/// How long test programs take, in seconds, where it is long: which goes to which lane. Others take about a minute.
const SECONDS: [(&str, u32); 14] = [
    ("node_life", 265),
    ("node_paths", 260),
    ("node_host", 235),
    ("node_bad_input", 160),
    ("node_alua", 130),
    ("node_interchange", 130),
    ("node_maintenance", 125),
    ("node_local", 105),
    ("node_names", 90),
    ("node_multipathd", 85),
    ("node_peers", 85),
    ("node_detached", 85),
    ("node_proof", 85),
    ("node_kill_cycles", 75),
];
const OTHERS: u32 = 60;

/// Two on a machine with two CPUs and the memory for it, else one.
pub fn wanted() -> usize {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    if cpus >= 2 && available_kib(&memory) >= MEMORY_KIB {
        2
    } else {
        1
    }
}

fn available_kib(meminfo: &str) -> u64 {
    let line = meminfo
        .lines()
        .find_map(|l| l.strip_prefix("MemAvailable:"));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}

/// The test programs of a tier: `PREFIX_*.rs`, and folders of that name with a `main.rs`.
pub fn programs(tests: &Path, prefix: &str) -> Result<BTreeSet<String>> {
    let entries = fs::read_dir(tests).with_context(|| format!("read {}", tests.display()))?;
    let mut found = BTreeSet::new();
    for entry in entries {
        let path = entry?.path();
        let is_test = path.extension().is_some_and(|e| e == "rs") || path.join("main.rs").is_file();
        let name = path
            .file_stem()
            .and_then(|n| n.to_str())
            .unwrap_or_default();
        if is_test && name.starts_with(&format!("{prefix}_")) {
            found.insert(name.to_owned());
        }
    }
    Ok(found)
}

/// Deals programs out: the longest first, each to the lane that has the least so far. No lane is empty.
pub fn deal(programs: &BTreeSet<String>, lanes: usize) -> Vec<Vec<String>> {
    let seconds = |name: &str| {
        let known = SECONDS.iter().find(|(known, _)| *known == name);
        known.map_or(OTHERS, |(_, seconds)| *seconds)
    };
    let mut sorted: Vec<_> = programs.iter().map(|p| (seconds(p), p)).collect();
    sorted.sort_by_key(|(seconds, name)| (std::cmp::Reverse(*seconds), *name));
    let mut dealt: Vec<(u32, Vec<String>)> = vec![(0, Vec::new()); lanes.max(1)];
    for (seconds, name) in sorted {
        if let Some(lane) = dealt.iter_mut().min_by_key(|(sum, _)| *sum) {
            lane.0 += seconds;
            lane.1.push(name.clone());
        }
    }
    dealt.retain(|(_, programs)| !programs.is_empty());
    dealt.into_iter().map(|(_, programs)| programs).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_program_runs_once_and_the_long_ones_apart() {
        let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../e2e/tests");
        let all = programs(&tests, "node").unwrap();
        for (known, _) in SECONDS {
            assert!(all.contains(known), "there is no {known} any more");
        }
        let lanes = deal(&all, 2);
        assert_eq!(lanes.len(), 2);
        let mut dealt: Vec<_> = lanes.concat();
        dealt.sort();
        assert_eq!(dealt, all.iter().cloned().collect::<Vec<_>>());
        assert!(lanes[0].contains(&"node_life".to_owned()));
        assert!(lanes[1].contains(&"node_host".to_owned()));
        assert_eq!(deal(&all, 1).len(), 1);
        assert_eq!(deal(&BTreeSet::from(["one".to_owned()]), 2).len(), 1);
    }

    #[test]
    fn memory_is_what_is_available() {
        let text = "MemTotal: 9 kB\nMemAvailable:    7340032 kB\n";
        assert_eq!(available_kib(text), 7_340_032);
        assert_eq!(available_kib(""), 0);
    }
}
