//! Users.

use serde_json::{Value, json};
use sqlx::FromRow;

use super::{Change, Current, Store, StoreResult, json_object, sql};

/// A user.
#[derive(Clone, FromRow)]
pub struct User {
    /// 32 hex digits.
    pub id: String,
    /// The domain that owns it.
    pub domain_id: String,
    /// Unique in its domain.
    pub name: String,
    /// A disabled user cannot log in.
    pub enabled: bool,
    /// Scope of a login that asks for none.
    pub default_project_id: Option<String>,
    /// See `crypto::password`.
    pub password_hash: Option<String>,
    /// When the password must be changed (microseconds).
    pub password_expires_at: Option<i64>,
    /// When all tokens of the user ended last (microseconds); each token notes what it was made under, and ends when it is another.
    pub tokens_valid_after: i64,
    /// JSON object.
    pub options: String,
    /// JSON object of attributes that the API does not define but gives back (`email`, `description`, …).
    pub extra: String,
}

// By hand, so that the hash never reaches a log.
impl std::fmt::Debug for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("User")
            .field("id", &self.id)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl User {
    /// Ends all tokens of the user.
    pub fn end_tokens(&mut self, now: i64) {
        // Another value than ever before, also if a clock went back.
        self.tokens_valid_after = now.max(self.tokens_valid_after.saturating_add(1));
    }

    /// The object of the identity API, without links. The password hash is not in it.
    pub fn to_json(&self) -> Value {
        let mut object = json!({
            "id": self.id, "name": self.name, "domain_id": self.domain_id, "enabled": self.enabled,
            "password_expires_at": self.password_expires_at.map(crate::time::zoneless_time), "options": json_object(&self.options),
        });
        if let (Some(project), Some(map)) = (&self.default_project_id, object.as_object_mut()) {
            map.insert("default_project_id".into(), project.as_str().into());
        }
        super::add_extra(&mut object, &self.extra);
        object
    }
}

impl Store {
    /// One user.
    ///
    /// # Errors
    /// `Query`.
    pub async fn user(&self, id: &str) -> StoreResult<Option<User>> {
        Ok(sql::query_as("SELECT * FROM users WHERE id = $1")
            .bind(id)
            .fetch_optional(&self.read)
            .await?)
    }

    /// One user by domain and name.
    ///
    /// # Errors
    /// `Query`.
    pub async fn user_by_name(&self, domain_id: &str, name: &str) -> StoreResult<Option<User>> {
        Ok(
            sql::query_as("SELECT * FROM users WHERE domain_id = $1 AND name = $2")
                .bind(domain_id)
                .bind(name)
                .fetch_optional(&self.read)
                .await?,
        )
    }

    /// Users, optionally of one domain and name, by name.
    ///
    /// # Errors
    /// `Query`.
    pub async fn users(
        &self,
        domain_id: Option<&str>,
        name: Option<&str>,
    ) -> StoreResult<Vec<User>> {
        Ok(sql::query_as(
            "SELECT * FROM users WHERE ($1 IS NULL OR domain_id = $1) AND ($2 IS NULL OR name = $2) ORDER BY name, id",
        )
        .bind(domain_id)
        .bind(name)
        .fetch_all(&self.read)
        .await?)
    }
}

impl Change {
    /// Adds a user.
    ///
    /// # Errors
    /// `Duplicate`, `Dangling`, `Query`.
    pub async fn insert_user(&mut self, user: &User) -> StoreResult<()> {
        sql::query(
            "INSERT INTO users (id, domain_id, name, enabled, default_project_id, password_hash, tokens_valid_after, options, extra,
             password_expires_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
        )
        .bind(&user.id)
        .bind(&user.domain_id)
        .bind(&user.name)
        .bind(user.enabled)
        .bind(&user.default_project_id)
        .bind(&user.password_hash)
        .bind(user.tokens_valid_after)
        .bind(&user.options)
        .bind(&user.extra)
        .bind(user.password_expires_at)
        .execute(&mut *self.tx)
        .await?;
        Ok(())
    }

    /// One user, to be changed.
    ///
    /// # Errors
    /// `Query`.
    pub async fn user(&mut self, id: &str) -> StoreResult<Option<Current<User>>> {
        self.current(sql::query_as("SELECT * FROM users WHERE id = $1").bind(id))
            .await
    }

    /// One user by domain and name, to be changed.
    ///
    /// # Errors
    /// `Query`.
    pub async fn user_by_name(
        &mut self,
        domain_id: &str,
        name: &str,
    ) -> StoreResult<Option<Current<User>>> {
        let question = sql::query_as("SELECT * FROM users WHERE domain_id = $1 AND name = $2");
        self.current(question.bind(domain_id).bind(name)).await
    }

    /// Writes all attributes of a user but its domain.
    ///
    /// # Errors
    /// `Duplicate`, `Query`.
    pub async fn update_user(&mut self, user: &Current<User>) -> StoreResult<()> {
        sql::query(
            "UPDATE users SET name = $2, enabled = $3, default_project_id = $4, password_hash = $5,
             tokens_valid_after = $6, options = $7, extra = $8, password_expires_at = $9 WHERE id = $1",
        )
        .bind(&user.id)
        .bind(&user.name)
        .bind(user.enabled)
        .bind(&user.default_project_id)
        .bind(&user.password_hash)
        .bind(user.tokens_valid_after)
        .bind(&user.options)
        .bind(&user.extra)
        .bind(user.password_expires_at)
        .execute(&mut *self.tx)
        .await?;
        Ok(())
    }

    /// Deletes a user with its assignments, memberships and application credentials.
    ///
    /// # Errors
    /// `Query`.
    pub async fn delete_user(&mut self, id: &str) -> StoreResult<()> {
        for statement in [
            "DELETE FROM assignments WHERE actor_type = 'user' AND actor_id = $1",
            "DELETE FROM users WHERE id = $1",
        ] {
            sql::query(statement)
                .bind(id)
                .execute(&mut *self.tx)
                .await?;
        }
        Ok(())
    }
}
