//! The continuous proof on a real kernel: what breaks between the link and the disk shows at the next proof, and `failClosed` suspends the
//! mapping. And what is left of a volume whose NodeVolume is gone: told, and left alone.

use std::time::Duration;

use anyhow::{Result, ensure};
use cryptvol_crds::{NodeVolume, conditions::Reason, names, orphans::Orphans};
use cryptvol_e2e::{
    agent_metrics,
    array::{self, Lun},
    process::{self, wait_for},
    site::{AGENT_LOG, Site, SiteSpec},
    volumes::{PATIENCE, Volume},
    workdir::WorkDir,
};
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use serde_json::json;

/// A volume of which the agent has a proof every two seconds.
struct Ground {
    site: Site,
    lun: Lun,
    volume: Volume,
}

impl Ground {
    /// Waits for what the proof finds.
    async fn proven(&self, reason: Option<Reason>) -> Result<()> {
        let (status, word) = match reason {
            None => ("True", Reason::AsDesired),
            Some(reason) => ("False", reason),
        };
        let plane = &self.site.plane;
        self.volume.wait_proof(plane, status, word).await.map(drop)
    }

    /// How many proofs held, and how many did not, since the agent began.
    async fn proofs(&self) -> Result<(u64, u64)> {
        let text = agent_metrics::text(self.site.node(0)).await?;
        let count = |result: &str| {
            agent_metrics::count(&text, &format!("proofs_total{{result=\"{result}\"}}"))
        };
        Ok((count("holds")?, count("broken")?))
    }

    /// Whether the mapping is suspended, with its key wiped.
    async fn closed(&self) -> Result<bool> {
        let ask = "dmsetup info -c --noheadings -o suspended; dmsetup table --showkeys";
        let says = self.site.node(0).sh(ask).await?.ok()?;
        Ok(says.contains("Suspended") && !says.contains(":logon:"))
    }

    /// Something was broken, with so many proofs made before: it shows at the next one, and the mapping is closed.
    async fn shows(&self, reason: Reason, before: (u64, u64)) -> Result<()> {
        let (_, broken) = before;
        let (held, _) = self.proofs().await?;
        self.proven(Some(reason)).await?;
        let after = self.proofs().await?;
        // The one that was on its way when it broke may have held; the next one does not.
        ensure!(
            after.0 <= held + 1,
            "{reason}: {} proofs held",
            after.0 - held
        );
        ensure!(after.1 > broken, "{reason}: no broken proof was counted");
        ensure!(self.closed().await?, "{reason}: the mapping is live");
        let argv = [
            "get",
            "events",
            "-n",
            &self.volume.namespace,
            "-o",
            "jsonpath={range .items[*]}{.reason} {.message}{\"\\n\"}{end}",
        ];
        let of_reason = format!("{reason} ");
        wait_for(
            &format!("Events EncryptionNotProven and {reason}"),
            PATIENCE,
            || async {
                let events = self.site.plane.kubectl(&argv).await?;
                let is = |word: &str| events.lines().any(|l| l.starts_with(word));
                Ok((is("EncryptionNotProven ") && is(&of_reason)).then_some(()))
            },
            String::new,
        )
        .await?;
        Ok(())
    }

    /// Waits until the agent's metric counts so many by kind and the Node says the same. Gives back the Events on it, a line each.
    async fn orphans(&self, wanted: &str) -> Result<String> {
        let node = self.site.node(0).name();
        let nodes: Api<Node> = Api::all(self.site.plane.client()?);
        let annotated: usize = wanted.matches("=1").count();
        let counted = || async {
            let text = agent_metrics::text(self.site.node(0)).await?;
            let all = wanted.split(' ').filter_map(|w| w.split_once('='));
            let all = all.map(|(kind, n)| format!("cryptvol_node_orphans{{kind=\"{kind}\"}} {n}"));
            let counted = all.clone().all(|line| text.lines().any(|l| l == line));
            let said = nodes.get(node).await?.metadata.annotations;
            let said = said.and_then(|a| a.get(names::ORPHANS_ANNOTATION).cloned());
            let said: Orphans = match said {
                Some(text) => serde_json::from_str(&text)?,
                None => Orphans::default(),
            };
            Ok((counted && said.orphans.len() == annotated).then_some(()))
        };
        let log = || process::tail(&self.site.node(0).log_path(AGENT_LOG), 25);
        wait_for(&format!("orphans: {wanted}"), PATIENCE, counted, log).await?;
        let events = [
            "get",
            "events",
            "-n",
            "default",
            "--field-selector",
            "involvedObject.kind=Node",
            "-o",
            "jsonpath={range .items[*]}{.reason} {.message}{\"\\n\"}{end}",
        ];
        self.site.plane.kubectl(&events).await
    }

