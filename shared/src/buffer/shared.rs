//! The buffer as a process uses it: asynchronous calls over the writer's thread and the reader.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use redb::ReadableTable;
use uuid::Uuid;

use crate::clock::{Clock, Reading};
use crate::config::BufferConfig;
use crate::domain::{NodeId, Operation, Revocation, Session, Stamp, State};

use super::ballast::Ballast;
use super::binding::{self, Binding, Claim, adopt, bind};
use super::compaction::{self, Compaction};
use super::epoch::{self, KnownTime};
use super::error::BufferError;
use super::file::OpenFile;
use super::index::PendingIndex;
use super::lock::{Turn, Turnstile};
use super::queue::{self, Folded, Slot, room};
use super::reader::Reader;
use super::registration::{Registration, register};
use super::retention::{self, RetentionReport};
use super::schema::{Item, Lane, Place, REVOCATIONS, SESSIONS, encode};
use super::settlement::{self, SettleReport, Settlement};
use super::snap::whole_value;
use super::writer::{Transaction, Writer};

/// How long a request waits for the writer before it is refused. Only a process stopped inside a transaction, or a disk
/// that hangs, makes it wait so long; a disk that others keep busy has been seen to take 2 s for a sync.
const DEADLINE: Duration = Duration::from_secs(5);

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
    claim: Arc<Claim>,
    clock: Arc<Clock>,
    writer: Mutex<Option<Arc<Writer>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Buffer {
    /// Opens the file, or makes it, and starts the writer. A damaged file is set aside and a new one made. Blocks: call it before serving, or off the async threads.
    ///
    /// # Errors
    /// When the file can't be made, opened, read or written, is somebody else's, of a newer schema, or on a network
    /// file system. Nothing is changed then.
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
        let claim = Arc::<Claim>::default();
        let reader = Reader::shared(Arc::clone(&file), Arc::clone(&index), Arc::clone(&claim));
        let Registration {
            node_number,
            writer_number,
        } = become_writer(&file, &reader)?;
        let clock = Clock::reading(NodeId::from_number(node_number), source);
        let noted = reader
            .time_notes()
            .and_then(|notes| Ok((notes, reader.database()?)));
        match noted {
            Ok(((known, _), database)) => {
                known.into_iter().for_each(|known| known.tell(&clock));
                // Until a store has said which it is, it is taken to be the one that the file belongs to.
                if database.is_some() {
                    claim.set(database);
                }
            }
            // The writer sees to it before anything else.
            Err(error) if error.wants_healing() => {}
            Err(error) => return Err(error),
        }
        let (writer, thread) = Writer::start(Arc::clone(&file), writer_number, DEADLINE)?;
        Ok(Buffer(Arc::new(Inner {
            path: config.path.clone(),
            max_items: config.max_items,
            retention: config.retention,
            file,
            reader,
            index,
            claim,
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

    /// Which opening of the file is in use. It changes with the file at its path, and after an error.
    pub fn generation(&self) -> u64 {
        self.0.file.handle().generation
    }

    /// Reads off the async threads. A read that meets damage, or another file at the path, is repeated once that has
    /// been seen to.
    ///
    /// # Errors
    /// The read's own.
    pub async fn read<T: Send + 'static>(
        &self,
        read: impl Fn(&Reader) -> Result<T, BufferError> + Send + Sync + 'static,
    ) -> Result<T, BufferError> {
        let read = Arc::new(read);
        match self.read_once(Arc::clone(&read)).await {
            Err(error) if error.wants_healing() => {
                self.submit(|_| Ok(())).await?;
                self.read_once(read).await
            }
            done => done,
        }
    }

    async fn read_once<T: Send + 'static>(
        &self,
        read: Arc<impl Fn(&Reader) -> Result<T, BufferError> + Send + Sync + 'static>,
    ) -> Result<T, BufferError> {
        let buffer = self.clone();
        let done = tokio::task::spawn_blocking(move || read(&buffer.0.reader)).await;
        done.unwrap_or(Err(BufferError::Closed))
    }

    /// The same as [`Buffer::read`], off the async threads.
    ///
    /// # Errors
    /// The read's own.
    pub fn read_blocking<T>(
        &self,
        read: impl Fn(&Reader) -> Result<T, BufferError>,
    ) -> Result<T, BufferError> {
        match read(&self.0.reader) {
            Err(error) if error.wants_healing() => {
                self.submit_blocking(|_| Ok(()))?;
                read(&self.0.reader)
            }
            done => done,
        }
    }

    /// Accepts an operation: when this returns, it is durable. `base` is the resource as this node knows it. An
    /// operation without a stamp gets one here. Gives the item as it was accepted.
    ///
    /// # Errors
    /// [`BufferError::Full`], [`BufferError::Busy`], [`BufferError::KeyTaken`], or what the file's disk says; it isn't
    /// accepted then.
    pub async fn append(
        &self,
        operation: Operation,
        base: Option<State>,
        slot: Slot,
    ) -> Result<Item, BufferError> {
        self.accept(Item::new(operation, base), None, slot).await
    }

    /// The same for an operation whose `base` leaves out what waits of its resource already, up to the item at `behind`:
    /// that item hands it on when it leaves.
    ///
    /// # Errors
    /// As [`Buffer::append`], and [`BufferError::Outrun`] when that item has left already.
    pub async fn append_behind(
        &self,
        operation: Operation,
        base: Option<State>,
        behind: Place,
        slot: Slot,
    ) -> Result<Item, BufferError> {
        self.accept(Item::new(operation, base), Some(behind), slot)
            .await
    }

    async fn accept(
        &self,
        item: Item,
        behind: Option<Place>,
        slot: Slot,
    ) -> Result<Item, BufferError> {
        let (index, clock, room) = self.for_append(slot);
        let claim = Arc::clone(&self.0.claim);
        self.submit(move |transaction| {
            transaction.admit(slot)?;
            if Lane::of(&item.operation) == Lane::Postgres {
                binding::check(transaction, &claim)?;
            }
            queue::check_key(transaction, &index, &item.operation, slot)?;
            queue::append(transaction, (&index, &clock), (item, behind), room)
        })
        .await
    }

    /// Embedded mode: applies an operation to the item that holds its resource, durably.
    ///
    /// # Errors
    /// As [`Buffer::append`]; nothing is changed then.
    pub async fn fold(&self, operation: Operation) -> Result<Folded, BufferError> {
        let (index, clock, room) = self.for_append(Slot::Ordinary);
        let claim = Arc::clone(&self.0.claim);
        self.submit(move |transaction| {
            transaction.admit(Slot::Ordinary)?;
            binding::check(transaction, &claim)?;
            queue::fold(transaction, (&index, &clock), operation, room)
        })
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
            transaction.admit(Slot::Reserved)?;
            if let Some(operation) = operation {
                let item = Item::new(operation, None);
                queue::append(transaction, (&index, &clock), (item, None), room)?;
            }
            remember(transaction, &[revocation])
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
        self.submit(move |transaction| record_session(transaction, &session))
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
        self.submit(move |transaction| settlement::settle(transaction, settlements, now))
            .await
    }

    /// Moves damaged items out of their queues, where they stay for salvage. Gives how many.
    ///
    /// # Errors
    /// When the file can't be written.
    pub async fn set_aside(&self, places: Vec<Place>) -> Result<u64, BufferError> {
        self.submit(move |transaction| settlement::set_aside(transaction, &places))
            .await
    }

    /// One bounded step of retention: call it until the report says there is no more. Revocations and sessions that no
    /// token can need any more are gone for good, so they go only where it is sure that this clock is right.
    ///
    /// # Errors
    /// When the archive or the file can't be written; a letter may then be in both.
    pub async fn retain(&self, is_sure_of_time: bool) -> Result<RetentionReport, BufferError> {
        let (path, age, now) = (self.0.path.clone(), self.0.retention, self.0.clock.now());
        self.submit(move |transaction| {
            if is_sure_of_time {
                retention::remove_expired(transaction, now)?;
            }
            retention::step(transaction, &path, age, now)
        })
        .await
    }

    /// Tells the file which database the store is (`None`: no store is configured). From then on nothing is added to a
    /// file of another one, nor taken from it to be applied ([`BufferError::OtherDatabase`]). Cheap where nothing has
    /// changed.
    ///
    /// # Errors
    /// When the file can't be read or written.
    pub async fn bind_database(&self, database: Option<Uuid>) -> Result<Binding, BufferError> {
        let earlier = self.0.claim.set(database);
        if self.read(Reader::database).await? == database {
            return Ok(Binding::Same);
        }
        self.tell_of_rebinding(earlier, database);
        self.submit(move |transaction| bind(transaction, database))
            .await
    }

    /// The same, off the async threads.
    ///
    /// # Errors
    /// As [`Buffer::bind_database`].
    pub fn bind_database_blocking(&self, database: Option<Uuid>) -> Result<Binding, BufferError> {
        self.0.claim.set(database);
        if self.read_blocking(Reader::database)? == database {
            return Ok(Binding::Same);
        }
        self.submit_blocking(move |transaction| bind(transaction, database))
    }

    /// A file that this process has bound before belongs to another database now, or has been replaced.
    fn tell_of_rebinding(&self, earlier: Option<Option<Uuid>>, database: Option<Uuid>) {
        if earlier == Some(database) {
            tracing::warn!(
                path = %self.0.path.display(),
                "buffer no longer belongs to this process' database: if another process uses it for another one, give \
                 the API and syncd the same DATABASE_URL"
            );
        }
    }

    /// Makes the file belong to this database, whatever it holds.
    ///
    /// # Errors
    /// When the file can't be written.
    pub async fn adopt(&self, database: Option<Uuid>) -> Result<(), BufferError> {
        self.submit(move |transaction| adopt(transaction, database))
            .await
    }

    /// Gives up the ballast, so that the drain can go on although the disk is full: nothing new is accepted from then
    /// on, until there is room to make it again. Tells whether there was any. Blocks while another process writes.
    ///
    /// # Errors
    /// When it can't be removed.
    pub fn release_ballast(&self) -> Result<bool, BufferError> {
        let ballast = Ballast::of(&self.0.path);
        self.in_turn(|turn| ballast.release(turn).map_err(|error| self.io(&error)))
    }

    /// Makes the ballast again if it is gone and there is room for it. Tells whether it is there now. Blocks while
    /// another process writes.
    ///
    /// # Errors
    /// When it can't be made.
    pub fn restore_ballast(&self) -> Result<bool, BufferError> {
        let ballast = Ballast::of(&self.0.path);
        if ballast.is_there() {
            return Ok(true);
        }
        self.in_turn(|turn| ballast.restore(turn).map_err(|error| self.io(&error)))
    }

    /// Makes the file smaller if hardly anything is in it. `None` when that wouldn't pay, or somebody reads right now.
    /// Blocks while another process writes, and holds up writers while it lasts.
    ///
    /// # Errors
    /// When the file can't be read or written; it is then as large as before.
    pub fn compact(&self) -> Result<Option<Compaction>, BufferError> {
        if !compaction::pays(&self.0.reader.snapshot()?) {
            return Ok(None);
        }
        self.in_turn(|turn| compaction::compact(&self.0.path, turn))
    }

    /// Does something to the files beside the buffer while nobody writes to it. Not for the writer's thread, whose
    /// turn it may be.
    fn in_turn<T>(
        &self,
        work: impl FnOnce(&Turn<'_>) -> Result<T, BufferError>,
    ) -> Result<T, BufferError> {
        let turnstile = Turnstile::open(&self.0.path).map_err(|error| self.io(&error))?;
        let turn = turnstile.enter().map_err(|error| self.io(&error))?;
        work(&turn)
    }

    fn io(&self, error: &std::io::Error) -> BufferError {
        BufferError::io(&self.0.path, error)
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

    pub(super) fn index(&self) -> Arc<Mutex<PendingIndex>> {
        Arc::clone(&self.0.index)
    }

    pub(super) fn for_append(&self, slot: Slot) -> (Arc<Mutex<PendingIndex>>, Arc<Clock>, u64) {
        (
            Arc::clone(&self.0.index),
            Arc::clone(&self.0.clock),
            room(slot, self.0.max_items),
        )
    }

    pub(super) async fn submit<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Transaction<'_>) -> Result<T, BufferError> + Send + 'static,
    ) -> Result<T, BufferError> {
        self.writer()?.submit(work).await
    }

    pub(super) fn submit_blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Transaction<'_>) -> Result<T, BufferError> + Send + 'static,
    ) -> Result<T, BufferError> {
        self.writer()?.submit_blocking(work)
    }

    fn writer(&self) -> Result<Arc<Writer>, BufferError> {
        let writer = self.0.writer.lock().unwrap_or_else(PoisonError::into_inner);
        writer.clone().ok_or(BufferError::Closed)
    }
}

/// Registers this process as a writer and makes sure of the ballast. On a disk so full that it can't even register, it
/// gives the ballast up for that.
fn become_writer(file: &OpenFile, reader: &Reader) -> Result<Registration, BufferError> {
    let failed = |error: std::io::Error| BufferError::io(file.path(), &error);
    let (turnstile, ballast) = (
        Turnstile::open(file.path()).map_err(failed)?,
        Ballast::of(file.path()),
    );
    let turn = turnstile.enter().map_err(failed)?;
    let enter = || {
        reader.check_schema()?;
        file.guard(|| register(file, &file.handle()))
    };
    let registered = match enter() {
        Err(BufferError::DiskFull { .. }) if ballast.release(&turn).map_err(failed)? => {
            file.reopen(&file.handle())?;
            enter()
        }
        Err(error) if error.wants_healing() => {
            file.suspect(file.handle().generation, &error);
            file.heal(&turn)?;
            enter()
        }
        registered => registered,
    }?;
    match ballast.make(&turn).map_err(failed) {
        Err(BufferError::DiskFull { .. }) => {
            tracing::error!(path = %file.path().display(), "no room for the buffer's ballast: nothing new is taken until there is");
            Ok(registered)
        }
        made => made.map(|()| registered),
    }
}

/// Notes a session. It ends with the last of its tokens.
pub(super) fn record_session(
    transaction: &mut Transaction<'_>,
    session: &Session,
) -> Result<(), BufferError> {
    let mut sessions = transaction
        .txn
        .open_table(SESSIONS)
        .map_err(|error| transaction.storage(error))?;
    let id = session.id.as_str();
    let known = sessions
        .get(id)
        .map_err(|error| transaction.storage(error))?;
    let known = known.and_then(|bytes| whole_value::<Session>(bytes.value()));
    let mut session = session.clone();
    if let Some(known) = known {
        session.expires_at = session.expires_at.max(known.expires_at);
    }
    sessions
        .insert(id, encode(&session).as_slice())
        .map_err(|error| transaction.storage(error))?;
    Ok(())
}

/// Notes revocations; of one that is there already, the longer time counts.
pub(super) fn remember(
    transaction: &mut Transaction<'_>,
    revocations: &[Revocation],
) -> Result<(), BufferError> {
    let mut table = transaction
        .txn
        .open_table(REVOCATIONS)
        .map_err(|error| transaction.storage(error))?;
    for revocation in revocations {
        let id = revocation.session_id.as_str();
        let known = table.get(id).map_err(|error| transaction.storage(error))?;
        let known = known.and_then(|bytes| whole_value::<Revocation>(bytes.value()));
        if known.is_some_and(|known| known.keep_until >= revocation.keep_until) {
            continue;
        }
        table
            .insert(id, encode(revocation).as_slice())
            .map_err(|error| transaction.storage(error))?;
    }
    drop(table);
    transaction.counters.revocation_changes += 1;
    Ok(())
}
