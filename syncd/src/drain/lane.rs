//! The drain of one lane, a step at a time.
//!
//! A step reads a batch in queue order, applies it, and hands what was decided to a settling transaction, which runs
//! while the next step applies. That one leaves out the very items being settled, and every resource with an item
//! that stays queued, so nothing is applied twice in a row or out of order. A crash in between replays the batch, which
//! changes nothing: the store knows the operations' ids.
//!
//! While a batch is applied, the next one is read; it is used if nothing of this one stays queued.
//!
//! No step waits for anything but the store and the buffer, and each says how it ended; when to take the next one is
//! the worker's business.

mod reading;

use std::collections::HashSet;
use std::time::{Duration, Instant};

use holdfast_shared::buffer::{
    Batch, Buffer, BufferError, Lane, Queued, Reader, SettleReport, Settlement, Skip, Verdict,
};
use holdfast_shared::config::SyncConfig;
use holdfast_shared::domain::{OperationId, Outcome, Rejection, ResourceKey};
use holdfast_shared::seeded::Bug;
use tokio::task::{JoinHandle, spawn_blocking};

use self::reading::Pass;
use super::batch_size::BatchSize;
use super::courtesy::{Courtesy, LOOK_INTERVAL};
use super::deaths::{self, Cause};
use super::judgement::{Judgement, Obstacle, Trouble, judge, resource};
use super::orphans::Orphans;
use super::parking::Parking;
use super::retry::{NextTry, RetrySchedule};
use super::sink::{Sink, Standing};
use super::suspicion::{Conclusion, MOST_SUSPECTS, Ruling, Suspicion};
use super::time::{after, instant_of};
use crate::metrics;

/// Dead letters looked at in one read.
const PAGE: usize = 1_000;

/// Most dead letters looked at when a process begins: beyond that, followers of the others are tried and fail alone.
const MOST_RECALLED: usize = 10_000;

/// How a step ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// There may be more to do at once.
    Advanced,
    /// The same, after a rest, since the store serves others too.
    Breathes(Duration),
    /// Nothing is to be done until new items come, or until this time.
    Rested(Option<Instant>),
    /// The store is not usable.
    Away,
    /// So many resources are contended that the store must be left alone for a while.
    Overrun,
    /// The store refuses everything, for this reason. Nothing was counted against any item.
    Systemic(Trouble),
}

/// What there is to do.
#[derive(Debug)]
pub enum Next {
    /// These, at least one.
    Items(Vec<Queued>),
    /// Nothing to apply; the step has ended so.
    Done(Step),
}

/// A lane's drain: its queue, its store, and what it has learned about both.
pub struct Drain<S> {
    lane: Lane,
    buffer: Buffer,
    sink: S,
    size: BatchSize,
    schedule: RetrySchedule,
    parking: Parking,
    /// The parked resources whose turn it is in this batch.
    retried: HashSet<ResourceKey>,
    pass: Pass,
    courtesy: Courtesy,
    suspicion: Suspicion<Refused>,
    orphans: Orphans,
    settling: Option<Settling>,
    /// The next batch, on its way while nothing stands in the way of any resource.
    ahead: Option<JoinHandle<Result<Batch, BufferError>>>,
    settled: SettleReport,
    newer_noted: bool,
    /// The opening of the file that may be drained; `None`: whichever.
    vetted: Option<u64>,
}

/// An item its store fails on.
#[derive(Debug)]
struct Refused {
    queued: Queued,
    error: String,
}

/// A settling transaction on its way.
struct Settling {
    /// What the next batch leaves out because of it.
    skip: Skip,
    /// Those of its verdicts that have to be told about.
    notable: Vec<Settlement>,
    task: JoinHandle<Result<SettleReport, BufferError>>,
}

