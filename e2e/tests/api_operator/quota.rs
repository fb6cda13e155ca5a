//! What a project may have of cryptvol: unified limits of the real identity service, asked for with the tenant's rights.

use anyhow::{Context, Result, ensure};
use cryptvol_crds::conditions::{READY, get};
use cryptvol_crds::v1alpha1::Desired;
use cryptvol_e2e::process::wait_for;
use cryptvol_e2e::volumes::PATIENCE;
use kube::ResourceExt;
use kube::api::{DeleteParams, ListParams};
use reqwest::Method;
use serde_json::json;

use crate::ground::Ground;

const VOLUMES: i32 = 6;

/// Names of the volumes that have a key, once `wanted` have one and all others were refused.
async fn settled(ground: &Ground, wanted: usize) -> Result<Vec<String>> {
    wait_for(
        &format!("{wanted} volumes with a key and the others refused"),
        PATIENCE,
        || async {
            let list = ground.volumes().list(&ListParams::default()).await?.items;
            let mut with_key = vec![];
            let mut refused = 0;
            for volume in &list {
                let status = volume.status.clone().unwrap_or_default();
                let over = get(&status.conditions, READY)
                    .is_some_and(|c| c.reason == "QuotaExceeded" && c.status == "False");
                if status.key.is_some() {
                    with_key.push(volume.name_any());
                } else if over {
                    refused += 1;
                }
            }
            ensure!(with_key.len() <= wanted, "more than {wanted}: {with_key:?}");
            let all = with_key.len() == wanted && with_key.len() + refused == list.len();
            Ok(all.then_some(with_key))
        },
        String::new,
    )
    .await
}

#[tokio::test]
async fn volumes_at_once_do_not_exceed_the_limit_of_their_project() -> Result<()> {
    let ground = Ground::start("operator-quota").await?;
    let service = json!({"service": {"type": "cryptvol", "name": "cryptvol"}});
    let service = ground
        .keystone
        .as_admin(Method::POST, "/services", &service)
        .await?;
    let service = service["service"]["id"]
        .as_str()
        .context("no id")?
        .to_owned();
    let registered = json!({"registered_limits": [
        {"service_id": service, "resource_name": "cryptvol_volumes", "default_limit": 2},
        {"service_id": service, "resource_name": "cryptvol_gibibytes", "default_limit": -1},
        // Of another service, and not ours.
        {"service_id": service, "resource_name": "volumes", "default_limit": 0},
    ]});
    ground
        .keystone
        .as_admin(Method::POST, "/registered_limits", &registered)
        .await?;
    let _operator = ground.operator("operator-0").await?;
    let manifests: Vec<_> = (0..VOLUMES)
        .map(|n| ground.volume(&format!("v{n}"), n, &json!({})))
        .collect();
    futures::future::try_join_all(manifests.iter().map(|m| ground.apply(m))).await?;
    let first = settled(&ground, 2).await?;
    let keys = ground.keystone.secrets(&ground.tenant).await?;
    ensure!(keys.len() == 2, "keys were made: {keys:?}");
    let refused = (0..VOLUMES)
        .map(|n| format!("v{n}"))
        .find(|name| !first.contains(name))
        .context("none was refused")?;
    let message = ground.stops(&refused, "QuotaExceeded").await?;
    for words in ["2 volumes", "openstack limit set"] {
        ensure!(message.contains(words), "{words} in {message}");
    }
    let status = ground
        .volumes()
        .get(&refused)
        .await?
        .status
        .unwrap_or_default();
    ensure!(
        status.luks_uuid.is_none() && status.format_permit.is_none(),
        "something was claimed: {status:?}"
    );
    let handed_over = ground.node_volumes().list(&ListParams::default()).await?;
    ensure!(handed_over.items.len() == 2, "{:?}", handed_over.items);

    // The project gets a limit of its own: one more comes, by itself.
    let own = json!({"limits": [{"service_id": service, "project_id": ground.tenant.project_id,
        "resource_name": "cryptvol_volumes", "resource_limit": 3}]});
    ground
        .keystone
        .as_admin(Method::POST, "/limits", &own)
        .await?;
    let second = settled(&ground, 3).await?;
    ensure!(first.iter().all(|name| second.contains(name)), "{second:?}");

    // A volume that goes makes room for another one.
    let goes = &first[0];
    ground
        .volumes()
        .delete(goes, &DeleteParams::default())
        .await?;
    let nv = ground
        .handed_over(goes, "node-1", |nv| nv.spec.desired == Desired::Detached)
        .await?;
    ground.lets_go(&nv).await?;
    ground.gone(goes).await?;
    let third = settled(&ground, 3).await?;
    ensure!(third.iter().any(|name| !second.contains(name)), "{third:?}");
    ground.work.passed()
}
