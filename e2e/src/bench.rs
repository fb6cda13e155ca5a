//! Benchmarks: ours and what it is measured against in one run, printed side by side and written as JSON rows under
//! `target/bench/`. A goal that is not met is printed as such; tests never assert on time.

mod identity;
mod load;
mod processes;
mod row;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::array::Array;
use crate::identity_service::product_binary;
use crate::node::{Node, NodeSpec};
use crate::sandbox;
use crate::workdir::{WorkDir, workspace_root};

pub use row::{Row, Rule};

/// Names that `run` knows.
pub const NAMES: [&str; 3] = ["attach", "identity", "kill-cycles"];

/// Installs what a benchmark needs from outside, before it enters its sandbox.
pub fn prepare(name: &str) -> Result<()> {
    if name == "identity" {
        crate::openstack::OpenStack::ensure()?;
    }
    Ok(())
}

/// Runs a benchmark, prints its rows and writes them to `target/bench/NAME.json`. Must run inside a sandbox.
pub async fn run(name: &str, rounds: u32) -> Result<()> {
    sandbox::require()?;
    let rows = match name {
        "attach" => {
            let mut rows = attach(rounds).await?;
            rows.push(processes::count().await?);
            rows
        }
        "kill-cycles" => {
            // It ends at the first that is not as it must be.
            crate::kill_cycles::run(rounds as usize, |line| println!("{line}")).await?;
            vec![
                Row::new(
                    "kills and power cuts survived",
                    f64::from(rounds),
                    0.0,
                    None,
                ),
                Row::new(
                    "data lost, formats, things left",
                    0.0,
                    0.0,
                    Some((Rule::AtMost, 0.0)),
                ),
            ]
        }
        "identity" => identity::run()?,
        _ => bail!("no benchmark {name}; there are: {}", NAMES.join(" ")),
    };
    println!(
        "{:<62} {:>10} {:>10} {:>8} {:>9}",
        "metric", "ours", "peer", "ratio", "goal"
    );
    for row in &rows {
        println!(
            "{:<62} {:>10.2} {:>10.2} {:>8.2} {}",
            row.metric,
            row.ours,
            row.peer,
            row.ratio,
            row.verdict()
        );
    }
    let dir = workspace_root().join("target/bench");
    std::fs::create_dir_all(&dir)?;
    let file = dir.join(format!("{name}.json"));
    std::fs::write(&file, serde_json::to_vec_pretty(&rows)?)?;
    println!("{}", file.display());
    Ok(())
}

/// The steps of an attachment as the agent's worker does them, each round followed by a round of the least that can be done
/// in a process (a login request, a scan, a crypt table with a random key, a link; no check, no header), on one kernel with
/// udev running.
async fn attach(rounds: u32) -> Result<Vec<Row>> {
    const IQN: &str = "iqn.2026-11.dev.cryptvol:bench-0";
    let work = WorkDir::new("bench-attach")?;
    let mut array = Array::start(&work.dir("array")?).await?;
    array.create_target(IQN)?;
    array.create_lun(IQN, 1, 64 << 20)?;
    let node = Node::boot(&work.dir("node")?, NodeSpec::bare("node-1")).await?;
    let walk = product_binary("examples/host_walk")?;
    let walk = walk.to_str().context("the path of host_walk")?;
    let (address, rounds) = (array.ip().to_string(), rounds.to_string());
    eprintln!("{rounds} rounds on {}", node.name());
    let argv = [walk, &address, "3260", IQN, "1", &rounds];
    let output = node
        .exec_with(&argv, &[], b"", Duration::from_secs(900))
        .await?
        .ok()?;
    let mut times: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for line in output.lines() {
        if let ["STEP", step, time] = line.split_whitespace().collect::<Vec<_>>()[..] {
            times
                .entry(step.to_owned())
                .or_default()
                .push(time.parse()?);
        }
    }
    let mut median = |step: &str| -> Result<f64> {
        let values = times
            .get_mut(step)
            .with_context(|| format!("host_walk printed no step {step}"))?;
        values.sort_by(f64::total_cmp);
        Ok(values[values.len() / 2])
    };
    let mut rows = Vec::new();
    for (step, goal) in [
        ("login", None),
        ("scan", None),
        ("open", None),
        ("link", None),
        ("attach", Some((Rule::RatioAtMost, 1.5))),
    ] {
        let (ours, floor) = (median(step)?, median(&format!("floor_{step}"))?);
        rows.push(Row::new(&format!("{step}, ms, median"), ours, floor, goal));
    }
    work.passed()?;
    Ok(rows)
}
