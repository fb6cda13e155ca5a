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
        StoreError,
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

/// Makes what is missing.
///
/// # Errors
/// Any [`BootstrapError`]; running it again goes on where it stopped.
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
    domain(app).await?;
    let project = project(app).await?;
    let user = admin_user(app, &request.password).await?;
    let admin = roles(app).await?;
    let mut change = app.store.change_identity().await?;
    for (kind, id) in [
        ("project", project.as_str()),
        ("domain", DEFAULT_DOMAIN),
        ("system", "all"),
    ] {
        change
            .insert_assignment(&Assignment {
                actor_type: "user".into(),
                actor_id: user.clone(),
                target_type: kind.into(),
                target_id: id.into(),
                role_id: admin.clone(),
                inherited: false,
            })
            .await?;
    }
    app.store.commit(change).await?;
    region(app, &request.region).await?;
    service(
        app,
        "identity",
        "keystone",
        &format!("{url}/identity"),
        &request.region,
    )
    .await?;
    service(
        app,
        "key-manager",
        "barbican",
        &format!("{url}/key-manager"),
        &request.region,
    )
    .await?;
    tracing::info!(public_url = %url, region = %request.region, "bootstrapped");
    Ok(())
}

async fn domain(app: &App) -> Result<(), BootstrapError> {
    if app.store.domain(DEFAULT_DOMAIN).await?.is_some() {
        return Ok(());
    }
    let domain = Domain {
        id: DEFAULT_DOMAIN.into(),
        name: DEFAULT_DOMAIN_NAME.into(),
        description: "The default domain".into(),
        enabled: true,
        options: "{}".into(),
    };
    let mut change = app.store.change_identity().await?;
    change.insert_domain(&domain).await?;
    Ok(app.store.commit(change).await?)
}

async fn project(app: &App) -> Result<String, BootstrapError> {
    if let Some(found) = app.store.project_by_name(DEFAULT_DOMAIN, ADMIN).await? {
        return Ok(found.id);
    }
    let mut project = Project::new(
        identity_id(),
        DEFAULT_DOMAIN.into(),
        DEFAULT_DOMAIN.into(),
        ADMIN.into(),
    );
    project.description = "Bootstrap project for initializing the cloud.".into();
    let mut change = app.store.change_identity().await?;
    change.insert_project(&project).await?;
    app.store.commit(change).await?;
    Ok(project.id)
}

/// The user admin with this password, enabled. An unchanged password ends no token.
async fn admin_user(app: &App, password: &SecretString) -> Result<String, BootstrapError> {
    let found = app.store.user_by_name(DEFAULT_DOMAIN, ADMIN).await?;
    let found = found.and_then(|user| user.password_hash);
    let hash = match app.hasher.verify(password, found.as_deref()).await? {
        true => found,
        false => Some(app.hasher.hash(password).await?),
    };
    let mut change = app.store.change_identity().await?;
    // Hashing takes its time: the user may be another one by now, or there by another replica's start.
    if let Some(mut user) = change.user_by_name(DEFAULT_DOMAIN, ADMIN).await? {
        let same = user.password_hash == hash;
        if !same {
            user.password_hash = hash;
            user.password_expires_at = None;
            user.end_tokens(now_us());
        }
        if !same || !user.enabled {
            user.enabled = true;
            change.update_user(&user).await?;
            app.store.commit(change).await?;
        }
        return Ok(user.into_inner().id);
    }
    let user = User {
        id: identity_id(),
        domain_id: DEFAULT_DOMAIN.into(),
        name: ADMIN.into(),
        enabled: true,
        default_project_id: None,
        password_hash: hash,
        password_expires_at: None,
        tokens_valid_after: 0,
        options: "{}".into(),
        extra: "{}".into(),
    };
    change.insert_user(&user).await?;
    app.store.commit(change).await?;
    Ok(user.id)
}

/// The five roles and their chain; the id of `admin`.
async fn roles(app: &App) -> Result<String, BootstrapError> {
    let mut ids = Vec::new();
    for name in ROLE_CHAIN.iter().chain([&SERVICE_ROLE]) {
        ids.push(match app.store.global_role_by_name(name).await? {
            Some(found) => found.id,
            None => {
                let role = Role {
                    id: identity_id(),
                    domain_id: None,
                    name: (*name).into(),
                    description: None,
                    options: json!({"immutable": true}).to_string(),
                };
                let mut change = app.store.change_identity().await?;
                change.insert_role(&role).await?;
                app.store.commit(change).await?;
                role.id
            }
        });
    }
    let mut change = app.store.change_identity().await?;
    for pair in ids[..ROLE_CHAIN.len()].windows(2) {
        change.insert_inference(&pair[0], &pair[1]).await?;
    }
    app.store.commit(change).await?;
    Ok(ids.swap_remove(0))
}

async fn region(app: &App, id: &str) -> Result<(), BootstrapError> {
    if app
        .store
        .regions()
        .await?
        .iter()
        .any(|region| region.id == id)
    {
        return Ok(());
    }
    let region = Region {
        id: id.into(),
        description: String::new(),
        parent_region_id: None,
    };
    let mut change = app.store.change_identity().await?;
    change.insert_region(&region).await?;
    Ok(app.store.commit(change).await?)
}

/// A service with its three endpoints in the region; their URLs follow the one asked for.
async fn service(
    app: &App,
    kind: &str,
    name: &str,
    url: &str,
    region: &str,
) -> Result<(), BootstrapError> {
    let found = app
        .store
        .services()
        .await?
        .into_iter()
        .find(|service| service.kind == kind)
        .map(|service| service.id);
    let endpoints = app.store.endpoints().await?;
    let mut change = app.store.change_identity().await?;
    let id = match found {
        Some(id) => id,
        None => {
            let service = Service {
                id: identity_id(),
                kind: kind.into(),
                name: Some(name.into()),
                description: None,
                enabled: true,
            };
            change.insert_service(&service).await?;
            service.id
        }
    };
    for interface in ["public", "internal", "admin"] {
        let known = endpoints.iter().find(|endpoint| {
            endpoint.service_id == id
                && endpoint.interface == interface
                && endpoint.region_id.as_deref() == Some(region)
        });
        match known {
            Some(endpoint) if endpoint.url == url => {}
            Some(endpoint) => change.set_endpoint_url(&endpoint.id, url).await?,
            None => {
                let endpoint = Endpoint {
                    id: identity_id(),
                    service_id: id.clone(),
                    interface: interface.into(),
                    region_id: Some(region.into()),
                    url: url.into(),
                    enabled: true,
                };
                change.insert_endpoint(&endpoint).await?;
            }
        }
    }
    Ok(app.store.commit(change).await?)
}
