//! Stamps made while nobody on this machine knew PostgreSQL's clock, and their correction.
//!
//! A node that boots offline with a wrong clock has to stamp writes all the same. It does so on a scale of its own: an
//! *epoch*, one for each run of the machine, in which time is the boot clock plus a base that was fixed when the epoch
//! began. The base is what the wall clock said then, but above the file's high-water mark, so that a resource's items
//! keep their order. Such an item names its epoch; its distance from any other moment of that run is exact, whatever the
//! wall clock does.
//!
//! When PostgreSQL is first seen, each epoch's distance from the truth is written down, once, in the transaction that
//! also raises the high-water mark, and before anything is applied. From then on every reader moves the epoch's items by
//! it, so a replay after a crash uses the same stamps, and a million items are corrected at no cost:
//!
//! - an epoch of this run of the machine is moved to where PostgreSQL's clock puts it;
//! - one of an earlier run can't be placed so. Its clock is believed, unless that puts it after the beginning of the run
//!   that followed: then it is moved to end there;
//! - one that is wrong by less than a second, and not in the future, stays: so do its items' times and entity tags;
//! - none ends after PostgreSQL's now, and none begins before what was accepted before it.
//!
//! What is known of PostgreSQL's clock is also in the file, so a process that starts in an outage knows it too.

use std::collections::HashMap;

use redb::ReadableTable;
use serde::{Deserialize, Serialize};

use crate::clock::{BootId, Clock, Reading};
use crate::domain::{Stamp, Timestamp};

use super::error::BufferError;
use super::schema::{CLOCK_KEY, EPOCHS, Item, META, encode};
use super::snap::whole_value;
use super::writer::Transaction;

/// Errors of a clock below this are not worth changing what clients have seen.
const TOLERATED_TICKS: i64 = 1_000 << 8;

/// Wall clocks beyond this (2080) are taken as this, so that stamps, which end in 2089, have room.
const LATEST_BASE_MS: i64 = 3_471_292_800_000;

/// A distance of PostgreSQL's clock that has changed by less is not written down anew.
const WORTH_NOTING_US: i64 = 100_000;

/// What the file knows of PostgreSQL's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KnownTime {
    boot: BootId,
    /// How far it is ahead of that run's boot clock, in microseconds.
    ahead_us: i64,
}

impl KnownTime {
    /// What a clock knows.
    pub(super) fn of(clock: &Clock) -> Option<Self> {
        let ahead_us = clock.boot_distance_us()?;
        let boot = clock.read().boot;
        Some(KnownTime { boot, ahead_us })
    }

    /// Tells a clock of the same run of the machine.
    pub(super) fn tell(self, clock: &Clock) {
        if clock.boot_distance_us().is_none() && clock.read().boot == self.boot {
            clock.learn_from_boot(self.ahead_us);
        }
    }

    /// Whether this is worth writing down over `known`.
    pub(super) fn is_news(self, known: Option<KnownTime>) -> bool {
        known.is_none_or(|known| {
            known.boot != self.boot
                || known.ahead_us.abs_diff(self.ahead_us) > WORTH_NOTING_US as u64
        })
    }

    /// The tick of PostgreSQL's clock at the beginning of that run.
    fn boot_tick(self) -> i64 {
        Stamp::tick_at(self.ahead_us.div_euclid(1000))
    }
}

/// Stamps of one run of the machine, on a scale of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Epoch {
    /// The scale's time at the machine's start, in milliseconds of the Unix epoch.
    base_ms: i64,
    /// The tick of the file's high-water mark when it began.
    above: i64,
    /// Its first and last tick.
    first: i64,
    last: i64,
    /// The sequence number it began with: later epochs have greater ones.
    began_at: u64,
    /// How many ticks its stamps are moved; `None` until that is decided, then for ever the same.
    shift: Option<i64>,
}

