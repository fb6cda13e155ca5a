//! Counters for Prometheus.

use std::time::Duration;

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, histogram::Histogram},
    registry::Registry,
};

/// Labels of a request.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    /// `identity` or `key-manager`.
    pub api: &'static str,
    /// HTTP method.
    pub method: String,
    /// HTTP status.
    pub status: u16,
}

/// Labels of a login.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct LoginLabels {
    /// `success` or `failure`.
    pub outcome: &'static str,
}

/// All counters of the service.
pub struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    logins: Family<LoginLabels, Counter>,
    duration: Histogram,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Fresh counters.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("cryptvol_identity");
        let requests = Family::default();
        registry.register(
            "requests",
            "Answered requests by API, method and status",
            requests.clone(),
        );
        let logins = Family::default();
        registry.register("logins", "Logins by outcome", logins.clone());
        let duration = Histogram::new([
            0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0,
        ]);
        registry.register(
            "request_duration_seconds",
            "Time to answer a request",
            duration.clone(),
        );
        Self {
            registry,
            requests,
            logins,
            duration,
        }
    }

    /// Counts an answered request.
    pub fn request(&self, api: &'static str, method: &str, status: u16, took: Duration) {
        self.requests
            .get_or_create(&RequestLabels {
                api,
                method: method.to_owned(),
                status,
            })
            .inc();
        self.duration.observe(took.as_secs_f64());
    }

    /// Counts a login.
    pub fn login(&self, success: bool) {
        let outcome = if success { "success" } else { "failure" };
        self.logins.get_or_create(&LoginLabels { outcome }).inc();
    }

    /// The text for Prometheus.
    pub fn text(&self) -> String {
        let mut out = String::new();
        if encode(&mut out, &self.registry).is_err() {
            out.clear();
        }
        out
    }
}
