//! Several paths to one disk, and the map above them.

use std::collections::BTreeSet;

use cryptvol_crds::conditions::Reason;

use super::{Handler, SimDevice, World};
use crate::host::{
    Device, DeviceId, Elsewhere, MapName, MapOrder, Member, Observed, PathMap, RawKind, StepError,
    Target,
};

/// A map of dm-multipath.
#[derive(Clone, Debug)]
pub struct SimMap {
    /// Device-mapper name.
    pub name: String,
    /// Device-mapper UUID.
    pub uuid: String,
    /// Kernel path.
    pub path: String,
    /// Major and minor number.
    pub dev: String,
    /// What kind of table somebody gave it in place of ours.
    pub replaced_by: Option<String>,
    /// Its paths; none where it has no table.
    pub members: Vec<Member>,
    /// I/O waits while there is no path.
    pub queues: bool,
    /// Whether it is suspended.
    pub suspended: bool,
    /// Size of its table in bytes.
    pub size: u64,
    /// The group that I/O goes to, from 1.
    pub current: u32,
}

impl World {
    /// The way through a portal is cut, and everybody has noticed.
    pub fn cut(&mut self, iqn: &str, portal: &str) {
        let target = self.targets.get_mut(iqn).unwrap();
        target.portals_away.retain(|p| p != portal);
        target.portals_away.push(portal.to_owned());
        self.set_way(portal, "FAILED", "running", "transport-offline");
        let kernel = &mut self.kernel;
        for map in &mut kernel.maps {
            for member in &mut map.members {
                let disk = kernel.devices.iter().find(|d| d.dev == member.dev);
                member.active &= disk.is_some_and(|d| d.state == "running");
            }
        }
    }

    /// The way through a portal is there again. iscsid brings the session back; nobody but us brings the path back.
    pub fn mend(&mut self, iqn: &str, portal: &str) {
        let target = self.targets.get_mut(iqn).unwrap();
        target.portals_away.retain(|p| p != portal);
        self.set_way(portal, "LOGGED_IN", "transport-offline", "running");
    }

    /// Somebody loads another table under the name and UUID of each map.
    pub fn replace_maps(&mut self, by: &str) {
        for map in &mut self.kernel.maps {
            (map.members, map.queues, map.current) = (vec![], false, 0);
            map.replaced_by = Some(by.to_owned());
        }
    }

    /// Somebody loads a table under a mapping's name and UUID that leads to another device.
    pub fn lead_elsewhere(&mut self, mapping: &str, dev: &str) {
        let mut all = self.kernel.mappings.iter_mut().map(|m| &mut m.mapping);
        if let Some(mapping) = all.find(|m| m.name == mapping) {
            mapping.deps = vec![dev.to_owned()];
            if let Some(table) = &mut mapping.table {
                dev.clone_into(&mut table.dev);
            }
        }
    }

    /// What a mapping leads to beside its volume's disk, where the kernel has it.
    pub(super) fn elsewhere(&self, observed: &Observed) -> Option<Elsewhere> {
        let has = |dev: &str| {
            let mut devices = self.kernel.devices.iter();
            devices.find(|d| d.dev == dev)
        };
        observed.strange_deps().find_map(|dev| {
            let device = has(dev)?;
            Some(Elsewhere {
                what: format!("{dev} ({})", device.path),
                wwid: device.wwid.clone(),
            })
        })
    }

    fn set_way(&mut self, portal: &str, session: &str, from: &str, to: &str) {
        let kernel = &mut self.kernel;
        for s in &mut kernel.sessions {
            if s.portal.as_ref().is_some_and(|p| p.to_string() == portal) {
                session.clone_into(&mut s.state);
                let disks = kernel.devices.iter_mut().filter(|d| d.sid == s.sid);
                for d in disks.filter(|d| d.state == from) {
                    to.clone_into(&mut d.state);
                }
            }
        }
    }

    /// The least free number of device-mapper: numbers are used again soon.
    pub(super) fn free_minor(&self) -> u32 {
        let taken = |path: &str| {
            self.kernel.mappings.iter().any(|m| m.mapping.path == path)
                || self.kernel.maps.iter().any(|m| m.path == path)
        };
        (0..)
            .find(|n| !taken(&format!("/dev/dm-{n}")))
            .unwrap_or_default()
    }

