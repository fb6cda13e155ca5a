//! Headers that lie apart from their disk (ADR 54): the record is the header, and the key manager has the second copy of it. Neither a
//! new header nor one that a rotation sealed anew goes to a node before both were written and the second was read back.

use cryptvol_crds::{
    conditions::Reason,
    names,
    v1alpha1::{
        EncryptedVolumeStatus, Encryption, FormatPolicy, HeaderBackup, HeaderFacts,
        HeaderSecretStatus, NodeRotationStatus, RotationStatus,
    },
};
use kube::ResourceExt;

use super::{
    decide, facts,
    second_copy::{self, Found, is_pinned},
    world::{Action, HeaderAnswer, Problem, World},
};
use crate::{
    context::Context,
    keymanager::{KeyManager, barbican::id_of},
};

/// Whether the volume's header, as far as there is one, lies apart from its disk.
pub fn is_detached(status: &EncryptedVolumeStatus) -> bool {
    let made = status.header_backup.as_ref().map(|b| &b.header);
    let header = status.header.as_ref().or(made);
    header.is_some_and(HeaderFacts::is_detached)
}

/// Whether the user named the header of a volume that was made elsewhere.
pub fn is_import(world: &World) -> bool {
    named(world).is_some()
}

fn named(world: &World) -> Option<&str> {
    let key = world.volume.spec.key.as_ref()?;
    key.header_secret_ref.as_deref()
}

/// Whether a header that a node reports is one that it made for this volume, which was never opened.
pub fn is_made_for(header: &HeaderFacts, status: &EncryptedVolumeStatus) -> bool {
    header.is_detached()
        && status.header.is_none()
        && status.first_opened.is_none()
        && status.luks_uuid.as_ref() == Some(&header.luks_uuid)
}

/// The header as a node gets it: once both its copies are there.
pub fn hand_over(status: &EncryptedVolumeStatus, encryption: &Encryption) -> Option<HeaderBackup> {
    let kept = encryption.detached_header && status.header_secret.is_some();
    status.header_backup.clone().filter(|_| kept)
}

/// Sees to it that the header that is on record is in the key manager as well; or takes the one that the user named into the record, or one
/// that the record lost. Gives back what is wrong.
pub fn keep(
    world: &World,
    status: &mut EncryptedVolumeStatus,
    then: &mut Vec<Action>,
) -> Option<Problem> {
    if let Some(problem) = refused(world, status) {
        return Some(problem);
    }
    if let Some(secret) = status.header_secret.clone() {
        return from_second_copy(world, status, secret.id, then);
    }
    if let Some(id) = named(world) {
        return match &world.header {
            Some(HeaderAnswer {
                version: None,
                found: Ok((id, record)),
            }) => import(status, id, record).err(),
            Some(HeaderAnswer {
                version: None,
                found: Err(problem),
            }) => Some(problem.clone()),
            _ => {
                then.push(Action::ReadHeader(id_of(id)));
                None
            }
        };
    }
    if is_unrecorded(world, status) {
        return unrecorded(world, status, then);
    }
    if !is_detached(status) {
        return None;
    }
    let (Some(record), Some(key)) = (&status.header_backup, &status.key) else {
        return None;
    };
    match kept(world, key.version, record) {
        Kept::Yes(secret) => status.header_secret = secret,
        Kept::Do(action) => then.push(action),
        Kept::Failed(problem) => return Some(problem),
    }
    None
}

/// Whether the volume is to have a header apart from its disk, and none is on record: it is a new volume, or its record was lost.
fn is_unrecorded(world: &World, status: &EncryptedVolumeStatus) -> bool {
    status.header_backup.is_none()
        && status.header_secret.is_none()
        && status.erased.is_none()
        && !is_import(world)
        && decide::encryption(world, status).is_ok_and(|e| e.detached_header)
}

/// Whether a node may be given the volume: not before it is known what there is of a header.
pub fn may_be_handed_over(world: &World, status: &EncryptedVolumeStatus) -> bool {
    match is_import(world) {
        true => status.header_secret.is_some(),
        false => !is_unrecorded(world, status) || world.unrecorded.is_some(),
    }
}

/// The record of a header that was pinned is gone or was changed: the second copy is as good.
fn from_second_copy(
    world: &World,
    status: &mut EncryptedVolumeStatus,
    id: String,
    then: &mut Vec<Action>,
) -> Option<Problem> {
    let record = status.header_backup.as_ref();
    if status.erased.is_some() || record.is_some_and(|r| is_pinned(r, status)) {
        return None;
    }
    match &world.header {
        Some(HeaderAnswer {
            version: None,
            found: Ok((_, found)),
        }) if is_pinned(found, status) => {
            status.header_backup = Some(found.clone());
            None
        }
        Some(HeaderAnswer {
            version: None,
            found: Err(problem),
        }) if problem.reason != Reason::KeyNotFound => Some(problem.clone()),
        Some(HeaderAnswer { version: None, .. }) => Some(Problem::new(
            Reason::HeaderRecordUnusable,
            format!(
                "neither status.headerBackup nor the secret {id} of the key manager is the header that was pinned"
            ),
        )),
        _ => {
            then.push(Action::ReadHeader(id));
            None
        }
    }
}

