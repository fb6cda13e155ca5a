//! Authenticated sectors on a real kernel: what the array changes is a read error and never other bytes, the next proof says so, and
//! nothing of the two layers stays behind.

use std::os::unix::fs::MetadataExt;

use anyhow::{Context, Result, ensure};
use cryptvol_crds::conditions::Reason;
use cryptvol_e2e::{
    agent_metrics,
    array::Lun,
    keystone::Tenant,
    node::Node,
    process::wait_for,
    site::{AGENT_LOG, Site, SiteSpec},
    volumes::{PATIENCE, Volume},
    workdir::WorkDir,
};
use serde_json::json;

/// Where data begins behind a LUKS2 header.
const DATA: u64 = 16 << 20;
const BLOCK: u64 = 4096;

/// Where the first block of the data lies on the disk, and how many bytes of data there are: from the superblock of dm-integrity
/// (`struct superblock` of the kernel's dm-integrity.c), for sectors of 512 bytes and tags of 32.
fn first_block(lun: &Lun) -> Result<(u64, u64)> {
    let superblock = lun.read_at(DATA, 512)?;
    ensure!(superblock.starts_with(b"integrt\0"), "no superblock");
    let sections = u64::from(u32::from_le_bytes(superblock[12..16].try_into()?));
    let sectors = u64::from_le_bytes(superblock[16..24].try_into()?);
    // A section of the journal is 88 sectors, the run of tags before the data 2048.
    Ok((DATA + (8 + sections * 88 + 2048) * 512, sectors * 512))
}

/// Changes one bit behind everybody's back.
fn flip(lun: &Lun, at: u64) -> Result<()> {
    let byte = lun.read_at(at, 1)?;
    lun.write_at(at, &[byte[0] ^ 0x10])
}

/// Reads a block through the link, past the page cache; or the error of the read.
async fn block(
    node: &Node,
    volume: &Volume,
    index: u64,
) -> Result<std::result::Result<String, String>> {
    let script = format!(
        "dd if={} bs=4096 count=1 skip={index} iflag=direct status=none | tr -d '\\0'; exit ${{PIPESTATUS[0]}}",
        volume.link()
    );
    let output = node.sh(&script).await?;
    let error = output.stderr.clone();
    Ok(output.ok().map_err(|_| error))
}

async fn layers(node: &Node) -> Result<Vec<String>> {
    let list = "dmsetup info -c --noheadings -o name | grep cryptvol || true";
    let list = node.sh(list).await?.ok()?;
    Ok(list.lines().map(str::to_owned).collect())
}

