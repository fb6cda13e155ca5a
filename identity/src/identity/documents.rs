//! What the families share whose records are kept whole (`store::documents`): loading, showing, storing, and a
//! set of routes for those that have no rules of their own.

use std::sync::Arc;

use axum::{
    Router,
    body::Bytes,
    extract::{Path, State},
    http::StatusCode,
    routing::get,
};
use serde_json::Value;

use super::{
    error::{ApiResult, IdentityError},
    fields::{self, Object},
    support::{Caller, collection, linked, member, no_content},
};
use crate::{
    app::App,
    http::{Base, Query},
    ids::identity_id,
    policy::Target,
    store::{Change, Current, documents::Document},
};

/// A family: its words on the wire and in the policy.
#[derive(Clone, Copy)]
pub(super) struct Family {
    /// In the store.
    pub(super) name: &'static str,
    /// In messages: `endpoint group`.
    pub(super) kind: &'static str,
    /// Of one object in a body, and in the names of policy rules.
    pub(super) key: &'static str,
    /// Of a list in a body, and in the names of policy rules.
    pub(super) keys: &'static str,
    /// Below `/v3/`.
    pub(super) path: &'static str,
    /// Type of the target in the audit trail.
    pub(super) audit: &'static str,
    /// Attributes that a list can be filtered by.
    pub(super) filters: &'static [&'static str],
    /// Checks and completes an object that is to be stored; `true` for a new one.
    pub(super) check: fn(&mut Object, bool) -> Result<(), IdentityError>,
}

impl Family {
    /// One record.
    ///
    /// # Errors
    /// 404.
    pub(super) async fn load(&self, app: &App, id: &str) -> Result<Document, IdentityError> {
        app.store
            .document(self.name, id)
            .await?
            .ok_or_else(|| IdentityError::NotFound(self.kind, id.to_owned()))
    }

    /// The object of the API.
    pub(super) fn shown(&self, base: &Base, document: &Document) -> Value {
        linked(base, self.path, document.to_json())
    }

    /// An answer with one object.
    pub(super) fn answer(&self, base: &Base, status: StatusCode, document: &Document) -> ApiResult {
        Ok(member(status, self.key, self.shown(base, document)))
    }

    /// Stores a new record.
    ///
    /// # Errors
    /// 409, 400.
    pub(super) async fn insert(
        &self,
        app: &App,
        caller: &Caller,
        document: &Document,
    ) -> Result<(), IdentityError> {
        let mut change = app.store.change_identity().await?;
        change
            .insert_document(document)
            .await
            .map_err(IdentityError::duplicate(self.kind, &document.id))?;
        app.store.commit(change).await?;
        caller.audit("create", self.audit, &document.id);
        Ok(())
    }

    /// The record as it is at this change, to be changed or deleted by it, or to be referred to.
    ///
    /// # Errors
    /// 404.
    pub(super) async fn for_change(
        &self,
        change: &mut Change,
        id: &str,
    ) -> Result<Current<Document>, IdentityError> {
        let found = change.document(self.name, id).await?;
        found.ok_or_else(|| IdentityError::NotFound(self.kind, id.to_owned()))
    }

    /// Changes a record by `edit`.
    ///
    /// # Errors
    /// 404, 400, and those of `edit`.
    pub(super) async fn edit(
        &self,
        app: &App,
        caller: &Caller,
        id: &str,
        edit: impl FnOnce(&mut Document) -> Result<(), IdentityError>,
    ) -> Result<Document, IdentityError> {
        let mut change = app.store.change_identity().await?;
        let mut document = self.for_change(&mut change, id).await?;
        edit(&mut document)?;
        change.update_document(&document).await?;
        app.store.commit(change).await?;
        caller.audit("update", self.audit, id);
        Ok(document.into_inner())
    }

    /// Deletes a record and what is associated with it, unless `check` refuses.
    ///
    /// # Errors
    /// 404, and those of `check`.
    pub(super) async fn delete(
        &self,
        app: &App,
        caller: &Caller,
        id: &str,
        check: impl FnOnce(&Document) -> Result<(), IdentityError>,
    ) -> ApiResult {
        let mut change = app.store.change_identity().await?;
        let document = self.for_change(&mut change, id).await?;
        check(&document)?;
        change.delete_document(self.name, id).await?;
        change.dissociate_all(id).await?;
        app.store.commit(change).await?;
        caller.audit("delete", self.audit, id);
        Ok(no_content())
    }

