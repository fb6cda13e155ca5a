//! A volume of each encryptor, attached, changed (its key rotated, or its disk grown) and detached again and again, and at each way a
//! blow at one of its steps: the agent killed before or after it, its worker killed within it, or the node's power cut. After each
//! the volume is where it should be by itself, nothing is left of the way, and every byte that was acknowledged is there.
//!
//! Which blow comes when is the same in every run.

mod blows;

use anyhow::{Context, Result, ensure};
use cryptvol_crds::{conditions, names};
use serde_json::json;

use blows::{Blow, KINDS, Kind, Strike, Way, strikes};

use crate::array::{self, Lun};
use crate::site::{Site, SiteSpec};
use crate::volumes::Volume;
use crate::workdir::WorkDir;

/// Bytes of one record; one is written after each attachment.
const RECORD: usize = 4096;
/// What a disk grows by.
const GROWS: u64 = 4 << 20;

/// Strikes `cycles` times and tells each. A hundred are each step with each blow; more begin anew.
///
/// # Errors
/// At the first thing that is not as it must be.
pub async fn run(cycles: usize, tell: impl Fn(&str)) -> Result<()> {
    let work = WorkDir::new("kill-cycles")?;
    let mut ground = Ground::new(&work).await?;
    for (cycle, strike) in (1..).zip(strikes().into_iter().cycle().take(cycles)) {
        let Strike {
            kind: number,
            way,
            step,
            blow,
        } = strike;
        let provider = KINDS[number].provider;
        let line = format!("{cycle:>3} {provider} {way:?} {step}: {blow:?}");
        tell(&line);
        let result = match way {
            Way::Up => ground.up(number, step, blow).await,
            Way::Live => ground.live(number, step, blow).await,
            Way::Down => ground.down(number, step, blow).await,
        };
        result.with_context(|| format!("cycle {line}"))?;
    }
    work.passed()
}

/// A volume that was attached once and is detached, so that it is never formatted again.
struct Subject {
    kind: Kind,
    volume: Volume,
    number: u16,
    header: Vec<u8>,
    records: usize,
    /// How often its disk grew.
    grown: u64,
}

struct Ground {
    site: Site,
    iqn: String,
    subjects: Vec<Subject>,
    /// A disk of another at the last LUN, which nobody may touch, and its checksum.
    other: (Lun, String),
}

const NAME: &str = "cycles";
const SIZE: u64 = 64 << 20;

impl Ground {
    async fn new(work: &WorkDir) -> Result<Self> {
        let mut site = Site::start(work, SiteSpec::new(1)).await?;
        site.tenant(NAME).await?;
        let (iqn, portal) = (array::iqn(NAME), site.array.portal());
        site.array.create_target(&iqn)?;
        let other = site.array.create_lun(&iqn, 9, SIZE)?;
        other.write_at(0, b"somebody's data")?;
        let sum = other.sha256()?;
        let mut subjects = Vec::new();
        for (number, kind) in (1..).zip(KINDS) {
            let lun = site.array.create_lun(&iqn, number, SIZE)?;
            let name = format!("/dev/disk/by-path/ip-{portal}-iscsi-{iqn}-lun-{number}");
            let volume = Volume::iscsi(NAME, kind.provider, &portal, &iqn, number, NAME)
                .with("encryption", json!({"provider": kind.provider}))
                .with("link", json!({"shadow": name}))
                .on("node-1");
            volume.apply(&site.plane).await?;
            volume.wait_ready(&site.plane).await?;
            volume.clone().detached().apply(&site.plane).await?;
            volume.wait_detached(&site.plane).await?;
            subjects.push(Subject {
                header: lun.read_at(0, kind.header)?,
                kind,
                volume,
                number,
                records: 0,
                grown: 0,
            });
        }
        Ok(Self {
            site,
            iqn,
            subjects,
            other: (other, sum),
        })
    }

    fn lun(&self, number: usize) -> Result<Lun> {
        let lun = self.site.array.lun(&self.iqn, self.subjects[number].number);
        lun.cloned()
    }

    async fn up(&mut self, number: usize, step: &str, blow: Blow) -> Result<()> {
        let volume = self.subjects[number].volume.clone();
        let point = self.arm(step, blow).await?;
        volume.apply(&self.site.plane).await?;
        self.strike(&point, blow).await?;
        volume.wait_ready(&self.site.plane).await?;
        self.attached(number).await
    }

