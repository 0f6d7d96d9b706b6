//! Reading the file: batches to drain, views of what is pending, figures.
//!
//! A read transaction pins every page it can see, so each is short: read, close, then act.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::{ConcurrencyMode, Database, ReadOnlyDatabase, ReadTransaction, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition, TableError};
use uuid::Uuid;

use crate::domain::{OperationId, OperationRecord, Priority, ResourceKey, Revocation, Session, State, Timestamp, UserId};

use super::error::BufferError;
use super::file::OpenFile;
use super::index::PendingIndex;
use super::queue::{Queued, whole};
use super::schema::{
    COUNTERS_KEY, Counters, DATABASE_KEY, DEAD, DeadLetter, Decoded, FINISHED, Item, Lane, META, Place, REVOCATIONS,
    SCHEMA_KEY, SCHEMA_VERSION, SESSIONS, SET_ASIDE, checksum, decode, operation_key, queue, queues,
};

/// Most items looked at for one batch: bounds a read when very many are put off.
const SCAN_MAX: usize = 50_000;

/// What a batch leaves out.
#[derive(Debug, Clone, Default)]
pub struct Skip {
    /// Resources that are put off: none of their items.
    pub resources: HashSet<ResourceKey>,
    /// Items that are being settled already.
    pub places: HashSet<Place>,
}

/// Items to apply, in order.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// The items: by priority, then by age; never a later one of a resource without the earlier ones.
    pub items: Vec<Queued>,
    /// When the first of the items put off is due.
    pub next_due: Option<Timestamp>,
    /// Items passed over because their resource is put off.
    pub put_off: usize,
    /// Items whose checksum is wrong: to be set aside.
    pub damaged: Vec<Place>,
    /// Items that a newer program wrote: left where they are.
    pub newer: usize,
}

/// The state of the buffer at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Items waiting by lane and priority (0 is priority 1).
    pub waiting: [[u64; 5]; 2],
    /// When the oldest item waiting was accepted.
    pub oldest_accepted_at: Option<Timestamp>,
    /// Finished records in the file.
    pub finished: u64,
    /// Items set aside as damaged (they count as dead).
    pub set_aside: u64,
    /// Size of the file.
    pub size_bytes: u64,
    /// What has been counted.
    pub counters: Counters,
    /// The database the file belongs to; `None` while it never met one.
    pub database: Option<Uuid>,
}

impl Snapshot {
    /// Items waiting in a lane.
    pub fn waiting_in(&self, lane: Lane) -> u64 {
        self.waiting[lane as usize].iter().sum()
    }

    /// What doesn't add up, in words; empty when all does.
    pub fn discrepancies(&self) -> Vec<String> {
        let in_queues: u64 = Lane::ALL.into_iter().map(|lane| self.waiting_in(lane)).sum();
        let mut found = Vec::new();
        if self.counters.imbalance() != 0 {
            found.push(format!("accepted items not accounted for: {}", self.counters.imbalance()));
        }
        if in_queues != self.counters.pending {
            found.push(format!("{} items in the queues, {} counted as pending", in_queues, self.counters.pending));
        }
        found
    }
}

/// What is pending of one resource.
#[derive(Debug, Clone)]
pub struct PendingView {
    /// The resource as it will be, as far as the node knows.
    pub state: State,
    /// The operations that wait, in the order they were accepted.
    pub operations: Vec<Item>,
}

enum Source {
    Shared(Arc<OpenFile>),
    ReadOnly(PathBuf, ReadOnlyDatabase),
    /// Opened for writing because the file needed a repair that only a writer may make; used for reading only.
    Repaired(PathBuf, Database),
}

/// Reads the file: of the process that has it open for writing, or beside such processes.
pub struct Reader {
    source: Source,
    index: Arc<Mutex<PendingIndex>>,
}

impl Reader {
    pub(super) fn shared(file: Arc<OpenFile>, index: Arc<Mutex<PendingIndex>>) -> Self {
        Reader { source: Source::Shared(file), index }
    }

