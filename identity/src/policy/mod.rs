//! Who may do what: rules in oslo.policy's language, evaluated on the caller's credentials and the target.
//!
//! [`SitePolicy::authorize`] is the only door. Rules come from the defaults built in here; a site's own files
//! replace them by name.

#[cfg(test)]
mod delegation_tests;
mod eval;
mod explain;
mod file;
mod parse;
mod rules;
mod sample;
mod site;

pub use eval::{Creds, EvalError, Target};
pub use explain::explain;
pub use file::FileError;
pub use parse::{Check, Slip, parse_rule};
pub use rules::{
    Policy, PolicyError, RuleDefault, Verdict, identity_defaults, key_manager_defaults,
};
pub use sample::{describe, sample};
pub use site::{Api, PolicySources, SiteError, SitePolicy};
