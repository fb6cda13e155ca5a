//! What is kept about passwords beside their present hash: history and lock-out.

use super::{
    Change, Store, StoreResult,
    sql::{self, Tx},
};

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

    /// Until when a user may not log in, and how often it failed in a row by this proof, the last time after `since`: as counted in
    /// shared records. One row also of a user that is not there.
    ///
    /// # Errors
    /// `Unavailable`, `Query`.
    pub async fn shared_standing(
        &self,
        user_id: &str,
        proof: &str,
        since: i64,
    ) -> StoreResult<(Option<i64>, u32)> {
        let (until, failures): (Option<i64>, Option<i64>) = sql::query_as(
            "SELECT (SELECT until FROM lockouts WHERE user_id = $1),
                    (SELECT failures FROM failed_logins WHERE user_id = $1 AND proof = $2 AND last > $3)",
        )
        .bind(user_id)
        .bind(proof)
        .bind(since)
        .fetch_one(&self.read)
        .await?;
        Ok((until, number(failures.unwrap_or_default())))
    }
}

fn number(count: i64) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

impl Change {
    /// Counts a failed login in shared records; the new count. Failures before `since` are over. In microseconds.
    ///
    /// # Errors
    /// `Dangling` if the user is gone, `Query`.
    pub async fn count_failure(
        &mut self,
        user_id: &str,
        proof: &str,
        now: i64,
        since: i64,
    ) -> StoreResult<u32> {
        let failures = sql::query_scalar(
            "INSERT INTO failed_logins (user_id, proof, failures, last) VALUES ($1, $2, 1, $3)
             ON CONFLICT (user_id, proof) DO UPDATE
             SET failures = CASE WHEN failed_logins.last > $4 THEN failed_logins.failures + 1 ELSE 1 END,
                 last = greatest(failed_logins.last, excluded.last)
             RETURNING failures",
        )
        .bind(user_id)
        .bind(proof)
        .bind(now)
        .bind(since)
        .fetch_one(&mut *self.tx)
        .await?;
        Ok(number(failures))
    }

    /// Forgets the failures of a user that shared records count: by one proof, or by all.
    ///
    /// # Errors
    /// `Query`.
    pub async fn forget_failures(&mut self, user_id: &str, proof: Option<&str>) -> StoreResult<()> {
        if matches!(*self.tx, Tx::Sqlite(_)) {
            return Ok(());
        }
        sql::query("DELETE FROM failed_logins WHERE user_id = $1 AND proof = coalesce($2, proof)")
            .bind(user_id)
            .bind(proof)
            .execute(&mut *self.tx)
            .await?;
        Ok(())
    }

    /// Forgets the failures that shared records count and that ended before `since`.
    ///
    /// # Errors
    /// `Query`.
    pub async fn prune_failures(&mut self, since: i64) -> StoreResult<()> {
        if matches!(*self.tx, Tx::Sqlite(_)) {
            return Ok(());
        }
        sql::query("DELETE FROM failed_logins WHERE last <= $1")
            .bind(since)
            .execute(&mut *self.tx)
            .await?;
        Ok(())
    }

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