    /// Opens the file for reading only, beside whoever writes it. `Ok(None)` when there is no file.
    ///
    /// # Errors
    /// When it can't be opened or is of a newer schema.
    pub fn open(path: &Path) -> Result<Option<Self>, BufferError> {
        if !path.exists() {
            return Ok(None);
        }
        let mut builder = Database::builder();
        builder.set_cache_size(16 * 1024 * 1024).set_concurrency_mode(ConcurrencyMode::MultiWriter);
        let source = match builder.open_read_only(path) {
            Ok(database) => Source::ReadOnly(path.to_owned(), database),
            Err(redb::DatabaseError::RepairAborted) => {
                let database = builder.open(path).map_err(|error| BufferError::storage(path, error))?;
                Source::Repaired(path.to_owned(), database)
            }
            Err(error) => return Err(BufferError::storage(path, error)),
        };
        let reader = Reader { source, index: Arc::default() };
        reader.check_schema()?;
        Ok(Some(reader))
    }

    fn path(&self) -> &Path {
        match &self.source {
            Source::Shared(file) => file.path(),
            Source::ReadOnly(path, _) | Source::Repaired(path, _) => path,
        }
    }

    fn storage(&self, error: impl Into<redb::Error>) -> BufferError {
        BufferError::storage(self.path(), error)
    }

    /// Runs a read in a snapshot of its own; a handle that an I/O error has made useless is opened anew for the next.
    fn read<T>(&self, work: impl Fn(&Snap<'_>) -> Result<T, BufferError>) -> Result<T, BufferError> {
        match &self.source {
            Source::Shared(file) => {
                let handle = file.handle();
                let outcome = file.guard(|| {
                    let txn = handle.begin_read(file.path())?;
                    work(&Snap { txn, generation: handle.generation, reader: self })
                });
                if matches!(outcome, Err(BufferError::Io { .. })) {
                    file.reopen(&handle)?;
                }
                outcome
            }
            Source::ReadOnly(_, database) => {
                let txn = database.begin_read().map_err(|error| self.storage(error))?;
                work(&Snap { txn, generation: 0, reader: self })
            }
            Source::Repaired(_, database) => {
                let txn = database.begin_read().map_err(|error| self.storage(error))?;
                work(&Snap { txn, generation: 0, reader: self })
            }
        }
    }

    /// Refuses a file of a newer schema. A new file has none yet.
    pub(super) fn check_schema(&self) -> Result<(), BufferError> {
        let found = self.read(|snap| snap.meta(SCHEMA_KEY))?.map(|bytes| version_from(&bytes));
        match found {
            Some(found) if found > SCHEMA_VERSION => {
                Err(BufferError::NewerSchema { path: self.path().to_owned(), found, known: SCHEMA_VERSION })
            }
            _ => Ok(()),
        }
    }

    /// The counters alone: the cheapest look at the file.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn counters(&self) -> Result<Counters, BufferError> {
        self.read(|snap| snap.counters())
    }

