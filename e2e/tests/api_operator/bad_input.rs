//! What only the cluster or the identity service knows: a condition within ten seconds with its own reason and a next step,
//! no second key, nothing handed to a node; and repair of the cause alone makes it go on.

use std::time::Duration;

use anyhow::{Result, ensure};
use cryptvol_crds::conditions::Reason;
use cryptvol_crds::names;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::api::DeleteParams;
use serde_json::{Value, json};

use crate::ground::{Ground, TEAM};

impl<S> Ground<S> {
    /// The volume stops with this reason and its next step, and nothing was handed over.
    pub async fn refused(&self, name: &str, reason: Reason) -> Result<String> {
        let message = self.stops(name, reason.as_str()).await?;
        ensure!(message.contains(reason.next_step()), "{message}");
        let handed = self
            .node_volumes()
            .get_opt(&names::node_volume_name(name, "node-1"))
            .await?;
        ensure!(handed.is_none(), "{reason}: a NodeVolume was made");
        Ok(message)
    }

    /// The volume goes on by itself, and has one key.
    pub async fn goes_on(&self, name: &str) -> Result<()> {
        self.handed_over(name, "node-1", |_| true).await?;
        let volume = self.volumes().get(name).await?;
        let key = names::key_name(
            TEAM,
            name,
            volume.metadata.uid.as_deref().unwrap_or_default(),
        );
        let keys = self.keystone.secrets(&self.tenant).await?;
        let ours = keys.iter().filter(|(n, _)| *n == key).count();
        ensure!(ours == 1, "{ours} keys of {name}");
        Ok(())
    }
}

#[tokio::test]
async fn references_that_lead_nowhere() -> Result<()> {
    let ground = Ground::start("operator-references").await?;
    let _operator = ground.operator("operator-0").await?;

    // No such class.
    ground
        .apply(&ground.volume("class", 1, &json!({"encryptionClassName": "fast"})))
        .await?;
    let message = ground
        .refused("class", Reason::EncryptionClassNotFound)
        .await?;
    ensure!(message.contains("fast"), "{message}");
    ground
        .apply(&json!({"apiVersion": "cryptvol.dev/v1alpha1", "kind": "EncryptionClass", "metadata": {"name": "fast"}, "spec": {"encryption": {"sectorSize": 4096}}}))
        .await?;
    ground.goes_on("class").await?;
    let nv = ground.handed_over("class", "node-1", |_| true).await?;
    assert_eq!(nv.spec.encryption.sector_size, 4096);

    // No such KeyService.
    ground
        .apply(&ground.volume("service", 2, &json!({"keyServiceName": "elsewhere"})))
        .await?;
    ground
        .refused("service", Reason::KeyServiceNotFound)
        .await?;

    // No such node; then one that cannot do the job; then one that can.
    ground
        .apply(&ground.volume("node", 3, &json!({"attachments": [{"nodeName": "node-9"}]})))
        .await?;
    let message = ground.stops("node", Reason::NodeNotFound.as_str()).await?;
    ensure!(
        message.contains("node-9") && message.contains(Reason::NodeNotFound.next_step()),
        "{message}"
    );
    ground.node("node-9", false).await?;
    // First no agent has reported there at all.
    ground
        .stops_saying("node", Reason::NodeUnfit.as_str(), "dm-crypt: not found")
        .await?;
    ground.node("node-9", true).await?;
    ground.handed_over("node", "node-9", |_| true).await?;

    // No such Secret; then one without the file; then with rubbish in it; then for another service; then right.
    let other = json!({"credentials": {"secretName": "mine", "cloudName": ground.tenant.name}});
    ground.apply(&ground.volume("secret", 4, &other)).await?;
    ground
        .refused("secret", Reason::CredentialsSecretNotFound)
        .await?;
    let secret = |data: Value| json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "mine", "namespace": TEAM}, "stringData": data});
    ground.apply(&secret(json!({"other": "x"}))).await?;
    ground.refused("secret", Reason::CredentialsInvalid).await?;
    ground
        .apply(&secret(json!({"clouds.yaml": "clouds: [hunter2"})))
        .await?;
    ground
        .until("secret", "told about the file", |s| {
            s.last_error
                .as_ref()
                .is_some_and(|e| e.message.contains("cannot be read"))
        })
        .await?;
    let elsewhere = ground
        .tenant
        .clouds_yaml()
        .replace(&ground.identity.base_url(), "https://192.0.2.66");
    ground
        .apply(&secret(json!({"clouds.yaml": elsewhere})))
        .await?;
    let status = ground
        .until("secret", "told about the address", |s| {
            s.last_error
                .as_ref()
                .is_some_and(|e| e.message.contains("talks to the KeyService only"))
        })
        .await?;
    ensure!(!serde_json::to_string(&status)?.contains("hunter2"));
    ground
        .apply(&secret(json!({"clouds.yaml": ground.tenant.clouds_yaml()})))
        .await?;
    ground.goes_on("secret").await?;

    // Two volumes on one disk: the second stops and goes on when the first is gone.
    ground
        .apply(&ground.volume("first", 5, &json!({"attachments": []})))
        .await?;
    ground
        .until("first", "claimed", |s| s.key.is_some())
        .await?;
    ground
        .apply(&ground.volume("second", 5, &json!({})))
        .await?;
    ground.refused("second", Reason::SourceInUse).await?;
    ground
        .volumes()
        .delete("first", &DeleteParams::default())
        .await?;
    ground.goes_on("second").await?;
    ground.work.passed()
}

