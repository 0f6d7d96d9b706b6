//! What is written to the queues, inside a writer's transaction: accepting, folding, settling.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use redb::{ReadableTable, Table};

use crate::clock::Clock;
use crate::domain::{
    Body, Kind, Operation, OperationRecord, OperationState, Outcome, Priority, ResourceKey, Row,
    Stamp, State, Timestamp, judge,
};
use crate::seeded::Bug;

use super::epoch;
use super::error::BufferError;
use super::index::PendingIndex;
use super::inheritance::{self, Estate};
use super::schema::{
    DEAD, DeadLetter, Decoded, FINISHED, FinishedBatch, Item, Lane, Place, SET_ASIDE, checksum,
    decode, encode, operation_key, queue, queues,
};
use super::writer::Transaction;

/// Finished records kept in the file, the newest: what a node can tell of its operations while PostgreSQL is away.
pub(super) const FINISHED_MAX: u64 = 10_000;

/// Items accepted beyond the cap: writes whose direct outcome is unknown, and revocations.
const RESERVED_SLOTS: u64 = 500;

/// Which part of the buffer an item may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slot {
    /// Up to the cap.
    Ordinary,
    /// A few hundred beyond it: for a write that may already have happened in the store, and for a revocation.
    Reserved,
}

/// What becomes of an item after an attempt to apply it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It took effect.
    Applied,
    /// Newer writes had overtaken it.
    Superseded,
    /// It was a repeat of what had taken effect before, and did nothing itself. Counts as applied.
    Repeated,
    /// It was refused, or failed for good.
    Dead {
        /// Why.
        reason: String,
    },
    /// It failed in a way that counts, and is tried again later.
    Retry {
        /// Why.
        error: String,
        /// When, at the earliest.
        not_before: Timestamp,
    },
}

/// An item as it was read from its queue.
#[derive(Debug, Clone)]
pub struct Queued {
    /// Where it is.
    pub place: Place,
    /// The checksum it had: an item that has changed since is not the one that was applied.
    pub checksum: u32,
    /// What it holds. Boxed, as a batch hands its items on from step to step.
    pub item: Box<Item>,
}

/// One item's verdict.
#[derive(Debug, Clone)]
pub struct Settlement {
    /// The item, as it was read.
    pub queued: Queued,
    /// What becomes of it.
    pub verdict: Verdict,
}

/// What settling did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SettleReport {
    /// Items that took effect.
    pub applied: u64,
    /// Items that newer writes had overtaken.
    pub superseded: u64,
    /// Items that are dead letters now.
    pub dead: u64,
    /// Items to be tried again.
    pub retried: u64,
    /// Items that had gone or changed since they were read; nothing was done to them.
    pub skipped: u64,
}

/// The outcome of a write in embedded mode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folded {
    /// What became of it.
    pub outcome: Outcome,
    /// The resource afterwards, where the user may see it.
    pub state: Option<State>,
    /// Whether this write made it.
    pub created: bool,
}

/// Accepts an operation into its queue: gives it a stamp if it has none, counts it, and places it no more urgently than
/// what is already waiting for the same resource.
pub(super) fn append(
    transaction: &mut Transaction<'_>,
    (index, clock): (&Mutex<PendingIndex>, &Clock),
    mut item: Item,
    room: u64,
) -> Result<Item, BufferError> {
    if transaction.counters.pending >= room && !Bug::CapIgnored.is_on() {
        return Err(BufferError::Full { max_items: room });
    }
    if !item.operation.stamp.is_set() && Lane::of(&item.operation) == Lane::Postgres {
        epoch::stamp(transaction, clock, &mut item)?;
    }
    if item.epoch.is_none() {
        stamp(transaction, clock, &mut item.operation);
    }
    item.operation.buffered = true;
    let key = item.operation.resource();
    let last = last_present(transaction, index, &key)?;
    let least_urgent = last.as_ref().map(|queued| queued.place.priority());
    let least_urgent = least_urgent.filter(|_| !Bug::PriorityReorders.is_on());
    let priority = least_urgent.map_or(item.operation.priority, |least| {
        least.max(item.operation.priority)
    });
    let place = insert(transaction, &item, priority)?;
    // What one user's writes say is nothing for another's, who will be refused.
    let is_same_user = |last: &Queued| last.item.operation.user_id == item.operation.user_id;
    if let Some(last) = last.filter(is_same_user) {
        inheritance::follow(transaction, last.place, place)?;
    }
    transaction.counters.accepted += 1;
    Ok(item)
}