    pub(super) fn map_found(&self, name: &MapName) -> Option<PathMap> {
        let found = self.kernel.maps.iter();
        let found = found
            .clone()
            .find(|m| m.name == name.name && m.uuid == name.uuid)?;
        Some(PathMap {
            device: Device {
                id: self.map_id(found),
                state: "running".to_owned(),
                holders: self.holders(&found.dev),
                access: None,
            },
            replaced_by: found.replaced_by.clone(),
            members: found.members.clone(),
            queues: found.queues,
            suspended: found.suspended,
            current: found.current,
        })
    }

    fn map_id(&self, map: &SimMap) -> DeviceId {
        let devices = self.members(map, |_| true);
        let up = devices.iter().any(|d| d.state == "running");
        let mut shown: Vec<_> = devices
            .iter()
            .filter(|d| !up || d.state == "running")
            .map(|d| d.wwid.clone().unwrap_or_else(|| "no WWID".to_owned()))
            .collect();
        shown.sort();
        shown.dedup();
        DeviceId {
            path: map.path.clone(),
            dev: map.dev.clone(),
            kind: RawKind::Paths {
                uuid: map.uuid.clone(),
            },
            wwid: (!shown.is_empty()).then(|| shown.join(" and ")),
            size_bytes: map.size,
        }
    }

    fn members(&self, map: &SimMap, which: impl Fn(&Member) -> bool) -> Vec<&SimDevice> {
        let devices = self.kernel.devices.iter();
        let members = map.members.iter().filter(|m| which(m));
        members
            .filter_map(|m| devices.clone().find(|d| d.dev == m.dev))
            .collect()
    }

    /// The disks that I/O of a map goes to.
    pub fn used_by(&self, map: &SimMap) -> Vec<&SimDevice> {
        let mut disks = self.members(map, |m| m.active);
        disks.retain(|d| self.lets_through(d));
        disks
    }

    /// As `World::check`, of a map: the disk that answers through a path that is used.
    pub(super) fn check_map(&self, id: &DeviceId) -> Result<usize, StepError> {
        let map = self.kernel.maps.iter().find(|m| m.path == id.path);
        let Some(map) = map.filter(|m| self.map_id(m) == *id) else {
            return Err(StepError::new(Reason::WwidMismatch, "another map is there"));
        };
        let used = self.used_by(map);
        let disk = used.iter().find_map(|d| self.disk_behind(d));
        let Some(disk) = disk.filter(|_| !map.suspended) else {
            return Err(StepError::new(Reason::DeviceUnreadable, "no path"));
        };
        match self.disks[disk].wwid == id.wwid {
            true => Ok(disk),
            false => Err(StepError::new(Reason::WwidMismatch, "another disk answers")),
        }
    }

    pub(super) fn gather_paths(&mut self, order: &MapOrder) -> Result<(), StepError> {
        let found = self.kernel.maps.iter().position(|m| m.name == order.name);
        if found.is_some_and(|i| self.kernel.maps[i].replaced_by.is_some()) {
            return Err(StepError::new(
                Reason::MappingReplaced,
                "the map has another table",
            ));
        }
        let own = found.map(|i| self.kernel.maps[i].path.clone());
        let in_use = found.is_some_and(|i| !self.holders(&self.kernel.maps[i].dev).is_empty());
        let mut paths = Vec::new();
        let mut refused = None;
        for id in &order.paths {
            match self.check_path(id, order, found.filter(|_| in_use), own.as_deref()) {
                Ok(()) => paths.push(id),
                Err(e) if in_use => refused = refused.or(Some(e)),
                Err(e) => return Err(e),
            }
        }
        if let Some(e) = refused.take_if(|_| paths.is_empty()) {
            return Err(e);
        }
        let size = paths.iter().map(|p| p.size_bytes).min();
        let at = match (found, size) {
            (Some(at), _) => at,
            (None, None) => return Ok(()),
            (None, Some(_)) => {
                self.new_map(order);
                self.kernel.maps.len() - 1
            }
        };
        if let Some(size) = size {
            self.load(at, order, &paths, size)?;
        }
        let map = &mut self.kernel.maps[at];
        (map.queues, map.suspended) = (order.queues, false);
        refused.map_or(Ok(()), Err)
    }