#[tokio::test]
async fn credentials_that_do_not_do() -> Result<()> {
    let mut ground = Ground::start("operator-credentials").await?;
    let _operator = ground.operator("operator-0").await?;

    // A wrong password, mended in the Secret.
    let wrong = ground.tenant.password_clouds_yaml("wrong");
    ground.credentials(&wrong).await?;
    ground
        .apply(&ground.volume("password", 1, &json!({})))
        .await?;
    ground
        .refused("password", Reason::CredentialsRejected)
        .await?;
    let right = ground.tenant.password_clouds_yaml(&ground.tenant.password);
    ground.credentials(&right).await?;
    ground.goes_on("password").await?;

    // The right role is missing, mended in the identity service alone.
    let (project, user) = (
        ground.tenant.project_id.clone(),
        ground.tenant.user_id.clone(),
    );
    ground.keystone.grant(&project, &user, "reader").await?;
    ground.keystone.revoke(&project, &user, "member").await?;
    ground.apply(&ground.volume("role", 2, &json!({}))).await?;
    ground.refused("role", Reason::RoleMissing).await?;
    ground.keystone.grant(&project, &user, "member").await?;
    ground.goes_on("role").await?;

    // An application credential that expires while it is in use.
    let mut tenant = ground.tenant.clone();
    let end = Timestamp::now() + SignedDuration::from_secs(15);
    let expires = end.strftime("%Y-%m-%dT%H:%M:%S.000000").to_string();
    ground
        .keystone
        .new_credential(&mut tenant, Some(&expires))
        .await?;
    ground.credentials(&tenant.clouds_yaml()).await?;
    ground
        .apply(&ground.volume("expiring", 30, &json!({})))
        .await?;
    ground.goes_on("expiring").await?;
    let left = end.duration_since(Timestamp::now()) + SignedDuration::from_secs(1);
    tokio::time::sleep(Duration::try_from(left).unwrap_or_default()).await;
    ground
        .apply(&ground.volume("expired", 3, &json!({})))
        .await?;
    let message = ground
        .refused("expired", Reason::CredentialsExpired)
        .await?;
    ensure!(message.contains("xpired"), "{message}");
    ground.keystone.new_credential(&mut tenant, None).await?;
    ground.credentials(&tenant.clouds_yaml()).await?;
    ground.goes_on("expired").await?;

    // One that had expired before it was ever used: the embedded service says so to who has its secret, Keystone does not.
    let end = Timestamp::now() + SignedDuration::from_secs(1);
    let expires = end.strftime("%Y-%m-%dT%H:%M:%S.000000").to_string();
    ground
        .keystone
        .new_credential(&mut tenant, Some(&expires))
        .await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    ground.credentials(&tenant.clouds_yaml()).await?;
    ground
        .apply(&ground.volume("stale", 31, &json!({})))
        .await?;
    let status = ground
        .until("stale", "told about the expiry", |s| {
            s.last_error
                .as_ref()
                .is_some_and(|e| e.message.contains("expired"))
        })
        .await?;
    let reason = status.last_error.map(|e| e.reason).unwrap_or_default();
    ensure!(reason == Reason::CredentialsExpired.as_str(), "{reason}");
    ground.keystone.new_credential(&mut tenant, None).await?;
    ground.credentials(&tenant.clouds_yaml()).await?;
    ground.goes_on("stale").await?;

    // No key with that id.
    let nowhere =
        json!({"key": {"secretRef": "11111111-2222-3333-4444-555555555555"}, "format": "Never"});
    ground.apply(&ground.volume("key", 4, &nowhere)).await?;
    let message = ground.refused("key", Reason::KeyNotFound).await?;
    ensure!(message.contains("11111111-2222"), "{message}");
    // An existing one is taken, and not destroyed with the volume.
    let id = ground
        .keystone
        .store(&ground.tenant, "theirs", &[7; 32])
        .await?;
    let there = json!({"key": {"secretRef": id}, "format": "Never", "deletionPolicy": "Erase", "attachments": []});
    ground.apply(&ground.volume("imported", 5, &there)).await?;
    ground
        .until("imported", "key on record", |s| {
            s.key.as_ref().is_some_and(|k| k.id == id && !k.generated)
        })
        .await?;
    ground
        .volumes()
        .delete("imported", &DeleteParams::default())
        .await?;
    ground.gone("imported").await?;
    ensure!(
        ground.keystone.has_secret(&ground.tenant, &id).await?,
        "their key is not ours to destroy"
    );

    // The identity service is down, and comes back.
    ground.identity.kill()?;
    ground.apply(&ground.volume("down", 6, &json!({}))).await?;
    ground
        .refused("down", Reason::KeyServiceUnavailable)
        .await?;
    // Meanwhile a deletion with Retain needs no key service.
    ground
        .volumes()
        .delete("key", &DeleteParams::default())
        .await?;
    ground.gone("key").await?;
    ground.identity.launch()?;
    ground.goes_on("down").await?;
    ground.work.passed()
}
