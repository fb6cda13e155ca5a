//! Somebody loads another table under the name and UUID of what the agent made, on a real kernel, below a guest: a crypt table that leads to another
//! disk, and a table in place of the map above several paths. The next proof says so; `failClosed` wipes the key; a detach takes the volume away
//! and leaves the other disk as it was. And an array that shows another disk behind one of its portals, and a disk on which plaintext lies.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cryptvol_crds::conditions::Reason;
use cryptvol_e2e::array::{self, Array, Lun};
use cryptvol_e2e::node::Spawned;
use cryptvol_e2e::paths_ground::PathsGround;
use cryptvol_e2e::site::{AGENT_ADMIN_PORT, AGENT_LOG, Site, SiteSpec};
use cryptvol_e2e::volumes::{self, PATIENCE, Volume};
use cryptvol_e2e::workdir::WorkDir;
use serde_json::json;

/// The mapping's name, as `$name`, and its table's fields.
const TABLE: &str = "name=$(dmsetup info -c --noheadings -o name,uuid | grep -v PATHS- | cut -d: -f1); set -- $(dmsetup table $name)";
/// The key of the table that somebody loads.
const THEIR_KEY: &str = "1111111111111111111111111111111122222222222222222222222222222222";

struct Ground {
    site: Site,
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
    /// Proofs every two seconds.
    async fn begin(mut site: Site, volume: Volume) -> Result<Self> {
        site.kill_agent(0).await?;
        site.launch_agent(0, &["--proof-interval", "2"]).await?;
        let ground = Self { site, volume };
        ground.volume.apply(&ground.site.plane).await?;
        ground.proven(None).await?;
        Ok(ground)
    }

    async fn proven(&self, broken: Option<Reason>) -> Result<String> {
        let (status, word) = match broken {
            None => ("True", Reason::AsDesired),
            Some(reason) => ("False", reason),
        };
        let plane = &self.site.plane;
        self.volume.wait_proof(plane, status, word).await
    }

    /// Has the link open and reads nothing.
    async fn holds_it_open(&self, name: &str) -> Result<Spawned> {
        let open = format!("exec 9<>{}; sleep 100000", self.volume.link());
        let node = self.site.node(0);
        node.spawn(name, &["bash", "-c", &open], &[]).await
    }

    async fn ends(&self, guest: Spawned) -> Result<()> {
        guest.signal("SIGKILL").await?;
        guest.wait(Duration::from_secs(60)).await.map(drop)
    }

    /// The mapping is suspended, and neither our key nor the one that somebody put in its place is in the kernel.
    async fn is_closed(&self) -> Result<bool> {
        let ask = format!(
            "{TABLE}; dmsetup info -c --noheadings -o suspended $name; dmsetup table --showkeys $name"
        );
        let says = self.sh(&ask).await?;
        let key = says.contains(":logon:") || says.contains(THEIR_KEY);
        Ok(says.contains("Suspended") && !key)
    }

    async fn paths_of_the_map(&self) -> Result<usize> {
        let ask = "ls -d /sys/block/$(dmsetup info -c --noheadings -o blkdevname,uuid | grep PATHS- | cut -d: -f1)/slaves/*";
        self.sh(ask).await.map(|text| text.lines().count())
    }

    async fn broken_proofs(&self) -> Result<u64> {
        let ask = format!("curl -sf http://127.0.0.1:{AGENT_ADMIN_PORT}/metrics");
        let text = self.sh(&ask).await?;
        let name = "cryptvol_node_proofs_total{result=\"broken\"} ";
        let value = text.lines().find_map(|l| l.strip_prefix(name));
        value.map_or(Ok(0), |v| v.trim().parse().context("a number"))
    }

    /// A disk of the node that is not ours, with words on it.
    async fn other_disk(&self) -> Result<String> {
        let make = "modprobe loop; printf 'of somebody else' >/run/other.img; truncate -s 96M /run/other.img; \
                    losetup -f --show /run/other.img";
        self.sh(make).await.map(|t| t.trim().to_owned())
    }

    async fn other_disk_sum(&self) -> Result<String> {
        self.sh("sync; sha256sum </run/other.img").await
    }

