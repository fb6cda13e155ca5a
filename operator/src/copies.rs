//! When the second copies of headers are looked at again, and what was found. In memory alone: who leads anew begins anew.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use k8s_openapi::jiff::Timestamp;

use crate::{
    metrics::{CopyLabels, Metrics},
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
    metrics: Metrics,
    all: Mutex<HashMap<String, Memo>>,
}

struct Memo {
    due: Instant,
    seen: Option<(String, Result<Found, Problem>)>,
    state: State,
}

/// How a second copy does, for the metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Not looked at yet, or the key manager gave no answer the last time.
    Unknown,
    /// It says what the record says.
    Verified,
    /// There is none.
    Gone,
    /// The secret holds no header of the volume.
    Foreign,
    /// The volume's header, sealed otherwise than in the record.
    Differs,
}

impl State {
    const ALL: [Self; 5] = [
        Self::Unknown,
        Self::Verified,
        Self::Gone,
        Self::Foreign,
        Self::Differs,
    ];

    fn of(found: &Result<Found, Problem>) -> Self {
        match found {
            Err(_) => Self::Unknown,
            Ok(Found::Same) => Self::Verified,
            Ok(Found::Gone) => Self::Gone,
            Ok(Found::Foreign) => Self::Foreign,
            Ok(Found::Other) => Self::Differs,
        }
    }

    fn labels(self) -> CopyLabels {
        CopyLabels {
            state: match self {
                Self::Unknown => "unknown",
                Self::Verified => "verified",
                Self::Gone => "gone",
                Self::Foreign => "foreign",
                Self::Differs => "differs",
            },
        }
    }
}

impl Copies {
    /// `interval` is the time between two looks at one that is as it should be.
    pub fn new(interval: Duration, metrics: &Metrics) -> Self {
        // All are there from the beginning, so that an alert finds them.
        for state in State::ALL {
            metrics.header_copies.get_or_create(&state.labels()).set(0);
        }
        Self {
            interval,
            metrics: metrics.clone(),
            all: Mutex::default(),
        }
    }

    /// What is known of a volume's; of one that is new here, when it is looked at first.
    pub fn get(&self, uid: &str) -> SecondCopy {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        let memo = all.entry(uid.to_owned()).or_insert_with(|| {
            self.count(State::Unknown, 1);
            Memo {
                due: Instant::now() + self.interval.min(FIRST).mul_f64(rand::random()),
                seen: None,
                state: State::Unknown,
            }
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
            state: State::of(found),
        };
        if found.is_ok() {
            let now = Timestamp::now().as_second();
            self.metrics.header_copies_checked.set(now);
        }
        self.count(memo.state, 1);
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(former) = all.insert(uid.to_owned(), memo) {
            self.count(former.state, -1);
        }
    }

    /// One was stored anew and read back. What was seen stays what was seen, until it is on record.
    pub fn stored(&self, uid: &str) {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(memo) = all.get_mut(uid) {
            self.count(memo.state, -1);
            memo.state = State::Verified;
            self.count(memo.state, 1);
        }
    }

    /// How long until a volume's is to be looked at; nothing where it has none.
    pub fn wait(&self, uid: &str) -> Option<Duration> {
        let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        let memo = all.get(uid)?;
        Some(memo.due.saturating_duration_since(Instant::now()))
    }

    /// Forgets a volume that is gone, or has no second copy (any more).
    pub fn forget(&self, uid: &str) {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(former) = all.remove(uid) {
            self.count(former.state, -1);
        }
    }

    fn count(&self, state: State, by: i64) {
        let gauge = self.metrics.header_copies.get_or_create(&state.labels());
        gauge.inc_by(by);
    }
}

#[cfg(test)]
mod tests {
    use cryptvol_crds::conditions::Reason;
    use prometheus_client::registry::Registry;

    use super::*;

    impl Copies {
        fn alone(interval: Duration) -> Self {
            Self::new(interval, &Metrics::new(&mut Registry::default()))
        }

        fn counted(&self) -> [i64; 5] {
            State::ALL.map(|s| self.metrics.header_copies.get_or_create(&s.labels()).get())
        }
    }

    #[test]
    fn each_volume_is_counted_once_by_what_was_found_last() {
        let copies = Copies::alone(Duration::from_secs(3600));
        let checked = || copies.metrics.header_copies_checked.get();
        assert_eq!(copies.counted(), [0; 5]);
        for uid in ["a", "b", "a"] {
            copies.get(uid);
        }
        assert_eq!(copies.counted(), [2, 0, 0, 0, 0]);
        let no_answer = Problem::new(Reason::KeyServiceUnavailable, "");
        copies.put("a", "id", &Err(no_answer.clone()));
        assert_eq!((copies.counted(), checked()), ([2, 0, 0, 0, 0], 0));
        for (found, counted) in [
            (Ok(Found::Same), [1, 1, 0, 0, 0]),
            (Ok(Found::Foreign), [1, 0, 0, 1, 0]),
            (Ok(Found::Other), [1, 0, 0, 0, 1]),
            (Err(no_answer), [2, 0, 0, 0, 0]),
            (Ok(Found::Gone), [1, 0, 1, 0, 0]),
        ] {
            copies.put("a", "id", &found);
            assert_eq!(copies.counted(), counted);
        }
        assert!(checked() > 0);
        copies.stored("a");
        copies.stored("nobody");
        assert_eq!(copies.counted(), [1, 1, 0, 0, 0]);
        assert_eq!(
            copies.get("a").seen,
            Some(("id".to_owned(), Ok(Found::Gone)))
        );
        for uid in ["a", "a", "b"] {
            copies.forget(uid);
        }
        assert_eq!(copies.counted(), [0; 5]);
    }

    #[test]
    fn the_first_look_is_within_the_first_minutes_and_what_is_wrong_is_looked_at_soon() {
        let day = Duration::from_secs(24 * 3600);
        let copies = Copies::alone(day);
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
        let copies = Copies::alone(Duration::ZERO);
        copies.put("a", "id", &Ok(Found::Gone));
        let due = copies.get("a");
        assert!(due.due && due.seen.is_none());
        copies.forget("a");
        assert_eq!(copies.wait("a"), None);
    }
}
