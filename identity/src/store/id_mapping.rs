//! Entries of directories and the ids that the API shows for them.

use sqlx::FromRow;

use super::{Change, Store, StoreResult, sql};

/// The entry behind an id.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct Mapping {
    /// The id that the API shows.
    pub public_id: String,
    /// The domain whose directory has the entry.
    pub domain_id: String,
    /// `user` or `group`.
    pub entity_type: String,
    /// The entry's own id.
    pub local_id: String,
}

const OWN_ENTRIES: &str =
    "SELECT (SELECT COUNT(*) FROM users WHERE domain_id = $1 AND id NOT IN (SELECT public_id FROM id_mapping))
     + (SELECT COUNT(*) FROM user_groups WHERE domain_id = $1 AND id NOT IN (SELECT public_id FROM id_mapping))";

impl Store {
    /// The entry behind an id.
    ///
    /// # Errors
    /// `Query`.
    pub async fn mapping(&self, public_id: &str) -> StoreResult<Option<Mapping>> {
        Ok(
            sql::query_as("SELECT * FROM id_mapping WHERE public_id = $1")
                .bind(public_id)
                .fetch_optional(&self.read)
                .await?,
        )
    }

    /// Domains with mirrored users or groups.
    ///
    /// # Errors
    /// `Query`.
    pub async fn mirrored_domains(&self) -> StoreResult<Vec<String>> {
        Ok(sql::query_scalar(
            "SELECT DISTINCT domain_id FROM id_mapping WHERE public_id IN (SELECT id FROM users)
             OR public_id IN (SELECT id FROM user_groups)",
        )
        .fetch_all(&self.read)
        .await?)
    }

    /// How many users and groups a domain has that are not mirrored.
    ///
    /// # Errors
    /// `Query`.
    pub async fn own_entries(&self, domain_id: &str) -> StoreResult<i64> {
        Ok(sql::query_scalar(OWN_ENTRIES)
            .bind(domain_id)
            .fetch_one(&self.read)
            .await?)
    }

    /// Who is in which group of a domain: `(group, user)`.
    ///
    /// # Errors
    /// `Query`.
    pub async fn memberships(&self, domain_id: &str) -> StoreResult<Vec<(String, String)>> {
        Ok(sql::query_as(
            "SELECT m.group_id, m.user_id FROM group_members m JOIN user_groups g ON g.id = m.group_id
             WHERE g.domain_id = $1",
        )
        .bind(domain_id)
        .fetch_all(&self.read)
        .await?)
    }
}

impl Change {
    /// How many users and groups a domain has that are not mirrored, as this change sees it.
    ///
    /// # Errors
    /// `Query`.
    pub async fn own_entries(&mut self, domain_id: &str) -> StoreResult<i64> {
        Ok(sql::query_scalar(OWN_ENTRIES)
            .bind(domain_id)
            .fetch_one(&mut *self.tx)
            .await?)
    }

    /// Remembers the entry behind an id; again is no error.
    ///
    /// # Errors
    /// `Dangling`, `Query`.
    pub async fn remember_mapping(&mut self, mapping: &Mapping) -> StoreResult<()> {
        sql::query(
            "INSERT INTO id_mapping (public_id, domain_id, entity_type, local_id) VALUES ($1, $2, $3, $4)
             ON CONFLICT DO NOTHING",
        )
        .bind(&mapping.public_id)
        .bind(&mapping.domain_id)
        .bind(&mapping.entity_type)
        .bind(&mapping.local_id)
        .execute(&mut *self.tx)
        .await?;
        Ok(())
    }

    /// Takes a name away from whoever else in the domain has it: its entry was renamed or is gone, and the next look at
    /// the directory says so.
    ///
    /// # Errors
    /// `Query`.
    pub async fn free_user_name(
        &mut self,
        domain_id: &str,
        name: &str,
        id: &str,
    ) -> StoreResult<()> {
        sql::query("UPDATE users SET name = id WHERE domain_id = $1 AND name = $2 AND id <> $3")
            .bind(domain_id)
            .bind(name)
            .bind(id)
            .execute(&mut *self.tx)
            .await?;
        Ok(())
    }

    /// The same for groups.
    ///
    /// # Errors
    /// `Query`.
    pub async fn free_group_name(
        &mut self,
        domain_id: &str,
        name: &str,
        id: &str,
    ) -> StoreResult<()> {
        sql::query(
            "UPDATE user_groups SET name = id WHERE domain_id = $1 AND name = $2 AND id <> $3",
        )
        .bind(domain_id)
        .bind(name)
        .bind(id)
        .execute(&mut *self.tx)
        .await?;
        Ok(())
    }

    /// Forgets a mirrored user or group whose entry is gone. What was assigned to it stays, as in Keystone: the entry
    /// may come back, and a mistake in the directory must not cost a site its assignments.
    ///
    /// # Errors
    /// `Query`.
    pub async fn forget_mirrored(&mut self, id: &str) -> StoreResult<()> {
        for statement in [
            "DELETE FROM users WHERE id = $1",
            "DELETE FROM user_groups WHERE id = $1",
        ] {
            sql::query(statement)
                .bind(id)
                .execute(&mut *self.tx)
                .await?;
        }
        Ok(())
    }

    /// Forgets all mirrored users and groups of a domain that has no directory any more.
    ///
    /// # Errors
    /// `Query`.
    pub async fn forget_mirror(&mut self, domain_id: &str) -> StoreResult<()> {
        for statement in [
            "DELETE FROM users WHERE domain_id = $1 AND id IN (SELECT public_id FROM id_mapping)",
            "DELETE FROM user_groups WHERE domain_id = $1 AND id IN (SELECT public_id FROM id_mapping)",
        ] {
            sql::query(statement)
                .bind(domain_id)
                .execute(&mut *self.tx)
                .await?;
        }
        Ok(())
    }
}
