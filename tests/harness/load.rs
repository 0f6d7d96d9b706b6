//! Several clients that write, insist on an answer, and read back what they
//! were told.
//!
//! A client repeats a request only when it got no answer at all (or was refused
//! after 5 s, on a machine that stood still for most of them), and then under
//! the same identity: the same `Idempotency-Key`, the same id in a PUT, the
//! same new title in a PATCH. So a repeat must never make a second task. What
//! was deleted must never be seen again.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use reqwest::{Method, RequestBuilder};
use serde_json::json;
use sqlx::postgres::PgConnection;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;
use uuid::Uuid;

use crate::answer::Answer;
use crate::client::Client;
use crate::ledger::{Findings, Ledger, TaskNumber};
use crate::stall_watch::StallWatch;
use crate::tokens;
use crate::wait::eventually;

/// How long a client repeats one request that isn't answered.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two repeats.
const REPEAT_GAP: Duration = Duration::from_millis(25);
/// Every so manieth write of a client renames one of its earlier tasks.
const RENAME_EVERY: u64 = 5;
/// Every so manieth deletes one.
const DELETE_EVERY: u64 = 12;
/// An API that holds a write up for so long may refuse it, where the machine stood still for most of it: the buffer's
/// writer hasn't taken it within 5 s.
pub const HELD_UP: Duration = Duration::from_millis(4_900);
/// So many writes go to one of several API processes, then to the next: a number
/// that leaves each of them every kind of write.
const WRITES_A_TURN: u64 = 7;
/// Every so manieth acknowledged write is read back at once.
const READ_EVERY: u64 = 4;
/// Complaints kept for the report; more of them say nothing new.
const COMPLAINTS_KEPT: usize = 20;

/// Whether the API process itself is up, which only its killer knows. Odd
/// numbers mean that it is down, and each kill makes a new number.
#[derive(Debug, Default)]
pub struct ApiLife(AtomicU64);

impl ApiLife {
    /// To be called just before the API is killed, and once it is alive again.
    pub fn turn(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    fn now(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }

    /// Whether the API was up all the time since `then`.
    fn lasted_since(&self, then: u64) -> bool {
        then.is_multiple_of(2) && self.now() == then
    }
}

/// What the writers share and what is known about them afterwards.
#[derive(Debug)]
pub struct Load {
    /// Everything asked and answered.
    pub ledger: Ledger,
    /// Turned by whoever kills the API.
    pub api_life: ApiLife,
    origins: Vec<String>,
    gap: Duration,
    stopping: AtomicBool,
    unanswered: AtomicU64,
    held_up: AtomicU64,
    reads: AtomicU64,
    pending_reads: AtomicU64,
    complaints: Mutex<Vec<String>>,
    stalled: OnceLock<Duration>,
}

/// Writers at work; [`RunningLoad::stop`] ends them.
#[derive(Debug)]
pub struct RunningLoad {
    /// What they share.
    pub load: Arc<Load>,
    writers: Vec<JoinHandle<()>>,
    watch: StallWatch,
}

/// How many clients write, and how much.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Clients, each with a user of its own.
    pub writers: u32,
    /// Of all clients together.
    pub writes_per_second: u32,
}

impl Load {
    /// Starts clients against the API at `origin`. `run` marks their tasks, as
    /// [`Ledger::new`] says.
    ///
    /// # Errors
    /// When the machine can't be watched meanwhile.
    pub fn start(origin: &str, run: &str, pace: Pace) -> Result<RunningLoad> {
        Self::start_on(vec![origin.to_owned()], run, pace)
    }

