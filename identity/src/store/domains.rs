//! Domains.

use serde_json::{Value, json};
use sqlx::FromRow;

use super::{Change, Current, Store, StoreResult, description::Description, sql};

/// A domain.
#[derive(Debug, Clone, FromRow)]
pub struct Domain {
    /// 32 hex digits, or `default`.
    pub id: String,
    /// Unique.
    pub name: String,
    /// Free text or none.
    #[sqlx(flatten)]
    pub description: Description,
    /// A disabled domain's users and projects cannot be used.
    pub enabled: bool,
    /// JSON object.
    pub options: String,
    /// JSON object of attributes that the API does not define but gives back.
    pub extra: String,
    /// JSON list of strings, see [`Domain::tags`].
    pub tags: String,
}

impl Domain {
    /// The tags.
    pub fn tags(&self) -> Vec<String> {
        serde_json::from_str(&self.tags).unwrap_or_default()
    }

    /// Sets the tags.
    pub fn set_tags(&mut self, tags: Vec<String>) {
        self.tags = Value::from(tags).to_string();
    }

    /// The object of the identity API, without links.
    pub fn to_json(&self) -> Value {
        let mut object = json!({
            "id": self.id, "name": self.name, "description": self.description.shown(), "enabled": self.enabled,
            "tags": self.tags(), "options": super::json_object(&self.options),
        });
        super::add_extra(&mut object, &self.extra);
        object
    }
}

impl Store {
    /// One domain.
    ///
    /// # Errors
    /// `Query`.
    pub async fn domain(&self, id: &str) -> StoreResult<Option<Domain>> {
        Ok(sql::query_as("SELECT * FROM domains WHERE id = $1")
            .bind(id)
            .fetch_optional(&self.read)
            .await?)
    }

    /// One domain by its name.
    ///
    /// # Errors
    /// `Query`.
    pub async fn domain_by_name(&self, name: &str) -> StoreResult<Option<Domain>> {
        Ok(sql::query_as("SELECT * FROM domains WHERE name = $1")
            .bind(name)
            .fetch_optional(&self.read)
            .await?)
    }

    /// All domains by name.
    ///
    /// # Errors
    /// `Query`.
    pub async fn domains(&self) -> StoreResult<Vec<Domain>> {
        Ok(sql::query_as("SELECT * FROM domains ORDER BY name")
            .fetch_all(&self.read)
            .await?)
    }
}

impl Change {
    /// Adds a domain.
    ///
    /// # Errors
    /// `Duplicate`, `Query`.
    pub async fn insert_domain(&mut self, domain: &Domain) -> StoreResult<()> {
        sql::query("INSERT INTO domains (id, name, description, enabled, options, undescribed, extra, tags) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)")
            .bind(&domain.id)
            .bind(&domain.name)
            .bind(domain.description.text())
            .bind(domain.enabled)
            .bind(&domain.options)
            .bind(domain.description.undescribed())
            .bind(&domain.extra)
            .bind(&domain.tags)
            .execute(&mut *self.tx)
            .await?;
        Ok(())
    }

    /// One domain, to be changed.
    ///
    /// # Errors
    /// `Query`.
    pub async fn domain(&mut self, id: &str) -> StoreResult<Option<Current<Domain>>> {
        self.current(sql::query_as("SELECT * FROM domains WHERE id = $1").bind(id))
            .await
    }

    /// Writes all attributes of a domain.
    ///
    /// # Errors
    /// `Duplicate`, `Query`.
    pub async fn update_domain(&mut self, domain: &Current<Domain>) -> StoreResult<()> {
        sql::query("UPDATE domains SET name = $2, description = $3, enabled = $4, options = $5, undescribed = $6, extra = $7, tags = $8 WHERE id = $1")
            .bind(&domain.id)
            .bind(&domain.name)
            .bind(domain.description.text())
            .bind(domain.enabled)
            .bind(&domain.options)
            .bind(domain.description.undescribed())
            .bind(&domain.extra)
            .bind(&domain.tags)
            .execute(&mut *self.tx)
            .await?;
        Ok(())
    }

    /// Deletes a domain with its projects, users, groups and roles, and the assignments of all these.
    ///
    /// # Errors
    /// `Query`.
    pub async fn delete_domain(&mut self, id: &str) -> StoreResult<()> {
        for statement in [
            "DELETE FROM assignments WHERE target_type = 'domain' AND target_id = $1",
            "DELETE FROM assignments WHERE target_type = 'project' AND target_id IN (SELECT id FROM projects WHERE domain_id = $1)",
            "DELETE FROM assignments WHERE actor_type = 'user' AND actor_id IN (SELECT id FROM users WHERE domain_id = $1)",
            "DELETE FROM assignments WHERE actor_type = 'group' AND actor_id IN (SELECT id FROM user_groups WHERE domain_id = $1)",
            "DELETE FROM domains WHERE id = $1",
        ] {
            sql::query(statement)
                .bind(id)
                .execute(&mut *self.tx)
                .await?;
        }
        Ok(())
    }
}
