//! The identity API: Keystone v3 on the wire. One file a family of routes.

mod access_rules;
mod app_credentials;
mod assignment_list;
mod assignments;
mod auth;
mod catalog;
mod credentials;
mod directory;
mod discovery;
mod documents;
mod domain_config;
mod domain_options;
mod domains;
mod ec2;
mod endpoint_filter;
mod error;
mod federation;
mod fields;
mod grants;
mod groups;
mod immutable;
mod limits;
mod long_list;
mod oauth1;
mod parts;
mod passwords;
mod policies;
mod projects;
mod roles;
mod support;
mod tags;
mod trusts;
mod users;

use std::sync::Arc;

use axum::{
    Router,
    body::HttpBody,
    extract::{DefaultBodyLimit, Request},
    http::{StatusCode, header},
    middleware::{self, Next},
    response::{Html, IntoResponse, Json, Response},
};

use crate::app::App;

pub use error::IdentityError;
pub use limits::LimitModel;
pub(crate) use oauth1::prune as prune_oauth;

/// Largest request body, as in Keystone.
const MAX_BODY: usize = 114_688;

/// Refuses a body that says to be something else than JSON, as Keystone does; one that says nothing is read as JSON.
async fn only_json(request: Request, next: Next) -> Response {
    let kind = request.headers().get(header::CONTENT_TYPE);
    let kind = kind.map(|kind| kind.as_bytes().split(|byte| *byte == b';').next());
    let json = kind.flatten().is_none_or(|kind| {
        let kind = kind.trim_ascii();
        kind.is_empty() || kind.eq_ignore_ascii_case(b"application/json")
    });
    if !json && !request.body().is_end_stream() {
        let text =
            "The request body must be JSON; say so by the header Content-Type: application/json.";
        return IdentityError::BadRequest(text.into()).into_response();
    }
    next.run(request).await
}

/// All routes, below `/identity`.
pub fn router(_: Arc<App>) -> Router<Arc<App>> {
    Router::new()
        .merge(discovery::routes())
        .nest(
            "/v3",
            Router::new()
                .merge(auth::routes())
                .merge(domains::routes())
                .merge(domain_config::routes())
                .merge(projects::routes())
                .merge(tags::routes())
                .merge(users::routes())
                .merge(groups::routes())
                .merge(roles::routes())
                .merge(grants::routes())
                .merge(assignments::routes())
                .merge(catalog::routes())
                .merge(policies::routes())
                .merge(endpoint_filter::routes())
                .merge(credentials::routes())
                .merge(ec2::routes())
                .merge(oauth1::routes())
                .merge(federation::routes())
                .merge(limits::routes())
                .merge(trusts::routes())
                .merge(access_rules::routes())
                .merge(app_credentials::routes()),
        )
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(middleware::from_fn(only_json))
        .fallback(|| async {
            (
                StatusCode::NOT_FOUND,
                Html("<!doctype html><title>404 Not Found</title><h1>Not Found</h1>"),
            )
        })
        .method_not_allowed_fallback(|| async {
            let body = Json(
                serde_json::json!({"message": "The method is not allowed for the requested URL."}),
            );
            (StatusCode::METHOD_NOT_ALLOWED, body).into_response()
        })
}

#[cfg(test)]
pub(crate) mod tests;
