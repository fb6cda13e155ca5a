//! The rule table: built-in defaults with their token scopes, a site's own rules over them, and the decision.

use std::collections::{BTreeMap, BTreeSet};

use thiserror::Error;

use super::{
    eval::{Creds, EvalError, Target, evaluate},
    file::{self, Rules},
    parse::{Check, parse_strict},
};

const IDENTITY: &str = include_str!("defaults/identity.rules");
const KEY_MANAGER: &str = include_str!("defaults/key_manager.rules");

/// A default that does not parse; found by a test, never at a user's.
#[derive(Debug, Error)]
#[error("the policy default `{0}` cannot be read")]
pub struct PolicyError(String);

impl PolicyError {
    /// Machine-readable reason.
    pub fn reason(&self) -> &'static str {
        "PolicyUnreadable"
    }
}

/// One rule with the token scopes it accepts (none listed: any).
#[derive(Debug, Clone)]
pub struct RuleDefault {
    name: String,
    scopes: Vec<String>,
    check: Check,
    /// Whether a site's file replaced the built-in check.
    own: bool,
}

impl RuleDefault {
    /// Name, such as `identity:create_user`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Token scopes that it accepts; empty: any.
    pub fn scopes(&self) -> &[String] {
        &self.scopes
    }

    /// The check in force.
    pub fn check(&self) -> &Check {
        &self.check
    }

    /// Whether it comes from a site's file.
    pub fn is_own(&self) -> bool {
        self.own
    }

    /// Whether a request asks for it by name; the others are only used by rules.
    pub fn is_action(&self) -> bool {
        self.name.contains(':')
    }
}

/// Why somebody may or may not.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// The rule is true.
    Allowed,
    /// The rule is false.
    Refused,
    /// The token is for a scope that the rule does not accept, whatever its check says.
    WrongScope(&'static str),
    /// There is no such rule.
    Undefined,
    /// The rule cannot be evaluated.
    Failed(EvalError),
}

/// All rules of one API.
#[derive(Debug, Default, Clone)]
pub struct Policy {
    rules: BTreeMap<String, RuleDefault>,
}

/// The identity API's defaults.
///
/// # Errors
/// If a built-in line does not parse.
pub fn identity_defaults() -> Result<Policy, PolicyError> {
    Policy::from_table(IDENTITY)
}

/// The key manager's defaults.
///
/// # Errors
/// If a built-in line does not parse.
pub fn key_manager_defaults() -> Result<Policy, PolicyError> {
    Policy::from_table(KEY_MANAGER)
}

impl Policy {
    fn from_table(table: &str) -> Result<Self, PolicyError> {
        let mut rules = BTreeMap::new();
        for line in table
            .lines()
            .filter(|line| !line.trim().is_empty() && !line.starts_with('#'))
        {
            let rule = read_line(line).ok_or_else(|| PolicyError(line.to_owned()))?;
            rules.insert(rule.name.clone(), rule);
        }
        Ok(Self { rules })
    }

    /// Lays a site's rules over these: they replace checks by name, the token scopes stay.
    pub fn overlay(&mut self, own: Rules) {
        for (name, check) in own {
            match self.rules.get_mut(&name) {
                Some(rule) => {
                    rule.check = check;
                    rule.own = true;
                }
                None => {
                    let rule = RuleDefault {
                        name: name.clone(),
                        scopes: Vec::new(),
                        check,
                        own: true,
                    };
                    self.rules.insert(name, rule);
                }
            }
        }
    }

    /// A rule that leads back to itself.
    pub fn circle(&self) -> Option<String> {
        file::circle(self.rules().map(|rule| (rule.name(), rule.check())))
    }

