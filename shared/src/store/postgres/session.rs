//! What a session with PostgreSQL is told before it is used: how long things may take, and how to plan.

use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, Row as _};
use tokio::time::timeout;

use super::errors::{Phase, classify};
use crate::config::PostgresConfig;
use crate::store::pool::Connector;
use crate::store::{FailureClass, StoreError};

/// All statements reach rows by key. Their plans are cached, perhaps while the tables are still empty; and a scan or
/// a hash join, which is the better plan for ten rows, would later read millions for each batch.
const PLAN_SETTINGS: [(&str, &str); 4] = [
    ("enable_seqscan", "off"),
    ("enable_hashjoin", "off"),
    ("enable_mergejoin", "off"),
    ("jit", "off"),
];

/// How long things may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// One whole call, waiting for a connection included; then the caller gets an error, whatever the server does.
    pub call: Duration,
    /// One statement, after which the server gives up: below `call`, so that it doesn't go on with what nobody awaits.
    pub statement: Duration,
    /// Waiting for another transaction's lock, after which the server gives up: below `statement`, so that it can
    /// say that this was it.
    pub lock: Duration,
    /// Making a connection.
    pub connect: Duration,
}

impl Timeouts {
    /// For a client who waits this long.
    pub fn direct(store_timeout: Duration) -> Self {
        Timeouts {
            call: store_timeout,
            statement: store_timeout * 9 / 10,
            lock: store_timeout * 8 / 10,
            connect: store_timeout * 2 / 3,
        }
    }

    /// For batches: a statement of 2000 rows takes tens of milliseconds, and one row that somebody else keeps locked
    /// must not hold up the others.
    pub fn drain() -> Self {
        Timeouts {
            call: Duration::from_secs(15),
            statement: Duration::from_secs(10),
            lock: Duration::from_millis(250),
            connect: Duration::from_secs(2),
        }
    }
}

/// How to get a session.
pub(super) struct Sessions {
    options: PgConnectOptions,
    timeouts: Timeouts,
    /// Behind a pooler that hands its server connections out per transaction, nothing can be set or prepared for a
    /// whole session; then each call is a transaction that begins with this.
    prologue: Option<String>,
}

impl Sessions {
    pub(super) fn new(config: &PostgresConfig, timeouts: Timeouts) -> Self {
        let options = config.options.clone().disable_statement_logging();
        let name = application_name(&options);
        let options = options.application_name(&name);
        let settings = settings(timeouts);
        if config.statement_cache > 0 {
            return Sessions {
                options: options.options(settings),
                timeouts,
                prologue: None,
            };
        }
        let prologue = Some(prologue(&settings));
        Sessions {
            options: options.extra_float_digits(None),
            timeouts,
            prologue,
        }
    }

    /// A session for work that takes as long as it takes, such as building an index.
    pub(super) async fn connect_unhurried(&self) -> Result<PgConnection, StoreError> {
        let mut connection = self.connect().await?;
        let settings = "SET statement_timeout = 0; SET lock_timeout = '60s'; SET enable_seqscan = on; \
            SET enable_hashjoin = on; SET enable_mergejoin = on";
        connection.execute(sqlx::raw_sql(settings)).await?;
        Ok(connection)
    }

    /// Does some work, in a transaction where a pooler needs that.
    pub(super) async fn run<T>(
        &self,
        connection: &mut PgConnection,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let Some(prologue) = &self.prologue else {
            return work(connection).await;
        };
        let mut transaction = connection
            .begin_with(AssertSqlSafe(prologue.clone()))
            .await?;
        let ended = work(&mut transaction).await;
        match &ended {
            Ok(_) => transaction.commit().await?,
            Err(_) => transaction.rollback().await?,
        }
        ended
    }
}

impl Connector for Sessions {
    const STORE: &'static str = "postgres";

    type Connection = PgConnection;

    /// A session with a server that isn't a standby, which would answer reads with what is perhaps long past.
    async fn connect(&self) -> Result<PgConnection, StoreError> {
        let attempt = async {
            let mut connection = self.options.connect().await?;
            let answer = connection
                .fetch_one(sqlx::raw_sql("SELECT pg_is_in_recovery()"))
                .await?;
            Ok((connection, answer.try_get(0)?))
        };
        let late = |_| StoreError::connection_late(Self::STORE);
        let connected = timeout(self.timeouts.connect, attempt)
            .await
            .map_err(late)?;
        match connected.map_err(|error| classify(error, Phase::Connecting))? {
            (connection, false) => Ok(connection),
            (_, true) => Err(StoreError::new(
                FailureClass::Unavailable,
                "postgres takes no writes: it is a standby",
            )),
        }
    }

    async fn ping(&self, connection: &mut PgConnection) -> bool {
        connection.ping().await.is_ok()
    }
}

/// Adds to the name by which sessions show in `pg_stat_activity`. The server cuts it off after 63 bytes, so what is
/// added goes first where there is more.
pub(super) fn rename(options: PgConnectOptions, program: &str) -> PgConnectOptions {
    let name = format!("{program}/{}", application_name(&options));
    options.application_name(&name)
}

fn application_name(options: &PgConnectOptions) -> String {
    let given = options.get_application_name();
    given.unwrap_or("holdfast").to_owned()
}

fn settings(timeouts: Timeouts) -> Vec<(&'static str, String)> {
    let milliseconds = |time: Duration| time.as_millis().max(1).to_string();
    let limits = [
        ("statement_timeout", milliseconds(timeouts.statement)),
        ("lock_timeout", milliseconds(timeouts.lock)),
        // Of a client that vanished in the middle of a transaction, the server keeps no locks for longer.
        (
            "idle_in_transaction_session_timeout",
            milliseconds(timeouts.call),
        ),
    ];
    limits
        .into_iter()
        .chain(PLAN_SETTINGS.map(|(name, value)| (name, value.to_owned())))
        .collect()
}

/// One round trip. First go the statements that others left on the server's connection, under names that this call
/// will use too.
fn prologue(settings: &[(&'static str, String)]) -> String {
    let settings: String = settings
        .iter()
        .map(|(name, value)| format!("; SET LOCAL {name} = {value}"))
        .collect();
    format!("BEGIN; DEALLOCATE ALL{settings}")
}
