//! What a list of secrets is narrowed to and sorted by, read from the query.

use super::error::KeyManagerError;
use crate::{
    http::Query,
    store::secret_list::{Comparison, SecretFilter, SortKey, TimeBound},
};

/// The filter in a query. Unknown parameters are ignored, as the protocol does.
///
/// # Errors
/// 400 for times and orders that cannot be understood.
pub(super) fn filter(query: &Query, user_id: &str) -> Result<SecretFilter, KeyManagerError> {
    let own = |name: &str| query.non_empty(name).map(str::to_owned);
    let acl_only = query
        .get("acl_only")
        .is_some_and(|value| value.eq_ignore_ascii_case("true"));
    Ok(SecretFilter {
        name: own("name"),
        algorithm: own("alg"),
        mode: own("mode"),
        bit_length: query
            .get("bits")
            .and_then(|bits| bits.trim().parse().ok())
            .filter(|bits| *bits > 0),
        secret_type: own("secret_type"),
        acl_user: acl_only.then(|| user_id.to_owned()),
        created: bounds(query, "created")?,
        updated: bounds(query, "updated")?,
        expiration: bounds(query, "expiration")?,
        sort: sorting(query)?,
    })
}

/// `gt:`, `gte:`, `lt:`, `lte:` before a time, or a time alone; several with commas. At most one bound from
/// below and one from above, and none of them that says the same as an exact time.
fn bounds(query: &Query, name: &str) -> Result<Vec<TimeBound>, KeyManagerError> {
    let Some(text) = query.non_empty(name) else {
        return Ok(Vec::new());
    };
    let bad = || {
        KeyManagerError::BadRequest(format!(
            "The parameter {name} must be times with commas between them, each alone or behind gt:, gte:, lt: or lte:."
        ))
    };
    let mut found: Vec<TimeBound> = Vec::new();
    for part in text.split(',') {
        let (comparison, time) = [
            ("gte:", Comparison::From),
            ("gt:", Comparison::After),
            ("lte:", Comparison::UpTo),
            ("lt:", Comparison::Before),
        ]
        .into_iter()
        .find_map(|(prefix, comparison)| Some((comparison, part.strip_prefix(prefix)?)))
        .unwrap_or((Comparison::Exactly, part));
        if found
            .iter()
            .any(|other| contradicts(other.comparison, comparison))
        {
            return Err(bad());
        }
        // A plus sign of a zone arrives as a space when it was not encoded.
        let at = crate::time::parse_time(&time.trim().replace(' ', "+")).ok_or_else(bad)?;
        found.push(TimeBound { comparison, at });
    }
    Ok(found)
}

fn contradicts(old: Comparison, new: Comparison) -> bool {
    use Comparison::{After, Before, Exactly, From, UpTo};
    matches!(
        (old, new),
        (After | From, After | From)
            | (Before | UpTo, Before | UpTo)
            | (Exactly | From | UpTo, Exactly)
            | (Exactly, From | UpTo)
    )
}

fn sorting(query: &Query) -> Result<Vec<(SortKey, bool)>, KeyManagerError> {
    let Some(text) = query.non_empty("sort") else {
        return Ok(Vec::new());
    };
    let bad = || {
        KeyManagerError::BadRequest(
            "The parameter sort must be names of attributes with commas between them, each with :asc or :desc or nothing behind it, none of them twice.".into(),
        )
    };
    let mut found: Vec<(SortKey, bool)> = Vec::new();
    for part in text.split(',') {
        let (name, direction) = part.split_once(':').unwrap_or((part, "asc"));
        let key = SortKey::named(name).ok_or_else(bad)?;
        let descending = match direction {
            "asc" => false,
            "desc" => true,
            _ => return Err(bad()),
        };
        if found.iter().any(|(other, _)| *other == key) {
            return Err(bad());
        }
        found.push((key, descending));
    }
    Ok(found)
}
