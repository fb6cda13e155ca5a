//! What encryption costs a guest that reads and writes: the same requests to a raw LUN, to a volume with dm-crypt's default queues and to
//! two with its queue flags, attached by the agent, in one session on one kernel, with 250 µs of delay on the node's network.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;

use super::row::{Row, Rule, Stage};
use crate::array;
use crate::node::Node;
use crate::sandbox;
use crate::site::{Site, SiteSpec};
use crate::volumes::Volume;
use crate::workdir::WorkDir;

const NAME: &str = "datapath";
const SIZE: u64 = 96 << 20;
/// One way, as a switched network between two racks has it.
const DELAY: &str = "250us";
/// Of one measurement.
const MILLISECONDS: u64 = 1000;

/// LUN of the raw disk.
const RAW: u16 = 9;
/// dm-crypt's default queues; our flags `noReadWorkqueue` and `noWriteWorkqueue`; and those with encryption sectors of 4 KiB.
const DISKS: [&str; 3] = ["default", "flags", "flags-4k"];

/// Requests that are measured.
struct Load {
    name: &'static str,
    block: usize,
    depth: u32,
    write: bool,
    sequential: bool,
}

const LOADS: [Load; 6] = [
    load("4 KiB random read, depth 1", 4096, 1, false, false),
    load("4 KiB random write, depth 1", 4096, 1, true, false),
    load("4 KiB random read, depth 32", 4096, 32, false, false),
    load("4 KiB random write, depth 32", 4096, 32, true, false),
    load(
        "128 KiB sequential read, depth 4",
        128 << 10,
        4,
        false,
        true,
    ),
    load(
        "128 KiB sequential write, depth 4",
        128 << 10,
        4,
        true,
        true,
    ),
];

const fn load(name: &'static str, block: usize, depth: u32, write: bool, sequential: bool) -> Load {
    Load {
        name,
        block,
        depth,
        write,
        sequential,
    }
}

/// The rows: requests a second, medians of `rounds` rounds in which the disks take turns.
pub(super) async fn rows(rounds: u32) -> Result<Vec<Row>> {
    let work = WorkDir::new("bench-datapath")?;
    let mut site = Site::start(&work, SiteSpec::new(1)).await?;
    site.tenant(NAME).await?;
    let (iqn, portal) = (array::iqn(NAME), site.array.portal());
    site.array.create_target(&iqn)?;
    let mut paths = Vec::new();
    let flags = json!({"noReadWorkqueue": true, "noWriteWorkqueue": true});
    for (number, (name, sector, activation)) in (1..).zip([
        (DISKS[0], 512, json!({})),
        (DISKS[1], 512, flags.clone()),
        (DISKS[2], 4096, flags),
    ]) {
        site.array.create_lun(&iqn, number, SIZE)?;
        let volume = Volume::iscsi(NAME, name, &portal, &iqn, number, NAME)
            .with("encryption", json!({"sectorSize": sector}))
            .with("activation", activation)
            .on("node-1");
        volume.apply(&site.plane).await?;
        volume.wait_ready(&site.plane).await?;
        paths.push((name, volume.link()));
    }
    site.array.create_lun(&iqn, RAW, SIZE)?;
    let node = site.node(0);
    paths.insert(0, ("raw", raw(node, &portal, &iqn, RAW).await?));
    for (name, path) in &paths {
        // A sparse disk answers from nothing.
        let fill =
            format!("dd if=/dev/zero of={path} bs=1M oflag=direct status=none 2>/dev/null; sync");
        node.sh(&fill).await?;
        eprintln!("{name}: {path}");
    }
    node.sh(&format!(
        "modprobe sch_netem && tc qdisc add dev vec0 root netem delay {DELAY}"
    ))
    .await?
    .ok()
    .context("delay on the node's network")?;

    let mut found: BTreeMap<(&str, &str), Vec<f64>> = BTreeMap::new();
    for round in 0..rounds {
        eprintln!("round {} of {rounds}", round + 1);
        for load in &LOADS {
            for turn in 0..paths.len() {
                let (name, path) = &paths[(turn + round as usize) % paths.len()];
                let value = measure(node, path, load).await?;
                found.entry((load.name, name)).or_default().push(value);
            }
        }
    }
    work.passed()?;
    let median = |load: &str, disk: &str| -> Result<f64> {
        let mut values = found.get(&(load, disk)).cloned().unwrap_or_default();
        values.sort_by(f64::total_cmp);
        values
            .get(values.len() / 2)
            .copied()
            .context("not measured")
    };
    let mut rows = Vec::new();
    for load in &LOADS {
        let raw = median(load.name, "raw")?;
        for disk in DISKS {
            let goal = (disk != "default" && load.depth == 1).then_some((Rule::RatioAtLeast, 0.95));
            let name = format!("{}, {disk}, requests/s", load.name);
            let ours = median(load.name, disk)?;
            let microseconds = |rate: f64| f64::from(load.depth) * 1e6 / rate;
            rows.push(Row::new(&name, ours, raw, goal).of(vec![Stage {
                name: "µs a request; what is more than the raw LUN's is dm-crypt's".into(),
                ours: microseconds(ours),
                peer: Some(microseconds(raw)),
            }]));
        }
    }
    Ok(rows)
}

/// The kernel's path of a LUN in the session that the agent made.
async fn raw(node: &Node, portal: &str, iqn: &str, lun: u16) -> Result<String> {
    let path = format!("/dev/disk/by-path/ip-{portal}-iscsi-{iqn}-lun-{lun}");
    let script = format!(
        "set -e; for h in /sys/class/iscsi_host/host*; do echo '0 0 {lun}' >/sys/class/scsi_host/${{h##*/}}/scan; done
         for _ in $(seq 600); do [ -b {path} ] && break; sleep .1; done; readlink -f {path}"
    );
    Ok(node.sh(&script).await?.ok()?.trim().to_owned())
}

async fn measure(node: &Node, path: &str, load: &Load) -> Result<f64> {
    let program = sandbox::binary()?;
    let (block, depth) = (load.block.to_string(), load.depth.to_string());
    let milliseconds = MILLISECONDS.to_string();
    let mut argv = vec![
        program.to_str().context("path of this program")?,
        "disk-load",
        "--device",
        path,
        "--block",
        &block,
        "--depth",
        &depth,
        "--milliseconds",
        &milliseconds,
    ];
    if load.write {
        argv.push("--write");
    }
    if load.sequential {
        argv.push("--sequential");
    }
    let output = node
        .exec_with(&argv, &[], b"", Duration::from_secs(300))
        .await?
        .ok()?;
    output.trim().parse().with_context(|| output.clone())
}
