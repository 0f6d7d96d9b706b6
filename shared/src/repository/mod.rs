//! The only place that chooses between PostgreSQL, Redis, the memory cache and the buffer.
//!
//! *Writing*: with nothing of the resource pending and the store up, straight to it, with a deadline; otherwise, or
//! when that attempt ends without an answer, to the buffer under the same operation id.
//! *Reading*: the pending view first, then the store, merged by stamps. In the other order a drain in between would
//! hide the user's own write. With the store away: the view over the memory cache.
//!
//! What must not be here: HTTP, SQL, the file's format, and any rule of the domain.

mod answer;
mod cache;
mod core;
mod follower;
mod operations;
mod outlook;
mod read;
mod recall;
mod report;
mod revocations;
mod sessions;
mod write;

pub use answer::{
    Admission, BufferReport, Found, Handling, HealthReport, Hindrance, Mode, ReadError,
    StoreReport, SyncState, TaskPage, WriteError, WritePath, Written,
};
pub use core::{ForeignBuffer, OpenError, Repository};
pub use follower::{oldest_age, set_gauges};
pub use outlook::Awaited;
pub use sessions::LISTED_SESSIONS_MAX;
