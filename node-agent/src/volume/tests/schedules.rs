//! Random schedules with fixed seeds: several volumes at once, guests, a moody array, kills and power cuts at any pause. After
//! every effect the invariants hold (`Lab::check` and `Schedule::check`; messages begin with the invariant's number), and when
//! all is mended everything is as wanted. A seed that found a defect stands as a test of its own in `found.rs`.

use std::{
    collections::BTreeMap,
    future::Future,
    pin::Pin,
    task::{Context, Waker},
};

use cryptvol_crds::{
    conditions::Reason,
    names,
    v1alpha1::{Desired, FormatPermit, Provider, Stage},
};

use super::lab::*;
use crate::{fuzz::mutator::Dice, host::sim::*, volume::execute::Outcome};

type Turn<'a> = Pin<Box<dyn Future<Output = Outcome> + 'a>>;

const VOLUMES: usize = 3;
/// Who else uses this node: a session to another target and a mapping on a disk of it.
const OTHERS: &str = "iqn.2026-11.com.example:others";

/// What happened in all schedules, so that the test proves that it tests something.
#[derive(Default, Debug)]
struct Tally {
    deaths: usize,
    guests: usize,
    interrupted: usize,
    permits: usize,
    moves: usize,
    attached: usize,
    detached: usize,
    erased: usize,
    overwritten: usize,
    restored: usize,
}

impl Tally {
    fn plus(self, other: Self) -> Self {
        Self {
            deaths: self.deaths + other.deaths,
            guests: self.guests + other.guests,
            interrupted: self.interrupted + other.interrupted,
            permits: self.permits + other.permits,
            moves: self.moves + other.moves,
            attached: self.attached + other.attached,
            detached: self.detached + other.detached,
            erased: self.erased + other.erased,
            overwritten: self.overwritten + other.overwritten,
            restored: self.restored + other.restored,
        }
    }
}

/// One schedule on its way.
struct Schedule<'a> {
    lab: &'a Lab,
    dice: Dice,
    tally: &'a mut Tally,
    seed: u64,
    /// Disks of nobody known here, at a LUN of ours for a while.
    strangers: Vec<usize>,
    /// Headers that were overwritten.
    headers: BTreeMap<usize, Content>,
}

