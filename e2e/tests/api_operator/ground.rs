//! A real API server, the real identity service and the operator as it ships, with the rights that the chart gives it. The
//! test itself is the node agent: it reports on NodeVolumes and asks for keys with tokens bound to a pod on a node.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use cryptvol_crds::conditions::{READY, Reason, get, is_true};
use cryptvol_crds::v1alpha1::{
    Desired, DeviceStatus, EncryptedVolumeStatus, EraseReceipt, HeaderFacts, NodeVolumeStatus,
    PermitReceipt, Stage,
};
use cryptvol_crds::{EncryptedVolume, NodeVolume, names};
use cryptvol_e2e::control_plane::{ControlPlane, Options};
use cryptvol_e2e::identity_service::{self, IdentityService};
use cryptvol_e2e::keystone::{Keystone, Tenant};
use cryptvol_e2e::parts::{Parts, Set};
use cryptvol_e2e::process::wait_for;
use cryptvol_e2e::system::{self, Operator, OperatorSpec};
use cryptvol_e2e::volumes::PATIENCE;
use cryptvol_e2e::workdir::WorkDir;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};

/// The tenant's namespace.
pub const TEAM: &str = "team-a";
/// What only the cluster knows shows within this on a machine that is not overloaded; later is told, not failed.
const PROMPT: Duration = Duration::from_secs(10);

/// `S` is what keeps the identity/keys service running.
pub struct Ground<S = IdentityService> {
    pub work: WorkDir,
    pub plane: ControlPlane,
    pub identity: S,
    pub keystone: Keystone,
    pub tenant: Tenant,
    pub client: Client,
    pub http: reqwest::Client,
}

impl Ground {
    pub async fn start(name: &str) -> Result<Self> {
        Self::with(name, false).await
    }

    /// With the controllers that delete a namespace.
    pub async fn with_controllers(name: &str) -> Result<Self> {
        Self::with(name, true).await
    }

    async fn with(name: &str, controller_manager: bool) -> Result<Self> {
        let work = WorkDir::new(name)?;
        let identity =
            IdentityService::start(&work.dir("identity")?, identity_service::Options::default())?;
        let keystone = Keystone::new(
            &identity.auth_url(),
            identity.password(),
            &identity.ca_path(),
        )?;
        let (auth_url, ca) = (identity.auth_url(), identity.ca_path());
        Self::on(
            work,
            identity,
            keystone,
            (&auth_url, &ca),
            controller_manager,
        )
        .await
    }
}

impl<S> Ground<S> {
    /// On an identity/keys service that runs: the administrator's view of it, its address and its authority's certificate.
    pub async fn on(
        work: WorkDir,
        identity: S,
        keystone: Keystone,
        (auth_url, ca): (&str, &Path),
        controller_manager: bool,
    ) -> Result<Self> {
        let parts = Parts::locate(Set::ControlPlane)?;
        let options = Options {
            controller_manager,
            scheduler: false,
        };
        let plane = ControlPlane::start(&work.dir("control-plane")?, &parts, options).await?;
        let tenant = keystone.tenant(TEAM, "member").await?;
        let client = plane.client()?;
        let own = reqwest::Certificate::from_pem(plane.authority().certificate().as_bytes())?;
        let ground = Self {
            http: reqwest::Client::builder().tls_certs_only([own]).build()?,
            work,
            plane,
            identity,
            keystone,
            tenant,
            client,
        };
        system::install(&ground.plane, auth_url, ca).await?;
        ground.install().await?;
        Ok(ground)
    }

