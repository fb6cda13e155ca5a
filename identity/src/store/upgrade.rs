//! Replicas of several releases on one PostgreSQL database. A program of before goes on with a schema that a later one made, as long
//! as the database does not say that it needs more; and it is not made to say so while a replica is there that would have to stop.
//! SQLite has one program, which makes its schema.

use sqlx::{PgPool, migrate::Migrator, postgres::PgConnectOptions};

use super::{StoreError, StoreResult, dialect, postgres_pool, replicas, writer};

/// The lowest migration that a program has to know to work beside this one. A migration that takes away or changes what
/// statements of before use puts its own number here; one that only adds does not.
const NEEDS: i64 = 0;

/// What a program makes of a database.
pub(crate) struct Schema {
    migrator: Migrator,
    needs: i64,
}

impl Schema {
    /// Of this program.
    pub(crate) fn ours() -> Self {
        Self {
            migrator: dialect::for_postgres(),
            needs: NEEDS,
        }
    }

    /// Of a later program, with a further migration.
    #[cfg(test)]
    pub(crate) fn later(version: i64, text: &'static str, needs: i64) -> Self {
        use sqlx::{
            SqlSafeStr,
            migrate::{Migration, MigrationType},
        };
        let mut migrations = dialect::for_postgres().migrations.into_owned();
        migrations.push(Migration::new(
            version,
            "later".into(),
            MigrationType::Simple,
            text.into_sql_str(),
            false,
        ));
        Self {
            migrator: Migrator {
                migrations: migrations.into(),
                ..dialect::for_postgres()
            },
            needs,
        }
    }

    /// The highest migration that the program knows.
    pub(crate) fn knows(&self) -> i64 {
        let numbers = self.migrator.iter().map(|migration| migration.version);
        numbers.max().unwrap_or_default()
    }

    /// Brings the schema up to date, on a connection of its own, without limits of time; the driver takes a lock meanwhile.
    ///
    /// # Errors
    /// `Outdated`, `OlderReplicas`, `Migrate`; nothing was changed then, or for `Migrate` less than everything.
    pub(super) async fn bring_up(&self, options: PgConnectOptions) -> StoreResult<()> {
        let pool: PgPool = postgres_pool(1).connect_with(options).await?;
        let done = async {
            self.claim(&pool).await?;
            self.migrator.run(&pool).await?;
            // A database that had no such record before.
            sqlx::query("UPDATE generation SET needs = $1 WHERE needs < $1")
                .bind(self.needs)
                .execute(&pool)
                .await?;
            Ok(())
        }
        .await;
        pool.close().await;
        done
    }

    /// Says what the database needs from now on, before anything is changed. Replicas announce themselves under the same lock.
    async fn claim(&self, pool: &PgPool) -> StoreResult<()> {
        let mut tx = pool.begin().await?;
        sqlx::query("SELECT pg_advisory_xact_lock($1)")
            .bind(writer::ONE_WRITER)
            .execute(&mut *tx)
            .await?;
        let there: bool = sqlx::query_scalar(
            "SELECT EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass('generation') AND attname = 'needs')",
        )
        .fetch_one(&mut *tx)
        .await?;
        if !there {
            return Ok(());
        }
        let needs: i64 = sqlx::query_scalar("SELECT needs FROM generation")
            .fetch_one(&mut *tx)
            .await?;
        suffices(self.knows(), needs)?;
        if self.needs > needs {
            let older: Vec<String> = sqlx::query_scalar(replicas::OLDER)
                .bind(self.needs)
                .fetch_all(&mut *tx)
                .await?;
            if !older.is_empty() {
                return Err(StoreError::OlderReplicas(older));
            }
            sqlx::query("UPDATE generation SET needs = $1")
                .bind(self.needs)
                .execute(&mut *tx)
                .await?;
        }
        Ok(tx.commit().await?)
    }
}

/// Whether a program that `knows` so many migrations may work on a database.
pub(super) fn suffices(knows: i64, needs: i64) -> StoreResult<()> {
    if needs > knows {
        return Err(StoreError::Outdated { needs, knows });
    }
    Ok(())
}
