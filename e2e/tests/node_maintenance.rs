//! What is done to a volume while it is attached and a guest has it open, on a real kernel: its key replaced.

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use cryptvol_crds::conditions::{self, KEY_ROTATED};
use cryptvol_crds::names;
use cryptvol_e2e::array::Lun;
use cryptvol_e2e::site::{Site, SiteSpec};
use cryptvol_e2e::volumes::Volume;
use cryptvol_e2e::workdir::WorkDir;
use serde_json::json;

/// Whether a passphrase opens the header on the array, and how many key slots that has, as cryptsetup sees it.
fn header(lun: &Lun, passphrase: &str) -> Result<(bool, usize)> {
    let run = |arguments: &[&str], input: &str| -> Result<std::process::Output> {
        let mut child = Command::new("cryptsetup")
            .args(arguments)
            .arg(&lun.file)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut pipe = child.stdin.take().context("standard input")?;
        // It may have ended before it reads.
        let _ = pipe.write_all(input.as_bytes());
        drop(pipe);
        Ok(child.wait_with_output()?)
    };
    let test = [
        "open",
        "--test-passphrase",
        "--type",
        "luks2",
        "--key-file=-",
    ];
    let opens = run(&test, passphrase)?.status;
    ensure!(
        matches!(opens.code(), Some(0 | 2)),
        "cryptsetup says neither yes nor no: {opens}"
    );
    let dump = run(&["luksDump", "--dump-json-metadata"], "")?;
    let metadata: serde_json::Value = serde_json::from_slice(&dump.stdout)?;
    let slots = metadata["keyslots"].as_object().context("key slots")?;
    Ok((opens.success(), slots.len()))
}

async fn ask_for_rotation(site: &Site, volume: &Volume, version: i64) -> Result<()> {
    let annotation = format!("{}={version}", names::ROTATE_KEY_ANNOTATION);
    let argv = [
        "annotate",
        "encryptedvolume",
        "-n",
        &volume.namespace,
        &volume.name,
        &annotation,
    ];
    site.plane.kubectl(&argv).await.map(drop)
}

#[tokio::test]
async fn invariant_08_a_key_is_rotated_under_a_guest_and_the_agent_dies_at_every_step() -> Result<()>
{
    let work = WorkDir::new("rotate")?;
    let mut site = Site::start(&work, SiteSpec::new(1)).await?;
    let (tenant, lun, volume) = site.volume("rotate").await?;
    let volume = volume.with("deletionPolicy", json!("Erase"));
    volume.apply(&site.plane).await?;
    let ready = volume.wait_ready(&site.plane).await?;
    volume.write(site.node(0), "written before").await?;
    let mut key = ready.status.and_then(|s| s.key).context("a key")?;
    let mut guest = format!("exec 9<>{}; sleep 100000", volume.link());
    let mut open = site
        .node(0)
        .spawn("guest", &["bash", "-c", &guest], &[])
        .await?;

    for (fail_point, power_cut) in [
        ("add-key-slot:before:exit", false),
        ("add-key-slot:after:exit", true),
        ("drop-key-slots:before:exit", false),
        ("drop-key-slots:after:exit", true),
    ] {
        let former = site.keystone.passphrase(&tenant, &key.id).await?;
        ensure!(header(&lun, &former)? == (true, 1), "{fail_point}: before");
        site.kill_agent(0).await?;
        ask_for_rotation(&site, &volume, key.version).await?;
        site.launch_agent(0, &["--failpoint", fail_point]).await?;
        ensure!(
            site.agent_exit(0).await? == 86,
            "{fail_point}: the agent did not end there"
        );
        // Invariant 8: whatever is on record now opens the disk.
        let seen = volume.get(&site.plane).await?.and_then(|v| v.status?.key);
        let on_record = seen.context("a key")?;
        let passphrase = site.keystone.passphrase(&tenant, &on_record.id).await?;
        ensure!(
            header(&lun, &passphrase)?.0,
            "{fail_point}: the key on record does not open"
        );
        if power_cut {
            site.power_cycle(0).await?;
        } else {
            site.start_agent(0).await?;
        }
        let rotated = volume
            .wait(&site.plane, "rotated", |v| {
                v.status.as_ref().is_some_and(|s| {
                    s.rotation.is_none()
                        && s.key.as_ref().is_some_and(|k| k.version == key.version + 1)
                        && conditions::is_true(&s.conditions, KEY_ROTATED)
                })
            })
            .await
            .with_context(|| fail_point.to_owned())?;
        let status = rotated.status.context("a status")?;
        let new = status.key.context("a key")?;
        let passphrase = site.keystone.passphrase(&tenant, &new.id).await?;
        ensure!(
            header(&lun, &passphrase)? == (true, 1),
            "{fail_point}: the new key"
        );
        ensure!(
            !header(&lun, &former)?.0,
            "{fail_point}: the former key still opens the disk"
        );
        ensure!(
            !site.keystone.has_secret(&tenant, &key.id).await?,
            "{fail_point}: the former key is still there"
        );
        volume.wait_ready(&site.plane).await?;
        if power_cut {
            let path = volume.link();
            guest = format!("until exec 9<>{path}; do sleep .1; done; sleep 100000");
            open = site
                .node(0)
                .spawn("guest", &["bash", "-c", &guest], &[])
                .await?;
        }
        ensure!(
            volume.read(site.node(0), 14).await? == "written before",
            "{fail_point}: the data is gone"
        );
        key = new;
    }
    open.signal("SIGKILL").await?;
    open.wait(std::time::Duration::from_secs(20)).await?;
    volume.delete(&site.plane).await?;
    volume.wait_gone(&site.plane).await?;
    ensure!(
        !site.keystone.has_secret(&tenant, &key.id).await?,
        "a key is left"
    );
    work.passed()
}
