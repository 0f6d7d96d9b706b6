//! The hybrid logical clock that stamps writes: wall time corrected to PostgreSQL's, never behind what it has seen.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::domain::{NodeId, Stamp, Timestamp};

/// Offset not yet measured.
const UNKNOWN: i64 = i64::MIN;

/// One process' clock. Stamps it gives are strictly increasing, and greater than every stamp it has observed.
///
/// A hybrid logical clock (Kulkarni et al., 2014) whose physical part is local time plus the offset to PostgreSQL's
/// clock, which the health probe measures and which is kept through an outage.
#[derive(Debug)]
pub struct Clock {
    node: NodeId,
    last_tick: Mutex<i64>,
    offset_ms: AtomicI64,
}

impl Clock {
    /// A clock of this writer, without an offset yet.
    pub fn new(node: NodeId) -> Self {
        Clock {
            node,
            last_tick: Mutex::new(0),
            offset_ms: AtomicI64::new(UNKNOWN),
        }
    }

    /// The next stamp.
    pub fn stamp(&self) -> Stamp {
        let physical = Stamp::tick_at(self.now().as_millis());
        let mut last = self
            .last_tick
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *last = physical.max(*last + 1);
        Stamp::new(*last, self.node)
    }

    /// Makes every later stamp greater than this one.
    pub fn observe(&self, stamp: Stamp) {
        let mut last = self
            .last_tick
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *last = stamp.tick().max(*last);
    }

    /// Records how far PostgreSQL's clock is ahead of this machine's, in milliseconds.
    pub fn set_offset_ms(&self, offset_ms: i64) {
        self.offset_ms.store(offset_ms, Ordering::Relaxed);
    }

    /// The offset last measured, in milliseconds; `None` before the first probe that succeeded.
    pub fn offset_ms(&self) -> Option<i64> {
        let offset = self.offset_ms.load(Ordering::Relaxed);
        (offset != UNKNOWN).then_some(offset)
    }

    /// Wall time corrected by the offset, where one is known.
    pub fn now(&self) -> Timestamp {
        let local_us = local_time_us();
        let offset_us = self.offset_ms().unwrap_or(0).saturating_mul(1000);
        Timestamp::from_micros(local_us.saturating_add(offset_us))
    }
}

/// This machine's time, in microseconds of the Unix epoch; a clock before 1970 reads as 1970.
fn local_time_us() -> i64 {
    let since_epoch = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since_epoch.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_increase_strictly_also_within_a_millisecond() {
        let clock = Clock::new(NodeId::from_number(3));
        let stamps: Vec<Stamp> = (0..10_000).map(|_| clock.stamp()).collect();
        assert!(stamps.windows(2).all(|pair| pair[0] < pair[1]));
    }

    #[test]
    fn an_observed_stamp_is_exceeded_even_from_the_future() {
        let clock = Clock::new(NodeId::from_number(0));
        let future_ms = clock.now().as_millis() + 3_600_000;
        let future = Stamp::new(Stamp::tick_at(future_ms), NodeId::from_number(16_383));
        clock.observe(future);
        assert!(clock.stamp() > future);
    }

    #[test]
    fn the_offset_moves_the_time() {
        let clock = Clock::new(NodeId::from_number(0));
        assert_eq!(clock.offset_ms(), None);
        clock.set_offset_ms(-86_400_000);
        let behind_ms =
            Clock::new(NodeId::from_number(0)).now().as_millis() - clock.now().as_millis();
        assert!(
            (86_399_000..=86_401_000).contains(&behind_ms),
            "{behind_ms}"
        );
    }
}
