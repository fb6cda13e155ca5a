//! Arrays that tell the paths to a disk apart (ALUA) on a real kernel: dm-crypt above dm-multipath with the kernel's handler above two sessions, each
//! to a controller of its own. The array is the kernel's target (LIO) on another node. A guest writes all the time.

use anyhow::{Context, Result, ensure};
use cryptvol_crds::conditions::Reason;
use cryptvol_e2e::array;
use cryptvol_e2e::lio::{Lio, State};
use cryptvol_e2e::node::NodeSpec;
use cryptvol_e2e::paths_ground::PathsGround;
use cryptvol_e2e::process::wait_for;
use cryptvol_e2e::site::{AGENT_LOG, Site, SiteSpec};
use cryptvol_e2e::volumes::{PATIENCE, Volume};
use cryptvol_e2e::workdir::WorkDir;
use cryptvol_e2e::writing_guest;
use serde_json::json;

struct Ground {
    site: Site,
    array: Lio,
    volume: Volume,
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
    /// Which controller each disk is of, by the portal of its session.
    async fn controller(&self, dev: &str) -> Result<usize> {
        let address = self
            .sh(&format!(
                "session=$(readlink -f /sys/dev/block/{dev}/device | grep -o 'session[0-9]*'); \
                 cat /sys/class/iscsi_connection/connection${{session#session}}:0/persistent_address"
            ))
            .await?;
        let mut portals = self.array.portals().into_iter();
        portals
            .position(|p| p.starts_with(address.trim()))
            .with_context(|| format!("{dev} is of {address}"))
    }

    /// Controllers by group of the map, and the group that I/O goes to: from table and status as the kernel prints them.
    async fn groups(&self) -> Result<(Vec<Vec<usize>>, usize)> {
        let table = self.sh("dmsetup table --target multipath").await?;
        let mut groups = Vec::new();
        for group in table.split(" service-time ").skip(1) {
            let mut controllers = Vec::new();
            for word in group.split(' ').filter(|w| w.contains(':')) {
                controllers.push(self.controller(word).await?);
            }
            controllers.sort_unstable();
            groups.push(controllers);
        }
        let status = self.sh("dmsetup status --target multipath").await?;
        // NAME: 0 LENGTH multipath 2 QUEUES INITS 0 GROUPS CURRENT
        let current = status.split_whitespace().nth(9).context("a status")?;
        Ok((groups, current.parse()?))
    }

    async fn wait_groups(&self, wanted: (&[&[usize]], usize)) -> Result<()> {
        wait_for(
            &format!("groups {wanted:?}"),
            PATIENCE,
            || async {
                let (groups, current) = self.groups().await?;
                Ok((groups == wanted.0 && current == wanted.1).then_some(()))
            },
            || self.site.node(0).log(AGENT_LOG),
        )
        .await
    }

    /// Waits until the status says this of the two paths.
    async fn wait_access(&self, access: [&str; 2]) -> Result<()> {
        let what = format!("the states {access:?}");
        let is = |v: &cryptvol_crds::EncryptedVolume| {
            let attachments = v.status.iter().flat_map(|s| &s.attachments);
            let paths = attachments.flat_map(|a| &a.paths);
            let said: Vec<_> = paths.map(|p| p.access.as_deref().unwrap_or("")).collect();
            said == access
        };
        self.volume
            .wait(&self.site.plane, &what, is)
            .await
            .map(drop)
    }

    /// The kernel asks the array: LIO tells of a change only who sends commands through the ports that it is about.
    async fn ask_the_array(&self) -> Result<()> {
        self.sh("for disk in /sys/class/scsi_disk/*; do echo 1 >$disk/device/rescan; done")
            .await
            .map(drop)
    }
}

async fn ground(work: &WorkDir) -> Result<Ground> {
    let mut spec = SiteSpec::new(0);
    spec.nodes = vec![NodeSpec::bare("node-1").with_alua()?];
    let site = Site::start(work, spec).await?;
    let iqn = array::iqn("alua");
    let array = Lio::start(&work.dir("lio")?, &iqn, 64 << 20).await?;
    site.tenant("alua").await?;
    let portals = array.portals();
    let volume = Volume::iscsi("alua", "vol", &portals[0], &iqn, 1, "alua")
        .with_iscsi("portals", json!(portals))
        .with_iscsi("multipath", json!(true))
        .on("node-1");
    Ok(Ground {
        site,
        array,
        volume,
    })
}