    /// Wanted off the node while a guest has it: the link goes at once, and the rest when the guest does.
    async fn detaches(&self, guest: Spawned) -> Result<()> {
        let plane = &self.site.plane;
        let away = self.volume.clone().detached();
        away.apply(plane).await?;
        away.wait_reason(plane, Reason::DeviceBusy).await?;
        let link = format!(
            "test -e {} || test -L {}",
            self.volume.link(),
            self.volume.link()
        );
        ensure!(
            self.site.node(0).sh(&link).await?.code != 0,
            "the link is there"
        );
        self.ends(guest).await?;
        away.wait_detached(plane).await?;
        self.nothing_left().await
    }
}

#[tokio::test]
async fn a_table_that_leads_to_another_disk_is_a_break_that_shuts_and_can_be_detached() -> Result<()>
{
    let work = WorkDir::new("replaced-elsewhere")?;
    let mut site = Site::start(&work, SiteSpec::new(1)).await?;
    let (_, lun, volume) = site.volume("elsewhere").await?;
    let ground = Ground::begin(site, volume).await?;
    let plane = &ground.site.plane;
    ground
        .volume
        .write(ground.site.node(0), "written before")
        .await?;
    let other = ground.other_disk().await?;
    let sum = ground.other_disk_sum().await?;
    let elsewhere = format!(
        "{TABLE}; echo 0 $2 crypt $4 {THEIR_KEY}{THEIR_KEY} 0 $(lsblk -dno MAJ:MIN {other}) $8 | dmsetup load $name && dmsetup resume $name"
    );
    for fail_closed in [false, true] {
        let volume = ground.volume.clone().with("failClosed", json!(fail_closed));
        volume.apply(plane).await?;
        ground.proven(None).await?;
        let guest = ground
            .holds_it_open(&format!("guest-{fail_closed}"))
            .await?;
        let before = ground.broken_proofs().await?;
        ground.sh(&elsewhere).await?;
        let said = ground.proven(Some(Reason::MappingReplaced)).await?;
        let number = ground.sh(&format!("lsblk -dno MAJ:MIN {other}")).await?;
        ensure!(said.contains(number.trim()), "{said}");
        ensure!(said.contains("/run/other.img"), "{said}");
        ensure!(ground.broken_proofs().await? > before, "it was not counted");
        ensure!(ground.is_closed().await? == fail_closed, "{fail_closed}");
        match fail_closed {
            // Nobody has it: it is made anew, over its own disk.
            false => {
                ground.ends(guest).await?;
                ground.proven(None).await?;
                ground.volume.wait_ready(plane).await?;
                ensure!(ground.volume.read(ground.site.node(0), 14).await? == "written before");
            }
            true => ground.detaches(guest).await?,
        }
        ensure!(
            ground.other_disk_sum().await? == sum,
            "the other disk was written"
        );
    }
    ground
        .sh(&format!("losetup {other} && losetup -d {other}"))
        .await?;
    // All is as it was.
    ground.volume.apply(plane).await?;
    ground.volume.wait_ready(plane).await?;
    ensure!(ground.volume.read(ground.site.node(0), 14).await? == "written before");
    ensure!(!lun.contains(b"written before")?, "plaintext on the array");
    work.passed()
}

