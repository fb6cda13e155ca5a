//! The rule table: built-in defaults with their token scopes, and the decision.

use std::collections::BTreeMap;

use thiserror::Error;

use super::{
    eval::{Creds, Target, evaluate},
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
}

/// All rules of one API.
#[derive(Debug, Default)]
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

    /// Whether `creds` may do `rule` to `target`. An unknown rule, a token of the wrong scope and a rule
    /// that cannot be evaluated are refusals.
    pub fn authorize(&self, rule: &str, target: &Target, creds: &Creds) -> bool {
        let Some(found) = self.rules.get(rule) else {
            tracing::error!(rule, "policy rule is not defined; refusing");
            return false;
        };
        let scope = token_scope(creds);
        if !found.scopes.is_empty() && !found.scopes.iter().any(|allowed| allowed == scope) {
            tracing::debug!(rule, scope, "token scope not accepted by the rule");
            return false;
        }
        let lookup = |name: &str| self.rules.get(name).map(|rule| &rule.check);
        match evaluate(&found.check, &lookup, target, creds, 0) {
            Ok(allowed) => allowed,
            Err(error) => {
                tracing::error!(rule, %error, "policy rule cannot be evaluated; refusing");
                false
            }
        }
    }
}

fn read_line(line: &str) -> Option<RuleDefault> {
    let mut parts = line.splitn(3, '|').map(str::trim);
    let (name, scopes) = (parts.next()?, parts.next()?);
    let check = parse_strict(parts.next().unwrap_or_default())?;
    let scopes = match scopes {
        "-" => Vec::new(),
        list => list.split(',').map(str::to_owned).collect(),
    };
    Some(RuleDefault {
        name: name.to_owned(),
        scopes,
        check,
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
}
