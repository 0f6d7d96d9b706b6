//! Everything that drains, put together: the stores and their watches, a worker for each lane, the lookout. The daemon
//! runs it for its life, `syncd drain` for as long as it takes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use holdfast_shared::buffer::{Buffer, Lane};
use holdfast_shared::clock::Clock;
use holdfast_shared::config::{AppEnv, Config, PostgresConfig, RedisConfig, SyncConfig};
use holdfast_shared::health::{Probed, StoreHealth, monitor};
use holdfast_shared::store::postgres::Postgres;
use holdfast_shared::store::redis::Redis;
use tokio::sync::{Notify, watch};
use tokio::task::{JoinError, JoinSet};

use crate::board::Board;
use crate::drain::{Drain, PostgresSink, RedisSink, Sink};
use crate::gate::{Gate, Migrations, PostgresGate};
use crate::lookout::Lookout;
use crate::metrics;
use crate::systemd::Pulse;
use crate::worker::{Reins, Worker, WorkerError};

/// How long Redis may take for a batch; a probe that fails cuts it off sooner.
const REDIS_DEADLINE: Duration = Duration::from_secs(5);

/// A clock that is wrong by more than this is worth a warning.
const MOST_SKEW_MS: i64 = 1_000;

/// A running engine. Dropping it ends it at once; a batch under way is then applied again later, which changes nothing.
pub struct Engine {
    board: Arc<Board>,
    postgres: Option<(Postgres, StoreHealth)>,
    redis: Option<StoreHealth>,
    settings: watch::Sender<SyncConfig>,
    stop: watch::Sender<bool>,
    workers: JoinSet<Result<(), WorkerError>>,
    /// The watches and the lookout.
    watchers: JoinSet<()>,
}

/// What the parts of an engine share while it is being built.
struct Site<'s> {
    config: &'s Config,
    buffer: &'s Buffer,
    board: Arc<Board>,
    settings: watch::Receiver<SyncConfig>,
    stop: watch::Receiver<bool>,
    wakes: Vec<Arc<Notify>>,
    workers: JoinSet<Result<(), WorkerError>>,
    watchers: JoinSet<()>,
}

impl Engine {
    /// Starts it. `look` begins a cycle; `pulse` is for the service manager, where there is one. Call it within the
    /// runtime.
    pub fn start(
        config: &Config,
        buffer: &Buffer,
        look: &Arc<Notify>,
        pulse: Option<Pulse>,
    ) -> Self {
        let (settings, settings_in_force) = watch::channel(config.sync.clone());
        let (stop, stopped) = watch::channel(false);
        let mut site = Site {
            config,
            buffer,
            board: Arc::default(),
            settings: settings_in_force,
            stop: stopped,
            wakes: Vec::new(),
            workers: JoinSet::new(),
            watchers: JoinSet::new(),
        };
        let postgres = config
            .postgres
            .as_ref()
            .map(|postgres| site.start_postgres(postgres));
        let redis = config.redis.as_ref().map(|redis| site.start_redis(redis));
        site.start_lookout(Arc::clone(look), pulse);
        let Site {
            board,
            workers,
            watchers,
            ..
        } = site;
        Engine {
            board,
            postgres,
            redis,
            settings,
            stop,
            workers,
            watchers,
        }
    }

    /// What it is doing.
    pub fn board(&self) -> &Arc<Board> {
        &self.board
    }

    /// PostgreSQL and its watch, where it is configured.
    pub fn postgres(&self) -> Option<&(Postgres, StoreHealth)> {
        self.postgres.as_ref()
    }

    /// Redis' watch, where it is configured.
    pub fn redis(&self) -> Option<&StoreHealth> {
        self.redis.as_ref()
    }

    /// The settings in force, as they change.
    pub fn settings(&self) -> watch::Receiver<SyncConfig> {
        self.settings.subscribe()
    }

    /// Puts other settings in force, from the next cycle on.
    pub fn reconfigure(&self, sync: SyncConfig) {
        self.settings.send_replace(sync);
    }

