//! How many items the next batch has: gentle on a store that has just come back, large once it keeps up.

use std::time::Duration;

/// An apply that took less is fast enough to try twice as many. A quarter of a second keeps the row locks of a batch
/// shorter than a direct write's deadline (750 ms by default), so clients' own writes don't time out behind it.
const GOOD_LATENCY: Duration = Duration::from_millis(250);

/// The size of the next batch: between the first size after an outage and the largest one.
///
/// It never goes below the first size: what a small batch costs is mostly the round trip, and halving that batch
/// would only halve the rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchSize {
    first: usize,
    max: usize,
    current: usize,
}

impl BatchSize {
    /// Begins at `first`, which is at least 1 and at most `max`.
    pub fn new(first: usize, max: usize) -> Self {
        let first = first.max(1);
        BatchSize {
            first,
            max: max.max(first),
            current: first,
        }
    }

    /// Most items of the next batch.
    pub fn get(self) -> usize {
        self.current
    }

    /// The first size.
    pub fn first(self) -> usize {
        self.first
    }

    /// Learns from a batch that was applied whole: doubles after a full one that was fast, halves after a slow one. With
    /// a `limit` it keeps below that: doubles only when twice as much would still do.
    pub fn applied(&mut self, items: usize, took: Duration, limit: Option<Duration>) {
        if took >= limit.unwrap_or(GOOD_LATENCY) {
            self.halve();
        } else if items >= self.current && limit.is_none_or(|limit| took * 2 < limit) {
            self.current = self.current.saturating_mul(2).min(self.max);
        }
    }

    /// A batch failed and had to be taken apart: the smaller the next one, the cheaper that is.
    pub fn halve(&mut self) {
        self.current = (self.current / 2).max(self.first);
    }

    /// After an outage: as at the beginning.
    pub fn reset(&mut self) {
        self.current = self.first;
    }

    /// Takes over other bounds, keeping as much of the current size as they allow.
    pub fn set_bounds(&mut self, first: usize, max: usize) {
        let bounds = BatchSize::new(first, max);
        *self = BatchSize {
            current: self.current.clamp(bounds.first, bounds.max),
            ..bounds
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAST: Duration = Duration::from_millis(249);
    const SLOW: Duration = Duration::from_millis(250);

    #[test]
    fn full_fast_batches_double_up_to_the_maximum() {
        let mut size = BatchSize::new(50, 300);
        let sizes: Vec<usize> = (0..5)
            .map(|_| {
                size.applied(size.get(), FAST, None);
                size.get()
            })
            .collect();
        assert_eq!(sizes, [100, 200, 300, 300, 300]);
    }

    #[test]
    fn a_batch_that_was_not_full_proves_nothing() {
        let mut size = BatchSize::new(50, 300);
        size.applied(49, FAST, None);
        assert_eq!(size.get(), 50);
    }

    #[test]
    fn slow_batches_halve_down_to_the_first_size() {
        let mut size = BatchSize::new(50, 400);
        (0..3).for_each(|_| size.applied(size.get(), FAST, None));
        assert_eq!(size.get(), 400);
        size.applied(10, SLOW, None);
        assert_eq!(size.get(), 200);
        (0..5).for_each(|_| size.applied(200, SLOW, None));
        assert_eq!(size.get(), 50);
    }

    #[test]
    fn within_a_limit_a_batch_grows_only_as_far_as_it_allows() {
        let limit = Some(Duration::from_millis(20));
        let mut size = BatchSize::new(50, 2_000);
        size.applied(50, Duration::from_millis(9), limit);
        assert_eq!(size.get(), 100);
        size.applied(100, Duration::from_millis(10), limit);
        assert_eq!(size.get(), 100);
        size.applied(100, Duration::from_millis(20), limit);
        assert_eq!(size.get(), 50);
    }

    #[test]
    fn an_outage_begins_anew() {
        let mut size = BatchSize::new(50, 400);
        size.applied(50, FAST, None);
        size.reset();
        assert_eq!(size.get(), 50);
    }

    #[test]
    fn new_bounds_hold_at_once() {
        let mut size = BatchSize::new(50, 400);
        (0..3).for_each(|_| size.applied(size.get(), FAST, None));
        size.set_bounds(10, 100);
        assert_eq!((size.get(), size.first()), (100, 10));
        size.set_bounds(200, 800);
        assert_eq!(size.get(), 200);
    }
}
