//! The buffer as a process uses it: asynchronous calls over the writer's thread and the reader.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use uuid::Uuid;

use crate::clock::{Clock, Reading};
use crate::config::BufferConfig;
use crate::domain::{NodeId, Operation, OperationId, Revocation, Session, Stamp, State};

use super::epoch::{self, KnownTime};
use super::error::BufferError;
use super::file::OpenFile;
use super::index::PendingIndex;
use super::queue::{self, Folded, SettleReport, Settlement, Slot, room};
use super::reader::Reader;
use super::registration::{Registration, register};
use super::retention::{self, RetentionReport};
use super::schema::{DATABASE_KEY, DeadLetter, Item, META, Place, REVOCATIONS, SESSIONS, encode};
use super::writer::{Transaction, Writer};

/// How long a request waits for the writer before it is refused. Only a process stopped inside a transaction, or a disk
/// that hangs, makes it wait so long; a disk that others keep busy has been seen to take 2 s for a sync.
const DEADLINE: Duration = Duration::from_secs(5);

/// Which database the file belongs to, after a store has said which it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Binding {
    /// The one it belonged to.
    Same,
    /// It belongs to this one from now on: it belonged to none, or held nothing.
    Bound,
    /// Another one, and items of it are waiting: nothing was changed.
    Foreign {
        /// How many.
        waiting: u64,
    },
}

/// The buffer file, open for reading and writing. Cheap to clone; the file closes with the last clone.
#[derive(Clone)]
pub struct Buffer(Arc<Inner>);

struct Inner {
    path: PathBuf,
    max_items: u64,
    retention: Duration,
    file: Arc<OpenFile>,
    reader: Reader,
    index: Arc<Mutex<PendingIndex>>,
    clock: Arc<Clock>,
    writer: Mutex<Option<Arc<Writer>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Buffer {
    /// Opens the file, or makes it, and starts the writer. Blocks: call it before serving, or off the async threads.
    ///
    /// # Errors
    /// When the file can't be made, opened, read or written, is damaged, of a newer schema, or on a network file
    /// system. Nothing is changed then.
    pub fn open(config: &BufferConfig) -> Result<Self, BufferError> {
        Buffer::open_by(config, Reading::take)
    }

    /// The same, by other clocks than this machine's.
    ///
    /// # Errors
    /// As [`Buffer::open`].
    pub fn open_by(
        config: &BufferConfig,
        source: impl Fn() -> Reading + Send + Sync + 'static,
    ) -> Result<Self, BufferError> {
        let file = Arc::new(OpenFile::open(&config.path)?);
        let index = Arc::<Mutex<PendingIndex>>::default();
        let reader = Reader::shared(Arc::clone(&file), Arc::clone(&index));
        reader.check_schema()?;
        let Registration {
            node_number,
            writer_number,
        } = file.guard(|| register(&file, &file.handle()))?;
        let clock = Clock::reading(NodeId::from_number(node_number), source);
        if let (Some(known), _) = reader.time_notes()? {
            known.tell(&clock);
        }
        let (writer, thread) = Writer::start(Arc::clone(&file), writer_number, DEADLINE)?;
        Ok(Buffer(Arc::new(Inner {
            path: config.path.clone(),
            max_items: config.max_items,
            retention: config.retention,
            file,
            reader,
            index,
            clock: Arc::new(clock),
            writer: Mutex::new(Some(Arc::new(writer))),
            thread: Mutex::new(Some(thread)),
        })))
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Most items that may wait.
    pub fn max_items(&self) -> u64 {
        self.0.max_items
    }

    /// The clock that stamps this process' writes.
    pub fn clock(&self) -> &Arc<Clock> {
        &self.0.clock
    }

    /// The reader, for use off the async threads; see [`Buffer::read`].
    pub fn reader(&self) -> &Reader {
        &self.0.reader
    }

    /// Reads off the async threads.
    ///
    /// # Errors
    /// The read's own.
    pub async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Reader) -> Result<T, BufferError> + Send + 'static,
    ) -> Result<T, BufferError> {
        let buffer = self.clone();
        let done = tokio::task::spawn_blocking(move || read(&buffer.0.reader)).await;
        done.unwrap_or(Err(BufferError::Closed))
    }

    /// Accepts an operation: when this returns, it is durable. `base` is the resource as this node knows it. An
    /// operation without a stamp gets one here. Gives the operation as it was accepted.
    ///
    /// # Errors
    /// [`BufferError::Full`], [`BufferError::Busy`], or what the file's disk says; it isn't accepted then.
    pub async fn append(
        &self,
        operation: Operation,
        base: Option<State>,
        slot: Slot,
    ) -> Result<Operation, BufferError> {
        let (index, clock, room) = self.for_append(slot);
        let item = Item::new(operation, base);
        let accepted = self
            .submit(move |transaction| queue::append(transaction, (&index, &clock), item, room))
            .await?;
        Ok(accepted.operation)
    }

