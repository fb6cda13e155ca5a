//! Authenticated sectors above several paths on a real kernel: dm-crypt above dm-integrity above dm-multipath. A guest writes all the time,
//! and what it was told is stored is there after lost paths, a detach, a power cut and a disk that was made longer.

use anyhow::{Context, Result, ensure};
use cryptvol_crds::conditions::{self, ENCRYPTION_PROVEN, Reason};
use cryptvol_crds::{EncryptedVolume, names};
use cryptvol_e2e::array::Lun;
use cryptvol_e2e::node::Spawned;
use cryptvol_e2e::paths_ground::PathsGround;
use cryptvol_e2e::process::wait_for;
use cryptvol_e2e::site::{AGENT_LOG, Site, SiteSpec};
use cryptvol_e2e::volumes::{PATIENCE, Volume};
use cryptvol_e2e::workdir::WorkDir;
use serde_json::json;

struct Ground {
    site: Site,
    lun: Lun,
    volume: Volume,
    portals: [String; 2],
}

impl PathsGround for Ground {
    fn site(&self) -> &Site {
        &self.site
    }

    fn volume(&self) -> &Volume {
        &self.volume
    }
}

impl Ground {
    fn cut(&self, at: usize, cut: bool) -> Result<()> {
        self.site.array.cut_portal(&self.portals[at], cut)
    }

    /// The guest ends as one does whose machine is switched off; gives back the last number that it was told is stored.
    async fn end(&self, guest: Spawned) -> Result<u64> {
        let written = self.guest().written().await?;
        guest.signal("SIGKILL").await?;
        guest.wait(PATIENCE).await?;
        Ok(written)
    }

    /// What the guest was told is stored is there, and every sector of the volume can be read.
    async fn is_all_there(&self, written: u64) -> Result<()> {
        let found = self.guest().read().await?;
        ensure!(found >= written, "{found} is older than {written}");
        let link = self.volume.link();
        let all = format!("dd if={link} of=/dev/null bs=1M iflag=direct status=none");
        self.sh(&all).await.map(drop)
    }

    async fn bytes(&self) -> Result<u64> {
        let size = format!("blockdev --getsize64 {}", self.volume.link());
        Ok(self.sh(&size).await?.trim().parse()?)
    }
}

#[tokio::test]
async fn authenticated_sectors_above_paths_that_come_and_go() -> Result<()> {
    let work = WorkDir::new("tagged-paths")?;
    let mut site = Site::start(&work, SiteSpec::new(1)).await?;
    site.kill_agent(0).await?;
    site.launch_agent(0, &["--proof-interval", "2"]).await?;
    let (lun, volume, portals) = site.multipath_volume("tagged").await?;
    let volume = volume.with("deletionPolicy", json!("Erase")).with(
        "encryption",
        json!({"provider": "luks2", "integrity": "hmac-sha256"}),
    );
    let mut ground = Ground {
        site,
        lun,
        volume,
        portals,
    };
    ground.attach().await?;
    layers(&ground).await?;
    let guest = ground.guest().start("guest").await?;
    ground
        .wait_condition(ENCRYPTION_PROVEN, Reason::AsDesired)
        .await?;

    // Either path alone is enough; without any the guest waits, and no layer takes harm.
    for lost in [&[0][..], &[1], &[0, 1]] {
        for at in lost {
            ground.cut(*at, true)?;
        }
        ground
            .wait_paths([0, 1].map(|at| !lost.contains(&at)))
            .await?;
        if lost.len() == 1 {
            ground.guest().goes_on().await?;
        } else {
            ground.wait_health(Reason::PathsLost).await?;
        }
        for at in lost {
            ground.cut(*at, false)?;
        }
        ground.wait_paths([true, true]).await?;
        ground.guest().goes_on().await?;
    }
    ground
        .wait_condition(ENCRYPTION_PROVEN, Reason::AsDesired)
        .await?;

    stays_as_long_as_it_was(&mut ground).await?;

    let written = ground.end(guest).await?;
    ground.detach().await?;
    ground.attach().await?;
    ground.is_all_there(written).await?;
    ensure!(
        !ground
            .lun
            .contains(cryptvol_e2e::writing_guest::WORDS.as_bytes())?,
        "plaintext on the array"
    );

    // With one path away, and under a guest that writes.
    ground.guest().start("guest-2").await?;
    ground.cut(1, true)?;
    ground.wait_paths([true, false]).await?;
    ground.guest().goes_on().await?;
    let written = ground.guest().written().await?;
    ground.site.power_cycle(0).await?;
    ground.site.give_ipv6(0).await?;
    ground.volume.wait_link(ground.site.node(0)).await?;
    ground.volume.wait_ready(&ground.site.plane).await?;
    ground.cut(1, false)?;
    ground.wait_paths([true, true]).await?;
    layers(&ground).await?;
    ground.is_all_there(written).await?;

    stopped_layer(&mut ground).await?;
    ground.volume.delete(&ground.site.plane).await?;
    ground.volume.wait_gone(&ground.site.plane).await?;
    ground.nothing_left().await?;
    work.passed()
}