    /// What was broken is right again: the volume goes on by itself.
    async fn goes_on(&self) -> Result<()> {
        self.proven(None).await?;
        self.volume.wait_ready(&self.site.plane).await?;
        ensure!(!self.closed().await?, "it did not go on");
        Ok(())
    }
}

#[tokio::test]
async fn what_breaks_below_a_volume_shows_at_the_next_proof_and_suspends_it() -> Result<()> {
    let work = WorkDir::new("proof")?;
    let mut site = Site::start(&work, SiteSpec::new(1)).await?;
    site.kill_agent(0).await?;
    let every = ["--proof-interval", "2", "--orphan-interval", "2"];
    site.launch_agent(0, &every).await?;
    let (_, lun, volume) = site.volume("proof").await?;
    let volume = volume
        .with("deletionPolicy", json!("Erase"))
        .with("failClosed", json!(true));
    volume.apply(&site.plane).await?;
    let iqn = lun.target.clone();
    let mut at = Ground { site, lun, volume };
    at.proven(None).await?;
    at.volume.write(at.site.node(0), "written before").await?;
    let open = format!("exec 9<>{}; sleep 100000", at.volume.link());
    let guest = at
        .site
        .node(0)
        .spawn("guest", &["bash", "-c", &open], &[])
        .await?;

    // Zeros where the header was: nothing that a guest would notice.
    let header = at.lun.read_at(0, 1 << 20)?;
    let before = at.proofs().await?;
    at.lun.write_at(0, &vec![0; 1 << 20])?;
    at.shows(Reason::HeaderMissing, before).await?;
    at.lun.write_at(0, &header)?;
    at.goes_on().await?;

    // The link leads to the raw disk.
    let link = at.volume.link();
    let raw = format!(
        "dm=$(readlink -f {link}); raw=$(ls /sys/class/block/${{dm#/dev/}}/slaves); ln -sfn /dev/$raw {link}"
    );
    let before = at.proofs().await?;
    at.site.node(0).sh(&raw).await?.ok()?;
    at.shows(Reason::NotOurs, before).await?;
    at.site.node(0).sh(&format!("rm {link}")).await?.ok()?;
    at.goes_on().await?;

    // A table that does not encrypt in place of the mapping's. Once its guest is gone it is made anew.
    let linear = "name=$(dmsetup info -c --noheadings -o name); set -- $(dmsetup table $name); \
                  echo 0 $2 linear $7 $8 | dmsetup load $name && dmsetup resume $name";
    let before = at.proofs().await?;
    at.site.node(0).sh(linear).await?.ok()?;
    at.shows(Reason::MappingReplaced, before).await?;
    guest.signal("SIGKILL").await?;
    guest.wait(Duration::from_secs(60)).await?;
    at.goes_on().await?;
    ensure!(at.volume.read(at.site.node(0), 14).await? == "written before");

    // Another disk at the LUN, a copy to the byte.
    let stranger = at.site.array.spare(at.lun.size()?)?;
    std::fs::copy(&at.lun.file, &stranger.file)?;
    let before = at.proofs().await?;
    at.site.array.swap_lun(&iqn, 1, &stranger)?;
    at.shows(Reason::WwidMismatch, before).await?;
    at.site.array.swap_lun(&iqn, 1, &at.lun)?;
    at.goes_on().await?;
    ensure!(
        !at.lun.contains(b"written before")?,
        "plaintext on the array"
    );
    what_belongs_to_no_volume_is_told_and_left_alone(&mut at).await?;
    at.volume.delete(&at.site.plane).await?;
    at.volume.wait_gone(&at.site.plane).await?;
    work.passed()
}

