//! Logs and metrics: what both processes tell the outside about themselves, in the forms a journal, a log collector
//! and Prometheus read.
//!
//! Logs go one of three ways. Under systemd each record goes to the journal with its fields as journal fields,
//! through a bounded queue and a thread of its own, since journald may stall and must never stall a request. In
//! a container each record is one line of JSON on stderr. On a terminal it is text. Fields of the enclosing spans
//! (such as `request_id`) are part of every record.

pub mod metric;

mod exporter;
mod init;
mod journald;
mod json;
mod level;
mod record;

pub use exporter::describe_all;
pub use init::{Telemetry, TelemetryError, init};
pub(crate) use level::parse_directives;
pub use metrics_exporter_prometheus::PrometheusHandle;
