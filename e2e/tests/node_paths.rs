//! Several paths to one disk on a real kernel: dm-crypt above dm-multipath above two portals, one of them IPv6. A guest writes all the
//! time. And paths that the array tells of itself.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use cryptvol_crds::NodeVolume;
use cryptvol_crds::conditions::{PORTALS_DISCOVERED, Reason};
use cryptvol_crds::names;
use cryptvol_e2e::agent_metrics;
use cryptvol_e2e::array::Lun;
use cryptvol_e2e::paths_ground::PathsGround;
use cryptvol_e2e::process::wait_for;
use cryptvol_e2e::site::{Site, SiteSpec};
use cryptvol_e2e::tcp_front::TcpFront;
use cryptvol_e2e::volumes::{self, PATIENCE, Volume};
use cryptvol_e2e::workdir::WorkDir;
use kube::Api;
use serde_json::json;

/// What the kernel says of the map.
const MAP: &str = "dmsetup status --target multipath";

/// Whether a map has two paths, which the kernel uses, and no other.
fn has_two_paths(map: &str) -> bool {
    let state = |word: &&str| matches!(*word, "A" | "F");
    let words: Vec<_> = map.split_whitespace().skip(11).filter(state).collect();
    words == ["A", "A"]
}

struct Ground {
    site: Site,
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
    /// Waits until the agent's metrics have these lines.
    async fn wait_metrics(&self, lines: &[&str]) -> Result<()> {
        let all = |text: &str| {
            let has = |wanted: &&str| {
                let wanted = format!("cryptvol_node_{wanted}");
                text.lines().any(|l| l == wanted)
            };
            lines.iter().all(has)
        };
        wait_for(
            &format!("metrics {lines:?}"),
            PATIENCE,
            || async { Ok(all(&agent_metrics::text(self.site.node(0)).await?).then_some(())) },
            String::new,
        )
        .await
    }

    /// How often an Event of this reason was told of the volume.
    async fn told(&self, reason: &str) -> Result<u64> {
        let (plane, volume) = (&self.site.plane, &self.volume);
        volumes::told(plane, &volume.namespace, &volume.name, reason).await
    }

    async fn wait_told(&self, reason: &str, times: u64) -> Result<()> {
        let (plane, volume) = (&self.site.plane, &self.volume);
        volumes::wait_told(plane, &volume.namespace, &volume.name, reason, times).await
    }

    /// The node loses its power, comes back with both ways to the array, and the volume with it.
    async fn power_cut(&mut self) -> Result<()> {
        self.site.power_cycle(0).await?;
        self.site.give_ipv6(0).await?;
        self.volume.wait_link(self.site.node(0)).await?;
        self.volume.wait_ready(&self.site.plane).await?;
        self.wait_map_of_two().await
    }

    /// Waits until the first volume's map has two paths, which the kernel uses, and no other.
    async fn wait_map_of_two(&self) -> Result<()> {
        wait_for(
            "a map of two paths",
            PATIENCE,
            || async { Ok(has_two_paths(&self.sh(MAP).await?).then_some(())) },
            String::new,
        )
        .await
    }

    fn cut(&self, at: usize, cut: bool) -> Result<()> {
        self.site.array.cut_portal(&self.portals[at], cut)
    }
}

