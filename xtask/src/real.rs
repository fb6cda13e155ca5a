//! The tiers that have real parts: their test programs share the lanes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::lanes::{self, Program, Queue};
use crate::libtest::{self, Count};
use crate::suite::LOGS;
use crate::tier::Tier;
use crate::{build, run, up};

const TESTS: &str = "e2e/tests";
/// All of them together; what is not done then is ended, and what has not begun does not.
const ALL: Duration = Duration::from_secs(90 * 60);

/// What is to be run, and where it is.
pub struct Made {
    /// With what could not be made.
    counts: BTreeMap<Tier, Count>,
    programs: Vec<Program>,
    files: BTreeMap<String, PathBuf>,
}

/// Makes what the test programs of these tiers need, and the programs. What cannot be made is a failure of the tiers that need it.
pub fn make(tiers: &[Tier]) -> Result<Made> {
    let start = Instant::now();
    let mut counts: BTreeMap<_, _> = tiers.iter().map(|t| (*t, Count::default())).collect();
    prepare(&mut counts);
    let mut programs = vec![];
    for (tier, _) in counts.iter().filter(|(_, count)| count.failed == 0) {
        programs.extend(lanes::programs(Path::new(TESTS), *tier)?);
    }
    let files = compile(&programs).unwrap_or_else(|error| {
        eprintln!("{error:#}");
        for program in std::mem::take(&mut programs) {
            counts.entry(program.tier).or_default().fail(program.name);
        }
        BTreeMap::new()
    });
    run::say(&format!("test programs made in {}", run::since(start)));
    Ok(Made {
        counts,
        programs,
        files,
    })
}

impl Made {
    /// Runs all of them.
    pub fn run(self, filter: Option<&str>) -> Result<BTreeMap<Tier, Count>> {
        let start = Instant::now();
        let counts = Mutex::new(self.counts);
        let queue = Queue::new(self.programs);
        let lane = || -> Result<()> {
            let mut before = None;
            while let Some(program) = queue.next(before.as_ref()) {
                let file = self.files.get(&program.name).context("a test program")?;
                let found = one(&program, file, filter, start + ALL)?;
                let mut counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
                counts.entry(program.tier).or_default().add(found);
                before = Some(program);
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let running: Vec<_> = (0..lanes::wanted()).map(|_| scope.spawn(lane)).collect();
            for lane in running {
                match lane.join() {
                    Ok(result) => result?,
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
            anyhow::Ok(())
        })?;
        run::say(&format!("test programs took {}", run::since(start)));
        Ok(counts.into_inner().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What the programs need beside the product.
fn prepare(counts: &mut BTreeMap<Tier, Count>) {
    // Helm is needed from the tier `api` on, and kind is among the grounds of `cluster`: one set for all of them.
    if let Err(error) = run::check(build::e2e().args(["parts", "--set", "kind"])) {
        eprintln!("{error:#}");
        for count in counts.values_mut() {
            count.fail("parts");
        }
    }
    if let Some(count) = counts.get_mut(&Tier::Cluster)
        && count.failed == 0
        && let Err(error) = run::check(build::e2e().args(["images", "--out", up::IMAGES]))
    {
        eprintln!("{error:#}");
        count.fail("images");
    }
}

/// Compiles the programs, and says where each is.
fn compile(programs: &[Program]) -> Result<BTreeMap<String, PathBuf>> {
    if programs.is_empty() {
        return Ok(BTreeMap::new());
    }
    let mut cargo = run::cargo();
    cargo.args(["test", "-p", "cryptvol-e2e", "--no-run"]);
    cargo.arg("--message-format=json-render-diagnostics");
    for program in programs {
        cargo.args(["--test", &program.name]);
    }
    run::say(&run::words(&cargo));
    let output = cargo.stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "the test programs do not compile");
    let text = String::from_utf8(output.stdout).context("what cargo says")?;
    let files: BTreeMap<_, _> = text.lines().filter_map(executable).collect();
    for program in programs {
        let there = files.contains_key(&program.name);
        ensure!(there, "cargo says of no file of {}", program.name);
    }
    Ok(files)
}

/// Name and file of a test program, from a line of cargo's.
fn executable(line: &str) -> Option<(String, PathBuf)> {
    let message: Value = serde_json::from_str(line).ok()?;
    let kinds = message["target"]["kind"].as_array()?;
    if message["reason"] != "compiler-artifact" || !kinds.iter().any(|k| k == "test") {
        return None;
    }
    let name = message["target"]["name"].as_str()?.to_owned();
    Some((name, message["executable"].as_str()?.into()))
}

/// Runs one program in a network, process and mount namespace of its own: what it leaves behind goes with it.
fn one(program: &Program, file: &Path, filter: Option<&str>, last: Instant) -> Result<Count> {
    let start = Instant::now();
    let mut count = Count::default();
    let mut command: Command = build::e2e();
    command
        .args(["sandbox", "--"])
        .arg(file)
        .arg(format!("--test-threads={}", program.tier.threads()))
        .args(filter)
        // As `cargo test` starts it.
        .current_dir("e2e");
    let log = libtest::Log {
        name: &program.name,
        folder: Path::new(LOGS),
        beside_others: true,
    };
    let deadline = last.min(start + program.tier.deadline());
    libtest::run(log, &mut command, deadline, &mut count)?;
    run::say(&format!(
        "{}: {} passed, {} failed, {}",
        program.name,
        count.passed,
        count.failed,
        run::since(start)
    ));
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargo_says_where_a_test_program_is() {
        let line = r#"{"reason":"compiler-artifact","target":{"kind":["test"],"name":"node_life"},"executable":"/t/node_life-1"}"#;
        let found = executable(line).unwrap();
        assert_eq!(found, ("node_life".to_owned(), "/t/node_life-1".into()));
        for other in [
            line.replace("[\"test\"]", "[\"lib\"]"),
            line.replace("\"/t/node_life-1\"", "null"),
            "warning: text".to_owned(),
        ] {
            assert_eq!(executable(&other), None, "{other}");
        }
    }
}
