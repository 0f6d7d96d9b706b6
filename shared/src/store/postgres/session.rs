//! Sessions with PostgreSQL: what one is told before it is used (how long things may take, and how to plan), and whose
//! it is.
//!
//! One of our own is told at its start, once. A pooler that hands its server connections out by transaction has none for
//! us: what is set for a session stays on a connection that others get next. There each call is a transaction that
//! begins with the same settings, for itself, and a statement has a name only where the pooler keeps its clients' apart.
//!
//! Whose it is shows at each connect. The settings travel with the startup packet, beside a mark that nobody else has;
//! the session that knows the mark was begun for that packet. Poolers refuse such a packet, or drop what they don't know.

use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection as _, Executor, Row as _};
use tokio::time::timeout;
use uuid::Uuid;

use super::connection::{Connection, Naming, Transaction};
use super::errors::{
    CHANGED_UNDER_STATEMENT, POOLER_FORGETS, Phase, classify, is_refused_by_pooler,
};
use super::tls;
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

/// The setting that carries the mark. PostgreSQL lets anybody set one with a dot in its name.
const MARK: &str = "holdfast.session";

/// What the name begins with by which a probe's session shows in `pg_stat_activity`; [`serves_others`] knows it.
///
/// [`serves_others`]: super::probe::serves_others
const PROBE: &str = "probe";

/// And a daemon's.
const DAEMON: &str = "syncd";

/// How to get a session.
pub(super) struct Sessions {
    options: PgConnectOptions,
    timeouts: Timeouts,
    /// What each transaction begins with where the session isn't ours.
    prologue: String,
    keeps_statements: bool,
    /// A table was changed under statements that a pooler keeps. It goes on using them on connections of its own, so
    /// nothing is prepared under a name there any more.
    names_are_stale: AtomicBool,
}

/// A session, as the pool keeps it.
pub(super) struct Session {
    connection: PgConnection,
    owner: Owner,
    naming: Naming,
}

/// Whose a session is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    /// Ours, from its start to its end.
    Us,
    /// A pooler's, who gives it to us for a transaction at a time.
    Pooler,
}

impl Sessions {
    pub(super) fn new(config: &PostgresConfig, timeouts: Timeouts) -> Self {
        let options = config.options.clone().disable_statement_logging();
        let name = application_name(&options);
        // How many digits of a number are written matters to text only, and values come in binary; poolers refuse it.
        let options = options.application_name(&name).extra_float_digits(None);
        Sessions {
            options,
            timeouts,
            prologue: prologue(timeouts),
            keeps_statements: config.statement_cache > 0,
            names_are_stale: AtomicBool::new(false),
        }
    }

    /// A session that shows as a probe's, which isn't to be taken for somebody's work.
    pub(super) async fn connect_for_probe(&self) -> Result<Session, StoreError> {
        self.connect_in_time(&rename(self.options.clone(), PROBE))
            .await
    }

    /// A connection for work that takes as long as it takes, such as building an index. Its session has to be ours, for
    /// it is told so for its whole life, and the lock that keeps a second run out is the session's.
    pub(super) async fn connect_unhurried(&self) -> Result<PgConnection, StoreError> {
        let (mut connection, owner) = self.in_time(self.open(&self.options)).await?;
        if owner == Owner::Pooler {
            return Err(StoreError::new(
                FailureClass::Systemic,
                "a pooler is in the way, which can't be migrated through: set DATABASE_URL, or DB_HOST and DB_PORT, \
                 to PostgreSQL's own address for syncd migrate",
            ));
        }
        // Notices tell of what is there already, which is as it should be.
        let settings = "SET statement_timeout = 0; SET lock_timeout = '60s'; SET enable_seqscan = on; \
            SET enable_hashjoin = on; SET enable_mergejoin = on; SET client_min_messages = warning";
        connection.execute(sqlx::raw_sql(settings)).await?;
        Ok(connection)
    }

