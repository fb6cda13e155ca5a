//! What `kubectl delete namespace` does to volumes that are to be erased.

use anyhow::{Context, Result, ensure};
use cryptvol_crds::conditions::Reason;
use cryptvol_crds::v1alpha1::{Desired, Stage};
use cryptvol_e2e::process::wait_for;
use cryptvol_e2e::volumes::PATIENCE;
use serde_json::json;

use crate::ground::{Ground, TEAM, erase_receipt};

/// The key of a volume whose credentials can still be read is destroyed; a volume whose credentials, or whose way to a node, went
/// with the namespace says what to do, and that lets the namespace go.
#[tokio::test]
async fn a_deleted_namespace_goes_or_says_why_not() -> Result<()> {
    let ground = Ground::with_controllers("operator-namespace").await?;
    let _operator = ground.operator("operator-0").await?;
    // Credentials that stay readable for as long as somebody holds them.
    let mut held = ground
        .tenant
        .secret_manifest(TEAM, "held", &ground.tenant.clouds_yaml());
    held["metadata"]["finalizers"] = json!(["example.com/held"]);
    ground.apply(&held).await?;
    let erase = json!({"deletionPolicy": "Erase"});
    let erase_held = json!({"deletionPolicy": "Erase",
        "credentials": {"secretName": "held", "cloudName": ground.tenant.name}});
    ground
        .apply(&ground.volume("whole", 1, &erase_held))
        .await?;
    ground.apply(&ground.volume("keyless", 2, &erase)).await?;
    ground.apply(&ground.volume("detached", 3, &erase)).await?;
    for name in ["whole", "keyless", "detached"] {
        ground.comes_up(name).await?;
    }
    let none = json!({"spec": {"attachments": []}});
    ground.patch("detached", &none).await?;
    let nv = ground
        .handed_over("detached", "node-1", |nv| {
            nv.spec.desired == Desired::Detached
        })
        .await?;
    ground.lets_go(&nv).await?;
    ground
        .until("detached", "detached", |s| s.attachments.is_empty())
        .await?;
    let key = |name: &'static str| {
        let volumes = ground.volumes();
        async move {
            let status = volumes.get(name).await?.status;
            status.and_then(|s| s.key).context("no key on record")
        }
    };
    let (whole, keyless) = (key("whole").await?, key("keyless").await?);

    let delete = ["delete", "namespace", TEAM, "--wait=false"];
    ground.plane.kubectl(&delete).await?;
    // The namespace's controller deletes kinds in no order of its own; what is shown here is credentials that are gone.
    wait_for(
        "the credentials to be gone",
        PATIENCE,
        || async {
            let list = ["get", "secret", "openstack", "-n", TEAM];
            let names = [&list[..], &["--ignore-not-found", "-o", "name"]].concat();
            let found = ground.plane.kubectl(&names).await?;
            Ok(found.trim().is_empty().then_some(()))
        },
        String::new,
    )
    .await?;
    for name in ["whole", "keyless"] {
        // The namespace's controller deletes the hand-over too, which makes a new generation of it: a report of the former one would
        // not count, and an agent would report again.
        let nv = ground
            .handed_over(name, "node-1", |nv| {
                nv.spec.desired == Desired::Erased && nv.metadata.deletion_timestamp.is_some()
            })
            .await?;
        let luks_uuid = nv.spec.luks_uuid.clone().unwrap_or_default();
        ground
            .report(&nv, |s| {
                s.stage = Stage::Erased;
                s.erased = Some(erase_receipt(luks_uuid));
            })
            .await?;
    }
    ground.gone("whole").await?;
    ensure!(
        !ground
            .keystone
            .has_secret(&ground.tenant, &whole.id)
            .await?,
        "the key of the erased volume is still there"
    );
    let terminating = Reason::NamespaceTerminating.as_str();
    let message = ground.stops("keyless", terminating).await?;
    ensure!(
        message.contains(&keyless.id) && message.contains("Retain"),
        "{message}"
    );
    let message = ground.stops("detached", terminating).await?;
    ensure!(
        message.contains("erased") && message.contains("Retain"),
        "{message}"
    );

    // The one thing to do.
    for name in ["keyless", "detached"] {
        let retain = json!({"spec": {"deletionPolicy": "Retain"}});
        ground.patch(name, &retain).await?;
        ground.gone(name).await?;
    }
    let release = json!({"metadata": {"finalizers": null}}).to_string();
    let held = ["patch", "secret", "held", "-n", TEAM, "--type=merge", "-p"];
    ground
        .plane
        .kubectl(&[&held[..], &[release.as_str()]].concat())
        .await?;
    wait_for(
        "the namespace to be gone",
        PATIENCE,
        || async {
            let list = ["get", "namespace", TEAM, "--ignore-not-found", "-o", "name"];
            let found = ground.plane.kubectl(&list).await?;
            Ok(found.trim().is_empty().then_some(()))
        },
        String::new,
    )
    .await?;
    ground.work.passed()
}
