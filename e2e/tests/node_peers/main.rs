//! Failures that users of other systems report, by their number in `docs/peer-failures.md`, on a real kernel, with the agent, the operator and
//! the array that they happen to. One site serves all.

mod crowd;
mod disks;
mod ground;
mod keys;
mod layers;
mod openers;
mod outage;
mod stuck;
