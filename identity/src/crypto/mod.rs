//! Sealing at rest: a key-encryption key outside of the data directory seals one data key a project and
//! the token keys; data keys seal the secrets.

pub mod kek;
mod kek_reference;
pub mod mac;
pub mod password;
pub mod seal;

pub use kek::{Kek, KekError, KekSource};
pub use password::PasswordHasher;
pub use seal::{SealError, SealingKey};
