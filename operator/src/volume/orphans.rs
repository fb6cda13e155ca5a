//! NodeVolumes whose volume is gone: somebody took our finalizer off, or deleted the object under another operator.
//! Their node must still let go before they may go.

use std::{sync::Arc, time::Duration};

use cryptvol_crds::{EncryptedVolume, NodeVolume, v1alpha1::Desired};
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::json;

use super::{effects, facts, observe};
use crate::context::Context;

/// How often the caches are looked through. It costs nothing, and there is nothing to find unless somebody forced it.
const LOOK: Duration = Duration::from_secs(30);

/// What to do with a NodeVolume without a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Tell the node to let go.
    Detach,
    /// The node let go.
    Release,
    /// The node is at it.
    Wait,
}

/// Decides about a NodeVolume whose volume is gone.
pub fn decide(node_volume: &NodeVolume) -> Step {
    if facts::is_released(node_volume) {
        Step::Release
    } else if node_volume.spec.desired == Desired::Detached {
        Step::Wait
    } else {
        Step::Detach
    }
}

/// Looks for such NodeVolumes, for ever.
pub async fn run(ctx: Arc<Context>) {
    let _ = ctx.stores.node_volumes.0.wait_until_ready().await;
    let _ = ctx.stores.volumes.0.wait_until_ready().await;
    loop {
        tokio::time::sleep(LOOK).await;
        let orphans = ctx.stores.node_volumes.find_all(|nv| {
            decide(nv) != Step::Wait
                && ctx
                    .stores
                    .volumes
                    .find(|v| observe::belongs(nv, v))
                    .is_none()
        });
        for orphan in orphans {
            if let Err(e) = tend(&ctx, &orphan).await {
                tracing::warn!(node_volume = %orphan.name_any(), error = %e, "orphan not tended");
            }
        }
    }
}

async fn tend(ctx: &Context, orphan: &NodeVolume) -> Result<(), effects::EffectError> {
    let namespace = orphan.namespace().unwrap_or_default();
    let volumes: Api<EncryptedVolume> = Api::namespaced(ctx.client.clone(), &namespace);
    let volume = volumes
        .get_opt(&orphan.spec.volume_ref.name)
        .await
        .map_err(effects::at("reading the volume of a NodeVolume"))?;
    if volume.is_some_and(|v| observe::belongs(orphan, &v)) {
        return Ok(());
    }
    match decide(orphan) {
        Step::Wait => Ok(()),
        Step::Release => effects::release(ctx, orphan).await,
        Step::Detach => {
            tracing::warn!(node_volume = %orphan.name_any(), node = %orphan.spec.node_name, "its volume is gone: the node shall let go");
            let api: Api<NodeVolume> = Api::namespaced(ctx.client.clone(), &namespace);
            let patch = json!({
                "metadata": {"resourceVersion": orphan.resource_version(), "uid": orphan.uid()},
                "spec": {"desired": Desired::Detached, "formatPermit": null},
            });
            ctx.metrics.writes.inc();
            api.patch(
                &orphan.name_any(),
                &PatchParams::default(),
                &Patch::Merge(patch),
            )
            .await
            .map_err(effects::at("detaching an orphan"))?;
            Ok(())
        }
    }
}
