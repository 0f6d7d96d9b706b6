//! The real buffer on a failing disk beside the plain one: does to both what an action says, and compares.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::buffer::tests::{create, delete, retitle, tell_time, title_of};
use crate::buffer::{
    Batch, Buffer, BufferError, DeadLetter, Lane, Queued, Reader, Settlement, Skip, Slot, Verdict,
    archive_directory, read_archive,
};
use crate::config::BufferConfig;
use crate::domain::{
    Body, Kind, Operation, OperationId, OperationState, Priority, ResourceKey, Revocation,
    SessionId, Stamp, TaskId, Timestamp,
};

use super::disk::{Disk, Survivors};
use super::plain::{Plain, Waiting};

/// Few, so that runs fill the buffer.
const MAX_ITEMS: u64 = 24;

/// `MAX_ITEMS` and the reserved slots: what revocations may fill.
const RESERVED: usize = 524;

/// Everything, in one batch.
const ALL: usize = 10_000;

/// Something done to the buffer. Numbers choose among what there is, modulo its count.
#[derive(Debug, Clone)]
pub(super) enum Action {
    /// Accept writes of these tasks, in one group if the writer takes them so.
    Append(Vec<Write>),
    /// Embedded mode's write.
    Fold(Write),
    /// Revoke a session, to be synced or not.
    Revoke { session: u8, synced: bool },
    /// Settle the first items of a lane, each with its verdict.
    Settle { lane: Lane, verdicts: Vec<u8> },
    /// Settle what was settled last once more.
    SettleAgain,
    /// Move an item out of its queue, as if it were damaged.
    SetAside(u8),
    /// Let everything that has ended leave the file.
    Retain,
    /// Put a dead letter back.
    RetryDead(u8),
    /// Throw a dead letter away.
    DiscardDead(u8),
    /// Put a letter of the archive back.
    RetryArchived(u8),
    /// Close the file and open it again, in both processes.
    Reopen,
}

/// A write of a task.
#[derive(Debug, Clone)]
pub(super) struct Write {
    pub(super) task: u8,
    pub(super) kind: Kind,
    pub(super) priority: u8,
}

/// A buffer that two processes have open, and what it must say.
pub(super) struct World {
    pub(super) disk: Arc<Disk>,
    directory: tempfile::TempDir,
    open: Option<Processes>,
    plain: Plain,
    tasks: Vec<TaskId>,
    folded: Vec<TaskId>,
    last_settled: Vec<Settlement>,
    /// Appends that failed in the action at hand.
    in_doubt: Vec<Waiting>,
    /// Every operation ever asked for, also in vain.
    asked: BTreeSet<OperationId>,
    next_title: u32,
    next_seq: u64,
    high_water: i64,
}

/// The API and syncd, as far as the buffer sees them.
struct Processes {
    api: Buffer,
    syncd: Buffer,
}

type Checked = Result<(), String>;

