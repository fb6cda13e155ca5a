//! Payloads to and from their sealed form. Each has a key of its own, sealed by the key of its project, sealed by
//! the key-encryption key; each step is bound to the place of the record, so that none opens anywhere else.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use zeroize::Zeroizing;

use super::error::KeyManagerError;
use crate::{
    app::{App, AppError, KEK_CHECK},
    crypto::{Kek, SealError, SealingKey, seal::KEY_LEN},
    ids::{key_manager_id, random_bytes},
    store::{
        Store, StoreError,
        secrets::{ProjectKey, SealedSecret},
    },
    time::now_us,
};

/// Secrets upgraded in one change.
const UPGRADE_BATCH: i64 = 100;
/// Says that the database still has to be written anew after an upgrade.
const REWRITE: &str = "rewrite-after-upgrade";

/// A payload as it is stored.
pub(super) struct Sealed {
    pub(super) key_id: String,
    pub(super) bytes: Vec<u8>,
    /// The payload's own key, sealed by the project's.
    pub(super) wrapped_key: Vec<u8>,
}

/// Seals a payload for one secret of one project.
///
/// # Errors
/// From the store or from sealing.
pub(super) async fn seal(
    app: &App,
    project_id: &str,
    secret_id: &str,
    payload: &[u8],
) -> Result<Sealed, KeyManagerError> {
    let record = project_key(app, project_id).await?;
    let key = app
        .project_keys
        .open(&app.kek, &record.id, &record.project_id, &record.sealed)?;
    let (bytes, wrapped_key) = seal_with(&key, project_id, secret_id, payload)?;
    Ok(Sealed {
        key_id: record.id,
        bytes,
        wrapped_key,
    })
}

/// The sealed payload and its new key, sealed by the project's.
fn seal_with(
    project_key: &SealingKey,
    project_id: &str,
    secret_id: &str,
    payload: &[u8],
) -> Result<(Vec<u8>, Vec<u8>), SealError> {
    let own = Zeroizing::new(random_bytes::<KEY_LEN>());
    let bytes = SealingKey::new(&own).seal(&["secret", secret_id, project_id], payload)?;
    let wrapped = project_key.seal(&["secret-key", secret_id, project_id], own.as_slice())?;
    Ok((bytes, wrapped))
}

/// Opens the payload of a secret; `None` if it has none yet, or its key was destroyed.
///
/// # Errors
/// `Seal` if the record was altered or moved.
pub(super) fn open(
    app: &App,
    stored: &SealedSecret,
) -> Result<Option<Zeroizing<Vec<u8>>>, KeyManagerError> {
    let secret = &stored.secret;
    let (Some(key_id), Some(sealed)) = (&secret.key_id, &secret.sealed) else {
        return Ok(None);
    };
    secret.key_slot.ok_or(SealError::Open)?;
    let Some(wrapped) = &stored.wrapped else {
        return Ok(None);
    };
    let (Some(project_id), Some(project_key)) = (&stored.key_project_id, &stored.key_sealed) else {
        return Err(SealError::Open.into());
    };
    let project_key = app
        .project_keys
        .open(&app.kek, key_id, project_id, project_key)?;
    let place = [&secret.id, &secret.project_id];
    let own = project_key.open(&["secret-key", place[0], place[1]], wrapped)?;
    let own = SealingKey::from_slice(&own)?;
    Ok(Some(own.open(&["secret", place[0], place[1]], sealed)?))
}

