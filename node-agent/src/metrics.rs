//! What the agent counts. Labels are words of small sets, never names of volumes.

use std::time::Duration;

use cryptvol_crds::{
    conditions::Reason,
    orphans::OrphanKind,
    paths::{PathsHealth, is_standby},
    v1alpha1::{PathStatus, Stage},
};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};

/// Label `step`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StepLabel {
    step: &'static str,
}

/// Label `reason`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

/// Label `result`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

/// Label `stage`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StageLabel {
    stage: String,
}

/// Label `state`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

/// Label `kind`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

/// All metrics of the agent. Clones are one.
#[derive(Clone)]
pub struct Metrics {
    steps: Family<StepLabel, Histogram, fn() -> Histogram>,
    errors: Family<ReasonLabel, Counter>,
    volumes: Family<StageLabel, Gauge>,
    stuck: Gauge,
    idle: Gauge,
    orphans: Family<KindLabel, Gauge>,
    status_writes: Counter,
    proofs: Family<ResultLabel, Counter>,
    proofs_broken: Gauge,
    paths: Family<StateLabel, Gauge>,
    multipath_volumes: Family<StateLabel, Gauge>,
}

impl Metrics {
    /// Makes the metrics and registers them.
    pub fn new(registry: &mut Registry) -> Self {
        // 1 ms to 65 s.
        let buckets: fn() -> Histogram = || Histogram::new(exponential_buckets(0.001, 2.0, 17));
        let metrics = Self {
            steps: Family::new_with_constructor(buckets),
            errors: Family::default(),
            volumes: Family::default(),
            stuck: Gauge::default(),
            idle: Gauge::default(),
            orphans: Family::default(),
            status_writes: Counter::default(),
            proofs: Family::default(),
            proofs_broken: Gauge::default(),
            paths: Family::default(),
            multipath_volumes: Family::default(),
        };
        let registry = registry.sub_registry_with_prefix("cryptvol_node");
        registry.register_with_unit(
            "step",
            "Time that steps on volumes took",
            Unit::Seconds,
            metrics.steps.clone(),
        );
        registry.register(
            "errors",
            "Ends of runs with an error, by reason",
            metrics.errors.clone(),
        );
        registry.register(
            "volumes",
            "Volumes of this node, by stage",
            metrics.volumes.clone(),
        );
        registry.register(
            "workers_stuck",
            "Worker processes that were killed and hang in the kernel",
            metrics.stuck.clone(),
        );
        registry.register(
            "workers_idle",
            "Worker processes that wait for work",
            metrics.idle.clone(),
        );
        registry.register(
            "orphans",
            "What of ours is on the node and belongs to no NodeVolume, by kind",
            metrics.orphans.clone(),
        );
        registry.register(
            "status_writes",
            "Writes to the API server",
            metrics.status_writes.clone(),
        );
        registry.register(
            "proofs",
            "Proofs of attached volumes, by whether they hold",
            metrics.proofs.clone(),
        );
        registry.register(
            "proofs_broken",
            "Volumes of which the last proof does not hold",
            metrics.proofs_broken.clone(),
        );
        registry.register(
            "paths",
            "Paths of the volumes with several, by whether I/O goes that way",
            metrics.paths.clone(),
        );
        registry.register(
            "multipath_volumes",
            "Volumes with several paths: all work, some, none, or none for so long that I/O fails",
            metrics.multipath_volumes.clone(),
        );
        metrics.paths([].into_iter());
        metrics.orphans([].into_iter());
        metrics
    }

    /// A proof was made.
    pub fn proof(&self, holds: bool) {
        let label = ResultLabel {
            result: if holds { "holds" } else { "broken" },
        };
        self.proofs.get_or_create(&label).inc();
    }

