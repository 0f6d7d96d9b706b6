//! The repository's parts and its life.

use std::collections::HashSet;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use moka::sync::Cache;
use thiserror::Error;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::buffer::{Binding, Buffer, BufferError, Reader};
use crate::config::{Config, SessionPolicy};
use crate::domain::{IdempotencyKey, Session, SessionId, Timestamp, UserId};
use crate::health::{Probed, StoreHealth, monitor};
use crate::store::postgres::{Postgres, Timeouts};
use crate::store::redis::Redis;

use super::cache::StateCache;
use super::outlook::Pace;
use super::revocations::Revocations;

/// Most sessions remembered in memory.
const SESSIONS_MAX: u64 = 50_000;

/// How long a noted session isn't noted again: the precision of `last_seen_at`.
const NOTED_FOR: Duration = Duration::from_secs(60);

/// Why the repository can't be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The buffer can't be used.
    #[error(transparent)]
    Buffer(#[from] BufferError),
    /// The buffer holds items of a database, and none is configured, or another one.
    #[error(transparent)]
    Foreign(#[from] ForeignBuffer),
}

/// The buffer belongs to another database than the one this process is to use.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ForeignBuffer {
    /// Another one is configured.
    #[error(
        "the buffer holds {waiting} items of another database than the configured one: set DATABASE_URL back to it, or \
         run `syncd adopt` to send them to the configured one"
    )]
    OfAnother {
        /// Items that wait in it.
        waiting: u64,
    },
    /// None is configured.
    #[error(
        "the buffer belongs to a database and holds {waiting} items for it, but none is configured: set DATABASE_URL, \
         or run `syncd adopt` to keep them here"
    )]
    OfSome {
        /// Items that wait in it.
        waiting: u64,
    },
}

/// A store and what is known of its health.
#[derive(Clone)]
pub(super) struct Lane<S> {
    pub(super) store: S,
    pub(super) health: StoreHealth,
}

/// Everything the API keeps, behind one face. Cheap to clone.
#[derive(Clone)]
pub struct Repository(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub(super) buffer: Buffer,
    pub(super) postgres: Option<Lane<Postgres>>,
    pub(super) redis: Option<Lane<Redis>>,
    /// How long a direct write may take before it goes to the buffer.
    pub(super) store_timeout: Duration,
    pub(super) cache: StateCache,
    pub(super) keys_in_use: Mutex<HashSet<(UserId, IdempotencyKey)>>,
    pub(super) revocations: Revocations,
    /// Whether all that Redis has of revocations was taken over when they were last asked for.
    pub(super) mirror_is_current: AtomicBool,
    /// Sessions that were noted of late, and until when.
    pub(super) noted_sessions: Cache<SessionId, Timestamp>,
    /// Sessions this process has let in, so that they can be revoked while Redis is away.
    pub(super) seen_sessions: Cache<SessionId, Session>,
    pub(super) session_policy: SessionPolicy,
    /// Changes whenever the follower has seen an operation end.
    pub(super) ended: watch::Sender<u64>,
    /// How the buffer has been draining of late.
    pub(super) pace: Mutex<Pace>,
    pub(super) foreign: watch::Sender<Option<ForeignBuffer>>,
    tasks: Mutex<JoinSet<()>>,
}

