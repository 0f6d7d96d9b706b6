//! One read transaction: a snapshot of the last commit of any process.

use std::cell::OnceCell;
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use redb::{ReadTransaction, ReadableTable, ReadableTableMetadata, TableDefinition, TableError};
use uuid::Uuid;

use crate::domain::{
    OperationId, OperationRecord, Priority, ResourceKey, Stamp, State, Timestamp, UserId,
};

use super::batch::{Batch, Gathering, Skip};
use super::epoch::{self, Epoch, Epochs, KnownTime};
use super::error::BufferError;
use super::index::{self, PendingIndex};
use super::inheritance;
use super::queue::{Queued, whole};
use super::reader::Snapshot;
use super::schema::{
    CLOCK_KEY, COUNTERS_KEY, Counters, DATABASE_KEY, DEAD, DamagedItem, DeadLetter, Decoded,
    EPOCHS, FINISHED, FinishedBatch, INHERITED, Item, Lane, META, Place, SET_ASIDE, decode,
    operation_key, queue, queues,
};

/// A read transaction and what it needs to be read.
pub(super) struct Snap<'r> {
    pub(super) txn: ReadTransaction,
    /// Which opening of the file it reads.
    pub(super) generation: u64,
    pub(super) path: &'r Path,
    pub(super) index: &'r Mutex<PendingIndex>,
    /// Read when first needed.
    pub(super) epochs: OnceCell<Epochs>,
    /// Opened when first needed; `None` where there is none.
    pub(super) inherited: OnceCell<Option<redb::ReadOnlyTable<u64, &'static [u8]>>>,
    /// The next sequence number and how many items wait, read when first needed.
    pub(super) ends: OnceCell<(u64, u64)>,
}

