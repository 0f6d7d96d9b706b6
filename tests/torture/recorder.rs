//! Writes a run down as it happens.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use crate::history::{Exchange, Micros, Span, Trouble};

/// The run's one clock, and everything noted by it.
#[derive(Debug)]
pub struct Recorder {
    began: Instant,
    began_at: SystemTime,
    exchanges: Mutex<Vec<Exchange>>,
    troubles: Mutex<Vec<Span>>,
    failures: Mutex<Vec<String>>,
}

impl Recorder {
    /// The run begins now.
    pub fn new() -> Self {
        Self {
            began: Instant::now(),
            began_at: SystemTime::now(),
            exchanges: Mutex::default(),
            troubles: Mutex::default(),
            failures: Mutex::default(),
        }
    }

    /// The time now.
    pub fn now(&self) -> Micros {
        micros(self.began.elapsed())
    }

    /// A wall clock's time by the run's clock; 0 for what was before it.
    pub fn time_of(&self, wall: SystemTime) -> Micros {
        wall.duration_since(self.began_at).map_or(0, micros)
    }

    /// Notes a request with its answer.
    pub fn exchanged(&self, exchange: Exchange) {
        let mut exchanges = self
            .exchanges
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        exchanges.push(exchange);
    }

    /// Notes that a trouble begins now; gives what [`Recorder::ends`] takes.
    pub fn begins(&self, trouble: Trouble) -> usize {
        let span = Span {
            trouble,
            from: self.now(),
            to: Micros::MAX,
        };
        let mut troubles = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        troubles.push(span);
        troubles.len() - 1
    }

    /// Notes that a trouble ends now.
    pub fn ends(&self, number: usize) {
        let now = self.now();
        let mut troubles = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        troubles[number].to = now;
    }

    /// Notes a trouble that is over.
    pub fn was(&self, trouble: Trouble, from: Instant, to: Instant) {
        let time = |instant: Instant| micros(instant.saturating_duration_since(self.began));
        let span = Span {
            trouble,
            from: time(from),
            to: time(to),
        };
        let mut troubles = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        troubles.push(span);
    }

    /// Notes what went wrong beside the requests: a process that didn't come up.
    pub fn failed(&self, what: String) {
        eprintln!("torture: {what}");
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.push(what);
    }

    /// Takes out what was noted.
    pub fn finish(&self) -> (Vec<Exchange>, Vec<Span>, Vec<String>) {
        (
            take(&self.exchanges),
            take(&self.troubles),
            take(&self.failures),
        )
    }
}

fn take<T>(noted: &Mutex<Vec<T>>) -> Vec<T> {
    std::mem::take(&mut *noted.lock().unwrap_or_else(PoisonError::into_inner))
}

fn micros(duration: Duration) -> Micros {
    Micros::try_from(duration.as_micros()).unwrap_or(Micros::MAX)
}
