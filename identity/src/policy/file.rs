//! Policy files of a site: a mapping of rule names to rules, in YAML (of which JSON is a part).
//!
//! A file is taken whole or not at all. oslo.policy takes a rule with a slip as false and goes on, which
//! locks people out without a word; here the file is refused with the line that says what to mend.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use serde_json::Value;
use thiserror::Error;

use super::{
    eval::{EvalError, template_parts},
    parse::{Check, Slip, parse_value},
};

/// Largest policy file, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// Why a policy file was not taken.
#[derive(Debug, Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("cannot read the policy file or folder {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is too long to be one.
    #[error("{0} is larger than 1 MiB; that is no policy file")]
    TooLarge(PathBuf),
    /// It is not YAML, or says the same name twice.
    #[error("{path} is not valid YAML or JSON: {message}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and what.
        message: String,
    },
    /// It is something else than names with rules.
    #[error(
        "{0} must be a mapping of rule names to rules, such as \"identity:get_user\": \"role:reader\""
    )]
    NoMapping(PathBuf),
    /// A rule that cannot be read.
    #[error("{path}: rule {rule}: {slip}")]
    Rule {
        /// The file.
        path: PathBuf,
        /// The rule's name.
        rule: String,
        /// What is wrong with it.
        slip: Slip,
    },
    /// A rule that could never be evaluated.
    #[error("{path}: rule {rule}: {error}")]
    Never {
        /// The file.
        path: PathBuf,
        /// The rule's name.
        rule: String,
        /// Why.
        error: EvalError,
    },
    /// A file in a policy folder whose name says no API.
    #[error(
        "{0}: the name of a file in a policy folder must begin with `identity` or `key-manager` and end with .yaml, .yml or .json"
    )]
    Name(PathBuf),
}

/// Rules read from one file, in the order of their names.
pub type Rules = BTreeMap<String, Check>;

/// The text of a file.
///
/// # Errors
/// `Read`, `TooLarge`.
pub fn read(path: &Path) -> Result<String, FileError> {
    let error = |source| FileError::Read {
        path: path.into(),
        source,
    };
    if fs::metadata(path).map_err(error)?.len() > MAX_FILE {
        return Err(FileError::TooLarge(path.into()));
    }
    fs::read_to_string(path).map_err(error)
}

/// Reads the rules in the text of a file.
///
/// # Errors
/// All but `Read`, `TooLarge` and `Name`.
pub fn parse(path: &Path, text: &str) -> Result<Rules, FileError> {
    let value: Value = if text.lines().all(|line| {
        let line = line.trim();
        line.is_empty() || line.starts_with('#') || line == "---"
    }) {
        Value::Null
    } else {
        serde_saphyr::from_str(text).map_err(|error| FileError::Syntax {
            path: path.into(),
            message: error.to_string(),
        })?
    };
    let map = match value {
        Value::Object(map) => map,
        // A file in which everything is commented out changes nothing.
        Value::Null => return Ok(Rules::new()),
        _ => return Err(FileError::NoMapping(path.into())),
    };
    let mut rules = Rules::new();
    for (rule, value) in map {
        let check = parse_value(&value).map_err(|slip| FileError::Rule {
            path: path.into(),
            rule: rule.clone(),
            slip,
        })?;
        evaluable(&check).map_err(|error| FileError::Never {
            path: path.into(),
            rule: rule.clone(),
            error,
        })?;
        rules.insert(rule, check);
    }
    Ok(rules)
}

/// Finds what no caller could ever pass: remote checks and templates that are none.
fn evaluable(check: &Check) -> Result<(), EvalError> {
    match check {
        Check::True | Check::False | Check::Rule(_) => Ok(()),
        Check::Not(inner) => evaluable(inner),
        Check::And(parts) | Check::Or(parts) => parts.iter().try_for_each(evaluable),
        Check::Remote(url) => Err(EvalError::Remote(url.clone())),
        Check::Role(template) | Check::Literal(_, template) | Check::Attribute(_, template) => {
            template_parts(template).map(|_| ())
        }
    }
}

