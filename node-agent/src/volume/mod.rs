//! One volume on this node: what is wanted, what to do next (pure), doing it, and what to report (pure).

pub mod execute;
pub mod failpoint;
pub mod locks;
pub mod memory;
pub mod plan;
pub mod report;
pub mod shadow;
pub mod wanted;

#[cfg(test)]
pub(crate) mod tests;
