//! Taking what a damaged file still holds into the buffer: whole items by their ids, with the stamps they had, so that
//! salvaging twice, or what has been applied already, changes nothing.
//!
//! The counters stay right: what is taken in counts as accepted, and as what it is. What could not be read is counted
//! and told, never guessed.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex};

use redb::ReadableTable;

use crate::domain::{Body, Kind, OperationId};

use super::binding::{adopt, bound};
use super::error::BufferError;
use super::index::PendingIndex;
use super::inheritance;
use super::keys::{self, KeyedWrite};
use super::queue::{Queued, Slot, claim_key, holder, insert, open, present};
use super::reader::Reader;
use super::schema::{
    Counters, DEAD, DamagedItem, DeadLetter, EPOCHS, Item, SET_ASIDE, encode, operation_key,
};
use super::settlement::{bury, finish};
use super::shared::{Buffer, record_session, remember};
use super::wreck::{Head, Piece, Reading, Wreck};
use super::writer::Transaction;

/// How items of one resource are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// One behind the other, to be drained.
    Queued,
    /// As one: embedded mode.
    Folded,
}

/// What came of a damaged file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SalvageReport {
    /// Items queued again.
    pub items: u64,
    /// Items, dead letters and damaged items the buffer knew already.
    pub already_there: u64,
    /// Dead letters taken over.
    pub letters: u64,
    /// Items whose checksum is wrong: set aside in the buffer, as bytes.
    pub damaged: u64,
    /// Revocations and sessions taken over.
    pub sessions: u64,
    /// Items that waited in the file and could not be found; `None` when it doesn't say how many there were.
    pub unreadable: Option<u64>,
}

/// Something found in a damaged file, for export.
#[derive(Debug, Clone, PartialEq)]
pub enum Salvaged {
    /// An item that waited.
    Item(Item),
    /// A dead letter.
    Letter(DeadLetter),
    /// An item whose checksum is wrong.
    Damaged(DamagedItem),
}

/// Reads what a damaged file holds without changing anything; hands on each thing that is found.
///
/// # Errors
/// When the file can't be read at all, or what `take` answers.
pub fn read_wreck<E: From<BufferError>>(
    file: &Path,
    mut take: impl FnMut(Salvaged) -> Result<(), E>,
) -> Result<Reading, E> {
    let mut stopped = None;
    let reading = Wreck::open(file)?.read_out(&mut |pieces| {
        for piece in pieces {
            let found = match piece {
                Piece::Item(item) => Salvaged::Item(item),
                Piece::Letter(letter) => Salvaged::Letter(letter),
                Piece::Damaged(bytes) | Piece::Aside(bytes) => {
                    Salvaged::Damaged(DamagedItem::of(bytes))
                }
                _ => continue,
            };
            if stopped.is_none() {
                stopped = take(found).err();
            }
        }
        Ok(())
    })?;
    stopped.map_or(Ok(reading), Err)
}

impl Buffer {
    /// Takes over what a damaged file still holds, in bounded transactions. Blocks: call it off the async threads.
    ///
    /// # Errors
    /// When the file can't be read at all, belongs to another database, or the buffer can't take it. What was taken by
    /// then stays, and is recognised when this is repeated.
    pub fn salvage(
        &self,
        file: &Path,
        manner: Manner,
    ) -> Result<(SalvageReport, Reading), BufferError> {
        let mut wreck = Wreck::open(file)?;
        let head = wreck.head();
        let path = file.to_owned();
        let counters = head.counters;
        self.submit_blocking(move |transaction| go_on_from(transaction, head, &path))?;
        let mut intake = Intake {
            index: self.index(),
            ended: self.read_blocking(Reader::finished_ids)?,
            manner,
            report: SalvageReport::default(),
        };
        let mut found = 0;
        let reading = wreck.read_out(&mut |pieces| {
            found += pieces.iter().filter(|piece| is_item(piece)).count() as u64;
            let mut taking = intake.clone();
            intake = self.submit_blocking(move |transaction| {
                transaction.admit(Slot::Reserved)?;
                for piece in pieces {
                    taking.take(transaction, piece)?;
                }
                Ok(taking)
            })?;
            Ok(())
        })?;
        let mut report = intake.report;
        report.unreadable = counters.map(|counters| counters.pending.saturating_sub(found));
        Ok((report, reading))
    }
}

fn is_item(piece: &Piece) -> bool {
    matches!(piece, Piece::Item(_) | Piece::Damaged(_))
}

