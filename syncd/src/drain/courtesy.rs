//! Whether the store serves others while it is drained into, and the room that is then left for them.
//!
//! A drain at full speed takes every core and most of the disk's syncs that it can get, and each client's commit waits
//! for what the drain has written before it. So while others are served, batches are short and each is followed by a
//! rest; when nobody is, nothing is held back.
//!
//! That others are served is told by the store's own count of transactions, less the drain's. PostgreSQL's sessions add
//! theirs up to a second late. That can only hide others for a moment, not make them up, since what is this drain's is
//! taken off at once.

use std::time::{Duration, Instant};

/// Between two looks at the count.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// Over how long others' transactions are counted.
const WINDOW: Duration = Duration::from_secs(5);

/// Fewer than this a second are health probes and the like.
const LEAST_PER_SECOND: f64 = 20.0;

/// And fewer than this at all say nothing yet.
const LEAST_AT_ALL: u64 = 10;

/// How long it is believed that others are served after they were last seen.
const REMEMBERED: Duration = Duration::from_secs(3);

/// An apply beside others' requests is to take no longer: so long may one of theirs have to wait for it. With 20 ms and
/// a rest of twice that, the slowest hundredth of reads took four times as long as without a drain, and 13 000 items a
/// second were drained; with this, half of that and 4 000 (two cores).
const SHORT_BATCH: Duration = Duration::from_millis(5);

/// How long the rest after a batch is, compared with the batch: but never longer than after a short one, since where
/// even the smallest batch takes long the drain must not fall behind what comes in.
const REST: u32 = 4;

/// A count of transactions, from which on others' are counted.
#[derive(Debug, Clone, Copy)]
struct Base {
    at: Instant,
    commits: u64,
}

/// What is known of the others of one store.
#[derive(Debug, Default)]
pub struct Courtesy {
    base: Option<Base>,
    own: u64,
    looked_at: Option<Instant>,
    seen_at: Option<Instant>,
}

impl Courtesy {
    /// Whether it is time to ask the store for its count.
    pub fn wants_look(&self, now: Instant) -> bool {
        self.looked_at
            .is_none_or(|at| now.duration_since(at) >= LOOK_INTERVAL)
    }

    /// Takes in how many transactions the store has counted; `None` where it doesn't.
    pub fn look(&mut self, commits: Option<u64>, now: Instant) {
        self.looked_at = Some(now);
        let Some(commits) = commits else { return };
        let base = *self.base.get_or_insert(Base { at: now, commits });
        let others = commits.saturating_sub(base.commits + self.own);
        let elapsed = now.duration_since(base.at);
        #[expect(clippy::cast_precision_loss, reason = "few in some seconds")]
        let is_busy = others as f64 >= LEAST_PER_SECOND * elapsed.as_secs_f64();
        if others >= LEAST_AT_ALL && is_busy {
            self.seen_at = Some(now);
        }
        if elapsed >= WINDOW {
            // What of its own the store hasn't counted yet comes in the next window, and isn't others' then.
            self.own = (base.commits + self.own).saturating_sub(commits);
            self.base = Some(Base { at: now, commits });
        }
    }

    /// Counts transactions of this drain's.
    pub fn count_own(&mut self, transactions: u64) {
        self.own += transactions;
    }

    /// How long an apply may take, if others are served.
    pub fn batch_limit(&self, now: Instant) -> Option<Duration> {
        self.serves_others(now).then_some(SHORT_BATCH)
    }

    /// How long to rest after a batch that took so long; not at all while nobody else is served.
    pub fn rest_after(&self, took: Duration, now: Instant) -> Option<Duration> {
        self.serves_others(now)
            .then(|| took.min(SHORT_BATCH) * REST)
    }

    fn serves_others(&self, now: Instant) -> bool {
        self.seen_at
            .is_some_and(|at| now.duration_since(at) < REMEMBERED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOOK: Duration = Duration::from_millis(4);

    fn after(start: Instant, ms: u64) -> Instant {
        start + Duration::from_millis(ms)
    }

    #[test]
    fn others_are_made_room_for_as_long_as_they_are_there() {
        let (mut courtesy, start) = (Courtesy::default(), Instant::now());
        courtesy.look(Some(1_000), start);
        assert_eq!(courtesy.rest_after(TOOK, start), None);
        let seen = after(start, 250);
        assert!(courtesy.wants_look(seen) && !courtesy.wants_look(after(start, 249)));
        courtesy.look(Some(1_050), seen);
        assert_eq!(courtesy.rest_after(TOOK, seen), Some(TOOK * REST));
        assert_eq!(courtesy.batch_limit(seen), Some(SHORT_BATCH));
        let long = Duration::from_secs(9);
        assert_eq!(courtesy.rest_after(long, seen), Some(SHORT_BATCH * REST));
        assert_eq!(courtesy.batch_limit(seen + REMEMBERED), None);
    }

    #[test]
    fn the_drain_s_own_transactions_and_probes_are_nobody_s() {
        let (mut courtesy, start) = (Courtesy::default(), Instant::now());
        courtesy.look(Some(0), start);
        for step in 1..200 {
            courtesy.count_own(10);
            // All of its own, reported a second late, and five probes a second.
            let reported = (step * 10u64).saturating_sub(40) + step * 5 / 4;
            let now = after(start, step * 250);
            courtesy.look(Some(reported), now);
            assert_eq!(courtesy.batch_limit(now), None, "step {step}");
        }
    }

    #[test]
    fn own_transactions_that_are_counted_late_are_nobody_s_in_the_next_window_either() {
        let (mut courtesy, start) = (Courtesy::default(), Instant::now());
        courtesy.look(Some(0), start);
        let mut made = 0;
        for step in 1..200 {
            courtesy.count_own(25);
            made += 25;
            // Once a second all of that second are counted, and in between none.
            let counted = made / 100 * 100;
            let now = after(start, step * 250);
            courtesy.look(Some(counted), now);
            assert_eq!(courtesy.batch_limit(now), None, "step {step}");
        }
    }

    #[test]
    fn a_store_that_does_not_count_is_drained_into_at_full_speed() {
        let (mut courtesy, start) = (Courtesy::default(), Instant::now());
        for step in 0..20 {
            courtesy.look(None, after(start, step * 250));
        }
        assert_eq!(courtesy.batch_limit(after(start, 5_000)), None);
    }
}