    /// The next items of a lane, up to `limit`: by priority, then by age. An item that is to be tried later holds
    /// back the later ones of its resource; so do `skip`'s resources.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn next_batch(&self, lane: Lane, limit: usize, skip: &Skip, now: Timestamp) -> Result<Batch, BufferError> {
        self.read(|snap| snap.next_batch(lane, limit, skip, now))
    }

    /// The state of the buffer.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn snapshot(&self) -> Result<Snapshot, BufferError> {
        let mut snapshot = self.read(|snap| snap.snapshot())?;
        let metadata = self.path().metadata().map_err(|error| BufferError::io(self.path(), &error))?;
        snapshot.size_bytes = metadata.len();
        Ok(snapshot)
    }

    /// What is pending of a resource of this user's; `None` when nothing is.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn find_pending(&self, user: &UserId, key: &ResourceKey) -> Result<Option<PendingView>, BufferError> {
        self.read(|snap| {
            snap.catch_up()?;
            Ok(view_of(user, snap.items_of(key)?))
        })
    }

    /// What is pending of all of this user's resources, in no particular order.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn list_pending(&self, user: &UserId) -> Result<Vec<(ResourceKey, PendingView)>, BufferError> {
        self.read(|snap| {
            snap.catch_up()?;
            let keys = snap.index().of_user(user);
            let mut views = Vec::new();
            for key in keys {
                let view = view_of(user, snap.items_of(&key)?);
                views.extend(view.map(|view| (key, view)));
            }
            Ok(views)
        })
    }

    /// The items of a resource that wait, in the order they were accepted.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn list_items_of(&self, key: &ResourceKey) -> Result<Vec<Queued>, BufferError> {
        self.read(|snap| {
            snap.catch_up()?;
            snap.items_of(key)
        })
    }

    /// What the file knows of an operation: waiting, dead or finished.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn find_operation(&self, id: OperationId) -> Result<Option<OperationRecord>, BufferError> {
        self.read(|snap| {
            snap.catch_up()?;
            snap.find_operation(id)
        })
    }

    /// The item of an operation that waits.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn find_item(&self, id: OperationId) -> Result<Option<Item>, BufferError> {
        self.read(|snap| {
            snap.catch_up()?;
            snap.find_item(id)
        })
    }

    /// Up to `limit` items that wait in a lane, in the order they will be drained.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn list_items(&self, lane: Lane, limit: usize) -> Result<Vec<Queued>, BufferError> {
        let always = Timestamp::from_micros(i64::MAX);
        Ok(self.next_batch(lane, limit, &Skip::default(), always)?.items)
    }

    /// Up to `limit` dead letters, the oldest operation first, beginning after `after`.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn list_dead(&self, after: Option<OperationId>, limit: usize) -> Result<Vec<DeadLetter>, BufferError> {
        self.read(|snap| snap.list_dead(after, limit))
    }

    /// A dead letter.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn find_dead(&self, id: OperationId) -> Result<Option<DeadLetter>, BufferError> {
        self.read(|snap| snap.find_dead(id))
    }

    /// What became of all of this user's operations that the file knows of, in no particular order.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn list_operations(&self, user: &UserId) -> Result<Vec<OperationRecord>, BufferError> {
        self.read(|snap| {
            snap.catch_up()?;
            snap.list_operations(user)
        })
    }

    /// Every revocation in force.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn list_revocations(&self) -> Result<Vec<Revocation>, BufferError> {
        self.read(|snap| snap.values(REVOCATIONS))
    }

    /// Sessions kept in the file (where there is no Redis).
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn list_sessions(&self) -> Result<Vec<Session>, BufferError> {
        self.read(|snap| snap.values(SESSIONS))
    }
}

/// The schema version stored as these bytes.
fn version_from(bytes: &[u8]) -> u64 {
    bytes.try_into().map_or(u64::MAX, u64::from_le_bytes)
}

/// Merges what waits for a resource into what will be; `None` when nothing of this user's waits.
fn view_of(user: &UserId, items: Vec<Queued>) -> Option<PendingView> {
    let mut operations: Vec<Item> = items.into_iter().map(|queued| queued.item).collect();
    operations.retain(|item| item.operation.user_id == *user);
    let mut states = operations.iter().filter_map(|item| item.base.clone());
    let mut state = states.next();
    for part in states.chain(operations.iter().filter_map(|item| item.operation.change())) {
        match &mut state {
            Some(state) => state.merge(&part),
            None => state = Some(part),
        }
    }
    Some(PendingView { state: state?, operations })
}

/// A read transaction and what it needs to be read.
struct Snap<'r> {
    txn: ReadTransaction,
    generation: u64,
    reader: &'r Reader,
}

