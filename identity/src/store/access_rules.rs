//! Access rules of users: the calls that application credentials with rules may make.

use sqlx::FromRow;

use super::{Change, Store, StoreResult, sql};

/// One call that a credential with access rules may make.
#[derive(Debug, Clone, PartialEq, FromRow)]
pub struct AccessRule {
    /// 32 hex digits.
    pub id: String,
    /// Service type.
    pub service: String,
    /// HTTP method.
    pub method: String,
    /// Path pattern: `*` and `{name}` stand for one segment, `**` for anything.
    pub path: String,
}

impl Store {
    /// The access rules of a credential; none means every call.
    ///
    /// # Errors
    /// `Query`.
    pub async fn access_rules(&self, app_credential_id: &str) -> StoreResult<Vec<AccessRule>> {
        Ok(sql::query_as(
            "SELECT r.id, r.service, r.method, r.path FROM access_rules r
             JOIN app_credential_rules c ON c.access_rule_id = r.id WHERE c.app_credential_id = $1 ORDER BY r.id",
        )
        .bind(app_credential_id)
        .fetch_all(&self.read)
        .await?)
    }

    /// The access rules of a user, whether a credential uses them or not.
    ///
    /// # Errors
    /// `Query`.
    pub async fn access_rules_of_user(&self, user_id: &str) -> StoreResult<Vec<AccessRule>> {
        Ok(sql::query_as(
            "SELECT id, service, method, path FROM access_rules WHERE user_id = $1 ORDER BY id",
        )
        .bind(user_id)
        .fetch_all(&self.read)
        .await?)
    }
}

impl Change {
    /// Gives a credential of a user these rules; one that the user has already is used, and not made a second time.
    ///
    /// # Errors
    /// `Dangling`, `Query`.
    pub(super) async fn use_access_rules(
        &mut self,
        app_credential_id: &str,
        user_id: &str,
        rules: &[AccessRule],
    ) -> StoreResult<()> {
        for rule in rules {
            sql::query(
                "INSERT INTO access_rules (id, user_id, service, method, path) VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING",
            )
            .bind(&rule.id)
            .bind(user_id)
            .bind(&rule.service)
            .bind(&rule.method)
            .bind(&rule.path)
            .execute(&mut *self.tx)
            .await?;
            sql::query(
                "INSERT INTO app_credential_rules (app_credential_id, access_rule_id)
                 SELECT $1, id FROM access_rules WHERE user_id = $2 AND service = $3 AND method = $4 AND path = $5
                 ON CONFLICT DO NOTHING",
            )
            .bind(app_credential_id)
            .bind(user_id)
            .bind(&rule.service)
            .bind(&rule.method)
            .bind(&rule.path)
            .execute(&mut *self.tx)
            .await?;
        }
        Ok(())
    }

    /// Deletes a rule of a user. Says whether there was one.
    ///
    /// # Errors
    /// `Dangling` if a credential uses it, `Query`.
    pub async fn delete_access_rule(&mut self, user_id: &str, id: &str) -> StoreResult<bool> {
        let done = sql::query("DELETE FROM access_rules WHERE id = $1 AND user_id = $2")
            .bind(id)
            .bind(user_id)
            .execute(&mut *self.tx)
            .await?;
        Ok(done.rows_affected() > 0)
    }
}
