//! The task of one volume: run, report, wait, again. Runs of one volume never overlap.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::{Duration, Instant},
};

use cryptvol_crds::{
    NodeVolume,
    conditions::Reason,
    names,
    v1alpha1::{Desired, NodeVolumeStatus, Stage},
};
use k8s_openapi::jiff::Timestamp;
use rand::RngExt;
use tokio::{sync::watch, task::JoinHandle};
use tracing::{Instrument, info, info_span, warn};

use super::{Context, api::Object, pace::Pace};
use crate::{
    host::{Chap, Passphrase, StepError},
    node_check::{Fitness, Leave},
    release::Asker,
    volume::{
        execute::{Executor, Office, Outcome, Receipt},
        memory::{Hand, Memory},
        plan::{Stop, is_break},
        report,
        wanted::Wanted,
    },
    worker::node::Workers,
};

/// Longest pause of a volume with several paths: nobody else brings one back that failed, and I/O without a path waits for it.
/// As often as multipathd looks by default.
const PATHS: Duration = Duration::from_secs(5);

/// How long what an array told of further portals counts before it is asked again.
const RENEW: Duration = Duration::from_secs(600);

/// Follows one NodeVolume until its sender is gone or the agent is to end. `before` is the task of an earlier object of
/// the same name.
pub async fn follow(
    cx: Rc<Context>,
    mut objects: watch::Receiver<Rc<NodeVolume>>,
    before: Option<JoinHandle<()>>,
) {
    if let Some(before) = before {
        let _ = before.await;
    }
    let first = Rc::clone(&objects.borrow_and_update());
    let span = info_span!("volume", name = names::display(&*first));
    let volume = Volume {
        object: Object::new(&cx, &first),
        state: RefCell::new(State {
            status: first.status.clone().unwrap_or_default(),
            spec: first,
            in_doubt: false,
        }),
        // Spread, so that the volumes of a node do not come all at once.
        proof_due: Cell::new(
            Instant::now()
                + cx.proof_interval
                    .mul_f64(0.5 + 0.5 * rand::rng().random::<f64>()),
        ),
        discover_at: Cell::new(Instant::now()),
        paths_told: Cell::new(None),
        cx,
    };
    volume.live(&mut objects).instrument(span).await;
}

/// One volume of this node.
struct Volume {
    cx: Rc<Context>,
    object: Object,
    state: RefCell<State>,
    /// When the next proof is due.
    proof_due: Cell<Instant>,
    /// When the array is to be asked for further portals.
    discover_at: Cell<Instant>,
    /// When other paths than before were last written.
    paths_told: Cell<Option<Instant>>,
}

struct State {
    /// The object as last seen, for its spec.
    spec: Rc<NodeVolume>,
    /// The status as this agent last wrote or read it. It alone writes it.
    status: NodeVolumeStatus,
    /// A write was not acknowledged, or the watch shows another status: the API server must be asked before anything
    /// is decided.
    in_doubt: bool,
}

impl Volume {
    async fn live(&self, objects: &mut watch::Receiver<Rc<NodeVolume>>) {
        let mut hand = Hand::default();
        let mut pace = Pace::default();
        let mut asking = Pace::default();
        let mut fitness = self.cx.fitness.clone();
        loop {
            let end = self.turn(&mut hand, &mut asking).await;
            let mut pause = pace.next(end);
            if end.is_ok() && self.state.borrow().status.link.is_some() {
                let proof = self.proof_due.get();
                pause = pause.min(proof.saturating_duration_since(Instant::now()));
            }
            if !self.state.borrow().status.paths.is_empty() {
                pause = pause.min(PATHS);
            }
            let waited = self.wait(objects, &mut fitness, pause).await;
            match waited {
                Waited::Ended => return,
                Waited::Changed => {
                    pace.forget();
                    asking.forget();
                    self.discover_at.set(Instant::now());
                }
                Waited::Over => {}
            }
        }
    }

    /// Waits until there is a reason to look again.
    async fn wait(
        &self,
        objects: &mut watch::Receiver<Rc<NodeVolume>>,
        fitness: &mut watch::Receiver<Fitness>,
        pause: Duration,
    ) -> Waited {
        let over = tokio::time::sleep(pause);
        tokio::pin!(over);
        loop {
            tokio::select! {
                biased;
                () = self.cx.stop.cancelled() => return Waited::Ended,
                changed = objects.changed() => {
                    if changed.is_err() {
                        return Waited::Ended;
                    }
                    let object = Rc::clone(&objects.borrow_and_update());
                    if self.takes(object) {
                        return Waited::Changed;
                    }
                }
                changed = fitness.changed() => {
                    if changed.is_ok() && !fitness.borrow_and_update().is_unknown() {
                        return Waited::Changed;
                    }
                }
                () = &mut over => return Waited::Over,
            }
        }
    }

