//! What a caller may not do too often: repeat a request, or ask at all.

use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
    time::{Duration, Instant},
};

/// How long request ids are remembered.
const REMEMBER: Duration = Duration::from_secs(600);
/// Most request ids that are remembered.
const MOST_IDS: usize = 20_000;
/// Most callers whose rate is followed.
const MOST_CALLERS: usize = 10_000;

/// Request ids that were seen.
#[derive(Default)]
pub struct Seen {
    ids: HashMap<uuid::Uuid, Instant>,
    order: VecDeque<uuid::Uuid>,
}

impl Seen {
    /// Remembers an id; false when it was seen before.
    pub fn first_time(&mut self, id: uuid::Uuid, now: Instant) -> bool {
        while let Some(oldest) = self.order.front() {
            let old = self
                .ids
                .get(oldest)
                .is_none_or(|at| now.duration_since(*at) > REMEMBER);
            if !old && self.order.len() < MOST_IDS {
                break;
            }
            self.ids.remove(oldest);
            self.order.pop_front();
        }
        if self.ids.insert(id, now).is_some() {
            return false;
        }
        self.order.push_back(id);
        true
    }
}

/// A token bucket per caller.
pub struct Rate<K> {
    burst: f64,
    per_second: f64,
    callers: HashMap<K, (f64, Instant)>,
}

impl<K: Hash + Eq> Rate<K> {
    /// At most `burst` at once and `per_second` in the long run.
    pub fn new(burst: u32, per_second: u32) -> Self {
        Self {
            burst: burst.into(),
            per_second: per_second.into(),
            callers: HashMap::new(),
        }
    }

    /// Counts a request; false when it is one too many.
    pub fn allow(&mut self, caller: K, now: Instant) -> bool {
        if self.callers.len() >= MOST_CALLERS {
            let (burst, per_second) = (self.burst, self.per_second);
            self.callers.retain(|_, (left, at)| {
                *left + now.duration_since(*at).as_secs_f64() * per_second < burst
            });
        }
        let (left, at) = self.callers.entry(caller).or_insert((self.burst, now));
        *left = (*left + now.duration_since(*at).as_secs_f64() * self.per_second).min(self.burst);
        *at = now;
        if *left < 1.0 {
            return false;
        }
        *left -= 1.0;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_counts_once() {
        let (mut seen, now) = (Seen::default(), Instant::now());
        let id = uuid::Uuid::from_u128(1);
        assert!(seen.first_time(id, now));
        assert!(!seen.first_time(id, now + Duration::from_secs(1)));
        assert!(seen.first_time(uuid::Uuid::from_u128(2), now));
        for n in 3..(MOST_IDS as u128 + 10) {
            assert!(seen.first_time(uuid::Uuid::from_u128(n), now));
        }
        assert!(seen.ids.len() <= MOST_IDS, "bounded");
    }

    #[test]
    fn one_caller_does_not_use_up_anothers_share() {
        let (mut rate, now) = (Rate::new(3, 1), Instant::now());
        assert_eq!((0..5).filter(|_| rate.allow("a", now)).count(), 3);
        assert!(rate.allow("b", now));
        assert!(!rate.allow("a", now));
        assert!(rate.allow("a", now + Duration::from_secs(1)));
    }
}
