//! Volumes with several paths on a node where the real multipathd runs too, of Debian's `multipath-tools`, with its udev rules.

use std::cell::RefCell;

use anyhow::{Context, Result, ensure};
use cryptvol_crds::conditions::Reason;
use cryptvol_e2e::array::Lun;
use cryptvol_e2e::identity_service::product_binary;
use cryptvol_e2e::multipathd::{self, Multipathd};
use cryptvol_e2e::node::{Node, Spawned};
use cryptvol_e2e::paths_ground::PathsGround;
use cryptvol_e2e::process::wait_for;
use cryptvol_e2e::site::{Site, SiteSpec};
use cryptvol_e2e::volumes::{PATIENCE, Volume};
use cryptvol_e2e::workdir::WorkDir;

/// Every disk that is seen gets a map.
const GREEDY: &str = "defaults {\n find_multipaths greedy\n}\n";
/// Every disk that is seen twice gets a map.
const YES: &str = "defaults {\n find_multipaths yes\n}\n";
/// As docs/sources.md has it.
const EXAMPLE: &str = include_str!("../../examples/multipathd/cryptvol.conf");
const DROP_IN: &str = "/etc/multipath/conf.d/cryptvol.conf";
/// What the agent writes with `--exclude-from-multipathd`.
const WRITTEN: [&str; 2] = [
    "/etc/multipath/conf.d/cryptvol-agent.conf",
    "/run/udev/rules.d/59-cryptvol-multipathd.rules",
];
/// Where the agent tells udev of the disks that it brings.
const MARKS: &str = "/run/udev/cryptvol/disks";
/// Events of all that is there, as a package's upgrade makes them.
const BLOCK_EVENTS: &str =
    "udevadm trigger --subsystem-match=block --action=change && udevadm settle";
const TEXT: &str = "what the guest keeps";

/// As udev and multipathd call a disk.
fn wwid(lun: &Lun) -> String {
    format!("3{}", lun.wwid().trim_start_matches("naa."))
}

struct Ground {
    site: Site,
    multipathd: Multipathd,
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

    async fn nothing_left(&self) -> Result<()> {
        self.site.nothing_left(0).await?;
        self.wait_seen(0).await
    }
}

impl Ground {
    fn node(&self) -> &Node {
        self.site.node(0)
    }

    /// As udev and multipathd call the disk.
    fn wwid(&self) -> String {
        wwid(&self.lun)
    }

    /// The way that the agent's messages tell and docs/sources.md explains.
    async fn keep_off(&self) -> Result<()> {
        let wwid = self.wwid();
        let config = format!("{GREEDY}blacklist {{\n wwid {wwid}\n}}\n");
        multipathd::configure(self.node(), &config).await?;
        self.flush().await
    }

    /// Ends multipathd's map, where it did not do that by itself.
    async fn flush(&self) -> Result<()> {
        let wwid = self.wwid();
        let flush = format!("! dmsetup info {wwid} >/dev/null 2>&1 || multipath -f {wwid}");
        self.sh(&flush).await.map(drop)
    }

    async fn wait_maps(&self, maps: &[&str]) -> Result<()> {
        wait_for(
            &format!("multipathd to have the maps {maps:?}"),
            PATIENCE,
            || async { Ok((multipathd::maps(self.node()).await? == maps).then_some(())) },
            || self.node().log(multipathd::LOG),
        )
        .await
    }

    async fn wait_seen(&self, paths: usize) -> Result<()> {
        let last = RefCell::new(Vec::new());
        wait_for(
            &format!("multipathd to see {paths} paths"),
            PATIENCE,
            || async {
                let seen = multipathd::paths(self.node()).await?;
                let whole = seen.len() == paths;
                last.replace(seen);
                Ok(whole.then_some(()))
            },
            || {
                format!(
                    "it sees {:?}\n{}",
                    last.borrow(),
                    self.node().log(multipathd::LOG)
                )
            },
        )
        .await
    }

