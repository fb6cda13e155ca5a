//! Volumes on disks of the node itself: no array, no session, and the disk is there before and after.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use cryptvol_crds::{
    conditions::{self, Reason},
    names,
    orphans::Orphans,
};
use cryptvol_e2e::process::{self, wait_for};
use cryptvol_e2e::site::{AGENT_LOG, Site, SiteSpec};
use cryptvol_e2e::volumes::{PATIENCE, Volume};
use cryptvol_e2e::workdir::WorkDir;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use serde_json::json;

/// Logical volume of the node, and the device-mapper UUID that tells it from all others.
const LV: &str = "/dev/mapper/vg-data";
const UUID: &str = "LVM-cryptvol-test-0001";
const MIB: usize = 1 << 20;
/// A file that stands for a disk.
const FILE: &str = "/var/lib/cryptvol/volumes/scratch.img";

/// Scratch space: no credentials, for nobody is asked for a key.
fn scratch(name: &str, ephemeral: serde_json::Value) -> Result<Volume> {
    let mut volume = Volume::iscsi("local", name, "unused", "unused", 0, "local")
        .with("source", json!({"ephemeral": ephemeral}))
        .on("node-1");
    let spec = volume.manifest["spec"].as_object_mut();
    spec.context("a spec")?.remove("credentials");
    Ok(volume)
}

struct Ground {
    work: WorkDir,
    site: Site,
}

impl Ground {
    /// An image lies where the node's power cut leaves it; here as the node sees it.
    fn image(&self, name: &str) -> String {
        format!("/cv/{name}")
    }

    fn outside(&self, name: &str) -> PathBuf {
        self.site.node(0).shared_dir().join(name)
    }

    fn content(&self, name: &str) -> Result<Vec<u8>> {
        let path = self.outside(name);
        std::fs::read(&path).with_context(|| format!("read {}", path.display()))
    }

    async fn node(&self, script: &str) -> Result<String> {
        self.site
            .node(0)
            .sh(&format!("set -e\n{script}"))
            .await?
            .ok()
    }

    /// A logical volume over an image, as the node's own boot would bring it back.
    async fn activate(&self, image: &str, uuid: &str) -> Result<()> {
        self.node(&format!(
            "dev=$(losetup --find --show {})
             dmsetup create vg-data --uuid {uuid} --table \"0 $(blockdev --getsz $dev) linear $dev 0\"
             [ -b {LV} ] || dmsetup mknodes",
            self.image(image)
        ))
        .await
        .map(drop)
    }

    /// The directory for files, on what outlives a power cut: as an administrator mounts it.
    async fn mount_volumes(&self) -> Result<()> {
        self.node(
            "mkdir -p /cv/volumes /var/lib/cryptvol/volumes
             mount --bind /cv/volumes /var/lib/cryptvol/volumes",
        )
        .await
        .map(drop)
    }

    /// Loop devices over the file.
    async fn loops(&self) -> Result<usize> {
        let all = self.node("cat /sys/block/loop*/loop/backing_file").await;
        let all = all.unwrap_or_default(); // none at all
        Ok(all.lines().filter(|l| l.contains("scratch.img")).count())
    }

    /// The file is a disk with a header, and nothing of what was written can be read in it.
    fn is_ciphertext(&self, name: &str, text: &str) -> Result<()> {
        let raw = self.content(name)?;
        ensure!(raw.starts_with(b"LUKS"), "no header in {name}");
        let plain = raw.windows(text.len()).any(|w| w == text.as_bytes());
        ensure!(!plain, "plaintext in {name}");
        Ok(())
    }

    /// The passphrase opens the header in an image, as it lies there.
    async fn opens(&self, image: &str, passphrase: &str) -> Result<()> {
        let image = self.image(image);
        let argv = [
            "cryptsetup",
            "open",
            "--test-passphrase",
            "--key-file=-",
            &image,
        ];
        let limit = std::time::Duration::from_secs(120);
        let node = self.site.node(0);
        node.exec_with(&argv, &[], passphrase.as_bytes(), limit)
            .await?
            .ok()
            .map(drop)
    }

    /// What the kernel still has of scratch space that is off this node: nothing, and no key of anybody's lies about.
    async fn is_clean(&self, volume: &Volume) -> Result<()> {
        let link = volume.link();
        self.node(&format!(
            "test ! -e {link}
             if grep -sF 'ephemeral@' /sys/block/loop*/loop/backing_file; then exit 1; fi
             ! grep -E 'logon +cryptvol' /proc/keys"
        ))
        .await
        .map(drop)
    }

