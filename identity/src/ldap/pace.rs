//! How much longer a directory takes to check the password of somebody than to refuse nobody. A server looks for the entry first and
//! works out the hash only if there is one, so that the time of a refusal would tell which names there are; what nobody's takes less
//! is waited for.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Checks of each kind that are remembered: few enough to follow a server that becomes slower, enough for a steady median.
const REMEMBERED: usize = 32;
/// A difference below this is noise of the network; waiting for it would only add to it.
const NOISE: Duration = Duration::from_micros(300);
/// More is no work of a hash but a server in trouble.
const LONGEST: Duration = Duration::from_secs(5);

/// Times of the last checks.
#[derive(Default)]
pub struct Pace {
    somebody: Mutex<VecDeque<Duration>>,
    nobody: Mutex<VecDeque<Duration>>,
}

impl Pace {
    /// The server checked the password of an entry.
    pub fn somebody(&self, took: Duration) {
        let _ = put(&self.somebody, took);
    }

    /// The server refused a name that it does not have; how long to wait before saying so.
    pub fn nobody(&self, took: Duration) -> Duration {
        let own = put(&self.nobody, took);
        let known = median(&self.somebody.lock().unwrap_or_else(PoisonError::into_inner));
        wait(known, own)
    }
}

/// Remembers one; the median with it.
fn put(times: &Mutex<VecDeque<Duration>>, took: Duration) -> Duration {
    let mut times = times.lock().unwrap_or_else(PoisonError::into_inner);
    if times.len() == REMEMBERED {
        times.pop_front();
    }
    times.push_back(took);
    median(&times)
}

fn median(times: &VecDeque<Duration>) -> Duration {
    let mut sorted: Vec<Duration> = times.iter().copied().collect();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

/// The difference of two medians, if it is one.
fn wait(somebody: Duration, nobody: Duration) -> Duration {
    let longer = somebody.saturating_sub(nobody).min(LONGEST);
    if longer < NOISE {
        Duration::ZERO
    } else {
        longer
    }
}

/// Waits, to less than the millisecond that timers are good for.
pub async fn pause(time: Duration) {
    let until = Instant::now() + time;
    let whole = time.saturating_sub(Duration::from_millis(2));
    if !whole.is_zero() {
        tokio::time::sleep(whole).await;
    }
    while Instant::now() < until {
        tokio::task::yield_now().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(number: u64) -> Duration {
        Duration::from_millis(number)
    }

    #[test]
    fn nobody_waits_for_what_the_hash_of_somebody_takes() {
        let pace = Pace::default();
        // Nothing is known yet.
        assert_eq!(pace.nobody(ms(2)), Duration::ZERO);
        for _ in 0..REMEMBERED {
            pace.somebody(ms(52));
        }
        assert_eq!(pace.nobody(ms(2)), ms(50));
        // One that is odd moves nothing, neither here nor there.
        pace.somebody(ms(4000));
        assert_eq!(pace.nobody(ms(2)), ms(50));
        assert_eq!(pace.nobody(ms(900)), ms(50));
        // A server that became faster is followed.
        for _ in 0..REMEMBERED {
            pace.somebody(ms(2));
        }
        assert_eq!(pace.nobody(ms(2)), Duration::ZERO);
    }

    #[test]
    fn noise_and_trouble_are_not_waited_for() {
        assert_eq!(
            wait(Duration::from_micros(1200), Duration::from_micros(1000)),
            Duration::ZERO
        );
        assert_eq!(wait(ms(1), ms(3)), Duration::ZERO);
        assert_eq!(wait(Duration::from_secs(60), ms(1)), LONGEST);
    }

    #[tokio::test]
    async fn a_pause_is_not_shorter_than_wanted() {
        for time in [Duration::ZERO, Duration::from_micros(700), ms(5)] {
            let start = Instant::now();
            pause(time).await;
            assert!(start.elapsed() >= time);
        }
    }
}
