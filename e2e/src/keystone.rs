//! What a test does as the administrator of the identity service and as a tenant: projects, users, application credentials,
//! and a look at the keys. Plain HTTP, so that it is quick; the official client is tried in `tests/api_identity`.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

/// The identity/keys API seen by its administrator.
#[derive(Debug, Clone)]
pub struct Keystone {
    http: reqwest::Client,
    auth_url: String,
    password: String,
}

/// A project with a user that is its member, and an application credential of that user.
#[derive(Debug, Clone)]
pub struct Tenant {
    /// Name of project, user and cloud.
    pub name: String,
    /// Id of the project.
    pub project_id: String,
    /// Id of the user.
    pub user_id: String,
    /// Password of the user.
    pub password: String,
    /// Id of the application credential.
    pub credential_id: String,
    secret: String,
    auth_url: String,
}

/// A token and the key manager's endpoint from its catalog.
struct Session {
    token: String,
    user_id: String,
    project_id: String,
    key_manager: String,
}

impl Keystone {
    /// `auth_url` ends in `/v3`; `ca` is the authority's certificate file.
    pub fn new(auth_url: &str, password: &str, ca: &Path) -> Result<Self> {
        let pem = std::fs::read(ca).with_context(|| format!("read {}", ca.display()))?;
        Self::at(auth_url, password, &pem, None)
    }

    /// As [`Keystone::new`], the certificate given and, where no DNS knows it, the host's address.
    pub fn at(
        auth_url: &str,
        password: &str,
        ca_pem: &[u8],
        host: Option<(&str, SocketAddr)>,
    ) -> Result<Self> {
        crate::control_plane::init_tls();
        let mut http = reqwest::Client::builder()
            .tls_certs_only([reqwest::Certificate::from_pem(ca_pem)?])
            // The service closes what is idle, and a test may come back minutes later.
            .pool_max_idle_per_host(0)
            .timeout(Duration::from_secs(20));
        if let Some((name, address)) = host {
            http = http.resolve(name, address);
        }
        Ok(Self {
            http: http.build()?,
            auth_url: auth_url.into(),
            password: password.into(),
        })
    }

    /// Makes a tenant whose user has `role` in its project.
    pub async fn tenant(&self, name: &str, role: &str) -> Result<Tenant> {
        let admin = self
            .login(
                &self.admin_identity(),
                &json!({"project": {"name": "admin", "domain": {"id": "default"}}}),
            )
            .await?;
        let project = self
            .identity(
                &admin,
                Method::POST,
                "/projects",
                &json!({"project": {"name": name, "domain_id": "default"}}),
            )
            .await?;
        let project_id = text(&project["project"]["id"])?;
        let password = format!("tenant-{}", hex::encode(rand_bytes()?));
        let user = self
            .identity(
                &admin,
                Method::POST,
                "/users",
                &json!({"user": {"name": name, "domain_id": "default", "password": password, "default_project_id": project_id}}),
            )
            .await?;
        let user_id = text(&user["user"]["id"])?;
        self.grant(&project_id, &user_id, role).await?;
        let mut tenant = Tenant {
            name: name.into(),
            project_id,
            user_id,
            password,
            credential_id: String::new(),
            secret: String::new(),
            auth_url: self.auth_url.clone(),
        };
        self.new_credential(&mut tenant, None).await?;
        Ok(tenant)
    }

    /// One call below `/v3` as the administrator, which must succeed.
    pub async fn as_admin(&self, method: Method, path: &str, body: &Value) -> Result<Value> {
        let scope = json!({"project": {"name": "admin", "domain": {"id": "default"}}});
        let admin = self.login(&self.admin_identity(), &scope).await?;
        self.identity(&admin, method, path, body).await
    }

    /// One call of the key manager, such as `/v1/project-quotas/ID`, as the administrator, which must succeed.
    pub async fn keys_as_admin(&self, method: Method, path: &str, body: &Value) -> Result<Value> {
        let scope = json!({"project": {"name": "admin", "domain": {"id": "default"}}});
        let admin = self.login(&self.admin_identity(), &scope).await?;
        self.keys(&admin, method, path, body).await
    }

    /// Gives a user a role in a project.
    pub async fn grant(&self, project_id: &str, user_id: &str, role: &str) -> Result<()> {
        self.role(Method::PUT, project_id, user_id, role).await
    }

    /// Takes a role in a project from a user.
    pub async fn revoke(&self, project_id: &str, user_id: &str, role: &str) -> Result<()> {
        self.role(Method::DELETE, project_id, user_id, role).await
    }

