//! Failed logins in a row, by user. Kept in memory and only for users that exist, so that made-up names cost
//! nothing; a lock-out itself is in the records. Where replicas share these, so is the count, and what is kept here is what is on its
//! way there.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

/// Counts of failures.
#[derive(Debug, Default)]
pub struct Failures(Mutex<HashMap<String, (u32, i64)>>);

impl Failures {
    /// Counts a failure of a user at `now` (microseconds); the new count. Failures before `since` are over.
    pub fn add(&self, user_id: &str, now: i64, since: i64) -> u32 {
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match map.get_mut(user_id) {
            Some((count, at)) => {
                *count = if *at <= since {
                    1
                } else {
                    count.saturating_add(1)
                };
                *at = now;
                *count
            }
            None => {
                map.insert(user_id.to_owned(), (1, now));
                1
            }
        }
    }

    /// One failure of a user is counted elsewhere now.
    pub fn settle(&self, user_id: &str) {
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((count, _)) = map.get_mut(user_id) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                map.remove(user_id);
            }
        }
    }

    /// Failures of a user, unless they ended before `since`.
    pub fn count(&self, user_id: &str, since: i64) -> u32 {
        let map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        map.get(user_id)
            .filter(|(_, at)| *at > since)
            .map_or(0, |(count, _)| *count)
    }

    /// Forgets a user's failures: it logged in, or its lock-out began or was ended.
    pub fn clear(&self, user_id: &str) {
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        map.remove(user_id);
    }

    /// Forgets failures before `since`.
    pub fn sweep(&self, since: i64) {
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        map.retain(|_, (_, at)| *at >= since);
        map.shrink_to_fit();
    }

    /// Users with failures.
    pub fn len(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether nobody failed.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_clears_and_sweeps() {
        let failures = Failures::default();
        assert_eq!(
            (
                failures.add("u", 1, 0),
                failures.add("u", 2, 0),
                failures.add("v", 9, 0)
            ),
            (1, 2, 1)
        );
        assert_eq!(
            (
                failures.count("u", 1),
                failures.count("u", 2),
                failures.count("x", 0)
            ),
            (2, 0, 0)
        );
        assert_eq!(failures.add("u", 5, 2), 1, "the old ones are over");
        failures.sweep(6);
        assert_eq!(failures.len(), 1);
        failures.add("w", 7, 0);
        failures.add("w", 7, 0);
        failures.settle("w");
        assert_eq!(failures.count("w", 0), 1);
        failures.settle("w");
        failures.settle("w");
        assert_eq!(failures.count("w", 0), 0);
        failures.clear("u");
        failures.clear("v");
        assert!(failures.is_empty());
    }
}