    /// Embedded mode: applies an operation to the item that holds its resource, durably.
    ///
    /// # Errors
    /// As [`Buffer::append`]; nothing is changed then.
    pub async fn fold(&self, operation: Operation) -> Result<Folded, BufferError> {
        let (index, clock, room) = self.for_append(Slot::Ordinary);
        self.submit(move |transaction| queue::fold(transaction, (&index, &clock), operation, room))
            .await
    }

    /// Accepts the revocation of a session, in force here from now on. `operation` carries it to Redis; without one it
    /// stays here (no Redis configured).
    ///
    /// # Errors
    /// As [`Buffer::append`]; nothing is revoked then.
    pub async fn revoke(
        &self,
        revocation: Revocation,
        operation: Option<Operation>,
    ) -> Result<(), BufferError> {
        let (index, clock, room) = self.for_append(Slot::Reserved);
        self.submit(move |transaction| {
            remember(transaction, &[revocation])?;
            let Some(operation) = operation else {
                return Ok(());
            };
            queue::append(
                transaction,
                (&index, &clock),
                Item::new(operation, None),
                room,
            )
            .map(|_| ())
        })
        .await
    }

    /// Remembers revocations that other nodes made.
    ///
    /// # Errors
    /// When the file can't be written; none is remembered then.
    pub async fn remember_revocations(
        &self,
        revocations: Vec<Revocation>,
    ) -> Result<(), BufferError> {
        self.submit(move |transaction| remember(transaction, &revocations))
            .await
    }

    /// Remembers a session (where there is no Redis).
    ///
    /// # Errors
    /// When the file can't be written.
    pub async fn remember_session(&self, session: Session) -> Result<(), BufferError> {
        self.submit(move |transaction| {
            let mut sessions = transaction
                .txn
                .open_table(SESSIONS)
                .map_err(|error| transaction.storage(error))?;
            sessions
                .insert(session.id.as_str(), encode(&session).as_slice())
                .map_err(|error| transaction.storage(error))?;
            Ok(())
        })
        .await
    }

    /// Carries out what became of items: all in one transaction. An item that has gone or changed since it was read is
    /// left alone. No settlements: nothing is written.
    ///
    /// # Errors
    /// When the file can't be written; all items are then as they were.
    pub async fn settle(&self, settlements: Vec<Settlement>) -> Result<SettleReport, BufferError> {
        if settlements.is_empty() {
            return Ok(SettleReport::default());
        }
        let now = self.0.clock.now();
        self.submit(move |transaction| queue::settle(transaction, settlements, now))
            .await
    }

    /// Moves damaged items out of their queues, where they stay for salvage. Gives how many.
    ///
    /// # Errors
    /// When the file can't be written.
    pub async fn set_aside(&self, places: Vec<Place>) -> Result<u64, BufferError> {
        self.submit(move |transaction| queue::set_aside(transaction, &places))
            .await
    }

    /// One bounded step of retention: call it until the report says there is no more.
    ///
    /// # Errors
    /// When the archive or the file can't be written; a letter may then be in both.
    pub async fn retain(&self) -> Result<RetentionReport, BufferError> {
        let (path, age, now) = (self.0.path.clone(), self.0.retention, self.0.clock.now());
        self.submit(move |transaction| retention::step(transaction, &path, age, now))
            .await
    }

    /// Puts dead letters back into their queues, in the order given. Gives those that were there.
    ///
    /// # Errors
    /// When the file can't be written; all stay dead then.
    pub async fn retry_dead(&self, ids: Vec<OperationId>) -> Result<Vec<OperationId>, BufferError> {
        let (index, clock, _) = self.for_append(Slot::Reserved);
        self.submit(move |transaction| {
            let letters = retention::remove_dead(transaction, ids)?;
            let revived = letters
                .iter()
                .map(|letter| letter.item.operation.id)
                .collect();
            for letter in letters {
                queue::revive(transaction, (&index, &clock), letter)?;
            }
            Ok(revived)
        })
        .await
    }

    /// Puts letters of the archive back into their queues. Gives how many.
    ///
    /// # Errors
    /// When the file can't be written; none is then.
    pub async fn retry_archived(&self, letters: Vec<DeadLetter>) -> Result<u64, BufferError> {
        let (index, clock, _) = self.for_append(Slot::Reserved);
        self.submit(move |transaction| {
            let count = letters.len() as u64;
            for letter in letters {
                queue::revive(transaction, (&index, &clock), letter)?;
            }
            transaction.counters.archived = transaction.counters.archived.saturating_sub(count);
            Ok(count)
        })
        .await
    }

