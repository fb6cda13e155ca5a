//! The identity API through its routes, on a real database.

#![allow(clippy::unwrap_used)]

mod access_rules;
mod catalog;
mod changes_amid;
mod checks_amid;
mod domain_config;
mod ec2;
mod factors;
mod false_tokens;
mod federation;
mod hierarchy;
mod limits;
mod login_ahead;
mod logins;
mod long_lists;
mod oauth1;
mod requests;
mod rights;
pub(crate) mod token_ends;
mod tokens_amid;
mod trusts;
mod users_amid;

use serde_json::Value;

use crate::testing::Bench;

const V3: &str = "/identity/v3";

/// As the administrator, below `/identity/v3/`, with this status.
async fn admin(bench: &Bench, method: &str, path: &str, body: Value, status: u16) -> Value {
    bench
        .admin(method, &format!("{V3}/{path}"), body, status)
        .await
}

/// The values of one attribute in a list, sorted.
fn column(list: &Value, name: &str) -> Vec<String> {
    let items = list.as_array().unwrap();
    let mut column: Vec<String> = items
        .iter()
        .map(|item| item[name].as_str().unwrap().to_owned())
        .collect();
    column.sort();
    column
}