/// The most items of a slot's kind under a cap.
pub(super) fn room(slot: Slot, max_items: u64) -> u64 {
    match slot {
        Slot::Ordinary => max_items,
        Slot::Reserved => max_items.saturating_add(RESERVED_SLOTS),
    }
}

/// Stamps an operation that has no stamp, above every stamp the file has seen; and raises that mark to the
/// operation's.
fn stamp(transaction: &mut Transaction<'_>, clock: &Clock, operation: &mut Operation) {
    if !operation.stamp.is_set() {
        clock.observe(Stamp::from_i64(transaction.counters.high_water));
        operation.restamp(clock.stamp());
    }
    if Bug::HighWaterForgotten.is_on() {
        return;
    }
    let high_water = transaction
        .counters
        .high_water
        .max(operation.stamp.as_i64());
    transaction.counters.high_water = high_water;
}

/// Puts an item at the end of a queue; gives its place there.
pub(super) fn insert(
    transaction: &mut Transaction<'_>,
    item: &Item,
    priority: Priority,
) -> Result<Place, BufferError> {
    let seq = transaction.counters.next_seq.max(1);
    let lane = Lane::of(&item.operation);
    let mut table = open(transaction, lane, priority)?;
    table
        .insert(seq, encode(item).as_slice())
        .map_err(|error| transaction.storage(error))?;
    drop(table);
    transaction.counters.next_seq = seq + 1;
    transaction.counters.pending += 1;
    Ok(Place::new(lane, priority, seq))
}

pub(super) fn open<'t>(
    transaction: &Transaction<'t>,
    lane: Lane,
    priority: Priority,
) -> Result<Table<'t, u64, &'static [u8]>, BufferError> {
    transaction
        .txn
        .open_table(queue(lane, priority))
        .map_err(|error| transaction.storage(error))
}

/// Brings the index up to what this transaction sees.
fn catch_up(transaction: &Transaction<'_>, index: &mut PendingIndex) -> Result<(), BufferError> {
    let next_seq = transaction.counters.next_seq;
    let Some(unseen) = index.unseen(next_seq) else {
        return Ok(());
    };
    for (lane, priority, definition) in queues() {
        let table = transaction
            .txn
            .open_table(definition)
            .map_err(|error| transaction.storage(error))?;
        index
            .absorb((lane, priority), &table, unseen.clone())
            .map_err(|error| transaction.storage(error))?;
    }
    index.caught_up(next_seq);
    Ok(())
}

