//! What guards accounts beside the password itself: rules for passwords, lock-out, limits of login attempts.

mod lockout;
mod rate;
mod rules;
#[cfg(test)]
mod tests;

pub use lockout::Failures;
pub use rate::{LoginLimit, account_key};
pub use rules::{PasswordRefusal, PasswordRules, RulesError, exempt};
