//! The rows that the key-encryption key seals, a few for each project: written anew when that key was rotated, so that nothing is left
//! that the old one opens. The secrets, of which there may be a million, are sealed by the projects' keys and stay where they are:
//! to write them anew would keep writers waiting, on PostgreSQL readers too, for as long as that takes.

use sqlx::Connection;

use super::{
    Store, StoreResult,
    sql::{self, Pool},
    sqlite_whole,
};

/// Their tables.
const TABLES: [&str; 3] = ["meta", "token_keys", "project_keys"];

impl Store {
    /// Writes them anew. On SQLite the pages that they were on are overwritten, with whatever copies of rows were left in them; on
    /// PostgreSQL the files are given back.
    ///
    /// # Errors
    /// `Unavailable`, `Query`.
    pub async fn rewrite_sealed(&self) -> StoreResult<()> {
        {
            let (_alone, pool) = self.writer.alone().await;
            match pool {
                Pool::Sqlite(pool) => {
                    // The rows come back in the same change, so that no reference to one is ever broken.
                    let options = pool.connect_options().as_ref().clone().foreign_keys(false);
                    let mut connection = sqlite_whole::connect(&options).await?;
                    for table in TABLES {
                        let mut tx = connection.begin_with("BEGIN IMMEDIATE").await?;
                        for statement in [
                            format!("CREATE TEMP TABLE anew AS SELECT * FROM {table}"),
                            format!("DELETE FROM {table}"),
                            format!("INSERT INTO {table} SELECT * FROM anew"),
                            "DROP TABLE temp.anew".to_owned(),
                        ] {
                            sqlx::query(sqlx::AssertSqlSafe(statement))
                                .execute(&mut *tx)
                                .await?;
                        }
                        tx.commit().await?;
                    }
                    connection.close().await?;
                }
                Pool::Postgres(_) => {
                    for table in TABLES {
                        sql::query(format!("VACUUM (FULL) {table}"))
                            .execute(pool)
                            .await?;
                    }
                }
            }
        }
        self.mark_log_dirty();
        self.truncate_log().await
    }
}
