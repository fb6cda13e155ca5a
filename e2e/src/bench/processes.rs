//! How many processes the agent starts for an attachment: counted by the node's kernel (BSD process accounting, acct(5)), which
//! notes every process that ended.

use anyhow::{Context, Result, ensure};

use super::{Row, Rule};
use crate::site::{Site, SiteSpec};
use crate::volumes::Volume;
use crate::workdir::WorkDir;

/// Volumes on one target, attached one after the other.
const VOLUMES: u16 = 8;
/// Where the node's kernel writes.
const FILE: &str = "/run/acct";
/// Names of processes that an attachment could start: the agent's worker (it is started by way of `/proc/self/exe`), and the
/// tools that others attach with. What udev starts for a new disk is udev's.
const NAMES: [&str; 5] = ["exe", "iscsiadm", "nsenter", "cryptsetup", "blkid"];

/// One row: processes for each attachment, the agent's first worker included.
pub(super) async fn count() -> Result<Row> {
    let work = WorkDir::new("bench-processes")?;
    let mut site = Site::start(&work, SiteSpec::new(1)).await?;
    let (_, _, first) = site.volume("bench").await?;
    accounting(&site, FILE).await?;
    // A new agent: no worker waits from before.
    site.kill_agent(0).await?;
    site.node(0).sh(&format!(": >{FILE}")).await?.ok()?;
    site.start_agent(0).await?;
    let iqn = crate::array::iqn("bench");
    let portal = site.array.portal();
    for number in 1..=VOLUMES {
        let volume = if number == 1 {
            first.clone()
        } else {
            site.array.create_lun(&iqn, number, 64 << 20)?;
            Volume::iscsi(
                "bench",
                &format!("vol-{number}"),
                &portal,
                &iqn,
                number,
                "bench",
            )
            .on("node-1")
        };
        volume.apply(&site.plane).await?;
        volume.wait_ready(&site.plane).await?;
    }
    // Processes are noted when they end: the workers with their agent.
    site.kill_agent(0).await?;
    let workers = "for i in $(seq 100); do pgrep -f '[w]orker --parent' >/dev/null || exit 0; sleep .1; done; exit 1";
    site.node(0).sh(workers).await?.ok()?;
    accounting(&site, "").await?;
    let file = site.node(0).exec(&["cat", FILE]).await?;
    ensure!(file.code == 0, "{}", file.stderr);
    let names = names(&file.stdout_bytes)?;
    let ours = names
        .iter()
        .filter(|name| NAMES.contains(&name.as_str()))
        .count();
    // The agent itself is noted under the name of its last thread.
    ensure!(ours > 0, "no worker is among what ended: {names:?}");
    work.passed()?;
    let started = u32::try_from(ours)?;
    Ok(Row::new(
        "processes started an attachment",
        f64::from(started) / f64::from(VOLUMES),
        0.0,
        Some((Rule::AtMost, 1.0)),
    ))
}

/// Turns accounting on with a new file, or off.
async fn accounting(site: &Site, file: &str) -> Result<()> {
    // acct(2); there is no tool for it without another package.
    let call = if file.is_empty() {
        "syscall(163, 0) == 0 or die $!".to_owned()
    } else {
        format!("my $f = \"{file}\"; open(F, \">\", $f); syscall(163, $f) == 0 or die $!")
    };
    site.node(0)
        .exec(&["perl", "-e", &call])
        .await?
        .ok()
        .context("process accounting on the node")
        .map(drop)
}

/// The names in records of 64 bytes: `struct acct` (version 2) or `struct acct_v3`, `linux/acct.h`.
fn names(bytes: &[u8]) -> Result<Vec<String>> {
    bytes
        .chunks_exact(64)
        .map(|record| {
            let at = match record[1] & 0x0f {
                2 => 36,
                3 => 48,
                other => anyhow::bail!("accounting records of version {other}"),
            };
            let name = record[at..].iter().take(16).take_while(|b| **b != 0);
            Ok(name.map(|b| char::from(*b)).collect())
        })
        .collect()
}
