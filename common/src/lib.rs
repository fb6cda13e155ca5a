//! What operator and node agent share and what is not an API type: the key-release protocol, telemetry, the admin
//! server, shutdown.

pub mod admin;
pub mod header;
pub mod release;
pub mod shutdown;
pub mod telemetry;
