//! What a project may have of cryptvol: the numbers are unified limits in the identity service, the counting is done here
//! (as oslo.limit leaves it to the service whose resources they are).

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use cryptvol_crds::{
    EncryptedVolume, NodeVolume, conditions::Reason, quantity, v1alpha1::EncryptedVolumeStatus,
};
use kube::ResourceExt;

use super::{
    decide,
    world::{KeyState, Problem, World},
};
use crate::{context::Context, keymanager::limits::Limits};

const GIB: u64 = 1 << 30;

/// What a volume, or a project, has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// EncryptedVolumes.
    pub volumes: u64,
    /// Sum of the sizes of their disks, as far as these are known.
    pub bytes: u64,
    /// Keys that were made for them.
    pub keys: u64,
}

impl Usage {
    fn add(&mut self, other: Self) {
        self.volumes = self.volumes.saturating_add(other.volumes);
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.keys = self.keys.saturating_add(other.keys);
    }
}

/// Whether `wanted` may come on top of what is `used`. Only what is wanted is judged: a limit that was lowered below what
/// is there takes nothing away.
///
/// # Errors
/// A [`Problem`] that names the resource and the numbers.
pub fn check(limits: &Limits, used: &Usage, wanted: &Usage) -> Result<(), Problem> {
    let gib = |bytes: u64| bytes.div_ceil(GIB);
    for (name, limit, before, asked, after) in [
        (
            "volumes",
            limits.volumes,
            used.volumes,
            wanted.volumes,
            used.volumes.saturating_add(wanted.volumes),
        ),
        (
            "gibibytes",
            limits.gibibytes,
            gib(used.bytes),
            gib(wanted.bytes),
            gib(used.bytes.saturating_add(wanted.bytes)),
        ),
        (
            "keys",
            limits.keys,
            used.keys,
            wanted.keys,
            used.keys.saturating_add(wanted.keys),
        ),
    ] {
        if let Some(limit) = limit
            && asked > 0
            && after > limit
        {
            return Err(Problem::new(
                Reason::QuotaExceeded,
                format!(
                    "the project may have {limit} {name}, the other volumes have {before}, and this one needs {asked}"
                ),
            ));
        }
    }
    Ok(())
}

/// The size of a volume's disk: what a node reported, or what a file is asked to be before it is made. One byte where
/// neither is known: such a volume comes through as long as there is any room, and is judged by its size when it is attached
/// the next time.
fn bytes(volume: &EncryptedVolume) -> u64 {
    let source = &volume.spec.source;
    let asked = [
        source.file.as_ref().map(|file| file.size.as_str()),
        source.ephemeral.as_ref().and_then(|e| e.size.as_deref()),
    ];
    let asked = asked.into_iter().flatten().find_map(quantity::bytes);
    let reported = volume.status.as_ref().and_then(|s| s.size_bytes);
    let known = reported.or(asked);
    known
        .and_then(|b| u64::try_from(b).ok())
        .unwrap_or(1)
        .max(1)
}

/// Whether a volume that is not the project's yet may become so.
///
/// # Errors
/// A [`Problem`] when a limit is in the way.
pub fn may_begin(world: &World, limits: &Limits) -> Result<(), Problem> {
    check(limits, &world.used, &of_new(&world.volume))
}

/// Whether a volume may be given to a node.
///
/// # Errors
/// A [`Problem`] when its size is in the way.
pub fn may_be_handed_over(world: &World) -> Result<(), Problem> {
    let KeyState::Known { limits, .. } = &world.key else {
        return Ok(());
    };
    let wanted = Usage {
        bytes: bytes(&world.volume),
        ..Usage::default()
    };
    check(limits, &world.used, &wanted)
}

/// How long the file of a volume may be in bytes: as the user asks. What a node has already stays; what comes on top of that is held
/// back while a limit is in the way, or while nobody says what the limits are.
pub fn file_size(world: &World, status: &EncryptedVolumeStatus, asked: i64) -> i64 {
    match larger(world, status, asked) {
        Some(has) if has_tags(status) || raise(world, asked) != Some(Ok(())) => has,
        _ => asked,
    }
}

/// What stands against a file that shall be longer, or a disk that is.
pub fn against_raise(world: &World, status: &EncryptedVolumeStatus) -> Option<Problem> {
    let Some(file) = &world.volume.spec.source.file else {
        return larger_disk(status);
    };
    let asked = quantity::bytes(&file.size)?;
    larger(world, status, asked)?;
    if has_tags(status) {
        return Some(Problem::new(
            Reason::GrowUnsupported,
            "source.file.size cannot be raised: a volume with integrity stays as long as it was made",
        ));
    }
    let over = raise(world, asked)?.err()?;
    Some(Problem::new(
        over.reason,
        format!("source.file.size cannot be raised: {}", over.what),
    ))
}

