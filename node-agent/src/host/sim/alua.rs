//! An array that tells paths apart, and how the kernel hears of it: when it asks, which a rescan makes it do, and when an array reports a
//! change together with I/O. Between the two it knows what it heard last.

use super::{SimDevice, SimMap, World};
use crate::host::Access;

/// When the kernel's ALUA handler is attached to a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Handler {
    /// When the disk is found: its module is loaded.
    #[default]
    AtScan,
    /// By a table that names it, which loads the module.
    ByTable,
    /// Never: the kernel has none.
    Missing,
}

impl World {
    /// Target and portal of a disk's session.
    fn way(&self, device: &SimDevice) -> Option<(String, String)> {
        let mut sessions = self.kernel.sessions.iter();
        let session = sessions.find(|s| s.sid == device.sid)?;
        Some((session.iqn.clone(), session.portal.as_ref()?.to_string()))
    }

    /// What the array would say of a path if it was asked now.
    fn array_says(&self, device: &SimDevice) -> Option<Access> {
        let (iqn, portal) = self.way(device)?;
        let access = &self.targets.get(&iqn)?.access;
        let said = access.get(&portal).copied().unwrap_or(Access::Optimized);
        (!access.is_empty()).then_some(said)
    }

    /// What the kernel shows of a path.
    pub(super) fn access_shown(&self, device: &SimDevice) -> Option<Access> {
        self.array_says(device)?;
        let heard = self.way(device).and_then(|way| self.kernel.heard.get(&way));
        Some(heard.copied().unwrap_or(Access::Unknown))
    }

    /// The kernel asks through a path; the answer is about all paths to the disk.
    pub(super) fn hear(&mut self, device: &SimDevice) {
        if self.array_says(device).is_none() || self.disk_behind(device).is_none() {
            return;
        }
        let Some((iqn, _)) = self.way(device) else {
            return;
        };
        let of_target = |d: &&SimDevice| self.way(d).is_some_and(|(i, _)| i == iqn);
        let devices = self.kernel.devices.iter().filter(of_target);
        let said: Vec<_> = devices
            .filter_map(|d| Some((self.way(d)?, self.array_says(d)?)))
            .collect();
        self.kernel.heard.extend(said);
    }

    /// As `hear`, where the handler is attached already or by this scan.
    pub(super) fn hear_at_scan(&mut self, device: &SimDevice) {
        let attached = self
            .way(device)
            .is_some_and(|w| self.kernel.heard.contains_key(&w));
        if attached || self.handler == Handler::AtScan {
            self.hear(device);
        }
    }

    /// The array does not even say how long the disk is.
    pub(super) fn hides(&self, device: &SimDevice) -> bool {
        let said = self.array_says(device);
        matches!(said, Some(Access::Unavailable | Access::Offline))
    }

    /// The array lets I/O through on this way.
    pub(super) fn lets_through(&self, device: &SimDevice) -> bool {
        self.array_says(device).is_none_or(Access::takes_io)
    }

    /// I/O comes to a map: which disks it may go to. A path that the array does not want used fails, and a group without a path is left for the
    /// next that has one.
    pub(super) fn io(&mut self, dev: &str) -> Vec<SimDevice> {
        let Some(at) = self.kernel.maps.iter().position(|m| m.dev == dev) else {
            return vec![];
        };
        let map = &self.kernel.maps[at];
        let mut groups: Vec<_> = map.members.iter().map(|m| m.group).collect();
        groups.sort_unstable();
        groups.dedup();
        groups.sort_by_key(|g| *g != map.current);
        for group in groups {
            let active = |map: &SimMap, world: &Self| -> Vec<SimDevice> {
                let members = map.members.iter().filter(|m| m.active && m.group == group);
                let disks = members
                    .filter_map(|m| world.kernel.devices.iter().find(|d| d.dev == m.dev))
                    .filter(|d| d.state == "running");
                disks.cloned().collect()
            };
            for disk in active(&self.kernel.maps[at], self) {
                let lets_through = self.lets_through(&disk);
                self.hear(&disk);
                let members = &mut self.kernel.maps[at].members;
                let member = members.iter_mut().find(|m| m.dev == disk.dev);
                if let Some(member) = member {
                    member.active &= lets_through;
                }
            }
            let left = active(&self.kernel.maps[at], self);
            if !left.is_empty() {
                self.kernel.maps[at].current = group;
                return left;
            }
        }
        vec![]
    }
}
