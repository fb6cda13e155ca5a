//! EncryptedVolumes as a user handles them: a manifest, `kubectl apply`, and waiting for what the status says.

use std::time::Duration;

use anyhow::{Context, Result};
use cryptvol_crds::conditions::{self, ENCRYPTION_PROVEN, Reason};
use cryptvol_crds::{EncryptedVolume, NodeVolume};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use crate::control_plane::ControlPlane;
use crate::node::Node;
use crate::process::wait_for;
use crate::site::AGENT_LOG;

/// The longest that anything asked of cryptvol takes in a test on a loaded machine; most of it takes a second.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A volume in a manifest.
#[derive(Debug, Clone)]
pub struct Volume {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// The manifest; tests change it at will.
    pub manifest: Value,
}

impl Volume {
    /// A volume on an iSCSI LUN, detached, with the Secret `keystone` and the cloud of that name.
    pub fn iscsi(
        namespace: &str,
        name: &str,
        portal: &str,
        iqn: &str,
        lun: u16,
        cloud: &str,
    ) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
            manifest: json!({
                "apiVersion": "cryptvol.dev/v1alpha1", "kind": "EncryptedVolume",
                "metadata": {"name": name, "namespace": namespace},
                "spec": {
                    "source": {"iscsi": {"portals": [portal], "iqn": iqn, "lun": lun}},
                    "credentials": {"secretName": "keystone", "cloudName": cloud},
                },
            }),
        }
    }

    /// Attached to a node.
    #[must_use]
    pub fn on(mut self, node: &str) -> Self {
        self.manifest["spec"]["attachments"] = json!([{"nodeName": node}]);
        self
    }

    /// Attached to none.
    #[must_use]
    pub fn detached(mut self) -> Self {
        self.manifest["spec"]["attachments"] = json!([]);
        self
    }

    /// With further fields of the spec, for example `("deletionPolicy", json!("Erase"))`.
    #[must_use]
    pub fn with(mut self, field: &str, value: Value) -> Self {
        self.manifest["spec"][field] = value;
        self
    }

    /// With a further field of `source.iscsi`.
    #[must_use]
    pub fn with_iscsi(mut self, field: &str, value: Value) -> Self {
        self.manifest["spec"]["source"]["iscsi"][field] = value;
        self
    }

    /// Where the hypervisor finds the device.
    pub fn link(&self) -> String {
        cryptvol_crds::names::link_path(&self.namespace, &self.name)
    }

    /// Writes at the start of the device, through the link on a node, and waits until it is stored.
    pub async fn write(&self, node: &Node, text: &str) -> Result<()> {
        let output = format!("of={}", self.link());
        let argv = ["dd", &output, "conv=fsync", "status=none"];
        node.exec_with(&argv, &[], text.as_bytes(), Duration::from_secs(60))
            .await?
            .ok()
            .map(drop)
    }

    /// The first bytes of the device, through the link on a node.
    pub async fn read(&self, node: &Node, length: usize) -> Result<String> {
        node.sh(&format!("head -c {length} {}", self.link()))
            .await?
            .ok()
    }

    /// `kubectl apply`.
    pub async fn apply(&self, plane: &ControlPlane) -> Result<()> {
        plane.apply(&self.manifest.to_string()).await.map(|_| ())
    }

    /// `kubectl annotate`, over what is there.
    pub async fn annotate(&self, plane: &ControlPlane, name: &str, value: &str) -> Result<()> {
        let annotation = format!("{name}={value}");
        let argv = [
            "annotate",
            "--overwrite",
            "encryptedvolume",
            "-n",
            &self.namespace,
            &self.name,
            &annotation,
        ];
        plane.kubectl(&argv).await.map(drop)
    }

    /// `kubectl delete`, without waiting.
    pub async fn delete(&self, plane: &ControlPlane) -> Result<()> {
        plane
            .kubectl(&[
                "delete",
                "encryptedvolume",
                "-n",
                &self.namespace,
                &self.name,
                "--wait=false",
            ])
            .await
            .map(|_| ())
    }

    /// As it is now; `None` when it is gone.
    pub async fn get(&self, plane: &ControlPlane) -> Result<Option<EncryptedVolume>> {
        Ok(Api::namespaced(plane.client()?, &self.namespace)
            .get_opt(&self.name)
            .await?)
    }

    /// Waits until the object satisfies `is`; on timeout the error shows the object and its NodeVolumes.
    pub async fn wait(
        &self,
        plane: &ControlPlane,
        what: &str,
        is: impl Fn(&EncryptedVolume) -> bool,
    ) -> Result<EncryptedVolume> {
        self.wait_for(plane, what, PATIENCE, is).await
    }

    /// As [`Volume::wait`] with a limit of its own.
    pub async fn wait_for(
        &self,
        plane: &ControlPlane,
        what: &str,
        limit: Duration,
        is: impl Fn(&EncryptedVolume) -> bool,
    ) -> Result<EncryptedVolume> {
        let client = plane.client()?;
        let api: Api<EncryptedVolume> = Api::namespaced(client.clone(), &self.namespace);
        let found = wait_for(
            &format!("{}/{}: {what}", self.namespace, self.name),
            limit,
            || async { Ok(api.get_opt(&self.name).await?.filter(|v| is(v))) },
            || "see the objects below".to_owned(),
        )
        .await;
        match found {
            Ok(volume) => Ok(volume),
            Err(error) => Err(error.context(self.describe(plane).await)),
        }
    }

    /// Waits until `Ready` is true for the present generation.
    pub async fn wait_ready(&self, plane: &ControlPlane) -> Result<EncryptedVolume> {
        self.wait(plane, "Ready", |v| {
            v.status.as_ref().is_some_and(|s| {
                s.observed_generation == v.metadata.generation
                    && conditions::is_true(&s.conditions, conditions::READY)
            })
        })
        .await
    }

    /// Waits until its link leads to a block device. After a power cut the status is that of before until the agent has looked; the link
    /// is this boot's.
    pub async fn wait_link(&self, node: &Node) -> Result<()> {
        let there = format!("test -b {}", self.link());
        wait_for(
            "the link",
            PATIENCE,
            || async { Ok((node.sh(&there).await?.code == 0).then_some(())) },
            || node.log(AGENT_LOG),
        )
        .await
    }

    /// Waits until some condition is false for this reason, and returns its message.
    pub async fn wait_reason(&self, plane: &ControlPlane, reason: Reason) -> Result<String> {
        let volume = self
            .wait(plane, reason.as_str(), |v| {
                condition_with(v, reason).is_some()
            })
            .await?;
        condition_with(&volume, reason).context("the condition vanished")
    }

    /// Waits until the condition of this type has this reason, and returns its message.
    pub async fn wait_condition(
        &self,
        plane: &ControlPlane,
        type_: &str,
        reason: Reason,
    ) -> Result<String> {
        let what = format!("{type_} {reason}");
        let is = |c: &Condition| c.reason == reason.as_str();
        self.wait_condition_that(plane, &what, type_, is).await
    }

    /// Waits until the last proof of its encryption ended like this, and returns what is said of it.
    pub async fn wait_proof(
        &self,
        plane: &ControlPlane,
        status: &str,
        reason: Reason,
    ) -> Result<String> {
        let what = format!("{ENCRYPTION_PROVEN} {status} {reason}");
        let is = |c: &Condition| c.status == status && c.reason == reason.as_str();
        self.wait_condition_that(plane, &what, ENCRYPTION_PROVEN, is)
            .await
    }

    async fn wait_condition_that(
        &self,
        plane: &ControlPlane,
        what: &str,
        type_: &str,
        is: impl Fn(&Condition) -> bool,
    ) -> Result<String> {
        let message = |v: &EncryptedVolume| {
            let conditions = v.status.as_ref().map(|s| &s.conditions[..]);
            conditions::get(conditions.unwrap_or_default(), type_)
                .filter(|c| is(c))
                .map(|c| c.message.clone())
        };
        let found = self.wait(plane, what, |v| message(v).is_some()).await?;
        message(&found).context("the condition vanished")
    }

    /// What its NodeVolume for a node says; nothing where there is none.
    pub async fn on_node(&self, plane: &ControlPlane, node: &str) -> Result<Option<NodeVolume>> {
        let name = cryptvol_crds::names::node_volume_name(&self.name, node);
        let api = Api::<NodeVolume>::namespaced(plane.client()?, &self.namespace);
        Ok(api.get_opt(&name).await?)
    }

    /// Waits until a node says of each path whether it is up, in the order of the portals.
    pub async fn wait_paths(&self, plane: &ControlPlane, node: &str, up: &[bool]) -> Result<()> {
        let last = std::cell::RefCell::new(String::new());
        wait_for(
            &format!("paths {up:?}"),
            PATIENCE,
            || async {
                let found = self.on_node(plane, node).await?;
                let paths = found.and_then(|nv| nv.status).map(|s| s.paths);
                let paths = paths.unwrap_or_default();
                *last.borrow_mut() = format!("{paths:?}");
                Ok(paths
                    .iter()
                    .map(|p| p.up)
                    .eq(up.iter().copied())
                    .then_some(()))
            },
            || last.borrow().clone(),
        )
        .await
    }

    /// Waits until nothing is attached and the status says so.
    pub async fn wait_detached(&self, plane: &ControlPlane) -> Result<EncryptedVolume> {
        self.wait(plane, "detached", |v| {
            v.status.as_ref().is_some_and(|s| {
                s.observed_generation == v.metadata.generation
                    && s.attachments.is_empty()
                    && conditions::get(&s.conditions, conditions::READY)
                        .is_some_and(|c| c.reason == Reason::Detached.as_str())
            })
        })
        .await
    }

    /// Waits until the object is gone.
    pub async fn wait_gone(&self, plane: &ControlPlane) -> Result<()> {
        let api: Api<EncryptedVolume> = Api::namespaced(plane.client()?, &self.namespace);
        let gone = wait_for(
            &format!("{}/{} to be gone", self.namespace, self.name),
            PATIENCE,
            || async { Ok(api.get_opt(&self.name).await?.is_none().then_some(())) },
            String::new,
        )
        .await;
        match gone {
            Ok(()) => Ok(()),
            Err(error) => Err(error.context(self.describe(plane).await)),
        }
    }

    /// The volume and its NodeVolumes as YAML, for the message of a failed test.
    async fn describe(&self, plane: &ControlPlane) -> String {
        plane
            .kubectl(&[
                "get",
                "encryptedvolumes,nodevolumes",
                "-n",
                &self.namespace,
                "-o",
                "yaml",
            ])
            .await
            .unwrap_or_else(|e| e.to_string())
    }
}

