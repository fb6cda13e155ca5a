//! When a volume is looked at: at every change of what its decision is made from.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use cryptvol_common::admin::Readiness;
use cryptvol_crds::{EncryptedVolume, EncryptionClass, KeyService, NodeVolume};
use futures::{Stream, StreamExt, channel::mpsc};
use k8s_openapi::api::core::v1::{Node, Secret};
use kube::{
    Api, Client, Resource, ResourceExt,
    core::{DeserializeGuard, PartialObjectMeta},
    runtime::{
        Controller, WatchStreamExt,
        controller::{self, Action},
        reflector::{self, ObjectRef, Store},
        watcher,
    },
};
use serde::de::DeserializeOwned;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{
    effects::{self, EffectError},
    observe,
    world::Again,
};
use crate::{
    context::Context,
    metrics::ErrorLabels,
    retry,
    stores::{Guarded, Nodes, Stores},
};

/// Volumes that are worked on at once.
const AT_ONCE: u16 = 16;
/// A pass ends after this.
const DEADLINE: Duration = Duration::from_secs(120);
/// Pause after a conflict: the watch brings the other write in the meantime.
const AFTER_CONFLICT: Duration = Duration::from_millis(250);

type Guard = DeserializeGuard<EncryptedVolume>;
type Trigger = mpsc::UnboundedSender<ObjectRef<Guard>>;

type Seen<K> = Result<watcher::Event<K>, watcher::Error>;

/// Watches that were set up and do not run yet.
pub struct Streams {
    volumes: futures::stream::BoxStream<'static, Result<Guard, watcher::Error>>,
    node_volumes: futures::stream::BoxStream<'static, Seen<DeserializeGuard<NodeVolume>>>,
    classes: futures::stream::BoxStream<'static, Seen<DeserializeGuard<EncryptionClass>>>,
    key_services: futures::stream::BoxStream<'static, Seen<DeserializeGuard<KeyService>>>,
    /// Told when a KeyService changes.
    pub key_service_changed: Arc<Notify>,
}

/// Sets the watches up: the caches, and the streams that fill them once they run.
pub fn watches(client: &Client) -> (Stores, Streams) {
    let (volumes, volume_stream) = reflected::<EncryptedVolume>(client);
    let (node_volumes, node_volume_stream) = reflected::<NodeVolume>(client);
    let (classes, class_stream) = reflected::<EncryptionClass>(client);
    let (key_services, key_service_stream) = reflected::<KeyService>(client);
    let stores = Stores {
        volumes: Guarded(volumes),
        node_volumes: Guarded(node_volumes),
        classes: Guarded(classes),
        key_services: Guarded(key_services),
        nodes: Nodes::default(),
    };
    let streams = Streams {
        volumes: volume_stream.touched_objects().boxed(),
        node_volumes: node_volume_stream.boxed(),
        classes: class_stream.boxed(),
        key_services: key_service_stream.boxed(),
        key_service_changed: Arc::default(),
    };
    (stores, streams)
}

fn reflected<K>(
    client: &Client,
) -> (
    Store<DeserializeGuard<K>>,
    impl Stream<Item = Seen<DeserializeGuard<K>>> + Send + 'static,
)
where
    K: Resource<DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + DeserializeOwned
        + Send
        + Sync
        + 'static,
{
    let (store, writer) = reflector::store();
    let stream = watcher(
        Api::<DeserializeGuard<K>>::all(client.clone()),
        watcher::Config::default(),
    )
    .default_backoff()
    .modify(|o: &mut DeserializeGuard<K>| {
        o.managed_fields_mut().clear();
    })
    .reflect(writer);
    (store, stream)
}