    /// A new table, where one is needed; what failed is put in again, and the best group is used.
    fn load(
        &mut self,
        at: usize,
        order: &MapOrder,
        paths: &[&DeviceId],
        size: u64,
    ) -> Result<(), StepError> {
        let before = self.kernel.maps[at].clone();
        let kept = before
            .members
            .iter()
            .filter(|m| !order.strangers.contains(&m.dev) && paths.iter().all(|p| p.dev != m.dev));
        let kept: Vec<_> = kept.collect();
        let mut devs: Vec<_> = paths.iter().map(|p| p.dev.as_str()).collect();
        devs.extend(kept.iter().map(|m| m.dev.as_str()));
        let groups = order.layout.groups_of(&devs);
        let was_out = |dev: &str| before.members.iter().any(|m| m.dev == dev && !m.active);
        let members: Vec<_> = (1..)
            .zip(&groups)
            .flat_map(|(group, devs)| devs.iter().map(move |dev| (group, dev)))
            .map(|(group, dev)| Member {
                dev: dev.clone(),
                active: kept.iter().all(|m| m.dev != *dev) || !was_out(dev),
                group,
            })
            .collect();
        let place = |m: &Member| (m.group, m.dev.clone());
        let places = |all: &[Member]| all.iter().map(place).collect::<BTreeSet<_>>();
        let exchanged = size > before.size || places(&members) != places(&before.members);
        if exchanged {
            if order.layout.alua && self.handler == Handler::Missing {
                return Err(StepError::new(Reason::KernelModuleMissing, "no handler"));
            }
            let map = &mut self.kernel.maps[at];
            (map.members, map.size, map.current) = (members, size.max(before.size), 1);
            let found = self.kernel.devices.iter().find(|d| d.dev == devs[0]);
            if let Some(device) = found.filter(|_| order.layout.alua).cloned() {
                self.hear(&device);
            }
        }
        let map = &mut self.kernel.maps[at];
        for member in &mut map.members {
            let taken = paths.iter().any(|p| p.dev == member.dev);
            member.active |= taken && !order.layout.is_idle(&member.dev);
        }
        let usable = map
            .members
            .iter()
            .filter(|m| m.active && !order.layout.is_idle(&m.dev));
        if let Some(best) = usable.map(|m| m.group).min() {
            map.current = map.current.min(best);
        }
        Ok(())
    }

    /// `used`: the map, where something is above it.
    fn check_path(
        &self,
        id: &DeviceId,
        order: &MapOrder,
        used: Option<usize>,
        own: Option<&str>,
    ) -> Result<(), StepError> {
        let disk = self.check(id)?;
        let (wwid, first) = (&self.disks[disk].wwid, &order.paths[0].wwid);
        if wwid.is_none() || wwid != first {
            return Err(StepError::new(Reason::WwidMismatch, "not the same disk"));
        }
        let own = own.map(|p| p.trim_start_matches("/dev/"));
        let member = |i: usize| {
            let mut members = self.kernel.maps[i].members.iter();
            members.any(|m| m.dev == id.dev)
        };
        let mut holders = self.holders(&id.dev).into_iter();
        if !used.is_some_and(member) && holders.any(|h| Some(h.as_str()) != own) {
            return Err(StepError::new(Reason::DeviceBusy, "used by another map"));
        }
        Ok(())
    }

    pub(super) fn new_map(&mut self, order: &MapOrder) {
        let minor = self.free_minor();
        self.kernel.maps.push(SimMap {
            name: order.name.clone(),
            uuid: order.uuid.clone(),
            path: format!("/dev/dm-{minor}"),
            dev: format!("253:{minor}"),
            replaced_by: None,
            members: vec![],
            queues: false,
            suspended: false,
            size: 0,
            current: 0,
        });
    }

    pub(super) fn remove_map(&mut self, id: &DeviceId) -> Result<(), StepError> {
        let RawKind::Paths { uuid } = &id.kind else {
            return Ok(());
        };
        if !self.holders(&id.dev).is_empty() {
            return Err(StepError::new(Reason::DeviceBusy, "the map is in use"));
        }
        self.kernel.maps.retain(|m| m.uuid != *uuid);
        Ok(())
    }

    /// Portals that a login goes to: any of them, or each that has no session.
    pub(super) fn portals_without(&self, target: &Target) -> Vec<crate::host::Portal> {
        let through = |p: &crate::host::Portal| {
            let mut sessions = self.kernel.sessions.iter().filter(|s| s.iqn == target.iqn);
            sessions.any(|s| s.portal.as_ref().is_some_and(|t| t.is(p)))
        };
        let all = target.portals.iter();
        all.filter(|p| !through(p)).cloned().collect()
    }
}
