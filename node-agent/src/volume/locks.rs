//! Who has a target to itself.

use std::{cell::RefCell, collections::HashMap, rc::Rc, sync::Arc, time::Duration};

use tokio::sync::{Mutex, OwnedMutexGuard};

/// One lock a target: who logs in, scans, removes a disk or logs out has the target to itself, so that one volume's logout
/// cannot fall between another's login and scan. Also the limit of one login at a time per target.
#[derive(Clone, Debug, Default)]
pub struct TargetLocks {
    locks: Rc<RefCell<HashMap<String, Arc<Mutex<()>>>>>,
    patience: Option<Duration>,
}

impl TargetLocks {
    /// Locks that a step on one disk of a target loses after this time, so that it holds its own volume and none of its neighbours. What
    /// a neighbour's logout may take from it then, its volume finds gone and makes anew.
    pub fn patient(patience: Duration) -> Self {
        Self {
            patience: Some(patience),
            ..Self::default()
        }
    }

    /// Does a step that holds a lock, or loses it.
    pub(super) async fn hold<T>(
        &self,
        held: &mut Option<OwnedMutexGuard<()>>,
        step: impl Future<Output = T>,
    ) -> T {
        let Some(patience) = self.patience.filter(|_| held.is_some()) else {
            return step.await;
        };
        tokio::pin!(step);
        match tokio::time::timeout(patience, &mut step).await {
            Ok(result) => result,
            Err(_) => {
                *held = None;
                step.await
            }
        }
    }

    /// Waits until nobody else has the target.
    pub(super) async fn lock(&self, iqn: &str) -> OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.locks.borrow_mut();
            // Those that nobody holds or waits for, so that targets of long ago do not pile up.
            locks.retain(|_, lock| Arc::strong_count(lock) > 1);
            Arc::clone(locks.entry(iqn.to_owned()).or_default())
        };
        lock.lock_owned().await
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn peer_failure_13_a_step_that_hangs_loses_its_target_and_not_its_place() {
        let locks = TargetLocks::patient(Duration::from_millis(20));
        let mut held = Some(locks.lock("iqn").await);
        let (end, ended) = tokio::sync::oneshot::channel();
        let mut hangs = Box::pin(locks.hold(&mut held, ended));
        assert!(hangs.as_mut().now_or_never().is_none());
        assert!(locks.lock("iqn").now_or_never().is_none(), "too early");
        let neighbour = async {
            let _guard = locks.lock("iqn").await;
            end.send(7).unwrap();
        };
        let (result, ()) = futures::join!(hangs, neighbour);
        assert_eq!(result, Ok(7), "the step goes on to its end");
        assert!(held.is_none());
        // One that gets on keeps it.
        let mut held = Some(locks.lock("iqn").await);
        locks.hold(&mut held, std::future::ready(())).await;
        assert!(held.is_some() && locks.lock("iqn").now_or_never().is_none());
    }
}
