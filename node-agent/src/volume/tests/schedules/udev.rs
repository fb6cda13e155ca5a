//! Names of udev's: events, links that are put in their place, what is forgotten and taken, and raw disks that others bring.

use super::*;

/// Session of a neighbour to the volumes' own target.
const NEIGHBOUR: u32 = 2000;
/// Another volume, of which this agent knows nothing.
const ANOTHER: &str = "cryptvol-another";

impl Schedule<'_> {
    pub(super) fn udev(&mut self, n: usize) {
        let lab = self.lab;
        let Some(name) = lab.volume(n).spec.shadow else {
            return self.neighbour();
        };
        let mut world = lab.world.borrow_mut();
        match self.dice.below(8) {
            // A link in the place of udev's, to the raw disk.
            0 | 1 => {
                let raw = world.raw_disk_of_name(&name);
                let given = world.names.given.values().any(|g| *g == name);
                if let Some(raw) = raw.filter(|_| given) {
                    world.names.by_hand.insert(name.clone(), raw);
                    self.stolen.push(name);
                    self.tally.add("name stolen");
                }
            }
            2 | 3 => {
                let back = world.udev_events();
                self.stolen.retain(|name| !back.contains(name));
                back.iter()
                    .for_each(|_| self.tally.add("name put back by udev"));
            }
            // Somebody empties udev's directory.
            4 => {
                if lab.ledger.borrow().others.names.contains_key(&name) {
                    return;
                }
                if world.names.kept.remove(&name).is_some() {
                    world.names.given.retain(|_, g| *g != name);
                    self.tally.add("name forgotten");
                }
            }
            5 => {
                if !world.names.kept.contains_key(&name) {
                    world.names.kept.insert(name.clone(), ANOTHER.into());
                    let others = &mut lab.ledger.borrow_mut().others;
                    others.names.insert(name, ANOTHER.into());
                    self.tally.add("name kept for another");
                }
            }
            _ => self.rescan(&mut world),
        }
    }

    /// Somebody has every session look for all LUNs of its target.
    fn rescan(&mut self, world: &mut World) {
        self.lab.others_scan.set(true);
        let before = format!("{:?}", world.kernel.devices);
        scan_all(world);
        if before != format!("{:?}", world.kernel.devices) {
            self.tally.add("rescan");
        }
    }

    /// Somebody logs in to the volumes' target by a session of their own, and leaves again.
    fn neighbour(&mut self) {
        let mut world = self.lab.world.borrow_mut();
        let others = &mut self.lab.ledger.borrow_mut().others;
        if others.sessions.contains(&NEIGHBOUR) {
            let theirs = |d: &SimDevice| d.sid == NEIGHBOUR;
            let devs: Vec<_> = world.kernel.devices.iter().filter(|d| theirs(d)).collect();
            let mappings = &world.kernel.mappings;
            let used = devs
                .iter()
                .any(|d| mappings.iter().any(|m| m.mapping.deps.contains(&d.dev)));
            if !used {
                world.kernel.devices.retain(|d| !theirs(d));
                world.kernel.sessions.retain(|s| s.sid != NEIGHBOUR);
                others.sessions.remove(&NEIGHBOUR);
            }
            return;
        }
        if !world.targets[IQN].up {
            return;
        }
        world
            .kernel
            .sessions
            .push(SimSession::of_another(NEIGHBOUR, IQN));
        others.sessions.insert(NEIGHBOUR);
        self.tally.add("neighbour");
    }

    /// Counts what the agent put back.
    pub(super) fn look_at_names(&mut self) {
        let world = self.lab.world.borrow();
        let (still, back): (Vec<_>, Vec<_>) = std::mem::take(&mut self.stolen)
            .into_iter()
            .partition(|name| world.names.by_hand.contains_key(name));
        self.stolen = still;
        for name in back {
            // A power cut takes them all.
            if world.names.kept.contains_key(&name) {
                self.tally.add("name put back by the agent");
            }
        }
    }

    /// What udev does not mend by itself a person does: links that were made by hand, and names that another volume has.
    pub(super) fn mend_names(&self) {
        let mut world = self.lab.world.borrow_mut();
        world.udev_events();
        world.names.by_hand.clear();
        world.names.kept.retain(|_, owner| owner != ANOTHER);
        self.lab.ledger.borrow_mut().others.names.clear();
    }
}

/// Every session looks for all LUNs of its target, and reads anew what it has.
fn scan_all(world: &mut World) {
    let sessions = world.kernel.sessions.iter();
    let sessions: Vec<_> = sessions.map(|s| (s.iqn.clone(), s.sid)).collect();
    for (iqn, sid) in sessions {
        for lun in 1..=u32::try_from(VOLUMES).unwrap() {
            let _ = world.scan(&iqn, sid, lun);
        }
    }
}

/// Every session reads anew what it has: a disk is what it says that it is.
pub(super) fn scan_known(world: &mut World) {
    let sessions = world.kernel.sessions.iter();
    let iqns: BTreeMap<_, _> = sessions.map(|s| (s.sid, s.iqn.clone())).collect();
    let known: Vec<_> = world
        .kernel
        .devices
        .iter()
        .map(|d| (d.sid, d.lun))
        .collect();
    for (sid, lun) in known {
        if let Some(iqn) = iqns.get(&sid) {
            let _ = world.scan(iqn, sid, lun);
        }
    }
}