    async fn role(
        &self,
        method: Method,
        project_id: &str,
        user_id: &str,
        role: &str,
    ) -> Result<()> {
        let admin = self
            .login(
                &self.admin_identity(),
                &json!({"project": {"name": "admin", "domain": {"id": "default"}}}),
            )
            .await?;
        let roles = self
            .identity(
                &admin,
                Method::GET,
                &format!("/roles?name={role}"),
                &Value::Null,
            )
            .await?;
        let role_id = text(&roles["roles"][0]["id"])?;
        self.identity(
            &admin,
            method,
            &format!("/projects/{project_id}/users/{user_id}/roles/{role_id}"),
            &Value::Null,
        )
        .await?;
        Ok(())
    }

    /// Replaces the tenant's application credential; `expires_at` like `2026-11-23T23:06:21.000000`.
    pub async fn new_credential(
        &self,
        tenant: &mut Tenant,
        expires_at: Option<&str>,
    ) -> Result<()> {
        let session = self.tenant_login(tenant).await?;
        let name = format!("cryptvol-{}", hex::encode(rand_bytes()?));
        let made = self
            .identity(
                &session,
                Method::POST,
                &format!("/users/{}/application_credentials", session.user_id),
                &json!({"application_credential": {"name": name, "expires_at": expires_at}}),
            )
            .await?;
        tenant.credential_id = text(&made["application_credential"]["id"])?;
        tenant.secret = text(&made["application_credential"]["secret"])?;
        Ok(())
    }

    /// Takes the tenant's application credential away.
    pub async fn delete_credential(&self, tenant: &Tenant) -> Result<()> {
        let session = self.tenant_login(tenant).await?;
        let path = format!(
            "/users/{}/application_credentials/{}",
            session.user_id, tenant.credential_id
        );
        self.identity(&session, Method::DELETE, &path, &Value::Null)
            .await?;
        Ok(())
    }

    /// Names and ids of the tenant's secrets.
    pub async fn secrets(&self, tenant: &Tenant) -> Result<Vec<(String, String)>> {
        let session = self.tenant_login(tenant).await?;
        let list = self
            .keys(&session, Method::GET, "/v1/secrets?limit=100", &Value::Null)
            .await?;
        list["secrets"]
            .as_array()
            .context("no list of secrets")?
            .iter()
            .map(|s| {
                let reference = text(&s["secret_ref"])?;
                let id = reference.rsplit('/').next().unwrap_or_default().to_owned();
                Ok((s["name"].as_str().unwrap_or_default().to_owned(), id))
            })
            .collect()
    }

    /// The passphrase that a secret stands for: lower-case hex of its bytes.
    pub async fn passphrase(&self, tenant: &Tenant, id: &str) -> Result<String> {
        let payload = self.payload(tenant, id, "application/octet-stream").await?;
        Ok(hex::encode(payload))
    }

    /// What is in a secret, of this content type.
    pub async fn payload(&self, tenant: &Tenant, id: &str, content_type: &str) -> Result<Vec<u8>> {
        let session = self.tenant_login(tenant).await?;
        let answer = self
            .http
            .get(format!("{}/v1/secrets/{id}/payload", session.key_manager))
            .header("X-Auth-Token", &session.token)
            .header("Accept", content_type)
            .send()
            .await?
            .error_for_status()?;
        Ok(answer.bytes().await?.to_vec())
    }

    /// Stores bytes as a symmetric key and returns its id.
    pub async fn store(&self, tenant: &Tenant, name: &str, bytes: &[u8]) -> Result<String> {
        use base64::Engine;
        let session = self.tenant_login(tenant).await?;
        let body = json!({
            "name": name, "secret_type": "symmetric", "algorithm": "aes", "bit_length": bytes.len() * 8, "mode": "xts",
            "payload": base64::engine::general_purpose::STANDARD.encode(bytes),
            "payload_content_type": "application/octet-stream", "payload_content_encoding": "base64",
        });
        let made = self
            .keys(&session, Method::POST, "/v1/secrets", &body)
            .await?;
        let reference = text(&made["secret_ref"])?;
        Ok(reference.rsplit('/').next().unwrap_or_default().to_owned())
    }

    /// Deletes a secret.
    pub async fn delete_secret(&self, tenant: &Tenant, id: &str) -> Result<()> {
        let session = self.tenant_login(tenant).await?;
        self.keys(
            &session,
            Method::DELETE,
            &format!("/v1/secrets/{id}"),
            &Value::Null,
        )
        .await?;
        Ok(())
    }

    /// Whether there is a secret of this id.
    pub async fn has_secret(&self, tenant: &Tenant, id: &str) -> Result<bool> {
        let session = self.tenant_login(tenant).await?;
        let answer = self
            .http
            .get(format!("{}/v1/secrets/{id}", session.key_manager))
            .header("X-Auth-Token", &session.token)
            .send()
            .await?;
        match answer.status() {
            StatusCode::NOT_FOUND => Ok(false),
            status => {
                ensure!(status.is_success(), "GET secret {id}: {status}");
                Ok(true)
            }
        }
    }

