//! Secrets of the key manager and their consumers, and the projects' data keys.

use sqlx::FromRow;

use super::{Change, Store, StoreResult, sql};

/// A project's data key.
#[derive(Debug, Clone, FromRow)]
pub struct ProjectKey {
    /// UUID.
    pub id: String,
    /// The project.
    pub project_id: String,
    /// The key, sealed by the key-encryption key.
    pub sealed: Vec<u8>,
}

/// A secret: what is known of it, and the sealed payload.
#[derive(Debug, Clone, FromRow)]
pub struct Secret {
    /// UUID.
    pub id: String,
    /// Owner project.
    pub project_id: String,
    /// User who made it.
    pub creator_id: String,
    /// Free text.
    pub name: Option<String>,
    /// `symmetric`, `passphrase`, `private`, `public`, `certificate`, `opaque`.
    pub secret_type: String,
    /// Free text.
    pub algorithm: Option<String>,
    /// Bits.
    pub bit_length: Option<i64>,
    /// Free text.
    pub mode: Option<String>,
    /// Microseconds; hidden afterwards.
    pub expiration: Option<i64>,
    /// Content type of the payload; `None` while there is none.
    pub content_type: Option<String>,
    /// The data key that sealed the payload.
    pub key_id: Option<String>,
    /// The payload, sealed.
    pub sealed: Option<Vec<u8>>,
    /// Where the key of the payload is; `None` while there is no payload.
    pub key_slot: Option<i64>,
    /// The sealed key of a payload that is not stored yet; it gets its slot when it is.
    #[sqlx(skip)]
    pub new_key: Option<Vec<u8>>,
    /// Microseconds.
    pub created: i64,
    /// Microseconds.
    pub updated: i64,
}

/// A secret with all that opens its payload.
#[derive(Debug, FromRow)]
pub struct SealedSecret {
    /// The secret.
    #[sqlx(flatten)]
    pub secret: Secret,
    /// The payload's own key, sealed by the project's; `None` if there is no payload or its key was destroyed.
    pub wrapped: Option<Vec<u8>>,
    /// Project of the data key.
    pub key_project_id: Option<String>,
    /// The data key, sealed by the key-encryption key.
    pub key_sealed: Option<Vec<u8>>,
    /// Whether an access list was set.
    pub has_acl: bool,
}

/// Something that uses a secret and keeps it from being deleted.
#[derive(Debug, Clone, FromRow)]
pub struct Consumer {
    /// Project that registered it.
    pub project_id: String,
    /// Service name.
    pub service: String,
    /// Kind of the resource.
    pub resource_type: String,
    /// Id of the resource.
    pub resource_id: String,
    /// Microseconds.
    pub created: i64,
}

const CONSUMERS: &str =
    "SELECT project_id, service, resource_type, resource_id, created FROM secret_consumers
     WHERE secret_id = $1 ORDER BY created, service, resource_type, resource_id";

impl Store {
    /// The data key of a project.
    ///
    /// # Errors
    /// `Query`.
    pub async fn project_key(&self, project_id: &str) -> StoreResult<Option<ProjectKey>> {
        Ok(
            sql::query_as("SELECT id, project_id, sealed FROM project_keys WHERE project_id = $1")
                .bind(project_id)
                .fetch_optional(&self.read)
                .await?,
        )
    }

    /// A data key by its id.
    ///
    /// # Errors
    /// `Query`.
    pub async fn project_key_by_id(&self, id: &str) -> StoreResult<Option<ProjectKey>> {
        Ok(
            sql::query_as("SELECT id, project_id, sealed FROM project_keys WHERE id = $1")
                .bind(id)
                .fetch_optional(&self.read)
                .await?,
        )
    }

    /// One secret that has not expired at `now`.
    ///
    /// # Errors
    /// `Query`.
    pub async fn secret(&self, id: &str, now: i64) -> StoreResult<Option<Secret>> {
        Ok(sql::query_as(
            "SELECT * FROM secrets WHERE id = $1 AND (expiration IS NULL OR expiration > $2)",
        )
        .bind(id)
        .bind(now)
        .fetch_optional(&self.read)
        .await?)
    }

    /// One secret that has not expired at `now`, with what opens its payload, in one question.
    ///
    /// # Errors
    /// `Query`.
    pub async fn sealed_secret(&self, id: &str, now: i64) -> StoreResult<Option<SealedSecret>> {
        Ok(sql::query_as(
            "SELECT s.*, k.wrapped AS wrapped, p.project_id AS key_project_id, p.sealed AS key_sealed,
                    EXISTS (SELECT 1 FROM secret_acls a WHERE a.secret_id = s.id) AS has_acl
             FROM secrets s
             LEFT JOIN secret_keys k ON k.slot = s.key_slot AND NOT k.free
             LEFT JOIN project_keys p ON p.id = s.key_id
             WHERE s.id = $1 AND (s.expiration IS NULL OR s.expiration > $2)",
        )
        .bind(id)
        .bind(now)
        .fetch_optional(&self.read)
        .await?)
    }

    /// The consumers of a secret, oldest first.
    ///
    /// # Errors
    /// `Query`.
    pub async fn consumers(&self, secret_id: &str) -> StoreResult<Vec<Consumer>> {
        Ok(sql::query_as(CONSUMERS)
            .bind(secret_id)
            .fetch_all(&self.read)
            .await?)
    }
}

impl Change {
    /// The consumers of a secret, as this change sees them.
    ///
    /// # Errors
    /// `Query`.
    pub async fn consumers(&mut self, secret_id: &str) -> StoreResult<Vec<Consumer>> {
        Ok(sql::query_as(CONSUMERS)
            .bind(secret_id)
            .fetch_all(&mut *self.tx)
            .await?)
    }

