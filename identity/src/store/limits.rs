//! Unified limits: registered limits (the defaults), and limits of projects and domains.

use serde_json::{Value, json};
use sqlx::FromRow;

use super::{Change, Current, Store, StoreResult, sql};

/// The default of a resource for all projects and domains.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct RegisteredLimit {
    /// 32 hex digits.
    pub id: String,
    /// Whose resource it is.
    pub service_id: String,
    /// The region that it is for; none: all.
    pub region_id: Option<String>,
    /// What is counted, such as `volumes`.
    pub resource_name: String,
    /// How many; -1: any number.
    pub default_limit: i64,
    /// Free text.
    pub description: Option<String>,
}

/// Another value for one project or domain.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct Limit {
    /// 32 hex digits.
    pub id: String,
    /// What it takes the place of.
    pub registered_limit_id: String,
    /// For this project; else for a domain.
    pub project_id: Option<String>,
    /// For this domain.
    pub domain_id: Option<String>,
    /// How many; -1: any number.
    pub resource_limit: i64,
    /// Free text.
    pub description: Option<String>,
    /// Of the registered limit; filled by the queries here.
    pub service_id: String,
    /// Of the registered limit.
    pub region_id: Option<String>,
    /// Of the registered limit.
    pub resource_name: String,
}

impl RegisteredLimit {
    /// The object of the identity API, without links.
    pub fn to_json(&self) -> Value {
        json!({
            "id": self.id, "service_id": self.service_id, "region_id": self.region_id,
            "resource_name": self.resource_name, "default_limit": self.default_limit,
            "description": self.description,
        })
    }
}

impl Limit {
    /// The object of the identity API, without links.
    pub fn to_json(&self) -> Value {
        json!({
            "id": self.id, "project_id": self.project_id, "domain_id": self.domain_id,
            "service_id": self.service_id, "region_id": self.region_id, "resource_name": self.resource_name,
            "resource_limit": self.resource_limit, "description": self.description,
        })
    }
}

/// Which limits a query wants.
const LIMITS: &str = "SELECT l.*, r.service_id, r.region_id, r.resource_name FROM limits l
     JOIN registered_limits r ON r.id = l.registered_limit_id
     WHERE ($1 IS NULL OR l.id = $1) AND ($2 IS NULL OR l.project_id = $2) AND ($3 IS NULL OR l.registered_limit_id = $3)
     ORDER BY l.id";

impl Store {
    /// All registered limits, by id.
    ///
    /// # Errors
    /// `Query`.
    pub async fn registered_limits(&self) -> StoreResult<Vec<RegisteredLimit>> {
        Ok(sql::query_as("SELECT * FROM registered_limits ORDER BY id")
            .fetch_all(&self.read)
            .await?)
    }

    /// One registered limit.
    ///
    /// # Errors
    /// `Query`.
    pub async fn registered_limit(&self, id: &str) -> StoreResult<Option<RegisteredLimit>> {
        Ok(
            sql::query_as("SELECT * FROM registered_limits WHERE id = $1")
                .bind(id)
                .fetch_optional(&self.read)
                .await?,
        )
    }

    /// All limits, or those of one project, by id.
    ///
    /// # Errors
    /// `Query`.
    pub async fn limits(&self, project_id: Option<&str>) -> StoreResult<Vec<Limit>> {
        Ok(sql::query_as(LIMITS)
            .bind(None::<&str>)
            .bind(project_id)
            .bind(None::<&str>)
            .fetch_all(&self.read)
            .await?)
    }

    /// One limit.
    ///
    /// # Errors
    /// `Query`.
    pub async fn limit(&self, id: &str) -> StoreResult<Option<Limit>> {
        Ok(sql::query_as(LIMITS)
            .bind(id)
            .bind(None::<&str>)
            .bind(None::<&str>)
            .fetch_optional(&self.read)
            .await?)
    }

    /// Ids of projects below another project, of which there are none where limits are strict in two levels.
    ///
    /// # Errors
    /// `Query`.
    pub async fn projects_below_projects(&self) -> StoreResult<Vec<String>> {
        Ok(sql::query_scalar(
            "SELECT p.id FROM projects p JOIN projects above ON above.id = p.parent_id ORDER BY p.id LIMIT 10",
        )
        .fetch_all(&self.read)
        .await?)
    }
}

impl Change {
    /// One registered limit, to be changed.
    ///
    /// # Errors
    /// `Query`.
    pub async fn registered_limit(
        &mut self,
        id: &str,
    ) -> StoreResult<Option<Current<RegisteredLimit>>> {
        self.current(sql::query_as("SELECT * FROM registered_limits WHERE id = $1").bind(id))
            .await
    }

    /// One limit, to be changed.
    ///
    /// # Errors
    /// `Query`.
    pub async fn limit(&mut self, id: &str) -> StoreResult<Option<Current<Limit>>> {
        let question = sql::query_as(LIMITS).bind(id);
        self.current(question.bind(None::<&str>).bind(None::<&str>))
            .await
    }

