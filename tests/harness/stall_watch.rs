//! When the machine stood still, for those who judge others by time.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

/// Between two writes.
const GAP: Duration = Duration::from_millis(20);

/// What takes less is no stall: a write and the gap take from twenty-one to forty milliseconds with nobody in their way.
const USUAL: Duration = Duration::from_millis(100);

/// As much as a small commit writes.
const BLOCK: [u8; 4096] = [0; 4096];

/// So many blocks the file grows to before it begins anew. A file that grows needs the file system's journal, which may
/// stall where writing over what is there doesn't.
const BLOCKS: usize = 256;

/// A store that has stood still for this long may be taken for away: a probe is given up on after a second.
pub const OUTAGE: Duration = Duration::from_secs(1);

/// Writes and syncs a small file beside the tests' temporary directories, and
/// sleeps a moment, again and again until it is stopped or dropped. On a machine
/// that others use, a disk may stall for seconds, and processors may be taken
/// away: then this is late, and so is everything else.
#[derive(Debug)]
pub struct StallWatch {
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<io::Result<Vec<Stall>>>>,
}

/// A time in which the disk or the processors made everybody wait.
#[derive(Debug, Clone, Copy)]
pub struct Stall {
    /// From when.
    pub from: Instant,
    /// Until when.
    pub to: Instant,
}

impl Stall {
    /// How long.
    pub fn length(&self) -> Duration {
        self.to - self.from
    }
}

impl StallWatch {
    /// Begins to watch.
    ///
    /// # Errors
    /// When no temporary file or no thread can be made.
    pub fn start() -> Result<Self> {
        let file = tempfile::tempfile().context("cannot create a temporary file")?;
        let stopping = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&stopping);
        let thread = thread::Builder::new()
            .name(String::from("stall-watch"))
            .spawn(move || watch(file, &stop))
            .context("cannot start a thread")?;
        Ok(Self {
            stopping,
            thread: Some(thread),
        })
    }

    /// Every stall, in order; none if each round took less than a tenth of a second.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn stop(mut self) -> Result<Vec<Stall>> {
        self.stopping.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("it was stopped before")?;
        let stalls = thread.join().map_err(|_| anyhow!("the watch has a bug"))?;
        stalls.context("the machine can't be watched")
    }

    /// For how long the machine stood still in all; zero if it never did.
    ///
    /// # Errors
    /// As [`StallWatch::stop`].
    pub fn total(self) -> Result<Duration> {
        Ok(self.stop()?.iter().map(Stall::length).sum())
    }
}

impl Drop for StallWatch {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
    }
}

fn watch(mut file: File, stopping: &AtomicBool) -> io::Result<Vec<Stall>> {
    let mut stalls = Vec::new();
    for block in (0..BLOCKS).cycle() {
        if stopping.load(Ordering::Relaxed) {
            break;
        }
        let from = Instant::now();
        if block == 0 {
            file.set_len(0)?;
            file.rewind()?;
        }
        file.write_all(&BLOCK)?;
        file.sync_data()?;
        thread::sleep(GAP);
        let to = Instant::now();
        if to - from > USUAL {
            stalls.push(Stall { from, to });
        }
    }
    Ok(stalls)
}
