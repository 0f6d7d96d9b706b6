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

    /// Forgets all: after an outage nothing of it is true any more.
    pub fn clear(&mut self) {
        self.parked.clear();
    }

    /// The resources that have to wait, and when the first of them may be tried again. Forgets those whose waits have
    /// long been over: nothing of them is queued any more.
    pub fn waiting(&mut self, now: Instant) -> (HashSet<ResourceKey>, Option<Instant>) {
        self.parked
            .retain(|_, parked| parked.until + LONGEST_WAIT > now);
        let waiting = || self.parked.iter().filter(|(_, parked)| parked.until > now);
        let resources = waiting().map(|(resource, _)| resource.clone()).collect();
        (resources, waiting().map(|(_, parked)| parked.until).min())
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
    fn a_resource_waits_until_its_time_and_then_no_more() {
        let (mut parking, start, task) = (Parking::default(), Instant::now(), resource());
        let wait = parking.park(task.clone(), start, 0.0);
        assert_eq!(
            parking.waiting(start),
            (HashSet::from([task]), Some(start + wait))
        );
        assert_eq!(parking.waiting(start + wait), (HashSet::new(), None));
    }

    #[test]
    fn a_released_resource_begins_anew() {
        let (mut parking, start, task) = (Parking::default(), Instant::now(), resource());
        parking.park(task.clone(), start, 0.0);
        parking.release(&task);
        assert!(parking.waiting(start).0.is_empty());
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
        parking.waiting(start + LONGEST_WAIT * 2);
        assert!(parking.parked.is_empty());
    }
}