    /// The volume is ready, its link leads to its mapping and what was written is there; the map below it is as it was made.
    async fn is_whole(&self) -> Result<()> {
        self.volume.wait_ready(&self.site.plane).await?;
        let link = self.volume.link();
        let uuid = format!("cat /sys/class/block/$(basename $(readlink -f {link}))/dm/uuid");
        let uuid = self.sh(&uuid).await?;
        ensure!(uuid.starts_with("CRYPTVOL-"), "the link leads to {uuid}");
        let read = self.volume.read(self.node(), TEXT.len()).await?;
        ensure!(read == TEXT, "{read}");
        let ours = "dmsetup table --target multipath | grep ^cryptvol-paths-";
        let ours = self.sh(ours).await?;
        ensure!(
            ours.contains("multipath 1 queue_if_no_path 0 1 1 service-time 0 2 "),
            "{ours}"
        );
        Ok(())
    }
}

#[tokio::test]
async fn a_volume_of_several_paths_and_a_multipathd_that_runs_beside_it() -> Result<()> {
    let work = WorkDir::new("multipathd")?;
    let mut site = Site::start(&work, SiteSpec::new(1)).await?;
    let multipathd = Multipathd::locate()?;
    let (lun, volume, portals) = site.multipath_volume("paths").await?;
    multipathd.install(site.node(0), None).await?;
    let daemon = multipathd.start(site.node(0)).await?;
    let ground = Ground {
        site,
        multipathd,
        lun,
        volume,
        portals,
    };
    as_the_package_leaves_it(&ground, daemon).await?;
    it_was_there_first(&ground).await?;
    it_comes_later(&ground).await?;
    work.passed()
}

/// `find_multipaths strict`: a disk is taken where its WWID was noted before, so ours is not, whatever happens.
async fn as_the_package_leaves_it(ground: &Ground, daemon: Spawned) -> Result<()> {
    ground.attach().await?;
    ground.volume.write(ground.node(), TEXT).await?;
    ground.wait_seen(2).await?;
    let seen = multipathd::paths(ground.node()).await?;
    let wwid = ground.wwid();
    ensure!(seen.iter().all(|path| path.ends_with(&wwid)), "{seen:?}");
    for action in ["multipathd reconfigure", BLOCK_EVENTS, "multipath -r"] {
        ground.sh(action).await?;
        ground.wait_seen(2).await?;
        ensure!(multipathd::maps(ground.node()).await?.is_empty());
        ground.is_whole().await.with_context(|| action.to_owned())?;
    }
    daemon.signal("SIGKILL").await?;
    daemon.wait(PATIENCE).await?;
    ground.multipathd.start(ground.node()).await?;
    ground.wait_seen(2).await?;
    ensure!(multipathd::maps(ground.node()).await?.is_empty());
    ground.is_whole().await?;
    ground.detach().await
}

/// Somebody logged in before, and multipathd made a map of it: the volume waits, and nothing is touched. The message's next step helps.
async fn it_was_there_first(ground: &Ground) -> Result<()> {
    multipathd::configure(ground.node(), GREEDY).await?;
    let (iqn, portal) = (&ground.lun.target, &ground.portals[0]);
    ground
        .sh(&format!(
            "set -e; iscsiadm -m node -T {iqn} -p {portal} -o new; iscsiadm -m node -T {iqn} -p {portal} --login; iscsiadm -m session --rescan"
        ))
        .await?;
    let wwid = ground.wwid();
    ground.wait_maps(&[&wwid]).await?;
    let before = ground.lun.sha256()?;
    ground.volume.apply(&ground.site.plane).await?;
    let said = ground
        .volume
        .wait_reason(&ground.site.plane, Reason::DeviceBusy)
        .await?;
    for part in [
        format!("the map {wwid} of multipathd"),
        format!("blacklist {{ wwid {wwid} }}"),
        format!("multipath -f {wwid}"),
    ] {
        ensure!(said.contains(&part), "{said}");
    }
    let maps = ground.sh("dmsetup ls").await?;
    ensure!(
        maps.lines().count() == 1 && maps.starts_with(&wwid),
        "{maps}"
    );
    ensure!(
        ground.lun.sha256()? == before,
        "something was written to it"
    );
    ground.keep_off().await?;
    ground.volume.wait_ready(&ground.site.plane).await?;
    ground.wait_paths([true, true]).await?;
    ensure!(multipathd::maps(ground.node()).await?.is_empty());
    ground.is_whole().await
}

