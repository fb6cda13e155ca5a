//! Gathers what a decision is made from: from caches for a first look, from the API server before anything is written.

use std::{collections::BTreeMap, sync::Arc};

use cryptvol_crds::{
    EncryptedVolume, EncryptionClass, KeyService, NodeVolume, conditions::Reason, names,
    v1alpha1::Encryption,
};
use k8s_openapi::{api::core::v1::Node, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::ResourceExt;

use super::{
    decide,
    effects::{self, EffectError},
    node_volumes,
    second_copy::{self, SecondCopy},
    world::{Fresh, NodeState, Problem, SourceOwner, World},
};
use crate::context::Context;

/// Where objects are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Watch caches; costs nothing, may lag.
    Cache,
    /// The API server.
    Live,
}

/// Gathers the world of one volume.
///
/// # Errors
/// When the API server does not answer.
pub async fn gather(
    ctx: &Context,
    volume: &EncryptedVolume,
    source: Source,
) -> Result<World, EffectError> {
    let mut node_volumes = match source {
        Source::Live => effects::live_node_volumes(ctx, volume).await?,
        Source::Cache => ctx.stores.node_volumes.find_all(|nv| belongs(nv, volume)),
    };
    // An object of an earlier volume of the same name is not ours; it goes its own way (see `orphans`).
    node_volumes.retain(|nv| belongs(nv, volume));

    // Asked only where it makes a difference, and never for a first look.
    let goes = |m: &ObjectMeta| m.deletion_timestamp.is_some();
    let namespace_goes = source == Source::Live
        && (goes(&volume.metadata) || node_volumes.iter().any(|nv| goes(&nv.metadata)))
        && effects::namespace_goes(ctx, volume).await?;

    let class = class(ctx, volume);
    let key_service = key_service(ctx, volume, class.as_ref().ok().and_then(Option::as_deref));
    let mut nodes = BTreeMap::new();
    let last = volume
        .status
        .as_ref()
        .and_then(|s| s.last_node_name.as_deref());
    let interesting = decide::wanted(volume)
        .into_iter()
        .chain(node_volumes.iter().map(|nv| nv.spec.node_name.as_str()))
        .chain(last);
    for name in interesting {
        if nodes.contains_key(name) {
            continue;
        }
        let found = match ctx.stores.node(name) {
            Some(state) => Some(state),
            None if source == Source::Live => {
                effects::live_node(ctx, name).await?.map(|n| node_state(&n))
            }
            None => None,
        };
        if let Some(state) = found {
            nodes.insert(name.to_owned(), state);
        }
    }
    let of_class = class.as_ref().ok().and_then(Option::as_ref);
    let activation = volume
        .spec
        .activation
        .or(of_class.map(|c| c.spec.activation))
        .unwrap_or_default();
    let encryption = match (&volume.spec.encryption, class) {
        (Some(inline), _) => Ok(inline.clone()),
        (None, Ok(Some(class))) => Ok(class.spec.encryption.clone()),
        (None, Ok(None)) => Ok(Encryption::default()),
        (None, Err(problem)) => Err(problem),
    };
    let mut world = World {
        volume: volume.clone(),
        encryption,
        activation,
        key_service,
        key: super::world::KeyState::NotAsked,
        rotation: super::world::RotationKeys::default(),
        header: None,
        unrecorded: None,
        later: None,
        second_copy: SecondCopy::default(),
        nodes,
        node_volumes,
        namespace_goes,
        source_owner: source_owner(ctx, volume),
        used: super::quota::Usage::default(),
        now: effects::now(),
        fresh: Fresh {
            luks_uuid: uuid::Uuid::new_v4().to_string(),
            permit_id: uuid::Uuid::new_v4().to_string(),
        },
    };
    world.key = ctx.memos.get(&world);
    if volume.status.as_ref().is_some_and(second_copy::is_kept) {
        world.second_copy = ctx.copies.get(&volume.uid().unwrap_or_default());
    } else {
        ctx.copies.forget(&volume.uid().unwrap_or_default());
    }
    world.used = ctx.ledger.used(ctx, &world);
    Ok(world)
}

