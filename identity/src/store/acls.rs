//! Access lists of secrets and of containers: the same records in two pairs of tables.

use super::{
    Change, Store, StoreResult,
    sql::{self, Records, Scalars, Statement},
};

/// What an access list guards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guarded {
    /// A secret.
    Secret,
    /// A container.
    Container,
}

/// Who may read a secret or container beyond the policy.
#[derive(Debug, Clone, Default)]
pub struct Acl {
    /// Whether the project's members may.
    pub project_access: bool,
    /// User ids of any project.
    pub users: Vec<String>,
    /// Microseconds.
    pub created: i64,
    /// Microseconds.
    pub updated: i64,
}

struct Statements {
    read: &'static str,
    users: &'static str,
    put: &'static str,
    clear: &'static str,
    add: &'static str,
    delete: &'static str,
}

macro_rules! statements {
    ($kind:literal) => {
        Statements {
            read: concat!(
                "SELECT project_access, created, updated FROM ",
                $kind,
                "_acls WHERE ",
                $kind,
                "_id = $1"
            ),
            users: concat!(
                "SELECT user_id FROM ",
                $kind,
                "_acl_users WHERE ",
                $kind,
                "_id = $1 ORDER BY user_id"
            ),
            put: concat!(
                "INSERT INTO ",
                $kind,
                "_acls (",
                $kind,
                "_id, project_access, created, updated) VALUES ($1, $2, $3, $4)
                 ON CONFLICT (",
                $kind,
                "_id) DO UPDATE
                 SET project_access = excluded.project_access, updated = excluded.updated"
            ),
            clear: concat!(
                "DELETE FROM ",
                $kind,
                "_acl_users WHERE ",
                $kind,
                "_id = $1"
            ),
            add: concat!(
                "INSERT INTO ",
                $kind,
                "_acl_users (",
                $kind,
                "_id, user_id) VALUES ($1, $2) ON CONFLICT DO NOTHING"
            ),
            delete: concat!("DELETE FROM ", $kind, "_acls WHERE ", $kind, "_id = $1"),
        }
    };
}

/// Project access, created, updated.
type Row = (bool, i64, i64);

impl Acl {
    fn of((project_access, created, updated): Row, users: Vec<String>) -> Self {
        Self {
            project_access,
            users,
            created,
            updated,
        }
    }
}

impl Guarded {
    /// For an access list and its users.
    fn questions(self, id: &str) -> (Statement<'_, Records<Row>>, Statement<'_, Scalars<String>>) {
        let statements = self.statements();
        (
            sql::query_as(statements.read).bind(id),
            sql::query_scalar(statements.users).bind(id),
        )
    }

    fn statements(self) -> Statements {
        match self {
            Self::Secret => statements!("secret"),
            Self::Container => statements!("container"),
        }
    }
}

impl Store {
    /// The access list of a secret or container, if one was set.
    ///
    /// # Errors
    /// `Query`.
    pub async fn acl(&self, kind: Guarded, id: &str) -> StoreResult<Option<Acl>> {
        let (read, users) = kind.questions(id);
        let row = read.fetch_optional(&self.read).await?;
        Ok(match row {
            Some(row) => Some(Acl::of(row, users.fetch_all(&self.read).await?)),
            None => None,
        })
    }
}

impl Change {
    /// The access list of a secret or container, as this change sees it.
    ///
    /// # Errors
    /// `Query`.
    pub async fn acl(&mut self, kind: Guarded, id: &str) -> StoreResult<Option<Acl>> {
        let (read, users) = kind.questions(id);
        let row = read.fetch_optional(&mut *self.tx).await?;
        Ok(match row {
            Some(row) => Some(Acl::of(row, users.fetch_all(&mut *self.tx).await?)),
            None => None,
        })
    }

    /// Replaces the access list of a secret or container.
    ///
    /// # Errors
    /// `Dangling`, `Query`.
    pub async fn put_acl(&mut self, kind: Guarded, id: &str, acl: &Acl) -> StoreResult<()> {
        let statements = kind.statements();
        sql::query(statements.put)
            .bind(id)
            .bind(acl.project_access)
            .bind(acl.created)
            .bind(acl.updated)
            .execute(&mut *self.tx)
            .await?;
        sql::query(statements.clear)
            .bind(id)
            .execute(&mut *self.tx)
            .await?;
        for user in &acl.users {
            sql::query(statements.add)
                .bind(id)
                .bind(user)
                .execute(&mut *self.tx)
                .await?;
        }
        Ok(())
    }

    /// Removes an access list; the default holds again.
    ///
    /// # Errors
    /// `Query`.
    pub async fn delete_acl(&mut self, kind: Guarded, id: &str) -> StoreResult<()> {
        sql::query(kind.statements().delete)
            .bind(id)
            .execute(&mut *self.tx)
            .await?;
        Ok(())
    }
}
