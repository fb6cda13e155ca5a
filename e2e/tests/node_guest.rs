//! A virtual machine whose disks are volumes: it reads, writes and boots through their links, and what it discards reaches the disk where
//! that was asked for, through several paths too. The same guest with the raw disk plugged in finds nothing but ciphertext.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use base64::Engine;
use cryptvol_e2e::array::{self, Lun};
use cryptvol_e2e::guest::Guest;
use cryptvol_e2e::site::{Site, SiteSpec};
use cryptvol_e2e::volumes::Volume;
use cryptvol_e2e::workdir::WorkDir;
use serde_json::json;

const NAME: &str = "guest";
const MIB: u64 = 1 << 20;
/// Of a LUKS2 header with the areas around it; a volume's first byte is here on its disk.
const HEADER: u64 = 16 * MIB;
/// A guest takes half a minute on a busy machine.
const LIMIT: Duration = Duration::from_secs(300);
/// What the boot code on the volume says.
const BOOTED: &str = "booted from the volume";
/// Fills the volume's second MiB.
const LINE: &str = "plaintext of the guest";
/// What each volume is asked to forget, in MiB: where, and how much.
const DISCARDED: (u64, u64) = (16, 8);

/// The volumes of one node's guests.
struct Ground {
    site: Site,
    /// Not asked to pass discards on.
    kept: (Volume, Lun),
    /// Asked to, through two paths.
    thin: (Volume, Lun),
    /// Scratch space in a file of the node, which always does.
    scratch: Volume,
    scratch_file: String,
}

