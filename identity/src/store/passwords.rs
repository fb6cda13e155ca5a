//! What is kept about passwords beside their present hash: history and lock-out.

use super::{Change, Store, StoreResult, sql};

impl Store {
    /// The newest `count` hashes of a user's passwords, with when they were set (microseconds), newest first.
    ///
    /// # Errors
    /// `Query`.
    pub async fn password_history(
        &self,
        user_id: &str,
        count: u32,
    ) -> StoreResult<Vec<(i64, String)>> {
        Ok(sql::query_as(
            "SELECT created, hash FROM password_history WHERE user_id = $1 ORDER BY created DESC LIMIT $2",
        )
        .bind(user_id)
        .bind(i64::from(count))
        .fetch_all(&self.read)
        .await?)
    }

    /// Until when a user may not log in (microseconds), if it was locked out.
    ///
    /// # Errors
    /// `Query`.
    pub async fn locked_until(&self, user_id: &str) -> StoreResult<Option<i64>> {
        Ok(
            sql::query_scalar("SELECT until FROM lockouts WHERE user_id = $1")
                .bind(user_id)
                .fetch_optional(&self.read)
                .await?,
        )
    }
}

impl Change {
    /// Remembers a hash that was set at `created`, and forgets all but the newest `keep`.
    ///
    /// # Errors
    /// `Dangling`, `Query`.
    pub async fn remember_password(
        &mut self,
        user_id: &str,
        created: i64,
        hash: &str,
        keep: u32,
    ) -> StoreResult<()> {
        sql::query("INSERT INTO password_history (user_id, created, hash) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING")
            .bind(user_id)
            .bind(created)
            .bind(hash)
            .execute(&mut *self.tx)
            .await?;
        sql::query(
            "DELETE FROM password_history WHERE user_id = $1 AND created NOT IN
             (SELECT created FROM password_history WHERE user_id = $1 ORDER BY created DESC LIMIT $2)",
        )
        .bind(user_id)
        .bind(i64::from(keep))
        .execute(&mut *self.tx)
        .await?;
        Ok(())
    }

    /// Locks a user out until then.
    ///
    /// # Errors
    /// `Dangling` if the user is gone, `Query`.
    pub async fn lock_out(&mut self, user_id: &str, until: i64) -> StoreResult<()> {
        sql::query(
            "INSERT INTO lockouts (user_id, until) VALUES ($1, $2) ON CONFLICT (user_id) DO UPDATE SET until = $2",
        )
        .bind(user_id)
        .bind(until)
        .execute(&mut *self.tx)
        .await?;
        Ok(())
    }

    /// Ends a user's lock-out.
    ///
    /// # Errors
    /// `Query`.
    pub async fn end_lock_out(&mut self, user_id: &str) -> StoreResult<()> {
        sql::query("DELETE FROM lockouts WHERE user_id = $1")
            .bind(user_id)
            .execute(&mut *self.tx)
            .await?;
        Ok(())
    }

    /// Forgets lock-outs that ended before `now`.
    ///
    /// # Errors
    /// `Query`.
    pub async fn prune_lock_outs(&mut self, now: i64) -> StoreResult<()> {
        sql::query("DELETE FROM lockouts WHERE until < $1")
            .bind(now)
            .execute(&mut *self.tx)
            .await?;
        Ok(())
    }
}
