//! The admin server of every long-running binary: `/livez`, `/readyz`, `/metrics`, `PUT /log-level`.
//!
//! Alive means that the process serves; ready means that every registered part said so. A missing CRD makes a part not
//! ready, it does not restart the pod.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use axum::{
    Router,
    body::Bytes,
    extract::{ConnectInfo, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, put},
};
use prometheus_client::{encoding::text::encode, registry::Registry};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::telemetry::LogHandle;

/// Which parts of the process are ready. Cheap to clone; all clones are one list.
#[derive(Clone, Default)]
pub struct Readiness(Arc<Mutex<BTreeMap<&'static str, Result<(), String>>>>);

impl Readiness {
    /// Adds a part that is not ready yet, or says why a part is not ready any more.
    pub fn not_ready(&self, part: &'static str, why: impl Into<String>) {
        self.set(part, Err(why.into()));
    }

    /// A part is ready.
    pub fn ready(&self, part: &'static str) {
        self.set(part, Ok(()));
    }

    /// What is not ready, as `part: why`; empty when all is.
    pub fn missing(&self) -> Vec<String> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .filter_map(|(part, state)| state.as_ref().err().map(|why| format!("{part}: {why}")))
            .collect()
    }

    fn set(&self, part: &'static str, state: Result<(), String>) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(part, state);
    }
}

/// What the admin server shows and changes.
#[derive(Clone)]
pub struct Admin {
    /// For `/readyz`.
    pub readiness: Readiness,
    /// For `/metrics`.
    pub registry: Arc<Registry>,
    /// For `PUT /log-level`.
    pub log: LogHandle,
}

/// Serves until the token is cancelled.
///
/// # Errors
/// When the server ends with an I/O error.
pub async fn serve(
    listener: TcpListener,
    admin: Admin,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let app = router(admin).into_make_service_with_connect_info::<SocketAddr>();
    axum::serve(listener, app)
        .with_graceful_shutdown(stop.cancelled_owned())
        .await
}

/// The routes, for a binary that serves more on the same port, and for tests.
pub fn router(admin: Admin) -> Router {
    Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/log-level", put(log_level))
        .with_state(admin)
}

async fn readyz(State(admin): State<Admin>) -> Response {
    let missing = admin.readiness.missing();
    if missing.is_empty() {
        "ok\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, missing.join("\n") + "\n").into_response()
    }
}

async fn metrics(State(admin): State<Admin>) -> Response {
    let mut out = String::new();
    match encode(&mut out, &admin.registry) {
        Ok(()) => (
            [(
                header::CONTENT_TYPE,
                "application/openmetrics-text; version=1.0.0; charset=utf-8",
            )],
            out,
        )
            .into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// Only from the pod itself (`kubectl port-forward`, `kubectl exec`): the port is open to whoever scrapes metrics.
async fn log_level(
    State(admin): State<Admin>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    body: Bytes,
) -> Response {
    if !peer.ip().to_canonical().is_loopback() {
        return (
            StatusCode::FORBIDDEN,
            "the log level can be changed from the pod itself only: use kubectl port-forward\n",
        )
            .into_response();
    }
    let Ok(filter) = std::str::from_utf8(&body) else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    match admin.log.set(filter.trim()) {
        Ok(()) => {
            tracing::info!(filter = filter.trim(), "log filter changed");
            "ok\n".into_response()
        }
        Err(e) => (StatusCode::BAD_REQUEST, format!("{e}\n")).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn ask(at: SocketAddr, request: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(at).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn ready_only_when_every_part_is() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let readiness = Readiness::default();
        readiness.not_ready("watches", "no answer from the API server yet");
        let stop = CancellationToken::new();
        let admin = Admin {
            readiness: readiness.clone(),
            registry: Arc::new(Registry::default()),
            log: LogHandle::detached(),
        };
        let server = tokio::spawn(serve(listener, admin, stop.clone()));
        let get =
            |path: &str| format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        let answer = ask(at, &get("/readyz")).await;
        assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("watches: no answer"));
        assert!(ask(at, &get("/livez")).await.starts_with("HTTP/1.1 200"));
        readiness.ready("watches");
        assert!(ask(at, &get("/readyz")).await.starts_with("HTTP/1.1 200"));
        assert!(ask(at, &get("/metrics")).await.contains("# EOF"));
        let level = "PUT /log-level HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 5\r\n\r\ndebug";
        assert!(ask(at, level).await.starts_with("HTTP/1.1 200"));
        stop.cancel();
        server.await.unwrap().unwrap();
    }
}
