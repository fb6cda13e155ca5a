//! Payloads to and from their sealed form: a data key a project, made when first needed.

use zeroize::Zeroizing;

use super::error::KeyManagerError;
use crate::{
    app::App,
    crypto::{SealError, SealingKey, seal::KEY_LEN},
    ids::{key_manager_id, random_bytes},
    store::{
        StoreError,
        secrets::{ProjectKey, Secret},
    },
    time::now_us,
};

/// A payload as it is stored.
pub(super) struct Sealed {
    pub(super) key_id: String,
    pub(super) bytes: Vec<u8>,
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
    let key = open_key(app, &record)?;
    let bytes = key.seal(&["secret", secret_id, project_id], payload)?;
    Ok(Sealed {
        key_id: record.id,
        bytes,
    })
}

/// Opens the payload of a secret; `None` if it has none yet.
///
/// # Errors
/// From the store, or `Seal` if the record was altered or moved.
pub(super) async fn open(
    app: &App,
    secret: &Secret,
) -> Result<Option<Zeroizing<Vec<u8>>>, KeyManagerError> {
    let (Some(key_id), Some(sealed)) = (&secret.key_id, &secret.sealed) else {
        return Ok(None);
    };
    let record = app
        .store
        .project_key_by_id(key_id)
        .await?
        .ok_or(SealError::Open)?;
    let key = open_key(app, &record)?;
    Ok(Some(key.open(
        &["secret", &secret.id, &secret.project_id],
        sealed,
    )?))
}

fn open_key(app: &App, record: &ProjectKey) -> Result<SealingKey, SealError> {
    let bytes = app.kek.key().open(
        &["project-key", &record.id, &record.project_id],
        &record.sealed,
    )?;
    SealingKey::from_slice(&bytes)
}

async fn project_key(app: &App, project_id: &str) -> Result<ProjectKey, KeyManagerError> {
    if let Some(found) = app.store.project_key(project_id).await? {
        return Ok(found);
    }
    let id = key_manager_id();
    let bytes = Zeroizing::new(random_bytes::<KEY_LEN>());
    let sealed = app
        .kek
        .key()
        .seal(&["project-key", &id, project_id], bytes.as_slice())?;
    let record = ProjectKey {
        id,
        project_id: project_id.to_owned(),
        sealed,
    };
    let mut change = app.store.change_keys().await?;
    match change.insert_project_key(&record, now_us()).await {
        Ok(()) => {
            app.store.commit(change).await?;
            Ok(record)
        }
        // Another request made it at the same time; its key is the one.
        Err(StoreError::Duplicate) => {
            drop(change);
            app.store
                .project_key(project_id)
                .await?
                .ok_or(KeyManagerError::Store(StoreError::Dangling))
        }
        Err(error) => Err(error.into()),
    }
}
