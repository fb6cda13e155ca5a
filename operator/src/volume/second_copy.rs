//! The second copy of a header that lies apart from its disk (ADR 54), looked at again for as long as the volume lives: whether the key
//! manager still has it, and whether it says what the record says. What is gone, or is no header of this volume, is stored anew from the
//! record, where that is the header that was pinned. Nothing is ever taken away or written over.

use cryptvol_common::header;
use cryptvol_crds::{
    conditions::{HEADER_BACKED_UP, Reason, get},
    v1alpha1::{EncryptedVolumeStatus, HeaderBackup, HeaderSecretStatus},
};

use super::world::{Action, Problem, World};
use crate::{
    context::Context,
    keymanager::{KeyError, KeyManager},
};

/// What the key manager has as the second copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// What the record says.
    Same,
    /// No such secret.
    Gone,
    /// Something that is no header of this volume.
    Foreign,
    /// This volume's header, sealed otherwise than in the record. Which of the two opens, only the key could say.
    Other,
}

/// What is known of the second copy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SecondCopy {
    /// Whether it is time to look at it again.
    pub due: bool,
    /// What was found at the last look, and of which secret.
    pub seen: Option<(String, Result<Found, Problem>)>,
    /// What became of storing it anew in this pass: the id of the secret.
    pub stored: Option<Result<String, Problem>>,
}

/// How the second copy does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing new is known.
    AsBefore,
    /// It is there.
    Whole,
    /// It is not as it should be.
    Bad(Problem),
}

/// Whether a record is the header that was pinned, as far as that can be said without the key: its facts are the pinned ones, and its digest
/// of the volume key is the one in these facts. What is sealed opens with the key or not at all.
pub fn is_pinned(record: &HeaderBackup, status: &EncryptedVolumeStatus) -> bool {
    let facts = &record.header;
    let pinned = match &status.header {
        Some(header) => header == facts,
        None => status.luks_uuid.as_ref() == Some(&facts.luks_uuid),
    };
    pinned
        && facts.is_detached()
        && header::fingerprint(&record.digest).as_ref() == Ok(&facts.digest)
}

/// The record and the secret that are to say the same, once data can depend on them.
fn to_compare(status: &EncryptedVolumeStatus) -> Option<(&HeaderBackup, &HeaderSecretStatus)> {
    let (record, secret) = (
        status.header_backup.as_ref()?,
        status.header_secret.as_ref()?,
    );
    (status.header.is_some() && is_pinned(record, status)).then_some((record, secret))
}

/// Whether there is a second copy to look at.
pub fn is_kept(status: &EncryptedVolumeStatus) -> bool {
    to_compare(status).is_some()
}

/// Whether the condition says that something is wrong with the second copy.
pub fn is_told(status: &EncryptedVolumeStatus) -> bool {
    says(status, Reason::HeaderCopyMissing) || says(status, Reason::HeaderCopyDiffers)
}

fn says(status: &EncryptedVolumeStatus, reason: Reason) -> bool {
    let now = get(&status.conditions, HEADER_BACKED_UP);
    now.is_some_and(|c| c.reason == reason.as_str())
}

/// Judges what was found, and says what is to be done. A look that failed says nothing: that the key manager does not answer is told where the
/// key is.
pub fn check(world: &World, status: &mut EncryptedVolumeStatus, then: &mut Vec<Action>) -> Verdict {
    let (Some((record, secret)), Some(key)) = (to_compare(status), &status.key) else {
        return Verdict::AsBefore;
    };
    let (id, version) = (secret.id.clone(), key.version);
    let seen = world.second_copy.seen.as_ref().filter(|s| s.0 == id);
    let found = match seen.map(|s| &s.1) {
        // One that began to mend and died goes on at once.
        None if world.second_copy.due || is_told(status) => {
            then.push(Action::LookAtSecondCopy {
                id,
                key_id: key.id.clone(),
                record: Box::new(record.clone()),
            });
            return Verdict::AsBefore;
        }
        None | Some(Err(_)) => return Verdict::AsBefore,
        Some(Ok(found)) => *found,
    };
    let what = match found {
        Found::Same => return Verdict::Whole,
        Found::Other => {
            let what = format!(
                "the secret {id} of the key manager holds this volume's header sealed otherwise than the record"
            );
            return Verdict::Bad(Problem::new(Reason::HeaderCopyDiffers, what));
        }
        Found::Gone => format!("the key manager has no secret {id} any more"),
        Found::Foreign => {
            format!("the secret {id} of the key manager holds no header of this volume")
        }
    };
    let missing = |what| Verdict::Bad(Problem::new(Reason::HeaderCopyMissing, what));
    match &world.second_copy.stored {
        Some(Ok(id)) => {
            status.header_secret = Some(HeaderSecretStatus {
                id: id.clone(),
                generated: true,
            });
            Verdict::Whole
        }
        Some(Err(problem)) => missing(format!(
            "{what}; another one cannot be stored: {}",
            problem.what
        )),
        None => {
            then.push(Action::StoreSecondCopy {
                version,
                record: Box::new(record.clone()),
            });
            // Why it could not be stored, where that was said, is not said anew with each attempt.
            match says(status, Reason::HeaderCopyMissing) {
                true => Verdict::AsBefore,
                false => missing(what),
            }
        }
    }
}

/// Compares what a secret holds with the record.
pub fn compare(payload: &[u8], record: &HeaderBackup) -> Found {
    match serde_json::from_slice::<HeaderBackup>(payload) {
        Ok(found) if found == *record => Found::Same,
        Ok(found) if (&found.header, &found.digest) == (&record.header, &record.digest) => {
            Found::Other
        }
        _ => Found::Foreign,
    }
}

/// Looks at the second copy.
///
/// # Errors
/// A [`Problem`] when the key manager gives nothing. That it does not have the volume's key either is one: then it is not this secret that is
/// missing.
pub async fn look(
    ctx: &Context,
    world: &World,
    id: &str,
    key_id: &str,
    record: &HeaderBackup,
) -> Result<Found, Problem> {
    let manager = ctx.tenants.of(world).await?;
    let read = async {
        let info = manager.get_metadata(id).await?;
        manager.get_payload(&info).await
    };
    match read.await {
        Ok(payload) => Ok(compare(&payload, record)),
        Err(KeyError::NotFound(_)) => {
            manager.get_metadata(key_id).await?;
            Ok(Found::Gone)
        }
        Err(e) => Err(e.into()),
    }
}

/// Most secrets of one name that hold something else, beside which another is stored. More would mean that the key manager does not give back
/// what it is given.
pub const MOST_OTHERS: usize = 2;
