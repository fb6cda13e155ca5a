//! The endpoint itself.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{ConnectInfo, DefaultBodyLimit, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::post,
};
use cryptvol_common::release::{PATH, Purpose, Refusal, Request};
use cryptvol_crds::{EncryptedVolume, NodeVolume, conditions::Reason, names};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use kube::{Api, Client, api::PostParams};
use tokio::sync::Semaphore;

use super::{
    audit::{Audit, Entry},
    authorize::{self, Caller},
    limits::{Rate, Seen},
    material,
};
use crate::{
    metrics::{Metrics, ReleaseLabels},
    tenants::{Tenants, api_words},
};

/// Longest request body, in bytes.
const MAX_BODY: usize = 4096;
/// Longest token, in bytes.
const MAX_TOKEN: usize = 8192;
/// Requests that are worked on at once.
const AT_ONCE: usize = 64;
/// A request ends after this, whatever the services behind it do.
const DEADLINE: Duration = Duration::from_secs(25);

/// What the endpoint needs.
pub struct Endpoint {
    client: Client,
    tenants: Arc<Tenants>,
    audit: Audit,
    metrics: Metrics,
    namespace: String,
    at_once: Semaphore,
    seen: Mutex<Seen>,
    per_node: Mutex<Rate<String>>,
    /// Before a token is reviewed there is only an address to count by.
    per_peer: Mutex<Rate<std::net::IpAddr>>,
}

/// A refusal with its HTTP status.
struct Refused {
    status: StatusCode,
    word: &'static str,
    refusal: Refusal,
}

impl Refused {
    fn new(status: StatusCode, word: &'static str, reason: Reason, what: &str) -> Self {
        Self {
            status,
            word,
            refusal: Refusal::new(reason, what),
        }
    }

    /// Something of ours does not work now.
    fn later(word: &'static str, what: &str) -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            word,
            Reason::KeyReleaseUnavailable,
            what,
        )
    }
}

impl Endpoint {
    /// `namespace` is where the node agent's service account lives.
    pub fn new(
        client: Client,
        tenants: Arc<Tenants>,
        audit: Audit,
        metrics: Metrics,
        namespace: String,
    ) -> Self {
        Self {
            client,
            tenants,
            audit,
            metrics,
            namespace,
            at_once: Semaphore::new(AT_ONCE),
            seen: Mutex::default(),
            // A node with 256 volumes asks 512 times when it comes back after a reboot.
            per_node: Mutex::new(Rate::new(1024, 16)),
            per_peer: Mutex::new(Rate::new(2048, 64)),
        }
    }

    /// The routes.
    pub fn router(self: Arc<Self>) -> Router {
        Router::new()
            .route(PATH, post(release))
            .layer(DefaultBodyLimit::max(MAX_BODY))
            .with_state(self)
    }