#[tokio::test]
async fn peer_failure_07_io_goes_on_while_one_of_two_portals_works_and_waits_while_none_does()
-> Result<()> {
    let work = WorkDir::new("paths")?;
    let mut site = Site::start(&work, SiteSpec::new(1)).await?;
    let (lun, volume, portals) = site.multipath_volume("paths").await?;
    let mut ground = Ground {
        site,
        volume,
        portals,
    };

    // A module that the kernel lacks is named, and once it is there all goes on.
    let lacks = "modprobe -r dm_service_time && echo 'install dm_service_time /bin/false' >/etc/modprobe.d/lacks.conf";
    ground.sh(lacks).await?;
    ground.volume.apply(&ground.site.plane).await?;
    let said = ground
        .volume
        .wait_reason(&ground.site.plane, Reason::KernelModuleMissing)
        .await?;
    ensure!(said.contains("the module dm_service_time"), "{said}");
    ground.sh("rm /etc/modprobe.d/lacks.conf").await?;
    ground.volume.wait_ready(&ground.site.plane).await?;
    ground.wait_paths([true, true]).await?;
    let table = ground.sh("dmsetup table --target multipath").await?;
    ensure!(table.lines().count() == 1, "{table}");
    let timeouts = ground
        .sh("cat /sys/class/iscsi_session/*/recovery_tmo")
        .await?;
    ensure!(timeouts == "5\n5\n", "recovery_tmo: {timeouts}");
    ground.guest().start("guest").await?;

    // Either path alone is enough, and is taken back. Each change is told once, however often the agent looks.
    ground.wait_health(Reason::AsDesired).await?;
    for at in [0, 1] {
        ground.cut(at, true)?;
        ground.wait_paths([at == 1, at == 0]).await?;
        ground.guest().goes_on().await?;
        let said = ground.wait_health(Reason::PathsDegraded).await?;
        let whose = format!("1 of 2 paths is down: {}", ground.portals[at]);
        ensure!(said.contains(&whose), "{said}");
        ground
            .wait_metrics(&[
                "paths{state=\"down\"} 1",
                "paths{state=\"up\"} 1",
                "multipath_volumes{state=\"degraded\"} 1",
            ])
            .await?;
        ground.cut(at, false)?;
        ground.wait_paths([true, true]).await?;
        ground.guest().goes_on().await?;
        ground.wait_health(Reason::AsDesired).await?;
        for reason in ["PathsDegraded", "PathsHealthy"] {
            let times = u64::try_from(at)? + 1;
            ground.wait_told(reason, times).await?;
            let told = ground.told(reason).await?;
            ensure!(told == times, "{reason} was told {told} times");
        }
    }

    // None: the guest waits, and goes on.
    for at in [0, 1] {
        ground.cut(at, true)?;
    }
    let said = ground
        .volume
        .wait_reason(&ground.site.plane, Reason::PortalUnreachable)
        .await?;
    ensure!(said.contains("no path to the disk works"), "{said}");
    let said = ground.wait_health(Reason::PathsLost).await?;
    ensure!(said.contains("; I/O waits for one until 20"), "{said}");
    ground.wait_told("PathsLost", 1).await?;
    ground
        .wait_metrics(&[
            "paths{state=\"down\"} 2",
            "multipath_volumes{state=\"lost\"} 1",
        ])
        .await?;
    for at in [0, 1] {
        ground.cut(at, false)?;
    }
    ground.volume.wait_ready(&ground.site.plane).await?;
    ground.wait_paths([true, true]).await?;
    ground.guest().goes_on().await?;

    portal_that_comes_and_goes(&mut ground).await?;
    disk_that_somebody_removed(&ground).await?;
    sessions_of_two_volumes(&mut ground, &lun).await?;

    // Longer, through all of them and under the guest.
    let size = lun.size()? * 2;
    ground
        .site
        .array
        .resize_lun(&lun.target, lun.number, size)?;
    ground.wait_paths([true, true]).await?;
    ground
        .volume
        .annotate(&ground.site.plane, names::RESCAN_ANNOTATION, "grown")
        .await?;
    let usable = i64::try_from(size)? - (16 << 20);
    ground
        .volume
        .wait(&ground.site.plane, "the new size", |v| {
            let status = v.status.as_ref();
            status.is_some_and(|s| s.usable_bytes == Some(usable))
        })
        .await?;
    ground.guest().goes_on().await?;
    let written = ground.guest().written().await?;
    ground.power_cut().await?;
    let found = ground.guest().read().await?;
    ensure!(found >= written, "{found} is older than {written}");
    ground.detach().await?;

    // With a portal that is away it is attached through the other one; a disk that is gone for good is let go of.
    ground.cut(0, true)?;
    ground.volume.apply(&ground.site.plane).await?;
    ground.volume.wait_ready(&ground.site.plane).await?;
    ground.wait_paths([false, true]).await?;
    ground.cut(1, true)?;
    ground
        .volume
        .wait_reason(&ground.site.plane, Reason::PortalUnreachable)
        .await?;
    ground.detach().await?;
    for at in [0, 1] {
        ground.cut(at, false)?;
    }
    io_fails_after_its_time(&mut ground).await?;
    work.passed()
}