/// Takes over the old file's numbers where they are greater, and the database it belonged to.
fn go_on_from(
    transaction: &mut Transaction<'_>,
    head: Head,
    file: &Path,
) -> Result<(), BufferError> {
    if let Some(database) = head.database {
        match bound(transaction)? {
            None => adopt(transaction, Some(database))?,
            Some(known) if known == database => {}
            Some(_) => {
                return Err(BufferError::Foreign {
                    path: file.to_owned(),
                });
            }
        }
    }
    let mut epochs = transaction
        .txn
        .open_table(EPOCHS)
        .map_err(|error| transaction.storage(error))?;
    for (run, epoch) in head.epochs {
        let known = epochs
            .get(run)
            .map_err(|error| transaction.storage(error))?
            .is_some();
        if !known {
            epochs
                .insert(run, epoch.as_slice())
                .map_err(|error| transaction.storage(error))?;
        }
    }
    drop(epochs);
    if let Some(old) = head.counters {
        let now = &mut transaction.counters;
        *now = Counters {
            next_seq: now.next_seq.max(old.next_seq),
            next_finish: now.next_finish.max(old.next_finish),
            high_water: now.high_water.max(old.high_water),
            ..*now
        };
    }
    Ok(())
}

/// Takes pieces into the buffer.
#[derive(Clone)]
struct Intake {
    index: Arc<Mutex<PendingIndex>>,
    /// Operations that are known to have ended.
    ended: HashSet<OperationId>,
    manner: Manner,
    report: SalvageReport,
}

impl Intake {
    fn take(&mut self, transaction: &mut Transaction<'_>, piece: Piece) -> Result<(), BufferError> {
        match piece {
            Piece::Item(item) => self.take_item(transaction, item),
            Piece::Letter(letter) => self.take_letter(transaction, &letter),
            Piece::Damaged(bytes) | Piece::Aside(bytes) => self.take_damaged(transaction, &bytes),
            Piece::Finished(batch) => finish(transaction, batch.without(&self.ended)),
            Piece::Revocation(revocation) => {
                self.report.sessions += 1;
                remember(transaction, &[revocation])
            }
            Piece::Session(session) => {
                self.report.sessions += 1;
                record_session(transaction, &session)
            }
            Piece::Keyed(write) => self.take_key(transaction, &write),
        }
    }

    /// Remembers what a key stood for, unless it stands for something here. What waits has taken its key with it.
    fn take_key(
        &self,
        transaction: &mut Transaction<'_>,
        write: &KeyedWrite,
    ) -> Result<(), BufferError> {
        let whose = (&write.record.user_id, &write.idempotency.key);
        if !write.has_ended() || holder(transaction, &self.index, whose)?.is_some() {
            return Ok(());
        }
        keys::remember(transaction, write)
    }

    /// Queues an item, before those of its resource that are newer: these go behind it, or an update could come before
    /// its create.
    fn take_item(
        &mut self,
        transaction: &mut Transaction<'_>,
        item: Item,
    ) -> Result<(), BufferError> {
        let waiting = present(transaction, &self.index, &item.operation.resource())?;
        let (id, is_folded) = (item.operation.id, item.operation.is_folded());
        let same = waiting.iter().find(|queued| queued.item.operation.id == id);
        if let Some(queued) = same.filter(|_| is_folded) {
            // Another state of the same item: this one may hold writes that that one lacks.
            let is_news = merge_into(transaction, queued.clone(), item)?;
            self.report.items += u64::from(is_news);
            self.report.already_there += u64::from(!is_news);
            return Ok(());
        }
        if !is_folded && self.ended.contains(&id) || self.is_known(transaction, id, &waiting)? {
            self.report.already_there += 1;
            return Ok(());
        }
        self.report.items += 1;
        let stamp = item.operation.stamp;
        // Stamps of an epoch that isn't placed yet are on a scale of their own.
        if item.epoch.is_none() {
            let counters = &mut transaction.counters;
            counters.high_water = counters.high_water.max(stamp.as_i64());
        }
        let (older, newer): (Vec<Queued>, Vec<Queued>) = waiting
            .into_iter()
            .partition(|queued| queued.item.operation.stamp < stamp);
        match (self.manner, newer.first().or(older.last())) {
            (Manner::Folded, Some(queued)) => {
                // Both have taken effect: what it said is said by the other one now.
                transaction.counters.accepted += 1;
                transaction.counters.superseded += 1;
                merge_into(transaction, queued.clone(), item).map(drop)
            }
            (Manner::Folded, None) => queue_between(transaction, item, (&older, newer)),
            (Manner::Queued, _) => {
                let operation = item.operation.clone();
                queue_between(transaction, item, (&older, newer))?;
                claim_key(transaction, &self.index, &operation)
            }
        }
    }

