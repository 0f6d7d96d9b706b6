//! Records to the journal. Sending blocks while journald is stalled, so it happens on a thread of its own behind a
//! bounded queue; what doesn't fit is counted, and the count is logged once the journal takes records again.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use metrics::counter;
use serde_json::Value;
use systemd_journal_logger::JournalLog;
// The journal's crate takes records of the `log` crate, which tracing hands on.
use tracing::Level;

use super::metric;
use super::record::{LogRecord, Place};

/// Most records that wait for a stalled journal: a few seconds of a busy process, and with bounded fields at most
/// some tens of megabytes.
const QUEUE_CAPACITY: usize = 4096;

/// Journal fields that the record itself sets; a field of ours by such a name gets `FIELD_` before it. Without this
/// an item's `priority` would become the record's.
const RESERVED: &[&str] = &[
    "MESSAGE",
    "PRIORITY",
    "SYSLOG_IDENTIFIER",
    "SYSLOG_FACILITY",
    "SYSLOG_PID",
    "CODE_FILE",
    "CODE_LINE",
    "CODE_FUNC",
    "CODE_MODULE",
    "TARGET",
];

/// The records that wait for the journal.
pub(super) struct JournalQueue {
    state: Mutex<State>,
    filled: Condvar,
    drained: Condvar,
}

#[derive(Default)]
struct State {
    records: VecDeque<LogRecord>,
    sending: bool,
    /// Since the last time the loss was logged.
    dropped: u64,
}

/// Opens the journal and starts the thread that writes to it.
///
/// # Errors
///
/// When journald's socket can't be reached, or no thread can be started.
pub(super) fn connect(service: &'static str) -> io::Result<Arc<JournalQueue>> {
    let journal = JournalLog::empty()?.with_syslog_identifier(service.to_owned());
    JournalQueue::start(move |record| send(&journal, record))
}

fn send(journal: &JournalLog, record: &LogRecord) -> io::Result<()> {
    let place = &record.place;
    journal.journal_send(
        &log::Record::builder()
            .level(journal_level(record.level))
            .target(place.target)
            .module_path(place.module)
            .file(place.file)
            .line(place.line)
            .key_values(&journal_fields(record))
            .args(format_args!("{}", record.message))
            .build(),
    )
}

/// The journal's crate writes info as "notice" (5) and debug as "info" (6); one level down each comes out right:
/// error 3, warn 4, info 6, debug and trace 7.
fn journal_level(level: Level) -> log::Level {
    match level {
        Level::ERROR => log::Level::Error,
        Level::WARN => log::Level::Warn,
        Level::INFO => log::Level::Debug,
        Level::DEBUG | Level::TRACE => log::Level::Trace,
    }
}

fn journal_fields(record: &LogRecord) -> Vec<(String, String)> {
    record
        .fields
        .iter()
        .map(|(name, value)| (journal_name(name), journal_text(value)))
        .collect()
}

fn journal_name(name: &str) -> String {
    let name = name.to_ascii_uppercase().replace('.', "_");
    if RESERVED.contains(&name.as_str()) {
        format!("FIELD_{name}")
    } else {
        name
    }
}

fn journal_text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

impl JournalQueue {
    fn start(
        send: impl Fn(&LogRecord) -> io::Result<()> + Send + 'static,
    ) -> io::Result<Arc<JournalQueue>> {
        let queue = Arc::new(JournalQueue {
            state: Mutex::default(),
            filled: Condvar::new(),
            drained: Condvar::new(),
        });
        let theirs = Arc::clone(&queue);
        let thread = std::thread::Builder::new().name("journal".to_owned());
        thread.spawn(move || theirs.run(send))?;
        Ok(queue)
    }

    /// Takes a record without ever waiting for the journal; drops it when the queue is full.
    pub(super) fn push(&self, record: LogRecord) {
        let mut state = self.lock();
        if state.records.len() >= QUEUE_CAPACITY {
            drop_records(&mut state, 1);
            return;
        }
        state.records.push_back(record);
        self.filled.notify_one();
    }

