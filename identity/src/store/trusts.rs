//! Trusts and their roles.

use sqlx::FromRow;

use super::{Change, Store, StoreResult, roles::Role, sql};

/// A trust.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct Trust {
    /// 32 hex digits.
    pub id: String,
    /// Whose roles are passed on.
    pub trustor_id: String,
    /// Who may use it.
    pub trustee_id: String,
    /// Where.
    pub project_id: Option<String>,
    /// Whether the trustee appears as the trustor.
    pub impersonation: bool,
    /// Microseconds; `None` never.
    pub expires_at: Option<i64>,
    /// Logins that are left; `None` any number.
    pub remaining_uses: Option<i64>,
    /// The trust that this one was made with.
    pub redelegated_trust_id: Option<String>,
    /// How often it may be passed on.
    pub redelegation_count: i64,
    /// JSON object of attributes that the API does not define.
    pub extra: String,
}

impl Store {
    /// One trust, whether it can still be used or not.
    ///
    /// # Errors
    /// `Query`.
    pub async fn trust(&self, id: &str) -> StoreResult<Option<Trust>> {
        Ok(sql::query_as("SELECT * FROM trusts WHERE id = $1")
            .bind(id)
            .fetch_optional(&self.read)
            .await?)
    }

    /// Trusts, optionally of one trustor or trustee, by id.
    ///
    /// # Errors
    /// `Query`.
    pub async fn trusts(
        &self,
        trustor_id: Option<&str>,
        trustee_id: Option<&str>,
    ) -> StoreResult<Vec<Trust>> {
        Ok(sql::query_as(
            "SELECT * FROM trusts WHERE ($1 IS NULL OR trustor_id = $1) AND ($2 IS NULL OR trustee_id = $2) ORDER BY id",
        )
        .bind(trustor_id)
        .bind(trustee_id)
        .fetch_all(&self.read)
        .await?)
    }

    /// The ids of the roles that a trust was made for, of deleted ones too.
    ///
    /// # Errors
    /// `Query`.
    pub async fn trust_role_ids(&self, id: &str) -> StoreResult<Vec<String>> {
        Ok(sql::query_scalar(
            "SELECT role_id FROM trust_roles WHERE trust_id = $1 ORDER BY role_id",
        )
        .bind(id)
        .fetch_all(&self.read)
        .await?)
    }

    /// The roles that a trust was made for, by name.
    ///
    /// # Errors
    /// `Query`.
    pub async fn trust_roles(&self, id: &str) -> StoreResult<Vec<Role>> {
        Ok(sql::query_as(
            "SELECT r.* FROM roles r JOIN trust_roles t ON t.role_id = r.id WHERE t.trust_id = $1 ORDER BY r.name",
        )
        .bind(id)
        .fetch_all(&self.read)
        .await?)
    }
}

impl Change {
    /// Adds a trust with its roles.
    ///
    /// # Errors
    /// `Duplicate`, `Dangling`, `Query`.
    pub async fn insert_trust(&mut self, trust: &Trust, roles: &[String]) -> StoreResult<()> {
        sql::query(
            "INSERT INTO trusts (id, trustor_id, trustee_id, project_id, impersonation, expires_at, remaining_uses,
             redelegated_trust_id, redelegation_count, extra) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
        )
        .bind(&trust.id)
        .bind(&trust.trustor_id)
        .bind(&trust.trustee_id)
        .bind(&trust.project_id)
        .bind(trust.impersonation)
        .bind(trust.expires_at)
        .bind(trust.remaining_uses)
        .bind(&trust.redelegated_trust_id)
        .bind(trust.redelegation_count)
        .bind(&trust.extra)
        .execute(&mut *self.tx)
        .await?;
        for role in roles {
            sql::query("INSERT INTO trust_roles (trust_id, role_id) VALUES ($1, $2) ON CONFLICT DO NOTHING")
                .bind(&trust.id)
                .bind(role)
                .execute(&mut *self.tx)
                .await?;
        }
        Ok(())
    }

    /// Deletes a trust and all that were made with it; their tokens die with them.
    ///
    /// # Errors
    /// `Query`.
    pub async fn delete_trust(&mut self, id: &str) -> StoreResult<()> {
        sql::query("DELETE FROM trusts WHERE id = $1")
            .bind(id)
            .execute(&mut *self.tx)
            .await?;
        Ok(())
    }

    /// Takes one of the logins that are left. Says whether there was one.
    ///
    /// # Errors
    /// `Query`.
    pub async fn consume_trust(&mut self, id: &str) -> StoreResult<bool> {
        let done = sql::query(
            "UPDATE trusts SET remaining_uses = remaining_uses - 1 WHERE id = $1
             AND (remaining_uses IS NULL OR remaining_uses > 0)",
        )
        .bind(id)
        .execute(&mut *self.tx)
        .await?;
        Ok(done.rows_affected() > 0)
    }
}
