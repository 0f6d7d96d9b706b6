//! For tests: a store that does what the test says, and what it takes to put something into a buffer.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use holdfast_shared::buffer::{Buffer, BufferError};
use holdfast_shared::clock::Distance;
use holdfast_shared::config::{BufferConfig, SyncConfig};
use holdfast_shared::domain::task::{NewTask, Tags, Title};
use holdfast_shared::domain::{
    Body, Kind, Operation, OperationId, Outcome, Priority, Rejection, ResourceKey, Stamp, TaskId,
    TaskState, UserId, Violation,
};
use holdfast_shared::store::{FailureClass, StoreError};
use tokio::sync::Notify;

use super::{Sink, Standing};

/// What the store does, and what it has been given.
#[derive(Default)]
pub(crate) struct Script {
    pub(crate) away: bool,
    /// Fails every call.
    pub(crate) broken: Option<FailureClass>,
    /// Fails every call that touches one of these.
    pub(crate) bad: HashMap<ResourceKey, FailureClass>,
    /// Refuses these, in an answer.
    pub(crate) rejected: HashMap<ResourceKey, Rejection>,
    /// Contended ones that nobody is seen to lock.
    pub(crate) unseen_locks: HashSet<ResourceKey>,
    /// Nothing can be written, and it isn't about rows.
    pub(crate) table_locked: bool,
    pub(crate) asked_for_locks: usize,
    /// At any time, besides those of this drain.
    pub(crate) serves_others: bool,
    pub(crate) applied: Vec<OperationId>,
    pub(crate) batches: Vec<usize>,
}

#[derive(Clone, Default)]
pub(crate) struct FakeStore(Arc<Mutex<Script>>, Arc<Notify>);

impl FakeStore {
    pub(crate) fn script(&self) -> MutexGuard<'_, Script> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn come_up(&self) {
        self.script().away = false;
        self.1.notify_waiters();
    }
}

impl Sink for FakeStore {
    async fn apply(&self, operations: &[&Operation]) -> Result<Vec<Outcome>, StoreError> {
        let mut script = self.script();
        script.batches.push(operations.len());
        let bad = operations
            .iter()
            .find_map(|operation| script.bad.get(&operation.resource()).copied());
        if let Some(class) = script.broken.or(bad) {
            return Err(StoreError::new(class, format!("scripted {class:?}")));
        }
        let outcomes =
            operations.iter().map(
                |operation| match script.rejected.get(&operation.resource()) {
                    Some(rejection) => Outcome::Rejected(*rejection),
                    None => Outcome::Applied,
                },
            );
        let outcomes = outcomes.collect();
        script
            .applied
            .extend(operations.iter().map(|operation| operation.id));
        Ok(outcomes)
    }

    async fn find_locked(&self, resources: &[ResourceKey]) -> Result<Vec<ResourceKey>, StoreError> {
        let mut script = self.script();
        script.asked_for_locks += 1;
        if script.table_locked {
            return Err(StoreError::new(FailureClass::Contended, "scripted lock"));
        }
        let locked = |resource: &&ResourceKey| {
            script.bad.get(resource) == Some(&FailureClass::Contended)
                && !script.unseen_locks.contains(resource)
        };
        Ok(resources.iter().filter(locked).cloned().collect())
    }

    async fn serves_others(&self, _: Duration) -> bool {
        self.script().serves_others
    }

    fn standing(&self) -> Standing {
        if self.script().away {
            Standing::Away
        } else {
            Standing::Up
        }
    }

    async fn came_up(&self) {
        let notified = self.1.notified();
        if self.standing() != Standing::Up {
            notified.await;
        }
    }
}

pub(crate) fn open_buffer(directory: &Path, retention: Duration) -> Result<Buffer, BufferError> {
    let buffer = Buffer::open(&BufferConfig {
        path: directory.join("buffer.redb"),
        max_items: 100_000,
        retention,
    })?;
    // As after a probe: nothing is drained before the store's time is known.
    let reading = buffer.clock().read();
    buffer
        .clock()
        .learn(Distance::between(&reading, reading.wall));
    Ok(buffer)
}

pub(crate) fn sync_config(
    max_retry_attempts: u32,
    batch_size: usize,
    batch_max: usize,
) -> SyncConfig {
    SyncConfig {
        interval: Duration::from_secs(3_600),
        batch_size,
        batch_max,
        max_retry_attempts,
    }
}

pub(crate) fn operation(buffer: &Buffer, id: TaskId, kind: Kind) -> Result<Operation, Violation> {
    let task = NewTask {
        title: Title::parse("bread")?,
        description: Default::default(),
        status: Default::default(),
        priority: Priority::default(),
        due_at: None,
        tags: Tags::default(),
    };
    let created = (kind == Kind::Create).then_some(Stamp::ZERO);
    Ok(Operation {
        id: OperationId::generate(),
        stamp: Stamp::ZERO,
        user_id: UserId::parse("ann")?,
        kind,
        body: Body::Task {
            id,
            change: TaskState {
                created,
                ..task.into_change()
            },
        },
        precondition: None,
        idempotency: None,
        accepted_at: buffer.clock().now(),
        priority: Priority::default(),
        buffered: true,
    })
}