    /// The data key of a project, as this change sees it.
    ///
    /// # Errors
    /// `Query`.
    pub async fn project_key(&mut self, project_id: &str) -> StoreResult<Option<ProjectKey>> {
        Ok(
            sql::query_as("SELECT id, project_id, sealed FROM project_keys WHERE project_id = $1")
                .bind(project_id)
                .fetch_optional(&mut *self.tx)
                .await?,
        )
    }

    /// Adds a project's data key. Says whether the project had none before; if it had, that one stays.
    ///
    /// # Errors
    /// `Query`.
    pub async fn insert_project_key(
        &mut self,
        key: &ProjectKey,
        created: i64,
    ) -> StoreResult<bool> {
        let done = sql::query(
            "INSERT INTO project_keys (id, project_id, sealed, created) VALUES ($1, $2, $3, $4)
             ON CONFLICT (project_id) DO NOTHING",
        )
        .bind(&key.id)
        .bind(&key.project_id)
        .bind(&key.sealed)
        .bind(created)
        .execute(&mut *self.tx)
        .await?;
        Ok(done.rows_affected() > 0)
    }

    /// Adds a secret with its new key, if it has a payload.
    ///
    /// # Errors
    /// `Duplicate`, `Query`.
    pub async fn insert_secret(&mut self, secret: &Secret) -> StoreResult<()> {
        let slot = match &secret.new_key {
            Some(wrapped) => Some(self.put_secret_key(wrapped).await?),
            None => secret.key_slot,
        };
        sql::query(
            "INSERT INTO secrets (id, project_id, creator_id, name, secret_type, algorithm, bit_length, mode, expiration,
                                  content_type, key_id, sealed, key_slot, created, updated)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)",
        )
        .bind(&secret.id)
        .bind(&secret.project_id)
        .bind(&secret.creator_id)
        .bind(&secret.name)
        .bind(&secret.secret_type)
        .bind(&secret.algorithm)
        .bind(secret.bit_length)
        .bind(&secret.mode)
        .bind(secret.expiration)
        .bind(&secret.content_type)
        .bind(&secret.key_id)
        .bind(&secret.sealed)
        .bind(slot)
        .bind(secret.created)
        .bind(secret.updated)
        .execute(&mut *self.tx)
        .await?;
        Ok(())
    }

    /// Gives a secret the payload and the new key that are in `filled`, once. Says whether it had none before;
    /// if it had, the change is to be dropped.
    ///
    /// # Errors
    /// `Query`.
    pub async fn set_payload(&mut self, filled: &Secret, now: i64) -> StoreResult<bool> {
        let slot = match &filled.new_key {
            Some(wrapped) => Some(self.put_secret_key(wrapped).await?),
            None => None,
        };
        let done = sql::query(
            "UPDATE secrets SET content_type = $2, key_id = $3, sealed = $4, key_slot = $5, updated = $6
             WHERE id = $1 AND sealed IS NULL",
        )
        .bind(&filled.id)
        .bind(&filled.content_type)
        .bind(&filled.key_id)
        .bind(&filled.sealed)
        .bind(slot)
        .bind(now)
        .execute(&mut *self.tx)
        .await?;
        Ok(done.rows_affected() > 0)
    }

    /// Deletes a secret with its access list and consumers. Says whether there was one.
    ///
    /// # Errors
    /// `Query`.
    pub async fn delete_secret(&mut self, id: &str) -> StoreResult<bool> {
        let done = sql::query("DELETE FROM secrets WHERE id = $1")
            .bind(id)
            .execute(&mut *self.tx)
            .await?;
        Ok(done.rows_affected() > 0)
    }

    /// Deletes secrets that expired before `now`. Says how many.
    ///
    /// # Errors
    /// `Query`.
    pub async fn delete_expired_secrets(&mut self, now: i64) -> StoreResult<u64> {
        let done =
            sql::query("DELETE FROM secrets WHERE expiration IS NOT NULL AND expiration <= $1")
                .bind(now)
                .execute(&mut *self.tx)
                .await?;
        Ok(done.rows_affected())
    }

    /// Registers a consumer; again is no error.
    ///
    /// # Errors
    /// `Dangling`, `Query`.
    pub async fn insert_consumer(
        &mut self,
        secret_id: &str,
        consumer: &Consumer,
    ) -> StoreResult<()> {
        sql::query(
            "INSERT INTO secret_consumers (secret_id, project_id, service, resource_type, resource_id, created)
             VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING",
        )
        .bind(secret_id)
        .bind(&consumer.project_id)
        .bind(&consumer.service)
        .bind(&consumer.resource_type)
        .bind(&consumer.resource_id)
        .bind(consumer.created)
        .execute(&mut *self.tx)
        .await?;
        Ok(())
    }

    /// Removes a consumer. Says whether there was one.
    ///
    /// # Errors
    /// `Query`.
    pub async fn delete_consumer(
        &mut self,
        secret_id: &str,
        service: &str,
        resource_type: &str,
        resource_id: &str,
    ) -> StoreResult<bool> {
        let done = sql::query(
            "DELETE FROM secret_consumers WHERE secret_id = $1 AND service = $2 AND resource_type = $3 AND resource_id = $4",
        )
        .bind(secret_id)
        .bind(service)
        .bind(resource_type)
        .bind(resource_id)
        .execute(&mut *self.tx)
        .await?;
        Ok(done.rows_affected() > 0)
    }
}
