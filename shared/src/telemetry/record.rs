//! From a tracing event to a flat record: the event's fields and those of the spans around it, with values kept as
//! numbers, truth values or text. Journal and JSON both write such records.

use std::error::Error;
use std::fmt::{self, Write};
use std::sync::Arc;

use serde_json::Value;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record as SpanValues};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

use super::journald::JournalQueue;
use super::json::JsonLines;

/// Longest text of one field, in bytes: a record must fit into the memory of a stalled queue many times over.
const MAX_TEXT_BYTES: usize = 8 * 1024;

/// One log record, detached from the event it came from.
pub(super) struct LogRecord {
    pub level: Level,
    pub place: Place,
    pub message: String,
    /// Names are distinct; the innermost value of a name counts.
    pub fields: Vec<(&'static str, Value)>,
}

/// Where in the program a record was made.
pub(super) struct Place {
    pub target: &'static str,
    pub module: Option<&'static str>,
    pub file: Option<&'static str>,
    pub line: Option<u32>,
}

impl Place {
    fn of(metadata: &'static Metadata<'static>) -> Place {
        Place {
            target: metadata.target(),
            module: metadata.module_path(),
            file: metadata.file(),
            line: metadata.line(),
        }
    }
}

/// Where records go.
pub(super) enum Sink {
    Journal(Arc<JournalQueue>),
    Json(JsonLines),
}

/// The tracing layer that makes records and hands them on.
pub(super) struct RecordLayer {
    sink: Sink,
}

impl RecordLayer {
    pub(super) fn new(sink: Sink) -> RecordLayer {
        RecordLayer { sink }
    }
}

/// What a span's fields were when last recorded.
struct SpanFields(Fields);

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for RecordLayer {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        span.extensions_mut().insert(SpanFields(fields));
    }

    fn on_record(&self, id: &Id, values: &SpanValues<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        if let Some(SpanFields(fields)) = span.extensions_mut().get_mut() {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        for span in context.event_scope(event).into_iter().flatten() {
            if let Some(SpanFields(outer)) = span.extensions().get() {
                fields.add_missing(outer);
            }
        }
        let record = LogRecord {
            level: *event.metadata().level(),
            place: Place::of(event.metadata()),
            message: fields.message,
            fields: fields.named,
        };
        match &self.sink {
            Sink::Journal(queue) => queue.push(record),
            Sink::Json(lines) => lines.write(&record),
        }
    }
}

/// Collects the fields of an event or a span.
#[derive(Default)]
struct Fields {
    message: String,
    named: Vec<(&'static str, Value)>,
}

impl Fields {
    fn set(&mut self, field: &Field, value: Value) {
        let name = field.name();
        match self.named.iter_mut().find(|(known, _)| *known == name) {
            Some((_, known)) => *known = value,
            None => self.named.push((name, value)),
        }
    }

    fn set_text(&mut self, field: &Field, text: String) {
        if field.name() == "message" {
            self.message = text;
        } else {
            self.set(field, Value::String(text));
        }
    }

    fn add_missing(&mut self, outer: &Fields) {
        for (name, value) in &outer.named {
            if !self.named.iter().any(|(known, _)| known == name) {
                self.named.push((*name, value.clone()));
            }
        }
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.set(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field, value.into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.set_text(field, bounded(format_args!("{value}")));
    }

    /// The error and all it came from, outermost first.
    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        let mut chain = value.to_string();
        let mut source = value.source();
        while let Some(error) = source {
            chain = format!("{chain}: {error}");
            source = error.source();
        }
        self.set_text(field, bounded(format_args!("{chain}")));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.set_text(field, bounded(format_args!("{value:?}")));
    }
}

/// Text of at most [`MAX_TEXT_BYTES`], and a mark where it was cut.
fn bounded(text: fmt::Arguments<'_>) -> String {
    let mut room = Room(String::new());
    if room.write_fmt(text).is_err() {
        room.0.push('…');
    }
    room.0
}

/// A writer that fails when it is full, so that formatting a huge value stops early.
struct Room(String);

impl Write for Room {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = text.floor_char_boundary(MAX_TEXT_BYTES - self.0.len());
        self.0.push_str(&text[..end]);
        if end < text.len() {
            Err(fmt::Error)
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_text_is_cut_at_a_character() {
        let text = bounded(format_args!("a{}", "é".repeat(MAX_TEXT_BYTES)));
        assert!(text.len() <= MAX_TEXT_BYTES + '…'.len_utf8());
        assert!(text.ends_with("é…"));
        assert_eq!(bounded(format_args!("short")), "short");
    }
}