    /// Waits until a part of it ends without having been told to; for ever when none does.
    ///
    /// # Errors
    /// Why it ended.
    pub async fn watch(&mut self) -> Result<(), WorkerError> {
        tokio::select! {
            Some(ended) = self.workers.join_next() => ended.unwrap_or_else(|defect| Err(broken(&defect))),
            Some(ended) = self.watchers.join_next() => ended.map_err(|defect| broken(&defect)),
        }
    }

    /// Turns true when the engine stops.
    pub fn stopped(&self) -> watch::Receiver<bool> {
        self.stop.subscribe()
    }

    /// Has the workers finish the batch they are at, and waits until they have.
    pub async fn finish(&mut self) {
        self.stop.send_replace(true);
        while let Some(ended) = self.workers.join_next().await {
            if let Err(error) = ended.unwrap_or_else(|defect| Err(broken(&defect))) {
                tracing::error!(%error, "worker ended");
            }
        }
        self.watchers.shutdown().await;
    }
}

impl Site<'_> {
    fn start_postgres(&mut self, config: &PostgresConfig) -> (Postgres, StoreHealth) {
        let store = Postgres::for_daemon(config);
        let clock = Arc::clone(self.buffer.clock());
        let skewed = AtomicBool::new(false);
        let learn = move |probed: &Probed| learn_time(&clock, &skewed, probed);
        let (health, watching) = monitor(
            "postgres",
            store.clone(),
            self.config.health_interval,
            learn,
        );
        self.watchers.spawn(watching);
        let migrations = match self.config.app_env {
            AppEnv::Development | AppEnv::Testing => Migrations::Applied,
            AppEnv::Production => Migrations::Left,
        };
        let gate = PostgresGate::new(
            store.clone(),
            health.clone(),
            self.buffer.clone(),
            migrations,
        );
        let sink = PostgresSink::new(store.clone(), health.clone());
        let worker = self.worker(Lane::Postgres, sink, Gate::Postgres(gate));
        self.workers.spawn(worker.run());
        (store, health)
    }

    fn start_redis(&mut self, config: &RedisConfig) -> StoreHealth {
        let store = Redis::new(config, REDIS_DEADLINE);
        let (health, watching) =
            monitor("redis", store.clone(), self.config.health_interval, |_| {});
        self.watchers.spawn(watching);
        let worker = self.worker(
            Lane::Redis,
            RedisSink::new(store, health.clone()),
            Gate::Redis,
        );
        self.workers.spawn(worker.run());
        health
    }

    fn worker<S: Sink>(&mut self, lane: Lane, sink: S, gate: Gate) -> Worker<S> {
        let wake = Arc::new(Notify::new());
        self.wakes.push(Arc::clone(&wake));
        let reins = Reins {
            board: Arc::clone(&self.board),
            settings: self.settings.clone(),
            stop: self.stop.clone(),
            wake,
        };
        let drain = Drain::new(lane, self.buffer.clone(), sink, &self.config.sync);
        Worker::new(drain, gate, reins)
    }

    fn start_lookout(&mut self, look: Arc<Notify>, pulse: Option<Pulse>) {
        let lookout = Lookout::new(
            self.buffer.clone(),
            Arc::clone(&self.board),
            self.wakes.clone(),
            pulse,
        );
        self.watchers.spawn(lookout.run(look, self.stop.clone()));
    }
}

fn broken(defect: &JoinError) -> WorkerError {
    WorkerError::Broken(defect.to_string())
}

/// Keeps the node's clock by PostgreSQL's, and says when the machine's own is wrong.
fn learn_time(clock: &Clock, skewed: &AtomicBool, probed: &Probed) {
    let Some(distance) = probed.clock else {
        return;
    };
    clock.learn(distance);
    let offset_ms = distance.wall_ms();
    #[expect(clippy::cast_precision_loss, reason = "a skew for people")]
    let skew_seconds = offset_ms as f64 / 1_000.0;
    metrics::show_skew(skew_seconds);
    let is_skewed = offset_ms.abs() > MOST_SKEW_MS;
    if is_skewed && !skewed.swap(is_skewed, Ordering::Relaxed) {
        tracing::warn!(
            skew_seconds,
            "this machine's clock is wrong by postgres'; writes are stamped by the latter"
        );
    }
    skewed.store(is_skewed, Ordering::Relaxed);
}
