//! Roles and what they imply.

use serde_json::{Value, json};
use sqlx::FromRow;

use super::{Change, Current, Store, StoreResult, json_object, sql};

/// A role, global or of one domain.
#[derive(Debug, Clone, FromRow)]
pub struct Role {
    /// 32 hex digits.
    pub id: String,
    /// `None` for a global role.
    pub domain_id: Option<String>,
    /// Unique among the global roles or in its domain.
    pub name: String,
    /// Free text.
    pub description: Option<String>,
    /// JSON object; `{"immutable": true}` protects the bootstrap roles.
    pub options: String,
    /// JSON object of attributes that the API does not define but gives back.
    pub extra: String,
}

impl Role {
    /// The object of the identity API, without links.
    pub fn to_json(&self) -> Value {
        let mut object = json!({
            "id": self.id, "name": self.name, "domain_id": self.domain_id, "description": self.description,
            "options": json_object(&self.options),
        });
        super::add_extra(&mut object, &self.extra);
        object
    }
}

/// One line of the inference table.
#[derive(Debug, Clone, FromRow)]
pub struct Inference {
    /// Who has this role …
    pub prior_role_id: String,
    /// … also has this one.
    pub implied_role_id: String,
}

const GLOBAL_BY_NAME: &str = "SELECT * FROM roles WHERE domain_id IS NULL AND name = $1";
const INFERENCES: &str = "SELECT * FROM implied_roles ORDER BY prior_role_id, implied_role_id";

impl Store {
    /// One role.
    ///
    /// # Errors
    /// `Query`.
    pub async fn role(&self, id: &str) -> StoreResult<Option<Role>> {
        Ok(sql::query_as("SELECT * FROM roles WHERE id = $1")
            .bind(id)
            .fetch_optional(&self.read)
            .await?)
    }

    /// A global role by name.
    ///
    /// # Errors
    /// `Query`.
    pub async fn global_role_by_name(&self, name: &str) -> StoreResult<Option<Role>> {
        Ok(sql::query_as(GLOBAL_BY_NAME)
            .bind(name)
            .fetch_optional(&self.read)
            .await?)
    }

    /// The global roles, or those of one domain, by name.
    ///
    /// # Errors
    /// `Query`.
    pub async fn roles(&self, domain_id: Option<&str>) -> StoreResult<Vec<Role>> {
        Ok(sql::query_as("SELECT * FROM roles WHERE COALESCE(domain_id, '') = COALESCE($1, '') ORDER BY name, id")
            .bind(domain_id)
            .fetch_all(&self.read)
            .await?)
    }

    /// Every role, global and of domains.
    ///
    /// # Errors
    /// `Query`.
    pub async fn all_roles(&self) -> StoreResult<Vec<Role>> {
        Ok(sql::query_as("SELECT * FROM roles ORDER BY name, id")
            .fetch_all(&self.read)
            .await?)
    }

    /// The whole inference table.
    ///
    /// # Errors
    /// `Query`.
    pub async fn inferences(&self) -> StoreResult<Vec<Inference>> {
        Ok(sql::query_as(INFERENCES).fetch_all(&self.read).await?)
    }
}

impl Change {
    /// Adds a role.
    ///
    /// # Errors
    /// `Duplicate`, `Dangling`, `Query`.
    pub async fn insert_role(&mut self, role: &Role) -> StoreResult<()> {
        sql::query("INSERT INTO roles (id, domain_id, name, description, options, extra) VALUES ($1, $2, $3, $4, $5, $6)")
            .bind(&role.id)
            .bind(&role.domain_id)
            .bind(&role.name)
            .bind(&role.description)
            .bind(&role.options)
            .bind(&role.extra)
            .execute(&mut *self.tx)
            .await?;
        Ok(())
    }

    /// One role, to be changed.
    ///
    /// # Errors
    /// `Query`.
    pub async fn role(&mut self, id: &str) -> StoreResult<Option<Current<Role>>> {
        self.current(sql::query_as("SELECT * FROM roles WHERE id = $1").bind(id))
            .await
    }

    /// A global role by name, to be changed.
    ///
    /// # Errors
    /// `Query`.
    pub async fn global_role_by_name(&mut self, name: &str) -> StoreResult<Option<Current<Role>>> {
        self.current(sql::query_as(GLOBAL_BY_NAME).bind(name)).await
    }

    /// The whole inference table, as this change sees it.
    ///
    /// # Errors
    /// `Query`.
    pub async fn inferences(&mut self) -> StoreResult<Vec<Inference>> {
        Ok(sql::query_as(INFERENCES).fetch_all(&mut *self.tx).await?)
    }

    /// Writes name, description and options of a role.
    ///
    /// # Errors
    /// `Duplicate`, `Query`.
    pub async fn update_role(&mut self, role: &Current<Role>) -> StoreResult<()> {
        sql::query(
            "UPDATE roles SET name = $2, description = $3, options = $4, extra = $5 WHERE id = $1",
        )
        .bind(&role.id)
        .bind(&role.name)
        .bind(&role.description)
        .bind(&role.options)
        .bind(&role.extra)
        .execute(&mut *self.tx)
        .await?;
        Ok(())
    }

    /// Deletes a role with its assignments and inferences.
    ///
    /// # Errors
    /// `Query`.
    pub async fn delete_role(&mut self, id: &str) -> StoreResult<()> {
        sql::query("DELETE FROM roles WHERE id = $1")
            .bind(id)
            .execute(&mut *self.tx)
            .await?;
        Ok(())
    }

    /// Adds an inference; again is no error. Says whether it is new.
    ///
    /// # Errors
    /// `Dangling`, `Query`.
    pub async fn insert_inference(&mut self, prior: &str, implied: &str) -> StoreResult<bool> {
        let done = sql::query("INSERT INTO implied_roles (prior_role_id, implied_role_id) VALUES ($1, $2) ON CONFLICT DO NOTHING")
            .bind(prior)
            .bind(implied)
            .execute(&mut *self.tx)
            .await?;
        Ok(done.rows_affected() > 0)
    }

    /// Removes an inference. Says whether there was one.
    ///
    /// # Errors
    /// `Query`.
    pub async fn delete_inference(&mut self, prior: &str, implied: &str) -> StoreResult<bool> {
        let done = sql::query(
            "DELETE FROM implied_roles WHERE prior_role_id = $1 AND implied_role_id = $2",
        )
        .bind(prior)
        .bind(implied)
        .execute(&mut *self.tx)
        .await?;
        Ok(done.rows_affected() > 0)
    }
}
