//! What Holdfast keeps and how it changes: tasks, profiles, sessions, and the operations on them.
//!
//! A write is an [`Operation`]: a partial record whose fields each carry the [`Stamp`] of the write that set them.
//! Records merge field by field, the greater stamp winning, so operations may arrive in any order, twice, and by
//! any path, and every copy ends the same. This module has no I/O and nothing asynchronous, and imports no other
//! module of the crate.

pub mod stamp;

#[macro_use]
mod record;
mod identity;
pub mod operation;
mod operation_record;
pub mod profile;
pub mod query;
pub mod session;
pub mod task;
mod text;

pub use identity::{IdempotencyKey, OperationId, ResourceKey, SessionId, TaskId, UserId};
pub use operation::{
    Body, Entity, Idempotency, Kind, Operation, Outcome, Precondition, Rejection, Row, State, judge,
};
pub use operation_record::{OperationRecord, OperationState};
pub use profile::{Claims, ProfileState};
pub use query::{Cursor, SortField, SortKey, TaskQuery};
pub use record::{ETag, Register};
pub use session::{Revocation, Session};
pub use stamp::{NodeId, Stamp, Timestamp};
pub use task::{Priority, Status, TaskState};
pub use text::Violation;

#[cfg(test)]
mod convergence;