#[tokio::test]
async fn what_an_array_changes_is_a_read_error_and_shows_at_the_next_proof() -> Result<()> {
    let work = WorkDir::new("integrity")?;
    let mut site = Site::start(&work, SiteSpec::new(1)).await?;
    site.kill_agent(0).await?;
    // Its workers die while the first zeros are written.
    let arguments = [
        "--proof-interval",
        "2",
        "--failpoint",
        "initialise:during:300",
    ];
    site.launch_agent(0, &arguments).await?;
    let (tenant, lun, volume) = site.volume("integrity").await?;
    let volume = volume.with("deletionPolicy", json!("Erase")).with(
        "encryption",
        json!({"provider": "luks2", "integrity": "hmac-sha256"}),
    );
    volume.apply(&site.plane).await?;
    volume.wait_ready(&site.plane).await?;
    let node = site.node(0);
    ensure!(layers(node).await?.len() == 2, "{:?}", layers(node).await?);
    let (first, size) = first_block(&lun)?;
    let link = volume.link();
    let all = format!(
        "blockdev --getsize64 {link}; dd if={link} bs=1M iflag=direct status=none | tr -d '\\0' | wc -c"
    );
    ensure!(
        node.sh(&all).await?.ok()? == format!("{size}\n0\n"),
        "not every sector of a new volume reads as zeros"
    );

    let text = "what a guest wrote ".repeat(1000);
    volume.write(node, &text).await?;
    let cut = |text: &str, index: usize| text[index * 4096..(index + 1) * 4096].to_owned();
    let mut away = volume.clone();
    away = away.detached();
    away.apply(&site.plane).await?;
    away.wait_detached(&site.plane).await?;
    ensure!(layers(node).await?.is_empty(), "{:?}", layers(node).await?);
    ensure!(
        !lun.contains(b"what a guest wrote")?,
        "plaintext on the array"
    );
    volume.apply(&site.plane).await?;
    volume.wait_ready(&site.plane).await?;
    volume
        .wait_proof(&site.plane, "True", Reason::AsDesired)
        .await?;

    // One bit: this block cannot be read, those beside it can.
    flip(&lun, first + BLOCK + 100)?;
    ensure!(block(node, &volume, 0).await?.as_ref() == Ok(&cut(&text, 0)));
    let error = block(node, &volume, 1).await?;
    let error = error.err().context("a changed block was read")?;
    // EILSEQ, as libc says it.
    ensure!(error.contains("multibyte"), "{error}");
    ensure!(block(node, &volume, 2).await?.as_ref() == Ok(&cut(&text, 2)));
    // A block and its neighbour in each other's place.
    flip(&lun, first + BLOCK + 100)?;
    ensure!(block(node, &volume, 1).await?.as_ref() == Ok(&cut(&text, 1)));
    let (one, two) = (lun.read_at(first, 4096)?, lun.read_at(first + BLOCK, 4096)?);
    lun.write_at(first, &two)?;
    lun.write_at(first + BLOCK, &one)?;
    ensure!(block(node, &volume, 0).await?.is_err() && block(node, &volume, 1).await?.is_err());
    lun.write_at(first, &one)?;
    lun.write_at(first + BLOCK, &two)?;
    ensure!(block(node, &volume, 0).await?.as_ref() == Ok(&cut(&text, 0)));

    // A bit in every block: wherever the next proof looks.
    let whole = lun.read_at(first, usize::try_from(lun.size()? - first)?)?;
    let mut changed = whole.clone();
    changed.iter_mut().step_by(512).for_each(|byte| *byte ^= 1);
    lun.write_at(first, &changed)?;
    let message = volume
        .wait_proof(&site.plane, "False", Reason::IntegrityViolated)
        .await?;
    ensure!(message.contains("was not written there"), "{message}");
    let metrics = agent_metrics::text(node).await?;
    let broken = agent_metrics::count(&metrics, "proofs_total{result=\"broken\"}")?;
    ensure!(broken > 0, "{metrics}");
    lun.write_at(first, &whole)?;
    volume
        .wait_proof(&site.plane, "True", Reason::AsDesired)
        .await?;
    ensure!(block(node, &volume, 3).await?.as_ref() == Ok(&cut(&text, 3)));

    // What was acknowledged before a power cut is there after it, and every sector can be read.
    volume.write(node, &text.to_uppercase()).await?;
    site.power_cycle(0).await?;
    let node = site.node(0);
    // The volume's status is as it was before, until the agent looked.
    let there =
        format!("for i in $(seq 1200); do test -e {link} && exit 0; sleep .1; done; exit 1");
    node.sh(&there).await?.ok()?;
    let found = block(node, &volume, 0).await?;
    ensure!(
        found.as_ref() == Ok(&cut(&text.to_uppercase(), 0)),
        "{found:?}"
    );
    let read = format!("dd if={link} of=/dev/null bs=1M iflag=direct status=none");
    node.exec_with(&["bash", "-c", &read], &[], b"", PATIENCE)
        .await?
        .ok()?;

    volume.delete(&site.plane).await?;
    volume.wait_gone(&site.plane).await?;
    site.nothing_left(0).await?;

    made_by_cryptsetup(&mut site, &tenant, &volume).await?;
    work.passed()
}