/// The class of a volume; none where it has an encryption of its own.
fn class(ctx: &Context, volume: &EncryptedVolume) -> Result<Option<Arc<EncryptionClass>>, Problem> {
    if volume.spec.encryption.is_some() {
        return Ok(None);
    }
    let missing = |what: String| Problem::new(Reason::EncryptionClassNotFound, what);
    if let Some(name) = &volume.spec.encryption_class_name {
        return ctx
            .stores
            .classes
            .get(name)
            .map(Some)
            .ok_or_else(|| missing(format!("there is no EncryptionClass {name}")));
    }
    let mut defaults: Vec<_> = ctx
        .stores
        .classes
        .all()
        .into_iter()
        .filter(|c| {
            c.annotations()
                .get(names::DEFAULT_CLASS_ANNOTATION)
                .is_some_and(|v| v == "true")
        })
        .collect();
    match (defaults.pop(), defaults.is_empty()) {
        (Some(class), true) => Ok(Some(class)),
        (Some(_), false) => Err(missing(
            "more than one EncryptionClass is marked as default, and spec.encryptionClassName names none".into(),
        )),
        (None, _) => Err(missing(
            "spec.encryptionClassName names none, and no EncryptionClass is marked as default".into(),
        )),
    }
}

/// The KeyService of a volume: the recorded one once there is a key, for another default must not move it.
fn key_service(
    ctx: &Context,
    volume: &EncryptedVolume,
    class: Option<&EncryptionClass>,
) -> Result<Arc<KeyService>, Problem> {
    let missing = |what: String| Problem::new(Reason::KeyServiceNotFound, what);
    let recorded = volume.status.as_ref().and_then(|s| s.key.as_ref());
    let name = recorded
        .map(|k| &k.key_service_name)
        .or(volume.spec.key_service_name.as_ref())
        .or(class.and_then(|c| c.spec.key_service_name.as_ref()));
    if let Some(name) = name {
        return ctx
            .stores
            .key_services
            .get(name)
            .ok_or_else(|| missing(format!("there is no KeyService {name}")));
    }
    let mut all = ctx.stores.key_services.all();
    match (all.pop(), all.is_empty()) {
        (Some(one), true) => Ok(one),
        (Some(_), false) => Err(missing(
            "neither the volume nor its class names a KeyService, and the cluster has more than one".into(),
        )),
        (None, _) => Err(missing("the cluster has no KeyService".into())),
    }
}

/// Another volume with the same disk that came first. One that has been given the disk already keeps it; of others the
/// older one gets it.
fn source_owner(ctx: &Context, volume: &EncryptedVolume) -> Option<SourceOwner> {
    let disk = disk(volume)?;
    let rank = |v: &EncryptedVolume| {
        let claimed = ctx.claims.has(v)
            || v.status
                .as_ref()
                .is_some_and(|s| s.luks_uuid.is_some() || s.key.is_some());
        (
            !claimed,
            v.metadata.creation_timestamp.as_ref().map(|t| t.0),
            v.uid(),
        )
    };
    let mine = rank(volume);
    ctx.stores
        .volumes
        .find(|other| {
            self::disk(other).as_ref() == Some(&disk)
                && other.uid() != volume.uid()
                && rank(other) < mine
        })
        .map(|other| SourceOwner {
            namespace: other.namespace().unwrap_or_default(),
            name: other.name_any(),
        })
}

/// What makes two volumes the same disk: a target name is unique in the world, the path of a local device or file on its node.
pub fn disk(volume: &EncryptedVolume) -> Option<String> {
    let source = &volume.spec.source;
    if let Some(iscsi) = &source.iscsi {
        return Some(format!("LUN {} of {}", iscsi.lun, iscsi.iqn));
    }
    let last = volume
        .status
        .as_ref()
        .and_then(|s| s.last_node_name.as_deref());
    let node = decide::wanted(volume).into_iter().next().or(last)?;
    // A scratch file has its volume's own name.
    let path = node_volumes::device_path(source).or(source.file.as_ref().map(|f| &f.path))?;
    Some(format!("{path} on node {node}"))
}

/// What a decision needs of a Node.
pub fn node_state(node: &Node) -> NodeState {
    let conditions = node
        .status
        .as_ref()
        .and_then(|s| s.conditions.as_deref())
        .unwrap_or_default();
    let condition = |type_: &str| conditions.iter().find(|c| c.type_ == type_);
    let taints = node
        .spec
        .as_ref()
        .and_then(|s| s.taints.as_deref())
        .unwrap_or_default();
    NodeState {
        ready: condition("Ready").is_some_and(|c| c.status == "True"),
        out_of_service: taints.iter().any(|t| t.key == names::OUT_OF_SERVICE_TAINT),
        fit: condition(names::NODE_CONDITION).and_then(|c| match c.status.as_str() {
            "True" => Some(Ok(())),
            "False" => Some(Err(c
                .message
                .clone()
                .filter(|m| !m.is_empty())
                .unwrap_or_else(|| c.reason.clone().unwrap_or_default()))),
            _ => None,
        }),
    }
}

/// Whether a NodeVolume belongs to a volume.
pub fn belongs(node_volume: &NodeVolume, volume: &EncryptedVolume) -> bool {
    volume.metadata.uid.as_deref() == Some(node_volume.spec.volume_ref.uid.as_str())
}
