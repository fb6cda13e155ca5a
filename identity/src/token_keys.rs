//! The keys that seal tokens: read at start and when they may have changed, rotated by `cryptvol-identity token-keys rotate` while
//! the service runs, and forgotten once no token can be sealed by them any more.
//!
//! All processes on one database read the same keys, so a rotation needs no stages: a token that names a key which a process does
//! not have yet makes it read them again.

use thiserror::Error;
use zeroize::Zeroizing;

use crate::{
    app::{AppError, KEK_CHECK, check_kek},
    crypto::{Kek, SealError, SealingKey, seal::KEY_LEN},
    ids::random_bytes,
    store::{Change, Place, Store, StoreError, token_state::TokenKey},
    time::now_us,
    token::TokenKeys,
};

/// Until every process of the service has read a new key and seals by it: several rounds of housekeeping. Microseconds.
const SPREAD: i64 = 600 * 1_000_000;

/// Why the keys were not rotated.
#[derive(Debug, Error)]
pub enum TokenKeyError {
    /// The records.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The key-encryption key does not open them, or a key cannot be sealed.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The key-encryption key is not that of this data directory.
    #[error(transparent)]
    Open(#[from] AppError),
}

impl TokenKeyError {
    /// Machine-readable reason.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Store(error) => error.reason(),
            Self::Seal(error) => error.reason(),
            Self::Open(error) => error.reason(),
        }
    }
}

/// Rotates the keys of a data directory, whether the service runs or not. With `end_tokens`, only the new key is left, and every
/// token that was made before is worth nothing: for when a key became known. How many keys there are now.
///
/// # Errors
/// Any [`TokenKeyError`]; the keys are then as before.
pub async fn run(
    place: impl Into<Place>,
    kek: &Kek,
    end_tokens: bool,
) -> Result<usize, TokenKeyError> {
    let place = place.into();
    let store = Store::open_existing(&place).await?;
    check_kek(&store, kek, &place).await?;
    let done = rotate(&store, kek, end_tokens).await;
    store.close().await;
    done
}

async fn rotate(store: &Store, kek: &Kek, end_tokens: bool) -> Result<usize, TokenKeyError> {
    // The generation tells every replica, which then reads the keys again.
    let mut change = store.change_identity().await?;
    let known = change.token_key_ids().await?;
    insert(
        &mut change,
        kek,
        known.iter().max().map_or(1, |last| last + 1),
    )
    .await?;
    if end_tokens {
        for id in known {
            change.delete_token_key(id).await?;
        }
    }
    let count = change.token_key_ids().await?.len();
    store.commit(change).await?;
    Ok(count)
}

/// Puts a new key into the records.
async fn insert(change: &mut Change, kek: &Kek, id: i64) -> Result<(), TokenKeyError> {
    let key = Zeroizing::new(random_bytes::<KEY_LEN>());
    // Looked at inside of the change: a rotation of the key-encryption key cannot begin in between.
    let check = change.meta(KEK_CHECK).await?.unwrap_or_default();
    let place = ["token-key", &id.to_string()];
    let sealed = kek.seal_like((&[KEK_CHECK], &check), &place, key.as_slice())?;
    let created = now_us();
    change
        .insert_token_key(&TokenKey {
            id,
            sealed,
            created,
        })
        .await?;
    Ok(())
}

/// The keys in the records; the first one is made if there is none.
///
/// # Errors
/// From the store, or a key that does not open.
pub(crate) async fn load(store: &Store, kek: &Kek) -> Result<TokenKeys, TokenKeyError> {
    if store.token_keys().await?.is_empty() {
        let mut change = store.change_keys().await?;
        match insert(&mut change, kek, 1).await {
            Ok(()) => store.commit(change).await?,
            // Another process was first.
            Err(TokenKeyError::Store(StoreError::Duplicate)) => {}
            Err(error) => return Err(error),
        }
    }
    let mut keys = Vec::new();
    for key in store.token_keys().await? {
        let number = u32::try_from(key.id).map_err(|_| SealError::Format)?;
        let opened = kek.open(&["token-key", &number.to_string()], &key.sealed)?;
        keys.push((number, SealingKey::from_slice(&opened)?));
    }
    Ok(TokenKeys::new(keys))
}

/// The keys that no token can be sealed by any more: the next newer one has been there for longer than a token can be shown.
/// `keys` are numbers with the times they were made, newest first; `shown` is how long a token can be shown at most.
fn over(keys: &[(i64, i64)], shown: i64, now: i64) -> Vec<i64> {
    keys.windows(2)
        .filter_map(|pair| match pair {
            [(_, next), (id, _)] if next.saturating_add(shown).saturating_add(SPREAD) < now => {
                Some(*id)
            }
            _ => None,
        })
        .collect()
}

