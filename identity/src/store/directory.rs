//! The records that say who has which role where, whole and light: for the read model (see `crate::directory`).

use sqlx::FromRow;

use super::{Store, StoreResult};

/// A user or a group.
#[derive(Debug, FromRow)]
pub struct ActorRow {
    /// Id.
    pub id: String,
    /// Name.
    pub name: String,
    /// Its domain.
    pub domain_id: String,
}

/// A project.
#[derive(Debug, FromRow)]
pub struct ProjectRow {
    /// Id.
    pub id: String,
    /// Name.
    pub name: String,
    /// Its domain.
    pub domain_id: String,
    /// The project above it, or its domain.
    pub parent_id: String,
}

/// A role.
#[derive(Debug, FromRow)]
pub struct RoleRow {
    /// Id.
    pub id: String,
    /// Name.
    pub name: String,
    /// Its domain, if it is not for all.
    pub domain_id: Option<String>,
}

impl Store {
    /// All users.
    ///
    /// # Errors
    /// `Query`.
    pub async fn user_rows(&self) -> StoreResult<Vec<ActorRow>> {
        let statement = "SELECT id, name, domain_id FROM users";
        Ok(sqlx::query_as(statement).fetch_all(&self.read).await?)
    }

    /// All groups.
    ///
    /// # Errors
    /// `Query`.
    pub async fn group_rows(&self) -> StoreResult<Vec<ActorRow>> {
        let statement = "SELECT id, name, domain_id FROM user_groups";
        Ok(sqlx::query_as(statement).fetch_all(&self.read).await?)
    }

    /// All projects, in the order of their ids.
    ///
    /// # Errors
    /// `Query`.
    pub async fn project_rows(&self) -> StoreResult<Vec<ProjectRow>> {
        let statement = "SELECT id, name, domain_id, parent_id FROM projects ORDER BY id";
        Ok(sqlx::query_as(statement).fetch_all(&self.read).await?)
    }

    /// Ids and names of all domains.
    ///
    /// # Errors
    /// `Query`.
    pub async fn domain_rows(&self) -> StoreResult<Vec<(String, String)>> {
        let statement = "SELECT id, name FROM domains";
        Ok(sqlx::query_as(statement).fetch_all(&self.read).await?)
    }

    /// All roles.
    ///
    /// # Errors
    /// `Query`.
    pub async fn role_rows(&self) -> StoreResult<Vec<RoleRow>> {
        let statement = "SELECT id, name, domain_id FROM roles";
        Ok(sqlx::query_as(statement).fetch_all(&self.read).await?)
    }

    /// All memberships as group and user, by the users' names.
    ///
    /// # Errors
    /// `Query`.
    pub async fn membership_rows(&self) -> StoreResult<Vec<(String, String)>> {
        let statement =
            "SELECT m.group_id, m.user_id FROM group_members m JOIN users u ON u.id = m.user_id
             ORDER BY u.name, u.id";
        Ok(sqlx::query_as(statement).fetch_all(&self.read).await?)
    }
}
