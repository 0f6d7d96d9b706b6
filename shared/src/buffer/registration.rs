//! Becoming a writer of the file.

use redb::ReadableTable;

use super::error::BufferError;
use super::file::{Handle, OpenFile};
use super::schema::{
    COMMITS, COUNTERS_KEY, META, NODE_BASE_KEY, SCHEMA_KEY, SCHEMA_VERSION, encode,
};
use super::writer::counters_from;

/// Writers that may be alive at once; the commit marks of older ones are dropped.
const LIVING_WRITERS_MAX: u64 = 1_024;

/// What the file gave a process that registered.
#[derive(Debug, Clone, Copy)]
pub(super) struct Registration {
    /// The number its stamps carry: no other writer of this file has it, and other files begin elsewhere.
    pub(super) node_number: u64,
    /// The number its commits are marked with.
    pub(super) writer_number: u64,
}

/// Registers this process as a writer of the file, making the schema where the file is new.
pub(super) fn register(file: &OpenFile, handle: &Handle) -> Result<Registration, BufferError> {
    let txn = handle
        .database
        .begin_write()
        .map_err(|error| file.storage(error))?;
    let mut meta = txn.open_table(META).map_err(|error| file.storage(error))?;
    let stored = meta
        .get(COUNTERS_KEY)
        .map_err(|error| file.storage(error))?
        .map(|bytes| bytes.value().to_vec());
    let mut counters = counters_from(stored, file)?;
    counters.writers += 1;
    counters.next_seq = counters.next_seq.max(1);
    let known = meta
        .get(NODE_BASE_KEY)
        .map_err(|error| file.storage(error))?
        .map(|bytes| bytes.value().to_vec());
    let base = match known.as_deref().map(<[u8; 8]>::try_from) {
        Some(Ok(bytes)) => u64::from_le_bytes(bytes),
        _ => rand::random(),
    };
    for (key, value) in [(SCHEMA_KEY, SCHEMA_VERSION), (NODE_BASE_KEY, base)] {
        meta.insert(key, value.to_le_bytes().as_slice())
            .map_err(|error| file.storage(error))?;
    }
    meta.insert(COUNTERS_KEY, encode(&counters).as_slice())
        .map_err(|error| file.storage(error))?;
    drop(meta);
    let oldest_kept = counters.writers.saturating_sub(LIVING_WRITERS_MAX);
    let mut commits = txn
        .open_table(COMMITS)
        .map_err(|error| file.storage(error))?;
    commits
        .retain_in(..oldest_kept, |_, _| false)
        .map_err(|error| file.storage(error))?;
    drop(commits);
    txn.commit().map_err(|error| file.storage(error))?;
    Ok(Registration {
        node_number: base.wrapping_add(counters.writers),
        writer_number: counters.writers,
    })
}
