//! The records that say who has which role where, light, and all of them or those of one user: for the read model (see
//! `crate::directory`).

use sqlx::FromRow;

use super::{Store, StoreResult, sql};

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
    /// At most so many users in the order of their ids, behind `last`.
    ///
    /// # Errors
    /// `Query`.
    pub async fn user_rows(&self, last: &str, limit: i64) -> StoreResult<Vec<ActorRow>> {
        let statement = "SELECT id, name, domain_id FROM users WHERE id > $1 ORDER BY id LIMIT $2";
        Ok(sql::query_as(statement)
            .bind(last)
            .bind(limit)
            .fetch_all(&self.read)
            .await?)
    }

    /// One user.
    ///
    /// # Errors
    /// `Query`.
    pub async fn user_row(&self, id: &str) -> StoreResult<Option<ActorRow>> {
        let statement = "SELECT id, name, domain_id FROM users WHERE id = $1";
        Ok(sql::query_as(statement)
            .bind(id)
            .fetch_optional(&self.read)
            .await?)
    }

    /// At most so many groups in the order of their ids, behind `last`.
    ///
    /// # Errors
    /// `Query`.
    pub async fn group_rows(&self, last: &str, limit: i64) -> StoreResult<Vec<ActorRow>> {
        let statement =
            "SELECT id, name, domain_id FROM user_groups WHERE id > $1 ORDER BY id LIMIT $2";
        Ok(sql::query_as(statement)
            .bind(last)
            .bind(limit)
            .fetch_all(&self.read)
            .await?)
    }

    /// The groups of a user.
    ///
    /// # Errors
    /// `Query`.
    pub async fn group_rows_of(&self, user_id: &str) -> StoreResult<Vec<ActorRow>> {
        let statement = "SELECT g.id, g.name, g.domain_id FROM user_groups g
             JOIN group_members m ON m.group_id = g.id WHERE m.user_id = $1 ORDER BY g.id";
        Ok(sql::query_as(statement)
            .bind(user_id)
            .fetch_all(&self.read)
            .await?)
    }

    /// At most so many projects in the order of their ids, behind `last`.
    ///
    /// # Errors
    /// `Query`.
    pub async fn project_rows(&self, last: &str, limit: i64) -> StoreResult<Vec<ProjectRow>> {
        let statement = "SELECT id, name, domain_id, parent_id FROM projects WHERE id > $1 ORDER BY id LIMIT $2";
        Ok(sql::query_as(statement)
            .bind(last)
            .bind(limit)
            .fetch_all(&self.read)
            .await?)
    }

    /// Ids and names of all domains.
    ///
    /// # Errors
    /// `Query`.
    pub async fn domain_rows(&self) -> StoreResult<Vec<(String, String)>> {
        let statement = "SELECT id, name FROM domains ORDER BY id";
        Ok(sql::query_as(statement).fetch_all(&self.read).await?)
    }

    /// All roles.
    ///
    /// # Errors
    /// `Query`.
    pub async fn role_rows(&self) -> StoreResult<Vec<RoleRow>> {
        let statement = "SELECT id, name, domain_id FROM roles ORDER BY id";
        Ok(sql::query_as(statement).fetch_all(&self.read).await?)
    }

    /// At most so many memberships as group and user, in the order of their ids, behind `last`.
    ///
    /// # Errors
    /// `Query`.
    pub async fn membership_rows(
        &self,
        last: (&str, &str),
        limit: i64,
    ) -> StoreResult<Vec<(String, String)>> {
        let statement =
            "SELECT group_id, user_id FROM group_members WHERE (group_id, user_id) > ($1, $2)
             ORDER BY group_id, user_id LIMIT $3";
        Ok(sql::query_as(statement)
            .bind(last.0)
            .bind(last.1)
            .bind(limit)
            .fetch_all(&self.read)
            .await?)
    }
}
