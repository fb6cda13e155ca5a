//! For tests: the whole service without a socket, on a temporary directory.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{body::Body, http::Request, response::Response};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::{Notify, RwLock};
use tower::ServiceExt;

use crate::{
    accounts::PasswordRules,
    app::{App, AppConfig},
    bootstrap::{BootstrapRequest, bootstrap},
    crypto::Kek,
    http::service,
    policy::PolicySources,
};

/// Host in all requests, hence in all links.
pub(crate) const HOST: &str = "keys.example.org:5000";
const ADMIN_PASSWORD: &str = "admin-password";

/// A bootstrapped service and the administrator's token.
pub(crate) struct Bench {
    pub(crate) app: Arc<App>,
    pub(crate) admin: String,
    pub(crate) dir: TempDir,
}

/// An answer, read to its end.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: axum::http::HeaderMap,
    pub(crate) bytes: Vec<u8>,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap_or(Value::Null)
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }
}

/// Stops logins by password between the proof and what is made of it, and counts them on their way there; changes of passwords
/// likewise, between the hash and the record.
#[derive(Default)]
pub(crate) struct LoginPause {
    gate: RwLock<()>,
    proved: AtomicUsize,
    read: AtomicUsize,
}

impl LoginPause {
    /// By a login: its hash was computed.
    pub(crate) async fn after_the_proof(&self) {
        self.proved.fetch_add(1, Ordering::SeqCst);
        drop(self.gate.read().await);
    }

    /// By a login: what it will need was read.
    pub(crate) fn after_reading(&self) {
        self.read.fetch_add(1, Ordering::SeqCst);
    }

    /// By a change of a password: its hash was computed. Nothing is read beside that.
    pub(crate) async fn after_hashing(&self) {
        self.after_reading();
        self.after_the_proof().await;
    }

    /// Hashes computed and logins read for, until now.
    pub(crate) fn counts(&self) -> (usize, usize) {
        (
            self.proved.load(Ordering::SeqCst),
            self.read.load(Ordering::SeqCst),
        )
    }