/// Message of the first condition that is not true and has this reason.
fn condition_with(volume: &EncryptedVolume, reason: Reason) -> Option<String> {
    volume
        .status
        .as_ref()?
        .conditions
        .iter()
        .find(|c| c.status != "True" && c.reason == reason.as_str())
        .map(|c| c.message.clone())
}

/// How often an Event of this reason was told of a volume.
pub async fn told(plane: &ControlPlane, namespace: &str, name: &str, reason: &str) -> Result<u64> {
    let args = ["get", "events.events.k8s.io", "-n", namespace, "-o", "json"];
    let list: Value = serde_json::from_str(&plane.kubectl(&args).await?)?;
    let events = list["items"].as_array().context("a list")?.iter();
    let of = |e: &&Value| {
        let about = &e["regarding"];
        e["reason"] == reason && about["kind"] == "EncryptedVolume" && about["name"] == name
    };
    let counts = events.filter(of).map(|e| e["series"]["count"].as_u64());
    Ok(counts.map(|c| c.unwrap_or(1)).sum())
}

/// Waits until an Event of this reason was told of a volume so often.
pub async fn wait_told(
    plane: &ControlPlane,
    namespace: &str,
    name: &str,
    reason: &str,
    times: u64,
) -> Result<()> {
    wait_for(
        &format!("Event {reason} {times} times"),
        PATIENCE,
        || async { Ok((told(plane, namespace, name, reason).await? >= times).then_some(())) },
        String::new,
    )
    .await
}

/// Names of the NodeVolumes in a namespace.
pub async fn node_volumes(plane: &ControlPlane, namespace: &str) -> Result<Vec<String>> {
    let api: Api<NodeVolume> = Api::namespaced(plane.client()?, namespace);
    Ok(api
        .list(&Default::default())
        .await?
        .iter()
        .map(ResourceExt::name_any)
        .collect())
}
