//! `syncd run`: the daemon.

use holdfast_shared::buffer::DaemonLock;
use holdfast_shared::config::{Config, exit};
use holdfast_shared::telemetry;

use super::arguments::RunArguments;
use super::place;
use crate::Failure;
use crate::daemon;
use crate::lock::{self, Taken};
use crate::signals::Orders;
use crate::systemd;

/// Runs the daemon to its end.
///
/// # Errors
/// When the settings have faults or another syncd drains this buffer. How the daemon itself ends is in the log and in
/// the exit code.
pub async fn run(arguments: RunArguments) -> Result<u8, Failure> {
    let config = Config::load()?;
    let telemetry = telemetry::init("syncd", &config.log)
        .map_err(|error| Failure::config(with_source(&error)))?;
    let upkeep = telemetry.spawn_upkeep();
    let orders = Orders::by_signals()
        .map_err(|error| Failure::internal(format!("can't handle signals: {error}")))?;
    let Some(lock) = take_lock(&config, arguments, &orders).await? else {
        return Ok(exit::OK);
    };
    let metrics = telemetry.metrics();
    let outcome = daemon::run(config, lock, orders, Box::new(move || metrics.render())).await;
    upkeep.abort();
    Ok(outcome.map_or_else(|failure| log_end(&failure), |()| exit::OK))
}

/// From here on the log is where people look, not standard error.
fn log_end(failure: &Failure) -> u8 {
    tracing::error!(error = %failure, exit_code = failure.code, "syncd ends");
    systemd::notify_stopping(&failure.to_string());
    failure.code
}

/// Takes the lock; `None` when a standby was told to leave.
async fn take_lock(
    config: &Config,
    arguments: RunArguments,
    orders: &Orders,
) -> Result<Option<DaemonLock>, Failure> {
    let path = &config.buffer.path;
    match place::lock(config)? {
        Taken::Lock(lock) => Ok(Some(lock)),
        Taken::Held { .. } if arguments.standby => {
            tracing::info!("another syncd drains this buffer, standing by");
            systemd::notify_ready("standby: another syncd drains this buffer");
            let waited = lock::wait(path, orders.stop.clone()).await;
            waited.map_err(|error| place::unusable_lock(path, &error))
        }
        Taken::Held { by } => Err(Failure::try_later(held(config, by))),
    }
}

/// Who has the lock.
pub fn held(config: &Config, by: Option<i32>) -> String {
    let file = DaemonLock::path(&config.buffer.path);
    let by = by.map_or_else(|| "unknown".to_owned(), |pid| pid.to_string());
    format!("another syncd holds {} (pid {by})", file.display())
}

fn with_source(error: &dyn std::error::Error) -> String {
    crate::drain::with_causes(error)
}
