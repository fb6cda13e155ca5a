//! Keys that seal tokens, and tokens revoked before their time.

use sqlx::FromRow;

use super::{Change, Store, StoreResult, sql};

/// A sealed token key.
#[derive(Debug, Clone, FromRow)]
pub struct TokenKey {
    /// Number in the token; the highest one seals.
    pub id: i64,
    /// The key, sealed by the key-encryption key.
    pub sealed: Vec<u8>,
    /// When it was made (microseconds).
    pub created: i64,
}

impl Store {
    /// All token keys, newest first.
    ///
    /// # Errors
    /// `Query`.
    pub async fn token_keys(&self) -> StoreResult<Vec<TokenKey>> {
        Ok(
            sql::query_as("SELECT id, sealed, created FROM token_keys ORDER BY id DESC")
                .fetch_all(&self.read)
                .await?,
        )
    }

    /// Whether the token with this audit id was revoked.
    ///
    /// # Errors
    /// `Query`.
    pub async fn is_revoked(&self, audit_id: &str) -> StoreResult<bool> {
        let found: Option<String> =
            sql::query_scalar("SELECT audit_id FROM revoked_tokens WHERE audit_id = $1")
                .bind(audit_id)
                .fetch_optional(&self.read)
                .await?;
        Ok(found.is_some())
    }
}

impl Change {
    /// Adds a token key.
    ///
    /// # Errors
    /// `Duplicate`, `Query`.
    pub async fn insert_token_key(&mut self, key: &TokenKey) -> StoreResult<()> {
        sql::query("INSERT INTO token_keys (id, sealed, created) VALUES ($1, $2, $3)")
            .bind(key.id)
            .bind(&key.sealed)
            .bind(key.created)
            .execute(&mut *self.tx)
            .await?;
        Ok(())
    }

    /// The numbers of all token keys.
    ///
    /// # Errors
    /// `Query`.
    pub async fn token_key_ids(&mut self) -> StoreResult<Vec<i64>> {
        Ok(
            sql::query_scalar("SELECT id FROM token_keys ORDER BY id DESC")
                .fetch_all(&mut *self.tx)
                .await?,
        )
    }

    /// Deletes a token key; what it sealed is worth nothing afterwards.
    ///
    /// # Errors
    /// `Query`.
    pub async fn delete_token_key(&mut self, id: i64) -> StoreResult<()> {
        sql::query("DELETE FROM token_keys WHERE id = $1")
            .bind(id)
            .execute(&mut *self.tx)
            .await?;
        Ok(())
    }

    /// Revokes a token until it would have expired.
    ///
    /// # Errors
    /// `Query`.
    pub async fn insert_revoked(&mut self, audit_id: &str, expires_at: i64) -> StoreResult<()> {
        sql::query("INSERT INTO revoked_tokens (audit_id, expires_at) VALUES ($1, $2) ON CONFLICT DO NOTHING")
            .bind(audit_id)
            .bind(expires_at)
            .execute(&mut *self.tx)
            .await?;
        Ok(())
    }

    /// Forgets revocations of tokens that expired before `before`. Says how many.
    ///
    /// # Errors
    /// `Query`.
    pub async fn prune_revoked(&mut self, before: i64) -> StoreResult<u64> {
        let done = sql::query("DELETE FROM revoked_tokens WHERE expires_at < $1")
            .bind(before)
            .execute(&mut *self.tx)
            .await?;
        Ok(done.rows_affected())
    }
}
