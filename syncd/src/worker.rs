//! A lane's worker: when to drain, and what is said about it.
//!
//! Doctrine: a cycle takes no input and repeats harmlessly; the interval, a store that came back, new items and an
//! operator's signal all lead to the same cycle; the next one is the retry. A cycle takes steps until one says there is
//! no more to do now, with no waiting in between but what a step itself asks for, to make room for others; the worker
//! decides only what to wait for then.

use std::sync::Arc;
use std::time::{Duration, Instant};

use holdfast_shared::buffer::{BufferError, SettleReport};
use holdfast_shared::config::SyncConfig;
use tokio::sync::{Notify, watch};

use crate::board::{Board, Doing};
use crate::drain::{Drain, Next, Sink, Step, Trouble};
use crate::gate::{Bar, Gate};
use crate::signals::told_to_stop;

/// How often a worker looks again at a store that is away: it is woken when the store comes back, and looks only for
/// changes in why it is away.
const AWAY_LOOK: Duration = Duration::from_millis(500);

/// How long a lane leaves alone a store in which a table, or every row it is given, is locked by others.
const OVERRUN_PAUSE: Duration = Duration::from_secs(2);

/// Least time between two tries of a store that refuses everything, or of a buffer that can't be used; new items
/// would otherwise cause one each tenth of a second.
const TROUBLE_PAUSE: Duration = Duration::from_secs(1);

/// What every worker is given.
#[derive(Clone)]
pub struct Reins {
    /// Where it posts what it does.
    pub board: Arc<Board>,
    /// The settings in force.
    pub settings: watch::Receiver<SyncConfig>,
    /// Turns true when it is time to leave.
    pub stop: watch::Receiver<bool>,
    /// Begins a cycle.
    pub wake: Arc<Notify>,
}

/// Why a worker ended other than by being asked to.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The store is another database than the one the buffer belongs to.
    #[error(
        "the buffer belongs to another database and holds {waiting} items for it: set DATABASE_URL back, or run \
         `syncd adopt` to send them to the one that is configured now"
    )]
    Foreign {
        /// Items that wait.
        waiting: u64,
    },
    /// A defect of this program's: a part of it panicked. The panic itself has been written to standard error.
    #[error("a part of syncd ended by a defect: {0}")]
    Broken(String),
}

/// What to wait for before the next cycle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rest {
    /// A wake-up, the interval, or this time.
    Idle(Option<Instant>),
    /// The store.
    Away,
    /// This long, whatever happens.
    Pause(Duration),
    /// [`TROUBLE_PAUSE`], then a wake-up or the interval.
    Trouble,
}

/// A lane's worker.
pub struct Worker<S> {
    drain: Drain<S>,
    gate: Gate,
    reins: Reins,
    tally: Tally,
}

/// What has been drained since the lane last rested.
#[derive(Debug, Default)]
struct Tally {
    began: Option<Instant>,
    settled: SettleReport,
    after_outage: bool,
}

impl<S: Sink> Worker<S> {
    /// A worker that has not begun.
    pub fn new(drain: Drain<S>, gate: Gate, reins: Reins) -> Self {
        reins.board.post(drain.lane(), Doing::Starting);
        Worker {
            drain,
            gate,
            reins,
            tally: Tally::default(),
        }
    }

    /// Works until it is told to stop; the batch under way is finished first.
    ///
    /// # Errors
    /// [`WorkerError::Foreign`]; nothing has been written into that database.
    pub async fn run(mut self) -> Result<(), WorkerError> {
        if let Err(error) = self.drain.recall_orphans().await {
            tracing::warn!(lane = self.lane(), %error, "can't look for dead creates of an earlier run");
        }
        while !self.is_stopped() {
            let rest = self.cycle().await?;
            self.wait(rest).await;
        }
        if let Err(error) = self.drain.finish_settling().await {
            tracing::warn!(lane = self.lane(), %error, "last batch is applied but not settled; it will be recognised");
        }
        self.count_settled();
        self.tell_end("left off");
        Ok(())
    }