#[tokio::test]
async fn the_controller_that_the_array_prefers_is_used_and_its_failovers_lose_no_io() -> Result<()>
{
    use State::*;
    let work = WorkDir::new("alua")?;
    let mut ground = ground(&work).await?;

    // The second controller owns the disk. The handler's module is loaded by the table, and the states are known from then on.
    ground.array.say([NonOptimized, Optimized]).await?;
    ground.attach().await?;
    let table = ground.sh("dmsetup table --target multipath").await?;
    ensure!(
        table.contains("multipath 1 queue_if_no_path 1 alua "),
        "{table}"
    );
    ground.wait_groups((&[&[1], &[0]], 1)).await?;
    let states = ["active/non-optimized", "active/optimized"];
    ground.wait_access(states).await?;
    ground.guest().start("guest").await?;

    // The controllers change places: I/O goes on where it was until the agent has it go the shorter way.
    ground.array.say([Optimized, NonOptimized]).await?;
    ground.wait_groups((&[&[0], &[1]], 1)).await?;
    ground.wait_access([states[1], states[0]]).await?;
    ground.guest().goes_on().await?;

    // The one that is used goes away: the kernel takes the other. It is back: the agent takes it again.
    ground.array.switch(0, false).await?;
    ground.wait_paths([false, true]).await?;
    ground.wait_groups((&[&[0], &[1]], 2)).await?;
    ground.wait_health(Reason::PathsDegraded).await?;
    ground.guest().goes_on().await?;
    ground.array.switch(0, true).await?;
    ground.wait_paths([true, true]).await?;
    ground.wait_groups((&[&[0], &[1]], 1)).await?;
    ground.wait_health(Reason::AsDesired).await?;
    ground.guest().goes_on().await?;

    // A controller that only stands by is no defect. It takes over while no agent runs: the kernel alone finds it.
    ground.array.say([Optimized, Standby]).await?;
    ground.ask_the_array().await?;
    ground.wait_access(["active/optimized", "standby"]).await?;
    ground.wait_paths([true, false]).await?;
    ground.wait_health(Reason::AsDesired).await?;
    ground.site.kill_agent(0).await?;
    ground.array.say([Standby, Optimized]).await?;
    ground.guest().goes_on().await?;
    ensure!(ground.groups().await? == (vec![vec![0], vec![1]], 2));
    ground.site.start_agent(0).await?;
    ground.wait_groups((&[&[1], &[0]], 1)).await?;
    ground.wait_paths([false, true]).await?;
    ground.guest().goes_on().await?;

    // For a while none takes I/O: it waits, nothing fails, and goes on through the one that takes over.
    ground.array.say([Standby, Unavailable]).await?;
    ground
        .volume
        .wait_reason(&ground.site.plane, Reason::PortalUnreachable)
        .await?;
    ground.wait_health(Reason::PathsLost).await?;
    ground.array.say([Optimized, Standby]).await?;
    ground.volume.wait_ready(&ground.site.plane).await?;
    ground.wait_groups((&[&[0], &[1]], 1)).await?;
    ground.guest().goes_on().await?;

    // A power cut; what the guest was told is stored is stored, and the array has none of its words.
    let written = ground.guest().written().await?;
    ground.site.power_cycle(0).await?;
    ground.volume.wait_link(ground.site.node(0)).await?;
    ground.volume.wait_ready(&ground.site.plane).await?;
    ground.wait_paths([true, false]).await?;
    let found = ground.guest().read().await?;
    ensure!(found >= written, "{found} is older than {written}");
    ensure!(!ground.array.contains(writing_guest::WORDS).await?);

    ground.detach().await?;

    // Nothing takes I/O: the volume is not opened, and the reason says what the array says.
    ground.array.say([Standby, Standby]).await?;
    ground.volume.apply(&ground.site.plane).await?;
    let said = ground
        .volume
        .wait_reason(&ground.site.plane, Reason::PathsHeldBack)
        .await?;
    ensure!(said.contains("standby"), "{said}");
    ground.array.say([Optimized, NonOptimized]).await?;
    ground.volume.wait_ready(&ground.site.plane).await?;
    ground.wait_groups((&[&[0], &[1]], 1)).await
}

/// An array that moves its disks by itself and would be told to as well (implicit and explicit ALUA) is not told to: not by the first table, which is
/// made before the states are known, and not when its other controller is all that is left.
#[tokio::test]
async fn an_array_that_could_be_told_to_move_its_disk_is_not() -> Result<()> {
    use State::*;
    let work = WorkDir::new("alua-explicit")?;
    let ground = ground(&work).await?;
    ground.array.let_initiators_choose().await?;
    ground.array.say([Optimized, NonOptimized]).await?;
    ground.volume.apply(&ground.site.plane).await?;
    ground.volume.wait_ready(&ground.site.plane).await?;
    ground.wait_groups((&[&[0], &[1]], 1)).await?;
    ground.guest().start("guest").await?;
    ground.array.switch(0, false).await?;
    ground.wait_paths([false, true]).await?;
    ground.guest().goes_on().await?;
    let says = ground.array.says().await?;
    ensure!(says == [Optimized as u8, NonOptimized as u8], "{says:?}");
    ground.array.switch(0, true).await?;
    ground.wait_paths([true, true]).await?;
    ground.wait_groups((&[&[0], &[1]], 1)).await?;
    ground.guest().goes_on().await
}

/// The kernels of the other tests have no handlers at all. With them a disk that has none answers otherwise in sysfs.
#[tokio::test]
async fn an_array_that_makes_no_difference_is_used_as_ever_on_a_kernel_with_handlers() -> Result<()>
{
    let work = WorkDir::new("alua-without")?;
    let mut spec = SiteSpec::new(0);
    spec.nodes = vec![NodeSpec::bare("node-1").with_alua()?];
    let mut site = Site::start(&work, spec).await?;
    let (_, volume, _) = site.multipath_volume("alike").await?;
    let state = "for disk in /sys/class/scsi_disk/*; do cat $disk/device/dh_state; done";
    volume.apply(&site.plane).await?;
    volume.wait_ready(&site.plane).await?;
    volume
        .wait_paths(&site.plane, "node-1", &[true, true])
        .await?;
    let shown = site.node(0).sh(state).await?.ok()?;
    ensure!(shown == "detached\ndetached\n", "{shown}");
    let table = site.node(0).sh("dmsetup table --target multipath").await?;
    let table = table.ok()?;
    let one_group = "multipath 1 queue_if_no_path 0 1 1 service-time 0 2 ";
    ensure!(table.contains(one_group), "{table}");
    Ok(())
}