impl Epoch {
    /// Begins one now, above the file's high-water mark.
    fn begin(reading: &Reading, high_water: Stamp, began_at: u64) -> Self {
        let after_known = high_water.time().as_millis() + 1;
        let start_ms = reading.wall.as_millis().min(LATEST_BASE_MS);
        let start_ms = start_ms.max(after_known);
        let base_ms = start_ms - since_boot_ms(reading);
        let first = Stamp::tick_at(start_ms);
        Epoch {
            base_ms,
            above: high_water.tick(),
            first,
            last: first - 1,
            began_at,
            shift: None,
        }
    }

    /// Its next tick.
    fn advance(&mut self, reading: &Reading) -> i64 {
        let physical = Stamp::tick_at(self.base_ms + since_boot_ms(reading));
        self.last = physical.max(self.last + 1);
        self.last
    }

    /// How far to move it so that it lies where `limits` allow.
    fn decide(&self, boot: BootId, limits: &Limits) -> i64 {
        let ceiling = limits.end.saturating_sub(self.last);
        let floor = self.above + 1 - self.first;
        let wanted = if boot == limits.known.boot {
            let base_ms = limits.known.ahead_us.div_euclid(1000);
            let exact = (base_ms - self.base_ms) << 8;
            let is_close = exact.abs() <= TOLERATED_TICKS && ceiling >= 0;
            if is_close { 0 } else { exact }
        } else {
            0
        };
        // In the order of the file first: to put an item before one that was accepted earlier would lose a write.
        wanted.min(ceiling).max(floor)
    }
}

/// Between what an epoch must come to lie.
struct Limits {
    known: KnownTime,
    /// The last tick it may end with.
    end: i64,
}

fn since_boot_ms(reading: &Reading) -> i64 {
    reading.since_boot_us() / 1000
}

/// The epochs of a file.
pub(super) type Epochs = HashMap<u128, Epoch>;

/// How many ticks the stamps of a run's epoch are moved; `None` where that isn't decided, or not known any more.
pub(super) fn shift_of(run: BootId, epochs: &Epochs) -> Option<i64> {
    epochs.get(&run.as_number())?.shift
}

/// Moves an item to where its epoch has come to lie, once that is decided.
pub(super) fn correct(item: &mut Item, epochs: &Epochs) {
    let decided = item.epoch.and_then(|run| shift_of(run, epochs));
    let Some(shift) = decided else { return };
    item.epoch = None;
    if shift == 0 {
        return;
    }
    let operation = &mut item.operation;
    operation.restamp(operation.stamp.moved_by(shift));
    let moved_us = (shift >> 8).saturating_mul(1000);
    let accepted_us = operation.accepted_at.as_micros().saturating_add(moved_us);
    operation.accepted_at = Timestamp::from_micros(accepted_us);
}

/// Stamps an item within an epoch, if nobody on this machine knows PostgreSQL's clock yet. Otherwise the clock does from
/// now on, and the item is as it was.
pub(super) fn stamp(
    transaction: &mut Transaction<'_>,
    clock: &Clock,
    item: &mut Item,
) -> Result<(), BufferError> {
    if clock.boot_distance_us().is_some() {
        return Ok(());
    }
    if let Some(known) = known_time(transaction)? {
        known.tell(clock);
    }
    if clock.boot_distance_us().is_some() {
        item.operation.accepted_at = clock.now();
        return Ok(());
    }
    let reading = clock.read();
    let (high_water, began_at) = (
        transaction.counters.high_water,
        transaction.counters.next_seq,
    );
    let mut table = transaction
        .txn
        .open_table(EPOCHS)
        .map_err(|error| transaction.storage(error))?;
    let key = reading.boot.as_number();
    let stored = table
        .get(key)
        .map_err(|error| transaction.storage(error))?
        .and_then(|bytes| whole_value::<Epoch>(bytes.value()));
    let mut epoch =
        stored.unwrap_or_else(|| Epoch::begin(&reading, Stamp::from_i64(high_water), began_at));
    let stamp = Stamp::new(epoch.advance(&reading), clock.node());
    table
        .insert(key, encode(&epoch).as_slice())
        .map_err(|error| transaction.storage(error))?;
    item.operation.restamp(stamp);
    item.operation.accepted_at = stamp.time();
    item.epoch = Some(reading.boot);
    Ok(())
}

