//! Which versions there are.

use std::sync::Arc;

use axum::{
    Router,
    http::StatusCode,
    response::{IntoResponse, Json, Response},
    routing::get,
};
use serde_json::{Value, json};

use crate::{app::App, http::Base};

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/", get(versions))
        .route("/v3", get(v3))
}

fn version(base: &Base) -> Value {
    json!({
        "id": "v3.14", "status": "stable", "updated": "2020-04-07T00:00:00Z",
        "links": [{"rel": "self", "href": format!("{}/", base.identity())}],
        "media-types": [{
            "base": "application/json", "type": "application/vnd.openstack.identity-v3+json",
        }],
    })
}

async fn versions(base: Base) -> Response {
    let body = Json(json!({"versions": {"values": [version(&base)]}}));
    (StatusCode::MULTIPLE_CHOICES, body).into_response()
}

async fn v3(base: Base) -> Json<Value> {
    Json(json!({"version": version(&base)}))
}