    /// Waits until everything is in the journal, or `deadline` has passed; whether it is.
    pub(super) fn flush(&self, deadline: Duration) -> bool {
        let busy = |state: &mut State| state.sending || !state.records.is_empty();
        let waited = self.drained.wait_timeout_while(self.lock(), deadline, busy);
        let (_state, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        !timeout.timed_out()
    }

    /// Runs for the life of the process: the subscriber that feeds it is global.
    fn run(&self, send: impl Fn(&LogRecord) -> io::Result<()>) {
        loop {
            let record = self.next();
            let sent = send(&record).is_ok();
            let lost = self.settle(sent);
            if lost > 0 && send(&loss_report(lost)).is_err() {
                self.lock().dropped += lost;
            }
            self.rest();
        }
    }

    fn next(&self) -> LogRecord {
        let mut state = self.lock();
        loop {
            if let Some(record) = state.records.pop_front() {
                state.sending = true;
                return record;
            }
            state = self
                .filled
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Counts a record that failed; after one that succeeded, hands out the number of those lost before it.
    fn settle(&self, sent: bool) -> u64 {
        let mut state = self.lock();
        if sent {
            return std::mem::take(&mut state.dropped);
        }
        drop_records(&mut state, 1);
        0
    }

    fn rest(&self) {
        let mut state = self.lock();
        state.sending = false;
        if state.records.is_empty() {
            self.drained.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn drop_records(state: &mut State, count: u64) {
    state.dropped += count;
    counter!(metric::LOG_RECORDS_DROPPED_TOTAL).increment(count);
}

fn loss_report(dropped: u64) -> LogRecord {
    let place = Place {
        target: module_path!(),
        module: None,
        file: None,
        line: None,
    };
    LogRecord {
        level: Level::WARN,
        place,
        message: "log records were dropped while the journal could not be written".to_owned(),
        fields: vec![("dropped", dropped.into())],
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    fn record(message: &str) -> LogRecord {
        LogRecord {
            message: message.to_owned(),
            level: Level::INFO,
            ..loss_report(0)
        }
    }

    /// A queue whose sends end as the test says: `Ok` passes one on, `Err` fails it.
    fn scripted() -> (
        Arc<JournalQueue>,
        mpsc::Sender<io::Result<()>>,
        mpsc::Receiver<String>,
    ) {
        let (allow, allowed) = mpsc::channel::<io::Result<()>>();
        let (seen, received) = mpsc::channel();
        let queue = JournalQueue::start(move |record| {
            allowed.recv().map_err(io::Error::other)??;
            let dropped = record.fields.iter().find(|(name, _)| *name == "dropped");
            let text = match dropped {
                Some((_, count)) if record.level == Level::WARN => format!("dropped {count}"),
                _ => record.message.clone(),
            };
            seen.send(text).map_err(io::Error::other)
        });
        (queue.expect("a thread"), allow, received)
    }

    #[test]
    fn levels_become_the_priorities_that_journalctl_filters_by() {
        // Positions in the crate's own order: error 3, warn 4, info 5, debug 6, trace 7.
        let priority = |level| journal_level(level) as usize + 2;
        assert_eq!(priority(Level::ERROR), 3);
        assert_eq!(priority(Level::WARN), 4);
        assert_eq!(priority(Level::INFO), 6);
        assert_eq!(priority(Level::DEBUG), 7);
        assert_eq!(priority(Level::TRACE), 7);
    }

    #[test]
    fn fields_are_upper_case_and_never_the_record_s_own() {
        assert_eq!(journal_name("request_id"), "REQUEST_ID");
        assert_eq!(journal_name("message_id"), "MESSAGE_ID");
        assert_eq!(journal_name("priority"), "FIELD_PRIORITY");
        assert_eq!(journal_name("http.route"), "HTTP_ROUTE");
        assert_eq!(journal_text(&"text".into()), "text");
        assert_eq!(journal_text(&7.into()), "7");
    }

    #[test]
    fn records_arrive_in_order_and_flush_waits_for_them() {
        let (queue, allow, received) = scripted();
        queue.push(record("one"));
        queue.push(record("two"));
        assert!(
            !queue.flush(Duration::from_millis(1)),
            "nothing may be sent yet"
        );
        allow.send(Ok(())).expect("the thread lives");
        allow.send(Ok(())).expect("the thread lives");
        assert!(queue.flush(SOON));
        assert_eq!(received.try_iter().collect::<Vec<_>>(), ["one", "two"]);
    }

    #[test]
    fn a_stalled_journal_never_blocks_and_its_losses_are_reported_once() {
        let (queue, allow, received) = scripted();
        for _ in 0..QUEUE_CAPACITY + 11 {
            queue.push(record("x"));
        }
        // The thread may have taken one out of the queue before it was full.
        let lost = queue.lock().dropped;
        assert!((10..=11).contains(&lost), "{lost}");
        for _ in 0..QUEUE_CAPACITY + 2 {
            allow.send(Ok(())).expect("the thread lives");
        }
        assert!(queue.flush(SOON));
        let reports: Vec<String> = received.try_iter().filter(|text| text != "x").collect();
        assert_eq!(reports, [format!("dropped {lost}")]);
    }

    #[test]
    fn records_that_fail_to_be_sent_are_counted() {
        let (queue, allow, received) = scripted();
        for message in ["a", "b", "c"] {
            queue.push(record(message));
        }
        for outcome in [
            Err(io::ErrorKind::NotFound.into()),
            Err(io::ErrorKind::NotFound.into()),
            Ok(()),
            Ok(()),
        ] {
            allow.send(outcome).expect("the thread lives");
        }
        assert!(queue.flush(SOON));
        assert_eq!(received.try_iter().collect::<Vec<_>>(), ["c", "dropped 2"]);
    }
}
