//! Access rules of application credentials: which calls a token may make.

use crate::store::access_rules::AccessRule;

/// Whether a token with these rules may make the call. No rules permit every call.
pub fn permits(rules: &[AccessRule], service: &str, method: &str, path: &str) -> bool {
    rules.is_empty()
        || rules.iter().any(|rule| {
            rule.service == service && rule.method == method && matches(&rule.path, path)
        })
}

/// Whether a path pattern stands for `path`: `**` for anything, `*` and `{name}` for one segment, the rest
/// for itself; both ends anchored.
pub fn matches(pattern: &str, path: &str) -> bool {
    if let Some(rest) = pattern.strip_prefix("**") {
        return (0..=path.len())
            .filter(|at| path.is_char_boundary(*at))
            .any(|at| matches(rest, &path[at..]));
    }
    let rest = match pattern.strip_prefix('*') {
        Some(rest) => Some(rest),
        None => pattern
            .strip_prefix('{')
            .and_then(|inner| inner.split_once('}'))
            .map(|(_, rest)| rest),
    };
    if let Some(rest) = rest {
        let segment = path.find('/').unwrap_or(path.len());
        return segment > 0 && matches(rest, &path[segment..]);
    }
    match (pattern.chars().next(), path.chars().next()) {
        (None, None) => true,
        (Some(a), Some(b)) if a == b => matches(&pattern[a.len_utf8()..], &path[b.len_utf8()..]),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        let table = [
            ("/v1/secrets/*/payload", "/v1/secrets/abc/payload", true),
            ("/v1/secrets/*/payload", "/v1/secrets/abc", false),
            ("/v1/secrets/*/payload", "/v1/secrets/a/b/payload", false),
            ("/v1/secrets/{id}", "/v1/secrets/abc", true),
            ("/v1/secrets/{id}", "/v1/secrets/", false),
            ("/v1/**", "/v1/secrets/a/b", true),
            ("/v1/secrets", "/v1/secrets", true),
            ("/v1/secrets", "/v1/secretsx", false),
            ("/v1/secrets", "/x/v1/secrets", false),
            ("**", "/anything/at/all", true),
        ];
        for (pattern, path, expected) in table {
            assert_eq!(matches(pattern, path), expected, "{pattern} {path}");
        }
    }

    #[test]
    fn service_and_method_must_agree() {
        let rule = AccessRule {
            id: "1".into(),
            service: "key-manager".into(),
            method: "GET".into(),
            path: "/v1/secrets/*/payload".into(),
        };
        let rules = [rule];
        assert!(permits(
            &rules,
            "key-manager",
            "GET",
            "/v1/secrets/x/payload"
        ));
        assert!(!permits(
            &rules,
            "key-manager",
            "DELETE",
            "/v1/secrets/x/payload"
        ));
        assert!(!permits(&rules, "identity", "GET", "/v1/secrets/x/payload"));
        assert!(permits(&[], "identity", "GET", "/v3/users"));
    }
}
