//! What a fresh service needs before anybody can log in. May be run again at every start: it only adds what
//! is missing, and sets the administrator's password and the endpoints to what was asked for.

use secrecy::SecretString;
use serde_json::json;
use thiserror::Error;

use crate::{
    app::App,
    crypto::password::PasswordError,
    ids::identity_id,
    store::{
        Change, StoreError, StoreResult,
        assignments::Assignment,
        catalog::{Endpoint, Region, Service},
        domains::Domain,
        projects::Project,
        roles::Role,
        users::User,
    },
    time::now_us,
};

/// Id of the first domain, fixed by the protocol.
pub(crate) const DEFAULT_DOMAIN: &str = "default";
const DEFAULT_DOMAIN_NAME: &str = "Default";
const ADMIN: &str = "admin";
/// Each role implies the next one; `service` stands alone.
const ROLE_CHAIN: [&str; 4] = ["admin", "manager", "member", "reader"];
const SERVICE_ROLE: &str = "service";

/// What to make.
#[derive(Debug)]
pub struct BootstrapRequest {
    /// Password of the user admin.
    pub password: SecretString,
    /// Where clients reach the service, without a path: `https://keys.example.org:5000`.
    pub public_url: String,
    /// Region of the endpoints.
    pub region: String,
}

/// Why it could not be made.
#[derive(Debug, Error)]
pub enum BootstrapError {
    /// The URL is not one that can stand in front of the services' paths.
    #[error("--public-url {0} must be http://HOST[:PORT] or https://HOST[:PORT] without a path")]
    PublicUrl(String),
    /// There is no password.
    #[error("the password file is empty")]
    EmptyPassword,
    /// Records.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Password hashing.
    #[error(transparent)]
    Password(#[from] PasswordError),
}

impl BootstrapError {
    /// Machine-readable reason.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::PublicUrl(_) => "BadPublicUrl",
            Self::EmptyPassword => "EmptyPassword",
            Self::Store(error) => error.reason(),
            Self::Password(error) => error.reason(),
        }
    }
}

/// Makes what is missing, all of it or nothing: replicas that start at once on an empty database make the same objects, one after
/// the other, and one that is killed leaves nothing half made.
///
/// # Errors
/// Any [`BootstrapError`]; nothing has changed then.
pub async fn bootstrap(app: &App, request: &BootstrapRequest) -> Result<(), BootstrapError> {
    use secrecy::ExposeSecret;
    if request.password.expose_secret().is_empty() {
        return Err(BootstrapError::EmptyPassword);
    }
    let url = request.public_url.trim_end_matches('/').to_owned();
    let host = url
        .strip_prefix("https://")
        .or_else(|| url.strip_prefix("http://"))
        .unwrap_or_default();
    if host.is_empty() || host.contains(['/', '?', '#', ' ', '@']) {
        return Err(BootstrapError::PublicUrl(request.public_url.clone()));
    }
    // Hashing takes its time, so it comes before the change, which holds up others. Whoever set another password meanwhile makes
    // it begin anew.
    loop {
        let password = Password::prove(app, &request.password).await?;
        let mut making = Making {
            change: app.store.change_identity().await?,
            changed: false,
        };
        if !making.everything(&password, &url, &request.region).await? {
            continue;
        }
        if making.changed {
            app.store.commit(making.change).await?;
        }
        break;
    }
    tracing::info!(public_url = %url, region = %request.region, "bootstrapped");
    Ok(())
}

/// The administrator's password, compared with what is stored.
struct Password {
    /// The hash that was there; `None`: no user, or one without a password.
    found: Option<String>,
    /// The hash that has to be there: the one that was, if it is of this password.
    wanted: Option<String>,
}

impl Password {
    async fn prove(app: &App, password: &SecretString) -> Result<Self, BootstrapError> {
        let user = app.store.user_by_name(DEFAULT_DOMAIN, ADMIN).await?;
        let found = user.and_then(|user| user.password_hash);
        let same = match &found {
            Some(hash) => app.hasher.verify(password, Some(hash)).await?,
            None => false,
        };
        let wanted = match same {
            true => found.clone(),
            false => Some(app.hasher.hash(password).await?),
        };
        Ok(Self { found, wanted })
    }
}

/// The change that makes everything. What it finds was looked at within it, so that nobody makes the same meanwhile.
struct Making {
    change: Change,
    /// Whether something is new or another; else there is nothing to commit, and no replica has to forget what it worked out.
    changed: bool,
}

impl Making {
    /// Says no if the administrator's password is another one by now than the one that was proved.
    async fn everything(
        &mut self,
        password: &Password,
        url: &str,
        region: &str,
    ) -> StoreResult<bool> {
        self.domain().await?;
        let project = self.project().await?;
        let Some(user) = self.admin_user(password).await? else {
            return Ok(false);
        };
        let admin = self.roles().await?;
        // None on the domain, as of Keystone's; the administrator of a project may manage domains too.
        for (kind, id) in [("project", project.as_str()), ("system", "all")] {
            let assignment = Assignment {
                actor_type: "user".into(),
                actor_id: user.clone(),
                target_type: kind.into(),
                target_id: id.into(),
                role_id: admin.clone(),
                inherited: false,
            };
            self.changed |= self.change.insert_assignment(&assignment).await?;
        }
        self.region(region).await?;
        for (kind, name) in [("identity", "keystone"), ("key-manager", "barbican")] {
            self.service(kind, name, &format!("{url}/{kind}"), region)
                .await?;
        }
        Ok(true)
    }

