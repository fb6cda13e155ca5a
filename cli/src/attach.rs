//! `kubectl cryptvol attach` and `detach`: changes `spec.attachments` and, where wished, waits for the outcome.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use cryptvol_crds::v1alpha1::Stage;
use cryptvol_crds::{EncryptedVolume, conditions};
use kube::api::{Patch, PatchParams};
use serde_json::json;

use crate::connect::Volume;

/// Whether to wait.
#[derive(Args)]
pub struct Wait {
    /// Wait until it is done, or until a person must do something
    #[arg(long)]
    wait: bool,
    /// Longest wait, in seconds
    #[arg(long, default_value_t = 120, value_name = "SECONDS")]
    timeout: u64,
}

/// Attaches to a node.
pub async fn attach(volume: &Volume, node: &str, wait: &Wait) -> Result<()> {
    let object = volume.get().await?;
    if let Some(other) = object.spec.attachments.iter().find(|a| a.node_name != node) {
        bail!(
            "{name} is attached to {other}; detach it first: kubectl cryptvol detach {name} --wait",
            name = volume.display(),
            other = other.node_name
        );
    }
    if object.spec.attachments.is_empty() {
        set(volume, &object, Some(node)).await?;
    }
    println!("{} is to be attached to {node}", volume.display());
    wait_for(volume, wait, Some(node)).await
}

/// Detaches from its node.
pub async fn detach(volume: &Volume, node: Option<&str>, wait: &Wait) -> Result<()> {
    let object = volume.get().await?;
    let now = object
        .spec
        .attachments
        .first()
        .map(|a| a.node_name.as_str());
    if let (Some(node), Some(now)) = (node, now)
        && node != now
    {
        bail!(
            "{} is attached to {now}, not to {node}; nothing was changed",
            volume.display()
        );
    }
    if now.is_some() {
        set(volume, &object, None).await?;
    }
    println!("{} is to be detached", volume.display());
    wait_for(volume, wait, None).await
}

async fn set(volume: &Volume, seen: &EncryptedVolume, node: Option<&str>) -> Result<()> {
    let attachments: Vec<_> = node
        .into_iter()
        .map(|node| json!({"nodeName": node}))
        .collect();
    // With the version that was looked at, so that somebody else's change in between is not undone.
    let patch = json!({
        "metadata": {"resourceVersion": seen.metadata.resource_version},
        "spec": {"attachments": attachments},
    });
    volume
        .api
        .patch(&volume.name, &PatchParams::default(), &Patch::Merge(patch))
        .await
        .context("change the volume")?;
    Ok(())
}

async fn wait_for(volume: &Volume, wait: &Wait, node: Option<&str>) -> Result<()> {
    if !wait.wait {
        return Ok(());
    }
    let end = Instant::now() + Duration::from_secs(wait.timeout);
    let mut told = String::new();
    loop {
        let object = volume.get().await?;
        match outcome(&object, node) {
            Outcome::Done(text) => {
                println!("{text}");
                return Ok(());
            }
            Outcome::Waiting(text) if text != told => {
                println!("{text}");
                told = text;
            }
            Outcome::Waiting(_) => {}
        }
        if Instant::now() > end {
            bail!(
                "not done after {} s: see kubectl cryptvol status {}",
                wait.timeout,
                volume.display()
            );
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

#[derive(Debug, PartialEq)]
enum Outcome {
    Done(String),
    Waiting(String),
}

fn outcome(volume: &EncryptedVolume, node: Option<&str>) -> Outcome {
    let Some(status) = volume
        .status
        .as_ref()
        .filter(|s| s.observed_generation >= volume.metadata.generation)
    else {
        return Outcome::Waiting("waiting for the operator".into());
    };
    let gone = |stage| matches!(stage, Stage::Detached | Stage::Erased);
    match node {
        Some(node) if conditions::is_true(&status.conditions, conditions::READY) => {
            let link = status
                .attachments
                .iter()
                .find(|a| a.node_name == node)
                .and_then(|a| a.link.as_deref());
            return Outcome::Done(format!("attached to {node}: {}", link.unwrap_or_default()));
        }
        None if status.attachments.iter().all(|a| gone(a.stage)) => {
            return Outcome::Done("detached".into());
        }
        _ => {}
    }
    let ready = conditions::get(&status.conditions, conditions::READY);
    Outcome::Waiting(ready.map_or_else(
        || "waiting".into(),
        |c| format!("{}: {}", c.reason, c.message),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(generation: i64, ready: &str, stage: &str) -> EncryptedVolume {
        serde_json::from_value(json!({
            "apiVersion": "cryptvol.dev/v1alpha1", "kind": "EncryptedVolume", "metadata": {"name": "v", "generation": generation},
            "spec": {"source": {}, "credentials": {"secretName": "s", "cloudName": "c"}},
            "status": {
                "observedGeneration": 2,
                "conditions": [{"type": "Ready", "status": ready, "reason": "R", "message": "M", "lastTransitionTime": "2026-11-22T10:00:05Z"}],
                "attachments": [{"nodeName": "n", "stage": stage, "link": "/dev/cryptvol/x/v"}],
            },
        }))
        .unwrap()
    }

    #[test]
    fn an_old_status_is_not_believed() {
        assert!(matches!(
            outcome(&volume(3, "True", "Attached"), Some("n")),
            Outcome::Waiting(_)
        ));
        assert_eq!(
            outcome(&volume(2, "True", "Attached"), Some("n")),
            Outcome::Done("attached to n: /dev/cryptvol/x/v".into())
        );
    }

    #[test]
    fn detached_is_when_no_node_has_it() {
        assert!(matches!(
            outcome(&volume(2, "False", "Detaching"), None),
            Outcome::Waiting(_)
        ));
        assert_eq!(
            outcome(&volume(2, "False", "Detached"), None),
            Outcome::Done("detached".into())
        );
    }
}
