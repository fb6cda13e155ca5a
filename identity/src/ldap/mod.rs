//! Domains whose users and groups are in a directory (LDAP, Active Directory), read-only, over TLS.
//!
//! `ini`, `options`, `config`, `tls`, `filter`, `entry` and `account` decide and do nothing; `trust` and `client` talk
//! to servers, `pace` makes their refusals alike, `directory` asks the questions, `mirror` writes the answers into the records, and `domains` knows which
//! domain has which directory and when to ask again.

pub mod account;
pub mod client;
pub mod config;
pub mod directory;
pub mod domains;
pub mod entry;
pub mod filter;
pub mod ini;
pub mod mirror;
pub mod options;
pub mod pace;
pub mod sources;
pub mod tls;
pub mod trust;

pub use client::DirectoryError;
pub use domains::{Directories, RefreshError, ReloadError};
