//! The face of the PostgreSQL store.

use std::borrow::Borrow;
use std::sync::Arc;
use std::time::Duration;

use super::apply::{self, Applied};
use super::connection::Connection;
use super::ledger::{self, Wanted};
use super::migrate::{self, MigrationReport};
use super::probe::WriteProbe;
use super::session::{Sessions, Timeouts};
use super::{list, locks, probe, profile, session, task};
use crate::config::PostgresConfig;
use crate::domain::{
    IdempotencyKey, Operation, OperationId, OperationRecord, OperationState, Outcome, ProfileState,
    ResourceKey, Row, State, TaskId, TaskQuery, TaskState, Timestamp, UserId,
};
use crate::health::{Probe, Probed};
use crate::store::pool::Connections;
use crate::store::{FailureClass, StoreError};

/// The PostgreSQL store. Clones share its connections.
///
/// Every method fails with a [`StoreError`] whose class says what to do, within [`Timeouts::call`].
#[derive(Clone)]
pub struct Postgres {
    connections: Arc<Connections<Sessions>>,
    probe: Arc<WriteProbe>,
}

/// What is recorded under an idempotency key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRecord {
    /// The operation that came with it.
    pub operation: OperationRecord,
    /// What it was answered with.
    pub outcome: Outcome,
    /// SHA-256 of its request.
    pub fingerprint: [u8; 32],
}

impl Postgres {
    /// A store that connects when it is first used. One of the configured connections is kept for the probe.
    pub fn new(config: &PostgresConfig, timeouts: Timeouts) -> Self {
        let pooled = config.max_connections.saturating_sub(1).max(1);
        let connections = Connections::new(Sessions::new(config, timeouts), pooled, timeouts.call);
        Postgres {
            connections: Arc::new(connections),
            probe: Arc::new(WriteProbe::new()),
        }
    }

    /// The same for a daemon that works behind the clients' backs: its deadlines are those of batches, and its sessions
    /// go by a name of their own, by which [`Postgres::serves_others`] tells them from the others.
    pub fn for_daemon(config: &PostgresConfig) -> Self {
        let mut config = config.clone();
        config.options = session::rename_for_daemon(config.options);
        Postgres::new(&config, Timeouts::drain())
    }

    async fn call<T>(
        &self,
        work: impl AsyncFnOnce(&mut Connection<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let sessions = self.connections.connector();
        self.connections
            .call(async |connection| sessions.run(connection, work).await)
            .await
    }

    /// Applies operations on tasks and profiles in their order, all or nothing. Returns one answer each, in the same
    /// order; none for none. An operation that the ledger already knows is not applied again.
    ///
    /// # Errors
    /// Nothing was written, unless [`StoreError::outcome_unknown`] says otherwise; then a repeat of the same
    /// operations is harmless.
    pub async fn apply<O: Borrow<Operation> + Sync>(
        &self,
        operations: &[O],
    ) -> Result<Vec<Applied>, StoreError> {
        if operations.is_empty() {
            return Ok(Vec::new());
        }
        let operations: Vec<&Operation> = operations.iter().map(Borrow::borrow).collect();
        self.call(async |connection| apply::apply(connection, &operations).await)
            .await
    }

    /// The same for a batch whose resources nobody waits to see: gives the outcomes alone.
    ///
    /// # Errors
    /// As [`Postgres::apply`].
    pub async fn apply_batch(&self, operations: &[&Operation]) -> Result<Vec<Outcome>, StoreError> {
        if operations.is_empty() {
            return Ok(Vec::new());
        }
        self.call(async |connection| apply::apply_batch(connection, operations).await)
            .await
    }

    /// Finds those of these resources that others hold locked now, without waiting for them.
    ///
    /// # Errors
    /// See [`Postgres`]; [`FailureClass::Contended`] when a whole table is locked.
    pub async fn find_locked(
        &self,
        resources: &[ResourceKey],
    ) -> Result<Vec<ResourceKey>, StoreError> {
        self.call(async |connection| Ok(locks::find_locked(connection, resources).await?))
            .await
    }

    /// Finds a task, a tombstone too, whoever's it is.
    ///
    /// # Errors
    /// See [`Postgres`].
    pub async fn find_task(&self, id: TaskId) -> Result<Option<Row>, StoreError> {
        let ids = [id.as_uuid()];
        let found = self
            .call(async |connection| Ok(task::find(connection, &ids).await?))
            .await?;
        Ok(found.into_iter().next().map(|(_, row)| row))
    }

    /// Finds those of these tasks that are the user's, tombstones too, in no particular order.
    ///
    /// # Errors
    /// See [`Postgres`].
    pub async fn find_tasks(
        &self,
        user: &UserId,
        ids: &[TaskId],
    ) -> Result<Vec<(TaskId, TaskState)>, StoreError> {
        let ids: Vec<_> = ids.iter().map(|id| id.as_uuid()).collect();
        let found = self
            .call(async |connection| Ok(task::find(connection, &ids).await?))
            .await?;
        Ok(found
            .into_iter()
            .filter_map(|(id, row)| own_task(user, id, row))
            .collect())
    }

    /// Finds a page of the user's tasks: up to `query.limit`, in its order, no tombstones, and none of `without`.
    ///
    /// # Errors
    /// See [`Postgres`].
    pub async fn list_tasks(
        &self,
        user: &UserId,
        query: &TaskQuery,
        without: &[TaskId],
    ) -> Result<Vec<(TaskId, TaskState)>, StoreError> {
        self.call(async |connection| Ok(list::find(connection, user, query, without).await?))
            .await
    }

    /// Finds a user's profile.
    ///
    /// # Errors
    /// See [`Postgres`].
    pub async fn find_profile(&self, user: &UserId) -> Result<Option<ProfileState>, StoreError> {
        let users = [user.as_str().to_owned()];
        let found = self
            .call(async |connection| Ok(profile::find(connection, &users).await?))
            .await?;
        Ok(found.into_iter().find_map(own_profile))
    }

    /// Makes the user's profile unless there is one. Returns what is there afterwards.
    ///
    /// # Errors
    /// See [`Postgres`].
    pub async fn insert_profile_if_absent(
        &self,
        user: &UserId,
        profile: &ProfileState,
    ) -> Result<ProfileState, StoreError> {
        let users = [user.as_str().to_owned()];
        let found = self
            .call(async |connection| {
                profile::insert_if_absent(connection, user, profile).await?;
                Ok(profile::find(connection, &users).await?)
            })
            .await?;
        let vanished = || {
            StoreError::new(
                FailureClass::Item,
                "the profile was removed at this very moment",
            )
        };
        found.into_iter().find_map(own_profile).ok_or_else(vanished)
    }

    /// Finds what is recorded of a user's operation.
    ///
    /// # Errors
    /// See [`Postgres`].
    pub async fn find_operation(
        &self,
        user: &UserId,
        id: OperationId,
    ) -> Result<Option<OperationRecord>, StoreError> {
        let mut wanted = Wanted::default();
        wanted.id(user, id);
        let found = self
            .call(async |connection| Ok(ledger::find(connection, &wanted).await?))
            .await?;
        Ok(found.into_iter().next().map(|recorded| recorded.operation))
    }

    /// Finds up to `limit` of the user's recorded operations, newest id first, beginning after `before`.
    ///
    /// # Errors
    /// See [`Postgres`].
    pub async fn list_operations(
        &self,
        user: &UserId,
        state: Option<OperationState>,
        before: Option<OperationId>,
        limit: usize,
    ) -> Result<Vec<OperationRecord>, StoreError> {
        let limit = row_limit(limit);
        let call = async |connection: &mut Connection<'_>| {
            Ok(ledger::list(connection, user, state, before, limit).await?)
        };
        self.call(call).await
    }

