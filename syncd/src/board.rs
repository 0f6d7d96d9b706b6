//! What syncd knows about itself, in one place: the lanes and the watch over the buffer write it, the status page,
//! the service manager's status line and `syncd drain` read it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use holdfast_shared::buffer::{Lane, Snapshot};

use crate::drain::{RateMeter, eta};

/// What a lane is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Doing {
    /// Nothing: no such store is configured.
    Off,
    /// It has not looked at its store yet.
    Starting,
    /// Nothing waits, or only what is put off.
    Resting,
    /// It applies items.
    Draining,
    /// It waits for its store.
    Away,
    /// Too many rows are locked by others; it goes on in a moment.
    Paused,
    /// Its store refuses everything, for this reason.
    Stopped(String),
    /// The buffer can't be used, for this reason.
    Blind(String),
}

impl Doing {
    /// In a few words, for people.
    pub fn describe(&self) -> String {
        match self {
            Doing::Off => "not configured".to_owned(),
            Doing::Starting => "starting".to_owned(),
            Doing::Resting => "idle".to_owned(),
            Doing::Draining => "draining".to_owned(),
            Doing::Away => "waiting for the store".to_owned(),
            Doing::Paused => "paused, too many rows are locked".to_owned(),
            Doing::Stopped(reason) => format!("stopped: {reason}"),
            Doing::Blind(reason) => format!("can't use the buffer: {reason}"),
        }
    }
}

/// A lane at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct LaneReport {
    /// Which.
    pub lane: Lane,
    /// What it is doing.
    pub doing: Doing,
    /// Items waiting by priority (0 is priority 1).
    pub waiting: [u64; 5],
    /// How fast it drains.
    pub per_second: f64,
    /// How long the rest will take; `None` when there is no telling.
    pub eta: Option<Duration>,
}

impl LaneReport {
    /// Items waiting.
    pub fn pending(&self) -> u64 {
        self.waiting.iter().sum()
    }
}

/// Everything, at one moment.
#[derive(Debug, Clone)]
pub struct Report {
    /// The lanes.
    pub lanes: [LaneReport; 2],
    /// The buffer, as last seen; `None` before the first look.
    pub buffer: Option<Arc<Snapshot>>,
    /// Why it can't be read now.
    pub buffer_error: Option<String>,
}

impl Report {
    /// Items waiting in all lanes, as last seen.
    pub fn pending(&self) -> Option<u64> {
        self.buffer
            .as_ref()
            .map(|snapshot| snapshot.counters.pending)
    }

    /// Items a second over both lanes.
    pub fn per_second(&self) -> f64 {
        self.lanes.iter().map(|lane| lane.per_second).sum()
    }

    /// How long all takes: as long as the slower lane.
    pub fn eta(&self) -> Option<Duration> {
        self.lanes
            .iter()
            .map(|lane| lane.eta)
            .try_fold(Duration::ZERO, |most, eta| eta.map(|eta| eta.max(most)))
    }

    /// The one line the service manager shows: backlog and lanes.
    pub fn status_line(&self) -> String {
        let backlog = match (&self.buffer_error, self.pending()) {
            (Some(error), _) => format!("can't read the buffer: {error}"),
            (None, None) => "looking at the buffer".to_owned(),
            (None, Some(0)) => "nothing waits".to_owned(),
            (None, Some(pending)) => format!("{pending} waiting"),
        };
        let lanes = self.lanes.iter().filter(|lane| lane.doing != Doing::Off);
        let lanes: Vec<String> = lanes
            .map(|lane| format!("{} {}", lane.lane.as_str(), lane.doing.describe()))
            .collect();
        if lanes.is_empty() {
            return format!("{backlog}; embedded, no store is configured");
        }
        format!("{backlog}; {}", lanes.join("; "))
    }
}

/// The place itself. Cheap to share; no lock is held for longer than a few copies.
#[derive(Debug)]
pub struct Board {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    lanes: [Post; 2],
    buffer: Option<Arc<Snapshot>>,
    buffer_error: Option<String>,
}

