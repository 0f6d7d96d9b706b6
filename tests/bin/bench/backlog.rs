//! A backlog of any size, made in seconds: accepted by the buffer itself, many at a time, so that each of its durable
//! commits takes hundreds.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures_util::{StreamExt, TryStreamExt, stream};
use holdfast_shared::buffer::{Buffer, Reader, Slot};
use holdfast_shared::config::BufferConfig;

use crate::sample::Sample;

/// Items on their way at once: two of the writer's largest groups, so that one fills while the other is written.
const AT_ONCE: usize = 1_024;

/// Longer than any measurement.
const RETENTION: Duration = Duration::from_secs(24 * 60 * 60);

/// Puts `items` creations of tasks into a new buffer file, and closes it.
///
/// # Errors
/// When the buffer refuses one.
pub async fn fill(path: &Path, items: u64) -> Result<()> {
    let began = Instant::now();
    let config = BufferConfig {
        path: path.to_owned(),
        max_items: items,
        retention: RETENTION,
    };
    let opened = tokio::task::spawn_blocking(move || Buffer::open(&config)).await?;
    let buffer = opened.context("cannot open a buffer to fill")?;
    stream::iter(0..items)
        .map(|number| {
            let operation = Sample::new(number).operation(buffer.clock().now());
            buffer.append(operation, None, Slot::Ordinary)
        })
        .buffer_unordered(AT_ONCE)
        .try_for_each(|_| async { Ok(()) })
        .await
        .context("cannot fill a buffer")?;
    tokio::task::spawn_blocking(move || buffer.close()).await?;
    ensure!(
        pending(path)? == items,
        "the buffer holds {} items instead of {items}",
        pending(path)?
    );
    let elapsed = began.elapsed().as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "fewer than 2^52 items")]
    let rate = items as f64 / elapsed;
    eprintln!("filled a buffer with {items} items in {elapsed:.1} s ({rate:.0}/s)");
    Ok(())
}

/// Items waiting in a buffer file.
///
/// # Errors
/// When it can't be read.
pub fn pending(path: &Path) -> Result<u64> {
    open_to_read(path)?
        .counters()
        .map(|counters| counters.pending)
        .context("cannot read a buffer")
}

/// Opens a buffer file beside whoever writes it.
///
/// # Errors
/// When it isn't there or can't be opened.
pub fn open_to_read(path: &Path) -> Result<Reader> {
    let opened = Reader::open(path).context("cannot open a buffer to read")?;
    opened.with_context(|| format!("there is no buffer at {}", path.display()))
}

/// The size of the file.
///
/// # Errors
/// When it isn't there.
pub fn file_bytes(path: &Path) -> Result<u64> {
    let metadata = path
        .metadata()
        .with_context(|| format!("there is no buffer at {}", path.display()))?;
    Ok(metadata.len())
}