    async fn domain(&mut self) -> StoreResult<()> {
        if self.change.domain(DEFAULT_DOMAIN).await?.is_some() {
            return Ok(());
        }
        let domain = Domain {
            id: DEFAULT_DOMAIN.into(),
            name: DEFAULT_DOMAIN_NAME.into(),
            description: "The default domain".into(),
            enabled: true,
            options: "{}".into(),
            extra: "{}".into(),
            tags: "[]".into(),
        };
        self.changed = true;
        self.change.insert_domain(&domain).await
    }

    async fn project(&mut self) -> StoreResult<String> {
        if let Some(found) = self.change.project_by_name(DEFAULT_DOMAIN, ADMIN).await? {
            return Ok(found.into_inner().id);
        }
        let mut project = Project::new(
            identity_id(),
            DEFAULT_DOMAIN.into(),
            DEFAULT_DOMAIN.into(),
            ADMIN.into(),
        );
        project.description = "Bootstrap project for initializing the cloud.".into();
        self.changed = true;
        self.change.insert_project(&project).await?;
        Ok(project.id)
    }

    /// The user admin with this password, enabled. An unchanged password ends no token. `None` if the password is neither the one
    /// that was found nor the one that is wanted.
    async fn admin_user(&mut self, password: &Password) -> StoreResult<Option<String>> {
        let there = self.change.user_by_name(DEFAULT_DOMAIN, ADMIN).await?;
        let now = there.as_ref().and_then(|user| user.password_hash.as_ref());
        if now != password.found.as_ref() && now != password.wanted.as_ref() {
            return Ok(None);
        }
        let same = now == password.wanted.as_ref();
        if let Some(mut user) = there {
            if !same {
                user.password_hash.clone_from(&password.wanted);
                user.password_expires_at = None;
                user.end_tokens(now_us());
            }
            if !same || !user.enabled {
                user.enabled = true;
                self.changed = true;
                self.change.update_user(&user).await?;
            }
            return Ok(Some(user.into_inner().id));
        }
        let user = User {
            id: identity_id(),
            domain_id: DEFAULT_DOMAIN.into(),
            name: ADMIN.into(),
            enabled: true,
            default_project_id: None,
            password_hash: password.wanted.clone(),
            password_expires_at: None,
            tokens_valid_after: 0,
            options: "{}".into(),
            extra: "{}".into(),
        };
        self.changed = true;
        self.change.insert_user(&user).await?;
        Ok(Some(user.id))
    }

    /// The five roles and their chain; the id of `admin`.
    async fn roles(&mut self) -> StoreResult<String> {
        let mut ids = Vec::new();
        for name in ROLE_CHAIN.iter().chain([&SERVICE_ROLE]) {
            ids.push(match self.change.global_role_by_name(name).await? {
                Some(found) => found.into_inner().id,
                None => {
                    let role = Role {
                        id: identity_id(),
                        domain_id: None,
                        name: (*name).into(),
                        description: None,
                        options: json!({"immutable": true}).to_string(),
                        extra: "{}".into(),
                    };
                    self.changed = true;
                    self.change.insert_role(&role).await?;
                    role.id
                }
            });
        }
        for pair in ids[..ROLE_CHAIN.len()].windows(2) {
            self.changed |= self.change.insert_inference(&pair[0], &pair[1]).await?;
        }
        Ok(ids.swap_remove(0))
    }

    async fn region(&mut self, id: &str) -> StoreResult<()> {
        if self.change.region(id).await?.is_some() {
            return Ok(());
        }
        let region = Region {
            id: id.into(),
            description: String::new(),
            parent_region_id: None,
            extra: "{}".into(),
        };
        self.changed = true;
        self.change.insert_region(&region).await
    }

    /// A service with its three endpoints in the region; their URLs follow the one asked for.
    async fn service(
        &mut self,
        kind: &str,
        name: &str,
        url: &str,
        region: &str,
    ) -> StoreResult<()> {
        let services = self.change.services().await?;
        let id = match services.into_iter().find(|service| service.kind == kind) {
            Some(found) => found.id,
            None => {
                let service = Service {
                    id: identity_id(),
                    kind: kind.into(),
                    name: Some(name.into()),
                    description: None,
                    enabled: true,
                    extra: "{}".into(),
                };
                self.changed = true;
                self.change.insert_service(&service).await?;
                service.id
            }
        };
        let endpoints = self.change.endpoints().await?;
        for interface in ["public", "internal", "admin"] {
            let known = endpoints.iter().find(|endpoint| {
                endpoint.service_id == id
                    && endpoint.interface == interface
                    && endpoint.region_id.as_deref() == Some(region)
            });
            match known {
                Some(endpoint) if endpoint.url == url => continue,
                Some(endpoint) => self.change.set_endpoint_url(&endpoint.id, url).await?,
                None => {
                    let endpoint = Endpoint {
                        id: identity_id(),
                        service_id: id.clone(),
                        interface: interface.into(),
                        region_id: Some(region.into()),
                        url: url.into(),
                        enabled: true,
                        extra: "{}".into(),
                    };
                    self.change.insert_endpoint(&endpoint).await?;
                }
            }
            self.changed = true;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
