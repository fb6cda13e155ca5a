//! Paths that the array tells apart (ALUA, ADR 55): how they are grouped, and when a map is grouped otherwise.

use super::At;
use crate::host::{Access, Device, Layout, PathMap};

impl At<'_> {
    /// How these disks and the paths that stay in the map beside them are to be grouped, by what the kernel last heard of each.
    pub(super) fn layout(&self, disks: &[&Device], strangers: &[String]) -> Layout {
        let members = self.observed.map.iter().flat_map(|m| &m.members);
        let stays = |dev: &&str| {
            disks.iter().all(|d| d.id.dev != **dev) && strangers.iter().all(|s| s != dev)
        };
        let staying = members.map(|m| m.dev.as_str()).filter(stays);
        let staying = staying.map(|dev| (dev, self.disk(dev).and_then(|d| d.access)));
        let disks = disks.iter().map(|d| (d.id.dev.as_str(), d.access));
        Layout::of(disks.chain(staying))
    }

    /// The map's paths are grouped otherwise than the array wants them used, or I/O goes to a group while a better one works. While a path
    /// changes its state nobody knows yet what is better, and a new table would wait for the commands that the array holds up.
    pub(super) fn misordered(&self, map: &PathMap) -> bool {
        let all: Vec<_> = map.members.iter().map(|m| m.dev.as_str()).collect();
        let changes = |dev: &&str| {
            let access = self.disk(dev).and_then(|d| d.access);
            access == Some(Access::Transitioning)
        };
        if all.iter().any(changes) {
            return false;
        }
        let groups = self.layout(&[], &[]).groups_of(&all);
        !map.is_grouped_as(&groups)
            || map
                .best_group(|dev| self.works(dev))
                .is_some_and(|best| best < map.current)
    }

    /// What can be said of paths that are there and that the array wants no I/O sent to.
    pub(super) fn held_back(&self) -> Option<String> {
        let paths = self.observed.paths.iter();
        let held: Vec<_> = paths
            .filter(|p| p.named && p.is_there() && !p.works())
            .filter_map(|p| {
                let portal = p.session.as_ref()?.portal.as_ref()?;
                let access = p.disk.as_ref()?.access?;
                Some(format!("{portal} is {}", access.as_str()))
            })
            .collect();
        (!held.is_empty()).then(|| {
            format!(
                "the array takes I/O on none of the paths that are there (ALUA): {}",
                held.join("; ")
            )
        })
    }

    fn disk(&self, dev: &str) -> Option<&Device> {
        let mut disks = self.observed.paths.iter().filter_map(|p| p.disk.as_ref());
        disks.find(|d| d.id.dev == dev)
    }

    fn works(&self, dev: &str) -> bool {
        let mut paths = self.observed.paths.iter();
        paths.any(|p| p.works() && p.disk.as_ref().is_some_and(|d| d.id.dev == dev))
    }
}
