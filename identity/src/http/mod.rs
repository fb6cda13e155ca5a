//! What both APIs share on the wire: the base URL of a request, its query, and the frame around the routes.

mod admin;
mod frame;
mod request;

pub use admin::admin_router;
pub(crate) use frame::RECEIPT;
#[cfg(test)]
pub(crate) use frame::routes;
pub use frame::{Frame, service};
pub use request::{Base, Query, truthy};
