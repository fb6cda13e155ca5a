//! `cargo xtask test`: runs the tiers and counts.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::libtest::{self, Count};
use crate::tier::Tier;
use crate::{build, chart, deny, disk, generate, real, run, setup};

/// Where what the tests say is kept.
pub const LOGS: &str = "target/test-logs";

/// Runs the tiers (all of them when none is named) and ends with one line a tier.
pub fn run(tiers: &[Tier], filter: Option<&str>) -> Result<()> {
    let tiers = if tiers.is_empty() {
        &Tier::ALL[..]
    } else {
        tiers
    };
    let real: Vec<_> = tiers.iter().copied().filter(|t| *t != Tier::Pure).collect();
    setup::ensure(setup::For::Clusters)?;
    fs::create_dir_all(LOGS).with_context(|| format!("make {LOGS}"))?;
    let disk = disk::Watch::start(LOGS)?;
    if !real.is_empty() {
        // Test programs look for the product there. A failure is told again, and counted, by the tier.
        let _ = build::products();
    }
    let pure_too = tiers.contains(&Tier::Pure);
    let mut counts = BTreeMap::new();
    if real.is_empty() {
        counts.insert(Tier::Pure, pure(filter, false)?);
    } else {
        // First what both compile: they would wait for each other.
        let made = real::make(&real)?;
        std::thread::scope(|scope| {
            // Tests of real parts mostly wait, and have limits of time: what compiles beside them takes what they leave.
            let beside = pure_too.then(|| {
                scope.spawn(|| {
                    run::yield_to_others();
                    pure(filter, true)
                })
            });
            counts.extend(made.run(filter)?);
            if let Some(count) = beside.map(|thread| thread.join()) {
                let count = count.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                counts.insert(Tier::Pure, count?);
            }
            anyhow::Ok(())
        })?;
    }
    let mut good = true;
    for (tier, count) in &counts {
        for name in &count.names {
            eprintln!("failed in tier {}: {name}", tier.name());
            for line in count.said.get(name).into_iter().flatten() {
                eprintln!("    {line}");
            }
        }
        if count.ignored > 0 {
            eprintln!(
                "tier {}: {} tests are marked as ignored and did not run",
                tier.name(),
                count.ignored
            );
        }
        if count.passed == 0 {
            eprintln!("tier {}: no test passed, which is a failure", tier.name());
        }
        good &= count.good();
    }
    eprintln!("{}", disk.end());
    std::io::stderr().flush()?;
    for (tier, count) in &counts {
        println!(
            "tier-{}: {} passed, {} failed",
            tier.name(),
            count.passed,
            count.failed
        );
    }
    std::io::stdout().flush()?;
    // The lines above shall be the last ones.
    std::process::exit(i32::from(!good));
}

fn pure(filter: Option<&str>, beside_others: bool) -> Result<Count> {
    let start = Instant::now();
    let mut count = Count::default();
    if filter.is_none() {
        checks(&mut count);
    }
    let deadline = Instant::now() + Tier::Pure.deadline();
    let mut everything = run::cargo();
    everything.args([
        "test",
        "--workspace",
        "--exclude",
        "cryptvol-e2e",
        "--no-fail-fast",
    ]);
    let mut harness = run::cargo();
    harness.args([
        "test",
        "-p",
        "cryptvol-e2e",
        "--lib",
        "--bins",
        "--no-fail-fast",
    ]);
    for (name, command) in [("pure", &mut everything), ("pure-harness", &mut harness)] {
        command
            .arg("--")
            .arg(format!("--test-threads={}", Tier::Pure.threads()))
            .args(filter);
        let log = libtest::Log {
            name,
            folder: Path::new(LOGS),
            beside_others,
        };
        libtest::run(log, command, deadline, &mut count)?;
    }
    run::say(&format!("tier pure took {}", run::since(start)));
    Ok(count)
}

/// What is not a test but fails all the same; each counts as one.
fn checks(count: &mut Count) {
    let mut check = |name: &str, result: Result<()>| match result {
        Ok(()) => count.passed += 1,
        Err(error) => {
            eprintln!("{name}: {error:#}");
            count.fail(name);
        }
    };
    check(
        "formatted",
        run::check(run::cargo().args(["fmt", "--all", "--check"])),
    );
    check("generated files", generate::run(true));
    check(
        "clippy",
        run::check(run::cargo().args([
            "clippy",
            "--workspace",
            "--all-targets",
            "--quiet",
            "--",
            "-D",
            "warnings",
        ])),
    );
    check("dependencies", deny::check());
    check("release build without warnings", release());
    check("charts", chart::check());
}

fn release() -> Result<()> {
    let mut command = build::release();
    run::say(&run::words(&command));
    let log = Path::new(LOGS).join("release.log");
    let mut child = command
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let warned = AtomicBool::new(false);
    libtest::tee("", child.stderr.take(), File::create(&log)?, |line| {
        warned.fetch_or(line.starts_with("warning"), Ordering::Relaxed);
    })?;
    let status = child.wait()?;
    if !status.success() {
        bail!("the release build ended with {status}");
    }
    if warned.into_inner() {
        bail!("the release build warns, see {}", log.display());
    }
    Ok(())
}
