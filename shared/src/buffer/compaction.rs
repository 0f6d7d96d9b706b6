//! Giving space back: pages freed by a drain are reused but stay in the file, which makes each commit dearer (12 KiB
//! written at a file of 8 MiB, 264 at 2 GiB) and, on a disk that was full, leaves no room for the ballast.
//!
//! Compacting moves what is left and cuts the file off. It holds up every writer for as long as it takes, 1.9 s when a
//! million items are left, so it is done only when hardly anything is: within [`KEPT_MAX`] it takes tens of
//! milliseconds.

use std::path::Path;

use redb::CompactionError;

use super::error::BufferError;
use super::file::{Handle, guard_path};
use super::lock::Turn;
use super::reader::Snapshot;

/// Most items and dead letters there may be for the file to be compacted.
const KEPT_MAX: u64 = 1_000;

/// A smaller file isn't worth it: ten thousand finished records alone take a few MiB.
const SIZE_MIN: u64 = 16 * 1024 * 1024;

/// What compacting did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compaction {
    /// Size of the file before.
    pub bytes_before: u64,
    /// Size of the file after.
    pub bytes_after: u64,
}

/// Whether a file in this state would get much smaller at little cost.
pub(super) fn pays(snapshot: &Snapshot) -> bool {
    let kept = snapshot.counters.pending + snapshot.counters.dead;
    kept <= KEPT_MAX && snapshot.size_bytes >= SIZE_MIN
}

/// Compacts the file, by an opening of its own. `None` when a reader is at it right now.
pub(super) fn compact(path: &Path, _turn: &Turn<'_>) -> Result<Option<Compaction>, BufferError> {
    let bytes_before = length(path)?;
    let mut handle = Handle::open(path, 0)?;
    let compacted = guard_path(path, || match handle.database.compact() {
        Ok(_) => Ok(true),
        Err(CompactionError::TransactionInProgress) => Ok(false),
        Err(error) => Err(BufferError::storage(path, error)),
    })?;
    drop(handle);
    let bytes_after = length(path)?;
    Ok(compacted.then_some(Compaction {
        bytes_before,
        bytes_after,
    }))
}

fn length(path: &Path) -> Result<u64, BufferError> {
    let metadata = path
        .metadata()
        .map_err(|error| BufferError::io(path, &error))?;
    Ok(metadata.len())
}
