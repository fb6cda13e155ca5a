//! The ground that tests, demo and `up` stand on: a real Kubernetes, nodes with kernels of their own, an iSCSI array.

pub mod array;
pub mod audit_log;
pub mod bench;
pub mod capture;
pub mod cluster;
pub mod control_plane;
pub mod demo;
pub mod exec;
pub mod guest;
pub mod identity_service;
pub mod image;
pub mod images;
pub mod kept;
pub mod keystone;
pub mod kind;
pub mod node;
pub mod openstack_client;
pub mod parts;
pub mod pki;
pub mod process;
pub mod release;
pub mod sandbox;
pub mod scenario;
pub mod site;
pub mod volumes;
pub mod workdir;
