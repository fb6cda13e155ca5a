//! Carries a decision out.
//!
//! The caches propose, the API server disposes: a decision that would write anything is made again from objects read
//! anew, and the status is written only onto the very version that it was decided from. So neither a cache that lags nor
//! a second operator can choose a second LUKS UUID, hand out a spent permit, or order a second key.

use cryptvol_crds::{
    EncryptedVolume, NodeVolume,
    conditions::{self, Reason},
    names,
    v1alpha1::EncryptedVolumeStatus,
};
use k8s_openapi::{
    api::core::v1::{Namespace, Node},
    jiff::Timestamp,
};
use kube::{
    Api, Resource, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, Preconditions},
};
use serde_json::json;

use super::{
    decide, detached,
    observe::{self, Source},
    rotate, second_copy,
    world::{
        Action, Again, Decision, HeaderAnswer, KeyState, Problem, RotationKeys, Unrecorded, World,
    },
};
use crate::{
    context::Context,
    keymanager::{KeyError, KeyInfo, KeyManager, limits::Limits},
};

/// Most rounds of deciding and doing in one pass; more would mean that two decisions undo each other.
const MAX_ROUNDS: usize = 12;

/// Why a pass ended early. All of them are tried again.
#[derive(Debug, thiserror::Error)]
pub enum EffectError {
    /// The API server refused or did not answer.
    #[error("{step}: {source}")]
    Api {
        /// What was being done.
        step: &'static str,
        /// What the client says.
        #[source]
        source: Box<kube::Error>,
    },
    /// Somebody else wrote in between.
    #[error("the object changed meanwhile")]
    Conflict,
    /// Deciding and doing went in circles.
    #[error("no end after {MAX_ROUNDS} rounds: this is a defect of cryptvol, please report it")]
    NoEnd,
}

impl EffectError {
    /// A word for metrics.
    pub fn category(&self) -> &'static str {
        match self {
            Self::Api { .. } => "api",
            Self::Conflict => "conflict",
            Self::NoEnd => "no_end",
        }
    }
}

pub(crate) fn at(step: &'static str) -> impl Fn(kube::Error) -> EffectError {
    move |e| match &e {
        kube::Error::Api(status) if status.code == 409 => EffectError::Conflict,
        _ => EffectError::Api {
            step,
            source: Box::new(e),
        },
    }
}

/// One pass over one volume: decides and does until nothing is left to do now.
///
/// # Errors
/// See [`EffectError`].
pub async fn run(ctx: &Context, cached: &EncryptedVolume) -> Result<Again, EffectError> {
    let mut source = Source::Cache;
    let mut answers = Answers::default();
    let mut volume = cached.clone();
    for _ in 0..MAX_ROUNDS {
        let mut world = observe::gather(ctx, &volume, source).await?;
        if let Some(key) = &answers.key {
            world.key = key.clone();
            world.used = ctx.ledger.used(ctx, &world);
        }
        world.rotation = answers.rotation.clone();
        world.header = answers.header.clone();
        world.unrecorded = answers.unrecorded.clone();
        world.later = answers.later.clone();
        world.second_copy.stored = answers.second_copy.clone();
        let decision = decide(&world);
        if is_over_quota(&decision.status) {
            // The identity service does not tell when there is more room: the next pass asks it.
            ctx.memos.forget(&world.volume.uid().unwrap_or_default());
        }
        if decision.is_idle(&world.volume) {
            return Ok(decision.again);
        }
        if decision.then == [Action::AskKeyManager] && decision.first.is_empty() {
            // A read: no need to look at the object again first.
            let state = ask(ctx, &world).await;
            ctx.memos.put(ctx, &world, &state);
            answers.key = Some(state);
            if !unchanged(&world, &decision.status) {
                return Err(EffectError::NoEnd);
            }
            continue;
        }
        if source == Source::Cache {
            match live(ctx, &volume).await? {
                Some(fresh) => volume = fresh,
                None => return Ok(Again::Seldom),
            }
            source = Source::Live;
            continue;
        }
        match carry_out(ctx, &world, decision, &mut answers).await? {
            Next::Round(fresh) => volume = *fresh,
            Next::Done(again) => return Ok(again),
        }
    }
    Err(EffectError::NoEnd)
}

