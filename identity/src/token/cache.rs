//! Tokens that were worked out a moment ago. Good until an identity record changes, and never longer than
//! a few seconds, so that a change made by another process on the same database counts soon too.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use sha2::{Digest, Sha256};

use super::context::AuthContext;
use crate::generation::LIFETIME;

/// Enough for the operators and agents of a large cluster; about a kilobyte each.
const CAPACITY: usize = 2048;

type Key = [u8; 32];

struct Entry {
    context: Arc<AuthContext>,
    generation: u64,
    since: Instant,
}

/// A bounded map from the digest of a token to what it means.
#[derive(Default)]
pub struct TokenCache(Mutex<HashMap<Key, Entry>>);

impl TokenCache {
    /// What the token means, if that was worked out lately and no record changed since.
    pub fn get(&self, token: &str, generation: u64) -> Option<Arc<AuthContext>> {
        let map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        map.get(&key(token))
            .filter(|entry| entry.generation == generation && entry.since.elapsed() < LIFETIME)
            .map(|entry| Arc::clone(&entry.context))
    }

    /// Remembers a token. `generation` is the one read before the records were.
    pub fn put(&self, token: &str, generation: u64, context: Arc<AuthContext>) {
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if map.len() >= CAPACITY {
            map.retain(|_, entry| {
                entry.generation == generation && entry.since.elapsed() < LIFETIME
            });
            if map.len() >= CAPACITY {
                map.clear();
            }
        }
        map.insert(
            key(token),
            Entry {
                context,
                generation,
                since: Instant::now(),
            },
        );
    }

    /// Drops everything.
    pub fn clear(&self) {
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        map.clear();
    }

    /// Drops what is too old to be used.
    pub fn sweep(&self) {
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        map.retain(|_, entry| entry.since.elapsed() < LIFETIME);
        map.shrink_to(64);
    }
}

/// Digests, so that a core dump of the cache holds no usable token.
fn key(token: &str) -> Key {
    Sha256::digest(token).into()
}