/// A new volume's header cannot be in the key manager before it is on record. Where one is there under the volume's own name, the record was
/// lost: by a restore of an older etcd, or by hand. It comes back where a node that has the volume says what was pinned. Else nothing says
/// any more which disk it was, and none is guessed: a person names it.
fn unrecorded(
    world: &World,
    status: &mut EncryptedVolumeStatus,
    then: &mut Vec<Action>,
) -> Option<Problem> {
    let key = status.key.clone()?;
    // A node that has begun was told to after a look; what it does not find blank is a reason for another one.
    let begun = world.node_volumes.iter().any(|nv| {
        let error = facts::report(nv).error;
        error.is_none_or(|e| e.reason != Reason::DeviceNotBlank.as_str())
    });
    if begun && status.header.is_none() {
        return None;
    }
    let unusable = |what| Some(Problem::new(Reason::HeaderRecordUnusable, what));
    match &world.unrecorded {
        None => {
            then.push(Action::FindHeader(key.version));
            None
        }
        Some(Err(problem)) => Some(problem.clone()),
        Some(Ok(Some((id, found)))) if status.header.is_some() && is_pinned(found, status) => {
            status.header_backup = Some(found.clone());
            status.header_secret = Some(HeaderSecretStatus {
                id: id.clone(),
                generated: true,
            });
            None
        }
        Some(Ok(Some((id, _)))) => unusable(format!(
            "the key manager has a header of this volume already, secret {id} for the key {}, and the record of it is lost, with what its \
             disk is known by: the disk may hold data",
            key.id
        )),
        Some(Ok(None)) if status.header.is_some() => unusable(
            "the header is neither on record nor in the key manager: copy the volume's data to another one before it is detached"
                .to_owned(),
        ),
        Some(Ok(None)) => None,
    }
}

/// What class and volume cannot have together; the rules of the API see only one of them at a time.
fn refused(world: &World, status: &EncryptedVolumeStatus) -> Option<Problem> {
    let encryption = decide::encryption(world, status).ok()?;
    let import = world.volume.spec.format == FormatPolicy::Never
        || decide::secret_ref(&world.volume).is_some();
    let what = match (encryption.detached_header, named(world).is_some()) {
        (true, false) if import => {
            "the class has detachedHeader, and key.headerSecretRef names no header to import: nothing on the disk says how it opens"
        }
        (false, true) => {
            "key.headerSecretRef names a header, and the class has no detachedHeader: the disk would have a header itself"
        }
        _ => return None,
    };
    Some(Problem::new(Reason::HeaderRecordUnusable, what))
}

/// Where a header is on its way into the key manager.
pub enum Kept {
    /// It is there; none is wanted where the header is on the disk.
    Yes(Option<HeaderSecretStatus>),
    /// To be done first.
    Do(Action),
    /// It cannot be had.
    Failed(Problem),
}

/// The header that a rotation sealed under the new key.
pub fn keep_next(
    world: &World,
    status: &EncryptedVolumeStatus,
    rotation: &RotationStatus,
    done: &NodeRotationStatus,
) -> Kept {
    if !is_detached(status) {
        return Kept::Yes(None);
    }
    match &done.header_backup {
        Some(record) if status.header.as_ref() == Some(&record.header) => {
            kept(world, rotation.version, record)
        }
        _ => Kept::Failed(Problem::new(
            Reason::HeaderRecordUnusable,
            "the node reports no header under the new key that is this volume's",
        )),
    }
}

fn kept(world: &World, version: i64, record: &HeaderBackup) -> Kept {
    match &world.header {
        Some(HeaderAnswer {
            version: Some(of),
            found: Ok((id, found)),
        }) if *of == version && found == record => Kept::Yes(Some(HeaderSecretStatus {
            id: id.clone(),
            generated: true,
        })),
        Some(HeaderAnswer {
            version: Some(of),
            found: Err(problem),
        }) if *of == version => Kept::Failed(problem.clone()),
        _ => Kept::Do(Action::KeepHeader {
            version,
            record: Box::new(record.clone()),
        }),
    }
}

fn import(
    status: &mut EncryptedVolumeStatus,
    id: &str,
    record: &HeaderBackup,
) -> Result<(), Problem> {
    let uuid = &record.header.luks_uuid;
    if !record.header.is_detached() || uuid::Uuid::parse_str(uuid).is_err() {
        return Err(Problem::new(
            Reason::HeaderRecordUnusable,
            format!("the secret {id} holds no header of a volume with detachedHeader"),
        ));
    }
    // Pinned when the disk was opened by it, as that of a new volume.
    status.luks_uuid = Some(uuid.clone());
    status.header_backup = Some(record.clone());
    status.header_secret = Some(HeaderSecretStatus {
        id: id.to_owned(),
        generated: false,
    });
    Ok(())
}

/// Name of the secret with the header under a version of the volume's key.
pub fn secret_name(world: &World, version: i64) -> String {
    let v = &world.volume;
    names::header_version_name(
        &v.namespace().unwrap_or_default(),
        &v.name_any(),
        &v.uid().unwrap_or_default(),
        version,
    )
}

