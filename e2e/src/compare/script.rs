//! The requests, one a line:
//!
//! ```text
//! [@WHO] METHOD /v3/path [{json}] [; Header: value]… [-> name=/json/pointer name=Header … | -> @OWNER]
//! ```
//!
//! `$name` stands for what an earlier line kept, `@none` sends no token, `-> @OWNER` keeps the token of a login. Below
//! `/v3` is the identity API, below `/v1` the key manager. Each `GET` is sent as a `HEAD` too. `$totp(SEED)` in a body is the one-time
//! password of the moment, `$ec2(…)` and `$s3(…)` are signed requests (`signed.rs`), `$long(NUMBER)` are so many letters, anywhere.
//! The header `OAuth1: CONSUMER SECRET [TOKEN SECRET [VERIFIER]]` signs the request; an answer that is a form is read as an object.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Api {
    Identity,
    KeyManager,
}

/// One request.
#[derive(Debug, Clone)]
pub(super) struct Step {
    pub(super) who: String,
    pub(super) method: String,
    pub(super) api: Api,
    /// Below the API's root.
    pub(super) path: String,
    pub(super) body: String,
    pub(super) headers: Vec<(String, String)>,
    /// Name, and JSON pointer or name of a header in lower case.
    pub(super) keep: Vec<(String, String)>,
    /// Whose token comes back.
    pub(super) login: Option<String>,
    name: String,
}

impl Step {
    /// The request as it is written in the script, without what is kept.
    pub(super) fn name(&self) -> String {
        self.name.clone()
    }

    /// The same with the method HEAD, for a `GET`.
    pub(super) fn head(&self) -> Option<Self> {
        (self.method == "GET").then(|| Self {
            method: "HEAD".into(),
            name: self.name.replacen("GET /", "HEAD /", 1),
            keep: Vec::new(),
            login: None,
            ..self.clone()
        })
    }
}

/// Reads the script.
///
/// # Errors
/// If a line cannot be read.
pub(super) fn read(text: &str) -> Result<Vec<Step>> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| read_line(line).with_context(|| format!("the line {line:?}")))
        .collect()
}

fn read_line(line: &str) -> Result<Step> {
    let (request, kept) = line.split_once(" -> ").unwrap_or((line, ""));
    let name = request.replace('|', "/");
    let mut parts = request.split(" ; ");
    let mut rest = parts.next().unwrap_or_default();
    let mut who = "admin";
    if let Some(after) = rest.strip_prefix('@') {
        (who, rest) = after.split_once(' ').context("no method")?;
    }
    let (method, rest) = rest.split_once(' ').context("no path")?;
    let (path, body) = rest.split_once(" {").unwrap_or((rest, ""));
    let body = if body.is_empty() {
        String::new()
    } else {
        format!("{{{body}")
    };
    let (api, path) = if let Some(path) = path.strip_prefix("/v3") {
        (Api::Identity, path)
    } else if let Some(path) = path.strip_prefix("/v1") {
        (Api::KeyManager, path)
    } else {
        bail!("a path begins with /v3 or /v1");
    };
    let headers = parts
        .map(|header| {
            let (name, value) = header
                .split_once(": ")
                .context("a header without a value")?;
            Ok((name.to_owned(), value.to_owned()))
        })
        .collect::<Result<_>>()?;
    let (mut keep, mut login) = (Vec::new(), None);
    for word in kept.split_whitespace() {
        if let Some(owner) = word.strip_prefix('@') {
            login = Some(owner.to_owned());
            continue;
        }
        let (name, from) = word.split_once('=').context("kept from nowhere")?;
        ensure!(!from.is_empty(), "kept from nowhere");
        let from = match from.strip_prefix('/') {
            Some(_) => from.to_owned(),
            None => from.to_ascii_lowercase(),
        };
        keep.push((name.to_owned(), from));
    }
    Ok(Step {
        who: who.into(),
        method: method.into(),
        api,
        path: path.into(),
        body,
        headers,
        keep,
        login,
        name,
    })
}

/// Puts kept values in the place of their names; the longest name that fits.
pub(super) fn expand(text: &str, values: &BTreeMap<String, String>) -> String {
    let mut out = text.to_owned();
    // From the end of the alphabet, so that a name comes before those that it begins with.
    for (name, value) in values.iter().rev() {
        out = out.replace(&format!("${name}"), value);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let line = "@tenant GET /v1/secrets/$id/payload ; Accept: text/plain -> name=/a/0/b @bob";
        let step = read_line(line).unwrap();
        assert_eq!((step.who.as_str(), step.method.as_str()), ("tenant", "GET"));
        assert_eq!(
            (step.api, step.path.as_str()),
            (Api::KeyManager, "/secrets/$id/payload")
        );
        assert_eq!(
            step.headers,
            [("Accept".to_owned(), "text/plain".to_owned())]
        );
        assert_eq!(step.keep, [("name".to_owned(), "/a/0/b".to_owned())]);
        assert_eq!(step.login.as_deref(), Some("bob"));
        let step = read_line(r#"POST /v3/users {"user": {"name": "x"}}"#).unwrap();
        assert_eq!(
            (step.who.as_str(), step.body.as_str()),
            ("admin", r#"{"user": {"name": "x"}}"#)
        );
        let step = read_line("GET /v3 -> a=Some-Header b=/Pointer").unwrap();
        let kept: Vec<&str> = step.keep.iter().map(|(_, from)| from.as_str()).collect();
        assert_eq!(kept, ["some-header", "/Pointer"]);
        let head = step.head().unwrap();
        assert_eq!(
            (head.method.as_str(), head.name.as_str()),
            ("HEAD", "HEAD /v3")
        );
        assert!(head.keep.is_empty() && head.head().is_none());
        assert!(read_line("GET").is_err() && read_line("GET /v2").is_err());
    }

    #[test]
    fn the_script_can_be_read() {
        assert!(read(super::super::SCRIPT).unwrap().len() > 50);
        assert!(read(super::super::STRICT).unwrap().len() > 20);
    }

    #[test]
    fn longer_names_first() {
        let values = BTreeMap::from([("a".into(), "1".into()), ("ab".into(), "2".into())]);
        assert_eq!(expand("$ab $a", &values), "2 1");
    }
}
