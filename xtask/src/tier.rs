//! The tiers of tests, from fast to real.

use std::time::Duration;

/// What is real in a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Tier {
    /// Decisions, parsers, the state machine against a simulated host; lints, generated files, the chart.
    Pure,
    /// A real API server, the operator, the identity service.
    Api,
    /// A real kernel, a real array, the agent.
    Node,
    /// All of it, installed by Helm.
    Cluster,
}

impl Tier {
    /// In the order in which they run.
    pub const ALL: [Self; 4] = [Self::Pure, Self::Api, Self::Node, Self::Cluster];

    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pure => "pure",
            Self::Api => "api",
            Self::Node => "node",
            Self::Cluster => "cluster",
        }
    }

    /// Tests at the same time in one test program. A node is one CPU and a control plane 300 MB.
    pub fn threads(self) -> u8 {
        match self {
            Self::Pure => 4,
            Self::Api => 2,
            Self::Node | Self::Cluster => 1,
        }
    }

    /// The tier `pure`, or one test program of another tier, hangs when it takes longer; it is ended then, so that the others still run.
    pub fn deadline(self) -> Duration {
        Duration::from_secs(
            60 * match self {
                Self::Pure => 45,
                Self::Api | Self::Node => 20,
                Self::Cluster => 30,
            },
        )
    }
}
