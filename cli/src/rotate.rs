//! `kubectl cryptvol rotate-key`: a new key for a volume, and the end of the present one.

use anyhow::{Context, Result, bail};
use cryptvol_crds::{EncryptedVolume, names};
use kube::api::{Patch, PatchParams};
use serde_json::json;

use crate::connect::Volume;

/// Checks that the key can be rotated, and sets the annotation that the operator honours.
pub async fn run(volume: &Volume) -> Result<()> {
    let object = volume.get().await?;
    let version = version(&object)
        .with_context(|| format!("the key of {} is not rotated", volume.display()))?;
    let patch = json!({"metadata": {
        "resourceVersion": object.metadata.resource_version,
        "annotations": {names::ROTATE_KEY_ANNOTATION: version.to_string()},
    }});
    volume
        .api
        .patch(&volume.name, &PatchParams::default(), &Patch::Merge(patch))
        .await
        .context("set the annotation")?;
    let when = match object.spec.attachments.is_empty() {
        true => "as soon as it is attached",
        false => "now; its condition KeyRotated tells of it",
    };
    println!(
        "Key version {version} of {} is to be replaced {when}.",
        volume.display()
    );
    Ok(())
}

/// Version of the key that is to go.
fn version(volume: &EncryptedVolume) -> Result<i64> {
    let status = volume.status.as_ref();
    let key = status
        .and_then(|s| s.key.as_ref())
        .context("it has no key yet")?;
    if !key.generated {
        bail!("spec.key.secretRef names it, so it belongs to whoever made it");
    }
    if status.is_some_and(|s| s.rotation.is_some()) {
        bail!("a rotation is under way");
    }
    Ok(key.version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_generated_key_that_is_at_rest_is_rotated() {
        let key = |generated: bool| {
            json!({"id": "k", "generated": generated, "keyServiceName": "ks", "version": 3,
                   "since": "2026-11-22T10:00:00Z"})
        };
        let rotation = json!({"phase": "Adding", "version": 4, "formerKeyId": "k", "since": "2026-11-22T10:00:00Z"});
        let version = |status: serde_json::Value| {
            let volume = serde_json::from_value(json!({
                "apiVersion": "cryptvol.dev/v1alpha1", "kind": "EncryptedVolume", "metadata": {"name": "v"},
                "spec": {"source": {}, "credentials": {"secretName": "s", "cloudName": "c"}}, "status": status,
            }));
            super::version(&volume.unwrap())
        };
        assert_eq!(version(json!({"key": key(true)})).unwrap(), 3);
        for status in [
            json!(null),
            json!({"key": key(false)}),
            json!({"key": key(true), "rotation": rotation}),
        ] {
            assert!(version(status.clone()).is_err(), "{status}");
        }
    }
}