    /// The same against several API processes on one buffer, which clients
    /// take in turn.
    ///
    /// # Errors
    /// When the machine can't be watched meanwhile.
    pub fn start_on(origins: Vec<String>, run: &str, pace: Pace) -> Result<RunningLoad> {
        let watch = StallWatch::start()?;
        let load = Arc::new(Load {
            ledger: Ledger::new(run),
            api_life: ApiLife::default(),
            origins,
            gap: Duration::from_secs(u64::from(pace.writers)) / pace.writes_per_second,
            stopping: AtomicBool::new(false),
            unanswered: AtomicU64::new(0),
            held_up: AtomicU64::new(0),
            reads: AtomicU64::new(0),
            pending_reads: AtomicU64::new(0),
            complaints: Mutex::default(),
            stalled: OnceLock::new(),
        });
        let writers = (0..pace.writers)
            .map(|number| tokio::spawn(Writer::new(number, Arc::clone(&load)).work()))
            .collect();
        Ok(RunningLoad {
            load,
            writers,
            watch,
        })
    }

    /// Attempts that got no answer while the API itself was down.
    pub fn unanswered(&self) -> u64 {
        self.unanswered.load(Ordering::Relaxed)
    }

    /// Tasks read back at once after their write was acknowledged.
    pub fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }

    /// How many of those reads said `pending`.
    pub fn pending_reads(&self) -> u64 {
        self.pending_reads.load(Ordering::Relaxed)
    }

    /// For how long the machine stood still in all while the load ran; zero as
    /// long as it runs.
    pub fn stalled(&self) -> Duration {
        self.stalled.get().copied().unwrap_or_default()
    }

    /// What was promised and didn't happen, as sentences.
    pub fn complaints(&self) -> Vec<String> {
        let complaints = self.complaints.lock();
        complaints.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Asserts that every answer was a success and came within `slowest` and for
    /// how long the machine stood still, and that PostgreSQL holds what clients were
    /// told: each task once, with its newest title, and none that was deleted.
    /// Returns what was compared.
    ///
    /// # Errors
    /// When the tasks can't be read.
    ///
    /// # Panics
    /// When it isn't so, or when too little was asked to say so.
    pub async fn expect_kept(
        &self,
        connection: &mut PgConnection,
        slowest: Duration,
    ) -> Result<Findings> {
        assert_eq!(self.complaints(), [""; 0]);
        let findings = self.ledger.compare(connection).await?;
        assert_eq!(findings.broken_promises(), [""; 0]);
        assert_eq!(findings.present_once, findings.acknowledged);
        assert!(findings.acknowledged > 0, "nothing was written");
        assert!(findings.deleted > 0, "nothing was deleted");
        let took = self.ledger.slowest();
        let stalled = self.stalled();
        assert!(
            took < slowest + stalled,
            "the slowest answer took {took:?}; the machine stood still for {stalled:?}"
        );
        Ok(findings)
    }

    /// Answers of 202: writes that went to the buffer.
    pub fn buffered(&self) -> u64 {
        let answers = self.ledger.answers();
        answers.get(&202).copied().unwrap_or_default()
    }

    fn complain(&self, what: String) {
        let mut complaints = self
            .complaints
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if complaints.len() < COMPLAINTS_KEPT {
            complaints.push(what);
        }
    }
}

impl RunningLoad {
    /// Waits until so many more writes were answered.
    ///
    /// # Errors
    /// When that takes longer than a client has patience.
    pub async fn answered(&self, count: u64) -> Result<()> {
        let all = || self.load.ledger.answers().values().sum::<u64>();
        let wanted = all() + count;
        eventually(PATIENCE, "more answers", async || {
            if all() >= wanted { Ok(()) } else { Err(all()) }
        })
        .await
    }

    /// Lets every client finish the write it is at, then ends them.
    ///
    /// # Errors
    /// When a client has panicked, or the machine couldn't be watched.
    pub async fn stop(self) -> Result<Arc<Load>> {
        self.load.stopping.store(true, Ordering::Relaxed);
        for writer in self.writers {
            writer.await.context("a writer has panicked")?;
        }
        let stalled = self.watch.total()?;
        self.load.stalled.get_or_init(|| stalled);
        let held_up = self.load.held_up.load(Ordering::Relaxed);
        if held_up > 0 && stalled < HELD_UP / 2 {
            self.load.complain(format!(
                "{held_up} writes were refused after 5 s, and the machine stood still for {stalled:?} only"
            ));
        }
        Ok(self.load)
    }
}