impl<S: Sink> Drain<S> {
    /// A drain that begins as after an outage.
    pub fn new(lane: Lane, buffer: Buffer, sink: S, config: &SyncConfig) -> Self {
        Drain {
            lane,
            buffer,
            sink,
            size: BatchSize::new(config.batch_size, config.batch_max),
            schedule: RetrySchedule::new(config.max_retry_attempts),
            parking: Parking::default(),
            retried: HashSet::new(),
            pass: Pass::default(),
            courtesy: Courtesy::default(),
            suspicion: Suspicion::default(),
            orphans: Orphans::default(),
            settling: None,
            ahead: None,
            settled: SettleReport::default(),
            newer_noted: false,
            vetted: None,
        }
    }

    /// Which lane it drains.
    pub fn lane(&self) -> Lane {
        self.lane
    }

    /// Its store.
    pub fn sink(&self) -> &S {
        &self.sink
    }

    /// Takes over other settings.
    pub fn configure(&mut self, config: &SyncConfig) {
        self.size.set_bounds(config.batch_size, config.batch_max);
        self.schedule = RetrySchedule::new(config.max_retry_attempts);
    }

    /// Which opening of the buffer file is in use.
    pub fn generation(&self) -> u64 {
        self.buffer.generation()
    }

    /// Has it drain from this opening of the file only: another one may be of another file, and whether that belongs
    /// to this store must be found out first.
    pub fn vet(&mut self, generation: u64) {
        self.vetted = Some(generation);
    }

    /// The store was away: what was learned about its speed and its locks is no longer true.
    pub fn begin_anew(&mut self) {
        self.size.reset();
        self.parking.clear();
        self.pass = Pass::default();
        self.courtesy = Courtesy::default();
    }

    /// Very many rows are locked by others: goes on gently, and with what isn't known to be locked.
    pub fn slow_down(&mut self) {
        self.size.reset();
    }

    /// Finds the creates that died under an earlier process, whose followers may still be queued.
    ///
    /// # Errors
    /// When the buffer can't be read.
    pub async fn recall_orphans(&mut self) -> Result<(), BufferError> {
        let mut last: Option<OperationId> = None;
        for _ in 0..MOST_RECALLED / PAGE {
            let letters = self
                .buffer
                .read(move |reader| reader.list_dead(last, PAGE))
                .await?;
            let Some(letter) = letters.last() else { break };
            last = Some(letter.item.operation.id);
            for letter in letters
                .iter()
                .filter(|letter| Cause::of(&letter.reason) == Cause::Failed)
            {
                self.orphans.recall(letter);
            }
        }
        Ok(())
    }

    /// What has been settled since this was last asked.
    pub fn take_settled(&mut self) -> SettleReport {
        std::mem::take(&mut self.settled)
    }

    /// Reads the next batch, or finds that there is none now.
    ///
    /// # Errors
    /// When the buffer can't be read or settled. The items concerned stay queued.
    pub async fn next(&mut self) -> Result<Next, BufferError> {
        if self.sink.standing() != Standing::Up {
            return Ok(Next::Done(self.stop(Step::Away).await?));
        }
        let batch = self.next_batch().await?;
        if batch.items.is_empty() {
            return Ok(Next::Done(self.run_dry(&batch).await?));
        }
        Ok(Next::Items(batch.items))
    }

    /// Applies and begins to settle a batch that [`Drain::next`] has just given.
    ///
    /// # Errors
    /// When the buffer can't be settled. The items stay queued.
    pub async fn work(&mut self, items: Vec<Queued>) -> Result<Step, BufferError> {
        let read = items.len();
        let began = Instant::now();
        if Bug::RemovedBeforeApplied.is_on() {
            self.begin_settling(items.iter().map(as_applied).collect())
                .await?;
        }
        let ahead = self.read_ahead(&items);
        let pass = std::mem::take(&mut self.pass);
        let (mut settlements, items) = self.part_orphans(items);
        let retried = std::mem::take(&mut self.retried);
        let retried = self.with_turn(retried, &items);
        let judgement = judge(&self.sink, items, &retried, self.patience()).await;
        self.learn_speed(&judgement, read);
        self.park(&judgement.contended);
        let is_stuck = judgement.answered.is_empty() && self.parking.is_overrun(Instant::now());
        let is_clean = judgement.is_clean();
        let obstacle = judgement.obstacle.clone();
        let obstacle = obstacle.or_else(|| is_stuck.then_some(Obstacle::Locked));
        let ruling = self.weigh(judgement, &mut settlements);
        // What goes back to the queue must not be overtaken: then the next batch begins at the front.
        let all_end = is_clean && !settlements.iter().any(stays_queued);
        if all_end {
            self.pass = pass;
        }
        self.begin_settling(settlements).await?;
        let step = self.next_after(obstacle, ruling).await?;
        self.ahead = ahead.filter(|_| all_end && step == Step::Advanced);
        self.make_room(step, began).await
    }

