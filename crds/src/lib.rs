//! The API of cryptvol: custom resource types, their validation rules, condition types and names.
//!
//! No client, no runtime, no I/O. Operator, node agent and command line meet in these types.

// Printer columns repeat `type_ = "string"`; clippy takes the columns of one kind for one attribute.
#![allow(clippy::duplicated_attributes)]

pub mod conditions;
pub mod names;
pub mod orphans;
pub mod paths;
pub mod quantity;
pub mod rbac;
pub mod v1alpha1;

pub use v1alpha1::{EncryptedVolume, EncryptionClass, KeyService, NodeVolume};