/// The NodeVolume is removed by force, beside a mapping and a session of others. When the operator makes it anew, all is the volume's again.
async fn what_belongs_to_no_volume_is_told_and_left_alone(at: &mut Ground) -> Result<()> {
    let iqn = array::iqn("neighbour");
    at.site.array.create_target(&iqn)?;
    at.site.array.create_lun(&iqn, 1, 16 << 20)?;
    let portal = at.site.array.portal();
    let others = format!(
        "set -e; dmsetup create neighbour -u LVM-neighbour --table '0 8 error'
         iscsiadm -m node -T {iqn} -p {portal} -o new >&2; iscsiadm -m node -T {iqn} -p {portal} --login >&2
         dmsetup ls | sort; ls /sys/class/iscsi_session; find /dev/cryptvol -type l"
    );
    let things = "dmsetup ls | sort; ls /sys/class/iscsi_session; find /dev/cryptvol -type l";
    let before = at.site.node(0).sh(&others).await?.ok()?;

    at.site.kill_operator(0)?;
    let namespace = at.volume.namespace.clone();
    let node = at.site.node(0).name().to_owned();
    let object = names::node_volume_name(&at.volume.name, &node);
    let volumes: Api<NodeVolume> = Api::namespaced(at.site.plane.client()?, &namespace);
    let uid = volumes.get(&object).await?.spec.volume_ref.uid;
    let free = json!({"metadata": {"finalizers": null}}).to_string();
    // In this order: an agent lets go of a volume whose deletion waits for it.
    for order in [
        &[
            "patch",
            "nodevolume",
            &object,
            "--type=merge",
            "-p",
            &free,
            "-n",
            &namespace,
        ][..],
        &["delete", "nodevolume", &object, "-n", &namespace],
    ] {
        at.site.plane.kubectl(order).await?;
    }
    let mapping = names::mapping_name(&uid);
    let told = at.orphans("mapping=1 link=1 session=1").await?;
    let found: Vec<_> = told
        .lines()
        .filter(|l| l.starts_with("OrphanFound "))
        .collect();
    ensure!(found.len() == 3, "not one Event each: {told}");
    for part in [
        format!("Mapping {mapping} (/dev/dm-"),
        format!(" to {} through {portal}", at.lun.target),
        format!("made for the volume with UID {uid}, and no NodeVolume of the cluster has that"),
        format!("dmsetup remove {mapping}"),
        format!("rm {}", at.volume.link()),
        "iscsiadm -m session -r ".to_owned(),
    ] {
        ensure!(told.contains(&part), "{part:?} is not told: {told}");
    }
    ensure!(
        !told.contains("neighbour"),
        "what is of others is told: {told}"
    );
    ensure!(
        at.site.node(0).sh(things).await?.ok()? == before,
        "something was taken away"
    );
    ensure!(at.volume.read(at.site.node(0), 14).await? == "written before");

    at.site.start_operator(0).await?;
    let told = at.orphans("mapping=0 link=0 session=0").await?;
    let count = |word: &str| told.lines().filter(|l| l.starts_with(word)).count();
    ensure!(
        count("OrphanFound ") == 3 && count("OrphanGone ") == 3,
        "{told}"
    );
    at.volume.wait_ready(&at.site.plane).await?;
    ensure!(
        at.site.node(0).sh(things).await?.ok()? == before,
        "something was made anew"
    );
    let end = format!("dmsetup remove neighbour; iscsiadm -m node -T {iqn} -p {portal} --logout");
    at.site.node(0).sh(&end).await?.ok().map(drop)
}