impl World {
    /// A new buffer on a new disk, open in both processes.
    pub(super) fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let disk = Disk::under(&directory.path().join("buffer.redb"));
        let mut world = World {
            disk,
            directory,
            open: None,
            plain: Plain::default(),
            tasks: (0..6).map(|_| TaskId::generate()).collect(),
            folded: (0..3).map(|_| TaskId::generate()).collect(),
            last_settled: Vec::new(),
            in_doubt: Vec::new(),
            asked: BTreeSet::new(),
            next_title: 0,
            next_seq: 0,
            high_water: 0,
        };
        world.processes().expect("a sound disk");
        world
    }

    fn config(&self) -> BufferConfig {
        BufferConfig {
            path: self.directory.path().join("buffer.redb"),
            max_items: MAX_ITEMS,
            retention: Duration::ZERO,
        }
    }

    /// The two processes; started where they don't run. Fails when the file can't be opened.
    fn processes(&mut self) -> Result<(Buffer, Buffer), BufferError> {
        if self.open.is_none() {
            let api = Buffer::open(&self.config())?;
            let syncd = Buffer::open(&self.config())?;
            [&api, &syncd].into_iter().for_each(tell_time);
            self.open = Some(Processes { api, syncd });
        }
        let processes = self.open.as_ref().expect("opened above");
        Ok((processes.api.clone(), processes.syncd.clone()))
    }

    /// Ends both processes; what they have in memory is gone.
    pub(super) fn stop(&mut self) {
        if let Some(processes) = self.open.take() {
            processes.api.close();
            processes.syncd.close();
        }
    }

    /// Ends both processes, gives the disk power again and lets this survive of what was not synced.
    pub(super) fn restart_after_power_cut(&mut self, survivors: Survivors) {
        self.stop();
        self.disk
            .restore_power(survivors)
            .expect("the test's own file");
    }

    /// Does what the action says to both buffers and compares them. When the real one fails, the action has not
    /// happened; if the power went, it has or has not.
    pub(super) async fn act(&mut self, action: &Action, survivors: Survivors) -> Checked {
        let before = self.plain.clone();
        self.in_doubt.clear();
        let outcome = match self.processes() {
            Ok((api, syncd)) => self.carry_out(action, &api, &syncd).await,
            Err(error) => Err(error),
        };
        let Err(error) = outcome else {
            if self.disk.is_without_power() {
                self.restart_after_power_cut(survivors);
            }
            return self.check_now(&format!("after {action:?}"));
        };
        let when = format!("after {action:?} failed with {error}");
        let possible = match action {
            Action::Append(_) => self.after_failed_append(),
            _ => vec![before, self.plain.clone()],
        };
        if !self.disk.is_without_power() {
            self.plain.clone_from(&possible[0]);
            return self.check_now(&when);
        }
        self.restart_after_power_cut(survivors);
        let mut checked = Ok(());
        for plain in possible {
            self.plain = plain;
            checked = self.check_now(&format!("{when}, the power having gone"));
            if checked.is_ok() {
                break;
            }
        }
        checked
    }

    /// What there may be after an append that failed in part: a group is there or it isn't, and after the first that
    /// failed without power there was no other.
    fn after_failed_append(&self) -> Vec<Plain> {
        let mut possible = vec![self.plain.clone()];
        let mut next = self.plain.clone();
        for item in &self.in_doubt {
            next.append(item.clone(), MAX_ITEMS as usize);
            possible.push(next.clone());
        }
        possible
    }

    async fn carry_out(
        &mut self,
        action: &Action,
        api: &Buffer,
        syncd: &Buffer,
    ) -> Result<(), BufferError> {
        match action {
            Action::Append(writes) => self.append(api, writes).await,
            Action::Fold(write) => self.fold(api, write).await,
            Action::Revoke { session, synced } => self.revoke(api, *session, *synced).await,
            Action::Settle { lane, verdicts } => {
                let batch = next_batch(syncd, *lane, verdicts.len())?;
                let settlements = settlements(batch.items, verdicts);
                for Settlement { queued, verdict } in &settlements {
                    self.plain.settle(queued.item.operation.id, verdict);
                }
                self.last_settled.clear();
                syncd.settle(settlements.clone()).await?;
                self.last_settled = settlements;
                Ok(())
            }
            Action::SettleAgain => {
                // A letter that came back to its queue has a place of its own, and an item that is tried again has
                // changed: what was settled once is never settled again.
                let report = syncd.settle(self.last_settled.clone()).await?;
                assert_eq!(
                    report.skipped,
                    self.last_settled.len() as u64,
                    "settled twice"
                );
                Ok(())
            }
            Action::SetAside(nth) => self.set_aside(syncd, *nth).await,
            Action::Retain => {
                self.plain.retain();
                syncd.retain(true).await.map(drop)
            }
            Action::RetryDead(nth) => {
                let Some(id) = nth_of(self.plain.dead.keys(), *nth) else {
                    return Ok(());
                };
                self.plain.retry_dead(id);
                syncd.retry_dead(vec![id]).await.map(drop)
            }
            Action::DiscardDead(nth) => {
                let Some(id) = nth_of(self.plain.dead.keys(), *nth) else {
                    return Ok(());
                };
                self.plain.discard(id);
                syncd.discard_dead(vec![id]).await.map(drop)
            }
            Action::RetryArchived(nth) => {
                let Some(id) = nth_of(self.plain.archive.keys(), *nth) else {
                    return Ok(());
                };
                self.plain.retry_archived(id);
                let letters = self.archived().into_iter();
                let letters = letters.filter(|letter| letter.item.operation.id == id);
                syncd
                    .retry_archived(letters.take(1).collect())
                    .await
                    .map(drop)
            }
            Action::Reopen => {
                self.stop();
                self.processes().map(drop)
            }
        }
    }

    /// Accepts the writes at once; those that fail are left in doubt.
    async fn append(&mut self, api: &Buffer, writes: &[Write]) -> Result<(), BufferError> {
        let mut requests = Vec::new();
        for write in writes {
            let id = self.tasks[usize::from(write.task) % self.tasks.len()];
            let (operation, item) = self.operation(id, write);
            let buffer = api.clone();
            let append = async move { buffer.append(operation, None, Slot::Ordinary).await };
            requests.push((item, tokio::spawn(append)));
        }
        let mut failed = None;
        for (item, request) in requests {
            let has_room = self.plain.waiting.len() < MAX_ITEMS as usize;
            match request.await.expect("no panic") {
                Ok(accepted) => {
                    assert!(
                        self.plain.append(item, MAX_ITEMS as usize),
                        "accepted beyond the cap"
                    );
                    let stamp = accepted.operation.stamp;
                    assert!(stamp.as_i64() > self.high_water, "an old stamp");
                }
                Err(BufferError::Full { .. }) => assert!(!has_room, "refused though there is room"),
                Err(error) => {
                    self.in_doubt.push(item);
                    failed = Some(error);
                }
            }
        }
        failed.map_or(Ok(()), Err)
    }

    async fn fold(&mut self, api: &Buffer, write: &Write) -> Result<(), BufferError> {
        let id = self.folded[usize::from(write.task) % self.folded.len()];
        let (operation, item) = self.operation(id, write);
        let room = self.plain.fold(item, write.kind, MAX_ITEMS as usize);
        match api.fold(operation).await {
            Err(BufferError::Full { .. }) if !room => Ok(()),
            answer => answer.map(drop),
        }
    }

    fn operation(&mut self, task: TaskId, write: &Write) -> (Operation, Waiting) {
        self.next_title += 1;
        let title = format!("title {}", self.next_title);
        let made = match write.kind {
            Kind::Create => create("ann", task, &title),
            Kind::Update => retitle("ann", task, &title),
            Kind::Delete => delete("ann", task),
        };
        let priority = Priority::parse((write.priority % 5 + 1).into()).expect("one to five");
        let operation = Operation { priority, ..made };
        let item = self.waiting(&operation);
        (operation, item)
    }

    fn waiting(&mut self, operation: &Operation) -> Waiting {
        self.asked.insert(operation.id);
        let change = operation.change();
        Waiting {
            id: operation.id,
            resource: operation.resource(),
            wished: operation.priority,
            priority: operation.priority,
            retries: 0,
            title: change.as_ref().and_then(title_of),
            deleted: change.is_some_and(|change| change.deleted().is_some()),
        }
    }

    async fn revoke(&mut self, api: &Buffer, session: u8, synced: bool) -> Result<(), BufferError> {
        let session_id = SessionId::parse(&format!("session-{}", session % 4)).expect("valid");
        let revocation = Revocation {
            session_id: session_id.clone(),
            keep_until: Timestamp::from_micros(i64::MAX),
        };
        let operation = synced.then(|| Operation {
            body: Body::Session(revocation.clone()),
            priority: Priority::ALL[0],
            ..delete("ann", TaskId::generate())
        });
        if let Some(operation) = &operation {
            let item = self.waiting(operation);
            self.plain.append(item, RESERVED);
        }
        self.plain.revoked.insert(session_id);
        api.revoke(revocation, operation).await
    }

    async fn set_aside(&mut self, syncd: &Buffer, nth: u8) -> Result<(), BufferError> {
        let Some(id) = nth_of(self.plain.waiting.iter().map(|item| &item.id), nth) else {
            return Ok(());
        };
        let items = all_items(syncd.reader())?;
        let place = items.iter().find(|queued| queued.item.operation.id == id);
        let place = place.expect("compared after the action before").place;
        self.plain.set_aside(id);
        syncd.set_aside(vec![place]).await.map(drop)
    }

    fn archived(&self) -> Vec<DeadLetter> {
        let directory = archive_directory(&self.config().path);
        let Ok(files) = std::fs::read_dir(directory) else {
            return Vec::new();
        };
        let paths = files.map(|file| file.expect("the archive's own").path());
        paths
            .flat_map(|path| read_archive(&path).expect("the archive's own").0)
            .collect()
    }

    /// Compares what either process sees with what must be there.
    pub(super) fn check_now(&mut self, when: &str) -> Checked {
        let (api, syncd) = self
            .processes()
            .map_err(|error| format!("{when}: {error}"))?;
        for (who, buffer) in [("api", &api), ("syncd", &syncd)] {
            self.compare(buffer.reader())
                .map_err(|what| format!("{when}, {who} sees: {what}"))?;
        }
        Ok(())
    }

    fn compare(&mut self, reader: &Reader) -> Checked {
        let snapshot = reader.snapshot().map_err(|error| error.to_string())?;
        same(
            "what doesn't add up",
            &snapshot.discrepancies(),
            &Vec::new(),
        )?;
        let plain = &self.plain;
        let counted = &snapshot.counters;
        same("accepted", &counted.accepted, &plain.accepted)?;
        same("pending", &counted.pending, &(plain.waiting.len() as u64))?;
        same("applied", &counted.applied, &plain.applied)?;
        same("superseded", &counted.superseded, &plain.superseded)?;
        same(
            "dead",
            &counted.dead,
            &(plain.dead.len() as u64 + plain.set_aside),
        )?;
        same("archived", &counted.archived, &(plain.archive.len() as u64))?;
        same("discarded", &counted.discarded, &plain.discarded)?;
        self.compare_queues(reader)?;
        self.compare_ended(reader)
            .map_err(|error| error.to_string())??;
        let items = all_items(reader).map_err(|error| error.to_string())?;
        let newest = items
            .iter()
            .map(|queued| queued.item.operation.stamp.as_i64())
            .max();
        same(
            "an item above the high-water mark",
            &(newest > Some(counted.high_water)),
            &false,
        )?;
        self.compare_marks(counted.next_seq, counted.high_water)
    }

    fn compare_queues(&self, reader: &Reader) -> Checked {
        for lane in Lane::ALL {
            let items = reader
                .list_items(lane, ALL)
                .map_err(|error| error.to_string())?;
            let found: Vec<Waiting> = items.iter().map(waiting_of).collect();
            let wanted: Vec<Waiting> = self.plain.queue(lane).into_iter().cloned().collect();
            same("the queue", &found, &wanted)?;
            for task in &self.tasks {
                let key = ResourceKey::Task(*task);
                let of_key = |items: &[Waiting]| -> Vec<OperationId> {
                    items
                        .iter()
                        .filter(|item| item.resource == key)
                        .map(|item| item.id)
                        .collect()
                };
                let found = reader
                    .list_items_of(&key)
                    .map_err(|error| error.to_string())?;
                let found: Vec<OperationId> = found
                    .iter()
                    .map(|queued| queued.item.operation.id)
                    .collect();
                same("the items of a task", &found, &of_key(&self.plain.waiting))?;
            }
        }
        Ok(())
    }

    fn compare_ended(&self, reader: &Reader) -> Result<Checked, BufferError> {
        let letters = reader.list_dead(None, ALL)?;
        let found: Vec<(OperationId, String)> = letters
            .into_iter()
            .map(|letter| (letter.item.operation.id, letter.reason))
            .collect();
        let wanted: Vec<(OperationId, String)> = self
            .plain
            .dead
            .iter()
            .map(|(id, dead)| (*id, dead.reason.clone()))
            .collect();
        if let Err(what) = same("the dead letters", &found, &wanted) {
            return Ok(Err(what));
        }
        for id in &self.asked {
            let found = reader.find_operation(*id)?.map(|record| record.state);
            let wanted: Option<OperationState> = self.plain.state_of(*id);
            if let Err(what) = same(&format!("the state of {id}"), &found, &wanted) {
                return Ok(Err(what));
            }
        }
        let archived: BTreeSet<OperationId> = self
            .archived()
            .iter()
            .map(|letter| letter.item.operation.id)
            .collect();
        if let Some(missing) = self.plain.archive.keys().find(|id| !archived.contains(id)) {
            return Ok(Err(format!("{missing} is not in the archive")));
        }
        let revoked: BTreeSet<SessionId> = reader
            .list_revocations()?
            .into_iter()
            .map(|revocation| revocation.session_id)
            .collect();
        Ok(same("the revocations", &revoked, &self.plain.revoked))
    }

    /// Neither the sequence numbers nor the stamps ever go back.
    fn compare_marks(&mut self, next_seq: u64, high_water: i64) -> Checked {
        if next_seq < self.next_seq || high_water < self.high_water {
            return Err(format!(
                "went back from {}, {} to {next_seq}, {high_water}",
                self.next_seq, self.high_water
            ));
        }
        (self.next_seq, self.high_water) = (next_seq, high_water);
        Ok(())
    }
}