    /// Takes a newer object and says whether it gives a reason to act.
    fn takes(&self, object: Rc<NodeVolume>) -> bool {
        let mut state = self.state.borrow_mut();
        let meant = |v: &NodeVolume| {
            (
                v.metadata.generation,
                v.metadata.deletion_timestamp.is_some(),
            )
        };
        let changed = meant(&object) != meant(&state.spec);
        // Own writes come back this way, late ones too; only the API server knows which is the last.
        state.in_doubt |= object.status.clone().unwrap_or_default() != state.status;
        state.spec = object;
        changed || state.in_doubt
    }

    /// One run and its report. Gives back how it ended.
    async fn turn(&self, hand: &mut Hand, asking: &mut Pace) -> Result<(), Reason> {
        if self.state.borrow().in_doubt
            && let Err(error) = self.refresh().await
        {
            warn!(%error, "the NodeVolume cannot be read");
            return Err(error.reason());
        }
        let spec = Rc::clone(&self.state.borrow().spec);
        let mut wanted = match Wanted::read(&spec) {
            Ok(wanted) => wanted,
            Err(invalid) => {
                let stop = Stop {
                    stage: Stage::Pending,
                    reason: Reason::StepFailed,
                    message: invalid.to_string(),
                };
                self.refuse(&spec, &stop).await;
                // Only another spec helps.
                return Ok(());
            }
        };
        wanted.unlock_memory_kib = self.cx.pool.unlock_memory_mib() << 10;
        wanted.prove = self.proof_due.get() <= Instant::now();
        wanted.discover = wanted.discovery.is_some() && self.discover_at.get() <= Instant::now();
        wanted.no_path_timeout = self.cx.no_path_timeout;
        wanted.give_up = hand
            .cut_off
            .is_some_and(|since| since.elapsed() >= wanted.no_path_timeout);
        wanted.lun_wanted_by_another = self.cx.lun_wanted_by_another(&spec);
        if let Some(stop) = self.unfit(&wanted) {
            // It is woken when the check has spoken.
            let Some(stop) = stop else {
                return Err(Reason::Waiting);
            };
            self.refuse(&spec, &stop).await;
            return Err(stop.reason);
        }
        let mut memory = Memory::read(&self.state.borrow().status);
        let name = names::display(&*spec);
        let target = wanted.query.source.shared().map(str::to_owned);
        let node = Workers::new(Rc::clone(&self.cx.pool), name, target);
        let (cx, stop) = (&self.cx, &self.cx.stop);
        let executor = Executor {
            node: &node,
            office: self,
            locks: &cx.locks,
            fail_point: cx.fail_point.as_ref(),
            on_step: &|step, took, error| {
                cx.metrics.step(step.name(), took);
                if let Some(error) = error {
                    warn!(step = step.name(), reason = %error.reason(), "{error}");
                }
            },
            ending: &|| stop.is_cancelled(),
        };
        let outcome = executor.run(&wanted, &mut memory, hand).await;
        self.cx.metrics.workers(self.cx.pool.workers());
        if stop.is_cancelled() && outcome.end.is_err() {
            return Err(Reason::Waiting); // cut short: nothing to report
        }
        let broken = outcome.end.as_ref().err();
        let broken = broken.is_some_and(is_break);
        if wanted.prove && (outcome.proven || broken) {
            self.cx.metrics.proof(outcome.proven);
        }
        if outcome.proven || (outcome.end.is_ok() && wanted.prove) {
            self.proof_due.set(Instant::now() + self.cx.proof_interval);
        }
        if let Some(asked) = &outcome.discovery {
            let pause = match asked {
                Ok(_) => {
                    asking.forget();
                    RENEW
                }
                Err(e) => asking.next(Err(e.reason())),
            };
            self.discover_at.set(Instant::now() + pause);
        }
        self.report(&wanted, &outcome).await
    }

    /// Whether the node check forbids to begin: `Some(None)` while it has not spoken yet. What is attached stays so, and
    /// what is to go is let go, whatever the check says.
    fn unfit(&self, wanted: &Wanted) -> Option<Option<Stop>> {
        if wanted.desired != Desired::Attached {
            return None;
        }
        let attached = self.state.borrow().status.link.is_some();
        let fitness = self.cx.fitness.borrow();
        match fitness.leave(attached, self.cx.exclude_from_multipathd) {
            Leave::Given => None,
            Leave::NotYet => Some(None),
            Leave::Refused { lacks } => Some(Some(Stop {
                stage: Stage::Pending,
                reason: Reason::NodeUnfit,
                message: lacks.to_owned(),
            })),
        }
    }

