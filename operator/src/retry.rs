//! When to try again: per object, soon at first, then less and less often.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

/// First delay.
const FIRST: Duration = Duration::from_secs(1);
/// Longest delay of what may heal by itself.
const MOST: Duration = Duration::from_secs(60);
/// Delay of what a person must change in an object that is watched anyway.
const LONG: Duration = Duration::from_secs(300);
/// How long a key that was seen is taken as there.
pub const KEY_CHECK: Duration = Duration::from_secs(3600);

/// Attempts per object.
#[derive(Default)]
pub struct Retries(Mutex<HashMap<String, u32>>);

impl Retries {
    /// The delay before the next attempt; each call counts one.
    pub fn next(&self, uid: &str) -> Duration {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let attempts = all.entry(uid.to_owned()).or_default();
        let delay = delay(*attempts);
        *attempts = attempts.saturating_add(1);
        delay
    }

    /// The delay that [`Self::next`] would give.
    pub fn peek(&self, uid: &str) -> Duration {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        delay(all.get(uid).copied().unwrap_or_default())
    }

    /// All went well, or the object is gone: the next failure starts from the beginning.
    pub fn reset(&self, uid: &str) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(uid);
    }
}

fn delay(attempts: u32) -> Duration {
    FIRST.saturating_mul(1 << attempts.min(10)).min(MOST)
}

/// Five minutes, give or take a fifth, so that what was found together is not tried together for ever.
pub fn long() -> Duration {
    jittered(LONG)
}

/// A duration, give or take a fifth.
pub fn jittered(d: Duration) -> Duration {
    d.mul_f64(0.8 + 0.4 * rand::random::<f64>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_to_a_minute_and_start_anew_after_success() {
        let retries = Retries::default();
        let delays: Vec<_> = (0..8).map(|_| retries.next("a").as_secs()).collect();
        assert_eq!(delays, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(retries.next("b").as_secs(), 1);
        assert_eq!(retries.peek("a").as_secs(), 60);
        retries.reset("a");
        assert_eq!(retries.next("a").as_secs(), 1);
        assert!((240..=360).contains(&long().as_secs()));
    }
}
