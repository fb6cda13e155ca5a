//! Benchmarks: ours and what it is measured against in one run, printed side by side and written as JSON rows under
//! `target/bench/`. A goal that is not met is printed as such; tests never assert on time.

mod attach;
mod crowd;
mod datapath;
mod failed_logins;
mod identity;
mod large;
mod load;
mod processes;
mod rekey;
mod row;
mod side;
mod steps;

use anyhow::{Result, bail};

use crate::identity_writes::Held;
use crate::sandbox;
use crate::workdir::workspace_root;

pub use row::{Row, Rule};

/// Names that `run` knows.
pub const NAMES: [&str; 7] = [
    "attach",
    "datapath",
    "failed-logins",
    "identity",
    "kill-cycles",
    "kills",
    "rekey",
];

/// How much of it.
#[derive(Debug, Clone, clap::Args)]
pub struct Size {
    /// Rounds of each side
    #[arg(long, default_value_t = 21)]
    rounds: u32,
    /// Volumes of the largest node in `attach`, more than 50
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u16).range(51..=576))]
    volumes: u16,
    /// `identity` with 100,000 users, 20,000 projects and 1,000,000 secrets, beside itself with few of them
    #[arg(long)]
    large: bool,
    /// Logins of `failed-logins`
    #[arg(long, default_value_t = 1_000_000)]
    logins: u32,
    /// Secrets of `rekey`
    #[arg(long, default_value_t = 1_000_000)]
    secrets: u32,
    /// `failed-logins` or `rekey` with the records in a PostgreSQL server
    #[arg(long)]
    postgres: bool,
}

/// Installs what a benchmark needs from outside, before it enters its sandbox.
pub fn prepare(name: &str, size: &Size) -> Result<()> {
    match name {
        "identity" if size.large => {}
        "identity" => drop(crate::openstack::OpenStack::ensure()?),
        "attach" => drop(crate::os_brick::OsBrick::ensure()?),
        _ => {}
    }
    Ok(())
}

/// Runs a benchmark, prints its rows and writes them to `target/bench/NAME.json`. Must run inside a sandbox.
pub async fn run(name: &str, size: &Size) -> Result<()> {
    sandbox::require()?;
    let (rounds, volumes) = (size.rounds, size.volumes);
    let large = size.large && name == "identity";
    let postgres = size.postgres && ["failed-logins", "rekey"].contains(&name);
    let rows = match name {
        "attach" => {
            let (mut rows, shared) = attach::bare(rounds).await?;
            rows.push(processes::count().await?);
            rows.extend(crowd::rows(volumes, shared).await?);
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
        "kills" => {
            // It has a runtime of its own, and blocks.
            let held = tokio::task::spawn_blocking(move || {
                crate::identity_kills::run(rounds, |line| println!("{line}"))
            });
            kills(rounds, held.await??)
        }
        "datapath" => datapath::rows(rounds).await?,
        "failed-logins" => failed_logins::run(size.logins as usize, postgres)?,
        "rekey" => rekey::run(size.secrets as usize, postgres)?,
        "identity" if large => large::run()?,
        "identity" => identity::run()?,
        _ => bail!("no benchmark {name}; there are: {}", NAMES.join(" ")),
    };
    row::print(&rows);
    let dir = workspace_root().join("target/bench");
    std::fs::create_dir_all(&dir)?;
    let kind = match (large, postgres) {
        (true, _) => "-large",
        (_, true) => "-postgres",
        _ => "",
    };
    let file = dir.join(format!("{name}{kind}.json"));
    std::fs::write(&file, serde_json::to_vec_pretty(&rows)?)?;
    println!("{}", file.display());
    Ok(())
}

/// It ends at the first thing that is not as it must be, so these are what was answered and holds.
fn kills(rounds: u32, held: Held) -> Vec<Row> {
    let row = |metric: &str, count: usize| Row::new(metric, count as f64, 0.0, None);
    vec![
        Row::new(
            "SIGKILLs of the identity service survived",
            f64::from(rounds),
            0.0,
            None,
        ),
        row("users made, answered and there", held.users),
        row("edits of users, answered and there", held.edits),
        row("secrets stored, answered and there", held.secrets),
        row("secrets deleted, answered and gone", held.deletions),
        row("keys ordered, answered and there", held.orders),
        Row::new(
            "acknowledged and lost, or half-written",
            0.0,
            0.0,
            Some((Rule::AtMost, 0.0)),
        ),
    ]
}