impl Snap<'_> {
    fn storage(&self, error: impl Into<redb::Error>) -> BufferError {
        BufferError::storage(self.path, error)
    }

    /// Asks the index, brought up to this snapshot. It is locked for the question only: what is then looked up in the
    /// file needs it again.
    pub(super) fn ask_index<T>(
        &self,
        question: impl FnOnce(&mut PendingIndex) -> T,
    ) -> Result<T, BufferError> {
        let mut index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
        let index = index.for_generation(self.generation);
        self.bring_up(index)?;
        Ok(question(index))
    }

    /// A table; `None` where nothing has made it yet.
    fn table<K: redb::Key + 'static, V: redb::Value + 'static>(
        &self,
        definition: TableDefinition<'_, K, V>,
    ) -> Result<Option<redb::ReadOnlyTable<K, V>>, BufferError> {
        match self.txn.open_table(definition) {
            Ok(table) => Ok(Some(table)),
            Err(TableError::TableDoesNotExist(_)) => Ok(None),
            Err(error) => Err(self.storage(error)),
        }
    }

    pub(super) fn length<K: redb::Key + 'static, V: redb::Value + 'static>(
        &self,
        definition: TableDefinition<'_, K, V>,
    ) -> Result<u64, BufferError> {
        let Some(table) = self.table(definition)? else {
            return Ok(0);
        };
        table.len().map_err(|error| self.storage(error))
    }

    pub(super) fn meta(&self, key: &str) -> Result<Option<Vec<u8>>, BufferError> {
        let Some(meta) = self.table(META)? else {
            return Ok(None);
        };
        let value = meta.get(key).map_err(|error| self.storage(error))?;
        Ok(value.map(|value| value.value().to_vec()))
    }

    pub(super) fn counters(&self) -> Result<Counters, BufferError> {
        match self.meta(COUNTERS_KEY)?.as_deref().map(decode) {
            None => Ok(Counters::default()),
            Some(Decoded::Whole(counters)) => Ok(counters),
            Some(_) => Err(BufferError::Damaged {
                path: self.path.to_owned(),
                detail: "its counters can't be read".to_owned(),
            }),
        }
    }

    pub(super) fn snapshot(&self) -> Result<Snapshot, BufferError> {
        let mut waiting = [[0; 5]; 2];
        let mut oldest: Option<Timestamp> = None;
        for (lane, priority, definition) in queues() {
            let Some(table) = self.table(definition)? else {
                continue;
            };
            waiting[lane as usize][usize::from(priority.number()) - 1] =
                table.len().map_err(|error| self.storage(error))?;
            let first = table.first().map_err(|error| self.storage(error))?;
            let first = first.and_then(|(seq, bytes)| {
                whole(Place::new(lane, priority, seq.value()), bytes.value())
            });
            let first = first.map(|queued| self.corrected(queued)).transpose()?;
            let accepted = first.map(|queued| queued.item.operation.accepted_at);
            oldest = oldest.into_iter().chain(accepted).min();
        }
        let counters = self.counters()?;
        Ok(Snapshot {
            waiting,
            oldest_accepted_at: oldest,
            finished: self.count_finished(&counters)?,
            set_aside: self.length(SET_ASIDE)?,
            damaged_files: 0,
            size_bytes: 0,
            disk_full: false,
            counters,
            database: self.database()?,
        })
    }

    pub(super) fn next_batch(
        &self,
        lane: Lane,
        limit: usize,
        skip: &Skip,
        now: Timestamp,
    ) -> Result<Batch, BufferError> {
        let epochs = self.epochs()?;
        let mut gathered = Gathering::new(limit, skip, epochs, (now, self.generation));
        for priority in Priority::ALL {
            let Some(table) = self.table(queue(lane, priority))? else {
                continue;
            };
            let passed = skip.passed.as_ref();
            let Some(start) = passed.map_or(Some(0), |passed| passed.start_in(lane, priority))
            else {
                continue;
            };
            for entry in table.range(start..).map_err(|error| self.storage(error))? {
                let (seq, bytes) = entry.map_err(|error| self.storage(error))?;
                if !gathered.wants_more() {
                    return Ok(gathered.pause());
                }
                gathered.consider(Place::new(lane, priority, seq.value()), bytes.value());
            }
        }
        Ok(gathered.finish())
    }

    /// The database the file belongs to.
    pub(super) fn database(&self) -> Result<Option<Uuid>, BufferError> {
        let stored = self.meta(DATABASE_KEY)?;
        Ok(stored.and_then(|bytes| Uuid::from_slice(&bytes).ok()))
    }

    /// Brings the index up to this snapshot.
    pub(super) fn catch_up(&self) -> Result<(), BufferError> {
        self.ask_index(|_| ())
    }

    fn bring_up(&self, index: &mut PendingIndex) -> Result<(), BufferError> {
        let (next_seq, _) = self.ends()?;
        if let Some(unseen) = index.unseen(next_seq) {
            for (lane, priority, definition) in queues() {
                let Some(table) = self.table(definition)? else {
                    continue;
                };
                index
                    .absorb((lane, priority), &table, unseen.clone())
                    .map_err(|error| self.storage(error))?;
            }
            index.caught_up(next_seq);
        }
        Ok(())
    }

    /// The next sequence number, and how many items wait.
    fn ends(&self) -> Result<(u64, u64), BufferError> {
        if let Some(ends) = self.ends.get() {
            return Ok(*ends);
        }
        let counters = self.counters()?;
        Ok(*self
            .ends
            .get_or_init(|| (counters.next_seq, counters.pending)))
    }

    /// Drops from the index what has left the file, if there is much of it. Queues are drained from the front, so most of
    /// it lies before the first item of its queue; where one that is put off has kept its place there, all are looked at.
    /// What others have put into the index that is newer than this snapshot stays.
    pub(super) fn sweep_index(&self) -> Result<(), BufferError> {
        let (next_seq, pending) = self.ends()?;
        let wants_sweep = || self.ask_index(|index| index.wants_sweep(pending));
        if !wants_sweep()? {
            return Ok(());
        }
        let fronts = self.fronts()?;
        self.sweep_by(|place| {
            let front = fronts.get(&(place.lane(), place.priority()));
            place.seq() >= next_seq || front.is_some_and(|front| place.seq() >= *front)
        })?;
        if wants_sweep()? {
            let places = self.places()?;
            self.sweep_by(|place| place.seq() >= next_seq || places.contains(&place.key()))?;
        }
        Ok(())
    }

    /// It is locked for a part of it at a time.
    fn sweep_by(&self, is_present: impl Fn(Place) -> bool) -> Result<(), BufferError> {
        for part in 0..index::PARTS {
            self.ask_index(|index| index.sweep(part, &is_present))?;
            // Whoever waits for the index comes first.
            std::thread::yield_now();
        }
        Ok(())
    }

    /// The places of all items.
    fn places(&self) -> Result<HashSet<u64>, BufferError> {
        let mut places = HashSet::new();
        for (lane, priority, definition) in queues() {
            let Some(table) = self.table(definition)? else {
                continue;
            };
            for entry in table.iter().map_err(|error| self.storage(error))? {
                let (seq, _) = entry.map_err(|error| self.storage(error))?;
                places.insert(Place::new(lane, priority, seq.value()).key());
            }
        }
        Ok(places)
    }

    /// The sequence number of each queue's first item, or of the next one to come.
    fn fronts(&self) -> Result<HashMap<(Lane, Priority), u64>, BufferError> {
        let (next_seq, _) = self.ends()?;
        let mut fronts = HashMap::new();
        for (lane, priority, definition) in queues() {
            let Some(table) = self.table(definition)? else {
                continue;
            };
            let first = table.first().map_err(|error| self.storage(error))?;
            fronts.insert(
                (lane, priority),
                first.map_or(next_seq, |(seq, _)| seq.value()),
            );
        }
        Ok(fronts)
    }

    fn at(&self, place: Place) -> Result<Option<Queued>, BufferError> {
        let Some(table) = self.table(place.table())? else {
            return Ok(None);
        };
        let bytes = table
            .get(place.seq())
            .map_err(|error| self.storage(error))?;
        let queued = bytes.and_then(|bytes| whole(place, bytes.value()));
        queued.map(|queued| self.corrected(queued)).transpose()
    }

    fn corrected(&self, mut queued: Queued) -> Result<Queued, BufferError> {
        if queued.item.epoch.is_some() {
            epoch::correct(&mut queued.item, self.epochs()?);
        }
        Ok(queued)
    }

    pub(super) fn epochs(&self) -> Result<&Epochs, BufferError> {
        if let Some(epochs) = self.epochs.get() {
            return Ok(epochs);
        }
        let mut epochs = Epochs::new();
        if let Some(table) = self.table(EPOCHS)? {
            for entry in table.iter().map_err(|error| self.storage(error))? {
                let (key, bytes) = entry.map_err(|error| self.storage(error))?;
                let epoch = whole_value::<Epoch>(bytes.value());
                epochs.extend(epoch.map(|epoch| (key.value(), epoch)));
            }
        }
        Ok(self.epochs.get_or_init(|| epochs))
    }

    /// Whether an epoch's place is still to be decided.
    pub(super) fn has_open_epoch(&self) -> Result<bool, BufferError> {
        Ok(epoch::is_open(self.epochs()?))
    }

    /// What the file knows of PostgreSQL's clock.
    pub(super) fn known_time(&self) -> Result<Option<KnownTime>, BufferError> {
        Ok(self.meta(CLOCK_KEY)?.and_then(|bytes| whole_value(&bytes)))
    }

    pub(super) fn items_of(&self, key: &ResourceKey) -> Result<Vec<Queued>, BufferError> {
        let places = self.ask_index(|index| index.of_resource(key))?;
        let mut items = Vec::with_capacity(places.len());
        for place in places {
            let Some(mut queued) = self.at(place)? else {
                continue;
            };
            if queued.item.operation.resource() != *key {
                continue;
            }
            let inherited = self.inherited(place)?;
            queued.item.base = inheritance::merged(queued.item.base, inherited);
            items.push(queued);
        }
        items.sort_by_key(|queued| queued.place.seq());
        Ok(items)
    }

    /// What items before this one, which have left, knew of its resource.
    fn inherited(&self, place: Place) -> Result<Option<State>, BufferError> {
        if self.inherited.get().is_none() {
            let table = self.table(INHERITED)?;
            drop(self.inherited.set(table));
        }
        let Some(table) = self.inherited.get().and_then(Option::as_ref) else {
            return Ok(None);
        };
        let bytes = table
            .get(place.key())
            .map_err(|error| self.storage(error))?;
        Ok(bytes.and_then(|bytes| whole_value(bytes.value())))
    }

    pub(super) fn find_item(&self, id: OperationId) -> Result<Option<Item>, BufferError> {
        let Some(place) = self.ask_index(|index| index.of_operation(id))? else {
            return Ok(None);
        };
        let queued = self.at(place)?;
        Ok(queued
            .map(|queued| *queued.item)
            .filter(|item| item.operation.id == id))
    }

    pub(super) fn find_dead(&self, id: OperationId) -> Result<Option<DeadLetter>, BufferError> {
        self.value(DEAD, operation_key(id))
    }

    pub(super) fn find_operation(
        &self,
        id: OperationId,
    ) -> Result<Option<OperationRecord>, BufferError> {
        if let Some(item) = self.find_item(id)? {
            return Ok(Some(item.record()));
        }
        if let Some(letter) = self.find_dead(id)? {
            return Ok(Some(letter.record()));
        }
        self.find_finished(id)
    }

    fn find_finished(&self, id: OperationId) -> Result<Option<OperationRecord>, BufferError> {
        let batch = self.batch_of(id)?;
        let mut records = batch.into_iter().flat_map(|batch| batch.records);
        Ok(records.find(|record| record.id == id))
    }

    /// The stamp of the operation that an operation ended as the repeat of.
    pub(super) fn first_stamp_of(&self, id: OperationId) -> Result<Option<Stamp>, BufferError> {
        let batch = self.batch_of(id)?;
        let mut repeats = batch.into_iter().flat_map(|batch| batch.repeats);
        Ok(repeats
            .find(|(repeat, _)| *repeat == id)
            .map(|(_, first)| first))
    }

    /// The batch with which an operation ended, if the file still has it.
    fn batch_of(&self, id: OperationId) -> Result<Option<FinishedBatch>, BufferError> {
        let Some(table) = self.table(FINISHED)? else {
            return Ok(None);
        };
        for entry in table.iter().map_err(|error| self.storage(error))?.rev() {
            let (_, bytes) = entry.map_err(|error| self.storage(error))?;
            if !FinishedBatch::may_hold(bytes.value(), id) {
                continue;
            }
            let batch: Option<FinishedBatch> = whole_value(bytes.value());
            let holds = |batch: &FinishedBatch| batch.records.iter().any(|record| record.id == id);
            if let Some(batch) = batch.filter(holds) {
                return Ok(Some(batch));
            }
        }
        Ok(None)
    }

    fn count_finished(&self, counters: &Counters) -> Result<u64, BufferError> {
        let Some(table) = self.table(FINISHED)? else {
            return Ok(0);
        };
        let first = table.first().map_err(|error| self.storage(error))?;
        Ok(first.map_or(0, |(number, _)| {
            counters.next_finish.saturating_sub(number.value())
        }))
    }

    pub(super) fn list_dead(
        &self,
        after: Option<OperationId>,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, BufferError> {
        let Some(table) = self.table(DEAD)? else {
            return Ok(Vec::new());
        };
        let from = after.map_or(0, |id| operation_key(id).saturating_add(1));
        let mut letters = Vec::new();
        for entry in table
            .range(from..)
            .map_err(|error| self.storage(error))?
            .take(limit)
        {
            let (_, bytes) = entry.map_err(|error| self.storage(error))?;
            letters.extend(whole_value(bytes.value()));
        }
        Ok(letters)
    }

    pub(super) fn list_damaged(&self, limit: usize) -> Result<Vec<DamagedItem>, BufferError> {
        let Some(table) = self.table(SET_ASIDE)? else {
            return Ok(Vec::new());
        };
        let mut damaged = Vec::new();
        for entry in table
            .iter()
            .map_err(|error| self.storage(error))?
            .take(limit)
        {
            let (_, bytes) = entry.map_err(|error| self.storage(error))?;
            damaged.push(DamagedItem::of(bytes.value().to_vec()));
        }
        Ok(damaged)
    }

    pub(super) fn list_operations(
        &self,
        user: &UserId,
    ) -> Result<Vec<OperationRecord>, BufferError> {
        let mut records = Vec::new();
        for key in self.ask_index(|index| index.of_user(user))? {
            let items = self.items_of(&key)?;
            records.extend(items.iter().map(|queued| queued.item.record()));
        }
        records.extend(
            self.values::<u128, DeadLetter>(DEAD)?
                .iter()
                .map(DeadLetter::record),
        );
        let finished = self.values::<u64, FinishedBatch>(FINISHED)?;
        records.extend(finished.into_iter().flat_map(|batch| batch.records));
        records.retain(|record| record.user_id == *user);
        Ok(records)
    }

    pub(super) fn value<T: serde::de::DeserializeOwned>(
        &self,
        definition: TableDefinition<'static, u128, &'static [u8]>,
        key: u128,
    ) -> Result<Option<T>, BufferError> {
        let Some(table) = self.table(definition)? else {
            return Ok(None);
        };
        let bytes = table.get(key).map_err(|error| self.storage(error))?;
        Ok(bytes.and_then(|bytes| whole_value(bytes.value())))
    }

    pub(super) fn values<K: redb::Key + 'static, T: serde::de::DeserializeOwned>(
        &self,
        definition: TableDefinition<'static, K, &'static [u8]>,
    ) -> Result<Vec<T>, BufferError> {
        self.values_that(definition, |_| true)
    }

    /// Those of them that are wanted.
    pub(super) fn values_that<K: redb::Key + 'static, T: serde::de::DeserializeOwned>(
        &self,
        definition: TableDefinition<'static, K, &'static [u8]>,
        is_wanted: impl Fn(&T) -> bool,
    ) -> Result<Vec<T>, BufferError> {
        let Some(table) = self.table(definition)? else {
            return Ok(Vec::new());
        };
        let mut values = Vec::new();
        for entry in table.iter().map_err(|error| self.storage(error))? {
            let (_, bytes) = entry.map_err(|error| self.storage(error))?;
            values.extend(whole_value(bytes.value()).filter(&is_wanted));
        }
        Ok(values)
    }
}

/// A value, unless it is damaged or of a newer version.
pub(super) fn whole_value<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    match decode::<T>(bytes) {
        Decoded::Whole(value) => Some(value),
        Decoded::Damaged | Decoded::Newer => None,
    }
}
