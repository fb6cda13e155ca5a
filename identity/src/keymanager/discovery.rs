//! Which versions there are; the older form without a microversion.

use std::sync::Arc;

use axum::{
    Extension, Router,
    http::StatusCode,
    response::{IntoResponse, Json, Response},
    routing::get,
};
use serde_json::{Value, json};

use super::{
    caller::Caller,
    microversion::{Microversion, NEWEST},
};
use crate::{app::App, http::Base};

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/", get(versions))
        .route("/v1", get(v1))
}

fn version(base: &Base, version: Microversion) -> Value {
    let href = format!("{}/", base.key_manager());
    if version >= Microversion(1) {
        return json!({
            "id": "v1", "status": "CURRENT", "min_version": "1.0", "max_version": format!("1.{NEWEST}"),
            "links": [
                {"rel": "self", "href": href},
                {"rel": "describedby", "type": "text/html", "href": "https://docs.openstack.org/"},
            ],
        });
    }
    json!({
        "id": "v1", "status": "stable", "updated": "2015-04-28T00:00:00Z",
        "links": [
            {"rel": "self", "href": href},
            {"rel": "describedby", "type": "text/html", "href": "https://docs.openstack.org/"},
        ],
        "media-types": [{"base": "application/json", "type": "application/vnd.openstack.key-manager-v1+json"}],
    })
}

async fn versions(base: Base, Extension(asked): Extension<Microversion>) -> Response {
    let one = version(&base, asked);
    let body = if asked >= Microversion(1) {
        json!({"versions": [one]})
    } else {
        json!({"versions": {"values": [one]}})
    };
    (StatusCode::MULTIPLE_CHOICES, Json(body)).into_response()
}

async fn v1(caller: Caller, base: Base) -> Json<Value> {
    Json(json!({"version": version(&base, caller.version)}))
}
