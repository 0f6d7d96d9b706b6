//! Setting logs and metrics up, once per process.

use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusHandle;
use systemd_journal_logger::connected_to_journal;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;
use tracing::Subscriber;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

use super::journald::{self, JournalQueue};
use super::json::JsonLines;
use super::record::{RecordLayer, Sink};
use super::{exporter, parse_directives};
use crate::config::{LogConfig, LogFormat};

/// How long the end of a process waits for the journal: if it is stalled, leaving matters more.
const FLUSH_DEADLINE: Duration = Duration::from_secs(2);

/// Why logs or metrics could not be set up. Nothing is logged then.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The log level isn't a list of directives. [`Config`](crate::config::Config) lets none such through.
    #[error("the log level {0}")]
    Level(String),
    /// The journal was asked for and can't be reached.
    #[error("the journal can't be reached; set LOG_FORMAT to json or text")]
    Journal(#[source] io::Error),
    /// This process logs already.
    #[error("logging is already set up in this process")]
    LogsInstalled(#[source] tracing::subscriber::SetGlobalDefaultError),
    /// This process has a metrics recorder already.
    #[error("metrics could not be set up in this process")]
    Metrics(#[source] metrics_exporter_prometheus::BuildError),
}

/// The process's logs and metrics. Keep it until the end: dropping it waits up to two seconds for the last records to
/// reach the journal.
pub struct Telemetry {
    metrics: PrometheusHandle,
    journal: Option<Arc<JournalQueue>>,
}

/// Starts logging and metrics for the whole process, under the name `service` in each record.
///
/// With [`LogFormat::Auto`], a journal that stderr leads to but whose socket can't be reached is no error: JSON goes
/// to stderr instead.
///
/// # Errors
///
/// See [`TelemetryError`].
pub fn init(service: &'static str, log: &LogConfig) -> Result<Telemetry, TelemetryError> {
    let filter = parse_directives(&log.level).map_err(TelemetryError::Level)?;
    let (layer, journal) = output(service, log.format)?;
    let subscriber = tracing_subscriber::registry().with(layer).with(filter);
    tracing::subscriber::set_global_default(subscriber).map_err(TelemetryError::LogsInstalled)?;
    let metrics = exporter::install().map_err(TelemetryError::Metrics)?;
    Ok(Telemetry { metrics, journal })
}

type BoxedLayer<S> = Box<dyn Layer<S> + Send + Sync>;

fn output<S>(
    service: &'static str,
    format: LogFormat,
) -> Result<(BoxedLayer<S>, Option<Arc<JournalQueue>>), TelemetryError>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    match format {
        LogFormat::Auto if connected_to_journal() => Ok(match journald::connect(service) {
            Ok(queue) => journal(queue),
            Err(_unreachable) => (json(service), None),
        }),
        LogFormat::Auto if io::stderr().is_terminal() => Ok((text(), None)),
        LogFormat::Auto | LogFormat::Json => Ok((json(service), None)),
        LogFormat::Text => Ok((text(), None)),
        LogFormat::Journald => Ok(journal(
            journald::connect(service).map_err(TelemetryError::Journal)?,
        )),
    }
}

fn journal<S>(queue: Arc<JournalQueue>) -> (BoxedLayer<S>, Option<Arc<JournalQueue>>)
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let sink = Sink::Journal(Arc::clone(&queue));
    (Box::new(RecordLayer::new(sink)), Some(queue))
}

fn json<S>(service: &'static str) -> BoxedLayer<S>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let lines = JsonLines::new(service, Box::new(io::stderr()));
    Box::new(RecordLayer::new(Sink::Json(lines)))
}

fn text<S>() -> BoxedLayer<S>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    // The convention of no-color.org: any non-empty value.
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let colours = io::stderr().is_terminal() && !plain;
    Box::new(
        tracing_subscriber::fmt::layer()
            .with_writer(io::stderr)
            .with_ansi(colours),
    )
}

impl Telemetry {
    /// All metrics in Prometheus' text format.
    pub fn render_metrics(&self) -> String {
        self.metrics.render()
    }

    /// A handle that renders metrics and can be given away, such as to a route.
    pub fn metrics(&self) -> PrometheusHandle {
        self.metrics.clone()
    }

    /// Starts the task that folds observations into their buckets every five seconds; without it they pile up until
    /// the next scrape. It runs until aborted. Call it inside a Tokio runtime.
    pub fn spawn_upkeep(&self) -> JoinHandle<()> {
        let metrics = self.metrics.clone();
        tokio::spawn(async move {
            let mut ticks = tokio::time::interval(exporter::UPKEEP_INTERVAL);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                metrics.run_upkeep();
            }
        })
    }
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        let flushed = self
            .journal
            .as_ref()
            .is_none_or(|queue| queue.flush(FLUSH_DEADLINE));
        if !flushed {
            eprintln!("the journal did not take the last log records in time");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(format: LogFormat, level: &str) -> LogConfig {
        LogConfig {
            format,
            level: level.to_owned(),
        }
    }

    /// The only test that installs: a process can do so once.
    #[tokio::test]
    async fn a_process_is_set_up_once() {
        let telemetry =
            init("holdfast-test", &log(LogFormat::Json, "error")).expect("the first time");
        metrics::gauge!(super::super::metric::STORE_UP, "store" => "redis").set(1.0);
        assert!(
            telemetry
                .render_metrics()
                .contains("holdfast_store_up{store=\"redis\"} 1")
        );
        assert!(
            telemetry
                .metrics()
                .render()
                .contains("holdfast_store_up{store=\"redis\"} 1")
        );
        let upkeep = telemetry.spawn_upkeep();
        upkeep.abort();
        assert!(upkeep.await.expect_err("aborted").is_cancelled());
        let again = init("holdfast-test", &log(LogFormat::Json, "error"));
        assert!(matches!(again, Err(TelemetryError::LogsInstalled(_))));
    }

    #[test]
    fn a_bad_level_is_refused_before_anything_is_installed() {
        let refused = init("holdfast-test", &log(LogFormat::Json, "inof"));
        assert!(matches!(refused, Err(TelemetryError::Level(_))));
    }
}