impl Repository {
    /// Opens the buffer and begins to watch the stores. Blocks while the buffer is opened; call it within the runtime.
    ///
    /// # Errors
    /// When the buffer can't be used, or belongs to a database while none is configured. Nothing is left running.
    pub fn open(config: &Config) -> Result<Repository, OpenError> {
        let buffer = Buffer::open(&config.buffer)?;
        buffer.read_blocking(Reader::warm)?;
        if config.postgres.is_none() {
            bind_to_none(&buffer)?;
        }
        let mut tasks = JoinSet::new();
        let (foreign, _) = watch::channel(None);
        let postgres = config.postgres.as_ref().map(|settings| {
            let store = Postgres::new(settings, Timeouts::direct(config.store_timeout));
            let on_probe = note_probe(buffer.clone(), foreign.clone());
            let (health, watching) =
                monitor("postgres", store.clone(), config.health_interval, on_probe);
            tasks.spawn(watching);
            Lane { store, health }
        });
        let redis = config.redis.as_ref().map(|settings| {
            let store = Redis::new(settings, config.store_timeout);
            let (health, watching) = monitor(
                "redis",
                store.clone(),
                config.health_interval,
                |_: &Probed| {},
            );
            tasks.spawn(watching);
            Lane { store, health }
        });
        let repository = Repository(Arc::new(Inner {
            revocations: Revocations::default(),
            mirror_is_current: AtomicBool::new(false),
            buffer,
            postgres,
            redis,
            store_timeout: config.store_timeout,
            cache: StateCache::new(),
            keys_in_use: Mutex::default(),
            noted_sessions: Cache::builder()
                .max_capacity(SESSIONS_MAX)
                .time_to_live(NOTED_FOR)
                .build(),
            seen_sessions: Cache::new(SESSIONS_MAX),
            session_policy: config.session_policy,
            ended: watch::channel(0).0,
            pace: Mutex::new(Pace::new(Instant::now())),
            foreign,
            tasks: Mutex::new(JoinSet::new()),
        }));
        repository.reload_revocations_blocking()?;
        tasks.spawn(repository.clone().follow_buffer());
        tasks.spawn(repository.clone().mirror_revocations());
        *repository
            .0
            .tasks
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner) = tasks;
        Ok(repository)
    }

    /// Waits until the store turns out to be another database than the buffer's, if it ever does.
    pub async fn met_foreign_database(&self) -> ForeignBuffer {
        let mut foreign = self.0.foreign.subscribe();
        loop {
            if let Some(met) = foreign.borrow_and_update().clone() {
                return met;
            }
            if foreign.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// The time by which writes are dated.
    pub fn now(&self) -> Timestamp {
        self.0.buffer.clock().now()
    }

    /// The buffer.
    pub fn buffer(&self) -> &Buffer {
        &self.0.buffer
    }

    /// Whether no PostgreSQL is configured: the buffer is the store.
    pub fn is_embedded(&self) -> bool {
        self.0.postgres.is_none()
    }

    /// Stops watching the stores, lets the buffer's writer finish what is queued, and closes it.
    pub async fn close(&self) {
        let mut tasks = std::mem::take(
            &mut *self
                .0
                .tasks
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner),
        );
        tasks.shutdown().await;
        let buffer = self.0.buffer.clone();
        if tokio::task::spawn_blocking(move || buffer.close())
            .await
            .is_err()
        {
            tracing::error!("closing the buffer failed");
        }
    }
}

/// Uses a buffer without any database; refuses one that holds a database's items.
fn bind_to_none(buffer: &Buffer) -> Result<(), OpenError> {
    match buffer.bind_database_blocking(None)? {
        Binding::Same | Binding::Bound => Ok(()),
        Binding::Foreign { waiting } => Err(ForeignBuffer::OfSome { waiting }.into()),
    }
}

/// What a successful probe of PostgreSQL tells: its clock, and which database it is.
fn note_probe(
    buffer: Buffer,
    foreign: watch::Sender<Option<ForeignBuffer>>,
) -> impl Fn(&Probed) + Send + Sync + 'static {
    move |probed| {
        if let Some(distance) = probed.clock {
            buffer.clock().learn(distance);
            tokio::spawn(settle_time(buffer.clone()));
        }
        // Each time: another file may be at its path, or another process have bound it to another database.
        if let Some(id) = probed.database_id {
            tokio::spawn(bind(buffer.clone(), id, foreign.clone()));
        }
    }
}

async fn settle_time(buffer: Buffer) {
    if let Err(error) = buffer.settle_time().await {
        tracing::warn!(%error, "can't note postgres' time in the buffer; trying again at the next probe");
    }
}

async fn bind(buffer: Buffer, database: uuid::Uuid, foreign: watch::Sender<Option<ForeignBuffer>>) {
    match buffer.bind_database(Some(database)).await {
        Ok(Binding::Same | Binding::Bound) => {}
        Ok(Binding::Foreign { waiting }) => {
            foreign.send_replace(Some(ForeignBuffer::OfAnother { waiting }));
        }
        Err(error) => {
            tracing::warn!(%error, "can't record which database the buffer belongs to; trying again at the next probe");
        }
    }
}

impl Inner {
    /// Reads the buffer off the async threads.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        read: impl Fn(&Reader) -> Result<T, BufferError> + Send + Sync + 'static,
    ) -> Result<T, BufferError> {
        self.buffer.read(read).await
    }

    /// PostgreSQL, if it is configured and up.
    pub(super) fn postgres_up(&self) -> Option<&Lane<Postgres>> {
        self.postgres.as_ref().filter(|lane| lane.health.is_up())
    }
}