    /// Loop devices over files of the directory that are no volume's are told, whatever path they were made by, and stay. Those of volumes
    /// are not told, nor is one over a file of the same name elsewhere.
    async fn loops_of_nobody(&self) -> Result<()> {
        let made = self
            .node(
                "truncate -s 32M /cv/volumes/one.img /cv/volumes/two.img /run/one.img
                 losetup --find /run/one.img
                 losetup --find --show /var/lib/cryptvol/volumes/one.img
                 losetup --find --show /cv/volumes/two.img",
            )
            .await?;
        let devices: Vec<_> = made.lines().collect();
        let told = self.orphans(2).await?;
        for (device, file) in devices.iter().zip(["one.img", "two.img"]) {
            let what =
                format!("loop device {device} over the file /var/lib/cryptvol/volumes/{file}");
            ensure!(
                told.orphans.iter().any(
                    |o| o.what == what && o.next_step.contains(&format!("losetup -d {device}"))
                ),
                "{what} is not told: {told:?}"
            );
            // Nobody took it away.
            self.node(&format!("losetup {device}; losetup -d {device}"))
                .await?;
        }
        self.orphans(0).await?;
        self.node(
            "losetup -d $(losetup --noheadings --output NAME --associated /run/one.img)
             rm /run/one.img /cv/volumes/one.img /cv/volumes/two.img",
        )
        .await
        .map(drop)
    }

    /// Loop devices of somebody's over a part of a volume's file are not taken for its disk, and stay. Where one can write into the file there
    /// is no second one beside it.
    async fn parts_of_others(&self, volume: &Volume, text: &str) -> Result<()> {
        let (plane, node) = (&self.site.plane, self.site.node(0));
        for (part, writes) in [
            ("--read-only --offset 1048576", false),
            ("--read-only", false),
            ("--sizelimit 32M", true),
            ("--offset 4096", true),
        ] {
            volume.clone().detached().apply(plane).await?;
            volume.wait_detached(plane).await?;
            let made = format!("losetup --find --show {part} {FILE}");
            let made = self.node(&made).await?.trim().to_owned();
            volume.apply(plane).await?;
            if writes {
                let said = volume.wait_reason(plane, Reason::DeviceInUse).await?;
                ensure!(said.contains(&format!("losetup -d {made}")), "{said}");
                ensure!(self.loops().await? == 1, "{part}: another one beside it");
                self.node(&format!("losetup -d {made}")).await?;
            }
            volume.wait_ready(plane).await?;
            let read = volume.read(node, text.len()).await?;
            ensure!(read == text, "{part}: {read:?}");
            if !writes {
                ensure!(self.loops().await? == 2, "{part}: not beside it");
                volume.clone().detached().apply(plane).await?;
                volume.wait_detached(plane).await?;
                ensure!(self.loops().await? == 1, "{part}: it was taken away");
                self.node(&format!("losetup -d {made}")).await?;
                volume.apply(plane).await?;
                volume.wait_ready(plane).await?;
            }
        }
        Ok(())
    }

    /// Waits until the Node tells so many that belong to no volume.
    async fn orphans(&self, count: usize) -> Result<Orphans> {
        let nodes: Api<Node> = Api::all(self.site.plane.client()?);
        let node = self.site.node(0);
        let told = || async {
            let annotations = nodes.get(node.name()).await?.metadata.annotations;
            let said = annotations.and_then(|a| a.get(names::ORPHANS_ANNOTATION).cloned());
            let said: Orphans = match said {
                Some(text) => serde_json::from_str(&text)?,
                None => Orphans::default(),
            };
            Ok((said.orphans.len() == count).then_some(said))
        };
        let log = || process::tail(&node.log_path(AGENT_LOG), 25);
        wait_for(&format!("{count} orphans"), PATIENCE, told, log).await
    }

    async fn deactivate(&self) -> Result<()> {
        self.node("dmsetup remove --retry vg-data; losetup -D")
            .await
            .map(drop)
    }
}

