//! Whether the store serves others while it is drained into, and the room that is then left for them.
//!
//! A drain at full speed takes every core and most of the disk's syncs that it can get, and each client's commit waits
//! for what the drain has written before it. So while others are served, batches are short and each is followed by a
//! rest; when nobody is, nothing is held back.
//!
//! That others are served is told by the store's list of what each session does. Its count of transactions would tell it
//! later, by up to a second, and counts autovacuum's too.

use std::time::{Duration, Instant};

/// Between two looks at the list, each of which covers what has begun since the one before.
pub const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// How long it is believed that others are served after a look that saw them: it may have met somebody who looks in by
/// hand.
const GLIMPSED: Duration = Duration::from_millis(500);

/// And after two looks that saw them.
const REMEMBERED: Duration = Duration::from_secs(3);

/// An apply beside others' requests is to take no longer: so long may one of theirs have to wait for it. With 5 ms the
/// slowest hundredth of requests took 2 to 3 times as long as without a drain, and 7 000 to 8 500 items a second were
/// drained; with this, 1.1 to 1.5 times as long and 3 000 (two cores).
const SHORT_BATCH: Duration = Duration::from_micros(800);

/// How long the rest after a batch is, compared with the batch: but never longer than after a short one, since where
/// even the smallest batch takes long the drain must not fall behind what comes in.
const REST: u32 = 4;

/// What is known of the others of one store.
#[derive(Debug, Default)]
pub struct Courtesy {
    looked_at: Option<Instant>,
    /// When they were seen last, and when the time before.
    seen_at: [Option<Instant>; 2],
    /// What waited at the last look.
    waiting: u64,
    /// How many waited before they became more, until they are as few again: room for others must not fill the buffer.
    behind: Option<u64>,
}

impl Courtesy {
    /// Whether it is time to look.
    pub fn wants_look(&self, now: Instant) -> bool {
        self.looked_at
            .is_none_or(|at| now.duration_since(at) >= LOOK_INTERVAL)
    }

    /// Takes in whether others have used the store in the last [`LOOK_INTERVAL`], and how many items wait.
    pub fn look(&mut self, serves_others: bool, waiting: u64, now: Instant) {
        let before = self.looked_at.replace(now);
        let is_lately = before.is_some_and(|at| now.duration_since(at) < REMEMBERED);
        let grew = is_lately && waiting > self.waiting;
        self.behind = match self.behind {
            Some(level) if is_lately && waiting > level => Some(level),
            _ => grew.then_some(self.waiting),
        };
        self.waiting = waiting;
        if serves_others {
            self.seen_at = [Some(now), self.seen_at[0]];
        }
    }

    /// Nothing is left that could be drained now: what waits on is no sign of a slow drain.
    pub fn run_dry(&mut self) {
        self.behind = None;
    }

    /// How long an apply may take, if room is made for others.
    pub fn batch_limit(&self, now: Instant) -> Option<Duration> {
        self.makes_room(now).then_some(SHORT_BATCH)
    }

    /// How long to rest after a batch that took so long; not at all while no room is made for others.
    pub fn rest_after(&self, took: Duration, now: Instant) -> Option<Duration> {
        self.makes_room(now).then(|| took.min(SHORT_BATCH) * REST)
    }

    fn makes_room(&self, now: Instant) -> bool {
        self.behind.is_none() && self.serves_others(now)
    }

    fn serves_others(&self, now: Instant) -> bool {
        let is_within = |seen_at: Option<Instant>, time| {
            seen_at.is_some_and(|at| now.duration_since(at) < time)
        };
        let [last, before] = self.seen_at;
        is_within(last, GLIMPSED) || is_within(before, REMEMBERED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOOK: Duration = Duration::from_micros(600);

    fn after(start: Instant, ms: u64) -> Instant {
        start + Duration::from_millis(ms)
    }

    #[test]
    fn others_are_made_room_for_as_soon_as_they_are_seen() {
        let (mut courtesy, start) = (Courtesy::default(), Instant::now());
        assert!(courtesy.wants_look(start));
        assert_eq!(courtesy.rest_after(TOOK, start), None);
        courtesy.look(true, 9, start);
        assert!(courtesy.wants_look(after(start, 250)) && !courtesy.wants_look(after(start, 249)));
        assert_eq!(courtesy.rest_after(TOOK, start), Some(TOOK * REST));
        assert_eq!(courtesy.batch_limit(start), Some(SHORT_BATCH));
        let long = Duration::from_secs(9);
        assert_eq!(courtesy.rest_after(long, start), Some(SHORT_BATCH * REST));
    }

    #[test]
    fn who_looks_in_now_and_then_is_made_room_for_no_longer_than_a_moment() {
        let (mut courtesy, start) = (Courtesy::default(), Instant::now());
        for step in 0..100 {
            let now = after(start, step * 250);
            courtesy.look(step % 13 == 0, 9, now);
            let is_glimpsed = step % 13 < 2;
            assert_eq!(
                courtesy.batch_limit(now).is_some(),
                is_glimpsed,
                "step {step}"
            );
        }
    }

    #[test]
    fn when_the_others_have_gone_nothing_is_held_back() {
        let (mut courtesy, start) = (Courtesy::default(), Instant::now());
        for step in 0..8 {
            courtesy.look(true, 9, after(start, step * 250));
        }
        let last = after(start, 7 * 250);
        courtesy.look(false, 9, after(last, 250));
        assert_eq!(courtesy.batch_limit(after(last, 250)), Some(SHORT_BATCH));
        assert_eq!(courtesy.batch_limit(last + REMEMBERED), None);
    }

    #[test]
    fn who_has_run_dry_is_not_behind() {
        let (mut courtesy, start) = (Courtesy::default(), Instant::now());
        courtesy.look(true, 0, start);
        courtesy.look(true, 5, after(start, 250));
        assert_eq!(courtesy.batch_limit(after(start, 250)), None);
        courtesy.run_dry();
        assert_eq!(courtesy.batch_limit(after(start, 250)), Some(SHORT_BATCH));
        courtesy.look(true, 5, after(start, 500));
        assert_eq!(courtesy.batch_limit(after(start, 500)), Some(SHORT_BATCH));
    }

    #[test]
    fn no_room_is_made_while_more_comes_in_than_is_drained() {
        let (mut courtesy, start) = (Courtesy::default(), Instant::now());
        for (step, waiting, makes_room) in [
            (0, 9, true),
            (1, 10, false),
            (2, 12, false),
            (3, 9, true),
            (4, 8, true),
            (5, 8, true),
            (6, 9, false),
            // What came in while nobody looked says nothing.
            (6 + 12, 99, true),
            (6 + 13, 100, false),
        ] {
            let now = after(start, step * 250);
            courtesy.look(true, waiting, now);
            assert_eq!(
                courtesy.batch_limit(now).is_some(),
                makes_room,
                "step {step}"
            );
            assert_eq!(
                courtesy.rest_after(TOOK, now).is_some(),
                makes_room,
                "step {step}"
            );
        }
    }
}
