//! `/v1/secrets/{id}/consumers` and `/v1/containers/{id}/consumers`: who uses a secret or a container; a used secret is not
//! deleted by accident.

use std::future::Future;
use std::sync::Arc;

use axum::{
    Router,
    body::Bytes,
    extract::{Path, State},
    http::{HeaderMap, header},
    response::{IntoResponse, Json},
    routing::get,
};
use serde_json::{Value, json};

use super::{
    caller::Caller,
    containers,
    error::{ApiResult, KeyManagerError},
    fields,
    page::Page,
    quotas::enforce,
    secrets,
};
use crate::{
    app::App,
    http::{Base, Query},
    store::{
        Change, StoreResult,
        acls::Acl,
        containers::{Container, ContainerConsumer},
        key_quotas::Counted,
        secrets::{Consumer, Secret},
    },
    time::{key_manager_time, now_us},
};

/// Longest field of a secret's consumer, in characters.
const MAX_FIELD: usize = 255;
/// Longest name of a container's consumer, in characters.
const MAX_NAME: usize = 36;
/// Longest URL of a container's consumer, in characters.
const MAX_URL: usize = 255;

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route(
            "/secrets/{id}/consumers",
            get(list::<Secret>)
                .post(register::<Secret>)
                .delete(remove::<Secret>),
        )
        .route(
            "/containers/{id}/consumers",
            get(list::<Container>)
                .post(register::<Container>)
                .delete(remove::<Container>),
        )
}

/// A kind of object that consumers register with.
trait Used: Sized + Send + Sync + 'static {
    /// A consumer of one.
    type Consumer: Send + Sync;
    /// As the audit trail names it.
    const KIND: &'static str;
    /// Policy rules for list, register, remove.
    const RULES: [&'static str; 3];
    /// What a quota counts.
    const COUNTED: Counted;

    fn load(
        app: &App,
        id: &str,
    ) -> impl Future<Output = Result<(Self, Option<Acl>), KeyManagerError>> + Send;
    fn project_id(&self) -> &str;
    fn ask(
        &self,
        app: &App,
        caller: &Caller,
        rule: &'static str,
        acl: Option<&Acl>,
    ) -> Result<(), KeyManagerError>;
    /// The object as these routes answer it.
    fn describe(
        &self,
        app: &App,
        base: &Base,
    ) -> impl Future<Output = Result<Value, KeyManagerError>> + Send;

    /// The consumer that a body names.
    fn sent(object: &fields::Object, caller: &Caller) -> Result<Self::Consumer, KeyManagerError>;
    fn show(consumer: &Self::Consumer) -> Value;
    /// Project that registered it and when, in microseconds.
    fn registered(consumer: &Self::Consumer) -> (&str, i64);
    /// The same user of the same object, whoever registered it.
    fn same(one: &Self::Consumer, other: &Self::Consumer) -> bool;

    fn all(app: &App, id: &str) -> impl Future<Output = StoreResult<Vec<Self::Consumer>>> + Send;
    /// As the change sees them.
    fn all_now(
        change: &mut Change,
        id: &str,
    ) -> impl Future<Output = StoreResult<Vec<Self::Consumer>>> + Send;
    fn insert(
        change: &mut Change,
        id: &str,
        consumer: &Self::Consumer,
    ) -> impl Future<Output = StoreResult<()>> + Send;
    fn delete(
        change: &mut Change,
        id: &str,
        consumer: &Self::Consumer,
    ) -> impl Future<Output = StoreResult<()>> + Send;
}

impl Used for Secret {
    type Consumer = Consumer;
    const KIND: &'static str = secrets::KIND;
    const RULES: [&'static str; 3] = [
        "secret_consumers:get",
        "secret_consumers:post",
        "secret_consumers:delete",
    ];
    const COUNTED: Counted = Counted::SecretConsumers;

    async fn load(app: &App, id: &str) -> Result<(Self, Option<Acl>), KeyManagerError> {
        secrets::load(app, id).await
    }

    fn project_id(&self) -> &str {
        &self.project_id
    }

    fn ask(
        &self,
        app: &App,
        caller: &Caller,
        rule: &'static str,
        acl: Option<&Acl>,
    ) -> Result<(), KeyManagerError> {
        caller.may_secret(app, rule, self, acl)
    }

    async fn describe(&self, app: &App, base: &Base) -> Result<Value, KeyManagerError> {
        // These routes show the consumers whatever version the client speaks.
        secrets::describe(app, base, self, true).await
    }

    fn sent(object: &fields::Object, caller: &Caller) -> Result<Consumer, KeyManagerError> {
        Ok(Consumer {
            project_id: caller.project_id.clone(),
            service: fields::required(object, "service", MAX_FIELD)?,
            resource_type: fields::required(object, "resource_type", MAX_FIELD)?,
            resource_id: fields::required(object, "resource_id", MAX_FIELD)?,
            created: now_us(),
        })
    }

    fn show(consumer: &Consumer) -> Value {
        json!({
            "service": consumer.service, "resource_type": consumer.resource_type, "resource_id": consumer.resource_id,
        })
    }

    fn registered(consumer: &Consumer) -> (&str, i64) {
        (&consumer.project_id, consumer.created)
    }

    fn same(one: &Consumer, other: &Consumer) -> bool {
        (&one.service, &one.resource_type, &one.resource_id)
            == (&other.service, &other.resource_type, &other.resource_id)
    }

    async fn all(app: &App, id: &str) -> StoreResult<Vec<Consumer>> {
        app.store.consumers(id).await
    }

    async fn all_now(change: &mut Change, id: &str) -> StoreResult<Vec<Consumer>> {
        change.consumers(id).await
    }

    async fn insert(change: &mut Change, id: &str, consumer: &Consumer) -> StoreResult<()> {
        change.insert_consumer(id, consumer).await
    }