    /// Puts a rest after a step where others are served too.
    async fn make_room(&mut self, step: Step, began: Instant) -> Result<Step, BufferError> {
        if step != Step::Advanced {
            return Ok(step);
        }
        let took = began.elapsed();
        if self.courtesy.wants_look(Instant::now()) {
            let serves_others = self.sink.serves_others(LOOK_INTERVAL).await;
            let counters = self.buffer.read(Reader::counters).await?;
            self.courtesy
                .look(serves_others, counters.pending, Instant::now());
        }
        let rest = self.courtesy.rest_after(took, Instant::now());
        Ok(rest.map_or(step, Step::Breathes))
    }

    /// Gives the buffer's ballast up, since its disk is too full even to settle; the rest of the drain begins small.
    ///
    /// # Errors
    /// When it can't be removed.
    pub async fn give_ballast_up(&mut self) -> Result<bool, BufferError> {
        self.begin_anew();
        let buffer = self.buffer.clone();
        let released = spawn_blocking(move || buffer.release_ballast()).await;
        released.unwrap_or(Err(BufferError::Closed))
    }

    /// Waits until what was decided is settled.
    ///
    /// # Errors
    /// When the buffer refused; the items stay queued and are applied again, which changes nothing.
    pub async fn finish_settling(&mut self) -> Result<(), BufferError> {
        let Some(settling) = self.settling.take() else {
            return Ok(());
        };
        let report = settling.task.await.unwrap_or(Err(BufferError::Closed))?;
        metrics::count_settled(&report);
        deaths::log_ends(self.lane, &settling.notable);
        self.settled = sum(self.settled, report);
        Ok(())
    }

    /// Those of the parked resources of which something is there to be tried; of the others nothing is queued any more.
    fn with_turn(
        &mut self,
        retried: HashSet<ResourceKey>,
        items: &[Queued],
    ) -> HashSet<ResourceKey> {
        if retried.is_empty() {
            return retried;
        }
        let present: HashSet<ResourceKey> = items.iter().map(resource).collect();
        let (there, gone): (HashSet<_>, HashSet<_>) = retried
            .into_iter()
            .partition(|resource| present.contains(resource));
        gone.iter()
            .for_each(|resource| self.parking.release(resource));
        there
    }

    /// After how many failures a batch has said enough.
    fn patience(&self) -> Option<usize> {
        (!self.suspicion.wants_second_opinion()).then_some(MOST_SUSPECTS)
    }

    /// There is nothing to apply but, perhaps, what is left out.
    async fn run_dry(&mut self, batch: &Batch) -> Result<Step, BufferError> {
        if self.settling.is_some() {
            self.finish_settling().await?;
            return Ok(Step::Advanced);
        }
        // Nothing of it is queued, or it waits for another reason: the next one's turn.
        if !self.retried.is_empty() {
            let idle = std::mem::take(&mut self.retried);
            idle.iter()
                .for_each(|resource| self.parking.release(resource));
            return Ok(Step::Advanced);
        }
        match self.suspicion.conclude() {
            Conclusion::LookAgain => Ok(Step::Advanced),
            Conclusion::Systemic(last) => Ok(Step::Systemic(all_failed(last))),
            Conclusion::Guilty(guilty) if guilty.is_empty() => Ok(self.rest(batch)),
            Conclusion::Guilty(guilty) => {
                let settlements = guilty
                    .into_iter()
                    .map(|refused| self.count_failure(refused))
                    .collect();
                self.begin_settling(settlements).await?;
                Ok(Step::Advanced)
            }
        }
    }

