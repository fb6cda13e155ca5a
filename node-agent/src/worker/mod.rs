//! Steps on the node run in worker processes: the same binary, started anew as `worker`, that can be killed when a call into
//! the kernel does not come back.
//!
//! `protocol` is what goes over the pipes, `pool` the agent's side, `child` the worker's side, `machine` what lies below a node that is
//! a container itself.

pub mod child;
pub mod machine;
pub mod node;
pub mod places;
pub mod pool;
pub mod protocol;