    async fn delete(change: &mut Change, id: &str, consumer: &Consumer) -> StoreResult<()> {
        let (service, kind, resource) = (
            &consumer.service,
            &consumer.resource_type,
            &consumer.resource_id,
        );
        change
            .delete_consumer(id, service, kind, resource)
            .await
            .map(drop)
    }
}

impl Used for Container {
    type Consumer = ContainerConsumer;
    const KIND: &'static str = containers::KIND;
    const RULES: [&'static str; 3] = [
        "container_consumers:get",
        "container_consumers:post",
        "container_consumers:delete",
    ];
    const COUNTED: Counted = Counted::ContainerConsumers;

    async fn load(app: &App, id: &str) -> Result<(Self, Option<Acl>), KeyManagerError> {
        containers::load(app, id).await
    }

    fn project_id(&self) -> &str {
        &self.project_id
    }

    fn ask(
        &self,
        app: &App,
        caller: &Caller,
        rule: &'static str,
        acl: Option<&Acl>,
    ) -> Result<(), KeyManagerError> {
        caller.may_container(app, rule, self, acl)
    }

    async fn describe(&self, app: &App, base: &Base) -> Result<Value, KeyManagerError> {
        containers::describe(app, base, self).await
    }

    fn sent(
        object: &fields::Object,
        caller: &Caller,
    ) -> Result<ContainerConsumer, KeyManagerError> {
        Ok(ContainerConsumer {
            project_id: caller.project_id.clone(),
            name: fields::required(object, "name", MAX_NAME)?,
            url: fields::required(object, "URL", MAX_URL)?,
            created: now_us(),
        })
    }

    fn show(consumer: &ContainerConsumer) -> Value {
        json!({"name": consumer.name, "URL": consumer.url})
    }

    fn registered(consumer: &ContainerConsumer) -> (&str, i64) {
        (&consumer.project_id, consumer.created)
    }

    fn same(one: &ContainerConsumer, other: &ContainerConsumer) -> bool {
        (&one.name, &one.url) == (&other.name, &other.url)
    }

    async fn all(app: &App, id: &str) -> StoreResult<Vec<ContainerConsumer>> {
        app.store.container_consumers(id).await
    }

    async fn all_now(change: &mut Change, id: &str) -> StoreResult<Vec<ContainerConsumer>> {
        change.container_consumers(id).await
    }

    async fn insert(
        change: &mut Change,
        id: &str,
        consumer: &ContainerConsumer,
    ) -> StoreResult<()> {
        change.insert_container_consumer(id, consumer).await
    }

    async fn delete(
        change: &mut Change,
        id: &str,
        consumer: &ContainerConsumer,
    ) -> StoreResult<()> {
        change
            .delete_container_consumer(id, &consumer.name, &consumer.url)
            .await
            .map(drop)
    }
}

async fn list<U: Used>(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    query: Query,
    Path(id): Path<String>,
) -> ApiResult {
    let (owner, acl) = U::load(&app, &id).await?;
    owner.ask(&app, &caller, U::RULES[0], acl.as_ref())?;
    let page = Page::of(&query);
    let (some, total) = page.cut(U::all(&app, &id).await?);
    let items = some
        .iter()
        .map(|consumer| {
            let time = key_manager_time(U::registered(consumer).1);
            let mut item = U::show(consumer);
            for (key, value) in [
                ("created", &*time),
                ("updated", &*time),
                ("status", "ACTIVE"),
            ] {
                item[key] = value.into();
            }
            item
        })
        .collect();
    Ok(page.answer(&base, &query, "consumers", items, total))
}

async fn register<U: Used>(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    headers: HeaderMap,
    Path(id): Path<String>,
    bytes: Bytes,
) -> ApiResult {
    let (owner, acl) = U::load(&app, &id).await?;
    owner.ask(&app, &caller, U::RULES[1], acl.as_ref())?;
    let consumer = U::sent(&fields::object(&headers, &bytes)?, &caller)?;
    let mut change = app.store.change_keys().await?;
    let now = U::registered(&consumer).1;
    enforce(&mut change, U::COUNTED, &caller.project_id, now).await?;
    U::insert(&mut change, &id, &consumer).await?;
    app.store.commit(change).await?;
    caller.audit("update", U::KIND, &id);
    let body = Json(owner.describe(&app, &base).await?);
    // Where the protocol says that the consumers of an object are (nothing is served there, as in Barbican).
    let location = format!("{}/consumers/{id}/consumers", base.key_manager());
    Ok(([(header::LOCATION, location)], body).into_response())
}

async fn remove<U: Used>(
    State(app): State<Arc<App>>,
    caller: Caller,
    base: Base,
    headers: HeaderMap,
    Path(id): Path<String>,
    bytes: Bytes,
) -> ApiResult {
    let (owner, acl) = U::load(&app, &id).await?;
    owner.ask(&app, &caller, U::RULES[2], acl.as_ref())?;
    let wanted = U::sent(&fields::object(&headers, &bytes)?, &caller)?;
    let mut change = app.store.change_keys().await?;
    let known = U::all_now(&mut change, &id).await?;
    let found = known
        .iter()
        .find(|other| U::same(other, &wanted))
        .ok_or(KeyManagerError::NotFound("consumer"))?;
    if ![U::registered(found).0, owner.project_id()].contains(&caller.project_id.as_str()) {
        return Err(KeyManagerError::Forbidden(
            "Only the project that registered a consumer may remove it.".into(),
        ));
    }
    U::delete(&mut change, &id, &wanted).await?;
    app.store.commit(change).await?;
    caller.audit("update", U::KIND, &id);
    Ok(Json(owner.describe(&app, &base).await?).into_response())
}
