//! When to look at a volume again.

use std::time::Duration;

use cryptvol_crds::conditions::Reason;
use rand::RngExt;

/// A volume that is as wanted, or waits for a person.
const CALM: Duration = Duration::from_secs(60);
/// First pause after an error that may pass by itself.
const FIRST: Duration = Duration::from_secs(1);
/// Longest one.
const LONGEST: Duration = Duration::from_secs(30);
/// Pause of a volume that only lets others have their turn.
const NOW: Duration = Duration::from_millis(100);
/// First pause after an error that a person mends, on the array for example, which tells nobody. It doubles up to `CALM`:
/// who mends at once sees it go on at once.
const ATTENTIVE: Duration = Duration::from_secs(5);

/// Pauses of one volume.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    failures: u32,
}

impl Pace {
    /// Pause after a run that ended well, or with this reason; `dice` between 0 and 1.
    fn pause(&mut self, end: Result<(), Reason>, dice: f64) -> Duration {
        let base = match end {
            // It has just worked for some seconds, and the rest is worked off likewise.
            Err(Reason::Initialising) => {
                self.failures = 0;
                NOW
            }
            Err(reason) => {
                let (first, longest) = if reason.is_transient() {
                    (FIRST, LONGEST)
                } else {
                    (ATTENTIVE, CALM)
                };
                let pause = first
                    .saturating_mul(1 << self.failures.min(10))
                    .min(longest);
                self.failures += 1;
                pause
            }
            Ok(()) => {
                self.failures = 0;
                CALM
            }
        };
        // Spread, so that the volumes of a node, or the nodes of a cluster, do not come all at once.
        base.mul_f64(0.8 + 0.4 * dice)
    }

    /// As `pause`, with dice of its own.
    pub fn next(&mut self, end: Result<(), Reason>) -> Duration {
        self.pause(end, rand::rng().random())
    }

    /// Something changed: errors of before say nothing any more.
    pub fn forget(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_that_may_pass_are_tried_again_soon_and_then_less_often() {
        let mut pace = Pace::default();
        let mut pauses = vec![];
        for _ in 0..7 {
            pauses.push(pace.pause(Err(Reason::PortalUnreachable), 0.5).as_secs());
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30]);
        assert_eq!(pace.pause(Ok(()), 0.0).as_secs(), 48);
        let mut pauses = vec![];
        for _ in 0..6 {
            pauses.push(pace.pause(Err(Reason::WwidMismatch), 0.5).as_secs());
        }
        assert_eq!(pauses, [5, 10, 20, 40, 60, 60]);
        assert_eq!(pace.pause(Ok(()), 1.0).as_secs(), 72);
        for _ in 0..20 {
            assert!(pace.pause(Err(Reason::Initialising), 0.5) < FIRST);
        }
    }
}
