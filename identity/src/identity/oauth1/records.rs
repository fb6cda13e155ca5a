//! Consumers, request tokens and access tokens as records: each has a secret, sealed, and ends with its user, project or consumer.

use serde_json::Value;

use crate::{
    app::App,
    crypto::SealError,
    identity::{error::IdentityError, fields::Object},
    ids::identity_id,
    store::{Change, Current, StoreResult, documents::Document},
    time::now_us,
};

/// One of the three.
pub(super) struct Kind {
    /// In the store.
    pub(super) name: &'static str,
    /// In messages.
    pub(super) word: &'static str,
    /// Type of the target in the audit trail.
    pub(super) audit: &'static str,
}

pub(super) const CONSUMER: Kind = Kind {
    name: "oauth_consumer",
    word: "consumer",
    audit: "data/security/oauth1/consumer",
};
pub(super) const REQUEST_TOKEN: Kind = Kind {
    name: "oauth_request_token",
    word: "request token",
    audit: "data/security/oauth1/request_token",
};
pub(super) const ACCESS_TOKEN: Kind = Kind {
    name: crate::token::ACCESS_TOKEN_FAMILY,
    word: "access token",
    audit: "data/security/oauth1/access_token",
};

impl Kind {
    /// A new record with a new secret; the secret.
    ///
    /// # Errors
    /// If it cannot be sealed.
    pub(super) fn new_record(
        &self,
        app: &App,
        body: &Object,
    ) -> Result<(Document, String), SealError> {
        let secret = identity_id();
        let mut record = Document::new(self.name, &identity_id(), body);
        record.sealed = Some(
            app.credential_key()
                .seal(&[self.name, &record.id], secret.as_bytes())?,
        );
        Ok((record, secret))
    }

    /// The secret of a record.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub(super) fn secret(&self, app: &App, record: &Document) -> Result<String, SealError> {
        let sealed = record.sealed.as_deref().unwrap_or_default();
        let opened = app
            .credential_key()
            .open(&[self.name, &record.id], sealed)?;
        String::from_utf8(opened.to_vec()).map_err(|_| SealError::Format)
    }

    pub(super) async fn find(&self, app: &App, id: &str) -> StoreResult<Option<Document>> {
        app.store.document(self.name, id).await
    }

    /// # Errors
    /// 404.
    pub(super) async fn load(&self, app: &App, id: &str) -> Result<Document, IdentityError> {
        self.find(app, id).await?.ok_or_else(|| self.missing(id))
    }

    /// The record as it is at this change, to be changed by it or referred to.
    ///
    /// # Errors
    /// 404.
    pub(super) async fn for_change(
        &self,
        change: &mut Change,
        id: &str,
    ) -> Result<Current<Document>, IdentityError> {
        let found = change.document(self.name, id).await?;
        found.ok_or_else(|| self.missing(id))
    }

    pub(super) fn missing(&self, id: &str) -> IdentityError {
        IdentityError::NotFound(self.word, id.chars().take(64).collect())
    }
}

/// When a token ends, in microseconds.
pub(super) fn expires_at(record: &Document) -> Option<i64> {
    record.object().get("expires_at").and_then(Value::as_i64)
}

/// The ids of the roles that a token was authorized for.
pub(super) fn role_ids(record: &Document) -> Vec<String> {
    record
        .object()
        .get("role_ids")
        .and_then(|list| serde_json::from_value(list.clone()).ok())
        .unwrap_or_default()
}

/// Deletes the tokens that a consumer was given, or was to be given.
pub(super) async fn delete_tokens_of(change: &mut Change, consumer_id: &str) -> StoreResult<()> {
    for kind in [&REQUEST_TOKEN, &ACCESS_TOKEN] {
        for record in change.documents(kind.name).await? {
            if record.text("consumer_id").as_deref() == Some(consumer_id) {
                change.delete_document(kind.name, &record.id).await?;
            }
        }
    }
    Ok(())
}

/// Forgets tokens whose time is over.
///
/// # Errors
/// From the store.
pub(crate) async fn prune(app: &App) -> StoreResult<()> {
    let mut over = Vec::new();
    for kind in [&REQUEST_TOKEN, &ACCESS_TOKEN] {
        for record in app.store.documents(kind.name, None).await? {
            if expires_at(&record).is_some_and(|at| at <= now_us()) {
                over.push((kind.name, record.id));
            }
        }
    }
    if over.is_empty() {
        return Ok(());
    }
    let mut change = app.store.change_identity().await?;
    for (family, id) in over {
        change.delete_document(family, &id).await?;
    }
    app.store.commit(change).await
}
