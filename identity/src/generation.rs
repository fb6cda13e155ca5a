//! What was worked out from the records and holds until one of them changes.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant},
};

/// Longest use, so that a change made by another process on the same database counts soon too.
pub(crate) const LIFETIME: Duration = Duration::from_secs(5);

struct Held<T> {
    value: Arc<T>,
    generation: u64,
    since: Instant,
}

impl<T> Held<T> {
    fn is_good(&self, generation: u64) -> bool {
        self.generation == generation && self.since.elapsed() < LIFETIME
    }
}

/// One value of the present generation of the records (see `Store::generation`).
pub(crate) struct PerGeneration<T> {
    held: RwLock<Option<Held<T>>>,
    /// Whoever works it out anew has this, so that not all do who need it at once.
    making: tokio::sync::Mutex<()>,
}

impl<T> Default for PerGeneration<T> {
    fn default() -> Self {
        Self {
            held: RwLock::new(None),
            making: tokio::sync::Mutex::default(),
        }
    }
}

impl<T> PerGeneration<T> {
    /// The value, worked out anew if a record changed. `generation` tells the present one; it is asked before the records
    /// are read, so that a change in between makes the value useless and not wrong.
    ///
    /// # Errors
    /// Those of `make`.
    pub(crate) async fn get<E>(
        &self,
        generation: impl Fn() -> u64,
        make: impl AsyncFnOnce() -> Result<T, E>,
    ) -> Result<Arc<T>, E> {
        if let Some(value) = self.present(generation()) {
            return Ok(value);
        }
        let _making = self.making.lock().await;
        let generation = generation();
        if let Some(value) = self.present(generation) {
            return Ok(value);
        }
        let since = Instant::now();
        let value = Arc::new(make().await?);
        let mut held = self.held.write().unwrap_or_else(PoisonError::into_inner);
        *held = Some(Held {
            value: Arc::clone(&value),
            generation,
            since,
        });
        Ok(value)
    }

    fn present(&self, generation: u64) -> Option<Arc<T>> {
        let held = self.held.read().unwrap_or_else(PoisonError::into_inner);
        let good = held.as_ref().filter(|held| held.is_good(generation));
        good.map(|held| Arc::clone(&held.value))
    }

    /// Drops a value that is too old to be used.
    pub(crate) fn sweep(&self) {
        let mut held = self.held.write().unwrap_or_else(PoisonError::into_inner);
        if held
            .as_ref()
            .is_some_and(|held| held.since.elapsed() >= LIFETIME)
        {
            *held = None;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[tokio::test]
    async fn made_once_a_generation() {
        let (generation, made) = (AtomicU64::new(1), AtomicU64::new(0));
        let held = PerGeneration::<u64>::default();
        let get = || {
            held.get(
                || generation.load(Ordering::SeqCst),
                async || Ok::<_, ()>(made.fetch_add(1, Ordering::SeqCst)),
            )
        };
        assert_eq!((*get().await.unwrap(), *get().await.unwrap()), (0, 0));
        generation.store(2, Ordering::SeqCst);
        assert_eq!(*get().await.unwrap(), 1);
        let failed = held.get(|| 3, async || Err::<u64, _>("no database")).await;
        assert_eq!(failed.unwrap_err(), "no database");
        assert_eq!(*get().await.unwrap(), 1);
    }
}
