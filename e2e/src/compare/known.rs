//! The list of differences that stay: rows of a table `| request | difference | reason |`, request and difference in
//! backticks. A `*` at the end of the request stands for whatever follows, alone for every request.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};

use super::answer::Difference;

/// What the list says to what was found.
#[derive(Debug, Default)]
pub(super) struct Verdict {
    /// Rows of the list.
    pub(super) listed: usize,
    /// Found, and not listed.
    pub(super) new: Vec<(String, Difference)>,
    /// Listed, and not found.
    pub(super) gone: Vec<String>,
}

/// Compares the list with what was found.
///
/// # Errors
/// If a row has no reason.
pub(super) fn judge(list: &str, found: &BTreeSet<(String, Difference)>) -> Result<Verdict> {
    let mut verdict = Verdict::default();
    let mut left = found.clone();
    for row in list.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        ensure!(
            cells.len() == 3 && cells[2].len() > 5,
            "a row needs request, difference and reason: {row}"
        );
        let (request, difference) = (cells[0].trim_matches('`'), cells[1].trim_matches('`'));
        verdict.listed += 1;
        let hits = |(name, what): &(String, Difference)| {
            let fits = match request.strip_suffix('*') {
                Some(begin) => name.starts_with(begin),
                None => request == name,
            };
            fits && what.0 == difference
        };
        if !found.iter().any(hits) {
            verdict.gone.push(row.to_owned());
        }
        left.retain(|entry| !hits(entry));
    }
    verdict.new = left.into_iter().collect();
    Ok(verdict)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listed_new_and_gone() {
        let found = |pairs: &[(&str, &str)]| -> BTreeSet<(String, Difference)> {
            pairs
                .iter()
                .map(|(a, b)| ((*a).to_owned(), Difference((*b).to_owned())))
                .collect()
        };
        let list = "| request | difference | reason |\n|---|---|---|\n| `*` | `header x only ours` | it is safer |\n\
                    | `GET /v3/a` | `status 1, theirs 2` | they are wrong |\n";
        let all = found(&[
            ("GET /v3/b", "header x only ours"),
            ("GET /v3/a", "status 1, theirs 2"),
        ]);
        let verdict = judge(list, &all).unwrap();
        assert!(verdict.new.is_empty() && verdict.gone.is_empty());
        let verdict = judge(list, &found(&[("GET /v3/c", "status 1, theirs 2")])).unwrap();
        assert_eq!(
            (verdict.new.len(), verdict.gone.len(), verdict.listed),
            (1, 2, 2)
        );
        let begin = "| `GET /v3/*` | `status 1, theirs 2` | they are wrong |\n";
        let verdict = judge(begin, &found(&[("GET /v3/c", "status 1, theirs 2")])).unwrap();
        assert!(verdict.new.is_empty() && verdict.gone.is_empty());
        let verdict = judge(begin, &found(&[("GET /v1/c", "status 1, theirs 2")])).unwrap();
        assert_eq!((verdict.new.len(), verdict.gone.len()), (1, 1));
        assert!(judge("| `a` | `b` |  |\n", &all).is_err());
    }
}
