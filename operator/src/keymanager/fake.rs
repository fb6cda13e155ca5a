//! A fake identity/keys API over TLS, for the tests of the client's own behaviour (caching, retries, error words). The
//! real service and the real wire are tested in tier api.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{Path, Query, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use cryptvol_crds::{KeyService, v1alpha1::KeyServiceSpec};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

/// What the fake does and what was done to it.
#[derive(Default)]
pub struct Service {
    pub logins: AtomicU64,
    pub calls: AtomicU64,
    pub orders_made: AtomicU64,
    pub state: Mutex<Fake>,
}

pub struct Fake {
    pub secrets: BTreeMap<String, Value>,
    pub orders: BTreeMap<String, Value>,
    pub token: String,
    pub token_life: i64,
    /// Answers to a login instead of 201.
    pub login_error: Option<(u16, String)>,
    /// Answers to every key-manager call instead of the right one.
    pub error: Option<(u16, &'static str)>,
    /// Polls until an order is ACTIVE.
    pub order_polls: u32,
    pub app_expires: Option<String>,
    pub url: String,
}

impl Default for Fake {
    fn default() -> Self {
        Self {
            secrets: BTreeMap::new(),
            orders: BTreeMap::new(),
            token: "t0".into(),
            token_life: 3600,
            login_error: None,
            error: None,
            order_polls: 0,
            app_expires: None,
            url: String::new(),
        }
    }
}

/// A running fake and the KeyService that names it.
pub struct Running {
    pub service: Arc<Service>,
    pub key_service: KeyService,
    pub auth_url: String,
}

pub async fn start() -> Running {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let cert = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    let (pem, key) = (cert.cert.pem(), cert.signing_key.serialize_pem());
    let tls = axum_server::tls_rustls::RustlsConfig::from_pem(pem.clone().into(), key.into())
        .await
        .unwrap();
    let service = Arc::new(Service::default());
    let app = Router::new()
        .route(
            "/identity/v3",
            get(|| async { Json(json!({"version": {"id": "v3.14"}})) }),
        )
        .route("/identity/v3/auth/tokens", post(login))
        .route(
            "/identity/v3/users/{u}/application_credentials/{id}",
            get(app_credential),
        )
        .route("/km/v1/secrets", get(list).post(store))
        .route("/km/v1/secrets/{id}", get(metadata).delete(delete))
        .route("/km/v1/secrets/{id}/payload", get(payload))
        .route("/km/v1/orders", post(order).get(orders))
        .route("/km/v1/orders/{id}", get(order_get).delete(order_delete))
        .with_state(service.clone());
    let handle = axum_server::Handle::<std::net::SocketAddr>::new();
    let server =
        axum_server::bind_rustls("127.0.0.1:0".parse().unwrap(), tls).handle(handle.clone());
    tokio::spawn(server.serve(app.into_make_service()));
    let at = handle.listening().await.unwrap();
    let base = format!("https://localhost:{}", at.port());
    service.state.lock().unwrap().url = base.clone();
    let auth_url = format!("{base}/identity/v3");
    let spec: KeyServiceSpec =
        serde_json::from_value(json!({"authUrl": auth_url, "caBundle": pem})).unwrap();
    let mut key_service = KeyService::new("fake", spec);
    key_service.metadata.generation = Some(1);
    Running {
        service,
        key_service,
        auth_url,
    }
}

async fn login(State(s): State<Arc<Service>>, Json(body): Json<Value>) -> Response {
    let n = s.logins.fetch_add(1, Ordering::SeqCst);
    // Long enough for a second caller to come.
    tokio::time::sleep(Duration::from_millis(30)).await;
    let mut state = s.state.lock().unwrap();
    if let Some((status, text)) = &state.login_error {
        return (
            StatusCode::from_u16(*status).unwrap(),
            Json(json!({"error": {"code": status, "message": text, "title": "Unauthorized"}})),
        )
            .into_response();
    }
    state.token = format!("t{n}");
    let expires = Timestamp::now() + SignedDuration::from_secs(state.token_life);
    let mut token = json!({
        "expires_at": expires.to_string(),
        "user": {"id": "u1"},
        "project": {"id": "p1"},
        "catalog": [{"type": "key-manager", "endpoints": [
            {"interface": "public", "region_id": "r", "url": format!("{}/km", state.url)}]}],
    });
    if body
        .pointer("/auth/identity/application_credential")
        .is_some()
    {
        token["application_credential"] = json!({"id": "a1"});
    }
    (
        StatusCode::CREATED,
        [("X-Subject-Token", state.token.clone())],
        Json(json!({"token": token})),
    )
        .into_response()
}

async fn app_credential(State(s): State<Arc<Service>>) -> Json<Value> {
    let expires = s.state.lock().unwrap().app_expires.clone();
    Json(json!({"application_credential": {"expires_at": expires}}))
}

/// What every key-manager call checks first.
fn gate(s: &Service, headers: &HeaderMap) -> Option<Response> {
    s.calls.fetch_add(1, Ordering::SeqCst);
    let state = s.state.lock().unwrap();
    if headers.get("X-Auth-Token").and_then(|t| t.to_str().ok()) != Some(state.token.as_str()) {
        return Some(
            (
                StatusCode::UNAUTHORIZED,
                Json(json!({"error": {"message": "no"}})),
            )
                .into_response(),
        );
    }
    state.error.map(|(status, text)| {
        (
            StatusCode::from_u16(status).unwrap(),
            Json(json!({"code": status, "title": "Refused", "description": text})),
        )
            .into_response()
    })
}

fn secret(state: &mut Fake, name: &str) -> String {
    let id = uuid::Uuid::new_v4().to_string();
    let created = format!("2026-11-21T23:14:{:02}", state.secrets.len());
    state.secrets.insert(
        id.clone(),
        json!({"secret_ref": format!("http://elsewhere/v1/secrets/{id}"), "name": name, "created": created,
            "status": "ACTIVE", "secret_type": "symmetric", "content_types": {"default": "application/octet-stream"}}),
    );
    id
}

impl Service {
    pub fn add_secret(&self, name: &str) -> String {
        secret(&mut self.state.lock().unwrap(), name)
    }
}

async fn list(
    State(s): State<Arc<Service>>,
    h: HeaderMap,
    Query(q): Query<BTreeMap<String, String>>,
) -> Response {
    if let Some(r) = gate(&s, &h) {
        return r;
    }
    let state = s.state.lock().unwrap();
    // As LIKE does with a bare name; a longer one shows that the client compares exactly.
    let secrets: Vec<_> = state
        .secrets
        .values()
        .filter(|v| {
            v["name"]
                .as_str()
                .unwrap_or_default()
                .starts_with(&q["name"])
        })
        .collect();
    Json(json!({"secrets": secrets, "total": secrets.len()})).into_response()
}

async fn store(State(s): State<Arc<Service>>, h: HeaderMap, Json(body): Json<Value>) -> Response {
    if let Some(r) = gate(&s, &h) {
        return r;
    }
    let mut state = s.state.lock().unwrap();
    let id = secret(&mut state, body["name"].as_str().unwrap_or_default());
    let stored = state.secrets.get_mut(&id).unwrap();
    stored["secret_type"] = body["secret_type"].clone();
    stored["content_types"]["default"] = body["payload_content_type"].clone();
    stored["payload"] = body["payload"].clone();
    let reference = stored["secret_ref"].clone();
    (StatusCode::CREATED, Json(json!({"secret_ref": reference}))).into_response()
}

async fn metadata(State(s): State<Arc<Service>>, h: HeaderMap, Path(id): Path<String>) -> Response {
    if let Some(r) = gate(&s, &h) {
        return r;
    }
    match s.state.lock().unwrap().secrets.get(&id) {
        Some(v) => Json(v.clone()).into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn payload(State(s): State<Arc<Service>>, h: HeaderMap, Path(id): Path<String>) -> Response {
    if let Some(r) = gate(&s, &h) {
        return r;
    }
    let found = s.state.lock().unwrap().secrets.get(&id).cloned();
    let Some(found) = found else {
        return StatusCode::NOT_FOUND.into_response();
    };
    if let Some(text) = found["payload"].as_str() {
        assert_eq!(h["accept"], "text/plain");
        return text.to_owned().into_response();
    }
    if h["accept"] != "application/octet-stream" {
        return StatusCode::NOT_ACCEPTABLE.into_response();
    }
    vec![0xab_u8; 32].into_response()
}

async fn delete(State(s): State<Arc<Service>>, h: HeaderMap, Path(id): Path<String>) -> Response {
    if let Some(r) = gate(&s, &h) {
        return r;
    }
    match s.state.lock().unwrap().secrets.remove(&id) {
        Some(_) => StatusCode::NO_CONTENT.into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn order(State(s): State<Arc<Service>>, h: HeaderMap, Json(body): Json<Value>) -> Response {
    if let Some(r) = gate(&s, &h) {
        return r;
    }
    s.orders_made.fetch_add(1, Ordering::SeqCst);
    let mut state = s.state.lock().unwrap();
    let id = uuid::Uuid::new_v4().to_string();
    let reference = format!("http://elsewhere/v1/orders/{id}");
    let polls = state.order_polls;
    state.orders.insert(
        id,
        json!({"order_ref": reference, "status": "PENDING", "meta": body["meta"], "polls": polls}),
    );
    (StatusCode::ACCEPTED, Json(json!({"order_ref": reference}))).into_response()
}

async fn orders(State(s): State<Arc<Service>>, h: HeaderMap) -> Response {
    if let Some(r) = gate(&s, &h) {
        return r;
    }
    let state = s.state.lock().unwrap();
    let orders: Vec<_> = state.orders.values().collect();
    Json(json!({"orders": orders, "total": orders.len()})).into_response()
}

async fn order_get(
    State(s): State<Arc<Service>>,
    h: HeaderMap,
    Path(id): Path<String>,
) -> Response {
    if let Some(r) = gate(&s, &h) {
        return r;
    }
    let mut state = s.state.lock().unwrap();
    let Some(mut order) = state.orders.get(&id).cloned() else {
        return StatusCode::NOT_FOUND.into_response();
    };
    if order["status"] == "PENDING" {
        match order["polls"].as_u64().unwrap_or_default() {
            0 => {
                let name = order["meta"]["name"]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned();
                let secret = secret(&mut state, &name);
                order["status"] = json!("ACTIVE");
                order["secret_ref"] = json!(format!("http://elsewhere/v1/secrets/{secret}"));
            }
            n => order["polls"] = json!(n - 1),
        }
        state.orders.insert(id, order.clone());
    }
    Json(order).into_response()
}

async fn order_delete(
    State(s): State<Arc<Service>>,
    h: HeaderMap,
    Path(id): Path<String>,
) -> Response {
    if let Some(r) = gate(&s, &h) {
        return r;
    }
    s.state.lock().unwrap().orders.remove(&id);
    StatusCode::NO_CONTENT.into_response()
}

mod tests {
    use super::*;
    use crate::keymanager::{
        KeyManager, barbican::Barbican, clouds::Credentials, passphrase, sessions::Sessions,
    };
    use cryptvol_crds::conditions::Reason;
    use secrecy::ExposeSecret;

    fn clouds(running: &Running) -> Credentials {
        let text = format!(
            "clouds: {{c: {{auth: {{auth_url: '{}', application_credential_id: a1, application_credential_secret: s}}}}}}",
            running.auth_url
        );
        Credentials::parse(text.as_bytes(), "c", &running.auth_url).unwrap()
    }

    fn tenant(running: &Running, sessions: &Sessions) -> Barbican {
        sessions
            .key_manager(&running.key_service, clouds(running))
            .unwrap()
    }

    #[tokio::test]
    async fn a_key_is_made_found_read_and_deleted() {
        let running = start().await;
        let km = tenant(&running, &Sessions::default());
        running.service.state.lock().unwrap().order_polls = 2;
        assert_eq!(km.find_key("n").await.unwrap(), None);
        let key = km.create_key("n").await.unwrap();
        assert_eq!(km.find_key("n").await.unwrap(), Some(key.clone()));
        key.usable().unwrap();
        let payload = km.get_payload(&key).await.unwrap();
        assert_eq!(
            passphrase(&key, &payload).unwrap().expose_secret(),
            &"ab".repeat(32)
        );
        assert!(
            running.service.state.lock().unwrap().orders.is_empty(),
            "the order is dropped"
        );
        km.delete_key(&key.id).await.unwrap();
        km.delete_key(&key.id).await.unwrap();
        assert_eq!(
            km.get_metadata(&key.id).await.unwrap_err().reason(),
            Reason::KeyNotFound
        );
        assert_eq!(km.project_id().await.unwrap(), "p1");
    }

    #[tokio::test]
    async fn a_text_is_stored_found_and_read() {
        let running = start().await;
        let sessions = Sessions::default();
        let barbican = tenant(&running, &sessions);
        let stored = barbican.store_text("n/header", "{\"a\": 1}").await.unwrap();
        assert_eq!(stored.secret_type, "opaque");
        let found = barbican.find_key("n/header").await.unwrap().unwrap();
        assert_eq!(found.id, stored.id);
        let text = barbican.get_payload(&found).await.unwrap();
        assert_eq!(&**text, b"{\"a\": 1}");
        running.service.state.lock().unwrap().error = Some((403, "no"));
        let refused = barbican.store_text("m", "x").await.unwrap_err();
        assert_eq!(refused.reason(), Reason::RoleMissing);
    }

    #[tokio::test]
    async fn the_oldest_of_several_is_taken_and_names_are_compared_exactly() {
        let running = start().await;
        let km = tenant(&running, &Sessions::default());
        running.service.add_secret("name-longer");
        let first = running.service.add_secret("name");
        running.service.add_secret("name");
        assert_eq!(km.find_key("name").await.unwrap().unwrap().id, first);
        assert_eq!(km.find_keys("name").await.unwrap().len(), 2);
    }

    #[tokio::test]
    async fn an_order_that_outlived_its_maker_is_taken_up_and_not_repeated() {
        let running = start().await;
        let km = tenant(&running, &Sessions::default());
        running.service.state.lock().unwrap().orders.insert(
            "o1".into(),
            json!({"order_ref": "http://x/v1/orders/o1", "status": "PENDING", "meta": {"name": "n"}, "polls": 1}),
        );
        km.create_key("n").await.unwrap();
        assert_eq!(running.service.orders_made.load(Ordering::SeqCst), 0);
        assert_eq!(running.service.state.lock().unwrap().secrets.len(), 1);
    }

    #[tokio::test]
    async fn many_volumes_log_in_once_and_a_dead_token_is_renewed_once() {
        let running = start().await;
        let sessions = Sessions::default();
        let tenants: Vec<_> = (0..8).map(|_| tenant(&running, &sessions)).collect();
        futures::future::join_all(tenants.iter().map(|t| t.find_key("n"))).await;
        assert_eq!(running.service.logins.load(Ordering::SeqCst), 1);
        running.service.state.lock().unwrap().token = "another".into();
        let all = futures::future::join_all(tenants.iter().map(|t| t.find_key("n"))).await;
        assert!(all.iter().all(Result::is_ok), "{all:?}");
        assert_eq!(running.service.logins.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn a_token_near_its_end_is_renewed_before_it_is_used() {
        let running = start().await;
        running.service.state.lock().unwrap().token_life = 60;
        let km = tenant(&running, &Sessions::default());
        km.find_key("n").await.unwrap();
        km.find_key("n").await.unwrap();
        assert_eq!(running.service.logins.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn refusals_have_reasons() {
        let running = start().await;
        let sessions = Sessions::default();
        let km = tenant(&running, &sessions);
        let set = |e| running.service.state.lock().unwrap().error = e;
        for (answer, reason) in [
            ((403, "not authorized"), Reason::RoleMissing),
            ((403, "Quota has been reached"), Reason::KeyQuotaExceeded),
            ((413, "too large"), Reason::KeyQuotaExceeded),
            ((500, "oops"), Reason::KeyServiceUnavailable),
            ((503, "busy"), Reason::KeyServiceUnavailable),
        ] {
            set(Some(answer));
            let e = km.create_key("n").await.unwrap_err();
            assert_eq!(e.reason(), reason, "{answer:?}: {e}");
        }
        set(None);
        running.service.state.lock().unwrap().token = "dead".into();
        running.service.state.lock().unwrap().login_error = Some((
            401,
            "The request you have made requires authentication.".into(),
        ));
        let e = km.find_key("n").await.unwrap_err();
        assert_eq!(e.reason(), Reason::CredentialsRejected);
        assert!(
            e.to_string().contains("expired"),
            "expiry is named as a possible cause: {e}"
        );
        running.service.state.lock().unwrap().login_error =
            Some((401, "Application credential has expired.".into()));
        assert_eq!(
            km.find_key("n").await.unwrap_err().reason(),
            Reason::CredentialsExpired
        );
    }

    #[tokio::test]
    async fn expiry_is_known_from_before_where_the_service_does_not_say() {
        for (seconds, reason) in [
            (3600, Reason::CredentialsRejected),
            (-1, Reason::CredentialsExpired),
        ] {
            let running = start().await;
            {
                let mut state = running.service.state.lock().unwrap();
                state.token_life = 1; // renewed at every call
                state.app_expires =
                    Some((Timestamp::now() + SignedDuration::from_secs(seconds)).to_string());
            }
            let km = tenant(&running, &Sessions::default());
            km.find_key("n").await.unwrap();
            running.service.state.lock().unwrap().login_error = Some((401, "no".into()));
            let refused = km.find_key("n").await.unwrap_err();
            assert_eq!(refused.reason(), reason);
        }
    }

    #[tokio::test]
    async fn only_the_named_certificates_are_trusted() {
        let running = start().await;
        let other = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
        let mut stranger = running.key_service.clone();
        stranger.spec.ca_bundle = Some(other.cert.pem());
        let sessions = Sessions::default();
        let km = sessions.key_manager(&stranger, clouds(&running)).unwrap();
        let e = km.find_key("n").await.unwrap_err();
        assert_eq!(e.reason(), Reason::KeyServiceUnavailable);
        assert!(e.to_string().contains("certificate"), "{e}");
        assert_eq!(
            running.service.logins.load(Ordering::SeqCst),
            0,
            "no secret was sent"
        );
        stranger.spec.ca_bundle = Some("rubbish".into());
        stranger.metadata.generation = Some(2);
        assert!(matches!(
            sessions.http(&stranger),
            Err(crate::keymanager::KeyError::Configuration(_))
        ));
    }

    #[tokio::test]
    async fn a_service_that_is_not_there_is_unavailable() {
        let running = start().await;
        let mut gone = running.key_service.clone();
        gone.spec.auth_url = "https://localhost:1/v3".into();
        let sessions = Sessions::default();
        let km = sessions.key_manager(&gone, clouds(&running)).unwrap();
        let e = km.find_key("n").await.unwrap_err();
        assert_eq!(e.reason(), Reason::KeyServiceUnavailable);
        assert!(e.to_string().contains("refused"), "{e}");
        let http = sessions.http(&running.key_service).unwrap();
        let version = crate::keymanager::identity::version(&http, &running.auth_url)
            .await
            .unwrap();
        assert_eq!(version.as_deref(), Some("v3.14"));
    }
}
