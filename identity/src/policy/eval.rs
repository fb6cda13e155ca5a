//! Evaluation of a parsed rule on credentials and a target.

use std::{borrow::Cow, collections::BTreeMap};

use serde_json::Value;
use thiserror::Error;

use super::parse::Check;

/// How deep rules may refer to rules; deeper is a circle.
const MAX_DEPTH: usize = 32;

/// Why a rule has no result. The caller treats it as a refusal and tells the operator.
#[derive(Debug, Clone, Error, PartialEq)]
pub enum EvalError {
    /// A rule that refers to itself.
    #[error("rule {0} refers to itself; break the circle in the policy file")]
    Circle(String),
    /// A `%` that starts no `%(name)s`.
    #[error("`{0}` holds a % that is no %(name)s substitution; write %% for a percent sign")]
    Template(String),
    /// Remote checks are not available.
    #[error("the remote check {0} is not supported; express the rule with roles and attributes")]
    Remote(String),
}

/// The object that an action is about, flattened: `target.user.domain_id` → value.
#[derive(Debug, Clone, Default)]
pub struct Target(BTreeMap<String, String>);

impl Target {
    /// Nothing known of the target.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a value under a dotted name; objects are flattened below it.
    #[must_use]
    pub fn with(mut self, name: &str, value: &Value) -> Self {
        self.put(name, value);
        self
    }

    /// Adds one string.
    #[must_use]
    pub fn text(mut self, name: &str, value: &str) -> Self {
        self.0.insert(name.to_owned(), value.to_owned());
        self
    }

    fn put(&mut self, name: &str, value: &Value) {
        match value {
            Value::Object(map) => {
                for (key, inner) in map {
                    // Attributes of users and projects are named by whoever made them: a dot in such a name
                    // must not spell an attribute of something inside.
                    if !key.contains('.') {
                        self.put(&format!("{name}.{key}"), inner);
                    }
                }
            }
            other => {
                self.0.insert(name.to_owned(), python_text(other));
            }
        }
    }

    /// `%(name)s` replaced from this target; `None` when a name is missing.
    fn substitute<'t>(&self, template: &'t str) -> Result<Option<Cow<'t, str>>, EvalError> {
        if !template.contains('%') {
            return Ok(Some(Cow::Borrowed(template)));
        }
        let mut out = String::with_capacity(template.len());
        for part in template_parts(template)? {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Name(name) => match self.0.get(name) {
                    Some(value) => out.push_str(value),
                    None => return Ok(None),
                },
            }
        }
        Ok(Some(Cow::Owned(out)))
    }

    /// What is known under a name.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }
}

/// A piece of a template.
#[derive(Debug, PartialEq)]
pub(super) enum Part<'t> {
    /// Stands for itself.
    Text(&'t str),
    /// The name in `%(name)s`.
    Name(&'t str),
}

/// Splits a template at its substitutions.
pub(super) fn template_parts(template: &str) -> Result<Vec<Part<'_>>, EvalError> {
    let mut parts = Vec::new();
    let mut rest = template;
    while let Some(at) = rest.find('%') {
        parts.push(Part::Text(&rest[..at]));
        let mark = &rest[at..];
        if let Some(after) = mark.strip_prefix("%%") {
            parts.push(Part::Text("%"));
            rest = after;
            continue;
        }
        let Some((name, after)) = mark.strip_prefix("%(").and_then(|r| r.split_once(")s")) else {
            return Err(EvalError::Template(template.to_owned()));
        };
        parts.push(Part::Name(name));
        rest = after;
    }
    parts.push(Part::Text(rest));
    Ok(parts)
}

/// Who asks: the attributes of the token, as oslo.policy sees them (`user_id`, `project_id`, `roles`, …).
#[derive(Debug, Clone, Default)]
pub struct Creds(pub Value);