/// Runs until the token is cancelled, and ends passes that are under way in order.
pub async fn run(
    ctx: Arc<Context>,
    streams: Streams,
    readiness: Readiness,
    stop: CancellationToken,
) {
    readiness.not_ready(
        "watches",
        "the first list from the API server is not complete",
    );
    let (tx, rx) = mpsc::unbounded();
    let all: Arc<dyn Fn() + Send + Sync> = {
        let (ctx, tx) = (ctx.clone(), tx.clone());
        Arc::new(move || send(&tx, ctx.stores.volumes.refs(|_| true)))
    };
    let nodes_listed = Arc::new(Notify::new());
    let others = futures::future::join5(
        follow(streams.node_volumes, "NodeVolumes", all.clone(), {
            let tx = tx.clone();
            move |nv: &DeserializeGuard<NodeVolume>| {
                if let Ok(nv) = &nv.0 {
                    let namespace = nv.namespace().unwrap_or_default();
                    send(
                        &tx,
                        vec![ObjectRef::new(&nv.spec.volume_ref.name).within(&namespace)],
                    );
                }
            }
        }),
        follow(streams.classes, "EncryptionClasses", all.clone(), {
            let all = all.clone();
            move |_| all()
        }),
        follow(streams.key_services, "KeyServices", all.clone(), {
            let (all, changed) = (all.clone(), streams.key_service_changed.clone());
            let generations = std::sync::Mutex::new(std::collections::HashMap::new());
            move |ks: &DeserializeGuard<KeyService>| {
                // Its status is written by ourselves; only its spec concerns volumes.
                let key = (
                    ks.uid(),
                    ks.meta().generation,
                    ks.meta().deletion_timestamp.is_some(),
                );
                let mut seen = generations
                    .lock()
                    .unwrap_or_else(std::sync::PoisonError::into_inner);
                if seen.insert(ks.name_any(), key.clone()) != Some(key) {
                    all();
                    changed.notify_one();
                }
            }
        }),
        secrets(ctx.clone(), tx.clone()),
        nodes(ctx.clone(), tx.clone(), nodes_listed.clone()),
    );
    let volumes = async {
        // A decision on half a picture would tell a user that a class or a node is not there.
        let stores = &ctx.stores;
        let _ = stores.node_volumes.0.wait_until_ready().await;
        let _ = stores.classes.0.wait_until_ready().await;
        let _ = stores.key_services.0.wait_until_ready().await;
        nodes_listed.notified().await;
        let controller = Controller::for_stream(streams.volumes, ctx.stores.volumes.0.clone())
            .with_config(controller::Config::default().concurrency(AT_ONCE))
            .reconcile_on(rx)
            .graceful_shutdown_on(stop.clone().cancelled_owned())
            .run(reconcile, error_policy, ctx.clone());
        readiness.ready("watches");
        controller
            .for_each(|result| async move {
                match result {
                    Ok(_) => {}
                    // Gone between trigger and pass: nothing to do.
                    Err(controller::Error::ObjectNotFound(_)) => {}
                    Err(controller::Error::ReconcilerFailed(e, object)) => {
                        tracing::warn!(volume = %object, error = %e, "a pass did not end, it is repeated");
                    }
                    Err(e) => tracing::warn!(error = %e, "watch of EncryptedVolumes"),
                }
            })
            .await;
    };
    tokio::select! {
        () = volumes => {}
        _ = others => tracing::error!("a watch ended"),
    }
}

fn send(tx: &Trigger, refs: Vec<ObjectRef<Guard>>) {
    for r in refs {
        let _ = tx.unbounded_send(r);
    }
}

/// Passes every change of a watch on. After a gap in the watch everything is looked at: what was deleted meanwhile is
/// not told one by one.
async fn follow<K: Send>(
    mut stream: futures::stream::BoxStream<'static, Seen<K>>,
    what: &'static str,
    relisted: Arc<dyn Fn() + Send + Sync>,
    changed: impl Fn(&K) + Send,
) {
    while let Some(event) = stream.next().await {
        match event {
            Ok(watcher::Event::Apply(o) | watcher::Event::Delete(o)) => changed(&o),
            Ok(watcher::Event::InitDone) => relisted(),
            Ok(watcher::Event::Init | watcher::Event::InitApply(_)) => {}
            Err(e) => tracing::warn!(error = %e, "watch of {what}"),
        }
    }
}

