//! What a project may have of cryptvol: unified limits of the real identity service, asked for with the tenant's rights.

use anyhow::{Context, Result, ensure};
use cryptvol_crds::conditions::{READY, get};
use cryptvol_crds::v1alpha1::Desired;
use cryptvol_e2e::process::wait_for;
use cryptvol_e2e::volumes::PATIENCE;
use kube::ResourceExt;
use kube::api::{DeleteParams, ListParams};
use reqwest::Method;
use serde_json::{Value, json};

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

/// Registers limits of a service `cryptvol`: name and default, -1 for none. Gives the service's id.
async fn registered(ground: &Ground, limits: &[(&str, i64)]) -> Result<String> {
    let service = json!({"service": {"type": "cryptvol", "name": "cryptvol"}});
    let service = ground
        .keystone
        .as_admin(Method::POST, "/services", &service)
        .await?;
    let service = service["service"]["id"].as_str().context("no id")?;
    let limits: Vec<Value> = limits
        .iter()
        .map(|(name, value)| json!({"service_id": service, "resource_name": name, "default_limit": value}))
        .collect();
    ground
        .keystone
        .as_admin(
            Method::POST,
            "/registered_limits",
            &json!({ "registered_limits": limits }),
        )
        .await?;
    Ok(service.to_owned())
}

/// A limit of the tenant's project in the place of the default. Gives its id.
async fn own_limit(ground: &Ground, service: &str, name: &str, value: i64) -> Result<String> {
    let own = json!({"limits": [{"service_id": service, "project_id": ground.tenant.project_id,
        "resource_name": name, "resource_limit": value}]});
    let made = ground
        .keystone
        .as_admin(Method::POST, "/limits", &own)
        .await?;
    let id = made["limits"][0]["id"].as_str().context("no id")?;
    Ok(id.to_owned())
}

/// Deletes a volume that a node has: the node lets go, and it is gone.
async fn deleted(ground: &Ground, volume: &str) -> Result<()> {
    ground
        .volumes()
        .delete(volume, &DeleteParams::default())
        .await?;
    let nv = ground
        .handed_over(volume, "node-1", |nv| nv.spec.desired == Desired::Detached)
        .await?;
    ground.lets_go(&nv).await?;
    ground.gone(volume).await
}

#[tokio::test]
async fn volumes_at_once_do_not_exceed_the_limit_of_their_project() -> Result<()> {
    let ground = Ground::start("operator-quota").await?;
    // The last one is of another service, and not ours.
    let limits = [
        ("cryptvol_volumes", 2),
        ("cryptvol_gibibytes", -1),
        ("volumes", 0),
    ];
    let service = registered(&ground, &limits).await?;
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
    own_limit(&ground, &service, "cryptvol_volumes", 3).await?;
    let second = settled(&ground, 3).await?;
    ensure!(first.iter().all(|name| second.contains(name)), "{second:?}");

    // A volume that goes makes room for another one.
    deleted(&ground, &first[0]).await?;
    let third = settled(&ground, 3).await?;
    ensure!(third.iter().any(|name| !second.contains(name)), "{third:?}");
    ground.work.passed()
}

/// A file that the agent is to make: its size is known before any node reported.
fn file(ground: &Ground, name: &str, size: &str) -> Value {
    let path = format!("/var/lib/cryptvol/volumes/{name}");
    ground.volume(
        name,
        0,
        &json!({"source": {"file": {"path": path, "size": size}}}),
    )
}

#[tokio::test]
async fn the_sizes_of_a_projects_volumes_stay_below_its_limit() -> Result<()> {
    let ground = Ground::start("operator-gibibytes").await?;
    let limits = [("cryptvol_volumes", -1), ("cryptvol_gibibytes", 3)];
    let service = registered(&ground, &limits).await?;
    let _operator = ground.operator("operator-0").await?;
    // A disk counts with the size that its node reports, 1 GiB; a file with the one that it is to have.
    ground.apply(&ground.volume("disk", 0, &json!({}))).await?;
    ground.comes_up("disk").await?;
    ground.apply(&file(&ground, "two", "2Gi")).await?;
    ground.handed_over("two", "node-1", |_| true).await?;

    ground.apply(&file(&ground, "more", "1536Mi")).await?;
    let numbers = "may have 3 gibibytes, the other volumes have 3, and this one needs 2";
    let message = ground
        .stops_saying("more", "QuotaExceeded", numbers)
        .await?;
    ensure!(message.contains("openstack limit set"), "{message}");
    // A disk of which nothing is known yet needs room, too.
    ground
        .apply(&ground.volume("unknown", 1, &json!({})))
        .await?;
    ground.stops("unknown", "QuotaExceeded").await?;
    let keys = ground.keystone.secrets(&ground.tenant).await?;
    ensure!(keys.len() == 2, "keys were made: {keys:?}");
    let handed_over = ground.node_volumes().list(&ListParams::default()).await?;
    ensure!(handed_over.items.len() == 2, "{:?}", handed_over.items);
    ground
        .volumes()
        .delete("unknown", &DeleteParams::default())
        .await?;
    ground.gone("unknown").await?;

    // Raised, but not enough; raised once more: it goes on by itself.
    let limit = own_limit(&ground, &service, "cryptvol_gibibytes", 4).await?;
    let numbers = "may have 4 gibibytes, the other volumes have 3, and this one needs 2";
    ground
        .stops_saying("more", "QuotaExceeded", numbers)
        .await?;
    ground
        .keystone
        .as_admin(
            Method::PATCH,
            &format!("/limits/{limit}"),
            &json!({"limit": {"resource_limit": 5}}),
        )
        .await?;
    ground.handed_over("more", "node-1", |_| true).await?;

    // 4.5 GiB are taken: half a GiB fits, and one byte more does not, until a volume gives back what it had.
    ground.apply(&file(&ground, "half", "512Mi")).await?;
    ground.handed_over("half", "node-1", |_| true).await?;
    ground.apply(&file(&ground, "last", "1Gi")).await?;
    let numbers = "may have 5 gibibytes, the other volumes have 5, and this one needs 1";
    ground
        .stops_saying("last", "QuotaExceeded", numbers)
        .await?;
    deleted(&ground, "disk").await?;
    ground.handed_over("last", "node-1", |_| true).await?;
    ground.work.passed()
}
