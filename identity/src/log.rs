//! Logs on standard error. Three things hold whatever the options say: the audit trail is written, as a JSON
//! object a line, and crates that are not ours stay at `info`, because at finer levels HTTP and TLS crates print
//! what they carry.

use tracing::{Level, Metadata, level_filters::LevelFilter};
use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    filter::{FilterExt, filter_fn},
    layer::SubscriberExt,
    util::{SubscriberInitExt, TryInitError},
};

use crate::cli::LogFormat;

/// Target of the audit trail.
pub const AUDIT: &str = "audit";

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter does not parse.
    #[error("--log {0:?} cannot be read: write for example info,cryptvol_identity=debug")]
    Filter(String),
    /// A subscriber is there already.
    #[error("logging was set up twice: {0}")]
    Twice(#[from] TryInitError),
}

/// Installs the subscriber of the process.
///
/// # Errors
/// [`LogError`].
pub fn init(filter: &str, format: LogFormat) -> Result<(), LogError> {
    let wanted = EnvFilter::builder()
        .with_default_directive(LevelFilter::INFO.into())
        .parse(filter)
        .map_err(|_| LogError::Filter(filter.to_owned()))?;
    let filter = wanted
        .and(filter_fn(capped))
        .and(filter_fn(|meta| !is_audit(meta)));
    let audit = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .json()
        .flatten_event(true)
        .with_filter(filter_fn(is_audit));
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let layer: Box<dyn Layer<Registry> + Send + Sync> = match format {
        LogFormat::Json => layer.json().flatten_event(true).with_filter(filter).boxed(),
        LogFormat::Text => layer
            .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
            .with_filter(filter)
            .boxed(),
    };
    Ok(tracing_subscriber::registry()
        .with(layer)
        .with(audit)
        .try_init()?)
}

fn is_audit(meta: &Metadata<'_>) -> bool {
    meta.target() == AUDIT
}

fn capped(meta: &Metadata<'_>) -> bool {
    meta.target().starts_with("cryptvol") || *meta.level() <= Level::INFO
}