/// The item of a resource that was accepted last of those that wait. No other is less urgent, as none is placed before
/// what waits already.
fn last_present(
    transaction: &Transaction<'_>,
    index: &Mutex<PendingIndex>,
    key: &ResourceKey,
) -> Result<Option<Queued>, BufferError> {
    let mut places = places_of(transaction, index, key)?;
    places.sort_unstable_by_key(|place| std::cmp::Reverse(place.seq()));
    for place in places {
        let found = at(transaction, place, key)?;
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

fn places_of(
    transaction: &Transaction<'_>,
    index: &Mutex<PendingIndex>,
    key: &ResourceKey,
) -> Result<Vec<Place>, BufferError> {
    let mut index = index.lock().unwrap_or_else(PoisonError::into_inner);
    catch_up(transaction, index.for_generation(transaction.generation))?;
    Ok(index.of_resource(key))
}

/// The item of this resource at this place, if it is still there.
fn at(
    transaction: &Transaction<'_>,
    place: Place,
    key: &ResourceKey,
) -> Result<Option<Queued>, BufferError> {
    let table = open(transaction, place.lane(), place.priority())?;
    let bytes = table
        .get(place.seq())
        .map_err(|error| transaction.storage(error))?;
    Ok(bytes
        .and_then(|bytes| whole(place, bytes.value()))
        .filter(|queued| queued.item.operation.resource() == *key))
}

/// The items of a resource that wait, in the order they were accepted.
pub(super) fn present(
    transaction: &Transaction<'_>,
    index: &Mutex<PendingIndex>,
    key: &ResourceKey,
) -> Result<Vec<Queued>, BufferError> {
    let mut found = Vec::new();
    for place in places_of(transaction, index, key)? {
        found.extend(at(transaction, place, key)?);
    }
    found.sort_by_key(|queued| queued.place.seq());
    Ok(found)
}

/// An item as read, unless it is damaged or of a newer version.
pub(super) fn whole(place: Place, bytes: &[u8]) -> Option<Queued> {
    match decode::<Item>(bytes) {
        Decoded::Whole(item) => Some(Queued {
            place,
            checksum: checksum(bytes),
            item: Box::new(item),
        }),
        Decoded::Damaged | Decoded::Newer => None,
    }
}

/// Embedded mode: applies an operation to the one item that holds its resource.
pub(super) fn fold(
    transaction: &mut Transaction<'_>,
    (index, clock): (&Mutex<PendingIndex>, &Clock),
    mut operation: Operation,
    room: u64,
) -> Result<Folded, BufferError> {
    let key = operation.resource();
    let current = present(transaction, index, &key)?.pop();
    if current.is_none() && transaction.counters.pending >= room {
        return Err(BufferError::Full { max_items: room });
    }
    if let Some(newest) = current
        .as_ref()
        .and_then(|queued| queued.item.operation.change())
    {
        clock.observe(newest.newest());
    }
    stamp(transaction, clock, &mut operation);
    let row = current.as_ref().and_then(row_of);
    let outcome = judge(&operation, row.as_ref());
    let before = row.map(|row| row.state);
    if outcome != Outcome::Applied {
        return Ok(Folded {
            outcome,
            state: before,
            created: false,
        });
    }
    let after = operation.applied_to(before.as_ref());
    let created = before.is_none();
    store_folded(transaction, current, operation, after.clone())?;
    Ok(Folded {
        outcome,
        state: after,
        created,
    })
}

fn row_of(queued: &Queued) -> Option<Row> {
    let operation = &queued.item.operation;
    operation.change().map(|state| Row {
        owner: operation.user_id.clone(),
        state,
    })
}

fn store_folded(
    transaction: &mut Transaction<'_>,
    current: Option<Queued>,
    mut operation: Operation,
    after: Option<State>,
) -> Result<(), BufferError> {
    operation.precondition = None;
    operation.buffered = true;
    let Some(queued) = current else {
        set_change(&mut operation, after);
        let priority = operation.priority;
        insert(transaction, &Item::new(operation, None), priority)?;
        transaction.counters.accepted += 1;
        return Ok(());
    };
    let mut item = *queued.item;
    item.operation.stamp = operation.stamp;
    item.operation.kind = if operation.kind == Kind::Delete {
        Kind::Delete
    } else {
        item.operation.kind
    };
    item.operation.idempotency = operation.idempotency.or(item.operation.idempotency);
    set_change(&mut item.operation, after);
    let mut table = open(transaction, queued.place.lane(), queued.place.priority())?;
    table
        .insert(queued.place.seq(), encode(&item).as_slice())
        .map_err(|error| transaction.storage(error))?;
    Ok(())
}

/// Makes an operation's change the whole record that a fold gave.
fn set_change(operation: &mut Operation, whole: Option<State>) {
    match (&mut operation.body, whole) {
        (Body::Task { change, .. }, Some(State::Task(task))) => *change = task,
        (Body::Profile { change, .. }, Some(State::Profile(profile))) => **change = profile,
        _ => {}
    }
}

/// Carries out verdicts: removes what has ended and counts it, rewrites what is tried again.
pub(super) fn settle(
    transaction: &mut Transaction<'_>,
    settlements: Vec<Settlement>,
    now: Timestamp,
) -> Result<SettleReport, BufferError> {
    let mut report = SettleReport::default();
    let (mut finished, mut repeats) = (Vec::new(), Vec::new());
    let mut estate = Estate::open(transaction)?;
    for ((lane, priority), group) in by_queue(settlements) {
        let gone = take_from_queue(transaction, (lane, priority), &group)?;
        for (settlement, gone) in group.into_iter().zip(gone) {
            if gone {
                if settlement.verdict == Verdict::Repeated {
                    repeats.push(settlement.queued.item.operation.id);
                }
                if let Some(estate) = &mut estate {
                    match settlement.verdict {
                        Verdict::Applied | Verdict::Superseded => {
                            estate.leave(&settlement.queued, true);
                        }
                        Verdict::Repeated | Verdict::Dead { .. } => {
                            estate.leave(&settlement.queued, false);
                        }
                        Verdict::Retry { .. } => {}
                    }
                }
                finished.extend(carry_out(transaction, settlement, now, &mut report)?);
            } else {
                report.skipped += 1;
            }
        }
    }
    finish(transaction, FinishedBatch::new(finished, repeats))?;
    if let Some(estate) = estate {
        estate.settle(transaction)?;
    }
    Ok(report)
}

fn by_queue(settlements: Vec<Settlement>) -> Vec<((Lane, Priority), Vec<Settlement>)> {
    let mut groups: HashMap<(Lane, Priority), Vec<Settlement>> = HashMap::new();
    for settlement in settlements {
        let place = settlement.queued.place;
        groups
            .entry((place.lane(), place.priority()))
            .or_default()
            .push(settlement);
    }
    let mut groups: Vec<_> = groups.into_iter().collect();
    groups.sort_by_key(|(queue, _)| *queue);
    groups
}

/// Removes the items of one queue that still are as they were read; tells for each whether it was removed. One pass
/// over their range (`retain_in`): several times faster than one removal each.
fn take_from_queue(
    transaction: &Transaction<'_>,
    (lane, priority): (Lane, Priority),
    group: &[Settlement],
) -> Result<Vec<bool>, BufferError> {
    let wanted: HashMap<u64, (usize, u32)> = group
        .iter()
        .enumerate()
        .map(|(position, settlement)| {
            (
                settlement.queued.place.seq(),
                (position, settlement.queued.checksum),
            )
        })
        .collect();
    let (Some(first), Some(last)) = (wanted.keys().min(), wanted.keys().max()) else {
        return Ok(Vec::new());
    };
    let mut removed = vec![false; group.len()];
    let mut table = open(transaction, lane, priority)?;
    table
        .retain_in(*first..=*last, |seq, bytes| match wanted.get(&seq) {
            Some((position, crc)) if *crc == checksum(bytes) || Bug::SettledUnseen.is_on() => {
                removed[*position] = true;
                false
            }
            _ => true,
        })
        .map_err(|error| transaction.storage(error))?;
    Ok(removed)
}

/// Carries out the verdict on an item that has been removed from its queue. Gives its record if it is finished.
fn carry_out(
    transaction: &mut Transaction<'_>,
    settlement: Settlement,
    now: Timestamp,
    report: &mut SettleReport,
) -> Result<Option<OperationRecord>, BufferError> {
    let Queued {
        place, mut item, ..
    } = settlement.queued;
    let state = match settlement.verdict {
        Verdict::Retry { error, not_before } => {
            item.retries = item.retries.saturating_add(1);
            item.last_error = Some(error);
            item.not_before = Some(not_before);
            report.retried += 1;
            put_back(transaction, place, &item)?;
            return Ok(None);
        }
        Verdict::Dead { reason } => {
            bury(
                transaction,
                &DeadLetter {
                    item: *item,
                    reason,
                    died_at: now,
                },
            )?;
            report.dead += 1;
            transaction.counters.pending = transaction.counters.pending.saturating_sub(1);
            return Ok(None);
        }
        Verdict::Applied | Verdict::Repeated => {
            transaction.counters.applied += 1;
            report.applied += 1;
            OperationState::Applied
        }
        Verdict::Superseded => {
            transaction.counters.superseded += 1;
            report.superseded += 1;
            OperationState::Superseded
        }
    };
    transaction.counters.pending = transaction.counters.pending.saturating_sub(1);
    Ok(Some(OperationRecord {
        state,
        finished_at: Some(now),
        ..item.record()
    }))
}

fn put_back(transaction: &Transaction<'_>, place: Place, item: &Item) -> Result<(), BufferError> {
    let mut table = open(transaction, place.lane(), place.priority())?;
    table
        .insert(place.seq(), encode(item).as_slice())
        .map_err(|error| transaction.storage(error))?;
    Ok(())
}

/// Writes down what has ended, and removes the oldest batches while the newest [`FINISHED_MAX`] records stay.
pub(super) fn finish(
    transaction: &mut Transaction<'_>,
    batch: Option<FinishedBatch>,
) -> Result<(), BufferError> {
    let Some(batch) = batch else {
        return Ok(());
    };
    let first = transaction.counters.next_finish;
    let mut finished = transaction
        .txn
        .open_table(FINISHED)
        .map_err(|error| transaction.storage(error))?;
    finished
        .insert(first, encode(&batch).as_slice())
        .map_err(|error| transaction.storage(error))?;
    transaction.counters.next_finish += batch.records.len() as u64;
    let oldest_kept = transaction
        .counters
        .next_finish
        .saturating_sub(FINISHED_MAX);
    loop {
        let second = finished
            .iter()
            .map_err(|error| transaction.storage(error))?
            .nth(1)
            .transpose();
        let second = second
            .map_err(|error| transaction.storage(error))?
            .map(|(number, _)| number.value());
        if second.is_none_or(|number| number > oldest_kept) {
            return Ok(());
        }
        finished
            .pop_first()
            .map_err(|error| transaction.storage(error))?;
    }
}

/// Puts a dead letter with the others and counts it.
pub(super) fn bury(
    transaction: &mut Transaction<'_>,
    letter: &DeadLetter,
) -> Result<(), BufferError> {
    let mut dead = transaction
        .txn
        .open_table(DEAD)
        .map_err(|error| transaction.storage(error))?;
    let key = operation_key(letter.item.operation.id);
    let replaced = dead
        .insert(key, encode(letter).as_slice())
        .map_err(|error| transaction.storage(error))?;
    if replaced.is_none() {
        transaction.counters.dead += 1;
    }
    Ok(())
}

/// Moves items whose checksum is wrong out of their queues; they count as dead from then on. Gives how many.
pub(super) fn set_aside(
    transaction: &mut Transaction<'_>,
    places: &[Place],
) -> Result<u64, BufferError> {
    let mut moved = 0;
    for place in places {
        let mut table = open(transaction, place.lane(), place.priority())?;
        let bytes = table
            .remove(place.seq())
            .map_err(|error| transaction.storage(error))?;
        let Some(bytes) = bytes.map(|bytes| bytes.value().to_vec()) else {
            continue;
        };
        let mut aside = transaction
            .txn
            .open_table(SET_ASIDE)
            .map_err(|error| transaction.storage(error))?;
        aside
            .insert(place.seq(), bytes.as_slice())
            .map_err(|error| transaction.storage(error))?;
        moved += 1;
    }
    transaction.counters.dead += moved;
    transaction.counters.pending = transaction.counters.pending.saturating_sub(moved);
    Ok(moved)
}

/// Puts a dead letter back into its queue, as new: behind what waits for its resource, with no retries used.
pub(super) fn revive(
    transaction: &mut Transaction<'_>,
    (index, clock): (&Mutex<PendingIndex>, &Clock),
    letter: DeadLetter,
) -> Result<(), BufferError> {
    let item = Item::new(letter.item.operation, letter.item.base);
    append(transaction, (index, clock), item, u64::MAX)?;
    transaction.counters.accepted -= 1;
    Ok(())
}
