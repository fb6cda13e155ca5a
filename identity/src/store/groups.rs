//! Groups and their members.

use serde_json::{Value, json};
use sqlx::FromRow;

use super::{Change, Current, Store, StoreResult, description::Description, sql, users::User};

/// A group of users.
#[derive(Debug, Clone, FromRow)]
pub struct Group {
    /// 32 hex digits.
    pub id: String,
    /// The domain that owns it.
    pub domain_id: String,
    /// Unique in its domain.
    pub name: String,
    /// Free text or none.
    #[sqlx(flatten)]
    pub description: Description,
    /// JSON object of attributes that the API does not define but gives back.
    pub extra: String,
}

impl Group {
    /// The object of the identity API, without links.
    pub fn to_json(&self) -> Value {
        let mut object = json!({
            "id": self.id, "name": self.name, "domain_id": self.domain_id, "description": self.description.shown(),
        });
        super::add_extra(&mut object, &self.extra);
        object
    }
}

impl Store {
    /// One group.
    ///
    /// # Errors
    /// `Query`.
    pub async fn group(&self, id: &str) -> StoreResult<Option<Group>> {
        Ok(sql::query_as("SELECT * FROM user_groups WHERE id = $1")
            .bind(id)
            .fetch_optional(&self.read)
            .await?)
    }

    /// Groups, optionally of one domain and name, by name.
    ///
    /// # Errors
    /// `Query`.
    pub async fn groups(
        &self,
        domain_id: Option<&str>,
        name: Option<&str>,
    ) -> StoreResult<Vec<Group>> {
        Ok(sql::query_as(
            "SELECT * FROM user_groups WHERE ($1 IS NULL OR domain_id = $1) AND ($2 IS NULL OR name = $2)
             ORDER BY name, id",
        )
        .bind(domain_id)
        .bind(name)
        .fetch_all(&self.read)
        .await?)
    }

    /// The groups of a user, by name.
    ///
    /// # Errors
    /// `Query`.
    pub async fn groups_of_user(&self, user_id: &str) -> StoreResult<Vec<Group>> {
        Ok(sql::query_as(
            "SELECT g.* FROM user_groups g JOIN group_members m ON m.group_id = g.id WHERE m.user_id = $1
             ORDER BY g.name, g.id",
        )
        .bind(user_id)
        .fetch_all(&self.read)
        .await?)
    }

    /// The members of a group, by name.
    ///
    /// # Errors
    /// `Query`.
    pub async fn users_of_group(&self, group_id: &str) -> StoreResult<Vec<User>> {
        Ok(sql::query_as(
            "SELECT u.* FROM users u JOIN group_members m ON m.user_id = u.id WHERE m.group_id = $1
             ORDER BY u.name, u.id",
        )
        .bind(group_id)
        .fetch_all(&self.read)
        .await?)
    }
}

impl Change {
    /// Adds a group.
    ///
    /// # Errors
    /// `Duplicate`, `Dangling`, `Query`.
    pub async fn insert_group(&mut self, group: &Group) -> StoreResult<()> {
        sql::query("INSERT INTO user_groups (id, domain_id, name, description, extra, undescribed) VALUES ($1, $2, $3, $4, $5, $6)")
            .bind(&group.id)
            .bind(&group.domain_id)
            .bind(&group.name)
            .bind(group.description.text())
            .bind(&group.extra)
            .bind(group.description.undescribed())
            .execute(&mut *self.tx)
            .await?;
        Ok(())
    }

    /// One group, to be changed.
    ///
    /// # Errors
    /// `Query`.
    pub async fn group(&mut self, id: &str) -> StoreResult<Option<Current<Group>>> {
        self.current(sql::query_as("SELECT * FROM user_groups WHERE id = $1").bind(id))
            .await
    }

    /// Writes all attributes of a group but its domain.
    ///
    /// # Errors
    /// `Duplicate`, `Query`.
    pub async fn update_group(&mut self, group: &Current<Group>) -> StoreResult<()> {
        sql::query("UPDATE user_groups SET name = $2, description = $3, extra = $4, undescribed = $5 WHERE id = $1")
            .bind(&group.id)
            .bind(&group.name)
            .bind(group.description.text())
            .bind(&group.extra)
            .bind(group.description.undescribed())
            .execute(&mut *self.tx)
            .await?;
        Ok(())
    }

    /// Deletes a group with its assignments and memberships.
    ///
    /// # Errors
    /// `Query`.
    pub async fn delete_group(&mut self, id: &str) -> StoreResult<()> {
        for statement in [
            "DELETE FROM assignments WHERE actor_type = 'group' AND actor_id = $1",
            "DELETE FROM user_groups WHERE id = $1",
        ] {
            sql::query(statement)
                .bind(id)
                .execute(&mut *self.tx)
                .await?;
        }
        Ok(())
    }

    /// Makes a user a member; again is no error.
    ///
    /// # Errors
    /// `Dangling`, `Query`.
    pub async fn add_member(&mut self, group_id: &str, user_id: &str) -> StoreResult<()> {
        sql::query(
            "INSERT INTO group_members (group_id, user_id) VALUES ($1, $2) ON CONFLICT DO NOTHING",
        )
        .bind(group_id)
        .bind(user_id)
        .execute(&mut *self.tx)
        .await?;
        Ok(())
    }

    /// Ends a membership. Says whether there was one.
    ///
    /// # Errors
    /// `Query`.
    pub async fn remove_member(&mut self, group_id: &str, user_id: &str) -> StoreResult<bool> {
        let done = sql::query("DELETE FROM group_members WHERE group_id = $1 AND user_id = $2")
            .bind(group_id)
            .bind(user_id)
            .execute(&mut *self.tx)
            .await?;
        Ok(done.rows_affected() > 0)
    }
}