#[derive(Debug)]
struct Post {
    doing: Doing,
    rate: RateMeter,
}

impl Default for Board {
    fn default() -> Self {
        let post = || Post {
            doing: Doing::Off,
            rate: RateMeter::default(),
        };
        Board {
            inner: Mutex::new(Inner {
                lanes: [post(), post()],
                buffer: None,
                buffer_error: None,
            }),
        }
    }
}

impl Board {
    /// Posts what a lane is doing; gives what it was doing before.
    pub fn post(&self, lane: Lane, doing: Doing) -> Doing {
        let mut inner = self.lock();
        let post = &mut inner.lanes[lane as usize];
        if doing == Doing::Draining {
            post.rate.begin(Instant::now());
        } else {
            post.rate.end();
        }
        std::mem::replace(&mut post.doing, doing)
    }

    /// Counts items a lane has settled.
    pub fn count(&self, lane: Lane, items: u64) {
        self.lock().lanes[lane as usize]
            .rate
            .count(Instant::now(), items);
    }

    /// Posts the buffer as it was found.
    pub fn see_buffer(&self, found: Result<Snapshot, String>) {
        let mut inner = self.lock();
        match found {
            Ok(snapshot) => {
                inner.buffer = Some(Arc::new(snapshot));
                inner.buffer_error = None;
            }
            Err(error) => inner.buffer_error = Some(error),
        }
    }

    /// Everything, now.
    pub fn report(&self) -> Report {
        let (now, inner) = (Instant::now(), self.lock());
        let lanes = Lane::ALL.map(|lane| {
            let post = &inner.lanes[lane as usize];
            let waiting = inner
                .buffer
                .as_ref()
                .map(|snapshot| snapshot.waiting[lane as usize])
                .unwrap_or_default();
            let per_second = post.rate.per_second(now);
            let eta = eta(waiting.iter().sum(), per_second);
            LaneReport {
                lane,
                doing: post.doing.clone(),
                waiting,
                per_second,
                eta,
            }
        });
        Report {
            lanes,
            buffer: inner.buffer.clone(),
            buffer_error: inner.buffer_error.clone(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use holdfast_shared::buffer::Counters;

    use super::*;

    fn snapshot(pending: u64) -> Snapshot {
        Snapshot {
            waiting: [[0, 0, pending, 0, 0], [0; 5]],
            counters: Counters {
                pending,
                ..Counters::default()
            },
            ..Snapshot::default()
        }
    }

    #[test]
    fn the_status_line_tells_backlog_and_lanes() {
        let board = Board::default();
        assert_eq!(
            board.report().status_line(),
            "looking at the buffer; embedded, no store is configured"
        );
        board.see_buffer(Ok(snapshot(7)));
        board.post(
            Lane::Postgres,
            Doing::Stopped("run syncd migrate".to_owned()),
        );
        assert_eq!(
            board.report().status_line(),
            "7 waiting; postgres stopped: run syncd migrate"
        );
        board.see_buffer(Err("gone".to_owned()));
        assert!(
            board
                .report()
                .status_line()
                .starts_with("can't read the buffer: gone; ")
        );
    }

    #[test]
    fn a_lane_that_does_not_drain_has_no_rate_and_an_empty_one_is_done() {
        let board = Board::default();
        board.see_buffer(Ok(snapshot(100)));
        board.post(Lane::Postgres, Doing::Draining);
        board.count(Lane::Postgres, 50);
        let report = board.report();
        assert!(report.per_second() > 0.0);
        assert!(report.eta().is_some());
        board.post(Lane::Postgres, Doing::Away);
        let report = board.report();
        assert!(report.per_second() < f64::EPSILON);
        assert_eq!(report.eta(), None);
        board.see_buffer(Ok(snapshot(0)));
        assert_eq!(board.report().eta(), Some(Duration::ZERO));
    }

    #[test]
    fn posting_gives_back_what_was_there() {
        let board = Board::default();
        assert_eq!(board.post(Lane::Redis, Doing::Away), Doing::Off);
        assert_eq!(board.post(Lane::Redis, Doing::Resting), Doing::Away);
    }
}
