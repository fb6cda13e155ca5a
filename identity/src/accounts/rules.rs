//! A site's rules for passwords, named and meant as Keystone's `[security_compliance]`, and the options of a
//! user that exempt it. Only decisions; no records.

use regex::Regex;
use thiserror::Error;

use crate::store::json_object;

const DAY_US: i64 = 86_400 * 1_000_000;
const SECOND_US: i64 = 1_000_000;

/// The rules; the default has none.
#[derive(Debug, Clone, Default)]
pub struct PasswordRules {
    /// Days after which a password must be changed.
    pub expires_days: Option<u32>,
    /// Days before a user may change its password again.
    pub min_age_days: Option<u32>,
    /// How many of the last passwords a user may not take again, the present one included.
    pub history: u32,
    /// What a password must match, with the words that explain it.
    pub strength: Option<(Regex, String)>,
    /// A password that somebody else set must be changed before it is good for anything else.
    pub change_upon_first_use: bool,
    /// Failed logins in a row after which a user is locked out.
    pub lockout_failures: Option<u32>,
    /// How long, in seconds.
    pub lockout_secs: u32,
}

/// The rules cannot be used.
#[derive(Debug, Error)]
#[error("--password-regex cannot be read: {0}")]
pub struct RulesError(Box<regex::Error>);

impl RulesError {
    /// Machine-readable reason.
    pub fn reason(&self) -> &'static str {
        "PasswordRegexUnreadable"
    }
}

/// Why a password is not taken. Says what to do.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PasswordRefusal {
    /// Too weak.
    #[error("The password does not meet the requirements: {0}")]
    Weak(String),
    /// Used before.
    #[error("The password was used before; it must differ from the last {0}.")]
    Used(u32),
    /// Changed a short time ago.
    #[error("The password was changed a short time ago; it may be changed again after {0}.")]
    TooSoon(String),
    /// Not the user's to change.
    #[error("This password may only be changed by an administrator.")]
    Locked,
}

/// Whether an option of a user is on.
pub fn exempt(options: &str, name: &str) -> bool {
    json_object(options).get(name) == Some(&true.into())
}

impl PasswordRules {
    /// Sets what a password must match: the expression is matched from the beginning, as in Keystone.
    ///
    /// # Errors
    /// If the expression does not parse.
    pub fn with_strength(mut self, regex: &str, words: Option<&str>) -> Result<Self, RulesError> {
        let anchored = format!("^(?:{regex})");
        let regex_words = words.map_or_else(|| format!("it must match {regex}"), str::to_owned);
        let regex = Regex::new(&anchored).map_err(|error| RulesError(Box::new(error)))?;
        self.strength = Some((regex, regex_words));
        Ok(self)
    }

    /// Whether a password is strong enough.
    ///
    /// # Errors
    /// `Weak`.
    pub fn check_strength(&self, password: &str) -> Result<(), PasswordRefusal> {
        match &self.strength {
            Some((regex, words)) if !regex.is_match(password) => {
                Err(PasswordRefusal::Weak(words.clone()))
            }
            _ => Ok(()),
        }
    }

    /// Whether a user may change its own password now, which was set at `set_at` (microseconds).
    ///
    /// # Errors
    /// `Locked`, `TooSoon`.
    pub fn check_own_change(
        &self,
        options: &str,
        set_at: Option<i64>,
        now: i64,
    ) -> Result<(), PasswordRefusal> {
        if exempt(options, "lock_password") {
            return Err(PasswordRefusal::Locked);
        }
        if let (Some(days), Some(set_at)) = (self.min_age_days, set_at) {
            let from = set_at.saturating_add(i64::from(days) * DAY_US);
            if now < from {
                return Err(PasswordRefusal::TooSoon(crate::time::token_time(from)));
            }
        }
        Ok(())
    }

    /// When a password that is set now ends. `by_other`: somebody else than its user sets it.
    pub fn expires_at(&self, options: &str, by_other: bool, now: i64) -> Option<i64> {
        if by_other
            && self.change_upon_first_use
            && !exempt(options, "ignore_change_password_upon_first_use")
        {
            return Some(now);
        }
        let days = self.expires_days?;
        (!exempt(options, "ignore_password_expiry"))
            .then(|| now.saturating_add(i64::from(days) * DAY_US))
    }

    /// Whether a password with this end is over. The options may have changed since it was set.
    pub fn expired(&self, options: &str, expires_at: Option<i64>, now: i64) -> bool {
        expires_at.is_some_and(|at| at <= now) && !exempt(options, "ignore_password_expiry")
    }

    /// How many hashes to remember: the present one is needed for its age.
    pub fn remembered(&self) -> u32 {
        self.history.max(1)
    }

    /// How long a lock-out lasts (microseconds) for a user with these options after `failures` in a row;
    /// `None`: not yet, or never.
    pub fn lockout(&self, options: &str, failures: u32) -> Option<i64> {
        let limit = self.lockout_failures?;
        (failures >= limit && !exempt(options, "ignore_lockout_failure_attempts"))
            .then(|| i64::from(self.lockout_secs) * SECOND_US)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: &str = "{}";

    #[test]
    fn no_rules_refuse_nothing() {
        let rules = PasswordRules::default();
        assert_eq!(rules.check_strength(""), Ok(()));
        assert_eq!(rules.check_own_change(NONE, Some(5), 6), Ok(()));
        assert_eq!(rules.expires_at(NONE, true, 0), None);
        assert_eq!(rules.lockout(NONE, 1_000_000), None);
        assert_eq!(
            rules.check_own_change(r#"{"lock_password": true}"#, None, 0),
            Err(PasswordRefusal::Locked)
        );
    }

    #[test]
    fn strength_age_and_expiry() {
        let rules = PasswordRules {
            expires_days: Some(90),
            min_age_days: Some(1),
            change_upon_first_use: true,
            lockout_failures: Some(3),
            lockout_secs: 60,
            ..PasswordRules::default()
        };
        assert!(rules.clone().with_strength("(", None).is_err());
        let rules = rules
            .with_strength(r"[a-z]{3}\d", Some("three letters, then a digit"))
            .unwrap();
        assert_eq!(rules.check_strength("abc1 and more"), Ok(()));
        assert_eq!(
            rules.check_strength("xabc1"),
            Err(PasswordRefusal::Weak("three letters, then a digit".into()))
        );
        assert!(rules.check_own_change(NONE, Some(0), DAY_US - 1).is_err());
        assert_eq!(rules.check_own_change(NONE, Some(0), DAY_US), Ok(()));
        assert_eq!(rules.expires_at(NONE, false, 5), Some(5 + 90 * DAY_US));
        assert_eq!(rules.expires_at(NONE, true, 5), Some(5));
        let own = r#"{"ignore_change_password_upon_first_use": true, "ignore_password_expiry": true, "ignore_lockout_failure_attempts": true}"#;
        assert_eq!(rules.expires_at(own, true, 5), None);
        assert!(
            rules.expired(NONE, Some(5), 5)
                && !rules.expired(own, Some(5), 5)
                && !rules.expired(NONE, None, 5)
        );
        assert_eq!(
            (rules.lockout(NONE, 2), rules.lockout(NONE, 3)),
            (None, Some(60 * SECOND_US))
        );
        assert_eq!(rules.lockout(own, 3), None);
        assert!(!exempt(r#"{"x": "true"}"#, "x") && !exempt("rubbish", "x"));
    }
}