    /// Does some work, in a transaction where the session isn't ours.
    pub(super) async fn run<T>(
        &self,
        session: &mut Session,
        work: impl AsyncFnOnce(&mut Connection<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let Session {
            connection,
            owner,
            naming,
        } = session;
        if *owner == Owner::Us {
            return work(&mut Connection::new(connection, *naming)).await;
        }
        let begun = connection.begin_with(AssertSqlSafe(self.prologue.clone()));
        // Nothing of the work has been asked for yet; but part of the first statement may have left a transaction open.
        let begun = begun
            .await
            .map_err(|error| classify(error, Phase::Connecting).with_connection_spoiled());
        let naming = if self.names_are_stale.load(Ordering::Relaxed) {
            Naming::Unnamed
        } else {
            *naming
        };
        let mut transaction = Transaction::new(begun?, naming);
        let ended = work(&mut transaction.connection()).await;
        match &ended {
            Ok(_) => transaction.commit().await?,
            Err(error) => {
                if error.sqlstate() == Some(CHANGED_UNDER_STATEMENT) {
                    self.names_are_stale.store(true, Ordering::Relaxed);
                }
                transaction.rollback().await?;
            }
        }
        ended
    }

    async fn connect_in_time(&self, options: &PgConnectOptions) -> Result<Session, StoreError> {
        self.in_time(self.begin_session(options)).await
    }

    async fn in_time<T>(
        &self,
        connecting: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let late = |_| StoreError::connection_late(Self::STORE);
        timeout(self.timeouts.connect, connecting)
            .await
            .map_err(late)?
    }

    async fn begin_session(&self, options: &PgConnectOptions) -> Result<Session, StoreError> {
        if !self.keeps_statements {
            return Ok(Session {
                connection: connect(options).await?,
                owner: Owner::Pooler,
                naming: Naming::Unnamed,
            });
        }
        let (mut connection, owner) = self.open(options).await?;
        if owner == Owner::Pooler {
            expect_names_kept_apart(&mut connection).await?;
        }
        Ok(Session {
            connection,
            owner,
            naming: Naming::Named,
        })
    }

    /// Connects, and finds out whose session it is. One of ours isn't a standby's, which would answer reads with what is
    /// perhaps long past.
    async fn open(&self, options: &PgConnectOptions) -> Result<(PgConnection, Owner), StoreError> {
        let mark = Uuid::new_v4().simple().to_string();
        let marked = options
            .clone()
            .options(settings(self.timeouts))
            .options([(MARK, &mark)]);
        let mut connection = match marked.connect().await {
            Err(error) if is_refused_by_pooler(&error) => {
                return Ok((connect(options).await?, Owner::Pooler));
            }
            other => other.map_err(|error| not_connected(options, error))?,
        };
        let look = format!(
            "SELECT coalesce(current_setting('{MARK}', true) = '{mark}', false), pg_is_in_recovery()"
        );
        let seen = connection.fetch_one(sqlx::raw_sql(AssertSqlSafe(look)));
        let seen = seen
            .await
            .and_then(|row| Ok((row.try_get(0)?, row.try_get(1)?)));
        match seen.map_err(|error| classify(error, Phase::Connecting))? {
            (false, _) => Ok((connection, Owner::Pooler)),
            (true, false) => Ok((connection, Owner::Us)),
            (true, true) => Err(StoreError::new(
                FailureClass::Unavailable,
                "postgres takes no writes: it is a standby",
            )),
        }
    }
}

impl Connector for Sessions {
    const STORE: &'static str = "postgres";

    type Connection = Session;

    async fn connect(&self) -> Result<Session, StoreError> {
        self.connect_in_time(&self.options).await
    }

    async fn ping(&self, session: &mut Session) -> bool {
        session.connection.ping().await.is_ok()
    }
}

async fn connect(options: &PgConnectOptions) -> Result<PgConnection, StoreError> {
    let connected = options.connect().await;
    connected.map_err(|error| not_connected(options, error))
}

/// What is missing over TCP can only be a file; by a socket it is the server's socket.
fn not_connected(options: &PgConnectOptions, error: sqlx::Error) -> StoreError {
    let by_socket = options.get_socket().is_some() || options.get_host().starts_with('/');
    match &error {
        sqlx::Error::Io(cause) if cause.kind() == ErrorKind::NotFound && !by_socket => {
            StoreError::new(FailureClass::Systemic, tls::FILE_MISSING).caused_by(error)
        }
        _ => classify(error, Phase::Connecting),
    }
}

/// Makes sure that a pooler gives names of its own to the statements its clients prepare. If the driver's reach the
/// server as they are, one client executes what another has prepared.
async fn expect_names_kept_apart(connection: &mut PgConnection) -> Result<(), StoreError> {
    let sound = async {
        let mut transaction = connection.begin().await?;
        let sees_names = sqlx::query_scalar!(
            "SELECT EXISTS (SELECT FROM pg_prepared_statements WHERE name LIKE 'sqlx\\_s\\_%') AS \"sees_names!\""
        );
        let sees_names = sees_names.fetch_one(&mut *transaction).await?;
        // Leaves nothing on the server's connection.
        transaction.clear_cached_statements().await?;
        transaction.commit().await?;
        Ok(!sees_names)
    };
    match sound.await {
        Ok(true) => Ok(()),
        Ok(false) => Err(StoreError::new(FailureClass::Systemic, POOLER_FORGETS)),
        Err(error) => Err(classify(error, Phase::Connecting)),
    }
}

/// Adds to the name of a daemon's sessions.
pub(super) fn rename_for_daemon(options: PgConnectOptions) -> PgConnectOptions {
    rename(options, DAEMON)
}

/// Adds to the name by which sessions show in `pg_stat_activity`. The server cuts it off after 63 bytes, so what is
/// added goes first where there is more.
fn rename(options: PgConnectOptions, role: &str) -> PgConnectOptions {
    let name = format!("{role}/{}", application_name(&options));
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

/// One round trip. A standby must not answer here either: in recovery no transaction gets an id, so that is asked for
/// there, and only there.
fn prologue(timeouts: Timeouts) -> String {
    let settings: String = settings(timeouts)
        .iter()
        .map(|(name, value)| format!("; SET LOCAL {name} = {value}"))
        .collect();
    format!("BEGIN{settings}; SELECT CASE WHEN pg_is_in_recovery() THEN pg_current_xact_id() END")
}
