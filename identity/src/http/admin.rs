//! The administrator's listener: probes and counters, in the clear, nothing else.

use std::sync::Arc;

use axum::{Router, extract::State, http::StatusCode, routing::get};

use crate::app::App;

/// `/livez`, `/readyz`, `/metrics`.
pub fn admin_router(app: Arc<App>) -> Router {
    Router::new()
        .route("/livez", get(|| async { "ok" }))
        .route("/readyz", get(readyz))
        .route(
            "/metrics",
            get(|State(app): State<Arc<App>>| async move { app.metrics.text() }),
        )
        .with_state(app)
}

/// Ready when the database answers and was bootstrapped.
async fn readyz(State(app): State<Arc<App>>) -> (StatusCode, String) {
    match app.store.services().await {
        Ok(services) if !services.is_empty() => (StatusCode::OK, "ok".into()),
        Ok(_) => (
            StatusCode::SERVICE_UNAVAILABLE,
            "not bootstrapped; run `cryptvol-identity bootstrap`".into(),
        ),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, error.reason().into()),
    }
}
