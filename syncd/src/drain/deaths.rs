//! Why operations die, and what is said about it.

use holdfast_shared::buffer::{Lane, Queued, Settlement, Verdict};
use holdfast_shared::domain::{OperationId, Rejection};

use crate::metrics;

/// How a blocked operation's reason begins; the id of what blocked it follows.
const BLOCKED_BY: &str = "blocked_by ";

/// The kinds of death, told from the reason that is kept with a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The store, sound and willing, refused it: what it needs isn't there, isn't its user's, or has changed.
    Rejected(Rejection),
    /// The create it was waiting for died.
    Blocked,
    /// The store failed on it.
    Failed,
}

impl Cause {
    /// Reads a reason.
    pub fn of(reason: &str) -> Self {
        let rejections = [
            Rejection::NotFound,
            Rejection::NotOwner,
            Rejection::Deleted,
            Rejection::PreconditionFailed,
            Rejection::KeyReused,
            Rejection::TooOld,
        ];
        let rejection = rejections
            .into_iter()
            .find(|rejection| rejection.as_str() == reason);
        match rejection {
            Some(rejection) => Cause::Rejected(rejection),
            None if reason.starts_with(BLOCKED_BY) => Cause::Blocked,
            None => Cause::Failed,
        }
    }

    /// The label in metrics: one of few words.
    pub fn label(self) -> &'static str {
        match self {
            Cause::Rejected(rejection) => rejection.as_str(),
            Cause::Blocked => "blocked_by",
            Cause::Failed => "failed",
        }
    }

    /// The reason of what was waiting for this create.
    pub fn blocked_by(create: OperationId) -> String {
        format!("{BLOCKED_BY}{create}")
    }

    /// The operation a reason names as what blocked it.
    pub fn blocker(reason: &str) -> Option<OperationId> {
        OperationId::parse(reason.strip_prefix(BLOCKED_BY)?)
    }
}

/// Counts and says what has ended otherwise than it should, and what is to be tried again.
pub fn log_ends(lane: Lane, settlements: &[Settlement]) {
    for Settlement { queued, verdict } in settlements {
        match verdict {
            Verdict::Dead { reason } => log_death(lane, queued, reason),
            Verdict::Retry { error, .. } => log_failure(lane, queued, error),
            Verdict::Applied | Verdict::Superseded | Verdict::Repeated(_) => {}
        }
    }
}

/// What was refused for a reason of its client's making is nobody's alarm.
fn log_death(lane: Lane, queued: &Queued, reason: &str) {
    let (lane, cause) = (lane.as_str(), Cause::of(reason));
    metrics::count_death(cause);
    let operation = &queued.item.operation;
    let (id, entity, kind) = (
        operation.id,
        operation.entity().as_str(),
        operation.kind.as_str(),
    );
    if matches!(cause, Cause::Rejected(_)) {
        tracing::info!(lane, operation = %id, entity, kind, reason, "operation was refused and is dead");
    } else {
        tracing::warn!(lane, operation = %id, entity, kind, reason, "operation is dead; see syncd dead show");
    }
}

fn log_failure(lane: Lane, queued: &Queued, error: &str) {
    let (lane, id, retries) = (
        lane.as_str(),
        queued.item.operation.id,
        queued.item.retries + 1,
    );
    tracing::debug!(lane, operation = %id, retries, error, "operation failed, to be tried again");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_tells_its_cause() {
        assert_eq!(Cause::of("not_found"), Cause::Rejected(Rejection::NotFound));
        assert_eq!(
            Cause::of("precondition_failed").label(),
            "precondition_failed"
        );
        assert_eq!(Cause::of("value too long (22001)"), Cause::Failed);
    }

    #[test]
    fn a_blocked_operation_names_its_blocker() {
        let id = OperationId::generate();
        let reason = Cause::blocked_by(id);
        assert_eq!(Cause::of(&reason), Cause::Blocked);
        assert_eq!(Cause::blocker(&reason), Some(id));
        assert_eq!(Cause::blocker("not_found"), None);
    }
}