    /// A token of the tenant's user in its project.
    pub async fn tenant_token(&self, tenant: &Tenant) -> Result<String> {
        Ok(self.tenant_login(tenant).await?.token)
    }

    /// The status with which the service answers a token that asks about itself.
    pub async fn status_of(&self, token: &str) -> Result<u16> {
        let answer = self
            .http
            .get(format!("{}/auth/tokens", self.auth_url))
            .header("X-Auth-Token", token)
            .header("X-Subject-Token", token)
            .send()
            .await?;
        Ok(answer.status().as_u16())
    }

    fn admin_identity(&self) -> Value {
        json!({"methods": ["password"], "password": {"user": {"name": "admin", "domain": {"id": "default"}, "password": self.password}}})
    }

    async fn tenant_login(&self, tenant: &Tenant) -> Result<Session> {
        let identity = json!({"methods": ["password"], "password": {"user": {"id": tenant.user_id, "password": tenant.password}}});
        self.login(&identity, &json!({"project": {"id": tenant.project_id}}))
            .await
    }

    async fn login(&self, identity: &Value, scope: &Value) -> Result<Session> {
        let answer = self
            .http
            .post(format!("{}/auth/tokens", self.auth_url))
            .json(&json!({"auth": {"identity": identity, "scope": scope}}))
            .send()
            .await
            .context("log in to the identity service")?
            .error_for_status()?;
        let token = answer
            .headers()
            .get("X-Subject-Token")
            .context("no X-Subject-Token")?
            .to_str()?
            .to_owned();
        let body: Value = answer.json().await?;
        let key_manager = body["token"]["catalog"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|s| s["type"] == "key-manager")
            .and_then(|s| {
                s["endpoints"]
                    .as_array()?
                    .iter()
                    .find(|e| e["interface"] == "public")
            })
            .and_then(|e| e["url"].as_str())
            .context("no key-manager in the catalog")?
            .trim_end_matches('/')
            .to_owned();
        Ok(Session {
            token,
            user_id: text(&body["token"]["user"]["id"])?,
            project_id: text(&body["token"]["project"]["id"])?,
            key_manager,
        })
    }

    async fn identity(
        &self,
        session: &Session,
        method: Method,
        path: &str,
        body: &Value,
    ) -> Result<Value> {
        self.call(session, method, &format!("{}{path}", self.auth_url), body)
            .await
    }

    async fn keys(
        &self,
        session: &Session,
        method: Method,
        path: &str,
        body: &Value,
    ) -> Result<Value> {
        self.call(
            session,
            method,
            &format!("{}{path}", session.key_manager),
            body,
        )
        .await
    }

    async fn call(
        &self,
        session: &Session,
        method: Method,
        url: &str,
        body: &Value,
    ) -> Result<Value> {
        let mut request = self
            .http
            .request(method.clone(), url)
            .header("X-Auth-Token", &session.token);
        if !body.is_null() {
            request = request.json(body);
        }
        let answer = request
            .send()
            .await
            .with_context(|| format!("{method} {url}"))?;
        let status = answer.status();
        let body = answer.bytes().await?;
        ensure!(
            status.is_success(),
            "{method} {url} in project {}: {status} {}",
            session.project_id,
            String::from_utf8_lossy(&body)
        );
        Ok(serde_json::from_slice(&body).unwrap_or_default())
    }
}

impl Tenant {
    /// `clouds.yaml` with the application credential.
    pub fn clouds_yaml(&self) -> String {
        self.clouds(&json!({
            "auth_type": "v3applicationcredential",
            "auth": {
                "auth_url": self.auth_url,
                "application_credential_id": self.credential_id,
                "application_credential_secret": self.secret,
            },
        }))
    }

    /// `clouds.yaml` with user and password.
    pub fn password_clouds_yaml(&self, password: &str) -> String {
        self.clouds(&json!({
            "auth": {
                "auth_url": self.auth_url,
                "username": self.name,
                "password": password,
                "user_domain_name": "Default",
                "project_name": self.name,
                "project_domain_name": "Default",
            },
        }))
    }

    /// JSON is YAML.
    fn clouds(&self, cloud: &Value) -> String {
        json!({"clouds": {(self.name.as_str()): cloud}}).to_string()
    }

    /// The Secret that a volume's `credentials` name.
    pub fn secret_manifest(&self, namespace: &str, name: &str, clouds_yaml: &str) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": namespace},
            "stringData": {"clouds.yaml": clouds_yaml},
        })
    }
}

fn text(value: &Value) -> Result<String> {
    Ok(value
        .as_str()
        .with_context(|| format!("a text was expected, not {value}"))?
        .to_owned())
}

fn rand_bytes() -> Result<[u8; 8]> {
    use std::io::Read;
    let mut bytes = [0; 8];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}
