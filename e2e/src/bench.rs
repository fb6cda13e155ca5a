//! Benchmarks: ours and what it is measured against in one run, printed side by side and written as JSON rows under
//! `target/bench/`. A goal that is not met is printed as such; tests never assert on time.

mod processes;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::array::Array;
use crate::identity_service::product_binary;
use crate::node::{Node, NodeSpec};
use crate::sandbox;
use crate::workdir::{WorkDir, workspace_root};

/// One line of a benchmark.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// What was measured, with its unit.
    pub metric: String,
    /// Ours.
    pub ours: f64,
    /// What it is measured against.
    pub peer: f64,
    /// Ours divided by the peer's.
    pub ratio: f64,
    /// The ratio (or, where the peer is zero, the value) that is to be reached; absent where the row only informs.
    pub goal: Option<f64>,
    /// Whether it is.
    pub met: Option<bool>,
}

impl Row {
    fn new(metric: &str, ours: f64, peer: f64, goal: Option<f64>) -> Self {
        let ratio = if peer > 0.0 { ours / peer } else { 0.0 };
        let compared = if peer > 0.0 { ratio } else { ours };
        Self {
            metric: metric.into(),
            ours,
            peer,
            ratio,
            goal,
            met: goal.map(|g| compared <= g),
        }
    }
}

/// Names that `run` knows.
pub const NAMES: [&str; 2] = ["attach", "kill-cycles"];

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
                Row::new("data lost, formats, things left", 0.0, 0.0, Some(0.0)),
            ]
        }
        _ => bail!("no benchmark {name}; there are: {}", NAMES.join(" ")),
    };
    println!(
        "{:<34} {:>10} {:>10} {:>7} {:>6}",
        "metric", "ours", "peer", "ratio", "goal"
    );
    for row in &rows {
        let goal = match (row.goal, row.met) {
            (Some(goal), Some(true)) => format!("{goal:>6} met"),
            (Some(goal), _) => format!("{goal:>6} NOT MET"),
            _ => String::new(),
        };
        println!(
            "{:<34} {:>10.2} {:>10.2} {:>7.2} {goal}",
            row.metric, row.ours, row.peer, row.ratio
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
        ("attach", Some(1.5)),
    ] {
        let (ours, floor) = (median(step)?, median(&format!("floor_{step}"))?);
        rows.push(Row::new(&format!("{step}, ms, median"), ours, floor, goal));
    }
    work.passed()?;
    Ok(rows)
}
