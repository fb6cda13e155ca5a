//! A hostile array on a real kernel: forged headers on real LUNs. Refused before anything is unlocked, in their own words, and not a
//! byte is written; with the true header back the volume is attached with its data.
#![allow(clippy::expect_used, clippy::unwrap_used)] // The recipes are shared with the agent's unit tests.

#[path = "../../node-agent/corpus/headers.rs"]
#[allow(dead_code)]
mod headers;
#[path = "../../node-agent/corpus/headers_luks1.rs"]
#[allow(dead_code)]
mod headers_luks1;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cryptvol_crds::conditions::{self, Reason};
use cryptvol_e2e::agent_metrics;
use cryptvol_e2e::array::Lun;
use cryptvol_e2e::site::{Site, SiteSpec};
use cryptvol_e2e::volumes::Volume;
use cryptvol_e2e::workdir::WorkDir;
use headers::Forgery;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

const MIB: u64 = 1 << 20;
const IQN: &str = "iqn.2026-11.dev.cryptvol:hostile";
/// One of each kind; the rest is shown without a kernel (`node-agent`, `header::tests`).
const FORGERIES: [&str; 9] = [
    "null data cipher",
    "null key slot cipher",
    "re-encryption requirement",
    "Argon2 memory bomb",
    "overlapping key slots",
    "two headers that claim to be equally new",
    "second copy newer than the first",
    "requirements twice",
    "wrong checksums",
];

/// LUKS1 has no checksum: whatever is changed counts.
const FORGERIES_LUKS1: [&str; 3] = [
    "key derivation bomb",
    "slot behind all disks",
    "slots that overlap",
];
/// Bytes of a disk that are read at most, by whomever on the node: the agent's 16 MiB and 2 MiB, and what udev and the kernel look at.
const MOST_READ: u64 = 24 * MIB;
/// Memory of the agent and of each worker at most, in KiB, while fourteen disks lie to them.
const MOST_MEMORY: u64 = 96 << 10;

/// What an array shows in place of a good header, and what is said of it.
struct Case {
    name: &'static str,
    sentence: &'static str,
    head: Vec<u8>,
}

impl Case {
    /// All of them, each made of the header of a disk of its own.
    fn all(good: &[Vec<u8>]) -> Result<Vec<Self>> {
        let mut good = good.iter();
        let mut next = || good.next().cloned().context("a disk for each");
        let mut cases = Vec::new();
        for name in FORGERIES {
            let forged = forgery(name)?;
            let mut head = next()?;
            forged.apply(&mut head);
            cases.push(Self {
                name,
                sentence: forged.sentence,
                head,
            });
        }
        let mut head = next()?;
        headers::DEARER.apply(&mut head);
        cases.push(Self {
            name: headers::DEARER.name,
            sentence: headers::DEARER.sentence,
            head,
        });
        let head = next()?;
        let text = headers::giant_metadata(&head, &"0,".repeat(1 << 20));
        cases.push(Self {
            name: "giant metadata",
            sentence: "more values",
            head: headers::giant(&head, &text),
        });
        for name in FORGERIES_LUKS1 {
            let mut forged = headers_luks1::OBJECTED.iter();
            let forged = forged.find(|f| f.name == name).context(name)?;
            let mut head = next()?;
            let mut luks1 = headers_luks1::good();
            (forged.apply)(&mut luks1);
            // The volume's own, in the same place in both versions.
            luks1[168..208].copy_from_slice(&head[168..208]);
            // Nothing of the LUKS2 header behind it.
            head[..2 * headers::COPY].fill(0);
            head[..luks1.len()].copy_from_slice(&luks1);
            cases.push(Self {
                name,
                sentence: forged.sentence,
                head,
            });
        }
        Ok(cases)
    }
}

const CASES: usize = FORGERIES.len() + 2 + FORGERIES_LUKS1.len();

fn forgery(name: &str) -> Result<&'static Forgery> {
    headers::by_name(name).with_context(|| format!("no forgery named {name:?}"))
}

/// A volume and its disk.
struct Pair {
    volume: Volume,
    lun: Lun,
}

impl Pair {
    async fn write(&self, site: &Site) -> Result<()> {
        let text = format!("kept by {}", self.volume.name);
        site.node(0)
            .exec_with(
                &[
                    "dd",
                    &format!("of={}", self.volume.link()),
                    "conv=fsync",
                    "status=none",
                ],
                &[],
                text.as_bytes(),
                Duration::from_secs(60),
            )
            .await?
            .ok()
            .map(drop)
    }

    async fn has_its_data(&self, site: &Site) -> Result<()> {
        let text = format!("kept by {}", self.volume.name);
        let read = site
            .node(0)
            .sh(&format!("head -c {} {}", text.len(), self.volume.link()))
            .await?
            .ok()?;
        ensure!(read == text, "{}: read {read:?}", self.volume.name);
        Ok(())
    }

    fn head(&self) -> Result<Vec<u8>> {
        self.lun.read_at(0, 2 * headers::LARGEST)
    }
}

