//! What a scenario is told on: a cluster by whatever way its commands reach it, and the hypervisor.

use std::future::Future;

use anyhow::Result;

use crate::cluster::Cluster;

/// A cluster with the charts installed, and the hypervisor that its volumes are for.
pub trait Ground {
    /// `kubectl ARGS`.
    fn kubectl(&self, args: &[&str]) -> impl Future<Output = Result<String>>;
    /// `kubectl apply -f -`.
    fn apply(&self, manifest: &str) -> impl Future<Output = Result<String>>;
    /// A script for sh where the device is: on the node itself, or, where nodes are containers, on their machine.
    fn on_hypervisor(&self, script: &str) -> impl Future<Output = Result<String>>;
}

/// A cluster of nodes with kernels of their own, one of which is the hypervisor.
#[derive(Debug, Clone, Copy)]
pub struct OnNode<'a> {
    /// The cluster.
    pub cluster: &'a Cluster,
    /// Name of the node.
    pub node: &'a str,
}

impl Ground for OnNode<'_> {
    async fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.cluster.plane.kubectl(args).await
    }

    async fn apply(&self, manifest: &str) -> Result<String> {
        self.cluster.plane.apply(manifest).await
    }

    async fn on_hypervisor(&self, script: &str) -> Result<String> {
        self.cluster.node(self.node)?.sh(script).await?.ok()
    }
}
