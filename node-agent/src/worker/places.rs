//! How much goes on at once on a node: each call takes a place of the node, of its stage and of its target, so that a storm of one
//! kind, or a dead array with many volumes, leaves room for all others. A call that turns out to be slow gives its places up and is
//! counted among the slow ones instead: what hangs holds its own volume and nothing else.

use std::{cell::RefCell, collections::HashMap, sync::Arc, time::Duration};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::protocol::CallStage;

/// Limits of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Calls that get on, at once.
    pub parallel: usize,
    /// Calls that were slow, at once, beyond those; half of them may be of one target.
    pub slow: usize,
    /// After this time a call is slow.
    pub patience: Duration,
}

impl Limits {
    /// Those of an agent for so many parallel calls. A worker that waits takes some 3 MiB.
    pub fn of(parallel: usize) -> Self {
        Self {
            parallel,
            slow: 4 * parallel,
            patience: Duration::from_secs(5),
        }
    }

    /// Most calls of one stage.
    fn of_a_stage(self) -> usize {
        self.parallel - self.parallel / 4
    }

    /// Most calls of one target.
    fn of_a_target(self) -> usize {
        (self.parallel / 2).max(1)
    }
}

/// All places of a node.
pub struct Places {
    limits: Limits,
    all: Arc<Semaphore>,
    stages: [Arc<Semaphore>; CallStage::COUNT],
    slow: Arc<Semaphore>,
    targets: RefCell<HashMap<String, Arc<Target>>>,
}

/// Places of one target.
struct Target {
    quick: Arc<Semaphore>,
    slow: Arc<Semaphore>,
}

/// The places of one call, until it is dropped.
pub struct Place {
    held: Vec<OwnedSemaphorePermit>,
    target: Option<Arc<Target>>,
    slow: Arc<Semaphore>,
}

impl Places {
    /// Places within these limits.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            all: Arc::new(Semaphore::new(limits.parallel)),
            stages: std::array::from_fn(|_| Arc::new(Semaphore::new(limits.of_a_stage()))),
            slow: Arc::new(Semaphore::new(limits.slow)),
            targets: RefCell::default(),
        }
    }

    /// After this time a call is slow.
    pub fn patience(&self) -> Duration {
        self.limits.patience
    }

    /// Waits for a place. The node's own comes last: who waits for another one keeps nobody else from work.
    ///
    /// # Errors
    /// Never, in fact: no semaphore is ever closed.
    pub async fn take(
        &self,
        stage: CallStage,
        target: Option<&str>,
    ) -> Result<Place, tokio::sync::AcquireError> {
        let target = target.map(|name| self.target(name));
        let mut held = Vec::with_capacity(3);
        if let Some(target) = &target {
            held.push(Arc::clone(&target.quick).acquire_owned().await?);
        }
        let stage = Arc::clone(&self.stages[stage as usize]);
        held.push(stage.acquire_owned().await?);
        held.push(Arc::clone(&self.all).acquire_owned().await?);
        Ok(Place {
            held,
            target,
            slow: Arc::clone(&self.slow),
        })
    }

    fn target(&self, name: &str) -> Arc<Target> {
        let mut targets = self.targets.borrow_mut();
        // Those that nobody works on, so that targets of long ago do not pile up.
        targets.retain(|_, target| Arc::strong_count(target) > 1);
        let entry = targets.entry(name.to_owned());
        Arc::clone(entry.or_insert_with(|| {
            Arc::new(Target {
                quick: Arc::new(Semaphore::new(self.limits.of_a_target())),
                slow: Arc::new(Semaphore::new(self.limits.slow / 2)),
            })
        }))
    }
}

impl Place {
    /// The call is slow: others get its places, unless too many are slow already, or too many of its target.
    pub fn give_up(&mut self) {
        let try_one = |places: &Arc<Semaphore>| Arc::clone(places).try_acquire_owned().ok();
        let Some(slow) = try_one(&self.slow) else {
            return;
        };
        match &self.target {
            None => self.held = vec![slow],
            Some(target) => {
                if let Some(of_target) = try_one(&target.slow) {
                    self.held = vec![slow, of_target];
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn places(parallel: usize, slow: usize) -> Places {
        Places::new(Limits {
            slow,
            ..Limits::of(parallel)
        })
    }

    fn take(places: &Places, stage: CallStage, target: &str) -> Option<Place> {
        places
            .take(stage, Some(target))
            .now_or_never()
            .map(Result::unwrap)
    }

    #[test]
    fn a_target_and_a_stage_leave_room_for_others() {
        let places = places(8, 0);
        let held: Vec<_> = (0..8)
            .map_while(|_| take(&places, CallStage::Disk, "dead"))
            .collect();
        assert_eq!(held.len(), 4, "half for one target");
        let more: Vec<_> = (0..8)
            .map_while(|_| take(&places, CallStage::Disk, "other"))
            .collect();
        assert_eq!(more.len(), 2, "three quarters for one stage");
        assert!(take(&places, CallStage::Session, "third").is_some());
        assert!(places.take(CallStage::Node, None).now_or_never().is_some());
        drop(held);
        assert!(take(&places, CallStage::Disk, "dead").is_some());
    }

    #[test]
    fn what_is_slow_gives_its_places_up_within_a_limit() {
        let places = places(2, 4);
        let mut slow = vec![];
        // One place for a target of two, so that each must give its up before the next comes.
        for _ in 0..2 {
            let mut place = take(&places, CallStage::Disk, "dead").unwrap();
            place.give_up();
            slow.push(place);
        }
        // Half of the slow ones are of this target: the third keeps its place, and the target is full.
        let mut third = take(&places, CallStage::Disk, "dead").unwrap();
        third.give_up();
        assert!(take(&places, CallStage::Disk, "dead").is_none());
        let other = take(&places, CallStage::Disk, "other");
        assert!(other.is_some(), "others go on");
        drop(slow.pop());
        third.give_up();
        assert!(take(&places, CallStage::Disk, "dead").is_some());
    }

    #[test]
    fn small_limits_let_everything_through_one_by_one() {
        let places = places(1, 0);
        let one = take(&places, CallStage::Session, "a");
        assert!(one.is_some() && take(&places, CallStage::Disk, "b").is_none());
        drop(one);
        assert!(take(&places, CallStage::Disk, "b").is_some());
    }
}