/// Made, written to and detached again: each disk carries the header that the agent wrote.
async fn prepare(site: &mut Site, count: usize) -> Result<Vec<Pair>> {
    site.tenant("hostile").await?;
    site.array.create_target(IQN)?;
    let mut pairs = Vec::new();
    for n in 1..=u16::try_from(count)? {
        let lun = site.array.create_lun(IQN, n, 64 * MIB)?;
        let name = format!("vol-{n}");
        let portal = site.array.portal();
        let volume = Volume::iscsi("hostile", &name, &portal, IQN, n, "hostile").on("node-1");
        volume.apply(&site.plane).await?;
        pairs.push(Pair { volume, lun });
    }
    for pair in &pairs {
        pair.volume.wait_ready(&site.plane).await?;
        pair.write(site).await?;
        pair.volume.clone().detached().apply(&site.plane).await?;
    }
    for pair in &pairs {
        pair.volume.wait_detached(&site.plane).await?;
    }
    Ok(pairs)
}

async fn is_refused(site: &Site, pair: &Pair, case: &Case, before: &str) -> Result<()> {
    let message = pair
        .volume
        .wait_reason(&site.plane, Reason::HeaderMismatch)
        .await?;
    ensure!(
        message.contains(case.sentence),
        "{:?} not in {message:?}",
        case.sentence
    );
    ensure!(
        message.contains(Reason::HeaderMismatch.next_step()),
        "no next step in {message:?}"
    );
    ensure!(pair.lun.sha256()? == before, "the disk was written to");
    let link = pair.volume.link();
    ensure!(
        site.node(0).sh(&format!("test -e {link}")).await?.code != 0,
        "there is a link"
    );
    Ok(())
}

/// How often a key was asked for: without one no key is derived.
async fn keys_asked_for(site: &Site) -> Result<f64> {
    let text = agent_metrics::text(site.node(0)).await?;
    let counts = text
        .lines()
        .filter(|l| l.starts_with("cryptvol_node_step_seconds_count") && l.contains("release-key"))
        .filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok());
    Ok(counts.sum())
}

/// What lies cost: nothing written to the disks, each read no more than a look or two take, little memory, and no key asked for. Not by
/// the clock, which says nothing on a busy machine.
async fn work_is_bounded(site: &Site, asked_before: f64) -> Result<()> {
    ensure!(
        keys_asked_for(site).await? == asked_before,
        "a key was asked for"
    );
    let node = site.node(0);
    let stats = node
        .sh("for d in /sys/block/sd*; do echo $d $(cat $d/stat); done")
        .await?
        .ok()?;
    let mut disks = 0;
    for line in stats.lines() {
        let words: Vec<_> = line.split_whitespace().collect();
        let number = |at: usize| words.get(at).and_then(|w| w.parse::<u64>().ok());
        // Documentation/block/stat.rst, behind the name.
        let (read, written, discarded) = (number(3), number(7), number(14));
        ensure!(
            read.is_some_and(|sectors| sectors * 512 <= MOST_READ),
            "more was read than a look takes: {line}"
        );
        ensure!(
            written == Some(0) && discarded.is_none_or(|n| n == 0),
            "something was written: {line}"
        );
        disks += 1;
    }
    ensure!(disks == CASES, "{disks} disks: {stats}");
    let peaks = node
        .sh("for p in /proc/[0-9]*; do case $(readlink $p/exe) in *cryptvol-node-agent*) grep VmHWM $p/status;; esac; done")
        .await?
        .ok()?;
    let peaks: Vec<u64> = peaks
        .lines()
        .filter_map(|l| l.split_whitespace().nth(1)?.parse().ok())
        .collect();
    println!("RAN: {CASES} lies; read and written {stats}; VmHWM {peaks:?} KiB");
    ensure!(
        peaks.len() >= 2 && peaks.iter().all(|kib| *kib <= MOST_MEMORY),
        "memory in KiB: {peaks:?}"
    );
    Ok(())
}

#[tokio::test]
async fn forged_headers_are_refused_and_nothing_is_written() -> Result<()> {
    let work = WorkDir::new("hostile")?;
    let mut site = Site::start(&work, SiteSpec::new(1)).await?;
    let pairs = prepare(&mut site, CASES + 1).await?;
    let (changing, forged) = pairs.split_last().context("no volumes")?;

    let true_heads: Vec<_> = forged.iter().map(Pair::head).collect::<Result<_>>()?;
    let cases = Case::all(&true_heads)?;
    let asked_before = keys_asked_for(&site).await?;
    let mut sums = Vec::new();
    for (pair, case) in forged.iter().zip(&cases) {
        pair.lun.write_at(0, &case.head)?;
        sums.push(pair.lun.sha256()?);
        pair.volume.apply(&site.plane).await?;
    }
    for ((pair, case), before) in forged.iter().zip(&cases).zip(&sums) {
        is_refused(&site, pair, case, before)
            .await
            .with_context(|| case.name)?;
    }
    work_is_bounded(&site, asked_before).await?;
    let mappings = site.node(0).sh("dmsetup ls --target crypt").await?.ok()?;
    ensure!(
        mappings.contains("No devices found"),
        "something was unlocked: {mappings}"
    );

    what_changes_between_check_and_use(&site, changing).await?;
    a_key_slot_that_was_never_written(&mut site).await?;

    // Looked at anew at once: the agent's own next look at what a person mends comes late.
    for (pair, head) in forged.iter().zip(&true_heads) {
        pair.lun.write_at(0, head)?;
        pair.volume.clone().detached().apply(&site.plane).await?;
    }
    for pair in forged {
        pair.volume.wait_detached(&site.plane).await?;
        pair.volume.apply(&site.plane).await?;
    }
    for (pair, case) in forged.iter().zip(&cases) {
        pair.volume
            .wait_ready(&site.plane)
            .await
            .with_context(|| case.name)?;
        pair.has_its_data(&site).await?;
    }
    work.passed()
}