/// Forgets the keys that no token can be sealed by any more. `shown`: how long a token can be shown at most, in microseconds.
///
/// # Errors
/// From the store.
pub(crate) async fn forget_over(store: &Store, shown: i64) -> Result<(), StoreError> {
    let keys: Vec<(i64, i64)> = store
        .token_keys()
        .await?
        .iter()
        .map(|key| (key.id, key.created))
        .collect();
    let over = over(&keys, shown, now_us());
    if over.is_empty() {
        return Ok(());
    }
    let mut change = store.change_keys().await?;
    for id in over {
        change.delete_token_key(id).await?;
        tracing::info!(
            key = id,
            "token key forgotten: no token can be sealed by it any more"
        );
    }
    store.commit(change).await?;
    store.mark_log_dirty();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        app::App,
        testing::{Bench, config},
    };

    #[test]
    fn a_key_is_over_when_its_successor_outlived_all_tokens() {
        let (minute, shown) = (60_000_000, 3_600_000_000);
        let keys = [(3, 100 * minute), (2, 50 * minute), (1, 0)];
        assert!(over(&keys, shown, 100 * minute).is_empty());
        assert_eq!(over(&keys, shown, 121 * minute), [1]);
        assert_eq!(over(&keys, shown, 171 * minute), [2, 1]);
        assert_eq!(over(&keys, shown, i64::MAX), [2, 1], "the newest stays");
        assert!(over(&[], shown, i64::MAX).is_empty());
    }

    fn kek() -> Kek {
        Kek::from_bytes(&[9; 32])
    }

    /// The running service and a second process on the same database: no token ends with a rotation, each takes those of the
    /// other, and after one for an accident all that were made before are worth nothing.
    #[tokio::test]
    async fn tokens_live_through_a_rotation_and_end_with_one_for_an_accident() {
        let bench = Bench::new().await;
        let second = Bench {
            app: App::open(config(&bench.dir), kek()).await.unwrap(),
            admin: bench.admin.clone(),
            dir: tempfile::tempdir().unwrap(),
        };
        let mut tokens = vec![bench.admin.clone()];
        for round in 2..5 {
            assert_eq!(run(bench.dir.path(), &kek(), false).await.unwrap(), round);
            // One of them learns of it by housekeeping, the other by a token that it does not know the key of.
            bench.app.housekeeping().await.unwrap();
            let token = bench
                .login("admin", "admin-password", Some("admin"))
                .await
                .unwrap();
            tokens.push(token);
            for token in &tokens {
                assert_eq!(
                    (bench.status_of(token).await, second.status_of(token).await),
                    (200, 200)
                );
            }
            tokens.push(
                second
                    .login("admin", "admin-password", Some("admin"))
                    .await
                    .unwrap(),
            );
        }
        assert_eq!(run(bench.dir.path(), &kek(), true).await.unwrap(), 1);
        for one in [&bench, &second] {
            one.app.housekeeping().await.unwrap();
            let fresh = one
                .login("admin", "admin-password", Some("admin"))
                .await
                .unwrap();
            let one = Bench {
                admin: fresh,
                app: std::sync::Arc::clone(&one.app),
                dir: tempfile::tempdir().unwrap(),
            };
            for token in &tokens {
                assert_eq!(one.status_of(token).await, 404);
            }
            assert_eq!(one.status_of(&one.admin).await, 200);
        }
        // A key is forgotten when nothing can be sealed by it, and not before.
        assert_eq!(run(bench.dir.path(), &kek(), false).await.unwrap(), 2);
        bench.app.housekeeping().await.unwrap();
        assert_eq!(bench.app.store.token_keys().await.unwrap().len(), 2);
        forget_over(&bench.app.store, i64::MIN / 2).await.unwrap();
        assert_eq!(bench.app.store.token_keys().await.unwrap().len(), 1);
    }

    #[tokio::test]
    async fn nothing_is_rotated_without_a_database_or_by_a_foreign_key() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(
            run(dir.path(), &kek(), false).await,
            Err(TokenKeyError::Store(StoreError::NoDatabase(_)))
        ));
        let bench = Bench::new().await;
        let foreign = Kek::from_bytes(&[1; 32]);
        assert!(matches!(
            run(bench.dir.path(), &foreign, true).await,
            Err(TokenKeyError::Open(AppError::WrongKek(_)))
        ));
        assert_eq!(bench.status_of(&bench.admin).await, 200);
    }
}
