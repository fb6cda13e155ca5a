//! Attach and detach of one volume on a bare node, all sides on one kernel with udev running: the steps as the agent's worker does
//! them, the least that can be done in a process, os-brick's connector and encryptor as Nova calls them, and a script with
//! iscsiadm, cryptsetup and ln. No side waits for a key manager.

use std::time::Duration;

use anyhow::{Context, Result};

use super::row::{Row, Rule};
use super::steps::Steps;
use crate::array::Array;
use crate::identity_service::product_binary;
use crate::node::{Node, NodeSpec};
use crate::os_brick::OsBrick;
use crate::workdir::WorkDir;

const IQN: &str = "iqn.2026-11.dev.cryptvol:bench-0";
/// Ours and the floor's, the neighbour that keeps a session, the peers'.
const OURS: u16 = 1;
const NEIGHBOUR: u16 = 2;
const THEIRS: u16 = 3;
/// Passphrase of all, hex of 32 bytes.
const KEY: &str = "5d5d5d5d5d5d5d5d5d5d5d5d5d5d5d5d5d5d5d5d5d5d5d5d5d5d5d5d5d5d5d5d";
const TOOLS: &str = include_str!("../../assets/three-tools.sh");
const LIMIT: Duration = Duration::from_secs(1800);
/// os-brick takes seconds a round.
const BRICK_ROUNDS_AT_MOST: u32 = 11;

/// The rows of one volume, and what an attachment in a shared session takes, in milliseconds.
pub(super) async fn bare(rounds: u32) -> Result<(Vec<Row>, f64)> {
    let work = WorkDir::new("bench-attach")?;
    let mut array = Array::start(&work.dir("array")?).await?;
    array.create_target(IQN)?;
    for number in [OURS, NEIGHBOUR, THEIRS] {
        array.create_lun(IQN, number, 64 << 20)?;
    }
    let mut spec = NodeSpec::bare("node-1");
    // os-brick's Python libraries.
    spec.memory_mib = 768;
    let node = Node::boot(&work.dir("node")?, spec).await?;
    let mut steps = Steps::default();
    // In turns, so that all see the same machine: the tools make the header that os-brick opens.
    tools(&node, &array, rounds.div_ceil(2), true, &mut steps).await?;
    ours(&node, &array, rounds.div_ceil(2) + 1, &mut steps).await?;
    brick(&node, &array, rounds.min(BRICK_ROUNDS_AT_MOST), &mut steps).await?;
    ours(&node, &array, rounds / 2 + 1, &mut steps).await?;
    tools(&node, &array, rounds.div_ceil(2), false, &mut steps).await?;
    let found = (rows(&steps)?, steps.median("shared_attach")?);
    work.passed()?;
    Ok(found)
}

async fn ours(node: &Node, array: &Array, rounds: u32, steps: &mut Steps) -> Result<()> {
    eprintln!("{rounds} rounds of ours and of the least");
    let walk = product_binary("examples/host_walk")?;
    let walk = walk.to_str().context("the path of host_walk")?;
    let (address, rounds) = (array.ip().to_string(), rounds.to_string());
    let (lun, neighbour) = (OURS.to_string(), NEIGHBOUR.to_string());
    let argv = [walk, &address, "3260", IQN, &lun, &rounds, &neighbour];
    steps.read(&node.exec_with(&argv, &[], b"", LIMIT).await?.ok()?)
}

async fn brick(node: &Node, array: &Array, rounds: u32, steps: &mut Steps) -> Result<()> {
    eprintln!("{rounds} rounds of os-brick");
    let output = OsBrick::ensure()?
        .rounds(node, &array.portal(), IQN, THEIRS, KEY, rounds)
        .await?;
    steps.read(&output)
}

async fn tools(
    node: &Node,
    array: &Array,
    rounds: u32,
    format: bool,
    steps: &mut Steps,
) -> Result<()> {
    eprintln!("{rounds} rounds of three tools");
    node.put("/run/bench-key", 0o600, KEY.as_bytes()).await?;
    let (portal, lun, rounds) = (array.portal(), THEIRS.to_string(), rounds.to_string());
    let env = [
        ("PORTAL", portal.as_str()),
        ("IQN", IQN),
        ("LUN", &lun),
        ("KEY_FILE", "/run/bench-key"),
        ("ROUNDS", &rounds),
        ("FORMAT", if format { "1" } else { "" }),
    ];
    let output = node
        .exec_with(&["bash", "-c", TOOLS], &env, b"", LIMIT)
        .await?
        .ok()
        .context("three tools")?;
    steps.read(&output)
}

fn rows(steps: &Steps) -> Result<Vec<Row>> {
    let row = |metric: &str, ours: &str, peer: &str, goal| -> Result<Row> {
        Ok(Row::new(
            &format!("{metric}, ms, median"),
            steps.median(ours)?,
            steps.median(peer)?,
            goal,
        ))
    };
    let at_most = |times| Some((Rule::RatioAtMost, times));
    // Twenty times as fast.
    let twentieth = at_most(0.05);
    let up = steps.stages(&[
        ("observe", None),
        ("login", Some("floor_login")),
        ("scan", Some("floor_scan")),
        ("identify", None),
        ("read_header", None),
        ("open", Some("floor_open")),
        ("link", Some("floor_link")),
    ])?;
    let down = steps.stages(&[
        ("unlink", Some("floor_unlink")),
        ("close", Some("floor_close")),
        ("delete", Some("floor_delete")),
        ("logout", Some("floor_logout")),
    ])?;
    let shared = steps.stages(&[
        ("shared_observe", None),
        ("shared_login", Some("floor_login")),
        ("shared_scan", Some("floor_scan")),
        ("shared_identify", None),
        ("shared_read_header", None),
        ("shared_open", Some("floor_open")),
        ("shared_link", Some("floor_link")),
    ])?;
    Ok(vec![
        row(
            "attach, new session, against the floor",
            "attach",
            "floor_attach",
            at_most(1.5),
        )?
        .of(up.clone()),
        row(
            "attach, new session, against os-brick",
            "attach",
            "brick_attach",
            twentieth,
        )?
        .of(up.clone()),
        row(
            "attach, new session, against three tools",
            "attach",
            "tools_attach",
            None,
        )?,
        row(
            "attach, shared session, against the floor of a new one",
            "shared_attach",
            "floor_attach",
            at_most(0.5),
        )?
        .of(shared),
        row(
            "detach, against the floor",
            "detach",
            "floor_detach",
            at_most(2.0),
        )?
        .of(down.clone()),
        row(
            "detach, against os-brick",
            "detach",
            "brick_detach",
            twentieth,
        )?
        .of(down),
        row(
            "detach, against three tools",
            "detach",
            "tools_detach",
            None,
        )?,
        row(
            "detach, shared session, against the floor of a new one",
            "shared_detach",
            "floor_detach",
            None,
        )?,
        row(
            "suspend until the key is wiped, against cryptsetup",
            "suspend",
            "tools_suspend",
            at_most(0.3),
        )?,
    ])
}
