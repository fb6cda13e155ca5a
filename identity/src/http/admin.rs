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

/// Ready when the database answers and was bootstrapped. Policy files that cannot be used are told, but do not
/// take the service away from its clients: the rules of before stay in force.
async fn readyz(State(app): State<Arc<App>>) -> (StatusCode, String) {
    // Asked first, for a replica of a release that the records have outgrown is not to get requests.
    let services = match app.store.refresh().await {
        Ok(()) => app.store.services().await,
        Err(error) => Err(error),
    };
    match services {
        Ok(services) if !services.is_empty() => {
            let refused: Vec<String> = [&app.identity_policy, &app.key_policy]
                .iter()
                .filter_map(|policy| policy.refused())
                .collect();
            let mut lines = Vec::new();
            if !refused.is_empty() {
                lines.push(format!(
                    "degraded: the policy of before stays in force: {}",
                    refused.join("; ")
                ));
            }
            for problem in app.directories.problems() {
                lines.push(format!("degraded: {problem}"));
            }
            if lines.is_empty() {
                lines.push("ok".into());
            }
            (StatusCode::OK, lines.join("\n"))
        }
        Ok(_) => (
            StatusCode::SERVICE_UNAVAILABLE,
            "not bootstrapped; run `cryptvol-identity bootstrap`".into(),
        ),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, error.reason().into()),
    }
}
