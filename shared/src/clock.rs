//! The hybrid logical clock that stamps writes: PostgreSQL's time, never behind what it has seen.
//!
//! Once PostgreSQL's clock is known, time is this machine's boot clock plus the distance between the two: nobody can set
//! the boot clock, so what becomes of the wall clock in an outage changes nothing. It counts on while the machine sleeps,
//! but not while a virtual machine is paused: such a node is behind by the pause until it sees PostgreSQL again. Until
//! then it is the wall clock, and stamps made in that time are corrected later (see the buffer's `epoch.rs`).

use std::fs;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::domain::{NodeId, Stamp, Timestamp};

/// A distance not yet measured.
const UNKNOWN: i64 = i64::MIN;

/// The identity of this run of the machine, which Linux makes anew at each boot.
const BOOT_ID_FILE: &str = "/proc/sys/kernel/random/boot_id";

/// One run of the machine: boot clocks of different ones have nothing to do with each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BootId(u128);

impl BootId {
    /// From a number that stands for it.
    pub fn from_number(number: u128) -> Self {
        BootId(number)
    }

    /// The number that stands for it.
    pub fn as_number(self) -> u128 {
        self.0
    }

    /// This run's. Where the system doesn't tell, one of this process' own: nothing of its clock is then believed by
    /// any other process.
    fn of_this_run() -> Self {
        static THIS: LazyLock<BootId> = LazyLock::new(|| {
            let told = fs::read_to_string(BOOT_ID_FILE).ok();
            let known = told.and_then(|text| Uuid::try_parse(text.trim()).ok());
            BootId(known.unwrap_or_else(Uuid::new_v4).as_u128())
        });
        *THIS
    }
}

/// What the machine's clocks say at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// The wall clock, which anybody may set.
    pub wall: Timestamp,
    /// Time since the machine was started, sleep included.
    pub since_boot: Duration,
    /// Which start that was.
    pub boot: BootId,
}

impl Reading {
    /// The clocks of this machine, now. A wall clock before 1970 reads as 1970.
    pub fn take() -> Self {
        let since_boot = clock_gettime(ClockId::CLOCK_BOOTTIME)
            .map(Duration::from)
            .expect("every Linux that runs this has the boot clock");
        let wall = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Reading {
            wall: Timestamp::from_micros(micros(wall)),
            since_boot,
            boot: BootId::of_this_run(),
        }
    }

    /// Microseconds since the machine was started.
    pub fn since_boot_us(&self) -> i64 {
        micros(self.since_boot)
    }
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

/// How far PostgreSQL's clock is ahead of this machine's two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Distance {
    /// Of the wall clock, in microseconds.
    pub wall_us: i64,
    /// Of the boot clock, in microseconds.
    pub boot_us: i64,
}

impl Distance {
    /// The distance at the moment of `reading`, when PostgreSQL's clock said `theirs`.
    pub fn between(reading: &Reading, theirs: Timestamp) -> Self {
        let theirs_us = theirs.as_micros();
        Distance {
            wall_us: theirs_us.saturating_sub(reading.wall.as_micros()),
            boot_us: theirs_us.saturating_sub(reading.since_boot_us()),
        }
    }

    /// Of the wall clock, in milliseconds.
    pub fn wall_ms(self) -> i64 {
        self.wall_us / 1000
    }
}

/// Where a clock gets its readings from.
type Source = Box<dyn Fn() -> Reading + Send + Sync>;

/// One process' clock. Stamps it gives are strictly increasing, and greater than every stamp it has observed.
///
/// A hybrid logical clock (Kulkarni et al., 2014) whose physical part is PostgreSQL's time, as the health probe has
/// measured it, also through an outage.
pub struct Clock {
    node: NodeId,
    source: Source,
    last_tick: Mutex<i64>,
    boot_distance_us: AtomicI64,
    wall_distance_us: AtomicI64,
}

impl Clock {
    /// A clock of this writer that doesn't know PostgreSQL's yet.
    pub fn new(node: NodeId) -> Self {
        Clock::reading(node, Reading::take)
    }

    /// The same, over other clocks than this machine's.
    pub fn reading(node: NodeId, source: impl Fn() -> Reading + Send + Sync + 'static) -> Self {
        Clock {
            node,
            source: Box::new(source),
            last_tick: Mutex::new(0),
            boot_distance_us: AtomicI64::new(UNKNOWN),
            wall_distance_us: AtomicI64::new(UNKNOWN),
        }
    }

