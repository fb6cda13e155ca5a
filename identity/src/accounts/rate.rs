//! How often one account may be tried, whatever addresses the attempts come from: behind a load balancer all
//! clients share one. The table has a fixed size, so that made-up names cannot fill the memory; two accounts
//! that share a place share its allowance.

use std::{
    collections::hash_map::RandomState,
    hash::{BuildHasher, Hash},
    num::NonZeroU32,
    sync::OnceLock,
};

use governor::{
    Quota, RateLimiter,
    clock::{Clock, DefaultClock},
    middleware::NoOpMiddleware,
    nanos::Nanos,
    state::{InMemoryState, NotKeyed, StateStore},
};

const PLACES: usize = 1 << 15;
/// Attempts that may come at once, as a multiple of the attempts a second.
const BURST: u32 = 10;

/// Names an account by what a client claims of it; unguessable from outside which accounts share a place.
pub fn account_key(claimed: impl Hash) -> u64 {
    static KEYS: OnceLock<RandomState> = OnceLock::new();
    KEYS.get_or_init(RandomState::new).hash_one(claimed)
}

/// States in a table of fixed size.
struct Table(Vec<InMemoryState>);

impl StateStore for Table {
    type Key = u64;

    fn measure_and_replace<T, F, E>(&self, key: &u64, f: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let place = usize::try_from(*key % PLACES as u64).unwrap_or_default();
        self.0[place].measure_and_replace(&NotKeyed::NonKey, f)
    }
}

type Limiter<C> = RateLimiter<u64, Table, C, NoOpMiddleware<<C as Clock>::Instant>>;

/// The limit.
pub struct LoginLimit<C: Clock = DefaultClock>(Option<Limiter<C>>);

impl LoginLimit {
    /// `per_second` attempts an account, ten times as many at once; 0: no limit.
    pub fn new(per_second: u32) -> Self {
        Self::with_clock(per_second, DefaultClock::default())
    }
}

impl<C: Clock> LoginLimit<C> {
    fn with_clock(per_second: u32, clock: C) -> Self {
        let Some(rate) = NonZeroU32::new(per_second) else {
            return Self(None);
        };
        let burst = rate.saturating_mul(NonZeroU32::MIN.saturating_add(BURST - 1));
        let mut table = Vec::new();
        table.resize_with(PLACES, InMemoryState::default);
        let quota = Quota::per_second(rate).allow_burst(burst);
        Self(Some(RateLimiter::new(quota, Table(table), clock)))
    }

    /// Counts an attempt; `false` if it is one too many.
    pub fn admit(&self, key: u64) -> bool {
        self.0
            .as_ref()
            .is_none_or(|limiter| limiter.check_key(&key).is_ok())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use governor::clock::FakeRelativeClock;

    use super::*;

    #[test]
    fn an_account_has_its_own_allowance() {
        let clock = FakeRelativeClock::default();
        let limit = LoginLimit::with_clock(2, clock.clone());
        let mut admitted = 0;
        while limit.admit(7) {
            admitted += 1;
        }
        assert_eq!(admitted, 20);
        assert!(limit.admit(8), "others are not touched");
        clock.advance(Duration::from_secs(1));
        assert_eq!(
            [limit.admit(7), limit.admit(7), limit.admit(7)],
            [true, true, false]
        );
        let none = LoginLimit::new(0);
        assert!((0..100_000).all(|_| none.admit(7)));
    }

    #[test]
    fn a_million_names_take_no_more_room_than_one() {
        let limit = LoginLimit::new(1);
        for name in 0..1_000_000_u32 {
            limit.admit(account_key(("default", name)));
        }
        let table = limit.0.unwrap().into_state_store().0;
        assert_eq!(table.capacity(), PLACES);
        assert_eq!(account_key(("a", "b")), account_key(("a", "b")));
        assert_ne!(account_key(("a", "b")), account_key(("a", "c")));
    }
}
