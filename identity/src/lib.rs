//! The embedded identity and key-manager service: Keystone v3 and Barbican v1 on the wire, in one process.
//!
//! Layers, each of which knows only those below it: `identity` and `keymanager` (one folder an API, one file
//! a family of routes) → `policy` (may they?) and `token` (who are they?) → `store` (records) and `crypto`
//! (sealing, password hashes). `server` puts them behind TLS.

pub mod accounts;
pub mod app;
pub mod audit;
pub mod backup;
pub mod bootstrap;
pub mod cli;
pub mod crypto;
mod directory;
mod generation;
#[cfg(test)]
mod hostile_tests;
pub mod http;
pub mod identity;
pub mod ids;
pub mod keymanager;
pub mod ldap;
pub mod log;
pub mod metrics;
pub mod policy;
pub mod policy_command;
#[cfg(test)]
mod postgres_tests;
pub mod rekey;
pub mod server;
pub mod store;
#[cfg(test)]
mod testing;
pub mod time;
pub mod token;
pub mod token_keys;
pub mod waiting;
