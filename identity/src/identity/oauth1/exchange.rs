//! From a request token to an access token: asked for and changed by the consumer, whose signature is all that it shows, and
//! authorized in between by the user.

use std::sync::Arc;

use axum::{
    Router,
    body::Bytes,
    extract::{Path, State},
    http::{HeaderMap, StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Json, Response},
    routing::{post, put},
};
use rand::RngExt;
use serde_json::{Value, json};

use super::{
    records::{ACCESS_TOKEN, CONSUMER, Kind, REQUEST_TOKEN, expires_at, role_ids},
    signature::Signed,
};
use crate::{
    app::App,
    audit,
    crypto::mac::same,
    http::{Base, Query},
    identity::{
        error::{ApiResult, IdentityError},
        fields::Object,
        support::Caller,
    },
    policy::Target,
    store::documents::Document,
    time::{now_us, token_time},
};

const SECOND: i64 = 1_000_000;
/// A request token lives for eight hours, an access token for a day: as in Keystone.
const REQUEST_LIFETIME: i64 = 28_800 * SECOND;
const ACCESS_LIFETIME: i64 = 86_400 * SECOND;
/// Letters and digits of a verifier, which a person may have to type.
const VERIFIER: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
const VERIFIER_LENGTH: usize = 8;

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/OS-OAUTH1/request_token", post(request_token))
        .route("/OS-OAUTH1/authorize/{id}", put(authorize))
        .route("/OS-OAUTH1/access_token", post(access_token))
}

fn new_verifier() -> String {
    let mut rng = rand::rng();
    (0..VERIFIER_LENGTH)
        .map(|_| char::from(VERIFIER[rng.random_range(0..VERIFIER.len())]))
        .collect()
}

/// A new token as the answer of RFC 5849: a form.
fn answer(record: &Document, secret: &str) -> Response {
    let ends = expires_at(record).map(token_time).unwrap_or_default();
    let body = format!(
        "oauth_token={}&oauth_token_secret={secret}&oauth_expires_at={ends}",
        record.id
    );
    let kind = [(CONTENT_TYPE, "application/x-www-form-urlencoded")];
    (StatusCode::CREATED, kind, body).into_response()
}

/// What a consumer sent, with its URL as it was signed.
fn signed(headers: &HeaderMap, base: &Base, query: &Query) -> Result<Signed, IdentityError> {
    let url = format!("{}{}", base.identity(), query.path);
    let signed = Signed::read(headers, "POST", &url, query.pairs())?;
    if !signed.is_fresh(now_us()) {
        return Err(IdentityError::BadRequest(
            "oauth_timestamp must be the present time, in seconds.".into(),
        ));
    }
    Ok(signed)
}

fn record_failure(kind: &Kind, id: &str, reason: &str) {
    let id: String = id.chars().take(64).collect();
    audit::failed_login(&format!("OAuth1 {} {id}", kind.word), reason);
}

fn refused(kind: &Kind, id: &str, reason: &str) -> IdentityError {
    record_failure(kind, id, reason);
    IdentityError::Unauthorized
}

/// A consumer that is not there: 404, as in Keystone. Its id is no secret, and cannot be guessed.
fn unknown_consumer(id: &str) -> IdentityError {
    record_failure(&CONSUMER, id, "UnknownConsumer");
    CONSUMER.missing(id)
}

/// 400, as in Keystone.
fn wrong_verifier() -> IdentityError {
    IdentityError::BadRequest("The oauth_verifier is not that of this request token; ask for a new request token and have it authorized.".into())
}

async fn request_token(
    State(app): State<Arc<App>>,
    base: Base,
    query: Query,
    headers: HeaderMap,
) -> ApiResult {
    let signed = signed(&headers, &base, &query)?;
    let consumer_id = signed.required("oauth_consumer_key")?;
    let project_id = headers
        .get("Requested-Project-Id")
        .and_then(|value| value.to_str().ok())
        .filter(|id| !id.is_empty())
        .ok_or_else(|| {
            IdentityError::BadRequest("The header Requested-Project-Id is required.".into())
        })?;
    // The signature comes first: who cannot sign learns nothing about projects.
    let consumer = CONSUMER
        .find(&app, consumer_id)
        .await?
        .ok_or_else(|| unknown_consumer(consumer_id))?;
    if !signed.is_by(&CONSUMER.secret(&app, &consumer)?, "") {
        return Err(refused(&CONSUMER, consumer_id, "WrongSignature"));
    }
    if app.store.project(project_id).await?.is_none() {
        return Err(IdentityError::NotFound("project", project_id.to_owned()));
    }
    let mut body = Object::new();
    body.insert("consumer_id".into(), consumer.id.as_str().into());
    body.insert("expires_at".into(), (now_us() + REQUEST_LIFETIME).into());
    let (mut record, secret) = REQUEST_TOKEN.new_record(&app, &body)?;
    record.project_id = Some(project_id.to_owned());
    let mut change = app.store.change_identity().await?;
    // No token may outlive its consumer.
    if change
        .document(CONSUMER.name, &consumer.id)
        .await?
        .is_none()
    {
        return Err(unknown_consumer(consumer_id));
    }
    change.insert_document(&record).await?;
    app.store.commit(change).await?;
    audit::by_consumer(&consumer.id, "create", REQUEST_TOKEN.audit, &record.id);
    Ok(answer(&record, &secret))
}

