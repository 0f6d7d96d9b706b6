//! The rules that turn what a client asks into operations of the domain. Nothing here knows of HTTP, and nothing of
//! where the repository keeps things.

pub mod profile;
pub mod session;
pub mod task;

use holdfast_shared::domain::{
    Body, Idempotency, Kind, Operation, OperationId, Precondition, Priority, Stamp, UserId,
};
use holdfast_shared::repository::{Handling, Repository, WriteError, Written};

/// Whose a write is, and on what terms.
#[derive(Debug, Clone)]
pub struct Terms {
    /// Whose.
    pub user: UserId,
    /// What may become of it while its store is away.
    pub handling: Handling,
    /// Its place in the queue, where the client says so.
    pub priority: Option<Priority>,
    /// What has to be true.
    pub precondition: Option<Precondition>,
    /// The client's key for repeats.
    pub idempotency: Option<Idempotency>,
}

impl Terms {
    /// Whether they ask for nothing beyond the write itself.
    pub fn are_plain(&self) -> bool {
        self.handling == Handling::Lenient
            && self.precondition.is_none()
            && self.idempotency.is_none()
    }
}

/// The priority of an operation on this kind of thing, unless the client sets one. (Revocations have ways of their
/// own.)
fn default_priority(body: &Body) -> Priority {
    match body {
        Body::Session(_) => Priority::ALL[0],
        Body::Profile { .. } => Priority::ALL[1],
        Body::Task { .. } => Priority::ALL[2],
    }
}

/// Makes the operation, unstamped, and has it accepted.
async fn write(
    repository: &Repository,
    terms: Terms,
    kind: Kind,
    body: Body,
) -> Result<Written, WriteError> {
    let operation = Operation {
        id: OperationId::generate(),
        stamp: Stamp::ZERO,
        user_id: terms.user,
        kind,
        priority: terms.priority.unwrap_or_else(|| default_priority(&body)),
        body,
        precondition: terms.precondition,
        idempotency: terms.idempotency,
        accepted_at: repository.now(),
        buffered: false,
    };
    repository.write(operation, terms.handling).await
}