    fn lane(&self) -> &'static str {
        self.drain.lane().as_str()
    }

    fn is_stopped(&self) -> bool {
        *self.reins.stop.borrow()
    }

    /// Drains until there is no more to do now.
    async fn cycle(&mut self) -> Result<Rest, WorkerError> {
        let standing = self.drain.sink().standing();
        let generation = self.drain.generation();
        match self.gate.pass(&standing).await {
            Ok(()) => {}
            Err(Bar::Foreign { waiting }) => return Err(WorkerError::Foreign { waiting }),
            Err(Bar::Away) => return Ok(self.end(Step::Away)),
            Err(Bar::Unsound(trouble)) => return Ok(self.end_stopped(trouble, Rest::Away)),
            Err(Bar::Buffer(error)) => return Ok(self.end_blind(&error).await),
        }
        self.drain.vet(generation);
        self.drain.configure(&self.reins.settings.borrow());
        while !self.is_stopped() {
            match self.step().await {
                Ok(Step::Advanced) => self.count_settled(),
                Ok(Step::Breathes(rest)) => {
                    self.count_settled();
                    self.wait(Rest::Pause(rest)).await;
                }
                Ok(step) => return Ok(self.end(step)),
                Err(error) => return Ok(self.end_blind(&error).await),
            }
        }
        Ok(Rest::Idle(None))
    }

    async fn step(&mut self) -> Result<Step, BufferError> {
        match self.drain.next().await? {
            Next::Done(step) => Ok(step),
            Next::Items(items) => {
                self.tally.began.get_or_insert_with(Instant::now);
                self.post(Doing::Draining);
                self.drain.work(items).await
            }
        }
    }

    fn count_settled(&mut self) {
        let settled = self.drain.take_settled();
        let ended = settled.applied + settled.superseded + settled.dead;
        if ended > 0 {
            self.reins.board.count(self.drain.lane(), ended);
        }
        let tally = &mut self.tally.settled;
        tally.applied += settled.applied;
        tally.superseded += settled.superseded;
        tally.dead += settled.dead;
        tally.retried += settled.retried;
    }

    /// Draws the consequences of a cycle's last step.
    fn end(&mut self, step: Step) -> Rest {
        self.count_settled();
        match step {
            Step::Advanced | Step::Breathes(_) => Rest::Idle(Some(Instant::now())),
            Step::Rested(due) => {
                self.tell_end("finished");
                self.post(Doing::Resting);
                Rest::Idle(due)
            }
            Step::Away => {
                self.tell_end("interrupted");
                self.drain.begin_anew();
                self.tally.after_outage = true;
                self.post(Doing::Away);
                Rest::Away
            }
            Step::Overrun => {
                self.drain.slow_down();
                self.tally.after_outage = true;
                self.post(Doing::Paused);
                Rest::Pause(OVERRUN_PAUSE)
            }
            // Its probes may well succeed, so its coming up is no sign of anything.
            Step::Systemic(trouble) => self.end_stopped(trouble, Rest::Trouble),
        }
    }

    fn end_stopped(&mut self, trouble: Trouble, rest: Rest) -> Rest {
        self.drain.begin_anew();
        self.tally.after_outage = true;
        let Trouble { summary, detail } = trouble;
        let doing = Doing::Stopped(summary);
        let before = self.post(doing.clone());
        if before != doing {
            tracing::error!(
                lane = self.lane(),
                error = detail,
                "lane stopped: nothing is lost, and it tries again"
            );
        }
        rest
    }

    async fn end_blind(&mut self, error: &BufferError) -> Rest {
        if matches!(error, BufferError::DiskFull { .. }) && self.make_room().await {
            return Rest::Idle(Some(Instant::now()));
        }
        let before = self.post(Doing::Blind(error.to_string()));
        if !matches!(before, Doing::Blind(_)) {
            tracing::error!(lane = self.lane(), %error, "lane can't use the buffer, and tries again");
        }
        Rest::Pause(TROUBLE_PAUSE)
    }

    /// Has the drain go on in the ballast's room. Tells whether there was any.
    async fn make_room(&mut self) -> bool {
        match self.drain.give_ballast_up().await {
            Ok(true) => {
                tracing::warn!(
                    lane = self.lane(),
                    "disk of the buffer is full: its ballast is given up to drain"
                );
                true
            }
            Ok(false) => false,
            Err(error) => {
                tracing::error!(lane = self.lane(), %error, "can't give the buffer's ballast up");
                false
            }
        }
    }

    /// Posts what the lane is doing, and says when it is out of trouble.
    fn post(&self, doing: Doing) -> Doing {
        let before = self.reins.board.post(self.drain.lane(), doing.clone());
        let was_stuck = matches!(before, Doing::Stopped(_) | Doing::Blind(_) | Doing::Paused);
        if doing == Doing::Paused && before != Doing::Paused {
            tracing::warn!(
                lane = self.lane(),
                "lane paused: very many rows are locked by others"
            );
        }
        if was_stuck && matches!(doing, Doing::Draining | Doing::Resting) {
            tracing::info!(lane = self.lane(), "lane goes on");
        }
        before
    }

    /// Sums up what was drained since the lane last rested. Trickles are not worth a line in the journal.
    fn tell_end(&mut self, how: &'static str) {
        let Tally {
            began,
            settled,
            after_outage,
        } = std::mem::take(&mut self.tally);
        let ended = settled.applied + settled.superseded + settled.dead;
        let Some(began) = began.filter(|_| ended + settled.retried > 0) else {
            return;
        };
        let took = began.elapsed();
        #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
        let per_second = (ended as f64 / took.as_secs_f64().max(0.001)).round();
        let SettleReport {
            applied,
            superseded,
            dead,
            retried,
            ..
        } = settled;
        let (lane, took_ms) = (self.lane(), took.as_millis());
        let first_batch =
            u64::try_from(self.reins.settings.borrow().batch_size).unwrap_or(u64::MAX);
        if after_outage || ended >= first_batch {
            tracing::info!(
                lane,
                applied,
                superseded,
                dead,
                retried,
                took_ms,
                per_second,
                "drain {how}"
            );
        } else {
            tracing::debug!(
                lane,
                applied,
                superseded,
                dead,
                retried,
                took_ms,
                per_second,
                "drain {how}"
            );
        }
    }

    /// Waits for whatever ends a rest, or the order to stop.
    async fn wait(&mut self, rest: Rest) {
        let interval = self.reins.settings.borrow().interval;
        let mut stop = self.reins.stop.clone();
        let sink = self.drain.sink();
        let wake = &self.reins.wake;
        let ends = async {
            match rest {
                Rest::Idle(due) => idle(wake, interval, due).await,
                Rest::Pause(pause) => tokio::time::sleep(pause).await,
                Rest::Away => tokio::select! {
                    () = sink.came_up() => {}
                    () = tokio::time::sleep(AWAY_LOOK) => {}
                },
                Rest::Trouble => {
                    tokio::time::sleep(TROUBLE_PAUSE).await;
                    idle(wake, interval, None).await;
                }
            }
        };
        tokio::select! {
            () = ends => {}
            () = told_to_stop(&mut stop) => {}
        }
    }
}