    /// What is probably a slip of the pen, a sentence each: names that nothing asks for, references to
    /// rules that do not exist. `defaults` are the rules without the site's.
    pub fn doubts(&self, defaults: &Policy) -> Vec<String> {
        let mut used: BTreeSet<String> = BTreeSet::new();
        let mut doubts = Vec::new();
        for rule in self.rules() {
            let mut found = Vec::new();
            file::references(rule.check(), &mut found);
            for name in &found {
                if !self.rules.contains_key(name) && !self.rules.contains_key("default") {
                    doubts.push(format!(
                        "rule {} refers to rule:{name}, which does not exist; that part is never true",
                        rule.name
                    ));
                }
            }
            used.extend(found);
        }
        for rule in self.rules().filter(|rule| rule.own) {
            if !defaults.rules.contains_key(&rule.name)
                && !used.contains(&rule.name)
                && rule.name != "default"
            {
                doubts.push(format!(
                    "rule {} is neither asked for by this API nor used by another rule",
                    rule.name
                ));
            }
        }
        doubts
    }

    /// All rules by name.
    pub fn rules(&self) -> impl Iterator<Item = &RuleDefault> {
        self.rules.values()
    }

    /// One rule.
    pub fn rule(&self, name: &str) -> Option<&RuleDefault> {
        self.rules.get(name)
    }

    /// Whether `creds` may do `rule` to `target`. An unknown rule, a token of the wrong scope and a rule
    /// that cannot be evaluated are refusals.
    pub fn authorize(&self, rule: &str, target: &Target, creds: &Creds) -> bool {
        match self.verdict(rule, target, creds) {
            Verdict::Allowed => true,
            Verdict::Refused => false,
            Verdict::WrongScope(scope) => {
                tracing::debug!(rule, scope, "token scope not accepted by the rule");
                false
            }
            Verdict::Undefined => {
                tracing::error!(rule, "policy rule is not defined; refusing");
                false
            }
            Verdict::Failed(error) => {
                tracing::error!(rule, %error, "policy rule cannot be evaluated; refusing");
                false
            }
        }
    }

    /// The decision with its kind.
    pub fn verdict(&self, rule: &str, target: &Target, creds: &Creds) -> Verdict {
        let Some(found) = self.rules.get(rule) else {
            return Verdict::Undefined;
        };
        let scope = token_scope(creds);
        if !found.scopes.is_empty() && !found.scopes.iter().any(|allowed| allowed == scope) {
            return Verdict::WrongScope(scope);
        }
        match self.evaluate(&found.check, target, creds) {
            Ok(true) => Verdict::Allowed,
            Ok(false) => Verdict::Refused,
            Err(error) => Verdict::Failed(error),
        }
    }

    /// Evaluates any check with these rules.
    pub(super) fn evaluate(
        &self,
        check: &Check,
        target: &Target,
        creds: &Creds,
    ) -> Result<bool, EvalError> {
        evaluate(
            check,
            &|name| self.rules.get(name).map(|rule| &rule.check),
            target,
            creds,
            0,
        )
    }
}

fn read_line(line: &str) -> Option<RuleDefault> {
    let mut parts = line.splitn(3, '|').map(str::trim);
    let (name, scopes) = (parts.next()?, parts.next()?);
    let check = parse_strict(parts.next().unwrap_or_default()).ok()?;
    let scopes = match scopes {
        "-" => Vec::new(),
        list => list.split(',').map(str::to_owned).collect(),
    };
    Some(RuleDefault {
        name: name.to_owned(),
        scopes,
        check,
        own: false,
    })
}

