//! From the buffer's wall times to the process' monotonic ones, and back.

use std::time::{Duration, Instant};

use holdfast_shared::domain::Timestamp;

/// The time `wait` after `now`.
pub fn after(now: Timestamp, wait: Duration) -> Timestamp {
    let wait_us = i64::try_from(wait.as_micros()).unwrap_or(i64::MAX);
    Timestamp::from_micros(now.as_micros().saturating_add(wait_us))
}

/// How long ago `then` was; zero if it is still to come.
pub fn since(then: Timestamp, now: Timestamp) -> Duration {
    let elapsed_us = now.as_micros().saturating_sub(then.as_micros());
    Duration::from_micros(u64::try_from(elapsed_us).unwrap_or(0))
}

/// The earlier of two times that may not be.
pub fn earliest(one: Option<Timestamp>, other: Option<Timestamp>) -> Option<Timestamp> {
    one.into_iter().chain(other).min()
}

/// A monotonic time as a wall time, when it is `now`.
pub fn timestamp_of(instant: Instant, now: Timestamp) -> Timestamp {
    after(now, instant.saturating_duration_since(Instant::now()))
}

/// A wall time as a monotonic one, when it is `now`.
pub fn instant_of(due: Timestamp, now: Timestamp) -> Instant {
    Instant::now() + since(now, due)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_between_times_are_never_negative() {
        let (early, late) = (
            Timestamp::from_micros(1_000_000),
            Timestamp::from_micros(3_000_000),
        );
        assert_eq!(since(early, late), Duration::from_secs(2));
        assert_eq!(since(late, early), Duration::ZERO);
        assert_eq!(after(early, Duration::from_secs(2)), late);
        assert_eq!(after(late, Duration::MAX), Timestamp::from_micros(i64::MAX));
    }

    #[test]
    fn the_earliest_of_what_there_is() {
        let (early, late) = (Timestamp::from_micros(1), Timestamp::from_micros(2));
        assert_eq!(earliest(Some(late), Some(early)), Some(early));
        assert_eq!(earliest(None, Some(late)), Some(late));
        assert_eq!(earliest(None, None), None);
    }
}
