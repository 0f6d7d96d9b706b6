//! Opening the buffer for a command: to read beside whoever has it, or to act on it; and the daemon's lock on it.

use std::io;
use std::path::Path;

use holdfast_shared::buffer::{Buffer, DaemonLock, Reader};
use holdfast_shared::config::Config;
use tokio::task::spawn_blocking;

use crate::lock::{self, Taken};
use crate::{Failure, signals};

/// A reader of the configured buffer; `None` where there is no file yet.
///
/// # Errors
/// When the file can't be opened, or it can't be told whether there is one.
pub fn reader(config: &Config) -> Result<Option<Reader>, Failure> {
    Ok(Reader::open(&config.buffer.path)?)
}

/// Whether there is a buffer file.
///
/// # Errors
/// When that can't be told: somebody else's directory.
pub fn is_there(path: &Path) -> Result<bool, Failure> {
    path.try_exists().map_err(|error| {
        Failure::io(format!(
            "can't use the buffer file {}: {error}",
            path.display()
        ))
    })
}

/// The configured buffer, open for writing. A command never makes a new one.
///
/// # Errors
/// When there is none or it can't be opened.
pub async fn buffer(config: &Config) -> Result<Buffer, Failure> {
    let settings = config.buffer.clone();
    if !is_there(&settings.path)? {
        return Err(no_file(&settings.path));
    }
    let opened = spawn_blocking(move || Buffer::open(&settings)).await;
    let opened = opened
        .map_err(|panic| Failure::internal(format!("opening the buffer panicked: {panic}")))?;
    Ok(opened?)
}

/// That there is nothing where the buffer is said to be: mostly a shell without the settings of the service.
pub fn no_file(path: &Path) -> Failure {
    Failure::io(format!(
        "there is no buffer file at {}: set BUFFER_PATH as the service has it",
        path.display()
    ))
}

/// Makes this process one that may hold the daemon's lock: whoever does is woken now and then. Before [`lock`].
///
/// # Errors
/// When the handler can't be installed.
pub fn prepare_for_lock() -> Result<(), Failure> {
    signals::ignore_wakes()
        .map_err(|error| Failure::internal(format!("can't handle signals: {error}")))
}

/// Asks for the daemon's lock.
///
/// # Errors
/// When the lock file can't be made or locked.
pub fn lock(config: &Config) -> Result<Taken, Failure> {
    let path = &config.buffer.path;
    lock::take(path).map_err(|error| unusable_lock(path, &error))
}

/// That a buffer's lock file can't be used, and why.
pub fn unusable_lock(buffer: &Path, error: &io::Error) -> Failure {
    Failure::io(format!(
        "can't use the lock file {}: {error}",
        DaemonLock::path(buffer).display()
    ))
}
