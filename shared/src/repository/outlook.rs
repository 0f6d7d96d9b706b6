//! When a client that was refused may do better: from what this process has measured, never a constant.
//!
//! *A store that is away.* Nothing is known of an outage but how long it has lasted, and the best guess is that it goes
//! on for as long again: seen at a random moment, half of all durations have that much still to come or less (J. R.
//! Gott, Nature 363, 1993). Clients that heed it come back ever less often, as with an exponential backoff, and the
//! store is asked a few times in a short outage and in a long one.
//! *A buffer that drains.* What has to leave it, at the pace of the last ten seconds. Where nothing has left it, the
//! standstill is an outage like any other.

use std::collections::VecDeque;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use super::core::Repository;

/// Shortest wait: the precision of `Retry-After`. A store that has just failed is probed five times within it.
const SHORTEST: Duration = Duration::from_secs(1);

/// Longest wait: what a client may miss of a store that has returned after hours.
const LONGEST: Duration = Duration::from_secs(60);

/// The part by which a wait is lengthened at most, at random, so that clients that were refused together don't return
/// together.
const SPREAD: f64 = 0.25;

/// The part of a full buffer that must have become free before a client is called back: of one place alone, others
/// would have it.
const ROOM: u64 = 100;

/// How far back the pace looks: long enough to even batches out, short enough to follow a change.
const WINDOW: Duration = Duration::from_secs(10);

/// Least time between two readings that are kept, and over which a pace is taken.
const LEAST_GAP: Duration = Duration::from_secs(1);

/// What a client that was refused has to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Awaited {
    /// Something that is under way, and bounded by its deadline.
    Moment,
    /// PostgreSQL's return.
    Postgres,
    /// Redis' return.
    Redis,
    /// Room in the buffer.
    Room,
    /// The end of what waits in the buffer.
    Drain,
}

/// How the buffer drains, as this process sees it in the file's counters.
#[derive(Debug)]
pub(super) struct Pace {
    /// How many items had ended, and when, oldest first: at most one reading a [`LEAST_GAP`].
    readings: VecDeque<(Instant, u64)>,
    /// When an item was last seen to have ended, or could not be expected to: none waited, or the store was away.
    moved_at: Instant,
    /// When the counters could last be read.
    read_at: Instant,
    ended: u64,
    pending: u64,
}

/// All that a wait is judged by.
#[derive(Debug, Clone, Copy)]
struct Measured {
    /// How long each store has been away; `None` while it isn't, or isn't configured. Without PostgreSQL, the buffer is
    /// in its place.
    postgres_away: Option<Duration>,
    redis_away: Option<Duration>,
    /// Items that leave the buffer in a second.
    per_second: f64,
    /// How long none has left it that could have.
    still_for: Duration,
    pending: u64,
    max_items: u64,
}

impl Repository {
    /// How long a client should wait before it tries again: whole seconds, 1 to 60, a little longer for some than for
    /// others.
    pub fn retry_after(&self, awaited: Awaited) -> Duration {
        let now = Instant::now();
        let measured = {
            let pace = self.0.pace.lock().unwrap_or_else(PoisonError::into_inner);
            Measured {
                postgres_away: match &self.0.postgres {
                    Some(lane) => lane.health.down_for(),
                    None => pace.unread_for(now),
                },
                redis_away: self
                    .0
                    .redis
                    .as_ref()
                    .and_then(|lane| lane.health.down_for()),
                per_second: pace.per_second(now),
                still_for: now.saturating_duration_since(pace.moved_at),
                pending: pace.pending,
                max_items: self.0.buffer.max_items(),
            }
        };
        spread(measured.wait(awaited), rand::random())
    }

    /// How many items leave the buffer in a second, and in how many seconds all will have; infinite when there is no
    /// telling.
    pub(super) fn drain_outlook(&self) -> (f64, f64) {
        let pace = self.0.pace.lock().unwrap_or_else(PoisonError::into_inner);
        pace.outlook(Instant::now())
    }