    fn take_letter(
        &mut self,
        transaction: &mut Transaction<'_>,
        letter: &DeadLetter,
    ) -> Result<(), BufferError> {
        let operation = &letter.item.operation;
        let waiting = present(transaction, &self.index, &operation.resource())?;
        if self.ended.contains(&operation.id)
            || self.is_known(transaction, operation.id, &waiting)?
        {
            self.report.already_there += 1;
            return Ok(());
        }
        self.report.letters += 1;
        transaction.counters.accepted += 1;
        bury(transaction, letter)
    }

    /// Sets bytes aside, as those of an item whose checksum is wrong; they count as dead.
    fn take_damaged(
        &mut self,
        transaction: &mut Transaction<'_>,
        bytes: &[u8],
    ) -> Result<(), BufferError> {
        let mut aside = transaction
            .txn
            .open_table(SET_ASIDE)
            .map_err(|error| transaction.storage(error))?;
        for entry in aside.iter().map_err(|error| transaction.storage(error))? {
            let (_, known) = entry.map_err(|error| transaction.storage(error))?;
            if known.value() == bytes {
                self.report.already_there += 1;
                return Ok(());
            }
        }
        let seq = transaction.counters.next_seq.max(1);
        aside
            .insert(seq, bytes)
            .map_err(|error| transaction.storage(error))?;
        transaction.counters.next_seq = seq + 1;
        transaction.counters.accepted += 1;
        transaction.counters.dead += 1;
        self.report.damaged += 1;
        Ok(())
    }

    /// Whether an operation waits, or is dead.
    fn is_known(
        &self,
        transaction: &Transaction<'_>,
        id: OperationId,
        waiting: &[Queued],
    ) -> Result<bool, BufferError> {
        if waiting.iter().any(|queued| queued.item.operation.id == id) {
            return Ok(true);
        }
        let dead = transaction
            .txn
            .open_table(DEAD)
            .map_err(|error| transaction.storage(error))?;
        let letter = dead
            .get(operation_key(id))
            .map_err(|error| transaction.storage(error))?;
        Ok(letter.is_some())
    }
}

/// Queues an item behind the older ones of its resource, and the newer ones behind it.
fn queue_between(
    transaction: &mut Transaction<'_>,
    item: Item,
    (older, newer): (&[Queued], Vec<Queued>),
) -> Result<(), BufferError> {
    let least_urgent = older.iter().map(|queued| queued.place.priority()).max();
    let mut priority = least_urgent.map_or(item.operation.priority, |least| {
        least.max(item.operation.priority)
    });
    let place = insert(transaction, &item, priority)?;
    let mut last = HashMap::from([(item.operation.user_id, place)]);
    transaction.counters.accepted += 1;
    for mut queued in newer {
        let place = queued.place;
        let inherited = inheritance::take(transaction, place)?;
        queued.item.base = inheritance::merged(queued.item.base, inherited);
        open(transaction, place.lane(), place.priority())?
            .remove(place.seq())
            .map_err(|error| transaction.storage(error))?;
        transaction.counters.pending -= 1;
        priority = priority.max(place.priority());
        let moved = insert(transaction, &queued.item, priority)?;
        let user = queued.item.operation.user_id.clone();
        if let Some(before) = last.insert(user, moved) {
            inheritance::follow(transaction, before, moved)?;
        }
    }
    Ok(())
}

/// Merges an item into the one that stands for it: of its resource in embedded mode, or of the same id. Tells whether that
/// one has changed.
fn merge_into(
    transaction: &mut Transaction<'_>,
    queued: Queued,
    item: Item,
) -> Result<bool, BufferError> {
    let mut merged = (*queued.item).clone();
    let (mine, others) = (&mut merged.operation, item.operation);
    // As in any fold, none of them stands for all.
    mine.idempotency = None;
    if others.kind == Kind::Delete {
        mine.kind = Kind::Delete;
    }
    mine.stamp = mine.stamp.max(others.stamp);
    match (&mut mine.body, others.body) {
        (Body::Task { change, .. }, Body::Task { change: other, .. }) => {
            change.merge(&other);
        }
        (Body::Profile { change, .. }, Body::Profile { change: other, .. }) => {
            change.merge(&other);
        }
        _ => {}
    }
    if merged == *queued.item {
        return Ok(false);
    }
    let mut table = open(transaction, queued.place.lane(), queued.place.priority())?;
    table
        .insert(queued.place.seq(), encode(&merged).as_slice())
        .map_err(|error| transaction.storage(error))?;
    Ok(true)
}
