//! Mappings with our mark that no NodeVolume knows: shown, never removed. Whose guests use them only a person can say.

use std::{collections::BTreeSet, rc::Rc, time::Duration};

use cryptvol_crds::names;
use tokio::time::sleep;
use tracing::warn;

use super::Context;
use crate::worker::protocol::{Answer, Call};

/// Time between two looks.
const PERIOD: Duration = Duration::from_secs(300);
/// Before the first look, so that the watch has listed all volumes.
const FIRST: Duration = Duration::from_secs(60);

/// Looks again and again.
pub async fn watch(cx: Rc<Context>) {
    let mut known_orphans = BTreeSet::new();
    sleep(FIRST).await;
    loop {
        if cx.readiness.missing().is_empty()
            && let Ok(Answer::Mappings(mappings)) = cx.pool.call("mappings", Call::Mappings).await
        {
            let wanted: BTreeSet<String> = cx
                .volumes
                .borrow()
                .values()
                .map(|v| &v.spec.volume_ref.uid)
                .flat_map(|uid| [names::mapping_name(uid), names::paths_name(uid)])
                .collect();
            let orphans: BTreeSet<String> = mappings
                .into_iter()
                .map(|m| m.name)
                .filter(|name| !wanted.contains(name))
                .collect();
            for name in orphans.difference(&known_orphans) {
                warn!(
                    mapping = name,
                    "a mapping of cryptvol that no NodeVolume knows; if no guest uses it: dmsetup remove {name}"
                );
            }
            cx.metrics.orphans(orphans.len());
            known_orphans = orphans;
        }
        sleep(PERIOD).await;
    }
}
