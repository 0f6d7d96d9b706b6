//! Reading the file: batches to drain, views of what is pending, figures.
//!
//! A read transaction pins every page it can see, so each is short: read, close, then act.

use std::cell::OnceCell;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use redb::{ConcurrencyMode, Database, ReadOnlyDatabase, ReadTransaction, ReadableDatabase};
use uuid::Uuid;

use crate::domain::{
    IdempotencyKey, OperationId, OperationRecord, ResourceKey, Revocation, Session, State,
    Timestamp, UserId,
};

use super::ballast::Ballast;
use super::batch::{Batch, Skip};
use super::binding::Claim;
use super::epoch::KnownTime;
use super::error::BufferError;
use super::fate::{AcceptedChange, Fate};
use super::file::{Handle, OpenFile, guard_path};
use super::index::PendingIndex;
use super::keys::{self, KeyedWrite};
use super::queue::Queued;
use super::replacement;
use super::schema::{
    Counters, DamagedItem, DeadLetter, FINISHED, FinishedBatch, Item, KEYED, Lane, Place,
    REVOCATIONS, SCHEMA_KEY, SCHEMA_VERSION, SESSIONS,
};
use super::snap::Snap;

/// The state of the buffer at one moment. By default: of one that nobody has made yet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Items waiting by lane and priority (0 is priority 1).
    pub waiting: [[u64; 5]; 2],
    /// When the oldest item waiting was accepted.
    pub oldest_accepted_at: Option<Timestamp>,
    /// Finished records in the file.
    pub finished: u64,
    /// Items set aside as damaged (they count as dead).
    pub set_aside: u64,
    /// Damaged files beside this one, salvaged or not.
    pub damaged_files: u64,
    /// Size of the file.
    pub size_bytes: u64,
    /// Whether its disk takes nothing more for now.
    pub disk_full: bool,
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
        let in_queues: u64 = Lane::ALL
            .into_iter()
            .map(|lane| self.waiting_in(lane))
            .sum();
        let mut found = Vec::new();
        if self.counters.imbalance() != 0 {
            found.push(format!(
                "accepted items not accounted for: {}",
                self.counters.imbalance()
            ));
        }
        if in_queues != self.counters.pending {
            found.push(format!(
                "{} items in the queues, {} counted as pending",
                in_queues, self.counters.pending
            ));
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
    /// Where the last of them is.
    pub last: Place,
}

impl PendingView {
    /// Whether its stamps may still be corrected, since PostgreSQL's clock isn't known: then they must not be compared
    /// with others for longer than it takes to show them.
    pub fn is_provisional(&self) -> bool {
        self.operations.iter().any(|item| item.epoch.is_some())
    }
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
    claim: Arc<Claim>,
}

impl Reader {
    pub(super) fn shared(
        file: Arc<OpenFile>,
        index: Arc<Mutex<PendingIndex>>,
        claim: Arc<Claim>,
    ) -> Self {
        Reader {
            source: Source::Shared(file),
            index,
            claim,
        }
    }

