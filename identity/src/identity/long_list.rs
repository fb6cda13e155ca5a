//! Lists of users, groups and projects, read from the store a page at a time.

use std::collections::VecDeque;

use serde::Serialize;
use serde_json::Value;

use super::{
    error::{ApiResult, IdentityError},
    parts::{Parts, document},
    support::{linked, wanted},
};
use crate::{
    http::{Base, Query},
    store::{StoreResult, page::Page},
};
use axum::response::IntoResponse;

/// Rows that are read at once.
const PAGE: i64 = 256;

/// Where the rows come from, by name and id.
pub(super) trait Rows: Send + 'static {
    /// A row.
    type Row: Send;

    /// The next page.
    fn page(&self, page: &Page) -> impl Future<Output = StoreResult<Vec<Self::Row>>> + Send;

    /// Name and id of a row.
    fn place(row: &Self::Row) -> (String, String);

    /// What is shown of it; `None` if the caller does not see it.
    fn show(&self, row: Self::Row) -> Option<Value>;
}

/// What kind of list it is.
pub(super) struct Kind {
    /// Name of the collection, in the path and in the answer.
    pub(super) key: &'static str,
    /// Attributes that it may be filtered by.
    pub(super) filters: &'static [&'static str],
    /// Whether the rows are narrowed by none of them, but by the store.
    pub(super) narrowed: bool,
}

struct List<R: Rows> {
    base: Base,
    query: Query,
    kind: Kind,
    rows: R,
    page: Page,
    read: VecDeque<R::Row>,
    /// Whether there may be more to read.
    more: bool,
    written: usize,
    limit: usize,
    last: String,
}

#[derive(Serialize)]
struct Links<'a> {
    next: Option<&'a str>,
    previous: Option<&'a str>,
    #[serde(rename = "self")]
    own: &'a str,
}

/// The answer to a question for a list; `after` are the name and id of the row that the marker names.
///
/// # Errors
/// From the store.
pub(super) async fn list<R: Rows>(
    (base, query): (Base, Query),
    kind: Kind,
    rows: R,
    after: Option<(String, String)>,
) -> ApiResult {
    let limit = query.get("limit").and_then(|limit| limit.parse().ok());
    let limit: Option<usize> = limit.filter(|limit| *limit > 0);
    let page = match limit {
        // One more, which says that there are more.
        Some(limit) if kind.narrowed => i64::try_from(limit).unwrap_or(PAGE).min(PAGE - 1) + 1,
        _ => PAGE,
    };
    let page = Page {
        after,
        limit: page,
        contains: query.get("name__contains").map(str::to_owned),
    };
    let list = List {
        base,
        query,
        kind,
        rows,
        page,
        read: VecDeque::new(),
        more: true,
        written: 0,
        limit: limit.unwrap_or(usize::MAX),
        last: String::new(),
    };
    Ok(document(list).await?.into_response())
}

impl<R: Rows> Parts for List<R> {
    async fn write(&mut self, out: &mut Vec<u8>) -> Result<bool, IdentityError> {
        if self.more && self.read.is_empty() {
            let rows = self.rows.page(&self.page).await?;
            self.more = i64::try_from(rows.len()).is_ok_and(|count| count == self.page.limit);
            if let Some(row) = rows.last() {
                self.page.after = Some(R::place(row));
            }
            self.read = rows.into();
        }
        while let Some(row) = self.read.pop_front() {
            let shown = self.rows.show(row);
            let Some(item) = shown.filter(|item| wanted(item, &self.query, self.kind.filters))
            else {
                continue;
            };
            if self.written == self.limit {
                self.end(out, true)?;
                return Ok(false);
            }
            self.begin(out);
            let item = linked(&self.base, self.kind.key, item);
            item["id"]
                .as_str()
                .unwrap_or_default()
                .clone_into(&mut self.last);
            serde_json::to_writer(&mut *out, &item)?;
        }
        if !self.more {
            self.end(out, false)?;
        }
        Ok(self.more)
    }
}

impl<R: Rows> List<R> {
    /// What stands before the next row.
    fn begin(&mut self, out: &mut Vec<u8>) {
        match self.written {
            0 => out.extend_from_slice(format!("{{\"{}\":[", self.kind.key).as_bytes()),
            _ => out.push(b','),
        }
        self.written += 1;
    }

    fn end(&mut self, out: &mut Vec<u8>, cut: bool) -> Result<(), IdentityError> {
        if self.written == 0 {
            self.begin(out);
        }
        let mut own = format!("{}{}", self.base.identity(), self.query.path);
        let next = format!("{own}?limit={}&marker={}", self.limit, self.last);
        if !self.query.raw.is_empty() {
            own = format!("{own}?{}", self.query.raw);
        }
        let links = Links {
            next: cut.then_some(next.as_str()),
            previous: None,
            own: &own,
        };
        out.extend_from_slice(b"],\"links\":");
        serde_json::to_writer(&mut *out, &links)?;
        out.push(b'}');
        Ok(())
    }
}