/// Whether the key manager may hold a header of this volume, recorded or not.
pub fn may_have_secret(world: &World) -> bool {
    let status = world.volume.status.as_ref();
    status.is_some_and(|s| s.header_secret.is_some() || is_detached(s))
}

/// Stores the header, unless a secret of its name holds it, and reads it back: an operator was killed before it wrote down that it had stored
/// that. Up to `most_others` secrets of that name may hold something else, which stays.
///
/// # Errors
/// A [`Problem`] when the key manager gives nothing, gives back something else than it was given, or holds more than that under the name.
pub async fn store(
    ctx: &Context,
    world: &World,
    version: i64,
    record: &HeaderBackup,
    most_others: usize,
) -> Result<(String, HeaderBackup), Problem> {
    let manager = ctx.tenants.of(world).await?;
    let name = secret_name(world, version);
    let there = look_among(&manager, &name, record).await?;
    let id = match (there.same, there.others.get(most_others)) {
        (Some(id), _) => id,
        (None, Some(id)) => return Err(differs(id, &name)),
        (None, None) => put(&manager, &name, record).await?,
    };
    Ok((id, record.clone()))
}

/// A secret holds another header than it should.
fn differs(id: &str, name: &str) -> Problem {
    Problem::new(
        Reason::HeaderRecordUnusable,
        format!(
            "the secret {id} ({name}) of the key manager holds another header than the volume's record"
        ),
    )
}

/// What the key manager has under a name.
struct Among {
    /// The secret that holds the record.
    same: Option<String>,
    /// Those that hold something else.
    others: Vec<String>,
}

/// Looks through all secrets of a name for the record.
///
/// # Errors
/// A [`Problem`] when the key manager gives nothing.
async fn look_among(
    manager: &impl KeyManager,
    name: &str,
    record: &HeaderBackup,
) -> Result<Among, Problem> {
    let mut among = Among {
        same: None,
        others: vec![],
    };
    for info in manager.find_keys(name).await? {
        let payload = manager.get_payload(&info).await?;
        match second_copy::compare(&payload, record) {
            Found::Same => among.same = among.same.or(Some(info.id)),
            _ => among.others.push(info.id),
        }
    }
    Ok(among)
}

/// Stores the record under a name and reads it back.
///
/// # Errors
/// A [`Problem`] when the key manager refuses, or gives back something else than it was given.
async fn put(
    manager: &impl KeyManager,
    name: &str,
    record: &HeaderBackup,
) -> Result<String, Problem> {
    let text = serde_json::to_string(record)
        .map_err(|e| Problem::new(Reason::HeaderRecordUnusable, e.to_string()))?;
    let stored = manager.store_text(name, &text).await?;
    let (id, found) = read_with(manager, &stored.id).await?;
    match found == *record {
        true => Ok(id),
        false => Err(differs(&id, name)),
    }
}

/// Looks for a header of the volume's own name: the one that is pinned, else the latest.
///
/// # Errors
/// A [`Problem`] when the key manager gives nothing.
pub async fn find(
    ctx: &Context,
    world: &World,
    version: i64,
) -> Result<Option<(String, HeaderBackup)>, Problem> {
    let manager = ctx.tenants.of(world).await?;
    let status = world.volume.status.clone().unwrap_or_default();
    let mut last = None;
    for info in manager.find_keys(&secret_name(world, version)).await? {
        let payload = manager.get_payload(&info).await?;
        let Ok(record) = serde_json::from_slice(&payload) else {
            continue;
        };
        last = Some((info.id, record));
        if last.as_ref().is_some_and(|(_, r)| is_pinned(r, &status)) {
            break;
        }
    }
    Ok(last)
}

/// Reads the header in a secret.
///
/// # Errors
/// A [`Problem`] when the key manager gives nothing, or something else.
pub async fn read(
    ctx: &Context,
    world: &World,
    id: &str,
) -> Result<(String, HeaderBackup), Problem> {
    read_with(&ctx.tenants.of(world).await?, id).await
}

async fn read_with(manager: &impl KeyManager, id: &str) -> Result<(String, HeaderBackup), Problem> {
    let info = manager.get_metadata(id).await?;
    let payload = manager.get_payload(&info).await?;
    match serde_json::from_slice(&payload) {
        Ok(record) => Ok((info.id, record)),
        // Not with the parser's words: it may be a key that was named by mistake.
        Err(_) => Err(Problem::new(
            Reason::HeaderRecordUnusable,
            format!("the secret {id} holds no header"),
        )),
    }
}

/// Destroys the header under the key that a rotation has replaced, before that key.
///
/// # Errors
/// A [`Problem`] when the key manager refuses.
pub async fn destroy_former(ctx: &Context, world: &World, version: i64) -> Result<(), Problem> {
    if !may_have_secret(world) {
        return Ok(());
    }
    let manager = ctx.tenants.of(world).await?;
    let name = secret_name(world, version - 1);
    for found in manager.find_keys(&name).await? {
        manager.delete_key(&found.id).await?;
    }
    Ok(())
}
