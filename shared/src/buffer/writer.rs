//! The writer: one thread a process through which all writing goes, with group commit.
//!
//! Takes what is queued, runs it all in one transaction, makes one durable commit (redb syncs twice), then answers
//! everybody. Requests bound their wait themselves: a process that is stopped inside a transaction blocks every other
//! writer, so a request that has waited to its deadline withdraws, and is refused unless the writer has already begun
//! with it. A withdrawn request is never carried out.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use redb::{ReadableTable, WriteTransaction};
use tokio::sync::oneshot;

use super::ballast::Ballast;
use super::error::BufferError;
use super::file::{Handle, Health, OpenFile};
use super::lock::{Turn, Turnstile};
use super::queue::Slot;
use super::registration::register;
use super::schema::{COMMITS, COUNTERS_KEY, Counters, Decoded, META, decode, encode};
use crate::seeded::Bug;

/// Most requests in one transaction: bounds how long the others wait.
const GROUP_MAX: usize = 512;

/// Most requests waiting for the writer; beyond it the buffer is busy.
const WAITING_MAX: usize = 16 * 1024;

/// How long a group waits for company once it has some: clients that were answered together come back together.
const GATHER: Duration = Duration::from_micros(300);

/// How long after the disk was found full nothing new is tried: each try writes, fails, and opens the file anew. Also
/// how often a writer looks whether there is room for the ballast again.
const FULL_PAUSE: Duration = Duration::from_secs(1);

/// How long a disk must have been out of trouble for its being full to be worth another line in the journal.
const FULL_TOLD_AGAIN: Duration = Duration::from_secs(60);

const WAITING: u8 = 0;
const TAKEN: u8 = 1;
const WITHDRAWN: u8 = 2;

/// The write transaction of a group, with the counters every request changes.
pub(super) struct Transaction<'t> {
    pub(super) txn: &'t WriteTransaction,
    pub(super) counters: Counters,
    /// Which opening of the file this is.
    pub(super) generation: u64,
    file: &'t OpenFile,
    room: Room<'t>,
}

/// What the disk has room for, as far as this transaction need know.
#[derive(Debug, Clone, Copy)]
enum Room<'t> {
    /// For whatever comes.
    Enough,
    /// For nothing new: the last try was a moment ago.
    None,
    /// For the drain, and for what can't be refused.
    Ballast(&'t Ballast),
}

impl Transaction<'_> {
    /// An error of redb's about this file.
    pub(super) fn storage(&self, error: impl Into<redb::Error>) -> BufferError {
        self.file.storage(error)
    }

    /// Where the file is.
    pub(super) fn path(&self) -> &Path {
        self.file.path()
    }

    /// Whether the disk has room for something new of this kind; if not, the refusal.
    pub(super) fn admit(&self, slot: Slot) -> Result<(), BufferError> {
        let admitted = match (self.room, slot) {
            (Room::Enough, _) => true,
            (Room::None, slot) => slot == Slot::Reserved,
            (Room::Ballast(_), Slot::Ordinary) => false,
            (Room::Ballast(ballast), Slot::Reserved) => ballast.has_rest(),
        };
        if admitted {
            return Ok(());
        }
        Err(BufferError::Draining {
            path: self.file.path().to_owned(),
        })
    }
}

/// Whether a request changed anything in its transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effect {
    Changed,
    Refused,
}