    fn rest(&mut self, batch: &Batch) -> Step {
        if batch.put_off == 0 && batch.next_due.is_none() {
            self.orphans.clear();
        }
        self.courtesy.run_dry();
        let now = self.buffer.clock().now();
        Step::Rested(batch.next_due.map(|due| instant_of(due, now)))
    }

    /// Takes out the items that end with their resource's create.
    fn part_orphans(&mut self, items: Vec<Queued>) -> (Vec<Settlement>, Vec<Queued>) {
        let (mut orphans, mut others) = (Vec::new(), Vec::with_capacity(items.len()));
        for queued in items {
            match self.orphans.blocked_by(&queued.item.operation) {
                Some(create) => {
                    let reason = Cause::blocked_by(create);
                    orphans.push(Settlement {
                        queued,
                        verdict: Verdict::Dead { reason },
                    });
                }
                None => others.push(queued),
            }
        }
        (orphans, others)
    }

    fn learn_speed(&mut self, judgement: &Judgement, read: usize) {
        if let Some(took) = judgement.in_one {
            let limit = self.courtesy.batch_limit(Instant::now());
            self.size.applied(read, took, limit);
        } else if !judgement.refused.is_empty() || !judgement.contended.is_empty() {
            self.size.halve();
        }
    }

    fn park(&mut self, contended: &[ResourceKey]) {
        for key in contended {
            let wait = self
                .parking
                .park(key.clone(), Instant::now(), rand::random_range(0.0..1.0));
            tracing::debug!(lane = self.lane.as_str(), resource = %key, ?wait, "resource is locked by others, put off");
        }
    }

    /// Adds the verdicts on what was decided to `settlements`. Gives a ruling when nothing but failures was seen.
    fn weigh(
        &mut self,
        judgement: Judgement,
        settlements: &mut Vec<Settlement>,
    ) -> Option<Ruling<Refused>> {
        let (succeeded, failed) = (
            !judgement.answered.is_empty(),
            !judgement.refused.is_empty(),
        );
        for (queued, error) in judgement.refused {
            self.suspicion
                .suspect(resource(&queued), Refused { queued, error });
        }
        for (queued, outcome) in judgement.answered {
            self.parking.release(&resource(&queued));
            self.suspicion.exonerate(&resource(&queued));
            settlements.push(self.count_answer(queued, &outcome));
        }
        if succeeded {
            self.suspicion.accuse();
        }
        let guilty = self.suspicion.take_convicted();
        settlements.extend(
            guilty
                .into_iter()
                .map(|refused| self.count_failure(refused)),
        );
        (failed && !succeeded).then(|| self.suspicion.after_failed_batch())
    }

    /// What the obstacle, the contention or the failures of a batch mean for the lane.
    async fn next_after(
        &mut self,
        obstacle: Option<Obstacle>,
        ruling: Option<Ruling<Refused>>,
    ) -> Result<Step, BufferError> {
        match (obstacle, ruling) {
            (Some(Obstacle::Away), _) => self.stop(Step::Away).await,
            (Some(Obstacle::Locked), _) => self.stop(Step::Overrun).await,
            (Some(Obstacle::Systemic(error)), _) => self.stop(Step::Systemic(error)).await,
            (None, Some(Ruling::Systemic(last))) => {
                self.stop(Step::Systemic(all_failed(last))).await
            }
            (None, _) => Ok(Step::Advanced),
        }
    }

    /// Ends a cycle early: nobody is guilty of anything that can't be proven now.
    async fn stop(&mut self, step: Step) -> Result<Step, BufferError> {
        self.suspicion.acquit();
        self.ahead = None;
        self.pass = Pass::default();
        self.finish_settling().await?;
        Ok(step)
    }