async fn idle(wake: &Notify, interval: Duration, due: Option<Instant>) {
    let limit = Instant::now() + interval;
    let until = due.map_or(limit, |due| due.min(limit));
    tokio::select! {
        () = wake.notified() => {}
        () = tokio::time::sleep_until(until.into()) => {}
    }
}

#[cfg(test)]
mod tests {
    use holdfast_shared::buffer::{Buffer, Lane, Slot};
    use holdfast_shared::domain::{Kind, TaskId};
    use holdfast_shared::store::FailureClass;
    use tempfile::TempDir;
    use tokio::task::JoinHandle;

    use super::*;
    use crate::drain::rig::{FakeStore, open_buffer, operation, sync_config};
    use crate::lookout::Lookout;

    type Checked = Result<(), Box<dyn std::error::Error>>;

    /// A worker at work, with a lookout that wakes it and an interval that never ends.
    struct Works {
        _directory: TempDir,
        buffer: Buffer,
        store: FakeStore,
        board: Arc<Board>,
        stop: watch::Sender<bool>,
        _settings: watch::Sender<SyncConfig>,
        worker: JoinHandle<Result<(), WorkerError>>,
    }

    impl Works {
        fn start(store: FakeStore) -> Result<Self, Box<dyn std::error::Error>> {
            let directory = tempfile::tempdir()?;
            let buffer = open_buffer(directory.path(), Duration::from_secs(3_600))?;
            let config = sync_config(3, 50, 50);
            let (stop, stopped) = watch::channel(false);
            let (settings, settings_in_force) = watch::channel(config.clone());
            let (board, wake) = (Arc::<Board>::default(), Arc::new(Notify::new()));
            let reins = Reins {
                board: Arc::clone(&board),
                settings: settings_in_force,
                stop: stopped.clone(),
                wake: Arc::clone(&wake),
            };
            let drain = Drain::new(Lane::Postgres, buffer.clone(), store.clone(), &config);
            let worker = tokio::spawn(Worker::new(drain, Gate::Redis, reins).run());
            let lookout = Lookout::new(buffer.clone(), Arc::clone(&board), vec![wake], None);
            tokio::spawn(lookout.run(Arc::default(), stopped));
            Ok(Works {
                _directory: directory,
                buffer,
                store,
                board,
                stop,
                _settings: settings,
                worker,
            })
        }

        async fn append(&self) -> Checked {
            let create = operation(&self.buffer, TaskId::generate(), Kind::Create)?;
            self.buffer.append(create, None, Slot::Ordinary).await?;
            Ok(())
        }

        async fn reach(&self, doing: &Doing, applied: usize) -> Checked {
            let reached = || {
                let lane = self.board.report().lanes[Lane::Postgres as usize]
                    .doing
                    .clone();
                lane == *doing && self.store.script().applied.len() == applied
            };
            let looking = async {
                while !reached() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            Ok(tokio::time::timeout(Duration::from_secs(20), looking).await?)
        }
    }

    #[tokio::test]
    async fn new_items_wake_a_worker_that_rests() -> Checked {
        let works = Works::start(FakeStore::default())?;
        works.reach(&Doing::Resting, 0).await?;
        works.append().await?;
        works.reach(&Doing::Resting, 1).await
    }

    #[tokio::test]
    async fn a_store_that_comes_back_is_drained_into_and_the_worker_stops_when_told() -> Checked {
        let store = FakeStore::default();
        store.script().away = true;
        let works = Works::start(store)?;
        works.append().await?;
        works.reach(&Doing::Away, 0).await?;
        works.store.come_up();
        works.reach(&Doing::Resting, 1).await?;

        works.stop.send_replace(true);
        works.worker.await??;
        Ok(())
    }

    #[tokio::test]
    async fn a_store_that_refuses_everything_stops_the_lane_which_tries_again() -> Checked {
        let works = Works::start(FakeStore::default())?;
        works.store.script().broken = Some(FailureClass::Systemic);
        works.append().await?;
        works
            .reach(&Doing::Stopped("scripted Systemic".to_owned()), 0)
            .await?;
        works.store.script().broken = None;
        works.append().await?;
        works.reach(&Doing::Resting, 2).await
    }
}
