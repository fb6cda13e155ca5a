//! `cargo xtask`: the one door to everything a developer does here.
//!
//! It only sets up, builds and starts; what runs a cluster is `cryptvol-e2e`, which this replaces itself by.

mod bench;
mod build;
mod chart;
mod deny;
mod disk;
mod generate;
mod lanes;
mod libtest;
mod real;
mod run;
mod setup;
mod suite;
mod tier;
mod up;

use std::ffi::OsString;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    about = "Everything a developer of cryptvol does"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start a cluster, encrypt a volume, and show at each step what happens.
    Demo {
        /// Leave the cluster running at the end, to look around.
        #[arg(long)]
        keep: bool,
    },
    /// Run the tests of all tiers, or of one.
    Test {
        /// Only this tier (may be given more than once).
        #[arg(long, value_enum)]
        tier: Vec<tier::Tier>,
        /// Only tests whose name contains this.
        #[arg(long)]
        filter: Option<String>,
    },
    /// Run a benchmark and print it beside what it is measured against (JSON in target/bench/).
    Bench {
        /// Its name, for example `attach`.
        name: String,
        /// Further arguments for the benchmark.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Send the same requests to a real Keystone and Barbican and to the identity service, and show what differs.
    Compare,
    /// Write the CRDs, the chart's roles and the reference pages from the Rust types.
    Generate {
        /// Write nothing; fail with a diff where a file differs from what would be written.
        #[arg(long)]
        check: bool,
    },
    /// Make the container images, without a container daemon, as archives in target/images/.
    Images,
    /// Start a cluster and leave it running for the next runs.
    Up {
        /// Further arguments for `cryptvol-e2e up`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Take down the cluster that `up` or `demo --keep` left.
    Down,
    /// Run kubectl against that cluster.
    Kubectl {
        /// What kubectl gets.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Install what is missing on this machine. The other commands do it by themselves.
    Setup,
}

fn main() -> std::process::ExitCode {
    match dispatch() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}

fn dispatch() -> Result<()> {
    run::in_workspace_root()?;
    match Cli::parse().command {
        Command::Demo { keep } => {
            setup::ensure(setup::For::Clusters)?;
            build::products()?;
            build::become_e2e("demo", keep.then(|| "--keep".into()))
        }
        Command::Test { tier, filter } => suite::run(&tier, filter.as_deref()),
        Command::Bench { name, arguments } => bench::start(&name, &arguments),
        Command::Compare => bench::compare(),
        Command::Generate { check } => generate::run(check),
        Command::Images => {
            setup::ensure(setup::For::Images)?;
            build::products()?;
            build::become_e2e("images", None)
        }
        Command::Up { arguments } => {
            setup::ensure(setup::For::Clusters)?;
            build::products()?;
            up::run(&arguments)
        }
        Command::Down => build::become_e2e("down", None),
        Command::Kubectl { arguments } => build::become_e2e("kubectl", arguments),
        Command::Setup => setup::ensure(setup::For::Clusters),
    }
}
