//! Resources whose create died: what waits behind it can never be applied, and ends with it.

use std::collections::HashMap;

use holdfast_shared::buffer::DeadLetter;
use holdfast_shared::domain::{Kind, Operation, OperationId, ResourceKey, Timestamp};

/// The dead creates of a lane whose followers may still be queued. Emptied whenever the lane runs dry, so it is no
/// larger than what died since.
#[derive(Debug, Default)]
pub struct Orphans {
    creates: HashMap<ResourceKey, DeadCreate>,
}

#[derive(Debug, Clone, Copy)]
struct DeadCreate {
    id: OperationId,
    died_at: Timestamp,
}

impl Orphans {
    /// Notes that an operation has died of its own failure. Anything but a create has no one depending on it.
    pub fn bereave(&mut self, operation: &Operation, died_at: Timestamp) {
        if operation.kind == Kind::Create {
            self.creates.insert(
                operation.resource(),
                DeadCreate {
                    id: operation.id,
                    died_at,
                },
            );
        }
    }

    /// Notes a letter that an earlier process left, whose followers it may not have come to.
    pub fn recall(&mut self, letter: &DeadLetter) {
        self.bereave(&letter.item.operation, letter.died_at);
    }

    /// The dead create this operation was waiting for, if so. A new create of the resource, or the dead one queued
    /// again, frees it; so does anything accepted after the death, since its client could see that.
    pub fn blocked_by(&mut self, operation: &Operation) -> Option<OperationId> {
        if self.creates.is_empty() {
            return None;
        }
        let key = operation.resource();
        let create = self.creates.get(&key)?;
        if operation.kind == Kind::Create || operation.accepted_at > create.died_at {
            self.creates.remove(&key);
            return None;
        }
        Some(create.id)
    }

    /// Nothing is queued any more.
    pub fn clear(&mut self) {
        self.creates.clear();
    }
}

#[cfg(test)]
mod tests {
    use holdfast_shared::domain::{Body, Priority, Stamp, TaskId, TaskState, UserId};

    use super::*;

    fn operation(id: TaskId, kind: Kind, accepted_us: i64) -> Operation {
        Operation {
            id: OperationId::generate(),
            stamp: Stamp::ZERO,
            user_id: UserId::parse("ann").expect("valid"),
            kind,
            body: Body::Task {
                id,
                change: TaskState::default(),
            },
            precondition: None,
            idempotency: None,
            accepted_at: Timestamp::from_micros(accepted_us),
            priority: Priority::default(),
            buffered: true,
        }
    }

    #[test]
    fn what_was_accepted_before_the_create_died_is_blocked_by_it() {
        let (mut orphans, task) = (Orphans::default(), TaskId::generate());
        let create = operation(task, Kind::Create, 1);
        orphans.bereave(&create, Timestamp::from_micros(10));
        assert_eq!(
            orphans.blocked_by(&operation(task, Kind::Update, 10)),
            Some(create.id)
        );
        assert_eq!(
            orphans.blocked_by(&operation(TaskId::generate(), Kind::Update, 10)),
            None
        );
    }

    #[test]
    fn what_was_accepted_later_is_judged_by_itself_and_so_is_all_after_it() {
        let (mut orphans, task) = (Orphans::default(), TaskId::generate());
        orphans.bereave(
            &operation(task, Kind::Create, 1),
            Timestamp::from_micros(10),
        );
        assert_eq!(orphans.blocked_by(&operation(task, Kind::Update, 11)), None);
        assert_eq!(orphans.blocked_by(&operation(task, Kind::Update, 5)), None);
    }

    #[test]
    fn another_create_frees_the_resource() {
        let (mut orphans, task) = (Orphans::default(), TaskId::generate());
        orphans.bereave(
            &operation(task, Kind::Create, 1),
            Timestamp::from_micros(10),
        );
        assert_eq!(orphans.blocked_by(&operation(task, Kind::Create, 2)), None);
        assert_eq!(orphans.blocked_by(&operation(task, Kind::Update, 3)), None);
    }

    #[test]
    fn a_dead_update_blocks_nothing() {
        let (mut orphans, task) = (Orphans::default(), TaskId::generate());
        orphans.bereave(
            &operation(task, Kind::Update, 1),
            Timestamp::from_micros(10),
        );
        assert_eq!(orphans.blocked_by(&operation(task, Kind::Update, 2)), None);
    }
}
