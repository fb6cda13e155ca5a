//! Memory after an hour's worth of resyncs, compressed.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use cryptvol_e2e::identity_service::product_binary;
use cryptvol_e2e::system::CLASS;
use cryptvol_e2e::volumes::PATIENCE;
use serde_json::json;

use crate::ground::Ground;

/// Volumes in the test.
const VOLUMES: u64 = 200;
/// A volume that is not all right is looked at every five minutes, one that is all right every hour.
const RESYNCS: u64 = 12;
/// The product's promise, for what ships.
const MOST_KIB: u64 = 40 * 1024;
/// A debug build has four times the code to map.
const MOST_KIB_DEBUG: u64 = 48 * 1024;

#[tokio::test]
async fn memory_stays_small_over_an_hour_of_resyncs() -> Result<()> {
    let ground = Ground::start("operator-memory").await?;
    let operator = ground.operator("operator-0").await?;
    let list: Vec<_> = (1..=VOLUMES)
        .map(|n| {
            ground.volume(
                &format!("v-{n}"),
                i32::try_from(n).unwrap_or_default(),
                &json!({"attachments": []}),
            )
        })
        .collect();
    ground
        .apply(&json!({"apiVersion": "v1", "kind": "List", "items": list}))
        .await?;
    let begun = Instant::now();
    while ground.keystone.secrets(&ground.tenant).await?.is_empty()
        || ground
            .volumes()
            .list(&kube::api::ListParams::default())
            .await?
            .items
            .iter()
            .any(|v| v.status.as_ref().is_none_or(|s| s.key.is_none()))
    {
        ensure!(begun.elapsed() < PATIENCE, "keys are still being made");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let (writes, before) = (
        operator
            .metric("cryptvol_operator_api_writes_total")
            .await?,
        operator
            .metric("cryptvol_operator_reconciles_total")
            .await?,
    );
    // A change of a class is a reason to look at every volume.
    for n in 0..RESYNCS {
        let passes = operator
            .metric("cryptvol_operator_reconciles_total")
            .await?;
        let note = format!("resync={n}");
        ground
            .plane
            .kubectl(&["annotate", "--overwrite", "encryptionclass", CLASS, &note])
            .await?;
        let begun = Instant::now();
        while operator
            .metric("cryptvol_operator_reconciles_total")
            .await?
            < passes + VOLUMES
        {
            ensure!(begun.elapsed() < PATIENCE, "resync {n} does not end");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    let passes = operator
        .metric("cryptvol_operator_reconciles_total")
        .await?
        - before;
    ensure!(passes >= VOLUMES * RESYNCS, "{passes} passes");
    assert_eq!(
        operator
            .metric("cryptvol_operator_api_writes_total")
            .await?,
        writes,
        "a resync writes nothing"
    );
    let resident = operator.resident_kib()?;
    eprintln!("operator: {VOLUMES} volumes, {passes} passes, {resident} KiB resident");
    let debug = product_binary("cryptvol-operator")?
        .to_string_lossy()
        .contains("/debug/");
    let most = if debug { MOST_KIB_DEBUG } else { MOST_KIB };
    ensure!(resident < most, "{resident} KiB resident, more than {most}");
    ground.work.passed()
}