/// What cryptsetup formats and writes opens here, and what is written here opens there. Of what nobody ever wrote nothing is touched.
async fn made_by_cryptsetup(site: &mut Site, tenant: &Tenant, ours: &Volume) -> Result<()> {
    const NUMBER: u16 = 2;
    let iqn = ours.manifest["spec"]["source"]["iscsi"]["iqn"].as_str();
    let iqn = iqn.context("an IQN")?.to_owned();
    let lun = site.array.create_lun(&iqn, NUMBER, 64 << 20)?;
    let bytes: [u8; 32] = std::array::from_fn(|i| (i as u8).wrapping_mul(29) ^ 0x5a);
    let portal = site.array.portal();
    // On the node with its kernel, through a session that its own tools make and end.
    let with_disk = |work: &str| {
        let device = format!("/dev/disk/by-path/ip-{portal}-iscsi-{iqn}-lun-{NUMBER}");
        let key = hex::encode(bytes);
        format!(
            "set -e; iscsiadm -m node -T {iqn} -p {portal} -o new >&2
             iscsiadm -m node -T {iqn} -p {portal} --login >&2
             for h in /sys/class/iscsi_host/host*; do echo '0 0 {NUMBER}' >/sys/class/scsi_host/${{h##*/}}/scan; done
             until [ -e {device} ]; do sleep 0.2; done
             disk={device}
             key() {{ printf %s {key}; }}
             open() {{ key | cryptsetup open --key-file=- $disk theirs >&2; }}
             {work}
             cryptsetup close theirs >&2
             iscsiadm -m node -T {iqn} -p {portal} --logout >&2"
        )
    };
    let theirs = "written by cryptsetup";
    let make = format!(
        "key | cryptsetup luksFormat -q --type luks2 --cipher aes-xts-plain64 --integrity hmac-sha256 --integrity-no-wipe \
           --sector-size 512 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 --key-file=- $disk >&2
         open
         printf '%-4096s' '{theirs}' | dd of=/dev/mapper/theirs bs=4096 oflag=direct conv=fsync status=none"
    );
    let made = site.node(0).sh(&with_disk(&make)).await?.ok();
    made.context("cryptsetup")?;

    let id = site.keystone.store(tenant, "theirs", &bytes).await?;
    let namespace = &ours.namespace;
    let volume = Volume::iscsi(namespace, "theirs", &portal, &iqn, NUMBER, namespace)
        .with("format", json!("Never"))
        .with("key", json!({"secretRef": id}))
        .with(
            "encryption",
            json!({"provider": "luks2", "integrity": "hmac-sha256"}),
        )
        .with_iscsi("wwid", json!(lun.wwid()));
    let attached = volume.clone().on("node-1");
    attached.apply(&site.plane).await?;
    attached.wait_ready(&site.plane).await?;
    let node = site.node(0);
    ensure!(block(node, &attached, 0).await? == Ok(format!("{theirs:<4096}")));
    // Nobody ever wrote it, and it is not ours to write.
    let unwritten = block(node, &attached, 1).await?;
    ensure!(
        unwritten.is_err(),
        "an import was written to: {unwritten:?}"
    );
    let text = format!("{:<4096}", "then by cryptvol");
    attached.write(node, &text).await?;
    volume.clone().detached().apply(&site.plane).await?;
    volume.wait_detached(&site.plane).await?;
    let read = "open\ndd if=/dev/mapper/theirs bs=4096 count=1 iflag=direct status=none";
    let found = node.sh(&with_disk(read)).await?.ok();
    let found = found.context("cryptsetup")?;
    ensure!(found == text, "cryptsetup read {found:?}");
    Ok(())
}

/// A disk that takes days to write from end to end: the file behind it is as long as the laboratory's file system lets it be, and takes only
/// what is written.
const LARGE: u64 = 8 << 40;

struct Large {
    site: Site,
    lun: Lun,
    volume: Volume,
    /// A changed bit in what was written first.
    mark: u64,
    marked: Vec<u8>,
}

impl Large {
    /// Bytes that the disk really takes on the array.
    fn taken(&self) -> Result<u64> {
        Ok(std::fs::metadata(&self.lun.file)?.blocks() * 512)
    }

    /// Waits until so many bytes more are written.
    async fn grows_by(&self, more: u64) -> Result<()> {
        let begun = self.taken()?;
        wait_for(
            &format!("{more} bytes more than {begun}"),
            PATIENCE,
            || async { Ok((self.taken()? >= begun + more).then_some(())) },
            || self.site.node(0).log(AGENT_LOG),
        )
        .await
    }

    /// The initialisation goes on, and what was written long before is not written again: that would mend the changed bit.
    async fn carries_on(&self) -> Result<()> {
        self.grows_by(128 << 20).await?;
        let there = self.lun.read_at(self.mark, self.marked.len())?;
        ensure!(there == self.marked, "it was started anew");
        let said = self
            .volume
            .wait_reason(&self.site.plane, Reason::Initialising);
        let said = said.await?;
        ensure!(
            said.contains("% of ") && said.contains(" MiB are written"),
            "{said}"
        );
        Ok(())
    }

    /// Memory of the agent and its workers that is no file's, in KiB.
    async fn memory_kib(&self) -> Result<u64> {
        let sum = "for p in $(pgrep -x cryptvol-node-a); do cat /proc/$p/status; done | awk '/^RssAnon/ {s += $2} END {print s}'";
        Ok(self.site.node(0).sh(sum).await?.ok()?.trim().parse()?)
    }
}

#[tokio::test]
async fn a_large_disk_is_initialised_through_crashes_and_holds_up_nobody() -> Result<()> {
    let work = WorkDir::new("integrity-large")?;
    let mut site = Site::start(&work, SiteSpec::new(1)).await?;
    let iqn = cryptvol_e2e::array::iqn("large");
    let (_, _, small) = site.volume("large").await?;
    let lun = site.array.create_lun(&iqn, 2, LARGE)?;
    let portal = site.array.portal();
    let volume = Volume::iscsi("large", "large", &portal, &iqn, 2, "large")
        .on("node-1")
        .with("deletionPolicy", json!("Erase"))
        .with(
            "encryption",
            json!({"provider": "luks2", "integrity": "hmac-sha256", "sectorSize": 4096}),
        );
    let mut large = Large {
        site,
        lun,
        volume,
        mark: 0,
        marked: vec![],
    };
    large.volume.apply(&large.site.plane).await?;
    large
        .volume
        .wait_reason(&large.site.plane, Reason::Initialising)
        .await?;

    // A neighbour of the same target, meanwhile.
    small.apply(&large.site.plane).await?;
    small.wait_ready(&large.site.plane).await?;
    let text = "held up by nobody";
    small.write(large.site.node(0), text).await?;
    large
        .volume
        .wait_reason(&large.site.plane, Reason::Initialising)
        .await?;

    // More than what is written again after a crash, so that what comes first is not.
    large.grows_by(512 << 20).await?;
    let superblock = large.lun.read_at(DATA, 512)?;
    ensure!(superblock.starts_with(b"integrt\0"), "no superblock");
    let sections = u64::from(u32::from_le_bytes(superblock[12..16].try_into()?));
    // For sectors of 4096 bytes: sections of 264 sectors, runs of tags of 256; and then some.
    large.mark = DATA + (8 + sections * 264 + 256) * 512 + 5 * BLOCK;
    large.marked = large.lun.read_at(large.mark, 512)?;
    ensure!(large.marked.iter().any(|b| *b != 0), "nothing is written");
    large.marked[17] ^= 4;
    large.lun.write_at(large.mark, &large.marked)?;
    let memory = large.memory_kib().await?;
    ensure!(memory < 64 << 10, "{memory} KiB");

    // The agent dies; the node does; the volume is detached and attached. Each time it goes on where it was.
    large.site.kill_agent(0).await?;
    large.site.start_agent(0).await?;
    large.carries_on().await?;
    large.site.power_cycle(0).await?;
    large.carries_on().await?;
    ensure!(small.read(large.site.node(0), text.len()).await? == text);
    let away = large.volume.clone().detached();
    away.apply(&large.site.plane).await?;
    away.wait_detached(&large.site.plane).await?;
    let node = large.site.node(0);
    ensure!(layers(node).await?.len() == 1, "{:?}", layers(node).await?);
    large.volume.apply(&large.site.plane).await?;
    large.carries_on().await?;
    let now = large.memory_kib().await?;
    ensure!(now < 64 << 10, "{now} KiB, {memory} KiB before");

    // Nobody has to wait for its end to be rid of it.
    large.volume.delete(&large.site.plane).await?;
    large.volume.wait_gone(&large.site.plane).await?;
    small.delete(&large.site.plane).await?;
    small.wait_gone(&large.site.plane).await?;
    large.site.nothing_left(0).await?;
    work.passed()
}