    async fn answer(&self, peer: SocketAddr, headers: &HeaderMap, body: &Bytes) -> Response {
        let begun = Instant::now();
        let mut entry = Entry {
            peer: peer.ip().to_canonical().to_string(),
            ..Entry::default()
        };
        let mut purpose = None;
        let work = self.work(peer, headers, body, &mut entry, &mut purpose);
        let outcome = match tokio::time::timeout(DEADLINE, work).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Refused::later(
                "DeadlineExceeded",
                "the key service or the API server did not answer in time",
            )),
        };
        let word = match &outcome {
            Ok(_) => "Released",
            Err(refused) => refused.word,
        };
        entry.result = if outcome.is_ok() {
            "Released"
        } else {
            "Refused"
        }
        .to_owned();
        entry.reason = word.to_owned();
        // One word, in the record and in the counter.
        let purpose = purpose.map_or("", Purpose::as_str);
        entry.purpose = purpose.to_owned();
        self.metrics
            .releases
            .get_or_create(&ReleaseLabels {
                purpose,
                result: word,
            })
            .inc();
        self.metrics
            .release_duration
            .observe(begun.elapsed().as_secs_f64());
        // Recorded before anything leaves; what cannot be recorded does not happen.
        if let Err(e) = self.audit.record(entry) {
            tracing::error!(error = %e, "the audit record cannot be written: nothing is released");
            return refuse(&Refused::later(
                "AuditFailed",
                "the audit record cannot be written",
            ));
        }
        match outcome {
            Ok(body) => (
                [
                    (header::CONTENT_TYPE, "application/json"),
                    (header::CACHE_CONTROL, "no-store"),
                ],
                Body::from(Bytes::from_owner(body)),
            )
                .into_response(),
            Err(refused) => refuse(&refused),
        }
    }

    async fn work(
        &self,
        peer: SocketAddr,
        headers: &HeaderMap,
        body: &Bytes,
        entry: &mut Entry,
        purpose: &mut Option<Purpose>,
    ) -> Result<zeroize::Zeroizing<Vec<u8>>, Refused> {
        let busy = || {
            Refused::new(
                StatusCode::TOO_MANY_REQUESTS,
                "TooManyRequests",
                Reason::KeyReleaseUnavailable,
                "too many requests",
            )
        };
        let now = Instant::now();
        if !lock(&self.per_peer).allow(peer.ip().to_canonical(), now) {
            return Err(busy());
        }
        let bad = |what: &str| {
            Refused::new(
                StatusCode::BAD_REQUEST,
                "BadRequest",
                Reason::KeyReleaseRefused,
                what,
            )
        };
        let request: Request =
            serde_json::from_slice(body).map_err(|_| bad("the request is not of the protocol"))?;
        let id = uuid::Uuid::parse_str(&request.request_id)
            .map_err(|_| bad("requestId is not a UUID"))?;
        let named = |s: &str| !s.is_empty() && s.len() <= 253 && s.is_ascii();
        if !named(&request.namespace) || !named(&request.name) || !named(&request.uid) {
            return Err(bad("namespace, name and uid name no object"));
        }
        entry.namespace.clone_from(&request.namespace);
        entry.volume.clone_from(&request.name);
        entry.uid.clone_from(&request.uid);
        entry.request_id = id.to_string();
        *purpose = Some(request.purpose);
        let _permit = self.at_once.acquire().await.map_err(|_| busy())?;

        let caller = self.caller(headers).await?;
        entry.node.clone_from(&caller.node);
        entry.pod.clone_from(&caller.pod);
        entry.pod_uid.clone_from(&caller.pod_uid);
        if !lock(&self.per_node).allow(caller.node.clone(), now) {
            return Err(busy());
        }
        if !lock(&self.seen).first_time(id, now) {
            return Err(Refused::new(
                StatusCode::CONFLICT,
                "RepeatedRequest",
                Reason::KeyReleaseRefused,
                "this request id was used before",
            ));
        }
        let (node_volume, volume) = self.objects(&request).await?;
        if let Some(nv) = &node_volume {
            entry.volume.clone_from(&nv.spec.volume_ref.name);
        }
        authorize::authorize(&caller, &request, node_volume.as_ref(), volume.as_ref()).map_err(
            |denied| {
                Refused::new(
                    StatusCode::FORBIDDEN,
                    denied.word(),
                    Reason::KeyReleaseRefused,
                    &denied.to_string(),
                )
            },
        )?;
        let volume = volume.ok_or_else(|| bad("the volume is gone"))?;
        let (released, key_id) =
            material::fetch(&self.client, &self.tenants, &volume, request.purpose)
                .await
                .map_err(|problem| {
                    let status = if problem.reason.is_transient() {
                        StatusCode::SERVICE_UNAVAILABLE
                    } else {
                        StatusCode::UNPROCESSABLE_ENTITY
                    };
                    Refused::new(
                        status,
                        problem.reason.as_str(),
                        problem.reason,
                        &problem.what,
                    )
                })?;
        entry.key_id = key_id;
        released
            .to_json()
            .map_err(|_| Refused::later("Internal", "the answer cannot be written"))
    }

    async fn caller(&self, headers: &HeaderMap) -> Result<Caller, Refused> {
        let unauthenticated = |word, what: &str| {
            Refused::new(
                StatusCode::UNAUTHORIZED,
                word,
                Reason::KeyReleaseRefused,
                what,
            )
        };
        let token = headers
            .get(header::AUTHORIZATION)
            .and_then(|v| v.to_str().ok())
            .and_then(|v| v.strip_prefix("Bearer "))
            .filter(|t| !t.is_empty() && t.len() <= MAX_TOKEN)
            .ok_or_else(|| unauthenticated("NoToken", "the request has no bearer token"))?;
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: Some(token.to_owned()),
                audiences: Some(vec![names::KEY_RELEASE_AUDIENCE.to_owned()]),
            },
            ..TokenReview::default()
        };
        let mut answer = Api::<TokenReview>::all(self.client.clone())
            .create(&PostParams::default(), &review)
            .await
            .map_err(|e| Refused::later("TokenReviewFailed", &api_words(&e)))?;
        // The API server repeats the token in its answer.
        if let Some(token) = &mut answer.spec.token {
            zeroize::Zeroize::zeroize(token);
        }
        let status = answer.status.unwrap_or_default();
        authorize::identify(&status, &self.namespace).map_err(|denied| {
            // The cause is in our log; an unknown caller learns nothing from it.
            tracing::warn!(error = %denied, "key release: caller not accepted");
            unauthenticated(denied.word(), "the token is not accepted")
        })
    }

    /// The objects as they are now.
    async fn objects(
        &self,
        request: &Request,
    ) -> Result<(Option<NodeVolume>, Option<EncryptedVolume>), Refused> {
        let failed = |e: kube::Error| Refused::later("ApiServerUnavailable", &api_words(&e));
        let namespace = &request.namespace;
        let node_volume = Api::<NodeVolume>::namespaced(self.client.clone(), namespace)
            .get_opt(&request.name)
            .await
            .map_err(failed)?;
        let volume = match &node_volume {
            Some(nv) => Api::<EncryptedVolume>::namespaced(self.client.clone(), namespace)
                .get_opt(&nv.spec.volume_ref.name)
                .await
                .map_err(failed)?,
            None => None,
        };
        Ok((node_volume, volume))
    }
}

async fn release(
    State(endpoint): State<Arc<Endpoint>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    endpoint.answer(peer, &headers, &body).await
}

fn refuse(refused: &Refused) -> Response {
    (refused.status, Json(&refused.refusal)).into_response()
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
