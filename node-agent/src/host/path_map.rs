//! The map above several paths to one disk.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{
    access::Layout,
    model::{Device, DeviceId},
};

/// A map of dm-multipath above the paths to one disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathMap {
    /// The map as a raw device. Its WWID is the one that its paths show.
    pub device: Device,
    /// What kind of table somebody gave it in place of ours; where there is one, the rest says nothing of paths.
    #[serde(default)]
    pub replaced_by: Option<String>,
    /// Its paths; none where it has no table yet.
    pub members: Vec<Member>,
    /// Whether I/O waits while there is no path, and does not fail.
    pub queues: bool,
    /// Whether it is suspended.
    pub suspended: bool,
    /// The group that I/O goes to, counted from 1; 0 where it has no table.
    #[serde(default)]
    pub current: u32,
}

/// A path of a map.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The disk as major:minor.
    pub dev: String,
    /// Whether the kernel sends I/O there; it takes a path out that fails, and never puts one in again.
    pub active: bool,
    /// Its group, counted from 1: that of the least number is the one that is used as long as one of its paths works.
    #[serde(default)]
    pub group: u32,
}

impl PathMap {
    /// Whether its paths are in these groups, in this order; within a group they have none.
    pub fn is_grouped_as(&self, groups: &[Vec<String>]) -> bool {
        let mut own = BTreeMap::<u32, BTreeSet<&str>>::new();
        for member in &self.members {
            own.entry(member.group).or_default().insert(&member.dev);
        }
        let groups = groups.iter();
        groups
            .map(|g| g.iter().map(String::as_str).collect::<BTreeSet<_>>())
            .eq(own.into_values())
    }

    /// The group that should be used: the first with a path to which the kernel sends I/O and that takes some.
    pub fn best_group(&self, takes_io: impl Fn(&str) -> bool) -> Option<u32> {
        let usable = self.members.iter().filter(|m| m.active && takes_io(&m.dev));
        usable.map(|m| m.group).min()
    }

    /// Whether I/O is sent to a disk.
    pub fn uses(&self, dev: &str) -> bool {
        self.members.iter().any(|m| m.dev == dev && m.active)
    }

    /// Whether it has a disk among its paths, used or not.
    pub fn has(&self, dev: &str) -> bool {
        self.members.iter().any(|m| m.dev == dev)
    }
}

/// What map to make, or to make of one that is there. Without paths only what becomes of I/O that has none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapOrder {
    /// Device-mapper name.
    pub name: String,
    /// Device-mapper UUID.
    pub uuid: String,
    /// The paths, each of which was identified: all show the same WWID.
    pub paths: Vec<DeviceId>,
    /// Paths that are to go: they do not lead to this disk any more.
    pub strangers: Vec<String>,
    /// Whether I/O waits while there is no path.
    pub queues: bool,
    /// Which of them are to be used first, those that are in the map already among them. Without paths it does not count.
    #[serde(default)]
    pub layout: Layout,
}
