//! A start that has to wait for somebody else: the key manager that has the key-encryption key. Until then the process
//! lives and is not ready, and says why.

use std::{
    net::SocketAddr,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use axum::{Router, extract::State, http::StatusCode, routing::get};
use tokio::{net::TcpListener, sync::oneshot};

use crate::{
    crypto::{Kek, KekError},
    server::ServerError,
};

/// Wait before the second attempt, and the longest one; it doubles in between.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// How long probes that are being answered may hold up the start.
const GRACE: Duration = Duration::from_secs(2);

/// Why it is not ready.
type Why = Arc<RwLock<String>>;

/// Reads the key-encryption key. While the key manager that has it does not give it, probes are answered on `admin`.
///
/// # Errors
/// What does not pass by waiting: the outer one if `admin` cannot be listened on, the inner one a file that is not right.
pub async fn for_kek(
    admin: SocketAddr,
    read: impl Fn() -> Result<Kek, KekError> + Send + Sync + 'static,
) -> Result<Result<Kek, KekError>, ServerError> {
    let read = Arc::new(read);
    let mut backoff = BACKOFF.0;
    let mut probes: Option<Probes> = None;
    loop {
        let attempt = Arc::clone(&read);
        let done = tokio::task::spawn_blocking(move || attempt()).await;
        let done = done.map_err(|error| ServerError::Serve(error.into()))?;
        let error = match done {
            Err(error) if error.is_elsewhere() => error,
            done => {
                if let Some(probes) = probes {
                    probes.end().await;
                }
                return Ok(done);
            }
        };
        tracing::warn!(%error, reason = error.reason(), wait = ?backoff, "not ready");
        let why = format!("{}: {error}", error.reason());
        match &probes {
            Some(probes) => *probes.why.write().unwrap_or_else(PoisonError::into_inner) = why,
            None => probes = Some(Probes::begin(admin, why).await?),
        }
        tokio::time::sleep(backoff).await;
        backoff = (backoff * 2).min(BACKOFF.1);
    }
}

struct Probes {
    why: Why,
    end: oneshot::Sender<()>,
    serving: tokio::task::JoinHandle<()>,
}

impl Probes {
    async fn begin(address: SocketAddr, why: String) -> Result<Self, ServerError> {
        let listener = TcpListener::bind(address)
            .await
            .map_err(|source| ServerError::Listen { address, source })?;
        let why: Why = Arc::new(RwLock::new(why));
        let router = Router::new()
            .route("/livez", get(|| async { "ok" }))
            .route("/readyz", get(not_ready))
            .with_state(Arc::clone(&why));
        let (end, ended) = oneshot::channel::<()>();
        let serving = tokio::spawn(async move {
            let served = axum::serve(listener, router)
                .with_graceful_shutdown(async {
                    // Also when the other end is dropped.
                    let _ = ended.await;
                })
                .await;
            if let Err(error) = served {
                tracing::warn!(%error, "probes were no longer answered");
            }
        });
        Ok(Self { why, end, serving })
    }

    /// Lets the address go.
    async fn end(self) {
        let _ = self.end.send(());
        let abort = self.serving.abort_handle();
        if tokio::time::timeout(GRACE, self.serving).await.is_err() {
            abort.abort();
        }
    }
}

async fn not_ready(State(why): State<Why>) -> (StatusCode, String) {
    let why = why.read().unwrap_or_else(PoisonError::into_inner).clone();
    (StatusCode::SERVICE_UNAVAILABLE, why)
}
