//! The buffer again, as plainly as can be: lists and maps, no file, no index, no transactions. What it says is what the
//! real one must say after every action, crash and error.

use std::collections::{BTreeMap, BTreeSet};

use crate::buffer::{Lane, Verdict};
use crate::domain::{Kind, OperationId, OperationState, Priority, ResourceKey, SessionId};

/// An item that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Waiting {
    pub(super) id: OperationId,
    pub(super) resource: ResourceKey,
    /// The operation's own.
    pub(super) wished: Priority,
    /// The queue it is in.
    pub(super) priority: Priority,
    pub(super) retries: u32,
    /// The title it sets, which no other operation sets.
    pub(super) title: Option<String>,
    pub(super) deleted: bool,
}

/// A dead letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Dead {
    pub(super) item: Waiting,
    pub(super) reason: String,
}

/// Everything that can be asked of a buffer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Plain {
    /// In the order they were accepted.
    pub(super) waiting: Vec<Waiting>,
    pub(super) dead: BTreeMap<OperationId, Dead>,
    pub(super) finished: BTreeMap<OperationId, OperationState>,
    pub(super) archive: BTreeMap<OperationId, Dead>,
    pub(super) revoked: BTreeSet<SessionId>,
    pub(super) accepted: u64,
    pub(super) applied: u64,
    pub(super) superseded: u64,
    pub(super) set_aside: u64,
    pub(super) discarded: u64,
}

impl Plain {
    /// Accepts an item, unless `room` are waiting. Gives whether it did.
    pub(super) fn append(&mut self, item: Waiting, room: usize) -> bool {
        if self.waiting.len() >= room {
            return false;
        }
        self.accepted += 1;
        self.enqueue(item);
        true
    }

    /// No more urgent than what waits for the same resource.
    fn enqueue(&mut self, mut item: Waiting) {
        let same = self
            .waiting
            .iter()
            .filter(|other| other.resource == item.resource);
        item.priority = same
            .map(|other| other.priority)
            .chain([item.wished])
            .max()
            .expect("its own");
        self.waiting.push(item);
    }

    /// Changes the one item of a resource, as if it were the row. Gives whether there was room.
    pub(super) fn fold(&mut self, write: Waiting, kind: Kind, room: usize) -> bool {
        let full = self.waiting.len() >= room;
        let last = self
            .waiting
            .iter_mut()
            .rev()
            .find(|other| other.resource == write.resource);
        match (last, kind) {
            (None, _) if full => return false,
            (None, Kind::Create) => {
                self.accepted += 1;
                self.waiting.push(write);
            }
            (None, _) => {}
            (Some(row), _) if row.deleted => {}
            (Some(row), Kind::Delete) => {
                row.deleted = true;
                row.title = None;
            }
            (Some(row), _) => row.title = write.title,
        }
        true
    }

    /// What waits in a lane, in the order it is drained.
    pub(super) fn queue(&self, lane: Lane) -> Vec<&Waiting> {
        let mut queue: Vec<&Waiting> = self
            .waiting
            .iter()
            .filter(|item| lane_of(&item.resource) == lane)
            .collect();
        queue.sort_by_key(|item| item.priority);
        queue
    }

    /// Carries out a verdict on an item that waits.
    pub(super) fn settle(&mut self, id: OperationId, verdict: &Verdict) {
        let Some(at) = self.waiting.iter().position(|item| item.id == id) else {
            return;
        };
        if let Verdict::Retry { .. } = verdict {
            self.waiting[at].retries += 1;
            return;
        }
        let item = self.waiting.remove(at);
        match verdict {
            Verdict::Applied | Verdict::Repeated(_) => {
                self.applied += 1;
                self.finished.insert(id, OperationState::Applied);
            }
            Verdict::Superseded => {
                self.superseded += 1;
                self.finished.insert(id, OperationState::Superseded);
            }
            Verdict::Dead { reason } => {
                self.dead.insert(
                    id,
                    Dead {
                        item,
                        reason: reason.clone(),
                    },
                );
            }
            Verdict::Retry { .. } => {}
        }
    }

    /// Moves a damaged item out of its queue.
    pub(super) fn set_aside(&mut self, id: OperationId) {
        self.waiting.retain(|item| item.id != id);
        self.set_aside += 1;
    }

    /// Everything that has ended is old enough to leave.
    pub(super) fn retain(&mut self) {
        self.finished.clear();
        self.archive.append(&mut self.dead);
    }

    /// A dead letter goes back to its queue, as new.
    pub(super) fn retry_dead(&mut self, id: OperationId) {
        if let Some(letter) = self.dead.remove(&id) {
            self.enqueue(Waiting {
                retries: 0,
                ..letter.item
            });
        }
    }

    /// A letter of the archive goes back to its queue, as new.
    pub(super) fn retry_archived(&mut self, id: OperationId) {
        if let Some(letter) = self.archive.remove(&id) {
            self.enqueue(Waiting {
                retries: 0,
                ..letter.item
            });
        }
    }

    /// An operator throws a dead letter away.
    pub(super) fn discard(&mut self, id: OperationId) {
        if self.dead.remove(&id).is_some() {
            self.discarded += 1;
        }
    }

    /// What is known of an operation.
    pub(super) fn state_of(&self, id: OperationId) -> Option<OperationState> {
        let waits = self.waiting.iter().any(|item| item.id == id);
        if waits {
            return Some(OperationState::Pending);
        }
        let dead = self.dead.contains_key(&id).then_some(OperationState::Dead);
        dead.or_else(|| self.finished.get(&id).copied())
    }
}

fn lane_of(resource: &ResourceKey) -> Lane {
    match resource {
        ResourceKey::Session(_) => Lane::Redis,
        _ => Lane::Postgres,
    }
}