impl Schedule<'_> {
    /// What people do: attach, detach, delete with Erase (which is for good), move there and back, permit once more.
    fn people(&mut self, n: usize) {
        let lab = self.lab;
        if lab.volume(n).spec.desired == Desired::Erased {
            return;
        }
        match self.dice.below(12) {
            0..=5 => lab.want(n, Desired::Attached),
            6..=8 => lab.want(n, Desired::Detached),
            9 | 10 if self.elsewhere(n) || self.restore(n) => {}
            9 | 10 => self.permit(n),
            _ if self.dice.below(4) == 0 => lab.want(n, Desired::Erased),
            _ => {}
        }
    }

    /// On another node and back: once this one has reported that nothing is left here, and the operator has seen it.
    fn elsewhere(&mut self, n: usize) -> bool {
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
            self.tally.moves += 1;
        }
        opened
    }

    /// A person reads `FormatInterrupted`, wipes what is half written and allows one more.
    fn permit(&mut self, n: usize) {
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
        self.tally.permits += 1;
        let id = format!("again-{}", self.tally.permits);
        lab.change(n, |s| {
            s.formatted_before = false;
            s.format_permit = Some(FormatPermit {
                id,
                luks_uuid: luks_uuid(n),
            });
        });
    }

    /// Another host writes over the header of a volume that has a backup of it.
    fn overwrite(&mut self, n: usize) {
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
        self.tally.overwritten += 1;
    }

    /// A person reads that the header is gone, and has it written anew. A backup of the array would do as well.
    fn restore(&mut self, n: usize) -> bool {
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

    fn mapped(&self, n: usize) -> bool {
        let ours = names::mapping_name(&uid(n));
        let world = self.lab.world.borrow();
        world.kernel.mappings.iter().any(|m| m.mapping.name == ours)
    }

    /// An erasure finds nothing to wipe where no header is, and says so: the array's own backup brings it back.
    fn header_for_the_erasure(&self, n: usize) {
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
    fn array(&mut self, n: usize) {
        let lab = self.lab;
        let lun = u32::try_from(n).unwrap();
        let other = 1 + self.dice.below(VOLUMES);
        match self.dice.below(16) {
            0 => lab.target(|t| t.up = false),
            1..=3 => lab.target(|t| t.up = true),
            4 => lab.disk(n, |d| d.zeros = true),
            5 => lab.disk(n, |d| d.unreadable = true),
            6 | 7 => lab.disk(n, |d| (d.zeros, d.unreadable) = (false, false)),
            8 => {
                lab.target(|t| t.luns.remove(&lun));
            }
            // Two LUN numbers are exchanged, or one is given to a disk of somebody else.
            9 => lab.target(|t| {
                let other = u32::try_from(other).unwrap();
                let (a, b) = (t.luns.remove(&lun), t.luns.remove(&other));
                t.luns.extend(b.map(|disk| (lun, disk)));
                t.luns.extend(a.map(|disk| (other, disk)));
            }),
            10 => {
                let stranger = self.strangers[self.dice.below(self.strangers.len())];
                lab.target(|t| t.luns.insert(lun, stranger));
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

    fn mend_header(&self, n: usize) {
        self.lab.disk(n, |d| {
            if let Content::Luks(h) = &mut d.content {
                h.objections.clear();
            }
        });
    }

    fn mend_lun(&self, n: usize) {
        let truth = self.lab.truth.borrow()[&name(n)];
        let lun = u32::try_from(n).unwrap();
        self.lab.target(|t| t.luns.insert(lun, truth));
    }

    /// The kernel, udev and root on this node.
    fn node(&mut self, n: usize) {
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
                let lun = u32::try_from(n).unwrap();
                for d in world
                    .kernel
                    .devices
                    .iter_mut()
                    .filter(|d| d.lun == lun && !d.in_use)
                {
                    "offline".clone_into(&mut d.state);
                }
            }
            4 => {
                let lun = u32::try_from(n).unwrap();
                world.kernel.devices.retain(|d| d.lun != lun || d.in_use);
            }
            _ => {
                let ours = names::mapping_name(&uid(n));
                for m in &mut world.kernel.mappings {
                    m.mapping.suspended |= m.mapping.name == ours;
                }
            }
        }
    }

    fn services(&mut self) {
        let lab = self.lab;
        match self.dice.below(6) {
            0 => lab.api_up.set(false),
            1 => *lab.operator.borrow_mut() = Err((Reason::KeyServiceUnavailable, "away".into())),
            // A wrong key, once every header is made: the one that a header is made with is the right one.
            2 if (1..=VOLUMES).all(|n| lab.status(n).first_opened.is_some()) => {
                *lab.operator.borrow_mut() = Ok("0".repeat(64));
            }
            3 => lab.api_up.set(true),
            _ => *lab.operator.borrow_mut() = Ok(KEY.into()),
        }
    }

    fn guests(&mut self, n: usize) {
        let mut world = self.lab.world.borrow_mut();
        if self.dice.below(2) == 0 {
            return world.guests_leave(&names::mapping_name(&uid(n)));
        }
        // While the array shows another disk under a live mapping nobody can keep it from spoiling what is there.
        let truth = self.lab.truth.borrow()[&name(n)];
        let lun = u32::try_from(n).unwrap();
        let right = world.targets[IQN].luns.get(&lun) == Some(&truth);
        if right && world.guest_writes(&Lab::link(n)).is_some() {
            self.tally.guests += 1;
        }
    }

    /// Killed between any two polls, or at a pause inside a step. Tells whether the agent is dead at once.
    fn death(&mut self) -> bool {
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
    fn portal(&mut self) {
        let portal = PORTALS[self.dice.below(PORTALS.len())];
        let mut world = self.lab.world.borrow_mut();
        match self.dice.below(2) {
            0 => world.cut(IQN, portal),
            _ => world.mend(IQN, portal),
        }
    }

    /// Everything is mended and nobody uses anything.
    fn mend(&self) {
        let lab = self.lab;
        lab.hands.borrow_mut().clear();
        lab.busy_targets.borrow_mut().clear();
        lab.interleave.set(false);
        lab.faults.borrow_mut().clear();
        lab.api_up.set(true);
        *lab.operator.borrow_mut() = Ok(KEY.into());
        lab.target(|t| t.up = true);
        for portal in PORTALS {
            lab.world.borrow_mut().mend(IQN, portal);
        }
        for s in &mut lab.world.borrow_mut().kernel.sessions {
            "LOGGED_IN".clone_into(&mut s.state);
        }
        for n in 1..=VOLUMES {
            lab.disk(n, |d| (d.zeros, d.unreadable) = (false, false));
            self.mend_header(n);
            self.header_for_the_erasure(n);
            self.mend_lun(n);
            lab.world
                .borrow_mut()
                .guests_leave(&names::mapping_name(&uid(n)));
        }
    }

    /// As wanted, or the one condition that names what a person does, and as wanted after it.
    fn settle(&mut self, n: usize) {
        let (lab, seed) = (self.lab, self.seed);
        lab.settle(n);
        if lab.reason(n).as_deref() == Some("FormatInterrupted") {
            self.tally.interrupted += 1;
            self.permit(n);
            lab.settle(n);
        }
        // Below a mapping that is there no header is written: off the node first, and on it again.
        if lab.reason(n).as_deref() == Some("HeaderMissing") && self.mapped(n) {
            for desired in [Desired::Detached, Desired::Attached] {
                lab.want(n, desired);
                lab.settle(n);
            }
        }
        if self.restore(n) {
            lab.settle(n);
            self.tally.restored += 1;
        }
        let last = match lab.volume(n).spec.desired {
            Desired::Attached => {
                self.tally.attached += 1;
                Stage::Attached
            }
            Desired::Detached => {
                self.tally.detached += 1;
                Stage::Detached
            }
            Desired::Erased => {
                self.tally.erased += 1;
                Stage::Erased
            }
        };
        assert_eq!(
            (lab.status(n).stage, lab.reason(n)),
            (last, None),
            "7: seed {seed}, volume {n}: {:?}",
            lab.status(n)
        );
    }

    /// What holds beside `Lab::check`.
    fn check(&self) {
        let (lab, seed) = (self.lab, self.seed);
        lab.check();
        let world = lab.world.borrow();
        for stranger in &self.strangers {
            assert_eq!(
                world.disks[*stranger].written, 0,
                "1: seed {seed}: a stranger's disk was written"
            );
        }
        let cut = world.kernel.sessions.iter().all(|s| s.iqn != OTHERS);
        let mapping = world
            .kernel
            .mappings
            .iter()
            .any(|m| m.mapping.name == "others");
        assert_ne!(
            cut, mapping,
            "6: seed {seed}: something of others was touched"
        );
        for (name, volume) in lab.volumes.borrow().iter() {
            // A volume that was never opened has no data: whatever its disk shows then is as good as erased.
            let erased = volume.status.as_ref().is_some_and(|s| {
                s.first_opened.is_some() && s.erased.as_ref().is_some_and(|e| e.verified)
            });
            if !erased {
                continue;
            }
            let keyless = match &world.disks[lab.truth.borrow()[name]].content {
                Content::Luks(h) => {
                    h.slots.is_empty() || Some(&h.facts.luks_uuid) != volume.spec.luks_uuid.as_ref()
                }
                _ => true,
            };
            let mapping = names::mapping_name(&volume.spec.volume_ref.uid);
            let mapped = world
                .kernel
                .mappings
                .iter()
                .any(|m| m.mapping.name == mapping);
            assert!(
                keyless && !mapped,
                "9: seed {seed}: erased is reported and {name} is not"
            );
        }
    }
}

/// A session and a mapping of somebody else; a power cut takes them away, nothing else does.
fn others(lab: &Lab) {
    let mut world = lab.world.borrow_mut();
    world.kernel.sessions.push(SimSession {
        sid: 1000,
        iqn: OTHERS.into(),
        portal: None,
        state: "LOGGED_IN".into(),
        foreign: true,
    });
    let mut mapping = super::invariants::strange_mapping("others", "LVM-others", "8:240");
    mapping.mapping.path = "/dev/dm-99".into();
    world.kernel.mappings.push(mapping);
}

fn schedule(seed: u64, paths: bool, tally: &mut Tally) {
    let lab = match paths {
        true => Lab::paths(Provider::Luks2, VOLUMES),
        false => Lab::new(VOLUMES),
    };
    lab.interleave.set(true);
    others(&lab);
    let mut strangers = Vec::new();
    for content in [Content::Blank, Content::Foreign("ext4".into())] {
        strangers.push(lab.world.borrow().disks.len());
        lab.world
            .borrow_mut()
            .disks
            .push(Disk::blank(&wwid(66)).with(content));
    }
    let mut s = Schedule {
        lab: &lab,
        dice: Dice(seed),
        tally,
        seed,
        strangers,
        headers: BTreeMap::new(),
    };
    for n in 1..=VOLUMES {
        if s.dice.below(2) == 0 {
            lab.want(n, Desired::Detached);
        }
    }
    let mut turns: BTreeMap<usize, Turn<'_>> = BTreeMap::new();
    let mut cx = Context::from_waker(Waker::noop());
    for _ in 0..ACTIONS {
        let n = 1 + s.dice.below(VOLUMES);
        match s.dice.below(64) {
            0 | 1 => s.people(n),
            2 => s.array(n),
            3 => s.mend_lun(n),
            4 => s.node(n),
            5 => s.services(),
            6..=8 => s.guests(n),
            9 | 10 => lab.operate(n),
            12 | 13 if paths => s.portal(),
            11 if s.dice.below(3) == 0 => {
                if s.death() {
                    turns.clear();
                }
            }
            _ => {
                let turn = turns.entry(n).or_insert_with(|| Box::pin(lab.turn(n)));
                if turn.as_mut().poll(&mut cx).is_ready() {
                    turns.remove(&n);
                }
            }
        }
        if let Some(fault) = lab.dead.get() {
            turns.clear();
            lab.bury();
            s.tally.deaths += 1;
            if fault == Fault::PowerCut {
                others(&lab);
            }
        }
        s.check();
    }
    drop(turns);
    s.mend();
    for n in 1..=VOLUMES {
        s.settle(n);
    }
    s.check();
}

const ACTIONS: usize = 250;
/// Seeds are dealt out to so many threads; which one runs a seed changes nothing.
const THREADS: u64 = 4;

fn seeds(which: impl Iterator<Item = u64>) -> Tally {
    let mut tally = Tally::default();
    which.for_each(|seed| schedule(seed, false, &mut tally));
    tally
}

#[test]
fn a_thousand_random_schedules_of_several_paths() {
    let mut tally = Tally::default();
    (0..1000).for_each(|seed| schedule(seed, true, &mut tally));
    for (count, least) in [
        (tally.deaths, 500),
        (tally.guests, 20),
        (tally.attached, 500),
        (tally.detached, 200),
        (tally.erased, 100),
    ] {
        assert!(count > least, "{tally:?}");
    }
}

#[test]
fn ten_thousand_random_schedules() {
    let tally = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|first| scope.spawn(move || seeds((first..10_000).step_by(THREADS as usize))))
            .collect();
        threads
            .into_iter()
            .map(|t| t.join().unwrap_or_else(|e| std::panic::resume_unwind(e)))
            .fold(Tally::default(), Tally::plus)
    });
    let Tally {
        deaths,
        guests,
        interrupted,
        permits,
        moves,
        attached,
        detached,
        erased,
        overwritten,
        restored,
    } = &tally;
    for (count, least) in [
        (deaths, 5000),
        (guests, 2000),
        (interrupted, 100),
        (permits, 200),
        (moves, 20),
        (attached, 5000),
        (detached, 2000),
        (erased, 1000),
        (overwritten, 100),
        (restored, 50),
    ] {
        assert!(*count > least, "{tally:?}");
    }
}
