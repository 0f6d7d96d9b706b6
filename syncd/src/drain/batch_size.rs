//! How many items the next batch has: gentle on a store that has just come back, large once it keeps up.

use std::time::Duration;

/// An apply that took less is fast enough to try twice as many. A quarter of a second keeps the row locks of a batch
/// shorter than a direct write's deadline (750 ms by default), so clients' own writes don't time out behind it.
const GOOD_LATENCY: Duration = Duration::from_millis(250);

/// The least size beside others' requests: what fewer items cost is almost all the round trips.
const LEAST: usize = 16;

/// So few items take a near store a few milliseconds.
const FEW: usize = 50;

/// A batch of a few items that takes so many times the limit spends that on the way to a store that is far, or on its
/// disk: fewer would hardly shorten it, and only lower the rate.
const FAR: u32 = 20;

/// The size of the next batch: between the first size after an outage and the largest one.
///
/// It goes below the first size only to keep within a limit: what a small batch costs is mostly the round trip, and
/// halving that batch would only halve the rate.
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
    /// a `limit` it keeps below that: doubles only when twice as much would still do, and goes below the first size
    /// where that helps.
    pub fn applied(&mut self, items: usize, took: Duration, limit: Option<Duration>) {
        if took >= limit.unwrap_or(GOOD_LATENCY) {
            let least = match limit {
                None => self.first,
                Some(limit) if took >= limit * FAR => FEW.min(self.first),
                Some(_) => self.least(),
            };
            self.current = (self.current / 2).max(least);
        } else if items >= self.current && limit.is_none_or(|limit| took * 2 < limit) {
            self.current = self.current.saturating_mul(2).min(self.max);
        }
    }

    /// A batch failed and had to be taken apart: the smaller the next one, the cheaper that is.
    pub fn halve(&mut self) {
        self.current = (self.current / 2).max(self.first.min(self.current));
    }

    fn least(self) -> usize {
        LEAST.min(self.first)
    }

    /// After an outage: as at the beginning.
    pub fn reset(&mut self) {
        self.current = self.first;
    }

    /// Takes over other bounds, keeping as much of the current size as they allow.
    pub fn set_bounds(&mut self, first: usize, max: usize) {
        let bounds = BatchSize::new(first, max);
        let least = if self.current < self.first {
            bounds.least()
        } else {
            bounds.first
        };
        *self = BatchSize {
            current: self.current.clamp(least, bounds.max),
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
    fn to_keep_within_a_limit_a_batch_may_be_smaller_than_the_first() {
        let limit = Some(Duration::from_millis(20));
        let mut size = BatchSize::new(50, 2_000);
        for expected in [25, LEAST, LEAST] {
            size.applied(size.get(), Duration::from_millis(20), limit);
            assert_eq!(size.get(), expected);
        }
        // Neither a failure nor new bounds make it larger; a fast batch does.
        size.halve();
        size.set_bounds(50, 2_000);
        assert_eq!(size.get(), LEAST);
        size.applied(LEAST, FAST, None);
        assert_eq!(size.get(), LEAST * 2);
        let mut smallest = BatchSize::new(1, 2_000);
        smallest.applied(1, Duration::from_millis(20), limit);
        assert_eq!(smallest.get(), 1);
        let mut largest = BatchSize::new(2_000, 2_000);
        for _ in 0..7 {
            largest.applied(largest.get(), Duration::from_millis(20), limit);
        }
        assert_eq!(largest.get(), LEAST);
    }

    #[test]
    fn a_far_store_gets_a_few_items_at_a_time_and_no_fewer() {
        let limit = Duration::from_millis(1);
        let mut size = BatchSize::new(100, 2_000);
        let far = limit * FAR;
        for (took, expected) in [(far, FEW), (far, FEW), (limit, FEW / 2), (far, FEW)] {
            size.applied(size.get(), took, Some(limit));
            assert_eq!(size.get(), expected, "after {took:?}");
        }
        let mut small = BatchSize::new(10, 2_000);
        small.applied(10, far, Some(limit));
        assert_eq!(small.get(), 10);
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
