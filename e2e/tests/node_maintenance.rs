//! What is done to a volume while it is attached and a guest has it open, on a real kernel: its key replaced, its disk grown, the key
//! taken out of the kernel, and the proof that it is what it should be.

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use cryptvol_crds::conditions::{self, KEY_ROTATED, Reason};
use cryptvol_crds::{NodeVolume, names};
use cryptvol_e2e::array::Lun;
use cryptvol_e2e::node::Spawned;
use cryptvol_e2e::process::wait_for;
use cryptvol_e2e::site::{Site, SiteSpec};
use cryptvol_e2e::volumes::{PATIENCE, Volume};
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

#[tokio::test]
async fn peer_failure_14_a_key_is_rotated_under_a_guest_and_the_agent_dies_at_every_step()
-> Result<()> {
    let work = WorkDir::new("rotate")?;
    let mut site = Site::start(&work, SiteSpec::new(1)).await?;
    let (tenant, lun, volume) = site.volume("rotate").await?;
    let volume = volume.with("deletionPolicy", json!("Erase"));
    volume.apply(&site.plane).await?;
    let ready = volume.wait_ready(&site.plane).await?;
    volume.write(site.node(0), "written before").await?;
    let status = ready.status.context("a status")?;
    let (mut key, mut backup) = (status.key.context("a key")?, status.header_backup);
    ensure!(backup.is_some(), "there is no backup of the header");
    let mut guest = format!("exec 9<>{}; sleep 100000", volume.link());
    let mut open = site
        .node(0)
        .spawn("guest", &["bash", "-c", &guest], &[])
        .await?;

    // The agent is killed or, where it hangs, the node's power is cut; and how many key slots there are then.
    for (fail_point, slots) in [
        ("add-key-slot:before:kill", 1),
        ("add-key-slot:after:kill", 2),
        ("add-key-slot:after:hang", 2),
        ("drop-key-slots:before:kill", 2),
        ("drop-key-slots:before:hang", 2),
        ("drop-key-slots:after:hang", 1),
    ] {
        let power_cut = fail_point.ends_with(":hang");
        let former = site.keystone.passphrase(&tenant, &key.id).await?;
        ensure!(header(&lun, &former)? == (true, 1), "{fail_point}: before");
        site.kill_agent(0).await?;
        volume
            .annotate(
                &site.plane,
                names::ROTATE_KEY_ANNOTATION,
                &key.version.to_string(),
            )
            .await?;
        site.strike(0, fail_point).await?;
        // Invariant 8: whatever is on record now opens the disk.
        let seen = volume.get(&site.plane).await?.and_then(|v| v.status?.key);
        let on_record = seen.context("a key")?;
        let passphrase = site.keystone.passphrase(&tenant, &on_record.id).await?;
        ensure!(
            header(&lun, &passphrase)? == (true, slots),
            "{fail_point}: does the key on record open, and how many slots are there? {:?}",
            header(&lun, &passphrase)?
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
        let sealed = status.header_backup.context("a backup of the header")?;
        ensure!(
            backup.as_ref() != Some(&sealed),
            "{fail_point}: the backup is of the former key"
        );
        backup = Some(sealed);
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
    volume
        .annotate(&site.plane, names::RESCAN_ANNOTATION, name)
        .await
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
    wait_for(
        "the guest to write on",
        PATIENCE,
        || async { Ok((written(site).await? > since).then_some(())) },
        String::new,
    )
    .await
}

/// A guest that writes a block a moment, direct, and notes each that was acknowledged.
async fn writing_guest(site: &Site, volume: &Volume) -> Result<Spawned> {
    let guest = format!(
        "exec 9<>{link}; i=0; while [ ! -e /run/guest-ends ]; do i=$((i+1)); \
         printf 'block %08d' $i | dd of={link} bs=4096 seek=$i conv=notrunc,sync oflag=direct status=none || exit 7; \
         echo $i >/run/guest; sleep .05; done",
        link = volume.link()
    );
    let node = site.node(0);
    let guest = node.spawn("guest", &["bash", "-c", &guest], &[]).await?;
    writes_on(site, 0).await?;
    Ok(guest)
}

/// The guest saw no error, and every block that was acknowledged is there.
async fn guest_ends_well(site: &Site, volume: &Volume, guest: &Spawned) -> Result<()> {
    writes_on(site, written(site).await?).await?;
    site.node(0).sh("touch /run/guest-ends").await?.ok()?;
    let code = guest.wait(std::time::Duration::from_secs(60)).await?;
    ensure!(code == 0, "the guest ended with {code}");
    let last = written(site).await?;
    let check = format!(
        "dd if={} bs=4096 skip=1 count={last} iflag=direct status=none | tr '\\0' '\\n' | grep .",
        volume.link()
    );
    let blocks = site.node(0).sh(&check).await?.ok()?;
    let expected: String = (1..=last).map(|i| format!("block {i:08}\n")).collect();
    ensure!(
        blocks == expected,
        "{last} blocks were acknowledged, and there are {blocks}"
    );
    Ok(())
}

/// Kills the agent before or after a step, once the wish is there that leads to it, and starts it anew.
async fn killed_at(
    site: &mut Site,
    point: &str,
    wish: impl AsyncFnOnce(&mut Site) -> Result<()>,
) -> Result<()> {
    site.kill_agent(0).await?;
    wish(site).await?;
    site.strike(0, &format!("{point}:kill")).await?;
    site.start_agent(0).await
}

#[tokio::test]
async fn peer_failure_11_a_disk_grows_under_its_guest_and_the_agent_dies_at_every_step()
-> Result<()> {
    let work = WorkDir::new("grow")?;
    let mut site = Site::start(&work, SiteSpec::new(1)).await?;
    let (_, lun, volume) = site.volume("grow").await?;
    let volume = volume.with("deletionPolicy", json!("Erase"));
    volume.apply(&site.plane).await?;
    volume.wait_ready(&site.plane).await?;
    let guest = writing_guest(&site, &volume).await?;
    let iqn = lun.target.clone();
    let mut size = 128 * MIB;
    site.array.resize_lun(&iqn, 1, size)?;
    look(&site, &volume, "look").await?;
    wait_bytes(&site, &volume, size - 16 * MIB).await?;
    let device = format!("blockdev --getsize64 {}", volume.link());
    let seen = site.node(0).sh(&device).await?.ok()?;
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

    // Before a step is after the one before it.
    for point in [
        "scan:before",
        "scan:after",
        "read-header:after",
        "release-key:after",
        "grow:after",
    ] {
        size += 16 * MIB;
        killed_at(&mut site, point, async |site| {
            site.array.resize_lun(&iqn, 1, size)?;
            look(site, &volume, &point.replace(':', "-")).await
        })
        .await?;
        wait_bytes(&site, &volume, size - 16 * MIB)
            .await
            .with_context(|| point.to_owned())?;
    }
    guest_ends_well(&site, &volume, &guest).await?;

    // Smaller is refused, and nothing is changed.
    site.array.resize_lun(&iqn, 1, 96 * MIB)?;
    look(&site, &volume, "look-smaller").await?;
    let message = volume
        .wait_reason(&site.plane, Reason::SizeMismatch)
        .await?;
    ensure!(message.contains(&(96 * MIB).to_string()), "{message}");
    let seen = site.node(0).sh(&device).await?.ok()?;
    ensure!(
        seen.trim() == (size - 16 * MIB).to_string(),
        "the mapping was changed to {seen}"
    );
    site.array.resize_lun(&iqn, 1, size)?;
    look(&site, &volume, "look-larger").await?;
    volume.wait_ready(&site.plane).await?;
    volume.delete(&site.plane).await?;
    volume.wait_gone(&site.plane).await?;
    work.passed()
}

/// The key that encrypts the volume's sectors, in hexadecimal digits, as cryptsetup takes it from the header.
fn volume_key(work: &WorkDir, lun: &Lun, passphrase: &str) -> Result<String> {
    let (pass, key) = (
        work.path().join("passphrase"),
        work.path().join("volume-key"),
    );
    std::fs::write(&pass, passphrase)?;
    let dump = Command::new("cryptsetup")
        .args(["luksDump", "--batch-mode", "--dump-volume-key"])
        .arg(format!("--key-file={}", pass.display()))
        .arg(format!("--volume-key-file={}", key.display()))
        .arg(&lun.file)
        .output()?;
    ensure!(
        dump.status.success(),
        "{}",
        String::from_utf8_lossy(&dump.stderr)
    );
    Ok(std::fs::read(key)?
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect())
}

/// What the kernel says that could hold a key: both tables, states, and the list of all keys.
async fn kernel_says(site: &Site) -> Result<String> {
    let ask = "dmsetup info -c --noheadings -o name,suspended; dmsetup table --showkeys; dmsetup table --inactive --showkeys; \
               dmsetup status; cat /proc/keys; keyctl show 2>/dev/null; true";
    site.node(0).sh(ask).await?.ok()
}

#[tokio::test]
async fn a_volume_is_suspended_with_its_key_wiped_and_resumed_under_its_guest() -> Result<()> {
    let work = WorkDir::new("suspend")?;
    let mut site = Site::start(&work, SiteSpec::new(1)).await?;
    let (tenant, lun, volume) = site.volume("suspend").await?;
    let volume = volume.with("deletionPolicy", json!("Erase"));
    volume.apply(&site.plane).await?;
    let ready = volume.wait_ready(&site.plane).await?;
    let key = ready.status.and_then(|s| s.key).context("a key")?;
    let passphrase = site.keystone.passphrase(&tenant, &key.id).await?;
    let secret = volume_key(&work, &lun, &passphrase)?;
    let guest = writing_guest(&site, &volume).await?;
    let suspended = volume.clone().with("suspended", json!(true));

    // The guest waits, and the kernel has the key nowhere.
    suspended.apply(&site.plane).await?;
    volume.wait_reason(&site.plane, Reason::Suspended).await?;
    let says = kernel_says(&site).await?;
    ensure!(says.contains("Suspended"), "the mapping is live: {says}");
    for trace in [
        &secret[..],
        &secret[..64],
        &secret[64..],
        ":logon:",
        "cryptvol:",
    ] {
        ensure!(
            !says.contains(trace),
            "{trace:.9} is in the kernel's answers: {says}"
        );
    }
    let secrets = [
        ("volume-key", &hex::decode(&secret)?[..]),
        ("passphrase", passphrase.as_bytes()),
    ];
    let found = cryptvol_e2e::search::on_node(site.node(0), &secrets).await?;
    ensure!(found.is_empty(), "on the node: {found:?}");
    let stands = written(&site).await?;
    let sum = lun.sha256()?;
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    ensure!(lun.sha256()? == sum, "the disk was written to");
    ensure!(
        written(&site).await? <= stands + 1,
        "the guest was told that more was written"
    );
    ensure!(guest.exit_code().await?.is_none(), "the guest saw an error");

    // A header that the key on record does not open: nothing goes on. As it was: it does.
    let header = lun.read_at(0, 16 << 20)?;
    change_passphrase(&work, &lun, &passphrase)?;
    volume.apply(&site.plane).await?;
    volume
        .wait_reason(&site.plane, Reason::KeyDoesNotOpen)
        .await?;
    let says = kernel_says(&site).await?;
    ensure!(
        says.contains("Suspended") && !says.contains(":logon:"),
        "it went on: {says}"
    );
    lun.write_at(0, &header)?;
    volume.wait_ready(&site.plane).await?;
    writes_on(&site, stands + 1).await?;

    for when in ["before", "after"] {
        for (step, wish) in [("suspend", &suspended), ("resume", &volume)] {
            let point = format!("{step}:{when}");
            killed_at(&mut site, &point, async |site| {
                wish.apply(&site.plane).await
            })
            .await?;
            match step {
                "suspend" => drop(volume.wait_reason(&site.plane, Reason::Suspended).await?),
                _ => drop(volume.wait_ready(&site.plane).await?),
            }
        }
    }
    guest_ends_well(&site, &volume, &guest).await?;

    // A node that loses its power meanwhile opens nothing.
    suspended.apply(&site.plane).await?;
    volume.wait_reason(&site.plane, Reason::Suspended).await?;
    site.power_cycle(0).await?;
    let nodes: kube::Api<NodeVolume> =
        kube::Api::namespaced(site.plane.client()?, &volume.namespace);
    wait_for(
        "the node to report what it has after its restart",
        PATIENCE,
        || async {
            let all = nodes.list(&Default::default()).await?;
            let seen = all.items.into_iter().find_map(|v| v.status);
            Ok(seen
                .filter(|s| s.suspended && s.mapping.is_none())
                .map(drop))
        },
        String::new,
    )
    .await?;
    volume.wait_reason(&site.plane, Reason::Suspended).await?;
    let says = kernel_says(&site).await?;
    ensure!(!says.contains("cryptvol"), "something was opened: {says}");
    site.node(0)
        .sh(&format!("[ ! -e {} ]", volume.link()))
        .await?
        .ok()?;
    volume.apply(&site.plane).await?;
    volume.wait_ready(&site.plane).await?;
    ensure!(
        volume
            .read(site.node(0), 4096 + 14)
            .await?
            .ends_with("block 00000001")
    );
    volume.delete(&site.plane).await?;
    volume.wait_gone(&site.plane).await?;
    work.passed()
}

/// The volume's key slot opens by another passphrase from now on.
fn change_passphrase(work: &WorkDir, lun: &Lun, passphrase: &str) -> Result<()> {
    let (old, new) = (work.path().join("passphrase"), work.path().join("other"));
    std::fs::write(&old, passphrase)?;
    std::fs::write(&new, "somebody else's")?;
    let change = Command::new("cryptsetup")
        .args([
            "luksChangeKey",
            "--batch-mode",
            "--pbkdf=pbkdf2",
            "--pbkdf-force-iterations=1000",
        ])
        .arg(format!("--key-file={}", old.display()))
        .arg(&lun.file)
        .arg(&new)
        .output()?;
    ensure!(
        change.status.success(),
        "{}",
        String::from_utf8_lossy(&change.stderr)
    );
    Ok(())
}
