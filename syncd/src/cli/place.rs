//! Opening the buffer for a command: to read beside whoever has it, or to act on it.

use holdfast_shared::buffer::{Buffer, Reader};
use holdfast_shared::config::Config;
use tokio::task::spawn_blocking;

use crate::Failure;

/// A reader of the configured buffer; `None` where there is no file yet.
///
/// # Errors
/// When the file can't be opened.
pub fn reader(config: &Config) -> Result<Option<Reader>, Failure> {
    Ok(Reader::open(&config.buffer.path)?)
}

/// The configured buffer, open for writing. A command never makes a new one.
///
/// # Errors
/// When there is none or it can't be opened.
pub async fn buffer(config: &Config) -> Result<Buffer, Failure> {
    let settings = config.buffer.clone();
    if !settings.path.exists() {
        return Err(Failure::io(format!(
            "there is no buffer file {}",
            settings.path.display()
        )));
    }
    let opened = spawn_blocking(move || Buffer::open(&settings)).await;
    let opened = opened
        .map_err(|panic| Failure::internal(format!("opening the buffer panicked: {panic}")))?;
    Ok(opened?)
}