/// A request with its way back, whatever it answers.
trait Job: Send {
    /// Does the work. An error means the transaction can't go on.
    fn run(&mut self, transaction: &mut Transaction<'_>) -> Result<Effect, BufferError>;
    /// Whether the request is still wanted; from then on it can't be withdrawn.
    fn take(&self) -> bool;
    /// Answers, after the commit (or its failure).
    fn finish(self: Box<Self>, committed: Result<(), BufferError>);
}

struct Request<T, F> {
    work: Option<F>,
    done: Option<Result<T, BufferError>>,
    answer: oneshot::Sender<Result<T, BufferError>>,
    claim: Arc<AtomicU8>,
}

impl<T, F> Job for Request<T, F>
where
    T: Send,
    F: FnOnce(&mut Transaction<'_>) -> Result<T, BufferError> + Send,
{
    fn run(&mut self, transaction: &mut Transaction<'_>) -> Result<Effect, BufferError> {
        let Some(work) = self.work.take() else {
            return Ok(Effect::Refused);
        };
        match work(transaction) {
            Err(error) if !error.is_refusal() => Err(error),
            done => {
                let effect = done.as_ref().map_or(Effect::Refused, |_| Effect::Changed);
                self.done = Some(done);
                Ok(effect)
            }
        }
    }

    fn take(&self) -> bool {
        self.claim
            .compare_exchange(WAITING, TAKEN, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }

    fn finish(self: Box<Self>, committed: Result<(), BufferError>) {
        let answer = match (self.done, committed) {
            (Some(done), Ok(())) => done,
            (_, Err(error)) => Err(error),
            (None, Ok(())) => Err(BufferError::Busy),
        };
        // The asker may be gone; the work stands, as it would with the answer lost on the way.
        drop(self.answer.send(answer));
    }
}

/// The way to the writer.
pub(super) struct Writer {
    jobs: SyncSender<Box<dyn Job>>,
    deadline: Duration,
}

impl Writer {
    /// Starts the thread. It ends when the last `Writer` is dropped and the queue is empty.
    ///
    /// # Errors
    /// When the turnstile's files can't be made or the thread can't be started.
    pub(super) fn start(
        file: Arc<OpenFile>,
        writer_number: u64,
        deadline: Duration,
    ) -> Result<(Self, JoinHandle<()>), BufferError> {
        let failed = |error: std::io::Error| BufferError::io(file.path(), &error);
        let turnstile = Arc::new(Turnstile::open(file.path()).map_err(failed)?);
        let (jobs, queue) = sync_channel(WAITING_MAX);
        let mut thread = Thread {
            ballast: Ballast::of(file.path()),
            room_looked_at: None,
            full_until: None,
            file: Arc::clone(&file),
            turnstile,
            writer_number,
            last_group: 0,
            busy: false,
        };
        let handle = std::thread::Builder::new()
            .name("buffer-writer".to_owned())
            .spawn(move || thread.serve(&queue))
            .map_err(failed)?;
        Ok((Writer { jobs, deadline }, handle))
    }

    /// Has work done in a durable transaction and gives its answer after the commit.
    ///
    /// # Errors
    /// The work's own, or those of the commit; in every case nothing of the work is in the file.
    pub(super) async fn submit<T, F>(&self, work: F) -> Result<T, BufferError>
    where
        T: Send + 'static,
        F: FnOnce(&mut Transaction<'_>) -> Result<T, BufferError> + Send + 'static,
    {
        let (mut answered, claim) = self.enqueue(work)?;
        let answer = match tokio::time::timeout(self.deadline, &mut answered).await {
            Ok(answer) => answer,
            Err(_) if withdraw(&claim) => return Err(BufferError::Busy),
            Err(_) => answered.await,
        };
        answer.unwrap_or(Err(BufferError::Closed))
    }

    /// The same without a deadline, off the async threads.
    pub(super) fn submit_blocking<T, F>(&self, work: F) -> Result<T, BufferError>
    where
        T: Send + 'static,
        F: FnOnce(&mut Transaction<'_>) -> Result<T, BufferError> + Send + 'static,
    {
        let (answered, _) = self.enqueue(work)?;
        answered.blocking_recv().unwrap_or(Err(BufferError::Closed))
    }

    fn enqueue<T, F>(&self, work: F) -> Result<(Answered<T>, Arc<AtomicU8>), BufferError>
    where
        T: Send + 'static,
        F: FnOnce(&mut Transaction<'_>) -> Result<T, BufferError> + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let claim = Arc::new(AtomicU8::new(WAITING));
        let request = Request {
            work: Some(work),
            done: None,
            answer,
            claim: Arc::clone(&claim),
        };
        match self.jobs.try_send(Box::new(request)) {
            Ok(()) => Ok((answered, claim)),
            Err(TrySendError::Full(_)) => Err(BufferError::Busy),
            Err(TrySendError::Disconnected(_)) => Err(BufferError::Closed),
        }
    }
}

/// Where the answer to a request arrives.
type Answered<T> = oneshot::Receiver<Result<T, BufferError>>;

fn withdraw(claim: &AtomicU8) -> bool {
    claim
        .compare_exchange(WAITING, WITHDRAWN, Ordering::AcqRel, Ordering::Acquire)
        .is_ok()
}

struct Thread {
    file: Arc<OpenFile>,
    ballast: Ballast,
    /// When room for the ballast was last looked for.
    room_looked_at: Option<Instant>,
    /// Until when nothing new is tried, since the disk was full.
    full_until: Option<Instant>,
    turnstile: Arc<Turnstile>,
    writer_number: u64,
    last_group: u64,
    busy: bool,
}

impl Thread {
    fn serve(&mut self, queue: &Receiver<Box<dyn Job>>) {
        while let Ok(first) = queue.recv() {
            let group = self.gather(first, queue);
            self.busy = group.len() > 1;
            self.carry_out(group);
        }
    }

    /// What is queued, and, under load, what comes within [`GATHER`].
    fn gather(&self, first: Box<dyn Job>, queue: &Receiver<Box<dyn Job>>) -> Vec<Box<dyn Job>> {
        let mut group = vec![first];
        let until = Instant::now() + GATHER;
        while group.len() < GROUP_MAX {
            let patience = if self.busy {
                until.saturating_duration_since(Instant::now())
            } else {
                Duration::ZERO
            };
            match queue.recv_timeout(patience) {
                Ok(job) => group.push(job),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
            }
        }
        group
    }

    fn carry_out(&mut self, mut group: Vec<Box<dyn Job>>) {
        let turnstile = Arc::clone(&self.turnstile);
        let committed = match turnstile.enter() {
            Ok(turn) => self
                .prepare(&turn)
                .and_then(|()| self.commit(&mut group, &turn)),
            Err(error) => Err(BufferError::io(self.file.path(), &error)),
        };
        for job in group {
            job.finish(committed.clone());
        }
    }

    fn commit(
        &mut self,
        group: &mut Vec<Box<dyn Job>>,
        turn: &Turn<'_>,
    ) -> Result<(), BufferError> {
        let handle = self.file.handle();
        let began = Instant::now();
        let file = Arc::clone(&self.file);
        let outcome = file.guard(|| self.transact(&handle, group));
        match outcome {
            Ok(()) => {
                metrics::histogram!(crate::telemetry::metric::BUFFER_COMMIT_SECONDS)
                    .record(began.elapsed().as_secs_f64());
                // Removed at this very moment: what was committed must be copied out before anybody is told.
                self.prepare(turn)
            }
            Err(error) => self.recover(&handle, error, turn),
        }
    }

    /// Sees to it that the file can be written to: that it is the one its path names and not known to be damaged, and
    /// that the ballast is there.
    fn prepare(&mut self, turn: &Turn<'_>) -> Result<(), BufferError> {
        if self.file.heal(turn)? == Health::OpenedAnew {
            let (file, handle) = (Arc::clone(&self.file), self.file.handle());
            self.writer_number = file.guard(|| register(&file, &handle))?.writer_number;
        }
        self.look_for_room(turn);
        Ok(())
    }

    /// Makes the ballast again when there is room for it, now and then.
    fn look_for_room(&mut self, turn: &Turn<'_>) {
        let looked = self
            .room_looked_at
            .is_some_and(|at| at.elapsed() < FULL_PAUSE);
        if looked || self.ballast.is_there() {
            return;
        }
        self.room_looked_at = Some(Instant::now());
        match self.ballast.restore(turn) {
            Ok(true) => tracing::info!("disk of the buffer has room again"),
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, "can't make the buffer's ballast again"),
        }
    }

    fn room(&self) -> Room<'_> {
        if !self.ballast.is_there() {
            Room::Ballast(&self.ballast)
        } else if self.full_until.is_some_and(|until| Instant::now() < until) {
            Room::None
        } else {
            Room::Enough
        }
    }

    fn transact(
        &mut self,
        handle: &Handle,
        group: &mut Vec<Box<dyn Job>>,
    ) -> Result<(), BufferError> {
        let file = Arc::clone(&self.file);
        let txn = handle
            .database
            .begin_write()
            .map_err(|error| file.storage(error))?;
        self.last_group += 1;
        group.retain(|job| job.take() || Bug::WithdrawnCarriedOut.is_on());
        if group.is_empty() {
            return txn.abort().map_err(|error| file.storage(error));
        }
        if !handle.is_at(file.path()) {
            return Err(BufferError::Replaced {
                path: file.path().to_owned(),
            });
        }
        let counters = read_counters(&txn, &file)?;
        let mut effect = Effect::Refused;
        let mut transaction = Transaction {
            room: self.room(),
            txn: &txn,
            counters,
            generation: handle.generation,
            file: &file,
        };
        for job in group.iter_mut() {
            if job.run(&mut transaction)? == Effect::Changed {
                effect = Effect::Changed;
            }
        }
        if effect == Effect::Refused {
            return txn.abort().map_err(|error| file.storage(error));
        }
        let counters = transaction.counters;
        write_counters(&txn, &file, &counters)?;
        mark_commit(&txn, &file, self.writer_number, self.last_group)?;
        if Bug::AckBeforeCommit.is_on() {
            group.drain(..).for_each(|job| job.finish(Ok(())));
        }
        txn.commit().map_err(|error| file.storage(error))
    }

    /// After an error: opens the file anew, and looks whether the commit is there all the same.
    fn recover(
        &mut self,
        failed: &Handle,
        error: BufferError,
        turn: &Turn<'_>,
    ) -> Result<(), BufferError> {
        self.tell(&error);
        let damage = if error.wants_healing() {
            Err(error.clone())
        } else {
            self.file.reopen(failed)
        };
        if let Err(damage) = damage {
            self.file.suspect(failed.generation, &damage);
            self.prepare(turn)?;
            return Err(damage);
        }
        let (file, handle) = (Arc::clone(&self.file), self.file.handle());
        let landed = file.guard(|| landed(&handle, &file, self.writer_number, self.last_group));
        match (landed, error) {
            (Ok(true), BufferError::Io { .. } | BufferError::DiskFull { .. }) => Ok(()),
            (_, error) => Err(error),
        }
    }

    /// Says what went wrong; of a full disk only now and then, since every try meets it.
    fn tell(&mut self, error: &BufferError) {
        if !matches!(error, BufferError::DiskFull { .. }) {
            tracing::error!(%error, "buffer transaction failed");
            return;
        }
        let is_news = self
            .full_until
            .is_none_or(|until| until.elapsed() > FULL_TOLD_AGAIN);
        if is_news {
            tracing::error!(%error, "nothing new is taken until there is room; what was accepted stays");
        }
        self.full_until = Some(Instant::now() + FULL_PAUSE);
    }
}

fn read_counters(txn: &WriteTransaction, file: &OpenFile) -> Result<Counters, BufferError> {
    let meta = txn.open_table(META).map_err(|error| file.storage(error))?;
    let stored = meta
        .get(COUNTERS_KEY)
        .map_err(|error| file.storage(error))?;
    counters_from(stored.map(|guard| guard.value().to_vec()), file)
}

/// The counters as stored; all zero in a new file.
pub(super) fn counters_from(
    stored: Option<Vec<u8>>,
    file: &OpenFile,
) -> Result<Counters, BufferError> {
    match stored.as_deref().map(decode) {
        None => Ok(Counters::default()),
        Some(Decoded::Whole(counters)) => Ok(counters),
        Some(Decoded::Damaged | Decoded::Newer) => Err(BufferError::Damaged {
            path: file.path().to_owned(),
            detail: "its counters can't be read".to_owned(),
        }),
    }
}

fn write_counters(
    txn: &WriteTransaction,
    file: &OpenFile,
    counters: &Counters,
) -> Result<(), BufferError> {
    let mut meta = txn.open_table(META).map_err(|error| file.storage(error))?;
    meta.insert(COUNTERS_KEY, encode(counters).as_slice())
        .map_err(|error| file.storage(error))?;
    Ok(())
}

fn mark_commit(
    txn: &WriteTransaction,
    file: &OpenFile,
    writer: u64,
    group: u64,
) -> Result<(), BufferError> {
    let mut commits = txn
        .open_table(COMMITS)
        .map_err(|error| file.storage(error))?;
    commits
        .insert(writer, group)
        .map_err(|error| file.storage(error))?;
    Ok(())
}

fn landed(handle: &Handle, file: &OpenFile, writer: u64, group: u64) -> Result<bool, BufferError> {
    let txn = handle.begin_read(file.path())?;
    let commits = txn
        .open_table(COMMITS)
        .map_err(|error| file.storage(error))?;
    let last = commits.get(writer).map_err(|error| file.storage(error))?;
    Ok(last.is_some_and(|last| last.value() == group))
}