/// What the key manager said in this pass.
#[derive(Default)]
struct Answers {
    key: Option<KeyState>,
    rotation: RotationKeys,
    header: Option<HeaderAnswer>,
    unrecorded: Option<Unrecorded>,
    later: Option<Result<Vec<KeyInfo>, Problem>>,
    second_copy: Option<Result<String, Problem>>,
}

enum Next {
    Round(Box<EncryptedVolume>),
    Done(Again),
}

async fn carry_out(
    ctx: &Context,
    world: &World,
    decision: Decision,
    answers: &mut Answers,
) -> Result<Next, EffectError> {
    let mut volume = world.volume.clone();
    // Of two volumes with one disk only the first comes further than this.
    if world.source_owner.is_none() && !ctx.claims.claim(ctx, &world.volume) {
        return Err(EffectError::Conflict);
    }
    // Of several volumes of a project as many as there is room for.
    let recorded = world
        .volume
        .status
        .as_ref()
        .is_some_and(|s| s.key.is_some());
    let begins = decision.status.key.is_some() || decision.then.contains(&Action::CreateKey);
    if begins && !recorded && !ctx.ledger.claim(ctx, world) {
        return Err(EffectError::Conflict);
    }
    for action in &decision.first {
        act(ctx, world, &mut volume, answers, action).await?;
    }
    if !unchanged(world, &decision.status) {
        let old = world.volume.status.clone().unwrap_or_default();
        volume = write_status(ctx, &volume, &decision.status).await?;
        ctx.tell_transitions(&volume, &old, &decision.status).await;
    }
    for action in &decision.then {
        act(ctx, world, &mut volume, answers, action).await?;
        if matches!(action, Action::RemoveFinalizer) {
            ctx.forget(&world.volume);
            return Ok(Next::Done(Again::Seldom));
        }
    }
    // What the API server tells of our own writes comes by watch; only what nobody tells is looked at at once.
    let more = decision.then.iter().chain(&decision.first).any(|a| {
        matches!(
            a,
            Action::AddFinalizer
                | Action::CreateKey
                | Action::DeleteKey(_)
                | Action::CreateNextKey(_)
                | Action::DestroyFormerKey { .. }
                | Action::KeepHeader { .. }
                | Action::ReadHeader(_)
                | Action::FindHeader(_)
                | Action::FindLater
                | Action::LookAtSecondCopy { .. }
                | Action::StoreSecondCopy { .. }
                | Action::AskKeyManager
                | Action::Release(_)
                | Action::RemoveAnnotation(_)
        )
    });
    if more {
        Ok(Next::Round(Box::new(volume)))
    } else {
        Ok(Next::Done(decision.again))
    }
}

async fn act(
    ctx: &Context,
    world: &World,
    volume: &mut EncryptedVolume,
    answers: &mut Answers,
    action: &Action,
) -> Result<(), EffectError> {
    let name = volume.name_any();
    tracing::debug!(volume = %name, ?action, "acting");
    match action {
        Action::AddFinalizer => {
            let mut list = volume.finalizers().to_vec();
            list.push(names::VOLUME_FINALIZER.to_owned());
            *volume = set_finalizers(ctx, volume, list).await?;
        }
        Action::RemoveFinalizer => {
            let mut list = volume.finalizers().to_vec();
            list.retain(|f| f != names::VOLUME_FINALIZER);
            *volume = set_finalizers(ctx, volume, list).await?;
        }
        Action::RemoveAnnotation(annotation) => {
            let patch = json!({"metadata": {
                "resourceVersion": volume.resource_version(),
                "annotations": {*annotation: null},
            }});
            *volume = volumes(ctx, volume)
                .patch(&name, &PatchParams::default(), &Patch::Merge(patch))
                .await
                .map_err(at("removing an annotation"))?;
        }
        Action::AskKeyManager => {
            let state = ask(ctx, world).await;
            ctx.memos.put(ctx, world, &state);
            answers.key = Some(state);
        }
        Action::CreateKey => {
            let state = create_key(ctx, world).await;
            ctx.memos.put(ctx, world, &state);
            answers.key = Some(state);
        }
        Action::DeleteKey(id) => {
            answers.key = delete_key(ctx, world, id).await.or(answers.key.take())
        }
        Action::CreateNextKey(version) => {
            let name = rotate::key_name(world, *version);
            let made = make_key(ctx, world, &name).await;
            let made = made.map(|(_, key)| key.id).map_err(|(_, problem)| problem);
            answers.rotation.made = Some((*version, made));
        }
        Action::DestroyFormerKey { version, id } => {
            let gone = match detached::destroy_former(ctx, world, *version).await {
                Ok(()) => destroy_key(ctx, world, id).await,
                Err(problem) => Err(problem),
            };
            answers.rotation.destroyed = Some((*version, gone));
        }
        Action::KeepHeader { version, record } => {
            answers.header = Some(HeaderAnswer {
                version: Some(*version),
                found: detached::store(ctx, world, *version, record, 0).await,
            });
        }
        Action::ReadHeader(id) => {
            answers.header = Some(HeaderAnswer {
                version: None,
                found: detached::read(ctx, world, id).await,
            });
        }
        Action::FindHeader(version) => {
            answers.unrecorded = Some(detached::find(ctx, world, *version).await);
        }
        Action::FindLater => {
            answers.later = Some(find_later(ctx, world).await);
        }
        Action::LookAtSecondCopy { id, key_id, record } => {
            let found = second_copy::look(ctx, world, id, key_id, record).await;
            ctx.copies
                .put(&volume.uid().unwrap_or_default(), id, &found);
        }
        Action::StoreSecondCopy { version, record } => {
            let most = second_copy::MOST_OTHERS;
            let stored = detached::store(ctx, world, *version, record, most).await;
            if stored.is_ok() {
                ctx.copies.stored(&volume.uid().unwrap_or_default());
            }
            answers.second_copy = Some(stored.map(|(id, _)| id));
        }
        Action::Apply(wanted) => apply(ctx, wanted).await?,
        Action::Release(found) => release(ctx, found).await?,
        Action::Tell {
            warning,
            reason,
            note,
        } => ctx.tell(volume, *warning, reason, note).await,
    }
    Ok(())
}

