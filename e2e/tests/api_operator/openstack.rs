//! The operator with a real Keystone and a real Barbican as its KeyService: a key is made, read by the release to a node, and
//! erased; and what goes wrong with them goes wrong as with the embedded service.

use anyhow::{Context, Result, ensure};
use cryptvol_crds::conditions::{READY, Reason, is_true};
use cryptvol_crds::names;
use cryptvol_crds::v1alpha1::KeyService;
use cryptvol_e2e::keystone::Keystone;
use cryptvol_e2e::openstack::OpenStack;
use cryptvol_e2e::pki::Authority;
use cryptvol_e2e::process::wait_for;
use cryptvol_e2e::tls_front::TlsFront;
use cryptvol_e2e::volumes::PATIENCE;
use cryptvol_e2e::workdir::WorkDir;
use kube::Api;
use reqwest::Method;
use serde_json::{Value, json};

use crate::ground::{Ground, TEAM};

/// Both services, and TLS before each.
struct Real {
    services: OpenStack,
    _fronts: [TlsFront; 2],
}

async fn start() -> Result<Ground<Real>> {
    let work = WorkDir::new("operator-openstack")?;
    let (dir, ca_dir) = (work.dir("openstack")?, work.dir("ca")?);
    // It starts processes and waits for them.
    let services = tokio::task::spawn_blocking(move || OpenStack::start(&dir)).await??;
    let authority = Authority::open(&ca_dir)?;
    let certificate = authority.server(&["127.0.0.1"])?;
    let identity = TlsFront::start(services.identity().socket(), &certificate).await?;
    let keys = TlsFront::start(services.key_manager().socket(), &certificate).await?;
    let (auth_url, keys_url) = (format!("{}/v3", identity.url()), keys.url());
    let real = Real {
        services,
        _fronts: [identity, keys],
    };
    let real = tokio::task::spawn_blocking(move || {
        real.services.publish_key_manager(&keys_url).map(|()| real)
    })
    .await??;
    let ca = ca_dir.join("ca.crt");
    let keystone = Keystone::new(&auth_url, real.services.password(), &ca)?;
    Ground::on(work, real, keystone, (&auth_url, &ca), false).await
}

impl Ground<Real> {
    /// Barbican's quotas of the tenant's project.
    async fn key_quotas(&self, quotas: &Value) -> Result<()> {
        let path = format!("/v1/project-quotas/{}", self.tenant.project_id);
        let body = json!({"project_quotas": quotas});
        self.keystone
            .keys_as_admin(Method::PUT, &path, &body)
            .await
            .map(drop)
    }

    async fn service_ready(&self) -> Result<()> {
        let api: Api<KeyService> = Api::all(self.client.clone());
        wait_for(
            "the KeyService to be Ready",
            PATIENCE,
            || async {
                let status = api.get("embedded").await?.status.unwrap_or_default();
                Ok(is_true(&status.conditions, READY).then_some(()))
            },
            String::new,
        )
        .await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_of_a_real_keystone_and_barbican() -> Result<()> {
    let mut ground = start().await?;
    let operator = ground.operator("operator-0").await?;
    ground.service_ready().await?;
    let erase = json!({"deletionPolicy": "Erase"});

    // Made, read by the release to the node, and only for it; erased.
    ground.apply(&ground.volume("v", 1, &erase)).await?;
    let nv = ground
        .handed_over("v", "node-1", |nv| nv.spec.format_permit.is_some())
        .await?;
    let volume = ground.volumes().get("v").await?;
    let key = volume.status.unwrap_or_default().key.context("no key")?;
    let uid = volume.metadata.uid.unwrap_or_default();
    assert_eq!(
        ground.keystone.secrets(&ground.tenant).await?,
        [(names::key_name(TEAM, "v", &uid), key.id.clone())],
        "one key, under the volume's name"
    );
    let stored = ground.keystone.passphrase(&ground.tenant, &key.id).await?;
    ensure!(stored.len() == 64, "{} characters", stored.len());
    let (code, body) = ground.passphrase(&operator, &nv).await?;
    assert_eq!(
        (code, body["passphrase"].as_str()),
        (200, Some(stored.as_str()))
    );
    ground.comes_up("v").await?;
    ground.erased("v").await?;
    ensure!(!ground.keystone.has_secret(&ground.tenant, &key.id).await?);

    // A wrong password, mended in the Secret; the volume's second key does not come of it.
    let wrong = ground.tenant.password_clouds_yaml("wrong");
    ground.credentials(&wrong).await?;
    ground.apply(&ground.volume("password", 2, &erase)).await?;
    ground
        .refused("password", Reason::CredentialsRejected)
        .await?;
    ground.credentials(&ground.tenant.clouds_yaml()).await?;
    ground.goes_on("password").await?;

    // Somebody else deletes the key of a volume: the release says so, and deleting the volume does not wait for it.
    ground.comes_up("password").await?;
    let nv = ground.handed_over("password", "node-1", |_| true).await?;
    let status = ground.volumes().get("password").await?.status;
    let key = status.unwrap_or_default().key.context("no key")?;
    ground
        .keystone
        .delete_secret(&ground.tenant, &key.id)
        .await?;
    let (code, body) = ground.passphrase(&operator, &nv).await?;
    assert_eq!(
        (code, body["reason"].as_str()),
        (422, Some(Reason::KeyNotFound.as_str())),
        "{body}"
    );
    ground.erased("password").await?;

    // Barbican's quota of the project, and then room.
    ground.key_quotas(&json!({"orders": 0})).await?;
    ground.apply(&ground.volume("quota", 3, &erase)).await?;
    ground.refused("quota", Reason::KeyQuotaExceeded).await?;
    ground.key_quotas(&json!({"orders": -1})).await?;
    ground.goes_on("quota").await?;

    // What Keystone's unified limits say of cryptvol.
    let service = json!({"service": {"type": "cryptvol", "name": "cryptvol"}});
    let service = ground
        .keystone
        .as_admin(Method::POST, "/services", &service)
        .await?;
    let service = service["service"]["id"].as_str().context("no id")?;
    let registered = json!({"registered_limits": [
        {"service_id": service, "resource_name": "cryptvol_volumes", "default_limit": 1},
    ]});
    let registered = ground
        .keystone
        .as_admin(Method::POST, "/registered_limits", &registered)
        .await?;
    ground.apply(&ground.volume("limit", 4, &erase)).await?;
    ground.refused("limit", Reason::QuotaExceeded).await?;
    let id = registered["registered_limits"][0]["id"]
        .as_str()
        .context("no id")?;
    ground
        .keystone
        .as_admin(
            Method::DELETE,
            &format!("/registered_limits/{id}"),
            &Value::Null,
        )
        .await?;
    ground.goes_on("limit").await?;

    // Both services gone, and back.
    ground.identity.services.kill()?;
    ground.apply(&ground.volume("down", 5, &erase)).await?;
    ground
        .refused("down", Reason::KeyServiceUnavailable)
        .await?;
    ground.identity.services.launch()?;
    ground.goes_on("down").await?;
    ground.work.passed()
}
