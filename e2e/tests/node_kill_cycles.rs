//! Kills and power cuts at steps of attach, rotation, growing and detach, for each encryptor, by a fixed list. `CRYPTVOL_KILL_CYCLES` says how many;
//! `cargo xtask bench kill-cycles --rounds 100` strikes at each step in each way.

use anyhow::{Context, Result};

/// As many as continuous integration has time for: each encryptor up and down, a key rotated, a disk grown.
const FEW: usize = 8;

#[tokio::test]
async fn kills_and_power_cuts_at_steps_lose_nothing_and_leave_nothing() -> Result<()> {
    let cycles = match std::env::var("CRYPTVOL_KILL_CYCLES") {
        Ok(number) => number.parse().context("CRYPTVOL_KILL_CYCLES")?,
        Err(_) => FEW,
    };
    cryptvol_e2e::kill_cycles::run(cycles, |line| eprintln!("{line}")).await
}
