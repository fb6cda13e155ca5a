//! The defaults as a file that a site can start its own from: everything commented out.

use std::fmt::Write;

use super::{
    rules::{PolicyError, RuleDefault},
    site::Api,
};

/// The text of the sample.
///
/// # Errors
/// If a built-in line does not parse.
pub fn sample(api: Api) -> Result<String, PolicyError> {
    let policy = api.defaults()?;
    let mut out = format!(
        "# Default rules of the {} API. What you uncomment and change replaces the default of that name;\n\
         # all others stay. Try a change with `cryptvol-identity policy check --explain`.\n",
        api.as_str()
    );
    let (actions, helpers): (Vec<_>, Vec<_>) = policy.rules().partition(|rule| rule.is_action());
    for (title, rules) in [
        ("Used by other rules", helpers),
        ("Asked for by requests", actions),
    ] {
        // Writing into a string cannot fail.
        let _ = writeln!(out, "\n# ---------------- {title}");
        for rule in rules {
            let _ = write!(out, "\n# {}\n", describe(rule.name()));
            if !rule.scopes().is_empty() {
                let _ = writeln!(out, "# Token scopes: {}", rule.scopes().join(", "));
            }
            let _ = writeln!(out, "#{}: {}", quoted(rule.name()), quoted(&text(rule)));
        }
    }
    Ok(out)
}

fn text(rule: &RuleDefault) -> String {
    match rule.check().to_string() {
        all if all == "@" => String::new(),
        text => match text
            .strip_prefix('(')
            .and_then(|inner| inner.strip_suffix(')'))
        {
            // The outermost brackets say nothing, if they are one pair.
            Some(inner) if balanced(inner) => inner.to_owned(),
            _ => text,
        },
    }
}

fn balanced(text: &str) -> bool {
    // Brackets of substitutions are balanced in themselves.
    let mut depth = 0_i32;
    text.chars().all(|c| {
        depth += match c {
            '(' => 1,
            ')' => -1,
            _ => 0,
        };
        depth >= 0
    }) && depth == 0
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// What a rule is for, in a sentence.
pub fn describe(name: &str) -> String {
    let known = match name {
        "admin_required" => "Who is an administrator of everything.",
        "service_role" => "Who is another service of the cloud.",
        "service_or_admin" => "Another service, or an administrator.",
        "owner" => "The user that the request is about.",
        "admin_or_owner" => "An administrator, or the user that the request is about.",
        "token_subject" => "The user of the token that the request is about.",
        "admin_or_token_subject" => {
            "An administrator, or the user of the token that the request is about."
        }
        "service_admin_or_token_subject" => {
            "A service, an administrator, or the user of the token."
        }
        "domain_managed_target_role" => "The roles that the manager of a domain may give away.",
        "secret_project_match" => "The caller's project is the secret's.",
        "secret_project_reader" => "A reader in the secret's project.",
        "secret_project_member" => "A member of the secret's project.",
        "secret_project_admin" => "An administrator of the secret's project.",
        "secret_owner" => "The user that stored the secret.",
        "secret_is_not_private" => "The secret may be read by its whole project.",
        "secret_acl_read" => "The caller is in the secret's access list.",
        "order_project_match" => "The caller's project is the order's.",
        "order_project_member" => "A member of the order's project.",
        "secret:decrypt" => "Read the payload of a secret.",
        "secret:put" => "Store the payload of a secret that has none yet.",
        "secret_acls:put_patch" => "Set or change the access list of a secret.",
        _ => "",
    };
    if !known.is_empty() {
        return known.to_owned();
    }
    let Some((before, after)) = name.split_once(':') else {
        return format!("Used by other rules: {}.", name.replace('_', " "));
    };
    let words = |text: &str| text.replace('_', " ");
    // `identity:create_user` and `secret_meta:put`: the verb stands behind the colon in both.
    let (verb, object) = match after.split_once('_') {
        Some((verb, object)) => (verb, words(object)),
        None => (after, words(before)),
    };
    let verb = match verb {
        "get" => "Show",
        "post" => "Add to",
        "put" | "update" => "Change",
        "patch" => "Change parts of",
        "list" => "List",
        "create" => "Create",
        "delete" => "Delete",
        "check" => "Check",
        "revoke" => "Take away",
        "add" => "Add",
        "remove" => "Remove",
        "validate" => "Validate",
        other => return format!("{} {object}.", capital(&words(other))),
    };
    format!("{verb} {object}.")
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars
        .next()
        .map(|first| first.to_uppercase().chain(chars).collect())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::policy::file;

    /// Uncommented as a whole, the sample is a valid policy file that changes nothing.
    #[test]
    fn the_sample_reads_back_as_the_defaults() {
        for api in [Api::Identity, Api::KeyManager] {
            let text: String = sample(api)
                .unwrap()
                .lines()
                .map(|line| {
                    line.strip_prefix('#')
                        .filter(|rest| rest.starts_with('"'))
                        .unwrap_or(line)
                })
                .flat_map(|line| [line, "\n"])
                .collect();
            let read = file::parse(Path::new("sample"), &text).unwrap();
            let defaults = api.defaults().unwrap();
            assert_eq!(read.len(), defaults.rules().count());
            for rule in defaults.rules() {
                assert_eq!(&read[rule.name()], rule.check(), "{}", rule.name());
            }
        }
    }

    #[test]
    fn descriptions() {
        assert_eq!(describe("identity:create_user"), "Create user.");
        assert_eq!(
            describe("identity:list_role_assignments"),
            "List role assignments."
        );
        assert_eq!(describe("secret_meta:put"), "Change secret meta.");
        assert_eq!(describe("secret:decrypt"), "Read the payload of a secret.");
    }
}
