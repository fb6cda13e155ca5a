//! Test programs beside each other. Each has namespaces of its own, so that they do not meet; a node is one CPU, and most of what its
//! tests do is waiting for it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};

use crate::tier::Tier;

/// What the cluster (two nodes of 3 GiB, a control plane) and a site with its nodes take together.
const MEMORY_KIB: u64 = 10 << 20;

/// How long test programs take, in seconds, where it is long: these begin first. `cargo xtask test` says of each how long it took.
const SECONDS: [(&str, u32); 18] = [
    ("cluster_nodes", 870),
    ("node_paths", 355),
    ("node_peers", 330),
    ("node_integrity_paths", 240),
    ("node_alua", 185),
    ("node_life", 255),
    ("node_host", 230),
    ("api_operator", 225),
    ("node_multipathd", 120),
    ("node_bad_input", 155),
    ("node_integrity", 130),
    ("node_maintenance", 125),
    ("node_interchange", 115),
    ("node_local", 115),
    ("node_names", 95),
    ("node_detached", 85),
    ("node_proof", 85),
    ("node_kill_cycles", 70),
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

/// A test program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// Its tier.
    pub tier: Tier,
    /// Its name: that of its file or folder, which begins with the tier's.
    pub name: String,
}

impl Program {
    fn seconds(&self) -> u32 {
        let known = SECONDS.iter().find(|(known, _)| *known == self.name);
        known.map_or(OTHERS, |(_, seconds)| *seconds)
    }
}

/// The test programs of a tier: `TIER_*.rs`, and folders of that name with a `main.rs`.
pub fn programs(tests: &Path, tier: Tier) -> Result<Vec<Program>> {
    let entries = fs::read_dir(tests).with_context(|| format!("read {}", tests.display()))?;
    let mut found = BTreeSet::new();
    for entry in entries {
        let path = entry?.path();
        let is_test = path.extension().is_some_and(|e| e == "rs") || path.join("main.rs").is_file();
        let name = path
            .file_stem()
            .and_then(|n| n.to_str())
            .unwrap_or_default();
        if is_test && name.starts_with(&format!("{}_", tier.name())) {
            found.insert(name.to_owned());
        }
    }
    let program = |name| Program { tier, name };
    Ok(found.into_iter().map(program).collect())
}

/// What is still to be run. Lanes take from it, so that none ends long before the others.
#[derive(Debug)]
pub struct Queue(Mutex<Waiting>);

#[derive(Debug)]
struct Waiting {
    /// The longest first.
    programs: Vec<Program>,
    /// A program of the tier `cluster` runs.
    cluster_runs: bool,
}

impl Queue {
    /// All of them wait.
    pub fn new(mut programs: Vec<Program>) -> Self {
        programs.sort_by_key(|p| (std::cmp::Reverse(p.seconds()), p.name.clone()));
        Self(Mutex::new(Waiting {
            programs,
            cluster_runs: false,
        }))
    }

    /// The next one for a lane that has done `before`; nothing when there is none that the lane may run.
    ///
    /// One cluster at a time: kubelets end pods that do not answer in time, and two clusters are four of them. What is left then is run by the
    /// lane of the one that runs.
    pub fn next(&self, before: Option<&Program>) -> Option<Program> {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if before.is_some_and(|p| p.tier == Tier::Cluster) {
            waiting.cluster_runs = false;
        }
        let busy = waiting.cluster_runs;
        let may_run = |p: &Program| !busy || p.tier != Tier::Cluster;
        let at = waiting.programs.iter().position(may_run)?;
        let next = waiting.programs.remove(at);
        waiting.cluster_runs |= next.tier == Tier::Cluster;
        Some(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<Program> {
        let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../e2e/tests");
        [Tier::Api, Tier::Node, Tier::Cluster]
            .into_iter()
            .flat_map(|tier| programs(&tests, tier).unwrap())
            .collect()
    }

    #[test]
    fn what_is_known_of_times_is_of_programs_that_there_are() {
        let all = all();
        for (known, _) in SECONDS {
            assert!(
                all.iter().any(|p| p.name == known),
                "there is no {known} any more"
            );
        }
        for tier in [Tier::Api, Tier::Node, Tier::Cluster] {
            assert!(all.iter().any(|p| p.tier == tier), "{}", tier.name());
        }
    }

    #[test]
    fn every_program_runs_once_the_longest_first_and_clusters_one_after_the_other() {
        let all = all();
        let queue = Queue::new(all.clone());
        let (mut lanes, mut ran) = ([None, None], vec![]);
        while lanes.iter().any(Option::is_some) || ran.is_empty() {
            for at in 0..lanes.len() {
                lanes[at] = queue.next(lanes[at].as_ref());
                ran.extend(lanes[at].clone());
                let clusters = lanes.iter().flatten();
                let clusters = clusters.filter(|p| p.tier == Tier::Cluster);
                assert!(clusters.count() <= 1, "{lanes:?}");
            }
        }
        let seconds: Vec<_> = ran.iter().map(Program::seconds).collect();
        let others = ran.iter().filter(|p| p.tier != Tier::Cluster);
        assert!(others.map(Program::seconds).is_sorted_by(|a, b| a >= b));
        assert_eq!(seconds.iter().max(), seconds.first());
        let names = |programs: &[Program]| {
            let mut names: Vec<_> = programs.iter().map(|p| p.name.clone()).collect();
            names.sort();
            names
        };
        assert_eq!(names(&ran), names(&all));
    }

    #[test]
    fn clusters_alone_are_left_to_one_lane() {
        let program = |name: &str| Program {
            tier: Tier::Cluster,
            name: name.to_owned(),
        };
        let queue = Queue::new(vec![program("cluster_a"), program("cluster_b")]);
        let first = queue.next(None).unwrap();
        assert_eq!(queue.next(None), None);
        let second = queue.next(Some(&first)).unwrap();
        assert_ne!(first, second);
        assert_eq!(queue.next(Some(&second)), None);
    }

    #[test]
    fn memory_is_what_is_available() {
        let text = "MemTotal: 9 kB\nMemAvailable:    7340032 kB\n";
        assert_eq!(available_kib(text), 7_340_032);
        assert_eq!(available_kib(""), 0);
    }
}
