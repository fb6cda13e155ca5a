//! Application credentials, their roles and access rules.

use sqlx::FromRow;

use super::{Change, Store, StoreResult, access_rules::AccessRule, roles::Role, sql};

/// An application credential.
#[derive(Clone, FromRow)]
pub struct AppCredential {
    /// 32 hex digits.
    pub id: String,
    /// Its owner.
    pub user_id: String,
    /// The project that it is for.
    pub project_id: String,
    /// Unique for its owner.
    pub name: String,
    /// Free text.
    pub description: Option<String>,
    /// Microseconds; `None` never.
    pub expires_at: Option<i64>,
    /// Whether it may manage application credentials. `None` was sent as null and counts as no.
    pub unrestricted: Option<bool>,
    /// See `crypto::password`.
    pub secret_hash: String,
}

impl std::fmt::Debug for AppCredential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AppCredential")
            .field("id", &self.id)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Store {
    /// One credential.
    ///
    /// # Errors
    /// `Query`.
    pub async fn app_credential(&self, id: &str) -> StoreResult<Option<AppCredential>> {
        Ok(sql::query_as("SELECT * FROM app_credentials WHERE id = $1")
            .bind(id)
            .fetch_optional(&self.read)
            .await?)
    }

    /// A user's credential by name.
    ///
    /// # Errors
    /// `Query`.
    pub async fn app_credential_by_name(
        &self,
        user_id: &str,
        name: &str,
    ) -> StoreResult<Option<AppCredential>> {
        Ok(
            sql::query_as("SELECT * FROM app_credentials WHERE user_id = $1 AND name = $2")
                .bind(user_id)
                .bind(name)
                .fetch_optional(&self.read)
                .await?,
        )
    }

    /// A user's credentials by name.
    ///
    /// # Errors
    /// `Query`.
    pub async fn app_credentials(&self, user_id: &str) -> StoreResult<Vec<AppCredential>> {
        Ok(
            sql::query_as("SELECT * FROM app_credentials WHERE user_id = $1 ORDER BY name")
                .bind(user_id)
                .fetch_all(&self.read)
                .await?,
        )
    }

    /// The roles that a credential was given.
    ///
    /// # Errors
    /// `Query`.
    pub async fn app_credential_roles(&self, id: &str) -> StoreResult<Vec<Role>> {
        Ok(sql::query_as(
            "SELECT r.* FROM roles r JOIN app_credential_roles c ON c.role_id = r.id WHERE c.app_credential_id = $1
             ORDER BY r.name",
        )
        .bind(id)
        .fetch_all(&self.read)
        .await?)
    }
}

impl Change {
    /// Adds a credential with its roles and access rules.
    ///
    /// # Errors
    /// `Duplicate`, `Dangling`, `Query`.
    pub async fn insert_app_credential(
        &mut self,
        credential: &AppCredential,
        roles: &[String],
        rules: &[AccessRule],
    ) -> StoreResult<()> {
        sql::query(
            "INSERT INTO app_credentials (id, user_id, project_id, name, description, expires_at, unrestricted, secret_hash)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        )
        .bind(&credential.id)
        .bind(&credential.user_id)
        .bind(&credential.project_id)
        .bind(&credential.name)
        .bind(&credential.description)
        .bind(credential.expires_at)
        .bind(credential.unrestricted)
        .bind(&credential.secret_hash)
        .execute(&mut *self.tx)
        .await?;
        for role in roles {
            sql::query("INSERT INTO app_credential_roles (app_credential_id, role_id) VALUES ($1, $2) ON CONFLICT DO NOTHING")
                .bind(&credential.id)
                .bind(role)
                .execute(&mut *self.tx)
                .await?;
        }
        self.use_access_rules(&credential.id, &credential.user_id, rules)
            .await?;
        Ok(())
    }

    /// Deletes a credential; its tokens die with it.
    ///
    /// # Errors
    /// `Query`.
    pub async fn delete_app_credential(&mut self, id: &str) -> StoreResult<()> {
        sql::query("DELETE FROM app_credentials WHERE id = $1")
            .bind(id)
            .execute(&mut *self.tx)
            .await?;
        Ok(())
    }
}
