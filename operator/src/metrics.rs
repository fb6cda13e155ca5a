//! Metrics. Labels are categories, never names of objects.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

/// Labels of a key release.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReleaseLabels {
    /// What for; empty for a request that is not of the protocol or came too often to be read.
    pub purpose: &'static str,
    /// `Released`, or the reason of the refusal.
    pub result: &'static str,
}

/// Labels of a failed pass.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ErrorLabels {
    /// Category of the error.
    pub error: &'static str,
}

/// Labels of second copies of headers.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CopyLabels {
    /// What the last look found.
    pub state: &'static str,
}

/// All metrics of the operator.
#[derive(Clone)]
pub struct Metrics {
    /// Passes over an object.
    pub reconciles: Counter,
    /// Passes that ended with an error.
    pub errors: Family<ErrorLabels, Counter>,
    /// Duration of a pass in seconds.
    pub duration: Histogram,
    /// Writes to the API server, the lease not counted.
    pub writes: Counter,
    /// Whether this replica leads.
    pub leading: Gauge,
    /// Key releases.
    pub releases: Family<ReleaseLabels, Counter>,
    /// Duration of a key release in seconds.
    pub release_duration: Histogram,
    /// Volumes with a second copy of their header in the key manager.
    pub header_copies: Family<CopyLabels, Gauge>,
    /// When the key manager last showed one of them, in seconds since 1970.
    pub header_copies_checked: Gauge,
}

impl Metrics {
    /// Makes the metrics and registers them.
    pub fn new(registry: &mut Registry) -> Self {
        let seconds = || Histogram::new([0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0]);
        let metrics = Self {
            reconciles: Counter::default(),
            errors: Family::default(),
            duration: seconds(),
            writes: Counter::default(),
            leading: Gauge::default(),
            releases: Family::default(),
            release_duration: seconds(),
            header_copies: Family::default(),
            header_copies_checked: Gauge::default(),
        };
        let r = registry.sub_registry_with_prefix("cryptvol_operator");
        r.register(
            "reconciles",
            "Passes over an object",
            metrics.reconciles.clone(),
        );
        r.register(
            "reconcile_errors",
            "Passes that ended with an error",
            metrics.errors.clone(),
        );
        r.register(
            "reconcile_duration_seconds",
            "Duration of a pass",
            metrics.duration.clone(),
        );
        r.register(
            "api_writes",
            "Writes to the API server, the lease not counted",
            metrics.writes.clone(),
        );
        r.register(
            "leading",
            "1 where this replica reconciles",
            metrics.leading.clone(),
        );
        r.register(
            "key_releases",
            "Answered requests for a key",
            metrics.releases.clone(),
        );
        r.register(
            "key_release_duration_seconds",
            "Duration of a key release",
            metrics.release_duration.clone(),
        );
        r.register(
            "header_copies",
            "Volumes whose header lies apart from their disk, by what the last look at its second copy in the key manager found",
            metrics.header_copies.clone(),
        );
        r.register(
            "header_copies_checked_timestamp_seconds",
            "When a look at a second copy was last answered",
            metrics.header_copies_checked.clone(),
        );
        metrics
    }
}
