//! Resources whose rows somebody else keeps locked: put off for a moment, so that they hold nobody up.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use holdfast_shared::domain::ResourceKey;

/// First wait of a resource that was contended; doubles with each time in a row.
const FIRST_WAIT: Duration = Duration::from_millis(250);

/// Longest wait, and so the longest time that a row which was locked for hours goes on waiting after it is free. All that
/// are due are asked about in one statement that waits for none, so it may be short.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// How long after it was due a resource is forgotten: nothing of it is queued any more.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(30);

/// Most resources asked about at once.
const MOST_DUE: usize = 500;

/// Most resources parked. Beyond it all are forgotten, and found again as they are met.
const MOST_PARKED: usize = 10_000;

/// Part of a wait that is random, so that two drains never keep meeting on the same rows.
const JITTER: f64 = 0.5;

/// How far back contention counts towards [`MOST_CONTENDED`].
const WINDOW: Duration = Duration::from_secs(10);

/// So many different resources contended within [`WINDOW`], with nothing to be applied beside them, mean that not a row
/// but the store is the trouble.
pub const MOST_CONTENDED: usize = 20;

#[derive(Debug, Clone, Copy)]
struct Parked {
    until: Instant,
    contended_at: Instant,
    times: u32,
}

/// The parked resources of one lane, in memory only: after a restart each is simply tried again.
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
        if self.parked.len() >= MOST_PARKED {
            self.parked.clear();
        }
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

    /// Those that may be tried again, at most [`MOST_DUE`], the ones that have been due for longest. Forgets those that
    /// have long been due.
    pub fn due(&mut self, now: Instant) -> Vec<ResourceKey> {
        self.parked
            .retain(|_, parked| parked.until + FORGOTTEN_AFTER > now);
        let mut due: Vec<(Instant, &ResourceKey)> = self
            .parked
            .iter()
            .filter(|(_, parked)| parked.until <= now)
            .map(|(resource, parked)| (parked.until, resource))
            .collect();
        due.sort_unstable_by_key(|(until, _)| *until);
        let due = due.into_iter().take(MOST_DUE);
        due.map(|(_, resource)| resource.clone()).collect()
    }

    /// All that are parked, whether or not they are due.
    pub fn resources(&self) -> impl Iterator<Item = &ResourceKey> {
        self.parked.keys()
    }

    /// When the next of them is due, of those that aren't yet.
    pub fn next_due(&self, now: Instant) -> Option<Instant> {
        let waiting = self.parked.values().map(|parked| parked.until);
        waiting.filter(|until| *until > now).min()
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
    fn waits_double_up_to_the_longest() {
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
        assert_eq!(parking.due(start), []);
        assert_eq!(parking.next_due(start), Some(start + wait));
        assert!(parking.resources().any(|parked| *parked == task));
        assert_eq!(parking.due(start + wait), [task]);
        assert_eq!(parking.next_due(start + wait), None);
    }

    #[test]
    fn those_that_have_been_due_for_longest_have_their_turn_first() {
        let (mut parking, start) = (Parking::default(), Instant::now());
        let tasks: Vec<ResourceKey> = (0..=MOST_DUE).map(|_| resource()).collect();
        for (number, task) in (0..).zip(&tasks) {
            parking.park(task.clone(), start + Duration::from_micros(number), 0.0);
        }
        assert_eq!(parking.due(start + LONGEST_WAIT), tasks[..MOST_DUE]);
    }

    #[test]
    fn the_parked_are_bounded() {
        let (mut parking, start) = (Parking::default(), Instant::now());
        for _ in 0..=MOST_PARKED {
            parking.park(resource(), start, 0.0);
        }
        assert_eq!(parking.parked.len(), 1);
    }

    #[test]
    fn a_released_resource_begins_anew() {
        let (mut parking, start, task) = (Parking::default(), Instant::now(), resource());
        parking.park(task.clone(), start, 0.0);
        parking.release(&task);
        assert_eq!(parking.resources().count(), 0);
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
        parking.due(start + LONGEST_WAIT + FORGOTTEN_AFTER);
        assert!(parking.parked.is_empty());
    }
}
