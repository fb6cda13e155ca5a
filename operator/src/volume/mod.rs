//! EncryptedVolumes: what is decided about them, and how it is done.
//!
//! `world` is what a decision sees, `decide` makes it, `effects` carries it out, `controller` says when.

pub mod conditions;
pub mod controller;
pub mod decide;
pub mod delete;
pub mod detached;
pub mod effects;
pub mod ephemeral;
pub mod facts;
mod header_backup;
mod lost;
pub mod node_volumes;
pub mod observe;
pub mod orphans;
pub mod quota;
pub mod rotate;
pub mod second_copy;
pub mod transitions;
pub mod world;

pub use decide::decide;

#[cfg(test)]
mod tests;
