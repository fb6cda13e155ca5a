//! A record that was lost after the volume's key was rotated. The key is not found by the volume's own name then: that has a version in it. So the
//! key manager is asked for all that begins with the name; not of every new volume, but where something says that this one is not new: a
//! node that has it, or a disk that is not as a new volume's is.

use std::collections::BTreeMap;

use cryptvol_crds::{
    conditions::Reason,
    v1alpha1::{EncryptedVolumeStatus, KeyReferenceStatus},
};

use super::{
    facts, rotate,
    world::{Action, Problem, World},
};
use crate::keymanager::KeyInfo;

/// What the key manager has under a later version of the volume's name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Version {
    /// The key.
    pub key: Option<KeyInfo>,
    /// Id of the secret with the header, where that lies apart from the disk.
    pub header: Option<String>,
}

/// Secrets of the volume by the version of its key. `plain` is the name of the first version; what else begins like it is another's.
pub fn versions(plain: &str, found: &[KeyInfo]) -> BTreeMap<i64, Version> {
    let mut all = BTreeMap::<i64, Version>::new();
    for info in found {
        let name = info.name.as_deref().unwrap_or_default();
        let Some(rest) = name.strip_prefix(plain).and_then(|r| r.strip_prefix('/')) else {
            continue;
        };
        let (number, header) = match rest.strip_suffix("/header") {
            Some(number) => (number, true),
            None => (rest, false),
        };
        let Some(version) = number.parse().ok().filter(|v| *v > 1) else {
            continue;
        };
        let of = all.entry(version).or_default();
        match header {
            true => of.header = Some(info.id.clone()),
            // The oldest, as with the first version.
            false if of.key.is_none() => of.key = Some(info.clone()),
            false => {}
        }
    }
    all.retain(|_, of| of.key.is_some());
    all
}

/// The key of a volume that was opened before and has none on record nor under its plain name: it is known where there is one only. No key is ever
/// made for such a volume: a new one opens nothing.
///
/// # Errors
/// What is wrong; nothing where the key manager is to be asked first.
pub fn key_of_one_in_use(
    world: &World,
    then: &mut Vec<Action>,
) -> Result<(i64, KeyInfo), Option<Problem>> {
    let found = match &world.later {
        None => {
            then.push(Action::FindLater);
            return Err(None);
        }
        Some(Err(problem)) => return Err(Some(problem.clone())),
        Some(Ok(found)) => versions(&rotate::key_name(world, 1), found),
    };
    let mut all = found.into_iter();
    match (all.next(), all.next()) {
        (Some((version, Version { key: Some(key), .. })), None) => Ok((version, key)),
        (None, _) => Err(Some(Problem::new(
            Reason::KeyNotFound,
            "the volume was opened before, and the key manager has no key that bears its name",
        ))),
        _ => Err(Some(lost(world))),
    }
}

/// What is wrong with a volume that was never opened, by its record, and whose disk is not a new volume's, where the key manager has later versions of
/// its key: it is not new.
pub fn is_not_new(
    world: &World,
    status: &EncryptedVolumeStatus,
    then: &mut Vec<Action>,
) -> Option<Problem> {
    let first = |key: &KeyReferenceStatus| key.generated && key.version == 1;
    if status.first_opened.is_some()
        || status.header.is_some()
        || !status.key.as_ref().is_some_and(first)
    {
        return None;
    }
    let strange = world.node_volumes.iter().any(|nv| {
        let error = facts::report(nv).error;
        let reason = error.and_then(|e| Reason::parse(&e.reason));
        matches!(
            reason,
            Some(Reason::DeviceNotBlank | Reason::ForeignSignature)
        )
    });
    match &world.later {
        _ if !strange => None,
        None => {
            then.push(Action::FindLater);
            None
        }
        // What the node says of the disk is told then.
        Some(Err(_)) => None,
        Some(Ok(found)) => {
            let none = versions(&rotate::key_name(world, 1), found).is_empty();
            (!none).then(|| lost(world))
        }
    }
}

fn lost(world: &World) -> Problem {
    let found = world.later.as_ref().and_then(|found| found.as_ref().ok());
    let found = found.map_or(&[][..], Vec::as_slice);
    let all = versions(&rotate::key_name(world, 1), found);
    // The latest first: it is the one, but where a rotation was not done.
    let named = all.iter().rev().filter_map(|(version, of)| {
        let key = &of.key.as_ref()?.id;
        Some(match &of.header {
            None => format!("key {key} (version {version})"),
            Some(header) => format!("key {key} with header {header} (version {version})"),
        })
    });
    let named: Vec<_> = named.collect();
    Problem::new(
        Reason::RecordLost,
        format!(
            "the key manager has, from rotations of this volume's key, {}: its disk holds data, and the record of it is lost",
            named.join(", ")
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_told_by_their_names() {
        let named = |id: &str, name: &str| KeyInfo {
            id: id.into(),
            name: Some(name.into()),
            created: String::new(),
            secret_type: "symmetric".into(),
            content_type: None,
        };
        let plain = "cryptvol/t/v/uid";
        let found = [
            named("first", plain),
            named("header-1", "cryptvol/t/v/uid/header"),
            named("third", "cryptvol/t/v/uid/3"),
            named("third-again", "cryptvol/t/v/uid/3"),
            named("header-3", "cryptvol/t/v/uid/3/header"),
            named("header-4", "cryptvol/t/v/uid/4/header"),
            named("other", "cryptvol/t/v/uid-2/2"),
            named("none", "cryptvol/t/v/uid/x"),
            named("one", "cryptvol/t/v/uid/1"),
            named("below", "cryptvol/t/v/uid/2/3"),
        ];
        let all = versions(plain, &found);
        let ids: Vec<_> = all
            .iter()
            .map(|(v, of)| {
                (
                    *v,
                    of.key.as_ref().unwrap().id.as_str(),
                    of.header.as_deref(),
                )
            })
            .collect();
        assert_eq!(ids, [(3, "third", Some("header-3"))]);
        assert!(versions(plain, &[]).is_empty());
    }
}
