//! Several paths to one disk: a session through each portal, the disk in each of them, and a map above those that are shown to be the
//! same disk. One path is enough; the others are added when they come.

use cryptvol_crds::{
    conditions::Reason,
    v1alpha1::{Desired, Stage},
};

use super::{At, Next, Step, stop};
use crate::host::{
    Device, DeviceId, Layout, Lun, MapName, MapOrder, Mapping, Path, PathMap, Portal, Source,
};

impl At<'_> {
    /// The map above all paths that can be had now; each was identified in this run before it got in.
    pub(super) fn reach_paths(&self, lun: &Lun, name: &MapName) -> Result<&DeviceId, Next> {
        self.remove_replaced_map()?;
        self.discover()?;
        self.log_in_everywhere(lun)?;
        if !self.observed.paths.iter().any(|p| p.named && is_up(p)) {
            return Err(self.no_session(lun));
        }
        self.scan_where(lun, |_| true)?;
        self.remove_dead_disk()?;
        let paths: Vec<_> = self.seen_paths().collect();
        for path in &paths {
            self.belongs(path)?;
        }
        let disks: Vec<_> = paths.iter().filter_map(|p| p.disk.as_ref()).collect();
        if disks.is_empty() {
            // It holds nothing but disks that never come back, and keeps them from being found anew.
            return Err(match &self.observed.map {
                Some(map) if map.device.holders.is_empty() && self.is_new(&map.device.id) => {
                    Next::Do(Step::DeleteDevice(map.device.id.clone()))
                }
                _ => self.no_disk(),
            });
        }
        // Whether they are in the right order says nothing of whose disk it is, and may change at any moment.
        let regroup = |m| self.misordered(m) && !self.run.gathered;
        if self.lacks(&disks) || self.observed.map.as_ref().is_some_and(regroup) {
            return Err(match self.run.gathered {
                false => self.gather(name, &disks, self.rest(&disks)),
                true => stop(
                    Stage::Device,
                    Reason::StepFailed,
                    "the map above the paths does not stay as it was made",
                ),
            });
        }
        let Some(map) = &self.observed.map else {
            return Err(self.no_disk());
        };
        let Device { id, holders, .. } = &map.device;
        if !holders.is_empty() {
            return Err(stop(
                Stage::Device,
                Reason::DeviceBusy,
                format!("{} is in use by {}", id.path, holders.join(", ")),
            ));
        }
        if !self.observed.is_reachable()
            && let Some(held) = self.held_back()
        {
            return Err(stop(Stage::Device, Reason::PathsHeldBack, held));
        }
        self.identity(id)?;
        Ok(id)
    }

    /// What can be done for the paths below a mapping: those that are missing or failed are looked at, and taken in when they are the
    /// volume's. None is given up for it but one that a look of this run showed to lead to another disk, where a right one is left; and what
    /// cannot be done ends nothing.
    pub(super) fn heal(&self, mapping: &Mapping) -> Result<(), Next> {
        let (Source::Iscsi(lun), Some(name), Some(map)) = (
            &self.wanted.query.source,
            &self.wanted.query.map,
            self.observed.map_in_use(),
        ) else {
            return Ok(());
        };
        // What somebody put in its place is not made ours again below a guest: it would only hide what was written there.
        if mapping.deps != [map.device.id.dev.clone()] || map.replaced_by.is_some() {
            return Ok(());
        }
        if self.wanted.give_up && map.queues && !self.observed.is_reachable() {
            return self.let_io_fail();
        }
        if name.wanted {
            self.discover()?;
            self.log_in_everywhere(lun)?;
        }
        self.scan_where(lun, |path| !path.is_used_by(map))?;
        self.remove_dead_disk()?;
        let mut strangers = Vec::new();
        let mut disks = Vec::new();
        for path in self.seen_paths() {
            let Some(disk) = &path.disk else { continue };
            match self.belongs(path) {
                Ok(()) => disks.push(disk),
                // Where it is in use and says by now that it is another disk, each write that goes there is lost, and somebody else's data.
                Err(_) if !map.uses(&disk.id.dev) || self.is_another(&disk.id) => {
                    strangers.push(disk.id.dev.clone());
                }
                Err(_) => {}
            }
        }
        // Those in use need no look, and count for the size.
        let used = self.observed.paths.iter();
        let used = used.filter(|p| p.is_used_by(map) && self.belongs(p).is_ok());
        for disk in used.filter_map(|p| p.disk.as_ref()) {
            if !disks.iter().any(|d| d.id.dev == disk.id.dev) {
                disks.push(disk);
            }
        }
        // A disk that the kernel has no more is of no use to the map.
        let known = |dev: &String| {
            let mut all = self.observed.paths.iter().filter_map(|p| p.disk.as_ref());
            all.any(|d| d.id.dev == *dev)
        };
        let gone = map.members.iter().map(|m| &m.dev).filter(|dev| !known(dev));
        strangers.extend(gone.cloned());
        // One that the kernel gave up is found anew once nothing holds it.
        let all = self.observed.paths.iter().filter_map(|p| p.disk.as_ref());
        let dead = all.filter(|d| d.state == "offline" && map.has(&d.id.dev));
        strangers.extend(dead.map(|d| d.id.dev.clone()));
        let stranger = strangers.iter().any(|dev| map.has(dev));
        let nothing = disks.is_empty() || !(stranger || self.lacks(&disks) || self.misordered(map));
        if nothing || self.run.gathered || self.unsettled() {
            return Ok(());
        }
        Err(self.gather(name, &disks, strangers))
    }

    fn gather(&self, name: &MapName, disks: &[&Device], strangers: Vec<String>) -> Next {
        let layout = self.layout(disks, &strangers);
        let waits = self.observed.map.as_ref().is_none_or(|m| m.queues);
        let queues = waits || disks.iter().any(|d| d.takes_io());
        let mut order = order(name, disks, strangers, queues);
        order.layout = layout;
        Next::Do(Step::Gather(order))
    }

    /// I/O that waits for a path fails from now on, once.
    pub(super) fn let_io_fail(&self) -> Result<(), Next> {
        match (&self.wanted.query.map, &self.observed.map) {
            (Some(name), Some(map)) if map.queues && !self.run.gathered => {
                Err(Next::Do(Step::Gather(order(name, &[], vec![], false))))
            }
            _ => Ok(()),
        }
    }

    /// Has the kernel look anew at each path that works, one after the other.
    pub(super) fn scan_paths_once(&self, lun: &Lun) -> Option<Next> {
        self.scan_where(lun, |_| true).err()
    }

    /// What is to be said where no path works.
    pub(super) fn paths_down(&self) -> String {
        let ways: Vec<_> = self
            .observed
            .paths
            .iter()
            .filter(|p| p.named)
            .filter_map(|p| {
                let session = p.session.as_ref()?;
                let portal = session.portal.as_ref()?;
                let disk = p.disk.as_ref().map_or("no disk", |d| match d.access {
                    Some(access) if !d.takes_io() && d.state == "running" => access.as_str(),
                    _ => d.state.as_str(),
                });
                Some(format!("{portal} is {}, its disk {disk}", session.state))
            })
            .collect();
        match ways.is_empty() {
            true => "there is no path to the disk".to_owned(),
            false => format!("no path to the disk works: {}", ways.join("; ")),
        }
    }

    /// Asks the array for further portals, where that is due. Whatever comes of it, the named ones are used.
    fn discover(&self) -> Result<(), Next> {
        let wanted = self.wanted.discover && self.wanted.desired == Desired::Attached;
        match wanted && self.run.discovery.is_none() {
            true => Err(Next::Do(Step::Discover)),
            false => Ok(()),
        }
    }

    fn log_in_everywhere(&self, lun: &Lun) -> Result<(), Next> {
        let missing = |p: &Portal| !self.observed.paths.iter().any(|path| is_through(path, p));
        if !self.run.logged_in && lun.target.portals.iter().any(missing) {
            return Err(Next::Do(Step::Login {
                lun: lun.clone(),
                each: true,
            }));
        }
        Ok(())
    }

    fn no_session(&self, lun: &Lun) -> Next {
        let sessions = self.observed.paths.iter().filter(|p| p.named);
        let mut sessions = sessions.filter_map(|p| p.session.as_ref());
        // As of one path: what nobody has a disk in is made anew, with the secret of today.
        if let Some(idle) = sessions
            .clone()
            .find(|s| !s.in_use && !self.run.logged_out.contains(&s.sid))
        {
            return Next::Do(Step::logout(lun, idle));
        }
        match sessions.next() {
            Some(session) => stop(
                Stage::Session,
                Reason::PortalUnreachable,
                self.session_is_down(session, &lun.target.iqn),
            ),
            None => self.lost(Stage::Session, Reason::PortalUnreachable, "no session"),
        }
    }

    fn no_disk(&self) -> Next {
        self.lost(
            Stage::Device,
            Reason::LunNotFound,
            &format!("no disk at {} on any path", self.wanted.query.source),
        )
    }

    /// What was said of the paths that were tried, the most telling of it first.
    fn lost(&self, stage: Stage, reason: Reason, otherwise: &str) -> Next {
        let lost = &self.run.lost;
        let general = Reason::PortalUnreachable;
        let telling = lost.iter().find(|e| e.reason() != general);
        match telling.or(lost.first()) {
            Some(error) => {
                let said: Vec<_> = lost.iter().map(|e| e.message.as_str()).collect();
                stop(stage, error.reason(), said.join("; "))
            }
            None => stop(stage, reason, otherwise),
        }
    }

    fn scan_where(&self, lun: &Lun, which: impl Fn(&Path) -> bool) -> Result<(), Next> {
        let mut sessions = self
            .observed
            .paths
            .iter()
            .filter(|p| p.named && is_up(p) && which(p))
            .filter_map(|p| p.session.as_ref());
        match sessions.find(|s| !self.run.tried.contains(&s.sid)) {
            Some(session) => Err(Next::Do(Step::scan(lun, session))),
            None => Ok(()),
        }
    }

    /// Paths that are there and of which the kernel read the identity anew in this run.
    fn seen_paths(&self) -> impl Iterator<Item = &Path> {
        let seen = |p: &&Path| {
            let sid = p.session.as_ref().map(|s| s.sid);
            sid.is_some_and(|sid| self.run.seen.contains(&sid))
        };
        let paths = self.observed.paths.iter();
        paths.filter(|p| p.named && p.is_there()).filter(seen)
    }

    /// The path leads to the volume's disk, to the same as the other paths, and nothing else uses it.
    fn belongs(&self, path: &Path) -> Result<(), Next> {
        let Some(Device { id, holders, .. }) = &path.disk else {
            return Ok(());
        };
        let portal = path.session.as_ref().and_then(|s| s.portal.as_ref());
        let through = portal.map_or_else(String::new, |p| format!(" through {p}"));
        let own = self
            .observed
            .map
            .as_ref()
            .map(|m| m.device.id.path.as_str());
        let own = own.and_then(|path| path.strip_prefix("/dev/"));
        let mut others = holders.iter().filter(|h| Some(h.as_str()) != own);
        // What somebody made above a path of a volume in use is there whether the path is used or not, and to leave the path out for it
        // would take the guest one path after the other.
        if let Some(other) = others.next().filter(|_| !self.is_below_mapping(&id.dev)) {
            return Err(stop(
                Stage::Device,
                Reason::DeviceBusy,
                format!("{}{through} is in use by {other}", id.path),
            ));
        }
        let Some(wwid) = &id.wwid else {
            return Err(stop(
                Stage::Identity,
                Reason::IdentityUnproven,
                format!(
                    "{}{through} has no WWID by which it could be told that it is the same disk as on the other paths",
                    id.path
                ),
            ));
        };
        self.identity(id).map_err(|next| match next {
            Next::Stop(mut stop) => {
                stop.message.push_str(&through);
                Next::Stop(stop)
            }
            next => next,
        })?;
        let map = self.observed.map.as_ref();
        let another = |p: &Path| p.disk.as_ref().is_some_and(|d| self.is_another(&d.id));
        let used = |p: &&Path| map.is_some_and(|m| p.is_used_by(m)) && !another(p);
        let paths = self.observed.paths.iter();
        let reference = paths.clone().find(used).or(self.seen_paths().next());
        let reference = reference.and_then(|p| p.disk.as_ref()?.id.wwid.as_ref());
        match reference.filter(|r| *r != wwid) {
            None => Ok(()),
            Some(other) => Err(stop(
                Stage::Identity,
                Reason::WwidMismatch,
                format!(
                    "{}{through} is {wwid}, and on another path {other}",
                    self.wanted.query.source
                ),
            )),
        }
    }

    /// The disk is a path of the map that the volume's mapping is above.
    fn is_below_mapping(&self, dev: &str) -> bool {
        let (Some(map), Some(mapping)) = (&self.observed.map, &self.observed.mapping) else {
            return false;
        };
        mapping.deps.contains(&map.device.id.dev) && map.has(dev)
    }

    /// Paths of the map that are none of these disks. As long as nothing is above the map nothing is lost with them.
    fn rest(&self, disks: &[&Device]) -> Vec<String> {
        let members = self.observed.map.iter().flat_map(|m| &m.members);
        let others = members.filter(|m| disks.iter().all(|d| d.id.dev != m.dev));
        others.map(|m| m.dev.clone()).collect()
    }

    /// Whether the map is not yet what these disks and no others would make it.
    fn lacks(&self, disks: &[&Device]) -> bool {
        let Some(map) = &self.observed.map else {
            return true;
        };
        let size = disks.iter().map(|d| d.id.size_bytes).min();
        map.suspended
            // Where it fails by now, only a path that takes it has it wait again.
            || (!map.queues && disks.iter().any(|d| d.takes_io()))
            || disks.iter().any(|d| match d.takes_io() {
                true => !map.uses(&d.id.dev),
                // It waits there for its turn.
                false => !map.has(&d.id.dev),
            })
            || size.is_some_and(|size| size > map.device.id.size_bytes)
    }

    /// A path of the map has commands on their way of which nobody knows yet what becomes of them: a new table would wait for them,
    /// and all I/O with it.
    fn unsettled(&self) -> bool {
        let Some(map) = &self.observed.map else {
            return false;
        };
        let disks = self.observed.paths.iter().filter_map(|p| p.disk.as_ref());
        disks
            .filter(|d| map.has(&d.id.dev))
            .any(|d| matches!(d.state.as_str(), "blocked" | "created-blocked"))
    }

    /// Removes a disk that the kernel gave up, or that was left without a size: it never comes back by itself.
    fn remove_dead_disk(&self) -> Result<(), Next> {
        let paths = self.observed.paths.iter().filter(|p| p.named && is_up(p));
        let mut disks = paths.filter_map(|p| p.disk.as_ref());
        let dead = |d: &&Device| {
            // An array that takes no I/O may not tell the size either.
            let dead = d.state == "offline" || (d.id.size_bytes == 0 && d.takes_io());
            dead && d.holders.is_empty() && self.is_new(&d.id)
        };
        match disks.find(dead) {
            Some(disk) => Err(Next::Do(Step::DeleteDevice(disk.id.clone()))),
            None => Ok(()),
        }
    }

    /// Removes a map that somebody gave another table, where nothing is above it: it is made anew then.
    fn remove_replaced_map(&self) -> Result<(), Next> {
        let replaced = |m: &&PathMap| m.replaced_by.is_some();
        let Some(PathMap { device, .. }) = self.observed.map.as_ref().filter(replaced) else {
            return Ok(());
        };
        let (id, holders) = (&device.id, &device.holders);
        let stopped = |reason, what| Err(stop(Stage::Device, reason, what));
        match (holders.is_empty(), self.is_new(id)) {
            (true, true) => Err(Next::Do(Step::DeleteDevice(id.clone()))),
            (true, false) => stopped(
                Reason::StepFailed,
                format!("the map {} has another table again", id.path),
            ),
            (false, _) => stopped(
                Reason::DeviceBusy,
                format!(
                    "the map {} has another table and is in use by {}",
                    id.path,
                    holders.join(", ")
                ),
            ),
        }
    }

    /// Not removed yet in this run.
    fn is_new(&self, id: &DeviceId) -> bool {
        !self.run.purged.contains(&id.dev)
    }

    /// The map has no disk that could ever come back.
    pub(super) fn is_dead(&self) -> bool {
        let Some(map) = self.observed.map_in_use() else {
            return false;
        };
        let disks = self.observed.paths.iter().filter_map(|p| p.disk.as_ref());
        let mut disks = disks.filter(|d| map.has(&d.id.dev)).peekable();
        disks.peek().is_some() && disks.all(|d| d.state == "offline")
    }
}

fn order(name: &MapName, disks: &[&Device], strangers: Vec<String>, queues: bool) -> MapOrder {
    MapOrder {
        name: name.name.clone(),
        uuid: name.uuid.clone(),
        paths: disks.iter().map(|d| d.id.clone()).collect(),
        strangers,
        queues,
        layout: Layout::default(),
    }
}

fn is_up(path: &Path) -> bool {
    path.session.as_ref().is_some_and(|s| s.is_up())
}

fn is_through(path: &Path, portal: &Portal) -> bool {
    let through = path.session.as_ref().and_then(|s| s.portal.as_ref());
    through.is_some_and(|p| p.is(portal))
}
