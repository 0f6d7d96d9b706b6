//! What must be true before a lane writes into its store: it is there, it is the right database, its schema fits, and
//! stamps made without knowing its time are corrected.

use std::time::{Duration, Instant};

use holdfast_shared::buffer::{Binding, Buffer, BufferError};
use holdfast_shared::health::StoreHealth;
use holdfast_shared::store::postgres::{MigrationReport, NEEDS_MIGRATION, Postgres};
use holdfast_shared::store::{FailureClass, StoreError};
use tokio::runtime::Handle;
use tokio::task::spawn_blocking;

use crate::drain::{Standing, Trouble};

/// Least time between two attempts to migrate.
const MIGRATION_PAUSE: Duration = Duration::from_secs(30);

/// How long after a migration a store may go on complaining: several probes.
const PROBE_PATIENCE: Duration = Duration::from_secs(3);

/// Whether pending migrations are applied here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Migrations {
    /// They are, as soon as the database is reached: on a developer's machine everything should just work.
    Applied,
    /// They are not: in production somebody decides when (`syncd migrate`).
    Left,
}

/// What keeps a lane from writing.
#[derive(Debug)]
pub enum Bar {
    /// The store is not usable.
    Away,
    /// The store is unsound.
    Unsound(Trouble),
    /// It is another database than the one the buffer belongs to.
    Foreign {
        /// Items that wait.
        waiting: u64,
    },
    /// The buffer can't be asked to which database it belongs.
    Buffer(BufferError),
}

/// The gate of a lane.
pub enum Gate {
    /// Of Redis: whatever is there is the right one, revocations have no schema.
    Redis,
    /// Of PostgreSQL.
    Postgres(PostgresGate),
}

impl Gate {
    /// Lets a lane through to a store of this standing, or not.
    ///
    /// # Errors
    /// What is in the way.
    pub async fn pass(&mut self, standing: &Standing) -> Result<(), Bar> {
        match self {
            Gate::Redis => open(standing),
            Gate::Postgres(gate) => gate.pass(standing).await,
        }
    }
}

fn open(standing: &Standing) -> Result<(), Bar> {
    match standing {
        Standing::Up => Ok(()),
        Standing::Away => Err(Bar::Away),
        Standing::Unsound(trouble) => Err(Bar::Unsound(trouble.clone())),
    }
}

/// The gate of PostgreSQL.
pub struct PostgresGate {
    store: Postgres,
    health: StoreHealth,
    buffer: Buffer,
    migrations: Migrations,
    migrated: bool,
    tried_at: Option<Instant>,
    /// Why the last attempt to migrate came to nothing.
    failure: Option<Trouble>,
}

impl PostgresGate {
    /// A gate to this store for what this buffer holds.
    pub fn new(
        store: Postgres,
        health: StoreHealth,
        buffer: Buffer,
        migrations: Migrations,
    ) -> Self {
        PostgresGate {
            store,
            health,
            buffer,
            migrations,
            migrated: false,
            tried_at: None,
            failure: None,
        }
    }

    async fn pass(&mut self, standing: &Standing) -> Result<(), Bar> {
        match standing {
            Standing::Unsound(trouble) if trouble.summary.contains(NEEDS_MIGRATION) => {
                self.migrate().await;
                // The schema was what it complained of; its next probe will show.
                Err(if self.migrated_just_now() {
                    Bar::Away
                } else {
                    Bar::Unsound(self.unmended(trouble))
                })
            }
            _ => open(standing),
        }?;
        self.bind().await?;
        self.buffer
            .settle_time()
            .await
            .map(drop)
            .map_err(Bar::Buffer)
    }

    fn migrated_just_now(&self) -> bool {
        self.migrated
            && self
                .tried_at
                .is_some_and(|tried_at| tried_at.elapsed() < PROBE_PATIENCE)
    }

    /// Applies pending migrations, once, where that is wanted. A store that is up lacks none: its probes see to that.
    async fn migrate(&mut self) {
        let recently = self
            .tried_at
            .is_some_and(|tried_at| tried_at.elapsed() < MIGRATION_PAUSE);
        if self.migrations == Migrations::Left || self.migrated || recently {
            return;
        }
        self.tried_at = Some(Instant::now());
        match apply_migrations(self.store.clone()).await {
            Ok(report) => {
                self.migrated = true;
                if !report.applied.is_empty() {
                    tracing::info!(applied = report.applied.join(", "), "database migrated");
                }
            }
            Err(error) => self.failure = Some(Trouble::from(&error)),
        }
    }

    /// The store's trouble, and that the migration which might be its cure has failed too.
    fn unmended(&self, trouble: &Trouble) -> Trouble {
        let Some(failure) = self.failure.as_ref().filter(|_| !self.migrated) else {
            return trouble.clone();
        };
        let both =
            |theirs: &str, ours: &str| format!("{theirs}; can't migrate the database: {ours}");
        Trouble {
            summary: both(&trouble.summary, &failure.summary),
            detail: both(&trouble.detail, &failure.detail),
        }
    }

    /// Makes sure that the buffer's items belong into this database.
    async fn bind(&mut self) -> Result<(), Bar> {
        let database = self
            .health
            .last_probe()
            .and_then(|probed| probed.database_id);
        if database.is_none() {
            return Ok(());
        }
        match self.buffer.bind_database(database).await {
            Ok(Binding::Foreign { waiting }) => Err(Bar::Foreign { waiting }),
            Ok(binding) => {
                if binding == Binding::Bound {
                    tracing::info!("buffer belongs to this database from now on");
                }
                Ok(())
            }
            Err(error) => Err(Bar::Buffer(error)),
        }
    }
}

/// Applies migrations on a thread of their own: the driver's migrator can't move between threads.
async fn apply_migrations(store: Postgres) -> Result<MigrationReport, StoreError> {
    let runtime = Handle::current();
    let applied = spawn_blocking(move || runtime.block_on(store.migrate())).await;
    applied.unwrap_or_else(|_| {
        Err(StoreError::new(
            FailureClass::Systemic,
            "the migrations were broken off",
        ))
    })
}