#[tokio::test]
async fn another_table_in_place_of_the_map_is_a_break_that_shuts_and_can_be_detached() -> Result<()>
{
    let work = WorkDir::new("replaced-map")?;
    let mut site = Site::start(&work, SiteSpec::new(1)).await?;
    let (_, volume, _) = site.multipath_volume("map").await?;
    let ground = Ground::begin(site, volume).await?;
    let plane = &ground.site.plane;
    ground
        .volume
        .write(ground.site.node(0), "written before")
        .await?;
    let map = "map=$(dmsetup info -c --noheadings -o name,uuid | grep PATHS- | cut -d: -f1); set -- $(dmsetup table $map)";
    // The kernel takes no other kind of table in place of one of multipath (linear, zero: EINVAL) once that was loaded.
    for fail_closed in [false, true] {
        let volume = ground.volume.clone().with("failClosed", json!(fail_closed));
        volume.apply(plane).await?;
        ground.proven(None).await?;
        ground.wait_paths([true, true]).await?;
        let guest = ground
            .holds_it_open(&format!("guest-{fail_closed}"))
            .await?;
        let replace = format!("{map}; echo 0 $2 error | dmsetup load $map && dmsetup resume $map");
        ground.sh(&replace).await?;
        let said = ground.proven(Some(Reason::MappingReplaced)).await?;
        ensure!(said.contains("is error, not multipath"), "{said}");
        ensure!(ground.is_closed().await? == fail_closed, "{fail_closed}");
        match fail_closed {
            false => {
                ground.ends(guest).await?;
                ground.proven(None).await?;
                ground.volume.wait_ready(plane).await?;
                ground.wait_paths([true, true]).await?;
                ensure!(ground.volume.read(ground.site.node(0), 14).await? == "written before");
            }
            true => ground.detaches(guest).await?,
        }
    }
    ground.volume.apply(plane).await?;
    ground.volume.wait_ready(plane).await?;
    ground.wait_paths([true, true]).await?;
    ensure!(ground.volume.read(ground.site.node(0), 14).await? == "written before");
    work.passed()
}

/// Two controllers that show one disk under one name; then the second shows another one at its place. Nothing tells the kernel which disk its commands
/// go to: the agent's next look does.
#[tokio::test]
async fn a_path_in_use_that_becomes_another_disk_is_taken_out_and_nothing_more_goes_there()
-> Result<()> {
    let work = WorkDir::new("replaced-path")?;
    let mut site = Site::start(&work, SiteSpec::new(1)).await?;
    let (_, lun, volume) = site.volume("path").await?;
    let mut second = Array::start(&work.dir("second")?).await?;
    second.create_target(&lun.target)?;
    second.add_lun(lun.clone())?;
    let portals = [site.array.portal(), second.portal()];
    let volume = volume
        .with("failClosed", json!(true))
        .with_iscsi("portals", json!(portals))
        .with_iscsi("multipath", json!(true));
    let ground = Ground::begin(site, volume).await?;
    let (plane, node) = (&ground.site.plane, ground.site.node(0));
    ground.volume.write(node, "written before").await?;
    ground.wait_paths([true, true]).await?;
    ensure!(ground.paths_of_the_map().await? == 2);
    let before = ground.broken_proofs().await?;
    let holder = ground.holds_it_open("holder").await?;

    let other = second.spare(lun.size()?)?;
    other.write_at(0, b"of somebody else")?;
    let sum = other.sha256()?;
    second.swap_lun(&lun.target, 1, &other)?;
    ground.wait_paths([true, false]).await?;
    ensure!(ground.paths_of_the_map().await? == 1);
    let said = ground.volume.on_node(plane, node.name()).await?;
    let paths = said.and_then(|nv| nv.status).map(|s| s.paths);
    let said = format!("{:?}", paths.context("no status")?[1]);
    ensure!(said.contains(&other.wwid()), "{said}");

    // All that is written from now on goes to the right disk, and a look that finds the other one again changes nothing of that.
    let guest = ground.guest().start("writer").await?;
    for _ in 0..3 {
        ground.guest().goes_on().await?;
        tokio::time::sleep(Duration::from_secs(3)).await;
    }
    ensure!(ground.paths_of_the_map().await? == 1);
    ensure!(other.sha256()? == sum, "the other disk was written");
    ensure!(ground.broken_proofs().await? == before, "it is no break");
    ground.proven(None).await?;

    // What it showed before it shows again.
    second.swap_lun(&lun.target, 1, &lun)?;
    ground.wait_paths([true, true]).await?;
    ensure!(ground.paths_of_the_map().await? == 2);
    ground.guest().goes_on().await?;
    ground.ends(guest).await?;
    let written = ground.guest().written().await?;
    ensure!(ground.guest().read().await? >= written);
    ground.detaches(holder).await?;
    ensure!(other.sha256()? == sum, "the other disk was written");
    ensure!(
        !lun.contains(b"plaintext-of-the-guest")?,
        "plaintext on the array"
    );
    work.passed()
}

