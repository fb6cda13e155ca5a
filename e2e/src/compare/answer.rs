//! An answer without what must differ between two services (ids, times, addresses, tokens, the words of a message), and
//! what two of them differ in.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::http1::Answer;

/// Headers about the connection and the moment, not about the answer.
const TRANSPORT: [&str; 4] = ["connection", "content-length", "date", "server"];

/// Content type of a form.
const FORM: &str = "application/x-www-form-urlencoded";

/// Field with a short secret, which nothing shows to be one.
const VERIFIER: &str = "oauth_verifier";

/// A sentence about one difference.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Difference(pub(super) String);

/// The body, if it is JSON or a form: a form is an object of texts.
pub(super) fn content(answer: &Answer) -> Option<Value> {
    let kind = answer.headers.get("content-type");
    if kind.is_some_and(|kind| kind.starts_with(FORM)) {
        let text = std::str::from_utf8(&answer.body).ok()?;
        let url = reqwest::Url::parse(&format!("form:?{text}")).ok()?;
        let pairs = url.query_pairs();
        return Some(
            pairs
                .map(|(name, value)| (name.into_owned(), Value::from(value.into_owned())))
                .collect(),
        );
    }
    serde_json::from_slice(&answer.body).ok()
}

/// An answer that can be compared.
#[derive(Debug)]
pub(super) struct Normal {
    status: u16,
    headers: BTreeMap<String, String>,
    /// Every leaf of the body by its path; the elements of a list share one.
    leaves: BTreeMap<String, BTreeSet<String>>,
}

impl Normal {
    /// Takes out what must differ; `roots` are the URLs of the two APIs, `kept` what earlier answers gave.
    pub(super) fn of(
        answer: &Answer,
        roots: &[String; 2],
        kept: &BTreeMap<String, String>,
    ) -> Self {
        let mut normal = Self {
            status: answer.status,
            headers: BTreeMap::new(),
            leaves: BTreeMap::new(),
        };
        for (name, value) in &answer.headers {
            if !TRANSPORT.contains(&name.as_str()) {
                let value = if name == "allow" {
                    in_order(value)
                } else {
                    plain(value, roots, kept)
                };
                normal.headers.insert(name.clone(), value);
            }
        }
        match content(answer) {
            Some(body) => normal.put("", &body, roots, kept),
            None if answer.body.is_empty() => {}
            // Web servers' own pages have their own words.
            None if answer.status >= 400 => normal.leaf("", "page".into()),
            None => {
                let text = String::from_utf8_lossy(&answer.body);
                normal.leaf("", plain(&text, roots, kept));
            }
        }
        normal
    }

    fn leaf(&mut self, path: &str, text: String) {
        self.leaves.entry(path.to_owned()).or_default().insert(text);
    }

    fn put(
        &mut self,
        path: &str,
        value: &Value,
        roots: &[String; 2],
        kept: &BTreeMap<String, String>,
    ) {
        match value {
            Value::Object(map) if map.is_empty() => self.leaf(path, "{}".into()),
            Value::Object(map) => {
                for (name, inner) in map {
                    let dot = if path.is_empty() { "" } else { "." };
                    let name = plain(name, roots, kept);
                    self.put(&format!("{path}{dot}{name}"), inner, roots, kept);
                }
            }
            Value::Array(items) if items.is_empty() => self.leaf(path, "[]".into()),
            Value::Array(items) => {
                for item in items {
                    self.put(&format!("{path}[]"), item, roots, kept);
                }
            }
            Value::String(_) if self.status >= 400 && is_words(path) => {
                self.leaf(path, "<words>".into());
            }
            Value::String(_) if path.ends_with(VERIFIER) => self.leaf(path, "<verifier>".into()),
            Value::String(text) => self.leaf(path, plain(text, roots, kept)),
            other => self.leaf(path, other.to_string()),
        }
    }
}

/// The methods of a path, which Keystone lists in another order each time.
fn in_order(methods: &str) -> String {
    let methods: BTreeSet<&str> = methods.split(',').map(str::trim).collect();
    methods.into_iter().collect::<Vec<_>>().join(", ")
}

/// The fields with which an error is explained to people.
fn is_words(path: &str) -> bool {
    let name = path.rsplit('.').next().unwrap_or_default();
    matches!(name, "message" | "description" | "details")
}

fn plain(text: &str, roots: &[String; 2], kept: &BTreeMap<String, String>) -> String {
    let mut text = text.to_owned();
    for (root, name) in roots.iter().zip(["<identity>", "<key-manager>"]) {
        text = text.replace(root.as_str(), name);
        // The address alone, as in links to the API's versions.
        if let Some((server, _)) = root.rsplit_once('/') {
            text = text.replace(server, &format!("{name}/.."));
        }
    }
    for (name, value) in kept.iter().filter(|(_, value)| value.len() > 8) {
        text = text.replace(value.as_str(), &format!("<{name}>"));
    }
    let words =
        text.split_inclusive(|c: char| !(c.is_ascii_alphanumeric() || "-_:.+=".contains(c)));
    words
        .map(|word| {
            let end = word
                .trim_end_matches(|c: char| !(c.is_ascii_alphanumeric() || "-_:.+=".contains(c)));
            match kind(end) {
                Some(kind) => word.replacen(end, kind, 1),
                None => word.to_owned(),
            }
        })
        .collect()
}

