//! `kubectl cryptvol restore-header`: a person says that an overwritten header shall be written anew from its backup.

use std::io::{BufRead, IsTerminal, Write};

use anyhow::{Context, Result, bail};
use cryptvol_crds::{EncryptedVolume, conditions, names};
use kube::api::{Patch, PatchParams};
use serde_json::json;

use crate::connect::Volume;

/// Checks that there is a backup and a node, asks, and sets the annotation that the operator honours.
pub async fn run(volume: &Volume, given: Option<String>) -> Result<()> {
    let object = volume.get().await?;
    let uuid = restorable(&object)
        .with_context(|| format!("the header of {} is not restored", volume.display()))?;
    let typed = match given {
        Some(typed) => typed,
        None => ask(volume, uuid)?,
    };
    if typed.trim() != uuid {
        bail!(
            "{:?} is not the LUKS UUID of {}; nothing was changed",
            typed.trim(),
            volume.display()
        );
    }
    let patch = json!({"metadata": {
        "resourceVersion": object.metadata.resource_version,
        "annotations": {names::RESTORE_HEADER_ANNOTATION: uuid},
    }});
    volume
        .api
        .patch(&volume.name, &PatchParams::default(), &Patch::Merge(patch))
        .await
        .context("set the annotation")?;
    println!(
        "The header of {} is to be written anew; its condition HeaderVerified tells of it.",
        volume.display()
    );
    Ok(())
}

/// The LUKS UUID when a restore may be ordered; else why not.
fn restorable(volume: &EncryptedVolume) -> Result<&str> {
    let status = volume
        .status
        .as_ref()
        .context("the operator has not looked at it yet")?;
    let uuid = status.luks_uuid.as_deref().context("it has no LUKS UUID")?;
    if status.header_backup.is_none() {
        bail!("there is no backup of it; see the condition HeaderBackedUp");
    }
    if volume.spec.attachments.is_empty() {
        bail!("attach the volume first (kubectl cryptvol attach): its node writes the header");
    }
    if conditions::is_true(&status.conditions, conditions::READY) {
        bail!(
            "the volume is attached and its header opened; if it was overwritten since, detach the volume and attach it again first"
        );
    }
    Ok(uuid)
}

fn ask(volume: &Volume, uuid: &str) -> Result<String> {
    if !std::io::stdin().is_terminal() {
        bail!("there is no terminal to ask on: give --luks-uuid {uuid}");
    }
    let mut out = std::io::stdout();
    write!(
        out,
        "What lies where the header of {} was is overwritten, the data behind it is not touched. To go on type its LUKS UUID ({uuid}): ",
        volume.display()
    )?;
    out.flush()?;
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_with_a_backup_and_a_node_and_not_while_it_is_up() {
        let restorable = |nodes: serde_json::Value, status: serde_json::Value| {
            let volume: EncryptedVolume = serde_json::from_value(json!({
                "apiVersion": "cryptvol.dev/v1alpha1", "kind": "EncryptedVolume", "metadata": {"name": "v"},
                "spec": {"source": {}, "attachments": nodes, "credentials": {"secretName": "s", "cloudName": "c"}},
                "status": status,
            }))
            .unwrap();
            restorable(&volume).map(str::to_owned)
        };
        let backup = json!({"header": {"luksUuid": "u", "cipher": "c", "keySize": 1, "sectorSize": 1, "dataOffset": 1, "digest": "d"},
            "digest": {"hash": "h", "iterations": 1, "salt": "s", "digest": "d"}, "sealed": "x"});
        let nodes = json!([{"nodeName": "a"}]);
        let good = json!({"luksUuid": "u", "headerBackup": backup});
        assert_eq!(restorable(nodes.clone(), good.clone()).unwrap(), "u");
        assert!(restorable(json!([]), good.clone()).is_err());
        assert!(restorable(nodes.clone(), json!({"luksUuid": "u"})).is_err());
        let mut up = good;
        up["conditions"] = json!([{"type": "Ready", "status": "True", "reason": "AsDesired", "message": "",
            "lastTransitionTime": "2026-11-22T10:00:00Z"}]);
        assert!(restorable(nodes, up).is_err());
    }
}
