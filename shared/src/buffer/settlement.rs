//! How items leave the queues, inside a writer's transaction: settled by their verdicts, or set aside as damaged.

use std::collections::HashMap;

use redb::ReadableTable;

use crate::domain::{OperationRecord, OperationState, Priority, Stamp, Timestamp};
use crate::seeded::Bug;

use super::error::BufferError;
use super::inheritance::Estate;
use super::keys;
use super::queue::{Queued, open};
use super::schema::{
    DEAD, DeadLetter, FINISHED, FinishedBatch, Item, Lane, Place, SET_ASIDE, checksum, encode,
    operation_key,
};
use super::writer::Transaction;

/// Finished records kept in the file, the newest: what a node can tell of its operations while PostgreSQL is away.
pub(super) const FINISHED_MAX: u64 = 10_000;

/// What becomes of an item after an attempt to apply it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It took effect.
    Applied,
    /// Newer writes had overtaken it.
    Superseded,
    /// It was a repeat of what had taken effect before, with this stamp, and did nothing itself. Counts as applied.
    Repeated(Stamp),
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
                let operation = &settlement.queued.item.operation;
                if let Verdict::Repeated(first) = settlement.verdict {
                    repeats.push((operation.id, first));
                }
                if let Some(estate) = &mut estate {
                    match settlement.verdict {
                        Verdict::Applied | Verdict::Superseded => {
                            estate.leave(&settlement.queued, operation.change());
                        }
                        Verdict::Repeated(first) => {
                            estate.leave(&settlement.queued, operation.change_as_of(first));
                        }
                        Verdict::Dead { .. } => estate.leave(&settlement.queued, None),
                        Verdict::Retry { .. } => {}
                    }
                }
                if !matches!(settlement.verdict, Verdict::Retry { .. }) {
                    keys::forget(transaction, operation)?;
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
        Verdict::Applied | Verdict::Repeated(_) => {
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
