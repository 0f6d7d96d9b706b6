//! The health probe: a real write, on a connection of its own, so that it neither waits for a busy pool nor finds
//! well what can only be read.

use std::time::Duration;

use tokio::time::Instant;

use super::connection::Connection;
use super::migrate::newest_version;
use super::session::{Session, Sessions};
use crate::clock::{Distance, Reading};
use crate::domain::Timestamp;
use crate::health::Probed;
use crate::seeded::Bug;
use crate::store::pool::Reserved;
use crate::store::{FailureClass, StoreError};

/// Rows that probes write. Processes choose one at random; should two choose the same, they wait for each other for
/// the length of a commit.
const SLOTS: i16 = 1024;

/// The probe of one process.
pub(super) struct WriteProbe {
    session: Reserved<Session>,
    slot: i16,
}

impl WriteProbe {
    /// Not connected.
    pub(super) fn new() -> Self {
        WriteProbe {
            session: Reserved::new(),
            slot: rand::random_range(0..SLOTS),
        }
    }

    /// Writes. A connection that fails, or is given up on, is not used again.
    pub(super) async fn run(&self, sessions: &Sessions) -> Result<Probed, StoreError> {
        let mut session = match self.session.take() {
            Some(session) => session,
            None => connect(sessions).await?,
        };
        let slot = self.slot;
        let probed = sessions
            .run(&mut session, async |connection| {
                write(connection, slot).await
            })
            .await?;
        self.session.keep(session);
        Ok(probed)
    }
}

async fn connect(sessions: &Sessions) -> Result<Session, StoreError> {
    let mut session = sessions.connect_for_probe().await?;
    sessions
        .run(&mut session, async |connection| {
            check_schema(connection).await
        })
        .await?;
    Ok(session)
}

/// A schema older than this binary would fail each write, one by one.
async fn check_schema(connection: &mut Connection<'_>) -> Result<(), StoreError> {
    let version = sqlx::query_scalar!("SELECT max(version) FROM _sqlx_migrations WHERE success");
    let version = version.fetch_one(connection).await?.unwrap_or(0);
    if version < newest_version() {
        let summary = "the schema is older than this program: run syncd migrate";
        return Err(StoreError::new(FailureClass::Systemic, summary));
    }
    Ok(())
}

async fn write(connection: &mut Connection<'_>, slot: i16) -> Result<Probed, StoreError> {
    let started = Instant::now();
    let clock = clock_distance(connection).await?;
    if Bug::ReadOnlyProbe.is_on() {
        return Ok(Probed {
            latency: started.elapsed(),
            clock: Some(clock),
            database_id: None,
        });
    }
    let database_id = sqlx::query_scalar!(
        "INSERT INTO holdfast_probes (slot, probed_at) VALUES ($1, clock_timestamp()) \
         ON CONFLICT (slot) DO UPDATE SET probed_at = EXCLUDED.probed_at \
         RETURNING (SELECT id FROM holdfast_database)",
        slot,
    )
    .fetch_one(connection)
    .await?;
    Ok(Probed {
        latency: started.elapsed(),
        clock: Some(clock),
        database_id,
    })
}

/// How far the database's clock is ahead: its time against ours in the middle of the round trip, as NTP does. Asked
/// apart from the write, whose commit waits for a disk.
async fn clock_distance(connection: &mut Connection<'_>) -> Result<Distance, StoreError> {
    let asked = Reading::take();
    let theirs = sqlx::query_scalar!("SELECT clock_timestamp() AS \"now!\"")
        .fetch_one(connection)
        .await?;
    let round_trip_us = Reading::take().since_boot_us() - asked.since_boot_us();
    let when_asked = Timestamp::from_micros(theirs.timestamp_micros() - round_trip_us / 2);
    Ok(Distance::between(&asked, when_asked))
}

/// Whether sessions that are neither daemons' nor probes' have begun something on this database within that time. The
/// server shows a role what sessions of the same role do, and a monitoring role all. A pooler's connection goes by the
/// name of the client it last served; where a pooler lets no name through, this session's own shows that.
pub(super) async fn serves_others(
    connection: &mut Connection<'_>,
    within: Duration,
) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar!(
        "SELECT current_setting('application_name') LIKE 'syncd/%' AND EXISTS ( \
             SELECT FROM pg_stat_activity \
             WHERE datname = current_database() AND backend_type = 'client backend' \
             AND application_name NOT LIKE 'syncd/%' AND application_name NOT LIKE 'probe/%' \
             AND query_start > clock_timestamp() - make_interval(secs => $1) \
         ) AS \"others!\"",
        within.as_secs_f64(),
    )
    .fetch_one(connection)
    .await
}