    /// Opens the file for reading only, beside whoever writes it. `Ok(None)` when there is no file.
    ///
    /// # Errors
    /// When it can't be opened, it can't be told whether it is there, or it is of a newer schema.
    pub fn open(path: &Path) -> Result<Option<Self>, BufferError> {
        match path.try_exists() {
            Ok(true) => {}
            Ok(false) => return Ok(None),
            Err(error) => return Err(BufferError::io(path, &error)),
        }
        let mut builder = Database::builder();
        builder
            .set_cache_size(16 * 1024 * 1024)
            .set_concurrency_mode(ConcurrencyMode::MultiWriter);
        let source = guard_path(path, || match builder.open_read_only(path) {
            Ok(database) => Ok(Source::ReadOnly(path.to_owned(), database)),
            Err(redb::DatabaseError::RepairAborted) => {
                let database = builder
                    .open(path)
                    .map_err(|error| BufferError::storage(path, error))?;
                Ok(Source::Repaired(path.to_owned(), database))
            }
            Err(error) => Err(BufferError::storage(path, error)),
        })?;
        let reader = Reader {
            source,
            index: Arc::default(),
            claim: Arc::default(),
        };
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

    /// Runs a read in a snapshot of its own; a handle that an I/O error has made useless is opened anew.
    pub(super) fn read<T>(
        &self,
        work: impl Fn(&Snap<'_>) -> Result<T, BufferError>,
    ) -> Result<T, BufferError> {
        match &self.source {
            Source::Shared(file) => {
                let handle = file.handle();
                let outcome = self.read_from(file, &handle, &work);
                if !matches!(outcome, Err(BufferError::Io { .. })) {
                    return outcome;
                }
                if let Err(error) = file.reopen(&handle) {
                    file.suspect(handle.generation, &error);
                    return Err(error);
                }
                self.read_from(file, &file.handle(), &work)
            }
            Source::ReadOnly(path, database) => guard_path(path, || {
                let txn = database.begin_read().map_err(|error| self.storage(error))?;
                work(&self.snap(txn, 0))
            }),
            Source::Repaired(path, database) => guard_path(path, || {
                let txn = database.begin_read().map_err(|error| self.storage(error))?;
                work(&self.snap(txn, 0))
            }),
        }
    }

    fn read_from<T>(
        &self,
        file: &OpenFile,
        handle: &Handle,
        work: impl Fn(&Snap<'_>) -> Result<T, BufferError>,
    ) -> Result<T, BufferError> {
        if !handle.is_at(file.path()) {
            return Err(BufferError::Replaced {
                path: file.path().to_owned(),
            });
        }
        let outcome = file.guard(|| {
            let txn = handle.begin_read(file.path())?;
            work(&self.snap(txn, handle.generation))
        });
        if let Err(error) = &outcome {
            file.suspect(handle.generation, error);
        }
        outcome
    }

    fn snap(&self, txn: ReadTransaction, generation: u64) -> Snap<'_> {
        Snap {
            txn,
            generation,
            path: self.path(),
            index: &self.index,
            epochs: OnceCell::new(),
            inherited: OnceCell::new(),
            ends: OnceCell::new(),
        }
    }

    /// What the file knows of PostgreSQL's clock, and whether stamps still wait for their correction.
    pub(super) fn time_notes(&self) -> Result<(Option<KnownTime>, bool), BufferError> {
        self.read(|snap| Ok((snap.known_time()?, snap.has_open_epoch()?)))
    }

    /// Refuses a file of a newer schema. A new file has none yet.
    pub(super) fn check_schema(&self) -> Result<(), BufferError> {
        let found = self
            .read(|snap| snap.meta(SCHEMA_KEY))?
            .map(|bytes| version_from(&bytes));
        match found {
            Some(found) if found > SCHEMA_VERSION => Err(BufferError::NewerSchema {
                path: self.path().to_owned(),
                found,
                known: SCHEMA_VERSION,
            }),
            _ => Ok(()),
        }
    }

    /// Makes the index of what is pending, which the first question would otherwise have to wait for.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn warm(&self) -> Result<(), BufferError> {
        self.read(|snap| snap.catch_up())
    }

    /// Drops from the index what has left the file, if that is most of it. To be called now and then by whoever asks what
    /// is pending; those who ask meanwhile wait for a tenth of a millisecond at most.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn sweep_index(&self) -> Result<(), BufferError> {
        self.read(|snap| snap.sweep_index())
    }

    /// How many operations the index knows.
    #[cfg(test)]
    pub(super) fn count_indexed(&self) -> Result<usize, BufferError> {
        self.read(|snap| snap.ask_index(|index| index.len()))
    }

