//! When the second copies of headers are looked at again, and what was found. In memory alone: who leads anew begins anew.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::{
    retry,
    volume::{
        second_copy::{Found, SecondCopy},
        world::Problem,
    },
};

/// A process that begins looks at all of them within this, one after the other, so that a restart is no load on the key manager.
const FIRST: Duration = Duration::from_secs(600);

/// What was found of each volume's second copy, by the volume's UID.
pub struct Copies {
    interval: Duration,
    all: Mutex<HashMap<String, Memo>>,
}

struct Memo {
    due: Instant,
    seen: Option<(String, Result<Found, Problem>)>,
}

impl Copies {
    /// `interval` is the time between two looks at one that is as it should be.
    pub fn new(interval: Duration) -> Self {
        Self {
            interval,
            all: Mutex::default(),
        }
    }

    /// What is known of a volume's; of one that is new here, when it is looked at first.
    pub fn get(&self, uid: &str) -> SecondCopy {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        let memo = all.entry(uid.to_owned()).or_insert_with(|| Memo {
            due: Instant::now() + self.interval.min(FIRST).mul_f64(rand::random()),
            seen: None,
        });
        let due = memo.due <= Instant::now();
        SecondCopy {
            due,
            seen: memo.seen.clone().filter(|_| !due),
            stored: None,
        }
    }

    /// Remembers what was found. What is not as it should be, or could not be looked at, is looked at again sooner.
    pub fn put(&self, uid: &str, id: &str, found: &Result<Found, Problem>) {
        let hold = match found {
            Ok(Found::Same) => retry::jittered(self.interval),
            _ => retry::long().min(self.interval),
        };
        let memo = Memo {
            due: Instant::now() + hold,
            seen: Some((id.to_owned(), found.clone())),
        };
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(uid.to_owned(), memo);
    }

    /// How long until a volume's is to be looked at; nothing where it has none.
    pub fn wait(&self, uid: &str) -> Option<Duration> {
        let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        let memo = all.get(uid)?;
        Some(memo.due.saturating_duration_since(Instant::now()))
    }

    /// Forgets a volume that is gone.
    pub fn forget(&self, uid: &str) {
        self.all
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_look_is_within_the_first_minutes_and_what_is_wrong_is_looked_at_soon() {
        let day = Duration::from_secs(24 * 3600);
        let copies = Copies::new(day);
        assert_eq!(copies.wait("a"), None);
        let waits: Vec<_> = (0..64)
            .map(|i| {
                let uid = i.to_string();
                copies.get(&uid);
                copies.wait(&uid).unwrap()
            })
            .collect();
        assert!(waits.iter().all(|w| *w <= FIRST));
        let (first, last) = (waits.iter().min().unwrap(), waits.iter().max().unwrap());
        assert!(*last - *first > FIRST / 4, "not all at once: {waits:?}");
        copies.put("a", "id", &Ok(Found::Same));
        assert!(copies.wait("a").unwrap() > FIRST);
        assert_eq!(
            copies.get("a").seen,
            Some(("id".to_owned(), Ok(Found::Same)))
        );
        copies.put("a", "id", &Ok(Found::Gone));
        assert!(copies.wait("a").unwrap() <= FIRST);
        // What was seen does not outlive its time.
        let copies = Copies::new(Duration::ZERO);
        copies.put("a", "id", &Ok(Found::Gone));
        let due = copies.get("a");
        assert!(due.due && due.seen.is_none());
        copies.forget("a");
        assert_eq!(copies.wait("a"), None);
    }
}
