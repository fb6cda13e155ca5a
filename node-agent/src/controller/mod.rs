//! The agent's loop: one watch on the NodeVolumes of this node, one task a volume.

mod api;
mod orphans;
mod pace;
mod task;

use std::{cell::RefCell, collections::BTreeMap, collections::BTreeSet, rc::Rc, time::Duration};

use cryptvol_common::admin::Readiness;
use cryptvol_crds::{
    NodeVolume, names,
    v1alpha1::{Desired, NodeSource},
};
use futures::StreamExt;
use kube::{
    Api, Client,
    core::DeserializeGuard,
    runtime::{
        WatchStreamExt,
        watcher::{self, Event, watcher},
    },
};
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    metrics::Metrics,
    node_check::Fitness,
    release::ReleaseClient,
    volume::{failpoint::FailPoint, locks::TargetLocks},
    worker::pool::Pool,
};

/// What all volumes of the node share.
pub struct Context {
    /// API server.
    pub client: Client,
    /// This node.
    pub node_name: String,
    /// Worker processes.
    pub pool: Rc<Pool>,
    /// Key release.
    pub release: ReleaseClient,
    /// One at a time per target.
    pub locks: TargetLocks,
    /// For crash tests.
    pub fail_point: Option<FailPoint>,
    /// Time from one proof of an attached volume to the next.
    pub proof_interval: Duration,
    /// How long I/O waits while no path of several works, before it fails.
    pub no_path_timeout: Duration,
    /// What changes in nothing but its paths is written once in so long.
    pub path_status_interval: Duration,
    /// Time from one look for what belongs to no volume to the next.
    pub orphan_interval: Duration,
    /// Counters.
    pub metrics: Metrics,
    /// For `/readyz`.
    pub readiness: Readiness,
    /// What the node check says.
    pub fitness: watch::Receiver<Fitness>,
    /// Disks are kept from the node's multipathd, which the node check sees to before the first one is brought.
    pub exclude_from_multipathd: bool,
    /// The agent is to end.
    pub stop: CancellationToken,
    /// All volumes of this node, by namespace/name.
    pub volumes: RefCell<BTreeMap<String, Rc<NodeVolume>>>,
    /// Those that this agent cannot read, by namespace/name: nobody knows what of the node is theirs.
    pub unreadable: RefCell<BTreeSet<String>>,
}

impl Context {
    /// Whether another volume of this node wants the same LUN of the same target.
    fn lun_wanted_by_another(&self, volume: &NodeVolume) -> bool {
        self.volumes.borrow().values().any(|other| {
            other.metadata.uid != volume.metadata.uid
                && other.spec.desired == Desired::Attached
                && same_lun(&other.spec.source, &volume.spec.source)
        })
    }
}

/// Whether two sources are the same LUN of the same target, whatever the way to it.
fn same_lun(a: &NodeSource, b: &NodeSource) -> bool {
    match (&a.iscsi, &b.iscsi) {
        (Some(a), Some(b)) => a.iqn == b.iqn && a.lun == b.lun,
        _ => false,
    }
}

struct Task {
    uid: Option<String>,
    send: watch::Sender<Rc<NodeVolume>>,
    handle: JoinHandle<()>,
}

/// The tasks of all volumes, by namespace/name.
#[derive(Default)]
struct Tasks {
    running: BTreeMap<String, Task>,
    /// Of objects that are gone, until their last step ended: an object made anew under the same name waits for them.
    ending: BTreeMap<String, JoinHandle<()>>,
}

impl Tasks {
    /// Lets a task end after its running step.
    fn end(&mut self, key: &str) {
        self.ending.retain(|_, handle| !handle.is_finished());
        if let Some(task) = self.running.remove(key) {
            self.ending.insert(key.to_owned(), task.handle);
        }
    }
}

/// How long running steps may take to end when the agent ends. Below the pod's grace period of 30 s.
const GRACE: Duration = Duration::from_secs(25);