/// The text that Python's `str()` gives for a JSON value; policy files were written for that.
fn python_text(value: &Value) -> String {
    match value {
        Value::Null => "None".to_owned(),
        Value::Bool(true) => "True".to_owned(),
        Value::Bool(false) => "False".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Evaluates `check`; `lookup` finds other rules by name.
pub(super) fn evaluate<'a>(
    check: &'a Check,
    lookup: &dyn Fn(&str) -> Option<&'a Check>,
    target: &Target,
    creds: &Creds,
    depth: usize,
) -> Result<bool, EvalError> {
    match check {
        Check::True => Ok(true),
        Check::False => Ok(false),
        Check::Not(inner) => evaluate(inner, lookup, target, creds, depth).map(|result| !result),
        Check::And(parts) => {
            for part in parts {
                if !evaluate(part, lookup, target, creds, depth)? {
                    return Ok(false);
                }
            }
            Ok(true)
        }
        Check::Or(parts) => {
            for part in parts {
                if evaluate(part, lookup, target, creds, depth)? {
                    return Ok(true);
                }
            }
            Ok(false)
        }
        Check::Rule(name) => {
            if depth >= MAX_DEPTH {
                return Err(EvalError::Circle(name.clone()));
            }
            match lookup(name).or_else(|| lookup("default")) {
                Some(found) => evaluate(found, lookup, target, creds, depth + 1),
                None => Ok(false),
            }
        }
        Check::Role(template) => {
            let Some(wanted) = target.substitute(template)? else {
                return Ok(false);
            };
            let wanted = wanted.to_lowercase();
            let held = creds.0.get("roles").and_then(Value::as_array);
            Ok(held.is_some_and(|roles| {
                roles
                    .iter()
                    .filter_map(Value::as_str)
                    .any(|role| role.to_lowercase() == wanted)
            }))
        }
        Check::Remote(url) => Err(EvalError::Remote(url.clone())),
        Check::Literal(value, template) => Ok(target
            .substitute(template)?
            .is_some_and(|text| text == *value)),
        Check::Attribute(path, template) => {
            let Some(wanted) = target.substitute(template)? else {
                return Ok(false);
            };
            Ok(holds(&creds.0, path, &wanted))
        }
    }
}

/// Whether the credentials hold `wanted` at `path`; in a list any element may.
fn holds(value: &Value, path: &[String], wanted: &str) -> bool {
    if let Value::Array(items) = value {
        return items.iter().any(|item| holds(item, path, wanted));
    }
    match path.split_first() {
        None => python_text(value) == wanted,
        Some((first, rest)) => value
            .get(first)
            .is_some_and(|inner| holds(inner, rest, wanted)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::policy::parse::parse_rule;

    fn run(rule: &str, others: &[(&str, &str)]) -> Result<bool, EvalError> {
        let creds = Creds(json!({
            "roles": ["Admin", "member"], "user_id": "u1", "domain_id": null, "is_admin": true,
            "groups": [{"id": "g1"}, {"id": "g2"}], "n": 5,
        }));
        let target = Target::new()
            .text("user_id", "u1")
            .with("x", &Value::Null)
            .with("enabled", &json!(true))
            .with("num", &json!(5))
            .text("role", "Member");
        let rules: BTreeMap<&str, Check> = others
            .iter()
            .map(|(name, text)| (*name, parse_rule(text)))
            .collect();
        evaluate(
            &parse_rule(rule),
            &|name| rules.get(name),
            &target,
            &creds,
            0,
        )
    }

    /// Results of the real library, measured.
    #[test]
    fn golden_results() {
        let table = [
            ("role:admin", true),
            ("role:%(role)s", true),
            ("role:%(missing)s", false),
            ("domain_id:%(x)s", true),
            ("domain_id:None", true),
            ("None:%(x)s", true),
            ("not domain_id:None", false),
            ("nosuch:%(x)s", false),
            ("is_admin:True", true),
            ("is_admin:1", false),
            ("'Member':%(role)s", true),
            ("'member':%(role)s", false),
            ("5:%(num)s", true),
            ("n:5", true),
            ("groups.id:g2", true),
            ("True:%(enabled)s", true),
            ("role:x or role:admin and role:member", true),
            ("role:x and role:y or role:admin", true),
            ("not role:x and role:admin", true),
            ("not not role:admin", true),
            ("(role:admin)", true),
            ("not (role:admin)", false),
            ("role:admin role:member", false),
            ("role:admin and", false),
            ("(role:admin", false),
            ("role:admin)", false),
            ("()", false),
            ("\"quoted\"", false),
            ("justword", false),
            ("", true),
            ("@", true),
            ("!", false),
        ];
        for (rule, expected) in table {
            assert_eq!(run(rule, &[]), Ok(expected), "{rule}");
        }
        assert_eq!(run("rule:missing", &[]), Ok(false));
        assert_eq!(run("rule:missing", &[("default", "@")]), Ok(true));
    }

    #[test]
    fn circles_and_bad_templates_are_errors() {
        assert_eq!(
            run("rule:t", &[("t", "rule:t")]),
            Err(EvalError::Circle("t".into()))
        );
        assert!(matches!(run("role:100%", &[]), Err(EvalError::Template(_))));
        assert!(matches!(
            run("http://example.org/check", &[]),
            Err(EvalError::Remote(_))
        ));
    }
}
