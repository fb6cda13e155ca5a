//! Role assignments: who has which role where, and what follows from that.

use sqlx::FromRow;

use super::{Change, Store, StoreResult, directory::ProjectRow, roles::Role, sql};

/// One stored assignment.
#[derive(Debug, Clone, PartialEq, Eq, Hash, FromRow)]
pub struct Assignment {
    /// `user` or `group`.
    pub actor_type: String,
    /// Its id.
    pub actor_id: String,
    /// `project`, `domain` or `system`.
    pub target_type: String,
    /// Its id; `all` for the system.
    pub target_id: String,
    /// The role.
    pub role_id: String,
    /// Whether it counts for the projects below instead of the target itself.
    pub inherited: bool,
}

/// A role that somebody effectively has.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct EffectiveRole {
    /// Role id.
    pub id: String,
    /// Role name.
    pub name: String,
}

/// The roles that user $1 has on the target $2 with id $3, as `held (role_id)`: own and group assignments, those inherited
/// from above, and whatever these imply.
macro_rules! held {
    ($then:literal) => {
        concat!(
            "WITH RECURSIVE
             up (id, depth) AS (
                 SELECT parent_id, 1 FROM projects WHERE id = $3 AND $2 = 'project'
                 UNION ALL SELECT p.parent_id, up.depth + 1 FROM projects p JOIN up ON p.id = up.id WHERE up.depth < 64),
             mine (role_id) AS (
                 SELECT a.role_id FROM assignments a
                 WHERE ((a.actor_type = 'user' AND a.actor_id = $1)
                        OR (a.actor_type = 'group'
                            AND a.actor_id IN (SELECT group_id FROM group_members WHERE user_id = $1)))
                 AND ((NOT a.inherited AND a.target_type = $2 AND a.target_id = $3)
                      OR (a.inherited AND a.target_type = 'project' AND a.target_id IN (SELECT id FROM up))
                      OR (a.inherited AND a.target_type = 'domain' AND $2 = 'project'
                          AND a.target_id = (SELECT domain_id FROM projects WHERE id = $3)))),
             held (role_id) AS (
                 SELECT role_id FROM mine
                 UNION SELECT i.implied_role_id FROM implied_roles i JOIN held ON i.prior_role_id = held.role_id) ",
            $then
        )
    };
}

/// The projects on which user $1 has a role, as `reached (id)`: own and group assignments, and those inherited from above.
/// The user's assignments are looked for first: SQLite would rather look through all those on projects, three times.
macro_rules! reached {
    ($then:literal) => {
        concat!(
            "WITH RECURSIVE
             mine AS MATERIALIZED (
                 SELECT target_type, target_id, inherited FROM assignments
                 WHERE (actor_type = 'user' AND actor_id = $1)
                    OR (actor_type = 'group' AND actor_id IN (SELECT group_id FROM group_members WHERE user_id = $1))),
             below (id, depth) AS (
                 SELECT p.id, 1 FROM projects p JOIN mine m
                     ON m.inherited AND m.target_type = 'project' AND m.target_id = p.parent_id
                 UNION SELECT p.id, below.depth + 1 FROM projects p JOIN below ON p.parent_id = below.id WHERE below.depth < 64),
             reached (id) AS (
                 SELECT target_id FROM mine WHERE target_type = 'project' AND NOT inherited
                 UNION SELECT id FROM below
                 UNION SELECT p.id FROM projects p JOIN mine m
                     ON m.inherited AND m.target_type = 'domain' AND m.target_id = p.domain_id) ",
            $then
        )
    };
}

impl Store {
    /// The roles that a user has on a target: own and group assignments, those inherited from above, and
    /// whatever these imply; by name. Domain roles only count through what they imply.
    ///
    /// # Errors
    /// `Query`.
    pub async fn effective_roles(
        &self,
        user_id: &str,
        target_type: &str,
        target_id: &str,
    ) -> StoreResult<Vec<EffectiveRole>> {
        Ok(sql::query_as(held!(
            "SELECT r.id, r.name FROM roles r JOIN held ON held.role_id = r.id
             WHERE r.domain_id IS NULL ORDER BY r.name"
        ))
        .bind(user_id)
        .bind(target_type)
        .bind(target_id)
        .fetch_all(&self.read)
        .await?)
    }

