//! The service on a real PostgreSQL server, which the tests start in folders of their own.

#![allow(clippy::unwrap_used, clippy::panic)]

mod at_rest;
mod lockout;
mod refusals;
mod rekey;
mod replicas;
mod server;
mod texts;
mod tls;
mod upgrade;
