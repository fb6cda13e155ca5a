//! What PostgreSQL writes in other words. Statements and migrations are written for SQLite in words that both know, as far as
//! there are any; the rest is put into PostgreSQL's words here, and nowhere else.

use std::borrow::Cow;

use sqlx::{
    AssertSqlSafe, SqlSafeStr,
    migrate::{Migration, Migrator},
};

/// The schema. PostgreSQL gets the same files, but for those that [`FOR_POSTGRES`] has under the same number.
pub(super) static FOR_SQLITE: Migrator = sqlx::migrate!("./migrations");
/// Migrations that only PostgreSQL has, or has in other words.
static FOR_POSTGRES: Migrator = sqlx::migrate!("./migrations/postgresql");

/// SQLite compares ASCII letters without case in LIKE and knows no escape unless it is told one.
fn likes(text: &str) -> String {
    let mut done = String::with_capacity(text.len() + 16);
    let mut pieces = text.split(" LIKE ");
    done.push_str(pieces.next().unwrap_or_default());
    for piece in pieces {
        done.push_str(" ILIKE ");
        let end = piece
            .find(|letter: char| letter != '$' && !letter.is_ascii_digit())
            .unwrap_or(piece.len());
        let (pattern, rest) = piece.split_at(end);
        done.push_str(pattern);
        if !rest.starts_with(" ESCAPE") {
            done.push_str(" ESCAPE ''");
        }
        done.push_str(rest);
    }
    done
}

/// A statement in PostgreSQL's words.
pub(super) fn statement(text: Cow<'static, str>) -> Cow<'static, str> {
    let mut text = text;
    if text.contains(" LIKE ") {
        text = likes(&text).into();
    }
    if text.contains("json_each($1)") {
        text = text
            .replace(
                "SELECT value FROM json_each($1)",
                "SELECT value COLLATE \"C\" FROM json_array_elements_text(CAST($1 AS json)) AS listed (value)",
            )
            .into();
    }
    if text.contains("group_concat(") {
        text = text
            .replace("group_concat(", "string_agg(")
            .replace("char(31)", "chr(31)")
            .into();
    }
    text
}

/// A migration in PostgreSQL's words. Texts are compared and sorted by their bytes, as SQLite does it, whatever the database's
/// own order is: a page that begins behind a name must mean the same on both.
fn migration(text: &str) -> String {
    text.lines()
        .map(|line| {
            if line.trim_start().starts_with("--") {
                line.to_owned()
            } else {
                line.replace(" BLOB", " BYTEA")
                    .replace(" TEXT", " TEXT COLLATE \"C\"")
            }
        })
        .fold(String::with_capacity(text.len() + 1024), |done, line| {
            done + &line + "\n"
        })
}

/// The schema in PostgreSQL's words.
pub(super) fn for_postgres() -> Migrator {
    let own = |version| FOR_POSTGRES.iter().any(|own| own.version == version);
    let mut migrations: Vec<Migration> = FOR_SQLITE
        .iter()
        .filter(|migration| !own(migration.version))
        .map(|migration| {
            Migration::new(
                migration.version,
                migration.description.clone(),
                migration.migration_type,
                AssertSqlSafe(self::migration(migration.sql.as_str())).into_sql_str(),
                migration.no_tx,
            )
        })
        .chain(FOR_POSTGRES.iter().cloned())
        .collect();
    migrations.sort();
    Migrator {
        migrations: migrations.into(),
        // Those of a later release, beside which this one may work: see `upgrade`.
        ignore_missing: true,
        ..Migrator::DEFAULT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_mean_the_same() {
        assert_eq!(
            statement("a LIKE $1) AND (b LIKE $12 ESCAPE '\\')".into()),
            "a ILIKE $1 ESCAPE '') AND (b ILIKE $12 ESCAPE '\\')"
        );
        assert!(matches!(
            statement("SELECT 1".into()),
            Cow::Borrowed("SELECT 1")
        ));
    }

    #[test]
    fn every_migration_has_one_form_for_postgresql() {
        let migrator = for_postgres();
        let numbers: Vec<i64> = migrator.iter().map(|migration| migration.version).collect();
        assert!(numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
        assert!(FOR_SQLITE.iter().all(|one| numbers.contains(&one.version)));
        for migration in migrator.iter() {
            let text = migration.sql.as_str();
            assert!(
                !text.contains("BLOB") && !text.contains("zeroblob("),
                "{text}"
            );
        }
    }
}
