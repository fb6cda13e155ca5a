//! Devices that were on the node before us, on a real kernel: found by path, claimed before the first write, left where they are.

use super::*;

impl Ground {
    async fn observe_local(&self, path: &str) -> Result<Value> {
        self.done(json!({"Observe": {
            "source": {"Device": {"path": path}}, "mapping_name": names::mapping_name(VOLUME_UID), "link": LINK,
        }}))
        .await
    }

    async fn untouched(&self, before: &[u8]) -> Result<()> {
        ensure!(
            self.array.lun(IQN, 1)?.read_at(0, before.len())? == before,
            "the disk was written"
        );
        Ok(())
    }
}

#[tokio::test]
async fn a_local_device_is_claimed_before_it_is_written_and_stays() -> Result<()> {
    let ground = Ground::new("host-local").await?;
    // The node's own disk for this test: one that is logged in by hand.
    let lun = ground.device().await?;
    let disk = lun["path"].as_str().context("path")?.to_owned();
    let path = "/dev/cryptvol-test-disk";
    ground.sh(&format!("ln -s {disk} {path}")).await?;

    let found = ground.observe_local(path).await?;
    ensure!(found["session"].is_null(), "{found}");
    let device = found["device"]["id"].clone();
    ensure!(device["kind"] == "Local", "{found}");
    for same in ["path", "dev", "wwid", "size_bytes"] {
        ensure!(device[same] == lun[same], "{same}: {device} {lun}");
    }
    ensure!(found["device"]["holders"] == json!([]), "{found}");
    for no_device in ["/dev/null", "/dev/absent"] {
        let found = ground.observe_local(no_device).await?;
        ensure!(found["device"].is_null(), "{found}");
    }

    // Claimed by a mapping of somebody else, mounted, or with a partition: seen, and not written.
    let blank = ground.array.lun(IQN, 1)?.read_at(0, 32 << 20)?;
    ground
        .sh(&format!(
            "dmsetup create theirs --table \"0 $(blockdev --getsz {disk}) linear {disk} 0\""
        ))
        .await?;
    let found = ground.observe_local(path).await?;
    ensure!(
        found["device"]["holders"][0]
            .as_str()
            .is_some_and(|h| h.starts_with("dm-")),
        "{found}"
    );
    ground
        .refused(Reason::DeviceInUse, Ground::format_call(&device, 512))
        .await?;
    ground.sh("dmsetup remove theirs").await?;
    ground.untouched(&blank).await?;

    ground
        .sh(&format!(
            "mkfs.ext4 -q {disk} && mkdir -p /mnt/theirs && mount {disk} /mnt/theirs && sync"
        ))
        .await?;
    let found = ground.observe_local(path).await?;
    ensure!(
        found["device"]["holders"] == json!(["a mount at /mnt/theirs"]),
        "{found}"
    );
    ground
        .refused(Reason::DeviceInUse, Ground::format_call(&device, 512))
        .await?;
    ground.sh("umount /mnt/theirs").await?;
    let file_system = ground.array.lun(IQN, 1)?.read_at(0, 32 << 20)?;
    ground
        .refused(Reason::ForeignSignature, Ground::format_call(&device, 512))
        .await?;
    ground.untouched(&file_system).await?;

    // Free and blank: written, opened, found below the mapping wherever the path leads by then, and left where it is.
    ground
        .sh(&format!(
            "dd if=/dev/zero of={disk} bs=1M count=64 conv=fsync oflag=direct status=none"
        ))
        .await?;
    let header = ground.format(&device, 512).await?;
    let mapping = ground.done(ground.open_call(&device, &header)).await?;
    ground.done(json!({"Link": [LINK, mapping]})).await?;
    ground
        .sh(&format!(
            "printf secret | dd of={LINK} conv=fsync status=none; rm {path}"
        ))
        .await?;
    let found = ground.observe_local(path).await?;
    ensure!(found["device"]["id"] == device, "{found}");
    ground
        .refused(Reason::DeviceInUse, json!({"Erase": [device, LUKS_UUID]}))
        .await?;
    ground.done(json!({"Unlink": LINK})).await?;
    ground.done(Ground::close_call()).await?;

    // Opened anew, what was written is there.
    ground.sh(&format!("ln -s {disk} {path}")).await?;
    let found = ground.observe_local(path).await?;
    ensure!(found["device"]["id"] == device, "{found}");
    let mapping = ground.done(ground.open_call(&device, &header)).await?;
    let node = mapping["path"].as_str().context("path")?;
    ensure!(ground.sh(&format!("head -c 6 {node}")).await? == "secret");
    ground.done(Ground::close_call()).await?;
    let erased = ground.done(json!({"Erase": [device, LUKS_UUID]})).await?;
    ensure!(erased["verified"] == true, "{erased}");
    ground.sh(&format!("rm {path}")).await?;
    ground.detach(&lun).await?;
    ground.work.passed()
}
