//! Reads and writes of one NodeVolume, each with a deadline.

use std::{future::Future, rc::Rc, time::Duration};

use cryptvol_crds::{NodeVolume, conditions::Reason, names, v1alpha1::NodeVolumeStatus};
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::json;

use super::Context;
use crate::host::StepError;

/// The client tries again by itself for minutes; a step must not wait for that long.
const DEADLINE: Duration = Duration::from_secs(10);

/// One NodeVolume in the API server.
pub struct Object {
    api: Api<NodeVolume>,
    name: String,
    uid: Option<String>,
    cx: Rc<Context>,
}

impl Object {
    /// The object of this name and UID.
    pub fn new(cx: &Rc<Context>, volume: &NodeVolume) -> Self {
        let namespace = volume.namespace().unwrap_or_default();
        Self {
            api: Api::namespaced(cx.client.clone(), &namespace),
            name: volume.name_any(),
            uid: volume.metadata.uid.clone(),
            cx: Rc::clone(cx),
        }
    }

    /// Reads it, from etcd and not from a cache.
    ///
    /// # Errors
    /// When the API server does not answer, or the object is another one by now.
    pub async fn read(&self) -> Result<NodeVolume, StepError> {
        let volume = within("read", self.api.get(&self.name)).await?;
        if volume.metadata.uid != self.uid {
            return Err(StepError::new(
                Reason::StepFailed,
                "the NodeVolume was deleted and made anew",
            ));
        }
        Ok(volume)
    }

    /// Writes the whole status and gives back what the API server acknowledged. With `version` only if nobody wrote since.
    ///
    /// # Errors
    /// When it was not acknowledged; it may have been written all the same.
    pub async fn write(
        &self,
        status: &NodeVolumeStatus,
        version: Option<&str>,
    ) -> Result<NodeVolume, StepError> {
        // Applied, so that what the status does not say any more goes; with the UID, so that an object made anew under
        // the same name does not get it.
        let mut body = json!({
            "apiVersion": "cryptvol.dev/v1alpha1",
            "kind": "NodeVolume",
            "metadata": { "name": self.name, "uid": self.uid },
            "status": status,
        });
        if let Some(version) = version {
            body["metadata"]["resourceVersion"] = json!(version);
        }
        let params = PatchParams::apply(names::AGENT_MANAGER).force();
        let patch = Patch::Apply(body);
        let written = within(
            "write the status",
            self.api.patch_status(&self.name, &params, &patch),
        )
        .await?;
        self.cx.metrics.status_write();
        Ok(written)
    }
}

/// One exchange with the API server, `what` being what could not be done.
///
/// # Errors
/// When it fails or takes too long.
pub(super) async fn within<T>(
    what: &str,
    call: impl Future<Output = kube::Result<T>>,
) -> Result<T, StepError> {
    let failed = |why: String| {
        StepError::new(
            Reason::StepFailed,
            format!("could not {what} in the API server: {why}"),
        )
    };
    match tokio::time::timeout(DEADLINE, call).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(e)) => Err(failed(e.to_string())),
        Err(_) => Err(failed(format!("no answer within {} s", DEADLINE.as_secs()))),
    }
}