    /// Which writer it stamps for.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// What the machine's clocks say.
    pub fn read(&self) -> Reading {
        (self.source)()
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

    /// Takes over how far away PostgreSQL's clock is.
    pub fn learn(&self, distance: Distance) {
        self.wall_distance_us
            .store(distance.wall_us, Ordering::Relaxed);
        self.learn_from_boot(distance.boot_us);
    }

    /// Takes over how far PostgreSQL's clock is ahead of this run's boot clock, in microseconds.
    pub fn learn_from_boot(&self, boot_us: i64) {
        self.boot_distance_us.store(boot_us, Ordering::Relaxed);
    }

    /// How far PostgreSQL's clock is ahead of the boot clock, in microseconds; `None` while nobody knows.
    pub fn boot_distance_us(&self) -> Option<i64> {
        known(&self.boot_distance_us)
    }

    /// How far PostgreSQL's clock was ahead of the wall clock when this process last asked, in milliseconds; `None`
    /// before it could.
    pub fn skew_ms(&self) -> Option<i64> {
        known(&self.wall_distance_us).map(|distance_us| distance_us / 1000)
    }

    /// PostgreSQL's time where it is known, else the wall clock's.
    pub fn now(&self) -> Timestamp {
        let reading = self.read();
        match self.boot_distance_us() {
            Some(ahead_us) => {
                Timestamp::from_micros(reading.since_boot_us().saturating_add(ahead_us))
            }
            None => reading.wall,
        }
    }
}

fn known(distance_us: &AtomicI64) -> Option<i64> {
    let distance_us = distance_us.load(Ordering::Relaxed);
    (distance_us != UNKNOWN).then_some(distance_us)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(wall_ms: i64, since_boot_ms: u64) -> Reading {
        Reading {
            wall: Timestamp::from_micros(wall_ms * 1000),
            since_boot: Duration::from_millis(since_boot_ms),
            boot: BootId::from_number(1),
        }
    }

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
    fn the_wall_clock_counts_only_until_postgres_time_is_known() {
        let (true_ms, wrong_ms) = (1_795_000_000_000, 2_100_000_000_000);
        let clock = Clock::reading(NodeId::from_number(0), move || at(wrong_ms, 5_000));
        assert_eq!(clock.now().as_millis(), wrong_ms);
        assert_eq!((clock.boot_distance_us(), clock.skew_ms()), (None, None));
        let theirs = Timestamp::from_micros(true_ms * 1000);
        clock.learn(Distance::between(&clock.read(), theirs));
        assert_eq!(clock.now(), theirs);
        assert_eq!(clock.skew_ms(), Some(true_ms - wrong_ms));
    }

    #[test]
    fn a_wall_clock_that_is_set_in_an_outage_moves_nothing() {
        let readings = Mutex::new(vec![at(1, 20_000), at(9_000_000_000_000, 10_000)]);
        let clock = Clock::reading(NodeId::from_number(0), move || {
            let mut readings = readings.lock().expect("not poisoned");
            readings.pop().expect("asked twice")
        });
        clock.learn_from_boot(1_795_000_000_000_000);
        let (before, after) = (clock.now(), clock.now());
        assert_eq!(after.as_millis() - before.as_millis(), 10_000);
    }

    #[test]
    fn stamps_never_fall_when_postgres_clock_is_set_back() {
        let clock = Clock::new(NodeId::from_number(0));
        let true_us = 1_795_000_000_000_000;
        clock.learn_from_boot(true_us + 86_400_000_000);
        let before = clock.stamp();
        clock.learn_from_boot(true_us);
        let after = clock.stamp();
        assert!(after > before && clock.now() < before.time());
        clock.learn_from_boot(true_us + 2 * 86_400_000_000);
        assert!(clock.stamp().time() > before.time());
    }

    #[test]
    fn this_machine_s_clocks_agree_with_themselves() {
        let (one, other) = (Reading::take(), Reading::take());
        assert_eq!(one.boot, other.boot);
        assert!(one.since_boot <= other.since_boot && one.since_boot > Duration::ZERO);
    }
}