    /// The verdict on an item the store has answered for.
    fn count_answer(&self, queued: Queued, outcome: &Outcome) -> Settlement {
        let verdict = match outcome {
            Outcome::Applied => Verdict::Applied,
            Outcome::Superseded => Verdict::Superseded,
            Outcome::Repeated(first) => Verdict::Repeated(*first),
            // Its create may still be on its way from another node.
            Outcome::Rejected(Rejection::NotFound) => {
                self.try_again(&queued, Rejection::NotFound.as_str())
            }
            Outcome::Rejected(rejection) => Verdict::Dead {
                reason: rejection.as_str().to_owned(),
            },
        };
        Settlement { queued, verdict }
    }

    /// The verdict on an item that has failed by its own fault.
    fn count_failure(&mut self, refused: Refused) -> Settlement {
        let Refused { queued, error } = refused;
        let verdict = self.try_again(&queued, &error);
        if matches!(verdict, Verdict::Dead { .. }) {
            self.orphans
                .bereave(&queued.item.operation, self.buffer.clock().now());
        }
        Settlement { queued, verdict }
    }

    fn try_again(&self, queued: &Queued, error: &str) -> Verdict {
        match self
            .schedule
            .after_failure(queued.item.retries, rand::random_range(0.0..1.0))
        {
            NextTry::After(wait) => {
                let not_before = after(self.buffer.clock().now(), wait);
                Verdict::Retry {
                    error: error.to_owned(),
                    not_before,
                }
            }
            NextTry::Never => Verdict::Dead {
                reason: error.to_owned(),
            },
        }
    }

    /// Hands verdicts to a settling transaction, one at a time a lane.
    async fn begin_settling(&mut self, settlements: Vec<Settlement>) -> Result<(), BufferError> {
        self.finish_settling().await?;
        if settlements.is_empty() {
            return Ok(());
        }
        let notable = |settlement: &&Settlement| {
            matches!(
                settlement.verdict,
                Verdict::Dead { .. } | Verdict::Retry { .. }
            )
        };
        let notable = settlements.iter().filter(notable).cloned().collect();
        let skip = left_out(&settlements);
        let buffer = self.buffer.clone();
        let task = tokio::spawn(async move { buffer.settle(settlements).await });
        self.settling = Some(Settling {
            skip,
            notable,
            task,
        });
        Ok(())
    }
}

/// What the next batch leaves out while these are being settled: the items themselves, and every item of a resource
/// that keeps one of them queued.
fn left_out(settlements: &[Settlement]) -> Skip {
    Skip {
        places: settlements
            .iter()
            .map(|settlement| settlement.queued.place)
            .collect(),
        resources: settlements
            .iter()
            .filter(|settlement| stays_queued(settlement))
            .map(|settlement| resource(&settlement.queued))
            .collect(),
        passed: None,
    }
}

/// Whether an item goes back to its queue.
fn stays_queued(settlement: &Settlement) -> bool {
    matches!(settlement.verdict, Verdict::Retry { .. })
}

/// For a seeded bug: the verdict without a trial.
fn as_applied(queued: &Queued) -> Settlement {
    Settlement {
        queued: queued.clone(),
        verdict: Verdict::Applied,
    }
}

fn all_failed(last: Option<Refused>) -> Trouble {
    let error = last.map_or_else(|| "unknown".to_owned(), |refused| refused.error);
    let summary = format!("everything it is given fails, the last item with: {error}");
    Trouble {
        detail: summary.clone(),
        summary,
    }
}

fn sum(one: SettleReport, other: SettleReport) -> SettleReport {
    SettleReport {
        applied: one.applied + other.applied,
        superseded: one.superseded + other.superseded,
        dead: one.dead + other.dead,
        retried: one.retried + other.retried,
        skipped: one.skipped + other.skipped,
    }
}