    fn may(&self, app: &App, caller: &Caller, verb: &str) -> Result<(), IdentityError> {
        let words = if verb == "list" { self.keys } else { self.key };
        caller.may(app, &format!("identity:{verb}_{words}"), &Target::new())
    }

    /// `GET`, `POST` on the collection, `GET`, `HEAD`, `PATCH`, `DELETE` on one, for a family without owners.
    pub(super) fn routes(self) -> Router<Arc<App>> {
        let list = move |State(app): State<Arc<App>>, caller: Caller, base: Base, query: Query| async move {
            self.may(&app, &caller, "list")?;
            let found = app.store.documents(self.name, None).await?;
            let items = found.iter().map(|one| self.shown(&base, one)).collect();
            ApiResult::Ok(collection(&base, &query, self.keys, self.filters, items))
        };
        let create = move |State(app): State<Arc<App>>,
                           caller: Caller,
                           base: Base,
                           bytes: Bytes| async move {
            let mut object = fields::body(&bytes, self.key)?;
            self.may(&app, &caller, "create")?;
            object.remove("id");
            (self.check)(&mut object, true)?;
            let document = Document::new(self.name, &identity_id(), &object);
            self.insert(&app, &caller, &document).await?;
            self.answer(&base, StatusCode::CREATED, &document)
        };
        let show = move |State(app): State<Arc<App>>,
                         caller: Caller,
                         base: Base,
                         Path(id): Path<String>| async move {
            self.may(&app, &caller, "get")?;
            let document = self.load(&app, &id).await?;
            self.answer(&base, StatusCode::OK, &document)
        };
        let update = move |State(app): State<Arc<App>>,
                           caller: Caller,
                           base: Base,
                           Path(id): Path<String>,
                           bytes: Bytes| async move {
            let mut sent = fields::changes(&bytes, self.key)?;
            self.may(&app, &caller, "update")?;
            self.load(&app, &id).await?;
            if sent.remove("id").is_some_and(|other| other != id.as_str()) {
                return Err(IdentityError::BadRequest(
                    "The id cannot be changed.".into(),
                ));
            }
            (self.check)(&mut sent, false)?;
            let append = |document: &mut Document| {
                let mut object = document.object();
                object.append(&mut sent);
                document.set(&object);
                Ok(())
            };
            let document = self.edit(&app, &caller, &id, append).await?;
            self.answer(&base, StatusCode::OK, &document)
        };
        let delete = move |State(app): State<Arc<App>>, caller: Caller, Path(id): Path<String>| async move {
            self.may(&app, &caller, "delete")?;
            self.delete(&app, &caller, &id, |_| Ok(())).await
        };
        let path = format!("/{}", self.path);
        Router::new().route(&path, get(list).post(create)).route(
            &format!("{path}/{{id}}"),
            get(show).patch(update).delete(delete),
        )
    }
}

/// Requires a text attribute of a new object, and that it is a text in any.
pub(super) fn check_text(object: &Object, name: &str, required: bool) -> Result<(), IdentityError> {
    match object.get(name) {
        Some(Value::String(text)) if !text.is_empty() => Ok(()),
        None if !required => Ok(()),
        _ => Err(IdentityError::BadRequest(format!(
            "The attribute {name} must be a text that is not empty."
        ))),
    }
}

/// Requires that a text attribute is a text, which may be empty, as Keystone's of credentials and policies may.
pub(super) fn check_any_text(
    object: &Object,
    name: &str,
    required: bool,
) -> Result<(), IdentityError> {
    match object.get(name) {
        Some(Value::String(_)) => Ok(()),
        None if !required => Ok(()),
        _ => Err(IdentityError::BadRequest(format!(
            "The attribute {name} must be a text."
        ))),
    }
}

/// Requires that an optional text attribute is a text or null.
pub(super) fn check_optional_text(object: &Object, name: &str) -> Result<(), IdentityError> {
    match object.get(name) {
        None | Some(Value::Null | Value::String(_)) => Ok(()),
        Some(_) => Err(IdentityError::BadRequest(format!(
            "The attribute {name} must be a text."
        ))),
    }
}