/// The user of the writer with this number.
pub fn user_of_writer(number: u32) -> String {
    format!("writer-{number}")
}

struct Writer {
    clients: Vec<Client>,
    load: Arc<Load>,
    tasks: Vec<(TaskNumber, Uuid)>,
    writes: u64,
    acknowledged: u64,
}

impl Writer {
    fn new(number: u32, load: Arc<Load>) -> Self {
        let token = tokens::valid(&user_of_writer(number));
        let clients = load
            .origins
            .iter()
            .map(|origin| Client::new(origin, &token));
        Self {
            clients: clients.collect(),
            load,
            tasks: Vec::new(),
            writes: 0,
            acknowledged: 0,
        }
    }

    /// The client of the write that it is at.
    fn client(&self) -> &Client {
        let turn = usize::try_from(self.writes / WRITES_A_TURN).unwrap_or_default();
        &self.clients[turn % self.clients.len()]
    }

    async fn work(mut self) {
        let mut ticks = tokio::time::interval(self.load.gap);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !self.load.stopping.load(Ordering::Relaxed) {
            ticks.tick().await;
            self.writes += 1;
            if self.writes.is_multiple_of(DELETE_EVERY) && !self.tasks.is_empty() {
                self.delete().await;
            } else if self.writes.is_multiple_of(RENAME_EVERY) && !self.tasks.is_empty() {
                self.rename().await;
            } else if self.writes.is_multiple_of(2) {
                self.create_by_put().await;
            } else {
                self.create_by_post().await;
            }
        }
    }

    async fn create_by_put(&mut self) {
        let (number, title) = self.load.ledger.begin_task();
        let id = Uuid::new_v4();
        let path = format!("/tasks/{id}");
        let request = || {
            self.client()
                .request(Method::PUT, &path)
                .json(&json!({"title": title}))
        };
        let life = self.load.api_life.now();
        if let Some(answer) = self.insist(request).await {
            self.created(number, id, &answer);
            self.read_back(id, &title, &answer, life).await;
        }
    }

    async fn create_by_post(&mut self) {
        let (number, title) = self.load.ledger.begin_task();
        let key = Uuid::new_v4().to_string();
        let request = || {
            let post = self.client().request(Method::POST, "/tasks");
            post.header("idempotency-key", &key)
                .json(&json!({"title": title}))
        };
        let life = self.load.api_life.now();
        let Some(answer) = self.insist(request).await else {
            return;
        };
        match acknowledged_id(&answer) {
            Some(id) => {
                self.created(number, id, &answer);
                self.read_back(id, &title, &answer, life).await;
            }
            None => self
                .load
                .complain(format!("a creation without an id: {}", answer.text())),
        }
    }

    async fn rename(&mut self) {
        let oldest_first = usize::try_from(self.writes / RENAME_EVERY - 1).unwrap_or(0);
        let (number, id) = self.tasks[oldest_first % self.tasks.len()];
        let words = format!("renamed {}", self.writes);
        let title = self.load.ledger.begin_rename(number, &words);
        let path = format!("/tasks/{id}");
        // With a key and without, in turn: they take different ways.
        let key = self.writes.is_multiple_of(2).then(Uuid::new_v4);
        let request = || {
            let patch = self
                .client()
                .request(Method::PATCH, &path)
                .json(&json!({"title": title}));
            match key {
                Some(key) => patch.header("idempotency-key", key.to_string()),
                None => patch,
            }
        };
        let life = self.load.api_life.now();
        if let Some(answer) = self.insist(request).await {
            self.load.ledger.acknowledge_rename(number);
            self.acknowledged += 1;
            self.read_back(id, &title, &answer, life).await;
        }
    }

