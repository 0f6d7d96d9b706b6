//! What was known of a resource stays known while anything of it waits.
//!
//! An item that is accepted behind others of its resource relies on them for the rest of it. They may be drained before
//! it, and the store may be away again by then: so whoever leaves hands on what it knew to the item behind it. That is
//! kept beside the items, which stay as they were read by whoever is about to settle them. Refused items hand on what
//! they were given, and nothing of their own.

use std::collections::HashMap;

use redb::ReadableTableMetadata;

use crate::domain::State;

use super::error::BufferError;
use super::queue::{Queued, open};
use super::schema::{FOLLOWED, INHERITED, Place, encode};
use super::snap::whole_value;
use super::writer::Transaction;

/// Notes that an item was accepted behind another one of its resource.
pub(super) fn follow(
    transaction: &Transaction<'_>,
    before: Place,
    place: Place,
) -> Result<(), BufferError> {
    let mut followed = transaction
        .txn
        .open_table(FOLLOWED)
        .map_err(|error| transaction.storage(error))?;
    followed
        .insert(before.key(), place.key())
        .map_err(|error| transaction.storage(error))?;
    Ok(())
}

/// Items that leave in one transaction, and what they know.
pub(super) struct Estate {
    /// Whether any item is followed at all: mostly none is, and then nothing is done.
    is_needed: bool,
    leaving: Vec<(Place, Option<State>)>,
}

impl Estate {
    pub(super) fn open(transaction: &Transaction<'_>) -> Result<Self, BufferError> {
        let followed = transaction
            .txn
            .open_table(FOLLOWED)
            .map_err(|error| transaction.storage(error))?;
        let is_empty = followed
            .is_empty()
            .map_err(|error| transaction.storage(error))?;
        Ok(Estate {
            is_needed: !is_empty,
            leaving: Vec::new(),
        })
    }

    /// An item leaves; what it sets is known of its resource from now on if it has taken effect.
    pub(super) fn leave(&mut self, queued: &Queued, has_taken_effect: bool) {
        if !self.is_needed {
            return;
        }
        let change = queued.item.operation.change().filter(|_| has_taken_effect);
        let known = merged(queued.item.base.clone(), change);
        self.leaving.push((queued.place, known));
    }

    /// Hands on what is known to those that are left.
    pub(super) fn settle(mut self, transaction: &Transaction<'_>) -> Result<(), BufferError> {
        if !self.is_needed {
            return Ok(());
        }
        let failed = |error: redb::StorageError| transaction.storage(error);
        let mut followed = transaction
            .txn
            .open_table(FOLLOWED)
            .map_err(|error| transaction.storage(error))?;
        let mut inherited = transaction
            .txn
            .open_table(INHERITED)
            .map_err(|error| transaction.storage(error))?;
        // In the order they were accepted, so that an heir that leaves as well has what it was given.
        self.leaving.sort_by_key(|(place, _)| *place);
        let mut given: HashMap<u64, State> = HashMap::new();
        for (place, known) in self.leaving {
            let before = inherited.remove(place.key()).map_err(failed)?;
            let before = before.and_then(|bytes| whole_value(bytes.value()));
            let known = merged(merged(before, given.remove(&place.key())), known);
            let heir = followed.remove(place.key()).map_err(failed)?;
            let heir = heir.map(|heir| heir.value());
            given.extend(heir.zip(known));
        }
        for (heir, known) in given {
            let place = Place::from_key(heir);
            let table = open(transaction, place.lane(), place.priority())?;
            let waits = redb::ReadableTable::get(&table, place.seq()).map_err(failed)?;
            if waits.is_none() {
                continue;
            }
            let before = inherited.remove(heir).map_err(failed)?;
            let before = before.and_then(|bytes| whole_value(bytes.value()));
            if let Some(known) = merged(before, Some(known)) {
                inherited
                    .insert(heir, encode(&known).as_slice())
                    .map_err(failed)?;
            }
        }
        if transaction.counters.pending == 0 {
            followed.retain(|_, _| false).map_err(failed)?;
            inherited.retain(|_, _| false).map_err(failed)?;
        }
        Ok(())
    }
}

/// Two records of one resource as one.
pub(super) fn merged(one: Option<State>, other: Option<State>) -> Option<State> {
    match (one, other) {
        (Some(mut one), Some(other)) => {
            one.merge(&other);
            Some(one)
        }
        (one, other) => one.or(other),
    }
}
