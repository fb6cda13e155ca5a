//! `/v1/quotas`: no limits yet, said in the protocol's way (-1).

use std::sync::Arc;

use axum::{
    Router,
    extract::State,
    response::{IntoResponse, Json},
    routing::get,
};
use serde_json::json;

use super::{caller::Caller, error::ApiResult};
use crate::app::App;

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new().route("/quotas", get(show))
}

async fn show(State(app): State<Arc<App>>, caller: Caller) -> ApiResult {
    caller.may(&app, "quotas:get")?;
    let quotas = json!({"secrets": -1, "orders": -1, "containers": -1, "consumers": -1, "cas": -1});
    Ok(Json(json!({ "quotas": quotas })).into_response())
}
