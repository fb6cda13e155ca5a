//! What is done to a volume while it is attached and a guest has it open, on a real kernel: its key replaced, its disk grown, the key
//! taken out of the kernel.

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use cryptvol_crds::conditions::{self, KEY_ROTATED, Reason};
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

const MIB: u64 = 1 << 20;

/// Has the node look at the disk's size.
async fn look(site: &Site, volume: &Volume, name: &str) -> Result<()> {
    let annotation = format!("{}={name}", names::RESCAN_ANNOTATION);
    let argv = [
        "annotate",
        "--overwrite",
        "encryptedvolume",
        "-n",
        &volume.namespace,
        &volume.name,
        &annotation,
    ];
    site.plane.kubectl(&argv).await.map(drop)
}

async fn wait_bytes(site: &Site, volume: &Volume, bytes: u64) -> Result<()> {
    let bytes = i64::try_from(bytes)?;
    volume
        .wait(&site.plane, "grown", |v| {
            v.status
                .as_ref()
                .is_some_and(|s| s.usable_bytes == Some(bytes))
        })
        .await?;
    volume.wait_ready(&site.plane).await.map(drop)
}

/// The last block that the guest was told is written.
async fn written(site: &Site) -> Result<u64> {
    let text = site.node(0).sh("cat /run/guest 2>/dev/null || echo 0");
    Ok(text.await?.ok()?.trim().parse().unwrap_or(0))
}

async fn writes_on(site: &Site, since: u64) -> Result<()> {
    cryptvol_e2e::process::wait_for(
        "the guest to write on",
        cryptvol_e2e::volumes::PATIENCE,
        || async { Ok((written(site).await? > since).then_some(())) },
        String::new,
    )
    .await
}

#[tokio::test]
async fn a_volume_grows_is_suspended_and_resumed_under_a_guest() -> Result<()> {
    let work = WorkDir::new("in-use")?;
    let mut site = Site::start(&work, SiteSpec::new(1)).await?;
    let (_, lun, volume) = site.volume("inuse").await?;
    let volume = volume.with("deletionPolicy", json!("Erase"));
    volume.apply(&site.plane).await?;
    volume.wait_ready(&site.plane).await?;
    volume.write(site.node(0), "written before").await?;
    // The guest writes a block a moment, direct, and notes each that was acknowledged.
    let guest = format!(
        "exec 9<>{link}; i=0; while [ ! -e /run/guest-ends ]; do i=$((i+1)); \
         printf 'block %08d' $i | dd of={link} bs=4096 seek=$i conv=notrunc,sync oflag=direct status=none || exit 7; \
         echo $i >/run/guest; sleep .05; done",
        link = volume.link()
    );
    let guest = site
        .node(0)
        .spawn("guest", &["bash", "-c", &guest], &[])
        .await?;
    writes_on(&site, 0).await?;

    // The key out of the kernel: the guest waits, and nothing of the key is in the mapping's table.
    volume
        .clone()
        .with("suspended", json!(true))
        .apply(&site.plane)
        .await?;
    volume.wait_reason(&site.plane, Reason::Suspended).await?;
    let table = "dmsetup info -c --noheadings -o suspended; dmsetup table --showkeys";
    let table = site.node(0).sh(table).await?.ok()?;
    ensure!(
        table.contains("Suspended") && !table.contains(":logon:"),
        "the mapping is {table}"
    );
    // What was on its way is written out; after it nothing is.
    let stands = written(&site).await?;
    let sum = lun.sha256()?;
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    ensure!(lun.sha256()? == sum, "the disk was written to");
    ensure!(
        written(&site).await? <= stands + 1,
        "the guest was told that more was written"
    );
    ensure!(guest.exit_code().await?.is_none(), "the guest saw an error");
    volume.apply(&site.plane).await?;
    volume.wait_ready(&site.plane).await?;
    writes_on(&site, stands + 1).await?;
    ensure!(volume.read(site.node(0), 14).await? == "written before");

    let iqn = lun.target.clone();
    site.array.resize_lun(&iqn, 1, 128 * MIB)?;
    look(&site, &volume, "look-1").await?;
    wait_bytes(&site, &volume, 112 * MIB).await?;
    let size = format!("blockdev --getsize64 {}", volume.link());
    let seen = site.node(0).sh(&size).await?.ok()?;
    ensure!(
        seen.trim() == (112 * MIB).to_string(),
        "the device has {seen}"
    );
    // The new part is encrypted as well.
    let far = format!(
        "printf 'beyond the old end' | dd of={} bs=1M seek=100 conv=fsync status=none",
        volume.link()
    );
    site.node(0).sh(&far).await?.ok()?;
    ensure!(
        !lun.contains(b"beyond the old end")?,
        "plaintext on the array"
    );

    // Killed before and after the step; then smaller, which is refused.
    for (number, when) in ["before", "after"].into_iter().enumerate() {
        let size = (192 + 64 * number as u64) * MIB;
        site.kill_agent(0).await?;
        site.array.resize_lun(&iqn, 1, size)?;
        look(&site, &volume, &format!("look-{when}")).await?;
        let fail_point = format!("grow:{when}:exit");
        site.launch_agent(0, &["--failpoint", &fail_point]).await?;
        ensure!(site.agent_exit(0).await? == 86, "{fail_point}");
        site.start_agent(0).await?;
        wait_bytes(&site, &volume, size - 16 * MIB).await?;
    }
    for when in ["before", "after"] {
        for (step, suspended) in [("suspend", true), ("resume", false)] {
            let fail_point = format!("{step}:{when}:exit");
            site.kill_agent(0).await?;
            let wish = volume.clone().with("suspended", json!(suspended));
            wish.apply(&site.plane).await?;
            site.launch_agent(0, &["--failpoint", &fail_point]).await?;
            ensure!(site.agent_exit(0).await? == 86, "{fail_point}");
            site.start_agent(0).await?;
            match suspended {
                true => drop(volume.wait_reason(&site.plane, Reason::Suspended).await?),
                false => drop(volume.wait_ready(&site.plane).await?),
            }
        }
    }
    writes_on(&site, written(&site).await?).await?;
    site.node(0).sh("touch /run/guest-ends").await?.ok()?;
    let code = guest.wait(std::time::Duration::from_secs(60)).await?;
    ensure!(code == 0, "the guest ended with {code}");
    // Every block that was acknowledged is there.
    let last = written(&site).await?;
    let check = format!(
        "for i in $(seq {last}); do dd if={} bs=4096 skip=$i count=1 status=none | head -c 14; echo; done",
        volume.link()
    );
    let blocks = site.node(0).sh(&check).await?.ok()?;
    for (number, block) in (1..).zip(blocks.lines()) {
        ensure!(
            block == format!("block {number:08}"),
            "block {number} is {block:?}"
        );
    }

    site.array.resize_lun(&iqn, 1, 96 * MIB)?;
    look(&site, &volume, "look-smaller").await?;
    let message = volume
        .wait_reason(&site.plane, Reason::SizeMismatch)
        .await?;
    ensure!(message.contains("smaller"), "{message}");
    let seen = site.node(0).sh(&size).await?.ok()?;
    ensure!(
        seen.trim() == (240 * MIB).to_string(),
        "the mapping was changed to {seen}"
    );
    site.array.resize_lun(&iqn, 1, 256 * MIB)?;
    look(&site, &volume, "look-larger").await?;
    volume.wait_ready(&site.plane).await?;
    volume.delete(&site.plane).await?;
    volume.wait_gone(&site.plane).await?;
    work.passed()
}
