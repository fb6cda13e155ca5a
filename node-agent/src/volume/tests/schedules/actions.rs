//! What people, the array, the network and the services do.

use super::*;

impl Schedule<'_> {
    /// What people do: attach, detach, delete with Erase (which is for good), move there and back, permit once more.
    pub(super) fn people(&mut self, n: usize) {
        let lab = self.lab;
        if lab.volume(n).spec.desired == Desired::Erased {
            return;
        }
        match self.dice.below(12) {
            0..=5 => self.want(n, Desired::Attached, "attach"),
            6..=8 if self.elsewhere(n) => {}
            6..=8 => self.want(n, Desired::Detached, "detach"),
            9 | 10 if self.elsewhere(n) || self.restore(n) => {}
            9 | 10 => self.permit(n),
            _ if self.dice.below(4) == 0 => self.want(n, Desired::Erased, "erase"),
            _ => {}
        }
    }

    /// A change of the wish.
    fn want(&mut self, n: usize, desired: Desired, what: &'static str) {
        if self.lab.volume(n).spec.desired != desired {
            self.lab.want(n, desired);
            self.tally.add(what);
        }
    }

    /// On another node and back: once this one has reported that nothing is left here, and the operator has seen it.
    pub(super) fn elsewhere(&mut self, n: usize) -> bool {
        let (lab, status) = (self.lab, self.lab.status(n));
        let gone = lab.volume(n).spec.desired == Desired::Detached
            && status.stage == Stage::Detached
            && status.error.is_none()
            && status.observed_generation == lab.volume(n).metadata.generation;
        if !gone {
            return false;
        }
        lab.operate(n);
        let opened = lab.volume(n).spec.header.is_some();
        if opened {
            assert!(
                !lab.world
                    .borrow()
                    .kernel
                    .mappings
                    .iter()
                    .any(|m| m.mapping.name == names::mapping_name(&uid(n))),
                "7: seed {}: detached is reported and the mapping is there",
                self.seed
            );
            lab.disk(n, |d| d.data = Some("written on another node".into()));
            self.tally.add("moves");
        }
        opened
    }

    /// A person reads `FormatInterrupted`, wipes what is half written and allows one more.
    pub(super) fn permit(&mut self, n: usize) {
        let lab = self.lab;
        if lab.reason(n).as_deref() != Some("FormatInterrupted") {
            return;
        }
        lab.disk(n, |d| {
            assert!(
                d.data.is_none(),
                "2: seed {}: a volume with data is said to be interrupted",
                self.seed
            );
            if d.content == Content::Garbage {
                d.content = Content::Blank;
            }
        });
        self.tally.add("permits");
        let id = format!("again-{}", lab.clock.get());
        lab.change(n, |s| {
            s.formatted_before = true;
            s.format_permit = Some(FormatPermit {
                id,
                luks_uuid: luks_uuid(n),
            });
        });
    }

    /// Another host writes over the header of a volume that has a backup of it.
    pub(super) fn overwrite(&mut self, n: usize) {
        let lab = self.lab;
        let status = lab.status(n);
        let backed_up = status.header_backup.is_some() && status.first_opened.is_some();
        let whole = lab.disk(
            n,
            |d| matches!(&d.content, Content::Luks(h) if h.facts.luks_uuid == luks_uuid(n)),
        );
        let known = lab
            .overwritten
            .borrow()
            .contains(&lab.truth.borrow()[&name(n)]);
        if !backed_up || !whole || known || lab.volume(n).spec.desired == Desired::Erased {
            return;
        }
        let with = [Content::Blank, Content::Garbage][self.dice.below(2)].clone();
        self.headers.insert(n, lab.overwrite(n, with));
        let truth = lab.truth.borrow()[&name(n)];
        lab.ledger.borrow_mut().others.slots.remove(&truth);
        self.tally.add("overwritten");
    }

    /// A person reads that the header is gone, and has it written anew. A backup of the array would do as well.
    pub(super) fn restore(&mut self, n: usize) -> bool {
        let lab = self.lab;
        let gone = lab
            .overwritten
            .borrow()
            .contains(&lab.truth.borrow()[&name(n)]);
        let told = ["HeaderMissing", "HeaderMismatch", "KeyDoesNotOpen"];
        let reason = lab.reason(n);
        if !gone || !told.iter().any(|r| reason.as_deref() == Some(r)) || self.mapped(n) {
            return false;
        }
        lab.operate(n);
        if lab.volume(n).spec.header_restore.is_none() {
            lab.order_restore(n);
        }
        true
    }

    pub(super) fn mapped(&self, n: usize) -> bool {
        let ours = names::mapping_name(&uid(n));
        let world = self.lab.world.borrow();
        world.kernel.mappings.iter().any(|m| m.mapping.name == ours)
    }

    /// An erasure finds nothing to wipe where no header is, and says so: the array's own backup brings it back.
    pub(super) fn header_for_the_erasure(&self, n: usize) {
        let lab = self.lab;
        let truth = lab.truth.borrow()[&name(n)];
        let erases = lab.volume(n).spec.desired == Desired::Erased;
        if erases && lab.status(n).erased.is_none() && lab.overwritten.borrow_mut().remove(&truth) {
            let mut header = self.headers[&n].clone();
            if let Content::Luks(h) = &mut header {
                h.objections.clear();
            }
            lab.disk(n, |d| d.content = header);
        }
    }

    /// A moody array and its network.
    pub(super) fn array(&mut self, n: usize) {
        let lab = self.lab;
        let lun = u32::try_from(n).unwrap();
        let other = 1 + self.dice.below(VOLUMES);
        match self.dice.below(16) {
            0 => {
                self.tally.add("target down");
                lab.target(|t| t.up = false);
            }
            1..=3 => lab.target(|t| t.up = true),
            4 => lab.disk(n, |d| d.zeros = true),
            5 => lab.disk(n, |d| d.unreadable = true),
            6 | 7 => lab.disk(n, |d| (d.zeros, d.unreadable) = (false, false)),
            8 => {
                if lab.target(|t| t.luns.remove(&lun)).is_some() {
                    self.tally.add("LUN withdrawn");
                }
            }
            // Two LUN numbers are exchanged, or one is given to a disk of somebody else.
            9 if other != n => lab.target(|t| {
                self.tally.add("LUNs exchanged");
                let other = u32::try_from(other).unwrap();
                let (a, b) = (t.luns.remove(&lun), t.luns.remove(&other));
                t.luns.extend(b.map(|disk| (lun, disk)));
                t.luns.extend(a.map(|disk| (other, disk)));
            }),
            10 => {
                let stranger = self.strangers[self.dice.below(self.strangers.len())];
                lab.target(|t| t.luns.insert(lun, stranger));
                self.tally.add("LUN reused");
            }
            11 => lab.disk(n, |d| {
                if let Content::Luks(h) = &mut d.content {
                    h.objections = vec!["its data cipher is \"cipher_null-ecb\"".into()];
                }
            }),
            12 => self.mend_header(n),
            13 => self.overwrite(n),
            _ => self.mend_lun(n),
        }
    }

    pub(super) fn mend_header(&self, n: usize) {
        self.lab.disk(n, |d| {
            if let Content::Luks(h) = &mut d.content {
                h.objections.clear();
            }
        });
    }

    pub(super) fn mend_lun(&self, n: usize) {
        let truth = self.lab.truth.borrow()[&name(n)];
        let lun = u32::try_from(n).unwrap();
        self.lab.target(|t| t.luns.insert(lun, truth));
    }

    /// The kernel, udev and root on this node.
    pub(super) fn node(&mut self, n: usize) {
        let lun = u32::try_from(n).unwrap();
        let mut world = self.lab.world.borrow_mut();
        let session_state = ["FAILED", "LOGGED_IN", "LOGGED_IN"][self.dice.below(3)];
        match self.dice.below(6) {
            0 | 1 => {
                for s in world.kernel.sessions.iter_mut().filter(|s| s.iqn == IQN) {
                    session_state.clone_into(&mut s.state);
                }
            }
            2 => drop(world.links.remove(&Lab::link(n))),
            // A disk is lost: taken off line after errors, or gone from the kernel.
            3 => {
                for d in world
                    .kernel
                    .devices
                    .iter_mut()
                    .filter(|d| d.lun == lun && !d.in_use)
                {
                    "offline".clone_into(&mut d.state);
                    self.tally.add("disk off line");
                }
            }
            4 => {
                let before = world.kernel.devices.len();
                world.kernel.devices.retain(|d| d.lun != lun || d.in_use);
                if world.kernel.devices.len() < before {
                    self.tally.add("disk lost");
                }
            }
            _ => {
                let ours = names::mapping_name(&uid(n));
                for m in &mut world.kernel.mappings {
                    m.mapping.suspended |= m.mapping.name == ours;
                }
            }
        }
    }

    pub(super) fn services(&mut self) {
        let lab = self.lab;
        match self.dice.below(6) {
            0 => lab.api_up.set(false),
            1 => *lab.operator.borrow_mut() = Err((Reason::KeyServiceUnavailable, "away".into())),
            // A wrong key, once every header is made: the one that a header is made with is the right one.
            2 if (1..=VOLUMES).all(|n| lab.status(n).first_opened.is_some()) => {
                *lab.operator.borrow_mut() = Ok(Some("0".repeat(64)));
                self.tally.add("wrong key");
            }
            3 => lab.api_up.set(true),
            _ => *lab.operator.borrow_mut() = Ok(None),
        }
    }

    pub(super) fn guests(&mut self, n: usize) {
        let mut world = self.lab.world.borrow_mut();
        if self.dice.below(2) == 0 {
            return world.guests_leave(&names::mapping_name(&uid(n)));
        }
        // While the array shows another disk under a live mapping nobody can keep it from spoiling what is there.
        let truth = self.lab.truth.borrow()[&name(n)];
        let lun = u32::try_from(n).unwrap();
        let right = world.targets[IQN].luns.get(&lun) == Some(&truth);
        if right && world.guest_writes(&Lab::link(n)).is_some() {
            self.tally.add("guests");
        }
    }

    /// Killed between any two polls, or at a pause inside a step. Tells whether the agent is dead at once.
    pub(super) fn death(&mut self) -> bool {
        let fault = match self.dice.below(3) {
            0 => Fault::PowerCut,
            _ => Fault::Kill,
        };
        if self.dice.below(2) == 0 {
            self.lab.dead.set(Some(fault));
            return true;
        }
        let at = self.lab.pauses.get() + self.dice.below(6);
        self.lab.faults.borrow_mut().push((at, fault));
        false
    }

    /// The way through a portal is cut, or there again.
    pub(super) fn portal(&mut self) {
        let portal = PORTALS[self.dice.below(PORTALS.len())];
        let mut world = self.lab.world.borrow_mut();
        match self.dice.below(2) {
            0 => world.cut(IQN, portal),
            _ => world.mend(IQN, portal),
        }
    }
}