    async fn delete(&mut self) {
        let (number, id) = self.tasks.swap_remove(0);
        self.load.ledger.begin_deletion(number);
        let path = format!("/tasks/{id}");
        let request = || self.client().request(Method::DELETE, &path);
        let life = self.load.api_life.now();
        if self.insist(request).await.is_none() {
            return;
        }
        self.load.ledger.acknowledge_deletion(number);
        self.acknowledged += 1;
        let read = self.client().get(&path).await;
        match read {
            _ if !self.load.api_life.lasted_since(life) => {}
            Ok(answer) if answer.status() == 404 => {}
            Ok(answer) => self
                .load
                .complain(format!("{id} read after its deletion: {}", answer.text())),
            Err(error) => self
                .load
                .complain(format!("{id} not read after its deletion: {error:#}")),
        }
    }

    fn created(&mut self, number: TaskNumber, id: Uuid, answer: &Answer) {
        if acknowledged_id(answer).is_some_and(|acknowledged| acknowledged != id) {
            self.load
                .complain(format!("PUT of {id} answered {}", answer.text()));
        }
        self.load.ledger.acknowledge_task(number, id);
        self.tasks.push((number, id));
        self.acknowledged += 1;
    }

    /// Sends a request until it is answered. `None` when the answer is no 2xx
    /// or never comes, both of which is complained about.
    async fn insist(&self, request: impl Fn() -> RequestBuilder) -> Option<Answer> {
        let started = Instant::now();
        let mut repeats = 0;
        while started.elapsed() < PATIENCE {
            let life = self.load.api_life.now();
            match self.client().send(request()).await {
                // Whether it may be is told when it is known how long the machine stood still.
                Ok(answer) if answer.status() == 503 && answer.elapsed() >= HELD_UP => {
                    self.load.held_up.fetch_add(1, Ordering::Relaxed);
                }
                Ok(answer) => {
                    self.load
                        .ledger
                        .count_answer(answer.status(), answer.elapsed());
                    // The first attempt, which went unanswered, may still run.
                    let first_still_runs = answer.status() == 409 && repeats > 0;
                    if answer.is_success() {
                        return Some(answer);
                    }
                    if !first_still_runs {
                        let status = answer.status();
                        self.load
                            .complain(format!("a write got {status}: {}", answer.text()));
                        return None;
                    }
                }
                Err(error) if self.load.api_life.lasted_since(life) => {
                    self.load
                        .complain(format!("a write got no answer: {error:#}"));
                }
                Err(_) => {
                    self.load.unanswered.fetch_add(1, Ordering::Relaxed);
                }
            }
            repeats += 1;
            tokio::time::sleep(REPEAT_GAP).await;
        }
        self.load
            .complain(format!("a write was repeated {repeats} times in vain"));
        None
    }

    /// Reads a task whose write was just acknowledged. Where the answer was
    /// only an operation, the node can't know the task, and may say so.
    async fn read_back(&self, id: Uuid, title: &str, acknowledged: &Answer, life: u64) {
        let knows_the_task = acknowledged.json()["title"].is_string();
        if !knows_the_task || !self.acknowledged.is_multiple_of(READ_EVERY) {
            return;
        }
        let read = self.client().get(&format!("/tasks/{id}")).await;
        // Another process may not know what its predecessor had written through.
        if !self.load.api_life.lasted_since(life) {
            return;
        }
        match read {
            Ok(answer) if answer.status() == 200 && answer.json()["title"] == title => {
                self.load.reads.fetch_add(1, Ordering::Relaxed);
                if answer.json()["sync_state"] == "pending" {
                    self.load.pending_reads.fetch_add(1, Ordering::Relaxed);
                }
            }
            Ok(answer) => {
                let status = answer.status();
                let text = answer.text();
                self.load
                    .complain(format!("{title:?} read back as {status}: {text}"));
            }
            Err(error) => self
                .load
                .complain(format!("{title:?} not read back: {error:#}")),
        }
    }
}

/// The task's id in the answer to a creation: a task's own, or an operation's
/// `entity_id`.
fn acknowledged_id(answer: &Answer) -> Option<Uuid> {
    let body = answer.json();
    let id = body["entity_id"].as_str().or_else(|| body["id"].as_str())?;
    id.parse().ok()
}
