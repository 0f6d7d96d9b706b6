//! When an item that its store refuses is tried again, and when it has been tried often enough.

use std::time::Duration;

/// Least time between an item's first try and its last: long enough for another node's create, which an update may
/// have overtaken, and for a deployment to finish.
const LEAST_SPREAD: Duration = Duration::from_secs(30);

/// Longest wait between two tries, so that a high `MAX_RETRY_ATTEMPTS` doesn't mean days.
const LONGEST_WAIT: Duration = Duration::from_secs(300);

/// Part of a wait that may be added at random, so that items that failed together don't all come back together.
const JITTER: f64 = 0.2;

/// What follows a failed try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NextTry {
    /// Another one, after this long.
    After(Duration),
    /// None: it has had them all.
    Never,
}

/// The tries of one item: how many, and how far apart. Waits double, and add up to at least [`LEAST_SPREAD`] as soon
/// as there are two tries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetrySchedule {
    tries: u32,
}

impl RetrySchedule {
    /// A schedule of this many tries, at least one.
    pub fn new(tries: u32) -> Self {
        RetrySchedule {
            tries: tries.max(1),
        }
    }

    /// What follows when the try after `failed_before` failed ones has failed too. `chance` is a random number from
    /// 0 to 1.
    pub fn after_failure(self, failed_before: u32, chance: f64) -> NextTry {
        if failed_before.saturating_add(1) >= self.tries {
            return NextTry::Never;
        }
        let wait = self.wait(failed_before);
        NextTry::After(wait.mul_f64(1.0 + JITTER * chance.clamp(0.0, 1.0)))
    }

    /// Wait number `index` without jitter: a first wait doubled `index` times, where the first is such that all of
    /// them add up to the spread.
    fn wait(self, index: u32) -> Duration {
        // Beyond 2^16 the first wait is its least anyway, and the cap holds long before.
        let parts = (1u32 << (self.tries - 1).min(16)) - 1;
        let first = (LEAST_SPREAD / parts.max(1)).max(Duration::from_secs(1));
        first.saturating_mul(1 << index.min(16)).min(LONGEST_WAIT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waits(tries: u32, chance: f64) -> Vec<Duration> {
        let schedule = RetrySchedule::new(tries);
        (0..)
            .map_while(|failed| match schedule.after_failure(failed, chance) {
                NextTry::After(wait) => Some(wait),
                NextTry::Never => None,
            })
            .collect()
    }

    #[test]
    fn three_tries_take_half_a_minute() {
        assert_eq!(
            waits(3, 0.0),
            [Duration::from_secs(10), Duration::from_secs(20)]
        );
        assert_eq!(
            waits(3, 1.0),
            [Duration::from_secs(12), Duration::from_secs(24)]
        );
    }

    #[test]
    fn any_number_of_tries_is_spread_far_enough_and_stays_bounded() {
        for tries in 2..=100 {
            let waits = waits(tries, 0.0);
            assert_eq!(
                waits.len(),
                usize::try_from(tries - 1).expect("small"),
                "{tries}"
            );
            let total: Duration = waits.iter().sum();
            assert!(
                total >= LEAST_SPREAD - Duration::from_millis(1),
                "{tries}: {total:?}"
            );
            assert!(waits.iter().all(|wait| *wait <= LONGEST_WAIT), "{tries}");
        }
    }

    #[test]
    fn a_single_try_is_the_last() {
        assert_eq!(RetrySchedule::new(1).after_failure(0, 0.5), NextTry::Never);
        assert_eq!(RetrySchedule::new(0).after_failure(0, 0.5), NextTry::Never);
    }

    #[test]
    fn an_item_that_failed_more_often_than_is_now_allowed_is_done() {
        assert_eq!(RetrySchedule::new(3).after_failure(7, 0.5), NextTry::Never);
    }
}
