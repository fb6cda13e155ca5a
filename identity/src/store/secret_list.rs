//! Lists of secrets: filters, order, pages.

use super::{
    Store, StoreResult,
    secrets::Secret,
    sql::{self, Statement},
};

const SECOND: i64 = 1_000_000;

/// How a time is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    /// Earlier.
    Before,
    /// Earlier or the same.
    UpTo,
    /// The same.
    Exactly,
    /// The same or later.
    From,
    /// Later.
    After,
}

/// A bound for a time, in whole seconds as times are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimeBound {
    /// How.
    pub comparison: Comparison,
    /// Microseconds; the fraction of a second does not count.
    pub at: i64,
}

/// What a list is sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SortKey {
    /// Algorithm.
    Algorithm,
    /// Bits.
    BitLength,
    /// When it was made.
    Created,
    /// When it ends.
    Expiration,
    /// Mode.
    Mode,
    /// Name.
    Name,
    /// Type.
    SecretType,
    /// Status: all are active.
    Status,
    /// When it got its payload.
    Updated,
}

impl SortKey {
    /// A key by its name in the protocol.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "algorithm" => Self::Algorithm,
            "bit_length" => Self::BitLength,
            "created" => Self::Created,
            "expiration" => Self::Expiration,
            "mode" => Self::Mode,
            "name" => Self::Name,
            "secret_type" => Self::SecretType,
            "status" => Self::Status,
            "updated" => Self::Updated,
            _ => return None,
        })
    }

    fn column(self) -> Option<&'static str> {
        Some(match self {
            Self::Algorithm => "algorithm",
            Self::BitLength => "bit_length",
            Self::Created => "created",
            Self::Expiration => "expiration",
            Self::Mode => "mode",
            Self::Name => "name",
            Self::SecretType => "secret_type",
            Self::Status => return None,
            Self::Updated => "updated",
        })
    }
}

/// What a list of secrets is narrowed to and how it is sorted. Texts are SQL LIKE patterns.
#[derive(Debug, Clone, Default)]
pub struct SecretFilter {
    /// Name.
    pub name: Option<String>,
    /// Algorithm.
    pub algorithm: Option<String>,
    /// Mode.
    pub mode: Option<String>,
    /// Bits.
    pub bit_length: Option<i64>,
    /// Type.
    pub secret_type: Option<String>,
    /// Instead of a project's secrets those, of any project, whose access list names this user.
    pub acl_user: Option<String>,
    /// When it was made.
    pub created: Vec<TimeBound>,
    /// When it was changed.
    pub updated: Vec<TimeBound>,
    /// When it ends.
    pub expiration: Vec<TimeBound>,
    /// First what counts most; true is descending.
    pub sort: Vec<(SortKey, bool)>,
}

impl SecretFilter {
    fn narrow<'q, K>(&'q self, query: &mut Statement<'q, K>, project_id: &'q str, now: i64) {
        query
            .push(" FROM secrets s WHERE (s.expiration IS NULL OR s.expiration > ")
            .push_bind(now)
            .push(")");
        match &self.acl_user {
            Some(user) => query
                .push(" AND s.id IN (SELECT secret_id FROM secret_acl_users WHERE user_id = ")
                .push_bind(user)
                .push(")"),
            None => query.push(" AND s.project_id = ").push_bind(project_id),
        };
        for (column, pattern) in [
            ("name", &self.name),
            ("algorithm", &self.algorithm),
            ("mode", &self.mode),
        ] {
            if let Some(pattern) = pattern {
                query
                    .push(" AND s.")
                    .push(column)
                    .push(" LIKE ")
                    .push_bind(pattern);
            }
        }
        if let Some(bits) = self.bit_length {
            query.push(" AND s.bit_length = ").push_bind(bits);
        }
        if let Some(kind) = &self.secret_type {
            query.push(" AND s.secret_type = ").push_bind(kind);
        }
        for (column, bounds) in [
            ("created", &self.created),
            ("updated", &self.updated),
            ("expiration", &self.expiration),
        ] {
            for bound in bounds {
                let sign = match bound.comparison {
                    Comparison::Before => " < ",
                    Comparison::UpTo => " <= ",
                    Comparison::Exactly => " = ",
                    Comparison::From => " >= ",
                    Comparison::After => " > ",
                };
                query
                    .push(" AND s.")
                    .push(column)
                    .push(" / 1000000")
                    .push(sign)
                    .push_bind(bound.at.div_euclid(SECOND));
            }
        }
    }

    fn order<K>(&self, query: &mut Statement<'_, K>) {
        query.push(" ORDER BY ");
        for (key, descending) in &self.sort {
            if let Some(column) = key.column() {
                query.push("s.").push(column).push(if *descending {
                    " DESC NULLS LAST, "
                } else {
                    " NULLS FIRST, "
                });
            }
        }
        query.push("s.created, s.id");
    }
}

impl Store {
    /// One page of a project's secrets, oldest first unless the filter says otherwise, and how many there
    /// are in all.
    ///
    /// # Errors
    /// `Query`.
    pub async fn secrets(
        &self,
        project_id: &str,
        filter: &SecretFilter,
        now: i64,
        limit: i64,
        offset: i64,
    ) -> StoreResult<(Vec<Secret>, i64)> {
        let mut count = sql::query_scalar("SELECT COUNT(*)");
        filter.narrow(&mut count, project_id, now);
        let total = count.fetch_one(&self.read).await?;
        let mut list = sql::query_as("SELECT s.*");
        filter.narrow(&mut list, project_id, now);
        filter.order(&mut list);
        list.push(" LIMIT ").push_bind(limit);
        list.push(" OFFSET ").push_bind(offset);
        let page = list.fetch_all(&self.read).await?;
        Ok((page, total))
    }
}
