//! What strikes, at which step, and in which order: the same in every run.

/// What strikes at a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Blow {
    Agent(&'static str),
    Power(&'static str),
    /// Milliseconds after the step was begun.
    Worker(u64),
}

/// A kind of volume.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kind {
    /// Encryptor.
    pub provider: &'static str,
    /// Bytes of its header; nothing is written there but by a rotation.
    pub header: usize,
}

const LUKS2: usize = 0;
const LUKS: usize = 1;
const PLAIN: usize = 2;

pub(super) const KINDS: [Kind; 3] = [
    Kind {
        provider: "luks2",
        header: 16 << 20,
    },
    Kind {
        provider: "luks",
        header: 2 << 20,
    },
    Kind {
        provider: "plain",
        header: 0,
    },
];

/// The ways of a volume, one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Up,
    Live,
    Down,
}

/// Steps of each attachment after the first.
const UP: &[&str] = &[
    READ_HEADER,
    "login",
    "scan",
    "release-key",
    "open",
    "record-first-opened",
    "give-name",
    "link",
];
/// Where there is one.
const READ_HEADER: &str = "read-header";
/// Steps of what is done to a volume while it is attached.
const ROTATION: &[&str] = &["add-key-slot", "drop-key-slots"];
const GROWTH: &[&str] = &["grow"];
/// Steps of each detach.
const DOWN: &[&str] = &["take-name", "unlink", "close", "delete-device", "logout"];

/// One blow on one way of a volume of a kind, which is given by its place in [`KINDS`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Strike {
    pub kind: usize,
    pub way: Way,
    pub step: &'static str,
    pub blow: Blow,
}

/// The hundred strikes: each step with each blow at least once. A volume goes up and down again forty times, and every other time something
/// is done to it in between. The first eight take each kind up and down, rotate a key and grow a disk.
pub(super) fn strikes() -> Vec<Strike> {
    let mut up = blows(UP, 5);
    let mut down = blows(DOWN, 7).into_iter().cycle();
    let mut rotation = blows(ROTATION, 6).into_iter().map(|b| (LUKS2, b));
    let growing = [[PLAIN, LUKS, PLAIN, LUKS, PLAIN], [LUKS2; BLOWS]].concat();
    let mut growth = growing
        .into_iter()
        .zip(blows(GROWTH, 6).into_iter().cycle());
    let mut all = Vec::new();
    for turn in 0..UP.len() * BLOWS {
        let live = match turn % 4 {
            0 => rotation.next(),
            2 => growth.next(),
            _ => None,
        };
        let kind = match live {
            Some((kind, _)) => kind,
            None if turn % 4 == 1 => LUKS,
            None => PLAIN,
        };
        // Where there is a header its reading comes first, so that none is left for a kind without.
        let wanted = |(step, _): &(&str, Blow)| (*step == READ_HEADER) == (kind != PLAIN);
        let at = up.iter().position(wanted).unwrap_or(0);
        let mut strike = |way, (step, blow)| {
            all.push(Strike {
                kind,
                way,
                step,
                blow,
            })
        };
        strike(Way::Up, up.remove(at));
        if let Some((_, blow)) = live {
            strike(Way::Live, blow);
        }
        if let Some(blow) = down.next() {
            strike(Way::Down, blow);
        }
    }
    all
}

/// Blows of each step.
const BLOWS: usize = 5;

/// Each step with each blow, in an order that looks like chance and is always the same.
fn blows(steps: &[&'static str], seed: u64) -> Vec<(&'static str, Blow)> {
    let mut all = Vec::new();
    for (number, step) in steps.iter().enumerate() {
        for when in ["before", "after"] {
            all.push((*step, Blow::Agent(when)));
            all.push((*step, Blow::Power(when)));
        }
        all.push((*step, Blow::Worker([0, 2, 7, 25][number % 4])));
    }
    // Fisher and Yates, by SplitMix64.
    let mut state = seed;
    for last in (1..all.len()).rev() {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        all.swap(last, (z % (last as u64 + 1)) as usize);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hundred_strikes_are_each_step_with_each_blow() {
        let all = strikes();
        assert_eq!(all.len(), 100);
        let struck = |way, steps: &[&'static str]| {
            for wanted in blows(steps, 1) {
                let is = |s: &&Strike| s.way == way && (s.step, s.blow) == wanted;
                assert!(all.iter().any(|s| is(&s)), "{way:?} {wanted:?}");
            }
        };
        struck(Way::Up, UP);
        struck(Way::Live, ROTATION);
        struck(Way::Live, GROWTH);
        struck(Way::Down, DOWN);
        for strike in &all {
            assert!(
                strike.kind != PLAIN || strike.step != READ_HEADER,
                "{strike:?}"
            );
            assert!(
                strike.kind == LUKS2 || !ROTATION.contains(&strike.step),
                "{strike:?}"
            );
        }
        for kind in [LUKS2, LUKS, PLAIN] {
            assert!(all.iter().any(|s| s.kind == kind && s.step == "grow"));
        }
    }

    #[test]
    fn a_volume_goes_up_before_it_goes_down() {
        let mut attached = None;
        for strike in strikes() {
            match strike.way {
                Way::Up => assert_eq!(attached.replace(strike.kind), None),
                Way::Live => assert_eq!(attached, Some(strike.kind)),
                Way::Down => assert_eq!(attached.take(), Some(strike.kind)),
            }
        }
        assert_eq!(attached, None);
        let few = &strikes()[..8];
        let kinds = [LUKS2, LUKS, PLAIN];
        let down = |s: &Strike| (s.way == Way::Down).then_some(s.kind);
        assert_eq!(few.iter().filter_map(down).collect::<Vec<_>>(), kinds);
    }

    #[test]
    fn the_order_is_always_the_same() {
        assert_eq!(blows(UP, 5), blows(UP, 5));
        assert_ne!(blows(UP, 5), blows(UP, 6));
        for step in UP {
            let of_it = blows(UP, 5).iter().filter(|(s, _)| s == step).count();
            assert_eq!(of_it, BLOWS, "{step}");
        }
    }
}