    async fn report(&self, wanted: &Wanted, outcome: &Outcome) -> Result<(), Reason> {
        let old = self.state.borrow().status.clone();
        let now = Timestamp::now();
        let new = report::after(&old, wanted, outcome, &self.cx.node_name, now);
        let end = outcome.end.as_ref().map(drop).map_err(|stop| stop.reason);
        if let Err(reason) = end {
            self.cx.metrics.error(reason);
        }
        if old.stage != new.stage || old.error != new.error {
            match &outcome.end {
                Ok(_) => info!(stage = ?new.stage, "as wanted"),
                Err(stop) => warn!(stage = ?stop.stage, reason = %stop.reason, "{}", stop.message),
            }
        }
        match self.save(&old, new).await {
            Ok(()) => end,
            // The report must get through: soon again.
            Err(error) => Err(end
                .err()
                .filter(|r| r.is_transient())
                .unwrap_or(error.reason())),
        }
    }

    async fn refuse(&self, spec: &NodeVolume, stop: &Stop) {
        let old = self.state.borrow().status.clone();
        let generation = spec.metadata.generation.unwrap_or_default();
        let new = report::refused(&old, generation, stop, Timestamp::now());
        let _ = self.save(&old, new).await;
    }

    /// Writes the status if it changed.
    async fn save(&self, old: &NodeVolumeStatus, new: NodeVolumeStatus) -> Result<(), StepError> {
        let told = self.paths_told.get();
        let early = told.is_some_and(|at| at.elapsed() < self.cx.path_status_interval);
        if *old == new || (early && report::only_paths_changed(old, &new)) {
            return Ok(());
        }
        self.write(&new, None).await?;
        if old.paths != new.paths {
            self.paths_told.set(Some(Instant::now()));
        }
        Ok(())
    }

    async fn write(&self, new: &NodeVolumeStatus, version: Option<&str>) -> Result<(), StepError> {
        match self.object.write(new, version).await {
            Ok(volume) => {
                let mut state = self.state.borrow_mut();
                state.status = volume.status.unwrap_or_default();
                Ok(())
            }
            Err(error) => {
                self.state.borrow_mut().in_doubt = true;
                warn!(%error, "status");
                Err(error)
            }
        }
    }

    /// Asks the API server what it really holds.
    async fn refresh(&self) -> Result<NodeVolume, StepError> {
        let volume = self.object.read().await?;
        let mut state = self.state.borrow_mut();
        state.status = volume.status.clone().unwrap_or_default();
        state.spec = Rc::new(volume.clone());
        state.in_doubt = false;
        Ok(volume)
    }

    fn asker(&self) -> Asker {
        let state = self.state.borrow();
        let meta = &state.spec.metadata;
        Asker {
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
        }
    }
}

enum Waited {
    Changed,
    Over,
    Ended,
}

impl Office for Volume {
    async fn passphrase(&self) -> Result<Passphrase, StepError> {
        self.cx.release.passphrase(&self.asker()).await
    }

    async fn next_passphrase(&self) -> Result<Passphrase, StepError> {
        self.cx.release.next_passphrase(&self.asker()).await
    }

    async fn chap(&self) -> Result<Chap, StepError> {
        self.cx.release.chap(&self.asker()).await
    }

    async fn discovery_chap(&self) -> Result<Chap, StepError> {
        self.cx.release.discovery_chap(&self.asker()).await
    }

    async fn record(&self, receipt: Receipt) -> Result<Memory, StepError> {
        let mut version = None;
        if let Receipt::PermitSpent { id } = &receipt {
            // The permit counts as the API server has it now, and is spent on the condition that nothing changed since.
            let now = self.refresh().await?;
            let issued = now.spec.format_permit.as_ref().is_some_and(|p| p.id == *id);
            let spent = now
                .status
                .iter()
                .any(|s| s.permit.as_ref().is_some_and(|p| p.id == *id));
            if !issued
                || spent
                || now.spec.desired != Desired::Attached
                || now.metadata.deletion_timestamp.is_some()
            {
                return Err(StepError::new(
                    Reason::StepFailed,
                    "the format permit was withdrawn meanwhile",
                ));
            }
            version = now.metadata.resource_version;
        }
        let old = self.state.borrow().status.clone();
        let new = report::with_receipt(&old, &receipt, &self.cx.node_name, Timestamp::now());
        self.write(&new, version.as_deref()).await?;
        Ok(Memory::read(&self.state.borrow().status))
    }
}
