//! Who may do what: rules in oslo.policy's language, evaluated on the caller's credentials and the target.
//!
//! [`Policy::authorize`] is the only door. Rules come from the defaults built in here; a site's own file
//! replaces them by name.

mod eval;
mod parse;
mod rules;

pub use eval::{Creds, EvalError, Target};
pub use parse::{Check, parse_rule};
pub use rules::{Policy, PolicyError, RuleDefault, identity_defaults, key_manager_defaults};
