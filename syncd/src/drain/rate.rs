//! How fast a lane drains, and how long the rest will take.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How far back the rate looks: long enough to even batches out, short enough to follow a change.
const WINDOW: Duration = Duration::from_secs(10);

/// Least time a rate is taken over: right after the first batch it would be anything.
const LEAST: Duration = Duration::from_millis(500);

/// Longest estimate worth giving: a hundred days.
const LONGEST_ETA: Duration = Duration::from_secs(100 * 24 * 3600);

/// Counts what was settled of late.
#[derive(Debug, Default)]
pub struct RateMeter {
    /// When each batch was settled and how many it had; at most one entry a tenth of a second.
    batches: VecDeque<(Instant, u64)>,
    began: Option<Instant>,
}

impl RateMeter {
    /// Draining begins.
    pub fn begin(&mut self, now: Instant) {
        self.began.get_or_insert(now);
    }

    /// Draining has ended; the rate is zero until it begins again.
    pub fn end(&mut self) {
        *self = RateMeter::default();
    }

    /// Counts items that were settled at `now`.
    pub fn count(&mut self, now: Instant, items: u64) {
        match self.batches.back_mut() {
            Some((at, counted)) if now.duration_since(*at) < WINDOW / 100 => *counted += items,
            _ => self.batches.push_back((now, items)),
        }
        while self
            .batches
            .front()
            .is_some_and(|(at, _)| now.duration_since(*at) > WINDOW)
        {
            self.batches.pop_front();
        }
    }

    /// Items per second, over the last ten seconds or since draining began.
    pub fn per_second(&self, now: Instant) -> f64 {
        let Some(began) = self.began else { return 0.0 };
        let recent = self
            .batches
            .iter()
            .filter(|(at, _)| now.duration_since(*at) <= WINDOW);
        let items: u64 = recent.map(|(_, items)| items).sum();
        let seconds = now.duration_since(began).clamp(LEAST, WINDOW).as_secs_f64();
        #[expect(
            clippy::cast_precision_loss,
            reason = "a rate needs no more than 52 bits"
        )]
        let items = items as f64;
        items / seconds
    }
}

/// How long `pending` items take at a rate; `None` when there is no telling.
pub fn eta(pending: u64, per_second: f64) -> Option<Duration> {
    if pending == 0 {
        return Some(Duration::ZERO);
    }
    #[expect(
        clippy::cast_precision_loss,
        reason = "an estimate needs no more than 52 bits"
    )]
    let seconds = pending as f64 / per_second;
    (per_second > 0.0 && seconds < LONGEST_ETA.as_secs_f64())
        .then(|| Duration::from_secs_f64(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_steady_drain_shows_its_rate() {
        let (mut meter, start) = (RateMeter::default(), Instant::now());
        meter.begin(start);
        for second in 1..=30 {
            meter.count(start + SECOND * second, 100);
        }
        let rate = meter.per_second(start + SECOND * 30);
        assert!((95.0..=115.0).contains(&rate), "{rate}");
    }

    #[test]
    fn the_rate_falls_to_zero_when_nothing_more_is_settled() {
        let (mut meter, start) = (RateMeter::default(), Instant::now());
        meter.begin(start);
        meter.count(start, 1_000);
        assert!(meter.per_second(start) > 0.0);
        assert!(meter.per_second(start + WINDOW * 2) < f64::EPSILON);
        meter.end();
        assert!(meter.per_second(start) < f64::EPSILON);
    }

    #[test]
    fn many_small_batches_take_little_memory() {
        let (mut meter, start) = (RateMeter::default(), Instant::now());
        meter.begin(start);
        (0..100_000).for_each(|index| meter.count(start + Duration::from_millis(index), 1));
        assert!(meter.batches.len() <= 102, "{}", meter.batches.len());
    }

    #[test]
    fn an_estimate_needs_a_rate() {
        assert_eq!(eta(0, 0.0), Some(Duration::ZERO));
        assert_eq!(eta(10, 0.0), None);
        assert_eq!(eta(10, 2.0), Some(SECOND * 5));
        assert_eq!(eta(u64::MAX, 0.001), None);
    }
}
