//! Random schedules with fixed seeds: several volumes at once, guests, a moody array, kills and power cuts at any pause. After
//! every effect the invariants hold (`Lab::check`), and when all is mended everything is as wanted.

use std::{
    collections::BTreeMap,
    future::Future,
    pin::Pin,
    task::{Context, Waker},
};

use cryptvol_crds::{
    names,
    v1alpha1::{Desired, FormatPermit, Stage},
};

use super::lab::*;
use crate::{host::sim::*, volume::execute::Outcome};

/// splitmix64.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(n).unwrap()).unwrap()
    }
}

type Turn<'a> = Pin<Box<dyn Future<Output = Outcome> + 'a>>;

const VOLUMES: usize = 3;

/// What happened in all schedules, so that the test proves that it tests something.
#[derive(Default, Debug)]
struct Tally {
    deaths: usize,
    guests: usize,
    interrupted: usize,
    attached: usize,
    detached: usize,
}

fn schedule(seed: u64, tally: &mut Tally) {
    let mut dice = Dice(seed);
    let lab = Lab::new(VOLUMES);
    lab.interleave.set(true);
    for n in 1..=VOLUMES {
        if dice.below(2) == 0 {
            lab.want(n, Desired::Detached);
        }
    }
    let mut turns: BTreeMap<usize, Turn<'_>> = BTreeMap::new();
    let mut cx = Context::from_waker(Waker::noop());
    for _ in 0..400 {
        let n = 1 + dice.below(VOLUMES);
        match dice.below(40) {
            0 => {
                let wanted =
                    [Desired::Attached, Desired::Attached, Desired::Detached][dice.below(3)];
                lab.want(n, wanted);
            }
            1 if dice.below(3) == 0 => lab.target(|t| t.up = false),
            2 | 3 => lab.target(|t| t.up = true),
            4 if dice.below(3) == 0 => lab.disk(n, |d| d.zeros = true),
            5 if dice.below(3) == 0 => lab.disk(n, |d| d.unreadable = true),
            6 | 7 => lab.disk(n, |d| (d.zeros, d.unreadable) = (false, false)),
            8 if dice.below(3) == 0 => lab.api_up.set(false),
            9 | 10 => lab.api_up.set(true),
            11 => {
                if lab.world.borrow_mut().guest_writes(&Lab::link(n)).is_some() {
                    tally.guests += 1;
                }
            }
            12 | 17 => lab
                .world
                .borrow_mut()
                .guests_leave(&names::mapping_name(&uid(n))),
            13 => lab.operate(n),
            14 if dice.below(4) == 0 => {
                // Killed between any two polls, or at a pause inside a step.
                if dice.below(2) == 0 {
                    let at = lab.pauses.get() + dice.below(6);
                    let fault = if dice.below(3) == 0 {
                        Fault::PowerCut
                    } else {
                        Fault::Kill
                    };
                    lab.faults.borrow_mut().push((at, fault));
                } else {
                    turns.clear();
                    lab.dead.set(Some(Fault::Kill));
                }
            }
            15 => {
                let session_state = if dice.below(4) == 0 {
                    "FAILED"
                } else {
                    "LOGGED_IN"
                };
                for s in &mut lab.world.borrow_mut().kernel.sessions {
                    session_state.clone_into(&mut s.state);
                }
            }
            16 => {
                lab.world.borrow_mut().links.remove(&Lab::link(n));
            }
            _ => {
                let turn = turns.entry(n).or_insert_with(|| Box::pin(lab.turn(n)));
                if turn.as_mut().poll(&mut cx).is_ready() {
                    turns.remove(&n);
                }
            }
        }
        if lab.dead.get().is_some() {
            turns.clear();
            lab.bury();
            tally.deaths += 1;
        }
        lab.check();
    }
    // Everything is mended and nobody uses anything: as wanted, or the one condition.
    drop(turns);
    lab.hands.borrow_mut().clear();
    lab.busy_targets.borrow_mut().clear();
    lab.interleave.set(false);
    lab.faults.borrow_mut().clear();
    lab.api_up.set(true);
    lab.target(|t| t.up = true);
    for s in &mut lab.world.borrow_mut().kernel.sessions {
        "LOGGED_IN".clone_into(&mut s.state);
    }
    for n in 1..=VOLUMES {
        lab.disk(n, |d| (d.zeros, d.unreadable) = (false, false));
        lab.world
            .borrow_mut()
            .guests_leave(&names::mapping_name(&uid(n)));
    }
    for n in 1..=VOLUMES {
        lab.settle(n);
        if lab.reason(n).as_deref() == Some("FormatInterrupted") {
            tally.interrupted += 1;
            lab.disk(n, |d| {
                assert!(
                    d.data.is_none(),
                    "seed {seed}: a volume with data is said to be interrupted"
                );
                if d.content == Content::Garbage {
                    d.content = Content::Blank;
                }
            });
            lab.change(n, |s| {
                s.formatted_before = false;
                s.format_permit = Some(FormatPermit {
                    id: "again".into(),
                    luks_uuid: luks_uuid(n),
                });
            });
            lab.settle(n);
        }
        let last = match lab.volume(n).spec.desired {
            Desired::Attached => {
                tally.attached += 1;
                Stage::Attached
            }
            _ => {
                tally.detached += 1;
                Stage::Detached
            }
        };
        assert_eq!(
            (lab.status(n).stage, lab.reason(n)),
            (last, None),
            "seed {seed}, volume {n}: {:?}",
            lab.status(n)
        );
    }
}

#[test]
fn two_thousand_random_schedules() {
    let mut tally = Tally::default();
    for seed in 0..2000 {
        schedule(seed, &mut tally);
    }
    assert!(tally.deaths > 1000 && tally.guests > 500, "{tally:?}");
    assert!(
        tally.interrupted > 20 && tally.attached > 1000 && tally.detached > 500,
        "{tally:?}"
    );
}