    /// Takes in what the file's counters say now.
    pub(super) fn note_pace(&self, ended: u64, pending: u64) {
        let now = Instant::now();
        let mut pace = self.0.pace.lock().unwrap_or_else(PoisonError::into_inner);
        pace.note(now, ended, pending);
        if self
            .0
            .postgres
            .as_ref()
            .is_some_and(|lane| !lane.health.is_up())
        {
            pace.moved_at = now;
        }
    }
}

/// `share` (0 to 1) says how much of the spread this client gets.
fn spread(wait: Duration, share: f64) -> Duration {
    let wait = wait.clamp(SHORTEST, LONGEST.div_f64(1.0 + SPREAD));
    let spread = wait.mul_f64(1.0 + SPREAD * share);
    Duration::from_secs(spread.as_secs_f64().ceil() as u64)
}

impl Measured {
    fn wait(&self, awaited: Awaited) -> Duration {
        match awaited {
            Awaited::Moment => Duration::ZERO,
            Awaited::Postgres => self.postgres_away.unwrap_or_default(),
            Awaited::Redis => self.redis_away.unwrap_or_default(),
            Awaited::Room => self.leaving(self.max_items.div_ceil(ROOM)),
            Awaited::Drain => self.leaving(self.pending),
        }
    }

    /// How long it takes until so many items have left the buffer.
    fn leaving(&self, items: u64) -> Duration {
        if let Some(away) = self.postgres_away {
            return away;
        }
        if items == 0 {
            return Duration::ZERO;
        }
        #[expect(
            clippy::cast_precision_loss,
            reason = "an estimate needs no more than 52 bits"
        )]
        let seconds = items as f64 / self.per_second;
        Duration::try_from_secs_f64(seconds).unwrap_or(self.still_for)
    }
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Pace {
            readings: VecDeque::new(),
            moved_at: now,
            read_at: now,
            ended: 0,
            pending: 0,
        }
    }

    fn note(&mut self, now: Instant, ended: u64, pending: u64) {
        if ended != self.ended || pending == 0 {
            self.moved_at = now;
        }
        (self.ended, self.pending, self.read_at) = (ended, pending, now);
        let is_due = |(at, _): &(Instant, u64)| now.saturating_duration_since(*at) >= LEAST_GAP;
        if self.readings.back().is_none_or(is_due) {
            self.readings.push_back((now, ended));
        }
        while self.readings.len() > 1 && self.readings[1].0 + WINDOW <= now {
            self.readings.pop_front();
        }
    }

    /// How long the counters couldn't be read; `None` while they are, which is ten times a second.
    fn unread_for(&self, now: Instant) -> Option<Duration> {
        let unread_for = now.saturating_duration_since(self.read_at);
        (unread_for >= LEAST_GAP).then_some(unread_for)
    }

    /// Items in a second, and seconds until none waits.
    fn outlook(&self, now: Instant) -> (f64, f64) {
        let per_second = self.per_second(now);
        if self.pending == 0 {
            return (per_second, 0.0);
        }
        #[expect(
            clippy::cast_precision_loss,
            reason = "an estimate needs no more than 52 bits"
        )]
        let seconds_left = self.pending as f64 / per_second;
        (per_second, seconds_left)
    }

    /// Zero where nothing is known, or the file is another one by now.
    fn per_second(&self, now: Instant) -> f64 {
        let Some((since, ended)) = self.readings.front() else {
            return 0.0;
        };
        let seconds = now.saturating_duration_since(*since).max(LEAST_GAP);
        #[expect(
            clippy::cast_precision_loss,
            reason = "an estimate needs no more than 52 bits"
        )]
        let left = self.ended.saturating_sub(*ended) as f64;
        left / seconds.as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn measured() -> Measured {
        Measured {
            postgres_away: None,
            redis_away: None,
            per_second: 0.0,
            still_for: 7 * SECOND,
            pending: 5_000,
            max_items: 100_000,
        }
    }

    #[test]
    fn an_outage_is_taken_to_last_as_long_again() {
        let away = Measured {
            postgres_away: Some(20 * SECOND),
            redis_away: Some(3 * SECOND),
            per_second: 1_000.0,
            ..measured()
        };
        assert_eq!(away.wait(Awaited::Postgres), 20 * SECOND);
        assert_eq!(away.wait(Awaited::Redis), 3 * SECOND);
        // Nothing leaves the buffer before the store is back, whatever the pace was.
        assert_eq!(away.wait(Awaited::Room), 20 * SECOND);
        assert_eq!(away.wait(Awaited::Drain), 20 * SECOND);
        assert_eq!(away.wait(Awaited::Moment), Duration::ZERO);
    }

    #[test]
    fn a_drain_is_waited_for_at_its_pace_and_a_standstill_as_an_outage() {
        let draining = Measured {
            per_second: 500.0,
            ..measured()
        };
        assert_eq!(draining.wait(Awaited::Drain), 10 * SECOND);
        assert_eq!(draining.wait(Awaited::Room), 2 * SECOND);
        assert_eq!(draining.wait(Awaited::Postgres), Duration::ZERO);
        for awaited in [Awaited::Drain, Awaited::Room] {
            assert_eq!(measured().wait(awaited), 7 * SECOND);
        }
        let drained = Measured {
            pending: 0,
            ..measured()
        };
        assert_eq!(drained.wait(Awaited::Drain), Duration::ZERO);
    }

    #[test]
    fn a_wait_is_whole_seconds_from_1_to_60() {
        assert_eq!(spread(Duration::ZERO, 0.0), SECOND);
        assert_eq!(spread(Duration::ZERO, 0.99), 2 * SECOND);
        assert_eq!(spread(20 * SECOND, 0.0), 20 * SECOND);
        assert_eq!(spread(20 * SECOND, 1.0), 25 * SECOND);
        assert_eq!(spread(Duration::MAX, 0.0), 48 * SECOND);
        assert_eq!(spread(Duration::MAX, 1.0), 60 * SECOND);
    }

    #[test]
    fn the_pace_is_that_of_the_last_ten_seconds() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        assert_eq!(pace.per_second(start), 0.0);
        let mut ended = 1_000_000;
        for tenth in 0..600_u32 {
            let now = start + tenth * SECOND / 10;
            // Half a minute of 300 a second, then of 50.
            ended += if tenth < 300 { 30 } else { 5 };
            pace.note(now, ended, 9);
            if tenth == 299 {
                let rate = pace.per_second(now);
                assert!((290.0..310.0).contains(&rate), "{rate}");
            }
        }
        let now = start + 60 * SECOND;
        let rate = pace.per_second(now);
        assert!((45.0..55.0).contains(&rate), "{rate}");
        assert!(pace.readings.len() <= 12, "{}", pace.readings.len());
        for second in 60..80 {
            pace.note(start + second * SECOND, ended, 9);
        }
        assert_eq!(pace.per_second(start + 80 * SECOND), 0.0);
        // The last item was seen to end at the last tenth of the sixtieth second.
        assert_eq!(pace.moved_at, start + 599 * SECOND / 10);
        pace.note(start + 90 * SECOND, ended, 0);
        let nothing_waits = pace.moved_at;
        assert_eq!(nothing_waits, start + 90 * SECOND);
    }

    #[test]
    fn the_outlook_is_no_number_while_nothing_leaves() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        pace.note(start, 100, 40);
        assert_eq!(pace.outlook(start), (0.0, f64::INFINITY));
        pace.note(start + 2 * SECOND, 120, 20);
        assert_eq!(pace.outlook(start + 2 * SECOND), (10.0, 2.0));
        pace.note(start + 4 * SECOND, 140, 0);
        assert_eq!(pace.outlook(start + 4 * SECOND), (10.0, 0.0));
    }

    #[test]
    fn a_buffer_that_cannot_be_read_is_away() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        pace.note(start + SECOND, 1, 1);
        assert_eq!(pace.unread_for(start + SECOND + SECOND / 10), None);
        assert_eq!(pace.unread_for(start + 31 * SECOND), Some(30 * SECOND));
    }

    #[test]
    fn another_file_with_smaller_counts_is_no_pace() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        pace.note(start, 1_000, 5);
        pace.note(start + 2 * SECOND, 3, 0);
        assert_eq!(pace.per_second(start + 2 * SECOND), 0.0);
    }
}
