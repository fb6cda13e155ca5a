//! What the tests of several paths share: one volume on the first node of a site, the guest on it, and what its status says of the paths.

use std::future::Future;

use anyhow::Result;
use cryptvol_crds::conditions::{PATHS_HEALTHY, Reason};

use crate::site::Site;
use crate::volumes::Volume;
use crate::writing_guest::WritingGuest;

/// A site with one volume, which is on its first node.
pub trait PathsGround {
    /// The site.
    fn site(&self) -> &Site;
    /// The volume.
    fn volume(&self) -> &Volume;

    /// A script on the node that ends well; what it printed.
    fn sh(&self, script: &str) -> impl Future<Output = Result<String>> {
        async move { self.site().node(0).sh(script).await?.ok() }
    }

    /// The guest, started or not.
    fn guest(&self) -> WritingGuest<'_> {
        WritingGuest::of(self.site().node(0), self.volume())
    }

    /// Waits until the status says of each path whether it is up, in the order of the portals.
    fn wait_paths(&self, up: impl AsRef<[bool]>) -> impl Future<Output = Result<()>> {
        async move {
            let node = self.site().node(0).name();
            let plane = &self.site().plane;
            self.volume().wait_paths(plane, node, up.as_ref()).await
        }
    }

    /// Waits until the condition of this type has this reason, and gives back its message.
    fn wait_condition(&self, type_: &str, reason: Reason) -> impl Future<Output = Result<String>> {
        let plane = &self.site().plane;
        self.volume().wait_condition(plane, type_, reason)
    }

    /// Waits for what the condition says of the paths, and gives back its message.
    fn wait_health(&self, reason: Reason) -> impl Future<Output = Result<String>> {
        self.wait_condition(PATHS_HEALTHY, reason)
    }

    /// Applies the volume, and waits until it is attached through both of its portals.
    fn attach(&self) -> impl Future<Output = Result<()>> {
        async move {
            self.volume().apply(&self.site().plane).await?;
            self.volume().wait_ready(&self.site().plane).await?;
            self.wait_paths([true, true]).await
        }
    }

    /// Detaches the volume, and nothing is left of it on the node.
    fn detach(&self) -> impl Future<Output = Result<()>> {
        async move {
            let away = self.volume().clone().detached();
            away.apply(&self.site().plane).await?;
            away.wait_detached(&self.site().plane).await?;
            self.nothing_left().await
        }
    }

    /// Nothing of the volume is left on the node.
    fn nothing_left(&self) -> impl Future<Output = Result<()>> {
        self.site().nothing_left(0)
    }
}