    /// The registered limit of a resource, as this change sees it.
    ///
    /// # Errors
    /// `Query`.
    pub async fn registered_limit_of(
        &mut self,
        service_id: &str,
        region_id: Option<&str>,
        resource_name: &str,
    ) -> StoreResult<Option<RegisteredLimit>> {
        Ok(sql::query_as(
            "SELECT * FROM registered_limits
             WHERE service_id = $1 AND resource_name = $2 AND coalesce(region_id, '') = coalesce($3, '')",
        )
        .bind(service_id)
        .bind(resource_name)
        .bind(region_id)
        .fetch_optional(&mut *self.tx)
        .await?)
    }

    /// The limits that take the place of a registered one, as this change sees them.
    ///
    /// # Errors
    /// `Query`.
    pub async fn limits_of(&mut self, registered_limit_id: &str) -> StoreResult<Vec<Limit>> {
        Ok(sql::query_as(LIMITS)
            .bind(None::<&str>)
            .bind(None::<&str>)
            .bind(registered_limit_id)
            .fetch_all(&mut *self.tx)
            .await?)
    }

    /// The default of a registered limit, as this change sees it.
    ///
    /// # Errors
    /// `Query`.
    pub async fn default_limit(&mut self, registered_limit_id: &str) -> StoreResult<Option<i64>> {
        Ok(
            sql::query_scalar("SELECT default_limit FROM registered_limits WHERE id = $1")
                .bind(registered_limit_id)
                .fetch_optional(&mut *self.tx)
                .await?,
        )
    }

    /// Adds a registered limit.
    ///
    /// # Errors
    /// `Duplicate`, `Dangling`, `Query`.
    pub async fn insert_registered_limit(&mut self, limit: &RegisteredLimit) -> StoreResult<()> {
        sql::query(
            "INSERT INTO registered_limits (id, service_id, region_id, resource_name, default_limit, description)
             VALUES ($1, $2, $3, $4, $5, $6)",
        )
        .bind(&limit.id)
        .bind(&limit.service_id)
        .bind(&limit.region_id)
        .bind(&limit.resource_name)
        .bind(limit.default_limit)
        .bind(&limit.description)
        .execute(&mut *self.tx)
        .await?;
        Ok(())
    }

    /// Writes a registered limit anew.
    ///
    /// # Errors
    /// `Duplicate`, `Dangling`, `Query`.
    pub async fn update_registered_limit(
        &mut self,
        limit: &Current<RegisteredLimit>,
    ) -> StoreResult<()> {
        sql::query(
            "UPDATE registered_limits SET service_id = $2, region_id = $3, resource_name = $4, default_limit = $5,
             description = $6 WHERE id = $1",
        )
        .bind(&limit.id)
        .bind(&limit.service_id)
        .bind(&limit.region_id)
        .bind(&limit.resource_name)
        .bind(limit.default_limit)
        .bind(&limit.description)
        .execute(&mut *self.tx)
        .await?;
        Ok(())
    }

    /// Deletes a registered limit. Says whether there was one.
    ///
    /// # Errors
    /// `Dangling` while a project or domain has its own value for it, `Query`.
    pub async fn delete_registered_limit(&mut self, id: &str) -> StoreResult<bool> {
        let done = sql::query("DELETE FROM registered_limits WHERE id = $1")
            .bind(id)
            .execute(&mut *self.tx)
            .await?;
        Ok(done.rows_affected() > 0)
    }

    /// Adds a limit.
    ///
    /// # Errors
    /// `Duplicate`, `Dangling`, `Query`.
    pub async fn insert_limit(&mut self, limit: &Limit) -> StoreResult<()> {
        sql::query(
            "INSERT INTO limits (id, registered_limit_id, project_id, domain_id, resource_limit, description)
             VALUES ($1, $2, $3, $4, $5, $6)",
        )
        .bind(&limit.id)
        .bind(&limit.registered_limit_id)
        .bind(&limit.project_id)
        .bind(&limit.domain_id)
        .bind(limit.resource_limit)
        .bind(&limit.description)
        .execute(&mut *self.tx)
        .await?;
        Ok(())
    }

    /// Writes value and description of a limit.
    ///
    /// # Errors
    /// `Query`.
    pub async fn update_limit(&mut self, limit: &Current<Limit>) -> StoreResult<()> {
        sql::query("UPDATE limits SET resource_limit = $2, description = $3 WHERE id = $1")
            .bind(&limit.id)
            .bind(limit.resource_limit)
            .bind(&limit.description)
            .execute(&mut *self.tx)
            .await?;
        Ok(())
    }

    /// Deletes a limit. Says whether there was one.
    ///
    /// # Errors
    /// `Query`.
    pub async fn delete_limit(&mut self, id: &str) -> StoreResult<bool> {
        let done = sql::query("DELETE FROM limits WHERE id = $1")
            .bind(id)
            .execute(&mut *self.tx)
            .await?;
        Ok(done.rows_affected() > 0)
    }
}