    async fn install(&self) -> Result<()> {
        self.apply(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": TEAM}}))
            .await?;
        for node in ["node-1", "node-2"] {
            self.node(node, true).await?;
        }
        self.credentials(&self.tenant.clouds_yaml()).await
    }

    pub async fn apply(&self, object: &Value) -> Result<()> {
        self.plane.apply(&object.to_string()).await.map(drop)
    }

    /// A node as kubelet and the agent's check would show it.
    pub async fn node(&self, name: &str, fit: bool) -> Result<()> {
        system::add_node(&self.plane, name).await?;
        let (type_, why) = (names::NODE_CONDITION, "dm-crypt: not found");
        system::node_condition(&self.plane, name, type_, fit, why).await
    }

    /// Puts a `clouds.yaml` into the tenant's Secret.
    pub async fn credentials(&self, clouds_yaml: &str) -> Result<()> {
        self.apply(&self.tenant.secret_manifest(TEAM, "openstack", clouds_yaml))
            .await
    }

    /// Starts a replica and waits until it is ready.
    pub async fn operator(&self, name: &str) -> Result<Operator> {
        let spec = OperatorSpec::new(name, "127.0.0.1")?;
        Operator::start(&self.plane, &self.work.dir(name)?, &spec).await
    }

    /// A volume of the tenant; `spec` goes over the usual one.
    pub fn volume(&self, name: &str, lun: i32, spec: &Value) -> Value {
        let mut full = json!({
            "source": {"iscsi": {"portals": ["192.0.2.1"], "iqn": "iqn.2026-11.com.example:api", "lun": lun}},
            "attachments": [{"nodeName": "node-1"}],
            "credentials": {"secretName": "openstack", "cloudName": self.tenant.name},
        });
        for (key, value) in spec.as_object().into_iter().flatten() {
            full[key] = value.clone();
        }
        json!({"apiVersion": "cryptvol.dev/v1alpha1", "kind": "EncryptedVolume",
            "metadata": {"name": name, "namespace": TEAM}, "spec": full})
    }

    pub fn volumes(&self) -> Api<EncryptedVolume> {
        Api::namespaced(self.client.clone(), TEAM)
    }

    pub fn node_volumes(&self) -> Api<NodeVolume> {
        Api::namespaced(self.client.clone(), TEAM)
    }

    /// Waits until a volume's status is as wanted.
    pub async fn until(
        &self,
        name: &str,
        what: &str,
        fits: impl Fn(&EncryptedVolumeStatus) -> bool,
    ) -> Result<EncryptedVolumeStatus> {
        let begun = Instant::now();
        loop {
            let status = self.volumes().get(name).await?.status.unwrap_or_default();
            if fits(&status) {
                let took = begun.elapsed();
                if took > PROMPT {
                    eprintln!("{name}: {what} only after {took:?}");
                }
                return Ok(status);
            }
            if begun.elapsed() > PATIENCE {
                bail!(
                    "{name}: not {what} after {PATIENCE:?}: {}",
                    serde_json::to_string_pretty(&status)?
                );
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until the volume stops for a reason, and gives the message.
    pub async fn stops(&self, name: &str, reason: &str) -> Result<String> {
        self.stops_saying(name, reason, "").await
    }

    /// The same, and until the message names `word`: what a reason is given for may change under way.
    pub async fn stops_saying(&self, name: &str, reason: &str, word: &str) -> Result<String> {
        let what = format!("stopped by {reason} {word:?}");
        let status = self
            .until(name, &what, |s| {
                get(&s.conditions, READY).is_some_and(|c| {
                    c.reason == reason && c.status == "False" && c.message.contains(word)
                })
            })
            .await?;
        Ok(get(&status.conditions, READY)
            .map(|c| c.message.clone())
            .unwrap_or_default())
    }

    /// Waits until the NodeVolume of a volume on a node is as wanted.
    pub async fn handed_over(
        &self,
        volume: &str,
        node: &str,
        fits: impl Fn(&NodeVolume) -> bool,
    ) -> Result<NodeVolume> {
        let name = names::node_volume_name(volume, node);
        let begun = Instant::now();
        loop {
            let found = self.node_volumes().get_opt(&name).await?;
            if let Some(nv) = found.as_ref().filter(|nv| fits(nv)) {
                return Ok(nv.clone());
            }
            ensure!(
                begun.elapsed() < PATIENCE,
                "{name} is not as wanted: {}",
                serde_json::to_string_pretty(&found)?
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// A token of the agent on a node; for the API server, or for `audience`.
    pub async fn agent_token(&self, node: &str, audience: Option<&str>) -> Result<String> {
        system::agent_token(&self.plane, node, audience).await
    }

    /// Reports as the node's agent: with its own token, on the present generation.
    pub async fn report(
        &self,
        nv: &NodeVolume,
        change: impl FnOnce(&mut NodeVolumeStatus),
    ) -> Result<NodeVolume> {
        let token = self.agent_token(&nv.spec.node_name, None).await?;
        let api: Api<NodeVolume> = Api::namespaced(self.plane.client_with_token(&token)?, TEAM);
        let mut status = api.get(&nv.name_any()).await?.status.unwrap_or_default();
        status.observed_generation = nv.metadata.generation;
        change(&mut status);
        let patch =
            json!({"apiVersion": "cryptvol.dev/v1alpha1", "kind": "NodeVolume", "status": status});
        api.patch_status(
            &nv.name_any(),
            &PatchParams::apply(names::AGENT_MANAGER).force(),
            &Patch::Apply(patch),
        )
        .await
        .context("report as the agent")
    }

    /// The agent spends the permit, formats and attaches; the volume is Ready.
    pub async fn comes_up(&self, volume: &str) -> Result<()> {
        let nv = self
            .handed_over(volume, "node-1", |nv| nv.spec.format_permit.is_some())
            .await?;
        let permit = nv.spec.format_permit.clone().context("a permit")?;
        let spent = PermitReceipt {
            id: permit.id,
            spent_at: Some(now()),
        };
        self.report(&nv, |s| {
            s.stage = Stage::Identity;
            s.permit = Some(spent);
        })
        .await?;
        let nv = self
            .handed_over(volume, "node-1", |nv| nv.spec.formatted_before)
            .await?;
        self.report(&nv, |s| {
            s.stage = Stage::Attached;
            s.device = Some(DeviceStatus {
                path: "/dev/sda".into(),
                wwid: None,
                size_bytes: 1 << 30,
            });
            s.header = Some(HeaderFacts {
                luks_uuid: permit.luks_uuid.clone(),
                cipher: "aes-xts-plain64".into(),
                key_size: 512,
                sector_size: 512,
                data_offset: 16 << 20,
                digest: "ab".repeat(32),
                ..HeaderFacts::default()
            });
            s.link = Some(nv.spec.link.clone());
            s.first_opened = Some(now());
        })
        .await?;
        self.until(volume, "Ready", |s| is_true(&s.conditions, READY))
            .await
            .map(drop)
    }

    /// `kubectl patch` of a volume.
    pub async fn patch(&self, volume: &str, patch: &Value) -> Result<()> {
        let patch = Patch::Merge(patch);
        self.volumes()
            .patch(volume, &PatchParams::default(), &patch)
            .await?;
        Ok(())
    }

    /// Waits until a volume is gone.
    pub async fn gone(&self, volume: &str) -> Result<()> {
        wait_for(
            &format!("{volume} to be gone"),
            PATIENCE,
            || async {
                Ok(self
                    .volumes()
                    .get_opt(volume)
                    .await?
                    .is_none()
                    .then_some(()))
            },
            String::new,
        )
        .await
    }

    /// The agent let go.
    pub async fn lets_go(&self, nv: &NodeVolume) -> Result<()> {
        self.report(nv, |s| {
            s.stage = Stage::Detached;
            s.error = None;
            s.link = None;
        })
        .await
        .map(drop)
    }

    /// Waits until node-1 is to detach the volume, and does.
    pub async fn is_off(&self, volume: &str) -> Result<()> {
        let nv = self
            .handed_over(volume, "node-1", |nv| nv.spec.desired == Desired::Detached)
            .await?;
        self.lets_go(&nv).await
    }

    /// Somebody takes the volume from node-1, which does as it is told.
    pub async fn detaches(&self, volume: &str) -> Result<()> {
        self.patch(volume, &json!({"spec": {"attachments": []}}))
            .await?;
        self.is_off(volume).await?;
        self.until(volume, "detached", |s| {
            get(&s.conditions, READY).is_some_and(|c| c.reason == Reason::Detached.as_str())
        })
        .await
        .map(drop)
    }

    /// Somebody wants the volume on node-1 again.
    pub async fn attaches(&self, volume: &str) -> Result<()> {
        let there = json!({"spec": {"attachments": [{"nodeName": "node-1"}]}});
        self.patch(volume, &there).await
    }

    /// Asks for a key with a token; status and body.
    pub async fn ask(
        &self,
        operator: &Operator,
        token: &str,
        nv: &NodeVolume,
        purpose: &str,
        id: &str,
    ) -> Result<(u16, Value)> {
        let body = json!({"namespace": TEAM, "name": nv.name_any(), "uid": nv.uid(), "purpose": purpose, "requestId": id});
        let answer = self
            .http
            .post(format!("{}/v1/release", operator.release_url))
            .bearer_auth(token)
            .json(&body)
            .send()
            .await?;
        let status = answer.status().as_u16();
        Ok((status, answer.json().await.unwrap_or_default()))
    }

    /// The release of a volume's passphrase to its node; status and body.
    pub async fn passphrase(&self, operator: &Operator, nv: &NodeVolume) -> Result<(u16, Value)> {
        let token = self
            .agent_token("node-1", Some(names::KEY_RELEASE_AUDIENCE))
            .await?;
        self.ask(operator, &token, nv, "Passphrase", &request_id())
            .await
    }

    /// `kubectl delete`, and the node lets go and erases.
    pub async fn erased(&self, volume: &str) -> Result<()> {
        self.volumes()
            .delete(volume, &DeleteParams::default())
            .await?;
        let nv = self
            .handed_over(volume, "node-1", |nv| nv.spec.desired == Desired::Erased)
            .await?;
        let luks_uuid = nv.spec.luks_uuid.clone().context("no LUKS UUID")?;
        self.report(&nv, |s| {
            s.stage = Stage::Erased;
            s.link = None;
            s.erased = Some(erase_receipt(luks_uuid));
        })
        .await?;
        self.gone(volume).await
    }
}

/// A random request id.
pub fn request_id() -> String {
    let bytes: [u8; 16] = std::array::from_fn(|_| {
        use std::hash::{BuildHasher, RandomState};
        (RandomState::new().hash_one(0_u8) & 0xff) as u8
    });
    let hex = hex::encode(bytes);
    format!(
        "{}-{}-4{}-8{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[13..16],
        &hex[17..20],
        &hex[20..]
    )
}

/// The receipt of node-1 for the erasure of a header.
pub fn erase_receipt(luks_uuid: String) -> EraseReceipt {
    EraseReceipt {
        luks_uuid,
        key_slots_wiped: 1,
        verified: true,
        at: now(),
        node_name: "node-1".into(),
    }
}

/// Now, as the agent writes it.
pub fn now() -> Time {
    Time(Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default())
}
