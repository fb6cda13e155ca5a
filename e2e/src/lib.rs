//! The ground that tests, demo and `up` stand on: a real Kubernetes, nodes with kernels of their own, an iSCSI array.

pub mod image;
