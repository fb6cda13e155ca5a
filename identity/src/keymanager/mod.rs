//! The key manager: Barbican v1 on the wire. One file a family of routes.

mod acls;
mod caller;
mod consumers;
mod containers;
mod discovery;
mod error;
mod fields;
mod filter;
mod keypair;
mod metadata;
mod microversion;
mod orders;
mod page;
mod payload;
mod quotas;
mod sealing;
mod secrets;
mod stores;

use std::sync::Arc;

use axum::{
    Router,
    extract::DefaultBodyLimit,
    http::StatusCode,
    middleware,
    response::{IntoResponse, Json},
};

use crate::app::App;

pub use error::KeyManagerError;
pub(crate) use sealing::{ProjectKeys, upgrade};

/// Bodies beyond this are not even read; the protocol's own limits are far below.
const MAX_BODY: usize = 1 << 20;

/// All routes, below `/key-manager`.
pub fn router(_: Arc<App>) -> Router<Arc<App>> {
    Router::new()
        .merge(discovery::routes())
        .nest(
            "/v1",
            Router::new()
                .merge(secrets::routes())
                .merge(payload::routes())
                .merge(acls::routes())
                .merge(consumers::routes())
                .merge(containers::routes())
                .merge(metadata::routes())
                .merge(stores::routes())
                .merge(orders::routes())
                .merge(quotas::routes()),
        )
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .fallback(|| async { KeyManagerError::NoSuchRoute })
        .method_not_allowed_fallback(|| async {
            let body = serde_json::json!({"code": 405, "title": "Method Not Allowed", "description": "This method is not allowed here."});
            (StatusCode::METHOD_NOT_ALLOWED, Json(body)).into_response()
        })
        .layer(middleware::from_fn(microversion::negotiate))
}

#[cfg(test)]
mod tests;
