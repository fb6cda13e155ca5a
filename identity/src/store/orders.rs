//! Orders of the key manager.

use sqlx::FromRow;

use super::{Change, Store, StoreResult, sql};

/// An order for a key or a pair of keys.
#[derive(Debug, Clone, FromRow)]
pub struct Order {
    /// UUID.
    pub id: String,
    /// Owner project.
    pub project_id: String,
    /// User who made it.
    pub creator_id: String,
    /// `key` or `asymmetric`.
    #[sqlx(rename = "type")]
    pub kind: String,
    /// JSON object as ordered.
    pub meta: String,
    /// `ACTIVE` or `ERROR`.
    pub status: String,
    /// The secret that was made.
    pub secret_id: Option<String>,
    /// The container of the pair that was made.
    pub container_id: Option<String>,
    /// HTTP status of the failure.
    pub error_status: Option<String>,
    /// Why it failed.
    pub error_reason: Option<String>,
    /// Microseconds.
    pub created: i64,
    /// Microseconds.
    pub updated: i64,
}

impl Store {
    /// One order of a project.
    ///
    /// # Errors
    /// `Query`.
    pub async fn order(&self, id: &str, project_id: &str) -> StoreResult<Option<Order>> {
        Ok(
            sql::query_as("SELECT * FROM orders WHERE id = $1 AND project_id = $2")
                .bind(id)
                .bind(project_id)
                .fetch_optional(&self.read)
                .await?,
        )
    }

    /// One page of a project's orders, oldest first, and how many there are in all. `meta` is text that must
    /// occur in what was ordered.
    ///
    /// # Errors
    /// `Query`.
    pub async fn orders(
        &self,
        project_id: &str,
        meta: Option<&str>,
        limit: i64,
        offset: i64,
    ) -> StoreResult<(Vec<Order>, i64)> {
        // Contained as it stands: neither % nor _ means anything.
        let pattern = meta.map(|text| {
            let text = text
                .replace('\\', "\\\\")
                .replace('%', "\\%")
                .replace('_', "\\_");
            format!("%{text}%")
        });
        let total: i64 = sql::query_scalar(
            "SELECT COUNT(*) FROM orders WHERE project_id = $1 AND ($2 IS NULL OR meta LIKE $2 ESCAPE '\\')",
        )
        .bind(project_id)
        .bind(&pattern)
        .fetch_one(&self.read)
        .await?;
        let page = sql::query_as(
            "SELECT * FROM orders WHERE project_id = $1 AND ($2 IS NULL OR meta LIKE $2 ESCAPE '\\')
             ORDER BY created, id LIMIT $3 OFFSET $4",
        )
        .bind(project_id)
        .bind(&pattern)
        .bind(limit)
        .bind(offset)
        .fetch_all(&self.read)
        .await?;
        Ok((page, total))
    }
}

impl Change {
    /// Adds an order.
    ///
    /// # Errors
    /// `Query`.
    pub async fn insert_order(&mut self, order: &Order) -> StoreResult<()> {
        sql::query(
            "INSERT INTO orders (id, project_id, creator_id, type, meta, status, secret_id, container_id, error_status,
                                 error_reason, created, updated)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
        )
        .bind(&order.id)
        .bind(&order.project_id)
        .bind(&order.creator_id)
        .bind(&order.kind)
        .bind(&order.meta)
        .bind(&order.status)
        .bind(&order.secret_id)
        .bind(&order.container_id)
        .bind(&order.error_status)
        .bind(&order.error_reason)
        .bind(order.created)
        .bind(order.updated)
        .execute(&mut *self.tx)
        .await?;
        Ok(())
    }

    /// Deletes an order; the secret stays.
    ///
    /// # Errors
    /// `Query`.
    pub async fn delete_order(&mut self, id: &str) -> StoreResult<()> {
        sql::query("DELETE FROM orders WHERE id = $1")
            .bind(id)
            .execute(&mut *self.tx)
            .await?;
        Ok(())
    }
}
