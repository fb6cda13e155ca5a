//! One volume, attached and detached again and again, and at each way a blow at one of its steps: the agent killed before or after it,
//! its worker killed within it, or the node's power cut. After each the volume is where it should be by itself, nothing is left of
//! the way, and every byte that was acknowledged is there.
//!
//! Which blow comes when is the same in every run.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cryptvol_crds::names;
use serde_json::json;

use crate::array::{self, Lun};
use crate::keystone::Tenant;
use crate::process::wait_for;
use crate::site::{AGENT_LOG, Site, SiteSpec};
use crate::volumes::Volume;
use crate::workdir::WorkDir;

/// Steps of each attachment after the first, in their order.
const UP: [&str; 8] = [
    "login",
    "scan",
    "read-header",
    "release-key",
    "open",
    "record-first-opened",
    "give-name",
    "link",
];
/// Steps of each detach, in their order.
const DOWN: [&str; 5] = ["take-name", "unlink", "close", "delete-device", "logout"];
/// Bytes of one record; one is written after each attachment.
const RECORD: usize = 4096;
/// Where the volume's data lies behind its header.
const HEADER: usize = 16 << 20;

/// What strikes at a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Blow {
    Agent(&'static str),
    Power(&'static str),
    /// Milliseconds after the step was begun.
    Worker(u64),
}

/// Each step with each blow, in an order that looks like chance and is always the same.
fn blows(steps: &[&'static str], seed: u64) -> Vec<(&'static str, Blow)> {
    let mut all = Vec::new();
    for (number, step) in steps.iter().enumerate() {
        for when in ["before", "after"] {
            all.push((*step, Blow::Agent(when)));
            all.push((*step, Blow::Power(when)));
        }
        all.push((*step, Blow::Worker([0, 2, 7, 25][number % 4])));
    }
    // Fisher and Yates, by SplitMix64.
    let mut state = seed;
    for last in (1..all.len()).rev() {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        all.swap(last, (z % (last as u64 + 1)) as usize);
    }
    all
}

/// Strikes `cycles` times, half on the way up and half on the way down, and tells each.
///
/// # Errors
/// At the first thing that is not as it must be.
pub async fn run(cycles: usize, tell: impl Fn(&str)) -> Result<()> {
    let work = WorkDir::new("kill-cycles")?;
    let mut ground = Ground::new(&work).await?;
    let (up, down) = (blows(&UP, 5), blows(&DOWN, 7));
    for cycle in 0..cycles {
        let (way, list) = if cycle % 2 == 0 {
            ("up", &up)
        } else {
            ("down", &down)
        };
        let (step, blow) = list[(cycle / 2) % list.len()];
        tell(&format!("{:>3} {way:<4} {step}: {blow:?}", cycle + 1));
        let result = match way {
            "up" => ground.up(step, blow).await,
            _ => ground.down(step, blow).await,
        };
        result.with_context(|| format!("cycle {}: {step}, {blow:?}", cycle + 1))?;
    }
    work.passed()
}

struct Ground {
    site: Site,
    volume: Volume,
    lun: Lun,
    /// A disk of another at the next LUN, which nobody may touch, and its checksum.
    other: (Lun, String),
    _tenant: Tenant,
    header: Vec<u8>,
    records: usize,
}

impl Ground {
    /// A volume that was attached once and is detached, so that it is never formatted again.
    async fn new(work: &WorkDir) -> Result<Self> {
        let mut site = Site::start(work, SiteSpec::new(1)).await?;
        let (tenant, lun, volume) = site.volume("cycles").await?;
        let iqn = array::iqn("cycles");
        let other = site.array.create_lun(&iqn, 2, lun.size()?)?;
        other.write_at(0, b"somebody's data")?;
        let sum = other.sha256()?;
        let name = format!(
            "/dev/disk/by-path/ip-{}-iscsi-{iqn}-lun-1",
            site.array.portal()
        );
        let volume = volume.with("link", json!({"shadow": name}));
        volume.apply(&site.plane).await?;
        volume.wait_ready(&site.plane).await?;
        volume.clone().detached().apply(&site.plane).await?;
        volume.wait_detached(&site.plane).await?;
        Ok(Self {
            header: lun.read_at(0, HEADER)?,
            site,
            volume,
            lun,
            other: (other, sum),
            _tenant: tenant,
            records: 0,
        })
    }

    async fn up(&mut self, step: &str, blow: Blow) -> Result<()> {
        let wanted = self.volume.clone();
        self.strike(step, blow, &wanted).await?;
        let site = &self.site;
        self.volume.wait_ready(&site.plane).await?;
        let node = site.node(0);
        // The disk below the mapping is the volume's, and both its names lead to the mapping.
        let shadow = self.volume.manifest["spec"]["link"]["shadow"]
            .as_str()
            .unwrap_or_default();
        let link = self.volume.link();
        let seen = node
            .sh(&format!(
                "set -e; dm=$(readlink -f {link}); [ {link} -ef {shadow} ]
                 cat /sys/class/block/${{dm#/dev/}}/slaves/*/device/wwid; cat /sys/class/block/${{dm#/dev/}}/dm/name; dmsetup ls | wc -l
                 ls /sys/class/iscsi_session | wc -l; ls /dev/sd? | wc -l"
            ))
            .await?
            .ok()?;
        let api: kube::Api<cryptvol_crds::EncryptedVolume> =
            kube::Api::namespaced(site.plane.client()?, &self.volume.namespace);
        let uid = api
            .get(&self.volume.name)
            .await?
            .metadata
            .uid
            .unwrap_or_default();
        let expected = format!(
            "{}\n{}\n1\n1\n1\n",
            self.lun.wwid(),
            names::mapping_name(&uid)
        );
        ensure!(seen == expected, "seen:\n{seen}expected:\n{expected}");
        self.unchanged()?;
        // All that was acknowledged, then one record more.
        let read = node
            .sh(&format!(
                "dd if={link} bs={RECORD} count={} iflag=direct status=none | tr -d '\\0'",
                self.records
            ))
            .await?
            .ok()?;
        let kept: String = (0..self.records).map(record).collect();
        ensure!(
            read == kept,
            "acknowledged data is gone: {} of {} records are there",
            read.matches("record ").count(),
            self.records
        );
        let write = format!(
            "printf '{}' | dd of={link} bs={RECORD} seek={} conv=fsync,sync status=none",
            record(self.records).replace('\n', "\\n"),
            self.records
        );
        node.sh(&write).await?.ok()?;
        self.records += 1;
        ensure!(!self.lun.contains(b"record ")?, "plaintext on the array");
        Ok(())
    }

    async fn down(&mut self, step: &str, blow: Blow) -> Result<()> {
        let wanted = self.volume.clone().detached();
        self.strike(step, blow, &wanted).await?;
        self.volume.wait_detached(&self.site.plane).await?;
        let left = self.site.left_behind(0).await?;
        ensure!(left.is_empty(), "left on the node: {left}");
        self.unchanged()
    }

    /// Nobody wrote where nothing is to be written.
    fn unchanged(&self) -> Result<()> {
        ensure!(
            self.lun.read_at(0, HEADER)? == self.header,
            "the header was written"
        );
        ensure!(
            self.other.0.sha256()? == self.other.1,
            "another's disk was written"
        );
        Ok(())
    }

    /// The agent anew with a fail point, the order, the blow, and the agent as it always is.
    async fn strike(&mut self, step: &str, blow: Blow, wanted: &Volume) -> Result<()> {
        let point = match blow {
            Blow::Agent(when) => format!("{step}:{when}:kill"),
            Blow::Power(when) => format!("{step}:{when}:hang"),
            Blow::Worker(ms) => format!("{step}:during:{ms}"),
        };
        self.site.kill_agent(0).await?;
        let struck = |site: &Site| site.node(0).log(AGENT_LOG).matches("fail point").count();
        wanted.apply(&self.site.plane).await?;
        // The log is up to half a second behind: what it has by then is of before.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let before = struck(&self.site);
        self.site.launch_agent(0, &["--failpoint", &point]).await?;
        if let Blow::Agent(_) = blow {
            let code = self.site.agent_exit(0).await?;
            ensure!(
                code == 128 + 9,
                "the agent ended with {code}, not at the fail point"
            );
            return self.site.start_agent(0).await;
        }
        let site = &self.site;
        // Armed, and struck.
        wait_for(
            &format!("the agent to come to {point}"),
            crate::volumes::PATIENCE,
            || async { Ok((struck(site) >= before + 2).then_some(())) },
            || crate::process::tail(&site.node(0).log_path(AGENT_LOG), 25),
        )
        .await?;
        match blow {
            Blow::Power(_) => self.site.power_cycle(0).await,
            _ => Ok(()),
        }
    }
}

fn record(number: usize) -> String {
    format!("record {number}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_is_struck_in_every_way_and_always_in_the_same_order() {
        let up = blows(&UP, 5);
        assert_eq!(up.len(), 8 * 5);
        assert_eq!(up, blows(&UP, 5));
        assert_ne!(up, blows(&UP, 6));
        for step in UP {
            assert_eq!(up.iter().filter(|(s, _)| *s == step).count(), 5, "{step}");
        }
    }
}
