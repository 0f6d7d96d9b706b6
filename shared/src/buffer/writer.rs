//! The writer: one thread a process through which all writing goes, with group commit.
//!
//! Takes what is queued, runs it all in one transaction, makes one durable commit (redb syncs twice), then answers
//! everybody. Requests bound their wait themselves: a process that is stopped inside a transaction blocks every other
//! writer, so a request that has waited to its deadline withdraws, and is refused unless the writer has already begun
//! with it. A withdrawn request is never carried out.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use redb::{ReadableTable, WriteTransaction};
use tokio::sync::oneshot;

use super::error::BufferError;
use super::file::{Handle, OpenFile};
use super::lock::Turnstile;
use super::registration::register;
use super::schema::{COMMITS, COUNTERS_KEY, Counters, Decoded, META, decode, encode};
use crate::seeded::Bug;

/// Most requests in one transaction: bounds how long the others wait.
const GROUP_MAX: usize = 512;

/// Most requests waiting for the writer; beyond it the buffer is busy.
const WAITING_MAX: usize = 16 * 1024;

/// How long a group waits for company once it has some: clients that were answered together come back together.
const GATHER: Duration = Duration::from_micros(300);

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
}

impl Transaction<'_> {
    /// An error of redb's about this file.
    pub(super) fn storage(&self, error: impl Into<redb::Error>) -> BufferError {
        self.file.storage(error)
    }
}

/// A request with its way back, whatever it answers.
trait Job: Send {
    /// Does the work. An error means the transaction can't go on.
    fn run(&mut self, transaction: &mut Transaction<'_>) -> Result<(), BufferError>;
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
    fn run(&mut self, transaction: &mut Transaction<'_>) -> Result<(), BufferError> {
        let Some(work) = self.work.take() else {
            return Ok(());
        };
        match work(transaction) {
            Err(error) if !error.is_refusal() => Err(error),
            done => {
                self.done = Some(done);
                Ok(())
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
        let (answer, mut answered) = oneshot::channel();
        let claim = Arc::new(AtomicU8::new(WAITING));
        let request = Request {
            work: Some(work),
            done: None,
            answer,
            claim: Arc::clone(&claim),
        };
        match self.jobs.try_send(Box::new(request)) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => return Err(BufferError::Busy),
            Err(TrySendError::Disconnected(_)) => return Err(BufferError::Closed),
        }
        let answer = match tokio::time::timeout(self.deadline, &mut answered).await {
            Ok(answer) => answer,
            Err(_) if withdraw(&claim) => return Err(BufferError::Busy),
            Err(_) => answered.await,
        };
        answer.unwrap_or(Err(BufferError::Closed))
    }
}

fn withdraw(claim: &AtomicU8) -> bool {
    claim
        .compare_exchange(WAITING, WITHDRAWN, Ordering::AcqRel, Ordering::Acquire)
        .is_ok()
}

struct Thread {
    file: Arc<OpenFile>,
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
            Ok(_turn) => self.commit(&mut group),
            Err(error) => Err(BufferError::io(self.file.path(), &error)),
        };
        for job in group {
            job.finish(committed.clone());
        }
    }

    fn commit(&mut self, group: &mut Vec<Box<dyn Job>>) -> Result<(), BufferError> {
        let handle = self.file.handle();
        let began = Instant::now();
        let file = Arc::clone(&self.file);
        let outcome = file.guard(|| self.transact(&handle, group));
        match outcome {
            Ok(()) => {
                metrics::histogram!(crate::telemetry::metric::BUFFER_COMMIT_SECONDS)
                    .record(began.elapsed().as_secs_f64());
                Ok(())
            }
            Err(error) => self.recover(&handle, error),
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
        let mut transaction = Transaction {
            txn: &txn,
            counters,
            generation: handle.generation,
            file: &file,
        };
        for job in group.iter_mut() {
            job.run(&mut transaction)?;
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
    fn recover(&mut self, failed: &Handle, error: BufferError) -> Result<(), BufferError> {
        tracing::error!(%error, "buffer transaction failed");
        self.file.reopen(failed)?;
        let (file, handle) = (Arc::clone(&self.file), self.file.handle());
        if matches!(error, BufferError::Replaced { .. }) {
            self.writer_number = file.guard(|| register(&file, &handle))?.writer_number;
            return Err(error);
        }
        let landed = file.guard(|| landed(&handle, &file, self.writer_number, self.last_group));
        match (landed, error) {
            (Ok(true), BufferError::Io { .. } | BufferError::DiskFull { .. }) => Ok(()),
            (_, error) => Err(error),
        }
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