    /// The database the file belongs to; `None` while it belongs to none.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn database(&self) -> Result<Option<Uuid>, BufferError> {
        self.read(|snap| snap.database())
    }

    /// Without a database, the file must not have one: what it held would be going there.
    fn check_embedded(&self, snap: &Snap<'_>) -> Result<(), BufferError> {
        if self.claim.is_for_none() {
            self.claim.check(snap.database()?, self.path())?;
        }
        Ok(())
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
    /// When the file can't be read; [`BufferError::OtherDatabase`] when PostgreSQL's items are another database's.
    pub fn next_batch(
        &self,
        lane: Lane,
        limit: usize,
        skip: &Skip,
        now: Timestamp,
    ) -> Result<Batch, BufferError> {
        self.read(|snap| {
            if lane == Lane::Postgres {
                self.claim.check(snap.database()?, self.path())?;
            }
            snap.next_batch(lane, limit, skip, now)
        })
    }

    /// The state of the buffer.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn snapshot(&self) -> Result<Snapshot, BufferError> {
        let mut snapshot = self.read(|snap| snap.snapshot())?;
        let metadata = self
            .path()
            .metadata()
            .map_err(|error| BufferError::io(self.path(), &error))?;
        snapshot.size_bytes = metadata.len();
        snapshot.damaged_files = replacement::count_damaged_files(self.path());
        snapshot.disk_full = Ballast::of(self.path()).is_disk_full();
        Ok(snapshot)
    }

    /// What is pending of a resource of this user's; `None` when nothing is.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn find_pending(
        &self,
        user: &UserId,
        key: &ResourceKey,
    ) -> Result<Option<PendingView>, BufferError> {
        self.read(|snap| {
            self.check_embedded(snap)?;
            Ok(view_of(user, snap.items_of(key)?))
        })
    }

    /// What is pending of all of this user's resources, in no particular order.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn list_pending(
        &self,
        user: &UserId,
    ) -> Result<Vec<(ResourceKey, PendingView)>, BufferError> {
        self.read(|snap| {
            self.check_embedded(snap)?;
            let keys = snap.ask_index(|index| index.of_user(user))?;
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
        self.read(|snap| snap.items_of(key))
    }

    /// What the file knows of an operation: waiting, dead or finished.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn find_operation(&self, id: OperationId) -> Result<Option<OperationRecord>, BufferError> {
        self.read(|snap| snap.find_operation(id))
    }

    /// What has become of each of these changes, which the file once held, by operation.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn fates(
        &self,
        accepted: &[AcceptedChange],
    ) -> Result<HashMap<OperationId, Fate>, BufferError> {
        self.read(|snap| {
            let fates = accepted.iter();
            fates
                .map(|accepted| Ok((accepted.id, snap.fate_of(accepted)?)))
                .collect()
        })
    }

    /// How many items are followed by others, or have inherited from others.
    #[cfg(test)]
    pub(super) fn inheritances(&self) -> Result<u64, BufferError> {
        use super::schema::{FOLLOWED, INHERITED};
        self.read(|snap| Ok(snap.length(FOLLOWED)? + snap.length(INHERITED)?))
    }

    /// The item of an operation that waits.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn find_item(&self, id: OperationId) -> Result<Option<Item>, BufferError> {
        self.read(|snap| snap.find_item(id))
    }

    /// Up to `limit` items that wait in a lane, in the order they will be drained.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn list_items(&self, lane: Lane, limit: usize) -> Result<Vec<Queued>, BufferError> {
        let always = Timestamp::from_micros(i64::MAX);
        Ok(self
            .next_batch(lane, limit, &Skip::default(), always)?
            .items)
    }

    /// Up to `limit` dead letters, the oldest operation first, beginning after `after`.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn list_dead(
        &self,
        after: Option<OperationId>,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, BufferError> {
        self.read(|snap| snap.list_dead(after, limit))
    }

    /// Up to `limit` items that were set aside as damaged.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn list_damaged(&self, limit: usize) -> Result<Vec<DamagedItem>, BufferError> {
        self.read(|snap| snap.list_damaged(limit))
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
        self.read(|snap| snap.list_operations(user))
    }

    /// Ids of the operations whose end the file remembers.
    pub(super) fn finished_ids(&self) -> Result<HashSet<OperationId>, BufferError> {
        let batches: Vec<FinishedBatch> = self.read(|snap| snap.values(FINISHED))?;
        let records = batches.into_iter().flat_map(|batch| batch.records);
        Ok(records.map(|record| record.id).collect())
    }

    /// Every revocation in force.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn list_revocations(&self) -> Result<Vec<Revocation>, BufferError> {
        self.read(|snap| snap.values(REVOCATIONS))
    }

    /// What a user has made under idempotency keys in embedded mode, in no particular order.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn list_keyed(&self, user: &UserId) -> Result<Vec<KeyedWrite>, BufferError> {
        let is_own = |write: &KeyedWrite| write.has_ended() && write.record.user_id == *user;
        self.read(|snap| snap.values_that(KEYED, is_own))
    }

    /// What a user's idempotency key stands for: a write that waits, or one that was made in embedded mode.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn find_keyed(
        &self,
        user: &UserId,
        key: &IdempotencyKey,
    ) -> Result<Option<KeyedWrite>, BufferError> {
        self.read(|snap| {
            let found: Option<KeyedWrite> = snap.value(KEYED, keys::place(user, key))?;
            let Some(known) = found.filter(|known| known.is_of(user, key)) else {
                return Ok(None);
            };
            let Some(resource) = known.waits_at() else {
                return Ok(Some(known).filter(KeyedWrite::has_ended));
            };
            let mut waiting = snap.items_of(&resource)?.into_iter();
            let own = waiting.find(|queued| queued.item.operation.id == known.record.id);
            Ok(own.map(|queued| KeyedWrite {
                record: queued.item.record(),
                ..known
            }))
        })
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
fn view_of(user: &UserId, mut items: Vec<Queued>) -> Option<PendingView> {
    items.retain(|queued| queued.item.operation.user_id == *user);
    let last = items.last()?.place;
    let operations: Vec<Item> = items.into_iter().map(|queued| *queued.item).collect();
    let mut states = operations.iter().filter_map(|item| item.base.clone());
    let mut state = states.next();
    for part in states.chain(operations.iter().filter_map(|item| item.operation.change())) {
        match &mut state {
            Some(state) => state.merge(&part),
            None => state = Some(part),
        }
    }
    Some(PendingView {
        state: state?,
        operations,
        last,
    })
}