    /// Finds what is recorded under a user's idempotency key, and, as [`Postgres::apply`] does for a repeat, waits until it
    /// is as durable as a commit has to be. Waits for no other locks.
    ///
    /// # Errors
    /// See [`Postgres`].
    pub async fn find_by_key(
        &self,
        user: &UserId,
        key: &IdempotencyKey,
    ) -> Result<Option<KeyRecord>, StoreError> {
        let mut wanted = Wanted::default();
        wanted.key(user, key);
        self.call(async |connection| {
            let found = ledger::find(connection, &wanted).await?;
            let Some(recorded) = found.into_iter().next() else {
                return Ok(None);
            };
            ledger::hold(connection, &recorded).await?;
            let outcome = recorded.outcome()?;
            Ok(recorded.idempotency.map(|own| KeyRecord {
                operation: recorded.operation,
                outcome,
                fingerprint: own.fingerprint,
            }))
        })
        .await
    }

    /// Removes the oldest records of operations that ended before `older_than`, at most `limit`. Returns how many;
    /// fewer than `limit` when none is left. Younger than [`RECORD_DAYS`](super::RECORD_DAYS) they are still needed.
    ///
    /// # Errors
    /// See [`Postgres`].
    pub async fn remove_old_records(
        &self,
        older_than: Timestamp,
        limit: usize,
    ) -> Result<u64, StoreError> {
        let limit = row_limit(limit);
        self.call(async |connection| Ok(ledger::remove(connection, older_than, limit).await?))
            .await
    }

    /// Whether the database has been used by others within that time: by sessions of this role (or of any, for a
    /// monitoring role) that are neither daemons' nor probes'. Told by the names that sessions go by, so only for a
    /// daemon; `false` where a pooler hides them.
    ///
    /// # Errors
    /// See [`Postgres`].
    pub async fn serves_others(&self, within: Duration) -> Result<bool, StoreError> {
        self.call(async |connection| Ok(probe::serves_others(connection, within).await?))
            .await
    }

    /// How many operations are recorded, to audit the buffer's counters against. Reads them all.
    ///
    /// # Errors
    /// See [`Postgres`].
    pub async fn count_applied_operations(&self) -> Result<u64, StoreError> {
        let count = self
            .call(async |connection| Ok(ledger::count(connection).await?))
            .await?;
        Ok(u64::try_from(count).unwrap_or(0))
    }

    /// Brings the schema up to this binary's, waiting while another process does the same. The only call that isn't
    /// bounded in time, since building an index takes what it takes; it gives up after a minute on a lock that isn't
    /// free. It has to reach PostgreSQL itself: a pooler that shares connections by transaction can't hold the lock
    /// that keeps a second run out.
    ///
    /// # Errors
    /// The migration that failed is not applied; those before it are.
    pub async fn migrate(&self) -> Result<MigrationReport, StoreError> {
        let mut connection = self.connections.connector().connect_unhurried().await?;
        migrate::migrate(&mut connection).await
    }
}

impl Probe for Postgres {
    async fn probe(&self) -> Result<Probed, StoreError> {
        let probing = self.probe.run(self.connections.connector());
        self.connections.doubt_unless_well(probing).await
    }
}

fn own_task(user: &UserId, id: TaskId, row: Row) -> Option<(TaskId, TaskState)> {
    match row.state {
        State::Task(task) if row.owner == *user => Some((id, task)),
        _ => None,
    }
}

fn own_profile(row: Row) -> Option<ProfileState> {
    match row.state {
        State::Profile(profile) => Some(profile),
        State::Task(_) => None,
    }
}

fn row_limit(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}
