//! The replicas that work on one PostgreSQL database, and which key-encryption keys each has. SQLite has one.

use super::{
    Change, Store, StoreResult,
    sql::{self, Tx},
};

/// A replica that was not heard of for so long (seconds) is gone. Each says every minute that it is there.
const GONE: &str = "180";

/// The replicas that are there and do not know a migration ($1).
pub(super) const OLDER: &str = "SELECT name FROM replicas
    WHERE knows < $1 AND seen > extract(epoch FROM clock_timestamp())::bigint - 180 ORDER BY name";

impl Store {
    /// The highest migration that this program knows; 0 where it has the records for itself.
    pub fn knows(&self) -> i64 {
        self.knows
    }

    /// The replicas that are there: their names, and the fingerprints of the keys that each has.
    ///
    /// # Errors
    /// `Unavailable`, `Query`.
    pub async fn replicas(&self) -> StoreResult<Vec<(String, Vec<String>)>> {
        if !self.is_shared() {
            return Ok(Vec::new());
        }
        let text = format!(
            "SELECT name, keys FROM replicas WHERE seen > extract(epoch FROM clock_timestamp())::bigint - {GONE} ORDER BY name"
        );
        let rows: Vec<(String, String)> = sql::query_as(text).fetch_all(&self.read).await?;
        Ok(rows
            .into_iter()
            .map(|(name, keys)| (name, keys.split(' ').map(str::to_owned).collect()))
            .collect())
    }
}

impl Change {
    /// Says that a replica is there, which keys it has and which migrations its program knows, and forgets those that are gone. By
    /// the clock of the server.
    ///
    /// # Errors
    /// `Unavailable`, `Query`.
    pub async fn announce_replica(
        &mut self,
        name: &str,
        keys: &[String],
        knows: i64,
    ) -> StoreResult<()> {
        if matches!(*self.tx, Tx::Sqlite(_)) {
            return Ok(());
        }
        sql::query(
            "INSERT INTO replicas (name, keys, seen, knows) VALUES ($1, $2, extract(epoch FROM clock_timestamp())::bigint, $3)
             ON CONFLICT (name) DO UPDATE SET keys = excluded.keys, seen = excluded.seen, knows = excluded.knows",
        )
        .bind(name)
        .bind(keys.join(" "))
        .bind(knows)
        .execute(&mut *self.tx)
        .await?;
        let text = format!(
            "DELETE FROM replicas WHERE seen < extract(epoch FROM clock_timestamp())::bigint - {GONE}"
        );
        sql::query(text).execute(&mut *self.tx).await?;
        Ok(())
    }

    /// Forgets a replica that ends.
    ///
    /// # Errors
    /// `Unavailable`, `Query`.
    pub async fn forget_replica(&mut self, name: &str) -> StoreResult<()> {
        if matches!(*self.tx, Tx::Sqlite(_)) {
            return Ok(());
        }
        sql::query("DELETE FROM replicas WHERE name = $1")
            .bind(name)
            .execute(&mut *self.tx)
            .await?;
        Ok(())
    }
}
