//! Single named values.

use super::{Change, Store, StoreResult, sql};

impl Store {
    /// A value by name.
    ///
    /// # Errors
    /// `Query`.
    pub async fn meta(&self, name: &str) -> StoreResult<Option<Vec<u8>>> {
        Ok(sql::query_scalar("SELECT value FROM meta WHERE name = $1")
            .bind(name)
            .fetch_optional(&self.read)
            .await?)
    }
}

impl Change {
    /// A value by name, as this change sees it.
    ///
    /// # Errors
    /// `Query`.
    pub async fn meta(&mut self, name: &str) -> StoreResult<Option<Vec<u8>>> {
        Ok(sql::query_scalar("SELECT value FROM meta WHERE name = $1")
            .bind(name)
            .fetch_optional(&mut *self.tx)
            .await?)
    }

    /// Sets a value that was not set before; a second writer is told so.
    ///
    /// # Errors
    /// `Duplicate`, `Query`.
    pub async fn insert_meta(&mut self, name: &str, value: &[u8]) -> StoreResult<()> {
        sql::query("INSERT INTO meta (name, value) VALUES ($1, $2)")
            .bind(name)
            .bind(value)
            .execute(&mut *self.tx)
            .await?;
        Ok(())
    }

    /// Sets a value, whether it was set before or not.
    ///
    /// # Errors
    /// `Query`.
    pub async fn set_meta(&mut self, name: &str, value: &[u8]) -> StoreResult<()> {
        sql::query(
            "INSERT INTO meta (name, value) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
        )
        .bind(name)
        .bind(value)
        .execute(&mut *self.tx)
        .await?;
        Ok(())
    }

    /// Forgets a value.
    ///
    /// # Errors
    /// `Query`.
    pub async fn delete_meta(&mut self, name: &str) -> StoreResult<()> {
        sql::query("DELETE FROM meta WHERE name = $1")
            .bind(name)
            .execute(&mut *self.tx)
            .await?;
        Ok(())
    }
}
