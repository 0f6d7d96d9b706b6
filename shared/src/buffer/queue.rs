//! What is put into the queues, inside a writer's transaction: accepting, and folding where the buffer is the store.

use std::sync::{Mutex, PoisonError};

use redb::{ReadableTable, Table};

use crate::clock::Clock;
use crate::domain::{
    Body, IdempotencyKey, Kind, Operation, OperationRecord, OperationState, Outcome, Priority,
    Rejection, ResourceKey, Row, Stamp, State, UserId, judge,
};
use crate::seeded::Bug;

use super::epoch;
use super::error::BufferError;
use super::index::PendingIndex;
use super::inheritance;
use super::keys::{self, KeyedWrite};
use super::schema::{
    DeadLetter, Decoded, Item, Lane, Place, checksum, decode, encode, queue, queues,
};
use super::writer::Transaction;

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

/// The outcome of a write in embedded mode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folded {
    /// What became of it.
    pub outcome: Outcome,
    /// The resource afterwards, where the user may see it.
    pub state: Option<State>,
    /// Whether this write made it.
    pub created: bool,
    /// The first write of its key, when this is a repeat.
    pub replayed: Option<KeyedWrite>,
}

/// Accepts an operation into its queue: gives it a stamp if it has none, counts it, and places it no more urgently than
/// what is already waiting for the same resource. What relies on an item before it is refused if that has left.
pub(super) fn append(
    transaction: &mut Transaction<'_>,
    (index, clock): (&Mutex<PendingIndex>, &Clock),
    (mut item, behind): (Item, Option<Place>),
    room: u64,
) -> Result<Item, BufferError> {
    if transaction.counters.pending >= room && !Bug::CapIgnored.is_on() {
        return Err(BufferError::Full { max_items: room });
    }
    let key = item.operation.resource();
    if let Some(place) = behind
        && at(transaction, place, &key)?.is_none()
    {
        return Err(BufferError::Outrun);
    }
    if !item.operation.stamp.is_set() && Lane::of(&item.operation) == Lane::Postgres {
        epoch::stamp(transaction, clock, &mut item)?;
    }
    if item.epoch.is_none() {
        stamp(transaction, clock, &mut item.operation);
    }
    item.operation.buffered = true;
    let waiting = last_present(transaction, index, (&key, &item.operation.user_id))?;
    let least_urgent = waiting.least_urgent;
    let least_urgent = least_urgent.filter(|_| !Bug::PriorityReorders.is_on());
    let priority = least_urgent.map_or(item.operation.priority, |least| {
        least.max(item.operation.priority)
    });
    if let (Some(own), Some(base)) = (&waiting.own, &item.base)
        && knows(own, base)
    {
        item.base = None;
    }
    let place = insert(transaction, &item, priority)?;
    if let Some(before) = waiting.own {
        inheritance::follow(transaction, before.place, place)?;
    }
    claim_key(transaction, index, &item.operation)?;
    transaction.counters.accepted += 1;
    Ok(item)
}

/// Makes sure that an operation's key stands for no other in this file. One that may have been done already is the store's
/// to judge, unless it is the same again.
pub(super) fn check_key(
    transaction: &mut Transaction<'_>,
    index: &Mutex<PendingIndex>,
    operation: &Operation,
    slot: Slot,
) -> Result<(), BufferError> {
    let Some(known) = holder_of_key(transaction, index, operation)? else {
        return Ok(());
    };
    let own = operation.idempotency.as_ref();
    let is_same = own.is_some_and(|own| own.fingerprint == known.idempotency.fingerprint);
    if is_same || slot == Slot::Ordinary {
        return Err(BufferError::KeyTaken(Box::new(known)));
    }
    Ok(())
}

/// Remembers that the key of an operation stands for it as long as it waits, unless it stands for another already.
pub(super) fn claim_key(
    transaction: &mut Transaction<'_>,
    index: &Mutex<PendingIndex>,
    operation: &Operation,
) -> Result<(), BufferError> {
    let Some(own) = KeyedWrite::waiting(operation) else {
        return Ok(());
    };
    if holder_of_key(transaction, index, operation)?.is_none() {
        keys::remember(transaction, &own)?;
    }
    Ok(())
}

/// The write that an operation's key stands for in this file; `None` where it has no key, or that one waits no more.
fn holder_of_key(
    transaction: &mut Transaction<'_>,
    index: &Mutex<PendingIndex>,
    operation: &Operation,
) -> Result<Option<KeyedWrite>, BufferError> {
    match &operation.idempotency {
        Some(own) => holder(transaction, index, (&operation.user_id, &own.key)),
        None => Ok(None),
    }
}

