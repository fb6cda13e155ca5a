//! `kubectl cryptvol suspend`, `resume` and `grow`: what is done to a volume while a guest has it open.

use anyhow::{Context, Result, ensure};
use cryptvol_crds::{conditions::Reason, names};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use crate::connect::Volume;

/// Takes the key out of the kernel, or lets the volume go on.
pub async fn suspend(volume: &Volume, suspended: bool) -> Result<()> {
    change(volume, json!({"spec": {"suspended": suspended}})).await?;
    match suspended {
        true => println!(
            "{} is to be suspended: its key goes out of the node's kernel, and whoever has the device open waits.",
            volume.display()
        ),
        false => println!("{} is to go on.", volume.display()),
    }
    Ok(())
}

/// Has the node look at the disk's size now.
pub async fn grow(volume: &Volume) -> Result<()> {
    let object = volume.get().await?;
    let header = object.status.as_ref().and_then(|s| s.header.as_ref());
    ensure!(
        header.is_none_or(|h| h.integrity.is_none()),
        "{} has authenticated sectors and cannot grow. {}",
        volume.display(),
        Reason::GrowUnsupported.next_step()
    );
    change(volume, look(Timestamp::now())).await?;
    let size = object.status.and_then(|s| s.usable_bytes);
    println!(
        "The node looks at the disk of {} now. It had {} bytes; status.usableBytes tells what it has.",
        volume.display(),
        size.map_or("unknown".to_owned(), |s| s.to_string())
    );
    Ok(())
}

/// A look that differs from every one before.
fn look(now: Timestamp) -> Value {
    json!({"metadata": {"annotations": {names::RESCAN_ANNOTATION: now.to_string()}}})
}

async fn change(volume: &Volume, patch: Value) -> Result<()> {
    volume
        .api
        .patch(&volume.name, &PatchParams::default(), &Patch::Merge(patch))
        .await
        .context("change the volume")
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_have_names_that_fit_and_differ() {
        let name = |nanosecond| {
            let now = Timestamp::from_nanosecond(nanosecond).unwrap();
            let patch = look(now);
            patch["metadata"]["annotations"][names::RESCAN_ANNOTATION]
                .as_str()
                .unwrap()
                .to_owned()
        };
        let (a, b) = (
            name(1_700_000_000_000_000_001),
            name(1_700_000_000_000_000_002),
        );
        assert!(a != b && a.len() <= 64);
    }
}
