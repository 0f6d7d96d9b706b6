//! What was known of a resource stays known while anything of it waits.
//!
//! An item that is accepted behind others of its resource relies on them for the rest of it. They may be drained before
//! it, and the store may be away again by then: so whoever leaves hands on what it knew to the item behind it. That is
//! kept beside the items, which stay as they were read by whoever is about to settle them. Refused items hand on what
//! they were given, and nothing of their own.

use std::collections::HashMap;

use redb::{ReadableTable, ReadableTableMetadata, Table};

use crate::domain::State;

use super::error::BufferError;
use super::queue::{self, Queued};
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

/// Takes away what an item has inherited and who follows it, where it is moved to another place.
pub(super) fn take(
    transaction: &Transaction<'_>,
    place: Place,
) -> Result<Option<State>, BufferError> {
    Tables::open(transaction)?
        .take(place)
        .map(|(known, _)| known)
}

/// Items that leave in one transaction, and what they know.
#[derive(Default)]
pub(super) struct Estate {
    leaving: Vec<(Place, Option<State>)>,
}

impl Estate {
    /// Begins one. `None` while no item is followed or has inherited, which is mostly so: then nothing needs to be done.
    pub(super) fn open(transaction: &Transaction<'_>) -> Result<Option<Self>, BufferError> {
        let is_needed = !Tables::open(transaction)?.are_empty()?;
        Ok(is_needed.then(Estate::default))
    }

    /// An item leaves, and with it what is known from now on of its resource: what it set, unless it did nothing.
    pub(super) fn leave(&mut self, queued: &Queued, change: Option<State>) {
        let known = merged(queued.item.base.clone(), change);
        self.leaving.push((queued.place, known));
    }

    /// Hands on what is known to those that are left.
    pub(super) fn settle(mut self, transaction: &Transaction<'_>) -> Result<(), BufferError> {
        let mut tables = Tables::open(transaction)?;
        // In the order they were accepted, so that an heir that leaves as well has what it was given.
        self.leaving.sort_by_key(|(place, _)| *place);
        let mut given: HashMap<Place, State> = HashMap::new();
        for (place, known) in self.leaving {
            let (inherited, heir) = tables.take(place)?;
            let known = merged(merged(inherited, given.remove(&place)), known);
            given.extend(heir.zip(known));
        }
        for (heir, known) in given {
            tables.give(heir, known)?;
        }
        if transaction.counters.pending == 0 {
            tables.clear()?;
        }
        Ok(())
    }
}

/// The two tables, open.
struct Tables<'t> {
    transaction: &'t Transaction<'t>,
    followed: Table<'t, u64, u64>,
    inherited: Table<'t, u64, &'static [u8]>,
}

impl<'t> Tables<'t> {
    fn open(transaction: &'t Transaction<'_>) -> Result<Self, BufferError> {
        Ok(Tables {
            followed: transaction
                .txn
                .open_table(FOLLOWED)
                .map_err(|error| transaction.storage(error))?,
            inherited: transaction
                .txn
                .open_table(INHERITED)
                .map_err(|error| transaction.storage(error))?,
            transaction,
        })
    }

    fn failed(&self, error: redb::StorageError) -> BufferError {
        self.transaction.storage(error)
    }

    fn are_empty(&self) -> Result<bool, BufferError> {
        let is_empty = self
            .followed
            .is_empty()
            .map_err(|error| self.failed(error))?;
        Ok(is_empty
            && self
                .inherited
                .is_empty()
                .map_err(|error| self.failed(error))?)
    }

    /// Takes away what a place has inherited, and who follows it.
    fn take(&mut self, place: Place) -> Result<(Option<State>, Option<Place>), BufferError> {
        let inherited = self.inherited.remove(place.key());
        let inherited = inherited.map_err(|error| self.transaction.storage(error))?;
        let known = inherited.and_then(|bytes| whole_value(bytes.value()));
        let heir = self.followed.remove(place.key());
        let heir = heir.map_err(|error| self.transaction.storage(error))?;
        Ok((known, heir.map(|heir| Place::from_key(heir.value()))))
    }

    /// Gives what is known to an item, or, where that has gone in another way, to the one behind it.
    fn give(&mut self, heir: Place, mut known: State) -> Result<(), BufferError> {
        let mut next = Some(heir);
        while let Some(heir) = next {
            if self.is_waiting(heir)? {
                let inherited = self.inherited.remove(heir.key());
                let inherited = inherited.map_err(|error| self.transaction.storage(error))?;
                if let Some(before) = inherited.and_then(|bytes| whole_value(bytes.value())) {
                    known.merge(&before);
                }
                self.inherited
                    .insert(heir.key(), encode(&known).as_slice())
                    .map_err(|error| self.transaction.storage(error))?;
                return Ok(());
            }
            next = self.take(heir)?.1;
        }
        Ok(())
    }

    fn is_waiting(&self, place: Place) -> Result<bool, BufferError> {
        let queue = queue::open(self.transaction, place.lane(), place.priority())?;
        let item = queue.get(place.seq()).map_err(|error| self.failed(error))?;
        Ok(item.is_some())
    }

    fn clear(&mut self) -> Result<(), BufferError> {
        let followed = self.followed.retain(|_, _| false);
        followed.map_err(|error| self.transaction.storage(error))?;
        let inherited = self.inherited.retain(|_, _| false);
        inherited.map_err(|error| self.transaction.storage(error))
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
