//! One way to write SQL for both databases. A statement is text with `$1` placeholders and its values; which driver runs it is
//! decided when it runs. What the databases call differently is in `dialect`.

use std::{borrow::Cow, marker::PhantomData};

use sqlx::{
    Arguments as _, AssertSqlSafe, Connection as _, FromRow, PgPool, Postgres, SqlSafeStr, SqlStr,
    Sqlite, SqlitePool, Transaction,
    error::BoxDynError,
    postgres::{PgArguments, PgRow},
    sqlite::{SqliteArguments, SqliteRow},
};

use super::dialect;

/// Connections to one of the databases.
#[derive(Clone)]
pub(super) enum Pool {
    Sqlite(SqlitePool),
    Postgres(PgPool),
}

/// A transaction in one of the databases.
pub(super) enum Tx {
    Sqlite(Transaction<'static, Sqlite>),
    Postgres(Transaction<'static, Postgres>),
}

/// Where a statement runs.
pub(super) enum On<'c> {
    Pool(&'c Pool),
    Tx(&'c mut Tx),
}

impl<'c> From<&'c Pool> for On<'c> {
    fn from(pool: &'c Pool) -> Self {
        Self::Pool(pool)
    }
}

impl<'c> From<&'c mut Tx> for On<'c> {
    fn from(tx: &'c mut Tx) -> Self {
        Self::Tx(tx)
    }
}

impl Tx {
    pub(super) async fn commit(self) -> sqlx::Result<()> {
        match self {
            Self::Sqlite(tx) => tx.commit().await,
            Self::Postgres(tx) => tx.commit().await,
        }
    }

    pub(super) async fn rollback(self) -> sqlx::Result<()> {
        match self {
            Self::Sqlite(tx) => tx.rollback().await,
            Self::Postgres(tx) => tx.rollback().await,
        }
    }
}

impl Pool {
    pub(super) async fn close(&self) {
        match self {
            Self::Sqlite(pool) => pool.close().await,
            Self::Postgres(pool) => pool.close().await,
        }
    }
}

/// A value of a statement. Each has its type also when it is NULL, because PostgreSQL asks for it.
pub(super) enum Value<'q> {
    Text(Option<Cow<'q, str>>),
    Bytes(Option<Cow<'q, [u8]>>),
    Number(Option<i64>),
    Truth(Option<bool>),
}

macro_rules! values {
    ($($kind:ident: $($from:ty => |$value:ident| $to:expr),+;)+) => {$($(
        impl<'q> From<$from> for Value<'q> {
            fn from($value: $from) -> Self {
                Self::$kind($to)
            }
        }
    )+)+};
}

values! {
    Text:
        &'q str => |value| Some(value.into()),
        &'q String => |value| Some(value.as_str().into()),
        &'q &'q str => |value| Some((*value).into()),
        String => |value| Some(value.into()),
        Option<&'q str> => |value| value.map(Into::into),
        Option<String> => |value| value.map(Into::into),
        &'q Option<String> => |value| value.as_deref().map(Into::into);
    Bytes:
        &'q [u8] => |value| Some(value.into()),
        &'q Vec<u8> => |value| Some(value.as_slice().into()),
        Option<&'q [u8]> => |value| value.map(Into::into),
        &'q Option<Vec<u8>> => |value| value.as_deref().map(Into::into);
    Number:
        i64 => |value| Some(value),
        Option<i64> => |value| value;
    Truth:
        bool => |value| Some(value),
        Option<bool> => |value| value;
}

/// A record that both databases give.
pub(super) trait Record:
    for<'r> FromRow<'r, SqliteRow> + for<'r> FromRow<'r, PgRow> + Send + Unpin
{
}

impl<T> Record for T where
    T: for<'r> FromRow<'r, SqliteRow> + for<'r> FromRow<'r, PgRow> + Send + Unpin
{
}

/// How many records a statement changed.
pub(super) struct Done(u64);

impl Done {
    pub(super) fn rows_affected(&self) -> u64 {
        self.0
    }
}

/// The statement gives nothing.
pub(super) struct Nothing;
/// It gives records.
pub(super) struct Records<T>(PhantomData<fn() -> T>);
/// It gives values of one column.
pub(super) struct Scalars<T>(PhantomData<fn() -> T>);

/// Values as a driver takes them.
macro_rules! arguments {
    ($values:expr => $driver:ty) => {{
        let mut arguments = <$driver>::default();
        for value in $values {
            let added: Result<(), BoxDynError> = match value {
                Value::Text(value) => arguments.add(value.as_deref()),
                Value::Bytes(value) => arguments.add(value.as_deref()),
                Value::Number(value) => arguments.add(value),
                Value::Truth(value) => arguments.add(value),
            };
            added.map_err(sqlx::Error::Encode)?;
        }
        arguments
    }};
}

/// Text with its values. `K` says what it gives.
pub(super) struct Statement<'q, K> {
    text: Cow<'static, str>,
    values: Vec<Value<'q>>,
    kind: PhantomData<K>,
}

/// A statement that changes something.
pub(super) fn query<'q>(text: impl Into<Cow<'static, str>>) -> Statement<'q, Nothing> {
    Statement::new(text)
}

/// A question for records.
pub(super) fn query_as<'q, T>(text: impl Into<Cow<'static, str>>) -> Statement<'q, Records<T>> {
    Statement::new(text)
}

/// A question for the values of one column.
pub(super) fn query_scalar<'q, T>(text: impl Into<Cow<'static, str>>) -> Statement<'q, Scalars<T>> {
    Statement::new(text)
}

