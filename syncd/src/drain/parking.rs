//! Resources whose rows somebody else keeps locked: put off for a moment, so that they hold nobody up.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use holdfast_shared::domain::ResourceKey;

/// First wait of a resource that was contended; doubles with each time in a row.
const FIRST_WAIT: Duration = Duration::from_millis(250);

/// Longest wait: a row somebody locks for hours costs one lock timeout in half a minute.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// Part of a wait that is random, so that two drains never keep meeting on the same rows.
const JITTER: f64 = 0.5;

/// How far back contention counts towards [`MOST_CONTENDED`].
const WINDOW: Duration = Duration::from_secs(10);

/// So many different resources contended within [`WINDOW`] mean that not a row but the store is the trouble.
pub const MOST_CONTENDED: usize = 20;

#[derive(Debug, Clone, Copy)]
struct Parked {
    until: Instant,
    contended_at: Instant,
    times: u32,
}

/// Whose turn it is.
#[derive(Debug, PartialEq, Eq)]
pub struct Turn {
    /// The parked resource that is tried again.
    pub chosen: Option<ResourceKey>,
    /// Those that are not.
    pub skipped: HashSet<ResourceKey>,
    /// When the next of them is due, when it isn't yet.
    pub next_due: Option<Instant>,
}

/// The parked resources of one lane, in memory only: after a restart each is simply tried again. Holds at most
/// [`MOST_CONTENDED`] that were contended lately, and those that wait.
#[derive(Debug, Default)]
pub struct Parking {
    parked: HashMap<ResourceKey, Parked>,
}

impl Parking {
    /// Parks a resource that was contended just now; says for how long. `chance` is a random number from 0 to 1.
    pub fn park(&mut self, resource: ResourceKey, now: Instant, chance: f64) -> Duration {
        let times = self.parked.get(&resource).map_or(0, |parked| parked.times);
        let wait = FIRST_WAIT
            .saturating_mul(1 << times.min(16))
            .min(LONGEST_WAIT);
        let wait = wait.mul_f64(1.0 - JITTER * chance.clamp(0.0, 1.0));
        let parked = Parked {
            until: now + wait,
            contended_at: now,
            times: times + 1,
        };
        self.parked.insert(resource, parked);
        wait
    }

    /// Forgets a resource that was applied.
    pub fn release(&mut self, resource: &ResourceKey) {
        if !self.parked.is_empty() {
            self.parked.remove(resource);
        }
    }

    /// Whether nothing is parked.
    pub fn is_empty(&self) -> bool {
        self.parked.is_empty()
    }

    /// Forgets all: after an outage nothing of it is true any more.
    pub fn clear(&mut self) {
        self.parked.clear();
    }

    /// Who is tried again now, and who is not. One parked resource at a time, the one that has been due for longest: each
    /// that is still locked costs the whole lock timeout, and the others' items shouldn't wait for more than one.
    /// Forgets those that have long been due: nothing of them is queued any more.
    pub fn turn(&mut self, now: Instant) -> Turn {
        self.parked
            .retain(|_, parked| parked.until + LONGEST_WAIT > now);
        let due = self.parked.iter().filter(|(_, parked)| parked.until <= now);
        let chosen = due
            .min_by_key(|(_, parked)| parked.until)
            .map(|(resource, _)| resource.clone());
        let waiting = self
            .parked
            .values()
            .map(|parked| parked.until)
            .filter(|until| *until > now);
        let next_due = waiting.min();
        let skipped = self
            .parked
            .keys()
            .filter(|resource| Some(*resource) != chosen.as_ref())
            .cloned()
            .collect();
        Turn {
            chosen,
            skipped,
            next_due,
        }
    }

    /// Whether so many different resources were contended of late that the store must be taken as unusable.
    pub fn is_overrun(&self, now: Instant) -> bool {
        let recent = self
            .parked
            .values()
            .filter(|parked| now.duration_since(parked.contended_at) < WINDOW);
        recent.count() >= MOST_CONTENDED
    }
}

#[cfg(test)]
mod tests {
    use holdfast_shared::domain::TaskId;

    use super::*;

    fn resource() -> ResourceKey {
        ResourceKey::Task(TaskId::generate())
    }

    #[test]
    fn waits_double_up_to_half_a_minute() {
        let (mut parking, start, task) = (Parking::default(), Instant::now(), resource());
        let waits: Vec<Duration> = (0..9)
            .map(|_| parking.park(task.clone(), start, 0.0))
            .collect();
        assert_eq!(waits[..3], [FIRST_WAIT, FIRST_WAIT * 2, FIRST_WAIT * 4]);
        assert_eq!(waits[8], LONGEST_WAIT);
    }

    #[test]
    fn jitter_shortens_a_wait_by_half_at_most() {
        let mut parking = Parking::default();
        assert_eq!(
            parking.park(resource(), Instant::now(), 1.0),
            FIRST_WAIT / 2
        );
    }

    #[test]
    fn a_resource_waits_until_its_time_and_then_has_its_turn() {
        let (mut parking, start, task) = (Parking::default(), Instant::now(), resource());
        let wait = parking.park(task.clone(), start, 0.0);
        let before = parking.turn(start);
        assert_eq!((before.chosen, before.next_due), (None, Some(start + wait)));
        assert!(before.skipped.contains(&task));
        let after = parking.turn(start + wait);
        assert_eq!(
            (after.chosen, after.skipped.len(), after.next_due),
            (Some(task), 0, None)
        );
    }

    #[test]
    fn only_the_one_that_has_been_due_for_longest_has_its_turn() {
        let (mut parking, start, first, second) =
            (Parking::default(), Instant::now(), resource(), resource());
        parking.park(first.clone(), start, 0.0);
        parking.park(second.clone(), start + Duration::from_millis(1), 0.0);
        let turn = parking.turn(start + LONGEST_WAIT);
        assert_eq!(
            (turn.chosen, turn.skipped),
            (Some(first), HashSet::from([second]))
        );
    }

    #[test]
    fn a_released_resource_begins_anew() {
        let (mut parking, start, task) = (Parking::default(), Instant::now(), resource());
        parking.park(task.clone(), start, 0.0);
        parking.release(&task);
        assert!(parking.turn(start).skipped.is_empty());
        assert_eq!(parking.park(task, start, 0.0), FIRST_WAIT);
    }

    #[test]
    fn many_different_resources_of_late_are_too_many_and_one_often_is_not() {
        let (mut parking, start, task) = (Parking::default(), Instant::now(), resource());
        for _ in 0..MOST_CONTENDED * 2 {
            parking.park(task.clone(), start, 0.0);
        }
        assert!(!parking.is_overrun(start));
        for _ in 1..MOST_CONTENDED {
            parking.park(resource(), start, 0.0);
        }
        assert!(parking.is_overrun(start));
        assert!(!parking.is_overrun(start + WINDOW));
    }

    #[test]
    fn what_was_parked_long_ago_is_forgotten() {
        let (mut parking, start) = (Parking::default(), Instant::now());
        parking.park(resource(), start, 0.0);
        parking.turn(start + LONGEST_WAIT * 2);
        assert!(parking.parked.is_empty());
    }
}