/// Crypt lies over the layer of tags, and that over the map of paths.
async fn layers(ground: &Ground) -> Result<()> {
    let tables = "for t in crypt integrity multipath; do dmsetup table --target $t; done";
    let tables = ground.sh(tables).await?;
    let lines: Vec<_> = tables.lines().collect();
    ensure!(lines.len() == 3, "{tables}");
    // `major:minor` of the device with this prefix and ending of its name.
    let number = |prefix: &str, end: &str| {
        let script = format!(
            "dmsetup info -c --noheadings -o name,major,minor --separator ' ' | awk '$1 ~ /^{prefix}.*{end}$/ {{print $2\":\"$3}}'"
        );
        async move { ground.sh(&script).await }
    };
    let (tags, map) = (
        number("cryptvol", "-tags").await?,
        number("cryptvol-paths-", "").await?,
    );
    let lies_over = |line: &str, below: &str| line.split(' ').any(|w| w == below.trim());
    ensure!(
        lies_over(lines[0], &tags) && lies_over(lines[1], &map),
        "{tables} with tags {tags} and map {map}"
    );
    Ok(())
}

/// A disk that grew: the volume stays as long as it was, under its guest and at the next attachment; its user is told what to do.
async fn stays_as_long_as_it_was(ground: &mut Ground) -> Result<()> {
    let before = ground.bytes().await?;
    let size = ground.lun.size()? * 2;
    let (target, number) = (ground.lun.target.clone(), ground.lun.number);
    ground.site.array.resize_lun(&target, number, size)?;
    let plane = &ground.site.plane;
    ground
        .volume
        .annotate(plane, names::RESCAN_ANNOTATION, "grown")
        .await?;
    let told = |v: &EncryptedVolume| {
        let status = v.status.as_ref();
        let error = status.and_then(|s| s.last_error.as_ref());
        error
            .filter(|e| e.reason == Reason::GrowUnsupported.as_str())
            .map(|e| e.message.clone())
    };
    let what = "GrowUnsupported";
    let found = ground.volume.wait(plane, what, |v| told(v).is_some());
    let found = found.await?;
    let said = told(&found).context("a message")?;
    ensure!(
        said.contains(&format!("has {size} bytes"))
            && said.ends_with(Reason::GrowUnsupported.next_step()),
        "{said}"
    );
    let status = found.status.context("a status")?;
    ensure!(
        status.usable_bytes == i64::try_from(before).ok()
            && conditions::is_true(&status.conditions, conditions::READY),
        "{status:?}"
    );
    ground.guest().goes_on().await?;
    ensure!(ground.bytes().await? == before);
    Ok(())
}

/// I/O waited for a path too long and failed: the kernel stops the layer of tags for good. It is made anew as soon as nobody has the volume
/// open, with all that was acknowledged.
async fn stopped_layer(ground: &mut Ground) -> Result<()> {
    ground.site.kill_agent(0).await?;
    let arguments = ["--no-path-timeout", "3", "--proof-interval", "2"];
    ground.site.launch_agent(0, &arguments).await?;
    ground.attach().await?;
    let guest = ground.guest().start("guest-3").await?;
    for at in [0, 1] {
        ground.cut(at, true)?;
    }
    ground.wait_health(Reason::PathsFailing).await?;
    guest.wait(PATIENCE).await?;
    ensure!(ground.guest().has_failed().await?);
    let written = ground.guest().written().await?;
    for at in [0, 1] {
        ground.cut(at, false)?;
    }
    ground.wait_paths([true, true]).await?;
    // Nobody has it open any more, so it is made anew by itself.
    let read = format!(
        "dd if={} of=/dev/null bs=4096 count=1 iflag=direct status=none",
        ground.volume.link()
    );
    wait_for(
        "the volume to be readable",
        PATIENCE,
        || async { Ok((ground.site.node(0).sh(&read).await?.code == 0).then_some(())) },
        || ground.site.node(0).log(AGENT_LOG),
    )
    .await?;
    ground.volume.wait_ready(&ground.site.plane).await?;
    ground.is_all_there(written).await?;

    // As long as somebody has it open it is left alone, and says what to do.
    let link = ground.volume.link();
    let hold = format!("exec 3<{link}; sleep infinity");
    let argv = ["bash", "-c", hold.as_str()];
    let holder = ground.site.node(0).spawn("holder", &argv, &[]).await?;
    let guest = ground.guest().start("guest-4").await?;
    for at in [0, 1] {
        ground.cut(at, true)?;
    }
    guest.wait(PATIENCE).await?;
    let written = ground.guest().written().await?;
    for at in [0, 1] {
        ground.cut(at, false)?;
    }
    let said = ground
        .volume
        .wait_reason(&ground.site.plane, Reason::IntegrityStopped)
        .await?;
    ensure!(
        said.contains("the disk itself can be read there")
            && said.ends_with(Reason::IntegrityStopped.next_step()),
        "{said}"
    );
    holder.signal("SIGKILL").await?;
    holder.wait(PATIENCE).await?;
    ground.volume.wait_ready(&ground.site.plane).await?;
    ground.is_all_there(written).await
}