    /// The same with the roles of domains, as ids: what a user may pass on.
    ///
    /// # Errors
    /// `Query`.
    pub async fn held_role_ids(
        &self,
        user_id: &str,
        target_type: &str,
        target_id: &str,
    ) -> StoreResult<Vec<String>> {
        Ok(
            sql::query_scalar(held!("SELECT role_id FROM held ORDER BY role_id"))
                .bind(user_id)
                .bind(target_type)
                .bind(target_id)
                .fetch_all(&self.read)
                .await?,
        )
    }

    /// Whatever these roles imply, and the roles themselves, with their domains; by name. Ids of roles that do not
    /// exist are left out.
    ///
    /// # Errors
    /// `Query`.
    pub async fn implied_closure(&self, role_ids: &[String]) -> StoreResult<Vec<Role>> {
        let list = serde_json::Value::from(role_ids).to_string();
        Ok(sql::query_as(
            "WITH RECURSIVE held (role_id) AS (
                 SELECT value FROM json_each($1)
                 UNION SELECT i.implied_role_id FROM implied_roles i JOIN held ON i.prior_role_id = held.role_id)
             SELECT r.* FROM roles r JOIN held ON held.role_id = r.id ORDER BY r.name",
        )
        .bind(list)
        .fetch_all(&self.read)
        .await?)
    }

    /// The roles of an application credential and what they imply.
    ///
    /// # Errors
    /// `Query`.
    pub async fn app_credential_effective_roles(
        &self,
        id: &str,
    ) -> StoreResult<Vec<EffectiveRole>> {
        Ok(sql::query_as(
            "WITH RECURSIVE held (role_id) AS (
                 SELECT role_id FROM app_credential_roles WHERE app_credential_id = $1
                 UNION SELECT i.implied_role_id FROM implied_roles i JOIN held ON i.prior_role_id = held.role_id)
             SELECT r.id, r.name FROM roles r JOIN held ON held.role_id = r.id ORDER BY r.name",
        )
        .bind(id)
        .fetch_all(&self.read)
        .await?)
    }

    /// Ids of the projects on which a user has a role, own, through a group, or inherited.
    ///
    /// # Errors
    /// `Query`.
    pub async fn project_ids_of_user(&self, user_id: &str) -> StoreResult<Vec<String>> {
        Ok(sql::query_scalar(reached!("SELECT id FROM reached"))
            .bind(user_id)
            .fetch_all(&self.read)
            .await?)
    }

    /// Those projects.
    ///
    /// # Errors
    /// `Query`.
    pub async fn project_rows_of(&self, user_id: &str) -> StoreResult<Vec<ProjectRow>> {
        Ok(sql::query_as(reached!(
            "SELECT id, name, domain_id, parent_id FROM projects WHERE id IN (SELECT id FROM reached) ORDER BY id"
        ))
        .bind(user_id)
        .fetch_all(&self.read)
        .await?)
    }

    /// Ids of the domains on which a user has a role, own or through a group.
    ///
    /// # Errors
    /// `Query`.
    pub async fn domain_ids_of_user(&self, user_id: &str) -> StoreResult<Vec<String>> {
        Ok(sql::query_scalar(
            "WITH mine AS MATERIALIZED (
                 SELECT target_type, target_id, inherited FROM assignments
                 WHERE (actor_type = 'user' AND actor_id = $1)
                    OR (actor_type = 'group' AND actor_id IN (SELECT group_id FROM group_members WHERE user_id = $1)))
             SELECT DISTINCT target_id FROM mine WHERE target_type = 'domain' AND NOT inherited",
        )
        .bind(user_id)
        .fetch_all(&self.read)
        .await?)
    }

    /// At most so many of the stored assignments, behind one of them or from the first on.
    ///
    /// # Errors
    /// `Query`.
    pub async fn assignments_after(
        &self,
        last: Option<&Assignment>,
        limit: i64,
    ) -> StoreResult<Vec<Assignment>> {
        let text = |field: fn(&Assignment) -> &String| last.map_or("", |last| field(last));
        Ok(sql::query_as(
            "SELECT * FROM assignments
             WHERE (actor_type, actor_id, target_type, target_id, role_id, inherited) > ($1, $2, $3, $4, $5, $6)
             ORDER BY actor_type, actor_id, target_type, target_id, role_id, inherited LIMIT $7",
        )
        .bind(text(|last| &last.actor_type))
        .bind(text(|last| &last.actor_id))
        .bind(text(|last| &last.target_type))
        .bind(text(|last| &last.target_id))
        .bind(text(|last| &last.role_id))
        .bind(last.is_some_and(|last| last.inherited))
        .bind(limit)
        .fetch_all(&self.read)
        .await?)
    }

    /// The stored assignments of a user and of its groups.
    ///
    /// # Errors
    /// `Query`.
    pub async fn assignments_reaching(&self, user_id: &str) -> StoreResult<Vec<Assignment>> {
        Ok(sql::query_as(
            "SELECT * FROM assignments WHERE (actor_type = 'user' AND actor_id = $1)
             OR (actor_type = 'group' AND actor_id IN (SELECT group_id FROM group_members WHERE user_id = $1))
             ORDER BY target_type, target_id, actor_type, actor_id, role_id",
        )
        .bind(user_id)
        .fetch_all(&self.read)
        .await?)
    }

    /// The stored assignments of one actor on one target.
    ///
    /// # Errors
    /// `Query`.
    pub async fn grants(
        &self,
        actor: (&str, &str),
        target: (&str, &str),
        inherited: bool,
    ) -> StoreResult<Vec<Assignment>> {
        Ok(sql::query_as(
            "SELECT * FROM assignments WHERE actor_type = $1 AND actor_id = $2 AND target_type = $3 AND target_id = $4
             AND inherited = $5",
        )
        .bind(actor.0)
        .bind(actor.1)
        .bind(target.0)
        .bind(target.1)
        .bind(inherited)
        .fetch_all(&self.read)
        .await?)
    }
}

