//! What strikes, at which step, and in which order: the same in every run.

/// What strikes at a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Blow {
    Agent(&'static str),
    Power(&'static str),
    /// Milliseconds after the step was begun.
    Worker(u64),
}

/// A kind of volume, and the steps of its life.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kind {
    /// Encryptor.
    pub provider: &'static str,
    /// Bytes of its header; nothing is written there but by a rotation.
    pub header: usize,
    /// Steps of each attachment after the first.
    pub up: &'static [&'static str],
    /// Steps of what is done to it while it is attached.
    pub live: &'static [&'static str],
    /// Steps of each detach.
    pub down: &'static [&'static str],
}

const UP: &[&str] = &[
    "login",
    "scan",
    "read-header",
    "release-key",
    "open",
    "record-first-opened",
    "give-name",
    "link",
];
/// Without a header none is read.
const UP_PLAIN: &[&str] = &[
    "login",
    "scan",
    "release-key",
    "open",
    "record-first-opened",
    "give-name",
    "link",
];
const DOWN: &[&str] = &["take-name", "unlink", "close", "delete-device", "logout"];

pub(super) const KINDS: [Kind; 3] = [
    Kind {
        provider: "luks2",
        header: 16 << 20,
        up: UP,
        live: &["add-key-slot", "drop-key-slots"],
        down: DOWN,
    },
    Kind {
        provider: "luks",
        header: 2 << 20,
        up: UP,
        live: &["grow"],
        down: DOWN,
    },
    Kind {
        provider: "plain",
        header: 0,
        up: UP_PLAIN,
        live: &["grow"],
        down: DOWN,
    },
];

/// Each step with each blow, in an order that looks like chance and is always the same.
pub(super) fn blows(steps: &[&'static str], seed: u64) -> Vec<(&'static str, Blow)> {
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
    fn every_step_is_struck_in_every_way_and_always_in_the_same_order() {
        for kind in KINDS {
            for steps in [kind.up, kind.live, kind.down] {
                let all = blows(steps, 5);
                assert_eq!(all.len(), steps.len() * 5);
                assert_eq!(all, blows(steps, 5));
                for step in steps {
                    assert_eq!(all.iter().filter(|(s, _)| s == step).count(), 5, "{step}");
                }
            }
        }
        assert_ne!(blows(UP, 5), blows(UP, 6));
    }
}