/// The write that a user's key stands for in this file.
pub(super) fn holder(
    transaction: &mut Transaction<'_>,
    index: &Mutex<PendingIndex>,
    (user, key): (&UserId, &IdempotencyKey),
) -> Result<Option<KeyedWrite>, BufferError> {
    let Some(known) = keys::find(transaction, user, key)? else {
        return Ok(None);
    };
    let counts = match known.waits_at() {
        None => known.has_ended(),
        Some(resource) => present(transaction, index, &resource)?
            .iter()
            .any(|queued| queued.item.operation.id == known.record.id),
    };
    Ok(Some(known).filter(|_| counts))
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

/// What waits for a resource already.
#[derive(Default)]
struct Waiting {
    /// The priority of what was accepted last: no other is less urgent, as none is placed before what waits already.
    least_urgent: Option<Priority>,
    /// The last item of the same user's. What others wrote is nothing for this user.
    own: Option<Queued>,
}

/// Whether an item brings, or was given, all of this, and nothing older, to be handed on.
fn knows(queued: &Queued, base: &State) -> bool {
    let operation = &queued.item.operation;
    // A condition may yet refuse what it sets.
    let change = operation
        .change()
        .filter(|_| operation.precondition.is_none());
    let known = [queued.item.base.clone(), change].into_iter().flatten();
    let known = known.reduce(|mut whole, part| {
        whole.merge(&part);
        whole
    });
    known.is_some_and(|known| {
        let mut both = known.clone();
        both.merge(base);
        both == known
    })
}

fn last_present(
    transaction: &Transaction<'_>,
    index: &Mutex<PendingIndex>,
    (key, user): (&ResourceKey, &UserId),
) -> Result<Waiting, BufferError> {
    let mut places = places_of(transaction, index, key)?;
    places.sort_unstable_by_key(|place| std::cmp::Reverse(place.seq()));
    let mut waiting = Waiting::default();
    for place in places {
        let Some(found) = at(transaction, place, key)? else {
            continue;
        };
        waiting.least_urgent.get_or_insert(found.place.priority());
        if found.item.operation.user_id == *user {
            waiting.own = Some(found);
            break;
        }
    }
    Ok(waiting)
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
    if let Some(known) = holder_of_key(transaction, index, &operation)? {
        return Ok(repeated(&operation, known, row));
    }
    let outcome = judge(&operation, row.as_ref());
    let before = row.map(|row| row.state);
    if outcome != Outcome::Applied {
        return Ok(Folded {
            outcome,
            state: before,
            created: false,
            replayed: None,
        });
    }
    if let Some(idempotency) = operation.idempotency.clone() {
        let record = OperationRecord {
            state: OperationState::Applied,
            finished_at: Some(operation.accepted_at),
            ..OperationRecord::pending(&operation)
        };
        let write = KeyedWrite {
            idempotency,
            record,
        };
        keys::remember(transaction, &write)?;
    }
    let after = operation.applied_to(before.as_ref());
    let created = before.is_none();
    store_folded(transaction, current, operation, after.clone())?;
    Ok(Folded {
        outcome,
        state: after,
        created,
        replayed: None,
    })
}

/// The answer to a repeat: the first outcome, and the resource as it is now.
fn repeated(operation: &Operation, known: KeyedWrite, row: Option<Row>) -> Folded {
    let own = operation.idempotency.as_ref();
    let is_same = own.is_some_and(|own| own.fingerprint == known.idempotency.fingerprint);
    let row = row.filter(|row| row.owner == operation.user_id);
    Folded {
        outcome: if is_same {
            Outcome::Applied
        } else {
            Outcome::Rejected(Rejection::KeyReused)
        },
        state: row.map(|row| row.state),
        created: false,
        replayed: Some(known).filter(|_| is_same),
    }
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
    // Of several writes none stands for all: a ledger that knows the key of one would keep the others out.
    item.operation.idempotency = None;
    item.operation.stamp = operation.stamp;
    item.operation.kind = if operation.kind == Kind::Delete {
        Kind::Delete
    } else {
        item.operation.kind
    };
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

/// Puts a dead letter back into its queue, as new: behind what waits for its resource, with no retries used. Tells
/// whether it did: one whose operation waits already is left out.
pub(super) fn revive(
    transaction: &mut Transaction<'_>,
    (index, clock): (&Mutex<PendingIndex>, &Clock),
    letter: DeadLetter,
) -> Result<bool, BufferError> {
    let (id, key) = (letter.item.operation.id, letter.item.operation.resource());
    let waiting = present(transaction, index, &key)?;
    if waiting.iter().any(|queued| queued.item.operation.id == id) {
        return Ok(false);
    }
    let item = Item::new(letter.item.operation, letter.item.base);
    append(transaction, (index, clock), (item, None), u64::MAX)?;
    transaction.counters.accepted -= 1;
    Ok(true)
}