    /// Runs `login`, and `change` at a moment when the hash was computed and all was read, but nothing made of it yet.
    pub(crate) async fn amid<T>(
        &self,
        login: impl Future<Output = T>,
        change: impl AsyncFnOnce(),
    ) -> T {
        let gate = self.gate.write().await;
        let (proved, read) = self.counts();
        let changed = async {
            let there = async {
                while self.counts() != (proved + 1, read + 1) {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(Duration::from_secs(120), there)
                .await
                .unwrap();
            change().await;
            drop(gate);
        };
        tokio::join!(login, changed).0
    }
}

/// Stops a change of records at one place: before it may begin, hence after all that is read before it, or before its commit.
#[derive(Default)]
pub(crate) struct WritePause {
    armed: AtomicBool,
    arrived: Notify,
    go_on: Notify,
}

impl WritePause {
    /// By a change that comes to the place.
    pub(crate) async fn stop_here(&self) {
        if self.armed.swap(false, Ordering::SeqCst) {
            self.arrived.notify_one();
            self.go_on.notified().await;
        }
    }

    /// Runs `first`, and `second` from its beginning to its end while the (first) change of `first` stands there.
    pub(crate) async fn amid<T>(
        &self,
        first: impl Future<Output = T>,
        second: impl AsyncFnOnce(),
    ) -> T {
        self.armed.store(true, Ordering::SeqCst);
        let meanwhile = async {
            tokio::time::timeout(Duration::from_secs(120), self.arrived.notified())
                .await
                .expect("the first request changes something");
            second().await;
            self.go_on.notify_one();
        };
        tokio::join!(first, meanwhile).0
    }
}

pub(crate) fn config(dir: &TempDir) -> AppConfig {
    AppConfig {
        place: dir.path().into(),
        token_lifetime_secs: 3600,
        password_rounds: 4,
        password_parallel: 2,
        tls: true,
        policy: PolicySources::default(),
        domain_config_dir: None,
        passwords: PasswordRules::default(),
        login_rate: 0,
        limit_model: crate::identity::LimitModel::default(),
    }
}

/// Why a request ended with 5xx goes to the output of the test that made it; the answer does not say it.
fn show_failures() {
    let writer = tracing_subscriber::fmt::TestWriter::new();
    let show = tracing_subscriber::fmt()
        .with_writer(writer)
        .with_max_level(tracing::Level::ERROR);
    // Every test says it; the first one did it for all.
    let _ = show.try_init();
}

impl Bench {
    pub(crate) async fn new() -> Self {
        Self::with(|_| {}).await
    }

    /// With other settings.
    pub(crate) async fn with(change: impl FnOnce(&mut AppConfig)) -> Self {
        show_failures();
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(&dir);
        change(&mut config);
        let app = App::open(config, Kek::from_bytes(&[9; 32])).await.unwrap();
        let request = BootstrapRequest {
            password: ADMIN_PASSWORD.to_owned().into(),
            public_url: format!("https://{HOST}"),
            region: "RegionOne".into(),
        };
        bootstrap(&app, &request).await.unwrap();
        // Twice, as every start of a pod does.
        bootstrap(&app, &request).await.unwrap();
        let mut bench = Self {
            app,
            admin: String::new(),
            dir,
        };
        bench.admin = bench
            .login("admin", ADMIN_PASSWORD, Some("admin"))
            .await
            .unwrap();
        bench
    }

    /// One request; `body` is sent as JSON unless it is null.
    pub(crate) async fn call(&self, method: &str, path: &str, token: &str, body: Value) -> Answer {
        let mut headers = vec![("X-Auth-Token", token)];
        let mut bytes = Vec::new();
        if !body.is_null() {
            headers.push(("Content-Type", "application/json"));
            bytes = body.to_string().into_bytes();
        }
        self.raw(method, path, &headers, bytes).await
    }

    pub(crate) async fn raw(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Vec<u8>,
    ) -> Answer {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("Host", HOST);
        for (name, value) in headers.iter().filter(|(_, value)| !value.is_empty()) {
            request = request.header(*name, *value);
        }
        let answer: Result<Response, Infallible> = service(Arc::clone(&self.app))
            .oneshot(request.body(Body::from(body)).unwrap())
            .await;
        let Ok(response) = answer;
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes().to_vec();
        Answer {
            status: parts.status.as_u16(),
            headers: parts.headers,
            bytes,
        }
    }

    /// As the administrator, with this status.
    pub(crate) async fn admin(&self, method: &str, path: &str, body: Value, status: u16) -> Value {
        let answer = self.call(method, path, &self.admin, body).await;
        assert_eq!(
            answer.status,
            status,
            "{method} {path}: {}",
            String::from_utf8_lossy(&answer.bytes)
        );
        answer.json()
    }

    pub(crate) async fn auth(&self, body: Value) -> Answer {
        self.call("POST", "/identity/v3/auth/tokens", "", body)
            .await
    }

    /// A token for a user of the first domain, or the status of the refusal.
    pub(crate) async fn login(
        &self,
        user: &str,
        password: &str,
        project: Option<&str>,
    ) -> Result<String, u16> {
        let mut auth = json!({"identity": {"methods": ["password"], "password": {"user": {
            "name": user, "domain": {"id": "default"}, "password": password,
        }}}});
        if let Some(project) = project {
            auth["scope"] = json!({"project": {"name": project, "domain": {"name": "Default"}}});
        }
        let answer = self.auth(json!({ "auth": auth })).await;
        if answer.status == 201 {
            Ok(answer.header("X-Subject-Token").to_owned())
        } else {
            Err(answer.status)
        }
    }

    /// A new project; its id.
    pub(crate) async fn project(&self, name: &str) -> String {
        let body = json!({"project": {"name": name, "domain_id": "default"}});
        id(&self.admin("POST", "/identity/v3/projects", body, 201).await["project"])
    }

    /// A new user whose password is its name with `-pw`; its id.
    pub(crate) async fn user(&self, name: &str) -> String {
        let body = json!({"user": {"name": name, "domain_id": "default", "password": format!("{name}-pw")}});
        id(&self.admin("POST", "/identity/v3/users", body, 201).await["user"])
    }

    /// The id of a global role.
    pub(crate) async fn role(&self, name: &str) -> String {
        let list = self
            .admin(
                "GET",
                &format!("/identity/v3/roles?name={name}"),
                Value::Null,
                200,
            )
            .await;
        id(&list["roles"][0])
    }

    /// Gives a user a role on a project.
    pub(crate) async fn grant(&self, project: &str, user: &str, role: &str) {
        let role = self.role(role).await;
        self.admin(
            "PUT",
            &format!("/identity/v3/projects/{project}/users/{user}/roles/{role}"),
            Value::Null,
            204,
        )
        .await;
    }

    /// A new user with a role on a project, logged in.
    pub(crate) async fn member(&self, name: &str, project: (&str, &str), role: &str) -> String {
        let user = self.user(name).await;
        self.grant(project.1, &user, role).await;
        self.login(name, &format!("{name}-pw"), Some(project.0))
            .await
            .unwrap()
    }

    /// Status of validating a token by itself.
    pub(crate) async fn status_of(&self, token: &str) -> u16 {
        let headers = [
            ("X-Auth-Token", self.admin.as_str()),
            ("X-Subject-Token", token),
        ];
        self.raw("GET", "/identity/v3/auth/tokens", &headers, Vec::new())
            .await
            .status
    }
}

pub(crate) fn id(object: &Value) -> String {
    object["id"].as_str().unwrap().to_owned()
}
