//! Names of udev's by id, which other rules make than those by path.

use super::*;

/// Where a link leads once udev is done with what has happened, or `nowhere`.
async fn leads(ground: &Ground, name: &str) -> Result<String> {
    let script =
        format!("udevadm settle -t 50; test -e {name} && readlink -f {name} || echo nowhere");
    Ok(ground.sh(&script).await?.trim().to_owned())
}

#[tokio::test]
async fn a_name_by_id_is_the_mappings_and_never_the_raw_disks() -> Result<()> {
    let ground = Ground::new("host-names").await?;
    let device = ground.device().await?;
    let raw = device["path"].as_str().context("path")?.to_owned();
    let naa = device["wwid"]
        .as_str()
        .and_then(|w| w.strip_prefix("naa."))
        .context("a WWID of the form naa.")?
        .to_owned();
    let header = ground.format(&device, 512).await?;
    let mapping = ground.done(ground.open_call(&device, &header)).await?;
    let path = mapping["path"].as_str().context("path")?.to_owned();
    let owner = names::mapping_name(VOLUME_UID);
    for name in [
        format!("/dev/disk/by-id/wwn-0x{naa}"),
        format!("/dev/disk/by-id/scsi-3{naa}"),
    ] {
        let set = |to: Value, owner: &str| json!({"Name": {"name": name, "mapping_name": owner, "to": to}});
        // udev's, then nobody's, then the mapping's.
        ensure!(
            leads(&ground, &name).await? == raw,
            "{name}: {}",
            leads(&ground, &name).await?
        );
        ground.done(set(json!("Nobody"), &owner)).await?;
        ensure!(leads(&ground, &name).await? == "nowhere", "{name}");
        ground
            .done(set(json!({"Mapping": mapping}), &owner))
            .await?;
        for action in ["change", "add"] {
            ground
                .sh(&format!(
                    "udevadm trigger --action={action} --subsystem-match=block"
                ))
                .await?;
            ensure!(
                leads(&ground, &name).await? == path,
                "{name}: {}",
                leads(&ground, &name).await?
            );
        }
        let others = ground
            .sh(&format!("find /dev/disk -lname '*/{}'", &raw[5..]))
            .await?;
        ensure!(others.is_empty(), "the raw disk has names: {others}");
        // Another volume cannot have it.
        let message = ground
            .refused(Reason::NotOurs, set(json!("Nobody"), "cryptvol-another"))
            .await?;
        ensure!(message.contains(&owner), "{message}");
        ground.done(set(json!("Nobody"), &owner)).await?;
        ensure!(leads(&ground, &name).await? == "nowhere", "{name}");
        ground.done(set(json!("Everybody"), &owner)).await?;
        ground
            .sh("udevadm trigger --action=change --subsystem-match=block")
            .await?;
        ensure!(
            leads(&ground, &name).await? == raw,
            "{name} did not come back"
        );
    }
    ground.done(Ground::close_call()).await?;
    ground.done(json!({"DeleteDevice": device})).await?;
    ground.done(ground.logout().await?).await?;
    ground.work.passed()
}
