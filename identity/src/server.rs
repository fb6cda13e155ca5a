//! The listeners: TLS with certificates that may change, the administrator's port, an orderly end.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use axum_server::{Handle, tls_rustls::RustlsConfig};
use hyper_util::rt::TokioTimer;
use sha2::{Digest, Sha256};
use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};
use tower::make::Shared;

use crate::{app::App, http};

/// How long running requests may take to end after a signal.
const GRACE: Duration = Duration::from_secs(10);
/// How often certificate files are looked at. Kubernetes changes them as symlinks, which no watch sees well.
const CERTIFICATE_INTERVAL: Duration = Duration::from_secs(10);
/// How often policy files are looked at, for the same reason.
const POLICY_INTERVAL: Duration = Duration::from_secs(5);
/// How often the domains' directories are looked at.
const DIRECTORY_INTERVAL: Duration = Duration::from_secs(5);
const HOUSEKEEPING_INTERVAL: Duration = Duration::from_secs(60);
/// A client that has not sent its headers by then is let go.
const HEADER_TIMEOUT: Duration = Duration::from_secs(15);
/// Largest head of a request, in bytes: a token, access rules of others, cookies of gateways.
const MAX_HEAD: usize = 64 * 1024;

/// Why serving did not begin or ended.
#[derive(Debug, Error)]
pub enum ServerError {
    /// In the clear, but reachable from elsewhere.
    #[error(
        "{0} is not a loopback address; without TLS only those are served. Give --tls-cert and --tls-key"
    )]
    ClearText(SocketAddr),
    /// The address cannot be used.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// Certificate or key cannot be used.
    #[error("cannot use certificate {cert} with key {key}: {source}")]
    Certificate {
        /// Certificate file.
        cert: PathBuf,
        /// Key file.
        key: PathBuf,
        /// What is wrong with them.
        source: io::Error,
    },
    /// Serving broke off.
    #[error("serving ended: {0}")]
    Serve(io::Error),
}

impl ServerError {
    /// Machine-readable reason.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::ClearText(_) => "ClearTextRefused",
            Self::Listen { .. } => "ListenFailed",
            Self::Certificate { .. } => "CertificateUnusable",
            Self::Serve(_) => "ServeFailed",
        }
    }
}

/// Where to listen.
#[derive(Debug)]
pub struct Listeners {
    /// The APIs.
    pub listen: SocketAddr,
    /// Probes and counters.
    pub admin: SocketAddr,
    /// Certificate and key; `None` serves in the clear.
    pub tls: Option<(PathBuf, PathBuf)>,
}

/// Serves until SIGTERM or SIGINT, then lets running requests end.
///
/// # Errors
/// Any [`ServerError`].
pub async fn serve(app: Arc<App>, listeners: Listeners) -> Result<(), ServerError> {
    if listeners.tls.is_none() && !listeners.listen.ip().is_loopback() {
        return Err(ServerError::ClearText(listeners.listen));
    }
    let api = bind(listeners.listen)?;
    let admin = bind(listeners.admin)?;
    let address = api.local_addr().map_err(ServerError::Serve)?;
    let handle = Handle::new();
    let admin_handle = Handle::new();
    tokio::spawn(stop_on_signal(vec![handle.clone(), admin_handle.clone()]));
    tokio::spawn(keep_house(Arc::clone(&app)));
    tokio::spawn(follow_directories(Arc::clone(&app)));
    if app.identity_policy.has_files() || app.key_policy.has_files() {
        tokio::spawn(follow_policy(Arc::clone(&app)));
    }
    let admin_router = http::admin_router(Arc::clone(&app));
    let admin_server = axum_server::from_tcp(admin)
        .map_err(ServerError::Serve)?
        .handle(admin_handle);
    let admin_task =
        tokio::spawn(async move { admin_server.serve(admin_router.into_make_service()).await });
    let service = Shared::new(http::service(Arc::clone(&app)));
    tracing::info!(%address, admin = %listeners.admin, tls = listeners.tls.is_some(), "serving");
    let served = match listeners.tls {
        None => {
            let mut server = axum_server::from_tcp(api)
                .map_err(ServerError::Serve)?
                .handle(handle);
            server
                .http_builder()
                .http1()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .max_buf_size(MAX_HEAD);
            server.serve(service).await
        }
        Some((cert, key)) => {
            let config = RustlsConfig::from_pem_file(&cert, &key)
                .await
                .map_err(|source| ServerError::Certificate {
                    cert: cert.clone(),
                    key: key.clone(),
                    source,
                })?;
            tokio::spawn(follow_certificate(config.clone(), cert, key));
            let mut server = axum_server::from_tcp_rustls(api, config)
                .map_err(ServerError::Serve)?
                .handle(handle);
            server
                .http_builder()
                .http1()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .max_buf_size(MAX_HEAD);
            server.serve(service).await
        }
    };
    admin_task.abort();
    if let Err(error) = app.store.truncate_log().await {
        tracing::warn!(%error, "write-ahead log not cut off at the end");
    }
    if let Err(error) = app.leave().await {
        tracing::warn!(%error, "the other replicas do not know that this one ends");
    }
    app.store.close().await;
    tracing::info!("stopped");
    served.map_err(ServerError::Serve)
}

