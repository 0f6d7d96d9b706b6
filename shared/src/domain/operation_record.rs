//! What a client or an operator is told of an operation: the contract's `Operation`.

use serde::{Deserialize, Serialize};

use super::identity::{OperationId, UserId};
use super::operation::{Entity, Kind, Operation, Outcome};
use super::stamp::Timestamp;
use super::task::Priority;

/// Where an operation stands. All but `Pending` are final.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum OperationState {
    /// It waits in the buffer.
    Pending,
    /// It took effect.
    Applied,
    /// Newer writes had set everything it sets.
    Superseded,
    /// It was refused, or failed for good; `last_error` says why.
    Dead,
}

impl OperationState {
    /// Every state, in the contract's order.
    pub const ALL: [OperationState; 4] = [
        OperationState::Pending,
        OperationState::Applied,
        OperationState::Superseded,
        OperationState::Dead,
    ];

    /// The contract's word.
    pub fn as_str(self) -> &'static str {
        match self {
            OperationState::Pending => "pending",
            OperationState::Applied => "applied",
            OperationState::Superseded => "superseded",
            OperationState::Dead => "dead",
        }
    }

    /// The state with this word.
    pub fn parse(text: &str) -> Option<Self> {
        OperationState::ALL
            .into_iter()
            .find(|state| state.as_str() == text)
    }

    /// Whether nothing more will become of it.
    pub fn is_final(self) -> bool {
        self != OperationState::Pending
    }
}

impl From<&Outcome> for OperationState {
    /// Where an operation stands that ended so.
    fn from(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Applied | Outcome::Repeated(_) => OperationState::Applied,
            Outcome::Superseded => OperationState::Superseded,
            Outcome::Rejected(_) => OperationState::Dead,
        }
    }
}

/// An operation as the contract shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationRecord {
    /// Its id.
    pub id: OperationId,
    /// Whose it is.
    pub user_id: UserId,
    /// The kind of thing it is about.
    pub entity: Entity,
    /// The id of the very thing: a task's, a user's or a session's.
    pub entity_id: String,
    /// What it does.
    pub kind: Kind,
    /// Where it stands.
    pub state: OperationState,
    /// Its place in the queue.
    pub priority: Priority,
    /// How often applying it has failed while the store was healthy.
    pub retries: u32,
    /// Why it failed last, or why it is dead.
    pub last_error: Option<String>,
    /// When it was accepted.
    pub accepted_at: Timestamp,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
}

impl OperationRecord {
    /// The record of an operation that has just been accepted.
    pub fn pending(operation: &Operation) -> Self {
        OperationRecord {
            id: operation.id,
            user_id: operation.user_id.clone(),
            entity: operation.entity(),
            entity_id: operation.resource().to_string(),
            kind: operation.kind,
            state: OperationState::Pending,
            priority: operation.priority,
            retries: 0,
            last_error: None,
            accepted_at: operation.accepted_at,
            finished_at: None,
        }
    }
}
