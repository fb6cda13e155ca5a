//! The operator on a real API server with the real identity service.

mod bad_input;
mod ground;
mod life;
mod lost_record;
mod memory;
mod namespace;
mod openstack;
mod quota;
mod replicas;
mod restore;
mod second_copy;