#[tokio::test]
async fn local_disks_and_files_come_back_after_a_power_cut_and_no_other_at_their_path() -> Result<()>
{
    let work = WorkDir::new("local")?;
    let site = Site::start(&work, SiteSpec::new(1)).await?;
    let mut ground = Ground { work, site };
    for image in ["disk", "other"] {
        std::fs::write(ground.outside(image), vec![0; 64 * MIB])?;
    }
    let tenant = ground.site.tenant("local").await?;
    let volume = Volume::iscsi("local", "vol", "unused", "unused", 0, "local")
        .with("source", json!({"device": {"path": LV}}))
        .with("deletionPolicy", json!("Erase"))
        .on("node-1");

    // Nothing there yet; then something that is mounted; then the disk.
    volume.apply(&ground.site.plane).await?;
    let plane = &ground.site.plane;
    let said = volume.wait_reason(plane, Reason::DeviceNotFound).await?;
    ensure!(said.contains(LV), "{said}");
    let mounted = ground.image("mounted");
    ground
        .node(&format!(
            "truncate -s 64M {mounted}; mkfs.ext4 -q {mounted}; mkdir -p /run/mounted"
        ))
        .await?;
    ground.activate("mounted", "LVM-mounted").await?;
    ground.node(&format!("mount {LV} /run/mounted")).await?;
    let said = volume.wait_reason(plane, Reason::DeviceInUse).await?;
    ensure!(said.contains("a mount at /run/mounted"), "{said}");
    ground.node("umount /run/mounted").await?;
    let said = volume.wait_reason(plane, Reason::ForeignSignature).await?;
    ensure!(said.contains("ext4"), "{said}");
    ground.deactivate().await?;
    ground.activate("disk", UUID).await?;
    let ready = volume.wait_ready(plane).await?;
    let status = ready.status.context("a status")?;
    ensure!(status.wwid.as_deref() == Some(UUID), "{:?}", status.wwid);
    let key = status.key.context("a key")?;
    let text = "written on a local disk";
    volume.write(ground.site.node(0), text).await?;
    ground.is_ciphertext("disk", text)?;

    // Its key is rotated below its own mapping, which has the disk: the former key opens nothing any more.
    let former = ground.site.keystone.passphrase(&tenant, &key.id).await?;
    volume
        .annotate(
            plane,
            names::ROTATE_KEY_ANNOTATION,
            &key.version.to_string(),
        )
        .await?;
    let rotated = volume
        .wait(plane, "rotated", |v| {
            v.status.as_ref().is_some_and(|s| {
                s.rotation.is_none()
                    && s.key.as_ref().is_some_and(|k| k.version == key.version + 1)
                    && conditions::is_true(&s.conditions, conditions::KEY_ROTATED)
            })
        })
        .await?;
    let key = rotated.status.and_then(|s| s.key).context("a new key")?;
    let new = ground.site.keystone.passphrase(&tenant, &key.id).await?;
    ground.opens("disk", &new).await?;
    ensure!(
        ground.opens("disk", &former).await.is_err(),
        "the former key still opens the disk"
    );
    volume.wait_ready(plane).await?;
    let found = volume.read(ground.site.node(0), text.len()).await?;
    ensure!(found == text, "{found:?} after the rotation");

    // A file is made, sparse, and offered by one loop device.
    ground.mount_volumes().await?;
    let file = Volume::iscsi("local", "file", "unused", "unused", 0, "local")
        .with("source", json!({"file": {"path": FILE, "size": "64Mi"}}))
        .with("deletionPolicy", json!("Erase"))
        .on("node-1");
    file.apply(plane).await?;
    file.wait_ready(plane).await?;
    let filed = "written in a file";
    file.write(ground.site.node(0), filed).await?;
    ground.is_ciphertext("volumes/scratch.img", filed)?;
    ground.parts_of_others(&file, filed).await?;
    let twin = Volume::iscsi("local", "twin", "unused", "unused", 0, "local")
        .with("source", json!({"file": {"path": FILE, "size": "64Mi"}}))
        .on("node-1");
    twin.apply(plane).await?;
    twin.wait_reason(plane, Reason::SourceInUse).await?;
    twin.delete(plane).await?;
    twin.wait_gone(plane).await?;

    // More is asked for than there is room, which changes nothing; then what there is room for, and it is there. Never less again.
    let sized = |size: &str| {
        let source = json!({"file": {"path": FILE, "size": size}});
        file.clone().with("source", source)
    };
    sized("99Ti").apply(plane).await?;
    let said = file.wait_reason(plane, Reason::FileSystemFull).await?;
    ensure!(said.contains("bytes free"), "{said}");
    ensure!(
        ground.content("volumes/scratch.img")?.len() == 64 * MIB,
        "it is longer"
    );
    sized("96Mi").apply(plane).await?;
    file.wait(plane, "longer", |v| {
        v.status.as_ref().is_some_and(|s| {
            s.size_bytes == Some(96 << 20)
                && s.usable_bytes == Some(80 << 20)
                && conditions::is_true(&s.conditions, conditions::READY)
        })
    })
    .await?;
    let link = file.link();
    ground
        .node(&format!(
            "test $(blockdev --getsize64 {link}) = $((80 << 20))
             printf '{filed}' | dd of={link} bs=4096 seek=20479 conv=notrunc,fsync status=none
             dd if={link} bs=4096 skip=20479 count=1 status=none | head -c {} | grep -qxF '{filed}'",
            filed.len()
        ))
        .await?;
    ensure!(ground.loops().await? == 1, "not one loop device");
    let raw = ground.content("volumes/scratch.img")?;
    ensure!(
        raw.len() == 96 * MIB && raw[96 * MIB - 4096..].iter().any(|b| *b != 0),
        "the end of the file is not written"
    );
    ground.is_ciphertext("volumes/scratch.img", filed)?;
    let refused = sized("64Mi").apply(plane).await;
    let refused = refused.err().context("a shorter file was accepted")?;
    ensure!(
        format!("{refused:#}").contains("less than the file has"),
        "{refused:#}"
    );

    // Scratch space: its key is the kernel's alone, what lies in its file is ciphertext from the first byte on.
    let scratch_space = scratch("scratch", json!({"size": "32Mi"}))?;
    scratch_space.apply(plane).await?;
    let made = scratch_space.wait_ready(plane).await?;
    let uid = made.metadata.uid.clone().context("a uid")?;
    let status = made.status.context("a status")?;
    ensure!(
        status.key.is_none() && status.data_lost.is_none(),
        "{status:?}"
    );
    let scratched = "written on scratch space";
    scratch_space.write(ground.site.node(0), scratched).await?;
    let scratch_file = format!("volumes/ephemeral@{uid}");
    let raw = ground.content(&scratch_file)?;
    ensure!(
        raw[..4096].iter().any(|b| *b != 0)
            && !raw
                .windows(scratched.len())
                .any(|w| w == scratched.as_bytes()),
        "no ciphertext in the scratch file"
    );
    let table = ground
        .node(&format!("dmsetup table --showkeys cryptvol-{uid}"))
        .await?;
    ensure!(
        table.contains(" :64:logon:cryptvol:") && table.contains("allow_discards"),
        "{table}"
    );

    // The agent anew finds what it made.
    ground.site.kill_agent(0).await?;
    ground
        .site
        .launch_agent(0, &["--orphan-interval", "2"])
        .await?;
    volume.wait_ready(&ground.site.plane).await?;
    file.wait_ready(&ground.site.plane).await?;
    scratch_space.wait_ready(&ground.site.plane).await?;
    let found = scratch_space
        .read(ground.site.node(0), scratched.len())
        .await?;
    ensure!(found == scratched, "{found:?} with the agent anew");
    ensure!(ground.loops().await? == 1, "not one loop device");
    ground.loops_of_nobody().await?;

    // Power cut; the boot brings another disk to the same path, which is not touched; then the right one.
    ground.site.power_cycle(0).await?;
    ground.activate("other", "LVM-another").await?;
    let plane = &ground.site.plane;
    volume.wait_reason(plane, Reason::WwidMismatch).await?;
    ground.deactivate().await?;
    ensure!(
        ground.content("other")?.iter().all(|b| *b == 0),
        "another disk was written"
    );
    ground.activate("disk", UUID).await?;
    volume.wait_ready(plane).await?;
    let found = volume.read(ground.site.node(0), text.len()).await?;
    ensure!(found == text, "{found:?} after the power cut");

    // The file's directory is not mounted yet: nothing is made in its place.
    let said = file.wait_reason(plane, Reason::DeviceNotFound).await?;
    ensure!(said.contains(FILE), "{said}");
    ground.node(&format!("test ! -e {FILE}")).await?;
    ground.mount_volumes().await?;
    file.wait_ready(plane).await?;
    let found = file.read(ground.site.node(0), filed.len()).await?;
    ensure!(found == filed, "{found:?} after the power cut");

    // Of scratch space nothing comes back, and it says so.
    scratch_space
        .wait(plane, "begun anew and told of", |v| {
            v.status.as_ref().is_some_and(|s| {
                s.data_lost.is_some() && conditions::is_true(&s.conditions, conditions::READY)
            })
        })
        .await?;
    let differs = format!(
        "test \"$(head -c {} {} | base64)\" != \"$(printf '{scratched}' | base64)\"",
        scratched.len(),
        scratch_space.link()
    );
    ground.node(&differs).await?;
    scratch_space.clone().detached().apply(plane).await?;
    scratch_space.wait_detached(plane).await?;
    ground.is_clean(&scratch_space).await?;
    ensure!(
        !ground.outside(&scratch_file).exists(),
        "the scratch file is left"
    );
    scratch_space.delete(plane).await?;
    scratch_space.wait_gone(plane).await?;

    // Erased: the file goes with its loop device.
    file.delete(plane).await?;
    file.wait_gone(plane).await?;
    ensure!(ground.loops().await? == 0, "a loop device is left");
    ground.node(&format!("test ! -e {FILE}")).await?;

    // Erased, and the disk is still the node's.
    volume.delete(plane).await?;
    volume.wait_gone(plane).await?;
    let left = ground
        .node("dmsetup ls | grep cryptvol- || true; find /dev/cryptvol -type l 2>/dev/null || true")
        .await?;
    ensure!(left.trim().is_empty(), "left behind: {left}");
    ground.node(&format!("test -b {LV}")).await?;
    ensure!(
        !ground.content("disk")?.starts_with(b"LUKS"),
        "the header is not wiped"
    );
    ensure!(
        !ground.site.keystone.has_secret(&tenant, &key.id).await?,
        "the key is still there"
    );
    ground.deactivate().await?;

    // A guest's own disk under the same kind of link: nothing is encrypted, nobody is asked for a key, and it says so.
    ground.activate("mounted", "LVM-mounted").await?;
    let mut pass = Volume::iscsi("local", "pass", "unused", "unused", 0, "local")
        .with(
            "source",
            json!({"device": {"path": LV, "wwid": "LVM-mounted"}}),
        )
        .with("encryption", json!({"provider": "none"}))
        .with("format", json!("Never"))
        .on("node-1");
    let spec = pass.manifest["spec"].as_object_mut().context("a spec")?;
    spec.remove("credentials");
    pass.apply(plane).await?;
    let status = pass.wait_ready(plane).await?.status.context("a status")?;
    let said = conditions::get(&status.conditions, conditions::ENCRYPTED);
    ensure!(
        said.is_some_and(|c| c.status == "False" && c.reason == Reason::NotEncrypted.as_str()),
        "{said:?}"
    );
    ensure!(status.key.is_none(), "a key: {:?}", status.key);
    let link = pass.link();
    ground
        .node(&format!(
            "mkdir -p /run/mounted; mount {link} /run/mounted; echo '{text}' >/run/mounted/file; umount /run/mounted"
        ))
        .await?;
    pass.delete(plane).await?;
    pass.wait_gone(plane).await?;
    ground.node(&format!("test ! -e {link}")).await?;
    ground.deactivate().await?;
    let raw = ground.content("mounted")?;
    ensure!(
        raw.windows(text.len()).any(|w| w == text.as_bytes()),
        "what the guest wrote is not on its disk"
    );

    // A disk of the node as scratch space: begun blank, taken again as the noise that it left, and by nobody's plaintext.
    ground.activate("other", "LVM-another").await?;
    let disk = scratch("scratch-disk", json!({"device": LV}))?;
    for _ in 0..2 {
        disk.apply(plane).await?;
        disk.wait_ready(plane).await?;
        ground
            .node(&format!(
                "! head -c 4096 {} | grep -aq '{scratched}'",
                disk.link()
            ))
            .await?;
        disk.write(ground.site.node(0), scratched).await?;
        let raw = ground.content("other")?;
        ensure!(
            raw[..4096].iter().any(|b| *b != 0)
                && !raw
                    .windows(scratched.len())
                    .any(|w| w == scratched.as_bytes()),
            "no ciphertext on the scratch disk"
        );
        disk.clone().detached().apply(plane).await?;
        disk.wait_detached(plane).await?;
        ground.is_clean(&disk).await?;
    }
    ground.node(&format!("mkfs.ext4 -q {LV}")).await?;
    disk.apply(plane).await?;
    disk.wait_reason(plane, Reason::ForeignSignature).await?;
    disk.delete(plane).await?;
    disk.wait_gone(plane).await?;
    ground.node(&format!("blkid {LV} | grep -q ext4")).await?;
    ground.deactivate().await?;
    ground.work.passed()
}