fn next_batch(syncd: &Buffer, lane: Lane, limit: usize) -> Result<Batch, BufferError> {
    let any_time = Timestamp::from_micros(i64::MAX);
    syncd
        .reader()
        .next_batch(lane, limit, &Skip::default(), any_time)
}

fn settlements(items: Vec<Queued>, verdicts: &[u8]) -> Vec<Settlement> {
    let verdict = |number: u8| match number % 5 {
        0 => Verdict::Applied,
        4 => Verdict::Repeated(Stamp::from_i64(1)),
        1 => Verdict::Superseded,
        2 => Verdict::Dead {
            reason: "23514".to_owned(),
        },
        _ => Verdict::Retry {
            error: "22001".to_owned(),
            not_before: Timestamp::from_micros(1),
        },
    };
    let with_verdicts = items.into_iter().zip(verdicts);
    with_verdicts
        .map(|(queued, number)| Settlement {
            queued,
            verdict: verdict(*number),
        })
        .collect()
}

fn all_items(reader: &Reader) -> Result<Vec<Queued>, BufferError> {
    let mut items = reader.list_items(Lane::Postgres, ALL)?;
    items.extend(reader.list_items(Lane::Redis, ALL)?);
    Ok(items)
}

/// An item as the plain buffer has it.
fn waiting_of(queued: &Queued) -> Waiting {
    let operation = &queued.item.operation;
    let change = operation.change();
    Waiting {
        id: operation.id,
        resource: operation.resource(),
        wished: operation.priority,
        priority: queued.place.priority(),
        retries: queued.item.retries,
        title: change.as_ref().and_then(title_of),
        deleted: change.is_some_and(|change| change.deleted().is_some()),
    }
}

fn nth_of<'a>(ids: impl ExactSizeIterator<Item = &'a OperationId>, nth: u8) -> Option<OperationId> {
    let mut ids = ids;
    let count = ids.len();
    (count > 0)
        .then(|| ids.nth(usize::from(nth) % count).copied())
        .flatten()
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, found: &T, wanted: &T) -> Checked {
    if found == wanted {
        return Ok(());
    }
    Err(format!("{what}: {found:?} instead of {wanted:?}"))
}
