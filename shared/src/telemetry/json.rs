//! One JSON object per line on stderr: what log collectors read. Fields stand beside `timestamp`, `level`, `message`
//! and `service` rather than in an object of their own, so that they can be searched for by their plain names.

use std::io::Write;
use std::sync::{Mutex, PoisonError};

use chrono::{DateTime, SecondsFormat, Utc};
use metrics::counter;
use serde::ser::{Serialize, SerializeMap, Serializer};
use tracing::Level;

use super::metric;
use super::record::LogRecord;

/// Names that every line has; a field called so gets `field_` before it.
const RESERVED: &[&str] = &["timestamp", "level", "message", "service", "target"];

/// Writes records as lines.
pub(super) struct JsonLines {
    service: &'static str,
    output: Mutex<Box<dyn Write + Send>>,
}

impl JsonLines {
    pub(super) fn new(service: &'static str, output: Box<dyn Write + Send>) -> JsonLines {
        JsonLines {
            service,
            output: Mutex::new(output),
        }
    }

    /// Writes one line, whole. Where it can't be written there is nobody left to tell but the metric.
    pub(super) fn write(&self, record: &LogRecord) {
        let line = Line {
            service: self.service,
            timestamp: Utc::now(),
            record,
        };
        let written = serde_json::to_vec(&line)
            .map_err(std::io::Error::other)
            .and_then(|mut bytes| {
                bytes.push(b'\n');
                self.output
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .write_all(&bytes)
            });
        if written.is_err() {
            counter!(metric::LOG_RECORDS_DROPPED_TOTAL).increment(1);
        }
    }
}

struct Line<'a> {
    service: &'static str,
    timestamp: DateTime<Utc>,
    record: &'a LogRecord,
}

impl Serialize for Line<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut line = serializer.serialize_map(None)?;
        let timestamp = self.timestamp.to_rfc3339_opts(SecondsFormat::Micros, true);
        line.serialize_entry("timestamp", &timestamp)?;
        line.serialize_entry("level", level_name(self.record.level))?;
        line.serialize_entry("message", &self.record.message)?;
        line.serialize_entry("service", self.service)?;
        line.serialize_entry("target", self.record.place.target)?;
        for (name, value) in &self.record.fields {
            if RESERVED.contains(name) {
                line.serialize_entry(&format!("field_{name}"), value)?;
            } else {
                line.serialize_entry(name, value)?;
            }
        }
        line.end()
    }
}

fn level_name(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;

    use serde_json::Value;
    use tracing_subscriber::layer::SubscriberExt;

    use super::super::record::{RecordLayer, Sink};
    use super::*;

    #[derive(Clone, Default)]
    struct Memory(Arc<Mutex<Vec<u8>>>);

    impl Write for Memory {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("not poisoned").write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// The lines that `log` leads to, each parsed.
    fn lines_of(log: impl FnOnce()) -> Vec<Value> {
        let memory = Memory::default();
        let lines = JsonLines::new("holdfast-test", Box::new(memory.clone()));
        let layer = RecordLayer::new(Sink::Json(lines));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), log);
        let bytes = memory.0.lock().expect("not poisoned").clone();
        let text = String::from_utf8(bytes).expect("UTF-8");
        text.lines()
            .map(|line| serde_json::from_str(line).expect("a JSON object per line"))
            .collect()
    }

    #[test]
    fn a_record_is_one_flat_object() {
        let lines = lines_of(|| {
            tracing::info!(
                items = 7,
                ratio = 0.5,
                whole = true,
                path = "/a\nb",
                "drained {}",
                3
            )
        });
        assert_eq!(lines.len(), 1);
        let line = &lines[0];
        assert_eq!(line["level"], "info");
        assert_eq!(line["message"], "drained 3");
        assert_eq!(line["service"], "holdfast-test");
        assert_eq!(
            (&line["items"], &line["ratio"], &line["whole"]),
            (&7.into(), &0.5.into(), &true.into())
        );
        assert_eq!(line["path"], "/a\nb");
        let timestamp = line["timestamp"].as_str().expect("text");
        assert!(
            timestamp.ends_with('Z') && DateTime::parse_from_rfc3339(timestamp).is_ok(),
            "{timestamp}"
        );
    }

    #[test]
    fn fields_of_the_spans_around_are_flattened_and_the_innermost_counts() {
        let lines = lines_of(|| {
            let outer = tracing::info_span!(
                "request",
                request_id = "r-1",
                user = "u",
                later = tracing::field::Empty
            );
            let _outer = outer.enter();
            outer.record("later", 9);
            let _inner = tracing::info_span!("step", user = "v").entered();
            tracing::warn!("slow");
        });
        assert_eq!(lines[0]["request_id"], "r-1");
        assert_eq!(lines[0]["user"], "v");
        assert_eq!(lines[0]["later"], 9);
    }

    #[test]
    fn a_field_never_replaces_what_every_line_has() {
        let lines = lines_of(|| tracing::info!(service = "postgres", level = 4, "checked"));
        assert_eq!(lines[0]["service"], "holdfast-test");
        assert_eq!(lines[0]["level"], "info");
        assert_eq!(lines[0]["field_service"], "postgres");
        assert_eq!(lines[0]["field_level"], 4);
    }

    #[test]
    fn an_error_is_logged_with_all_it_came_from() {
        #[derive(Debug, thiserror::Error)]
        #[error("could not drain")]
        struct Drain(#[source] io::Error);
        let error = Drain(io::Error::other("disk full"));
        let lines =
            lines_of(|| tracing::error!(error = &error as &dyn std::error::Error, "stopped"));
        assert_eq!(lines[0]["error"], "could not drain: disk full");
    }

    #[test]
    fn an_output_that_fails_costs_only_the_record() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
        let layer = RecordLayer::new(Sink::Json(JsonLines::new(
            "holdfast-test",
            Box::new(Closed),
        )));
        metrics::with_local_recorder(&recorder, || {
            let subscriber = tracing_subscriber::registry().with(layer);
            tracing::subscriber::with_default(subscriber, || tracing::info!("lost"));
        });
        let text = recorder.handle().render();
        assert!(
            text.contains("holdfast_log_records_dropped_total 1"),
            "{text}"
        );
    }
}
