//! The continuous proof on a real kernel: what breaks between the link and the disk shows at the next proof, and `failClosed` suspends the
//! mapping.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cryptvol_crds::conditions::{self, ENCRYPTION_PROVEN, Reason};
use cryptvol_e2e::{
    array::Lun,
    process::wait_for,
    site::{AGENT_ADMIN_PORT, Site, SiteSpec},
    volumes::{PATIENCE, Volume},
    workdir::WorkDir,
};
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
        let what = format!("{ENCRYPTION_PROVEN} {status} {word}");
        let found = |v: &cryptvol_crds::EncryptedVolume| {
            let conditions = v.status.as_ref().map(|s| &s.conditions[..]);
            conditions::get(conditions.unwrap_or_default(), ENCRYPTION_PROVEN)
                .is_some_and(|c| c.status == status && c.reason == word.as_str())
        };
        self.volume
            .wait(&self.site.plane, &what, found)
            .await
            .map(drop)
    }

    /// How many proofs held, and how many did not, since the agent began.
    async fn proofs(&self) -> Result<(u64, u64)> {
        let ask = format!("curl -sf http://127.0.0.1:{AGENT_ADMIN_PORT}/metrics");
        let text = self.site.node(0).sh(&ask).await?.ok()?;
        let count = |result: &str| {
            let name = format!("cryptvol_node_proofs_total{{result=\"{result}\"}} ");
            let value = text.lines().find_map(|l| l.strip_prefix(&name));
            value.map_or(Ok(0), |v| v.trim().parse::<u64>().context("a number"))
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
    site.launch_agent(0, &["--proof-interval", "2"]).await?;
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
    at.volume.delete(&at.site.plane).await?;
    at.volume.wait_gone(&at.site.plane).await?;
    work.passed()
}
