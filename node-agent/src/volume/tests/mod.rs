//! The state machine against the simulated node: every crash, every error, every bad input, random schedules.

mod alua;
mod bad_input;
mod crashes;
mod detached;
mod discovery;
mod encryptors;
mod ephemeral;
mod fallible;
mod header_backup;
mod headerless;
mod in_use;
mod integrity;
mod invariants;
pub(crate) mod lab;
mod local;
mod names;
mod others;
mod paths;
mod peers;
mod proof;
mod replaced;
mod rotation;
mod schedules;
