//! The real node: sysfs, iscsid, device-mapper, libcryptsetup and the directory of links. Runs in a worker process.

pub mod disk;
pub mod dm;
pub mod erase;
mod error;
pub mod header;
pub mod links;
pub mod luks;
mod sys;
pub mod sysfs;
#[cfg(test)]
mod testing;
