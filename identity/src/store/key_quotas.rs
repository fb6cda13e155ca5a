//! Limits of the key manager a project, and what counts against them.

use sqlx::FromRow;

use super::{Change, Store, StoreResult, sql};

/// A project's own limits; `None` is the service's default, -1 no limit.
#[derive(Debug, Clone, Default, PartialEq, Eq, FromRow)]
pub struct KeyQuotas {
    /// The project.
    pub project_id: String,
    /// Secrets.
    pub secrets: Option<i64>,
    /// Orders.
    pub orders: Option<i64>,
    /// Containers.
    pub containers: Option<i64>,
    /// Consumers of secrets, and consumers of containers.
    pub consumers: Option<i64>,
    /// Certificate authorities, which are no more.
    pub cas: Option<i64>,
}

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counted {
    /// Secrets that have not expired.
    Secrets,
    /// Orders.
    Orders,
    /// Containers.
    Containers,
    /// Consumers of secrets that the project registered.
    SecretConsumers,
    /// Consumers of containers that the project registered.
    ContainerConsumers,
}

const OF_PROJECT: &str = "SELECT * FROM key_manager_quotas WHERE project_id = $1";

impl Store {
    /// The limits that were set for a project.
    ///
    /// # Errors
    /// `Query`.
    pub async fn key_quotas(&self, project_id: &str) -> StoreResult<Option<KeyQuotas>> {
        Ok(sql::query_as(OF_PROJECT)
            .bind(project_id)
            .fetch_optional(&self.read)
            .await?)
    }

    /// One page of all limits that were set, oldest first, and how many there are in all.
    ///
    /// # Errors
    /// `Query`.
    pub async fn all_key_quotas(
        &self,
        limit: i64,
        offset: i64,
    ) -> StoreResult<(Vec<KeyQuotas>, i64)> {
        let total = sql::query_scalar("SELECT COUNT(*) FROM key_manager_quotas")
            .fetch_one(&self.read)
            .await?;
        let page = sql::query_as(
            "SELECT * FROM key_manager_quotas ORDER BY created, project_id LIMIT $1 OFFSET $2",
        )
        .bind(limit)
        .bind(offset)
        .fetch_all(&self.read)
        .await?;
        Ok((page, total))
    }
}

impl Change {
    /// The limits that were set for a project, in the change that is to add a record.
    ///
    /// # Errors
    /// `Query`.
    pub async fn key_quotas(&mut self, project_id: &str) -> StoreResult<Option<KeyQuotas>> {
        Ok(sql::query_as(OF_PROJECT)
            .bind(project_id)
            .fetch_optional(&mut *self.tx)
            .await?)
    }

    /// How many records of a project count against its limit, in the change that is to add another.
    ///
    /// # Errors
    /// `Query`.
    pub async fn count_keys(
        &mut self,
        what: Counted,
        project_id: &str,
        now: i64,
    ) -> StoreResult<i64> {
        let statement = match what {
            Counted::Secrets => {
                "SELECT COUNT(*) FROM secrets WHERE project_id = $1 AND (expiration IS NULL OR expiration > $2)"
            }
            Counted::Orders => {
                "SELECT COUNT(*) FROM orders WHERE project_id = $1 AND $2 IS NOT NULL"
            }
            Counted::Containers => {
                "SELECT COUNT(*) FROM containers WHERE project_id = $1 AND $2 IS NOT NULL"
            }
            Counted::SecretConsumers => {
                "SELECT COUNT(*) FROM secret_consumers WHERE project_id = $1 AND $2 IS NOT NULL"
            }
            Counted::ContainerConsumers => {
                "SELECT COUNT(*) FROM container_consumers WHERE project_id = $1 AND $2 IS NOT NULL"
            }
        };
        Ok(sql::query_scalar(statement)
            .bind(project_id)
            .bind(now)
            .fetch_one(&mut *self.tx)
            .await?)
    }

    /// Sets the limits of a project.
    ///
    /// # Errors
    /// `Query`.
    pub async fn put_key_quotas(&mut self, quotas: &KeyQuotas, now: i64) -> StoreResult<()> {
        sql::query(
            "INSERT INTO key_manager_quotas (project_id, secrets, orders, containers, consumers, cas, created)
             VALUES ($1, $2, $3, $4, $5, $6, $7)
             ON CONFLICT (project_id) DO UPDATE SET secrets = excluded.secrets, orders = excluded.orders,
                 containers = excluded.containers, consumers = excluded.consumers, cas = excluded.cas",
        )
        .bind(&quotas.project_id)
        .bind(quotas.secrets)
        .bind(quotas.orders)
        .bind(quotas.containers)
        .bind(quotas.consumers)
        .bind(quotas.cas)
        .bind(now)
        .execute(&mut *self.tx)
        .await?;
        Ok(())
    }

    /// Removes the limits of a project. Says whether there were any.
    ///
    /// # Errors
    /// `Query`.
    pub async fn delete_key_quotas(&mut self, project_id: &str) -> StoreResult<bool> {
        let done = sql::query("DELETE FROM key_manager_quotas WHERE project_id = $1")
            .bind(project_id)
            .execute(&mut *self.tx)
            .await?;
        Ok(done.rows_affected() > 0)
    }
}
