//! A hostile array on a real kernel: forged headers on real LUNs. Refused before anything is unlocked, in their own words, and not a
//! byte is written; with the true header back the volume is attached with its data.
#![allow(clippy::expect_used, clippy::unwrap_used)] // The recipes are shared with the agent's unit tests.

#[path = "../../node-agent/corpus/headers.rs"]
#[allow(dead_code)]
mod headers;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cryptvol_crds::conditions::{self, Reason};
use cryptvol_e2e::array::Lun;
use cryptvol_e2e::site::{Site, SiteSpec};
use cryptvol_e2e::volumes::Volume;
use cryptvol_e2e::workdir::WorkDir;
use headers::Forgery;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

const MIB: u64 = 1 << 20;
const IQN: &str = "iqn.2026-11.dev.cryptvol:hostile";
/// One of each kind; the rest is shown without a kernel (`node-agent`, `header::tests`).
const FORGERIES: [&str; 7] = [
    "null data cipher",
    "null key slot cipher",
    "re-encryption requirement",
    "Argon2 memory bomb",
    "second copy newer than the first",
    "requirements twice",
    "wrong checksums",
];

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
        self.lun.read_at(0, 2 * headers::COPY)
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

async fn is_refused(site: &Site, pair: &Pair, forgery: &Forgery, before: &str) -> Result<()> {
    let message = pair
        .volume
        .wait_reason(&site.plane, Reason::HeaderMismatch)
        .await?;
    ensure!(
        message.contains(forgery.sentence),
        "{:?} not in {message:?}",
        forgery.sentence
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

#[tokio::test]
async fn forged_headers_are_refused_and_nothing_is_written() -> Result<()> {
    let work = WorkDir::new("hostile")?;
    let mut site = Site::start(&work, SiteSpec::new(1)).await?;
    let pairs = prepare(&mut site, FORGERIES.len() + 1).await?;
    let (changing, forged) = pairs.split_last().context("no volumes")?;

    let mut true_heads = Vec::new();
    for (pair, name) in forged.iter().zip(FORGERIES) {
        let mut head = pair.head()?;
        true_heads.push(head.clone());
        forgery(name)?.apply(&mut head);
        pair.lun.write_at(0, &head)?;
    }
    let mut sums = Vec::new();
    for pair in forged {
        sums.push(pair.lun.sha256()?);
        pair.volume.apply(&site.plane).await?;
    }
    for ((pair, name), before) in forged.iter().zip(FORGERIES).zip(&sums) {
        is_refused(&site, pair, forgery(name)?, before)
            .await
            .with_context(|| name.to_owned())?;
    }
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
    for (pair, name) in forged.iter().zip(FORGERIES) {
        pair.volume
            .wait_ready(&site.plane)
            .await
            .with_context(|| name.to_owned())?;
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
