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
use crate::{build, chart, deny, generate, lanes, run, setup, up};

const LOGS: &str = "target/test-logs";

/// Runs the tiers (all of them when none is named) and ends with one line a tier.
pub fn run(tiers: &[Tier], filter: Option<&str>) -> Result<()> {
    let tiers = if tiers.is_empty() {
        &Tier::ALL[..]
    } else {
        tiers
    };
    let real = tiers.iter().any(|t| *t != Tier::Pure);
    setup::ensure(setup::For::Clusters)?;
    fs::create_dir_all(LOGS).with_context(|| format!("make {LOGS}"))?;
    if real {
        // Test programs look for the product there. A failure is told again, and counted, by the tier.
        let _ = build::products();
    }
    let mut counts = BTreeMap::new();
    for &tier in tiers {
        let start = Instant::now();
        run::say(&format!("tier {}", tier.name()));
        let count = match tier {
            Tier::Pure => pure(filter)?,
            _ => real_parts(tier, filter)?,
        };
        run::say(&format!("tier {} took {}", tier.name(), run::since(start)));
        counts.insert(tier, count);
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

fn pure(filter: Option<&str>) -> Result<Count> {
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
        libtest::run(name, Path::new(LOGS), command, deadline, &mut count)?;
    }
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
    libtest::tee(child.stderr.take(), File::create(&log)?, |line| {
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

fn real_parts(tier: Tier, filter: Option<&str>) -> Result<Count> {
    let mut count = Count::default();
    // Helm is needed from the tier `api` on, and kind is among the grounds of `cluster`: one set for all of them.
    if let Err(error) = run::check(build::e2e().args(["parts", "--set", "kind"])) {
        eprintln!("{error:#}");
        count.fail("parts");
        return Ok(count);
    }
    if tier == Tier::Cluster
        && let Err(error) = run::check(build::e2e().args(["images", "--out", up::IMAGES]))
    {
        eprintln!("{error:#}");
        count.fail("images");
        return Ok(count);
    }
    let programs = lanes::programs(Path::new("e2e/tests"), tier.name())?;
    let lanes = match tier {
        Tier::Node => lanes::deal(&programs, lanes::wanted()),
        _ => lanes::deal(&programs, 1),
    };
    // Once for all, so that none waits for what another compiles. A failure is told again by each.
    let mut compile = run::cargo();
    compile.args(["test", "-p", "cryptvol-e2e", "--no-run", "--test"]);
    let _ = run::check(compile.arg(format!("{}_*", tier.name())));
    let deadline = Instant::now() + tier.deadline();
    let counts = std::thread::scope(|scope| {
        let running: Vec<_> = (1..)
            .zip(&lanes)
            .map(|(number, programs)| {
                scope.spawn(move || lane(tier, number, programs, filter, deadline))
            })
            .collect();
        let ended = running.into_iter().map(|lane| lane.join());
        ended.collect::<Vec<_>>()
    });
    for lane in counts {
        match lane {
            Ok(found) => count.add(found?),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
    Ok(count)
}

/// Test programs one after the other.
fn lane(
    tier: Tier,
    number: usize,
    programs: &[String],
    filter: Option<&str>,
    deadline: Instant,
) -> Result<Count> {
    let mut cargo = run::cargo();
    cargo
        // A network, process and mount namespace of its own for each test program: what it leaves behind goes with it.
        .env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER", runner())
        .env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER", runner())
        .args(["test", "-p", "cryptvol-e2e", "--no-fail-fast"]);
    for program in programs {
        cargo.args(["--test", program]);
    }
    cargo
        .arg("--")
        .arg(format!("--test-threads={}", tier.threads()))
        .args(filter);
    let name = match number {
        1 => tier.name().to_owned(),
        _ => format!("{}-{number}", tier.name()),
    };
    let mut count = Count::default();
    libtest::run(&name, Path::new(LOGS), &mut cargo, deadline, &mut count)?;
    Ok(count)
}

fn runner() -> String {
    let e2e = build::e2e();
    format!("{} sandbox --", Path::new(e2e.get_program()).display())
}