/// The scope of the token behind the credentials; an unscoped token counts as project, as in oslo.policy.
fn token_scope(creds: &Creds) -> &'static str {
    let set = |name: &str| creds.0.get(name).is_some_and(|value| !value.is_null());
    if set("system_scope") {
        "system"
    } else if set("domain_id") {
        "domain"
    } else {
        "project"
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn defaults_parse() {
        assert!(identity_defaults().unwrap().rules.len() > 80);
        assert!(key_manager_defaults().unwrap().rules.len() > 20);
    }

    #[test]
    fn member_and_admin_of_the_identity_api() {
        let policy = identity_defaults().unwrap();
        let admin = Creds(
            json!({"roles": ["admin"], "user_id": "a", "project_id": "p", "domain_id": null}),
        );
        let member = Creds(
            json!({"roles": ["member"], "user_id": "m", "project_id": "p", "domain_id": null}),
        );
        assert!(policy.authorize("identity:create_user", &Target::new(), &admin));
        assert!(!policy.authorize("identity:create_user", &Target::new(), &member));
        let own = Target::new().text("target.user.id", "m");
        assert!(policy.authorize("identity:get_user", &own, &member));
        assert!(!policy.authorize(
            "identity:get_user",
            &own.text("target.user.id", "a"),
            &member
        ));
        assert!(!policy.authorize("identity:nosuch", &Target::new(), &admin));
    }

    #[test]
    fn a_domain_scoped_admin_may_not_create_roles() {
        let policy = identity_defaults().unwrap();
        let domain = Creds(json!({"roles": ["admin"], "user_id": "a", "domain_id": "d"}));
        let system = Creds(json!({"roles": ["admin"], "user_id": "a", "system_scope": "all"}));
        assert!(!policy.authorize("identity:create_role", &Target::new(), &domain));
        assert!(policy.authorize("identity:create_role", &Target::new(), &system));
    }

    /// The measured matrix of the key manager: rows are callers, for a shared and for a private secret.
    #[test]
    fn key_manager_matrix() {
        let policy = key_manager_defaults().unwrap();
        let secret = |private: bool, acl: bool| {
            let target = Target::new()
                .with("enforce_new_defaults", &json!(true))
                .text("target.secret.project_id", "p")
                .text("target.secret.creator_id", "owner")
                .with("target.secret.read_project_access", &json!(!private));
            if acl {
                target.text("target.secret.read", "read")
            } else {
                target
            }
        };
        let caller = |user: &str, project: &str, role: &str| {
            Creds(
                json!({"roles": [role], "user_id": user, "project_id": project, "domain_id": null}),
            )
        };
        let rules = [
            "secret:get",
            "secret:decrypt",
            "secret_acls:get",
            "secret_consumers:post",
            "secret:delete",
        ];
        let check = |creds: &Creds, private, acl| {
            rules.map(|rule| policy.authorize(rule, &secret(private, acl), creds))
        };
        let (all, none) = ([true; 5], [false; 5]);
        assert_eq!(check(&caller("owner", "p", "member"), false, false), all);
        assert_eq!(check(&caller("owner", "p", "member"), true, false), all);
        assert_eq!(check(&caller("x", "p", "admin"), true, false), all);
        assert_eq!(check(&caller("x", "p", "member"), false, false), all);
        assert_eq!(check(&caller("x", "p", "member"), true, false), none);
        assert_eq!(check(&caller("x", "p", "reader"), false, false), none);
        assert_eq!(check(&caller("x", "q", "member"), false, false), none);
        assert_eq!(
            check(&caller("x", "q", "admin"), false, false),
            [true, false, false, false, true]
        );
        assert_eq!(
            check(&caller("x", "q", "member"), true, true),
            [true, true, false, true, false]
        );
    }

    #[test]
    fn a_site_replaces_checks_and_keeps_scopes() {
        let defaults = identity_defaults().unwrap();
        let mut policy = defaults.clone();
        let text = "\"identity:create_role\": \"role:smith\"\nhelper: \"@\"\n\"identity:creat_user\": \"rule:nosuch\"\n";
        policy.overlay(file::parse(std::path::Path::new("f"), text).unwrap());
        let caller = |scope: &str| Creds(json!({"roles": ["smith"], "user_id": "a", scope: "x"}));
        assert!(policy.authorize(
            "identity:create_role",
            &Target::new(),
            &caller("project_id")
        ));
        assert_eq!(
            policy.verdict("identity:create_role", &Target::new(), &caller("domain_id")),
            Verdict::WrongScope("domain")
        );
        assert!(policy.rule("identity:create_role").unwrap().is_own());
        let doubts = policy.doubts(&defaults);
        assert_eq!(doubts.len(), 3, "{doubts:?}");
        assert!(doubts[0].contains("rule:nosuch"));
        assert!(
            defaults.doubts(&defaults).is_empty(),
            "{:?}",
            defaults.doubts(&defaults)
        );
        let keys = key_manager_defaults().unwrap();
        assert!(keys.doubts(&keys).is_empty(), "{:?}", keys.doubts(&keys));
        assert_eq!((defaults.circle(), keys.circle()), (None, None));
    }
}