    /// Volumes of which the last proof does not hold.
    pub fn proofs_broken(&self, count: usize) {
        self.proofs_broken
            .set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// The paths of each volume, and whether its I/O fails for want of one. Every state is there, with 0 too: what recovered shows.
    pub fn paths<'a>(&self, volumes: impl Iterator<Item = (&'a [PathStatus], bool)>) {
        let (mut up, mut standby, mut down) = (0, 0, 0);
        let mut health = Vec::new();
        for (paths, io_fails) in volumes {
            let works = paths.iter().filter(|p| p.up).count();
            up += works;
            let waiting = paths.iter().filter(|p| is_standby(p)).count();
            standby += waiting;
            down += paths.len() - works - waiting;
            health.extend(PathsHealth::of(paths, io_fails));
        }
        let set = |family: &Family<_, Gauge>, state, count: usize| {
            let gauge = family.get_or_create(&StateLabel { state });
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        };
        set(&self.paths, "up", up);
        set(&self.paths, "standby", standby);
        set(&self.paths, "down", down);
        for state in PathsHealth::ALL {
            let count = health.iter().filter(|h| **h == state).count();
            set(&self.multipath_volumes, state.as_str(), count);
        }
    }

    /// A step ended.
    pub fn step(&self, name: &'static str, took: Duration) {
        self.steps
            .get_or_create(&StepLabel { step: name })
            .observe(took.as_secs_f64());
    }

    /// A run ended with an error.
    pub fn error(&self, reason: Reason) {
        let label = ReasonLabel {
            reason: reason.as_str(),
        };
        self.errors.get_or_create(&label).inc();
    }

    /// How many volumes are at which stage.
    pub fn volumes(&self, stages: impl Iterator<Item = Stage>) {
        let mut counts = std::collections::BTreeMap::new();
        for stage in stages {
            *counts.entry(stage).or_insert(0) += 1;
        }
        self.volumes.clear();
        for (stage, count) in counts {
            let label = StageLabel {
                stage: format!("{stage:?}"),
            };
            self.volumes.get_or_create(&label).set(count);
        }
    }

    /// State of the workers.
    pub fn workers(&self, workers: crate::worker::pool::Workers) {
        self.stuck
            .set(i64::try_from(workers.stuck).unwrap_or(i64::MAX));
        self.idle
            .set(i64::try_from(workers.idle).unwrap_or(i64::MAX));
    }

    /// What belongs to no NodeVolume, by kind. Every kind is there, with 0 too.
    pub fn orphans(&self, kinds: impl Iterator<Item = OrphanKind>) {
        let kinds: Vec<_> = kinds.collect();
        for kind in OrphanKind::ALL {
            let count = kinds.iter().filter(|k| **k == kind).count();
            let label = KindLabel {
                kind: kind.as_str(),
            };
            self.orphans
                .get_or_create(&label)
                .set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// The API server acknowledged a write.
    pub fn status_write(&self) {
        self.status_writes.inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_of_paths_is_shown_and_what_recovered_goes_back_to_nothing() {
        let mut registry = Registry::default();
        let metrics = Metrics::new(&mut registry);
        let text = || {
            let mut text = String::new();
            prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
            text
        };
        let shows = |lines: [&str; 7]| {
            let text = text();
            for line in lines {
                let line = format!("cryptvol_node_{line}");
                assert!(text.lines().any(|l| l == line), "{line} in {text}");
            }
        };
        let volume = |up: &[bool]| -> Vec<_> {
            let path = |up: &bool| PathStatus {
                up: *up,
                ..PathStatus::default()
            };
            up.iter().map(path).collect()
        };
        let none = [
            "paths{state=\"up\"} 0",
            "paths{state=\"standby\"} 0",
            "paths{state=\"down\"} 0",
            "multipath_volumes{state=\"healthy\"} 0",
            "multipath_volumes{state=\"degraded\"} 0",
            "multipath_volumes{state=\"lost\"} 0",
            "multipath_volumes{state=\"failing\"} 0",
        ];
        shows(none);
        let standby = vec![PathStatus {
            access: Some("standby".into()),
            ..PathStatus::default()
        }];
        let volumes = [
            volume(&[true, true]),
            volume(&[false, true, true]),
            volume(&[false, false]),
            volume(&[false, false]),
            volume(&[]),
            [volume(&[true]), standby].concat(),
        ];
        metrics.paths(volumes.iter().enumerate().map(|(n, v)| (&v[..], n == 3)));
        shows([
            "paths{state=\"up\"} 5",
            "paths{state=\"standby\"} 1",
            "paths{state=\"down\"} 5",
            "multipath_volumes{state=\"healthy\"} 2",
            "multipath_volumes{state=\"degraded\"} 1",
            "multipath_volumes{state=\"lost\"} 1",
            "multipath_volumes{state=\"failing\"} 1",
        ]);
        metrics.paths([].into_iter());
        shows(none);
    }
}