/// Logs in and looks for the key.
async fn ask(ctx: &Context, world: &World) -> KeyState {
    let manager = match ctx.tenants.of(world).await {
        Ok(manager) => manager,
        Err(problem) => {
            return KeyState::Failed {
                logged_in: false,
                problem,
            };
        }
    };
    let project_id = match manager.project_id().await {
        Ok(id) => id,
        Err(e) => {
            return KeyState::Failed {
                logged_in: false,
                problem: e.into(),
            };
        }
    };
    // The login told where the key manager is: its version can be asked now.
    if let Ok(service) = &world.key_service
        && service
            .status
            .as_ref()
            .is_some_and(|s| s.key_manager_version.is_none())
    {
        ctx.key_service_changed.notify_one();
    }
    // A volume that goes makes room.
    let limits = if world.volume.metadata.deletion_timestamp.is_some() {
        Ok(Limits::default())
    } else {
        manager.limits().await
    };
    match (limits, find(&manager, world).await) {
        (Ok(limits), Ok(key)) => KeyState::Known {
            project_id,
            limits,
            key,
        },
        (Err(e), _) | (_, Err(e)) => failed(e),
    }
}

async fn find(manager: &impl KeyManager, world: &World) -> Result<Option<KeyInfo>, KeyError> {
    let recorded = world.volume.status.as_ref().and_then(|s| s.key.as_ref());
    let named = decide::secret_ref(&world.volume).map(crate::keymanager::barbican::id_of);
    let deleting = world.volume.metadata.deletion_timestamp.is_some();
    if deleting && named.is_none() {
        // All that bear this volume's name must go, also one that was made twice.
        for name in rotate::key_names(world) {
            if let Some(key) = manager.find_key(&name).await? {
                return Ok(Some(key));
            }
        }
    }
    match named.or_else(|| recorded.map(|k| k.id.clone())) {
        Some(id) => manager.get_metadata(&id).await.map(Some),
        None => manager.find_key(&rotate::key_name(world, 1)).await,
    }
}

/// All secrets whose names begin with that of the volume's key.
async fn find_later(ctx: &Context, world: &World) -> Result<Vec<KeyInfo>, Problem> {
    let manager = ctx.tenants.of(world).await?;
    let plain = rotate::key_name(world, 1);
    Ok(manager.find_keys_below(&plain).await?)
}

async fn create_key(ctx: &Context, world: &World) -> KeyState {
    let made = match make_key(ctx, world, &rotate::key_name(world, 1)).await {
        Ok((project_id, key)) => limits_of(ctx, world)
            .await
            .map(|limits| (project_id, key, limits)),
        Err(failure) => Err(failure),
    };
    match made {
        Ok((project_id, key, limits)) => KeyState::Known {
            project_id,
            limits,
            key: Some(key),
        },
        Err((logged_in, problem)) => KeyState::Failed { logged_in, problem },
    }
}

