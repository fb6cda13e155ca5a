//! Chosen secret stores and transport keys.

use sqlx::FromRow;

use super::{Change, Store, StoreResult, sql};

/// A key for wrapping secrets on their way, kept for clients that register one.
#[derive(Debug, Clone, FromRow)]
pub struct TransportKey {
    /// UUID.
    pub id: String,
    /// The plug-in that it belongs to.
    pub plugin_name: String,
    /// The public key.
    pub transport_key: String,
    /// Microseconds.
    pub created: i64,
}

impl Store {
    /// The secret store that a project chose.
    ///
    /// # Errors
    /// `Query`.
    pub async fn preferred_secret_store(&self, project_id: &str) -> StoreResult<Option<String>> {
        Ok(
            sql::query_scalar("SELECT store_id FROM preferred_secret_stores WHERE project_id = $1")
                .bind(project_id)
                .fetch_optional(&self.read)
                .await?,
        )
    }

    /// One transport key.
    ///
    /// # Errors
    /// `Query`.
    pub async fn transport_key(&self, id: &str) -> StoreResult<Option<TransportKey>> {
        Ok(sql::query_as("SELECT * FROM transport_keys WHERE id = $1")
            .bind(id)
            .fetch_optional(&self.read)
            .await?)
    }

    /// One page of the transport keys' ids, oldest first, and how many there are in all.
    ///
    /// # Errors
    /// `Query`.
    pub async fn transport_keys(
        &self,
        plugin_name: Option<&str>,
        limit: i64,
        offset: i64,
    ) -> StoreResult<(Vec<String>, i64)> {
        let total = sql::query_scalar(
            "SELECT COUNT(*) FROM transport_keys WHERE $1 IS NULL OR plugin_name = $1",
        )
        .bind(plugin_name)
        .fetch_one(&self.read)
        .await?;
        let page = sql::query_scalar(
            "SELECT id FROM transport_keys WHERE $1 IS NULL OR plugin_name = $1
             ORDER BY created, id LIMIT $2 OFFSET $3",
        )
        .bind(plugin_name)
        .bind(limit)
        .bind(offset)
        .fetch_all(&self.read)
        .await?;
        Ok((page, total))
    }
}

impl Change {
    /// Keeps the secret store that a project chose.
    ///
    /// # Errors
    /// `Query`.
    pub async fn prefer_secret_store(
        &mut self,
        project_id: &str,
        store_id: &str,
    ) -> StoreResult<()> {
        sql::query(
            "INSERT INTO preferred_secret_stores (project_id, store_id) VALUES ($1, $2)
             ON CONFLICT (project_id) DO UPDATE SET store_id = excluded.store_id",
        )
        .bind(project_id)
        .bind(store_id)
        .execute(&mut *self.tx)
        .await?;
        Ok(())
    }

    /// Forgets a project's choice. Says whether there was one.
    ///
    /// # Errors
    /// `Query`.
    pub async fn forget_secret_store(&mut self, project_id: &str) -> StoreResult<bool> {
        let done = sql::query("DELETE FROM preferred_secret_stores WHERE project_id = $1")
            .bind(project_id)
            .execute(&mut *self.tx)
            .await?;
        Ok(done.rows_affected() > 0)
    }

    /// Adds a transport key.
    ///
    /// # Errors
    /// `Query`.
    pub async fn insert_transport_key(&mut self, key: &TransportKey) -> StoreResult<()> {
        sql::query(
            "INSERT INTO transport_keys (id, plugin_name, transport_key, created) VALUES ($1, $2, $3, $4)",
        )
        .bind(&key.id)
        .bind(&key.plugin_name)
        .bind(&key.transport_key)
        .bind(key.created)
        .execute(&mut *self.tx)
        .await?;
        Ok(())
    }

    /// Deletes a transport key. Says whether there was one.
    ///
    /// # Errors
    /// `Query`.
    pub async fn delete_transport_key(&mut self, id: &str) -> StoreResult<bool> {
        let done = sql::query("DELETE FROM transport_keys WHERE id = $1")
            .bind(id)
            .execute(&mut *self.tx)
            .await?;
        Ok(done.rows_affected() > 0)
    }
}
