//! Password hashes: bcrypt over SHA-256 (so that no byte beyond bcrypt's 72 is ignored), on a bounded
//! number of blocking threads, so that a storm of logins cannot starve everything else.

use std::sync::Arc;

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use thiserror::Error;
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

/// Names the scheme in front of the stored hash, so that others can follow.
const SCHEME: &str = "bcrypt-sha256:";

/// How many hashes may wait for each one that is being computed. More would be answered after their clients
/// have gone.
const WAITING: usize = 64;

/// Hashing could not be done.
#[derive(Debug, Error)]
pub enum PasswordError {
    /// It failed, or the server is going down.
    #[error("a password could not be hashed: {0}")]
    Failed(String),
    /// Too many are waiting.
    #[error("too many passwords are being checked; try again in a few seconds")]
    Busy,
}

impl PasswordError {
    /// Machine-readable reason.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Failed(_) => "PasswordHashFailed",
            Self::Busy => "TooManyLogins",
        }
    }
}

/// Hashes and verifies passwords.
pub struct PasswordHasher {
    rounds: u32,
    permits: Arc<Semaphore>,
    /// Places for those computing and those waiting.
    places: Arc<Semaphore>,
    /// Verified in the place of a user who does not exist, so that both take the same time.
    decoy: String,
}

impl PasswordHasher {
    /// `rounds` is bcrypt's logarithmic cost (4 to 31), `parallel` how many hashes may run at once.
    ///
    /// # Errors
    /// If `rounds` is out of range.
    pub fn new(rounds: u32, parallel: usize) -> Result<Self, PasswordError> {
        if !(4..=31).contains(&rounds) {
            return Err(PasswordError::Failed(format!(
                "bcrypt has no cost of {rounds}"
            )));
        }
        let decoy = decoy(rounds);
        Ok(Self {
            rounds,
            permits: Arc::new(Semaphore::new(parallel.max(1))),
            places: Arc::new(Semaphore::new(parallel.max(1) * (1 + WAITING))),
            decoy,
        })
    }

    /// The hash to store.
    ///
    /// # Errors
    /// If hashing fails or the server is going down.
    pub async fn hash(&self, password: &SecretString) -> Result<String, PasswordError> {
        let (password, rounds) = (password.clone(), self.rounds);
        self.blocking(move || hash_now(password.expose_secret(), rounds))
            .await?
    }

    /// Whether `password` belongs to the stored hash. `None` costs the same time and is false.
    ///
    /// # Errors
    /// If the server is going down. A damaged hash is false.
    pub async fn verify(
        &self,
        password: &SecretString,
        stored: Option<&str>,
    ) -> Result<bool, PasswordError> {
        let known = stored.is_some();
        let password = password.clone();
        let stored = stored.unwrap_or(&self.decoy).to_owned();
        let matches = self
            .blocking(move || verify_now(password.expose_secret(), &stored))
            .await?;
        Ok(matches && known)
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, PasswordError> {
        let place = Arc::clone(&self.places)
            .try_acquire_owned()
            .map_err(|_| PasswordError::Busy)?;
        let permit = Arc::clone(&self.permits)
            .acquire_owned()
            .await
            .map_err(|e| PasswordError::Failed(e.to_string()))?;
        // The permit goes with the work, so that an abandoned request still counts while it computes.
        tokio::task::spawn_blocking(move || {
            let out = work();
            drop((permit, place));
            out
        })
        .await
        .map_err(|e| PasswordError::Failed(e.to_string()))
    }
}

fn digest(password: &str) -> Zeroizing<String> {
    Zeroizing::new(
        STANDARD_NO_PAD.encode(Zeroizing::new(<[u8; 32]>::from(Sha256::digest(password)))),
    )
}

/// A hash that no password has (its salt and its sum are zero), written down and not computed: the service starts in a
/// tenth of the time.
fn decoy(rounds: u32) -> String {
    format!("{SCHEME}$2b${rounds:02}${}", ".".repeat(53))
}

fn hash_now(password: &str, rounds: u32) -> Result<String, PasswordError> {
    let hash = bcrypt::hash(digest(password).as_bytes(), rounds)
        .map_err(|e| PasswordError::Failed(e.to_string()))?;
    Ok(format!("{SCHEME}{hash}"))
}

fn verify_now(password: &str, stored: &str) -> bool {
    stored
        .strip_prefix(SCHEME)
        .is_some_and(|hash| bcrypt::verify(digest(password).as_bytes(), hash).unwrap_or(false))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn too_many_at_once_are_told_to_come_back() {
        let hasher = PasswordHasher::new(4, 1).unwrap();
        let held = hasher.permits.clone().acquire_owned().await.unwrap();
        let hasher = Arc::new(hasher);
        let mut waiting = Vec::new();
        for _ in 0..=WAITING {
            let hasher = Arc::clone(&hasher);
            waiting.push(tokio::spawn(async move {
                hasher.verify(&"x".to_owned().into(), None).await
            }));
        }
        while hasher.places.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        let refused = hasher.verify(&"x".to_owned().into(), None).await;
        assert!(matches!(refused, Err(PasswordError::Busy)));
        drop(held);
        for task in waiting {
            assert!(!task.await.unwrap().unwrap());
        }
        assert!(!hasher.verify(&"x".to_owned().into(), None).await.unwrap());
    }

    #[test]
    fn the_decoy_is_computed_like_any_hash() {
        for rounds in [4, 5] {
            let decoy = decoy(rounds);
            let hash = decoy.strip_prefix(SCHEME).unwrap();
            assert_eq!(
                hash.parse::<bcrypt::HashParts>().unwrap().get_cost(),
                rounds
            );
            // Computed to its end, and not refused for its form.
            assert!(matches!(bcrypt::verify("x", hash), Ok(false)));
        }
        assert!(PasswordHasher::new(3, 1).is_err() && PasswordHasher::new(32, 1).is_err());
    }

    #[tokio::test]
    async fn verifies_only_the_right_password() {
        let hasher = PasswordHasher::new(4, 2).unwrap();
        let long = format!("{}a", "x".repeat(80));
        let stored = hasher.hash(&long.clone().into()).await.unwrap();
        assert!(hasher.verify(&long.into(), Some(&stored)).await.unwrap());
        // Differs only beyond the 72 bytes that plain bcrypt looks at.
        assert!(
            !hasher
                .verify(&format!("{}b", "x".repeat(80)).into(), Some(&stored))
                .await
                .unwrap()
        );
        assert!(
            !hasher
                .verify(&"no such user".to_owned().into(), None)
                .await
                .unwrap()
        );
        assert!(
            !hasher
                .verify(&"x".to_owned().into(), Some("damaged"))
                .await
                .unwrap()
        );
    }
}
