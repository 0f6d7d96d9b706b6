//! `syncd migrate` and `syncd adopt`: what is done to, or with, the database as a whole.

use std::time::Duration;

use holdfast_shared::buffer::{Lane, Reader};
use holdfast_shared::config::{Config, PostgresConfig, exit};
use holdfast_shared::health::Probe;
use holdfast_shared::store::postgres::Postgres;
use uuid::Uuid;

use super::run::held;
use super::{output, place};
use crate::lock::Taken;
use crate::{Failure, daemon};

/// How long a database is given to say which it is, where that is good to know but not needed.
const PROBE_DEADLINE: Duration = Duration::from_secs(2);

/// Brings the schema up to date.
///
/// # Errors
/// When no database is configured, it can't be reached, or a migration fails.
pub async fn migrate() -> Result<u8, Failure> {
    let config = Config::load()?;
    let postgres = connect(config.postgres.as_ref().ok_or_else(no_database)?);
    let report = postgres.migrate().await?;
    for name in &report.applied {
        output::print(&format!("applied {name}\n"))?;
    }
    let (applied, already) = (report.applied.len(), report.already);
    output::print(&format!(
        "the schema is up to date: {applied} applied now, {already} before\n"
    ))?;
    Ok(exit::OK)
}

/// Makes the buffer belong to the configured database, or to none.
///
/// # Errors
/// When a daemon runs, the database can't be reached, or the buffer can't be written.
pub async fn adopt() -> Result<u8, Failure> {
    let config = Config::load()?;
    if !place::is_there(&config.buffer.path)? {
        return Err(place::no_file(&config.buffer.path));
    }
    place::prepare_for_lock()?;
    let lock = match place::lock(&config)? {
        Taken::Lock(lock) => lock,
        Taken::Held { by } => {
            return Err(Failure::try_later(format!(
                "{}: stop it first",
                held(&config, by)
            )));
        }
    };
    let database = identify(&config).await?;
    let buffer = place::buffer(&config).await?;
    buffer.adopt(database).await?;
    let waiting = buffer
        .read(Reader::snapshot)
        .await?
        .waiting_in(Lane::Postgres);
    daemon::close(buffer, daemon::CLOSE_DEADLINE).await;
    drop(lock);
    let whose = if database.is_some() {
        "to the configured database"
    } else {
        "to no database"
    };
    output::print(&format!(
        "the buffer, with {waiting} items waiting, belongs {whose} from now on\n"
    ))?;
    Ok(exit::OK)
}

async fn identify(config: &Config) -> Result<Option<Uuid>, Failure> {
    let Some(postgres) = &config.postgres else {
        return Ok(None);
    };
    let probed = connect(postgres).probe().await?;
    match probed.database_id {
        Some(id) => Ok(Some(id)),
        None => Err(Failure::config(
            "the database doesn't say which it is: run syncd migrate",
        )),
    }
}

/// Which database is configured, if one is and it answers.
pub async fn configured_database(config: &Config) -> Option<Uuid> {
    let probing = connect(config.postgres.as_ref()?);
    let probed = tokio::time::timeout(PROBE_DEADLINE, probing.probe()).await;
    probed.ok()?.ok()?.database_id
}

fn connect(config: &PostgresConfig) -> Postgres {
    Postgres::for_daemon(config)
}

fn no_database() -> Failure {
    Failure::config("no database is configured: set DATABASE_URL, or DB_HOST and its companions")
}