/// The names that a rule refers to.
pub fn references(check: &Check, found: &mut Vec<String>) {
    match check {
        Check::Rule(name) => found.push(name.clone()),
        Check::Not(inner) => references(inner, found),
        Check::And(parts) | Check::Or(parts) => {
            parts.iter().for_each(|part| references(part, found));
        }
        _ => {}
    }
}

/// A rule that leads back to itself, if there is one.
pub fn circle<'a>(rules: impl IntoIterator<Item = (&'a str, &'a Check)>) -> Option<String> {
    let edges: BTreeMap<&str, Vec<String>> = rules
        .into_iter()
        .map(|(name, check)| {
            let mut found = Vec::new();
            references(check, &mut found);
            (name, found)
        })
        .collect();
    // Names that lead to no circle are taken away until nothing changes; what is left is one, or leads to one.
    let mut left: BTreeMap<&str, &Vec<String>> =
        edges.iter().map(|(name, to)| (*name, to)).collect();
    loop {
        let done: Vec<&str> = left
            .iter()
            .filter(|(_, to)| to.iter().all(|name| !left.contains_key(name.as_str())))
            .map(|(name, _)| *name)
            .collect();
        if done.is_empty() {
            break;
        }
        for name in done {
            left.remove(name);
        }
    }
    let mut at = *left.keys().next()?;
    for _ in 0..left.len() {
        let next = left
            .get(at)?
            .iter()
            .find_map(|to| left.get_key_value(to.as_str()))?;
        at = next.0;
    }
    Some(at.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Rules, String> {
        parse(Path::new("p.yaml"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn yaml_json_and_lists() {
        let yaml = parsed("# mine\n\"identity:get_user\": \"role:a or\n  role:b\"\nmacro: \"@\"\nold: [[\"role:x\"], [\"role:y\", \"role:z\"]]\n").unwrap();
        assert_eq!(yaml["identity:get_user"].to_string(), "(role:a or role:b)");
        assert_eq!(yaml["macro"], Check::True);
        assert_eq!(yaml["old"].to_string(), "(role:x or (role:y and role:z))");
        let json = parsed(r#"{"identity:get_user": "role:a", "never": "!"}"#).unwrap();
        assert_eq!((json.len(), &json["never"]), (2, &Check::False));
        for empty in ["", "# all\n# commented out\n", "---\n", "{}"] {
            assert!(parsed(empty).unwrap().is_empty(), "{empty:?}");
        }
    }

    #[test]
    fn what_is_refused_and_how() {
        for (text, why) in [
            (
                "a: \"role:x and\"",
                "rule a: something is missing behind `and`",
            ),
            ("a:", "rule a: a rule must be text"),
            ("a: true", "rule a: a rule must be text"),
            ("- a\n- b", "must be a mapping"),
            ("just text", "must be a mapping"),
            (
                "a: \"http://opa.example.org/check\"",
                "remote check http://opa.example.org/check is not supported",
            ),
            ("a: \"not https://x/y\"", "is not supported"),
            ("a: \"role:100%\"", "substitution"),
            ("a: \"x: [", "not valid YAML"),
            ("a: \"role:x\"\na: \"role:y\"", "not valid YAML"),
            ("a: @", "not valid YAML"),
        ] {
            let error = parsed(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn circles_are_found() {
        let rules = |text: &str| {
            let rules = parsed(text).unwrap();
            circle(rules.iter().map(|(name, check)| (name.as_str(), check)))
        };
        assert_eq!(
            rules("a: \"rule:b\"\nb: \"role:x or rule:c\"\nc: \"@\""),
            None
        );
        assert_eq!(rules("a: \"rule:a\""), Some("a".into()));
        let found = rules("z: \"rule:b\"\nb: \"not rule:c\"\nc: \"rule:b\"\na: \"@\"").unwrap();
        assert!(["b", "c"].contains(&found.as_str()), "{found}");
    }
}