impl Ground {
    async fn new(work: &WorkDir) -> Result<Self> {
        let mut spec = SiteSpec::new(1);
        spec.nodes[0].memory_mib = 1024;
        let mut site = Site::start(work, spec).await?;
        site.tenant(NAME).await?;
        let (iqn, portal) = (array::iqn(NAME), site.array.portal());
        site.array.create_target(&iqn)?;
        let volume = |name, lun| Volume::iscsi(NAME, name, &portal, &iqn, lun, NAME).on("node-1");
        let portals = [portal.clone(), site.array.add_ipv6()?];
        site.give_ipv6(0).await?;
        let thin = volume("thin", 2)
            .with("activation", json!({"allowDiscards": true}))
            .with_iscsi("portals", json!(portals))
            .with_iscsi("multipath", json!(true));
        let mut scratch =
            volume("scratch", 3).with("source", json!({"ephemeral": {"size": "32Mi"}}));
        let spec = scratch.manifest["spec"].as_object_mut();
        spec.context("a spec")?.remove("credentials");
        let mut ground = Self {
            kept: (
                volume("kept", 1),
                site.array.create_thin_lun(&iqn, 1, 64 * MIB)?,
            ),
            thin: (thin, site.array.create_thin_lun(&iqn, 2, 64 * MIB)?),
            scratch,
            scratch_file: String::new(),
            site,
        };
        // A file system as nodes have one, with holes in files and direct I/O; the node's root is an overlay in memory.
        ground
            .sh("set -e; truncate -s 96M /run/volumes.img; mkfs.ext4 -q /run/volumes.img
                 mkdir -p /var/lib/cryptvol/volumes; mount -o loop /run/volumes.img /var/lib/cryptvol/volumes")
            .await?;
        let plane = &ground.site.plane;
        let all = [&ground.kept.0, &ground.thin.0, &ground.scratch];
        for volume in all {
            volume.apply(plane).await?;
        }
        for volume in all {
            let uid = volume.wait_ready(plane).await?.metadata.uid;
            let uid = uid.context("a uid")?;
            ground.scratch_file = format!("/var/lib/cryptvol/volumes/ephemeral@{uid}");
        }
        let maps = ground.sh("dmsetup table --target multipath").await?;
        ensure!(
            maps.lines().count() == 1 && maps.contains(" service-time 0 2 "),
            "{maps}"
        );
        // What is to be forgotten is there.
        let (at, length) = DISCARDED;
        for volume in all {
            ground
                .sh(&format!(
                    "dd if=/dev/zero of={} bs=1M seek={at} count={length} oflag=direct status=none",
                    volume.link()
                ))
                .await?;
        }
        Ok(ground)
    }

    async fn sh(&self, script: &str) -> Result<String> {
        self.site.node(0).sh(script).await?.ok()
    }

    /// Where the node has the raw disk below the first volume.
    fn raw(&self) -> String {
        let lun = &self.kept.1;
        let portal = self.site.array.portal();
        format!(
            "/dev/disk/by-path/ip-{portal}-iscsi-{}-lun-{}",
            lun.target, lun.number
        )
    }

    /// Bytes that the file of the scratch space takes on the node.
    async fn scratch_allocated(&self) -> Result<u64> {
        let blocks = self
            .sh(&format!("stat -c %b {}", self.scratch_file))
            .await?;
        Ok(blocks.trim().parse::<u64>()? * 512)
    }

    async fn allocated(&self) -> Result<[u64; 3]> {
        Ok([
            self.kept.1.allocated()?,
            self.thin.1.allocated()?,
            self.scratch_allocated().await?,
        ])
    }

    /// A guest with a kernel and shell, as an installer is one: puts boot code on its first disk, fills a part of it, reads that, looks at
    /// the raw disk, and discards a part of each volume.
    async fn install(&self) -> Result<String> {
        let disk = base64::engine::general_purpose::STANDARD.encode(Guest::boot_disk(BOOTED)?);
        let (at, length) = DISCARDED;
        let script = format!(
            "set -e
             echo {disk} | base64 -d | dd of=/dev/vda bs=4096 conv=notrunc 2>/dev/null
             yes '{LINE}' | head -c {MIB} | dd of=/dev/vda bs=1M seek=1 conv=notrunc 2>/dev/null
             sync; echo 3 >/proc/sys/vm/drop_caches
             part() {{ dd if=$1 bs=1M skip=$2 count=1 2>/dev/null; }}
             cat /sys/block/vda/size
             part /dev/vda 1 | grep -c '{LINE}'
             [ $(part /dev/vda 1 | gzip | wc -c) -lt 65536 ]
             head -c 4 /dev/vdd; echo
             ! grep -q -e '{LINE}' -e '{BOOTED}' /dev/vdd
             [ $(part /dev/vdd $(( {HEADER} / {MIB} + 1 )) | gzip | wc -c) -gt {MIB} ]
             for disk in vda vdb vdc; do blkdiscard -o {at}M -l {length}M /dev/$disk; done
             cut -d' ' -f1 /proc/uptime"
        );
        let links = [
            &self.kept.0.link(),
            &self.thin.0.link(),
            &self.scratch.link(),
        ];
        let raw = self.raw();
        let disks = [&links[0][..], links[1], links[2], &raw];
        Guest::run(self.site.node(0), &Guest::locate()?, &disks, &script, LIMIT).await
    }

    /// What was discarded is a hole in the disks of those that pass it on, and only there; the other disk is as full as it was.
    async fn discards_reached(&self, before: [u64; 3]) -> Result<()> {
        let [kept, thin, scratch] = self.allocated().await?;
        let (at, length) = (DISCARDED.0 * MIB, DISCARDED.1 * MIB);
        ensure!(kept >= before[0], "{kept} of {}", before[0]);
        // A file system's own blocks for the map of holes are counted too.
        for (name, after, before) in [("thin", thin, before[1]), ("scratch", scratch, before[2])] {
            ensure!(
                after + length <= before + MIB / 16,
                "{name}: {after} bytes after discarding {length} of {before}"
            );
        }
        let is_hole = |lun: &Lun, at: u64, length: u64| -> Result<bool> {
            let bytes = lun.read_at(HEADER + at, usize::try_from(length)?)?;
            Ok(bytes.iter().all(|b| *b == 0))
        };
        ensure!(is_hole(&self.thin.1, at, length)?, "not forgotten");
        for part in (at..at + length).step_by(4096) {
            ensure!(!is_hole(&self.kept.1, part, 4096)?, "forgotten at {part}");
        }
        Ok(())
    }
}

#[tokio::test]
async fn a_guest_boots_from_a_volume_and_its_raw_disk_is_ciphertext() -> Result<()> {
    let image = Guest::locate()?;
    let work = WorkDir::new("guest")?;
    let ground = Ground::new(&work).await?;
    let (volume, lun) = &ground.kept;
    let (link, node) = (volume.link(), ground.site.node(0));

    let before = ground.allocated().await?;
    let start = Instant::now();
    let printed = ground.install().await?;
    let lines: Vec<&str> = printed.lines().collect();
    eprintln!(
        "boot, script and halt of a guest with {}: {:.1} s; {} s on its own clock at the script's end",
        image.version,
        start.elapsed().as_secs_f32(),
        lines.last().unwrap_or(&"?")
    );
    let sectors = ((64 * MIB - HEADER) / 512).to_string();
    let whole_lines = (MIB / (LINE.len() as u64 + 1)).to_string();
    ensure!(
        lines[..] == [&sectors, &whole_lines, "LUKS", lines[3]],
        "{printed}"
    );
    let on_the_node = ground
        .sh(&format!(
            "dd if={link} bs=1M skip=1 count=1 iflag=direct status=none | grep -c '{LINE}'"
        ))
        .await?;
    ensure!(on_the_node.trim() == whole_lines, "{on_the_node}");
    ground.discards_reached(before).await?;

    // The firmware reads the volume, runs what it finds, and writes: all through the link.
    let booted = Guest::boot_from(node, &link, LIMIT).await?;
    ensure!(
        booted.went_well && booted.console.contains(BOOTED),
        "{booted:?}"
    );
    let copy = ground
        .sh(&format!(
            "dd if={link} bs=4096 skip={} count=1 iflag=direct status=none | head -c {}",
            Guest::copy_at() / 4096,
            BOOTED.len()
        ))
        .await?;
    ensure!(copy == BOOTED, "{copy:?}");
    // With the raw disk plugged in there is nothing to boot from.
    let booted = Guest::boot_from(node, &ground.raw(), LIMIT).await?;
    ensure!(
        booted.found_nothing() && !booted.console.contains(BOOTED),
        "{booted:?}"
    );
    for text in [BOOTED, LINE] {
        ensure!(!lun.contains(text.as_bytes())?, "{text} is on the array");
    }

    // Failures are errors that say why.
    let run = async |disk: &str, script: &str, limit| {
        let result = Guest::run(node, &image, &[disk], script, limit).await;
        result.map_or_else(|e| e.to_string(), |_| "no error".to_owned())
    };
    let error = run(&link, "echo no luck; exit 3", LIMIT).await;
    ensure!(
        error.contains("ended with 3") && error.contains("no luck"),
        "{error}"
    );
    let error = run("/dev/not-there", "true", LIMIT).await;
    ensure!(error.contains("/dev/not-there"), "{error}");
    let error = run(&link, "true", Duration::from_secs(3)).await;
    ensure!(error.contains("stopped after 3s"), "{error}");
    // Nothing of a stopped guest holds on to the disk.
    ensure!(
        node.sh("pgrep qemu-system").await?.code != 0,
        "QEMU is left"
    );
    for volume in [&ground.kept.0, &ground.thin.0, &ground.scratch] {
        volume.clone().detached().apply(&ground.site.plane).await?;
        volume.wait_detached(&ground.site.plane).await?;
    }
    ground.site.nothing_left(0).await?;
    work.passed()
}
