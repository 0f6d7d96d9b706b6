//! The buffer: one redb file that every process of a node shares, where a write goes that its store can't take now.
//!
//! # What it promises
//! An operation it has accepted is on disk (fsynced) before anybody is told, survives the death of any process at any
//! instant and a power cut, keeps its place among the operations of its resource, and leaves the file only as applied,
//! superseded, dead and archived, or discarded by an operator.
//!
//! # How
//! `api`, `syncd` and the command line each open the file once (redb's `MultiWriter` mode) and write through one
//! thread with group commit (`writer.rs`), taking turns (`lock.rs`). The tables and the encoding are in `schema.rs`.
//! What must be found by resource or user is an index in memory that follows the file (`index.rs`).
//!
//! # Bounds
//! `BUFFER_MAX_SIZE` items wait at most, and a few hundred more where refusing would lose a write; 10 000 finished
//! records; dead letters until `BUFFER_RETENTION_HOURS`, then the archive.
//!
//! This module knows nothing of the stores, and none of its transactions is held across network I/O.

mod ballast;
mod batch;
mod binding;
mod carve;
mod compaction;
mod epoch;
mod error;
mod fate;
mod file;
mod index;
mod inheritance;
mod keys;
mod letters;
mod lock;
mod overlay;
mod queue;
mod reader;
mod registration;
mod replacement;
mod retention;
mod salvage;
mod schema;
mod settlement;
mod shared;
mod snap;
#[cfg(feature = "seeded-bugs")]
mod unsynced;
mod verification;
mod wreck;
mod writer;

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;

pub use batch::{Batch, Passed, Skip};
pub use binding::Binding;
pub use compaction::Compaction;
pub use error::BufferError;
pub use fate::{AcceptedChange, Fate};
pub use keys::KeyedWrite;
pub use lock::DaemonLock;
pub use queue::{Folded, Queued, Slot};
pub use reader::{PendingView, Reader, Snapshot};
pub use replacement::{mark_salvaged, set_aside_files};
pub use retention::{RetentionReport, archive_directory, read_archive};
pub use salvage::{Manner, SalvageReport, Salvaged, read_wreck};
pub use schema::{Counters, DamagedItem, DeadLetter, Item, Lane, Place};
pub use settlement::{SettleReport, Settlement, Verdict};
pub use shared::Buffer;
pub use verification::{Verification, verify};
pub use wreck::Reading;
