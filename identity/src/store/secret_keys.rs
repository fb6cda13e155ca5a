//! The keys of the secrets, one each, in rows that are overwritten where they lie (see the migration that makes
//! the table, and decision record 12).

use super::{
    Change, Store, StoreResult,
    secrets::{ProjectKey, Secret},
    sql::{self, Pool},
    sqlite_whole,
};

impl Store {
    /// The sealed key in a slot; `None` if the slot is free or not there.
    ///
    /// # Errors
    /// `Query`.
    pub async fn secret_key(&self, slot: i64) -> StoreResult<Option<Vec<u8>>> {
        Ok(
            sql::query_scalar("SELECT wrapped FROM secret_keys WHERE slot = $1 AND NOT free")
                .bind(slot)
                .fetch_optional(&self.read)
                .await?,
        )
    }

    /// Some secrets whose payload has no key of its own yet.
    ///
    /// # Errors
    /// `Query`.
    pub async fn secrets_without_key(&self, limit: i64) -> StoreResult<Vec<Secret>> {
        Ok(sql::query_as(
            "SELECT * FROM secrets WHERE key_slot IS NULL AND sealed IS NOT NULL LIMIT $1",
        )
        .bind(limit)
        .fetch_all(&self.read)
        .await?)
    }

    /// Some of the projects' keys, in the order of their ids, behind `after`.
    ///
    /// # Errors
    /// `Query`.
    pub async fn project_keys_after(
        &self,
        after: &str,
        limit: i64,
    ) -> StoreResult<Vec<ProjectKey>> {
        Ok(sql::query_as(
            "SELECT id, project_id, sealed FROM project_keys WHERE id > $1 ORDER BY id LIMIT $2",
        )
        .bind(after)
        .bind(limit)
        .fetch_all(&self.read)
        .await?)
    }

    /// Writes the database anew, so that nothing is left of rows that were moved or replaced in it.
    ///
    /// # Errors
    /// `Query`.
    pub async fn rewrite(&self) -> StoreResult<()> {
        {
            let (_alone, pool) = self.writer.alone().await;
            match pool {
                Pool::Sqlite(pool) => sqlite_whole::rewrite(&pool.connect_options()).await?,
                Pool::Postgres(_) => {
                    for statement in [
                        "VACUUM (FULL) meta",
                        "VACUUM (FULL) token_keys",
                        "VACUUM (FULL) project_keys",
                        "VACUUM (FULL) secret_keys",
                        "VACUUM (FULL) secrets",
                    ] {
                        sql::query(statement).execute(pool).await?;
                    }
                }
            }
        }
        self.mark_log_dirty();
        self.truncate_log().await
    }
}

impl Change {
    /// Puts a sealed key into a free slot, or into a new one at the end. The slot.
    ///
    /// # Errors
    /// `Query`.
    pub async fn put_secret_key(&mut self, wrapped: &[u8]) -> StoreResult<i64> {
        let reused: Option<i64> = sql::query_scalar(
            "UPDATE secret_keys SET wrapped = $1, free = FALSE
             WHERE slot = (SELECT slot FROM secret_keys WHERE free LIMIT 1) AND length(wrapped) = length($1)
             RETURNING slot",
        )
        .bind(wrapped)
        .fetch_optional(&mut *self.tx)
        .await?;
        if let Some(slot) = reused {
            return Ok(slot);
        }
        Ok(sql::query_scalar(
            "INSERT INTO secret_keys (wrapped, free) VALUES ($1, FALSE) RETURNING slot",
        )
        .bind(wrapped)
        .fetch_one(&mut *self.tx)
        .await?)
    }

    /// Replaces the sealed form of a project's key.
    ///
    /// # Errors
    /// `Query`.
    pub async fn reseal_project_key(&mut self, id: &str, sealed: &[u8]) -> StoreResult<()> {
        sql::query("UPDATE project_keys SET sealed = $2 WHERE id = $1")
            .bind(id)
            .bind(sealed)
            .execute(&mut *self.tx)
            .await?;
        Ok(())
    }

    /// Replaces the sealed form of a token key.
    ///
    /// # Errors
    /// `Query`.
    pub async fn reseal_token_key(&mut self, id: i64, sealed: &[u8]) -> StoreResult<()> {
        sql::query("UPDATE token_keys SET sealed = $2 WHERE id = $1")
            .bind(id)
            .bind(sealed)
            .execute(&mut *self.tx)
            .await?;
        Ok(())
    }

    /// Gives a secret that has a payload a key of its own. Says whether it had none before.
    ///
    /// # Errors
    /// `Query`.
    pub async fn reseal_secret(
        &mut self,
        id: &str,
        sealed: &[u8],
        wrapped: &[u8],
    ) -> StoreResult<bool> {
        let slot = self.put_secret_key(wrapped).await?;
        let done = sql::query(
            "UPDATE secrets SET sealed = $2, key_slot = $3 WHERE id = $1 AND key_slot IS NULL AND sealed IS NOT NULL",
        )
        .bind(id)
        .bind(sealed)
        .bind(slot)
        .execute(&mut *self.tx)
        .await?;
        Ok(done.rows_affected() > 0)
    }
}