/// The array shows the true header and a forged one in turn, as fast as it can, while the volume is attached three times over.
/// Whatever is read when: what is mapped is what was judged.
async fn what_changes_between_check_and_use(site: &Site, pair: &Pair) -> Result<()> {
    let good = pair.head()?;
    let mut bad = good.clone();
    forgery("null data cipher")?.apply(&mut bad);
    let stop = Arc::new(AtomicBool::new(false));
    let array = {
        let (stop, lun, good) = (stop.clone(), pair.lun.clone(), good.clone());
        std::thread::spawn(move || -> Result<u64> {
            let mut turns = 0;
            while !stop.load(Ordering::Relaxed) {
                lun.write_at(0, &bad)?;
                std::thread::sleep(Duration::from_micros(300));
                lun.write_at(0, &good)?;
                std::thread::sleep(Duration::from_micros(300));
                turns += 1;
            }
            Ok(turns)
        })
    };
    let mut seen = Vec::new();
    for _ in 0..3 {
        pair.volume.apply(&site.plane).await?;
        let end = pair
            .volume
            .wait(&site.plane, "an end of the attach", |v| {
                v.status.as_ref().is_some_and(|s| {
                    let refused = |c: &Condition| c.reason == Reason::HeaderMismatch.as_str();
                    s.observed_generation == v.metadata.generation
                        && (conditions::is_true(&s.conditions, conditions::READY)
                            || s.conditions.iter().any(refused))
                })
            })
            .await;
        let tables = site
            .node(0)
            .sh("dmsetup table --target crypt")
            .await?
            .ok()?;
        ensure!(
            !tables.contains("null"),
            "a forged header was used: {tables}"
        );
        seen.push(tables.contains("aes-xts-plain64"));
        end?;
        pair.volume.clone().detached().apply(&site.plane).await?;
        pair.volume.wait_detached(&site.plane).await?;
    }
    stop.store(true, Ordering::Relaxed);
    let turns = array
        .join()
        .map_err(|_| anyhow::anyhow!("the array's thread panicked"))??;
    println!("RAN: {turns} changes of the header, attached {seen:?}");
    pair.lun.write_at(0, &good)?;
    pair.volume.apply(&site.plane).await?;
    pair.volume.wait_ready(&site.plane).await?;
    pair.has_its_data(site).await
}

/// As a power cut leaves a format within a few milliseconds: the second copy of the header is there, its key slot and the first copy
/// are not. Not a wrong key but an interrupted format, and the permit that a person gives then mends it.
async fn a_key_slot_that_was_never_written(site: &mut Site) -> Result<()> {
    let number = 99;
    let lun = site.array.create_lun(IQN, number, 64 * MIB)?;
    let portal = site.array.portal();
    let volume = Volume::iscsi("hostile", "torn", &portal, IQN, number, "hostile").on("node-1");
    site.kill_agent(0).await?;
    volume.apply(&site.plane).await?;
    site.launch_agent(0, &["--failpoint", "format:after:exit"])
        .await?;
    ensure!(
        site.agent_exit(0).await? == 86,
        "the agent did not end after the format"
    );
    lun.write_at(0, &[0; headers::COPY])?;
    lun.write_at(2 * headers::COPY as u64, &vec![0; 258_048])?;
    let torn = lun.sha256()?;
    site.start_agent(0).await?;
    let message = volume
        .wait_reason(&site.plane, Reason::FormatInterrupted)
        .await?;
    ensure!(
        message.contains(Reason::FormatInterrupted.next_step()),
        "no next step in {message:?}"
    );
    ensure!(lun.sha256()? == torn, "the disk was written to");
    let uuid = volume
        .get(&site.plane)
        .await?
        .and_then(|v| v.status?.luks_uuid)
        .context("a LUKS UUID")?;
    let annotation = format!("{}={uuid}", cryptvol_crds::names::NEW_PERMIT_ANNOTATION);
    site.plane
        .kubectl(&[
            "annotate",
            "encryptedvolume",
            "-n",
            "hostile",
            "torn",
            &annotation,
        ])
        .await?;
    let pair = Pair { volume, lun };
    pair.volume.wait_ready(&site.plane).await?;
    pair.write(site).await?;
    pair.has_its_data(site).await
}
