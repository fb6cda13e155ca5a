//! One node's agent: it reads what the kernel holds (inventory), compares with what is wanted (plan) and does one
//! idempotent step after the other in a worker process that can be killed (execute).

pub mod cli;
pub mod controller;
#[cfg(test)]
mod fuzz;
pub mod host;
pub mod metrics;
pub mod node_check;
pub mod release;
pub mod run;
pub mod volume;
pub mod worker;
