//! Random schedules with fixed seeds: several volumes at once, guests, a moody array, udev, kills and power cuts at any pause. After
//! every effect the ten invariants hold (`Lab::check`; messages begin with the invariant's number), and when all is mended everything is
//! as wanted. A seed that finds a defect gets a test of its own in `found`.

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
use crate::{
    fuzz::mutator::Dice,
    host::{Host, sim::*},
    volume::execute::Outcome,
};

mod actions;
mod found;
mod in_use;
mod udev;

type Turn<'a> = Pin<Box<dyn Future<Output = Outcome> + 'a>>;

const VOLUMES: usize = 3;
/// Who else uses this node: a session to another target and a mapping on a disk of it.
const OTHERS: &str = "iqn.2026-11.com.example:others";

/// What happened in all schedules and took effect, so that the test proves that it tests something.
#[derive(Clone, Default, Debug)]
struct Tally(BTreeMap<&'static str, usize>);

impl Tally {
    fn add(&mut self, what: &'static str) {
        *self.0.entry(what).or_default() += 1;
    }

    fn plus(mut self, other: Self) -> Self {
        for (what, count) in other.0 {
            *self.0.entry(what).or_default() += count;
        }
        self
    }

    /// Each of these happened so often at least, and nothing else did: what is counted is asked for.
    fn covers(&self, least: &[(&'static str, usize)]) {
        for (what, least) in least {
            let count = self.0.get(what).copied().unwrap_or_default();
            assert!(
                count >= *least,
                "{what}: {count} times, not {least}: {self:?}"
            );
        }
        for what in self.0.keys() {
            assert!(
                least.iter().any(|(l, _)| l == what),
                "nobody asks for {what}"
            );
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
    /// Volumes whose disk was made larger, and whose size a person had looked at.
    grown: Vec<usize>,
    /// Volumes that were suspended, with their key out of the kernel.
    suspended: Vec<usize>,
    /// Links put in the place of udev's.
    stolen: Vec<String>,
}

impl Schedule<'_> {
    /// Everything is mended and nobody uses anything.
    fn mend(&self) {
        let lab = self.lab;
        lab.hands.borrow_mut().clear();
        lab.busy_targets.borrow_mut().clear();
        lab.ledger.borrow_mut().bury(None);
        lab.interleave.set(false);
        self.mend_names();
        lab.others_scan.set(false);
        lab.faults.borrow_mut().clear();
        lab.api_up.set(true);
        *lab.operator.borrow_mut() = Ok(None);
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
        udev::scan_known(&mut lab.world.borrow_mut());
    }

    /// Comes to rest; where it is suspended, as that and then without it.
    fn settle(&mut self, n: usize) {
        self.come_to_rest(n);
        if self.lab.volume(n).spec.suspended {
            self.rests_suspended(n);
            self.lab.change(n, |s| s.suspended = false);
            self.come_to_rest(n);
        }
        self.ends_rotation(n);
        self.is_as_long_as_its_disk(n);
    }

    /// As wanted, or the one condition that names what a person does, and as wanted after it.
    fn come_to_rest(&mut self, n: usize) {
        let (lab, seed) = (self.lab, self.seed);
        lab.settle(n);
        if lab.reason(n).as_deref() == Some("FormatInterrupted") {
            self.tally.add("interrupted");
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
            self.tally.add("restored");
        }
        let last = match lab.volume(n).spec.desired {
            Desired::Attached => {
                self.tally.add("attached");
                Stage::Attached
            }
            Desired::Detached => {
                self.tally.add("detached");
                Stage::Detached
            }
            Desired::Erased => {
                self.tally.add("erased");
                Stage::Erased
            }
        };
        assert_eq!(
            (lab.status(n).stage, lab.reason(n)),
            (last, None),
            "7: seed {seed}, volume {n}: {:?}\n{:#?}\n{}",
            lab.status(n),
            lab.world.borrow().kernel,
            lab.world.borrow().log.join("\n"),
        );
    }
}

/// A session and a mapping of somebody else, and a link in our directory; a power cut takes them away, nothing else does.
fn others(lab: &Lab) {
    let mut world = lab.world.borrow_mut();
    world
        .kernel
        .sessions
        .push(SimSession::of_another(1000, OTHERS));
    let mut mapping = super::invariants::strange_mapping("others", "LVM-others", "8:240");
    mapping.mapping.path = "/dev/dm-99".into();
    world.kernel.mappings.push(mapping);
    let link = names::link_path("ns", "others");
    let to = SimLink::Foreign("/dev/dm-99".into());
    world.links.insert(link.clone(), to);
    let others = &mut lab.ledger.borrow_mut().others;
    others.sessions.insert(1000);
    others.mappings.insert("LVM-others".into());
    others.links.insert(link);
}

/// The names that volumes 2 and 3 shadow: one by its way, one by its disk.
fn shadow(n: usize) -> Option<String> {
    match n {
        2 => Some(by_path(IQN, 2)),
        3 => Some(by_id(&wwid(3))),
        _ => None,
    }
}

fn schedule(seed: u64, paths: bool, tally: &mut Tally) {
    let lab = match paths {
        true => Lab::paths(Provider::Luks2, VOLUMES),
        false => Lab::new(VOLUMES),
    };
    lab.interleave.set(true);
    lab.names_free_until_kept.set(true);
    others(&lab);
    let mut strangers = Vec::new();
    for content in [Content::Blank, Content::Foreign("ext4".into())] {
        strangers.push(lab.add_disk(Disk::blank(&wwid(66)).with(content)));
    }
    let mut s = Schedule {
        lab: &lab,
        dice: Dice(seed),
        tally,
        seed,
        strangers,
        headers: BTreeMap::new(),
        grown: vec![],
        suspended: vec![],
        stolen: vec![],
    };
    for n in 1..=VOLUMES {
        if !paths {
            lab.change(n, |spec| spec.shadow = shadow(n));
        }
        if s.dice.below(2) == 0 {
            lab.want(n, Desired::Detached);
        }
    }
    let mut turns: BTreeMap<usize, Turn<'_>> = BTreeMap::new();
    let mut cx = Context::from_waker(Waker::noop());
    let mut seen = 0;
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
            12 | 13 => s.udev(n),
            14..=16 => s.changes_in_use(n),
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
                let done = lab.world.borrow().log.len();
                if done > std::mem::replace(&mut seen, done) {
                    s.look();
                }
                if lab.dead.get().is_none() {
                    continue; // what it did was checked at once
                }
            }
        }
        if let Some(fault) = lab.dead.get() {
            turns.clear();
            lab.bury();
            s.tally.add(match fault {
                Fault::PowerCut => "power cut",
                _ => "kill",
            });
            if fault == Fault::PowerCut {
                others(&lab);
            }
        }
        s.look();
        lab.check();
    }
    drop(turns);
    s.mend();
    for n in 1..=VOLUMES {
        s.settle(n);
    }
    lab.check();
}

const ACTIONS: usize = 250;
/// Seeds are dealt out to so many threads; which one runs a seed changes nothing.
const THREADS: u64 = 4;

fn seeds(which: impl Iterator<Item = u64>) -> Tally {
    let mut tally = Tally::default();
    which.for_each(|seed| schedule(seed, false, &mut tally));
    tally
}

/// What happens with and without several paths.
const COMMON: &[&str] = &[
    "attach",
    "detach",
    "erase",
    "attached",
    "detached",
    "erased",
    "kill",
    "power cut",
    "guests",
    "interrupted",
    "permits",
    "overwritten",
    "restored",
    "target down",
    "LUN withdrawn",
    "LUNs exchanged",
    "LUN reused",
    "disk lost",
    "disk off line",
    "rotate",
    "rotated",
    "suspend",
    "suspended",
    "grow",
    "grown",
    "key slot of others",
];
/// What a thousand schedules are too few for.
const RARE: &[&str] = &["moves", "wrong key", "resumed"];
/// What happens to names, which are of volumes with one path.
const NAMES: &[&str] = &[
    "name stolen",
    "name put back by udev",
    "name put back by the agent",
    "name forgotten",
    "name kept for another",
    "rescan",
    "neighbour",
];

#[test]
fn a_thousand_random_schedules_of_several_paths() {
    let mut tally = Tally::default();
    (0..1000).for_each(|seed| schedule(seed, true, &mut tally));
    let mut least: Vec<_> = COMMON.iter().map(|what| (*what, 1)).collect();
    least.extend(RARE.iter().map(|what| (*what, 0)));
    tally.covers(&least);
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
    let all = COMMON.iter().chain(RARE).chain(NAMES);
    let least: Vec<_> = all.map(|what| (*what, 10)).collect();
    tally.covers(&least);
}
