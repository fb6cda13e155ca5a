//! The frame around the routes: trailing slashes, request ids, the headers that every answer carries,
//! counters.

use std::{
    convert::Infallible,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Body,
    http::{HeaderName, HeaderValue, Method, Request, StatusCode, Uri, header},
    response::{IntoResponse, Json, Response},
};
use serde_json::json;
use tower::Service;

use super::request::Base;
use crate::{app::App, audit};

/// From the head of a request to its answer.
const LIMIT: Duration = Duration::from_secs(60);

/// Of a login that needs more methods: what was proved so far.
pub(crate) const RECEIPT: &str = "openstack-auth-receipt";
static REQUEST_ID: HeaderName = HeaderName::from_static("x-openstack-request-id");

/// The whole service behind one address.
pub fn service(app: Arc<App>) -> Frame {
    let router = routes(Arc::clone(&app));
    Frame { app, router }
}

/// All routes of both APIs.
pub(crate) fn routes(app: Arc<App>) -> Router {
    Router::new()
        .nest("/identity", crate::identity::router(Arc::clone(&app)))
        .nest("/key-manager", crate::keymanager::router(Arc::clone(&app)))
        .with_state(app)
}

/// See [`service`].
#[derive(Clone)]
pub struct Frame {
    app: Arc<App>,
    router: Router,
}

impl<B> Service<Request<B>> for Frame
where
    B: axum::body::HttpBody<Data = axum::body::Bytes> + Send + 'static,
    B::Error: Into<axum::BoxError>,
{
    type Response = Response;
    type Error = Infallible;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (mut parts, body) = request.into_parts();
        let base = Base::of(&parts, self.app.config.tls);
        let identity = parts.uri.path().starts_with("/identity");
        if let Some(uri) = without_trailing_slash(&parts.uri) {
            parts.uri = uri;
        }
        let (method, path) = (parts.method.clone(), parts.uri.path().to_owned());
        let app = Arc::clone(&self.app);
        let mut router = self.router.clone();
        Box::pin(async move {
            let start = Instant::now();
            let answer = router.call(Request::from_parts(parts, Body::new(body)));
            let answer = async {
                match tokio::time::timeout(LIMIT, answer).await {
                    Ok(Ok(response)) => response,
                    Err(_) => too_slow(identity),
                }
            };
            let mut response = audit::watch(&method, &path, Response::status, answer).await;
            finish(&mut response, &base, identity);
            let api = if identity { "identity" } else { "key-manager" };
            app.metrics.request(
                api,
                counted(&method),
                response.status().as_u16(),
                start.elapsed(),
            );
            Ok(response)
        })
    }
}

/// The same URI without slashes at the end of its path: clients send both forms.
fn without_trailing_slash(uri: &Uri) -> Option<Uri> {
    let path = uri.path();
    let trimmed = path.trim_end_matches('/');
    if trimmed.len() == path.len() || trimmed.is_empty() {
        return None;
    }
    let text = match uri.query() {
        Some(query) => format!("{trimmed}?{query}"),
        None => trimmed.to_owned(),
    };
    text.parse().ok()
}

/// A method as a label: clients invent methods, and each label is kept for ever.
fn counted(method: &Method) -> &str {
    match *method {
        Method::GET
        | Method::HEAD
        | Method::POST
        | Method::PUT
        | Method::PATCH
        | Method::DELETE
        | Method::OPTIONS => method.as_str(),
        _ => "other",
    }
}

/// A client that sends its body drop by drop, or work that does not end, holds nothing for longer.
fn too_slow(identity: bool) -> Response {
    let text = "The request was not complete in time; send it again.";
    let body = if identity {
        json!({"error": {"code": 408, "message": text, "title": "Request Timeout"}})
    } else {
        json!({"code": 408, "title": "Request Timeout", "description": text})
    };
    (StatusCode::REQUEST_TIMEOUT, Json(body)).into_response()
}

fn finish(response: &mut Response, base: &Base, identity: bool) {
    let status = response.status();
    let headers = response.headers_mut();
    let id = format!("req-{}", crate::ids::key_manager_id());
    if let Ok(value) = HeaderValue::from_str(&id) {
        headers.insert(REQUEST_ID.clone(), value);
    }
    if identity {
        headers.insert(header::VARY, HeaderValue::from_static("X-Auth-Token"));
    }
    if matches!(
        status,
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
    ) {
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
    }
    // Answers hold tokens and secrets.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // With a receipt the client is on its way already, and knows what is still to come: as Keystone answers.
    if status == StatusCode::UNAUTHORIZED
        && !headers.contains_key(RECEIPT)
        && let Ok(value) = HeaderValue::from_str(&format!("Keystone uri=\"{}\"", base.identity()))
    {
        headers.insert(header::WWW_AUTHENTICATE, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slashes_at_the_end_go() {
        let trim =
            |text: &str| without_trailing_slash(&text.parse().unwrap()).map(|uri| uri.to_string());
        assert_eq!(
            trim("/key-manager/v1/secrets/"),
            Some("/key-manager/v1/secrets".into())
        );
        assert_eq!(
            trim("/key-manager/?limit=1"),
            Some("/key-manager?limit=1".into())
        );
        assert_eq!(trim("/identity/v3"), None);
        assert_eq!(trim("/"), None);
    }
}