/// Follows the NodeVolumes of this node until the agent is to end. Must run within a `LocalSet`.
///
/// Ending means that running steps come to their end and nothing is undone: mappings and links stay for their guests.
pub async fn run(cx: Rc<Context>) {
    let api: Api<DeserializeGuard<NodeVolume>> = Api::all(cx.client.clone());
    let config = watcher::Config::default().fields(&format!("spec.nodeName={}", cx.node_name));
    let mut events = watcher(api, config).default_backoff().boxed_local();
    let mut tasks = Tasks::default();
    let mut listed: BTreeSet<String> = BTreeSet::new();
    cx.readiness
        .not_ready("watch", "NodeVolumes are not listed yet");
    let orphans = tokio::task::spawn_local(orphans::watch(Rc::clone(&cx)));
    loop {
        let event = tokio::select! {
            () = cx.stop.cancelled() => break,
            event = events.next() => event,
        };
        match event {
            None => break,
            Some(Err(error)) => {
                cx.readiness.not_ready("watch", error.to_string());
                warn!(%error, "watch of NodeVolumes");
            }
            Some(Ok(Event::Init)) => listed.clear(),
            Some(Ok(Event::InitApply(object))) => {
                if let Some(key) = take(&cx, &mut tasks, object) {
                    listed.insert(key);
                }
            }
            Some(Ok(Event::Apply(object))) => {
                take(&cx, &mut tasks, object);
                // The first event after an error shows that the watch goes on.
                cx.readiness.ready("watch");
            }
            Some(Ok(Event::Delete(object))) => forget(&cx, &mut tasks, &key_of(&object)),
            Some(Ok(Event::InitDone)) => {
                cx.unreadable.borrow_mut().retain(|k| listed.contains(k));
                cx.readiness.ready("watch");
                let gone: Vec<_> = tasks
                    .running
                    .keys()
                    .filter(|k| !listed.contains(*k))
                    .cloned()
                    .collect();
                for key in gone {
                    forget(&cx, &mut tasks, &key);
                }
                info!(volumes = tasks.running.len(), "NodeVolumes listed");
            }
        }
    }
    orphans.abort();
    // Their senders go, so each ends after its running step.
    let running = tasks.running.into_values().map(|t| t.handle);
    let handles: Vec<_> = running.chain(tasks.ending.into_values()).collect();
    if tokio::time::timeout(GRACE, futures::future::join_all(handles))
        .await
        .is_err()
    {
        warn!("a step did not end in time; the next agent goes on from what the kernel says");
    }
}

fn key_of(object: &DeserializeGuard<NodeVolume>) -> String {
    match &object.0 {
        Ok(volume) => names::display(volume),
        Err(invalid) => format!(
            "{}/{}",
            invalid.metadata.namespace.as_deref().unwrap_or_default(),
            invalid.metadata.name.as_deref().unwrap_or_default()
        ),
    }
}

/// Hands an object to its task, which is started when there is none. Gives back its key.
fn take(
    cx: &Rc<Context>,
    tasks: &mut Tasks,
    object: DeserializeGuard<NodeVolume>,
) -> Option<String> {
    let key = key_of(&object);
    let mut volume = match object.0 {
        Ok(volume) => volume,
        Err(invalid) => {
            // Left alone as it is: what cannot be read gives no reason to attach or detach.
            warn!(volume = key, error = %invalid.error, "a NodeVolume that this agent cannot read");
            cx.unreadable.borrow_mut().insert(key.clone());
            return Some(key);
        }
    };
    // The watch is asked for this node's objects only; this is what an agent may never get wrong.
    if volume.spec.node_name != cx.node_name {
        return None;
    }
    cx.unreadable.borrow_mut().remove(&key);
    volume.metadata.managed_fields = None;
    let volume = Rc::new(volume);
    let uid = volume.metadata.uid.clone();
    cx.volumes
        .borrow_mut()
        .insert(key.clone(), Rc::clone(&volume));
    cx.count_stages();
    match tasks.running.get(&key) {
        Some(task) if task.uid == uid && !task.handle.is_finished() => {
            task.send.send_replace(volume);
        }
        _ => {
            tasks.end(&key);
            let before = tasks.ending.remove(&key);
            let (send, receive) = watch::channel(volume);
            let handle = tokio::task::spawn_local(task::follow(Rc::clone(cx), receive, before));
            let task = Task { uid, send, handle };
            tasks.running.insert(key.clone(), task);
        }
    }
    Some(key)
}

fn forget(cx: &Rc<Context>, tasks: &mut Tasks, key: &str) {
    cx.unreadable.borrow_mut().remove(key);
    cx.volumes.borrow_mut().remove(key);
    cx.count_stages();
    tasks.end(key);
}

impl Context {
    fn count_stages(&self) {
        let volumes = self.volumes.borrow();
        let stages = volumes
            .values()
            .map(|v| v.status.as_ref().map(|s| s.stage).unwrap_or_default());
        self.metrics.volumes(stages);
        let broken = |v: &&Rc<NodeVolume>| {
            let proof = v.status.as_ref().and_then(|s| s.proof.as_ref());
            proof.is_some_and(|p| !p.holds)
        };
        self.metrics
            .proofs_broken(volumes.values().filter(broken).count());
        let paths = volumes
            .values()
            .filter_map(|v| v.status.as_ref())
            .map(|s| (&s.paths[..], s.io_fails));
        self.metrics.paths(paths);
        self.metrics.workers(self.pool.workers());
    }
}
