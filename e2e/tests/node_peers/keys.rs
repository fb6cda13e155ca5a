//! The key is gone.

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::ground::{SITE, all_go};

/// Somebody deletes the key while its volume is attached. Others cannot delete the volume without the key, or leave its data. Ours is erased
/// with no key at all, and the receipt says so.
#[tokio::test]
async fn peer_failure_15_a_volume_whose_key_is_gone_is_erased_without_it() -> Result<()> {
    let mut site = SITE.take().await?;
    let (tenant, lun, volume) = site.volume("keyless").await?;
    let volume = volume.with("deletionPolicy", json!("Erase"));
    volume.apply(&site.plane).await?;
    let ready = volume.wait_ready(&site.plane).await?;
    let key = ready.status.and_then(|s| s.key).context("a key")?;
    site.keystone.delete_secret(&tenant, &key.id).await?;
    volume.write(site.node(0), "whose key is gone").await?;
    ensure!(
        !lun.read_at(0, 16 << 20)?.iter().all(|b| *b == 0),
        "no header"
    );
    all_go(&site, &[&volume]).await?;
    site.nothing_left(0).await?;
    ensure!(
        lun.read_at(0, 16 << 20)?.iter().all(|b| *b == 0),
        "the header is left"
    );
    site.passed()
}