impl Change {
    /// Adds an assignment; again is no error. Says whether it is new.
    ///
    /// # Errors
    /// `Dangling`, `Query`.
    pub async fn insert_assignment(&mut self, assignment: &Assignment) -> StoreResult<bool> {
        let done = sql::query(
            "INSERT INTO assignments (actor_type, actor_id, target_type, target_id, role_id, inherited)
             VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING",
        )
        .bind(&assignment.actor_type)
        .bind(&assignment.actor_id)
        .bind(&assignment.target_type)
        .bind(&assignment.target_id)
        .bind(&assignment.role_id)
        .bind(assignment.inherited)
        .execute(&mut *self.tx)
        .await?;
        Ok(done.rows_affected() > 0)
    }

    /// Removes an assignment. Says whether there was one.
    ///
    /// # Errors
    /// `Query`.
    pub async fn delete_assignment(&mut self, assignment: &Assignment) -> StoreResult<bool> {
        let done = sql::query(
            "DELETE FROM assignments WHERE actor_type = $1 AND actor_id = $2 AND target_type = $3 AND target_id = $4
             AND role_id = $5 AND inherited = $6",
        )
        .bind(&assignment.actor_type)
        .bind(&assignment.actor_id)
        .bind(&assignment.target_type)
        .bind(&assignment.target_id)
        .bind(&assignment.role_id)
        .bind(assignment.inherited)
        .execute(&mut *self.tx)
        .await?;
        Ok(done.rows_affected() > 0)
    }
}