/// A disk that was made longer below authenticated sectors. That it is longer is on record once the volume is up with it.
fn larger_disk(status: &EncryptedVolumeStatus) -> Option<Problem> {
    let has = status.size_bytes.and_then(|b| u64::try_from(b).ok())?;
    let unused = status.header.as_ref()?.unused_bytes(has);
    (unused > 0).then(|| {
        let what = format!(
            "the disk has {has} bytes, and {} MiB of them are no use to a volume with integrity: it stays as long as it was made",
            (unused >> 20).max(1)
        );
        Problem::new(Reason::GrowUnsupported, what)
    })
}

/// Authenticated sectors have their tags in places that were laid out once.
fn has_tags(status: &EncryptedVolumeStatus) -> bool {
    status
        .header
        .as_ref()
        .is_some_and(|h| h.integrity.is_some())
}

/// What the file has, or a node was told that it shall have, where more is asked for.
fn larger(world: &World, status: &EncryptedVolumeStatus, asked: i64) -> Option<i64> {
    let told = |nv: &NodeVolume| nv.spec.source.file.as_ref().map(|f| f.size_bytes);
    let told = world.node_volumes.iter().filter_map(told).max();
    status.size_bytes.max(told).filter(|has| *has < asked)
}

/// Whether the limits let a volume have so many bytes; nothing where they are not known.
fn raise(world: &World, asked: i64) -> Option<Result<(), Problem>> {
    let KeyState::Known { limits, .. } = &world.key else {
        return None;
    };
    let wanted = Usage {
        bytes: u64::try_from(asked).unwrap_or(u64::MAX),
        ..Usage::default()
    };
    Some(check(limits, &world.used, &wanted))
}

fn of_new(volume: &EncryptedVolume) -> Usage {
    Usage {
        volumes: 1,
        bytes: bytes(volume),
        keys: u64::from(decide::secret_ref(volume).is_none()),
    }
}

/// Whose limits count: a project of a KeyService.
type Place = (String, String);

/// Which volumes this process gave a place in their project: the cache does not show our own last write yet, so of two
/// volumes at once each would find room for itself.
#[derive(Default)]
pub struct Ledger(Mutex<HashMap<String, (Place, Usage)>>);

impl Ledger {
    /// What the other volumes of the world's project have. Nothing where nothing is limited: then nobody asks.
    pub fn used(&self, ctx: &Context, world: &World) -> Usage {
        let taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Self::sum(&taken, ctx, world)
    }

    fn sum(taken: &HashMap<String, (Place, Usage)>, ctx: &Context, world: &World) -> Usage {
        let Some(place) = place(world) else {
            return Usage::default();
        };
        let own = world.volume.uid();
        let all = ctx.stores.volumes.0.state();
        let mut used = Usage::default();
        for volume in all.iter().filter_map(|o| o.0.as_ref().ok()) {
            if volume.uid() != own {
                used.add(has(volume, &place, taken));
            }
        }
        used
    }

    /// Takes the place of a volume that begins, if there still is one.
    pub fn claim(&self, ctx: &Context, world: &World) -> bool {
        let (Some(place), KeyState::Known { limits, .. }) = (place(world), &world.key) else {
            return true;
        };
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let used = Self::sum(&taken, ctx, world);
        let wanted = of_new(&world.volume);
        let fits = check(limits, &used, &wanted).is_ok();
        if fits {
            taken.insert(world.volume.uid().unwrap_or_default(), (place, wanted));
        }
        fits
    }

    /// Forgets a volume that is gone.
    pub fn forget(&self, uid: &str) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(uid);
    }
}

/// The project of a world in which something is limited.
fn place(world: &World) -> Option<Place> {
    match (&world.key_service, &world.key) {
        (
            Ok(service),
            KeyState::Known {
                project_id, limits, ..
            },
        ) if limits.any() => Some((service.name_any(), project_id.clone())),
        _ => None,
    }
}

