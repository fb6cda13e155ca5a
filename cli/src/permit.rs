//! `kubectl cryptvol permit-format`: a person says that an interrupted format may be done again.

use std::io::{BufRead, IsTerminal, Write};

use anyhow::{Context, Result, bail};
use cryptvol_crds::v1alpha1::PermitState;
use cryptvol_crds::{EncryptedVolume, names};
use kube::api::{Patch, PatchParams};
use serde_json::json;

use crate::connect::Volume;

/// Checks that the volume may have one, asks, and sets the annotation that the operator honours.
pub async fn run(volume: &Volume, given: Option<String>) -> Result<()> {
    let object = volume.get().await?;
    let uuid = permitted(&object)
        .with_context(|| format!("{} gets no new format permit", volume.display()))?;
    let typed = match given {
        Some(typed) => typed,
        None => ask(volume, &object, uuid)?,
    };
    if typed.trim() != uuid {
        bail!(
            "{:?} is not the LUKS UUID of {}; nothing was changed",
            typed.trim(),
            volume.display()
        );
    }
    // With the version that was shown: had the volume been opened in between, this is refused.
    let patch = json!({"metadata": {
        "resourceVersion": object.metadata.resource_version,
        "annotations": {names::NEW_PERMIT_ANNOTATION: uuid},
    }});
    volume
        .api
        .patch(&volume.name, &PatchParams::default(), &Patch::Merge(patch))
        .await
        .context("set the annotation")?;
    println!("{} may be formatted once more.", volume.display());
    Ok(())
}

/// The LUKS UUID when a new permit may be asked for; else why not.
fn permitted(volume: &EncryptedVolume) -> Result<&str> {
    let status = volume
        .status
        .as_ref()
        .context("the operator has not looked at it yet")?;
    let uuid = status
        .luks_uuid
        .as_deref()
        .context("it has no LUKS UUID yet")?;
    if let Some(at) = &status.first_opened {
        bail!(
            "it was opened at {}, so its disk held data; bring back the right disk or restore the header",
            at.0
        );
    }
    match status.format_permit.as_ref().map(|p| p.state) {
        Some(PermitState::Spent) => Ok(uuid),
        Some(PermitState::Issued) => bail!("the first permit is still good; nothing is to be done"),
        Some(PermitState::Void) => {
            bail!("its permit is void: the volume was opened, or spec.format is Never")
        }
        None => {
            bail!("it never had a permit (spec.format is Never, or the operator is still at it)")
        }
    }
}

fn ask(volume: &Volume, object: &EncryptedVolume, uuid: &str) -> Result<String> {
    if !std::io::stdin().is_terminal() {
        bail!(
            "there is no terminal to ask on: give --luks-uuid {uuid} if the disk never held data"
        );
    }
    let mut out = std::io::stdout();
    writeln!(out, "Formatting destroys what is on this disk:")?;
    if let Some(iscsi) = &object.spec.source.iscsi {
        writeln!(
            out,
            "  {} LUN {} at {}",
            iscsi.iqn,
            iscsi.lun,
            iscsi.portals.join(", ")
        )?;
    }
    let source = &object.spec.source;
    let device = source.device.as_ref().map(|d| &d.path);
    if let Some(path) = device.or(source.file.as_ref().map(|f| &f.path)) {
        let nodes = object.spec.attachments.iter().map(|a| a.node_name.as_str());
        let nodes: Vec<_> = nodes.collect();
        writeln!(out, "  {path} on {}", nodes.join(", "))?;
    }
    if let Some(status) = &object.status {
        if let Some(wwid) = &status.wwid {
            writeln!(out, "  WWID {wwid}")?;
        }
        if let Some(by) = status
            .format_permit
            .as_ref()
            .and_then(|p| p.spent_by.as_ref())
        {
            writeln!(out, "  format was begun by {by}")?;
        }
    }
    write!(
        out,
        "If {} never held data, type its LUKS UUID ({uuid}): ",
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

    fn volume(status: serde_json::Value) -> EncryptedVolume {
        serde_json::from_value(json!({
            "apiVersion": "cryptvol.dev/v1alpha1", "kind": "EncryptedVolume", "metadata": {"name": "v"},
            "spec": {"source": {}, "credentials": {"secretName": "s", "cloudName": "c"}}, "status": status,
        }))
        .unwrap()
    }

    #[test]
    fn only_a_spent_permit_of_a_volume_never_opened_is_renewed() {
        let permit =
            |state: &str| json!({"id": "x", "state": state, "issuedAt": "2026-11-22T10:00:00Z"});
        assert_eq!(
            permitted(&volume(
                json!({"luksUuid": "u", "formatPermit": permit("Spent")})
            ))
            .unwrap(),
            "u"
        );
        for status in [
            json!(null),
            json!({"luksUuid": "u"}),
            json!({"formatPermit": permit("Spent")}),
            json!({"luksUuid": "u", "formatPermit": permit("Issued")}),
            json!({"luksUuid": "u", "formatPermit": permit("Void")}),
            json!({"luksUuid": "u", "formatPermit": permit("Spent"), "firstOpened": "2026-11-22T10:00:00Z"}),
        ] {
            assert!(permitted(&volume(status.clone())).is_err(), "{status}");
        }
    }
}