/// The limits of the project, as they were told in this pass, or asked for.
async fn limits_of(ctx: &Context, world: &World) -> Result<Limits, (bool, Problem)> {
    if let KeyState::Known { limits, .. } = &world.key {
        return Ok(*limits);
    }
    let manager = ctx.tenants.of(world).await.map_err(|p| (false, p))?;
    let limits = manager.limits().await;
    limits.map_err(|e| (logged_in(&e), e.into()))
}

/// Has a key of this name made, if there is none; with the project of the credentials, and on failure with whether the login
/// worked.
async fn make_key(
    ctx: &Context,
    world: &World,
    name: &str,
) -> Result<(String, KeyInfo), (bool, Problem)> {
    let manager = ctx.tenants.of(world).await.map_err(|p| (false, p))?;
    let made = async {
        let project_id = manager.project_id().await?;
        // Looked for once more, right before: what was not there a moment ago may be there now.
        let key = match manager.find_key(name).await? {
            Some(key) => key,
            None => manager.create_key(name).await?,
        };
        key.usable()?;
        Ok::<_, KeyError>((project_id, key))
    };
    made.await.map_err(|e| (logged_in(&e), e.into()))
}

/// Destroys a key and tells of it.
async fn destroy_key(ctx: &Context, world: &World, id: &str) -> Result<(), Problem> {
    let manager = ctx.tenants.of(world).await?;
    manager.delete_key(id).await.map_err(Problem::from)?;
    let note = format!("key {id} was destroyed in the key manager");
    ctx.tell(&world.volume, false, "KeyDestroyed", &note).await;
    Ok(())
}

async fn delete_key(ctx: &Context, world: &World, id: &str) -> Option<KeyState> {
    match destroy_key(ctx, world, id).await {
        // Looked for again: there may be another of that name.
        Ok(()) => Some(KeyState::NotAsked),
        Err(problem) => Some(KeyState::Failed {
            logged_in: true,
            problem,
        }),
    }
}

fn failed(e: KeyError) -> KeyState {
    KeyState::Failed {
        logged_in: logged_in(&e),
        problem: e.into(),
    }
}

fn logged_in(e: &KeyError) -> bool {
    !matches!(
        e.reason(),
        Reason::CredentialsInvalid | Reason::CredentialsRejected | Reason::CredentialsExpired
    )
}

fn volumes(ctx: &Context, volume: &EncryptedVolume) -> Api<EncryptedVolume> {
    Api::namespaced(ctx.client.clone(), &volume.namespace().unwrap_or_default())
}

/// The volume as it is, unless another one has its name by now.
async fn live(
    ctx: &Context,
    volume: &EncryptedVolume,
) -> Result<Option<EncryptedVolume>, EffectError> {
    let found = volumes(ctx, volume)
        .get_opt(&volume.name_any())
        .await
        .map_err(at("reading the volume"))?;
    Ok(found.filter(|v| v.uid() == volume.uid()))
}

fn is_over_quota(status: &EncryptedVolumeStatus) -> bool {
    let ready = conditions::get(&status.conditions, conditions::READY);
    ready.is_some_and(|c| c.reason == Reason::QuotaExceeded.as_str())
}

fn unchanged(world: &World, status: &EncryptedVolumeStatus) -> bool {
    match &world.volume.status {
        Some(old) => old == status,
        None => *status == EncryptedVolumeStatus::default(),
    }
}

async fn write_status(
    ctx: &Context,
    volume: &EncryptedVolume,
    status: &EncryptedVolumeStatus,
) -> Result<EncryptedVolume, EffectError> {
    // Server-side apply with a resource version: a conflict if anybody wrote since.
    let patch = json!({
        "apiVersion": EncryptedVolume::api_version(&()),
        "kind": EncryptedVolume::kind(&()),
        "metadata": {"name": volume.name_any(), "resourceVersion": volume.resource_version()},
        "status": status,
    });
    ctx.metrics.writes.inc();
    volumes(ctx, volume)
        .patch_status(
            &volume.name_any(),
            &PatchParams::apply(names::OPERATOR_MANAGER).force(),
            &Patch::Apply(patch),
        )
        .await
        .map_err(at("writing the volume's status"))
}