/// What a volume has in a project, by its record, or by the ledger while there is none.
fn has(volume: &EncryptedVolume, place: &Place, taken: &HashMap<String, (Place, Usage)>) -> Usage {
    let key = volume.status.as_ref().and_then(|s| s.key.as_ref());
    let recorded = key.filter(|key| {
        key.key_service_name == place.0 && key.project_id.as_deref() == Some(place.1.as_str())
    });
    match (key, recorded) {
        (_, Some(key)) => Usage {
            volumes: 1,
            bytes: bytes(volume),
            keys: u64::from(key.generated),
        },
        (None, _) => volume
            .metadata
            .uid
            .as_ref()
            .and_then(|uid| taken.get(uid))
            .filter(|(at, _)| at == place)
            .map_or_else(Usage::default, |(_, usage)| *usage),
        (Some(_), None) => Usage::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(volumes: u64, gib: u64, keys: u64) -> Usage {
        Usage {
            volumes,
            bytes: gib * GIB,
            keys,
        }
    }

    fn limits(volumes: Option<u64>, gibibytes: Option<u64>, keys: Option<u64>) -> Limits {
        Limits {
            volumes,
            gibibytes,
            keys,
        }
    }

    #[test]
    fn a_limit_is_what_may_be_had_and_not_more() {
        let full = limits(Some(3), Some(10), Some(2));
        for (limits, used, wanted, over) in [
            (Limits::default(), usage(99, 99, 99), usage(1, 1, 1), None),
            (full, usage(2, 9, 1), usage(1, 1, 1), None),
            (full, usage(3, 0, 0), usage(1, 1, 1), Some("3 volumes")),
            (
                full,
                usage(0, 9, 0),
                usage(1, 2, 1),
                Some("may have 10 gibibytes, the other volumes have 9, and this one needs 2"),
            ),
            (full, usage(0, 0, 2), usage(1, 1, 1), Some("2 keys")),
            // A key of somebody else's is not made and counts nothing.
            (full, usage(0, 0, 2), usage(1, 1, 0), None),
            (
                limits(Some(0), None, None),
                usage(0, 0, 0),
                usage(1, 1, 1),
                Some("0 volumes"),
            ),
            // What is over a limit already keeps what it has.
            (full, usage(9, 0, 9), usage(0, 1, 0), None),
            (
                full,
                usage(0, u64::MAX / GIB, 0),
                usage(0, u64::MAX / GIB, 0),
                Some("10 gibibytes"),
            ),
        ] {
            let found = check(&limits, &used, &wanted).err();
            let text = found.as_ref().map(|p| p.what.clone()).unwrap_or_default();
            assert_eq!(found.is_some(), over.is_some(), "{text}");
            assert!(text.contains(over.unwrap_or_default()), "{text}");
            assert!(found.is_none_or(|p| p.reason == Reason::QuotaExceeded));
        }
    }

    /// A file has its size before any node made it, so that it is refused before a key is made.
    #[test]
    fn a_file_counts_with_the_size_that_it_is_to_have() {
        let volume = |source: serde_json::Value, status: serde_json::Value| {
            serde_json::from_value(serde_json::json!({
                "apiVersion": "cryptvol.dev/v1alpha1", "kind": "EncryptedVolume", "metadata": {"name": "v"},
                "spec": {"source": source}, "status": status,
            }))
            .expect("a volume")
        };
        let file = |size: &str| serde_json::json!({"file": {"path": "/var/lib/cryptvol/volumes/v", "size": size}});
        let none = || serde_json::json!({});
        let of_node = serde_json::json!({"sizeBytes": 7 * GIB});
        for (volume, wanted) in [
            (volume(file("10Gi"), none()), 10 * GIB),
            (volume(file("64Mi"), none()), 64 << 20),
            // What is there is what counts, where it is more and where it is less.
            (volume(file("10Gi"), of_node.clone()), 7 * GIB),
            (
                volume(serde_json::json!({"ephemeral": {"size": "2Gi"}}), none()),
                2 * GIB,
            ),
            (
                volume(serde_json::json!({"device": {"path": "/dev/vg/v"}}), none()),
                1,
            ),
            (
                volume(
                    serde_json::json!({"device": {"path": "/dev/vg/v"}}),
                    of_node,
                ),
                7 * GIB,
            ),
        ] {
            assert_eq!(bytes(&volume), wanted, "{:?}", volume.spec.source);
            assert_eq!(of_new(&volume).bytes, wanted);
        }
    }

    #[test]
    fn a_disk_of_unknown_size_needs_some_room() {
        let ten = limits(None, Some(10), None);
        let unknown = Usage {
            bytes: 1,
            ..Usage::default()
        };
        assert!(check(&ten, &usage(0, 9, 0), &unknown).is_ok());
        assert!(check(&ten, &usage(0, 10, 0), &unknown).is_err());
        assert!(check(&limits(None, Some(0), None), &usage(0, 0, 0), &unknown).is_err());
    }
}