/// A request token that is not over.
async fn live(app: &App, id: &str) -> Result<Document, IdentityError> {
    let record = REQUEST_TOKEN.load(app, id).await?;
    if expires_at(&record).is_some_and(|at| at <= now_us()) {
        return Err(refused(&REQUEST_TOKEN, id, "RequestTokenExpired"));
    }
    Ok(record)
}

async fn authorize(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    bytes: Bytes,
) -> ApiResult {
    caller.may(&app, "identity:authorize_request_token", &Target::new())?;
    caller.in_person(false, "Request tokens are authorized")?;
    let bad = || {
        IdentityError::BadRequest(
            "The body must be {\"roles\": […]}, with the id or the name of each role.".into(),
        )
    };
    let sent: Value = serde_json::from_slice(&bytes).map_err(|_| bad())?;
    // As in Keystone, none may be named; what comes of that logs in nowhere.
    let wanted = sent["roles"].as_array().ok_or_else(bad)?;
    let project = live(&app, &id).await?.project_id.unwrap_or_default();
    let user = caller.0.user.id.as_str();
    let held = app.store.effective_roles(user, "project", &project).await?;
    let mut roles: Vec<String> = Vec::new();
    for role in wanted {
        let found = match (role["id"].as_str(), role["name"].as_str()) {
            (Some(id), _) => held.iter().find(|role| role.id == id),
            (None, Some(name)) => held.iter().find(|role| role.name == name),
            (None, None) => return Err(bad()),
        };
        if found.is_none()
            && let (None, Some(name)) = (role["id"].as_str(), role["name"].as_str())
            && !app
                .store
                .all_roles()
                .await?
                .iter()
                .any(|role| role.name == name)
        {
            return Err(IdentityError::NotFound("role", name.to_owned()));
        }
        // Nobody gives away what it does not have.
        let found = found.ok_or_else(|| refused(&REQUEST_TOKEN, &id, "RoleNotHeld"))?;
        if !roles.contains(&found.id) {
            roles.push(found.id.clone());
        }
    }
    let verifier = new_verifier();
    let mut change = app.store.change_identity().await?;
    let mut record = REQUEST_TOKEN.for_change(&mut change, &id).await?;
    let mut body = record.object();
    body.insert("role_ids".into(), json!(roles));
    body.insert("verifier".into(), verifier.as_str().into());
    record.set(&body);
    record.user_id = Some(user.to_owned());
    change.update_document(&record).await?;
    app.store.commit(change).await?;
    caller.audit("update", REQUEST_TOKEN.audit, &id);
    Ok(Json(json!({"token": {"oauth_verifier": verifier}})).into_response())
}

async fn access_token(
    State(app): State<Arc<App>>,
    base: Base,
    query: Query,
    headers: HeaderMap,
) -> ApiResult {
    let signed = signed(&headers, &base, &query)?;
    let consumer_id = signed.required("oauth_consumer_key")?;
    let request_id = signed.required("oauth_token")?;
    let verifier = signed.required("oauth_verifier")?;
    let request = live(&app, request_id).await?;
    let consumer = CONSUMER
        .find(&app, consumer_id)
        .await?
        .filter(|consumer| request.text("consumer_id").as_ref() == Some(&consumer.id))
        .ok_or_else(|| refused(&CONSUMER, consumer_id, "UnknownConsumer"))?;
    if !signed.is_by(
        &CONSUMER.secret(&app, &consumer)?,
        &REQUEST_TOKEN.secret(&app, &request)?,
    ) {
        return Err(refused(&REQUEST_TOKEN, request_id, "WrongSignature"));
    }
    // None yet, if nobody authorized it.
    let right = request
        .text("verifier")
        .is_some_and(|right| same(verifier, &right));
    let (Some(user_id), Some(project_id), true) = (&request.user_id, &request.project_id, right)
    else {
        // A verifier is short. Who guesses wrong does not guess again.
        let mut change = app.store.change_identity().await?;
        change
            .delete_document(REQUEST_TOKEN.name, request_id)
            .await?;
        app.store.commit(change).await?;
        record_failure(&REQUEST_TOKEN, request_id, "WrongVerifier");
        return Err(wrong_verifier());
    };
    let mut body = Object::new();
    body.insert("consumer_id".into(), consumer.id.as_str().into());
    body.insert("role_ids".into(), json!(role_ids(&request)));
    body.insert("expires_at".into(), (now_us() + ACCESS_LIFETIME).into());
    let (mut record, secret) = ACCESS_TOKEN.new_record(&app, &body)?;
    record.user_id = Some(user_id.clone());
    record.project_id = Some(project_id.clone());
    let mut change = app.store.change_identity().await?;
    let now = REQUEST_TOKEN.for_change(&mut change, request_id).await?;
    // Authorized anew meanwhile, perhaps by somebody else: then this verifier is over.
    if (&now.user_id, &now.body) != (&request.user_id, &request.body) {
        record_failure(&REQUEST_TOKEN, request_id, "WrongVerifier");
        return Err(wrong_verifier());
    }
    // It is used up by this; who comes second with it finds none.
    change
        .delete_document(REQUEST_TOKEN.name, request_id)
        .await?;
    change.insert_document(&record).await?;
    app.store.commit(change).await?;
    audit::by_consumer(&consumer.id, "create", ACCESS_TOKEN.audit, &record.id);
    Ok(answer(&record, &secret))
}
