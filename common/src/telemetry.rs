//! Logs: one subscriber for every binary, on standard error, with a filter that can be changed while the process runs.
//!
//! Whatever the filter says, crates that are not ours stay at `info`: HTTP and TLS crates print whole requests at finer
//! levels, and a request may hold a token or a passphrase.

use std::sync::Arc;

use tracing::{Metadata, level_filters::LevelFilter};
use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    filter::{FilterExt, filter_fn},
    layer::SubscriberExt,
    reload,
    util::SubscriberInitExt,
};

/// Form of the log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Flags of every binary that logs.
#[derive(Clone, Debug, clap::Args)]
pub struct LogArgs {
    /// Form of the log lines on standard error.
    #[arg(
        long,
        env = "CRYPTVOL_LOG_FORMAT",
        value_enum,
        default_value = "text",
        global = true
    )]
    pub log_format: LogFormat,
    /// Log filter, for example `info` or `info,cryptvol_operator=debug`. Crates of others stay at info at most.
    #[arg(long, env = "CRYPTVOL_LOG", default_value = "info", global = true)]
    pub log: String,
}

/// Why logging could not be set up or changed.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter does not parse.
    #[error("log filter {0:?} cannot be read: write for example info,cryptvol_operator=debug")]
    Filter(String),
    /// A subscriber is there already.
    #[error("logging was set up twice")]
    Twice,
    /// The subscriber is gone.
    #[error("the log filter cannot be changed any more")]
    Gone,
}

/// Changes the filter of the running process.
#[derive(Clone)]
pub struct LogHandle(Arc<dyn Fn(EnvFilter) -> Result<(), TelemetryError> + Send + Sync>);

impl LogHandle {
    /// Puts another filter in force.
    ///
    /// # Errors
    /// When the filter does not parse; the old one stays in force then.
    pub fn set(&self, filter: &str) -> Result<(), TelemetryError> {
        (self.0)(parse(filter)?)
    }

    /// A handle that changes nothing, for tests.
    pub fn detached() -> Self {
        Self(Arc::new(|_| Ok(())))
    }
}

/// Installs the subscriber of the process.
///
/// # Errors
/// When the filter does not parse or a subscriber is there already.
pub fn init(args: &LogArgs) -> Result<LogHandle, TelemetryError> {
    let (filter, handle) = reload::Layer::<EnvFilter, Registry>::new(parse(&args.log)?);
    let filter = filter.and(filter_fn(capped));
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let layer: Box<dyn Layer<Registry> + Send + Sync> = match args.log_format {
        LogFormat::Text => layer
            .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
            .with_filter(filter)
            .boxed(),
        LogFormat::Json => layer.json().flatten_event(true).with_filter(filter).boxed(),
    };
    tracing_subscriber::registry()
        .with(layer)
        .try_init()
        .map_err(|_| TelemetryError::Twice)?;
    Ok(LogHandle(Arc::new(move |f| {
        handle.reload(f).map_err(|_| TelemetryError::Gone)
    })))
}

fn parse(filter: &str) -> Result<EnvFilter, TelemetryError> {
    EnvFilter::builder()
        .with_default_directive(LevelFilter::INFO.into())
        .parse(filter)
        .map_err(|_| TelemetryError::Filter(filter.to_owned()))
}

/// Ours at any level, all others at `info` at most.
fn capped(meta: &Metadata<'_>) -> bool {
    meta.target().starts_with("cryptvol") || *meta.level() <= tracing::Level::INFO
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Buffer {
        fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(buf);
            Ok(buf.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn crates_of_others_stay_at_info_whatever_the_filter_says() {
        let out = Buffer::default();
        let writer = out.clone();
        let (filter, handle) =
            reload::Layer::<EnvFilter, Registry>::new(parse("trace,reqwest=trace").unwrap());
        let layer = tracing_subscriber::fmt::layer()
            .with_writer(move || writer.clone())
            .with_filter(filter.and(filter_fn(capped)));
        let subscriber = tracing_subscriber::registry().with(layer);
        tracing::subscriber::with_default(subscriber, || {
            tracing::debug!(target: "reqwest::connect", "authorization: hunter2");
            tracing::trace!(target: "kube_client::client", "hunter2");
            tracing::debug!(target: "cryptvol_operator", "ours");
            tracing::info!(target: "kube", "theirs");
            handle.reload(parse("warn").unwrap()).unwrap();
            tracing::info!(target: "cryptvol_operator", "not any more");
        });
        let text = String::from_utf8(out.0.lock().unwrap().clone()).unwrap();
        assert!(!text.contains("hunter2"), "{text}");
        assert!(text.contains("ours") && text.contains("theirs"), "{text}");
        assert!(!text.contains("not any more"), "{text}");
    }

    #[test]
    fn a_bad_filter_is_an_error() {
        assert!(matches!(
            parse("cryptvol=loud"),
            Err(TelemetryError::Filter(_))
        ));
    }
}