/// Its configuration was changed while the volume is in use, so it makes a map of its own over the same paths: the guest does not notice, not
/// even where paths fail and come back, and the disk is let go of once the other map is.
async fn it_comes_later(ground: &Ground) -> Result<()> {
    multipathd::configure(ground.node(), GREEDY).await?;
    let wwid = ground.wwid();
    ground.wait_maps(&[&wwid]).await?;
    ground.is_whole().await?;
    let link = ground.volume.link();
    // Commands find out that a path is down; the write that found out goes on through the other one.
    let fails = format!(
        "until dmsetup status --target multipath | grep ^cryptvol-paths- | grep -q ' F '; do \
         dd if=/dev/zero of={link} bs=4096 seek=1000 count=1 oflag=direct conv=notrunc,fsync status=none || exit 1; done"
    );
    for at in [0, 1] {
        let array = &ground.site.array;
        array.cut_portal(&ground.portals[at], true)?;
        ground.sh(&fails).await?;
        ground.wait_paths([at == 1, at == 0]).await?;
        array.cut_portal(&ground.portals[at], false)?;
        ground.wait_paths([true, true]).await?;
        ground.is_whole().await?;
    }
    ground.wait_maps(&[&wwid]).await?;
    let check = product_binary("cryptvol-node-agent")?;
    let check = ground.sh(&format!("{} check", check.display())).await?;
    for part in [&wwid, "examples/multipathd/cryptvol.conf"] {
        ensure!(check.contains(part), "{check}");
    }
    let away = ground.volume.clone().detached();
    away.apply(&ground.site.plane).await?;
    let said = ground
        .volume
        .wait_reason(&ground.site.plane, Reason::DeviceBusy)
        .await?;
    ensure!(
        said.contains(&format!("the map {wwid} of multipathd")),
        "{said}"
    );
    // The example makes an end of it, for this disk and all others.
    ground
        .node()
        .put(DROP_IN, 0o644, EXAMPLE.as_bytes())
        .await?;
    multipathd::configure(ground.node(), GREEDY).await?;
    ground.flush().await?;
    ground.volume.wait_detached(&ground.site.plane).await?;
    ground.nothing_left().await?;
    ground.attach().await?;
    ensure!(multipathd::maps(ground.node()).await?.is_empty());
    ground.is_whole().await?;
    ground.detach().await
}

#[tokio::test]
async fn disks_of_volumes_are_kept_from_a_multipathd_that_takes_what_it_sees_twice() -> Result<()> {
    let work = WorkDir::new("multipathd-kept-off")?;
    let mut site = Site::start(&work, SiteSpec::new(1)).await?;
    let multipathd = Multipathd::locate()?;
    let (lun, volume, portals) = site.multipath_volume("paths").await?;
    let other = site.array.create_lun(&lun.target, 2, 64 << 20)?;
    multipathd.install(site.node(0), None).await?;
    let daemon = multipathd.start(site.node(0)).await?;
    let mut ground = Ground {
        site,
        multipathd,
        lun,
        volume,
        portals,
    };
    switched_on_under_a_volume_in_use(&mut ground).await?;
    from_the_first_event_on(&ground, &other, daemon).await?;
    after_a_power_cut(&mut ground, &other).await?;
    switched_off(&mut ground, &other).await?;
    work.passed()
}

impl Ground {
    async fn restart_agent(&mut self, arguments: &[&str]) -> Result<()> {
        let arguments = arguments.iter().map(|a| (*a).to_owned()).collect();
        self.site.nodes[0].agent_arguments = arguments;
        self.site.kill_agent(0).await?;
        self.site.start_agent(0).await
    }

    /// Shows the kernel all that the sessions have, as an administrator does who uses another disk of the array. multipathd heard of the volume's
    /// disk before it hears of this one.
    async fn show_other(&self) -> Result<()> {
        let scan = "for h in /sys/class/iscsi_host/host*; do echo '- - -' > /sys/class/scsi_host/$(basename $h)/scan; done";
        self.sh(scan).await.map(drop)
    }

    /// The disk of another LUN of the same target is multipathd's, and the volume's is not even seen by it.
    async fn keeps_to(&self, other: &Lun) -> Result<()> {
        let wwid = wwid(other);
        self.wait_maps(&[&wwid]).await?;
        self.wait_seen(2).await?;
        let seen = multipathd::paths(self.node()).await?;
        ensure!(seen.iter().all(|path| path.ends_with(&wwid)), "{seen:?}");
        self.is_whole().await
    }

    async fn blacklist_names_ours(&self) -> Result<bool> {
        let shown = self.sh("multipathd show blacklist").await?;
        Ok(shown.contains("CRYPTVOL_DISK"))
    }
}

