//! What users write on their secrets: pairs of key and value.

use std::collections::BTreeMap;

use super::{Change, Store, StoreResult, sql};

impl Store {
    /// All pairs of a secret.
    ///
    /// # Errors
    /// `Query`.
    pub async fn secret_metadata(&self, secret_id: &str) -> StoreResult<BTreeMap<String, String>> {
        let rows: Vec<(String, String)> =
            sql::query_as("SELECT key, value FROM secret_metadata WHERE secret_id = $1")
                .bind(secret_id)
                .fetch_all(&self.read)
                .await?;
        Ok(rows.into_iter().collect())
    }
}

impl Change {
    /// Replaces all pairs of a secret.
    ///
    /// # Errors
    /// `Dangling`, `Query`.
    pub async fn replace_secret_metadata(
        &mut self,
        secret_id: &str,
        pairs: &BTreeMap<String, String>,
    ) -> StoreResult<()> {
        sql::query("DELETE FROM secret_metadata WHERE secret_id = $1")
            .bind(secret_id)
            .execute(&mut *self.tx)
            .await?;
        for (key, value) in pairs {
            self.insert_secret_metadatum(secret_id, key, value).await?;
        }
        Ok(())
    }

    /// Adds a pair.
    ///
    /// # Errors
    /// `Duplicate` if the key is there, `Dangling`, `Query`.
    pub async fn insert_secret_metadatum(
        &mut self,
        secret_id: &str,
        key: &str,
        value: &str,
    ) -> StoreResult<()> {
        sql::query("INSERT INTO secret_metadata (secret_id, key, value) VALUES ($1, $2, $3)")
            .bind(secret_id)
            .bind(key)
            .bind(value)
            .execute(&mut *self.tx)
            .await?;
        Ok(())
    }

    /// Changes the value of a pair. Says whether there was one.
    ///
    /// # Errors
    /// `Query`.
    pub async fn update_secret_metadatum(
        &mut self,
        secret_id: &str,
        key: &str,
        value: &str,
    ) -> StoreResult<bool> {
        let done =
            sql::query("UPDATE secret_metadata SET value = $3 WHERE secret_id = $1 AND key = $2")
                .bind(secret_id)
                .bind(key)
                .bind(value)
                .execute(&mut *self.tx)
                .await?;
        Ok(done.rows_affected() > 0)
    }

    /// Removes a pair, if it is there.
    ///
    /// # Errors
    /// `Query`.
    pub async fn delete_secret_metadatum(&mut self, secret_id: &str, key: &str) -> StoreResult<()> {
        sql::query("DELETE FROM secret_metadata WHERE secret_id = $1 AND key = $2")
            .bind(secret_id)
            .bind(key)
            .execute(&mut *self.tx)
            .await?;
        Ok(())
    }
}