/// Secrets, by metadata only and kept nowhere: a change triggers the volumes that name the Secret.
async fn secrets(ctx: Arc<Context>, tx: Trigger) {
    // Helm's release records and bootstrap tokens are many, large and never credentials of ours.
    let config = watcher::Config::default()
        .fields("type!=helm.sh/release.v1,type!=kubernetes.io/service-account-token");
    let api: Api<PartialObjectMeta<Secret>> = Api::all(ctx.client.clone());
    let mut stream = watcher(api, config).default_backoff().boxed();
    while let Some(event) = stream.next().await {
        let secret = match event {
            Ok(
                watcher::Event::Apply(s) | watcher::Event::Delete(s) | watcher::Event::InitApply(s),
            ) => s,
            Ok(watcher::Event::Init | watcher::Event::InitDone) => continue,
            Err(e) => {
                tracing::warn!(error = %e, "watch of Secrets");
                continue;
            }
        };
        let (namespace, name) = (secret.namespace(), secret.name_any());
        ctx.memos.secret_is_at(
            namespace.as_deref().unwrap_or_default(),
            &name,
            secret.resource_version().as_deref(),
        );
        let users = ctx
            .stores
            .volumes
            .refs(|v| v.metadata.namespace == namespace && v.spec.secret_name() == Some(&name));
        send(&tx, users);
    }
}

/// Nodes, of which only what decisions see is kept.
async fn nodes(ctx: Arc<Context>, tx: Trigger, listed: Arc<Notify>) {
    let api: Api<Node> = Api::all(ctx.client.clone());
    let config = watcher::Config::default().page_size(50);
    let mut stream = watcher(api, config).default_backoff().boxed();
    let changed = |name: &str| {
        let users = ctx.stores.volumes.refs(|v| {
            let attached = v.status.iter().flat_map(|s| &s.attachments);
            let last = v.status.as_ref().and_then(|s| s.last_node_name.as_deref());
            v.spec.attachments.iter().any(|a| a.node_name == name)
                || attached.into_iter().any(|a| a.node_name == name)
                || last == Some(name)
        });
        send(&tx, users);
    };
    let mut names = BTreeSet::new();
    while let Some(event) = stream.next().await {
        let nodes = &ctx.stores.nodes;
        match event {
            Ok(watcher::Event::Init) => names.clear(),
            Ok(watcher::Event::InitApply(n)) => {
                let name = n.name_any();
                if nodes.put(&name, Some(observe::node_state(&n))) {
                    changed(&name);
                }
                names.insert(name);
            }
            Ok(watcher::Event::InitDone) => {
                for gone in nodes.keep_only(&names) {
                    changed(&gone);
                }
                listed.notify_one();
            }
            Ok(watcher::Event::Apply(n)) => {
                let name = n.name_any();
                if nodes.put(&name, Some(observe::node_state(&n))) {
                    changed(&name);
                }
            }
            Ok(watcher::Event::Delete(n)) => {
                let name = n.name_any();
                if nodes.put(&name, None) {
                    changed(&name);
                }
            }
            Err(e) => tracing::warn!(error = %e, "watch of Nodes"),
        }
    }
}

async fn reconcile(object: Arc<Guard>, ctx: Arc<Context>) -> Result<Action, EffectError> {
    let volume = match &object.0 {
        Ok(volume) => volume,
        Err(invalid) => {
            tracing::warn!(volume = %object.name_any(), error = %invalid, "the object cannot be read; it is left alone until it changes");
            return Ok(Action::await_change());
        }
    };
    let begun = std::time::Instant::now();
    ctx.metrics.reconciles.inc();
    let result = tokio::time::timeout(DEADLINE, effects::run(&ctx, volume)).await;
    ctx.metrics.duration.observe(begun.elapsed().as_secs_f64());
    let again = match result {
        Ok(again) => again?,
        Err(_) => Again::Backoff,
    };
    let uid = volume.uid().unwrap_or_default();
    let wait = match again {
        Again::Seldom => {
            ctx.retries.reset(&uid);
            retry::jittered(retry::KEY_CHECK)
        }
        Again::Long => {
            ctx.retries.reset(&uid);
            retry::long()
        }
        Again::Backoff => ctx.retries.next(&uid),
    };
    // A second copy that is due already is one that waits for something else.
    let due = ctx.copies.wait(&uid).filter(|due| !due.is_zero());
    Ok(Action::requeue(due.map_or(wait, |due| wait.min(due))))
}

fn error_policy(object: Arc<Guard>, error: &EffectError, ctx: Arc<Context>) -> Action {
    let labels = ErrorLabels {
        error: error.category(),
    };
    ctx.metrics.errors.get_or_create(&labels).inc();
    match error {
        EffectError::Conflict => Action::requeue(AFTER_CONFLICT),
        _ => Action::requeue(ctx.retries.next(&object.uid().unwrap_or_default())),
    }
}