    /// What a user has done to an attached volume.
    async fn live(&mut self, number: usize, step: &str, blow: Blow) -> Result<()> {
        let volume = self.subjects[number].volume.clone();
        let point = self.arm(step, blow).await?;
        if step == "grow" {
            let size = SIZE + (self.subjects[number].grown + 1) * GROWS;
            let lun = self.subjects[number].number;
            self.site.array.resize_lun(&self.iqn, lun, size)?;
            volume
                .annotate(
                    &self.site.plane,
                    names::RESCAN_ANNOTATION,
                    &size.to_string(),
                )
                .await?;
            self.strike(&point, blow).await?;
            self.subjects[number].grown += 1;
            let usable = i64::try_from(size - self.subjects[number].kind.header as u64)?;
            volume
                .wait(&self.site.plane, "grown", |v| {
                    let status = v.status.as_ref();
                    status.is_some_and(|s| s.usable_bytes == Some(usable))
                })
                .await?;
        } else {
            let seen = volume
                .get(&self.site.plane)
                .await?
                .and_then(|v| v.status?.key);
            let version = seen.context("a key")?.version;
            volume
                .annotate(
                    &self.site.plane,
                    names::ROTATE_KEY_ANNOTATION,
                    &version.to_string(),
                )
                .await?;
            self.strike(&point, blow).await?;
            volume
                .wait(&self.site.plane, "rotated", |v| {
                    v.status.as_ref().is_some_and(|s| {
                        s.rotation.is_none()
                            && s.key.as_ref().is_some_and(|k| k.version == version + 1)
                            && conditions::is_true(&s.conditions, conditions::KEY_ROTATED)
                    })
                })
                .await?;
            // Its key slots are other ones by now; that the key on record opens them, the next way up shows.
            let header = self.subjects[number].kind.header;
            self.subjects[number].header = self.lun(number)?.read_at(0, header)?;
        }
        volume.wait_ready(&self.site.plane).await?;
        self.attached(number).await
    }

    /// Everything of an attached volume is as it must be; and one record more.
    async fn attached(&mut self, number: usize) -> Result<()> {
        let (subject, site) = (&self.subjects[number], &self.site);
        let (lun, node) = (self.lun(number)?, site.node(0));
        // The disk below the mapping is the volume's, and both its names lead to the mapping.
        let shadow = subject.volume.manifest["spec"]["link"]["shadow"]
            .as_str()
            .unwrap_or_default();
        let link = subject.volume.link();
        let seen = node
            .sh(&format!(
                "set -e; dm=$(readlink -f {link}); [ {link} -ef {shadow} ]
                 cat /sys/class/block/${{dm#/dev/}}/slaves/*/device/wwid; cat /sys/class/block/${{dm#/dev/}}/dm/name; dmsetup ls | wc -l
                 ls /sys/class/iscsi_session | wc -l; ls /dev/sd? | wc -l; blockdev --getsize64 {link}"
            ))
            .await?
            .ok()?;
        let uid = subject.volume.get(&site.plane).await?;
        let uid = uid.and_then(|v| v.metadata.uid).unwrap_or_default();
        let expected = format!(
            "{}\n{}\n1\n1\n1\n{}\n",
            lun.wwid(),
            names::mapping_name(&uid),
            SIZE + subject.grown * GROWS - subject.kind.header as u64,
        );
        ensure!(seen == expected, "seen:\n{seen}expected:\n{expected}");
        self.unchanged()?;
        // All that was acknowledged, then one record more.
        let read = node
            .sh(&format!(
                "dd if={link} bs={RECORD} count={} iflag=direct status=none | tr -d '\\0'",
                subject.records
            ))
            .await?
            .ok()?;
        let kept: String = (0..subject.records).map(record).collect();
        ensure!(
            read == kept,
            "acknowledged data is gone: {} of {} records are there",
            read.matches("record ").count(),
            subject.records
        );
        let write = format!(
            "printf '{}' | dd of={link} bs={RECORD} seek={} conv=fsync,sync status=none",
            record(subject.records).replace('\n', "\\n"),
            subject.records
        );
        node.sh(&write).await?.ok()?;
        ensure!(!lun.contains(b"record ")?, "plaintext on the array");
        self.subjects[number].records += 1;
        Ok(())
    }

    async fn down(&mut self, number: usize, step: &str, blow: Blow) -> Result<()> {
        let volume = self.subjects[number].volume.clone();
        let point = self.arm(step, blow).await?;
        volume.clone().detached().apply(&self.site.plane).await?;
        self.strike(&point, blow).await?;
        volume.wait_detached(&self.site.plane).await?;
        self.site.nothing_left(0).await?;
        self.unchanged()
    }

    /// Nobody wrote where nothing is to be written.
    fn unchanged(&self) -> Result<()> {
        for (number, subject) in self.subjects.iter().enumerate() {
            ensure!(
                self.lun(number)?.read_at(0, subject.kind.header)? == subject.header,
                "the header of {} was written",
                subject.kind.provider
            );
        }
        ensure!(
            self.other.0.sha256()? == self.other.1,
            "another's disk was written"
        );
        Ok(())
    }

    /// Ends the agent; the next one gets the fail point that is given back.
    async fn arm(&mut self, step: &str, blow: Blow) -> Result<String> {
        self.site.kill_agent(0).await?;
        Ok(match blow {
            Blow::Agent(when) => format!("{step}:{when}:kill"),
            Blow::Power(when) => format!("{step}:{when}:hang"),
            Blow::Worker(ms) => format!("{step}:during:{ms}"),
        })
    }

    /// The agent with a fail point, the blow, and the agent as it always is.
    async fn strike(&mut self, point: &str, blow: Blow) -> Result<()> {
        self.site.strike(0, point).await?;
        match blow {
            Blow::Agent(_) => self.site.start_agent(0).await,
            Blow::Power(_) => self.site.power_cycle(0).await,
            Blow::Worker(_) => Ok(()),
        }
    }
}

fn record(number: usize) -> String {
    format!("record {number}\n")
}