/// What dm-crypt reads and what lies on the disk are never the same at one moment, unless somebody who knows the plaintext writes it there. So the array
/// does that again and again, and is slow: the agent reads the mapping while the disk is right, and the disk while it is not.
#[tokio::test]
async fn plaintext_on_the_disk_shuts_the_volume_until_a_person_says_otherwise() -> Result<()> {
    const HEADER: u64 = 16 << 20;
    const DATA: usize = 64 << 10;
    const TURN: Duration = Duration::from_millis(300);
    let work = WorkDir::new("replaced-plaintext")?;
    let mut site = Site::start(&work, SiteSpec::new(1)).await?;
    site.tenant("plaintext").await?;
    let iqn = array::iqn("plaintext");
    site.array.create_target(&iqn)?;
    let lun: Lun = site.array.create_lun(&iqn, 1, HEADER + DATA as u64)?;
    let volume = Volume::iscsi(
        "plaintext",
        "vol",
        &site.array.portal(),
        &iqn,
        1,
        "plaintext",
    )
    .with("failClosed", json!(true))
    .on("node-1");
    let mut ground = Ground::begin(site, volume).await?;
    let plane = &ground.site.plane;
    // Every block of the cipher another one, so that none is right by chance.
    let plaintext: Vec<u8> = (0..DATA / 16)
        .flat_map(|n| format!("plaintext{n:07}").into_bytes())
        .collect();
    ground
        .sh(&format!(
            "for n in $(seq 0 {}); do printf 'plaintext%07d' $n; done >/run/plaintext; \
         dd if=/run/plaintext of={} bs=64k iflag=fullblock oflag=direct conv=fsync status=none",
            DATA / 16 - 1,
            ground.volume.link()
        ))
        .await?;
    let right = lun.read_at(HEADER, DATA)?;
    ensure!(!lun.contains(&plaintext[..16])?, "plaintext on the array");
    ground.proven(None).await?;
    let before = ground.broken_proofs().await?;
    ground
        .sh("tc qdisc add dev vec0 root netem delay 300ms")
        .await?;

    let begun = Instant::now();
    let mut clear = false;
    while ground.broken_proofs().await? == before {
        ensure!(
            begun.elapsed() < PATIENCE,
            "no proof met plaintext\n{}",
            ground.site.node(0).log(AGENT_LOG)
        );
        for _ in 0..8 {
            clear = !clear;
            lun.write_at(HEADER, if clear { &plaintext } else { &right })?;
            tokio::time::sleep(TURN).await;
        }
    }
    ground.sh("tc qdisc del dev vec0 root").await?;
    let said = ground.proven(Some(Reason::PlaintextOnDisk)).await?;
    ensure!(said.contains("lie on the disk as they are read"), "{said}");
    ensure!(ground.is_closed().await?);
    let (namespace, name) = (&ground.volume.namespace, &ground.volume.name);
    for told in ["EncryptionNotProven", "PlaintextOnDisk"] {
        volumes::wait_told(plane, namespace, name, told, 1).await?;
    }

    // What lies there is right again, and nothing on the disk tells that it was not: not a new agent, and no change of the record opens it.
    lun.write_at(HEADER, &right)?;
    ground
        .volume
        .annotate(plane, "example.com/touched", "yes")
        .await?;
    tokio::time::sleep(Duration::from_secs(6)).await;
    ground.site.kill_agent(0).await?;
    ground
        .site
        .launch_agent(0, &["--proof-interval", "2"])
        .await?;
    tokio::time::sleep(Duration::from_secs(6)).await;
    ensure!(ground.is_closed().await?, "it went on by itself");
    let plane = &ground.site.plane;
    ground.proven(Some(Reason::PlaintextOnDisk)).await?;

    // A person does.
    let suspended = ground.volume.clone().with("suspended", json!(true));
    suspended.apply(plane).await?;
    suspended.wait_reason(plane, Reason::Suspended).await?;
    ensure!(ground.is_closed().await?);
    ground
        .volume
        .clone()
        .with("suspended", json!(false))
        .apply(plane)
        .await?;
    ground.volume.wait_ready(plane).await?;
    ground.proven(None).await?;
    let read = format!("cmp {} /run/plaintext", ground.volume.link());
    ground.sh(&read).await?;
    work.passed()
}