/// A portal that is away for a moment again and again: the guest goes on, and the agent, which writes as it does by default, does not write
/// its status each time.
async fn portal_that_comes_and_goes(ground: &mut Ground) -> Result<()> {
    const INTERVAL: &str = "30";
    ground.site.kill_agent(0).await?;
    let arguments = ["--path-status-interval", INTERVAL];
    ground.site.launch_agent(0, &arguments).await?;
    ground.site.wait_agent(0).await?;
    let volumes: Api<NodeVolume> =
        Api::namespaced(ground.site.plane.client()?, &ground.volume.namespace);
    let object = names::node_volume_name(&ground.volume.name, ground.site.node(0).name());
    let begun = Instant::now();
    let versions = RefCell::new(BTreeSet::new());
    let look = || async {
        let version = volumes.get(&object).await?.metadata.resource_version;
        versions.borrow_mut().insert(version);
        anyhow::Ok(())
    };
    look().await?;
    for round in 0..4 {
        ground.cut(0, true)?;
        // Told at once, or when the last thing that was told of paths is so long ago.
        if round == 0 {
            ground.wait_paths([false, true]).await?;
        }
        // Long enough for an agent on a machine that is not overloaded to see it.
        for _ in 0..30 {
            look().await?;
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        ground.cut(0, false)?;
        wait_for(
            "a map of two paths",
            PATIENCE,
            || async {
                look().await?;
                Ok(has_two_paths(&ground.sh(MAP).await?).then_some(()))
            },
            String::new,
        )
        .await?;
    }
    let written = u64::try_from(versions.borrow().len() - 1)?;
    let most = begun.elapsed().as_secs() / INTERVAL.parse::<u64>()? + 2;
    ensure!(written >= 1, "it was never told");
    ensure!(written <= most, "{written} writes in {:?}", begun.elapsed());
    ground.guest().goes_on().await?;
    ground.wait_paths([true, true]).await?;
    ground.wait_health(Reason::AsDesired).await?;
    ground.site.kill_agent(0).await?;
    ground.site.start_agent(0).await
}

/// Healing only adds: one disk of the kernel's was deleted by hand under the guest, and is found anew in the session that it was in.
async fn disk_that_somebody_removed(ground: &Ground) -> Result<()> {
    // Names and numbers come again, the inodes of sysfs do not.
    let disks = "stat -Lc %i /sys/class/scsi_disk/* || true";
    let before = ground.sh(disks).await?;
    let sessions = ground.sh("ls /sys/class/iscsi_session").await?;
    ground
        .sh("d=$(ls -d /sys/class/scsi_disk/* | head -n 1); echo 1 >$d/device/delete")
        .await?;
    wait_for(
        "the disk anew",
        PATIENCE,
        || async {
            let now = ground.sh(disks).await?;
            Ok((now.lines().count() == 2 && now != before).then_some(()))
        },
        String::new,
    )
    .await?;
    ground.wait_map_of_two().await?;
    ground.guest().goes_on().await?;
    ground.wait_health(Reason::AsDesired).await?;
    ensure!(ground.sh("ls /sys/class/iscsi_session").await? == sessions);
    Ok(())
}

/// A second disk of the target through the same sessions: it adds none, and ends none when it goes.
async fn sessions_of_two_volumes(ground: &mut Ground, lun: &Lun) -> Result<()> {
    ground.site.array.create_lun(&lun.target, 2, 64 << 20)?;
    let mut second = ground.volume.clone().with_iscsi("lun", json!(2));
    second.name = "second".into();
    second.manifest["metadata"]["name"] = json!("second");
    let (plane, node) = (&ground.site.plane, ground.site.node(0).name());
    let sessions = ground.sh("ls /sys/class/iscsi_session").await?;
    ensure!(sessions.lines().count() == 2, "{sessions}");
    second.apply(plane).await?;
    second.wait_ready(plane).await?;
    second.wait_paths(plane, node, &[true, true]).await?;
    let count = "ls /sys/class/scsi_disk | wc -l; dmsetup table --target multipath | wc -l";
    ensure!(ground.sh(count).await? == "4\n2\n");
    ensure!(ground.sh("ls /sys/class/iscsi_session").await? == sessions);
    second.clone().detached().apply(plane).await?;
    second.wait_detached(plane).await?;
    ensure!(ground.sh(count).await? == "2\n1\n");
    ensure!(ground.sh("ls /sys/class/iscsi_session").await? == sessions);
    ground.wait_paths([true, true]).await?;
    ground.guest().goes_on().await
}

/// A node whose agent waits three seconds for a path, and not two minutes: the guest gets an error then, and none any more once a path is
/// back.
async fn io_fails_after_its_time(ground: &mut Ground) -> Result<()> {
    ground.site.kill_agent(0).await?;
    ground
        .site
        .launch_agent(0, &["--no-path-timeout", "3"])
        .await?;
    ground.attach().await?;
    let guest = ground.guest().start("guest-2").await?;
    for at in [0, 1] {
        ground.cut(at, true)?;
    }
    let said = ground.wait_health(Reason::PathsFailing).await?;
    ensure!(said.contains("2 of 2 paths are down"), "{said}");
    ground.wait_told("PathsFailing", 1).await?;
    ground
        .wait_metrics(&["multipath_volumes{state=\"failing\"} 1"])
        .await?;
    // The write that waited ended with an error, so the guest did.
    guest.wait(PATIENCE).await?;
    ensure!(ground.guest().has_failed().await?);
    let written = ground.guest().written().await?;
    for at in [0, 1] {
        ground.cut(at, false)?;
    }
    ground.volume.wait_ready(&ground.site.plane).await?;
    ground.wait_health(Reason::AsDesired).await?;
    // It waits again, and what was acknowledged is there.
    let table = ground.sh("dmsetup table --target multipath").await?;
    ensure!(table.contains("queue_if_no_path"), "{table}");
    let found = ground.guest().read().await?;
    ensure!(found >= written, "{found} is older than {written}");
    ground
        .sh(&format!("printf '%-4096s' again | dd of={} bs=4096 iflag=fullblock oflag=direct conv=notrunc,fsync status=none", ground.volume.link()))
        .await?;
    kept_by_multipathd(ground).await
}

/// What multipathd makes where it is not told to leave a disk alone: a second map over one of the paths. The volume goes on, and is let go of
/// once the map is gone; until then the message says whose it is.
async fn kept_by_multipathd(ground: &Ground) -> Result<()> {
    let make = "n=$(ls /sys/class/scsi_disk/*/device/block | grep -m1 '^sd'); b=/sys/class/block/$n; \
                dmsetup create mpatha -u mpath-360000000000000000e00000000010001 --table \
                \"0 $(cat $b/size) multipath 0 0 1 1 service-time 0 1 1 $(cat $b/dev) 1\"";
    ground.sh(make).await?;
    ground
        .volume
        .clone()
        .detached()
        .apply(&ground.site.plane)
        .await?;
    let said = ground
        .volume
        .wait_reason(&ground.site.plane, Reason::DeviceBusy)
        .await?;
    ensure!(said.contains("the map mpatha of multipathd"), "{said}");
    ground.sh("dmsetup remove mpatha").await?;
    ground.volume.wait_detached(&ground.site.plane).await?;
    ground.nothing_left().await
}

/// The volume with one named portal, whose array is asked for further ones with the secret `finder`.
fn finding(volume: Volume, named: &str) -> Volume {
    volume
        .with_iscsi("portals", json!([named]))
        .with_iscsi("multipath", json!(true))
        .with_iscsi("discovery", json!(true))
        .with_iscsi("discoveryChapSecretRef", json!({"name": "finder"}))
}

/// Secrets, which a pattern finds on the node's disk and these words in logs, are nowhere but in their Secret.
async fn nowhere_but_in_their_secret(ground: &Ground, pattern: &str, words: &[&str]) -> Result<()> {
    let search =
        format!("grep -rlE -D skip '{pattern}' /etc/iscsi /var/lib/iscsi /run 2>/dev/null || true");
    let on_disk = ground.sh(&search).await?;
    ensure!(on_disk.trim().is_empty(), "on the node's disk: {on_disk}");
    let logs = ground.site.node(0).log("node-agent") + &ground.site.operator_log(0);
    for word in words {
        ensure!(!logs.contains(word), "a log shows the secret");
    }
    Ok(())
}

/// One portal is named, and it is none that the array itself knows: it leads there. With the right secret the array tells of its own, and both
/// are paths; with a wrong one the named portal works, and the secret that is put right is picked up by itself.
#[tokio::test]
async fn a_portal_that_the_array_tells_of_is_a_path() -> Result<()> {
    let work = WorkDir::new("discovery")?;
    let mut site = Site::start(&work, SiteSpec::new(1)).await?;
    let (_, _, volume) = site.volume("discovery").await?;
    site.array.set_discovery_chap("finder", "right-finding-1")?;
    let told = site.array.portals()[1].clone();
    let front = TcpFront::start(told.parse()?)?;
    let named = front.address();
    let secret = |password: &str| {
        let data = json!({
            "discovery.sendtargets.auth.username": "finder",
            "discovery.sendtargets.auth.password": password,
        });
        json!({"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/iscsi-chap",
            "metadata": {"name": "finder", "namespace": "discovery"}, "stringData": data})
        .to_string()
    };
    site.plane.apply(&secret("wrong-finding-1")).await?;
    let volume = finding(volume, &named);
    let ground = Ground {
        site,
        volume,
        portals: [named.clone(), told.clone()],
    };
    ground.volume.apply(&ground.site.plane).await?;
    ground.volume.wait_ready(&ground.site.plane).await?;
    let said = ground
        .wait_condition(PORTALS_DISCOVERED, Reason::DiscoveryRejected)
        .await?;
    ensure!(
        said.contains(&named) && said.contains("authentication failed"),
        "{said}"
    );
    ground.wait_paths([true]).await?;
    ground.wait_told("DiscoveryRejected", 1).await?;
    ground
        .volume
        .write(ground.site.node(0), "through one path")
        .await?;

    ground.site.plane.apply(&secret("right-finding-1")).await?;
    let said = ground
        .wait_condition(PORTALS_DISCOVERED, Reason::AsDesired)
        .await?;
    ensure!(said.contains(&told), "{said}");
    ground.wait_paths([true, true]).await?;
    ground.wait_told("PortalsDiscovered", 1).await?;
    let sessions = ground.sh("ls /sys/class/iscsi_session | wc -l").await?;
    ensure!(sessions.trim() == "2", "{sessions} sessions");

    // The named one goes, and the disk is reached through the other.
    drop(front);
    ground.wait_paths([false, true]).await?;
    let read = format!(
        "dd if={} bs=4096 count=1 iflag=direct status=none | head -c 16",
        ground.volume.link()
    );
    let read = ground.sh(&read).await?;
    ensure!(read == "through one path", "{read}");
    ground.detach().await?;

    nowhere_but_in_their_secret(
        &ground,
        "(right|wrong)-finding",
        &["right-finding", "wrong-finding"],
    )
    .await?;
    work.passed()
}

/// Mutual CHAP in discoveries: an array that does not prove itself is not believed, be its proof another's, one of before, or none. The named
/// portal is used meanwhile, and a Secret that is put right is picked up.
#[tokio::test]
async fn an_array_that_does_not_prove_itself_in_a_discovery_tells_of_no_path() -> Result<()> {
    const OURS: (&str, &str) = ("finder", "right-finding-1");
    let work = WorkDir::new("discovery-mutual")?;
    let mut site = Site::start(&work, SiteSpec::new(1)).await?;
    let (_, _, volume) = site.volume("mutual").await?;
    site.array.set_discovery_chap(OURS.0, OURS.1)?;
    site.array
        .set_discovery_own_chap(Some(("the-array", "first-proving-1")))?;
    let told = site.array.portals()[1].clone();
    let front = TcpFront::start(told.parse()?)?;
    let named = front.address();
    let secret = |proof: &str| {
        let data = json!({
            "username": OURS.0, "password": OURS.1, "username_in": "the-array", "password_in": proof,
        });
        json!({"apiVersion": "v1", "kind": "Secret",
            "metadata": {"name": "finder", "namespace": "mutual"}, "stringData": data})
        .to_string()
    };
    let volume = finding(volume, &named);
    let mut ground = Ground {
        site,
        volume,
        portals: [named.clone(), told.clone()],
    };
    // What the array proves itself with, what the Secret expects, and what it expects once it is put right.
    let rounds = [
        (
            Some("first-proving-1"),
            "wrong-proving-1",
            "first-proving-1",
        ),
        (
            Some("other-proving-1"),
            "first-proving-1",
            "other-proving-1",
        ),
        (None, "other-proving-1", "final-proving-1"),
    ];
    for (proof, expected, right) in rounds {
        let array = &mut ground.site.array;
        array.set_discovery_own_chap(proof.map(|p| ("the-array", p)))?;
        ground.site.plane.apply(&secret(expected)).await?;
        ground.volume.apply(&ground.site.plane).await?;
        ground.volume.wait_ready(&ground.site.plane).await?;
        let said = ground
            .wait_condition(PORTALS_DISCOVERED, Reason::DiscoveryRejected)
            .await?;
        ensure!(
            said.contains(&named) && said.ends_with(Reason::DiscoveryRejected.next_step()),
            "{said}"
        );
        if proof.is_some() {
            let proves = "it does not prove that it knows its CHAP secret";
            ensure!(said.contains(proves), "{said}");
        } else {
            let array = &mut ground.site.array;
            array.set_discovery_own_chap(Some(("the-array", right)))?;
        }
        ground.wait_paths([true]).await?;

        ground.site.plane.apply(&secret(right)).await?;
        let said = ground
            .wait_condition(PORTALS_DISCOVERED, Reason::AsDesired)
            .await?;
        ensure!(said.contains(&told), "{said}");
        ground.wait_paths([true, true]).await?;
        ground.detach().await?;
    }

    nowhere_but_in_their_secret(&ground, "(finding|proving)-1", &["finding-1", "proving-1"])
        .await?;
    work.passed()
}
