//! Disks that read as zeros, fail, or lie, below a volume: dm-zero, dm-error, dm-dust and dm-flakey under the raw device.

use anyhow::{Context, Result, ensure};
use cryptvol_crds::conditions::Reason;
use cryptvol_crds::names;
use cryptvol_e2e::site::Site;
use cryptvol_e2e::volumes::Volume;

use super::ground::{LocalDisk, SITE, all_go, attached_with, detach, stops, used};

const TEXT: &str = "kept on a bad disk";
/// Sectors of both copies of a new header; key slots lie behind them.
const HEADER: u64 = 64;

/// A disk with a header and data that reads as zeros, or not at all, or not where it must: others take it for blank and format it. Ours is refused
/// in the words of what is wrong, not a byte is written, and with the disk as it was all is there.
#[tokio::test]
async fn peer_failure_01_a_disk_that_reads_as_zeros_or_not_at_all_is_not_formatted() -> Result<()> {
    let site = SITE.take().await?;
    site.tenant("bad-reads").await?;
    let node = site.node(0);
    let disk = LocalDisk::make(node, "bad-reads").await?;
    let volume = disk.volume("bad-reads", node);
    used(&site, &volume, TEXT).await?;
    let sum = disk.sum(node).await?;
    let name = "bad-reads";
    // dm-dust fails the reads of blocks that it is told of, of a sector each.
    let dust = disk.all("dust", "512");
    let bad = |sector: u64| {
        format!("dmsetup message {name} 0 addbadblock {sector} && dmsetup message {name} 0 enable")
    };
    for (what, table, then, reason) in [
        (
            "zeros",
            disk.nothing("zero"),
            "true".to_owned(),
            Reason::HeaderMissing,
        ),
        (
            "errors",
            disk.nothing("error"),
            "true".to_owned(),
            Reason::DeviceUnreadable,
        ),
        (
            "an error in the header's first copy",
            dust.clone(),
            bad(1),
            Reason::DeviceUnreadable,
        ),
        (
            "an error in the key slot",
            dust.clone(),
            bad(HEADER + 8),
            Reason::DeviceUnreadable,
        ),
    ] {
        disk.becomes(node, &table).await?;
        node.sh(&then).await?.ok()?;
        volume.apply(&site.plane).await?;
        let said = stops(&site, &volume, reason).await.context(what)?;
        ensure!(said.contains("/dev/dm-"), "{what}: {said}");
        ensure!(disk.sum(node).await? == sum, "{what}: the disk was written");
        if reason != Reason::DeviceUnreadable || what == "errors" {
            detach(&site, &volume).await?;
            continue;
        }
        // Mended, it is taken without being told.
        node.sh(&format!("dmsetup message {name} 0 disable"))
            .await?
            .ok()?;
        volume.wait_ready(&site.plane).await.context(what)?;
        super::ground::has(&site, &volume, TEXT)
            .await
            .context(what)?;
        detach(&site, &volume).await?;
    }
    disk.becomes(node, &disk.good()).await?;
    attached_with(&site, &volume, TEXT).await?;
    all_go(&site, &[&volume]).await?;
    disk.remove(node).await?;
    site.nothing_left(0).await?;
    site.passed()
}

/// A disk that goes bad while it is formatted, at each place where that differs. The permit is spent then, and what lies there may be anything: no
/// agent writes again, whatever it finds, until a person gives another permit.
#[tokio::test]
async fn peer_failure_01_a_format_that_a_disk_interrupts_is_not_begun_again() -> Result<()> {
    let mut site = SITE.take().await?;
    site.tenant("torn").await?;
    let disks = torn_disks(&site).await?;
    for (_, volume, _) in &disks {
        volume.apply(&site.plane).await?;
    }
    let mut sums = Vec::new();
    for (disk, volume, what) in &disks {
        let said = stops(&site, volume, Reason::FormatInterrupted)
            .await
            .context(*what)?;
        ensure!(said.contains("/dev/dm-"), "{what}: {said}");
        sums.push(disk.sum(site.node(0)).await?);
    }
    let [first, second, third] = &sums[..] else {
        anyhow::bail!("{} disks", sums.len())
    };
    ensure!(
        first == third && first != second,
        "the cases do not differ: {sums:?}"
    );

    // The agent forgets, the disks are mended, another attachment is asked for: nothing of it is a reason to write.
    site.kill_agent(0).await?;
    for (disk, _, _) in &disks {
        disk.becomes(site.node(0), &disk.good()).await?;
    }
    site.start_agent(0).await?;
    for ((disk, volume, what), sum) in disks.iter().zip(&sums) {
        detach(&site, volume).await?;
        volume.apply(&site.plane).await?;
        stops(&site, volume, Reason::FormatInterrupted)
            .await
            .context(*what)?;
        ensure!(
            disk.sum(site.node(0)).await? == *sum,
            "{what}: it was written"
        );
    }
    // The disk of the torn one gives errors now, which says nothing of what is on it.
    let (disk, volume, _) = &disks[1];
    detach(&site, volume).await?;
    disk.becomes(site.node(0), &disk.nothing("error")).await?;
    volume.apply(&site.plane).await?;
    stops(&site, volume, Reason::DeviceUnreadable).await?;
    disk.becomes(site.node(0), &disk.good()).await?;
    stops(&site, volume, Reason::FormatInterrupted).await?;

    for (_, volume, what) in &disks {
        let uuid = volume
            .get(&site.plane)
            .await?
            .and_then(|v| v.status?.luks_uuid);
        let uuid = uuid.context("a LUKS UUID")?;
        volume
            .annotate(&site.plane, names::NEW_PERMIT_ANNOTATION, &uuid)
            .await?;
        volume.wait_ready(&site.plane).await.context(*what)?;
        volume.write(site.node(0), TEXT).await?;
    }
    for (disk, volume, what) in disks {
        detach(&site, &volume).await?;
        attached_with(&site, &volume, TEXT).await.context(what)?;
        all_go(&site, &[&volume]).await?;
        disk.remove(site.node(0)).await?;
    }
    site.nothing_left(0).await?;
    site.passed()
}

/// Blank disks that can be read, each with the volume that is to be formatted there.
async fn torn_disks(site: &Site) -> Result<Vec<(LocalDisk, Volume, &'static str)>> {
    let node = site.node(0);
    let mut disks = Vec::new();
    // dm-flakey that is up for 0 s and down for 1 s, and what it does with writes then.
    for (name, from, how, what) in [
        ("fails", 0, "error_writes", "no write succeeds"),
        (
            "torn",
            HEADER,
            "error_writes",
            "the header's copies can be written, its key slot cannot",
        ),
        (
            "lies",
            0,
            "drop_writes",
            "every write is said to be stored and is not",
        ),
    ] {
        let disk = LocalDisk::make(node, name).await?;
        let flakey = format!("0 1 1 {how}");
        let table = match from {
            0 => disk.all("flakey", &flakey),
            sector => disk.good_up_to(sector, "flakey", &flakey),
        };
        disk.becomes(node, &table).await?;
        let volume = disk.volume("torn", node);
        disks.push((disk, volume, what));
    }
    Ok(disks)
}