/// Without the option multipathd makes its map as soon as it may; with it the map goes, without anybody's help.
async fn switched_on_under_a_volume_in_use(ground: &mut Ground) -> Result<()> {
    ground.attach().await?;
    ground.volume.write(ground.node(), TEXT).await?;
    ground.wait_seen(2).await?;
    multipathd::configure(ground.node(), YES).await?;
    ground.wait_maps(&[&ground.wwid()]).await?;
    ensure!(!ground.blacklist_names_ours().await?);
    ground.restart_agent(&["--exclude-from-multipathd"]).await?;
    ground.wait_maps(&[]).await?;
    ground.wait_seen(0).await?;
    ground.is_whole().await?;
    ground.detach().await?;
    ground.nothing_left().await
}

async fn from_the_first_event_on(ground: &Ground, other: &Lun, daemon: Spawned) -> Result<()> {
    ground.attach().await?;
    ground.show_other().await?;
    ground.keeps_to(other).await?;
    let add = "udevadm trigger --subsystem-match=block --action=add && udevadm settle";
    for action in ["multipathd reconfigure", BLOCK_EVENTS, add, "multipath -r"] {
        ground.sh(action).await?;
        ground
            .keeps_to(other)
            .await
            .with_context(|| action.to_owned())?;
    }
    daemon.signal("SIGKILL").await?;
    daemon.wait(PATIENCE).await?;
    ground.multipathd.start(ground.node()).await?;
    ground.keeps_to(other).await?;
    // A path whose disk the kernel loses, and finds anew because the agent has it look.
    let ours = "ls -d /sys/class/scsi_device/*:1/device/block/* | wc -l";
    // In one command: the agent is quick.
    let lost =
        format!("echo 1 > $(ls -d /sys/class/scsi_device/*:1/device | head -1)/delete; {ours}");
    ensure!(ground.sh(&lost).await?.trim() == "1");
    wait_for(
        "the agent to bring the disk back",
        PATIENCE,
        || async { Ok((ground.sh(ours).await?.trim() == "2").then_some(())) },
        || ground.node().log(multipathd::LOG),
    )
    .await?;
    ground.wait_paths([true, true]).await?;
    ground.sh("udevadm settle").await?;
    ground.sh("multipathd reconfigure").await?;
    ground.keeps_to(other).await
}

/// multipathd runs before the agent does, which has a volume to bring back at once, while udev does not look for new rules: it has just done so.
/// (A node's disk begins anew with each boot here, so multipathd is installed again.)
async fn after_a_power_cut(ground: &mut Ground, other: &Lun) -> Result<()> {
    ground.site.power_cycle_without_agent(0).await?;
    ground.site.give_ipv6(0).await?;
    let node = ground.site.node(0);
    ground.multipathd.install(node, Some(YES)).await?;
    ground.multipathd.start(node).await?;
    ground.sh(BLOCK_EVENTS).await?;
    ground.site.start_agent(0).await?;
    ground.volume.wait_link(ground.node()).await?;
    ground.wait_paths([true, true]).await?;
    ground.show_other().await?;
    ground.keeps_to(other).await
}

/// Nothing of it is left, and what it was for comes true.
async fn switched_off(ground: &mut Ground, other: &Lun) -> Result<()> {
    // The sessions stay: multipathd has the other disk of the target.
    let away = ground.volume.clone().detached();
    away.apply(&ground.site.plane).await?;
    away.wait_detached(&ground.site.plane).await?;
    let marks = ground.sh(&format!("ls {MARKS}")).await?;
    ensure!(marks.trim().is_empty(), "{marks}");
    ground.wait_maps(&[&wwid(other)]).await?;
    ground.sh(&format!("ls {}", WRITTEN.join(" "))).await?;
    ground.restart_agent(&[]).await?;
    ground.volume.apply(&ground.site.plane).await?;
    let mut maps = [wwid(other), ground.wwid()];
    maps.sort();
    ground.wait_maps(&[&maps[0], &maps[1]]).await?;
    ensure!(!ground.blacklist_names_ours().await?);
    let left = format!("ls -d {} {MARKS} 2>/dev/null; true", WRITTEN.join(" "));
    let left = ground.sh(&left).await?;
    ensure!(left.trim().is_empty(), "{left}");
    Ok(())
}
