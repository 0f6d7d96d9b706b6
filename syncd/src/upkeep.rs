//! What keeps the buffer's files in order while the daemon runs: damaged files that were set aside are salvaged, the
//! ballast is made again when there is room, and a file that has been drained gives its space back.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use holdfast_shared::buffer::{
    Buffer, BufferError, Compaction, Counters, Manner, Reader, Reading, SalvageReport,
    mark_salvaged, set_aside_files,
};
use tokio::sync::watch;
use tokio::task::spawn_blocking;

use crate::metrics;
use crate::signals::told_to_stop;

/// How often it looks: bounds how long after a full disk has room again new writes are still refused.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// How long nothing must have been written before the file is compacted, which holds up writers: three looks.
const QUIET: Duration = Duration::from_secs(3);

/// How much the file must have grown since it was compacted to be compacted again.
const GROWTH_BYTES: u64 = 8 * 1024 * 1024;

/// The upkeep of a buffer.
pub struct Upkeep {
    buffer: Buffer,
    manner: Manner,
    /// Files that can't be salvaged, which is told once.
    hopeless: HashSet<PathBuf>,
    /// Whether the last look found the ballast gone.
    without_ballast: bool,
    last: Option<Counters>,
    quiet_since: Instant,
    /// Size of the file after it was compacted.
    compacted_bytes: u64,
}

impl Upkeep {
    /// Of this buffer, which keeps items in this manner.
    pub fn new(buffer: Buffer, manner: Manner) -> Self {
        Upkeep {
            buffer,
            manner,
            hopeless: HashSet::new(),
            without_ballast: false,
            last: None,
            quiet_since: Instant::now(),
            compacted_bytes: 0,
        }
    }

    /// Looks each second until it is told to stop.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let work = async {
            loop {
                self.look().await;
                tokio::time::sleep(LOOK_INTERVAL).await;
            }
        };
        tokio::select! {
            () = work => {}
            () = told_to_stop(&mut stop) => {}
        }
    }

    /// Does all that is due. What fails is due again at the next look.
    async fn look(&mut self) {
        self.salvage_all().await;
        if let Err(error) = self.restore_ballast().await {
            tracing::warn!(%error, "can't make the buffer's ballast again, and tries again");
        }
        if let Err(error) = self.give_space_back().await {
            tracing::warn!(%error, "can't make the buffer file smaller, and tries again");
        }
    }

    /// Takes what damaged files still hold into the buffer.
    async fn salvage_all(&mut self) {
        let path = self.buffer.path().to_owned();
        let files = match set_aside_files(&path) {
            Ok(files) => files,
            Err(error) => {
                tracing::warn!(%error, "can't look for damaged buffer files");
                return;
            }
        };
        for file in files {
            if self.hopeless.contains(&file) {
                continue;
            }
            match self.salvage(&file).await {
                Ok((report, reading)) => tell(&path, &file, &report, reading),
                Err(error) if is_hopeless(&error) => {
                    tracing::error!(file = %file.display(), %error, "damaged buffer file is not salvaged");
                    self.hopeless.insert(file);
                }
                Err(error) => {
                    tracing::warn!(file = %file.display(), %error, "can't salvage a damaged buffer file, and tries again");
                }
            }
        }
    }

    async fn salvage(&self, file: &Path) -> Result<(SalvageReport, Reading), BufferError> {
        let (file, manner) = (file.to_owned(), self.manner);
        self.blocking(move |buffer| buffer.salvage(&file, manner))
            .await
    }

    async fn restore_ballast(&mut self) -> Result<(), BufferError> {
        let is_there = self.blocking(Buffer::restore_ballast).await?;
        if is_there && self.without_ballast {
            tracing::info!("disk of the buffer has room again");
        }
        self.without_ballast = !is_there;
        Ok(())
    }

    /// Compacts the file when nobody writes; on a full disk at once, since nobody may.
    async fn give_space_back(&mut self) -> Result<(), BufferError> {
        let counters = self.buffer.read(Reader::counters).await?;
        if self.last.replace(counters) != Some(counters) {
            self.quiet_since = Instant::now();
        }
        let is_quiet = self.without_ballast || self.quiet_since.elapsed() >= QUIET;
        if !is_quiet || self.buffer.size_bytes()? < self.compacted_bytes + GROWTH_BYTES {
            return Ok(());
        }
        let began = Instant::now();
        let Some(done) = self.blocking(Buffer::compact).await? else {
            return Ok(());
        };
        let Compaction {
            bytes_before,
            bytes_after,
        } = done;
        self.compacted_bytes = bytes_after;
        let took_ms = began.elapsed().as_millis();
        tracing::info!(
            bytes_before,
            bytes_after,
            took_ms,
            "buffer file made smaller"
        );
        Ok(())
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Buffer) -> Result<T, BufferError> + Send + 'static,
    ) -> Result<T, BufferError> {
        let buffer = self.buffer.clone();
        let done = spawn_blocking(move || work(&buffer)).await;
        done.unwrap_or(Err(BufferError::Closed))
    }
}

/// Whether trying again changes nothing.
fn is_hopeless(error: &BufferError) -> bool {
    matches!(error, BufferError::Foreign { .. })
}

/// Says what came of a damaged file, and marks it as done.
fn tell(buffer: &Path, file: &Path, report: &SalvageReport, reading: Reading) {
    metrics::count_salvaged(report);
    let marked = match mark_salvaged(buffer, file) {
        Ok(marked) => marked,
        Err(error) => {
            tracing::error!(file = %file.display(), %error, "can't rename a salvaged file: it is salvaged again");
            return;
        }
    };
    let SalvageReport {
        items,
        already_there,
        letters,
        damaged,
        ..
    } = *report;
    let unreadable = report
        .unreadable
        .map_or_else(|| "unknown".to_owned(), |count| count.to_string());
    tracing::error!(
        file = %marked.display(), items, already_there, letters, damaged, unreadable, ?reading,
        "damaged buffer file salvaged: keep it until the items it lost are made up for"
    );
}
