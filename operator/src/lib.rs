//! The operator: turns EncryptedVolumes into work for node agents, keeps their keys in the tenants' projects, and gives
//! a key to a node when, and only when, that node shall have the volume.

pub mod certs;
pub mod cli;
pub mod context;
pub mod copies;
pub mod key_service;
pub mod keymanager;
pub mod leader;
pub mod metrics;
pub mod release;
pub mod retry;
pub mod run;
pub mod stores;
pub mod tenants;
pub mod volume;
