//! The official `openstack` client, and what services use of the same protocols, against the embedded identity/keys service, over
//! TLS.
//!
//! Each test has a service of its own. They need no sandbox, only the built `cryptvol-identity` and the client, which is installed
//! at first use.

mod app_credentials;
mod at_rest;
mod backup;
mod client_rows;
mod ground;
mod kek_elsewhere;
mod libraries;
mod restart;
mod roles;
mod secrets;
mod tokens;