impl<'q, K> Statement<'q, K> {
    fn new(text: impl Into<Cow<'static, str>>) -> Self {
        Self {
            text: text.into(),
            values: Vec::new(),
            kind: PhantomData,
        }
    }

    /// The value of the next placeholder.
    pub(super) fn bind(mut self, value: impl Into<Value<'q>>) -> Self {
        self.values.push(value.into());
        self
    }

    /// Adds to the text.
    pub(super) fn push(&mut self, text: &str) -> &mut Self {
        self.text.to_mut().push_str(text);
        self
    }

    /// Adds a placeholder to the text, and its value.
    pub(super) fn push_bind(&mut self, value: impl Into<Value<'q>>) -> &mut Self {
        self.values.push(value.into());
        let number = self.values.len();
        self.push(&format!("${number}"))
    }

    fn sqlite(self) -> sqlx::Result<(SqlStr, SqliteArguments)> {
        Ok((
            as_sql(self.text),
            arguments!(self.values => SqliteArguments),
        ))
    }

    fn postgres(&self) -> sqlx::Result<(SqlStr, PgArguments)> {
        let text = as_sql(dialect::statement(self.text.clone()));
        Ok((text, arguments!(&self.values => PgArguments)))
    }
}

/// Texts are literals of this layer and `$n` placeholders; values never become text.
fn as_sql(text: Cow<'static, str>) -> SqlStr {
    match text {
        Cow::Borrowed(text) => text.into_sql_str(),
        Cow::Owned(text) => AssertSqlSafe(text).into_sql_str(),
    }
}

/// SQLSTATE of a statement that has to be prepared anew.
pub(super) const STALE: &str = "0A000";

/// PostgreSQL refuses a statement that a connection prepared before a column was added to a table of which it reads all columns,
/// as a later release does while this one runs: "cached plan must not change result type".
fn is_stale(error: &sqlx::Error) -> bool {
    error
        .as_database_error()
        .is_some_and(|error| error.code().as_deref() == Some(STALE))
}

macro_rules! run {
    ($statement:ident, $on:ident, $build:ident $(, $gives:ty)? => $fetch:ident $(, $part:ident)?) => {
        match $on.into() {
            On::Pool(Pool::Sqlite(pool)) => {
                let (text, values) = $statement.sqlite()?;
                let given = sqlx::$build::<Sqlite, $($gives,)? _>(text, values).$fetch(pool).await;
                given$(.map(|given| given.$part()))?
            }
            On::Tx(Tx::Sqlite(tx)) => {
                let (text, values) = $statement.sqlite()?;
                let given = sqlx::$build::<Sqlite, $($gives,)? _>(text, values).$fetch(&mut **tx).await;
                given$(.map(|given| given.$part()))?
            }
            On::Pool(Pool::Postgres(pool)) => {
                let mut connection = pool.acquire().await?;
                let (text, values) = $statement.postgres()?;
                let mut given = sqlx::$build::<Postgres, $($gives,)? _>(text, values).$fetch(&mut *connection).await;
                if given.as_ref().is_err_and(is_stale) {
                    connection.clear_cached_statements().await?;
                    let (text, values) = $statement.postgres()?;
                    given = sqlx::$build::<Postgres, $($gives,)? _>(text, values).$fetch(&mut *connection).await;
                }
                given$(.map(|given| given.$part()))?
            }
            On::Tx(Tx::Postgres(tx)) => {
                let (text, values) = $statement.postgres()?;
                let given = sqlx::$build::<Postgres, $($gives,)? _>(text, values).$fetch(&mut **tx).await;
                if given.as_ref().is_err_and(is_stale) {
                    // What was done before in this change is lost; the next one finds it well.
                    tx.clear_cached_statements().await?;
                }
                given$(.map(|given| given.$part()))?
            }
        }
    };
}

impl Statement<'_, Nothing> {
    pub(super) async fn execute<'c>(self, on: impl Into<On<'c>>) -> sqlx::Result<Done> {
        run!(self, on, query_with => execute, rows_affected).map(Done)
    }
}

impl<T: Record> Statement<'_, Records<T>> {
    pub(super) async fn fetch_all<'c>(self, on: impl Into<On<'c>>) -> sqlx::Result<Vec<T>> {
        run!(self, on, query_as_with, T => fetch_all)
    }

    pub(super) async fn fetch_optional<'c>(self, on: impl Into<On<'c>>) -> sqlx::Result<Option<T>> {
        run!(self, on, query_as_with, T => fetch_optional)
    }

    pub(super) async fn fetch_one<'c>(self, on: impl Into<On<'c>>) -> sqlx::Result<T> {
        run!(self, on, query_as_with, T => fetch_one)
    }
}

impl<T> Statement<'_, Scalars<T>>
where
    T: Send + Unpin,
    (T,): Record,
{
    pub(super) async fn fetch_all<'c>(self, on: impl Into<On<'c>>) -> sqlx::Result<Vec<T>> {
        run!(self, on, query_scalar_with, T => fetch_all)
    }

    pub(super) async fn fetch_optional<'c>(self, on: impl Into<On<'c>>) -> sqlx::Result<Option<T>> {
        run!(self, on, query_scalar_with, T => fetch_optional)
    }

    pub(super) async fn fetch_one<'c>(self, on: impl Into<On<'c>>) -> sqlx::Result<T> {
        run!(self, on, query_scalar_with, T => fetch_one)
    }
}
