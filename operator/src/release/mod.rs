//! Key release: one passphrase to one node for one attachment, after checking that this node shall have it now.
//!
//! Every replica serves it, leading or not, and reads what it decides on from the API server, never from a cache.

pub mod audit;
pub mod authorize;
pub mod limits;
pub mod material;
pub mod server;
pub mod tls;