impl Snap<'_> {
    fn storage(&self, error: impl Into<redb::Error>) -> BufferError {
        self.reader.storage(error)
    }

    fn index(&self) -> MutexGuard<'_, PendingIndex> {
        let mut index = self.reader.index.lock().unwrap_or_else(PoisonError::into_inner);
        index.for_generation(self.generation);
        index
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

    fn length<K: redb::Key + 'static, V: redb::Value + 'static>(
        &self,
        definition: TableDefinition<'_, K, V>,
    ) -> Result<u64, BufferError> {
        let Some(table) = self.table(definition)? else { return Ok(0) };
        table.len().map_err(|error| self.storage(error))
    }

    fn meta(&self, key: &str) -> Result<Option<Vec<u8>>, BufferError> {
        let Some(meta) = self.table(META)? else { return Ok(None) };
        let value = meta.get(key).map_err(|error| self.storage(error))?;
        Ok(value.map(|value| value.value().to_vec()))
    }

    fn counters(&self) -> Result<Counters, BufferError> {
        match self.meta(COUNTERS_KEY)?.as_deref().map(decode) {
            None => Ok(Counters::default()),
            Some(Decoded::Whole(counters)) => Ok(counters),
            Some(_) => Err(BufferError::Damaged {
                path: self.reader.path().to_owned(),
                detail: "its counters can't be read".to_owned(),
            }),
        }
    }

    fn snapshot(&self) -> Result<Snapshot, BufferError> {
        let mut waiting = [[0; 5]; 2];
        let mut oldest: Option<Timestamp> = None;
        for (lane, priority, definition) in queues() {
            let Some(table) = self.table(definition)? else { continue };
            waiting[lane as usize][usize::from(priority.number()) - 1] = table.len().map_err(|error| self.storage(error))?;
            let first = table.first().map_err(|error| self.storage(error))?;
            let accepted = first.and_then(|(seq, bytes)| {
                whole(Place::new(lane, priority, seq.value()), bytes.value())
                    .map(|queued| queued.item.operation.accepted_at)
            });
            oldest = oldest.into_iter().chain(accepted).min();
        }
        let database = self.meta(DATABASE_KEY)?;
        Ok(Snapshot {
            waiting,
            oldest_accepted_at: oldest,
            finished: self.length(FINISHED)?,
            set_aside: self.length(SET_ASIDE)?,
            size_bytes: 0,
            counters: self.counters()?,
            database: database.and_then(|bytes| Uuid::from_slice(&bytes).ok()),
        })
    }

    fn next_batch(&self, lane: Lane, limit: usize, skip: &Skip, now: Timestamp) -> Result<Batch, BufferError> {
        let mut gathered = Gathering { batch: Batch::default(), held: HashSet::new(), scanned: 0, limit, skip, now };
        for priority in Priority::ALL {
            let Some(table) = self.table(queue(lane, priority))? else { continue };
            for entry in table.iter().map_err(|error| self.storage(error))? {
                let (seq, bytes) = entry.map_err(|error| self.storage(error))?;
                if !gathered.wants_more() {
                    return Ok(gathered.batch);
                }
                gathered.consider(Place::new(lane, priority, seq.value()), bytes.value());
            }
        }
        Ok(gathered.batch)
    }

    /// Brings the index up to this snapshot, and sweeps it when much of it is out of date.
    fn catch_up(&self) -> Result<(), BufferError> {
        let counters = self.counters()?;
        let mut index = self.index();
        if let Some(unseen) = index.unseen(counters.next_seq) {
            for (lane, priority, definition) in queues() {
                let Some(table) = self.table(definition)? else { continue };
                index
                    .absorb((lane, priority), &table, unseen.clone())
                    .map_err(|error| self.storage(error))?;
            }
            index.caught_up(counters.next_seq);
        }
        if index.wants_sweep(counters.pending) {
            self.sweep(&mut index, counters.next_seq)?;
        }
        Ok(())
    }

    /// Drops from the index what lies before the first item of its queue: queues are drained from the front.
    fn sweep(&self, index: &mut PendingIndex, next_seq: u64) -> Result<(), BufferError> {
        let mut fronts = std::collections::HashMap::new();
        for (lane, priority, definition) in queues() {
            let Some(table) = self.table(definition)? else { continue };
            let first = table.first().map_err(|error| self.storage(error))?;
            fronts.insert((lane, priority), first.map_or(next_seq, |(seq, _)| seq.value()));
        }
        index.sweep(|place| {
            fronts.get(&(place.lane(), place.priority())).is_some_and(|front| place.seq() >= *front)
        });
        Ok(())
    }

    fn at(&self, place: Place) -> Result<Option<Queued>, BufferError> {
        let Some(table) = self.table(place.table())? else { return Ok(None) };
        let bytes = table.get(place.seq()).map_err(|error| self.storage(error))?;
        Ok(bytes.and_then(|bytes| whole(place, bytes.value())))
    }

    fn items_of(&self, key: &ResourceKey) -> Result<Vec<Queued>, BufferError> {
        let places = self.index().of_resource(key);
        let mut items = Vec::with_capacity(places.len());
        for place in places {
            let queued = self.at(place)?;
            items.extend(queued.filter(|queued| queued.item.operation.resource() == *key));
        }
        items.sort_by_key(|queued| queued.place.seq());
        Ok(items)
    }

    fn find_item(&self, id: OperationId) -> Result<Option<Item>, BufferError> {
        let Some(place) = self.index().of_operation(id) else { return Ok(None) };
        let queued = self.at(place)?;
        Ok(queued.map(|queued| queued.item).filter(|item| item.operation.id == id))
    }

    fn find_dead(&self, id: OperationId) -> Result<Option<DeadLetter>, BufferError> {
        self.value(DEAD, operation_key(id))
    }

    fn find_operation(&self, id: OperationId) -> Result<Option<OperationRecord>, BufferError> {
        if let Some(item) = self.find_item(id)? {
            return Ok(Some(item.record()));
        }
        if let Some(letter) = self.find_dead(id)? {
            return Ok(Some(letter.record()));
        }
        self.value(FINISHED, operation_key(id))
    }

    fn list_dead(&self, after: Option<OperationId>, limit: usize) -> Result<Vec<DeadLetter>, BufferError> {
        let Some(table) = self.table(DEAD)? else { return Ok(Vec::new()) };
        let from = after.map_or(0, |id| operation_key(id).saturating_add(1));
        let mut letters = Vec::new();
        for entry in table.range(from..).map_err(|error| self.storage(error))?.take(limit) {
            let (_, bytes) = entry.map_err(|error| self.storage(error))?;
            letters.extend(whole_value(bytes.value()));
        }
        Ok(letters)
    }

    fn list_operations(&self, user: &UserId) -> Result<Vec<OperationRecord>, BufferError> {
        let mut records = Vec::new();
        for key in self.index().of_user(user) {
            let items = self.items_of(&key)?;
            records.extend(items.iter().map(|queued| queued.item.record()));
        }
        records.extend(self.values::<u128, DeadLetter>(DEAD)?.iter().map(DeadLetter::record));
        records.extend(self.values::<u128, OperationRecord>(FINISHED)?);
        records.retain(|record| record.user_id == *user);
        Ok(records)
    }

    fn value<T: serde::de::DeserializeOwned>(
        &self,
        definition: TableDefinition<'static, u128, &'static [u8]>,
        key: u128,
    ) -> Result<Option<T>, BufferError> {
        let Some(table) = self.table(definition)? else { return Ok(None) };
        let bytes = table.get(key).map_err(|error| self.storage(error))?;
        Ok(bytes.and_then(|bytes| whole_value(bytes.value())))
    }

    fn values<K: redb::Key + 'static, T: serde::de::DeserializeOwned>(
        &self,
        definition: TableDefinition<'static, K, &'static [u8]>,
    ) -> Result<Vec<T>, BufferError> {
        let Some(table) = self.table(definition)? else { return Ok(Vec::new()) };
        let mut values = Vec::new();
        for entry in table.iter().map_err(|error| self.storage(error))? {
            let (_, bytes) = entry.map_err(|error| self.storage(error))?;
            values.extend(whole_value(bytes.value()));
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

/// A batch in the making.
struct Gathering<'g> {
    batch: Batch,
    held: HashSet<ResourceKey>,
    scanned: usize,
    limit: usize,
    skip: &'g Skip,
    now: Timestamp,
}

impl Gathering<'_> {
    fn wants_more(&self) -> bool {
        self.batch.items.len() < self.limit && self.scanned < SCAN_MAX
    }

    fn consider(&mut self, place: Place, bytes: &[u8]) {
        self.scanned += 1;
        if self.skip.places.contains(&place) {
            return;
        }
        let item: Item = match decode(bytes) {
            Decoded::Whole(item) => item,
            Decoded::Damaged => return self.batch.damaged.push(place),
            Decoded::Newer => {
                self.batch.newer += 1;
                return;
            }
        };
        let key = item.operation.resource();
        if self.skip.resources.contains(&key) || self.held.contains(&key) {
            self.batch.put_off += 1;
        } else if let Some(due) = item.not_before.filter(|due| *due > self.now) {
            self.batch.put_off += 1;
            self.batch.next_due = self.batch.next_due.into_iter().chain([due]).min();
            self.held.insert(key);
        } else {
            self.batch.items.push(Queued { place, checksum: checksum(bytes), item });
        }
    }
}
