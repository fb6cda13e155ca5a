//! `/v3/OS-OAUTH1/consumers`. The secret is shown when the consumer is made, and never again.

use std::sync::Arc;

use axum::{
    Router,
    body::Bytes,
    extract::{Path, State},
    http::StatusCode,
    routing::get,
};
use serde_json::Value;

use super::records::{CONSUMER, delete_tokens_of};
use crate::{
    app::App,
    http::{Base, Query},
    identity::{
        documents::check_optional_text,
        error::{ApiResult, IdentityError},
        fields::{self, Object},
        support::{Caller, collection, linked, member, no_content},
    },
    policy::Target,
    store::documents::Document,
};

const PATH: &str = "OS-OAUTH1/consumers";

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/OS-OAUTH1/consumers", get(list).post(create))
        .route(
            "/OS-OAUTH1/consumers/{id}",
            get(show).patch(update).delete(delete),
        )
}

fn shown(base: &Base, consumer: &Document) -> Value {
    linked(base, PATH, consumer.to_json())
}

/// What a client sent.
fn read(mut sent: Object) -> Result<Object, IdentityError> {
    check_optional_text(&sent, "description")?;
    sent.remove("links");
    Ok(sent)
}

async fn list(State(app): State<Arc<App>>, caller: Caller, base: Base, query: Query) -> ApiResult {
    caller.may(&app, "identity:list_consumers", &Target::new())?;
    let found = app.store.documents(CONSUMER.name, None).await?;
    let items = found.iter().map(|one| shown(&base, one)).collect();
    Ok(collection(
        &base,
        &query,
        "consumers",
        &["description"],
        items,
    ))
}

async fn create(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    bytes: Bytes,
) -> ApiResult {
    let mut sent = read(fields::body(&bytes, CONSUMER.word)?)?;
    caller.may(&app, "identity:create_consumer", &Target::new())?;
    // As Keystone: what the service makes is not the sender's, and saying it is no error here.
    sent.remove("id");
    sent.remove("secret");
    sent.entry("description").or_insert(Value::Null);
    let (consumer, secret) = CONSUMER.new_record(&app, &sent)?;
    let mut change = app.store.change_identity().await?;
    change.insert_document(&consumer).await?;
    app.store.commit(change).await?;
    caller.audit("create", CONSUMER.audit, &consumer.id);
    let mut object = shown(&base, &consumer);
    object["secret"] = secret.into();
    Ok(member(StatusCode::CREATED, "consumer", object))
}

async fn show(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    Path(id): Path<String>,
) -> ApiResult {
    caller.may(&app, "identity:get_consumer", &Target::new())?;
    let consumer = CONSUMER.load(&app, &id).await?;
    Ok(member(StatusCode::OK, "consumer", shown(&base, &consumer)))
}

async fn update(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    Path(id): Path<String>,
    bytes: Bytes,
) -> ApiResult {
    let mut sent = read(fields::changes(&bytes, CONSUMER.word)?)?;
    if sent.contains_key("secret") {
        return Err(IdentityError::BadRequest(
            "The secret of a consumer is made by the service and cannot be set.".into(),
        ));
    }
    caller.may(&app, "identity:update_consumer", &Target::new())?;
    CONSUMER.load(&app, &id).await?;
    if sent.remove("id").is_some_and(|other| other != id.as_str()) {
        return Err(IdentityError::BadRequest(
            "The id cannot be changed.".into(),
        ));
    }
    let mut change = app.store.change_identity().await?;
    let mut consumer = CONSUMER.for_change(&mut change, &id).await?;
    let mut object = consumer.object();
    object.append(&mut sent);
    consumer.set(&object);
    change.update_document(&consumer).await?;
    app.store.commit(change).await?;
    caller.audit("update", CONSUMER.audit, &id);
    Ok(member(StatusCode::OK, "consumer", shown(&base, &consumer)))
}

async fn delete(State(app): State<Arc<App>>, caller: Caller, Path(id): Path<String>) -> ApiResult {
    caller.may(&app, "identity:delete_consumer", &Target::new())?;
    let mut change = app.store.change_identity().await?;
    if !change.delete_document(CONSUMER.name, &id).await? {
        return Err(CONSUMER.missing(&id));
    }
    delete_tokens_of(&mut change, &id).await?;
    app.store.commit(change).await?;
    caller.audit("delete", CONSUMER.audit, &id);
    Ok(no_content())
}