/// Gives every payload that an earlier release sealed by its project's key a key of its own, then writes the
/// database anew, so that nothing of the old form is left. May be stopped at any point and goes on there.
///
/// # Errors
/// From the store, or if a record does not open.
pub(crate) async fn upgrade(store: &Store, kek: &Kek) -> Result<(), AppError> {
    loop {
        let some = store.secrets_without_key(UPGRADE_BATCH).await?;
        if some.is_empty() {
            break;
        }
        let mut change = store.change_keys().await?;
        change.set_meta(REWRITE, b"1").await?;
        for secret in &some {
            let (Some(key_id), Some(sealed)) = (&secret.key_id, &secret.sealed) else {
                return Err(SealError::Open.into());
            };
            let record = store.project_key_by_id(key_id).await?;
            let key = open_key(kek, &record.ok_or(SealError::Open)?)?;
            let plain = key.open(&["secret", &secret.id, &secret.project_id], sealed)?;
            let (bytes, wrapped) = seal_with(&key, &secret.project_id, &secret.id, &plain)?;
            if !change.reseal_secret(&secret.id, &bytes, &wrapped).await? {
                // Another process was faster; what it wrote stays, and this batch is not.
                return Err(SealError::Open.into());
            }
        }
        store.commit(change).await?;
        tracing::info!(secrets = some.len(), "sealed by keys of their own");
    }
    if store.meta(REWRITE).await?.is_some() {
        store.rewrite().await?;
        let mut change = store.change_keys().await?;
        change.delete_meta(REWRITE).await?;
        store.commit(change).await?;
    }
    Ok(())
}

fn open_key(kek: &Kek, record: &ProjectKey) -> Result<SealingKey, SealError> {
    open_project_key(kek, &record.id, &record.project_id, &record.sealed)
}

fn open_project_key(
    kek: &Kek,
    id: &str,
    project_id: &str,
    sealed: &[u8],
) -> Result<SealingKey, SealError> {
    SealingKey::from_slice(&kek.open(&["project-key", id, project_id], sealed)?)
}

/// The projects' keys that were opened lately. Each counts for exactly the record that it was opened from: a record that
/// was altered, moved or sealed anew is opened anew. They are no more readable here than the key-encryption key, which is
/// in the same memory, and are wiped when they are dropped.
#[derive(Default)]
pub(crate) struct ProjectKeys(Mutex<HashMap<String, OpenedKey>>);

struct OpenedKey {
    project_id: String,
    sealed: Vec<u8>,
    key: Arc<SealingKey>,
}

/// Projects that use their keys at a time; each costs a kilobyte.
const MAX_OPENED: usize = 1024;

impl ProjectKeys {
    fn open(
        &self,
        kek: &Kek,
        id: &str,
        project_id: &str,
        sealed: &[u8],
    ) -> Result<Arc<SealingKey>, SealError> {
        if let Some(opened) = self.map().get(id)
            && opened.project_id == project_id
            && opened.sealed == sealed
        {
            return Ok(Arc::clone(&opened.key));
        }
        let key = Arc::new(open_project_key(kek, id, project_id, sealed)?);
        let mut map = self.map();
        if map.len() >= MAX_OPENED {
            map.clear();
        }
        let opened = OpenedKey {
            project_id: project_id.to_owned(),
            sealed: sealed.to_vec(),
            key: Arc::clone(&key),
        };
        map.insert(id.to_owned(), opened);
        Ok(key)
    }

    fn map(&self) -> MutexGuard<'_, HashMap<String, OpenedKey>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn project_key(app: &App, project_id: &str) -> Result<ProjectKey, KeyManagerError> {
    if let Some(found) = app.store.project_key(project_id).await? {
        return Ok(found);
    }
    let id = key_manager_id();
    let bytes = Zeroizing::new(random_bytes::<KEY_LEN>());
    let mut change = app.store.change_keys().await?;
    // Looked at inside of the change: a rotation of the key-encryption key cannot begin in between.
    let check = change.meta(KEK_CHECK).await?.unwrap_or_default();
    let sealed = app.kek.seal_like(
        (&[KEK_CHECK], &check),
        &["project-key", &id, project_id],
        bytes.as_slice(),
    )?;
    let record = ProjectKey {
        id,
        project_id: project_id.to_owned(),
        sealed,
    };
    if change.insert_project_key(&record, now_us()).await? {
        app.store.commit(change).await?;
        return Ok(record);
    }
    // Another request made it at the same time; its key is the one. It may not be committed yet, but is before
    // whatever is sealed by it.
    change
        .project_key(project_id)
        .await?
        .ok_or(KeyManagerError::Store(StoreError::Dangling))
}
