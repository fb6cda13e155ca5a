//! Pages of lists.

use axum::response::{IntoResponse, Json, Response};
use serde_json::{Value, json};

use crate::http::{Base, Query};

/// A page of a list.
pub(super) struct Page {
    pub(super) limit: i64,
    pub(super) offset: i64,
}

impl Page {
    const DEFAULT: i64 = 10;
    const MAX: i64 = 100;

    /// From `limit` and `offset`; what is no number is the default, what is too small or too large the
    /// nearest that is permitted.
    pub(super) fn of(query: &Query) -> Self {
        let number = |name: &str| {
            query
                .get(name)
                .and_then(|text| text.trim().parse::<i64>().ok())
        };
        Self {
            limit: number("limit").unwrap_or(Self::DEFAULT).clamp(1, Self::MAX),
            offset: number("offset").unwrap_or(0).max(0),
        }
    }

    /// The part of a list that is in memory already.
    pub(super) fn cut<T>(&self, all: Vec<T>) -> (Vec<T>, i64) {
        let total = i64::try_from(all.len()).unwrap_or(i64::MAX);
        let skip = usize::try_from(self.offset).unwrap_or(usize::MAX);
        let take = usize::try_from(self.limit).unwrap_or(0);
        (all.into_iter().skip(skip).take(take).collect(), total)
    }

    /// `{"<key>": […], "total": n}` with links to the pages around this one.
    pub(super) fn answer(
        &self,
        base: &Base,
        query: &Query,
        key: &str,
        items: Vec<Value>,
        total: i64,
    ) -> Response {
        // Whatever else narrowed the list goes along.
        let rest: String = query
            .raw
            .split('&')
            .filter(|pair| {
                let name = pair.split('=').next().unwrap_or_default();
                !name.is_empty() && name != "limit" && name != "offset"
            })
            .map(|pair| format!("&{pair}"))
            .collect();
        let at = |offset: i64| {
            format!(
                "{}{}?limit={}&offset={offset}{rest}",
                base.key_manager(),
                query.path,
                self.limit
            )
        };
        let mut body = json!({ key: items, "total": total });
        if self.offset.saturating_add(self.limit) < total {
            body["next"] = at(self.offset + self.limit).into();
        }
        if self.offset > 0 {
            body["previous"] = at((self.offset - self.limit).max(0)).into();
        }
        Json(body).into_response()
    }
}