/// What the file knows of PostgreSQL's clock.
fn known_time(transaction: &Transaction<'_>) -> Result<Option<KnownTime>, BufferError> {
    let meta = transaction
        .txn
        .open_table(META)
        .map_err(|error| transaction.storage(error))?;
    let known = meta
        .get(CLOCK_KEY)
        .map_err(|error| transaction.storage(error))?;
    Ok(known.and_then(|bytes| whole_value(bytes.value())))
}

/// Writes down what is known of PostgreSQL's clock, and decides where each epoch lies. Gives how many were decided.
pub(super) fn settle(
    transaction: &mut Transaction<'_>,
    known: KnownTime,
    now: Timestamp,
) -> Result<usize, BufferError> {
    let mut meta = transaction
        .txn
        .open_table(META)
        .map_err(|error| transaction.storage(error))?;
    meta.insert(CLOCK_KEY, encode(&known).as_slice())
        .map_err(|error| transaction.storage(error))?;
    drop(meta);
    let mut epochs = read_epochs(transaction)?;
    if transaction.counters.pending == 0 {
        // Processes of this run still hold changes that it stamped.
        epochs.retain(|run, _| BootId::from_number(*run) == known.boot);
    }
    let mut limits = Limits {
        known,
        end: Stamp::tick_at(now.as_millis()) | 0xFF,
    };
    let decided = decide_all(&mut epochs, &mut limits);
    for last in decided.iter().copied() {
        let high_water = transaction.counters.high_water;
        transaction.counters.high_water = high_water.max(last.as_i64());
    }
    write_epochs(transaction, &epochs)?;
    Ok(decided.len())
}

/// Decides the latest first, since each ends before the next begins. Gives the last stamp of each that was decided.
fn decide_all(epochs: &mut Epochs, limits: &mut Limits) -> Vec<Stamp> {
    let mut order: Vec<u128> = epochs.keys().copied().collect();
    order.sort_unstable_by_key(|key| std::cmp::Reverse(epochs[key].began_at));
    let mut ends = Vec::new();
    for key in order {
        let boot = BootId::from_number(key);
        if boot != limits.known.boot {
            limits.end = limits.end.min(limits.known.boot_tick());
        }
        let Some(epoch) = epochs.get_mut(&key) else {
            continue;
        };
        let shift = match epoch.shift {
            Some(shift) => shift,
            None => {
                let shift = epoch.decide(boot, limits);
                epoch.shift = Some(shift);
                // Above every writer's stamp of that tick.
                ends.push(Stamp::last_of(epoch.last + shift));
                shift
            }
        };
        limits.end = limits.end.min(epoch.first + shift - 1);
    }
    ends
}

fn read_epochs(transaction: &Transaction<'_>) -> Result<Epochs, BufferError> {
    let table = transaction
        .txn
        .open_table(EPOCHS)
        .map_err(|error| transaction.storage(error))?;
    let mut epochs = Epochs::new();
    for entry in table.iter().map_err(|error| transaction.storage(error))? {
        let (key, bytes) = entry.map_err(|error| transaction.storage(error))?;
        epochs.extend(whole_value(bytes.value()).map(|epoch| (key.value(), epoch)));
    }
    Ok(epochs)
}

fn write_epochs(transaction: &Transaction<'_>, epochs: &Epochs) -> Result<(), BufferError> {
    let mut table = transaction
        .txn
        .open_table(EPOCHS)
        .map_err(|error| transaction.storage(error))?;
    table
        .retain(|key, _| epochs.contains_key(&key))
        .map_err(|error| transaction.storage(error))?;
    for (key, epoch) in epochs {
        table
            .insert(key, encode(epoch).as_slice())
            .map_err(|error| transaction.storage(error))?;
    }
    Ok(())
}

/// Whether an epoch's place is still to be decided.
pub(super) fn is_open(epochs: &Epochs) -> bool {
    epochs.values().any(|epoch| epoch.shift.is_none())
}

#[cfg(test)]
mod tests;