/// What a word is, if it is one that no two services have in common.
fn kind(word: &str) -> Option<&'static str> {
    let hex = |text: &str| {
        text.bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    let bytes = word.as_bytes();
    if word.len() == 32 && hex(word) {
        return Some("<id>");
    }
    let uuid = word.strip_prefix("req-").unwrap_or(word);
    if uuid.len() == 36 && hex(&uuid.replace('-', "")) && uuid.matches('-').count() == 4 {
        return Some(if uuid.len() == word.len() {
            "<uuid>"
        } else {
            "<request>"
        });
    }
    if word.len() >= 19 && bytes.get(4) == Some(&b'-') && bytes.get(10) == Some(&b'T') {
        // Zone and precision are part of the format.
        return Some(match word.rsplit(':').next() {
            Some(end) if end.ends_with('Z') && end.contains('.') => "<time with fraction, Z>",
            Some(end) if end.ends_with('Z') => "<time, Z>",
            Some(end) if end.contains('.') => "<time with fraction>",
            _ => "<time>",
        });
    }
    let base64url = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_' || b == b'=';
    if bytes.iter().all(|b| base64url(*b)) {
        return match word.len() {
            22 => Some("<audit id>"),
            80.. => Some("<token>"),
            _ => None,
        };
    }
    None
}

/// What differs, ours first.
pub(super) fn differences(ours: &Normal, theirs: &Normal) -> Vec<Difference> {
    let mut out = Vec::new();
    if ours.status != theirs.status {
        // Everything else follows from that.
        return vec![Difference(format!(
            "status {}, theirs {}",
            ours.status, theirs.status
        ))];
    }
    let one = |text: &String| BTreeSet::from([text.clone()]);
    let headers = |normal: &Normal| -> BTreeMap<String, BTreeSet<String>> {
        normal
            .headers
            .iter()
            .map(|(name, value)| (name.clone(), one(value)))
            .collect()
    };
    compare("header", &headers(ours), &headers(theirs), &mut out);
    compare("field", &ours.leaves, &theirs.leaves, &mut out);
    out
}

type Leaves = BTreeMap<String, BTreeSet<String>>;

fn compare(what: &str, ours: &Leaves, theirs: &Leaves, out: &mut Vec<Difference>) {
    let names: BTreeSet<&String> = ours.keys().chain(theirs.keys()).collect();
    for name in names {
        let sentence = match (ours.get(name), theirs.get(name)) {
            (Some(_), None) => format!("{what} {name} only ours"),
            (None, Some(_)) => format!("{what} {name} only theirs"),
            (Some(mine), Some(other)) if mine != other => {
                let list = |set: &BTreeSet<String>, not: &BTreeSet<String>| {
                    let own: Vec<String> = set
                        .difference(not)
                        .map(|text| text.replace(['|', '`'], "/").chars().take(80).collect())
                        .collect();
                    if own.is_empty() {
                        "nothing else".to_owned()
                    } else {
                        own.join(" ")
                    }
                };
                format!(
                    "{what} {name}: {}, theirs {}",
                    list(mine, other),
                    list(other, mine)
                )
            }
            _ => continue,
        };
        out.push(Difference(sentence));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn normal(status: u16, body: &Value, port: &str) -> Normal {
        let answer = Answer {
            status,
            headers: BTreeMap::from([("date".into(), port.into()), ("vary".into(), "x".into())]),
            body: body.to_string().into_bytes(),
        };
        let root = |path: &str| format!("http://127.0.0.1:{port}{path}");
        Normal::of(&answer, &[root("/v3"), root("/v1")], &BTreeMap::new())
    }

    #[test]
    fn what_must_differ_does_not_count() {
        let body = |id: &str, port: &str, time: &str| json!({"a": [{"id": id, "links": {"self": format!("http://127.0.0.1:{port}/v3/a/{id}")}}], "at": time});
        let ours = body(
            "0123456789abcdef0123456789abcdef",
            "1",
            "2026-11-28T11:00:00.000000Z",
        );
        let theirs = body(
            "fedcba9876543210fedcba9876543210",
            "2",
            "2026-11-28T12:00:00.000000Z",
        );
        assert_eq!(
            differences(&normal(200, &ours, "1"), &normal(200, &theirs, "2")),
            []
        );
        let other = body(
            "fedcba9876543210fedcba9876543210",
            "2",
            "2026-11-28T12:00:00Z",
        );
        let found = differences(&normal(200, &ours, "1"), &normal(200, &other, "2"));
        assert_eq!(
            found,
            [Difference(
                "field at: <time with fraction, Z>, theirs <time, Z>".into()
            )]
        );
    }

    #[test]
    fn the_order_of_methods_does_not_count() {
        assert_eq!(in_order("HEAD, GET,OPTIONS"), "GET, HEAD, OPTIONS");
        let [first, second] = ["17GzNNAa", "h7LwCx9Z"]
            .map(|text| normal(200, &json!({"token": {"oauth_verifier": text}}), "1"));
        assert_eq!(differences(&first, &second), []);
    }

    #[test]
    fn what_differs_is_told() {
        let found = differences(
            &normal(200, &json!({"a": 1, "b": null, "c": [1, 2]}), "1"),
            &normal(200, &json!({"a": 1, "b": "x", "d": true, "c": [2, 1]}), "2"),
        );
        let words: Vec<&str> = found
            .iter()
            .map(|difference| difference.0.as_str())
            .collect();
        assert_eq!(words, ["field b: null, theirs x", "field d only theirs"]);
        let found = differences(
            &normal(404, &json!({}), "1"),
            &normal(403, &json!({"a": 1}), "2"),
        );
        assert_eq!(found, [Difference("status 404, theirs 403".into())]);
    }
}