    /// Discards dead letters for good. Gives those that were there.
    ///
    /// # Errors
    /// When the file can't be written; all stay then.
    pub async fn discard_dead(
        &self,
        ids: Vec<OperationId>,
    ) -> Result<Vec<OperationId>, BufferError> {
        self.submit(move |transaction| {
            let letters = retention::remove_dead(transaction, ids)?;
            transaction.counters.discarded += letters.len() as u64;
            Ok(letters
                .iter()
                .map(|letter| letter.item.operation.id)
                .collect())
        })
        .await
    }

    /// Tells the file which database the store is (`None`: no store is configured).
    ///
    /// # Errors
    /// When the file can't be read or written.
    pub async fn bind_database(&self, database: Option<Uuid>) -> Result<Binding, BufferError> {
        let snapshot = self.read(Reader::snapshot).await?;
        if snapshot.database == database {
            return Ok(Binding::Same);
        }
        let waiting = snapshot.waiting_in(super::schema::Lane::Postgres);
        if snapshot.database.is_some() && waiting > 0 {
            return Ok(Binding::Foreign { waiting });
        }
        self.adopt(database).await?;
        Ok(Binding::Bound)
    }

    /// Makes the file belong to this database, whatever it holds.
    ///
    /// # Errors
    /// When the file can't be written.
    pub async fn adopt(&self, database: Option<Uuid>) -> Result<(), BufferError> {
        self.submit(move |transaction| {
            let mut meta = transaction
                .txn
                .open_table(META)
                .map_err(|error| transaction.storage(error))?;
            match database {
                Some(id) => meta
                    .insert(DATABASE_KEY, id.as_bytes().as_slice())
                    .map(drop),
                None => meta.remove(DATABASE_KEY).map(drop),
            }
            .map_err(|error| transaction.storage(error))
        })
        .await
    }

    /// Writes down what the clock knows of PostgreSQL's, and corrects the stamps that were made before anybody on this
    /// machine knew it: to be called before anything is applied. Does nothing while the clock knows nothing, or nothing
    /// new. Gives how many runs of the machine had stamps to correct.
    ///
    /// # Errors
    /// When the file can't be read or written; the stamps are then as they were.
    pub async fn settle_time(&self) -> Result<usize, BufferError> {
        let Some(known) = KnownTime::of(&self.0.clock) else {
            return Ok(0);
        };
        let (noted, has_open_epoch) = self.read(Reader::time_notes).await?;
        if !has_open_epoch && !known.is_news(noted) {
            return Ok(0);
        }
        let clock = Arc::clone(&self.0.clock);
        let settle = move |transaction: &mut Transaction<'_>| {
            let decided = epoch::settle(transaction, known, clock.now())?;
            clock.observe(Stamp::from_i64(transaction.counters.high_water));
            Ok(decided)
        };
        let decided = self.submit(settle).await?;
        if decided > 0 {
            tracing::info!(
                runs = decided,
                "stamps made without postgres' clock have been corrected"
            );
        }
        Ok(decided)
    }

    /// The file's size in bytes.
    ///
    /// # Errors
    /// When the file isn't there or can't be asked about.
    pub fn size_bytes(&self) -> Result<u64, BufferError> {
        self.0.file.size_bytes()
    }

    /// Lets the writer finish what is queued and ends it; later requests are refused. Blocks until it has ended, so
    /// give it a deadline.
    pub fn close(&self) {
        drop(
            self.0
                .writer
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take(),
        );
        let thread = self
            .0
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the buffer's writer ended by a panic");
        }
    }

    fn for_append(&self, slot: Slot) -> (Arc<Mutex<PendingIndex>>, Arc<Clock>, u64) {
        (
            Arc::clone(&self.0.index),
            Arc::clone(&self.0.clock),
            room(slot, self.0.max_items),
        )
    }

    async fn submit<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Transaction<'_>) -> Result<T, BufferError> + Send + 'static,
    ) -> Result<T, BufferError> {
        let writer = self
            .0
            .writer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        writer.ok_or(BufferError::Closed)?.submit(work).await
    }
}

fn remember(
    transaction: &mut Transaction<'_>,
    revocations: &[Revocation],
) -> Result<(), BufferError> {
    let mut table = transaction
        .txn
        .open_table(REVOCATIONS)
        .map_err(|error| transaction.storage(error))?;
    for revocation in revocations {
        table
            .insert(
                revocation.session_id.as_str(),
                encode(revocation).as_slice(),
            )
            .map_err(|error| transaction.storage(error))?;
    }
    drop(table);
    transaction.counters.revocation_changes += 1;
    Ok(())
}