async fn set_finalizers(
    ctx: &Context,
    volume: &EncryptedVolume,
    list: Vec<String>,
) -> Result<EncryptedVolume, EffectError> {
    let patch = json!({"metadata": {
        "resourceVersion": volume.resource_version(),
        "finalizers": list,
    }});
    ctx.metrics.writes.inc();
    volumes(ctx, volume)
        .patch(
            &volume.name_any(),
            &PatchParams::default(),
            &Patch::Merge(patch),
        )
        .await
        .map_err(at("setting the volume's finalizer"))
}

fn node_volume_api(ctx: &Context, of: &NodeVolume) -> Api<NodeVolume> {
    Api::namespaced(ctx.client.clone(), &of.namespace().unwrap_or_default())
}

async fn apply(ctx: &Context, wanted: &NodeVolume) -> Result<(), EffectError> {
    ctx.metrics.writes.inc();
    node_volume_api(ctx, wanted)
        .patch(
            &wanted.name_any(),
            &PatchParams::apply(names::OPERATOR_MANAGER).force(),
            &Patch::Apply(wanted),
        )
        .await
        .map_err(at("writing the NodeVolume"))?;
    Ok(())
}

/// Takes our finalizer from a NodeVolume and deletes it, exactly as it was seen.
///
/// # Errors
/// A conflict when the agent has written since.
pub async fn release(ctx: &Context, found: &NodeVolume) -> Result<(), EffectError> {
    let api = node_volume_api(ctx, found);
    let name = found.name_any();
    let mut finalizers = found.finalizers().to_vec();
    finalizers.retain(|f| f != names::NODE_VOLUME_FINALIZER);
    let patch = json!({"metadata": {
        "resourceVersion": found.resource_version(),
        "uid": found.uid(),
        "finalizers": finalizers,
    }});
    ctx.metrics.writes.inc();
    let gone = |e: &kube::Error| matches!(e, kube::Error::Api(s) if s.code == 404);
    match api
        .patch_metadata(&name, &PatchParams::default(), &Patch::Merge(patch))
        .await
    {
        Err(e) if gone(&e) => return Ok(()),
        Err(e) => return Err(at("releasing the NodeVolume")(e)),
        Ok(_) if found.metadata.deletion_timestamp.is_some() => return Ok(()),
        Ok(_) => {}
    }
    let this_one = DeleteParams {
        preconditions: Some(Preconditions {
            uid: found.uid(),
            ..Preconditions::default()
        }),
        ..DeleteParams::default()
    };
    ctx.metrics.writes.inc();
    match api.delete(&name, &this_one).await {
        Err(e) if !gone(&e) => Err(at("deleting the NodeVolume")(e)),
        _ => Ok(()),
    }
}

/// What [`observe`] reads live.
pub(crate) async fn live_node_volumes(
    ctx: &Context,
    volume: &EncryptedVolume,
) -> Result<Vec<NodeVolume>, EffectError> {
    let api: Api<NodeVolume> =
        Api::namespaced(ctx.client.clone(), &volume.namespace().unwrap_or_default());
    let of_this =
        ListParams::default().labels(&format!("{}={}", names::VOLUME_LABEL, volume.name_any()));
    let list = api
        .list(&of_this)
        .await
        .map_err(at("listing the volume's NodeVolumes"))?;
    Ok(list.items)
}

/// A node that the cache does not know, read anew: a node that was just added must not be taken for one that is not
/// there.
pub(crate) async fn live_node(ctx: &Context, name: &str) -> Result<Option<Node>, EffectError> {
    Api::<Node>::all(ctx.client.clone())
        .get_opt(name)
        .await
        .map_err(at("reading a node"))
}

/// Whether the volume's namespace is being deleted.
pub(crate) async fn namespace_goes(
    ctx: &Context,
    volume: &EncryptedVolume,
) -> Result<bool, EffectError> {
    let name = volume.namespace().unwrap_or_default();
    let found = Api::<Namespace>::all(ctx.client.clone())
        .get_opt(&name)
        .await
        .map_err(at("reading the volume's namespace"))?;
    Ok(found.is_none_or(|n| n.metadata.deletion_timestamp.is_some()))
}

/// The time of a decision, without parts of a second: that is how the API server stores it, and an object that was
/// stored must be equal to the one that was written.
pub(crate) fn now() -> Timestamp {
    let now = Timestamp::now();
    Timestamp::from_second(now.as_second()).unwrap_or(now)
}
