//! Why a rule is true or false for somebody: the clauses that decided, one a line.

use serde_json::Value;

use super::{
    eval::{Creds, Part, Target, template_parts},
    parse::Check,
    rules::{Policy, Verdict},
};

const MAX_DEPTH: usize = 32;

/// The decision about one action and its reasons, indented by depth.
pub fn explain(policy: &Policy, rule: &str, target: &Target, creds: &Creds) -> Vec<String> {
    let verdict = policy.verdict(rule, target, creds);
    let Some(found) = policy.rule(rule) else {
        return vec![format!("{rule}: refused: there is no such rule")];
    };
    let whose = if found.is_own() {
        "policy file"
    } else {
        "default"
    };
    let head = |word: &str| format!("{rule}: {word} ({whose})");
    match verdict {
        Verdict::WrongScope(scope) => vec![
            head("refused"),
            format!(
                "  a token scoped to {scope} is not accepted, only: {}",
                found.scopes().join(", ")
            ),
        ],
        Verdict::Failed(error) => vec![head("refused"), format!("  {error}")],
        Verdict::Undefined => vec![head("refused")],
        Verdict::Allowed | Verdict::Refused => {
            let word = if verdict == Verdict::Allowed {
                "allowed"
            } else {
                "refused"
            };
            let mut lines = vec![head(word)];
            let view = View {
                policy,
                target,
                creds,
            };
            view.clause(found.check(), 1, &mut lines);
            lines
        }
    }
}

struct View<'a> {
    policy: &'a Policy,
    target: &'a Target,
    creds: &'a Creds,
}

impl View<'_> {
    fn holds(&self, check: &Check) -> bool {
        self.policy
            .evaluate(check, self.target, self.creds)
            .unwrap_or(false)
    }

    /// Of an `or` that is true the first true clause decided, of an `and` that is false the first false one;
    /// otherwise all did.
    fn clause(&self, check: &Check, depth: usize, lines: &mut Vec<String>) {
        if depth > MAX_DEPTH {
            return;
        }
        let result = self.holds(check);
        let mut say = |text: String| lines.push(format!("{}{text}", "  ".repeat(depth)));
        match check {
            Check::Or(parts) if result => {
                if let Some(part) = parts.iter().find(|part| self.holds(part)) {
                    self.clause(part, depth, lines);
                }
            }
            Check::And(parts) if !result => {
                if let Some(part) = parts.iter().find(|part| !self.holds(part)) {
                    self.clause(part, depth, lines);
                }
            }
            Check::Or(parts) | Check::And(parts) => {
                for part in parts {
                    self.clause(part, depth, lines);
                }
            }
            Check::Not(inner) => {
                say(format!("{result}: not (…)"));
                self.clause(inner, depth + 1, lines);
            }
            Check::Rule(name) => match self.policy.rule(name) {
                Some(rule) => {
                    say(format!("{result}: rule:{name}"));
                    self.clause(rule.check(), depth + 1, lines);
                }
                None => say(format!("{result}: rule:{name}, which does not exist")),
            },
            Check::True | Check::False | Check::Remote(_) => say(format!("{result}: {check}")),
            Check::Role(template) => {
                let held = self.creds.0.get("roles").and_then(Value::as_array);
                let held: Vec<&str> = held
                    .into_iter()
                    .flatten()
                    .filter_map(Value::as_str)
                    .collect();
                say(format!(
                    "{result}: {check} (the caller has: {}{})",
                    if held.is_empty() {
                        "no role".into()
                    } else {
                        held.join(", ")
                    },
                    self.values(template)
                ));
            }
            Check::Literal(_, template) => {
                say(format!(
                    "{result}: {check} ({})",
                    self.values(template).trim_start_matches("; ")
                ));
            }
            Check::Attribute(path, template) => {
                let held = path
                    .iter()
                    .try_fold(&self.creds.0, |value, name| value.get(name));
                let held = held.map_or_else(|| "nothing".to_owned(), Value::to_string);
                say(format!(
                    "{result}: {check} (the caller's is {held}{})",
                    self.values(template)
                ));
            }
        }
    }

    /// What the target holds for the names in a template.
    fn values(&self, template: &str) -> String {
        let mut text = String::new();
        for part in template_parts(template).unwrap_or_default() {
            if let Part::Name(name) = part {
                text.push_str(&match self.target.get(name) {
                    Some(value) => format!("; {name} is {value}"),
                    None => format!("; {name} is not known of the target"),
                });
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::policy::{identity_defaults, site::Api};

    fn say(rule: &str, target: &Target, creds: Value) -> String {
        explain(&identity_defaults().unwrap(), rule, target, &Creds(creds)).join("\n")
    }

    #[test]
    fn the_clause_that_decided_is_named() {
        let admin = json!({"roles": ["admin"], "user_id": "a", "project_id": "p"});
        assert_eq!(
            say("identity:create_user", &Target::new(), admin),
            "identity:create_user: allowed (default)\n  true: rule:admin_required\n    true: role:admin (the caller has: admin)"
        );
        let manager = json!({"roles": ["manager"], "user_id": "m", "domain_id": "d1", "token": {"domain": {"id": "d1"}}});
        let other = Target::new().text("target.user.domain_id", "d2");
        let text = say("identity:create_user", &other, manager.clone());
        assert!(text.starts_with("identity:create_user: refused"), "{text}");
        assert!(
            text.contains("false: token.domain.id:%(target.user.domain_id)s (the caller's is \"d1\"; target.user.domain_id is d2)"),
            "{text}"
        );
        let text = say("identity:create_role", &Target::new(), manager);
        assert!(
            text.contains("scoped to domain is not accepted, only: system, project"),
            "{text}"
        );
        assert!(say("nosuch", &Target::new(), json!({})).contains("no such rule"));
    }

    /// The explanation of every rule agrees with the decision about it.
    #[test]
    fn explanation_and_decision_agree() {
        let target = Target::new()
            .text("target.user.domain_id", "d")
            .text("user_id", "u");
        for api in [Api::Identity, Api::KeyManager] {
            let policy = api.defaults().unwrap();
            for role in ["admin", "manager", "member", "reader", "nothing"] {
                let creds = Creds(json!({"roles": [role], "user_id": "u", "project_id": "p"}));
                for rule in policy.rules() {
                    let allowed = policy.authorize(rule.name(), &target, &creds);
                    let lines = explain(&policy, rule.name(), &target, &creds);
                    assert_eq!(lines[0].contains(": allowed"), allowed, "{lines:?}");
                    let word = if allowed { "  true:" } else { "  false:" };
                    assert!(
                        lines[0].contains("refused") || lines[1].starts_with("  "),
                        "{lines:?}"
                    );
                    assert!(
                        lines.len() == 1
                            || lines[1].starts_with(word)
                            || lines[1].contains("not accepted"),
                        "{lines:?}"
                    );
                }
            }
        }
    }
}