fn bind(address: SocketAddr) -> Result<TcpListener, ServerError> {
    let listener =
        TcpListener::bind(address).map_err(|source| ServerError::Listen { address, source })?;
    listener
        .set_nonblocking(true)
        .map_err(|source| ServerError::Listen { address, source })?;
    Ok(listener)
}

async fn stop_on_signal(handles: Vec<Handle<SocketAddr>>) {
    let (Ok(mut terminate), Ok(mut interrupt)) = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    ) else {
        tracing::error!("signals cannot be caught; only SIGKILL ends this process");
        return;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping: running requests may end");
    for handle in handles {
        handle.graceful_shutdown(Some(GRACE));
    }
}

async fn keep_house(app: Arc<App>) {
    let mut ticks = tokio::time::interval(HOUSEKEEPING_INTERVAL);
    loop {
        ticks.tick().await;
        if let Err(error) = app.housekeeping().await {
            tracing::warn!(%error, reason = error.reason(), "housekeeping failed; trying again in a minute");
        }
    }
}

/// Takes changed configurations of domains: files, and what another process stored.
async fn follow_directories(app: Arc<App>) {
    let mut ticks = tokio::time::interval(DIRECTORY_INTERVAL);
    loop {
        ticks.tick().await;
        if let Err(error) = app.reload_directories().await {
            tracing::error!(%error, reason = error.reason(), "the domains' configurations stay as they were");
        }
    }
}

/// Takes changed policy files.
async fn follow_policy(app: Arc<App>) {
    let mut ticks = tokio::time::interval(POLICY_INTERVAL);
    loop {
        ticks.tick().await;
        let app = Arc::clone(&app);
        let refreshed = tokio::task::spawn_blocking(move || {
            app.identity_policy.refresh();
            app.key_policy.refresh();
        })
        .await;
        if let Err(error) = refreshed {
            tracing::error!(%error, "policy files could not be looked at");
        }
    }
}

/// Reads the files again when they change. A pair that cannot be used leaves the old one in place.
async fn follow_certificate(config: RustlsConfig, cert: PathBuf, key: PathBuf) {
    let mut known = digest(&cert, &key).await;
    let mut ticks = tokio::time::interval(CERTIFICATE_INTERVAL);
    loop {
        ticks.tick().await;
        let now = digest(&cert, &key).await;
        if now.is_none() || now == known {
            continue;
        }
        match config.reload_from_pem_file(&cert, &key).await {
            Ok(()) => {
                tracing::info!(cert = %cert.display(), "certificate read again");
                known = now;
            }
            Err(error) => {
                tracing::error!(%error, cert = %cert.display(), "new certificate is not usable; the old one stays")
            }
        }
    }
}

async fn digest(cert: &Path, key: &Path) -> Option<[u8; 32]> {
    let mut hash = Sha256::new();
    hash.update(tokio::fs::read(cert).await.ok()?);
    hash.update(zeroize::Zeroizing::new(tokio::fs::read(key).await.ok()?));
    Some(hash.finalize().into())
}
